//! Whole machine, several CPUs: what programs of several threads rely on holds in a guest whose CPUs run at once.

mod harness;

use std::time::Duration;

use harness::guests::fetch;
use harness::linux::{Linux, ended_well};
use harness::session::Outcome;

/// A starved host makes these slow, never wrong.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs `jobs` of the image for several CPUs on four of them; what they print.
#[track_caller]
fn run(accel: &str, jobs: &[&str]) -> Outcome {
    let append = format!("console=ttyS0 reboot=t panic=-1 jobs={}", jobs.join(","));
    let machine = Linux {
        accel,
        megabytes: "1024",
        kernel: "vmlinuz-cloud",
        initrd: "smp.cpio",
        append: &append,
        more: &["-smp", "4", "-no-reboot"],
    };
    let outcome = machine.boot(LIMIT).finish();
    for job in jobs {
        let end = format!("BIVISOR-SMP-END {job} status=0\n");
        outcome.check(outcome.serial.contains(&end), &format!("{job} did not end well"));
    }
    ended_well(&outcome);
    println!("{accel}, {jobs:?}: {:.2} s", outcome.elapsed.as_secs_f64());
    outcome
}

#[track_caller]
fn says(outcome: &Outcome, line: &str) {
    outcome.check(outcome.serial.contains(&format!("\n{line}\n")), &format!("it does not say: {line}"));
}

/// x86-TSO: what the model forbids is never seen, and LOCK holds across lines and pages.
#[test]
fn memory_is_ordered_on_four_cpus() {
    if fetch("memory_is_ordered_on_four_cpus", &["cloud", "smp"]) {
        let outcome = run("tcg", &["nproc", "litmus:5000"]);
        says(&outcome, "nproc: 4, online 0-3");
        says(&outcome, "litmus: message passing: 0 of 5000 forbidden");
        says(&outcome, "litmus: LOCK ADD across a page: 502 of 502");
    }
}

#[test]
fn locks_hold_on_four_cpus() {
    if fetch("locks_hold_on_four_cpus", &["cloud", "smp"]) {
        let outcome = run("tcg", &["torture:3000"]);
        says(&outcome, "torture: 8 threads, 3000 rounds, 0 failures");
    }
}

/// The code of one CPU, rewritten by another.
#[test]
fn rewritten_code_is_seen_on_four_cpus() {
    if fetch("rewritten_code_is_seen_on_four_cpus", &["cloud", "smp"]) {
        let outcome = run("tcg", &["modify:500"]);
        says(&outcome, "modify: one mapping: 500 versions, enough calls, 0 failures");
        says(&outcome, "modify: two mappings: 500 versions, enough calls, 0 failures");
    }
}

#[test]
fn a_parallel_make_works_on_four_cpus() {
    if fetch("a_parallel_make_works_on_four_cpus", &["cloud", "smp"]) {
        let outcome = run("tcg", &["compile:-O0"]);
        says(&outcome, "lua: 333338333350000");
    }
}

/// Programs come and go, and each has its memory at its own addresses for a while, until another CPU's program gets them.
#[test]
fn windows_change_hands_on_four_cpus() {
    if fetch("windows_change_hands_on_four_cpus", &["cloud", "smp"]) {
        let outcome = run("tcg,x-stress=windows", &["torture:1000", "compile:-O0"]);
        says(&outcome, "torture: 8 threads, 1000 rounds, 0 failures");
        says(&outcome, "lua: 333338333350000");
        let outcome = run("tcg,x-stress=windows+shifts", &["torture:200"]);
        says(&outcome, "torture: 8 threads, 200 rounds, 0 failures");
    }
}

#[test]
fn stress_ng_verifies_on_four_cpus() {
    if fetch("stress_ng_verifies_on_four_cpus", &["cloud", "smp"]) {
        run("tcg", &["stress:10"]);
    }
}
