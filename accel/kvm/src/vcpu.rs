//! A vCPU: made on its own thread, lives and dies there.

use std::io;
use std::sync::Arc;

use accel::arch_state::RunMode;
use accel::{
    CpuArchState, CpuHandle, CpuIo, DebugControl, Kick, MachineCheck, VcpuBackend, VcpuConfig, VcpuError,
    VcpuExit, VcpuSeed,
};
use kvm_bindings::kvm_lapic_state;

use crate::accelerator::Shared;
use crate::cpuid::{self, Platform};
use crate::kick::{self, Kicker};

mod debug;
mod failure;
mod interrupts;
mod machine_check;
pub(crate) mod msr;
pub(crate) mod parked;
mod run;
mod run_page;
mod segment;
mod state;
mod waiting;
mod xsave;

use interrupts::UserApic;
use parked::Fd;
use run_page::RunPage;

/// A vCPU reserved.
pub(crate) struct Seed {
    shared: Arc<Shared>,
    config: VcpuConfig,
    kicker: Arc<Kicker>,
}

impl Seed {
    pub(crate) fn new(shared: Arc<Shared>, config: VcpuConfig) -> Self {
        Self { shared, config, kicker: Arc::default() }
    }
}

impl VcpuSeed for Seed {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicker) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>, cpu: CpuHandle) -> Result<Box<dyn VcpuBackend>, VcpuError> {
        Ok(Box::new(Vcpu::new(*self, cpu)?))
    }
}

/// A vCPU on its thread.
pub(crate) struct Vcpu {
    /// The mapped `kvm_run` of `fd`: not to be used once that is closed.
    page: RunPage,
    fd: Fd,
    cpu: CpuHandle,
    kicker: Arc<Kicker>,
    shared: Arc<Shared>,
    index: usize,
    /// What the CPU must know itself where the kernel has no local APIC for it.
    user_apic: Option<UserApic>,
    /// An access was dispatched and KVM_RUN has not been called since.
    incomplete: bool,
    /// Came up while an access was completed; for the next `run`.
    deferred: Option<VcpuExit>,
    debug: DebugControl,
    /// The breakpoint just reported, by linear address: going on does not report it again.
    at_breakpoint: Option<u64>,
    /// How often time had gone on after a pause when the CPU ran last.
    resumptions: u64,
    power_on: Arc<PowerOn>,
}

/// What the reset state cannot be told from the manual: taken when the vCPU was made.
struct PowerOn {
    msrs: Vec<(u32, u64)>,
    lapic: Option<Box<kvm_lapic_state>>,
}

impl Vcpu {
    fn new(seed: Seed, cpu: CpuHandle) -> Result<Self, VcpuError> {
        let Seed { shared, config, kicker } = seed;
        kick::prepare_thread()
            .map_err(|source| VcpuError::Host { what: "the kick signal cannot be prepared", source })?;
        let mut fd = Fd::open(&shared, config.apic_id.into())?;
        let platform = Platform {
            kernel_apic: shared.chips.is_some(),
            tsc_deadline: shared.features.tsc_deadline,
            tsc_khz: fd.get_tsc_khz().ok().filter(|&khz| khz != 0),
        };
        fd.show(cpuid::entries(shared.supported_cpuid()?, &config.model, config.place(), platform)?)?;
        msr::enable_fast_strings(&fd)?;
        machine_check::set_up(&fd);
        let (power_on, is_new) = fd.power_on(|fd| {
            let lapic = match shared.chips {
                Some(_) => Some(Box::new(fd.get_lapic().map_err(host("KVM_GET_LAPIC failed"))?)),
                None => None,
            };
            Ok(PowerOn { msrs: msr::read(fd, shared.msrs(fd)?)?, lapic })
        })?;
        let user_apic = shared.chips.is_none().then(|| UserApic::new(config.index));
        let page = RunPage::of(&mut fd, shared.vm.run_size());
        kicker.bind(page.immediate_exit());
        let mut vcpu = Self {
            page,
            fd,
            cpu,
            kicker,
            shared,
            index: config.index,
            user_apic,
            incomplete: false,
            deferred: None,
            debug: DebugControl::default(),
            at_breakpoint: None,
            resumptions: 0,
            power_on,
        };
        if vcpu.user_apic.is_some() {
            // The kernel makes every CPU without a local APIC a bootstrap CPU.
            vcpu.set_apic_base(interrupts::power_on_apic_base(config.index))?;
        }
        if !is_new {
            // It is as it was when it left.
            vcpu.reset()?;
        }
        Ok(vcpu)
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.kicker.unbind();
    }
}

impl VcpuBackend for Vcpu {
    fn run(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        self.run_loop(io)
    }

    fn step(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        self.single_step(io)
    }

    fn complete_exit(&mut self, io: &dyn CpuIo) -> Result<(), VcpuError> {
        self.complete(io)
    }

    fn has_work(&self, io: &dyn CpuIo) -> bool {
        match &self.user_apic {
            None => true,
            Some(apic) => apic.has_work(self.cpu.interrupt_request(), io),
        }
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        let mut state = CpuArchState { msrs: self.power_on.msrs.clone(), ..CpuArchState::power_on() };
        if self.index != 0 {
            state.run_mode = RunMode::WaitForSipi;
        }
        self.incomplete = false;
        self.deferred = None;
        self.at_breakpoint = None;
        self.forget_init_and_sipi()?;
        self.clear_events()?;
        // Out of x2APIC mode first: that moves the ID in its register, and not every kernel moves it back.
        self.set_apic_base(interrupts::power_on_apic_base(self.index))?;
        if let Some(lapic) = &self.power_on.lapic {
            self.fd.set_lapic(lapic).map_err(host("KVM_SET_LAPIC failed"))?;
        }
        msr::join_tsc(&self.fd)?;
        self.write_state(&state)
    }

    fn state(&mut self) -> Result<CpuArchState, VcpuError> {
        self.read_state()
    }

    fn set_state(&mut self, state: &CpuArchState) -> Result<(), VcpuError> {
        self.at_breakpoint = None;
        self.write_state(state)
    }

    fn machine_check(&mut self, check: &MachineCheck) -> Result<(), VcpuError> {
        self.file_machine_check(check)
    }

    fn set_debug(&mut self, debug: &DebugControl) -> Result<(), VcpuError> {
        self.apply_debug(debug, debug.single_step)?;
        self.debug = debug.clone();
        Ok(())
    }

    fn waiting(&mut self, io: &dyn CpuIo) -> String {
        self.waiting_text(io)
    }

    fn describe(&mut self) -> String {
        self.registers_text()
    }
}

/// Makes an ioctl's failure a [`VcpuError`].
fn host(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VcpuError {
    move |error| VcpuError::Host { what, source: io::Error::from_raw_os_error(error.errno()) }
}
