//! Whole machine: Linux uses a folder that virtiofsd shares (vhost-user-fs) under `-accel tcg`: what one side writes the other reads,
//! programs are executed from it, a reboot begins anew, and a virtiofsd that ends takes nobody with it.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::guests::{fetch, path};
use harness::linux::{Linux, ended_well};
use harness::session::Session;
use support::{Scratch, refuse};

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(600);

/// A folder, virtiofsd that shares it, and its socket.
struct Shared {
    scratch: Scratch,
    daemon: Child,
    socket: PathBuf,
}

impl Shared {
    /// `None`: there is no virtiofsd, or it cannot run here, and the test has been reported as skipped.
    fn new(test: &str) -> Option<Self> {
        let folders = ["/usr/lib/qemu", "/usr/libexec", "/usr/bin"];
        let program = folders.iter().map(|folder| Path::new(folder).join("virtiofsd"));
        let Some(program) = program.into_iter().find(|program| program.is_file()) else {
            eprintln!(
                "SKIPPED {test}: virtiofsd is not installed (resources/prepare.sh --tests installs it)"
            );
            return None;
        };
        let scratch = Scratch::new(test);
        std::fs::create_dir(scratch.path("shared")).expect("the target folder is writable");
        let large: Vec<u8> = (0..20u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        scratch.write("shared/from-host", &large);
        scratch.write("secret", b"of the host\n");
        std::os::unix::fs::symlink("../secret", scratch.path("shared/out")).expect("a link");
        std::fs::copy(path("busybox"), scratch.path("shared/busybox")).expect("a copy");
        // The name of a socket is short, and the target folder's need not be.
        let socket = std::env::temp_dir().join(format!("bivisor-{test}-{}", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let mut daemon = Command::new(&program)
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", &format!("source={}", scratch.path("shared").display()), "-o", "sandbox=chroot"])
            .stdin(Stdio::null())
            .spawn()
            .expect("it is a program");
        let begun = Instant::now();
        while !socket.exists() {
            if let Some(status) = daemon.try_wait().expect("it is ours") {
                eprintln!("SKIPPED {test}: {} cannot run here: {status}", program.display());
                return None;
            }
            assert!(begun.elapsed() < LIMIT, "virtiofsd makes no socket");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self { scratch, daemon, socket })
    }

    fn boot(&self, device: &str, append: &str, more: &[&str]) -> Session {
        let append = format!("console=ttyS0 panic=-1 {append}");
        let chardev = format!("socket,id=c,path={}", self.socket.display());
        let device = format!("{device},chardev=c,tag=shared");
        let words = [&["-chardev", &chardev, "-device", &device], more].concat();
        let machine = Linux {
            accel: "tcg",
            megabytes: "384",
            kernel: "vmlinuz-cloud",
            initrd: "virtiofs.gz",
            append: &append,
            more: &words,
        };
        machine.boot(LIMIT)
    }

    /// What the guest says of the sum of `name`.
    fn sum(&self, name: &str) -> String {
        let output = Command::new("md5sum").arg(self.scratch.path("shared").join(name)).output();
        let output = output.expect("md5sum runs");
        let sum =
            String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a sum").to_owned();
        format!("sum of {name}: {sum}\n")
    }

    /// Boots and looks at what guest and host have of each other.
    fn check(&self, device: &str, append: &str, more: &[&str]) {
        let outcome = self.boot(device, append, more).finish();
        outcome
            .check(outcome.serial.contains("BIVISOR-VIRTIOFS-END status=0\n"), "the guest did not end well");
        outcome.check(!outcome.serial.contains("BIVISOR-NO-MODULE"), "a module is missing");
        ended_well(&outcome);
        println!("{device} {append}: {:.2} s", outcome.elapsed.as_secs_f64());
        let says = |text: &str, times: usize| {
            outcome.check(outcome.serial.matches(text).count() == times, &format!("{times} times: {text}"));
        };
        says(&self.sum("from-host"), 1);
        says(&self.sum("from-guest"), 2);
        // `seq 1000 | md5sum`
        says("53d025127ae99ab79e8502aae2d9bea6", 1);
        says("\nround 3\n", 1);
        says("\nmapped\n", 1);
        outcome.check(!outcome.serial.contains("of the host"), "the guest has read what it must not");
        let file = |name: &str| std::fs::read(self.scratch.path("shared").join(name)).expect("a file");
        for number in 1..=4 {
            assert!(file(&format!("copy{number}")) == file("from-host"));
        }
        let files = std::fs::read_dir(self.scratch.path("shared/many")).expect("a folder");
        assert_eq!(files.count(), 301, "300 files, one of them removed, and two links");
        assert_eq!(file("many/file300"), b"300\n");
        let mut mapped: Vec<u8> = (0..300_000).map(|n| (n * 7 / 3) as u8).collect();
        mapped[100_000..100_004].copy_from_slice(b"text");
        assert!(file("mapped") == mapped);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn a_folder_of_virtiofsd() {
    if !fetch("a_folder_of_virtiofsd", &["cloud", "virtiofs"]) {
        return;
    }
    let Some(shared) = Shared::new("a_folder_of_virtiofsd") else { return };
    shared.check("vhost-user-fs-device", "", &["-smp", "2"]);
}

/// In the midst of its work; and MSI-X.
#[test]
fn a_folder_of_virtiofsd_after_a_reboot() {
    if !fetch("a_folder_of_virtiofsd_after_a_reboot", &["cloud", "virtiofs"]) {
        return;
    }
    let Some(shared) = Shared::new("a_folder_of_virtiofsd_after_a_reboot") else { return };
    shared.check("vhost-user-fs-pci", "again=1", &["-M", "q35", "-smp", "2"]);
}

#[test]
fn a_virtiofsd_that_ends() {
    if !fetch("a_virtiofsd_that_ends", &["cloud", "virtiofs"]) {
        return;
    }
    let Some(mut shared) = Shared::new("a_virtiofsd_that_ends") else { return };
    let mut session = shared.boot("vhost-user-fs-device", "gone=1", &[]);
    session.wait_for("BIVISOR-VIRTIOFS-MOUNTED");
    shared.daemon.kill().expect("it runs");
    let outcome = session.finish();
    outcome.check(outcome.serial.contains("BIVISOR-VIRTIOFS-GONE"), "the guest does not see it");
    ended_well(&outcome);
    let line = "vhost-user-fs 'shared': the back end has gone";
    outcome.check(outcome.stderr.matches(line).count() == 1, "nobody is told, or often");
}

/// Nobody is there, or somebody who has no memory to work on.
#[test]
fn back_ends_that_cannot_be_used() {
    if !fetch("back_ends_that_cannot_be_used", &["cloud"]) {
        return;
    }
    let Some(shared) = Shared::new("back_ends_that_cannot_be_used") else { return };
    let kernel = path("vmlinuz-cloud");
    let chardev = format!("socket,id=c,path={}", shared.socket.display());
    let words = |chardev: &str, more: &[&str]| {
        let device = ["-device", "vhost-user-fs-device,chardev=c,tag=t"];
        let words = [&["-accel", "tcg", "-kernel", &kernel, "-chardev", chardev], &device[..], more].concat();
        refuse(&words).stderr
    };
    assert!(words("socket,id=c,path=/nowhere/at/all", &[]).contains("/nowhere/at/all"));
    assert!(words("socket,id=c,path=/s,server=on,wait=off", &[]).contains("socket that we connect to"));
    assert!(words("null,id=c", &[]).contains("socket that we connect to"));
    assert!(words(&chardev, &["-icount", "shift=1"]).contains("not recorded"));
    let private = ["-object", "memory-backend-ram,id=m,size=128M", "-machine", "memory-backend=m"];
    let line = words(&chardev, &private);
    assert!(line.contains("not shared") && line.contains("share=on"), "{line}");
}
