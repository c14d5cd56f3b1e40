//! A back end for the tests, of other hands: messages by the tables of QEMU's *Vhost-user Protocol*, rings by virtio-queue. It
//! answers a request with its bytes in capitals.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::virtio::feature;

pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const GET_QUEUE_NUM: u32 = 17;
}

/// Bits of a message's flags.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Features of the protocol: several queues, acknowledgements; and that there are such features.
const MQ: u64 = 1;
const REPLY_ACK: u64 = 8;
const PROTOCOL: u64 = 1 << 30;

/// How it behaves.
pub struct Behaviour {
    pub features: u64,
    pub queues: u64,
    /// It answers no message.
    pub mute: bool,
    /// It leaves requests where they are.
    pub idle: AtomicBool,
    /// It gives back what it was not given.
    pub foreign: AtomicBool,
    /// Requests of messages, as they came.
    pub heard: Mutex<Vec<u32>>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            features: feature::VERSION_1 | PROTOCOL,
            queues: 2,
            mute: false,
            idle: AtomicBool::default(),
            foreign: AtomicBool::default(),
            heard: Mutex::default(),
        }
    }
}

#[derive(Default)]
struct Ring {
    size: u32,
    /// The front end's addresses of descriptors, used ring, available ring.
    addresses: [u64; 3],
    call: Option<File>,
    kick: Option<File>,
    queue: Option<Queue>,
}

struct Region {
    guest: u64,
    len: u64,
    user: u64,
}

/// Serves `socket` until it ends, on a thread.
pub fn serve(socket: UnixStream, behaviour: &Arc<Behaviour>) {
    let behaviour = Arc::clone(behaviour);
    std::thread::spawn(move || {
        let rings = [(); 8].map(|()| Ring::default());
        let mut fake =
            Fake { socket, behaviour, rings, regions: Vec::new(), memory: GuestMemoryMmap::default() };
        while fake.wait() {}
    });
}

struct Fake {
    socket: UnixStream,
    behaviour: Arc<Behaviour>,
    rings: [Ring; 8],
    regions: Vec<Region>,
    memory: GuestMemoryMmap,
}

fn word(body: &[u8], index: usize) -> u32 {
    u32::from_le_bytes(body[index * 4..][..4].try_into().unwrap())
}

fn long(body: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(body[at..][..8].try_into().unwrap())
}

impl Fake {
    /// Handles what comes next; false: the connection has ended.
    fn wait(&mut self) -> bool {
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        let kicks = self.rings.iter().filter_map(|ring| ring.kick.as_ref());
        fds.extend(kicks.map(|kick| PollFd::new(kick, PollFlags::IN)));
        poll(&mut fds, None).unwrap();
        let has_message = !fds[0].revents().is_empty();
        for index in 0..self.rings.len() {
            self.work(index);
        }
        !has_message || self.message()
    }

    fn work(&mut self, index: usize) {
        let Ring { queue: Some(queue), kick: Some(kick), call, .. } = &mut self.rings[index] else { return };
        // Not blocking: most often it was another's.
        let _ = kick.read(&mut [0; 8]);
        if self.behaviour.idle.load(Ordering::SeqCst) {
            return;
        }
        let memory = &self.memory;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let (mut text, mut written) = (Vec::new(), 0);
            let head = chain.head_index();
            for buffer in chain {
                let mut bytes = vec![0; buffer.len() as usize];
                if buffer.is_write_only() {
                    let rest = text.split_off(bytes.len().min(text.len()));
                    memory.write_slice(&text, buffer.addr()).unwrap();
                    written += text.len();
                    text = rest;
                } else {
                    memory.read_slice(&mut bytes, buffer.addr()).unwrap();
                    text.extend(bytes.to_ascii_uppercase());
                }
            }
            let head = if self.behaviour.foreign.load(Ordering::SeqCst) { 77 } else { head };
            queue.add_used(memory, head, written as u32).unwrap();
            call.as_mut().unwrap().write_all(&1u64.to_le_bytes()).unwrap();
        }
    }

    fn message(&mut self) -> bool {
        let Some((kind, flags, body, mut fds)) = self.receive() else { return false };
        self.behaviour.heard.lock().unwrap().push(kind);
        if self.behaviour.mute {
            return true;
        }
        let mut fd = || File::from(fds.remove(0));
        match kind {
            request::GET_FEATURES => self.reply(kind, &self.behaviour.features.to_le_bytes()),
            request::GET_PROTOCOL_FEATURES => self.reply(kind, &(MQ | REPLY_ACK).to_le_bytes()),
            request::GET_QUEUE_NUM => self.reply(kind, &self.behaviour.queues.to_le_bytes()),
            request::SET_MEM_TABLE => {
                self.regions.clear();
                let mut ranges = Vec::new();
                for entry in body[8..].chunks(32) {
                    let region = Region { guest: long(entry, 0), len: long(entry, 8), user: long(entry, 16) };
                    let file = FileOffset::new(fd(), long(entry, 24));
                    ranges.push((GuestAddress(region.guest), region.len as usize, Some(file)));
                    self.regions.push(region);
                }
                self.memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
            }
            request::SET_VRING_NUM => self.rings[word(&body, 0) as usize].size = word(&body, 1),
            request::SET_VRING_ADDR => {
                self.rings[word(&body, 0) as usize].addresses = [8, 16, 24].map(|at| long(&body, at));
            }
            request::SET_VRING_CALL => self.rings[usize::from(body[0])].call = Some(fd()),
            request::SET_VRING_KICK => {
                let kick = fd();
                self.start(usize::from(body[0]), kick);
            }
            request::GET_VRING_BASE => {
                let ring = &mut self.rings[word(&body, 0) as usize];
                let base = ring.queue.take().map_or(0, |queue| queue.next_avail());
                ring.kick = None;
                let reply = [word(&body, 0).to_le_bytes(), u32::from(base).to_le_bytes()].concat();
                self.reply(kind, &reply);
            }
            _ => {}
        }
        // What has an answer of its own is not acknowledged besides.
        if flags & NEED_REPLY != 0 && !matches!(kind, request::GET_VRING_BASE | request::GET_QUEUE_NUM) {
            self.reply(kind, &0u64.to_le_bytes());
        }
        true
    }

    fn start(&mut self, index: usize, kick: File) {
        let place = |user: u64| {
            let region =
                self.regions.iter().find(|region| (region.user..region.user + region.len).contains(&user));
            let region = region.unwrap();
            GuestAddress(region.guest + (user - region.user))
        };
        let ring = &self.rings[index];
        let [descriptors, used, available] = ring.addresses.map(place);
        let mut queue = Queue::new(1024).unwrap();
        queue.set_size(ring.size as u16);
        queue.try_set_desc_table_address(descriptors).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.try_set_avail_ring_address(available).unwrap();
        queue.set_ready(true);
        let ring = &mut self.rings[index];
        (ring.queue, ring.kick) = (Some(queue), Some(kick));
    }

    fn reply(&self, kind: u32, body: &[u8]) {
        let header = [kind, VERSION | REPLY, body.len() as u32].map(u32::to_le_bytes).concat();
        (&self.socket).write_all(&[&header, body].concat()).unwrap();
    }

    fn receive(&self) -> Option<(u32, u32, Vec<u8>, Vec<OwnedFd>)> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut header)];
        let got = recvmsg(&self.socket, parts, &mut control, RecvFlags::WAITALL).ok()?;
        if got.bytes < header.len() {
            return None;
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                fds.extend(some);
            }
        }
        let mut body = vec![0; word(&header, 2) as usize];
        (&self.socket).read_exact(&mut body).ok()?;
        Some((word(&header, 0), word(&header, 1), body, fds))
    }
}
