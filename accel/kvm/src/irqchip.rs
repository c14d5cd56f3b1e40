//! The kernel's PIC, IOAPIC, local APICs and PIT (Linux, Documentation/virt/kvm/api.rst, *KVM_CREATE_IRQCHIP*,
//! *KVM_CREATE_PIT2*, *KVM_IRQ_LINE*, *KVM_SIGNAL_MSI*).

use std::io;
use std::sync::{Arc, Mutex};

use devices::device::Device;
use devices::interrupt::{Gsi, InterruptSink, MsiMessage, MsiRoute, RouteError};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_msi, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use crate::device::OpenError;
use crate::routes::{Route, RouteTable};

/// The chips of one VM.
pub(crate) struct KernelChips {
    vm: Arc<VmFd>,
    routes: Arc<Mutex<RouteTable>>,
    power_on: PowerOn,
}

/// What the chips held when they were made.
struct PowerOn {
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl KernelChips {
    /// Makes them. Before any vCPU: those get their local APIC when they are made.
    pub(crate) fn new(vm: Arc<VmFd>, route_limit: usize) -> Result<Self, OpenError> {
        let refused = |what| move |e: kvm_ioctls::Error| OpenError::Refused { what, source: host(e) };
        vm.create_irq_chip().map_err(refused("KVM_CREATE_IRQCHIP failed"))?;
        // Port 0x61 has the PIT's gate and the refresh toggle; without the dummy speaker it would go to nobody.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).map_err(refused("KVM_CREATE_PIT2 failed"))?;
        let routes = RouteTable::new(route_limit);
        routes
            .commit(&vm)
            .map_err(|source| OpenError::Refused { what: "KVM_SET_GSI_ROUTING failed", source })?;
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(refused("KVM_GET_IRQCHIP failed"))?;
        }
        let pit = vm.get_pit2().map_err(refused("KVM_GET_PIT2 failed"))?;
        Ok(Self { vm, routes: Arc::new(Mutex::new(routes)), power_on: PowerOn { chips, pit } })
    }
}

fn host(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

impl InterruptSink for KernelChips {
    fn set_gsi(&self, gsi: Gsi, level: bool) {
        if let Err(error) = self.vm.set_irq_line(gsi.0, level) {
            // Only a GSI that the machine should not have wired gets here.
            tracing::warn!(target: "irq", gsi = gsi.0, level, %error, "KVM_IRQ_LINE failed");
        }
    }

    fn send_msi(&self, message: MsiMessage) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: (message.address >> 32) as u32,
            data: message.data,
            ..Default::default()
        };
        // Zero or an error: the guest has no such CPU, or its APIC is off. Messages get lost then, as on hardware.
        if let Err(error) = self.vm.signal_msi(msi) {
            tracing::debug!(target: "irq", ?message, %error, "KVM_SIGNAL_MSI failed");
        }
    }

    fn new_route(&self) -> Result<Box<dyn MsiRoute>, RouteError> {
        Ok(Box::new(Route::new(Arc::clone(&self.vm), Arc::clone(&self.routes))?))
    }
}

impl Device for KernelChips {
    fn name(&self) -> &'static str {
        "KVM irqchip"
    }

    fn reset(&self) {
        for chip in &self.power_on.chips {
            if let Err(error) = self.vm.set_irqchip(chip) {
                tracing::warn!(target: "irq", chip = chip.chip_id, %error, "KVM_SET_IRQCHIP failed");
            }
        }
        if let Err(error) = self.vm.set_pit2(&self.power_on.pit) {
            tracing::warn!(target: "irq", %error, "KVM_SET_PIT2 failed");
        }
    }
}
