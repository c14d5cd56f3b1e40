//! The host's ends that have descriptors: terminals, pipes, files, sockets (QEMU, *Invocation*: character devices).
//!
//! What the guest sends goes out on the thread that sends it ([`stream`]). What comes in, and who comes and goes, is the
//! business of one thread for all of them ([`thread`]), on which each has a [`Driver`]. Several devices may share one
//! ([`Mux`]).

mod connections;
mod driver;
pub mod escape;
mod mux;
pub mod pty;
mod stream;
#[cfg(test)]
mod tests;
mod thread;

use std::sync::{Arc, OnceLock, Weak};

use super::CharDevice;

pub use connections::{Address, Client, ConnectError, Server};
pub use driver::Driver;
pub use mux::{Command, Mux, MuxFront};
pub use stream::{Stream, Writer};
pub use thread::CharThread;

/// The device that a host's end serves, once it is there.
#[derive(Default)]
struct Front(OnceLock<Weak<dyn CharDevice>>);

impl Front {
    fn set(&self, device: Weak<dyn CharDevice>) {
        assert!(self.0.set(device).is_ok(), "a host's end serves one device");
    }

    fn get(&self) -> Option<Arc<dyn CharDevice>> {
        self.0.get()?.upgrade()
    }
}
