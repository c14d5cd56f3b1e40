//! Whole machine: bivisor is killed (SIGKILL) at random moments while a guest under `-accel tcg` writes with all its might; every
//! file whose fsync had returned is there and whole at the next boot, and the image is in order.
//!
//! BIVISOR_KILLS: how often (4 times otherwise). BIVISOR_SEED: what the random moments follow from; it is printed.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::guests::{fetch, installed};
use harness::linux::{Linux, ended_well};
use harness::session::{Outcome, Session};
use support::Scratch;

/// For one boot. A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(400);

/// Bytes of the disk: less than all that is written, so that space is used again.
const DISK_BYTES: u64 = 96 << 20;

/// Numbers that follow from a seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// What the guest has said is on the disk for good: the version of each file, the records of each journal.
#[derive(Default)]
struct Promised(BTreeMap<String, u64>);

impl Promised {
    /// What whole lines of the console say that begin with one of the words.
    fn read(serial: &str, file: &str, journal: &str) -> BTreeMap<String, u64> {
        let mut said = BTreeMap::new();
        for line in serial.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let words: Vec<&str> = line.split(' ').collect();
            let (name, value) = match words[..] {
                [word, folder, name, version] if word == file => (format!("file {folder}/{name}"), version),
                [word, folder, count] if word == journal => (format!("journal {folder}"), count),
                _ => continue,
            };
            said.insert(name, value.parse().expect("the guest says numbers"));
        }
        said
    }

    /// Nothing less is there now. How much was promised.
    #[track_caller]
    fn are_kept(&self, outcome: &Outcome) -> usize {
        outcome.check(!outcome.serial.contains("torn "), "a file is not whole");
        outcome.check(!outcome.serial.contains("BIVISOR-NO-"), "the guest has no module, or no file system");
        let found = Self::read(&outcome.serial, "found", "found-records");
        for (what, promised) in &self.0 {
            let there = found.get(what).copied().unwrap_or(0);
            let why = format!("{what}: {promised} was to last, {there} is there");
            outcome.check(there >= *promised, &why);
        }
        self.0.len()
    }

    /// What was said until a kill counts from now on. How often it was said.
    fn add(&mut self, outcome: &Outcome) -> usize {
        self.0.extend(Self::read(&outcome.serial, "kept", "appended"));
        let lines = outcome.serial.lines();
        lines.filter(|line| line.starts_with("kept ") || line.starts_with("appended ")).count()
    }
}

/// A disk in an image.
struct Disk {
    format: &'static str,
    image: PathBuf,
}

impl Disk {
    fn new(scratch: &Scratch, format: &'static str) -> Self {
        let raw = scratch.path("raw");
        File::create(&raw).and_then(|file| file.set_len(DISK_BYTES)).expect("an empty image");
        tool("mke2fs", &["-q", "-t", "ext4", text(&raw)]);
        let image = scratch.path("image");
        tool("qemu-img", &["convert", "-O", format, text(&raw), text(&image)]);
        Self { format, image }
    }

    fn boot(&self, job: &str, cpus: &str) -> Session {
        let drive =
            format!("file={},format={},if=none,id=d,discard=unmap", self.image.display(), self.format);
        Linux {
            accel: "tcg",
            megabytes: "256",
            kernel: "vmlinuz-cloud",
            initrd: "durable.gz",
            append: &format!("console=ttyS0 loglevel=4 panic=-1 job={job}"),
            #[rustfmt::skip]
            more: &[
                "-smp", cpus, "-drive", &drive,
                "-device", &format!("virtio-blk-device,drive=d,num-queues={cpus}"),
            ],
        }
        .boot(LIMIT)
    }

    /// No cluster is lost or used twice. Some may be taken and not used: nobody had the time to give them back.
    #[track_caller]
    fn is_in_order(&self) {
        if self.format == "qcow2" {
            let output =
                Command::new("qemu-img").args(["check", text(&self.image)]).output().expect("it runs");
            let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(matches!(output.status.code(), Some(0 | 3)), "{}: {printed}", output.status);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the target folder's name is text")
}

#[track_caller]
fn tool(program: &str, words: &[&str]) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).env("PATH", path).args(words).output().expect("it is installed");
    let printed = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {printed}");
}

fn killed_again_and_again(test: &str, format: &'static str) {
    if !fetch(test, &["cloud", "durable"]) || !installed(test, "qemu-img") {
        return;
    }
    let kills = number("BIVISOR_KILLS").unwrap_or(4);
    let seed = number("BIVISOR_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{test}: BIVISOR_KILLS={kills} BIVISOR_SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let scratch = Scratch::new(test);
    let disk = Disk::new(&scratch, format);
    let mut promised = Promised::default();
    for kill in 1..=kills {
        let cpus = ["1", "2"][random.below(2) as usize];
        if kill % 4 == 0 {
            // And while the guest recovers from the time before.
            let mut guest = disk.boot("write", cpus);
            guest.wait_for("BIVISOR-DURABLE-MOUNT");
            std::thread::sleep(Duration::from_millis(random.below(200)));
            let outcome = guest.kill();
            disk.is_in_order();
            promised.add(&outcome);
        }
        let mut guest = disk.boot("write", cpus);
        guest.wait_for("appended");
        std::thread::sleep(Duration::from_millis(random.below(2500)));
        let outcome = guest.kill();
        disk.is_in_order();
        let kept = promised.are_kept(&outcome);
        let synced = promised.add(&outcome);
        println!(
            "{test}: kill {kill}, {cpus} CPUs: {kept} files and journals as promised, then {synced} syncs"
        );
    }
    let outcome = disk.boot("check", "1").finish();
    promised.are_kept(&outcome);
    ended_well(&outcome);
    disk.is_in_order();
    let flat = scratch.path("flat");
    tool("qemu-img", &["convert", "-f", format, "-O", "raw", text(&disk.image), text(&flat)]);
    tool("e2fsck", &["-fn", text(&flat)]);
}

#[test]
fn what_was_synced_is_there_after_kills_raw() {
    killed_again_and_again("what_was_synced_is_there_after_kills_raw", "raw");
}

#[test]
fn what_was_synced_is_there_after_kills_qcow2() {
    killed_again_and_again("what_was_synced_is_there_after_kills_qcow2", "qcow2");
}
