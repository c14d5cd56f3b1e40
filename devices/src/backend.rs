//! The host's end of devices: where a character device's bytes go to and come from.

pub mod block;
mod buffer;
mod file;
mod null;

pub use buffer::{BufferBackend, TeeBackend};
pub use file::FileBackend;
pub use null::NullBackend;

/// The host's end of a character device. Called from any thread, under the device's transmit lock.
pub trait CharBackend: Send + Sync {
    /// Takes what the guest sent, in order. A byte that the host will not have is dropped, never an error: the guest
    /// cannot do anything about it. May block only as long as the host's own write does.
    fn write(&self, bytes: &[u8]);
    /// Whether [`CharBackend::write`] would return without waiting for a slow reader. Asked where waiting is not an
    /// option: on the thread that drives the clock, and while the machine pauses.
    fn can_write(&self) -> bool {
        true
    }
    /// Brings what was taken so far to the host. For every way out of the program.
    fn flush(&self) {}
    /// The device has room again after [`CharDevice::can_receive`] was zero. Wakes whoever reads the host's input.
    fn accept_input(&self) {}
}

/// The device's end, into which the main loop pushes what the host has read.
pub trait CharDevice: Send + Sync {
    /// How many bytes the device takes now. While it is zero, the host's input stays unread.
    fn can_receive(&self) -> usize;
    /// Pushes input; returns how many bytes were taken: no more than [`CharDevice::can_receive`] said.
    fn receive(&self, bytes: &[u8]) -> usize;
}
