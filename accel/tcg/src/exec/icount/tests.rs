//! Counts against single steps: one program that leaves blocks in every way, in every mode of the translator.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use accel::contract::Kick;
use accel::{CpuIo, VcpuExit};
use devices::clock::icount::{Pace, Shift, Sleep};
use devices::clock::{Clock, IcountClock, ScaledTsc, Timer};
use devices::cpu_interrupts::{InterruptKind, InterruptTarget, LocalInterrupts, NoSuchRegister};

use crate::code::thunks::FpSave;
use crate::complex::testing::{DATA, Machine};
use crate::cpuid::{self, Cpuid};
use crate::engine::{CODE_BYTES, Engine};
use crate::env::Table;
use crate::exec::Vcpu;
use crate::icount::{Counting, CountingKicker};
use crate::stress::Stress;
use crate::translate::features::Features;

/// An instruction takes four nanoseconds.
const SHIFT: u32 = 2;
const VECTOR: u8 = 0x30;

/// The program lies on two pages, with an instruction on both.
const CODE: u64 = DATA + 0xf81;
const HANDLERS: u64 = DATA + 0x4000;
const IDT: u64 = DATA + 0x6000;
const GDT: u64 = DATA + 0x7000;
const STACK: u64 = DATA + 0x9000 - 8;
const RESULTS: u64 = DATA + 0x1_0000;
const RESULT_BYTES: usize = 0x4000;
/// Where interrupts came.
const PLACES: u64 = DATA + 0x2_0000;
const PLACE_BYTES: usize = 0x1_0000;
const BUFFER: u64 = DATA + 0x4_0000;
const OTHER_BUFFER: u64 = DATA + 0x9_0000;
const ON_TWO_PAGES: u64 = DATA + 0xa_1000 - 4;
const MMIO: u64 = 0x3e_0000;
const NOT_PRESENT: u64 = 0x3f_0000;
const ROUNDS: u64 = 20;

/// The program, and the address of a byte of it that it writes.
fn program() -> (Vec<u8>, u64) {
    let mut code: Vec<u8> = Vec::new();
    let imm = |value: u64| u32::try_from(value).unwrap().to_le_bytes();
    let load = |opcode: u8, value: u64| [&[opcode][..], &imm(value)].concat();
    let (ecx, edx, ebx, esi, edi) = (0xb9, 0xba, 0xbb, 0xbe, 0xbf);
    // mov [r13], eax; add r13, 4
    let keep: &[u8] = &[0x41, 0x89, 0x45, 0x00, 0x49, 0x83, 0xc5, 0x04];
    let mut add = |bytes: &[u8]| code.extend(bytes);
    // rdtsc
    add(&[0x0f, 0x31]);
    add(keep);
    // in eax, dx
    add(&load(edx, 0x80));
    add(&[0xed]);
    add(keep);
    // mov eax, [rbp]; mov [rbp], eax; add [rbp], eax: MMIO
    add(&[0x8b, 0x45, 0x00]);
    add(keep);
    add(&[0x89, 0x45, 0x00, 0x01, 0x45, 0x00]);
    // ud2; mov rax, [rbx]; mov [rbx], rax; xor ecx, ecx; div ecx: each is skipped by its handler
    add(&[0x0f, 0x0b, 0x48, 0x8b, 0x03, 0x48, 0x89, 0x03, 0x31, 0xc9, 0xf7, 0xf1]);
    // mov rax, [r8]; mov [r8], rax: on two pages
    add(&[0x49, 0x8b, 0x00, 0x49, 0x89, 0x00]);
    // rep stosb: within a page, over pages, in several pieces
    for count in [0, 100, 9000, 200_000] {
        add(&load(ecx, count));
        add(&load(edi, BUFFER));
        add(&[0xf3, 0xaa]);
    }
    // rep stosd to MMIO
    add(&load(ecx, 3));
    add(&load(edi, MMIO));
    add(&[0xf3, 0xab]);
    // rep movsb; repe cmpsb
    for prefixed in [[0xf3, 0xa4], [0xf3, 0xa6]] {
        add(&load(ecx, 5000));
        add(&load(esi, BUFFER));
        add(&load(edi, OTHER_BUFFER));
        add(&prefixed);
    }
    // rdtsc
    add(&[0x0f, 0x31]);
    add(keep);
    // cpuid
    add(&[0x31, 0xc0, 0x0f, 0xa2]);
    add(&load(ebx, NOT_PRESENT));
    // pushfq; popfq; cli; sti; pause
    add(&[0x9c, 0x9d, 0xfa, 0xfb, 0xf3, 0x90]);
    // mov ecx, 3; loop $
    add(&load(ecx, 3));
    add(&[0xe2, 0xfe]);
    // test r12b, 1; jz over five nops: a way out in the midst of a block, flags in use behind
    add(&[0x41, 0xf6, 0xc4, 0x01, 0x74, 0x05, 0x90, 0x90, 0x90, 0x90, 0x90]);
    // setz al; lea rax, [rip + 2]; jmp rax
    add(&[0x0f, 0x94, 0xc0, 0x48, 0x8d, 0x05, 0x02, 0x00, 0x00, 0x00, 0xff, 0xe0]);
    // mov [r15], r12b; mov al, 0: the second one's operand is the byte that the first one writes
    add(&[0x45, 0x88, 0x27, 0xb0, 0x00]);
    let written = CODE + code.len() as u64 - 1;
    let mut add = |bytes: &[u8]| code.extend(bytes);
    add(keep);
    // call over what follows to the ret at the end
    add(&[0xe8, 0x0b, 0x00, 0x00, 0x00]);
    // dec r12d; jnz to the start; cli; hlt; ret
    add(&[0x41, 0xff, 0xcc]);
    let back = -(code.len() as i32 + 6);
    let mut add = |bytes: &[u8]| code.extend(bytes);
    add(&[&[0x0f, 0x85][..], &back.to_le_bytes()].concat());
    add(&[0xfa, 0xf4, 0xc3]);
    (code, written)
}

/// Handlers: skips two bytes (#DE, #UD), skips three bytes and the error code (#PF), notes where it came (interrupt).
const SKIP_TWO: &[u8] = &[0x48, 0x83, 0x04, 0x24, 0x02, 0x48, 0xcf];
const SKIP_THREE: &[u8] = &[0x48, 0x83, 0xc4, 0x08, 0x48, 0x83, 0x04, 0x24, 0x03, 0x48, 0xcf];
/// push rax; mov rax, [rsp + 8]; mov [r14], rax; add r14, 8; pop rax; iretq
const NOTE: &[u8] =
    &[0x50, 0x48, 0x8b, 0x44, 0x24, 0x08, 0x49, 0x89, 0x06, 0x49, 0x83, 0xc6, 0x08, 0x58, 0x48, 0xcf];

/// Ports and MMIO that show the time and write down the count; one interrupt.
struct Io {
    clock: Arc<IcountClock>,
    counts: Mutex<Vec<u64>>,
    pending: AtomicBool,
}

impl Io {
    fn accessed(&self, data: &mut [u8]) {
        self.counts.lock().unwrap().push(self.clock.executed());
        let now = self.clock.now_ns().to_le_bytes();
        data.copy_from_slice(&now[..data.len()]);
    }
}

impl CpuIo for Io {
    fn pio_read(&self, _port: u16, data: &mut [u8]) {
        self.accessed(data);
    }
    fn pio_write(&self, _port: u16, _data: &[u8]) {}
    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        self.accessed(data);
    }
    fn mmio_write(&self, _gpa: u64, data: &[u8]) {
        self.accessed(&mut data.to_vec());
    }
    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        Some(self)
    }
}

impl LocalInterrupts for Io {
    fn has_interrupt(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }
    fn acknowledge(&self) -> Option<u8> {
        self.pending.swap(false, Ordering::SeqCst).then_some(VECTOR)
    }
    fn take_sipi(&self) -> Option<u8> {
        None
    }
    fn tsc_changed(&self) {}
    fn init(&self) {}
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _value: u8) {}
    fn read_msr(&self, _index: u32) -> Result<u64, NoSuchRegister> {
        Err(NoSuchRegister)
    }
    fn write_msr(&self, _index: u32, _value: u64) -> Result<(), NoSuchRegister> {
        Err(NoSuchRegister)
    }
    fn mmio_base(&self) -> Option<u64> {
        None
    }
    fn mmio_read(&self, _offset: u64, _data: &mut [u8]) {}
    fn mmio_write(&self, _offset: u64, _data: &[u8]) {}
}

/// How a program is run.
#[derive(Clone, Copy, Default)]
struct How {
    stress: Stress,
    /// A timer fires every so many instructions, and interrupts if that is said.
    every: Option<(u64, bool)>,
    /// Another thread kicks all the time.
    kicked: bool,
    /// One instruction at a time, by [`Vcpu::step`].
    steps: bool,
}

/// All that a guest can see, and the count.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    executed: u64,
    gpr: [u64; 16],
    results: Vec<u8>,
    places: Vec<u8>,
    /// Counts at which devices were accessed.
    accessed: Vec<u64>,
    /// Counts at which the timer fired.
    fired: Vec<u64>,
}

/// A timer that fires every so many instructions and writes down when.
fn periodic(
    clock: &Arc<IcountClock>,
    instructions: u64,
    fired: &Arc<Mutex<Vec<u64>>>,
    due: impl Fn() + Send + Sync + 'static,
) -> Arc<OnceLock<Box<dyn Timer>>> {
    let slot: Arc<OnceLock<Box<dyn Timer>>> = Arc::default();
    let (its, own, fired) = (Arc::clone(clock), Arc::downgrade(&slot), Arc::clone(fired));
    let callback = move || {
        fired.lock().unwrap().push(its.executed());
        due();
        let slot = own.upgrade().expect("the timer outlives the run");
        slot.get().unwrap().arm(its.now_ns() + (instructions << SHIFT));
    };
    assert!(slot.set(clock.new_timer("test", Arc::new(callback))).is_ok());
    slot.get().unwrap().arm(instructions << SHIFT);
    slot
}

/// The machine, its program and handlers.
fn machine(clock: &Arc<IcountClock>, stress: Stress) -> (Vcpu, Machine) {
    let mut machine = Machine::new();
    let (code, written) = program();
    machine.poke(CODE, &code);
    let selector = u64::from(machine.cpu.env.seg[1].selector);
    for (index, (vector, handler)) in
        [(0, SKIP_TWO), (6, SKIP_TWO), (14, SKIP_THREE), (VECTOR, NOTE)].into_iter().enumerate()
    {
        let at = HANDLERS + 64 * index as u64;
        machine.poke(at, handler);
        let gate = at & 0xffff | selector << 16 | 0x8e << 40 | (at >> 16) << 48;
        machine.poke(IDT + 16 * u64::from(vector), &gate.to_le_bytes());
    }
    machine.poke(GDT + selector, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    let stack = u64::from(machine.cpu.env.seg[2].selector);
    machine.poke(GDT + stack, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    machine.map(MMIO, 0xfeb0_0000 | 3);
    machine.map(NOT_PRESENT, 0);

    let features = Features::new(|leaf, subleaf| {
        let cpuid: &Cpuid = &cpuid::MAX;
        cpuid.query(leaf, subleaf, 0, cpuid.xcr0())
    });
    let xsaveopt = std::arch::is_x86_feature_detected!("xsaveopt");
    let fp = FpSave { mask: cpuid::host_xcr0(), xsaveopt };
    let engine = Arc::new(Engine::new(features, fp, CODE_BYTES, stress, true).unwrap());
    let other = Machine::new();
    let mut cpu = std::mem::replace(&mut machine.cpu, other.cpu);
    cpu.clock = Arc::clone(clock) as Arc<dyn Clock>;
    cpu.tsc = ScaledTsc::new(Arc::clone(&cpu.clock), crate::msr::TSC_HZ);
    cpu.icount = Some(Box::new(Counting::new(Arc::clone(clock), 1)));
    cpu.engine = Some(Arc::clone(&engine));
    cpu.mmu.forgetful = stress.misses;
    cpu.env.idt = Table { base: IDT, limit: 0xfff };
    cpu.env.gdt = Table { base: GDT, limit: 0xff };
    cpu.env.rip = CODE;
    for (register, value) in [
        (3, NOT_PRESENT),
        (4, STACK),
        (5, MMIO),
        (8, ON_TWO_PAGES),
        (12, ROUNDS),
        (13, RESULTS),
        (14, PLACES),
        (15, written),
    ] {
        cpu.env.gpr[register] = value;
    }
    (Vcpu::new(cpu, engine), machine)
}

/// Runs the program to its HLT. Steps are counted here, too.
fn run(how: How) -> Outcome {
    let clock = IcountClock::new(Pace { shift: Shift::Fixed(SHIFT), sleep: Sleep::Off, align: false });
    clock.resume();
    let (mut vcpu, machine) = machine(&clock, how.stress);
    let io = Arc::new(Io { clock: Arc::clone(&clock), counts: Mutex::default(), pending: false.into() });
    let thread = Arc::new(OnceLock::from(std::thread::current().id()));
    let kicker = |thread| CountingKicker { mapping: Arc::clone(vcpu.cpu.env.mapping()), thread };
    let (own, earlier) = (kicker(Arc::clone(&thread)), kicker(Arc::clone(&thread)));
    let others = Arc::new(kicker(Arc::clone(&thread)));
    vcpu.cpu.handle.set_kicker(Arc::new(own));
    clock.when_earlier(Arc::new(move || earlier.kick()));
    let fired = Arc::default();
    let _timer = how.every.map(|(instructions, interrupts)| {
        let (cpu, io): (_, Weak<Io>) = (vcpu.cpu.handle.clone(), Arc::downgrade(&io));
        periodic(&clock, instructions, &fired, move || {
            if interrupts {
                io.upgrade().unwrap().pending.store(true, Ordering::SeqCst);
                cpu.raise(InterruptKind::Hard);
            }
        })
    });
    let done = AtomicBool::new(false);
    let mut steps = 0;
    std::thread::scope(|scope| {
        if how.kicked {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    others.kick();
                    std::thread::yield_now();
                }
            });
        }
        loop {
            match if how.steps { vcpu.step(&*io) } else { vcpu.run(&*io) } {
                VcpuExit::Kicked if how.steps => steps += 1,
                exit => break assert_eq!(exit, VcpuExit::Halted),
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    let executed = clock.executed();
    if how.steps {
        assert_eq!(executed, steps, "one for each step");
    }
    Outcome {
        executed,
        gpr: vcpu.cpu.env.gpr,
        results: machine.peek(RESULTS, RESULT_BYTES),
        places: machine.peek(PLACES, PLACE_BYTES),
        accessed: io.counts.lock().unwrap().clone(),
        fired: fired.lock().unwrap().clone(),
    }
}

/// Each of the translator's ways.
fn ways() -> impl Iterator<Item = (&'static str, Stress)> {
    std::iter::once(("none", Stress::default()))
        .chain(Stress::names().map(|name| (name, name.parse().unwrap())))
}

#[test]
fn every_way_out_of_a_block_counts_as_single_steps_do() {
    let reference = run(How { steps: true, ..How::default() });
    assert_eq!(reference.gpr[12], 0, "the program ran to its end");
    // RDTSC is the first instruction, IN the fifth.
    assert_eq!(reference.results[..8], [0, 0, 0, 0, 4 << SHIFT, 0, 0, 0]);
    // Per round: IN, four accesses to MMIO, and three elements of one string instruction, which share its count.
    assert_eq!(reference.accessed.len() as u64, ROUNDS * 8);
    assert_eq!(reference.accessed[0], 4);
    assert!(reference.accessed[5..8].iter().all(|&count| count == reference.accessed[5]));
    for (name, stress) in ways() {
        assert_eq!(run(How { stress, ..How::default() }), reference, "{name}");
    }
}

/// Budgets end everywhere in blocks, and timers fire exactly then.
#[test]
fn budgets_end_exactly() {
    for instructions in (1..=50).chain([97, 1009]) {
        let every = Some((instructions, false));
        let reference = run(How { steps: true, every, ..How::default() });
        let expected: Vec<u64> = (1..=reference.fired.len() as u64).map(|n| n * instructions).collect();
        assert_eq!(reference.fired, expected);
        assert_eq!(run(How { every, ..How::default() }), reference, "every {instructions}");
    }
}

/// Interrupts come at the same instructions in every mode.
#[test]
fn interrupts_come_at_exact_counts() {
    for instructions in [13, 17, 29, 101] {
        let every = Some((instructions, true));
        let reference = run(How { steps: true, every, ..How::default() });
        assert!(reference.places[..8] != [0; 8], "no interrupt came");
        for (name, stress) in ways() {
            assert_eq!(
                run(How { stress, every, ..How::default() }),
                reference,
                "{name} every {instructions}"
            );
        }
    }
}

#[test]
fn kicks_change_nothing() {
    for every in [None, Some((17, true)), Some((1009, true))] {
        let reference = run(How { every, ..How::default() });
        for _ in 0..10 {
            assert_eq!(run(How { every, kicked: true, ..How::default() }), reference);
        }
    }
}
