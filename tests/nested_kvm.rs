//! Whole machine, nested: in an emulated host with SVM, `bivisor -accel kvm` boots Debian's kernel
//! (`resources/design/0001-nested-kvm.md`).

mod harness;

use std::path::Path;
use std::time::Duration;

use harness::guests::{fetch, installed, path, script};
use harness::log::complaints;
use harness::session::{Outcome, Session, bivisor};

const LIMIT: Duration = Duration::from_secs(600);

/// The emulated host's, seen with other VMMs too: its CPUID gives sizes of XSAVE areas that do not add up.
const KNOWN_WARNINGS: &[&str] = &["XSAVE consistency problem"];

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

fn linux(accel: &str) -> String {
    let name =
        Path::new(&bivisor()).file_name().expect("a program has a name").to_string_lossy().into_owned();
    format!(
        "{name} -accel {accel} -M microvm -m 256 -kernel /guests/vmlinuz-cloud -initrd /guests/boot-test.gz \
         -append 'console=ttyS0 reboot=t panic=-1' -nographic -no-reboot"
    )
}

#[test]
fn linux_boots_under_kvm() {
    // The last is what a user without options gets: it must find that KVM works there.
    let accels = ["kvm", "kvm,kernel-irqchip=off", "kvm:tcg"];
    let Some(outcome) = run_in_l1("linux_boots_under_kvm", &accels.map(linux)) else { return };
    for (n, accel) in accels.iter().enumerate() {
        let (printed, status) = part(&outcome, n + 1);
        outcome.check(status == "0", &format!("-accel {accel}: exit code {status}"));
        outcome.check(printed.contains("BIVISOR-INIT-OK\n"), &format!("-accel {accel}: init did not run"));
        outcome.check(printed.contains("reboot: Power down"), &format!("-accel {accel}: no power-off"));
        outcome.check(
            printed.contains("Hypervisor detected: KVM"),
            &format!("-accel {accel}: the guest did not run on KVM"),
        );
        let complaints = complaints(printed, KNOWN_WARNINGS);
        outcome.check(complaints.is_empty(), &format!("-accel {accel}: the log complains: {complaints:#?}"));
    }
    println!("nested: {:.1} s", outcome.elapsed.as_secs_f64());
}
