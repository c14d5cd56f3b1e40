//! The host's end of devices: where a character device's bytes go to and come from, and disks' images.

use std::sync::Weak;

pub mod block;
mod buffer;
pub mod chardev;
mod file;
mod null;

pub use buffer::{BufferBackend, TeeBackend};
pub use file::FileBackend;
pub use null::NullBackend;

/// The host's end of a character device. Called from any thread, under the device's transmit lock.
pub trait CharBackend: Send + Sync {
    /// Takes what the guest sent, in order. A byte that the host will not have is dropped, never an error: the guest
    /// cannot do anything about it. May wait for a slow reader, until the program ends.
    fn write(&self, bytes: &[u8]);
    /// Takes what it can without waiting for a slow reader, in order; how many bytes. If these are not all,
    /// [`CharDevice::writable`] is called when more can be taken. With nobody there, all are taken, and dropped.
    fn try_write(&self, bytes: &[u8]) -> usize {
        self.write(bytes);
        bytes.len()
    }
    /// Whether [`CharBackend::write`] would return without waiting for a slow reader. Asked where waiting is not an
    /// option: on the thread that drives the clock, and while the machine pauses.
    fn can_write(&self) -> bool {
        true
    }
    /// Brings what was taken so far to the host. For every way out of the program.
    fn flush(&self) {}
    /// The device has room again after [`CharDevice::can_receive`] was zero. Called with no ranked lock held.
    fn accept_input(&self) {}
    /// Input and events go to `device` from now on. Once.
    fn attach(&self, _device: Weak<dyn CharDevice>) {}
    /// Whether somebody is there.
    fn is_open(&self) -> bool {
        true
    }
}

/// What comes from the host's end beside bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CharEvent {
    /// Somebody is there now, who was not.
    Opened,
    /// Nobody is there any more.
    Closed,
    /// The line is held low for longer than a byte.
    Break,
}

/// The device's end, into which the host's end pushes what it has. Called on the host's end's thread, in order.
pub trait CharDevice: Send + Sync {
    /// How many bytes the device takes now. While it is zero, the host's input stays unread, and the device says with
    /// [`CharBackend::accept_input`] when it is not any more.
    fn can_receive(&self) -> usize;
    /// Pushes input; returns how many bytes were taken: no more than [`CharDevice::can_receive`] said.
    fn receive(&self, bytes: &[u8]) -> usize;
    /// Something has happened.
    fn event(&self, _event: CharEvent) {}
    /// There is room again after [`CharBackend::try_write`] has not taken all.
    fn writable(&self) {}
    /// What becomes of bytes that the device has had no room for, when who said them goes.
    fn rest(&self) -> Rest {
        Rest::Kept
    }
}

/// What becomes of what was said by somebody who goes before the device has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It is kept for the device, so far as that is little, and the next one may come.
    Kept,
    /// The device hears that somebody went after it has had all of it: until then nobody else comes.
    Awaited,
    /// Nobody in the guest means to read it.
    Lost,
}
