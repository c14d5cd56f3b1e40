//! What the chips' tests share.

use crate::system::{SystemControl, SystemRequest};

/// Reproducible pseudo-random numbers (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1 << 63)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number of up to `bits` bits, each length as likely as the others.
    pub(crate) fn below_bits(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits + 1);
        self.below(1 << bits)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Records what devices ask of the machine.
#[derive(Default)]
pub(crate) struct Requests(std::sync::Mutex<Vec<SystemRequest>>);

impl Requests {
    pub(crate) fn new() -> std::sync::Arc<Self> {
        std::sync::Arc::default()
    }

    pub(crate) fn take(&self) -> Vec<SystemRequest> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl SystemControl for Requests {
    fn request(&self, request: SystemRequest) {
        self.0.lock().unwrap().push(request);
    }
}
