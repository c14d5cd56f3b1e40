//! Batches of cases through the host and an engine, side by side; what differs is made small and reported.

#![expect(unsafe_code, reason = "door: batches of the shared memory, owned between two messages")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use accel::CpuHandle;

use crate::compare::{Difference, Tolerated, differences};
use crate::engine::{Engine, Single};
use crate::known;
use crate::layout::{CODE, CODE_BYTES};
use crate::process::Native;
use crate::program::{Assembler, Item, Program, disassemble};
use crate::shared::{BATCH, Input, Outcome, Shared, ending};

/// A stream and what it starts from.
pub struct Case {
    pub program: Arc<Program>,
    pub input: Input,
    code: Arc<Vec<u8>>,
}

/// A stream with several initial states, as a source hands it out. `rip` of the inputs is filled in later.
pub struct Work {
    pub program: Program,
    /// Where it must lie; anywhere, where it is `None`.
    pub at: Option<u64>,
    pub inputs: Vec<Input>,
}

/// Streams in one filling of the arena.
pub const STREAMS: usize = 8192;
/// Where the arena's part for looking closer begins.
const PROBES: usize = CODE_BYTES / 4;

/// What was found.
#[derive(Default)]
pub struct Findings {
    /// By likeness, how often and the first of its kind in full.
    pub seen: BTreeMap<String, (u64, String)>,
}

/// Totals.
#[derive(Default)]
pub struct Totals {
    pub cases: u64,
    pub instructions: u64,
    pub faults: u64,
    pub timeouts: u64,
    pub different: u64,
    pub in_native_wait: Duration,
    pub in_engine: Duration,
}

/// What the engine runs at the moment.
type Current = Arc<std::sync::Mutex<Option<(Input, Arc<Vec<u8>>)>>>;

/// The CPU that runs cases.
type Running = Arc<std::sync::Mutex<Option<CpuHandle>>>;

/// Drives one engine.
pub struct Driver<'a> {
    shared: &'a Shared,
    native: Native,
    single: Single,
    engine: Engine<'a>,
    assembler: Assembler,
    next: usize,
    cases: Vec<Case>,
    alike: BTreeMap<String, u64>,
    /// What was let pass.
    pub tolerated: Tolerated,
    scratch: [Box<Outcome>; 2],
    /// Different findings to report in full.
    pub limit: usize,
    /// Programs in an arena.
    pub streams: usize,
    pub findings: Findings,
    pub totals: Totals,
    seed: u64,
    /// Odd while the engine runs.
    beat: Arc<AtomicU64>,
    current: Current,
    cpu: Running,
}

impl<'a> Driver<'a> {
    pub fn new(shared: &'a Shared, engine: Engine<'a>, seed: u64) -> Self {
        let beat = Arc::new(AtomicU64::new(0));
        let current = Current::default();
        let cpu = Running::default();
        watch(Arc::downgrade(&beat), Arc::clone(&current), Arc::clone(&cpu));
        Self {
            shared,
            native: Native::start(shared).expect("the native process starts"),
            single: Single::new(shared),
            engine,
            assembler: Assembler::default(),
            next: 0,
            cases: Vec::new(),
            alike: BTreeMap::new(),
            tolerated: Tolerated::new(),
            scratch: [Outcome::new(), Outcome::new()],
            limit: 40,
            streams: STREAMS,
            findings: Findings::default(),
            totals: Totals::default(),
            seed,
            beat,
            current,
            cpu,
        }
    }

    /// Bytes and place of `program`; `None` if it cannot be encoded or does not fit below `end`.
    fn place(&mut self, program: &Program, end: usize) -> Option<(u64, Vec<u8>)> {
        let offset = self.next;
        let at = CODE + offset as u64;
        let code = self.assembler.assemble(program, at)?;
        if offset + code.len() > end {
            return None;
        }
        self.shared.write_code(offset, &code);
        self.next += code.len() + 1 + (code.len() * 7) % 13;
        Some((at, code))
    }

    /// Starts the arena over with as much of `works` as there is room for: all code lies there before any of it runs,
    /// since streams that lose their way read or run what lies around them.
    fn fill(&mut self, works: Vec<Work>) {
        self.engine.renew(self.shared);
        *self.cpu.lock().expect("the watch does not panic") = self.engine.cpu();
        self.next = 0;
        self.cases.clear();
        for work in works {
            let end = if let Some(at) = work.at {
                self.next = (at - CODE) as usize;
                CODE_BYTES
            } else {
                PROBES
            };
            let Some((at, code)) = self.place(&work.program, end) else { continue };
            let (program, code) = (Arc::new(work.program), Arc::new(code));
            self.cases.extend(work.inputs.into_iter().map(|input| Case {
                program: Arc::clone(&program),
                input: Input { rip: at, ..input },
                code: Arc::clone(&code),
            }));
        }
        self.next = PROBES;
    }

    fn request(&mut self, chunk: usize) {
        // SAFETY: the batch is ours until the request below.
        let slots = unsafe { self.shared.batch(chunk % 2) };
        let cases = self.chunk(chunk);
        for (slot, case) in slots.iter_mut().zip(cases) {
            slot.input = case.input;
        }
        let count = cases.len();
        self.native.request(chunk % 2, count);
    }

    fn chunk(&self, chunk: usize) -> &[Case] {
        self.cases.chunks(BATCH).nth(chunk).unwrap_or_default()
    }

    /// Takes work from `source` until it ends, `enough` says so, or the findings reach their limit. The source runs on a
    /// thread of its own, an arena ahead.
    pub fn run(
        &mut self,
        mut source: Box<dyn FnMut() -> Option<Work> + Send + '_>,
        enough: &dyn Fn(&Totals) -> bool,
    ) {
        let streams = self.streams;
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::sync_channel(0);
            scope.spawn(move || {
                loop {
                    let works: Vec<Work> = std::iter::from_fn(&mut source).take(streams).collect();
                    if works.is_empty() || sender.send(works).is_err() {
                        return;
                    }
                }
            });
            while let Ok(works) = receiver.recv() {
                self.fill(works);
                self.run_arena(enough);
                if enough(&self.totals) || self.findings.seen.len() >= self.limit {
                    return;
                }
            }
        });
    }

    fn run_arena(&mut self, enough: &dyn Fn(&Totals) -> bool) {
        let chunks = self.cases.len().div_ceil(BATCH);
        self.request(0);
        for chunk in 0..chunks {
            let begin = Instant::now();
            self.native.wait(self.shared);
            self.totals.in_native_wait += begin.elapsed();
            let last = chunk + 1 == chunks || enough(&self.totals) || self.findings.seen.len() >= self.limit;
            if !last {
                self.request(chunk + 1);
            }
            for (index, found) in self.compare(chunk) {
                if self.is_more_of_the_same(chunk, index, &found) {
                    continue;
                }
                self.investigate(chunk * BATCH + index, found);
            }
            if last {
                return;
            }
        }
    }

    /// Making a stream small takes long: of what looks alike only the first few are.
    fn is_more_of_the_same(&mut self, chunk: usize, index: usize, found: &[Difference]) -> bool {
        // SAFETY: the native process has given the batch back, and gets it again only after this chunk.
        let native = unsafe { &self.shared.batch(chunk % 2)[index].outcome };
        let bits = self.cases[chunk * BATCH + index].input.bits;
        let at = (native.vector != ending::DONE)
            .then(|| known::instruction_at(self.shared, bits, native.rip))
            .flatten()
            .map(|instruction| instruction.mnemonic());
        let field = found.first().map_or("", |difference| difference.field.as_str());
        let times = self.alike.entry(format!("{at:?} {bits} {field}")).or_insert(0_u64);
        *times += 1;
        self.totals.different += 1;
        *times > if at.is_some() { 2 } else { 30 }
    }

    fn compare(&mut self, chunk: usize) -> Vec<(usize, Vec<Difference>)> {
        // SAFETY: the native process has given the batch back.
        let slots = unsafe { self.shared.batch(chunk % 2) };
        let mut different = Vec::new();
        let begin = Instant::now();
        for (index, case) in self.cases.chunks(BATCH).nth(chunk).unwrap_or_default().iter().enumerate() {
            let native = &slots[index].outcome;
            self.totals.cases += 1;
            if native.vector == ending::TIMEOUT {
                self.totals.timeouts += 1;
                continue;
            }
            self.totals.instructions += executed(case, native);
            self.totals.faults += u64::from(native.vector != ending::DONE);
            *self.current.lock().expect("the watch does not panic") =
                Some((case.input, Arc::clone(&case.code)));
            let engine = &mut self.scratch[0];
            self.beat.fetch_add(1, Ordering::Relaxed);
            self.engine.run(self.shared, &case.input, &case.code, engine);
            self.beat.fetch_add(1, Ordering::Relaxed);
            if engine.vector == ending::TIMEOUT {
                continue;
            }
            let single = case.program.is_single();
            let found = differences(
                self.shared,
                &case.input,
                case.code.len(),
                single,
                native,
                engine,
                &mut self.tolerated,
            );
            if !found.is_empty() {
                different.push((index, found));
            }
        }
        self.totals.in_engine += begin.elapsed();
        different
    }

    /// Runs a case again where it lies.
    fn again(&mut self, input: &Input, code: &Arc<Vec<u8>>, single: bool) -> Vec<Difference> {
        let [native, engine] = &mut self.scratch;
        self.single.run(self.shared, input, native);
        *self.current.lock().expect("the watch does not panic") = Some((*input, Arc::clone(code)));
        self.beat.fetch_add(1, Ordering::Relaxed);
        self.engine.run(self.shared, input, code, engine);
        self.beat.fetch_add(1, Ordering::Relaxed);
        differences(self.shared, input, code.len(), single, native, engine, &mut self.tolerated)
    }

    /// Runs one program on both sides. `None`: it cannot be placed or does not end.
    fn probe(&mut self, program: &Program, input: &Input) -> Option<(Vec<Difference>, u64, Vec<u8>)> {
        let (at, code) = self.place(program, CODE_BYTES)?;
        let input = Input { rip: at, ..*input };
        let [native, engine] = &mut self.scratch;
        self.single.run(self.shared, &input, native);
        if native.vector == ending::TIMEOUT {
            return None;
        }
        *self.current.lock().expect("the watch does not panic") = Some((input, Arc::new(code.clone())));
        self.beat.fetch_add(1, Ordering::Relaxed);
        self.engine.run(self.shared, &input, &code, engine);
        self.beat.fetch_add(1, Ordering::Relaxed);
        if engine.vector == ending::TIMEOUT {
            return None;
        }
        Some((
            differences(
                self.shared,
                &input,
                code.len(),
                program.is_single(),
                native,
                engine,
                &mut self.tolerated,
            ),
            at,
            code,
        ))
    }

    fn investigate(&mut self, index: usize, found: Vec<Difference>) {
        let case = &self.cases[index];
        let (original, input) = (Arc::clone(&case.program), case.input);
        let (first_at, first_code) = (input.rip, Arc::clone(&case.code));
        let mut program = (*original).clone();
        let mut best = (found, first_at, (*first_code).clone());
        let mut stable = matches!(program.items[..], [Item::Raw(_)]);
        if !stable
            && let Some(again) = self.probe(&program, &input)
            && !again.0.is_empty()
        {
            stable = true;
            best = again;
            let mut index = 0;
            while index < program.items.len() && program.items.len() > 1 {
                if !matches!(program.items[index], Item::End) {
                    let smaller = program.without(index);
                    if let Some(again) = self.probe(&smaller, &input)
                        && !again.0.is_empty()
                    {
                        program = smaller;
                        best = again;
                        index = 0;
                        continue;
                    }
                }
                index += 1;
            }
        }
        let (found, at, code) = best;
        // Streams that change their return address or read their own code do other things elsewhere.
        let here = stable || !self.again(&input, &first_code, original.is_single()).is_empty();
        let key = likeness(&program, &found, stable, here);
        let entry = self.findings.seen.entry(key.clone()).or_default();
        entry.0 += 1;
        if entry.0 == 1 {
            let mut text = String::new();
            let _ = writeln!(
                text,
                "{key}\n  engine {}, seed {:#x}, {}-bit, CPL {}{}",
                self.engine.name(),
                self.seed,
                input.bits,
                input.cpl,
                match (stable, here) {
                    (true, _) => "",
                    (false, true) => " (at this place only)",
                    (false, false) => " (not seen again: depends on what ran before)",
                }
            );
            let _ = writeln!(text, "{}", disassemble(program.bits, at, &code));
            for difference in found.iter().take(8) {
                let _ = writeln!(text, "  {}: {}", difference.field, difference.values);
            }
            let _ = writeln!(text, "  regression: {}", crate::regressions::line(&input, at, &code));
            eprintln!("difference: {text}");
            entry.1 = text;
        }
    }
}

/// How many instructions a case executed, near enough: those before its end or its fault.
fn executed(case: &Case, native: &Outcome) -> u64 {
    let length = case.program.length() as u64;
    if native.vector == ending::DONE {
        return length;
    }
    let offset = native.rip.wrapping_sub(case.input.rip);
    let bytes = case.code.len() as u64;
    if offset < bytes { (length * offset / bytes).min(length) + 1 } else { length }
}

/// The same for differences that probably have one cause.
fn likeness(program: &Program, found: &[Difference], stable: bool, here: bool) -> String {
    let codes: Vec<String> = program
        .items
        .iter()
        .filter_map(|item| match item {
            Item::Plain(instruction) => Some(format!("{:?}", instruction.code())),
            Item::Branch(code, _) => Some(format!("{code:?}")),
            Item::Address(..) => Some("address".into()),
            Item::Raw(bytes) => Some(format!("{bytes:02x?}")),
            Item::End => None,
        })
        .collect();
    let field = found.first().map_or("nothing", |difference| difference.field.as_str());
    if stable && codes.len() <= 3 {
        format!("{} [{}]: {field}", codes.join(" "), program.bits)
    } else if stable {
        format!(
            "{} instructions ... {} [{}]: {field}",
            codes.len(),
            codes.last().cloned().unwrap_or_default(),
            program.bits
        )
    } else {
        format!("{} [{}]: {field}", if here { "at its place" } else { "once" }, program.bits)
    }
}

/// Gets the engine out of a case that does not end. Where that does not work it ends the process, and says in which case.
fn watch(beat: Weak<AtomicU64>, current: Current, cpu: Running) {
    std::thread::spawn(move || {
        let mut last = (0, Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let Some(beat) = beat.upgrade() else { return };
            let now = beat.load(Ordering::Relaxed);
            if now % 2 == 0 || now != last.0 {
                last = (now, Instant::now());
            } else if last.1.elapsed() > Duration::from_secs(20) {
                eprintln!("a case did not end for 20 seconds:");
                if let Some((input, code)) = &*current.lock().expect("the driver does not panic") {
                    eprint!("{}", disassemble(input.bits, input.rip, code));
                    eprintln!("  regression: {}", crate::regressions::line(input, input.rip, code));
                }
                std::process::exit(3);
            } else if last.1.elapsed() > Duration::from_secs(2)
                && let Some(cpu) = &*cpu.lock().expect("the driver does not panic")
            {
                cpu.request_exit();
            }
        }
    });
}
