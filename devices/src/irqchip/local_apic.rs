//! Local APIC: xAPIC and x2APIC. SDM vol. 3A, *Advanced Programmable Interrupt Controller*.
//!
//! Two faces. The CPU's own thread reads and writes the registers ([`LocalInterrupts`]). Any thread delivers
//! messages and drives the LINT pins ([`LocalApic::accept`], [`LocalApic::set_lint0`]); it touches nothing but
//! atomics, so a delivery never waits for a CPU, and may be made under the lock of the PIC or the I/O APIC.
//!
//! Both faces follow one rule, so that no interrupt sleeps: *publish, then look*. Who makes an interrupt
//! deliverable (a new IRR bit, a lower priority) stores that first, then looks whether something can be taken now,
//! and raises the CPU if so. With sequentially consistent accesses, of two that race at least one sees both stores.
//! Who withdraws lowers the request first and then looks the same way.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, OnceLock, Weak};

use super::apic_set::{DeliveryMode, Destination, LocalApicSet, Trigger};
use super::ioapic::IoApic;
use super::pic8259::Pic8259;
use crate::clock::{Clock, GuestTsc};
use crate::cpu_interrupts::{ApicSummary, InterruptKind, InterruptTarget, LocalInterrupts, NoSuchRegister};
use crate::sync::{AtomicBool, AtomicU32, AtomicU64};

mod bits;
#[cfg(test)]
#[cfg(loom)]
mod loom_tests;
mod registers;
pub mod spec;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
mod timer;

use bits::VectorBits;
use spec::{apic_base, lvt, svr};
use timer::ApicTimer;

/// [`LocalApic::sipi`]: none pending.
const NO_SIPI: u32 = u32::MAX;

/// What a local APIC is wired to.
pub struct LocalApicConfig {
    /// Its ID. Above 254 it can only be reached in x2APIC mode.
    pub apic_id: u32,
    /// The bootstrap processor's.
    pub is_bsp: bool,
    /// MAXPHYADDR: IA32_APIC_BASE faults on address bits from here up.
    pub address_bits: u8,
    /// Its CPU.
    pub target: Arc<dyn InterruptTarget>,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// The CPU's time-stamp counter.
    pub tsc: Arc<dyn GuestTsc>,
}

/// One CPU's local APIC.
pub struct LocalApic {
    apic_id: u32,
    is_bsp: bool,
    address_bits: u8,
    target: Arc<dyn InterruptTarget>,
    timer: ApicTimer,
    pic: OnceLock<Weak<Pic8259>>,
    ioapic: OnceLock<Weak<IoApic>>,
    cpus: Weak<LocalApicSet>,

    // Written by any thread.
    irr: VectorBits,
    tmr: VectorBits,
    sipi: AtomicU32,
    lint0: AtomicBool,
    lint1: AtomicBool,
    pending_errors: AtomicU32,

    // Written by the CPU's own thread, read by any.
    apic_base: AtomicU64,
    isr: VectorBits,
    tpr: AtomicU32,
    ldr: AtomicU32,
    dfr: AtomicU32,
    svr: AtomicU32,
    esr: AtomicU32,
    icr: AtomicU64,
    lvt: [AtomicU32; spec::LVT_ENTRIES],
}

impl LocalApic {
    /// A local APIC after power-on, one of `cpus`.
    pub fn new(config: LocalApicConfig, cpus: &Arc<LocalApicSet>) -> Arc<Self> {
        let LocalApicConfig { apic_id, is_bsp, address_bits, target, clock, tsc } = config;
        let apic = Arc::new_cyclic(|apic: &Weak<Self>| {
            let apic = Weak::clone(apic);
            let expired = Arc::new(move || {
                if let Some(apic) = apic.upgrade()
                    && apic.timer.expire()
                {
                    apic.timer_interrupt();
                }
            });
            Self {
                apic_id,
                is_bsp,
                address_bits,
                target,
                timer: ApicTimer::new(clock, tsc, expired),
                pic: OnceLock::new(),
                ioapic: OnceLock::new(),
                cpus: Arc::downgrade(cpus),
                irr: VectorBits::default(),
                tmr: VectorBits::default(),
                sipi: AtomicU32::new(NO_SIPI),
                lint0: AtomicBool::new(false),
                lint1: AtomicBool::new(false),
                pending_errors: AtomicU32::new(0),
                apic_base: AtomicU64::new(0),
                isr: VectorBits::default(),
                tpr: AtomicU32::new(0),
                ldr: AtomicU32::new(0),
                dfr: AtomicU32::new(0),
                svr: AtomicU32::new(0),
                esr: AtomicU32::new(0),
                icr: AtomicU64::new(0),
                lvt: Default::default(),
            }
        });
        apic.reset();
        apic
    }

    /// The PIC whose INT output is LINT0 here.
    pub fn connect_pic(&self, pic: &Arc<Pic8259>) {
        assert!(self.pic.set(Arc::downgrade(pic)).is_ok(), "LINT0 is wired once");
    }

    /// The I/O APIC that hears this APIC's EOIs.
    pub fn connect_ioapic(&self, ioapic: &Arc<IoApic>) {
        assert!(self.ioapic.set(Arc::downgrade(ioapic)).is_ok(), "an APIC has one I/O APIC");
    }

    /// The ID it was made with.
    pub fn apic_id(&self) -> u32 {
        self.apic_id
    }

    /// Power-on state. The LINT pins stay at the level that drives them.
    pub fn reset(&self) {
        let bsp = if self.is_bsp { apic_base::BSP } else { 0 };
        self.apic_base.store(apic_base::RESET_ADDRESS | apic_base::EN | bsp, SeqCst);
        self.sipi.store(NO_SIPI, SeqCst);
        self.reset_registers();
    }

    /// What firmware leaves the bootstrap processor's APIC in, where no firmware runs: virtual wire mode, the PIC on
    /// LINT0 and NMI on LINT1 (MultiProcessor Specification 1.4, *Virtual Wire Mode*).
    pub fn enter_virtual_wire_mode(&self) {
        self.svr.store(svr::ENABLE | 0x0f, SeqCst);
        self.lvt[lvt::LINT0].store(lvt::DELIVERY_EXT_INT << lvt::DELIVERY_SHIFT, SeqCst);
        self.lvt[lvt::LINT1].store(lvt::DELIVERY_NMI << lvt::DELIVERY_SHIFT, SeqCst);
        self.raise_if_deliverable();
    }

    /// All but the ID and IA32_APIC_BASE (SDM vol. 3A, *Local APIC State After It Has Been Disabled* and *After an
    /// INIT Reset*).
    fn reset_registers(&self) {
        self.timer.reset();
        self.irr.clear_all();
        self.isr.clear_all();
        self.tmr.clear_all();
        for register in [&self.tpr, &self.ldr, &self.esr, &self.pending_errors] {
            register.store(0, SeqCst);
        }
        self.dfr.store(u32::MAX, SeqCst);
        self.svr.store(svr::RESET, SeqCst);
        self.icr.store(0, SeqCst);
        for entry in &self.lvt {
            entry.store(lvt::MASK, SeqCst);
        }
        self.lower_and_look();
    }

    fn is_enabled(&self) -> bool {
        self.apic_base.load(SeqCst) & apic_base::EN != 0
    }

    fn is_x2apic(&self) -> bool {
        self.apic_base.load(SeqCst) & apic_base::EXTD != 0
    }

    /// Enabled in IA32_APIC_BASE and in the spurious vector register: takes vectors.
    pub fn is_software_enabled(&self) -> bool {
        self.is_enabled() && self.svr.load(SeqCst) & svr::ENABLE != 0
    }

    /// PPR: the higher of the task's priority and the priority in service. Any thread.
    pub fn processor_priority(&self) -> u8 {
        let tpr = self.tpr.load(SeqCst) as u8;
        let in_service = self.isr.highest().unwrap_or(0);
        if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 }
    }

    /// Whether a message for `destination` is for this APIC. Any thread.
    pub fn matches(&self, destination: &Destination) -> bool {
        if destination.is_broadcast {
            return true;
        }
        if !destination.is_logical {
            return destination.id == self.apic_id;
        }
        if self.is_x2apic() {
            let ldr = self.x2apic_ldr();
            return destination.id >> 16 == ldr >> 16 && destination.id & ldr & 0xffff != 0;
        }
        let Ok(mda) = u8::try_from(destination.id) else { return false };
        let logical_id = (self.ldr.load(SeqCst) >> 24) as u8;
        if self.dfr.load(SeqCst) & spec::DFR_MODEL == spec::DFR_MODEL {
            mda & logical_id != 0
        } else {
            mda >> 4 == logical_id >> 4 && mda & logical_id & 0xf != 0
        }
    }

    /// The x2APIC logical ID: cluster in bits 31:16, one bit of 15:0.
    fn x2apic_ldr(&self) -> u32 {
        (self.apic_id >> 4) << 16 | 1 << (self.apic_id & 0xf)
    }

    /// A message has reached this APIC. False if it does not take it. Any thread.
    pub fn accept(&self, mode: DeliveryMode, vector: u8, trigger: Trigger) -> bool {
        if !self.is_enabled() {
            return false;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => self.accept_vector(vector, trigger),
            DeliveryMode::Nmi => {
                self.target.raise(InterruptKind::Nmi);
                true
            }
            DeliveryMode::Init => {
                // A start-up IPI from before the INIT has nobody to start.
                self.sipi.store(NO_SIPI, SeqCst);
                self.target.raise(InterruptKind::Init);
                true
            }
            DeliveryMode::StartUp => {
                self.sipi.store(u32::from(vector), SeqCst);
                self.target.raise(InterruptKind::Sipi);
                true
            }
            DeliveryMode::Smi | DeliveryMode::ExtInt => {
                tracing::debug!(target: "irq", apic_id = self.apic_id, ?mode, "message not connected");
                false
            }
        }
    }

    fn accept_vector(&self, vector: u8, trigger: Trigger) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < spec::FIRST_VECTOR {
            self.report_error(spec::esr::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        match trigger {
            Trigger::Level => self.tmr.set(vector),
            Trigger::Edge => self.tmr.clear(vector),
        };
        if self.irr.set(vector) {
            self.raise_if_deliverable();
        }
        true
    }

    /// Notes an error and sends the LVT's error interrupt.
    fn report_error(&self, error: u32) {
        self.pending_errors.fetch_or(error, SeqCst);
        let entry = self.lvt[lvt::ERROR].load(SeqCst);
        let vector = (entry & lvt::VECTOR) as u8;
        // An illegal error vector would be an error again, without end.
        if entry & lvt::MASK == 0 && vector >= spec::FIRST_VECTOR {
            self.accept_vector(vector, Trigger::Edge);
        }
    }

    fn timer_interrupt(&self) {
        let entry = self.lvt[lvt::TIMER].load(SeqCst);
        if entry & lvt::MASK == 0 {
            self.accept_vector((entry & lvt::VECTOR) as u8, Trigger::Edge);
        }
    }

    /// Drives LINT0, the PIC's INTR. Any thread.
    pub fn set_lint0(&self, level: bool) {
        let rising = level && !self.lint0.swap(level, SeqCst);
        if !level {
            self.lint0.store(false, SeqCst);
            self.lower_and_look();
            return;
        }
        if rising && self.is_enabled() {
            self.local_interrupt(lvt::LINT0);
        }
        self.raise_if_deliverable();
    }

    /// Drives LINT1, the NMI button. Any thread.
    pub fn set_lint1(&self, level: bool) {
        let rising = level && !self.lint1.swap(level, SeqCst);
        if !level {
            self.lint1.store(false, SeqCst);
        }
        if rising {
            if self.is_enabled() {
                self.local_interrupt(lvt::LINT1);
            } else {
                // With the APIC off, the pin is the CPU's NMI.
                self.target.raise(InterruptKind::Nmi);
            }
        }
    }

    /// A LINT pin rose: what its LVT entry makes of it, but for ExtINT, which is a level.
    fn local_interrupt(&self, pin: usize) {
        let entry = self.lvt[pin].load(SeqCst);
        if entry & lvt::MASK != 0 {
            return;
        }
        let trigger = if entry & lvt::TRIGGER_LEVEL != 0 { Trigger::Level } else { Trigger::Edge };
        match DeliveryMode::from_bits((entry >> lvt::DELIVERY_SHIFT) as u8 & 7) {
            Some(DeliveryMode::ExtInt) | None => {}
            Some(mode) => {
                self.accept(mode, (entry & lvt::VECTOR) as u8, trigger);
            }
        }
    }

    /// The PIC asks, and LINT0 lets it through: unmasked as ExtINT, or the CPU's INTR pin with the APIC off.
    fn has_ext_int(&self) -> bool {
        if !self.lint0.load(SeqCst) {
            return false;
        }
        let entry = self.lvt[lvt::LINT0].load(SeqCst);
        let unmasked = entry & lvt::MASK == 0 && entry >> lvt::DELIVERY_SHIFT & 7 == lvt::DELIVERY_EXT_INT;
        unmasked || !self.is_enabled()
    }

    /// The highest requested vector, if its priority class is above the CPU's.
    fn deliverable_vector(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.is_enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    fn raise_if_deliverable(&self) {
        if self.has_interrupt() {
            self.target.raise(InterruptKind::Hard);
        }
    }

    fn lower_and_look(&self) {
        self.target.lower_hard();
        self.raise_if_deliverable();
    }

    fn end_of_interrupt(&self) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.clear(vector);
        let suppressed = self.svr.load(SeqCst) & svr::SUPPRESS_EOI_BROADCAST != 0;
        if self.tmr.contains(vector)
            && !suppressed
            && let Some(ioapic) = self.ioapic.get().and_then(Weak::upgrade)
        {
            ioapic.eoi(vector);
        }
        self.raise_if_deliverable();
    }

    fn set_tpr(&self, value: u8) {
        let old = self.tpr.swap(u32::from(value), SeqCst);
        if u32::from(value) > old {
            self.lower_and_look();
        } else {
            self.raise_if_deliverable();
        }
    }
}

impl LocalInterrupts for LocalApic {
    fn has_interrupt(&self) -> bool {
        self.has_ext_int() || self.deliverable_vector().is_some()
    }

    fn acknowledge(&self) -> Option<u8> {
        self.target.lower_hard();
        let vector = if self.has_ext_int() {
            self.pic.get().and_then(Weak::upgrade).map(|pic| pic.acknowledge())
        } else {
            let vector = self.deliverable_vector();
            if let Some(vector) = vector {
                // In service before it leaves the IRR: nobody may see the CPU at a lower priority in between.
                self.isr.set(vector);
                self.irr.clear(vector);
            }
            vector
        };
        self.raise_if_deliverable();
        vector
    }

    fn summary(&self) -> ApicSummary {
        ApicSummary {
            irr: std::array::from_fn(|index| self.irr.word(index)),
            isr: std::array::from_fn(|index| self.isr.word(index)),
            tpr: self.tpr.load(SeqCst) as u8,
            svr: self.svr.load(SeqCst),
        }
    }

    fn take_sipi(&self) -> Option<u8> {
        u8::try_from(self.sipi.swap(NO_SIPI, SeqCst)).ok()
    }

    fn tsc_changed(&self) {
        if self.timer.tsc_changed() {
            self.timer_interrupt();
        }
    }

    fn init(&self) {
        self.reset_registers();
    }

    fn cr8(&self) -> u8 {
        self.tpr.load(SeqCst) as u8 >> 4
    }

    fn set_cr8(&self, value: u8) {
        self.set_tpr((value & 0xf) << 4);
    }

    fn read_msr(&self, index: u32) -> Result<u64, NoSuchRegister> {
        self.msr(index)
    }

    fn write_msr(&self, index: u32, value: u64) -> Result<(), NoSuchRegister> {
        self.set_msr(index, value)
    }

    fn mmio_base(&self) -> Option<u64> {
        let base = self.apic_base.load(SeqCst);
        (base & (apic_base::EN | apic_base::EXTD) == apic_base::EN).then_some(base & apic_base::ADDRESS)
    }

    fn mmio_read(&self, offset: u64, data: &mut [u8]) {
        self.read_page(offset, data);
    }

    fn mmio_write(&self, offset: u64, data: &[u8]) {
        self.write_page(offset, data);
    }
}
