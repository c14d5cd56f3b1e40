//! The program from start to end with guests of a few instructions: exit codes, resets, reports, the terminal.

#[path = "harness/session.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod session;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
mod tiny_guest;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use devices::backend::chardev::pty::Pty;
use session::{Outcome, Session};
use support::Scratch;
use tiny_guest::{COM1, EXIT, EXIT_DEVICE, crash, echo_until_q, engines, halt, out8, out16, say};

const LIMIT: Duration = Duration::from_secs(120);

fn start(engine: &str, kernel: &Path, more: &[&str]) -> Session {
    let kernel = kernel.to_str().expect("the target folder's name is text");
    let words =
        [&["-accel", engine, "-m", "16", "-kernel", kernel, "-nographic", "-device", EXIT_DEVICE], more]
            .concat();
    Session::start(&session::bivisor(), &words, LIMIT)
}

/// stderr without the warning that a KVM that only emulates deserves.
fn said(outcome: &Outcome) -> Vec<&str> {
    outcome.stderr.lines().filter(|line| !line.contains("Linux will not run on this KVM")).collect()
}

fn terminate(session_pid: u32, signal: &str) {
    let sent = Command::new("kill").args([signal, &session_pid.to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn the_guest_chooses_its_status() {
    let scratch = Scratch::new("status");
    for value in [0u8, 0x15, 0x7f] {
        let guest = tiny_guest::write(&scratch, "guest", &[&say("Hello\n"), &out8(EXIT, value), &halt()]);
        for engine in engines() {
            let outcome = start(engine, &guest, &[]).finish();
            outcome.check(outcome.status.code() == Some(i32::from(value) << 1 | 1), engine);
            outcome.check(outcome.serial == "Hello\n" && said(&outcome).is_empty(), engine);
        }
    }
}

#[test]
fn a_triple_fault_says_where() {
    let scratch = Scratch::new("triple");
    let guest = tiny_guest::write(&scratch, "guest", &[&say("last words\n"), &crash()]);
    let at = 0x20_0000 + 7 * "last words\n".len();
    for engine in engines() {
        // Not a reset, with `-no-reboot` or without: a guest that crashes at once would crash for ever.
        for more in [&[][..], &["-no-reboot"]] {
            let outcome = start(engine, &guest, more).finish();
            outcome.check(outcome.status.code() == Some(120), engine);
            let place = format!("triple fault on CPU 0 at 0010:{at:016x}");
            outcome.check(said(&outcome)[0].contains(&place), engine);
            outcome.check(outcome.stderr.contains("Code at RIP: 0f 0b"), engine);
            outcome.check(outcome.stderr.contains("COM1 said last:\n  last words\n"), engine);
        }
    }
}

#[test]
fn time_is_up() {
    let scratch = Scratch::new("timeout");
    let idle = tiny_guest::write(&scratch, "idle", &[&say("waiting\n"), &halt()]);
    // `jmp .`
    let busy = tiny_guest::write(&scratch, "busy", &[&say("waiting\n"), &[0xeb, 0xfe]]);
    for engine in engines() {
        for guest in [&idle, &busy] {
            let outcome = start(engine, guest, &["--timeout", "0.5"]).finish();
            outcome.check(outcome.status.code() == Some(124), engine);
            outcome.check(
                said(&outcome)[0].starts_with("bivisor: timeout after 0.5 s; CPU 0 is at 0010:"),
                engine,
            );
            outcome.check(outcome.stderr.contains("  waiting\n"), engine);
        }
    }
}

#[test]
fn resets() {
    let scratch = Scratch::new("reset");
    // i8042, ACPI reset register, system control port A.
    for (port, value) in [(0x64, 0xfe), (0xcf9, 0x06), (0x92, 0x01)] {
        let guest = tiny_guest::write(&scratch, "guest", &[&say("up\n"), &out8(port, value), &halt()]);
        for engine in engines() {
            let outcome = start(engine, &guest, &["-no-reboot"]).finish();
            outcome.check(outcome.status.code() == Some(0) && outcome.serial == "up\n", engine);
            outcome.check(said(&outcome).is_empty(), engine);

            let mut again = start(engine, &guest, &[]);
            for _ in 0..3 {
                again.wait_for("up\n");
            }
        }
    }
}

#[test]
fn a_reset_brings_back_the_kernel() {
    let scratch = Scratch::new("reload");
    // Overwrites its own first byte with a HLT (movb $0xf4, 0x200000), and resets.
    let spoil = [0xc6, 0x05, 0x00, 0x00, 0x20, 0x00, 0xf4];
    let guest = tiny_guest::write(&scratch, "guest", &[&say("up\n"), &spoil, &out8(0x64, 0xfe), &halt()]);
    for engine in engines() {
        let mut session = start(engine, &guest, &[]);
        for _ in 0..3 {
            session.wait_for("up\n");
        }
    }
}

#[test]
fn power_off() {
    let scratch = Scratch::new("power-off");
    // SLP_TYP 5, SLP_EN in PM1a_CNT.
    let off = out16(0x604, 5 << 10 | 1 << 13);
    let guest = tiny_guest::write(&scratch, "guest", &[&say("bye\n"), &off, &say("still here\n"), &halt()]);
    for engine in engines() {
        let outcome = start(engine, &guest, &[]).finish();
        outcome.check(outcome.status.code() == Some(0) && outcome.serial == "bye\n", engine);
        let outcome = start(engine, &guest, &["-no-shutdown", "-timeout", "2"]).finish();
        outcome.check(outcome.status.code() == Some(124) && outcome.serial == "bye\n", engine);
    }
}

#[test]
fn typing_reaches_the_guest() {
    let scratch = Scratch::new("typing");
    let guest = tiny_guest::write(&scratch, "guest", &[&echo_until_q(), &out8(EXIT, 1)]);
    let text: String = (0..2000).map(|n| format!("{n} ")).collect();
    for engine in engines() {
        let mut session = start(engine, &guest, &[]);
        session.send(&text);
        session.send("\x01\x01q");
        let outcome = session.finish();
        outcome.check(outcome.status.code() == Some(3) && outcome.serial == format!("{text}\x01"), engine);

        let mut session = start(engine, &guest, &["-echr", "2"]);
        session.send("a\x01b\x02x");
        let outcome = session.finish();
        outcome.check(outcome.status.code() == Some(0), engine);
    }
}

#[test]
fn a_file_may_be_the_input() {
    let scratch = Scratch::new("input");
    let guest = tiny_guest::write(&scratch, "guest", &[&echo_until_q(), &out8(EXIT, 1)]);
    let text = "x".repeat(10_000) + "\n";
    let input = scratch.write("input", format!("{text}q").as_bytes());
    let output = Command::new(session::bivisor())
        .args([
            "-accel",
            "tcg",
            "-m",
            "16",
            "-nographic",
            "-device",
            EXIT_DEVICE,
            "-kernel",
            guest.to_str().unwrap(),
        ])
        .stdin(File::open(input).unwrap())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
}

#[test]
fn serial_files_and_pid_files() {
    let scratch = Scratch::new("files");
    let second = 0x2f8;
    let guest = tiny_guest::write(
        &scratch,
        "guest",
        &[&say("one\n"), &out8(second, b'2'), &out8(second, b'\n'), &echo_until_q(), &out8(EXIT, 0)],
    );
    let (first, second, pid) =
        (scratch.write("first", b"old content"), scratch.path("second"), scratch.path("pid"));
    let file = |path: &Path| format!("file:{}", path.display());
    let words = [
        "-accel",
        "tcg",
        "-m",
        "16",
        "-display",
        "none",
        "-device",
        EXIT_DEVICE,
        "-kernel",
        guest.to_str().unwrap(),
        "-serial",
        &file(&first),
        "-serial",
        &file(&second),
        "-pidfile",
        pid.to_str().unwrap(),
        "-name",
        "g,process=tiny",
    ];
    let session = Session::start(&session::bivisor(), &words, LIMIT);
    let begun = Instant::now();
    let id = loop {
        match std::fs::read_to_string(&pid) {
            Ok(text)
                if text.ends_with('\n') && second.exists() && std::fs::read(&second).unwrap() == b"2\n" =>
            {
                break text.trim().parse::<u32>().unwrap();
            }
            _ => assert!(begun.elapsed() < LIMIT),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap(), "tiny\n");
    terminate(id, "-TERM");
    let outcome = session.finish();
    outcome.check(outcome.status.signal() == Some(15), "it dies of the signal");
    assert_eq!(std::fs::read(&first).unwrap(), b"one\n");
    assert!(!pid.exists());
}

/// The terminal's settings as stty(1) prints them.
fn settings(pty: &Pty) -> String {
    let output = Command::new("stty").args(["-g", "-F"]).arg(pty.name()).output().expect("stty runs");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("stty prints text")
}

#[test]
fn the_terminal_is_restored_on_every_way_out() {
    let scratch = Scratch::new("terminal");
    let guest = tiny_guest::write(&scratch, "guest", &[&say("ready\n"), &echo_until_q(), &out8(EXIT, 0)]);
    let crashing = tiny_guest::write(&scratch, "crashing", &[&crash()]);
    let ways: [(&str, &Path, &[u8], Option<&str>); 8] = [
        ("the guest ends", &guest, b"q", None),
        ("the user quits", &guest, b"\x01x", None),
        ("SIGTERM", &guest, b"", Some("-TERM")),
        ("SIGINT", &guest, b"", Some("-INT")),
        ("SIGHUP", &guest, b"", Some("-HUP")),
        ("SIGQUIT", &guest, b"", Some("-QUIT")),
        ("SIGABRT", &guest, b"", Some("-ABRT")),
        ("a triple fault", &crashing, b"", None),
    ];
    for (way, guest, typed, signal) in ways {
        let pty = Pty::open().unwrap();
        let cooked = Command::new("stty").arg("-F").arg(pty.name()).args(["sane", "-echo"]).status().unwrap();
        assert!(cooked.success());
        let before = settings(&pty);
        let output = scratch.path("output");
        let mut child = Command::new(session::bivisor())
            .args([
                "-accel",
                "tcg",
                "-m",
                "16",
                "-nographic",
                "-device",
                EXIT_DEVICE,
                "-kernel",
                guest.to_str().unwrap(),
            ])
            .stdin(pty.terminal().try_clone().unwrap())
            .stdout(File::create(&output).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while guest.ends_with("guest") && std::fs::read(&output).unwrap() != b"ready\n" {
            assert!(begun.elapsed() < LIMIT, "{way}: no output");
            std::thread::sleep(Duration::from_millis(5));
        }
        if guest.ends_with("guest") {
            assert_ne!(settings(&pty), before, "{way}: raw mode");
        }
        pty.master().write_all(typed).unwrap();
        if let Some(signal) = signal {
            terminate(child.id(), signal);
        }
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > LIMIT {
                // A signal that was ignored when the tests were started stays so.
                child.kill().unwrap();
                panic!("{way}: it goes on");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(settings(&pty), before, "{way}");
    }
}

#[test]
fn a_fall_back_is_one_line() {
    let scratch = Scratch::new("fallback");
    let guest = tiny_guest::write(&scratch, "guest", &[&out8(COM1, b'.'), &out8(EXIT, 4), &halt()]);
    for device in ["/no/such/kvm", "/dev/null"] {
        let outcome = start(&format!("kvm:tcg,device={device}"), &guest, &[]).finish();
        outcome.check(outcome.status.code() == Some(9), device);
        let lines: Vec<&str> = outcome.stderr.lines().collect();
        outcome.check(lines.len() == 1 && lines[0].starts_with("bivisor: falling back to tcg: "), device);
        outcome.check(lines[0].contains(device), device);
    }
}

#[test]
fn a_pseudo_terminal_may_come_and_go() {
    let scratch = Scratch::new("pty");
    let guest = tiny_guest::write(&scratch, "guest", &[&echo_until_q(), &out8(EXIT, 3)]);
    let mut child = Command::new(session::bivisor())
        .args(["-accel", "tcg", "-m", "16", "-display", "none", "-serial", "pty", "-device", EXIT_DEVICE])
        .args(["-kernel", guest.to_str().unwrap()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let name = line
        .strip_prefix("char device redirected to ")
        .and_then(|rest| rest.strip_suffix(" (label serial0)\n"));
    let name = name.unwrap_or_else(|| panic!("{line:?}")).to_owned();
    // The escape character is a byte like any other here.
    for text in [&b"first\x01x\r\n"[..], b"second"] {
        let mut user = File::options().read(true).write(true).open(&name).unwrap();
        user.write_all(text).unwrap();
        let mut echo = vec![0; text.len()];
        user.read_exact(&mut echo).unwrap();
        assert_eq!(echo, text);
    }
    File::options().write(true).open(&name).unwrap().write_all(b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}
