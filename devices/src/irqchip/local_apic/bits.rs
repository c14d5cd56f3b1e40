//! A bit for each of the 256 vectors, as in the IRR, ISR and TMR.

use std::sync::atomic::Ordering::SeqCst;

use crate::sync::AtomicU32;

#[derive(Debug, Default)]
pub(super) struct VectorBits([AtomicU32; 8]);

impl VectorBits {
    fn place(&self, vector: u8) -> (&AtomicU32, u32) {
        (&self.0[usize::from(vector >> 5)], 1 << (vector & 31))
    }

    /// True if it was clear.
    pub(super) fn set(&self, vector: u8) -> bool {
        let (word, bit) = self.place(vector);
        word.fetch_or(bit, SeqCst) & bit == 0
    }

    /// True if it was set.
    pub(super) fn clear(&self, vector: u8) -> bool {
        let (word, bit) = self.place(vector);
        // The TMR is cleared at every edge-triggered delivery, where it is clear already: spare the locked store.
        word.load(SeqCst) & bit != 0 && word.fetch_and(!bit, SeqCst) & bit != 0
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        let (word, bit) = self.place(vector);
        word.load(SeqCst) & bit != 0
    }

    pub(super) fn highest(&self) -> Option<u8> {
        (0..8u8).rev().find_map(|i| {
            let word = self.0[usize::from(i)].load(SeqCst);
            (word != 0).then(|| i * 32 + 31 - word.leading_zeros() as u8)
        })
    }

    /// Vectors `32 * index ..`, as the register shows them.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.0[index].load(SeqCst)
    }

    pub(super) fn clear_all(&self) {
        for word in &self.0 {
            word.store(0, SeqCst);
        }
    }
}
