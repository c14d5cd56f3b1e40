//! The MMIO transport (Virtio 1.2, *Virtio Over MMIO*), version 2.

mod interrupt;
pub mod spec;

use std::sync::Arc;

use virtio_queue::QueueT;

use self::interrupt::MmioInterrupt;
use self::spec::register;
use super::transport::Transport;
use super::{Doorbell, VirtioDevice};
use crate::bus::BusDevice;
use crate::device::Device;
use crate::dma::DmaMemory;
use crate::interrupt::IrqLine;

/// A device behind virtio-mmio registers. `BusDevice` of [`spec::WINDOW`] bytes.
pub struct VirtioMmio(Transport<MmioInterrupt>);

impl VirtioMmio {
    /// `device`, interrupting by `line` and reaching `dma`.
    pub fn new(device: Arc<dyn VirtioDevice>, line: IrqLine, dma: DmaMemory) -> Arc<Self> {
        Arc::new(Self(Transport::new(device, MmioInterrupt::new(line), dma, true)))
    }

    /// The device behind the registers.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        self.0.device()
    }

    /// Where the driver notifies, relative to the window: 32 bits, the queue's number. The doorbells are for an accelerator
    /// that can have the kernel ring them.
    pub fn doorbells(&self) -> impl Iterator<Item = (u64, u32, &Arc<Doorbell>)> {
        (0..).zip(self.device().doorbells()).map(|(queue, bell)| (register::QUEUE_NOTIFY, queue, bell))
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => spec::MAGIC,
            register::VERSION => spec::VERSION,
            register::DEVICE_ID => self.device().device_id(),
            register::VENDOR_ID => spec::VENDOR,
            register::INTERRUPT_STATUS => self.0.interrupt().status(),
            register::CONFIG_GENERATION => self.0.interrupt().generation(),
            register::STATUS => self.0.status(),
            // There are no shared memory regions: length and base are all ones.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => self.0.with(|registers| match offset {
                register::DEVICE_FEATURES => registers.device_features(self.0.features()),
                register::QUEUE_NUM_MAX => registers.queue().map_or(0, |queue| queue.max_size().into()),
                register::QUEUE_READY => registers.queue().map_or(0, |queue| queue.ready().into()),
                _ => 0,
            }),
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            register::QUEUE_NOTIFY => self.0.notify(value.into()),
            register::INTERRUPT_ACK => self.0.interrupt().acknowledge(value),
            register::STATUS => self.0.set_status(value),
            _ => self.0.with(|registers| match offset {
                register::DEVICE_FEATURES_SEL => registers.device_features_sel = value,
                register::DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
                register::DRIVER_FEATURES => registers.accept_features(value),
                register::QUEUE_SEL => registers.queue_sel = value,
                register::QUEUE_NUM => registers.set_queue_size(value),
                register::QUEUE_READY => registers.set_queue_ready(value == 1),
                _ => {
                    if let Some((part, half)) = spec::queue_address(offset) {
                        registers.set_queue_address(part, half, value);
                    }
                }
            }),
        }
    }
}

impl BusDevice for VirtioMmio {
    /// Registers are read with aligned 32-bit accesses; others read as zero. The configuration space takes any size.
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(register::CONFIG) {
            Some(offset) => self.device().read_config(offset, data),
            None => match <&mut [u8; 4]>::try_from(&mut *data) {
                Ok(data) if offset.is_multiple_of(4) => *data = self.read_register(offset).to_le_bytes(),
                _ => data.fill(0),
            },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset.checked_sub(register::CONFIG) {
            Some(offset) => self.device().write_config(offset, data),
            None => {
                if let Ok(&data) = <&[u8; 4]>::try_from(data)
                    && offset.is_multiple_of(4)
                {
                    self.write_register(offset, u32::from_le_bytes(data));
                }
            }
        }
    }
}

impl Device for VirtioMmio {
    fn name(&self) -> &'static str {
        self.device().name()
    }

    fn reset(&self) {
        self.0.reset();
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
