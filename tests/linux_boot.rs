//! Whole machine: Debian's kernels boot under `-accel tcg`, programs in them compute what they compute natively.

mod harness;

use std::time::Duration;

use harness::guests::{fetch, folder};
use harness::linux::{Linux, ended_well};
use harness::session::Session;

/// A boot takes seconds; a starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(240);

/// The programs run for a minute or more even where nothing else does.
const PROGRAMS_LIMIT: Duration = Duration::from_secs(900);

const APPEND: &str = "console=ttyS0 reboot=t panic=-1";

fn boot(megabytes: &str, kernel: &str, initrd: &str, limit: Duration) -> Session {
    boot_with("tcg", megabytes, kernel, initrd, APPEND, limit)
}

fn boot_with(
    accel: &str,
    megabytes: &str,
    kernel: &str,
    initrd: &str,
    append: &str,
    limit: Duration,
) -> Session {
    Linux { accel, megabytes, kernel, initrd, append, more: &["-no-reboot"] }.boot(limit)
}

#[track_caller]
fn boots_to_init(flavour: &str) {
    let outcome = boot("512", &format!("vmlinuz-{flavour}"), "boot-test.gz", LIMIT).finish();
    outcome.check(outcome.serial.contains("\nBIVISOR-INIT-OK\n"), "init did not run");
    let release = folder().join(format!("kernel-{flavour}/release"));
    let release = std::fs::read_to_string(release).expect("fetch.sh writes it beside the kernel");
    let uname = format!("\nLinux (none) {} ", release.trim());
    outcome.check(outcome.serial.contains(&uname), "uname does not name the kernel");
    ended_well(&outcome);
    println!("{flavour} kernel: {:.2} s", outcome.elapsed.as_secs_f64());
}

#[test]
fn cloud_kernel_boots() {
    if fetch("cloud_kernel_boots", &["cloud", "boot-test"]) {
        boots_to_init("cloud");
    }
}

/// Addresses as linked; the other boots have random ones.
#[test]
fn cloud_kernel_boots_without_kaslr() {
    if fetch("cloud_kernel_boots_without_kaslr", &["cloud", "boot-test"]) {
        let append = format!("{APPEND} nokaslr");
        let outcome = boot_with("tcg", "512", "vmlinuz-cloud", "boot-test.gz", &append, LIMIT).finish();
        outcome.check(outcome.serial.contains("\nBIVISOR-INIT-OK\n"), "init did not run");
        ended_well(&outcome);
    }
}

#[test]
fn generic_kernel_boots() {
    if fetch("generic_kernel_boots", &["generic", "boot-test"]) {
        boots_to_init("generic");
    }
}

/// With what is rare happening all the time.
#[track_caller]
fn boots_under_stress(test: &str, stress: &str) {
    if fetch(test, &["cloud", "boot-test"]) {
        let accel = format!("tcg,x-stress={stress}");
        let outcome = boot_with(&accel, "512", "vmlinuz-cloud", "boot-test.gz", APPEND, LIMIT).finish();
        outcome.check(outcome.serial.contains("\nBIVISOR-INIT-OK\n"), "init did not run");
        ended_well(&outcome);
        println!("{stress}: {:.2} s", outcome.elapsed.as_secs_f64());
    }
}

#[test]
fn cloud_kernel_boots_under_stress_by_kicks() {
    boots_under_stress("cloud_kernel_boots_under_stress_by_kicks", "kicks+unchained");
}

#[test]
fn cloud_kernel_boots_under_stress_by_misses() {
    boots_under_stress("cloud_kernel_boots_under_stress_by_misses", "misses");
}

#[test]
fn cloud_kernel_boots_under_stress_one_instruction_at_a_time() {
    boots_under_stress("cloud_kernel_boots_under_stress_one_instruction_at_a_time", "one-instruction");
}

#[test]
fn shell_answers() {
    if !fetch("shell_answers", &["cloud", "shell"]) {
        return;
    }
    let mut machine = boot("512", "vmlinuz-cloud", "shell.gz", LIMIT);
    machine.wait_for("# ");
    machine.send("uname -a\r");
    machine.wait_for("Linux bivisor 6");
    machine.wait_for("# ");
    machine.send("cat /proc/cpuinfo\r");
    machine.wait_for("model name\t: ");
    machine.wait_for("# ");
    // The echo of what is typed holds no result.
    machine.send("echo $((6 * 7))-answer\r");
    machine.wait_for("42-answer");
    machine.wait_for("# ");
    machine.send("poweroff -f\r");
    ended_well(&machine.finish());
}

/// Arithmetic of glibc programs, from integers to x87 and AVX2, and a compiler's output.
#[test]
fn programs_print_the_same_as_natively() {
    programs_print_the_same("programs_print_the_same_as_natively", "tcg");
}

/// With their memory elsewhere in the process than where they have it.
#[test]
fn programs_print_the_same_through_shifted_windows() {
    programs_print_the_same("programs_print_the_same_through_shifted_windows", "tcg,x-stress=windows+shifts");
}

#[track_caller]
fn programs_print_the_same(test: &str, accel: &str) {
    if !fetch(test, &["cloud", "programs"]) {
        return;
    }
    let outcome = boot_with(accel, "2048", "vmlinuz-cloud", "programs.gz", APPEND, PROGRAMS_LIMIT).finish();
    let after = outcome.serial.split_once("BIVISOR-PROGRAMS-BEGIN\n").map(|(_, after)| after);
    let printed = after.and_then(|after| after.split_once("BIVISOR-PROGRAMS-END status=0\n"));
    outcome.check(printed.is_some(), "the checks did not run to their end");
    let printed: Vec<&str> = printed.map(|(printed, _)| printed.lines().collect()).unwrap_or_default();
    let expected = std::fs::read_to_string(folder().join("programs.expected"));
    let expected = expected.expect("fetch.sh writes it beside the image");
    let expected: Vec<&str> = expected.lines().collect();
    assert!(expected.len() > 50, "the native run printed only {} lines", expected.len());
    for (ours, native) in printed.iter().zip(&expected) {
        assert_eq!(ours, native, "guest (left) and native (right) differ");
    }
    assert_eq!(printed.len(), expected.len(), "guest (left) and native (right) differ in length");
    ended_well(&outcome);
    println!("programs, {accel}: {:.2} s", outcome.elapsed.as_secs_f64());
}
