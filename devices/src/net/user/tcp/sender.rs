//! The half of a connection that sends to the guest (RFC 9293, 3.8; RFC 5681, 3.2; RFC 6582).
//!
//! There is no congestion to control on the cable: what the guest's window allows is sent. Frames get lost only inside the
//! guest; a loss is repaired as everywhere, one segment at a time.

use std::net::IpAddr;

use super::ring::{Budget, Ring};
use super::segment::{Segment, ahead};
use super::timing::Timing;
use crate::net::MTU_BYTES;
use crate::net::poller::Time;

/// The most that is read from the host ahead of the guest's acknowledgements.
pub(super) const CAPACITY_BYTES: usize = 512 << 10;
/// The largest payload on a cable of this MTU.
pub(super) const MAX_SEGMENT: u16 = (MTU_BYTES - 40) as u16;

/// The same over the IP of `address`.
pub(super) fn max_segment(address: IpAddr) -> u16 {
    // IPv6's header is 20 bytes longer.
    if address.is_ipv4() { MAX_SEGMENT } else { MAX_SEGMENT - 20 }
}

/// What a guest is taken to want that says nothing (RFC 9293, 3.7.1), and less than which nobody needs.
const DEFAULT_SEGMENT: u16 = 536;
const MIN_SEGMENT: u16 = 64;
/// How often in a row the time may be up before the guest is given up: a good five minutes.
const MAX_SILENCE: u32 = 10;

/// Something to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) seq: u32,
    /// Where its bytes begin in the ring.
    pub(super) offset: usize,
    pub(super) len: usize,
    /// The stream ends with it.
    pub(super) fin: bool,
    /// It goes up to the end of what there is.
    pub(super) is_last: bool,
    is_repeat: bool,
}

pub(super) struct Sender {
    /// What is not acknowledged: the bytes from `una` on.
    pub(super) ring: Ring,
    una: u32,
    /// What is sent next.
    nxt: u32,
    /// One past what was ever sent.
    max: u32,
    window: u32,
    /// The segment that the window is from: its SEQ and ACK.
    window_from: (u32, u32),
    scale: u8,
    segment: u16,
    max_segment: u16,
    /// The place of FIN, once the host has ended its stream.
    fin: Option<u32>,
    pub(super) timing: Timing,
    duplicates: u8,
    /// A loss is being repaired until this is acknowledged.
    recover: Option<u32>,
    /// The first segment is to be sent again.
    resend: bool,
    /// After a time-out: one segment until something is acknowledged.
    is_cautious: bool,
    /// The window is shut, and is to be tried.
    probe: bool,
    silence: u32,
    pub(super) deadline: Option<Time>,
}

impl Sender {
    /// `max_segment` is the largest payload that goes over the cable.
    pub(super) fn new(initial: u32, max_segment: u16) -> Self {
        Self {
            ring: Ring::default(),
            una: initial,
            nxt: initial,
            max: initial,
            window: 0,
            window_from: (0, 0),
            scale: 0,
            segment: DEFAULT_SEGMENT,
            max_segment,
            fin: None,
            timing: Timing::default(),
            duplicates: 0,
            recover: None,
            resend: false,
            is_cautious: false,
            probe: false,
            silence: 0,
            deadline: None,
        }
    }

    /// What the guest's SYN says of it.
    pub(super) fn meet(&mut self, syn: &Segment) {
        self.segment = syn.max_segment.unwrap_or(DEFAULT_SEGMENT).clamp(MIN_SEGMENT, self.max_segment);
        self.scale = syn.window_scale.unwrap_or(0);
        self.window_from = (syn.seq, self.una);
    }

    /// Our SYN, at the initial number, was acknowledged: the stream begins behind it.
    pub(super) fn open(&mut self, segment: &Segment) {
        self.una = self.una.wrapping_add(1);
        (self.nxt, self.max) = (self.una, self.una);
        // The window of a SYN is never scaled.
        self.window = u32::from(segment.window) << if segment.syn { 0 } else { self.scale };
        self.window_from = (segment.seq, self.una);
        self.silence = 0;
        self.deadline = None;
    }

    /// The number that the next new byte gets.
    pub(super) fn next_seq(&self) -> u32 {
        self.max
    }

    pub(super) fn segment_bytes(&self) -> u16 {
        self.segment
    }

    /// The host has ended its stream.
    pub(super) fn end(&mut self) {
        self.fin.get_or_insert(self.una.wrapping_add(self.ring.len() as u32));
    }

    pub(super) fn has_ended(&self) -> bool {
        self.fin.is_some()
    }

    pub(super) fn is_end_sent(&self) -> bool {
        self.fin.is_some_and(|fin| ahead(self.max, fin) > 0)
    }

    pub(super) fn is_end_acknowledged(&self) -> bool {
        self.fin.is_some_and(|fin| ahead(self.una, fin) > 0)
    }

    /// How much the host should be asked for.
    pub(super) fn wanted(&self) -> usize {
        let held = self.ring.len();
        if self.has_ended() || held >= CAPACITY_BYTES {
            return 0;
        }
        let segment = usize::from(self.segment);
        let room = (self.window as usize).saturating_sub(held).min(CAPACITY_BYTES - held);
        match held {
            // With a shut window, something to try it with.
            0 => room.max(segment),
            // Not in crumbs.
            _ if room < segment => 0,
            _ => room,
        }
    }

    /// An acknowledgement; false if it is for what was never sent.
    pub(super) fn acknowledge(&mut self, segment: &Segment, ack: u32, now: Time) -> bool {
        if ahead(ack, self.max) > 0 {
            return false;
        }
        let gained = ahead(ack, self.una);
        if gained < 0 {
            return true;
        }
        self.silence = 0;
        let window = u32::from(segment.window) << self.scale;
        let newer = ahead(segment.seq, self.window_from.0);
        let is_news = newer > 0 || newer == 0 && ahead(ack, self.window_from.1) >= 0;
        let old_window = self.window;
        if is_news {
            self.window = window;
            self.window_from = (segment.seq, ack);
        }
        if gained > 0 {
            self.ring.consume((gained as usize).min(self.ring.len()));
            self.una = ack;
            if ahead(self.nxt, ack) < 0 {
                self.nxt = ack;
            }
            self.timing.acknowledged(ack, now);
            self.duplicates = 0;
            self.is_cautious = false;
            self.deadline = None;
            match self.recover {
                // The next hole (RFC 6582, partial acknowledgement).
                Some(recover) if ahead(ack, recover) < 0 => self.resend = true,
                _ => self.recover = None,
            }
        } else if old_window == 0 && self.window > 0 {
            // What tried the window was not taken.
            self.nxt = self.una;
            self.is_cautious = false;
            self.deadline = None;
        } else if segment.len() == 0 && self.window == old_window && self.una != self.max {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == 3 && self.recover.is_none() {
                self.resend = true;
                self.recover = Some(self.max);
                self.timing.resent();
            }
        }
        true
    }

    /// The time is up; false if the guest has been silent for too long.
    pub(super) fn expire(&mut self) -> bool {
        self.deadline = None;
        self.silence += 1;
        self.timing.expired();
        self.nxt = self.una;
        self.is_cautious = true;
        self.probe = self.window == 0;
        (self.duplicates, self.recover, self.resend) = (0, None, false);
        self.silence <= MAX_SILENCE
    }

    /// What to send now: `max_len` bytes at most.
    pub(super) fn next(&self, max_len: usize) -> Option<Chunk> {
        let held = self.ring.len();
        let segment = usize::from(self.segment);
        if self.resend && self.una != self.max {
            let sent = ahead(self.max, self.una) as usize;
            let len = held.min(segment).min(sent);
            let fin = self.fin.is_some() && len == held && sent > held;
            return Some(Chunk { seq: self.una, offset: 0, len, fin, is_last: len == held, is_repeat: true });
        }
        let offset = ahead(self.nxt, self.una) as usize;
        // FIN has been sent if that is behind the bytes.
        let unsent = held.checked_sub(offset)?;
        let mut room = (self.window as usize).saturating_sub(offset);
        if self.is_cautious {
            room = room.min(segment.saturating_sub(offset));
        }
        if self.probe {
            room = room.max(1);
        }
        let len = unsent.min(room).min(max_len);
        let is_last = len == unsent;
        let fin = self.fin.is_some() && is_last && room > len;
        // A crumb of window is not worth a segment while an acknowledgement is on its way.
        let is_crumb = len < segment && !is_last && offset > 0 && !self.is_cautious;
        let is_repeat = self.nxt != self.max;
        (len > 0 && !is_crumb || fin).then_some(Chunk { seq: self.nxt, offset, len, fin, is_last, is_repeat })
    }

    /// `chunk` was sent.
    pub(super) fn sent(&mut self, chunk: &Chunk, now: Time) {
        let end = chunk.seq.wrapping_add(chunk.len as u32 + u32::from(chunk.fin));
        if self.resend && chunk.is_repeat && chunk.seq == self.una {
            self.resend = false;
        }
        self.probe = false;
        if ahead(end, self.nxt) > 0 {
            self.nxt = end;
        }
        if ahead(end, self.max) > 0 {
            self.max = end;
            if !chunk.is_repeat {
                self.timing.sent(end, now);
            }
        }
    }

    /// Sets the time by which something must happen, if anything is awaited.
    pub(super) fn arm(&mut self, now: Time) {
        let pending = !self.ring.is_empty() || self.fin.is_some() && !self.is_end_acknowledged();
        if self.una != self.max || pending {
            self.deadline.get_or_insert(now + self.timing.timeout());
        } else {
            self.deadline = None;
        }
    }

    /// Lets memory go that is not needed.
    pub(super) fn relax(&mut self, budget: &mut Budget) {
        if self.ring.is_empty() {
            self.ring.release(budget);
        }
    }
}

#[cfg(test)]
mod tests;
