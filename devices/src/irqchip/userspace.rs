//! The interrupt controllers of a PC, wired together: PIC pair, I/O APIC and a local APIC per CPU.
//! MultiProcessor Specification 1.4, *Interrupt Modes*.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::apic_set::{ApicMessage, LocalApicSet};
use super::ioapic::IoApic;
use super::local_apic::{LocalApic, LocalApicConfig};
use super::pic8259::Pic8259;
use crate::clock::{Clock, GuestTsc, ScaledTsc};
use crate::cpu_interrupts::InterruptTarget;
use crate::device::Device;
use crate::interrupt::{Gsi, InterruptSink, MsiMessage, MsiRoute, RouteError};

/// ISA interrupts, the GSIs that the PIC sees too.
const ISA_IRQS: u32 = 16;
/// ISA interrupt of the PIT.
const TIMER_IRQ: u32 = 0;
/// The PIC's cascade: no device's interrupt, so its I/O APIC pin is free for the timer's.
const CASCADE_IRQ: u32 = 2;
/// I/O APIC pin of the PIT. ACPI says so in an Interrupt Source Override from ISA IRQ 0.
pub const TIMER_PIN: usize = 2;

/// The interrupt controllers where they are ours.
///
/// GSI n below 16 means ISA interrupt n: input n of the PIC and pin n of the I/O APIC, but for the timer (0), which
/// is pin 2 there.
pub struct UserspaceIrqchip {
    pic: Arc<Pic8259>,
    ioapic: Arc<IoApic>,
    cpus: Arc<LocalApicSet>,
    clock: Arc<dyn Clock>,
    address_bits: u8,
}

impl UserspaceIrqchip {
    /// Controllers without CPUs yet. `address_bits` is the CPUs' MAXPHYADDR.
    pub fn new(clock: Arc<dyn Clock>, address_bits: u8) -> Arc<Self> {
        let cpus: Arc<LocalApicSet> = Arc::default();
        let wired = Arc::downgrade(&cpus);
        let pic = Pic8259::new(Box::new(move |level| {
            // INTR goes to the bootstrap processor's LINT0.
            if let Some(cpus) = wired.upgrade()
                && let Some(bsp) = cpus.read().first()
            {
                bsp.set_lint0(level);
            }
        }));
        let ioapic = IoApic::new(Arc::clone(&cpus));
        Arc::new(Self { pic, ioapic, cpus, clock, address_bits })
    }

    /// The local APIC of the next CPU; the first is the bootstrap processor's, and is left as firmware leaves it.
    /// Without `tsc`, the CPU's time-stamp counter counts nanoseconds of guest time.
    pub fn add_cpu(
        &self,
        apic_id: u32,
        target: Arc<dyn InterruptTarget>,
        tsc: Option<Arc<dyn GuestTsc>>,
    ) -> Arc<LocalApic> {
        let is_bsp = self.cpus.read().is_empty();
        let config = LocalApicConfig {
            apic_id,
            is_bsp,
            address_bits: self.address_bits,
            target,
            clock: Arc::clone(&self.clock),
            tsc: tsc.unwrap_or_else(|| ScaledTsc::new(Arc::clone(&self.clock), 1_000_000_000)),
        };
        let apic = LocalApic::new(config, &self.cpus);
        apic.connect_pic(&self.pic);
        apic.connect_ioapic(&self.ioapic);
        if is_bsp {
            apic.enter_virtual_wire_mode();
        }
        self.cpus.push(Arc::clone(&apic));
        apic
    }

    /// The PIC pair: its ports go on the bus.
    pub fn pic(&self) -> &Arc<Pic8259> {
        &self.pic
    }

    /// The I/O APIC: its window goes on the bus.
    pub fn ioapic(&self) -> &Arc<IoApic> {
        &self.ioapic
    }

    /// The local APIC of CPU `index`.
    pub fn local_apic(&self, index: usize) -> Option<Arc<LocalApic>> {
        self.cpus.read().get(index).cloned()
    }

    /// The NMI button: a pulse on every CPU's LINT1.
    pub fn nmi(&self) {
        for apic in self.cpus.read().iter() {
            apic.set_lint1(true);
            apic.set_lint1(false);
        }
    }
}

impl InterruptSink for UserspaceIrqchip {
    fn set_gsi(&self, gsi: Gsi, level: bool) {
        let Gsi(number) = gsi;
        if number < ISA_IRQS {
            self.pic.set_irq(number as u8, level);
        }
        match number {
            TIMER_IRQ => self.ioapic.set_pin(TIMER_PIN, level),
            CASCADE_IRQ => {}
            pin => self.ioapic.set_pin(pin as usize, level),
        }
    }

    fn send_msi(&self, message: MsiMessage) {
        match ApicMessage::from_msi(message) {
            Some(message) => _ = self.cpus.deliver(&message),
            None => tracing::debug!(target: "irq", ?message, "no interrupt message"),
        }
    }

    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
        Ok(Box::new(Route { cpus: Arc::clone(&self.cpus), message: Mutex::new(None) }))
    }
}

impl Device for UserspaceIrqchip {
    fn name(&self) -> &'static str {
        "irqchip"
    }

    fn reset(&self) {
        self.pic.reset();
        self.ioapic.reset();
        for (index, apic) in self.cpus.read().iter().enumerate() {
            apic.reset();
            if index == 0 {
                apic.enter_virtual_wire_mode();
            }
        }
    }
}

/// A message source's route where no kernel is involved: the message itself.
struct Route {
    cpus: Arc<LocalApicSet>,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiRoute for Route {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), RouteError> {
        *self.message.lock().expect("no holder of a route's lock panics") = message;
        Ok(())
    }

    fn trigger(&self) {
        let message = *self.message.lock().expect("no holder of a route's lock panics");
        if let Some(message) = message.and_then(ApicMessage::from_msi) {
            self.cpus.deliver(&message);
        }
    }

    fn eventfd(&self) -> Option<&EventFd> {
        None
    }
}
