//! Whole machine, several CPUs: what programs of several threads rely on holds in a guest whose CPUs run at once.

mod harness;

use std::time::Duration;

use harness::guests::{fetch, path};
use harness::log::complaints;
use harness::session::{Outcome, Session, bivisor};

/// A starved host makes these slow, never wrong.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs `jobs` of the image for several CPUs on `cpus` of them; what they print.
#[track_caller]
fn run(accel: &str, cpus: usize, jobs: &[&str]) -> Outcome {
    let (kernel, initrd, cpu_count) = (path("vmlinuz-cloud"), path("smp.cpio"), cpus.to_string());
    let append = format!("console=ttyS0 reboot=t panic=-1 jobs={}", jobs.join(","));
    #[rustfmt::skip]
    let words = [
        "-accel", accel, "-M", "microvm", "-smp", &cpu_count, "-m", "1024", "-kernel", &kernel, "-initrd", &initrd,
        "-append", &append, "-nographic", "-no-reboot",
    ];
    let outcome = Session::start(&bivisor(), &words, LIMIT).finish();
    for job in jobs {
        let end = format!("BIVISOR-SMP-END {job} status=0\n");
        outcome.check(outcome.serial.contains(&end), &format!("{job} did not end well"));
    }
    outcome.check(outcome.status.code() == Some(0), "the exit code is not 0");
    outcome.check(outcome.serial.contains("reboot: Power down"), "the guest did not power off");
    let complaints = complaints(&outcome.serial, &[]);
    outcome.check(complaints.is_empty(), &format!("the log complains: {complaints:#?}"));
    println!("{accel}, {cpus} CPUs, {jobs:?}: {:.2} s", outcome.elapsed.as_secs_f64());
    outcome
}

#[track_caller]
fn says(outcome: &Outcome, line: &str) {
    outcome.check(outcome.serial.contains(&format!("\n{line}\n")), &format!("it does not say: {line}"));
}

/// x86-TSO: what the model forbids is never seen, and LOCK holds across lines and pages.
#[test]
fn memory_is_ordered_as_x86_orders_it() {
    if fetch("memory_is_ordered_as_x86_orders_it", &["cloud", "smp"]) {
        let outcome = run("tcg", 4, &["nproc", "litmus:5000"]);
        says(&outcome, "nproc: 4, online 0-3");
        says(&outcome, "litmus: message passing: 0 of 5000 forbidden");
        says(&outcome, "litmus: LOCK ADD across a page: 502 of 502");
    }
}

#[test]
fn threads_keep_their_locks() {
    if fetch("threads_keep_their_locks", &["cloud", "smp"]) {
        let outcome = run("tcg", 4, &["torture:3000"]);
        says(&outcome, "torture: 8 threads, 3000 rounds, 0 failures");
    }
}

/// The code of one CPU, rewritten by another.
#[test]
fn rewritten_code_is_seen_by_all() {
    if fetch("rewritten_code_is_seen_by_all", &["cloud", "smp"]) {
        let outcome = run("tcg", 4, &["modify:500"]);
        says(&outcome, "modify: one mapping: 500 versions, enough calls, 0 failures");
        says(&outcome, "modify: two mappings: 500 versions, enough calls, 0 failures");
    }
}

#[test]
fn cpus_come_and_go() {
    if fetch("cpus_come_and_go", &["cloud", "smp"]) {
        let outcome = run("tcg", 4, &["hotplug:100"]);
        says(&outcome, "hotplug: 100 times, 4 CPUs");
    }
}

#[test]
fn a_parallel_make_makes_what_works() {
    if fetch("a_parallel_make_makes_what_works", &["cloud", "smp"]) {
        let outcome = run("tcg", 4, &["compile:-O0"]);
        says(&outcome, "lua: 333338333350000");
    }
}

#[test]
fn stressed_cpus_compute_what_is_right() {
    if fetch("stressed_cpus_compute_what_is_right", &["cloud", "smp"]) {
        run("tcg", 4, &["stress:10"]);
    }
}
