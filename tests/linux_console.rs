//! Whole machine: Linux's console on a virtio-console under `-accel tcg`, ports on sockets whose clients come and go, a serial port on
//! a socket, and a balloon that gives free memory back to the host; on virtio-mmio, and on PCI.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::guests::fetch;
use harness::linux::Linux;
use harness::log::complaints;
use harness::session::Session;
use support::Scratch;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(900);
const STREAM_BYTES: usize = 16 << 20;

/// Has the guest do a job.
#[track_caller]
fn job(session: &mut Session, job: &str) {
    session.send(&format!("{job}\n"));
    let name = job.split(' ').next().expect("a job has a name");
    session.wait_for(&format!("BIVISOR-CONSOLE-END {name} status=0"));
}

fn connect(path: &Path) -> UnixStream {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
                return stream;
            }
            Err(error) => assert!(begun.elapsed() < LIMIT, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sends `bytes` and reads them back.
fn echoes(stream: &UnixStream, bytes: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(|| (&*stream).write_all(bytes).expect("the guest reads everything"));
        let mut got = vec![0; bytes.len()];
        (&*stream).read_exact(&mut got).expect("the guest sends it back");
        assert!(got == bytes, "what comes back is not what was sent");
    });
}

fn stream(seed: u32) -> Vec<u8> {
    (0..STREAM_BYTES as u32).map(|n| ((n ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Pages of the process that are in memory, in MiB.
fn resident_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
    line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") >> 10
}

#[test]
fn consoles_ports_and_a_balloon() {
    if !fetch("consoles_ports_and_a_balloon", &["cloud", "console"]) {
        return;
    }
    let scratch = Scratch::new("linux_console");
    let [one, two, serial] = ["one", "two", "serial"].map(|name| scratch.path(name));
    let server = |id: &str, path: &Path| format!("socket,id={id},path={},server=on,wait=off", path.display());
    let (first, second, com1) = (server("one", &one), server("two", &two), server("com1", &serial));
    let machine = Linux {
        accel: "tcg",
        megabytes: "512",
        kernel: "vmlinuz-cloud",
        initrd: "console.gz",
        append: "console=ttyS0 console=hvc0 panic=-1",
        #[rustfmt::skip]
        more: &[
            "-chardev", "stdio,id=con,signal=off", "-chardev", &first, "-chardev", &second, "-chardev", &com1,
            "-serial", "chardev:com1", "-device", "virtio-serial-device,id=vs,max_ports=5",
            "-device", "virtconsole,chardev=con", "-device", "virtserialport,chardev=one,name=org.bivisor.one",
            "-device", "virtio-serial-pci,id=vp",
            "-device", "virtserialport,chardev=two,name=org.bivisor.two,bus=vp.0,nr=4",
            "-device", "virtio-balloon-pci,free-page-reporting=on,deflate-on-oom=on",
            "-M", "microvm,pcie=on", "-smp", "2",
        ],
    };
    let mut session = machine.boot(LIMIT);
    session.wait_for("BIVISOR-CONSOLE-READY");
    job(&mut session, "echo org.bivisor.one");
    job(&mut session, "echo org.bivisor.two");

    // Both at once, all the bytes there and back.
    let begun = Instant::now();
    let (a, b) = (connect(&one), connect(&two));
    std::thread::scope(|scope| {
        scope.spawn(|| echoes(&a, &stream(1)));
        echoes(&b, &stream(2));
    });
    println!("16 MiB there and back on two ports: {:.2} s", begun.elapsed().as_secs_f64());
    // Clients go, and others come.
    drop(a);
    for seed in 3..6 {
        let again = connect(&one);
        echoes(&again, &stream(seed)[..100_000]);
        again.shutdown(Shutdown::Both).expect("it is connected");
    }
    echoes(&b, b"still here");

    let com1 = connect(&serial);
    session.send("serial\n");
    let mut line = String::new();
    BufReader::new(&com1).read_line(&mut line).expect("the guest says something");
    assert_eq!(line.trim_end(), "hello from ttyS0");
    (&com1).write_all(b"hello, guest\n").expect("the guest is there");
    session.wait_for("ttyS0 heard: hello, guest");

    job(&mut session, "fill 256");
    let full = resident_mib(session.pid());
    job(&mut session, "free");
    // The guest reports a few seconds later.
    let mut left = full;
    let begun = Instant::now();
    while left + 200 > full {
        assert!(begun.elapsed() < LIMIT, "{full} MiB were resident, and {left} MiB are");
        std::thread::sleep(Duration::from_millis(200));
        left = resident_mib(session.pid());
    }
    println!("resident: {full} MiB full, {left} MiB after {:.1} s", begun.elapsed().as_secs_f64());

    // What was given back can be had again.
    job(&mut session, "fill 200");
    session.send("off\n");
    let outcome = session.finish();
    outcome.check(!outcome.serial.contains("BIVISOR-NO-MODULE"), "a module is missing");
    // The kernel's messages, too; but it takes its virtio devices away before it says its last.
    outcome.check(outcome.serial.contains("Free page reporting enabled"), "hvc0 is not the kernel's console");
    let mut last = String::new();
    (&com1).read_to_string(&mut last).expect("the kernel's other console speaks text");
    outcome.check(outcome.status.code() == Some(0), "the exit code is not 0");
    outcome.check(last.contains("reboot: Power down"), "the guest did not power off");
    for log in [&outcome.serial, &last] {
        let complaints = complaints(log, &[]);
        outcome.check(complaints.is_empty(), &format!("the log complains: {complaints:#?}"));
    }
}
