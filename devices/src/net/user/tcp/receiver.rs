//! The half of a connection that takes from the guest (RFC 9293, 3.8.6).
//!
//! The window is the room in the ring: while the host's socket takes everything it stays open, and closes as the ring fills.
//! Segments on the cable come in order; one out of order was preceded by a loss in the guest, and is sent again.

use super::ring::{Budget, Ring};
use super::segment::{Segment, ahead};
use super::sender::MAX_SEGMENT;

/// What is taken from the guest ahead of the host.
pub(super) const CAPACITY_BYTES: usize = 512 << 10;
/// The unit of windows, as a shift.
pub(super) const SCALE: u8 = 5;

pub(super) struct Receiver {
    pub(super) ring: Ring,
    /// What comes next.
    nxt: u32,
    /// The end of the window as the guest knows it.
    edge: u32,
    scale: u8,
    /// The largest window that the guest can be told.
    limit: usize,
    /// The guest has ended its stream.
    has_ended: bool,
    /// The guest is to be told of what came, or of more window.
    pub(super) ack_due: bool,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            ring: Ring::default(),
            nxt: 0,
            edge: 0,
            scale: 0,
            limit: 0xffff,
            has_ended: false,
            ack_due: false,
        }
    }

    /// What the guest's SYN says of it.
    pub(super) fn meet(&mut self, syn: &Segment) {
        self.nxt = syn.seq.wrapping_add(1);
        self.edge = self.nxt;
        if syn.window_scale.is_some() {
            self.scale = SCALE;
        }
        self.limit = CAPACITY_BYTES.min(0xffff << self.scale);
    }

    pub(super) fn next_seq(&self) -> u32 {
        self.nxt
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether `segment` touches the window, or what came before it.
    pub(super) fn is_acceptable(&self, segment: &Segment) -> bool {
        ahead(segment.seq, self.nxt) <= CAPACITY_BYTES as i32
    }

    /// The part of a segment's payload that comes next, and whether the stream ends behind it.
    pub(super) fn news<'a>(&mut self, segment: &Segment<'a>) -> (&'a [u8], bool) {
        let ahead = ahead(segment.seq, self.nxt);
        if segment.len() == 0 {
            // A keep-alive's question is answered.
            self.ack_due |= ahead != 0;
            return (&[], false);
        }
        self.ack_due = true;
        let known = usize::try_from(-i64::from(ahead)).unwrap_or(usize::MAX);
        if self.has_ended || known > segment.payload.len() {
            return (&[], false);
        }
        (&segment.payload[known..], segment.fin)
    }

    /// `count` bytes went straight to the host.
    pub(super) fn passed(&mut self, count: usize) {
        self.nxt = self.nxt.wrapping_add(count as u32);
    }

    /// Keeps what it has room for; whether that was everything. The rest comes again.
    pub(super) fn keep(&mut self, bytes: &[u8], budget: &mut Budget) -> bool {
        let kept = self.ring.push(bytes, CAPACITY_BYTES, budget);
        self.passed(kept);
        kept == bytes.len()
    }

    /// The guest's stream ends here.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
        self.passed(1);
    }

    fn room(&self) -> usize {
        self.limit.saturating_sub(self.ring.len())
    }

    fn known_room(&self) -> usize {
        usize::try_from(ahead(self.edge, self.nxt)).unwrap_or(0)
    }

    /// The ring has been emptied somewhat: a guest that waits for that is told.
    pub(super) fn drained(&mut self) {
        if self.room().saturating_sub(self.known_room()) >= self.limit / 4 {
            self.ack_due = true;
        }
    }

    /// The window field of a segment that goes out now. `scaled`: not in a SYN.
    pub(super) fn window(&mut self, scaled: bool) -> u16 {
        let scale = if scaled { self.scale } else { 0 };
        let (room, known) = (self.room(), self.known_room());
        // Not in crumbs.
        let window = if room < known + usize::from(MAX_SEGMENT) { known } else { room };
        let field = (window >> scale).min(0xffff) as u16;
        self.edge = self.nxt.wrapping_add(u32::from(field) << scale);
        field
    }
}
