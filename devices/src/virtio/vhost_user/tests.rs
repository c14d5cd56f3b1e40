//! The device between a driver and a back end, both of the tests.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::fake::{self, Behaviour, request};
use super::fs::{FsOptions, VhostUserFs};
use super::{BackEnd, BackEndError};
use crate::virtio::testing::{DATA, Driver, MEMORY, QUEUE_SIZE, readable, writable};
use crate::virtio::worker::Pace;

/// A busy host makes it slow.
const LIMIT: Duration = Duration::from_secs(100);

#[track_caller]
fn until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LIMIT, "it does not come");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn options() -> FsOptions {
    FsOptions { tag: "folder".into(), queue_size: 128, num_request_queues: 1 }
}

/// A back end that behaves so, and the front end's other way to its socket.
fn greet(behaviour: &Arc<Behaviour>) -> (Result<Arc<BackEnd>, BackEndError>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let other = theirs.try_clone().unwrap();
    fake::serve(theirs, behaviour);
    (BackEnd::greet("test".into(), ours, options().queues()), other)
}

struct Rig {
    driver: Driver,
    behaviour: Arc<Behaviour>,
    socket: UnixStream,
}

impl Rig {
    fn new() -> Self {
        let behaviour = Arc::new(Behaviour::default());
        let (back_end, socket) = greet(&behaviour);
        let back_end = back_end.unwrap();
        let known = Arc::clone(&back_end);
        let driver = Driver::new(|_| VhostUserFs::new(back_end, &options(), &Pace::Threads).unwrap());
        known.set_memory(&driver.memory).unwrap();
        Self { driver, behaviour, socket }
    }

    fn heard(&self, kind: u32) -> usize {
        self.behaviour.heard.lock().unwrap().iter().filter(|heard| **heard == kind).count()
    }

    /// Sends `text` and waits for the answer.
    fn ask(&mut self, queue: u16, text: &[u8]) -> Vec<u8> {
        let before = self.driver.used_index(queue);
        let len = text.len() as u32;
        self.driver.memory.write_slice(text, GuestAddress(DATA)).unwrap();
        // Half in one buffer, half in another, and one without bytes.
        self.driver.add(
            queue,
            0,
            &[
                readable(DATA, len / 2),
                readable(DATA + u64::from(len / 2), len - len / 2),
                readable(DATA, 0),
                writable(DATA + 0x1000, 3),
                writable(DATA + 0x2000, len + 100),
            ],
        );
        self.driver.notify(queue);
        until(|| self.driver.used_index(queue) != before);
        assert_eq!(self.driver.used(queue, before), (0, len));
        let mut answer = vec![0; text.len()];
        self.driver.memory.read_slice(&mut answer[..3], GuestAddress(DATA + 0x1000)).unwrap();
        self.driver.memory.read_slice(&mut answer[3..], GuestAddress(DATA + 0x2000)).unwrap();
        answer
    }
}

#[test]
fn a_back_end_works_on_what_the_driver_asks() {
    let mut rig = Rig::new();
    let mut tag = [0xee; 42];
    rig.driver.transport.device().read_config(0, &mut tag);
    assert_eq!((&tag[..7], &tag[36..]), (&b"folder\0"[..], &[1, 0, 0, 0, 0, 0][..]));
    rig.driver.start();
    for round in 0..3 * QUEUE_SIZE {
        let text = format!("request number {round}");
        assert_eq!(rig.ask(round % 2, text.as_bytes()), text.to_uppercase().as_bytes());
    }
    until(|| rig.driver.interrupted());
    // What the back end wrote was told.
    let written = rig.driver.written.0.lock().unwrap();
    assert!(written.contains(&(DATA + 0x1000, 3)), "{written:x?}");
}

#[test]
fn a_reset_ends_what_the_back_end_is_at() {
    let mut rig = Rig::new();
    rig.driver.start();
    assert_eq!(rig.ask(1, b"before"), b"BEFORE");
    rig.behaviour.idle.store(true, Ordering::SeqCst);
    rig.driver.add(1, 0, &[readable(DATA, 8), writable(DATA + 0x1000, 8)]);
    rig.driver.notify(1);
    assert_eq!(rig.heard(request::GET_VRING_BASE), 0);
    rig.driver.transport.device().reset();
    assert_eq!(rig.heard(request::GET_VRING_BASE), 2);
    rig.behaviour.idle.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        rig.driver.start();
        assert_eq!(rig.ask(1, b"and after"), b"AND AFTER");
        assert_eq!(rig.ask(0, b"urgent"), b"URGENT");
    }
    assert!(!rig.driver.needs_reset());
}

#[test]
fn what_a_driver_does_wrong_does_not_reach_the_back_end() {
    let mut rig = Rig::new();
    rig.driver.start();
    rig.driver.add(1, 0, &[readable(MEMORY - 4, 8), writable(DATA, 8)]);
    rig.driver.notify(1);
    until(|| rig.driver.needs_reset());
    rig.driver.start();
    assert_eq!(rig.ask(1, b"again"), b"AGAIN");
    // A chain of nothing comes back.
    rig.driver.add(1, 4, &[readable(DATA, 0), writable(DATA, 0)]);
    rig.driver.notify(1);
    until(|| rig.driver.used_index(1) == 2);
    assert_eq!(rig.driver.used(1, 1), (4, 0));
}

#[test]
fn a_back_end_that_gives_back_what_it_was_not_given_is_given_up() {
    let mut rig = Rig::new();
    rig.driver.start();
    rig.behaviour.foreign.store(true, Ordering::SeqCst);
    rig.driver.add(1, 0, &[readable(DATA, 8), writable(DATA + 0x1000, 8)]);
    rig.driver.notify(1);
    until(|| rig.driver.needs_reset());
    assert_eq!(rig.driver.used_index(1), 0);
    // It is not taken back.
    rig.driver.start();
    until(|| rig.driver.needs_reset());
}

#[test]
fn a_back_end_that_ends_leaves_a_device_that_needs_a_reset() {
    let mut rig = Rig::new();
    rig.driver.start();
    assert_eq!(rig.ask(1, b"so far"), b"SO FAR");
    rig.socket.shutdown(std::net::Shutdown::Both).unwrap();
    until(|| rig.driver.needs_reset() && rig.driver.interrupted());
    rig.driver.transport.device().reset();
}

#[test]
fn back_ends_that_cannot_be_used() {
    let old = Behaviour { features: 1 << 30, ..Behaviour::default() };
    let few = Behaviour { queues: 1, ..Behaviour::default() };
    let of = |behaviour| greet(&Arc::new(behaviour)).0.err().map(|error| error.to_string());
    assert_eq!(of(old).as_deref(), Some("the back end lacks virtio 1.0"));
    assert_eq!(of(few).as_deref(), Some("the back end has 1 queues, and 2 are wanted"));
    // One that says nothing, and then is gone.
    let mute = Arc::new(Behaviour { mute: true, ..Behaviour::default() });
    let (ours, theirs) = UnixStream::pair().unwrap();
    let other = theirs.try_clone().unwrap();
    fake::serve(theirs, &mute);
    let greeting = std::thread::spawn(move || BackEnd::greet("test".into(), ours, 2).err());
    until(|| mute.heard.lock().unwrap().contains(&request::SET_OWNER));
    other.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(greeting.join().unwrap(), Some(BackEndError::Protocol(_))));
    // Memory that is nobody else's.
    let (back_end, _socket) = greet(&Arc::default());
    let anonymous = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let error = back_end.unwrap().set_memory(&anonymous).unwrap_err();
    assert!(error.to_string().contains("share=on"), "{error}");
}
