//! POST code port. IBM PC AT Technical Reference, *I/O Address Map*.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::device::Device;

pub mod spec;

/// Takes POST codes and remembers the last.
#[derive(Debug, Default)]
pub struct PostPort(AtomicU8);

impl PostPort {
    /// The port, zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The last code, for a crash report.
    pub fn last_code(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

impl BusDevice for PostPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.last_code());
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&code) = data.first() {
            self.0.store(code, Ordering::Relaxed);
        }
    }
}

impl Device for PostPort {
    fn name(&self) -> &'static str {
        "POST port"
    }

    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_code_stays() {
        let port = PostPort::new();
        port.write(0, &[0x3a]);
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!((data[0], port.last_code()), (0x3a, 0x3a));
    }
}
