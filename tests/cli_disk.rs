//! Bad disks: each is refused in one line that names it, with exit code 1, and nothing is created.

#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tiny_guest;

use std::path::Path;

use support::{Refusal, Scratch, bivisor, refuse};

/// Refused with a kernel that is there, and with every named text in the one line.
#[track_caller]
fn refused(scratch: &Scratch, words: &[&str], named: &[&str]) {
    let kernel = tiny_guest::write(scratch, "kernel", &[&tiny_guest::halt()]);
    let words = [&["-accel", "tcg", "-kernel", text(&kernel)], words].concat();
    let Refusal { stderr, .. } = refuse(&words);
    for text in named {
        assert!(stderr.contains(text), "{words:?}: {stderr:?} does not name {text:?}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn images_that_cannot_be_used() {
    let scratch = Scratch::new("cli_images");
    let absent = scratch.path("absent");
    let drive = |path: &Path| format!("file={},format=raw", text(path));
    refused(&scratch, &["-drive", &drive(&absent)], &["absent", "cannot be opened: No such file"]);
    assert!(!absent.exists(), "it was created");
    refused(&scratch, &["-hda", text(&absent)], &["-hda ", "No such file"]);
    refused(&scratch, &["-drive", &drive(Path::new("/"))], &["is a folder"]);
    refused(&scratch, &["-drive", "file=/dev/null,format=raw"], &["a character device"]);
    let qcow2 = scratch.write("image", b"QFI\xfb\0\0\0\x03and so on");
    refused(&scratch, &["-hda", text(&qcow2)], &["looks like a qcow2 image", "format=qcow2"]);
    let short = format!("file={},format=qcow2", text(&qcow2));
    refused(&scratch, &["-drive", &short], &["not a usable qcow2 image", "shorter than a header"]);
    let noise = scratch.write("noise", &[7; 4096]);
    let noise = format!("file={},format=qcow2", text(&noise));
    refused(&scratch, &["-drive", &noise], &["noise", "it does not begin as one"]);
}

#[test]
fn an_image_in_use_is_refused() {
    let scratch = Scratch::new("cli_image_in_use");
    let image = scratch.write("image", &[0; 4096]);
    let first = format!("file={},format=raw,if=none,id=a", text(&image));
    let second = format!("file={},format=raw,if=none,id=b", text(&image));
    refused(&scratch, &["-drive", &first, "-drive", &second], &["in use by another process"]);
    assert_eq!(std::fs::read(&image).expect("it is there"), [0; 4096]);
}

#[test]
fn options_of_disks() {
    let scratch = Scratch::new("cli_disk_options");
    let image = scratch.write("image", &[0; 4096]);
    let drive = format!("file={},format=raw,if=none,id=d", text(&image));
    refused(&scratch, &["-device", "virtio-blk-device,drive=d"], &["there is no drive 'd'"]);
    refused(&scratch, &["-device", "virtio-rng-device,rng=r"], &["there is no object 'r'"]);
    let device = ["-device", "virtio-blk,drive=d"];
    refused(&scratch, &[&["-drive", &drive][..], &device, &device].concat(), &["drive 'd'"]);
    refused(
        &scratch,
        &["-drive", &drive, "-device", "virtio-blk,drive=d,seriel=x"],
        &["did you mean 'serial'?"],
    );
    refused(&scratch, &["-drive", &(drive.clone() + ",cach=none")], &["did you mean 'cache'?"]);
    refused(
        &scratch,
        &["-object", "rng-random,id=r,filename=/no/such", "-device", "virtio-rng,rng=r"],
        &["/no/such"],
    );
}

#[test]
fn help_lists_devices_and_their_properties() {
    let output = bivisor(&["-device", "help"]);
    let listed = String::from_utf8(output.stdout).expect("text");
    assert!(
        output.status.success()
            && listed.contains("virtio-blk-device, virtio-blk-pci (or virtio-blk): a disk"),
        "{listed}"
    );
    let output = bivisor(&["-device", "virtio-blk-device,help"]);
    let listed = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && listed.contains("\n  serial="), "{listed}");
}
