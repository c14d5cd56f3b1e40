//! Registers whose bit resets the machine: Reset Control (port 0xcf9, also ACPI's reset register) and System Control
//! Port A (port 0x92). Intel 82371AB PIIX4; IBM PS/2 Hardware Interface Technical Reference.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::device::Device;
use crate::system::{SystemControl, SystemRequest};

pub mod spec;

use spec::{port_a, rc};

/// A byte register one bit of which resets the machine when it rises.
struct ResetRegister {
    value: AtomicU8,
    reset_bit: u8,
    writable: u8,
    at_reset: u8,
    control: Arc<dyn SystemControl>,
}

impl ResetRegister {
    fn read(&self, data: &mut [u8]) {
        data.fill(self.value.load(Ordering::SeqCst));
    }

    fn write(&self, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let old = self.value.swap(value & self.writable, Ordering::SeqCst);
        if value & !old & self.reset_bit != 0 {
            self.control.request(SystemRequest::Reset);
        }
    }

    fn reset(&self) {
        self.value.store(self.at_reset, Ordering::SeqCst);
    }
}

/// Reset Control, port 0xcf9.
pub struct ResetControl(ResetRegister);

impl ResetControl {
    /// Asks `control` for resets.
    pub fn new(control: Arc<dyn SystemControl>) -> Arc<Self> {
        let value = AtomicU8::new(0);
        Arc::new(Self(ResetRegister {
            value,
            reset_bit: rc::RCPU,
            writable: rc::HARD_RESET,
            at_reset: 0,
            control,
        }))
    }
}

/// System Control Port A, port 0x92. Address line 20 is never masked here; its bit is kept for software to read.
pub struct SystemControlPortA(ResetRegister);

impl SystemControlPortA {
    /// Asks `control` for resets.
    pub fn new(control: Arc<dyn SystemControl>) -> Arc<Self> {
        Arc::new(Self(ResetRegister {
            value: AtomicU8::new(port_a::GATE_A20),
            reset_bit: port_a::HOT_RESET,
            writable: port_a::HOT_RESET | port_a::GATE_A20,
            at_reset: port_a::GATE_A20,
            control,
        }))
    }
}

macro_rules! byte_register_device {
    ($device:ty, $name:literal) => {
        impl BusDevice for $device {
            fn read(&self, _offset: u64, data: &mut [u8]) {
                self.0.read(data);
            }

            fn write(&self, _offset: u64, data: &[u8]) {
                self.0.write(data);
            }
        }

        impl Device for $device {
            fn name(&self) -> &'static str {
                $name
            }

            fn reset(&self) {
                self.0.reset();
            }
        }
    };
}

byte_register_device!(ResetControl, "reset control");
byte_register_device!(SystemControlPortA, "system control port A");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn a_rising_bit_resets() {
        let requests = Requests::new();
        let device = ResetControl::new(requests.clone());
        device.write(0, &[rc::SRST]);
        assert_eq!(requests.take(), []);
        device.write(0, &[rc::HARD_RESET]);
        device.write(0, &[rc::HARD_RESET]);
        assert_eq!(requests.take(), [SystemRequest::Reset]);
        device.reset();
        device.write(0, &[0xff]);
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!((requests.take().len(), data[0]), (1, 6));
    }

    #[test]
    fn port_a() {
        let requests = Requests::new();
        let device = SystemControlPortA::new(requests.clone());
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data[0], port_a::GATE_A20);
        // Linux enables A20 so.
        device.write(0, &[data[0] & !port_a::HOT_RESET | port_a::GATE_A20]);
        assert_eq!(requests.take(), []);
        device.write(0, &[1]);
        assert_eq!(requests.take(), [SystemRequest::Reset]);
    }
}
