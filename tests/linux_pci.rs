//! Whole machine: Linux uses virtio devices on PCI (ECAM, ACPI, MSI-X or INTx) on `-M q35` and on `-M microvm,pcie=on`, under
//! `-accel tcg`: a disk of two queues, a network card, random bytes; and it reboots.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use harness::guests::fetch;
use harness::linux::{Linux, ended_well};
use harness::session::Outcome;
use support::Scratch;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(400);

const JOBS: &str = "functions,disk,net,rng,rescan,interrupts,again";

#[track_caller]
fn run(append: &str, more: &[&str]) -> Outcome {
    let append = format!("console=ttyS0 panic=-1 {append}");
    let machine = Linux {
        accel: "tcg",
        megabytes: "256",
        kernel: "vmlinuz-cloud",
        initrd: "pci.gz",
        append: &append,
        more,
    };
    let outcome = machine.boot(LIMIT).finish();
    outcome.check(!outcome.serial.contains("BIVISOR-NO-MODULE"), "a module is missing");
    ended_well(&outcome);
    println!("{more:?}: {:.2} s", outcome.elapsed.as_secs_f64());
    outcome
}

/// Whether a line comes this often.
#[track_caller]
fn says(outcome: &Outcome, count: usize, line: &str) {
    let found = outcome.serial.lines().filter(|found| *found == line).count();
    outcome.check(found == count, &format!("it says {found} times and not {count} times: {line}"));
}

/// A server on the host's loopback that sends so many connections the same text.
fn serve(count: usize) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for _ in 0..count {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let sent = stream.write_all(&vec![b'x'; 1 << 20]).and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = sent.and_then(|()| stream.read_to_end(&mut Vec::new()));
        }
    });
    port
}

/// What `md5sum` says of the text.
const SUM: &str = "b561f87202d04959e37588ee05cf5b10  -";

/// Boots with the devices and again, and finds everything on the bus and working both times; the device's functions come with
/// so many vectors.
#[track_caller]
fn everything_works(test: &str, machine: &str, bridges: &[&str], devices: &[&str], interrupts: &[&str]) {
    let scratch = Scratch::new(test);
    let disk = scratch.path("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(8 << 20)).expect("an empty image");
    let drive = format!("file={},format=raw,if=none,id=d", disk.display());
    let words = ["-M", machine, "-smp", "2", "-drive", &drive, "-netdev", "user,id=n0"];
    let append = format!("jobs={JOBS} get={}", serve(2));
    let outcome = run(&append, &[&words, devices].concat());
    for job in JOBS.split(',') {
        let times = if job == "again" { 1 } else { 2 };
        says(&outcome, times, &format!("BIVISOR-PCI-END {job} status=0"));
    }
    for line in bridges.iter().chain(interrupts) {
        says(&outcome, 2, line);
    }
    says(&outcome, 2, "disk: queues 2");
    says(&outcome, 1, "found the data of the time before");
    says(&outcome, 2, SUM);
    for complaint in ["can't claim BAR", "no space for", "failed to assign", "can't derive routing"] {
        outcome.check(!outcome.serial.contains(complaint), complaint);
    }
}

#[test]
fn q35_with_messages() {
    let test = "q35_with_messages";
    if !fetch(test, &["cloud", "pci"]) {
        return;
    }
    everything_works(
        test,
        "q35",
        &[
            "function 0000:00:00.0: 0x8086 0x29c0 0x060000  driver  messages 0",
            "function 0000:00:1f.0: 0x8086 0x2918 0x060100  driver  messages 0",
            "function 0000:00:01.0: 0x1af4 0x1041 0x020000  driver virtio-pci messages 3",
            "function 0000:00:03.0: 0x1af4 0x1042 0x010000  driver virtio-pci messages 3",
            "function 0000:00:03.1: 0x1af4 0x1044 0x00ff00  driver virtio-pci messages 2",
        ],
        &[
            "-device",
            "virtio-blk-pci,drive=d,num-queues=2,addr=3",
            "-device",
            "virtio-net,netdev=n0",
            "-device",
            "virtio-rng-pci,addr=3.1",
        ],
        &[
            "interrupt virtio0-input.0: PCI-MSI has come",
            "interrupt virtio1-req.0: PCI-MSI has come",
            "interrupt virtio1-req.1: PCI-MSI has come",
            "interrupt virtio2-input: PCI-MSI has come",
        ],
    );
}

/// Pins, of which two devices share one, beside virtio-mmio; and messages.
#[test]
fn microvm_with_pins_and_messages() {
    let test = "microvm_with_pins_and_messages";
    if !fetch(test, &["cloud", "pci"]) {
        return;
    }
    everything_works(
        test,
        "microvm,pcie=on",
        &[
            "function 0000:00:00.0: 0x1b36 0x0008 0x060000  driver  messages 0",
            "function 0000:00:01.0: 0x1af4 0x1042 0x010000  driver virtio-pci messages 0",
            "function 0000:00:02.0: 0x1af4 0x1041 0x020000  driver virtio-pci messages 3",
            "function 0000:00:09.0: 0x1af4 0x1044 0x00ff00  driver virtio-pci messages 0",
        ],
        &[
            "-device",
            "virtio-blk-pci,drive=d,num-queues=2,vectors=0",
            "-device",
            "virtio-net-pci,netdev=n0",
            "-device",
            "virtio-rng-pci,addr=9,vectors=0",
            "-device",
            "virtio-rng-device",
        ],
        &["interrupt virtio1-input.0: PCI-MSI has come"],
    );
}
