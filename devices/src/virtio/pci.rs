//! The PCI transport (Virtio 1.2, *Virtio Over PCI Bus*): the modern interface.
//!
//! One BAR has the registers, in four parts: common configuration, ISR status, device configuration, notifications. Each queue
//! has a notification address of its own, so that the kernel can ring its doorbell, wherever software has placed the BAR.

mod interrupt;
pub mod spec;

use std::sync::{Arc, Mutex};

use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use self::interrupt::{PciInterrupt, Source};
use self::spec::{PART_BYTES, REGISTERS_BAR, cfg_type, common, window};
use super::transport::Transport;
use super::{Doorbell, VirtioDevice};
use crate::device::Device;
use crate::dma::DmaMemory;
use crate::pci::spec::{CONFIG_BYTES, capability};
use crate::pci::{Bar, BarKind, Capability, FunctionInterrupts, Identity, Layout, PciDevice};

/// Rings doorbells for stores that then do not come to the bus, where the accelerator can.
pub trait KernelDoorbells: Send + Sync {
    /// From now on a store of any size to `gpa` writes `event`, or, if that cannot be, comes to the bus.
    fn add(&self, gpa: u64, event: &EventFd);
    /// Takes back what [`KernelDoorbells::add`] did.
    fn remove(&self, gpa: u64, event: &EventFd);
}

/// The parts of the registers' BAR.
const COMMON: u64 = 0;
const ISR: u64 = PART_BYTES;
const DEVICE: u64 = 2 * PART_BYTES;
const NOTIFY: u64 = 3 * PART_BYTES;
const BAR_BYTES: u64 = 4 * PART_BYTES;

/// A device behind virtio-pci registers.
pub struct VirtioPci {
    transport: Transport<PciInterrupt>,
    doorbells: Arc<dyn KernelDoorbells>,
    /// Where the registers' BAR answers.
    base: Mutex<Option<u64>>,
}

impl VirtioPci {
    /// How many vectors `device` can use: one for each queue, and one.
    pub fn wanted_vectors(device: &dyn VirtioDevice) -> u16 {
        u16::try_from(device.queue_sizes().len() + 1).expect("a device has some queues")
    }

    /// `device`, telling its driver by `interrupts` and reaching `dma` when it may.
    pub fn new(
        device: Arc<dyn VirtioDevice>,
        interrupts: Arc<FunctionInterrupts>,
        dma: DmaMemory,
        doorbells: Arc<dyn KernelDoorbells>,
    ) -> Arc<Self> {
        let queues = device.queue_sizes().len();
        let room = PART_BYTES / u64::from(spec::NOTIFY_OFF_MULTIPLIER);
        assert!((queues as u64) < room, "a queue has a notification address");
        let transport = Transport::new(device, PciInterrupt::new(interrupts, queues), dma, false);
        Arc::new(Self { transport, doorbells, base: Mutex::new(None) })
    }

    /// The device behind the registers.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        self.transport.device()
    }

    fn interrupt(&self) -> &PciInterrupt {
        self.transport.interrupt()
    }

    fn selected(&self) -> u32 {
        self.transport.with(|registers| registers.queue_sel)
    }

    fn read_common(&self, offset: u64) -> u32 {
        match offset {
            common::CONFIG_MSIX_VECTOR => self.interrupt().vector(Source::Config).into(),
            common::NUM_QUEUES => self.device().queue_sizes().len() as u32,
            common::DEVICE_STATUS => self.transport.status(),
            common::CONFIG_GENERATION => self.interrupt().generation().into(),
            common::QUEUE_MSIX_VECTOR => self.interrupt().vector(Source::Queue(self.selected())).into(),
            _ => self.transport.with(|registers| match offset {
                common::DEVICE_FEATURE_SELECT => registers.device_features_sel,
                common::DEVICE_FEATURE => registers.device_features(self.transport.features()),
                common::DRIVER_FEATURE_SELECT => registers.driver_features_sel,
                common::DRIVER_FEATURE => registers.driver_features(),
                common::QUEUE_SELECT | common::QUEUE_NOTIFY_OFF => registers.queue_sel,
                common::QUEUE_SIZE => registers.queue().map_or(0, |queue| queue.size().into()),
                common::QUEUE_ENABLE => registers.queue().map_or(0, |queue| queue.ready().into()),
                _ => {
                    spec::queue_address(offset).map_or(0, |(part, half)| registers.queue_address(part, half))
                }
            }),
        }
    }

    fn write_common(&self, offset: u64, value: u32) {
        match offset {
            common::CONFIG_MSIX_VECTOR => self.interrupt().set_vector(Source::Config, value as u16),
            common::DEVICE_STATUS => self.transport.set_status(value),
            common::QUEUE_MSIX_VECTOR => {
                self.interrupt().set_vector(Source::Queue(self.selected()), value as u16);
            }
            _ => self.transport.with(|registers| match offset {
                common::DEVICE_FEATURE_SELECT => registers.device_features_sel = value,
                common::DRIVER_FEATURE_SELECT => registers.driver_features_sel = value,
                common::DRIVER_FEATURE => registers.accept_features(value),
                common::QUEUE_SELECT => registers.queue_sel = value,
                common::QUEUE_SIZE => registers.set_queue_size(value),
                // It is not disabled but by a reset.
                common::QUEUE_ENABLE if value == 1 => registers.set_queue_ready(true),
                _ => {
                    if let Some((part, half)) = spec::queue_address(offset) {
                        registers.set_queue_address(part, half, value);
                    }
                }
            }),
        }
    }

    /// Splits an access to the common configuration into those of registers; what is none is told as such.
    fn each_register(offset: u64, len: usize, mut act: impl FnMut(Option<u64>, std::ops::Range<usize>)) {
        // A store of eight bytes to an address is one of each half.
        let step = if len == 8 && (common::QUEUE_DESC..common::BYTES).contains(&offset) { 4 } else { len };
        for at in (0..len).step_by(step) {
            let register = offset + at as u64;
            act(Some(register).filter(|&register| common::width(register) == Some(step)), at..at + step);
        }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset & !(PART_BYTES - 1) {
            COMMON => Self::each_register(offset, data.len(), |register, range| {
                if let Some(register) = register {
                    let value = self.read_common(register).to_le_bytes();
                    data[range.clone()].copy_from_slice(&value[..range.len()]);
                }
            }),
            ISR if offset == ISR => data[0] = self.interrupt().take_isr(),
            DEVICE => self.device().read_config(offset - DEVICE, data),
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset & !(PART_BYTES - 1) {
            COMMON => Self::each_register(offset, data.len(), |register, range| {
                if let Some(register) = register {
                    let mut value = [0; 4];
                    value[..range.len()].copy_from_slice(&data[range]);
                    self.write_common(register, u32::from_le_bytes(value));
                }
            }),
            DEVICE => self.device().write_config(offset - DEVICE, data),
            // The address says which queue, whatever is written there.
            NOTIFY if offset.is_multiple_of(spec::NOTIFY_OFF_MULTIPLIER.into()) => {
                self.transport.notify((offset - NOTIFY) / u64::from(spec::NOTIFY_OFF_MULTIPLIER));
            }
            _ => {}
        }
    }

    /// The doorbells that the kernel can ring, with their addresses.
    fn kernel_doorbells(&self, base: u64) -> impl Iterator<Item = (u64, &EventFd)> {
        let step = spec::NOTIFY_OFF_MULTIPLIER as usize;
        let addresses = (base + NOTIFY..).step_by(step);
        addresses.zip(self.device().doorbells()).filter_map(|(gpa, bell)| match &**bell {
            Doorbell::Event(event) => Some((gpa, event)),
            Doorbell::Call(_) => None,
        })
    }
}

/// What the access capability's registers ask for: offset and length in the registers' BAR, if that makes sense.
fn window_of(space: &[u8; CONFIG_BYTES]) -> Option<(u64, usize)> {
    let word = |at: usize| u32::from_le_bytes([space[at], space[at + 1], space[at + 2], space[at + 3]]);
    let (offset, len) = (u64::from(word(window::OFFSET)), word(window::LENGTH));
    let fits = usize::from(space[window::BAR]) == REGISTERS_BAR
        && matches!(len, 1 | 2 | 4)
        && offset.is_multiple_of(len.into())
        && offset + u64::from(len) <= BAR_BYTES;
    fits.then_some((offset, len as usize))
}

fn touches_window(offset: usize, len: usize) -> bool {
    offset < window::DATA + window::DATA_BYTES && window::DATA < offset + len
}

/// A vendor-specific capability: a part of the registers' BAR.
fn part(kind: u8, offset: u64, bytes: u64, more: &[u8]) -> Capability {
    let len = u8::try_from(16 + more.len()).expect("20 bytes at most");
    let mut body = vec![len, kind, REGISTERS_BAR as u8, 0, 0, 0];
    for word in [offset, bytes] {
        body.extend(u32::try_from(word).expect("within a BAR of 16 KiB").to_le_bytes());
    }
    body.extend(more);
    Capability::read_only(capability::VENDOR_SPECIFIC, body)
}

impl PciDevice for VirtioPci {
    fn layout(&self) -> Layout {
        let id = self.device().device_id();
        let identity = Identity {
            vendor: spec::VENDOR,
            device: spec::FIRST_DEVICE + u16::try_from(id).expect("kinds of devices are few"),
            revision: spec::REVISION,
            class: spec::class(id),
            subsystem: (spec::VENDOR, spec::SUBSYSTEM),
        };
        let mut access = part(cfg_type::PCI, 0, 0, &[0; window::DATA_BYTES]);
        // Which BAR, then offset, length and data.
        access.writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 12]].concat();
        let capabilities = vec![
            access,
            part(cfg_type::COMMON, COMMON, common::BYTES, &[]),
            part(cfg_type::ISR, ISR, 1, &[]),
            part(cfg_type::NOTIFY, NOTIFY, PART_BYTES, &spec::NOTIFY_OFF_MULTIPLIER.to_le_bytes()),
            part(cfg_type::DEVICE, DEVICE, PART_BYTES, &[]),
        ];
        Layout {
            bars: vec![(REGISTERS_BAR, Bar::new(BarKind::Memory64 { prefetchable: true }, BAR_BYTES))],
            capabilities,
            interrupt_pin: Some(1),
            msix_bar: spec::MSIX_BAR,
            ..Layout::new(identity)
        }
    }

    fn interrupts(&self) -> Option<&Arc<FunctionInterrupts>> {
        Some(self.interrupt().function())
    }

    fn read_bar(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write_bar(&self, _bar: usize, offset: u64, data: &[u8]) {
        self.write(offset, data);
    }

    fn read_config(&self, offset: usize, data: &mut [u8], space: &[u8; CONFIG_BYTES]) {
        if !touches_window(offset, data.len()) {
            return;
        }
        let Some((at, len)) = window_of(space) else { return };
        let mut inside = [0; window::DATA_BYTES];
        self.read(at, &mut inside[..len]);
        for (register, byte) in (offset..).zip(data) {
            if let Some(value) = register.checked_sub(window::DATA).and_then(|at| inside[..len].get(at)) {
                *byte = *value;
            }
        }
    }

    fn wrote_config(&self, offset: usize, len: usize, space: &[u8; CONFIG_BYTES]) {
        if touches_window(offset, len)
            && let Some((at, len)) = window_of(space)
        {
            self.write(at, &space[window::DATA..][..len]);
        }
    }

    fn set_bus_master(&self, enabled: bool) {
        self.transport.set_memory(enabled);
    }

    fn moved(&self, bar: usize, base: Option<u64>) {
        if bar != REGISTERS_BAR {
            return;
        }
        let mut at = self.base.lock().expect("no holder of a BAR's place panics");
        if let Some(old) = std::mem::replace(&mut *at, base) {
            self.kernel_doorbells(old).for_each(|(gpa, event)| self.doorbells.remove(gpa, event));
        }
        if let Some(new) = base {
            self.kernel_doorbells(new).for_each(|(gpa, event)| self.doorbells.add(gpa, event));
        }
    }
}

impl Device for VirtioPci {
    fn name(&self) -> &'static str {
        self.device().name()
    }

    fn reset(&self) {
        self.transport.reset();
    }

    fn pause(&self) {
        self.device().pause();
    }

    fn resume(&self) {
        self.device().resume();
    }
}

#[cfg(test)]
mod tests;
