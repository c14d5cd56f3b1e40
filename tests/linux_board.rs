//! Whole machine: Linux finds the board's small devices and tables under `-accel tcg`, and its panic has an exit code.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::time::Duration;

use harness::guests::fetch;
use harness::linux::{Linux, ended_well};
use harness::session::Outcome;
use support::Scratch;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(400);

fn run(jobs: &str, more: &[&str]) -> Outcome {
    let append = format!("console=ttyS0 panic=-1 jobs={jobs}");
    let machine = Linux {
        accel: "tcg",
        megabytes: "256",
        kernel: "vmlinuz-generic",
        initrd: "board.gz",
        append: &append,
        more,
    };
    machine.boot(LIMIT).finish()
}

#[track_caller]
fn says(outcome: &Outcome, what: &str) {
    outcome.check(outcome.serial.lines().any(|line| line.trim_end() == what), what);
}

#[test]
fn what_the_board_tells() {
    if !fetch("what_the_board_tells", &["generic", "board"]) {
        return;
    }
    let scratch = Scratch::new("linux_board");
    let content: Vec<u8> = (0..100_000u32).flat_map(|number| number.to_le_bytes()).collect();
    let file = scratch.write("file", &content);
    let oem = scratch.write("oem", b"from a file");
    let md5 = std::process::Command::new("md5sum").arg(&file).output().expect("coreutils");
    let md5 = String::from_utf8(md5.stdout).expect("text")[..32].to_owned();
    let file = format!("name=opt/file,file={}", file.display());
    let oem = format!("type=11,value=one,,two,path={}", oem.display());
    let jobs = "firmware,plate,identity,clock";
    #[rustfmt::skip]
    let outcome = run(jobs, &[
        "-fw_cfg", "name=opt/text,string=a text,, with a comma", "-fw_cfg", &file,
        "-smbios", "type=0,vendor=Some BIOS,version=v1", "-smbios", "type=1,manufacturer=Some Maker,serial=S-1",
        "-smbios", "type=1,product=A Product,family=A Family", "-smbios", "type=2,product=A Board",
        "-smbios", "type=3,asset=Asset 3", "-smbios", &oem, "-uuid", "12345678-9abc-def0-1122-334455667788",
        "-device", "vmgenid,guid=324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87", "-device", "vmcoreinfo",
        "-device", "pvpanic", "-rtc", "base=2011-12-13T04:05:06",
        "-object", "memory-backend-memfd,id=mem,size=256M", "-machine", "memory-backend=mem",
    ]);
    for job in jobs.split(',') {
        says(&outcome, &format!("BIVISOR-BOARD-END {job} status=0"));
    }
    outcome.check(!outcome.serial.contains("BIVISOR-NO-MODULE"), "a module is missing");
    says(&outcome, "fw_cfg revision 3");
    says(&outcome, "fw_cfg opt/text is a text, with a comma");
    says(&outcome, &format!("fw_cfg opt/file size 400000 md5 {md5}  -"));
    for line in [
        "bios_vendor: Some BIOS",
        "bios_version: v1",
        "sys_vendor: Some Maker",
        "product_name: A Product",
        "product_serial: S-1",
        "product_uuid: 12345678-9abc-def0-1122-334455667788",
        "product_family: A Family",
        "board_name: A Board",
        "chassis_asset_tag: Asset 3",
        "strings: one,two|from a file||",
    ] {
        says(&outcome, &format!("dmi {line}"));
    }
    says(&outcome, "vmgenid: /sys/bus/acpi/drivers/vmgenid/QEMUVGID:00");
    // The guest wrote over it: an ELF note.
    says(&outcome, "vmcoreinfo: 00 00 01 00");
    says(&outcome, "clock: 2011-12-13 04 h");
    ended_well(&outcome);
}

#[test]
fn a_panic_has_an_exit_code() {
    if !fetch("a_panic_has_an_exit_code", &["generic", "board"]) {
        return;
    }
    let outcome = run("panic", &["-device", "pvpanic", "-smp", "2"]);
    outcome.check(outcome.status.code() == Some(120), "the exit code is not 120");
    let first = outcome.stderr.lines().next().unwrap_or_default();
    outcome.check(
        first.starts_with("bivisor: the guest crashed: its kernel panicked on CPU ")
            && first.ends_with(" (pvpanic)"),
        "stderr does not begin with the crash",
    );
    outcome
        .check(outcome.stderr.contains("Kernel panic - not syncing: sysrq triggered crash"), "no last words");
}

#[test]
fn a_hang_is_found() {
    if !fetch("a_hang_is_found", &["generic", "board"]) {
        return;
    }
    // Whoever wants no reset hears of this one as of a crash.
    let watchdog = ["-M", "microvm,pcie=on", "-device", "i6300esb", "-no-reboot"];
    let outcome = run("hang", &watchdog);
    outcome.check(outcome.status.code() == Some(120), "the exit code is not 120");
    let first = outcome.stderr.lines().next().unwrap_or_default();
    outcome.check(
        first == "bivisor: the guest hangs: its watchdog was not fed in time",
        "stderr says another thing",
    );
    // An NMI, which the kernel takes for a reason to panic: that is told, too.
    let more = ["-watchdog-action", "inject-nmi", "-device", "pvpanic"];
    let outcome = run("hang unknown_nmi_panic=1", &[&watchdog[..], &more].concat());
    outcome.check(outcome.status.code() == Some(120), "the exit code is not 120");
    outcome.check(outcome.stderr.contains("its kernel panicked on CPU 0 (pvpanic)"), "no panic was told");
}
