//! A connection's buffer for one direction, and what all of them may take together.

use std::io::{self, IoSliceMut};

/// What a buffer may take without asking, so that every connection goes on when memory is short.
pub(in super::super) const SMALL_BYTES: usize = 4096;

/// What is left for buffers above [`SMALL_BYTES`].
#[derive(Debug)]
pub(in super::super) struct Budget {
    pub(in super::super) left_bytes: usize,
}

/// Bytes in order. Takes no memory while it is empty and let go.
#[derive(Default)]
pub(super) struct Ring {
    data: Box<[u8]>,
    head: usize,
    len: usize,
}

impl Ring {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for `wanted` bytes in all, at most `limit`, as far as the budget goes; the room there is then.
    fn grow(&mut self, wanted: usize, limit: usize, budget: &mut Budget) -> usize {
        if wanted > self.data.len() {
            let mut size = wanted.next_power_of_two().clamp(SMALL_BYTES, limit.next_power_of_two());
            let extra = |size: usize| size - self.data.len().max(SMALL_BYTES);
            while size > self.data.len().max(SMALL_BYTES) && extra(size) > budget.left_bytes {
                size /= 2;
            }
            if size > self.data.len() {
                budget.left_bytes -= extra(size);
                let mut data = vec![0; size].into_boxed_slice();
                let [first, second] = self.slices(0, self.len);
                data[..first.len()].copy_from_slice(first);
                data[first.len()..self.len].copy_from_slice(second);
                (self.data, self.head) = (data, 0);
            }
        }
        self.data.len().min(limit).saturating_sub(self.len)
    }

    /// Appends as much as there is room for; how much that was.
    pub(super) fn push(&mut self, bytes: &[u8], limit: usize, budget: &mut Budget) -> usize {
        let count = self.grow(self.len + bytes.len(), limit, budget).min(bytes.len());
        let [first, second] = self.vacant(count);
        let (head, tail) = bytes[..count].split_at(first.len());
        first.copy_from_slice(head);
        second.copy_from_slice(tail);
        self.len += count;
        count
    }

    /// Appends what `read` brings, at most `wanted` bytes; how many it was asked for, and what it said.
    pub(super) fn fill(
        &mut self,
        wanted: usize,
        limit: usize,
        budget: &mut Budget,
        read: impl FnOnce(&mut [IoSliceMut]) -> io::Result<usize>,
    ) -> (usize, io::Result<usize>) {
        let count = self.grow(self.len + wanted, limit, budget).min(wanted);
        let [first, second] = self.vacant(count);
        let result = read(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]);
        if let Ok(got) = &result {
            self.len += got;
        }
        (count, result)
    }

    /// The next `count` free bytes.
    fn vacant(&mut self, count: usize) -> [&mut [u8]; 2] {
        if count == 0 {
            return [&mut [], &mut []];
        }
        let size = self.data.len();
        let start = (self.head + self.len) % size;
        let first = count.min(size - start);
        let (low, high) = self.data.split_at_mut(start);
        [&mut high[..first], &mut low[..count - first]]
    }

    /// `count` bytes from `offset` on.
    pub(super) fn slices(&self, offset: usize, count: usize) -> [&[u8]; 2] {
        if count == 0 {
            return [&[], &[]];
        }
        let size = self.data.len();
        let start = (self.head + offset) % size;
        let first = count.min(size - start);
        [&self.data[start..start + first], &self.data[..count - first]]
    }

    /// Forgets the first `count` bytes.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.len);
        self.len -= count;
        self.head = if self.len == 0 { 0 } else { (self.head + count) % self.data.len() };
    }

    /// Gives the memory back; the bytes, too.
    pub(super) fn release(&mut self, budget: &mut Budget) {
        budget.left_bytes += self.data.len().max(SMALL_BYTES) - SMALL_BYTES;
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 64 << 10;

    fn content(ring: &Ring) -> Vec<u8> {
        ring.slices(0, ring.len()).concat()
    }

    #[test]
    fn order_is_kept_around_the_end_and_through_growth() {
        let mut budget = Budget { left_bytes: LIMIT };
        let (mut ring, mut model, mut next) = (Ring::default(), Vec::new(), 0u8);
        for step in 0..400 {
            let bytes: Vec<u8> = (0..(step * 37) % 1900).map(|n| next.wrapping_add(n as u8)).collect();
            let count = ring.push(&bytes, LIMIT, &mut budget);
            next = next.wrapping_add(count as u8);
            model.extend(&bytes[..count]);
            let gone = (step * 53) % 1800 % (model.len() + 1);
            ring.consume(gone);
            model.drain(..gone);
            assert!(content(&ring) == model && model.len() <= LIMIT, "step {step}");
        }
        assert!(budget.left_bytes < LIMIT);
        ring.release(&mut budget);
        assert_eq!((budget.left_bytes, ring.len()), (LIMIT, 0));
    }

    #[test]
    fn without_a_budget_there_is_still_a_little() {
        let mut budget = Budget { left_bytes: 0 };
        let mut ring = Ring::default();
        assert_eq!(ring.push(&[1; 10_000], LIMIT, &mut budget), SMALL_BYTES);
        ring.consume(100);
        assert_eq!(ring.push(&[2; 10_000], LIMIT, &mut budget), 100);
        let (asked, result) = ring.fill(500, LIMIT, &mut budget, |slices| {
            assert!(slices.iter().all(|slice| slice.is_empty()));
            Ok(0)
        });
        assert_eq!((asked, result.unwrap()), (0, 0));
    }
}
