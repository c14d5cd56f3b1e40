//! Registers of the Motorola MC146818A Real-Time Clock (order ADI856R2), and the locations of its RAM that PC firmware
//! fills (Ralf Brown's Interrupt List, *CMOS Memory Registers*).

/// Index port; bit 7 masks NMI. The data port follows.
pub const PORT: u16 = 0x70;
/// Ports.
pub const PORTS: u64 = 2;
/// ISA interrupt.
pub const IRQ: u8 = 8;
/// Bytes of registers and RAM.
pub const BYTES: usize = 128;

/// Indexes.
pub mod register {
    /// Seconds.
    pub const SECONDS: u8 = 0x00;
    /// Seconds alarm.
    pub const SECONDS_ALARM: u8 = 0x01;
    /// Minutes.
    pub const MINUTES: u8 = 0x02;
    /// Minutes alarm.
    pub const MINUTES_ALARM: u8 = 0x03;
    /// Hours.
    pub const HOURS: u8 = 0x04;
    /// Hours alarm.
    pub const HOURS_ALARM: u8 = 0x05;
    /// Day of the week, Sunday is 1.
    pub const DAY_OF_WEEK: u8 = 0x06;
    /// Day of the month.
    pub const DATE: u8 = 0x07;
    /// Month.
    pub const MONTH: u8 = 0x08;
    /// Year of the century.
    pub const YEAR: u8 = 0x09;
    /// Register A.
    pub const A: u8 = 0x0a;
    /// Register B.
    pub const B: u8 = 0x0b;
    /// Register C.
    pub const C: u8 = 0x0c;
    /// Register D.
    pub const D: u8 = 0x0d;
    /// KiB of base memory, two bytes.
    pub const BASE_MEMORY: u8 = 0x15;
    /// KiB of extended memory as found, two bytes; again at 0x30.
    pub const EXTENDED_MEMORY: u8 = 0x17;
    /// KiB of extended memory, two bytes.
    pub const EXTENDED_MEMORY_COPY: u8 = 0x30;
    /// Century; the FADT's CENTURY field names it.
    pub const CENTURY: u8 = 0x32;
    /// Memory above 16 MiB and below 4 GiB in 64 KiB units, two bytes.
    pub const MEMORY_ABOVE_16M: u8 = 0x34;
    /// Memory above 4 GiB in 64 KiB units, three bytes.
    pub const MEMORY_ABOVE_4G: u8 = 0x5b;
}

/// An alarm byte with these bits set matches every value.
pub const ALARM_DONT_CARE: u8 = 0xc0;
/// In 12-hour mode, set after noon.
pub const HOURS_PM: u8 = 0x80;

/// Register A.
pub mod reg_a {
    /// Update in progress.
    pub const UIP: u8 = 0x80;
    /// Divider: shift of bits 6:4.
    pub const DV_SHIFT: u32 = 4;
    /// Divider: 32.768 kHz, counting.
    pub const DV_32768_HZ: u8 = 2;
    /// Rate selection, bits 3:0.
    pub const RS: u8 = 0x0f;
    /// After power-on: counting, 1024 Hz.
    pub const POWER_ON: u8 = 0x26;
}

/// Register B.
pub mod reg_b {
    /// Set mode: no updates.
    pub const SET: u8 = 0x80;
    /// Periodic interrupt enable.
    pub const PIE: u8 = 0x40;
    /// Alarm interrupt enable.
    pub const AIE: u8 = 0x20;
    /// Update-ended interrupt enable.
    pub const UIE: u8 = 0x10;
    /// Square wave enable.
    pub const SQWE: u8 = 0x08;
    /// Data mode: binary, else BCD.
    pub const DM: u8 = 0x04;
    /// 24-hour mode.
    pub const H24: u8 = 0x02;
}

/// Register C.
pub mod reg_c {
    /// Interrupt request.
    pub const IRQF: u8 = 0x80;
    /// Periodic.
    pub const PF: u8 = 0x40;
    /// Alarm.
    pub const AF: u8 = 0x20;
    /// Update ended.
    pub const UF: u8 = 0x10;
}

/// Register D: RAM and time are valid.
pub const VRT: u8 = 0x80;

/// How long before an update UIP is set (data sheet: t_BUC).
pub const UIP_NS: u64 = 244_000;
