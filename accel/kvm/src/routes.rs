//! GSI routes: which interrupt input or message each GSI stands for (Linux, Documentation/virt/kvm/api.rst,
//! *KVM_SET_GSI_ROUTING*, *KVM_IRQFD*).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use devices::interrupt::{MsiMessage, MsiRoute, RouteError};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Inputs of the kernel's IOAPIC, and so the first GSI that is free for messages.
const IOAPIC_PINS: u32 = 24;
/// Inputs of the two PICs together.
const PIC_PINS: u32 = 16;

/// The routes of one VM.
pub(crate) struct RouteTable {
    /// GSIs handed out for messages, with the message that is on them.
    messages: BTreeMap<u32, Option<MsiMessage>>,
    /// GSIs that the kernel has.
    limit: u32,
}

impl RouteTable {
    /// The inputs alone. `limit`: how many GSIs the kernel has.
    pub(crate) fn new(limit: usize) -> Self {
        Self { messages: BTreeMap::new(), limit: u32::try_from(limit).unwrap_or(u32::MAX) }
    }

    fn allocate(&mut self) -> Option<u32> {
        let gsi = (IOAPIC_PINS..self.limit).find(|gsi| !self.messages.contains_key(gsi))?;
        self.messages.insert(gsi, None);
        Some(gsi)
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pic = (0..PIC_PINS).filter(|&pin| pin != CASCADE).map(|pin| {
            let chip = if pin < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            input(pin, chip, pin % 8)
        });
        let ioapic = (0..IOAPIC_PINS)
            .filter(|&gsi| gsi != CASCADE)
            .map(|gsi| input(gsi, KVM_IRQCHIP_IOAPIC, ioapic_pin(gsi)));
        let messages =
            self.messages.iter().filter_map(|(&gsi, message)| message.map(|message| msi(gsi, message)));
        pic.chain(ioapic).chain(messages).collect()
    }

    /// Tells the kernel.
    pub(crate) fn commit(&self, vm: &VmFd) -> io::Result<()> {
        let routing =
            KvmIrqRouting::from_entries(&self.entries()).map_err(|e| io::Error::other(format!("{e:?}")))?;
        vm.set_gsi_routing(&routing).map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}

/// IRQ 2 is where the slave PIC hangs; nothing else can be wired to it.
const CASCADE: u32 = 2;

/// The IOAPIC input of a GSI of the kernel's. The kernel's PIT drives GSI 0; on a PC it is wired to input 2 (the
/// MADT's interrupt source override says so), the others one to one.
fn ioapic_pin(gsi: u32) -> u32 {
    if gsi == 0 { CASCADE } else { gsi }
}

fn input(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_bindings::kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

/// One message source: a GSI with an eventfd behind it.
pub(crate) struct Route {
    vm: Arc<VmFd>,
    table: Arc<Mutex<RouteTable>>,
    gsi: u32,
    eventfd: EventFd,
    /// Whether the eventfd is the kernel's to listen to. Taken before the table's lock.
    armed: Mutex<bool>,
    /// Others that it listens to.
    attached: Mutex<Vec<Arc<EventFd>>>,
}

impl Route {
    pub(crate) fn new(vm: Arc<VmFd>, table: Arc<Mutex<RouteTable>>) -> Result<Self, RouteError> {
        let eventfd = EventFd::new(EFD_NONBLOCK).map_err(RouteError::Host)?;
        let gsi = lock(&table).allocate().ok_or(RouteError::Exhausted)?;
        Ok(Self { vm, table, gsi, eventfd, armed: Mutex::new(false), attached: Mutex::default() })
    }

    fn attached(&self) -> MutexGuard<'_, Vec<Arc<EventFd>>> {
        self.attached.lock().expect("no holder of a route's lock panics")
    }

    fn release(&self, event: &EventFd) {
        if let Err(error) = self.vm.unregister_irqfd(event, self.gsi) {
            tracing::warn!(target: "irq", gsi = self.gsi, %error, "an eventfd still interrupts");
        }
    }
}

fn lock(table: &Mutex<RouteTable>) -> MutexGuard<'_, RouteTable> {
    table.lock().expect("no holder of the route table's lock panics")
}

fn host(error: kvm_ioctls::Error) -> RouteError {
    RouteError::Host(io::Error::from_raw_os_error(error.errno()))
}

impl MsiRoute for Route {
    fn set(&self, message: Option<MsiMessage>) -> Result<(), RouteError> {
        let mut armed = self.armed.lock().expect("no holder of a route's lock panics");
        if message.is_none() && *armed {
            self.vm.unregister_irqfd(&self.eventfd, self.gsi).map_err(host)?;
            *armed = false;
        }
        {
            let mut table = lock(&self.table);
            if table.messages.insert(self.gsi, message) != Some(message) {
                table.commit(&self.vm).map_err(RouteError::Host)?;
            }
        }
        // Last: an eventfd that was written while the route was masked fires as it is handed over.
        if message.is_some() && !*armed {
            self.vm.register_irqfd(&self.eventfd, self.gsi).map_err(host)?;
            *armed = true;
        }
        Ok(())
    }

    fn trigger(&self) {
        if *self.armed.lock().expect("no holder of a route's lock panics") {
            // Full only after 2^64 - 2 events that nobody took.
            let _ = self.eventfd.write(1);
        }
    }

    fn eventfd(&self) -> Option<&EventFd> {
        Some(&self.eventfd)
    }

    /// A GSI has as many irqfds as one likes.
    fn attach(&self, event: &Arc<EventFd>) -> bool {
        let mut attached = self.attached();
        let registered = self.vm.register_irqfd(event, self.gsi);
        if registered.is_ok() {
            attached.push(Arc::clone(event));
        }
        registered.is_ok()
    }

    fn detach(&self, event: &Arc<EventFd>) {
        let mut attached = self.attached();
        if let Some(index) = attached.iter().position(|other| Arc::ptr_eq(other, event)) {
            self.release(&attached.swap_remove(index));
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        for event in self.attached().drain(..) {
            self.release(&event);
        }
        if let Err(error) = self.set(None) {
            tracing::warn!(target: "irq", gsi = self.gsi, %error, "an interrupt route could not be taken down");
        }
        lock(&self.table).messages.remove(&self.gsi);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_gsis_start_after_the_inputs_and_are_reused() {
        let mut table = RouteTable::new(26);
        assert_eq!(table.allocate(), Some(24));
        assert_eq!(table.allocate(), Some(25));
        assert_eq!(table.allocate(), None);
        table.messages.remove(&24);
        assert_eq!(table.allocate(), Some(24));
    }

    #[test]
    fn a_masked_route_has_no_entry() {
        let mut table = RouteTable::new(64);
        let inputs = table.entries().len();
        assert_eq!(inputs, 15 + 23);
        let gsi = table.allocate().unwrap();
        assert_eq!(table.entries().len(), inputs);
        table.messages.insert(gsi, Some(MsiMessage { address: 0x1_fee0_1000, data: 0x31 }));
        let entries = table.entries();
        let entry = entries.last().unwrap();
        assert_eq!((entry.gsi, entry.type_), (24, KVM_IRQ_ROUTING_MSI));
    }

    #[test]
    fn no_gsi_reaches_one_chip_twice() {
        let entries = RouteTable::new(64).entries();
        let mut gsi_0 = entries.iter().filter(|entry| entry.gsi == 0);
        assert_eq!(gsi_0.clone().count(), 2);
        assert!(gsi_0.all(|entry| entry.type_ == KVM_IRQ_ROUTING_IRQCHIP));
        assert!(!entries.iter().any(|entry| entry.gsi == CASCADE));
    }
}
