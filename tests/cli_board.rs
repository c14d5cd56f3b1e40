//! Options about the board: each mistake is one line and exit code 1; a guest's panic is a crash, or what `-action` makes of it.

#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tiny_guest;

use support::{Refusal, Scratch, bivisor, refuse};
use tiny_guest::{EXIT, EXIT_DEVICE, out8};

#[track_caller]
fn refused(words: &[&str], named: &str) {
    let Refusal { stderr, .. } = refuse(words);
    assert!(stderr.contains(named), "{words:?}: {stderr:?} does not name {named:?}");
}

/// The panic device's register.
const PANIC: u16 = 0x505;

#[test]
fn mistakes_of_the_command_line() {
    refused(&["-fw_cfg", "opt/x"], "-fw_cfg opt/x: needs either file=PATH or string=TEXT");
    refused(&["-fw_cfg", "opt/x,string=a", "-fw_cfg", "opt/x,string=b"], "there is a file 'opt/x' already");
    refused(&["-smbios", "type=1,serail=1"], "did you mean 'serial'?");
    refused(&["-uuid", "1234"], "-uuid 1234: takes a UUID");
    refused(&["-action", "panic=frob"], "panic= takes shutdown, exit-failure, pause or none");
    refused(&["-watchdog-action", "bark"], "the watchdog's action is one of reset");
    refused(&["-device", "pvpanic,events=8"], "events= takes");
    refused(&["-device", "pvpanic,ioprt=1"], "did you mean 'ioport'?");
    refused(&["-device", "vmgenid"], "needs guid=auto or guid=UUID");
    refused(&["-device", "vmgenid,guid=1"], "guid= takes auto or a UUID");
    refused(&["-readconfig", "/no/such"], "-readconfig /no/such: No such file");
    refused(&["-device", "{\"driver\":"], "not JSON: EOF while parsing");
    refused(&["-global", "pvpanic.event=1"], "did you mean 'events'?");
    refused(&["-boot", "order=1"], "order= takes letters a to p");
    refused(&["-object", "memory-backend-file,id=m,size=1G"], "needs mem-path=PATH");
    let words = ["-device", "i6300esb", "-kernel", "/dev/null"];
    refused(&words, "-device i6300esb: there is no PCI on this machine: use -M microvm,pcie=on or -M q35");
    refused(&["-device", "pvpanik"], "did you mean pvpanic?");
    let kernel = ["-kernel", "/dev/null"];
    refused(&[&["-M", "memory-backend=m"], &kernel[..]].concat(), "there is no memory backend 'm'");
    let twice = ["-device", "vmcoreinfo", "-device", "vmcoreinfo"];
    refused(&[&twice[..], &kernel].concat(), "-device vmcoreinfo: there can be one only");
    let auto = ["-icount", "3", "-device", "vmgenid,guid=auto"];
    refused(&[&auto[..], &kernel].concat(), "-icount: -device vmgenid,guid=auto");
}

#[test]
fn files_that_are_none() {
    let scratch = Scratch::new("cli_board_files");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let kernel = ["-accel", "tcg", "-kernel", kernel.to_str().unwrap()];
    refused(&[&kernel[..], &["-fw_cfg", "opt/x,file=/no/such"]].concat(), "-fw_cfg: /no/such: No such file");
    refused(&[&kernel[..], &["-fw_cfg", "opt/x,file=/"]].concat(), "-fw_cfg: /: Is a directory");
    refused(
        &[&kernel[..], &["-fw_cfg", "etc/e820,string=x"]].concat(),
        "-fw_cfg etc/e820: there are two files",
    );
    let path = |bytes: &[u8]| format!("type=11,path={}", scratch.write("oem", bytes).display());
    refused(&[&kernel[..], &["-smbios", &path(b"\xff")]].concat(), "not UTF-8");
    refused(&[&kernel[..], &["-smbios", &path(b"a\0")]].concat(), "a NUL ends a string");
    refused(&[&kernel[..], &["-smbios", &path(&[b'x'; 60_000])]].concat(), "too long");
    refused(&[&kernel[..], &["-smbios", &path(&[b'x'; 49_000])]].concat(), "there is room for 49152");
    refused(
        &[&kernel[..], &["-device", "pvpanic,ioport=0x60"]].concat(),
        "-device pvpanic: bus window at 0x60",
    );
}

#[test]
fn memory_that_cannot_be_had() {
    let scratch = Scratch::new("cli_board_memory");
    let kernel = tiny_guest::write(&scratch, "kernel", &[&tiny_guest::halt()]);
    let kernel = ["-accel", "tcg", "-kernel", kernel.to_str().unwrap()];
    let short = scratch.write("short", b"x");
    let object = format!("memory-backend-file,id=m,size=64M,mem-path={}", short.display());
    let words = ["-object", &object, "-M", "memory-backend=m"];
    refused(&[&kernel[..], &words].concat(), "memory backend 'm': 64 MiB: the file has 0 MiB");
    assert_eq!(std::fs::read(&short).unwrap(), b"x");
    // Nothing is made for a command line that is refused later.
    let new = scratch.path("new");
    let words = ["-mem-path", new.to_str().unwrap(), "-D", "/no/such/log"];
    refused(&[&kernel[..], &words].concat(), "-D /no/such/log");
    assert!(!new.exists());
}

#[test]
fn what_follows_a_panic() {
    let scratch = Scratch::new("cli_board_panic");
    // It tells, and goes on where it may.
    let code = [out8(PANIC, 1), out8(EXIT, 4), tiny_guest::halt()].concat();
    let panics = tiny_guest::write(&scratch, "panics", &[&code]);
    let code = [out8(PANIC, 2), out8(EXIT, 4), tiny_guest::halt()].concat();
    let crash_kernel = tiny_guest::write(&scratch, "crash-kernel", &[&code]);
    let code = [out8(PANIC, 4), tiny_guest::halt()].concat();
    let shuts_down = tiny_guest::write(&scratch, "shuts-down", &[&code]);
    for engine in tiny_guest::engines() {
        let run = |kernel: &std::path::Path, more: &[&str]| {
            let words = ["-accel", engine, "-kernel", kernel.to_str().unwrap(), "-nodefaults"];
            let devices = ["-device", "pvpanic", "-device", EXIT_DEVICE, "-timeout", "300"];
            let output = bivisor(&[&words[..], &devices, more].concat());
            let stderr = String::from_utf8(output.stderr).unwrap();
            // A KVM that only emulates is warned of.
            let lines = stderr.lines().filter(|line| !line.contains("warning: -accel kvm"));
            (output.status.code(), lines.map(|line| format!("{line}\n")).collect::<String>())
        };
        for action in [&[][..], &["-action", "panic=exit-failure"]] {
            let (status, stderr) = run(&panics, action);
            assert_eq!(status, Some(120), "{engine}: {stderr}");
            assert_eq!(stderr, "bivisor: the guest crashed: its kernel panicked on CPU 0 (pvpanic)\n");
        }
        let (status, stderr) = run(&panics, &["-action", "panic=none"]);
        assert_eq!(status, Some(9), "{engine}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let (status, stderr) = run(&crash_kernel, &[]);
        assert_eq!(status, Some(9), "{engine}: {stderr}");
        assert!(stderr.contains("its crash kernel goes on"), "{stderr}");
        let (status, stderr) = run(&shuts_down, &[]);
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{engine}");
        // It stays, paused.
        for action in [&["-action", "panic=pause"][..], &["-no-shutdown"]] {
            let (status, stderr) = run(&panics, &[action, &["-timeout", "2"]].concat());
            assert_eq!(status, Some(124), "{engine}: {stderr}");
            assert!(
                stderr.contains("it is paused") && stderr.contains("run state guest-panicked"),
                "{stderr}"
            );
        }
    }
}
