//! Whole machine, nested: in an emulated host with SVM, `bivisor -accel kvm` boots Debian's kernel
//! (`resources/design/0001-nested-kvm.md`).

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::guests::{fetch, installed, path, script};
use harness::log::complaints;
use harness::session::{Outcome, Session, bivisor};

const LIMIT: Duration = Duration::from_secs(1200);

/// The emulated host's, seen with other VMMs too: its CPUID gives sizes of XSAVE areas that do not add up.
const KNOWN_WARNINGS: &[&str] = &["XSAVE consistency problem"];

/// What Linux says on several CPUs of AMD's without an invariant TSC, which is hidden unless asked for.
const NO_INVARIANT_TSC: &str = "Marking TSC unstable due to TSCs unsynchronized";

/// Boots L1 with an image that runs these commands; None if the test was skipped.
fn run_in_l1(test: &str, commands: &[String]) -> Option<Outcome> {
    if !fetch(test, &["cloud", "boot-test"]) || !installed(test, "qemu-system-x86_64") {
        return None;
    }
    let image = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}.gz", std::process::id()));
    let image = image.to_str().expect("the target folder's name is text").to_owned();
    let program = bivisor();
    let mut arguments = vec![image.as_str(), "--program", &program];
    for command in commands {
        arguments.extend(["--run", command]);
    }
    if !script(test, "nested.sh", &arguments) {
        return None;
    }
    let kernel = path("vmlinuz-cloud");
    // q35 has a HPET and a PM timer: without them a busy host's L1 can fail to calibrate its TSC.
    #[rustfmt::skip]
    let words = [
        "-M", "q35", "-accel", "tcg", "-cpu", "max,+svm", "-smp", "1", "-m", "2048", "-nic", "none",
        "-nographic", "-no-reboot", "-kernel", &kernel, "-initrd", &image,
        "-append", "console=ttyS0 reboot=t panic=-1 quiet",
    ];
    let outcome = Session::start("qemu-system-x86_64", &words, LIMIT).finish();
    let _ = std::fs::remove_file(&image);
    outcome.check(outcome.serial.contains("\nBIVISOR-L1-KVM\n"), "L1 has no /dev/kvm");
    outcome.check(outcome.serial.contains("\nBIVISOR-L1-DONE\n"), "L1 did not come to its end");
    Some(outcome)
}

/// What the n-th command (from 1) printed, and its exit status.
#[track_caller]
fn part(outcome: &Outcome, n: usize) -> (&str, &str) {
    let begin = format!("BIVISOR-RUN-BEGIN {n}: ");
    let end = format!("BIVISOR-RUN-END {n}: status=");
    let part = outcome.serial.split_once(&begin).and_then(|(_, after)| {
        let (_, after) = after.split_once('\n')?;
        let (printed, after) = after.split_once(&end)?;
        Some((printed, after.lines().next()?))
    });
    outcome.check(part.is_some(), &format!("run {n} has no begin or no end"));
    part.expect("checked just before")
}

/// The command that boots Linux in L1, with more on its kernel's command line.
fn linux(accel: &str, options: &str, append: &str) -> String {
    let name =
        Path::new(&bivisor()).file_name().expect("a program has a name").to_string_lossy().into_owned();
    format!(
        "{name} -accel {accel} -M microvm -m 256 -kernel /guests/vmlinuz-cloud -initrd /guests/boot-test.gz \
         -append 'console=ttyS0 panic=-1 {append}' -nographic {options}"
    )
}

/// The guest ran on KVM and its log is clean.
#[track_caller]
fn ran_well(outcome: &Outcome, what: &str, printed: &str) {
    outcome.check(printed.contains("BIVISOR-INIT-OK\n"), &format!("{what}: init did not run"));
    let detected = printed.contains("Hypervisor detected: KVM");
    outcome.check(detected, &format!("{what}: the guest did not run on KVM"));
    let mut complaints = complaints(printed, KNOWN_WARNINGS);
    complaints.retain(|line| !line.contains(NO_INVARIANT_TSC));
    outcome.check(complaints.is_empty(), &format!("{what}: the log complains: {complaints:#?}"));
}

#[track_caller]
fn powered_off(outcome: &Outcome, what: &str, (printed, status): (&str, &str)) {
    outcome.check(status == "0", &format!("{what}: exit code {status}"));
    outcome.check(printed.contains("reboot: Power down"), &format!("{what}: no power-off"));
    ran_well(outcome, what, printed);
}

#[test]
fn linux_boots_under_kvm() {
    // The last is what a user without options gets: it must find that KVM works there.
    let accels = ["kvm", "kvm,kernel-irqchip=off", "kvm:tcg"];
    let commands = accels.map(|accel| linux(accel, "-no-reboot", ""));
    let Some(outcome) = run_in_l1("linux_boots_under_kvm", &commands) else { return };
    for (n, accel) in accels.iter().enumerate() {
        powered_off(&outcome, &format!("-accel {accel}"), part(&outcome, n + 1));
    }
    println!("nested: {:.1} s", outcome.elapsed.as_secs_f64());
}

#[test]
fn linux_boots_on_several_cpus_under_kvm() {
    let machines = [
        ("kvm", 2, "cpu_toggles=2", "BIVISOR-TOGGLED 2\n"),
        ("kvm,kernel-irqchip=off", 2, "cpu_toggles=2", "BIVISOR-TOGGLED 2\n"),
        ("kvm", 4, "", ""),
    ];
    let commands =
        machines.map(|(accel, cpus, append, _)| linux(accel, &format!("-no-reboot -smp {cpus}"), append));
    let Some(outcome) = run_in_l1("linux_boots_on_several_cpus_under_kvm", &commands) else { return };
    for (n, (accel, cpus, _, said)) in machines.into_iter().enumerate() {
        let what = format!("-accel {accel} -smp {cpus}");
        let (printed, status) = part(&outcome, n + 1);
        powered_off(&outcome, &what, (printed, status));
        let online = format!("cpus: {cpus}, online 0-{}\n", cpus - 1);
        outcome.check(printed.contains(&online), &format!("{what}: not all CPUs are there"));
        outcome.check(printed.contains(said), &format!("{what}: CPUs did not go off line and come back"));
    }
    println!("nested, several CPUs: {:.1} s", outcome.elapsed.as_secs_f64());
}

#[test]
fn linux_reboots_under_kvm() {
    let accels = ["kvm", "kvm,kernel-irqchip=off"];
    let commands = accels.map(|accel| {
        // A guest that reboots for ever, ended by a signal after its third start.
        let machine = linux(accel, "-smp 2", "end=reboot");
        format!(
            "{machine} >/tmp/log & until [ $(grep -c BIVISOR-INIT-OK /tmp/log) -ge 3 ]; do sleep 1; done; \
             kill $!; wait $!; cat /tmp/log"
        )
    });
    let Some(outcome) = run_in_l1("linux_reboots_under_kvm", &commands) else { return };
    for (n, accel) in accels.iter().enumerate() {
        let (printed, status) = part(&outcome, n + 1);
        outcome.check(status == "0", &format!("-accel {accel}: exit code {status}"));
        ran_well(&outcome, &format!("-accel {accel}, rebooting"), printed);
        let online = printed.matches("cpus: 2, online 0-1\n").count();
        outcome.check(online >= 2, &format!("-accel {accel}: only {online} starts with both CPUs"));
    }
    println!("nested, reboots: {:.1} s", outcome.elapsed.as_secs_f64());
}
