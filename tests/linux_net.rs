//! Whole machine: Linux uses a network card (virtio-net on virtio-mmio) on a user network under `-accel tcg`: it gets its address,
//! goes out through the host's sockets, and is reached through a forwarded port.

mod harness;
#[path = "cli/support.rs"]
mod support;

use std::fs::{File, Permissions};
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

/// How much is moved: a GiB each way and 500 connections at once by hand (BIVISOR_NET_FULL=1), less otherwise.
struct Amount {
    /// How often 16 MiB go up, and down.
    repeat: usize,
    connections: usize,
}

fn amount() -> Amount {
    match std::env::var_os("BIVISOR_NET_FULL") {
        Some(_) => Amount { repeat: 64, connections: 500 },
        None => Amount { repeat: 1, connections: 100 },
    }
}

/// Whether the host has IPv6 for its loopback.
fn has_ipv6(test: &str) -> bool {
    let error = TcpListener::bind("[::1]:0").err();
    error.iter().for_each(|error| eprintln!("SKIPPED a part of {test}: no IPv6 on the loopback: {error}"));
    error.is_none()
}

#[test]
fn streams_each_way() {
    if !fetch("streams_each_way", &["cloud", "net"]) {
        return;
    }
    let Amount { repeat, connections } = amount();
    let scratch = Scratch::new("streams_each_way");
    let data: Vec<u8> = (0..16u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let sum = md5(&scratch.write("down", &data.repeat(repeat)));
    let data: Arc<[u8]> = data.into();
    let (get, sending) = serve(5, send(Arc::clone(&data), repeat));
    let folder = scratch.path("");
    let (put, receiving) = serve(5, move |stream| receive(stream, &folder));
    let (crowd, welcoming) = welcome(connections);
    let refused = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let closed = refused.local_addr().expect("it is bound").port();
    drop(refused);
    let mut jobs = "ping,get,put,both,refused,crowd".to_owned();
    let mut ports = format!("get={get} put={put} refused={closed} crowd={crowd} many={connections}");
    let mut servers = None;
    if has_ipv6("streams_each_way") {
        let sending = serve_on("[::1]:0", 1, send(data, repeat));
        let folder = scratch.path("");
        let receiving = serve_on("[::1]:0", 1, move |stream| receive(stream, &folder));
        jobs += ",ping6,get6,put6";
        ports += &format!(" get6={} put6={}", sending.0, receiving.0);
        servers = Some((sending.1, receiving.1));
    }
    let outcome = run(
        &format!("{jobs} {ports} megabytes=16 repeat={repeat}"),
        &["-nic", "user", "-smp", "2", "-m", "512"],
    );
    says(&outcome, "lease: 10.0.2.15/24 router 10.0.2.2 dns 10.0.2.3");
    says(&outcome, "3 packets received, 0% packet loss");
    says(&outcome, &format!("crowd: 0 of {connections} failed"));
    sending.join().expect("all was sent");
    welcoming.join().expect("everybody came");
    let mut got = receiving.join().expect("all was received");
    let (mut downs, mut length) = (5, got[0].1);
    if let Some((sending, receiving)) = servers {
        says(&outcome, "address: fec0::5054:ff:fe12:3456/64");
        sending.join().expect("all was sent");
        got.extend(receiving.join().expect("all was received"));
        downs += 1;
    }
    outcome.check(outcome.serial.matches(&sum).count() == downs, "what came down is not what was sent");
    says(&outcome, &got[0].0);
    // The first is the long one.
    assert_eq!(length, repeat << 24);
    length = 16 << 20;
    let file = got[1].clone();
    assert!(got[1..].iter().all(|other| *other == file) && file.1 == length);
}

/// A server that tells `count` connections who they are, once all of them are there.
fn welcome(count: usize) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let port = listener.local_addr().expect("it is bound").port();
    let welcome = move || {
        let streams: Vec<_> = (0..count).map(|_| listener.accept().expect("the guest connects").0).collect();
        for mut stream in streams {
            let mut name = String::new();
            stream.read_to_string(&mut name).expect("the guest says who it is");
            let number = name.trim().strip_prefix("I am ").expect("it says so");
            stream.write_all(format!("you are {number}\n").as_bytes()).expect("the guest reads");
        }
    };
    (port, std::thread::spawn(welcome))
}

/// Sends `data` so often, and waits for the other end's.
fn send(data: Arc<[u8]>, repeat: usize) -> impl Fn(TcpStream) + Send + 'static {
    move |mut stream| {
        (0..repeat).for_each(|_| stream.write_all(&data).expect("the guest reads everything"));
        stream.shutdown(Shutdown::Write).expect("the guest is there");
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// The sum and length of what a stream brings, kept in a file of `folder` meanwhile.
fn receive(mut stream: TcpStream, folder: &Path) -> (String, usize) {
    let path = folder.join(format!("up-{}", stream.peer_addr().expect("it is connected").port()));
    let mut file = File::create(&path).expect("the folder is there");
    let length = std::io::copy(&mut stream, &mut file).expect("the guest ends its stream");
    let sum = md5(&path);
    std::fs::remove_file(path).expect("it is there");
    (sum, usize::try_from(length).expect("it fits the host"))
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

/// Whether `count` connections to a port, all open at once, each bring back what they are sent.
fn echoes(port: u16, count: usize) -> bool {
    let open = |_| TcpStream::connect(("127.0.0.1", port));
    let Ok(mut streams) = (0..count).map(open).collect::<Result<Vec<_>, _>>() else { return false };
    let text = |index: usize| format!("through the port {index}");
    let send = |(index, stream): (usize, &mut TcpStream)| {
        stream.write_all(text(index).as_bytes()).and_then(|()| stream.shutdown(Shutdown::Write)).is_ok()
    };
    let mut got = String::new();
    let sent = streams.iter_mut().enumerate().all(send);
    sent && streams.iter_mut().enumerate().all(|(index, stream)| {
        got.clear();
        stream.read_to_string(&mut got).is_ok() && got == text(index)
    })
}

#[test]
fn a_forwarded_port_and_cables() {
    if !fetch("a_forwarded_port_and_cables", &["cloud", "net"]) {
        return;
    }
    let [port, end] = [(); 2].map(|()| {
        let free = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
        free.local_addr().expect("it is bound").port()
    });
    let Amount { connections, .. } = amount();
    let client = std::thread::spawn(move || {
        // Reset until the guest listens.
        let begun = Instant::now();
        while !echoes(port, 1) {
            assert!(begun.elapsed() < LIMIT, "nobody answers");
            std::thread::sleep(Duration::from_millis(200));
        }
        let all = echoes(port, connections);
        drop(TcpStream::connect(("127.0.0.1", end)));
        all
    });
    let netdev = format!(
        "user,id=n0,restrict=on,hostname=inside,hostfwd=tcp:127.0.0.1:{port}-:7,hostfwd=tcp:127.0.0.1:{end}-:8"
    );
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
    assert!(client.join().expect("the client ends"), "not all connections were answered");
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
    let (get, sending) = serve_on("0.0.0.0:0", 1, send(data, 1));
    let folder = scratch.path("");
    let (put, receiving) = serve_on("0.0.0.0:0", 1, move |stream| receive(stream, &folder));
    let tap = format!("tap,id=n9,ifname=bivtest%d,script={up},downscript={down}");
    let mut words = vec!["-nic".to_owned(), "user".to_owned()];
    words.extend(cables(&scratch));
    words.extend(["-netdev".into(), tap, "-device".into(), "virtio-net-device,netdev=n9".into()]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = run(&format!("tap get={get} put={put}"), &words);
    says(&outcome, &sum);
    sending.join().expect("all was sent");
    let got = receiving.join().expect("all was received");
    says(&outcome, &got[0].0);
    let gone = std::fs::read_to_string(gone).expect("the script was run");
    assert!(gone.starts_with("bivtest"), "{gone}");
}
