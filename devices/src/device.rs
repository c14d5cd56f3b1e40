//! A device's life beside its registers.

/// The order matters. Pause: clock, CPUs, devices. Resume: devices, clock, CPUs. Reset: pause, devices,
/// irqchip, CPUs, resume.
pub trait Device: Send + Sync {
    /// Name for diagnostics, the datasheet's part where there is one.
    fn name(&self) -> &'static str;
    /// Back to power-on state; lines low, timers cancelled.
    fn reset(&self);
    /// No CPU runs: stop host-side activity (threads, backends).
    fn pause(&self) {}
    /// Undo [`Device::pause`].
    fn resume(&self) {}
}
