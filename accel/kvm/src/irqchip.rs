//! The kernel's PIC, IOAPIC, local APICs and PIT (Linux, Documentation/virt/kvm/api.rst, *KVM_CREATE_IRQCHIP*,
//! *KVM_CREATE_PIT2*, *KVM_IRQ_LINE*, *KVM_SIGNAL_MSI*).

use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use accel::VcpuError;
use devices::device::Device;
use devices::interrupt::{Gsi, InterruptSink, MsiMessage, MsiRoute, RouteError};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_msi, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use crate::routes::{Route, RouteTable};

/// The chips of one VM.
///
/// They are made when first needed, at the latest with the first vCPU, and not as soon as the VM: a memory slot that is
/// added after them waits some milliseconds for the kernel to retire its I/O bus, one that is added before does not.
pub(crate) struct KernelChips {
    vm: Arc<VmFd>,
    routes: Arc<Mutex<RouteTable>>,
    power_on: OnceLock<Result<PowerOn, Failure>>,
}

/// Why the chips could not be made.
#[derive(Clone, Copy, Debug)]
struct Failure {
    what: &'static str,
    errno: i32,
}

/// What the chips held when they were made.
struct PowerOn {
    chips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
}

impl KernelChips {
    /// The chips to be. `route_limit`: how many GSIs the kernel has.
    pub(crate) fn new(vm: Arc<VmFd>, route_limit: usize) -> Self {
        Self { vm, routes: Arc::new(Mutex::new(RouteTable::new(route_limit))), power_on: OnceLock::new() }
    }

    /// Makes them, if they are not there yet. Before any vCPU: those get their local APIC when they are made.
    pub(crate) fn ensure(&self) -> Result<(), VcpuError> {
        match self.power_on.get_or_init(|| self.make()) {
            Ok(_) => Ok(()),
            Err(failure) => {
                let source = io::Error::from_raw_os_error(failure.errno);
                Err(VcpuError::Host { what: failure.what, source })
            }
        }
    }

    fn make(&self) -> Result<PowerOn, Failure> {
        let failed = |what| move |e: kvm_ioctls::Error| Failure { what, errno: e.errno() };
        self.vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP failed"))?;
        // Port 0x61 has the PIT's gate and the refresh toggle; without the dummy speaker it would go to nobody.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.vm.create_pit2(config).map_err(failed("KVM_CREATE_PIT2 failed"))?;
        let routes = self.routes.lock().expect("no holder of the route table's lock panics");
        routes.commit(&self.vm).map_err(|e| Failure {
            what: "KVM_SET_GSI_ROUTING failed",
            errno: e.raw_os_error().unwrap_or(libc::EINVAL),
        })?;
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            self.vm.get_irqchip(chip).map_err(failed("KVM_GET_IRQCHIP failed"))?;
        }
        let pit = self.vm.get_pit2().map_err(failed("KVM_GET_PIT2 failed"))?;
        Ok(PowerOn { chips, pit })
    }

    /// Makes them for somebody who cannot be told of a failure; the first vCPU will tell.
    fn are_there(&self) -> bool {
        self.ensure().is_ok()
    }
}

impl InterruptSink for KernelChips {
    fn set_gsi(&self, gsi: Gsi, level: bool) {
        if !self.are_there() {
            return;
        }
        if let Err(error) = self.vm.set_irq_line(gsi.0, level) {
            // Only a GSI that the machine should not have wired gets here.
            tracing::warn!(target: "irq", gsi = gsi.0, level, %error, "KVM_IRQ_LINE failed");
        }
    }

    fn send_msi(&self, message: MsiMessage) {
        if !self.are_there() {
            return;
        }
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
        self.ensure().map_err(|error| RouteError::Host(io::Error::other(error)))?;
        Ok(Box::new(Route::new(Arc::clone(&self.vm), Arc::clone(&self.routes))?))
    }
}

impl Device for KernelChips {
    fn name(&self) -> &'static str {
        "KVM irqchip"
    }

    fn reset(&self) {
        let Some(Ok(power_on)) = self.power_on.get() else { return };
        for chip in &power_on.chips {
            if let Err(error) = self.vm.set_irqchip(chip) {
                tracing::warn!(target: "irq", chip = chip.chip_id, %error, "KVM_SET_IRQCHIP failed");
            }
        }
        if let Err(error) = self.vm.set_pit2(&power_on.pit) {
            tracing::warn!(target: "irq", %error, "KVM_SET_PIT2 failed");
        }
    }
}
