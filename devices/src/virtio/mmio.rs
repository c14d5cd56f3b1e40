//! The MMIO transport (Virtio 1.2, *Virtio Over MMIO*), version 2.
//!
//! Three locks, none of which is held while the device is called, but `transition`: one status change after the other,
//! `registers`: what the driver writes, and the interrupt's ([`interrupt`]). A thread of the device never takes the first.

mod interrupt;
pub mod spec;

use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueT};

use self::interrupt::MmioInterrupt;
use self::spec::{register, status};
use super::{Activation, ActiveQueue, Doorbell, Session, VirtioDevice, VirtioInterrupt, feature};
use crate::bus::BusDevice;
use crate::device::Device;
use crate::dma::DmaMemory;
use crate::interrupt::IrqLine;
use crate::lock_rank::device;

const LOCK: &str = "no holder of a transport's lock panics";

/// What the driver has written.
#[derive(Default)]
struct Registers {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<Queue>,
}

/// A device behind virtio-mmio registers. `BusDevice` of [`spec::WINDOW`] bytes.
pub struct VirtioMmio {
    device: Arc<dyn VirtioDevice>,
    dma: DmaMemory,
    features: u64,
    interrupt: Arc<MmioInterrupt>,
    /// The time since the driver became ready, if it is. Held for a whole change of the status.
    transition: Mutex<Option<Arc<Session>>>,
    registers: device::Mutex<Registers>,
}

impl VirtioMmio {
    /// `device`, interrupting by `line` and reaching `dma`.
    pub fn new(device: Arc<dyn VirtioDevice>, line: IrqLine, dma: DmaMemory) -> Arc<Self> {
        let rings = feature::VERSION_1 | feature::RING_INDIRECT_DESC | feature::RING_EVENT_IDX;
        let features = device.features() | rings;
        let registers = Registers { queues: queues(&*device), ..Registers::default() };
        Arc::new(Self {
            device,
            dma,
            features,
            interrupt: MmioInterrupt::new(line),
            transition: Mutex::default(),
            registers: device::Mutex::new(registers),
        })
    }

    /// The device behind the registers.
    pub fn device(&self) -> &Arc<dyn VirtioDevice> {
        &self.device
    }

    /// Where the driver notifies, relative to the window: 32 bits, the queue's number. The doorbells are for an accelerator
    /// that can have the kernel ring them.
    pub fn doorbells(&self) -> impl Iterator<Item = (u64, u32, &Arc<Doorbell>)> {
        (0..).zip(self.device.doorbells()).map(|(queue, bell)| (register::QUEUE_NOTIFY, queue, bell))
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::INTERRUPT_STATUS => return self.interrupt.status(),
            register::CONFIG_GENERATION => return self.interrupt.generation(),
            _ => {}
        }
        let needs_reset = if self.interrupt.reset_is_needed() { status::DEVICE_NEEDS_RESET } else { 0 };
        let registers = self.registers.lock().expect(LOCK);
        let queue = usize::try_from(registers.queue_sel).ok().and_then(|sel| registers.queues.get(sel));
        match offset {
            register::MAGIC_VALUE => spec::MAGIC,
            register::VERSION => spec::VERSION,
            register::DEVICE_ID => self.device.device_id(),
            register::VENDOR_ID => spec::VENDOR,
            register::DEVICE_FEATURES => half(self.features, registers.device_features_sel),
            register::QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            register::QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            register::STATUS => registers.status | needs_reset,
            // There are no shared memory regions: length and base are all ones.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            register::QUEUE_NOTIFY => {
                let doorbells = self.device.doorbells();
                if let Some(bell) = usize::try_from(value).ok().and_then(|queue| doorbells.get(queue)) {
                    bell.ring();
                }
            }
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.set_status(value),
            _ => self.registers.lock().expect(LOCK).write(offset, value),
        }
    }

    /// The driver writes the status. Zero is a reset; bits are not cleared otherwise.
    fn set_status(&self, value: u32) {
        let mut session = self.transition.lock().expect(LOCK);
        if value == 0 {
            self.reset_device(&mut session);
            return;
        }
        let features = {
            let mut registers = self.registers.lock().expect(LOCK);
            let mut new = value & status::OF_DRIVER & !registers.status;
            if new & status::FEATURES_OK != 0 && !self.acceptable(registers.driver_features) {
                new &= !status::FEATURES_OK;
            }
            // A device of Virtio 1.0 and later is not used before the features are agreed on.
            if (registers.status | new) & status::FEATURES_OK == 0 {
                new &= !status::DRIVER_OK;
            }
            registers.status |= new;
            (new & status::DRIVER_OK != 0).then_some(registers.driver_features)
        };
        if let Some(features) = features {
            self.activate(&mut session, features);
        }
    }

    fn acceptable(&self, features: u64) -> bool {
        features & !self.features == 0 && features & feature::VERSION_1 != 0
    }

    fn activate(&self, session: &mut Option<Arc<Session>>, features: u64) {
        let memory = self.dma.memory();
        let interrupt = Arc::clone(&self.interrupt) as Arc<dyn VirtioInterrupt>;
        let new = Arc::new(Session::new());
        let mut valid = true;
        let queues = {
            let mut registers = self.registers.lock().expect(LOCK);
            let mut activate = |(index, queue): (u16, &mut Queue)| {
                if !queue.ready() {
                    return None;
                }
                queue.set_event_idx(features & feature::RING_EVENT_IDX != 0);
                valid &= queue.is_valid(memory);
                // The driver's registers stay behind, for it to read; the device's copy has the indices.
                let copy = Queue::try_from(queue.state()).ok()?;
                let (dma, session, interrupt) = (self.dma.clone(), Arc::clone(&new), Arc::clone(&interrupt));
                Some(ActiveQueue::new(index, copy, dma, session, interrupt))
            };
            (0..).zip(&mut registers.queues).map(&mut activate).collect()
        };
        if !valid {
            interrupt.needs_reset();
            return;
        }
        *session = Some(Arc::clone(&new));
        self.device.activate(Activation { queues, features, session: new, interrupt });
    }

    fn reset_device(&self, session: &mut Option<Arc<Session>>) {
        if let Some(session) = session.take() {
            session.end();
        }
        self.device.reset();
        *self.registers.lock().expect(LOCK) =
            Registers { queues: queues(&*self.device), ..Registers::default() };
        self.interrupt.reset();
    }
}

fn queues(device: &dyn VirtioDevice) -> Vec<Queue> {
    let make = |&size: &u16| Queue::new(size).expect("a device's queue sizes are powers of two");
    device.queue_sizes().iter().map(make).collect()
}

fn half(value: u64, sel: u32) -> u32 {
    match sel {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

impl Registers {
    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::QUEUE_SEL => self.queue_sel = value,
            register::DRIVER_FEATURES if self.status & status::FEATURES_OK == 0 => {
                let shift = match self.driver_features_sel {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.driver_features =
                    self.driver_features & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            _ if self.status & status::DRIVER_OK == 0 => self.write_queue(offset, value),
            _ => {}
        }
    }

    /// A register of the selected queue, which does not change once the driver is ready.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = usize::try_from(self.queue_sel).ok().and_then(|sel| self.queues.get_mut(sel))
        else {
            return;
        };
        if offset == register::QUEUE_READY {
            queue.set_ready(value == 1);
            return;
        }
        if queue.ready() {
            return;
        }
        match offset {
            // A size that is none is ignored: the device says no to the queue as it was, or to the rings.
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

impl BusDevice for VirtioMmio {
    /// Registers are read with aligned 32-bit accesses; others read as zero. The configuration space takes any size.
    fn read(&self, offset: u64, data: &mut [u8]) {
        match offset.checked_sub(register::CONFIG) {
            Some(offset) => self.device.read_config(offset, data),
            None => match <&mut [u8; 4]>::try_from(&mut *data) {
                Ok(data) if offset.is_multiple_of(4) => *data = self.read_register(offset).to_le_bytes(),
                _ => data.fill(0),
            },
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match offset.checked_sub(register::CONFIG) {
            Some(offset) => self.device.write_config(offset, data),
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
        self.device.name()
    }

    fn reset(&self) {
        self.reset_device(&mut self.transition.lock().expect(LOCK));
    }

    fn pause(&self) {
        self.device.pause();
    }

    fn resume(&self) {
        self.device.resume();
    }
}

#[cfg(test)]
mod tests;
