//! Registers of the National Semiconductor PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs (June 1995).

/// Ports of one UART.
pub const PORTS: u64 = 8;
/// First port of COM1 to COM4.
pub const COM_PORTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];
/// ISA interrupt of COM1 to COM4.
pub const COM_IRQS: [u8; 4] = [4, 3, 4, 3];
/// Depth of each FIFO in bytes.
pub const FIFO_DEPTH: usize = 16;

/// Offsets.
pub mod register {
    /// Receiver Buffer (read), Transmitter Holding (write); Divisor Latch LS with DLAB.
    pub const RBR_THR_DLL: u64 = 0;
    /// Interrupt Enable; Divisor Latch MS with DLAB.
    pub const IER_DLM: u64 = 1;
    /// Interrupt Identification (read), FIFO Control (write).
    pub const IIR_FCR: u64 = 2;
    /// Line Control.
    pub const LCR: u64 = 3;
    /// MODEM Control.
    pub const MCR: u64 = 4;
    /// Line Status.
    pub const LSR: u64 = 5;
    /// MODEM Status.
    pub const MSR: u64 = 6;
    /// Scratch.
    pub const SCR: u64 = 7;
}

/// Interrupt Enable Register.
pub mod ier {
    /// Received data available.
    pub const ERBFI: u8 = 1 << 0;
    /// Transmitter holding register empty.
    pub const ETBEI: u8 = 1 << 1;
    /// Receiver line status.
    pub const ELSI: u8 = 1 << 2;
    /// MODEM status.
    pub const EDSSI: u8 = 1 << 3;
    /// Bits that exist.
    pub const WRITABLE: u8 = 0x0f;
}

/// Interrupt Identification Register.
pub mod iir {
    /// No interrupt pending.
    pub const NONE: u8 = 0x01;
    /// Receiver line status: first priority.
    pub const LINE_STATUS: u8 = 0x06;
    /// Received data available: second priority.
    pub const RECEIVED_DATA: u8 = 0x04;
    /// Character timeout: second priority.
    pub const TIMEOUT: u8 = 0x0c;
    /// Transmitter holding register empty: third priority.
    pub const THR_EMPTY: u8 = 0x02;
    /// MODEM status: fourth priority.
    pub const MODEM_STATUS: u8 = 0x00;
    /// FIFOs enabled.
    pub const FIFOS: u8 = 0xc0;
}

/// FIFO Control Register.
pub mod fcr {
    /// FIFO enable.
    pub const ENABLE: u8 = 1 << 0;
    /// RCVR FIFO reset.
    pub const RESET_RECEIVER: u8 = 1 << 1;
    /// RCVR trigger: shift of bits 7:6.
    pub const TRIGGER_SHIFT: u32 = 6;
    /// Bytes in the RCVR FIFO at which it asks, by trigger.
    pub const TRIGGER_BYTES: [usize; 4] = [1, 4, 8, 14];
}

/// Line Control Register.
pub mod lcr {
    /// Divisor latch access.
    pub const DLAB: u8 = 1 << 7;
}

/// MODEM Control Register.
pub mod mcr {
    /// Data terminal ready.
    pub const DTR: u8 = 1 << 0;
    /// Request to send.
    pub const RTS: u8 = 1 << 1;
    /// OUT 1.
    pub const OUT1: u8 = 1 << 2;
    /// OUT 2.
    pub const OUT2: u8 = 1 << 3;
    /// Loop back.
    pub const LOOP: u8 = 1 << 4;
    /// Bits that exist.
    pub const WRITABLE: u8 = 0x1f;
}

/// Line Status Register.
pub mod lsr {
    /// Data ready.
    pub const DR: u8 = 1 << 0;
    /// Overrun error.
    pub const OE: u8 = 1 << 1;
    /// Break interrupt.
    pub const BI: u8 = 1 << 4;
    /// Transmitter holding register empty.
    pub const THRE: u8 = 1 << 5;
    /// Transmitter empty.
    pub const TEMT: u8 = 1 << 6;
}

/// MODEM Status Register.
pub mod msr {
    /// Shift from the state of an input (bits 7:4) to its delta (bits 3:0).
    pub const DELTA_SHIFT: u32 = 4;
    /// Trailing edge ring indicator, the one delta that is not of both edges.
    pub const TERI: u8 = 1 << 2;
    /// Clear to send.
    pub const CTS: u8 = 1 << 4;
    /// Data set ready.
    pub const DSR: u8 = 1 << 5;
    /// Ring indicator.
    pub const RI: u8 = 1 << 6;
    /// Data carrier detect.
    pub const DCD: u8 = 1 << 7;
}
