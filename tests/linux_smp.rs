//! Whole machine: Linux on several CPUs under `-accel tcg`: they start, go off line and come back, and are reset.

mod harness;

use std::time::Duration;

use harness::guests::fetch;
use harness::linux::{Linux, ended_well};
use harness::session::{Outcome, Session};

/// A starved host makes a guest slow, never wrong.
const LIMIT: Duration = Duration::from_secs(300);

const MACHINE: Linux = Linux {
    accel: "tcg",
    megabytes: "256",
    kernel: "vmlinuz-cloud",
    initrd: "boot-test.gz",
    append: "console=ttyS0 panic=-1",
    more: &[],
};

/// Boots to a power-off with `-accel accel -smp smp` and more on the kernel's command line. None: the test was skipped.
fn boots(test: &str, accel: &str, smp: &str, append: &str) -> Option<Outcome> {
    if !fetch(test, &["cloud", "boot-test"]) {
        return None;
    }
    let append = format!("{} {append}", MACHINE.append);
    let outcome =
        Linux { accel, append: &append, more: &["-no-reboot", "-smp", smp], ..MACHINE }.boot(LIMIT).finish();
    ended_well(&outcome);
    println!("-accel {accel} -smp {smp}: {:.2} s", outcome.elapsed.as_secs_f64());
    Some(outcome)
}

#[track_caller]
fn says(outcome: &Outcome, line: &str) {
    outcome.check(outcome.serial.contains(&format!("\n{line}\n")), &format!("init did not say {line:?}"));
}

#[test]
fn two_cpus() {
    if let Some(outcome) = boots("two_cpus", "tcg", "2", "") {
        says(&outcome, "cpus: 2, online 0-1");
        outcome.check(outcome.serial.contains("smp: Brought up 1 node, 2 CPUs"), "a CPU did not start");
    }
}

#[test]
fn four_cpus() {
    if let Some(outcome) = boots("four_cpus", "tcg", "4", "cpu_toggles=2") {
        says(&outcome, "cpus: 4, online 0-3");
        says(&outcome, "BIVISOR-TOGGLED 2");
    }
}

#[test]
fn four_cpus_on_one_thread() {
    if let Some(outcome) = boots("four_cpus_on_one_thread", "tcg,thread=single", "4", "cpu_toggles=2") {
        says(&outcome, "cpus: 4, online 0-3");
        says(&outcome, "BIVISOR-TOGGLED 2");
    }
}

#[test]
fn packages_cores_and_threads() {
    let Some(outcome) = boots("packages_cores_and_threads", "tcg", "8,sockets=2,cores=2,threads=2", "")
    else {
        return;
    };
    says(&outcome, "cpu0: package 0 threads 0-1 cores 0-3");
    says(&outcome, "cpu5: package 1 threads 4-5 cores 4-7");
}

/// Without ACPI the kernel finds its CPUs in the MP table. It cannot switch the machine off then.
#[test]
fn cpus_of_the_mp_table() {
    if !fetch("cpus_of_the_mp_table", &["generic", "boot-test"]) {
        return;
    }
    let append = format!("{} acpi=off reboot=k end=reboot", MACHINE.append);
    let more = &["-no-reboot", "-smp", "2"];
    let machine = Linux { kernel: "vmlinuz-generic", append: &append, more, ..MACHINE };
    let outcome = machine.boot(LIMIT).finish();
    says(&outcome, "cpus: 2, online 0-1");
    outcome.check(outcome.status.code() == Some(0), "the exit code is not 0");
    outcome.check(outcome.serial.contains("MPTABLE: OEM ID: BIVISOR"), "the MP table was not used");
}

#[track_caller]
fn reboots_ten_times(test: &str, cpus: &str, online: &str) {
    if !fetch(test, &["cloud", "boot-test"]) {
        return;
    }
    let append = format!("{} end=ask", MACHINE.append);
    let mut machine: Session = Linux { append: &append, more: &["-smp", cpus], ..MACHINE }.boot(LIMIT);
    for answer in ["reboot\r"; 10].iter().chain(&["poweroff\r"]) {
        machine.wait_for("Linux version ");
        machine.wait_for(&format!("cpus: {cpus}, online {online}"));
        machine.wait_for("BIVISOR-WHAT-NEXT");
        machine.send(answer);
    }
    let outcome = machine.finish();
    ended_well(&outcome);
    assert_eq!(outcome.serial.matches("reboot: Restarting system").count(), 10);
    println!("ten reboots of {cpus} CPUs: {:.2} s", outcome.elapsed.as_secs_f64());
}

#[test]
fn one_cpu_reboots_ten_times() {
    reboots_ten_times("one_cpu_reboots_ten_times", "1", "0");
}

#[test]
fn two_cpus_reboot_ten_times() {
    reboots_ten_times("two_cpus_reboot_ten_times", "2", "0-1");
}
