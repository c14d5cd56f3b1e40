//! Whole machine: a Debian 12 as debootstrap installs it (systemd, Debian's kernels and the initramfs images that its
//! initramfs-tools made) lives on a disk under `-accel tcg`: it boots to a login prompt, gets its address by DHCP, lets people in
//! by ssh, installs a package with apt, reboots, finds what it wrote and powers off; its file system is clean then.
//!
//! Both machines and both formats in two lives; BIVISOR_DEBIAN_FULL=1: in all four.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use harness::guests::{fetch, installed, path};
use harness::http::{Files, serve};
use harness::linux::{Linux, ended_well};
use harness::session::Session;
use support::Scratch;

/// For a whole life. A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(1500);

/// The name of the package, and of its folder.
const PARCEL: &str = "bivisor-parcel";

/// Runs a program to its success, and returns what it prints.
#[track_caller]
fn tool(program: &str, words: &[&str]) -> String {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).env("PATH", path).args(words).output().expect("it is installed");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {printed}{complaints}");
    printed
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the target folder's name is text")
}

fn sha256(path: &Path) -> String {
    let printed = tool("sha256sum", &[text(path)]);
    printed.split_whitespace().next().expect("a sum").to_owned()
}

/// An archive with one package, as apt reads it, and the sum of what the package installs.
fn archive(scratch: &Scratch) -> (Files, String) {
    let folder = scratch.path(PARCEL);
    let inside = folder.join("usr/share").join(PARCEL);
    std::fs::create_dir_all(folder.join("DEBIAN")).expect("the folder is ours");
    std::fs::create_dir_all(&inside).expect("the folder is ours");
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let data: Vec<u8> = (0..6 << 20).map(next).collect();
    std::fs::write(inside.join("data"), data).expect("the folder is ours");
    let about = format!(
        "Package: {PARCEL}\nVersion: 1.0\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\n\
         Depends: libc6, systemd\nDescription: what a test installs\n"
    );
    let script = format!("#!/bin/sh\nset -e\nuname -r >/usr/share/{PARCEL}/configured\n");
    std::fs::write(folder.join("DEBIAN/control"), &about).expect("the folder is ours");
    let postinst = scratch.path("postinst");
    std::fs::write(&postinst, script).expect("the folder is ours");
    tool("install", &["-m", "755", text(&postinst), text(&folder.join("DEBIAN/postinst"))]);
    let name = format!("{PARCEL}_1.0_amd64.deb");
    let package = scratch.path(&name);
    tool("dpkg-deb", &["--root-owner-group", "--build", text(&folder), text(&package)]);
    let bytes = std::fs::read(&package).expect("it was made");
    let index = format!("{about}Filename: ./{name}\nSize: {}\nSHA256: {}\n", bytes.len(), sha256(&package));
    let list = scratch.write("Packages", index.as_bytes());
    let release = format!(
        "Origin: test\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n {} {} Packages\n",
        sha256(&list),
        index.len()
    );
    let files = [(name, bytes), ("Packages".into(), index.into()), ("Release".into(), release.into())];
    (files.into(), sha256(&inside.join("data")))
}

/// A way in by ssh, through a forwarded port.
struct Door {
    port: String,
}

impl Door {
    fn words<'a>(&'a self, key: &'a str, script: &'a str) -> Vec<&'a str> {
        let mut words = vec!["-i", key, "-p", &self.port];
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=100",
        ] {
            words.extend(["-o", option]);
        }
        words.extend(["root@127.0.0.1", script]);
        words
    }

    /// What a shell script prints in the guest, where every command of it must succeed. sshd may not be there yet.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let key = path("debian.key");
        while !Session::start("ssh", &self.words(&key, "true"), LIMIT).finish().status.success() {
            std::thread::sleep(Duration::from_millis(300));
        }
        let script = format!("set -e\n{script}");
        let outcome = Session::start("ssh", &self.words(&key, &script), LIMIT).finish();
        outcome.check(outcome.status.success(), "the script failed in the guest");
        outcome.serial
    }
}

#[track_caller]
fn says(printed: &str, line: &str) {
    assert!(printed.lines().any(|found| found == line), "it does not say {line:?}:\n{printed}");
}

/// The whole of it, on a disk in this format on this machine, with a kernel of this flavour.
#[track_caller]
fn life(machine: &str, format: &str, flavour: &str, cpus: &str) {
    let test = format!("a Debian on {format}, {machine}");
    let tools = ["ssh", "e2fsck", "qemu-img"];
    if !fetch(&test, &["debian"]) || !tools.iter().all(|tool| installed(&test, tool)) {
        return;
    }
    let scratch = Scratch::new(&format!("debian-{machine}-{format}"));
    let (files, sum) = archive(&scratch);
    let archive = serve(files);
    let image = scratch.path("image");
    tool("qemu-img", &["convert", "-O", format, &path("debian.ext4"), text(&image)]);
    // A port that is free now: nothing else on the host is about to take it.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("there is one");
    let door = Door { port: free.port().to_string() };
    let (drive, nic) = (
        format!("file={},format={format},if=virtio", image.display()),
        format!("user,hostfwd=tcp:127.0.0.1:{}-:22", door.port),
    );
    let mut guest = Linux {
        accel: "tcg",
        megabytes: "1024",
        kernel: &format!("debian-{flavour}.vmlinuz"),
        initrd: &format!("debian-{flavour}.initrd"),
        append: "root=/dev/vda ro console=ttyS0",
        more: &["-M", machine, "-smp", cpus, "-drive", &drive, "-nic", &nic],
    }
    .boot(LIMIT);

    guest.wait_for("debian login: ");
    let printed = door.run(&format!(
        "ip -4 -o address show scope global
        echo 'deb [trusted=yes] http://10.0.2.2:{archive}/ ./' >/etc/apt/sources.list
        apt-get -q update
        apt-get -q -y install {PARCEL}
        cat /usr/share/{PARCEL}/configured
        sha256sum /usr/share/{PARCEL}/data
        mkdir /srv/written
        cd /srv/written
        for n in $(seq 200); do head -c $((n * 1000)) /dev/urandom >file-$n; done
        sha256sum file-* >sums
        echo state $(systemctl is-system-running --wait)
        systemctl --failed --quiet
        uname -r
        cat /proc/sys/kernel/random/boot_id >boot-id"
    ));
    assert!(printed.contains(" 10.0.2.15/24 ") && printed.contains(" dynamic "), "no lease:\n{printed}");
    says(&printed, &format!("{sum}  /usr/share/{PARCEL}/data"));
    says(&printed, "state running");
    let release = printed.lines().last().expect("uname prints it");
    assert_eq!(release.contains("-cloud-"), flavour == "cloud", "{printed}");
    assert_eq!(printed.lines().filter(|line| *line == release).count(), 2, "the package was not configured");

    // ssh may be cut off before the answer, which is as well.
    let key = path("debian.key");
    Session::start("ssh", &door.words(&key, "systemctl reboot"), LIMIT).finish();
    guest.wait_for("reboot: Restarting system");
    guest.wait_for("debian login: ");
    let printed = door.run(&format!(
        "cd /srv/written
        ! cmp -s boot-id /proc/sys/kernel/random/boot_id
        sha256sum -c --quiet sums
        echo files $(wc -l <sums)
        dpkg --verify {PARCEL}
        dpkg-query -W {PARCEL}
        echo state $(systemctl is-system-running --wait)
        echo errors $(journalctl --quiet --priority err --dmesg | wc -l)
        echo boots $(journalctl --list-boots --quiet | wc -l)"
    ));
    for line in ["files 200", &format!("{PARCEL}\t1.0"), "state running", "boots 2"] {
        says(&printed, line);
    }

    guest.send("root\r");
    guest.wait_for("Password: ");
    guest.send("debian\r");
    guest.wait_for("root@debian:~# ");
    guest.send("systemctl poweroff\r");
    let outcome = guest.finish();
    ended_well(&outcome);
    for trouble in ["FAILED", "DEPEND", "Timed out", "EXT4-fs error", "I/O error", "recovering journal"] {
        outcome.check(!outcome.serial.contains(trouble), trouble);
    }
    let flat = if format == "raw" { image } else { flatten(&scratch, &image) };
    tool("e2fsck", &["-fn", text(&flat)]);
    println!("{test}: {:.1} s", outcome.elapsed.as_secs_f64());
}

/// The disk in a qcow2 image, which is in order.
fn flatten(scratch: &Scratch, image: &Path) -> PathBuf {
    let flat = scratch.path("flat");
    tool("qemu-img", &["check", "-q", text(image)]);
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(image), text(&flat)]);
    flat
}

fn in_full() -> bool {
    std::env::var_os("BIVISOR_DEBIAN_FULL").is_some()
}

#[test]
fn a_debian_lives_on_a_raw_disk_on_q35() {
    life("q35", "raw", "generic", "2");
}

#[test]
fn a_debian_lives_on_a_qcow2_disk_on_microvm() {
    life("microvm", "qcow2", "cloud", "1");
}

#[test]
fn a_debian_lives_on_the_other_disks() {
    if in_full() {
        life("microvm", "raw", "generic", "1");
        life("q35", "qcow2", "cloud", "2");
    }
}
