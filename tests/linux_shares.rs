//! Whole machine: Linux uses folders of the host (virtio-9p) under `-accel tcg`: what one side writes the other reads, owners and
//! devices are the guest's own where they are mapped, and no link leads out. And streams (virtio-vsock) go each way.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::guests::{fetch, path};
use harness::linux::{Linux, ended_well};
use harness::session::Outcome;
use support::Scratch;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(600);

#[track_caller]
fn run(jobs: &str, more: &[&str]) -> Outcome {
    let append = format!("console=ttyS0 panic=-1 jobs={jobs}");
    let machine = Linux {
        accel: "tcg",
        megabytes: "384",
        kernel: "vmlinuz-generic",
        initrd: "shares.gz",
        append: &append,
        more,
    };
    let outcome = machine.boot(LIMIT).finish();
    for job in jobs.split(',') {
        let end = format!("BIVISOR-SHARES-END {job} status=0\n");
        outcome.check(outcome.serial.contains(&end), &format!("{job} did not end well"));
    }
    outcome.check(!outcome.serial.contains("BIVISOR-NO-MODULE"), "a module is missing");
    ended_well(&outcome);
    println!("{jobs} {more:?}: {:.2} s", outcome.elapsed.as_secs_f64());
    outcome
}

#[track_caller]
fn says(outcome: &Outcome, text: &str) {
    outcome.check(outcome.serial.contains(text), &format!("it does not say: {text}"));
}

fn md5(path: &Path) -> String {
    let output = Command::new("md5sum").arg(path).output().expect("md5sum runs");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a sum").to_owned()
}

/// 20 MiB that are nowhere the same.
fn large() -> Vec<u8> {
    (0..20u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// A folder that is only read: the argument of -virtfs.
fn read_only_share(scratch: &Scratch) -> String {
    let path = scratch.path("readonly");
    std::fs::create_dir(&path).expect("the target folder is writable");
    scratch.write("readonly/from-host", &large()[..1 << 20]);
    format!("local,path={},mount_tag=readonly,security_model=none,readonly=on", path.display())
}

#[test]
fn folders_of_the_host() {
    if !fetch("folders_of_the_host", &["generic", "shares"]) {
        return;
    }
    let scratch = Scratch::new("folders_of_the_host");
    let secret = scratch.write("secret", b"of the host\n");
    for folder in ["none", "mapped"] {
        std::fs::create_dir(scratch.path(folder)).expect("the target folder is writable");
        scratch.write(&format!("{folder}/from-host"), &large());
        std::fs::copy(path("busybox"), scratch.path(&format!("{folder}/busybox"))).expect("a copy");
    }
    symlink("../secret", scratch.path("none/out")).expect("a link");
    symlink(&secret, scratch.path("none/absolute")).expect("a link");
    symlink("..", scratch.path("none/folder")).expect("a link");
    let fsdev = |id: &str, rules: &str| {
        format!("local,id={id},path={},security_model={rules}", scratch.path(id).display())
    };
    let (none, mapped) = (fsdev("none", "none"), fsdev("mapped", "mapped-xattr"));
    let read_only = read_only_share(&scratch);
    #[rustfmt::skip]
    let words = [
        "-smp", "2", "-fsdev", &none, "-device", "virtio-9p-device,fsdev=none,mount_tag=none",
        "-fsdev", &mapped, "-device", "virtio-9p-device,fsdev=mapped,mount_tag=mapped", "-virtfs", &read_only,
    ];
    let outcome = run("none,mapped,readonly", &words);
    for folder in ["none", "mapped"] {
        let sum = md5(&scratch.path(&format!("{folder}/from-host")));
        says(&outcome, &format!("sum of {folder}/from-host: {sum}\n"));
        assert_eq!(sum, md5(&scratch.path(&format!("{folder}/copy"))));
        let sum = md5(&scratch.path(&format!("{folder}/from-guest")));
        let said = outcome.serial.matches(&format!("sum of {folder}/from-guest: {sum}\n")).count();
        outcome.check(said == 3, "what the guest has written is not what the host has");
    }
    says(&outcome, &format!("sum of readonly/from-host: {}\n", md5(&scratch.path("readonly/from-host"))));
    // `seq 1000 | md5sum`
    assert_eq!(outcome.serial.matches("53d025127ae99ab79e8502aae2d9bea6").count(), 2);
    assert_eq!(outcome.serial.matches("\nok\n").count(), 4, "two programs in two folders");
    // In the plain folder things are what they are; in the mapped one they are the guest's only.
    assert!(std::fs::read_link(scratch.path("none/here")).expect("a link") == Path::new("/etc/here"));
    says(&outcome, "\nof the guest\n");
    says(&outcome, "regular file 12 34 6755 12345\n");
    for (name, content) in [("link", "/etc/hostname"), ("disk", "")] {
        let file = scratch.path("mapped/work").join(name);
        let metadata = std::fs::symlink_metadata(&file).expect("it is there");
        assert!(metadata.is_file() && metadata.permissions().mode() & 0o7777 == 0o600);
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), content);
    }
    // Nothing has come in or out.
    outcome.check(!outcome.serial.contains("of the host"), "the guest has read what it must not");
    assert_eq!(std::fs::read(&secret).expect("it is there"), b"of the host\n");
    let mut left: Vec<_> = std::fs::read_dir(scratch.path("readonly"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["from-host"]);
    says(&outcome, "Read-only file system");
}

/// A program of the host at a port: serves one connection.
fn serve<T: Send + 'static>(
    socket: &Path,
    port: u32,
    serve: impl FnOnce(UnixStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = UnixListener::bind(format!("{}_{port}", socket.display())).expect("a socket");
    std::thread::spawn(move || serve(listener.accept().expect("the guest connects").0))
}

/// Sends back all that comes, until its end.
fn echo(mut stream: UnixStream) -> u64 {
    let (mut chunk, mut all) = (vec![0; 1 << 16], 0);
    loop {
        let count = stream.read(&mut chunk).expect("the guest sends");
        if count == 0 {
            return all;
        }
        stream.write_all(&chunk[..count]).expect("the guest receives");
        all += count as u64;
    }
}

/// Connects to the guest's port 2000 as soon as somebody serves it.
fn reach(socket: &Path) -> BufReader<UnixStream> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            let mut line = String::new();
            stream.write_all(b"CONNECT 2000\n").expect("the device listens");
            let mut stream = BufReader::new(stream);
            if stream.read_line(&mut line).is_ok() && line.starts_with("OK ") {
                return stream;
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("nobody serves the guest's port");
}

/// Sends `count` bytes through an echo of the guest's; whether they come back.
fn through(stream: BufReader<UnixStream>, count: usize) -> bool {
    let data = large();
    let data: Vec<u8> = data.iter().copied().cycle().take(count).collect();
    let mut sender = stream.get_ref().try_clone().expect("a descriptor");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&data).expect("the guest receives");
            sender.shutdown(Shutdown::Write).expect("it is there");
        });
        let mut got = Vec::new();
        let mut stream = stream;
        stream.read_to_end(&mut got).expect("the guest sends");
        got == data
    })
}

#[test]
fn streams_each_way() {
    if !fetch("streams_each_way", &["generic", "shares"]) {
        return;
    }
    // The name of a socket is short, and the target folder's need not be.
    let folder = std::env::temp_dir().join(format!("bivisor-vsock-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let socket: PathBuf = folder.join("v.sock");
    let echoing = serve(&socket, 1000, echo);
    let answering = serve(&socket, 1002, |mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).expect("the guest ends its half");
        stream.write_all(b"answer").expect("the guest receives");
        question
    });
    let path = socket.clone();
    let clients = std::thread::spawn(move || {
        let small: Vec<_> = (0..19)
            .map(|index| (reach(&path), 1000 + index * 10_000))
            .map(|(stream, count)| std::thread::spawn(move || through(stream, count)))
            .collect();
        let is_whole = through(reach(&path), 64 << 20);
        is_whole && small.into_iter().all(|client| client.join().expect("it ends"))
    });
    // Both on PCI.
    let device = format!("virtio-vsock-pci,guest-cid=77,socket={}", socket.display());
    let scratch = Scratch::new("streams_each_way");
    let share = read_only_share(&scratch);
    let words = ["-M", "q35", "-smp", "2", "-device", &device, "-virtfs", &share];
    let outcome = run("streams,halves,serve,readonly", &words);
    for text in ["64 MiB came back\n", "\nrefused\n", "\nanswered\n", "\nserved 20\n"] {
        says(&outcome, text);
    }
    assert_eq!(echoing.join().expect("it ends"), 64 << 20);
    assert_eq!(answering.join().expect("it ends"), "question");
    assert!(clients.join().expect("they end"), "what came back is not what was sent");
    assert!(!socket.exists(), "the socket was left behind");
    std::fs::remove_dir_all(&folder).expect("it is there");
}

/// What is only read is the same in each run, and so is what the guest does with it.
#[test]
fn counted_runs_with_a_folder_are_the_same() {
    if !fetch("counted_runs_with_a_folder_are_the_same", &["generic", "shares"]) {
        return;
    }
    let scratch = Scratch::new("counted_runs_with_a_folder_are_the_same");
    let share = read_only_share(&scratch);
    let counted = || {
        let words = ["-icount", "shift=1,sleep=off", "-d", "icount", "-virtfs", &share];
        let outcome = run("readonly", &words);
        let count = outcome.stderr.lines().find(|line| line.contains("instructions")).map(str::to_owned);
        (outcome.serial, count.expect("-d icount says it"))
    };
    let (one, other) = (counted(), counted());
    assert_eq!(one.1, other.1);
    assert!(one.0 == other.0, "the consoles differ");
}
