//! Console device (Virtio 1.2, *Console Device*).

/// Device ID.
pub const DEVICE_ID: u32 = 3;

/// Feature bits.
pub mod feature {
    /// There are several ports, and control queues.
    pub const MULTIPORT: u64 = 1 << 1;
}

/// Configuration space: offsets, little-endian.
pub mod config {
    /// Ports at most, 32 bits.
    pub const MAX_NR_PORTS: usize = 4;
    /// Its length.
    pub const BYTES: usize = 12;
}

/// Queues: port 0's come first, then the control queues, then those of the other ports.
pub mod queue {
    /// Messages to the driver.
    pub const CONTROL_RECEIVE: usize = 2;
    /// Messages of the driver.
    pub const CONTROL_TRANSMIT: usize = 3;

    /// What port `port` receives.
    pub const fn receive(port: usize) -> usize {
        if port == 0 { 0 } else { 2 + 2 * port }
    }

    /// What port `port` sends.
    pub const fn transmit(port: usize) -> usize {
        receive(port) + 1
    }
}

/// Control messages: port (32 bits), event (16), value (16), little-endian; a name may follow.
pub mod control {
    /// Bytes of a message without a name.
    pub const BYTES: usize = 8;
    /// The driver is ready for ports.
    pub const DEVICE_READY: u16 = 0;
    /// There is a port.
    pub const PORT_ADD: u16 = 1;
    /// The driver has taken a port in.
    pub const PORT_READY: u16 = 3;
    /// The port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// The other side has opened or closed the port.
    pub const PORT_OPEN: u16 = 6;
    /// The port's name follows.
    pub const PORT_NAME: u16 = 7;
}
