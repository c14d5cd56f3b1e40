//! pvpanic: the guest's kernel tells that it has panicked (QEMU, *PVPANIC DEVICE*).

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::device::Device;
use crate::system::{SystemControl, SystemRequest};

pub mod spec;

use spec::event;

/// The device: one register.
pub struct Pvpanic {
    events: u8,
    control: Arc<dyn SystemControl>,
}

impl Pvpanic {
    /// Offers `events` ([`spec::event`]), and tells `control` of those that come.
    pub fn new(events: u8, control: Arc<dyn SystemControl>) -> Arc<Self> {
        Arc::new(Self { events: events & event::ALL, control })
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.events);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let Some(&told) = data.first() else { return };
        // One event at a time, the worst first; what was not offered is not heard.
        let told = told & self.events;
        let request = if told & event::PANICKED != 0 {
            SystemRequest::Panicked
        } else if told & event::CRASH_LOADED != 0 {
            SystemRequest::CrashLoaded
        } else if told & event::SHUTDOWN != 0 {
            SystemRequest::PowerOff
        } else {
            return;
        };
        self.control.request(request);
    }
}

impl Device for Pvpanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Requests;

    #[test]
    fn what_is_offered_is_heard() {
        let requests = Requests::new();
        let device = Pvpanic::new(event::ALL, requests.clone());
        let mut data = [0xee];
        device.read(0, &mut data);
        assert_eq!(data, [7]);
        for value in [1, 2, 4, 3, 0, 0xf8] {
            device.write(0, &[value]);
        }
        use SystemRequest::{CrashLoaded, Panicked, PowerOff};
        assert_eq!(requests.take(), [Panicked, CrashLoaded, PowerOff, Panicked]);
    }

    #[test]
    fn what_is_not_offered_is_not() {
        let requests = Requests::new();
        let device = Pvpanic::new(0xf0 | event::PANICKED, requests.clone());
        let mut data = [0xee];
        device.read(0, &mut data);
        assert_eq!(data, [event::PANICKED]);
        (0..=u8::MAX).filter(|value| value & 1 == 0).for_each(|value| device.write(0, &[value]));
        assert_eq!(requests.take(), []);
    }
}
