//! A vhost-user back end (QEMU, *Vhost-user Protocol*): a good one, but where the input says otherwise. It is of the same process,
//! so the front end's addresses are its own, and the descriptors that come with messages need not be taken. It has no thread, which
//! would be slow and never the same: it looks for messages when the front end waits for an answer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::rc::{Rc, Weak};

use crate::input::Input;
use crate::rings::{Parts, Ring};

/// Descriptors of a ring.
const SIZE: u16 = 1024;
/// Rings at most.
pub const RINGS: usize = 4;

mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const GET_VRING_BASE: u32 = 11;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const GET_QUEUE_NUM: u32 = 17;
}

/// Bits of a message's flags: the protocol's version, an answer, one is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Features of the protocol: several queues, acknowledgements; and that there are such features, and virtio 1.0.
const MQ: u64 = 1;
const REPLY_ACK: u64 = 8;
const PROTOCOL: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

/// Bytes of the script that stand for an honest answer.
const HONEST: u8 = 0xe0;

#[derive(Default)]
struct State {
    /// How the next messages are answered; honestly when it has ended.
    script: VecDeque<u8>,
    features: u64,
    protocol_features: u64,
    queues: u64,
    rings: [Option<Ring>; RINGS],
}

/// The back end.
pub struct Peer {
    socket: UnixStream,
    state: RefCell<State>,
    /// It has done what a front end need not bear.
    is_hostile: Cell<bool>,
}

thread_local! {
    static PEER: RefCell<Weak<Peer>> = const { RefCell::new(Weak::new()) };
}

/// Takes the place of the C library's (Linux, recvmsg(2)): whoever waits for a message is the front end, and first the back end
/// does what it was told.
///
/// # Safety
///
/// As the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(
    fd: libc::c_int,
    message: *mut libc::msghdr,
    flags: libc::c_int,
) -> libc::ssize_t {
    if let Some(peer) = PEER.with(|peer| peer.borrow().upgrade()) {
        peer.listen();
    }
    // SAFETY: the caller's arguments.
    (unsafe { libc::syscall(libc::SYS_recvmsg, fd, message, flags) }) as libc::ssize_t
}

impl Peer {
    /// One of `kind` at the other end of the socket that is given back, for front ends of this thread. Its answers to messages
    /// are as the first bytes of the input say.
    pub fn new(kind: u8, input: &mut Input) -> (Rc<Self>, UnixStream) {
        let (socket, theirs) = UnixStream::pair().expect("sockets");
        socket.set_nonblocking(true).expect("a socket");
        let script = if kind & 0x10 == 0 { VecDeque::new() } else { input.short().iter().copied().collect() };
        let state = State {
            script,
            features: VERSION_1 | if kind & 0xe0 == 0xe0 { 0 } else { PROTOCOL },
            protocol_features: MQ | REPLY_ACK,
            queues: RINGS as u64,
            ..State::default()
        };
        let peer = Rc::new(Self { socket, state: RefCell::new(state), is_hostile: Cell::new(false) });
        PEER.set(Rc::downgrade(&peer));
        (peer, theirs)
    }

    /// Whether the front end has reason to give it up.
    pub fn is_hostile(&self) -> bool {
        self.is_hostile.get()
    }

    /// From now on its answers are honest.
    pub fn behave(&self) {
        self.listen();
        self.state.borrow_mut().script.clear();
    }

    fn turn(&self) {
        self.is_hostile.set(true);
    }

    /// Answers the messages that there are.
    fn listen(&self) {
        while self.message().is_some() {}
    }

    /// Answers the next message; `None`: there is none, or no more.
    fn message(&self) -> Option<()> {
        let (mut socket, mut header) = (&self.socket, [0; 12]);
        socket.read_exact(&mut header).ok()?;
        let word =
            |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let long =
            |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let (kind, flags, size) = (word(&header, 0), word(&header, 4), word(&header, 8));
        let mut body = vec![0; size as usize];
        socket.read_exact(&mut body).ok()?;
        let mut state = self.state.borrow_mut();
        let ring = |body: &[u8]| (word(body, 0) & 0xff) as usize % RINGS;
        let answer = match kind {
            request::GET_FEATURES => Some(state.features.to_le_bytes()),
            request::GET_PROTOCOL_FEATURES => Some(state.protocol_features.to_le_bytes()),
            request::GET_QUEUE_NUM => Some(state.queues.to_le_bytes()),
            request::GET_VRING_BASE => {
                let base = state.rings[ring(&body)].take().map_or(0, |ring| ring.taken());
                Some((u64::from(base) << 32 | u64::from(word(&body, 0))).to_le_bytes())
            }
            request::SET_VRING_ADDR => {
                let [descriptors, used, available] = [8, 16, 24].map(|at| long(&body, at));
                let parts = Parts { descriptors, used, available };
                // SAFETY: the front end said that this is there, as long as the ring is not stopped, and it reaches it so.
                state.rings[ring(&body)] = Some(unsafe { Ring::new(SIZE, parts) });
                None
            }
            _ => None,
        };
        let acknowledgement = (flags & NEED_REPLY != 0).then_some([0; 8]);
        let how = state.script.pop_front().unwrap_or(0);
        if how < HONEST {
            return match answer.or(acknowledgement) {
                Some(value) => Self::say(socket, [kind, VERSION | REPLY, 8], &value),
                None => Some(()),
            };
        }
        self.turn();
        let any: [u8; 8] = std::array::from_fn(|_| state.script.pop_front().unwrap_or(0));
        let value = answer.or(acknowledgement).unwrap_or(any);
        match how & 15 {
            // A good message that says something else.
            0..8 if answer.is_some() || acknowledgement.is_some() => {
                let value = if how & 1 == 0 { any } else { [0xff; 8] };
                return Self::say(socket, [kind, VERSION | REPLY, 8], &value);
            }
            8 => Self::say(socket, [kind + 1, VERSION | REPLY, 8], &value),
            9 => Self::say(socket, [kind, VERSION, 8], &value),
            10 => Self::say(socket, [kind, 2 | REPLY, 8], &value),
            11 => Self::say(socket, [kind, VERSION | REPLY, 4], &value[..4]),
            12 => {
                Self::say(socket, [kind, VERSION | REPLY, u32::from_le_bytes([any[0], any[1], 0, 0])], &any)
            }
            13 => Self::say(socket, [kind, VERSION | REPLY, u32::MAX], &[7; 64]),
            14 => Self::say(socket, [kind, u32::MAX, 12], &[0; 12]),
            _ => None,
        };
        // Whoever waits for more has waited long enough.
        let _ = socket.shutdown(Shutdown::Both);
        None
    }

    fn say(mut socket: &UnixStream, header: [u32; 3], body: &[u8]) -> Option<()> {
        socket.write_all(&[&header.map(u32::to_le_bytes).concat(), body].concat()).ok()
    }

    /// Uses all that it was given, in every ring.
    pub fn work(&self) {
        self.listen();
        self.state.borrow_mut().rings.iter_mut().flatten().for_each(|ring| ring.work(SIZE, 8));
    }

    /// Something that it does by itself.
    pub fn step(&self, input: &mut Input) {
        self.listen();
        let (what, index) = (input.u8(), usize::from(input.u8()) % RINGS);
        if what == 0xff {
            self.turn();
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        let mut state = self.state.borrow_mut();
        let Some(ring) = &mut state.rings[index] else { return };
        if ring.step(what, input) {
            self.turn();
        }
    }
}
