//! Translating the whole text of a program: the time it takes, and what comes out.

use accel_tcg::Stress;
use accel_tcg::code::cache::TbCache;
use accel_tcg::code::tb::{Tb, TbId, TbKey, mode};
use accel_tcg::code::thunks::FpSave;
use accel_tcg::cpuid::{self, MAX};
use accel_tcg::engine::{CODE_BYTES, Engine};
use accel_tcg::ram::{PAGE, Ram};
use accel_tcg::translate::block::MAX_INSN_BYTES;
use accel_tcg::translate::features::Features;
use accel_tcg::translate::generator::{Job, Translator};
use accel_tcg::translate::liveness::{Peek, WINDOW};
use iced_x86::{Decoder, DecoderOptions};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::classes::{KINDS, Kind, Tally, goes_on, kind};
use crate::report::Report;

/// Bytes of text that are enough.
const ENOUGH: usize = 4 << 20;
/// Rounds, of which the fastest counts.
const ROUNDS: usize = 5;

/// Who executes the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    User,
    Kernel,
}

impl Mode {
    fn bits(self) -> u32 {
        let cpl = if self == Self::User { 3 } else { 0 };
        mode::LONG | mode::FLAT_CODE | mode::SSE | mode::AVX | cpl
    }
}

/// Code and the address that it runs at, both from the start of a page on.
pub struct Text {
    bytes: Vec<u8>,
    address: u64,
    /// Where in the bytes it starts.
    start: usize,
    /// Where it ends; what follows fills the last page and one more.
    end: usize,
}

/// The .text section of the 64-bit ELF file `bytes`.
pub fn text_of(bytes: &[u8]) -> Text {
    let word = |at: usize, size: usize| {
        bytes[at..at + size].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
    };
    assert!(bytes.starts_with(b"\x7fELF\x02\x01"), "a 64-bit ELF file");
    let header = |index: u64| (word(0x28, 8) + index * word(0x3a, 2)) as usize;
    let names = word(header(word(0x3e, 2)) + 0x18, 8);
    let section = (0..word(0x3c, 2))
        .map(header)
        .find(|&at| bytes[(names + word(at, 4)) as usize..].starts_with(b".text\0"));
    let at = section.expect("a .text section");
    let (address, offset) = (word(at + 0x10, 8), word(at + 0x18, 8) as usize);
    let len = (word(at + 0x20, 8) as usize).min(ENOUGH);
    let start = (address % PAGE) as usize;
    let mut text = vec![0; start];
    text.extend_from_slice(&bytes[offset..offset + len]);
    text.resize((start + len).next_multiple_of(PAGE as usize) + PAGE as usize, 0);
    Text { bytes: text, address: address - start as u64, start, end: start + len }
}

impl Peek for Text {
    fn peek(&self, rip: u64, into: &mut [u8; WINDOW]) -> usize {
        let Ok(at) = usize::try_from(rip.wrapping_sub(self.address)) else { return 0 };
        let Some(rest) = self.bytes.get(at..) else { return 0 };
        let len = into.len().min(PAGE as usize - at % PAGE as usize).min(rest.len());
        into[..len].copy_from_slice(&rest[..len]);
        len
    }
}

/// The only CPU's.
const CPU: usize = 0;

/// What translates, and what keeps the blocks.
struct Subject<'a> {
    cache: &'a mut TbCache,
    translator: Translator,
}

/// Translates the block at byte `at`, as `Vcpu::find_block` does.
fn translate(code: &mut Subject, text: &Text, at: usize, mode: Mode) -> Tb {
    let page_size = PAGE as usize;
    let from = at & !(page_size - 1);
    let rip = text.address + at as u64;
    // Where it lies in RAM does not matter: at the same number of the page.
    let number = |at: usize| (at / page_size) as u32 + 1;
    let physical = u64::from(number(at)) * PAGE + rip % PAGE;
    let mut key = TbKey::new(physical, rip, mode.bits());
    for len in [page_size, page_size + MAX_INSN_BYTES] {
        let first = code.cache.mapping_number(rip / PAGE, number(at));
        let second = key.second_page().map(|second| code.cache.mapping_number(rip / PAGE + 1, second));
        let job = Job {
            key,
            mappings: (first, second),
            bytes: &text.bytes[from..from + len],
            peek: text,
            berth: code.cache.berth(CPU),
            hashed: 0,
            extended: true,
            grouped: true,
            straddling: false,
        };
        if let Some(block) = code.translator.translate(&job) {
            return block;
        }
        key = key.crossing_into(number(at) + 1);
    }
    unreachable!("no instruction is longer than these bytes")
}

/// Guest bytes of the block translated last up to where it has gone on elsewhere.
fn straight_bytes(code: &Subject) -> usize {
    let mut end = 0;
    for item in code.translator.items() {
        if item.offset as isize != end as isize {
            break;
        }
        end += item.insn.len();
    }
    end.max(1)
}

/// Translates all of `text`, calling `each` with every block when it was entered.
fn sweep(code: &mut Subject, ram: &Ram, text: &Text, mode: Mode, mut each: impl FnMut(&Subject, TbId)) {
    let mut at = text.start;
    while at < text.end {
        if code.cache.is_closed(CPU) {
            let victim = code.cache.victim();
            code.cache.go_on_in(CPU, victim, ram);
        }
        let block = translate(code, text, at, mode);
        if !code.cache.has_room(CPU, code.translator.code().len()) {
            code.cache.close(CPU);
            code.translator.discard();
            continue;
        }
        let id = code.cache.insert(CPU, block, code.translator.made());
        each(code, id);
        at += straight_bytes(code);
    }
}

fn engine() -> Engine {
    let features = Features::new(|leaf, subleaf| MAX.query(leaf, subleaf, 0, MAX.xcr0()));
    let fp = FpSave { mask: cpuid::host_xcr0(), xsaveopt: std::arch::is_x86_feature_detected!("xsaveopt") };
    Engine::new(features, fp, CODE_BYTES, Stress::default(), false).expect("code memory")
}

/// Adds what became of the block translated last to `tally`.
fn classify(code: &Subject, id: TbId, tally: &mut Tally) {
    let block = code.cache.block(id);
    let translator = &code.translator;
    let items = translator.items();
    let straight = translator.straight_code();
    let (start, entry) = (code.cache.code(id), u64::from(block.entries.forward));
    let last = items.len() - 1;
    // What is emitted behind an instruction that is no jump, at the end of its block, is not its own.
    let counts = |index: usize| index != last || goes_on(&items[index]);
    tally.of(Kind::Entry).guest += 1;
    for (_, item) in items.iter().enumerate().filter(|(index, _)| counts(*index)) {
        tally.of(kind(item)).guest += 1;
    }
    for insn in Decoder::with_ip(64, straight, 0, DecoderOptions::NONE) {
        let kind = if insn.ip() < entry {
            Kind::Entry
        } else {
            match code.cache.mark_at(id, start + insn.ip()).map(|mark| usize::from(mark.insn)) {
                Some(index) if counts(index) => kind(&items[index]),
                _ => continue,
            }
        };
        let made = tally.of(kind);
        made.host += 1;
        made.bytes += insn.len() as u64;
    }
}

/// Nanoseconds that this thread has executed: the machine may have more to do.
fn cpu_time() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel that counts");
    text.split(' ').next().and_then(|field| field.parse().ok()).expect("schedstat begins with it")
}

/// Translates `text` several times and reports.
pub fn run(name: &str, text: &Text, mode: Mode, report: &mut Report) {
    let ram = [(GuestAddress(0), 2 * ENOUGH)];
    let ram = Ram::new(&GuestMemoryMmap::<()>::from_ranges(&ram).expect("memory"));
    let engine = engine();
    let mut cache = engine.code();
    let mut code = Subject { cache: &mut cache, translator: engine.translator() };
    let mut best = f64::INFINITY;
    // The first round, in which the host gives the code memory, is the slowest.
    for _ in 0..ROUNDS {
        code.cache.clear(&ram);
        let before = code.cache.counters.instructions;
        let begun = cpu_time();
        sweep(&mut code, &ram, text, mode, |_, _| {});
        let took = cpu_time() - begun;
        best = best.min(took / (code.cache.counters.instructions - before) as f64);
    }
    let counters = code.cache.counters;
    let mut tally = Tally::default();
    code.cache.clear(&ram);
    sweep(&mut code, &ram, text, mode, |code, id| classify(code, id, &mut tally));

    report.heading(&format!("{name}, translated as {mode:?} code"));
    let (instructions, blocks) = (counters.instructions as f64, counters.translated as f64);
    report.figure(&format!("{name}: time per guest instruction"), best, "ns");
    report.figure(&format!("{name}: time per block"), best * instructions / blocks, "ns");
    report.figure(&format!("{name}: guest instructions per block"), instructions / blocks, "");
    let host = counters.host_bytes as f64;
    report.figure(
        &format!("{name}: host bytes per guest byte, stubs included"),
        host / counters.guest_bytes as f64,
        "",
    );
    println!("  {:<28}{:>10}{:>9}{:>12}{:>12}", "class", "count", "share %", "host insns", "host bytes");
    for (kind, class) in KINDS {
        let made = *tally.of(kind);
        if made.guest == 0 {
            continue;
        }
        let guest = made.guest as f64;
        let (insns, bytes) = (made.host as f64 / guest, made.bytes as f64 / guest);
        let share = guest * 100.0 * ROUNDS as f64 / instructions;
        println!("  {class:<28}{:>10}{share:>9.2}{insns:>12.2}{bytes:>12.2}", made.guest);
        report.keep(&format!("{name}: {class}: host instructions"), insns);
        report.keep(&format!("{name}: {class}: host bytes"), bytes);
    }
}
