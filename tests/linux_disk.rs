//! Whole machine: Linux uses disks (virtio-blk on virtio-mmio, described by ACPI) under `-accel tcg`: what it writes is in the
//! image, what it reads is executed, and what is to be thrown away is.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::guests::{fetch, path};
use harness::linux::{Linux, ended_well};
use harness::session::Outcome;
use support::Scratch;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(400);

/// A copy of the test's file system.
fn file_system(scratch: &Scratch, name: &str) -> String {
    let copy = scratch.path(name);
    std::fs::copy(path("disk.ext4"), &copy).expect("fetch.sh makes it");
    copy.to_str().expect("text").to_owned()
}

#[track_caller]
fn run_with(accel: &str, jobs: &str, more: &[&str]) -> Outcome {
    let append = format!("console=ttyS0 panic=-1 jobs={jobs}");
    let machine =
        Linux { accel, megabytes: "256", kernel: "vmlinuz-cloud", initrd: "disk.gz", append: &append, more };
    let outcome = machine.boot(LIMIT).finish();
    for job in jobs.split(',') {
        let end = format!("BIVISOR-DISK-END {job} status=0\n");
        outcome.check(outcome.serial.contains(&end), &format!("{job} did not end well"));
    }
    outcome.check(!outcome.serial.contains("BIVISOR-NO-MODULE"), "a module is missing");
    for complaint in ["I/O error", "EXT4-fs error", "Buffer I/O"] {
        outcome.check(!outcome.serial.contains(complaint) || jobs.contains("readonly"), complaint);
    }
    ended_well(&outcome);
    println!("{accel} {jobs} {more:?}: {:.2} s", outcome.elapsed.as_secs_f64());
    outcome
}

#[track_caller]
fn run(jobs: &str, more: &[&str]) -> Outcome {
    run_with("tcg", jobs, more)
}

#[track_caller]
fn is_clean(image: &str) {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new("e2fsck").env("PATH", path).args(["-fn", image]).output().expect("e2fsck runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[track_caller]
fn says(outcome: &Outcome, line: &str) {
    outcome.check(outcome.serial.contains(&format!("\n{line}\n")), &format!("it does not say: {line}"));
}

fn names(test: &str) -> Option<Scratch> {
    fetch(test, &["cloud", "disk"]).then(|| Scratch::new(test))
}

#[test]
fn what_is_written_is_there_after_a_reboot() {
    let Some(scratch) = names("what_is_written_is_there_after_a_reboot") else { return };
    let image = file_system(&scratch, "image");
    let outcome = run("write", &["-drive", &format!("file={image},format=raw")]);
    says(&outcome, "written, rebooting");
    says(&outcome, "found the data of the time before");
    is_clean(&image);
}

/// Code arrives by DMA in pages from which other code was translated before.
#[test]
fn programs_run_from_a_disk() {
    let Some(scratch) = names("programs_run_from_a_disk") else { return };
    let image = file_system(&scratch, "image");
    says(&run("run,copy", &["-hda", &image]), "ran 36 programs");
    is_clean(&image);
}

#[test]
fn programs_run_from_a_disk_with_four_cpus() {
    let Some(scratch) = names("programs_run_from_a_disk_with_four_cpus") else { return };
    let image = file_system(&scratch, "image");
    #[rustfmt::skip]
    let words = ["-smp", "4", "-drive", &format!("file={image},format=raw,if=none,id=d"),
        "-device", "virtio-blk-device,drive=d,num-queues=4"];
    says(&run("run,copy", &words), "ran 36 programs");
    is_clean(&image);
}

/// Guest time is what was executed, and devices answer when it says so: one run is as the other.
#[test]
fn counted_runs_from_a_disk_are_the_same() {
    let Some(scratch) = names("counted_runs_from_a_disk_are_the_same") else { return };
    let counted = || {
        let image = file_system(&scratch, "image");
        let words = ["-icount", "shift=1,sleep=off", "-d", "icount", "-hda", &image];
        let outcome = run("devices,copy,run", &words);
        let count = outcome.stderr.lines().find(|line| line.contains("instructions")).map(str::to_owned);
        (outcome.serial, count.expect("-d icount says it"))
    };
    let (one, other) = (counted(), counted());
    assert_eq!(one.1, other.1);
    assert!(one.0 == other.0, "the consoles differ");
}

#[test]
fn devices_are_as_they_were_asked_for() {
    let Some(scratch) = names("devices_are_as_they_were_asked_for") else { return };
    let (image, second) = (file_system(&scratch, "image"), scratch.path("second"));
    std::fs::File::create(&second).and_then(|file| file.set_len(8 << 20)).expect("an empty image");
    let second = format!("driver=raw,file.driver=file,file.filename={},node-name=n", second.display());
    #[rustfmt::skip]
    let words = [
        "-drive", &format!("file={image},format=raw,readonly=on"), "-blockdev", &second,
        "-device", "virtio-blk-device,drive=n,serial=S1,num-queues=2,physical_block_size=4096",
        "-device", "virtio-rng-device", "-smp", "2",
    ];
    let outcome = run("devices,raw,rng,readonly", &words);
    says(
        &outcome,
        "vda: sectors 131072 ro 1 serial '' blocks 512/512 cache 'write through' queues 1 discard no",
    );
    says(
        &outcome,
        "vdb: sectors 16384 ro 0 serial 'S1' blocks 512/4096 cache 'write back' queues 2 discard yes",
    );
    says(&outcome, "rng: virtio_rng.0");
}

#[test]
fn a_snapshot_leaves_the_image_as_it_is() {
    let Some(scratch) = names("a_snapshot_leaves_the_image_as_it_is") else { return };
    let image = file_system(&scratch, "image");
    let before = std::fs::read(&image).expect("the image");
    let outcome = run("write", &["-snapshot", "-drive", &format!("file={image},format=raw")]);
    says(&outcome, "found the data of the time before");
    run("copy", &["-drive", &format!("file={image},format=raw,snapshot=on,readonly=off")]);
    assert!(std::fs::read(&image).expect("the image") == before, "the image has changed");
}

#[test]
fn free_space_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let Some(scratch) = names("free_space_is_given_back") else { return };
    let (image, second) = (file_system(&scratch, "image"), scratch.path("second"));
    std::fs::write(&second, vec![0x55; 4 << 20]).expect("an image");
    let drive = |file: &Path| format!("file={},format=raw,discard=unmap", file.display());
    let outcome = run("discard", &["-drive", &drive(Path::new(&image)), "-drive", &drive(&second)]);
    outcome.check(std::fs::metadata(&second).expect("it is there").blocks() < 100, "no space was given back");
    is_clean(&image);
}

#[test]
fn direct_and_write_through_disks_work() {
    let Some(scratch) = names("direct_and_write_through_disks_work") else { return };
    for cache in ["none", "directsync", "writethrough", "unsafe"] {
        let image = file_system(&scratch, "image");
        run("write", &["-drive", &format!("file={image},format=raw,cache={cache}")]);
        is_clean(&image);
    }
}

/// qcow2 with a backing file; made by qemu-img, which also checks what is left.
#[test]
fn a_qcow2_image_works() {
    let test = "a_qcow2_image_works";
    let Some(scratch) = names(test) else { return };
    if !harness::guests::installed(test, "qemu-img") {
        return;
    }
    let base = file_system(&scratch, "base");
    let image = scratch.path("image.qcow2");
    let image = image.to_str().expect("text");
    let qemu_img = |words: &[&str]| {
        let output = Command::new("qemu-img").args(words).output().expect("qemu-img runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", image]);
    let before = std::fs::read(&base).expect("the base");
    let drive = format!("file={image},format=qcow2");
    says(&run("write", &["-drive", &drive]), "found the data of the time before");
    says(&run("write,run", &["-drive", &drive]), "ran 36 programs");
    qemu_img(&["check", "-q", image]);
    assert!(std::fs::read(&base).expect("the base") == before, "the backing file has changed");
    let flat = scratch.path("flat");
    qemu_img(&["convert", "-O", "raw", image, flat.to_str().expect("text")]);
    is_clean(flat.to_str().expect("text"));
}
