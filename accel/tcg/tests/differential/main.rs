//! Differential test: instruction streams run by the host CPU and by an accelerator, and everything visible compared
//! (DESIGN.md, *Proof*: "The host CPU is the oracle").
//!
//! Environment: `BIVISOR_DIFF_SECONDS` (how long, default 5 per part), `BIVISOR_DIFF_INSTRUCTIONS` (run until so many were executed instead),
//! `BIVISOR_DIFF_SEED`, `BIVISOR_DIFF_ENGINE` (`tcg`), `BIVISOR_DIFF_PARTS` (of `selftest regressions alone streams images`; all by default), `BIVISOR_DIFF_LIMIT` (different
//! findings to report), `BIVISOR_DIFF_FILTER` (only codes whose name contains it), `BIVISOR_DIFF_BITS` (`64` or `32`),
//! `BIVISOR_DIFF_MODES` (of `plain` and the names of [`accel_tcg::Stress`], those joined by `+` together; by default
//! `plain`, and the others for a shorter time, streams and images only).

#![allow(
    clippy::cast_possible_truncation,
    reason = "register and immediate values are cut to size on purpose"
)]

mod compare;
mod driver;
mod engine;
mod exclusions;
mod features;
mod generate;
mod guest;
mod inputs;
mod known;
mod layout;
mod native;
mod operands;
mod process;
mod program;
mod regressions;
mod rng;
mod shared;
mod xsave;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel_tcg::{Stress, Tcg, TcgOptions};

use crate::driver::{Driver, STREAMS, Totals, Work};
use crate::engine::{Engine, Single};
use crate::features::Shown;
use crate::generate::Codes;
use crate::rng::Rng;
use crate::shared::Shared;

#[derive(Clone)]
struct Settings {
    seed: u64,
    time: Duration,
    /// Programs in an arena.
    streams: usize,
    instructions: Option<u64>,
    parts: String,
    engine: String,
    limit: usize,
    filter: String,
    bits: Vec<u32>,
    modes: Option<String>,
}

impl Settings {
    /// As for a mode among many.
    fn brief(&mut self) {
        self.time /= 14;
        // Small arenas are soon made.
        self.streams /= 32;
        self.instructions = self.instructions.map(|instructions| instructions / 14);
        self.parts = self.parts.replace("alone", "");
    }
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} cannot be read")))
}

fn settings() -> Settings {
    let seed = std::env::var("BIVISOR_DIFF_SEED").ok().map_or(0x5eed, |text| {
        u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("BIVISOR_DIFF_SEED is hexadecimal")
    });
    Settings {
        seed,
        time: Duration::from_secs(variable("BIVISOR_DIFF_SECONDS").unwrap_or(5)),
        streams: STREAMS,
        instructions: variable("BIVISOR_DIFF_INSTRUCTIONS"),
        parts: variable("BIVISOR_DIFF_PARTS")
            .unwrap_or_else(|| "selftest regressions alone streams images".into()),
        engine: variable("BIVISOR_DIFF_ENGINE").unwrap_or_default(),
        limit: variable("BIVISOR_DIFF_LIMIT").unwrap_or(40),
        filter: variable("BIVISOR_DIFF_FILTER").unwrap_or_default(),
        bits: variable::<u32>("BIVISOR_DIFF_BITS").map_or(vec![64, 32], |bits| vec![bits]),
        modes: variable("BIVISOR_DIFF_MODES"),
    }
}

/// An accelerator as it is tested.
struct Tested {
    name: &'static str,
    /// Its stress; `plain`: none.
    mode: String,
    /// Among others: less of everything.
    briefly: bool,
    make: Box<guest::MakeAccelerator>,
}

/// The name of the mode without stress.
const PLAIN: &str = "plain";

/// What is run by default beside [`PLAIN`].
const STRESSES: [&str; 13] = [
    "misses",
    "misses+ungrouped",
    "flushes",
    "kicks",
    "kicks+unchained",
    "one-instruction",
    "stepped",
    "hashed",
    "short+unchained",
    "windows",
    "windows+kicks",
    "windows+shifts",
    "reclaims",
];

/// What runs here.
fn accelerators(settings: &Settings) -> Vec<Tested> {
    let asked = settings.modes.as_ref().map(|modes| modes.split_whitespace().collect::<Vec<_>>());
    let modes = asked.clone().unwrap_or_else(|| [PLAIN].into_iter().chain(STRESSES).collect());
    let tested = modes.into_iter().map(|mode| {
        let stress = match mode {
            PLAIN => Stress::default(),
            names => names.parse().unwrap_or_else(|error| panic!("BIVISOR_DIFF_MODES: {error}")),
        };
        let options = TcgOptions { stress, ..TcgOptions::default() };
        Tested {
            name: "tcg",
            mode: mode.into(),
            briefly: asked.is_none() && mode != PLAIN,
            make: Box::new(move || Arc::new(Tcg::new(options).expect("the translator runs on this host"))),
        }
    });
    tested.filter(|tested| settings.engine.is_empty() || settings.engine == tested.name).collect()
}

fn host_shows() -> Shown {
    Shown::read(&mut |leaf, subleaf| {
        let answer = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    })
}

fn memory_templates(shared: &mut Shared) {
    // Not the run's seed: regressions name templates by number.
    let mut rng = Rng::new(0x7e3d_a7a5);
    let (vectors, memories, read_only) = shared.templates_mut();
    for (number, image) in vectors.iter_mut().enumerate() {
        xsave::template(image, number, &mut rng);
    }
    for memory in memories {
        for chunk in memory.chunks_mut(8) {
            let value = match rng.below(4) {
                0 => rng.interesting(),
                1 => (rng.below(4096) as f64 - 2048.5).to_bits(),
                _ => rng.next(),
            };
            chunk.copy_from_slice(&value.to_le_bytes());
        }
    }
    for chunk in read_only.chunks_mut(8) {
        chunk.copy_from_slice(&rng.next().to_le_bytes());
    }
}

/// Initial states per stream: translating it once pays for all of them.
const STATES: usize = 12;

fn stream_work(codes: &Codes, bits: u32, rng: &mut Rng) -> Work {
    let (program, pools) = generate::stream(codes, rng);
    let cpl = if bits == 64 && rng.percent(25) { 0 } else { 3 };
    // Some instructions show the privilege level: POPF loads IF and IOPL, a selector names it.
    let cpl = if program.items.iter().any(depends_on_privilege) { 3 } else { cpl };
    Work { at: None, inputs: (0..STATES).map(|_| inputs::for_stream(&pools, cpl, rng)).collect(), program }
}

fn depends_on_privilege(item: &program::Item) -> bool {
    use iced_x86::{Mnemonic, OpKind};
    let program::Item::Plain(instruction) = item else { return false };
    matches!(instruction.mnemonic(), Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq)
        || (0..instruction.op_count()).any(|index| {
            instruction.op_kind(index) == OpKind::Register
                && instruction.op_register(index).is_segment_register()
        })
}

struct Part<'a> {
    name: &'a str,
    bits: u32,
}

fn report(part: &Part<'_>, driver: &Driver<'_>, elapsed: Duration) {
    let Totals { cases, instructions, faults, timeouts, different, in_native_wait, in_engine } =
        &driver.totals;
    eprintln!(
        "{} [{}]: {instructions} instructions in {cases} cases ({faults} faults, {timeouts} without end), {different} differ in {} ways, {:.1} s, {:.2} million/s (engine {:.1} s, waiting for the host {:.1} s)",
        part.name,
        part.bits,
        driver.findings.seen.len(),
        elapsed.as_secs_f64(),
        *instructions as f64 / elapsed.as_secs_f64() / 1e6,
        in_engine.as_secs_f64(),
        in_native_wait.as_secs_f64(),
    );
}

fn run_part(
    part: &Part<'_>,
    settings: &Settings,
    shared: &Shared,
    engine: Engine<'_>,
    codes: &Codes,
) -> (u64, usize) {
    let mut rng = Rng::new(settings.seed ^ u64::from(part.bits) << 32);
    let begin = Instant::now();
    let time = settings.time;
    let instructions = settings.instructions;
    let mut driver = Driver::new(shared, engine, settings.seed);
    driver.limit = settings.limit;
    driver.streams = settings.streams;
    let enough = |totals: &Totals| match instructions {
        Some(wanted) => totals.instructions >= wanted,
        None => begin.elapsed() >= time,
    };
    let bits = part.bits;
    let source: Box<dyn FnMut() -> Option<Work> + Send + '_> = match part.name {
        "regressions" => {
            let mut all = regressions::all().into_iter().filter(move |work| work.program.bits == bits);
            Box::new(move || all.next())
        }
        "alone" => {
            let list: Vec<_> = codes
                .all
                .iter()
                .copied()
                .filter(|code| format!("{code:?}").to_lowercase().contains(&settings.filter.to_lowercase()))
                .collect();
            assert!(!list.is_empty(), "no instruction has {} in its name", settings.filter);
            let mut at = 0;
            Box::new(move || {
                loop {
                    let code = list[at % list.len()];
                    at += 1;
                    if let Some((program, instruction)) = generate::alone(code, bits, &mut rng) {
                        let inputs = (0..STATES)
                            .map(|_| inputs::for_instruction(&instruction, bits, 3, &mut rng))
                            .collect();
                        return Some(Work { program, inputs, at: None });
                    }
                }
            })
        }
        "streams" => Box::new(move || Some(stream_work(codes, bits, &mut rng))),
        _ => Box::new(move || {
            let (program, pools) = if rng.percent(50) {
                generate::pointer_image(codes, &mut rng)
            } else {
                generate::flags_image(codes, &mut rng)
            };
            let inputs = (0..STATES).map(|_| inputs::for_stream(&pools, 3, &mut rng)).collect();
            Some(Work { program, inputs, at: None })
        }),
    };
    driver.run(source, &enough);
    report(part, &driver, begin.elapsed());
    for (key, (times, _)) in &driver.findings.seen {
        eprintln!("  {times} times: {key}");
    }
    for (why, times) in &driver.tolerated {
        eprintln!("  let pass {times} times: {why}");
    }
    (driver.totals.instructions, driver.findings.seen.len())
}

/// The tester itself: the host agrees with itself, and an engine that is wrong is caught.
fn selftest(settings: &Settings, shared: &Shared, host: &Shown) -> bool {
    let short = Settings {
        time: Duration::from_secs(3),
        instructions: None,
        filter: String::new(),
        ..settings.clone()
    };
    let mut good = true;
    for bits in [64, 32] {
        let codes = Codes::new(bits, host, host);
        for name in ["alone", "streams", "images"] {
            let engine = Engine::Native(Box::new(Single::new(shared)));
            let (ran, found) = run_part(&Part { name, bits }, &short, shared, engine, &codes);
            if ran == 0 || found != 0 {
                eprintln!("selftest: the host differs from itself ({name}, {bits} bits)");
                good = false;
            }
        }
    }
    let engine = Engine::Broken(Box::new(Single::new(shared)), Rng::new(1));
    let codes = Codes::new(64, host, host);
    let (_, found) = run_part(
        &Part { name: "streams", bits: 64 },
        &Settings { limit: 1, ..short },
        shared,
        engine,
        &codes,
    );
    if found == 0 {
        eprintln!("selftest: a wrong carry was not found");
        good = false;
    }
    good
}

fn main() -> ExitCode {
    if let Ok(descriptors) = std::env::var(native::CHILD_VARIABLE) {
        native::child(&descriptors);
        return ExitCode::SUCCESS;
    }
    // `cargo test NAME` and `--list` are for the standard harness.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    if std::env::args().any(|argument| argument == "--list")
        || arguments.any(|name| !"differential".contains(&name))
    {
        return ExitCode::SUCCESS;
    }
    let settings = settings();
    let host = host_shows();
    let mut shared = Shared::new().expect("shared memory");
    memory_templates(&mut shared);
    eprintln!("differential test, seed {:#x}", settings.seed);
    let mut good = true;
    if settings.parts.contains("selftest") {
        good &= selftest(&settings, &shared, &host);
    }
    let mut total = 0;
    for Tested { mode, briefly, make, .. } in accelerators(&settings) {
        let (guest, components) = guest::shows(&*make, &shared);
        xsave::compare_only(components);
        let mut settings = settings.clone();
        if briefly {
            settings.brief();
        }
        if mode != PLAIN {
            eprintln!("stress: {mode}");
        }
        for name in ["regressions", "alone", "streams", "images"] {
            for &bits in &settings.bits {
                if settings.parts.contains(name) {
                    let codes = Codes::new(bits, &host, &guest);
                    let engine = Engine::accelerator(&*make, &shared);
                    let (ran, found) = run_part(&Part { name, bits }, &settings, &shared, engine, &codes);
                    total += ran;
                    good &= found == 0;
                }
            }
        }
    }
    eprintln!("{total} instructions compared");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
