//! Whole machine: Linux uses a network card (virtio-net on virtio-mmio) on a user network under `-accel tcg`: it gets its address,
//! goes out through the host's sockets, and is reached through a forwarded port.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::net::tap::Tap;
use harness::guests::{fetch, installed};
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
        initrd: "network.gz",
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
    serve_on("127.0.0.1:0", count, serve)
}

/// The same on another address.
fn serve_on<T: Send + 'static>(
    address: &str,
    count: usize,
    serve: impl Fn(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<Vec<T>>) {
    let listener = TcpListener::bind(address).expect("the host has a port");
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
    let data: Arc<[u8]> = data.into();
    let (get, sending) = serve(5, send(Arc::clone(&data)));
    let (put, receiving) = serve(5, receive);
    let (get6, sending6) = serve_on("[::1]:0", 1, send(data));
    let (put6, receiving6) = serve_on("[::1]:0", 1, receive);
    let refused = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let closed = refused.local_addr().expect("it is bound").port();
    drop(refused);
    let jobs = format!(
        "ping,get,put,both,refused,ping6,get6,put6 get={get} put={put} refused={closed} get6={get6} put6={put6} megabytes=16"
    );
    let outcome = run(&jobs, &["-nic", "user", "-smp", "2"]);
    says(&outcome, "lease: 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3");
    says(&outcome, "3 packets received, 0% packet loss");
    says(&outcome, "address: fec0::5054:ff:fe12:3456/64");
    outcome.check(outcome.serial.matches(&sum).count() == 6, "what came down is not what was sent");
    sending.join().expect("all was sent");
    sending6.join().expect("all was sent");
    let mut got = receiving.join().expect("all was received");
    got.extend(receiving6.join().expect("all was received"));
    let sum = md5(&scratch.write("up", &got[0]));
    says(&outcome, &sum);
    assert!(got.iter().all(|other| *other == got[0]) && got[0].len() == 16 << 20);
}

/// Sends `data`, and waits for the other end's.
fn send(data: Arc<[u8]>) -> impl Fn(TcpStream) + Send + 'static {
    move |mut stream| {
        stream.write_all(&data).expect("the guest reads everything");
        stream.shutdown(Shutdown::Write).expect("the guest is there");
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

fn receive(mut stream: TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("the guest ends its stream");
    got
}

/// Cables between cards of one guest: over a stream, over datagrams.
fn cables(scratch: &Scratch) -> Vec<String> {
    let [stream, left, right] =
        ["stream", "left", "right"].map(|name| scratch.path(name).display().to_string());
    let dgram = |id: &str, local: &str, remote: &str| {
        format!("dgram,id={id},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}")
    };
    let netdevs = [
        ("n1", format!("stream,id=n1,server=on,addr.type=unix,addr.path={stream}")),
        ("n2", format!("stream,id=n2,addr.type=unix,addr.path={stream},reconnect-ms=50")),
        ("n3", dgram("n3", &left, &right)),
        ("n4", dgram("n4", &right, &left)),
    ];
    let words = netdevs.map(|(id, netdev)| {
        ["-netdev".into(), netdev, "-device".into(), format!("virtio-net-device,netdev={id}")]
    });
    words.concat()
}

#[test]
fn a_forwarded_port_and_cables() {
    if !fetch("a_forwarded_port_and_cables", &["cloud", "net"]) {
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
    let scratch = Scratch::new("cables");
    let cables = cables(&scratch);
    let words: Vec<&str> = words.into_iter().chain(cables.iter().map(String::as_str)).collect();
    let outcome = run("serve,pairs", &words);
    says(&outcome, "name inside");
    says(&outcome, "pair eth1 eth2 is whole");
    says(&outcome, "pair eth3 eth4 is whole");
    assert!(!scratch.path("stream").exists() && !scratch.path("left").exists(), "a socket is left behind");
    assert_eq!(client.join().expect("the client ends"), b"through the port");
}

#[test]
fn an_interface_of_the_kernel() {
    const TEST: &str = "an_interface_of_the_kernel";
    if let Err(error) = Tap::open(Some("bivtest%d"), true) {
        eprintln!("SKIPPED {TEST}: {error}: no tap interface to be had");
        return;
    }
    if !installed(TEST, "ip") || !fetch(TEST, &["cloud", "net"]) {
        return;
    }
    let scratch = Scratch::new(TEST);
    let script = |name: &str, text: &str| {
        let path = scratch.write(name, format!("#!/bin/sh\n{text}\n").as_bytes());
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it is our file");
        path.display().to_string()
    };
    let gone = scratch.path("gone");
    let up = script("up", "ip address add 203.0.113.1/24 dev $1 && ip link set $1 up");
    let down = script("down", &format!("echo $1 >{}", gone.display()));
    let data: Arc<[u8]> = (0..24u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let sum = md5(&scratch.write("down-data", &data));
    let (get, sending) = serve_on("0.0.0.0:0", 1, send(data));
    let (put, receiving) = serve_on("0.0.0.0:0", 1, receive);
    let tap = format!("tap,id=n9,ifname=bivtest%d,script={up},downscript={down}");
    let mut words = vec!["-nic".to_owned(), "user".to_owned()];
    words.extend(cables(&scratch));
    words.extend(["-netdev".into(), tap, "-device".into(), "virtio-net-device,netdev=n9".into()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = run(&format!("tap get={get} put={put}"), &words);
    says(&outcome, &sum);
    sending.join().expect("all was sent");
    let got = receiving.join().expect("all was received");
    says(&outcome, &md5(&scratch.write("up-data", &got[0])));
    let gone = std::fs::read_to_string(gone).expect("the script was run");
    assert!(gone.starts_with("bivtest"), "{gone}");
}
