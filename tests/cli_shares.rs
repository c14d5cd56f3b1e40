//! Folders and sockets that cannot be had: each is refused in one line that names it, with exit code 1, and nothing is created.

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
fn folders_that_cannot_be_shared() {
    let scratch = Scratch::new("cli_folders");
    let file = scratch.write("file", b"");
    let absent = scratch.path("absent");
    let share = |path: &Path| format!("local,path={},mount_tag=t,security_model=none", text(path));
    refused(&scratch, &["-virtfs", &share(&absent)], &["absent: cannot be opened: No such file"]);
    assert!(!absent.exists(), "it was created");
    refused(&scratch, &["-virtfs", &share(&file)], &["file: is not a folder"]);
    let mapped = "local,path=/proc,mount_tag=t,security_model=mapped-xattr";
    refused(&scratch, &["-virtfs", mapped], &["no extended attributes", "security_model=mapped-xattr"]);
}

#[test]
fn options_of_folders() {
    let scratch = Scratch::new("cli_folder_options");
    let folder = text(&scratch.path("")).to_owned();
    let fsdev = |more: &str| format!("local,id=f,path={folder},security_model=none{more}");
    let device = ["-device", "virtio-9p-device,fsdev=f,mount_tag=t"];
    let with = |more: &str| [&["-fsdev".to_owned(), fsdev(more)][..], &device.map(String::from)].concat();
    let words = |words: &[String]| words.to_vec();
    for (words, named) in [
        (words(&device.map(String::from)), "there is no -fsdev with id=f"),
        (words(&with(",readonly=maybe")), "readonly= takes on or off"),
        (words(&with(",security_model=mapped-file")), "mapped-file: not built yet"),
        (words(&with(",mulitdevs=warn")), "did you mean 'multidevs'?"),
        ([with(""), vec!["-fsdev".into(), fsdev("")]].concat(), "there are two with id=f"),
        ([with(""), vec!["-icount".into(), "shift=1".into()]].concat(), "say readonly=on"),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(&scratch, &words, &[named]);
    }
    let help = bivisor(&["-device", "virtio-9p-device,help"]);
    let help = String::from_utf8(help.stdout).expect("text");
    assert!(help.contains("mount_tag=") && help.contains("fsdev="), "{help}");
}

#[test]
fn sockets_that_cannot_be_had() {
    let scratch = Scratch::new("cli_vsock");
    let file = scratch.write("file", b"");
    let device = |path: &Path| format!("virtio-vsock-device,guest-cid=3,socket={}", path.display());
    refused(&scratch, &["-device", &device(Path::new("/nowhere/v"))], &["/nowhere/v", "No such file"]);
    // Whether the name is short enough depends on where the target folder is: this one is not.
    let long = Path::new("/tmp").join("x".repeat(120));
    refused(&scratch, &["-device", &device(&long)], &["too long for a socket"]);
    if text(&file).len() < 90 {
        refused(&scratch, &["-device", &device(&file)], &["there is a file already"]);
    }
    let folder = std::env::temp_dir().join(format!("bivisor-cli-vsock-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let socket = folder.join("v");
    // Something else is refused: the socket is not made.
    let words = ["-device", &device(&socket), "-pidfile", "/nowhere/pid"];
    refused(&scratch, &words, &["/nowhere/pid"]);
    assert!(!socket.exists(), "it was created");
    let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
    refused(&scratch, &["-device", &device(&socket)], &["a socket to which a program listens already"]);
    drop(listener);
    refused(&scratch, &["-device", &device(&socket), "-icount", "shift=1"], &["vsock is not recorded"]);
    std::fs::remove_dir_all(&folder).expect("it is there");
}

/// Those of the host's kernel.
#[test]
fn streams_of_the_kernel_that_cannot_be_had() {
    let scratch = Scratch::new("cli_vhost_vsock");
    let device = "vhost-vsock-device,guest-cid=3";
    if !Path::new("/dev/vhost-vsock").exists() {
        let named = &["-device vhost-vsock: /dev/vhost-vsock: No such file"];
        refused(&scratch, &["-device", device], named);
    }
    let closed = format!("{device},vhostfd=77");
    refused(&scratch, &["-device", &closed], &["-device vhost-vsock: vhostfd=77 is not open"]);
    refused(&scratch, &["-device", device, "-icount", "shift=1"], &["vsock is not recorded"]);
    refused(&scratch, &["-device", "vhost-vsock-pci,guest-cid=3"], &["use vhost-vsock-device"]);
    let help = |words| String::from_utf8(bivisor(words).stdout).expect("text");
    assert!(help(&["-device", "help"]).contains("vhost-vsock-device, vhost-vsock-pci"));
    assert!(help(&["-device", "vhost-vsock-pci,help"]).contains("guest-cid="));
}
