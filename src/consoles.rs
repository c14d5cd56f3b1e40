//! Consoles and ports of a run, and what is behind them.

use std::sync::Arc;

use devices::backend::{CharBackend, NullBackend};
use devices::virtio::console::PortOptions;

use crate::options::console::{PortChoice, SerialBus};

/// A port, connected or not yet.
#[derive(Clone)]
pub struct PortPart {
    number: u32,
    choice: PortChoice,
    end: Option<Arc<dyn CharBackend>>,
}

/// The ports of a device.
pub fn ports(bus: &SerialBus) -> Vec<PortPart> {
    let part = |(number, choice): &(u32, PortChoice)| PortPart {
        number: *number,
        choice: choice.clone(),
        end: None,
    };
    bus.ports.iter().map(part).collect()
}

impl PortPart {
    /// Puts `end`, found by the name of what should be there, behind the port; whether it is a console is told.
    pub fn connect(&mut self, end: &mut dyn FnMut(&str, bool) -> Arc<dyn CharBackend>) {
        self.end = Some(end(&self.choice.chardev, self.choice.is_console));
    }

    /// The port as its device has it. Behind one that was not connected is nothing.
    pub fn options(&self) -> PortOptions {
        PortOptions {
            number: self.number,
            name: self.choice.name.clone(),
            is_console: self.choice.is_console,
            chardev: self.end.clone().unwrap_or_else(|| Arc::new(NullBackend)),
        }
    }
}
