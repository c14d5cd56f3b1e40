//! The watchdog as a function of the PCI bus.

use super::{I6300Esb, spec};
use crate::pci::spec::CONFIG_BYTES;
use crate::pci::{Bar, BarKind, Identity, Layout, PciDevice};

const INTEL: u16 = 0x8086;
/// QEMU's.
const SUBSYSTEM: (u16, u16) = (0x1af4, 0x1100);
/// The only window.
const BAR: usize = 0;

impl PciDevice for I6300Esb {
    fn layout(&self) -> Layout {
        let identity = Identity {
            vendor: INTEL,
            device: spec::DEVICE,
            revision: 0,
            class: spec::CLASS,
            subsystem: SUBSYSTEM,
        };
        let configuration = spec::configuration::WRITABLE.to_le_bytes().to_vec();
        let registers = vec![
            (spec::config::CONFIG, vec![0; 2], configuration),
            (spec::config::LOCK, vec![0], vec![spec::lock::WRITABLE]),
        ];
        let bars = vec![(BAR, Bar::new(BarKind::Memory32, spec::WINDOW))];
        Layout { bars, registers, ..Layout::new(identity) }
    }

    fn read_bar(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write_bar(&self, _bar: usize, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }

    /// What is locked is not what was written last.
    fn read_config(&self, offset: usize, data: &mut [u8], _space: &[u8; CONFIG_BYTES]) {
        let (_, lock) = self.config();
        let at = spec::config::LOCK.checked_sub(offset);
        if let Some(byte) = at.and_then(|at| data.get_mut(at)) {
            *byte = lock;
        }
    }

    fn wrote_config(&self, offset: usize, len: usize, space: &[u8; CONFIG_BYTES]) {
        let written = |register: usize, bytes: usize| offset < register + bytes && register < offset + len;
        let (configuration, lock) = (spec::config::CONFIG, spec::config::LOCK);
        if written(configuration, 2) {
            self.write_configuration(u16::from_le_bytes([space[configuration], space[configuration + 1]]));
        }
        if written(lock, 1) {
            self.write_lock(space[lock]);
        }
    }
}
