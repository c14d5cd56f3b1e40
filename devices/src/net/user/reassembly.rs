//! Fragments of packets from the guest, put together (RFC 791, 3.2; RFC 815; RFC 8200, 4.5).

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use smoltcp::wire::IpProtocol;

use crate::net::poller::Time;

/// Packets in the making; beyond, the oldest is given up.
const MAX_PACKETS: usize = 16;
/// How long a packet is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest payload of an IPv4 packet without options.
const MAX_BYTES: usize = 65535 - 20;

/// A piece of a packet's payload.
pub(super) struct Fragment<'a> {
    /// What the packet's pieces have in common.
    pub(super) key: Key,
    pub(super) offset: usize,
    /// It is not the last one.
    pub(super) more: bool,
    pub(super) piece: &'a [u8],
}

/// Which packet a piece belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) source: IpAddr,
    pub(super) target: IpAddr,
    pub(super) protocol: IpProtocol,
    pub(super) ident: u32,
}

struct Partial {
    key: Key,
    data: Vec<u8>,
    /// Which stretches are there: sorted, and none touches another.
    have: Vec<(usize, usize)>,
    /// The payload's length, once the last fragment is there.
    total: Option<usize>,
    expires: Time,
}

#[derive(Default)]
pub(super) struct Reassembly(VecDeque<Partial>);

impl Reassembly {
    /// Takes a fragment; the payload of its packet, if that is whole now.
    pub(super) fn add(&mut self, fragment: &Fragment, now: Time) -> Option<Vec<u8>> {
        self.0.retain(|partial| partial.expires > now);
        let Fragment { key, offset, more, piece } = *fragment;
        let end = offset + piece.len();
        // All but the last are in units of eight (and none is empty).
        if end > MAX_BYTES || piece.is_empty() || more && piece.len() % 8 != 0 {
            return None;
        }
        let index = self.0.iter().position(|partial| partial.key == key).unwrap_or_else(|| {
            if self.0.len() == MAX_PACKETS {
                self.0.pop_front();
            }
            let expires = now + PATIENCE;
            self.0.push_back(Partial { key, data: Vec::new(), have: Vec::new(), total: None, expires });
            self.0.len() - 1
        });
        let partial = &mut self.0[index];
        if !more {
            partial.total = Some(end);
        }
        if partial.total.is_some_and(|total| end > total || partial.data.len() > total) {
            // Its pieces contradict each other.
            self.0.remove(index);
            return None;
        }
        if partial.data.len() < end {
            partial.data.resize(end, 0);
        }
        partial.data[offset..end].copy_from_slice(piece);
        partial.note(offset, end);
        let whole = partial.total.is_some_and(|total| partial.have == [(0, total)]);
        whole.then(|| self.0.remove(index).expect("it was just found").data)
    }
}

impl Partial {
    fn note(&mut self, mut start: usize, mut end: usize) {
        self.have.retain(|&(from, to)| {
            let touches = from <= end && start <= to;
            if touches {
                (start, end) = (start.min(from), end.max(to));
            }
            !touches
        });
        let at = self.have.partition_point(|&(from, _)| from < start);
        self.have.insert(at, (start, end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(ident: u32, offset: usize, more: bool, piece: &[u8]) -> Fragment<'_> {
        let [source, target] = [[10, 0, 2, 15], [10, 0, 2, 2]].map(IpAddr::from);
        Fragment { key: Key { source, target, protocol: IpProtocol::Udp, ident }, offset, more, piece }
    }

    fn add(reassembly: &mut Reassembly, fragment: &Fragment, seconds: u64) -> Option<Vec<u8>> {
        reassembly.add(fragment, Time::from_secs(seconds))
    }

    #[test]
    fn in_any_order() {
        let data: Vec<u8> = (0..50).collect();
        let pieces = [(0, 16), (16, 32), (24, 40), (40, 50)];
        for rotation in 0..4 {
            let mut reassembly = Reassembly::default();
            let mut order = pieces;
            order.rotate_left(rotation);
            let mut last = None;
            for (start, end) in order {
                assert_eq!(last, None);
                last = add(&mut reassembly, &fragment(1, start, end != 50, &data[start..end]), 0);
            }
            assert_eq!(last.as_ref(), Some(&data), "rotated by {rotation}");
            assert!(reassembly.0.is_empty());
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut reassembly = Reassembly::default();
        for ident in 0..100 {
            add(&mut reassembly, &fragment(ident, 65_504, true, &[0; 8]), 0);
            add(&mut reassembly, &fragment(ident, 65_528, true, &[0; 8]), 0);
        }
        assert_eq!(reassembly.0.len(), MAX_PACKETS);
        assert!(reassembly.0.iter().all(|partial| partial.data.len() <= MAX_BYTES));
        add(&mut reassembly, &fragment(0, 0, true, &[0; 8]), 31);
        assert_eq!(reassembly.0.len(), 1);
    }

    #[test]
    fn contradictions_are_given_up() {
        let mut reassembly = Reassembly::default();
        add(&mut reassembly, &fragment(1, 64, true, &[0; 8]), 0);
        assert_eq!(add(&mut reassembly, &fragment(1, 0, false, &[0; 8]), 0), None);
        assert!(reassembly.0.is_empty());
    }
}
