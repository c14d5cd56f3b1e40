//! Character devices from start to end with guests of a few instructions: each kind behind COM1, one shared by two ports, and
//! what cannot be had.

#[path = "harness/session.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod session;
#[path = "cli/support.rs"]
mod support;
#[path = "cli/tiny_guest.rs"]
#[allow(dead_code, reason = "each test program uses a part")]
mod tiny_guest;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use session::Session;
use support::{Refusal, Scratch, refuse};
use tiny_guest::{COM1, EXIT, EXIT_DEVICE, echo_until_q, out8, say};

const LIMIT: Duration = Duration::from_secs(200);
const COM2: u16 = 0x2f8;

fn text(path: &Path) -> &str {
    path.to_str().expect("the target folder's name is text")
}

fn words<'a>(kernel: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let always =
        ["-accel", "tcg", "-m", "16", "-display", "none", "-device", EXIT_DEVICE, "-kernel", text(kernel)];
    [&always, more].concat()
}

fn start(kernel: &Path, more: &[&str]) -> Session {
    Session::start(&session::bivisor(), &words(kernel, more), LIMIT)
}

fn echoing(scratch: &Scratch) -> PathBuf {
    tiny_guest::write(scratch, "echo", &[&echo_until_q(), &out8(EXIT, 3)])
}

/// Connects as soon as somebody listens.
fn connect<T>(connect: impl Fn() -> std::io::Result<T>) -> T {
    let begun = Instant::now();
    loop {
        match connect() {
            Ok(connection) => return connection,
            Err(error) => assert!(begun.elapsed() < LIMIT, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn converse(mut stream: impl Read + Write, said: &[u8]) {
    stream.write_all(said).expect("somebody reads");
    let mut echo = vec![0; said.len()];
    stream.read_exact(&mut echo).expect("the guest answers");
    assert_eq!(echo, said);
}

#[test]
fn clients_of_a_socket_come_and_go() {
    let scratch = Scratch::new("chardev_unix");
    let (guest, socket) = (echoing(&scratch), scratch.path("socket"));
    let serial = format!("unix:{},server=on,wait=off", text(&socket));
    let session = start(&guest, &["-serial", &serial]);
    for said in [&b"one \x01x"[..], &[b'.'; 3000], b"three"] {
        converse(connect(|| UnixStream::connect(&socket)), said);
    }
    connect(|| UnixStream::connect(&socket)).write_all(b"q").expect("the guest is there");
    let outcome = session.finish();
    outcome.check(outcome.status.code() == Some(7), "the guest's status");
    outcome.check(outcome.stderr.is_empty() && !socket.exists(), "nothing is left");
}

#[test]
fn the_guest_waits_for_a_client_where_that_is_asked_for() {
    let scratch = Scratch::new("chardev_wait");
    let guest = tiny_guest::write(&scratch, "guest", &[&say("first words\n"), &out8(EXIT, 1)]);
    let run = |option: &str| -> (Child, String) {
        let mut child = Command::new(session::bivisor())
            .args(words(&guest, &["-chardev", option, "-serial", "chardev:c"]))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built with the tests");
        let mut line = String::new();
        let stderr = child.stderr.take().expect("stderr is piped");
        BufReader::new(stderr).read_line(&mut line).expect("it says so");
        (child, line)
    };
    let (mut child, line) = run("socket,id=c,host=127.0.0.1,port=0,server=on");
    let address =
        line.strip_prefix("bivisor: waiting for a connection on tcp:").expect("it says where").trim();
    let mut heard = String::new();
    TcpStream::connect(address).expect("it listens").read_to_string(&mut heard).expect("until it ends");
    assert_eq!(heard, "first words\n");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
    // A signal ends the wait.
    let (mut child, line) = run("socket,id=c,path=bivisor-test-wait,abstract=on,server=on");
    assert!(line.contains("unix:bivisor-test-wait,abstract=on"), "{line}");
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    assert_eq!(child.wait().expect("it ends").signal(), Some(libc::SIGTERM));
}

#[test]
fn a_guest_that_connects_comes_back() {
    let scratch = Scratch::new("chardev_client");
    let (guest, socket) = (echoing(&scratch), scratch.path("socket"));
    let option = format!("socket,id=c,path={},reconnect-ms=20", text(&socket));
    let session = start(&guest, &["-chardev", &option, "-serial", "chardev:c"]);
    let listener = UnixListener::bind(&socket).expect("the folder is writable");
    for said in ["one", "two"] {
        converse(listener.accept().expect("it comes").0, said.as_bytes());
    }
    drop(listener);
    std::fs::remove_file(&socket).expect("it was there");
    let listener = UnixListener::bind(&socket).expect("the folder is writable");
    listener.accept().expect("it comes").0.write_all(b"q").expect("it is there");
    let outcome = session.finish();
    outcome.check(outcome.status.code() == Some(7), "the guest's status");

    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let option = format!("tcp:{},nodelay=on", listener.local_addr().expect("it is bound"));
    let session = start(&guest, &["-serial", &option]);
    let (stream, _) = listener.accept().expect("it comes");
    converse(&stream, b"hello");
    (&stream).write_all(b"q").expect("it is there");
    assert_eq!(session.finish().status.code(), Some(7));
}

#[test]
fn files_pipes_and_their_copies() {
    let scratch = Scratch::new("chardev_files");
    let guest = echoing(&scratch);
    let (output, log) = (scratch.write("output", b"before "), scratch.write("log", b"gone"));
    let input = scratch.write("input", b"a file speaks q");
    let option = format!("file,id=c,path={},append=on,input-path={}", text(&output), text(&input));
    let option = format!("{option},logfile={}", text(&log));
    let outcome = start(&guest, &["-chardev", &option, "-serial", "chardev:c"]).finish();
    outcome.check(outcome.status.code() == Some(7), "the guest's status");
    assert_eq!(std::fs::read(&output).expect("it is there"), b"before a file speaks ");
    assert_eq!(std::fs::read(&log).expect("it is there"), b"a file speaks ");

    let pipe = scratch.path("pipe");
    for end in ["in", "out"] {
        let made = Command::new("mkfifo").arg(pipe.with_extension(end)).status().expect("mkfifo runs");
        assert!(made.success());
    }
    let serial = format!("pipe:{}", text(&pipe));
    let session = start(&guest, &["-serial", &serial]);
    let mut into = std::fs::File::options().write(true).open(pipe.with_extension("in")).expect("it is read");
    into.write_all(b"through pipes").expect("it is read");
    let mut from = std::fs::File::open(pipe.with_extension("out")).expect("it is written");
    let mut echo = [0; 13];
    from.read_exact(&mut echo).expect("the guest answers");
    assert_eq!(&echo, b"through pipes");
    into.write_all(b"q").expect("it is read");
    assert_eq!(session.finish().status.code(), Some(7));
}

#[test]
fn two_ports_share_one_terminal() {
    let scratch = Scratch::new("chardev_mux");
    // COM1's code, and the same for COM2.
    let mut second = echo_until_q();
    for at in 0..second.len() - 1 {
        if second[at + 1] == 0x03 && matches!(second[at], 0xfd | 0xf8) {
            second[at + 1] = 0x02;
        }
    }
    let guest = tiny_guest::write(
        &scratch,
        "guest",
        &[&out8(COM1, b'1'), &echo_until_q(), &out8(COM2, b'2'), &second, &out8(EXIT, 5)],
    );
    let shared = ["-chardev", "stdio,id=c,mux=on,signal=off", "-serial", "chardev:c", "-serial", "chardev:c"];
    let mut session = start(&guest, &shared);
    session.wait_for("1");
    // COM2 has its input before the guest reads it, and COM1 its own.
    session.send("\x01ctwo\x01cone");
    session.wait_for("one");
    session.send("q");
    session.wait_for("2");
    session.wait_for("two");
    session.send("\x01c\x01h");
    session.wait_for("input goes to the next device");
    session.send("q");
    let outcome = session.finish();
    outcome.check(outcome.status.code() == Some(11), "the guest's status");

    // Without mux=on there are no escape keys.
    let mut session = start(&echoing(&scratch), &["-chardev", "stdio,id=c", "-serial", "chardev:c"]);
    session.send("\x01x");
    session.wait_for("\x01x");
    session.send("q");
    let outcome = session.finish();
    outcome.check(outcome.status.code() == Some(7), "the guest's status");
}

/// A client that does not read keeps no CPU, and a guest that looks at its transmitter loses nothing.
#[test]
fn a_client_that_does_not_read_is_waited_for_by_the_guest_alone() {
    let scratch = Scratch::new("chardev_slow");
    const BYTES: u32 = 1 << 20;
    #[rustfmt::skip]
    let flood = {
        let [b0, b1, b2, b3] = BYTES.to_le_bytes();
        vec![
            0xb9, b0, b1, b2, b3,   // mov $BYTES, %ecx
            0x66, 0xba, 0xfd, 0x03, // mov $LSR, %dx
            0xec,                   // in (%dx), %al
            0xa8, 0x20,             // test $THRE, %al
            0x74, 0xf7,             // jz back to the mov
            0x66, 0xba, 0xf8, 0x03, // mov $THR, %dx
            0x88, 0xc8,             // mov %cl, %al
            0xee,                   // out %al, (%dx)
            0x49,                   // dec %ecx
            0x75, 0xed,             // jnz the mov of LSR
        ]
    };
    let guest = tiny_guest::write(&scratch, "guest", &[&flood, &out8(EXIT, 5)]);
    let socket = scratch.path("socket");
    let serial = format!("unix:{},server=on", text(&socket));
    let session = start(&guest, &["-serial", &serial]);
    let mut client = connect(|| UnixStream::connect(&socket));
    std::thread::sleep(Duration::from_millis(500));
    let mut got = Vec::new();
    client.read_to_end(&mut got).expect("the guest ends");
    assert_eq!(got.len(), BYTES as usize);
    assert!((1..=BYTES).rev().zip(&got).all(|(count, byte)| count as u8 == *byte));
    let outcome = session.finish();
    outcome.check(outcome.status.code() == Some(11), "the guest's status");

    // Nor does it keep the program.
    let session = start(&guest, &["-serial", &serial, "-timeout", "1"]);
    let _client = connect(|| UnixStream::connect(&socket));
    let outcome = session.finish();
    outcome.check(outcome.status.code() == Some(124), "the time-out");
}

#[test]
fn what_cannot_be_had() {
    let scratch = Scratch::new("chardev_bad");
    let kernel = echoing(&scratch);
    let there = scratch.write("there", b"a file");
    let untouched = scratch.path("untouched");
    let absent = scratch.path("no/such");
    let taken = TcpListener::bind("127.0.0.1:0").expect("the loopback has a port");
    let port = taken.local_addr().expect("it is bound").port();
    let refused = |words: &[&str], named: &[&str]| {
        let log = format!("file:{}", text(&untouched));
        let words = [&["-accel", "tcg", "-kernel", text(&kernel), "-serial", &log], words].concat();
        let Refusal { stderr } = refuse(&words);
        for name in named {
            assert!(stderr.contains(name), "{words:?}: {stderr:?} does not name {name:?}");
        }
        assert!(!untouched.exists(), "{words:?}: a file was created");
    };
    let chardev = |option: &str, named: &[&str]| refused(&["-chardev", option], named);
    chardev(&format!("file,id=c,path={}", text(&absent)), &["no/such", "No such file"]);
    chardev(
        &format!("file,id=c,path={},input-path={}", text(&there), text(&absent)),
        &["no/such", "No such file"],
    );
    chardev(&format!("null,id=c,logfile={}", text(&absent)), &["no/such", "No such file"]);
    chardev(&format!("socket,id=c,path={}", text(&absent)), &["socket,id=c", "no/such", "No such file"]);
    chardev(&format!("socket,id=c,path={},server=on", text(&absent)), &["no/such", "No such file"]);
    chardev(&format!("socket,id=c,path={},server=on", text(&there)), &["there", "in use"]);
    chardev(&format!("socket,id=c,host=127.0.0.1,port={port},server=on"), &["127.0.0.1", "in use"]);
    chardev("socket,id=c,host=no.such.host.invalid,port=1", &["'no.such.host.invalid' has no address"]);
    chardev("stdio,id=c,signl=off", &["did you mean 'signal'"]);
    chardev("vc,id=c", &["vc: not built yet"]);
    refused(&["-serial", "chardev:c"], &["-serial: there is no -chardev with id=c"]);
    refused(&["-serial", "unix:/x,telnet=on"], &["unknown property 'telnet'"]);
    assert_eq!(std::fs::read(&there).expect("it is there"), b"a file");
}
