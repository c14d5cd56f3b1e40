//! Which engine runs a guest, what is said of it, and what an engine says that gives up.

#[path = "harness/session.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod session;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tiny_guest;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use accel_kvm::{Kvm, KvmOptions, ProbeFailure};
use session::{Outcome, Session};
use support::Scratch;
use tiny_guest::{EXIT, EXIT_DEVICE, halt, out8, say};

const LIMIT: Duration = Duration::from_secs(120);

fn run(kernel: &Path, accel: &[&str]) -> Outcome {
    let kernel = kernel.to_str().expect("the target folder's name is text");
    let words = [accel, &["-m", "16", "-kernel", kernel, "-nographic", "-device", EXIT_DEVICE]].concat();
    Session::start(&session::bivisor(), &words, LIMIT).finish()
}

/// What this host's KVM can do; None where there is none.
fn verdict() -> Option<Result<(), ProbeFailure>> {
    Kvm::open(&KvmOptions::default()).ok().map(|kvm| kvm.probe())
}

#[test]
fn the_first_engine_that_runs_linux_is_taken() {
    let scratch = Scratch::new("preference");
    let guest = tiny_guest::write(&scratch, "guest", &[&say("."), &out8(EXIT, 4), &halt()]);
    let verdict = verdict();
    for accel in [
        &[][..],
        &["-accel", "kvm:tcg"],
        &["-accel", "kvm", "-accel", "tcg"],
        &["-M", "microvm,accel=kvm:tcg"],
    ] {
        let outcome = run(&guest, accel);
        outcome.check(outcome.status.code() == Some(9) && outcome.serial == ".", &accel.join(" "));
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        if verdict == Some(Ok(())) {
            outcome.check(lines.is_empty(), "nothing to tell where KVM works");
            continue;
        }
        outcome.check(lines.len() == 1, "one line tells of the fall-back");
        let said = lines[0].strip_prefix("bivisor: falling back to tcg: -accel kvm: ");
        outcome.check(said.is_some_and(|reason| reason.len() > 10), "the line names the reason");
    }
}

#[test]
fn the_first_of_a_list_is_taken_without_a_look_at_the_others() {
    let scratch = Scratch::new("first");
    let guest = tiny_guest::write(&scratch, "guest", &[&out8(EXIT, 4), &halt()]);
    let outcome = run(&guest, &["-accel", "tcg", "-accel", "kvm,device=/no/such/kvm"]);
    outcome.check(outcome.status.code() == Some(9) && outcome.stderr.is_empty(), "tcg,kvm");
}

#[test]
fn an_engine_has_a_limit_of_cpus() {
    let scratch = Scratch::new("cpus");
    let guest = tiny_guest::write(&scratch, "guest", &[&out8(EXIT, 4), &halt()]);
    let outcome = run(&guest, &["-accel", "tcg", "-smp", "16"]);
    outcome.check(outcome.status.code() == Some(9) && outcome.stderr.is_empty(), "16 CPUs");
    let outcome = run(&guest, &["-accel", "tcg", "-smp", "17"]);
    let said = outcome.stderr == "bivisor: -smp 17: -accel tcg runs 16 CPUs at most\n";
    outcome.check(outcome.status.code() == Some(1) && said, "17 CPUs");
}

#[test]
fn a_kvm_that_gives_up_says_what_where_and_what_else() {
    let scratch = Scratch::new("gives-up");
    // `popcnt %eax, %eax`, which Linux's emulator has never had.
    let popcnt = [0xf3, 0x0f, 0xb8, 0xc0];
    let guest = tiny_guest::write(&scratch, "guest", &[&say("last\n"), &popcnt, &out8(EXIT, 4), &halt()]);
    let at = 0x20_0000 + 7 * "last\n".len();
    let outcome = run(&guest, &["-accel", "tcg"]);
    outcome.check(outcome.status.code() == Some(9) && outcome.stderr.is_empty(), "tcg runs it");

    let Some(verdict) = verdict() else {
        eprintln!("LEFT OUT: a KVM that gives up, because there is none");
        return;
    };
    for accel in ["kvm", "kvm,kernel-irqchip=off"] {
        let outcome = run(&guest, &["-accel", accel]);
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        outcome.check(outcome.serial == "last\n", accel);
        if verdict.is_ok() {
            outcome.check(outcome.status.code() == Some(9) && lines.is_empty(), accel);
            continue;
        }
        let warning = "bivisor: warning: -accel kvm: Linux will not run on this KVM: ";
        outcome.check(lines[0].starts_with(warning) && lines[0].contains("-accel tcg"), accel);
        outcome.check(outcome.status.code() == Some(122), accel);
        let report = lines[1];
        outcome.check(report.starts_with("bivisor: CPU 0 cannot go on at 0010:"), accel);
        outcome.check(report.contains(&format!("{at:016x}")), "where");
        outcome.check(report.contains("failed to emulate") && report.contains("f3 0f b8 c0"), "what");
        outcome.check(report.contains("`-accel tcg` runs it"), "what else");
    }
}

/// As root, permission bits count for nothing unless this capability is gone.
const WITHOUT_ROOTS_RIGHTS: [&str; 2] = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"];

#[test]
fn a_kvm_that_may_not_be_opened() {
    let scratch = Scratch::new("denied");
    let guest = tiny_guest::write(&scratch, "guest", &[&halt()]);
    let device = scratch.write("kvm", b"");
    let mut permissions = std::fs::metadata(&device).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0);
    std::fs::set_permissions(&device, permissions).unwrap();
    let is_root = std::fs::File::open(&device).is_ok();
    let program = session::bivisor();
    let mut words = if is_root { WITHOUT_ROOTS_RIGHTS.to_vec() } else { Vec::new() };
    words.push(&program);
    let accel = format!("kvm,device={}", device.display());
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["-accel", &accel, "-kernel", guest.to_str().unwrap()])
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Err(error) if is_root => {
            return eprintln!("LEFT OUT: permission denied, because root has no setpriv: {error}");
        }
        output => output.unwrap(),
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    let told = format!("bivisor: -accel kvm: {}: permission denied (", device.display());
    assert!(stderr.starts_with(&told) && stderr.contains("-accel tcg"), "{stderr}");
}
