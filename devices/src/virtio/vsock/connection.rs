//! One stream between a program of the guest and one of the host, each end of which may be closed by itself.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::spec::{HOST_CID, Header, TYPE_STREAM, op, shutdown};

/// Bytes of the guest's that wait for the host's program at most.
pub(super) const BUFFER_BYTES: u32 = 128 << 10;
/// After so many bytes have gone on, the guest is told of it even if there is nothing else to say.
const CREDIT_STEP: u32 = BUFFER_BYTES / 4;
/// `CONNECT`, a port, a newline.
const MAX_GREETING: usize = 32;

/// How far a stream is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// A program of the host has connected, and said this so far.
    Greeting(Vec<u8>),
    /// The guest has been asked.
    Requested,
    /// Bytes flow.
    Established,
    /// The guest has closed it: what it sent before goes on to the host's program.
    Draining,
}

pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) state: State,
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
    /// There may be something to read from the host's program.
    pub(super) is_readable: bool,
    /// It is among those that may have something to say.
    pub(super) is_queued: bool,
    /// An answer that is due: a request or a response.
    due: Option<u16>,
    wants_credit_told: bool,
    has_asked_for_credit: bool,
    /// Bytes for the host's program.
    to_host: VecDeque<u8>,
    /// Bytes that the guest has sent, those that went on, and what it knows of that.
    received: u32,
    forwarded: u32,
    told: u32,
    /// Bytes that went to the guest, and what it says of its room.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// What the guest does no more.
    guest_shutdown: u32,
    /// What the host's program does no more, and what the guest knows of it.
    host_shutdown: u32,
    told_shutdown: u32,
    /// The host's program is gone; what it sent before may still be there.
    is_hung_up: bool,
}

impl Connection {
    fn new(stream: UnixStream, state: State, guest_port: u32, host_port: u32) -> Self {
        Self {
            stream,
            state,
            guest_port,
            host_port,
            // The first report may have come already.
            is_readable: true,
            is_queued: false,
            due: None,
            wants_credit_told: false,
            has_asked_for_credit: false,
            to_host: VecDeque::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            is_hung_up: false,
        }
    }

    /// One that a program of the host has begun.
    pub(super) fn of_host(stream: UnixStream) -> Self {
        Self::new(stream, State::Greeting(Vec::new()), 0, 0)
    }

    /// One that the guest has asked for, and gets.
    pub(super) fn of_guest(stream: UnixStream, request: &Header) -> Self {
        let new = Self::new(stream, State::Established, request.src_port, request.dst_port);
        Self { due: Some(op::RESPONSE), ..new }
    }

    /// Reads on in what the host's program says to begin with. The port that it wants, once that is known.
    pub(super) fn greet(&mut self) -> io::Result<Option<u32>> {
        let State::Greeting(said) = &mut self.state else { return Ok(None) };
        // Not a byte more than the line: the rest is the guest's.
        let mut byte = [0];
        while said.len() < MAX_GREETING {
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) if byte == *b"\n" => {
                    let port = port_of(said);
                    return port.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into());
                }
                Ok(_) => said.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.is_readable = false;
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Asks the guest.
    pub(super) fn request(&mut self, guest_port: u32, host_port: u32) {
        (self.guest_port, self.host_port) = (guest_port, host_port);
        self.state = State::Requested;
        self.due = Some(op::REQUEST);
    }

    /// The guest has said yes, and the host's program hears of it.
    pub(super) fn establish(&mut self) -> io::Result<()> {
        self.state = State::Established;
        let line = format!("OK {}\n", self.host_port);
        // Nothing was written before: there is room for it.
        self.stream.write_all(line.as_bytes())
    }

    /// What each packet of the guest says of its room.
    pub(super) fn note_credit(&mut self, header: &Header) {
        (self.peer_buf_alloc, self.peer_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
        if self.credit() > 0 {
            self.has_asked_for_credit = false;
        }
    }

    fn credit(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_fwd_cnt))
    }

    /// The guest wants to know how much room there is.
    pub(super) fn tell_credit(&mut self) {
        self.wants_credit_told = true;
    }

    /// Takes bytes of the guest. False: it has sent more than there was room for, or after it said that it would not.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let count = bytes.len() as u64;
        let waiting = u64::from(self.received.wrapping_sub(self.forwarded));
        if waiting + count > u64::from(BUFFER_BYTES) || self.guest_shutdown & shutdown::SEND != 0 {
            return false;
        }
        self.received = self.received.wrapping_add(count as u32);
        self.to_host.extend(bytes);
        self.flush();
        true
    }

    fn forward(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX));
        self.wants_credit_told |= self.forwarded.wrapping_sub(self.told) >= CREDIT_STEP;
    }

    /// The host's program takes bytes again.
    pub(super) fn flush(&mut self) {
        while !self.to_host.is_empty() {
            match self.stream.write(self.to_host.as_slices().0) {
                Ok(0) => break,
                Ok(written) => {
                    self.to_host.drain(..written);
                    self.forward(written);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_for_later(&error) => return,
                Err(_) => {
                    self.give_up_writing();
                    break;
                }
            }
        }
        if self.guest_shutdown & shutdown::SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// The host's program takes no more. What the guest sends on is dropped, until it knows.
    fn give_up_writing(&mut self) {
        self.host_shutdown |= shutdown::RECEIVE;
        self.to_host.clear();
        self.forwarded = self.received;
    }

    /// All that the guest sent is with the host's program, or can never be.
    pub(super) fn is_flushed(&self) -> bool {
        self.to_host.is_empty()
    }

    /// The host's program is gone.
    pub(super) fn hang_up(&mut self) {
        self.is_hung_up = true;
        self.is_readable = true;
        if self.host_shutdown & shutdown::SEND != 0 {
            self.host_shutdown |= shutdown::RECEIVE;
        }
    }

    /// The guest does no more what `flags` say. True: neither.
    pub(super) fn shut(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.guest_shutdown & shutdown::RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush();
        self.guest_shutdown == shutdown::BOTH
    }

    /// What there is to say to the guest, with up to `room` bytes in `payload`; `None`: nothing now.
    pub(super) fn next(&mut self, room: usize, payload: &mut Vec<u8>) -> Option<Header> {
        payload.clear();
        if let Some(op) = self.due.take() {
            return Some(self.header(op));
        }
        if self.state != State::Established {
            return None;
        }
        if self.is_readable && self.host_shutdown & shutdown::SEND == 0 {
            if self.guest_shutdown & shutdown::RECEIVE != 0 {
                // Nobody will read it.
                self.is_readable = false;
            } else if self.credit() > 0 {
                self.read(room.min(self.credit() as usize), payload);
            } else if !self.has_asked_for_credit {
                self.has_asked_for_credit = true;
                return Some(self.header(op::CREDIT_REQUEST));
            }
        }
        if !payload.is_empty() {
            self.sent = self.sent.wrapping_add(payload.len() as u32);
            let len = payload.len() as u32;
            return Some(Header { len, ..self.header(op::RW) });
        }
        if self.host_shutdown != self.told_shutdown {
            self.told_shutdown = self.host_shutdown;
            return Some(Header { flags: self.host_shutdown, ..self.header(op::SHUTDOWN) });
        }
        if self.wants_credit_told {
            return Some(self.header(op::CREDIT_UPDATE));
        }
        None
    }

    fn read(&mut self, room: usize, payload: &mut Vec<u8>) {
        if room == 0 {
            return;
        }
        payload.resize(room, 0);
        let end = match self.stream.read(payload) {
            Ok(count) => {
                payload.truncate(count);
                count == 0
            }
            Err(error) => {
                payload.clear();
                self.is_readable = error.kind() == io::ErrorKind::Interrupted;
                !is_for_later(&error) && !self.is_readable
            }
        };
        if end {
            // A program that is gone receives nothing either.
            let gone = if self.is_hung_up { shutdown::RECEIVE } else { 0 };
            self.host_shutdown |= shutdown::SEND | gone;
        }
    }

    fn header(&mut self, op: u16) -> Header {
        self.told = self.forwarded;
        self.wants_credit_told = false;
        Header {
            src_cid: HOST_CID,
            src_port: self.host_port,
            dst_port: self.guest_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// The port of `CONNECT 1234`.
fn port_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, port) = line.trim_end_matches('\r').split_once(' ')?;
    let port = port.parse().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
    port.filter(|_| word.eq_ignore_ascii_case("connect"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings() {
        assert_eq!(port_of(b"CONNECT 1234"), Some(1234));
        assert_eq!(port_of(b"connect 4294967295\r"), Some(u32::MAX));
        for bad in
            ["CONNECT", "CONNECT ", "CONNECT x", "CONNECT +1", "CONNECT 4294967296", "DISCONNECT 1", ""]
        {
            assert_eq!(port_of(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn credit_of_a_guest_that_lies() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let mut connection = Connection::of_guest(stream, &Header::default());
        for (buf_alloc, fwd_cnt, credit) in
            [(0, 0, 0), (10, 0, 10), (10, 1, 0), (u32::MAX, u32::MAX, u32::MAX - 1)]
        {
            connection.note_credit(&Header { buf_alloc, fwd_cnt, ..Header::default() });
            assert_eq!(connection.credit(), credit, "{buf_alloc} {fwd_cnt}");
        }
    }
}
