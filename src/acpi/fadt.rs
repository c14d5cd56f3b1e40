//! Fixed ACPI Description Table (ACPI 6.5, *Fixed ACPI Description Table*).

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform, bytes};

/// IAPC_BOOT_ARCH: there are devices on an ISA bus, there is no VGA. The i8042 is not announced: it has a reset line and
/// no keyboard, and an operating system that does not look for one boots faster.
const LEGACY_DEVICES: u16 = 1 << 0;
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// Above 100 and 1000 microseconds: there are no C2 and C3.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The table. `facs` and `dsdt` are addresses below 4 GiB.
pub fn table(platform: &Platform, facs: u64, dsdt: u64) -> Vec<u8> {
    let power = &platform.power;
    let below_4g = |address: u64| u32::try_from(address).expect("tables are in the BIOS area");
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(below_4g(facs))
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Neither button is a fixed feature.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    // The 32-bit field too: ACPI 1.0 readers know no other.
    fadt.dsdt = below_4g(dsdt).into();
    fadt.sci_int = u16::from(power.sci).into();
    fadt.pm1a_evt_blk = u32::from(power.pm1a_event).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(power.pm1a_control).into();
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_blk = u32::from(power.timer).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = ports(power.pm1a_event, 4, AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = ports(power.pm1a_control, 2, AccessSize::WordAccess);
    fadt.x_pm_tmr_blk = ports(power.timer, 4, AccessSize::DwordAccess);
    fadt.century = platform.rtc_century;
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    let (port, value) = power.reset;
    fadt.reset_reg = ports(port, 1, AccessSize::ByteAccess);
    fadt.reset_value = value;
    bytes(&fadt.finalize())
}

fn ports(port: u16, length: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, length * 8, 0, access, u64::from(port))
}
