//! All streams of a device: what the guest's packets do to them, and which packets there are for the guest.
//!
//! The host's sockets are watched edge-triggered: a change is remembered by its stream, and the descriptor falls silent while the
//! guest has no room, however much waits on the host.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, State};
use super::socket::HostSocket;
use super::spec::{HOST_CID, Header, TYPE_STREAM, op};

/// Streams at most, those included that only the host still has.
pub(super) const MAX_CONNECTIONS: usize = 4096;
/// Refusals that wait for room in the guest. With more, its packets wait.
const MAX_REPLIES: usize = 256;
/// The token of the socket to which programs connect.
const LISTENER: u64 = 0;
/// The host's ports of streams that the host began. A guest's programs do not expect a small one there.
const FIRST_HOST_PORT: u32 = 1 << 30;
const EVENTS: usize = 64;

pub(super) struct Mux {
    guest_cid: u64,
    socket: Arc<HostSocket>,
    epoll: Epoll,
    connections: HashMap<u64, Connection>,
    /// Tokens by the guest's and the host's port.
    tokens: HashMap<(u32, u32), u64>,
    /// Those that may have something to say to the guest, each once.
    queued: VecDeque<u64>,
    /// Refusals, without a stream of their own.
    replies: VecDeque<Header>,
    next_token: u64,
    next_host_port: u32,
}

impl Mux {
    pub(super) fn new(guest_cid: u64, socket: Arc<HostSocket>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        epoll.ctl(ControlOperation::Add, socket.fd()?, EpollEvent::new(events, LISTENER))?;
        Ok(Self {
            guest_cid,
            socket,
            epoll,
            connections: HashMap::new(),
            tokens: HashMap::new(),
            queued: VecDeque::new(),
            replies: VecDeque::new(),
            next_token: LISTENER + 1,
            next_host_port: FIRST_HOST_PORT,
        })
    }

    /// Readable when [`Mux::poll`] has something to do.
    pub(super) fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// The guest is not there any more: nor are its streams.
    pub(super) fn reset(&mut self) {
        self.connections.clear();
        self.tokens.clear();
        self.queued.clear();
        self.replies.clear();
    }

    /// Whether the guest's next packet can be taken.
    pub(super) fn has_room(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_packets(&self) -> bool {
        !self.replies.is_empty() || !self.queued.is_empty()
    }

    /// Streams that there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.connections.len()
    }

    /// Streams that may have something to say, with those that are gone.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queued.len()
    }

    /// Takes notice of what the host's programs have done.
    pub(super) fn poll(&mut self) {
        let mut events = [EpollEvent::default(); EVENTS];
        loop {
            let count = match self.epoll.wait(0, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(target: "virtio", %error, "vsock: the host's sockets cannot be watched");
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept(),
                    token => self.note(token, event.event_set()),
                }
            }
            if count < EVENTS {
                return;
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.socket.accept() {
                Ok(stream) => {
                    if let Some(token) = self.insert(Connection::of_host(stream)) {
                        self.greet(token);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // One that is gone already is not the last one.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(target: "virtio", %error, "vsock: a program cannot be let in");
                    return;
                }
            }
        }
    }

    /// Adds a stream, if there is room for it.
    fn insert(&mut self, connection: Connection) -> Option<u64> {
        if self.connections.len() >= MAX_CONNECTIONS {
            return None;
        }
        let token = self.next_token;
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, token);
        self.epoll.ctl(ControlOperation::Add, connection.stream.as_raw_fd(), event).ok()?;
        self.next_token += 1;
        self.connections.insert(token, connection);
        Some(token)
    }

    fn note(&mut self, token: u64, events: EventSet) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            connection.is_readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            connection.hang_up();
        }
        if events.intersects(EventSet::OUT | EventSet::HANG_UP | EventSet::ERROR) {
            connection.flush();
        }
        match connection.state {
            State::Greeting(_) => self.greet(token),
            State::Draining if connection.is_flushed() => self.remove(token),
            _ => self.queue(token),
        }
    }

    fn queue(&mut self, token: u64) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !std::mem::replace(&mut connection.is_queued, true)
        {
            // A guest that opens and resets streams, and has no room for what is said of them, leaves those that are gone.
            if self.queued.len() >= 2 * MAX_CONNECTIONS {
                self.queued.retain(|token| self.connections.contains_key(token));
            }
            self.queued.push_back(token);
        }
    }

    fn remove(&mut self, token: u64) {
        if let Some(gone) = self.connections.remove(&token) {
            let key = (gone.guest_port, gone.host_port);
            if self.tokens.get(&key) == Some(&token) {
                self.tokens.remove(&key);
            }
        }
    }

    /// A program of the host says to which port it wants.
    fn greet(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.greet() {
            Ok(None) => {}
            Ok(Some(guest_port)) => {
                let host_port = self.free_host_port(guest_port);
                if let Some(connection) = self.connections.get_mut(&token) {
                    connection.request(guest_port, host_port);
                }
                self.tokens.insert((guest_port, host_port), token);
                self.queue(token);
            }
            Err(error) => {
                tracing::debug!(target: "virtio", %error, "vsock: a program said nothing that makes sense");
                self.remove(token);
            }
        }
    }

    fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = FIRST_HOST_PORT + (port + 1) % FIRST_HOST_PORT;
            // There are more ports than streams.
            if !self.tokens.contains_key(&(guest_port, port)) {
                return port;
            }
        }
    }

    /// A packet of the guest's. `None` as its bytes: there are not as many as it says.
    pub(super) fn receive(&mut self, header: &Header, payload: Option<&[u8]>) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            tracing::debug!(target: "virtio", ?header, "vsock: a packet of or for somebody else");
            return;
        }
        let key = (header.src_port, header.dst_port);
        let token = self.tokens.get(&key).copied();
        let Some(payload) = payload.filter(|_| header.kind == TYPE_STREAM) else {
            return self.refuse(header, token);
        };
        let Some(connection) = token.and_then(|token| self.connections.get_mut(&token)) else {
            return match header.op {
                op::REQUEST => self.connect(header),
                op::RST => {}
                _ => self.refuse(header, None),
            };
        };
        let token = token.expect("there is a stream");
        connection.note_credit(header);
        let is_established = connection.state == State::Established;
        match header.op {
            op::RST => self.remove(token),
            op::RESPONSE if connection.state == State::Requested => {
                match connection.establish() {
                    Ok(()) => self.queue(token),
                    // The host's program did not wait for it.
                    Err(_) => self.refuse(header, Some(token)),
                }
            }
            op::RW if is_established && connection.take(payload) => self.queue(token),
            op::CREDIT_UPDATE if is_established => self.queue(token),
            op::CREDIT_REQUEST if is_established => {
                connection.tell_credit();
                self.queue(token);
            }
            op::SHUTDOWN if is_established => {
                if !connection.shut(header.flags) {
                    self.queue(token);
                } else if connection.is_flushed() {
                    self.refuse(header, Some(token));
                } else {
                    // To the guest it is over, and its ports are free.
                    connection.state = State::Draining;
                    self.tokens.remove(&key);
                    self.refuse(header, None);
                }
            }
            _ => self.refuse(header, Some(token)),
        }
    }

    /// The guest wants to the host's `dst_port`.
    fn connect(&mut self, request: &Header) {
        let connection = self.socket.connect(request.dst_port);
        let connection = connection.map(|stream| Connection::of_guest(stream, request));
        let token = match connection {
            Ok(mut connection) => {
                connection.note_credit(request);
                self.insert(connection)
            }
            Err(error) => {
                let port = request.dst_port;
                tracing::debug!(target: "virtio", %error, port, "vsock: nobody serves the guest");
                None
            }
        };
        match token {
            Some(token) => {
                self.tokens.insert((request.src_port, request.dst_port), token);
                self.queue(token);
            }
            None => self.refuse(request, None),
        }
    }

    /// Answers with a reset, and forgets the stream.
    fn refuse(&mut self, header: &Header, token: Option<u64>) {
        if let Some(token) = token {
            self.remove(token);
        }
        if header.op != op::RST {
            self.replies.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.guest_cid,
                src_port: header.dst_port,
                dst_port: header.src_port,
                kind: header.kind,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    /// The next packet for the guest, with up to `room` bytes behind it in `payload`. Streams take turns.
    pub(super) fn next(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<Header> {
        payload.clear();
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(token) = self.queued.pop_front() {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.is_queued = false;
            if let Some(header) = connection.next(room, payload) {
                let header = Header { dst_cid: self.guest_cid, ..header };
                self.queue(token);
                return Some(header);
            }
        }
        None
    }
}
