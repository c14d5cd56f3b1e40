//! ACPI fixed hardware registers. ACPI Specification 6.5, *ACPI Fixed Hardware Registers*.

/// Length of the register block in ports.
pub const PORTS: u64 = 12;
/// Offset of PM1a_EVT_BLK in the register block.
pub const PM1A_EVT_BLK: u64 = 0;
/// PM1_EVT_LEN.
pub const PM1_EVT_LEN: u8 = 4;
/// Offset of PM1a_CNT_BLK.
pub const PM1A_CNT_BLK: u64 = 4;
/// PM1_CNT_LEN.
pub const PM1_CNT_LEN: u8 = 2;
/// Offset of PM_TMR_BLK.
pub const PM_TMR_BLK: u64 = 8;
/// PM_TMR_LEN.
pub const PM_TMR_LEN: u8 = 4;

/// Frequency of the power management timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// ISA interrupt of the SCI by convention.
pub const SCI_IRQ: u8 = 9;

/// PM1 Status and PM1 Enable.
pub mod pm1 {
    /// The timer's most significant bit changed.
    pub const TMR: u16 = 1 << 0;
    /// Global lock released (status), its enable.
    pub const GBL: u16 = 1 << 5;
    /// Power button.
    pub const PWRBTN: u16 = 1 << 8;
    /// Sleep button.
    pub const SLPBTN: u16 = 1 << 9;
    /// RTC alarm.
    pub const RTC: u16 = 1 << 10;
    /// Wake status.
    pub const WAK_STS: u16 = 1 << 15;
    /// Bits of PM1 Enable.
    pub const ENABLES: u16 = TMR | GBL | PWRBTN | SLPBTN | RTC;
}

/// PM1 Control.
pub mod pm1_cnt {
    /// SCI enable: ACPI mode.
    pub const SCI_EN: u16 = 1 << 0;
    /// Bus master reload.
    pub const BM_RLD: u16 = 1 << 1;
    /// Sleep type: shift of bits 12:10.
    pub const SLP_TYP_SHIFT: u32 = 10;
    /// Sleep type: mask after the shift.
    pub const SLP_TYP_MASK: u16 = 7;
    /// Sleep enable, write-only.
    pub const SLP_EN: u16 = 1 << 13;
}

/// Sleep type of S5 (soft off): what the `_S5` package in the DSDT holds.
pub const SLP_TYP_S5: u16 = 5;
