//! Each kind of host's end with a device that takes what it likes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use super::pty::Pty;
use super::*;
use crate::backend::{CharBackend, CharEvent, Rest};

/// A slow host makes a test slow, never wrong.
const LIMIT: Duration = Duration::from_secs(60);

/// Takes input up to a limit.
struct Sink {
    got: Mutex<Vec<u8>>,
    events: Mutex<Vec<CharEvent>>,
    limit: AtomicUsize,
    rest: Mutex<Rest>,
    writables: AtomicUsize,
    changed: Condvar,
}

impl Sink {
    fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            got: Mutex::default(),
            events: Mutex::default(),
            limit: AtomicUsize::new(limit),
            rest: Mutex::new(Rest::Awaited),
            writables: AtomicUsize::new(0),
            changed: Condvar::new(),
        })
    }

    fn attach_to(self: &Arc<Self>, stream: &Stream) {
        stream.attach(Arc::downgrade(self) as Weak<dyn CharDevice>);
    }

    #[track_caller]
    fn wait(&self, what: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !what(self) {
            assert!(begun.elapsed() < LIMIT, "got {:?}", String::from_utf8_lossy(&self.got.lock().unwrap()));
            let got = self.got.lock().unwrap();
            drop(self.changed.wait_timeout(got, Duration::from_millis(20)).unwrap());
        }
    }

    #[track_caller]
    fn wait_for(&self, text: &[u8]) {
        self.wait(|sink| *sink.got.lock().unwrap() == text);
    }

    #[track_caller]
    fn wait_for_events(&self, events: &[CharEvent]) {
        self.wait(|sink| sink.events.lock().unwrap()[..] == *events);
    }
}

impl CharDevice for Sink {
    fn can_receive(&self) -> usize {
        self.limit.load(Ordering::SeqCst).saturating_sub(self.got.lock().unwrap().len())
    }
    fn receive(&self, bytes: &[u8]) -> usize {
        let room = self.can_receive().min(bytes.len());
        self.got.lock().unwrap().extend(&bytes[..room]);
        self.changed.notify_all();
        room
    }
    fn event(&self, event: CharEvent) {
        self.events.lock().unwrap().push(event);
        self.changed.notify_all();
    }
    fn writable(&self) {
        self.writables.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
    }
    fn rest(&self) -> Rest {
        *self.rest.lock().unwrap()
    }
}

fn pipe() -> (File, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    (File::from(OwnedFd::from(reader)), File::from(OwnedFd::from(writer)))
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("bivisor-chardev-{name}-{}", std::process::id()))
}

/// A server on a socket of this name, with its device.
fn server(name: &str, limit: usize) -> (PathBuf, Arc<Stream>, Arc<Sink>, CharThread) {
    let path = scratch(name);
    let (stream, sink) = (Stream::new(name, None).unwrap(), Sink::new(limit));
    sink.attach_to(&stream);
    let server = Server::new(Address::Unix(path.clone()), true).unwrap();
    let thread = CharThread::start(vec![Driver::server(Arc::clone(&stream), server, None).unwrap()]).unwrap();
    (path, stream, sink, thread)
}

#[test]
fn a_slow_reader_misses_nothing() {
    let (mut reader, writer) = pipe();
    let stream = Stream::new("test", Some(Writer::Blocking(writer))).unwrap();
    let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || stream.write(&copy));
    std::thread::sleep(Duration::from_millis(20));
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    writing.join().unwrap();
    assert!(got == sent);
}

#[test]
fn a_reader_that_never_reads_does_not_keep_the_program() {
    let (_reader, writer) = pipe();
    let stream = Stream::new("test", Some(Writer::Blocking(writer))).unwrap();
    let other = Arc::clone(&stream);
    let writing = std::thread::spawn(move || other.write(&[0; 1 << 20]));
    std::thread::sleep(Duration::from_millis(20));
    stream.close();
    writing.join().unwrap();
}

#[test]
fn a_writer_that_does_not_wait_hears_of_room() {
    let (mut reader, writer) = pipe();
    let (input, mut user) = pipe();
    let (stream, sink) = (Stream::new("test", Some(Writer::Blocking(writer))).unwrap(), Sink::new(8));
    sink.attach_to(&stream);
    let _thread = CharThread::start(vec![Driver::fixed(Arc::clone(&stream), Some(input))]).unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|n| (n / 7) as u8).collect();
    let mut taken = stream.try_write(&sent);
    assert!(taken < sent.len() && !stream.can_write());
    let reading = std::thread::spawn(move || {
        let mut got = vec![0; 300_000];
        reader.read_exact(&mut got).unwrap();
        got
    });
    let mut heard = 0;
    while taken < sent.len() {
        sink.wait(|sink| sink.writables.load(Ordering::SeqCst) > heard);
        heard = sink.writables.load(Ordering::SeqCst);
        taken += stream.try_write(&sent[taken..]);
    }
    assert!(reading.join().unwrap() == sent);
    // Input waits for room, and comes when there is some.
    user.write_all(b"0123456789").unwrap();
    sink.wait_for(b"01234567");
    sink.limit.store(100, Ordering::SeqCst);
    stream.accept_input();
    sink.wait_for(b"0123456789");
    drop(user);
    assert_eq!(stream.try_write(b"x"), 1, "the reader is gone");
}

#[test]
fn files_and_nothing_are_always_ready() {
    for (name, content) in [("empty", &b""[..]), ("full", b"0123456789")] {
        let path = scratch(name);
        std::fs::write(&path, content).unwrap();
        let output = File::options().write(true).create(true).truncate(true).open(scratch("out")).unwrap();
        let (stream, sink) = (Stream::new("test", Some(Writer::Blocking(output))).unwrap(), Sink::new(4));
        sink.attach_to(&stream);
        let input = File::open(&path).unwrap();
        let _thread = CharThread::start(vec![Driver::fixed(Arc::clone(&stream), Some(input))]).unwrap();
        sink.wait_for(&content[..content.len().min(4)]);
        sink.limit.store(100, Ordering::SeqCst);
        stream.accept_input();
        sink.wait_for(content);
        assert_eq!(stream.try_write(&[7; 100_000]), 100_000);
        std::fs::remove_file(path).unwrap();
    }
    std::fs::remove_file(scratch("out")).unwrap();
}

#[test]
fn clients_come_and_go() {
    use CharEvent::{Closed, Opened};
    let (path, stream, sink, thread) = server("comes", 1000);
    assert!(!stream.is_open());
    assert_eq!(stream.try_write(b"to nobody"), 9);
    let mut first = UnixStream::connect(&path).unwrap();
    first.write_all(b"first ").unwrap();
    sink.wait_for(b"first ");
    // One at a time: the second one waits.
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"second").unwrap();
    stream.write(b"hello");
    let mut got = [0; 5];
    first.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
    drop(first);
    sink.wait_for(b"first second");
    sink.wait_for_events(&[Opened, Closed, Opened]);
    stream.write(b"again");
    second.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"again");
    drop(thread);
}

#[test]
fn what_a_client_said_before_it_went_is_read() {
    use CharEvent::{Closed, Opened};
    let (path, stream, sink, _thread) = server("said", 4);
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"0123456789").unwrap();
    sink.wait_for(b"0123");
    drop(client);
    // Found out by writing, too.
    stream.write(b"x");
    std::thread::sleep(Duration::from_millis(20));
    sink.limit.store(100, Ordering::SeqCst);
    stream.accept_input();
    sink.wait_for_events(&[Opened, Closed]);
    sink.wait_for(b"0123456789");
}

#[test]
fn who_is_not_heard_does_not_keep_the_place() {
    use CharEvent::{Closed, Opened};
    let (path, _stream, sink, _thread) = server("unheard", 0);
    *sink.rest.lock().unwrap() = Rest::Lost;
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"hello?").unwrap();
    drop(client);
    let _second = UnixStream::connect(&path).unwrap();
    sink.wait_for_events(&[Opened, Closed, Opened]);
}

#[test]
fn what_is_kept_comes_before_what_the_next_one_says() {
    use CharEvent::{Closed, Opened};
    let (path, stream, sink, _thread) = server("kept", 4);
    *sink.rest.lock().unwrap() = Rest::Kept;
    UnixStream::connect(&path).unwrap().write_all(b"0123456789").unwrap();
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"abc").unwrap();
    sink.wait_for_events(&[Opened, Closed, Opened]);
    assert_eq!(*sink.got.lock().unwrap(), b"0123");
    sink.limit.store(100, Ordering::SeqCst);
    stream.accept_input();
    sink.wait_for(b"0123456789abc");
    drop(second);
    sink.wait_for_events(&[Opened, Closed, Opened, Closed]);
}

#[test]
fn a_client_comes_back() {
    use CharEvent::{Closed, Opened};
    let path = scratch("back");
    let (stream, sink) = (Stream::new("test", None).unwrap(), Sink::new(1000));
    sink.attach_to(&stream);
    let again = Some(Duration::from_millis(10));
    let client = Client::new(Address::Unix(path.clone()), false, again).unwrap();
    let _thread =
        CharThread::start(vec![Driver::client(Arc::clone(&stream), client, None).unwrap()]).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    listener.accept().unwrap().0.write_all(b"one ").unwrap();
    listener.accept().unwrap().0.write_all(b"two").unwrap();
    sink.wait(|sink| sink.got.lock().unwrap().starts_with(b"one two"));
    sink.wait(|sink| sink.events.lock().unwrap().starts_with(&[Opened, Closed, Opened]));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn tcp_both_ways() {
    let (stream, sink) = (Stream::new("test", None).unwrap(), Sink::new(1000));
    sink.attach_to(&stream);
    let server = Server::new(Address::Tcp("127.0.0.1:0".parse().unwrap()), true).unwrap();
    let Address::Tcp(address) = server.address() else { panic!() };
    let _thread =
        CharThread::start(vec![Driver::server(Arc::clone(&stream), server, None).unwrap()]).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"over tcp").unwrap();
    sink.wait_for(b"over tcp");
    stream.write(b"back");
    let mut got = [0; 4];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"back");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (stream, sink) = (Stream::new("test", None).unwrap(), Sink::new(1000));
    sink.attach_to(&stream);
    let client = Client::new(Address::Tcp(listener.local_addr().unwrap()), true, None).unwrap();
    let first = client.connect_now().unwrap();
    let _thread =
        CharThread::start(vec![Driver::client(Arc::clone(&stream), client, Some(first)).unwrap()]).unwrap();
    listener.accept().unwrap().0.write_all(b"hi").unwrap();
    sink.wait_for(b"hi");
    drop(listener);
    let refused = Client::new(Address::Unix(scratch("nobody")), true, None).unwrap();
    assert!(refused.connect_now().unwrap_err().to_string().starts_with("unix:"));
}

#[test]
fn a_terminal_s_users_come_and_go() {
    let pty = Pty::open().unwrap();
    let name = pty.name().to_owned();
    let master = pty.into_master();
    let writer = Writer::Terminal(master.try_clone().unwrap());
    let (stream, sink) = (Stream::new("test", Some(writer)).unwrap(), Sink::new(1000));
    sink.attach_to(&stream);
    let _thread = CharThread::start(vec![Driver::terminal(Arc::clone(&stream), master).unwrap()]).unwrap();
    assert!(!stream.is_open());
    assert_eq!(stream.try_write(&[b'x'; 100_000]), 100_000, "to nobody");
    let open = || File::options().read(true).write(true).open(&name).unwrap();
    for text in [&b"one"[..], b"onetwo"] {
        let mut user = open();
        user.write_all(&text[text.len() - 3..]).unwrap();
        sink.wait_for(text);
        stream.write(text);
        let mut got = vec![0; text.len()];
        user.read_exact(&mut got).unwrap();
        assert_eq!(got, text);
    }
    // Typed and gone.
    open().write_all(b"!").unwrap();
    sink.wait_for(b"onetwo!");
    let _user = open();
    sink.wait(|sink| sink.events.lock().unwrap().last() == Some(&CharEvent::Opened));
}

#[test]
fn a_socket_replaces_what_an_earlier_run_left_and_nothing_else() {
    let path = scratch("left");
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::new(Address::Unix(path.clone()), false).unwrap();
    drop(server);
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert!(Server::new(Address::Unix(path.clone()), false).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    std::fs::remove_file(&path).unwrap();
}
