//! The CPU-less accelerator, `-accel qtest`: a machine whose devices a test drives in the CPUs' stead.
//!
//! Its CPUs exist, are paused, resumed and reset like any other, but execute nothing: the test does their port and
//! MMIO accesses through [`CpuIo`], takes their interrupts from the machine's interrupt controllers, and moves guest
//! time by hand.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Thread, current, park};

use devices::clock::{Clock, ManualClock};
use vm_memory::GuestMemoryMmap;

use crate::arch_state::{CpuArchState, RunMode};
use crate::contract::{
    Accelerator, CpuIo, DebugControl, Irqchip, Kick, MemoryError, MemoryListener, Threading, VcpuBackend,
    VcpuConfig, VcpuError, VcpuExit, VcpuSeed,
};
use crate::cpu_handle::CpuHandle;

/// The accelerator.
#[derive(Default)]
pub struct QtestAccelerator {
    clock: Arc<ManualClock>,
    memory: MemoryMap,
}

#[derive(Default)]
struct MemoryMap(Mutex<Option<GuestMemoryMmap>>);

impl QtestAccelerator {
    /// An accelerator whose clock stands at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Guest time, for the test to move.
    pub fn manual_clock(&self) -> &Arc<ManualClock> {
        &self.clock
    }

    /// Guest RAM as the machine last described it.
    pub fn memory(&self) -> Option<GuestMemoryMmap> {
        self.memory.0.lock().expect("no holder panics").clone()
    }
}

impl MemoryListener for MemoryMap {
    fn set_map(&self, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
        *self.0.lock().expect("no holder panics") = Some(memory.clone());
        Ok(())
    }
}

impl Accelerator for QtestAccelerator {
    fn name(&self) -> &'static str {
        "qtest"
    }

    fn memory_listener(&self) -> &dyn MemoryListener {
        &self.memory
    }

    fn irqchip(&self) -> Irqchip {
        Irqchip::Userspace
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn threading(&self) -> Threading {
        Threading::PerCpu
    }

    fn new_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn VcpuSeed>, VcpuError> {
        Ok(Box::new(Seed { index: config.index, unpark: Arc::default() }))
    }
}

/// Unparking is the stickiest of kicks: a thread unparked beforehand does not park.
#[derive(Default)]
struct Unpark(OnceLock<Thread>);

impl Kick for Unpark {
    fn kick(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

struct Seed {
    index: usize,
    unpark: Arc<Unpark>,
}

impl VcpuSeed for Seed {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.unpark) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>, cpu: CpuHandle) -> Result<Box<dyn VcpuBackend>, VcpuError> {
        self.unpark.0.set(current()).expect("a CPU is bound once");
        // A kicker that found no thread to unpark has published its request before it looked; with this fence, and
        // the one between its publishing and its look, `run` sees that request.
        fence(Ordering::SeqCst);
        let state = power_on(self.index);
        Ok(Box::new(Backend { cpu, state }))
    }
}

struct Backend {
    cpu: CpuHandle,
    state: CpuArchState,
}

fn power_on(index: usize) -> CpuArchState {
    let run_mode = if index == 0 { RunMode::Running } else { RunMode::WaitForSipi };
    CpuArchState { run_mode, ..CpuArchState::power_on() }
}

impl VcpuBackend for Backend {
    fn run(&mut self, _io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        while !self.cpu.exit_requested() {
            park();
        }
        Ok(VcpuExit::Kicked)
    }

    fn step(&mut self, _io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        Err(VcpuError::Unsupported("executing instructions"))
    }

    fn complete_exit(&mut self, _io: &dyn CpuIo) -> Result<(), VcpuError> {
        Ok(())
    }

    fn has_work(&self, _io: &dyn CpuIo) -> bool {
        // Never asked: `run` does not halt.
        true
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        self.state = power_on(self.cpu.index());
        Ok(())
    }

    fn state(&mut self) -> Result<CpuArchState, VcpuError> {
        Ok(self.state.clone())
    }

    fn set_state(&mut self, state: &CpuArchState) -> Result<(), VcpuError> {
        self.state = state.clone();
        Ok(())
    }

    fn set_debug(&mut self, _debug: &DebugControl) -> Result<(), VcpuError> {
        Err(VcpuError::Unsupported("debugging"))
    }
}
