//! Whole machine: kernels of our own, each claim in them checked by the guest itself, on every accelerator. The same binary everywhere: a difference is a bug.
//!
//! Sources in `resources/micro_kernels`. A kernel prints the claims that fail and ends through isa-debug-exit: 33 is good.

mod harness;

use std::sync::OnceLock;
use std::time::Duration;

use harness::guests::{micro_kernels, root};
use harness::session::{Outcome, Session, bivisor};

/// A starved host makes a guest slow, never wrong.
const LIMIT: Duration = Duration::from_secs(480);

const GOOD: i32 = 0x10 << 1 | 1;

/// What a KVM that only emulates cannot do; its own kernel says so for all guests. Not run there, each by name.
const BEYOND_AN_EMULATING_KVM: [(&str, &str); 4] = [
    ("exceptions", "its emulator does not have INT1, nor interrupts with a change of privilege"),
    ("paging", "its emulator does not have INT n from CPL 3, nor STAC"),
    ("debug", "its emulator does not watch data"),
    ("transfers", "its emulator does not enter CPL 0 by SYSCALL"),
];

fn run(kernel: &str, accelerator: &str, append: &str) -> Outcome {
    match kernel {
        // It resets the machine once with all CPUs in use.
        "smp" => run_on("4", &[], kernel, accelerator, &format!("{append} resets=1")),
        _ => run_on("1", &["-no-reboot"], kernel, accelerator, append),
    }
}

/// `smp` is the argument of `-smp`, which begins with the number of CPUs.
fn run_on(smp: &str, more: &[&str], kernel: &str, accelerator: &str, append: &str) -> Outcome {
    let path = micro_kernels().join(kernel);
    let append = format!("cpus={smp} {append}");
    #[rustfmt::skip]
    let words = [
        "-accel", accelerator, "-M", "microvm", "-m", "128", "-kernel", path.to_str().expect("the path is text"),
        "-append", &append, "-smp", smp, "-nographic", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
    ];
    Session::start(&bivisor(), &[&words, more].concat(), LIMIT).finish()
}

#[track_caller]
fn all_claims_hold(outcome: &Outcome) {
    outcome.check(outcome.status.code() == Some(GOOD), "some claims of the guest do not hold");
    outcome.check(outcome.serial.contains("all claims hold"), "the guest did not say so");
    outcome.check(!outcome.serial.contains("FAILED"), "a claim did not hold before a reset");
    for line in outcome.serial.lines().filter(|line| line.starts_with("skipped")) {
        eprintln!("{line}");
    }
}

/// Whether KVM is there, and whether it only emulates.
fn kvm() -> Option<bool> {
    static KVM: OnceLock<Option<bool>> = OnceLock::new();
    *KVM.get_or_init(|| {
        if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return None;
        }
        let outcome = run("ends", "kvm", "status");
        Some(outcome.stderr.contains("emulates instructions"))
    })
}

fn under_kvm(kernel: &str) {
    let Some(emulating) = kvm() else {
        eprintln!("SKIPPED {kernel} under KVM: no usable /dev/kvm");
        return;
    };
    if emulating && let Some((_, why)) = BEYOND_AN_EMULATING_KVM.iter().find(|(name, _)| *name == kernel) {
        eprintln!("SKIPPED {kernel} under this KVM: {why}");
        return;
    }
    for irqchip in ["on", "off"] {
        let accelerator = format!("kvm,kernel-irqchip={irqchip}");
        all_claims_hold(&run(kernel, &accelerator, if emulating { "emulated" } else { "" }));
    }
}

macro_rules! micro_kernels {
    ($($kernel:ident)*) => {
        mod tcg {
            $(#[test] fn $kernel() { super::all_claims_hold(&super::run(stringify!($kernel), "tcg", "")); })*
        }
        mod kvm {
            $(#[test] fn $kernel() { super::under_kvm(stringify!($kernel)); })*
        }

        #[test]
        fn every_kernel_is_listed() {
            let folder = root().join("resources/micro_kernels");
            for entry in std::fs::read_dir(folder).expect("the folder is there") {
                let path = entry.expect("it can be listed").path();
                let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
                if path.extension().is_some_and(|extension| extension == "c") && stem != "kernel" {
                    assert!(stem == "ends" || [$(stringify!($kernel)),*].contains(&stem.as_str()), "{stem} is not run");
                }
            }
        }
    };
}

micro_kernels! { debug devices exceptions interrupts memory modes paging smp transfers }

/// As many as the translator runs; two packages, whose APIC IDs have a gap between them; one thread for all, and resets.
#[test]
fn many_cpus_under_tcg() {
    for smp in ["16", "6,sockets=2"] {
        all_claims_hold(&run_on(smp, &["-no-reboot"], "smp", "tcg", ""));
    }
    all_claims_hold(&run_on("4", &[], "smp", "tcg,thread=single", "resets=3"));
}

/// As many as there may be; not where each instruction is emulated.
#[test]
fn many_cpus_under_kvm() {
    let Some(emulating) = kvm() else {
        eprintln!("SKIPPED many_cpus_under_kvm: no usable /dev/kvm");
        return;
    };
    let (smp, append) = if emulating { ("12", "emulated") } else { ("64", "") };
    for irqchip in ["on", "off"] {
        let accelerator = format!("kvm,kernel-irqchip={irqchip}");
        all_claims_hold(&run_on(smp, &["-no-reboot"], "smp", &accelerator, append));
    }
}

#[track_caller]
fn ends(how: &str, status: i32) {
    let mut accelerators = vec!["tcg"];
    if kvm().is_some() {
        accelerators.extend(["kvm,kernel-irqchip=on", "kvm,kernel-irqchip=off"]);
    } else {
        eprintln!("SKIPPED {how} under KVM: no usable /dev/kvm");
    }
    for accelerator in accelerators {
        let outcome = run("ends", accelerator, how);
        outcome.check(outcome.status.code() == Some(status), &format!("{how} under {accelerator}"));
        outcome.check(outcome.serial.starts_with("here\n"), "the guest ran");
    }
}

#[test]
fn power_off_through_acpi() {
    ends("poweroff", 0);
}

#[test]
fn reset_through_the_8042() {
    ends("reset", 0);
}

#[test]
fn triple_fault() {
    ends("triple", 120);
}

#[test]
fn status_of_the_guests_choice() {
    ends("status", 0x2a << 1 | 1);
}
