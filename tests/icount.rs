//! Whole machine under `-icount`: every run of the same command is the same, and a guest that sleeps costs no time.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use harness::guests::{fetch, path};
use harness::log::complaints;
use harness::session::{Outcome, Session, bivisor};

/// A starved host makes these slow, never different.
const LIMIT: Duration = Duration::from_secs(240);
const APPEND: &str = "console=ttyS0 reboot=t panic=-1";
/// Set to 10, this many runs are compared, half of them under load.
const RUNS: &str = "BIVISOR_ICOUNT_RUNS";

/// Keeps all of the host's CPUs busy, each twice over.
struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start() -> Self {
        let over = Arc::<AtomicBool>::default();
        let count = std::thread::available_parallelism().map_or(2, usize::from) * 2;
        let spin = || {
            let over = Arc::clone(&over);
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {})
        };
        Self { threads: (0..count).map(|_| spin()).collect(), over }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("it does not panic");
        }
    }
}

fn boot(accel: &str, icount: &str, cpus: usize, append: &str) -> Outcome {
    let (kernel, initrd, cpus) = (path("vmlinuz-cloud"), path("boot-test.gz"), cpus.to_string());
    #[rustfmt::skip]
    let words = [
        "-accel", accel, "-icount", icount, "-d", "icount", "-M", "microvm", "-smp", &cpus, "-m", "512",
        "-kernel", &kernel, "-initrd", &initrd, "-append", append, "-nographic", "-no-reboot",
    ];
    let outcome = Session::start(&bivisor(), &words, LIMIT).finish();
    outcome.check(outcome.status.code() == Some(0), "the exit code is not 0");
    outcome.check(outcome.serial.contains("reboot: Power down"), "the guest did not power off");
    let complaints = complaints(&outcome.serial, &[]);
    outcome.check(complaints.is_empty(), &format!("the log complains: {complaints:#?}"));
    outcome.check(outcome.stderr.starts_with("icount: "), "the count is not told");
    outcome
}

/// Boots as often as [`RUNS`] says, or three times; the last half under load.
fn all_runs_are_one(cpus: usize) {
    let runs: u32 = std::env::var(RUNS).ok().and_then(|runs| runs.parse().ok()).unwrap_or(3);
    let run = || boot("tcg", "shift=auto,sleep=off", cpus, APPEND);
    let first = run();
    first.check(first.serial.contains("\nBIVISOR-INIT-OK\n"), "init did not run");
    first.check(first.serial.contains(&format!("\ncpus: {cpus}, online")), "CPUs are missing");
    for index in 1..runs {
        let load = (index >= runs.div_ceil(2)).then(Load::start);
        let other = run();
        // The count first: two numbers say more than two logs.
        assert_eq!(other.stderr, first.stderr, "run {index}, loaded: {}", load.is_some());
        assert_eq!(other.serial, first.serial, "run {index}, loaded: {}", load.is_some());
    }
    println!("{cpus} CPUs, {runs} runs: {:.2} s, {}", first.elapsed.as_secs_f64(), first.stderr.trim());
}

#[test]
fn every_run_is_the_same() {
    if fetch("every_run_is_the_same", &["cloud", "boot-test"]) {
        all_runs_are_one(1);
    }
}

#[test]
fn every_run_of_four_cpus_is_the_same() {
    if fetch("every_run_of_four_cpus_is_the_same", &["cloud", "boot-test"]) {
        all_runs_are_one(4);
    }
}

/// How the translator cuts code into blocks, and how often it is called out of them, is not to be seen.
#[test]
fn blocks_and_kicks_do_not_count() {
    if fetch("blocks_and_kicks_do_not_count", &["cloud", "boot-test"]) {
        let reference = boot("tcg", "2,sleep=off", 2, APPEND);
        for stress in ["short", "kicks"] {
            let other = boot(&format!("tcg,x-stress={stress}"), "2,sleep=off", 2, APPEND);
            assert_eq!(other.stderr, reference.stderr, "{stress}");
            assert_eq!(other.serial, reference.serial, "{stress}");
        }
    }
}

/// An hour in seconds: most of them are the boot's.
#[test]
fn a_sleeping_guest_costs_no_time() {
    if fetch("a_sleeping_guest_costs_no_time", &["cloud", "boot-test"]) {
        let append = format!(
            "{APPEND} rdinit=/bin/busybox -- sh -c \"busybox date; busybox sleep 3600; busybox date; busybox poweroff -f\""
        );
        let outcome = boot("tcg", "shift=auto,sleep=off", 1, &append);
        // The date is fixed, too.
        outcome.check(outcome.serial.contains("\nMon Jan  1 00:00:"), "it does not begin at midnight");
        outcome.check(outcome.serial.contains("\nMon Jan  1 01:00:"), "an hour has not passed");
        outcome.check(outcome.elapsed < Duration::from_secs(200), "the hour was waited for");
        println!("an hour's sleep with the boot: {:.2} s", outcome.elapsed.as_secs_f64());
    }
}

/// Time follows the host's while the guest is idle: what `sleep` waits for is waited for.
#[test]
fn with_sleep_the_host_s_time_passes() {
    if fetch("with_sleep_the_host_s_time_passes", &["cloud", "boot-test"]) {
        let script = |sleep: &str| {
            format!("{APPEND} rdinit=/bin/busybox -- sh -c \"busybox {sleep}; busybox poweroff -f\"")
        };
        let (short, long) =
            (boot("tcg", "auto", 2, &script("true")), boot("tcg", "auto", 2, &script("sleep 6")));
        // A busy host makes either boot take longer; a sleep that is not waited for is missing whole.
        long.check(long.elapsed > Duration::from_secs(6), "six seconds passed in less");
        println!(
            "auto: {:.2} s, with sleep 6: {:.2} s",
            short.elapsed.as_secs_f64(),
            long.elapsed.as_secs_f64()
        );
    }
}
