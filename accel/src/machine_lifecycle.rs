//! The order in which a machine's parts are paused, resumed and reset (DESIGN.md, *The lifecycle*).

use std::sync::{Arc, Mutex, MutexGuard};

use devices::clock::Clock;
use devices::device::Device;

use crate::cpu_handle::CpuHandle;
use crate::cpu_set::{CpuSet, OnCpuThread, ResetError};

const LOCK: &str = "no part of the machine panics when paused, resumed or reset";

/// The parts of a machine that pause, resume and reset, in the order in which they do.
///
/// - pause: clock, CPUs, devices. Time stands still before the first CPU does: no timer fires at a machine half
///   stopped. Devices last, since CPUs may be in the middle of an access to them.
/// - resume: devices, clock, CPUs.
/// - reset: pause, devices, irqchip, CPUs, resume. Devices lower their lines before the controllers they lead to forget
///   what they latched; controllers before the CPUs they raise.
///
/// Born paused; pauses are counted, as the CPU set's are. Operations of several threads take turns.
pub struct MachineLifecycle {
    cpus: Arc<CpuSet>,
    clock: Arc<dyn Clock>,
    devices: Vec<Arc<dyn Device>>,
    irqchip: Vec<Arc<dyn Device>>,
    pauses: Mutex<usize>,
}

/// Why a machine was not reset.
#[derive(Debug, thiserror::Error)]
pub enum MachineResetError {
    /// Asked by a CPU's thread, which cannot wait for itself.
    #[error(transparent)]
    OnCpuThread(#[from] OnCpuThread),
    /// A CPU failed. The machine stays paused.
    #[error(transparent)]
    Cpu(#[from] ResetError),
}

impl MachineLifecycle {
    /// A machine of `cpus`, which have not been resumed yet, on `clock`, with `devices` and, apart from them, its
    /// interrupt controllers `irqchip` (none where the accelerator has them all). Paused once.
    pub fn new(
        cpus: Arc<CpuSet>,
        clock: Arc<dyn Clock>,
        devices: Vec<Arc<dyn Device>>,
        irqchip: Vec<Arc<dyn Device>>,
    ) -> Self {
        clock.pause();
        devices.iter().for_each(|device| device.pause());
        Self { cpus, clock, devices, irqchip, pauses: Mutex::new(1) }
    }

    /// The machine's CPUs.
    pub fn cpus(&self) -> &Arc<CpuSet> {
        &self.cpus
    }

    fn turn(&self) -> Result<MutexGuard<'_, usize>, OnCpuThread> {
        // Asked before the lock: another thread may hold it, waiting for this CPU to stop.
        if CpuHandle::current().is_some() { Err(OnCpuThread) } else { Ok(self.pauses.lock().expect(LOCK)) }
    }

    /// Stops the machine; returns when it has stopped. It stays so until as many [`Self::resume`].
    pub fn pause(&self) -> Result<(), OnCpuThread> {
        self.pause_counted(&mut *self.turn()?)
    }

    fn pause_counted(&self, pauses: &mut usize) -> Result<(), OnCpuThread> {
        *pauses += 1;
        if *pauses == 1 {
            self.clock.pause();
            self.cpus.pause_all()?;
            self.devices.iter().for_each(|device| device.pause());
        }
        Ok(())
    }

    /// Takes back one pause; the last one sets the machine going.
    ///
    /// Panics if the machine is not paused.
    pub fn resume(&self) -> Result<(), OnCpuThread> {
        self.resume_counted(&mut *self.turn()?);
        Ok(())
    }

    fn resume_counted(&self, pauses: &mut usize) {
        assert!(*pauses > 0, "resume without pause");
        *pauses -= 1;
        if *pauses == 0 {
            self.devices.iter().for_each(|device| device.resume());
            self.clock.resume();
            self.cpus.resume_all();
        }
    }

    /// Back to power-on; the machine then goes on if it ran.
    pub fn reset(&self) -> Result<(), MachineResetError> {
        let mut pauses = self.turn()?;
        self.pause_counted(&mut pauses)?;
        self.devices.iter().for_each(|device| device.reset());
        self.irqchip.iter().for_each(|device| device.reset());
        self.cpus.reset_all()?;
        self.resume_counted(&mut pauses);
        Ok(())
    }

    /// Whether somebody holds the machine's CPUs paused. Any thread, no waiting.
    pub fn is_paused(&self) -> bool {
        self.cpus.is_paused()
    }
}
