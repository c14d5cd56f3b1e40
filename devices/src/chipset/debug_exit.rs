//! ISA debug-exit: the guest ends the program with a status of its choice (QEMU documentation, `isa-debug-exit`).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::device::Device;
use crate::system::{SystemControl, SystemRequest};

pub mod spec;

/// Sits at `iobase`, `iosize` ports long.
pub struct DebugExit {
    control: Arc<dyn SystemControl>,
}

impl DebugExit {
    /// Asks `control` to end the program.
    pub fn new(control: Arc<dyn SystemControl>) -> Arc<Self> {
        Arc::new(Self { control })
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        let len = data.len().min(4);
        bytes[..len].copy_from_slice(&data[..len]);
        self.control.request(SystemRequest::Exit(spec::exit_status(u32::from_le_bytes(bytes))));
    }
}

impl Device for DebugExit {
    fn name(&self) -> &'static str {
        "isa-debug-exit"
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn the_status_is_twice_the_value_and_one() {
        let requests = Requests::new();
        let device = DebugExit::new(requests.clone());
        device.write(0, &[0]);
        device.write(0, &[0x10, 0]);
        device.write(0, &[0x2a, 0xff, 0, 0]);
        assert_eq!(requests.take(), [1, 0x21, 0x55].map(SystemRequest::Exit));
        let mut data = [0xff; 4];
        device.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
