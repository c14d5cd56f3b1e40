//! Whole machine: Linux uses a network card (virtio-net on virtio-mmio) on a user network under `-accel tcg`: it gets its address,
//! goes out through the host's sockets, and is reached through a forwarded port.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::guests::fetch;
use harness::linux::{Linux, ended_well};
use harness::session::Outcome;
use support::Scratch;

/// A starved host makes it slow, never wrong.
const LIMIT: Duration = Duration::from_secs(400);

#[track_caller]
fn run(jobs: &str, more: &[&str]) -> Outcome {
    let append = format!("console=ttyS0 panic=-1 jobs={jobs}");
    let machine = Linux {
        accel: "tcg",
        megabytes: "256",
        kernel: "vmlinuz-cloud",
        initrd: "net.gz",
        append: &append,
        more,
    };
    let outcome = machine.boot(LIMIT).finish();
    for job in jobs.split_whitespace().next().expect("there are jobs").split(',') {
        let end = format!("BIVISOR-NET-END {job} status=0 ");
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

/// A server on the host's loopback that serves `count` connections, one after the other, each by `serve`.
fn serve<T: Send + 'static>(
    count: usize,
    serve: impl Fn(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<Vec<T>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let port = listener.local_addr().expect("it is bound").port();
    let serve = move || (0..count).map(|_| serve(listener.accept().expect("the guest connects").0)).collect();
    (port, std::thread::spawn(serve))
}

fn md5(path: &Path) -> String {
    let output = Command::new("md5sum").arg(path).output().expect("md5sum runs");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a sum").to_owned()
}

#[test]
fn streams_each_way() {
    if !fetch("streams_each_way", &["cloud", "net"]) {
        return;
    }
    let scratch = Scratch::new("streams_each_way");
    let data: Vec<u8> = (0..24u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let sum = md5(&scratch.write("down", &data));
    let (get, sending) = serve(5, move |mut stream| {
        stream.write_all(&data).expect("the guest reads everything");
        stream.shutdown(Shutdown::Write).expect("the guest is there");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let (put, receiving) = serve(5, |mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("the guest ends its stream");
        got
    });
    let refused = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let closed = refused.local_addr().expect("it is bound").port();
    drop(refused);
    let jobs = format!("ping,get,put,both,refused get={get} put={put} refused={closed} megabytes=16");
    let outcome = run(&jobs, &["-nic", "user", "-smp", "2"]);
    says(&outcome, "lease: 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3");
    says(&outcome, "3 packets received, 0% packet loss");
    outcome.check(outcome.serial.matches(&sum).count() == 5, "what came down is not what was sent");
    sending.join().expect("all was sent");
    let got = receiving.join().expect("all was received");
    let sum = md5(&scratch.write("up", &got[0]));
    says(&outcome, &sum);
    assert!(got.iter().all(|other| *other == got[0]) && got[0].len() == 16 << 20);
}

#[test]
fn a_forwarded_port() {
    if !fetch("a_forwarded_port", &["cloud", "net"]) {
        return;
    }
    let port = {
        let free = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
        free.local_addr().expect("it is bound").port()
    };
    let client = std::thread::spawn(move || {
        let begun = Instant::now();
        // Reset until the guest listens.
        while begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(200));
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { continue };
            let mut got = Vec::new();
            let sent = stream.write_all(b"through the port").and_then(|()| stream.shutdown(Shutdown::Write));
            if sent.and_then(|()| stream.read_to_end(&mut got)).is_ok() && !got.is_empty() {
                return got;
            }
        }
        Vec::new()
    });
    let netdev = format!("user,id=n0,restrict=on,hostname=inside,hostfwd=tcp:127.0.0.1:{port}-:7");
    #[rustfmt::skip]
    let words = ["-netdev", &netdev, "-device", "virtio-net-device,netdev=n0,mac=52:54:00:aa:bb:cc"];
    let outcome = run("serve", &words);
    says(&outcome, "name inside");
    assert_eq!(client.join().expect("the client ends"), b"through the port");
}
