//! One connection: the guest's end is terminated here, the other is a socket of the host.
//!
//! ```text
//! the guest connects:  SYN --> Connecting --the host's connect has succeeded--> SynReceived --ACK--> Open
//! hostfwd=:            accept --> SynSent --SYN+ACK--> Open
//! the end:             Open --both streams have ended, both FINs are acknowledged--> Closed, or TimeWait if our FIN went first
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use smoltcp::wire::TcpControl;

use super::super::Turn;
use super::super::link::Link;
use super::output::{self, Outlet};
use super::receiver::{self, Receiver};
use super::ring::Budget;
use super::segment::{Header, Segment, ahead};
use super::sender::{Sender, max_segment};
use crate::net::poller::{Readiness, Time};

/// How long a closed connection still answers a FIN that comes again. Not the Internet's minutes: the cable holds nothing back.
const TIME_WAIT: Duration = Duration::from_secs(2);
/// Payloads of this size go to the host at once, smaller ones together.
const LARGE_BYTES: usize = 8 << 10;
/// What one connection sends before it is another's turn.
const TURN_BYTES: usize = 512 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Phase {
    /// The host's connect is under way; the guest waits.
    Connecting,
    /// SYN+ACK goes to the guest.
    SynReceived,
    /// SYN goes to the guest.
    SynSent,
    /// Bytes go both ways, or still one.
    Open,
    /// The socket is closed; a FIN that comes again is answered.
    TimeWait,
    /// To be forgotten.
    Closed,
}

/// How a connection breaks.
#[derive(Debug)]
pub(in super::super) enum Break {
    /// The host's connect failed: the guest is to be told why.
    Refused(io::Error),
    /// Anything else: both ends are reset.
    Reset,
}

pub(in super::super) struct Connection {
    pub(in super::super) guest: SocketAddr,
    /// The other end, as the guest calls it.
    pub(in super::super) remote: SocketAddr,
    pub(in super::super) phase: Phase,
    socket: Option<TcpStream>,
    ready: Readiness,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    initial: u32,
    /// The guest offered window scaling, or is offered it.
    scales: bool,
    /// SYN, or SYN+ACK, is to be sent.
    syn_due: bool,
    /// The host's socket knows that the guest's stream has ended.
    is_shut: bool,
    /// The guest's FIN came before ours: the guest waits, not we.
    guest_ended_first: bool,
    /// When to be called in time-wait.
    waits_until: Option<Time>,
}

impl Connection {
    fn new(guest: SocketAddr, remote: SocketAddr, socket: TcpStream, initial: u32, phase: Phase) -> Self {
        Self {
            guest,
            remote,
            phase,
            socket: Some(socket),
            ready: Readiness::default(),
            sender: Sender::new(initial, max_segment(guest.ip())),
            receiver: Receiver::new(),
            initial,
            scales: true,
            syn_due: false,
            is_shut: false,
            guest_ended_first: false,
            waits_until: None,
        }
    }

    /// The guest's SYN has come, and `socket` is being connected.
    pub(super) fn outbound(
        guest: SocketAddr,
        remote: SocketAddr,
        socket: TcpStream,
        initial: u32,
        syn: &Segment,
    ) -> Self {
        let mut connection = Self::new(guest, remote, socket, initial, Phase::Connecting);
        connection.scales = syn.window_scale.is_some();
        connection.sender.meet(syn);
        connection.receiver.meet(syn);
        connection
    }

    /// `socket` was accepted for the guest.
    pub(super) fn inbound(guest: SocketAddr, remote: SocketAddr, socket: TcpStream, initial: u32) -> Self {
        let mut connection = Self::new(guest, remote, socket, initial, Phase::SynSent);
        connection.syn_due = true;
        connection
    }

    /// The socket has something to say.
    pub(in super::super) fn report(&mut self, readiness: Readiness) -> Result<(), Break> {
        self.ready = self.ready.and(readiness);
        if self.phase == Phase::Connecting && (readiness.writable || readiness.hung_up) {
            match self.socket.as_ref().and_then(|socket| socket.take_error().transpose()) {
                Some(Ok(error) | Err(error)) => return Err(Break::Refused(error)),
                None => self.connected(),
            }
        }
        Ok(())
    }

    /// The host's connect has succeeded.
    pub(super) fn connected(&mut self) {
        self.phase = Phase::SynReceived;
        self.syn_due = true;
        self.ready.writable = true;
    }

    /// When [`Connection::expire`] is to be called.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.waits_until.or(self.sender.deadline)
    }

    /// The deadline has come.
    pub(super) fn expire(&mut self) -> Result<(), Break> {
        if self.phase == Phase::TimeWait {
            self.phase = Phase::Closed;
            return Ok(());
        }
        self.syn_due |= matches!(self.phase, Phase::SynSent | Phase::SynReceived);
        if self.sender.expire() { Ok(()) } else { Err(Break::Reset) }
    }

    /// A segment from the guest.
    pub(super) fn segment(&mut self, segment: &Segment, budget: &mut Budget, now: Time) -> Result<(), Break> {
        match self.phase {
            Phase::Connecting if segment.rst => return Err(Break::Reset),
            Phase::Connecting | Phase::Closed => return Ok(()),
            Phase::TimeWait => {
                self.receiver.ack_due = segment.len() > 0 && !segment.rst;
                return Ok(());
            }
            Phase::SynSent => {
                let is_ours = segment.ack == Some(self.initial.wrapping_add(1));
                if segment.rst && is_ours {
                    return Err(Break::Reset);
                }
                if segment.syn && is_ours && !segment.rst {
                    self.scales = segment.window_scale.is_some();
                    self.sender.meet(segment);
                    self.receiver.meet(segment);
                    self.open(segment);
                    self.receiver.ack_due = true;
                }
                return Ok(());
            }
            Phase::SynReceived if segment.syn && segment.ack.is_none() => {
                // It missed the answer.
                self.syn_due |= segment.seq.wrapping_add(1) == self.receiver.next_seq();
                return Ok(());
            }
            Phase::SynReceived | Phase::Open => {}
        }
        if segment.rst {
            // In the window; RFC 5961's exactness would guard against strangers, of whom there are none on the cable.
            let distance = ahead(segment.seq, self.receiver.next_seq());
            return if (0..=receiver::CAPACITY_BYTES as i32).contains(&distance) {
                Err(Break::Reset)
            } else {
                Ok(())
            };
        }
        let Some(ack) = segment.ack else { return Ok(()) };
        if segment.syn || !self.receiver.is_acceptable(segment) {
            self.receiver.ack_due = true;
            return Ok(());
        }
        if self.phase == Phase::SynReceived {
            if ack != self.initial.wrapping_add(1) {
                return Err(Break::Reset);
            }
            self.open(segment);
        } else if !self.sender.acknowledge(segment, ack, now) {
            self.receiver.ack_due = true;
            return Ok(());
        }
        self.take(segment, budget)
    }

    fn open(&mut self, segment: &Segment) {
        self.phase = Phase::Open;
        self.syn_due = false;
        self.sender.open(segment);
        // Whatever was reported so far, reading and writing say how it is.
        (self.ready.readable, self.ready.writable) = (true, true);
    }

    /// What the guest sent goes to the host, or waits for it.
    fn take(&mut self, segment: &Segment, budget: &mut Budget) -> Result<(), Break> {
        let (mut news, ends) = self.receiver.news(segment);
        if news.len() >= LARGE_BYTES && self.receiver.ring.is_empty() && self.ready.writable {
            let written = self.write(news)?;
            self.receiver.passed(written);
            news = &news[written..];
        }
        let is_all = self.receiver.keep(news, budget);
        if ends && is_all {
            self.guest_ended_first = !self.sender.is_end_sent();
            self.receiver.end();
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Break> {
        let Some(socket) = &mut self.socket else { return Err(Break::Reset) };
        match socket.write(bytes) {
            Ok(written) => Ok(written),
            Err(error) => match error.kind() {
                ErrorKind::Interrupted => Ok(0),
                ErrorKind::WouldBlock => {
                    self.ready.writable = false;
                    Ok(0)
                }
                _ => Err(Break::Reset),
            },
        }
    }

    /// What waited goes to the host, as far as it goes.
    fn drain(&mut self, budget: &mut Budget) -> Result<(), Break> {
        while self.ready.writable && !self.receiver.ring.is_empty() {
            let ring = std::mem::take(&mut self.receiver.ring);
            let result = self.write(ring.slices(0, ring.len())[0]);
            self.receiver.ring = ring;
            self.receiver.ring.consume(result?);
        }
        self.receiver.drained();
        if self.receiver.ring.is_empty() {
            self.receiver.ring.release(budget);
            if self.receiver.has_ended() && !self.is_shut {
                self.is_shut = true;
                if let Some(socket) = &self.socket {
                    // A peer that is gone already is found out by reading.
                    let _ = socket.shutdown(Shutdown::Write);
                }
            }
        }
        Ok(())
    }

    /// Fetches from the host what the guest has room for.
    fn fetch(&mut self, budget: &mut Budget) -> Result<(), Break> {
        while self.ready.readable {
            let wanted = self.sender.wanted();
            let Some(socket) = self.socket.as_mut().filter(|_| wanted > 0) else { return Ok(()) };
            let capacity = super::sender::CAPACITY_BYTES;
            let (asked, result) =
                self.sender.ring.fill(wanted, capacity, budget, |slices| socket.read_vectored(slices));
            match result {
                // There is no memory, so it was not asked.
                _ if asked == 0 => return Ok(()),
                Ok(0) => {
                    self.sender.end();
                    self.ready.readable = false;
                }
                // A socket with less than it was asked for is empty, and says when it is not; but not again that it ended.
                Ok(got) => self.ready.readable = got == asked || self.ready.hung_up,
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => self.ready.readable = false,
                    _ => return Err(Break::Reset),
                },
            }
        }
        Ok(())
    }

    /// Does what is to be done: writes to the host, reads from it, sends to the guest.
    pub(super) fn work(&mut self, outlet: &mut Outlet) -> Result<Turn, Break> {
        let turn = match self.phase {
            Phase::Connecting | Phase::Closed => return Ok(Turn::Done),
            Phase::SynSent | Phase::SynReceived => self.send_syn(outlet),
            Phase::TimeWait => self.send_ack(outlet),
            Phase::Open => {
                self.drain(outlet.budget)?;
                let turn = self.send_data(outlet)?;
                self.sender.arm(outlet.now);
                if turn == Turn::Done { self.send_ack(outlet) } else { turn }
            }
        };
        if self.phase == Phase::Open && self.is_shut && self.sender.is_end_acknowledged() {
            self.socket = None;
            self.sender.deadline = None;
            if self.guest_ended_first {
                self.phase = Phase::Closed;
            } else {
                self.phase = Phase::TimeWait;
                self.waits_until = Some(outlet.now + TIME_WAIT);
            }
        }
        Ok(turn)
    }

    fn send_syn(&mut self, outlet: &mut Outlet) -> Turn {
        if !self.syn_due {
            return Turn::Done;
        }
        let ack = (self.phase == Phase::SynReceived).then(|| self.receiver.next_seq());
        let header = Header {
            control: TcpControl::Syn,
            seq: self.initial,
            ack,
            window: self.receiver.window(false),
            max_segment: Some(max_segment(self.guest.ip())),
            window_scale: self.scales.then_some(receiver::SCALE),
            ..self.header()
        };
        if !output::send(outlet, &header, [&[], &[]], self.sender.segment_bytes()) {
            return Turn::NoRoom;
        }
        self.syn_due = false;
        let timeout = self.sender.timing.timeout();
        self.sender.deadline.get_or_insert(outlet.now + timeout);
        Turn::Done
    }

    fn send_data(&mut self, outlet: &mut Outlet) -> Result<Turn, Break> {
        let mut sent = 0;
        let max_len = output::max_payload(outlet, self.guest.ip(), self.sender.segment_bytes());
        loop {
            self.fetch(outlet.budget)?;
            let Some(chunk) = self.sender.next(max_len) else {
                self.sender.relax(outlet.budget);
                return Ok(Turn::Done);
            };
            if sent >= TURN_BYTES {
                return Ok(Turn::Again);
            }
            let control = match (chunk.fin, chunk.is_last) {
                (true, _) => TcpControl::Fin,
                (false, true) => TcpControl::Psh,
                (false, false) => TcpControl::None,
            };
            let window = self.receiver.window(true);
            let header = Header { control, seq: chunk.seq, window, ..self.header() };
            let pieces = self.sender.ring.slices(chunk.offset, chunk.len);
            if !output::send(outlet, &header, pieces, self.sender.segment_bytes()) {
                return Ok(Turn::NoRoom);
            }
            self.receiver.ack_due = false;
            self.sender.sent(&chunk, outlet.now);
            sent += chunk.len.max(1);
        }
    }

    fn send_ack(&mut self, outlet: &mut Outlet) -> Turn {
        if self.receiver.ack_due {
            let header = Header { window: self.receiver.window(true), ..self.header() };
            if !output::send(outlet, &header, [&[], &[]], self.sender.segment_bytes()) {
                return Turn::NoRoom;
            }
            self.receiver.ack_due = false;
        }
        Turn::Done
    }

    fn header(&self) -> Header {
        Header {
            source: self.remote,
            target: self.guest,
            control: TcpControl::None,
            seq: self.sender.next_seq(),
            ack: Some(self.receiver.next_seq()),
            window: 0,
            max_segment: None,
            window_scale: None,
        }
    }

    /// Ends it at once: the host's peer is reset, and the guest, if it is told so.
    pub(super) fn abort(&mut self, link: &mut Link, tell_guest: bool) {
        if let Some(socket) = self.socket.take() {
            // What is not sent is dropped, and closing resets.
            let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
        }
        if tell_guest && !matches!(self.phase, Phase::TimeWait | Phase::Closed) {
            let header = match self.phase {
                Phase::SynSent => Header { seq: self.initial, ack: None, ..self.header() },
                Phase::Connecting => Header { seq: 0, ..self.header() },
                _ => self.header(),
            };
            output::reset(link, header);
        }
        self.phase = Phase::Closed;
    }

    /// The first bytes of the SYN that the guest sent, for an error message that quotes it.
    pub(super) fn syn_seq(&self) -> u32 {
        self.receiver.next_seq().wrapping_sub(1)
    }

    /// Gives back what it has taken of the budget.
    pub(super) fn release(&mut self, budget: &mut Budget) {
        self.sender.ring.release(budget);
        self.receiver.ring.release(budget);
    }
}
