//! Whole machine, in this process: Linux is told of NMIs and of hardware errors that are injected.

mod harness;

use std::time::Duration;

use accel::MachineCheck;
use bivisor::run_state::Occurrence;
use devices::system::SystemRequest;

use harness::guests::{fetch, path};
use harness::in_process::Guest;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(600);

/// IA32_MCi_STATUS: VAL, UC, EN, MISCV, ADDRV, S; found while memory was scrubbed (SDM vol. 3B, *Architecturally Defined SRAO
/// Errors*).
const SCRUBBED: u64 = 0xbd << 56 | 0xc0;
/// PCC: the CPU's own state is lost.
const PCC: u64 = 1 << 57;
/// IA32_MCi_MISC: a physical address, to the page.
const PHYSICAL_PAGE: u64 = 2 << 6 | 12;
/// IA32_MCG_STATUS: MCIP, RIPV.
const RESTARTABLE: u64 = 0b101;

/// An error of this status at the start of page `page`.
fn error(status: u64, page: u64) -> MachineCheck {
    MachineCheck { bank: 9, status, mcg_status: RESTARTABLE, address: page << 12, misc: PHYSICAL_PAGE }
}

/// Debian's kernel for clouds does without machine checks, the other one does not.
#[track_caller]
fn linux_is_told(test: &str, accel: &str) {
    if !fetch(test, &["generic", "boot-test"]) {
        return;
    }
    let (kernel, initrd) = (path("vmlinuz-generic"), path("boot-test.gz"));
    #[rustfmt::skip]
    let words = [
        "-accel", accel, "-M", "microvm", "-m", "256", "-smp", "2", "-kernel", &kernel, "-initrd", &initrd,
        // A minute, where a kernel gives others a second to come to its handler: the host may be busy.
        "-append", "console=ttyS0 panic=-1 reboot=k end=ask mce=60000000", "-nographic",
    ];
    let guest = Guest::start(&words, LIMIT);
    let says = |text: &str| guest.run_until(text, |guest, _| guest.text().contains(text));
    says("BIVISOR-WHAT-NEXT");
    for cpu in guest.cpus() {
        cpu.inject_nmi().expect("the CPU is there");
        let (reason, cpu) = ("NMI received for unknown reason", format!(" on CPU {}.", cpu.index()));
        guest.run_until("the NMI", |guest, _| {
            guest.text().lines().any(|line| line.contains(reason) && line.contains(&cpu))
        });
    }
    let lifecycle = guest.machine.lifecycle();
    let cpus = lifecycle.cpus();
    // Two pages of what the kernel has free or the page cache has.
    for (cpu, page) in [(0, 0xa000), (1, 0xa001)] {
        cpus.broadcast_machine_check(cpu, error(SCRUBBED, page)).expect("it has such a bank");
        says("mce: [Hardware Error]: Machine check events logged");
        says(&format!("Memory failure: {page:#x}: "));
    }
    assert!(!guest.text().contains("Kernel panic"), "{}", guest.text());
    cpus.broadcast_machine_check(0, error(SCRUBBED | PCC, 0xa002)).expect("it has such a bank");
    guest.run_until("the reset", |_, occurrence| {
        matches!(occurrence, Some(Occurrence::System(SystemRequest::Reset)))
    });
    let text = guest.text();
    for line in [
        "mce: [Hardware Error]: CPU 0: Machine Check Exception: 5 Bank 9: bf000000000000c0\n",
        " ADDR a002000 MISC 8c ",
        "mce: [Hardware Error]: Machine check: Processor context corrupt\n",
        "Kernel panic - not syncing: Fatal machine check\n",
    ] {
        assert!(text.contains(line), "it does not say {line:?}:\n{text}");
    }
    println!("{accel}: {:.2} s", guest.started.elapsed().as_secs_f64());
}

#[test]
fn linux_is_told_of_errors() {
    linux_is_told("linux_is_told_of_errors", "tcg");
}

#[test]
fn linux_is_told_of_errors_by_one_thread() {
    linux_is_told("linux_is_told_of_errors_by_one_thread", "tcg,thread=single");
}
