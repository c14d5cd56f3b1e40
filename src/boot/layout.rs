//! Where things are in guest-physical memory before the kernel runs.

/// The boot GDT.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` with its module list and memory map.
pub const START_INFO: u64 = 0x6000;
/// `boot_params`, the zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// The entry's stack grows down from here.
pub const STACK_TOP: u64 = 0x8ff0;
/// Page tables: one PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line with its terminator.
pub const COMMAND_LINE_ROOM: u64 = 0x1_0000;
/// RAM below the extended BIOS data area ends here.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The VGA window and what follows it.
pub const VGA_HOLE: u64 = 0xa_0000;
/// ACPI tables, in the range where an operating system looks for the RSDP.
pub const ACPI: u64 = 0xe_0000;
/// The page that holds the identifier of this run of the machine.
pub const GENERATION: u64 = 0xe_f000;
/// The MP table, in the range where an operating system looks for it.
pub const MP_TABLE: u64 = 0xf_0000;
/// SMBIOS tables, in the range where an operating system looks for their entry points.
pub const SMBIOS: u64 = 0xf_4000;
/// Extended memory.
pub const HIGH_RAM: u64 = 0x10_0000;
/// RAM below 4 GiB ends here at the latest; device windows follow.
pub const RAM_GAP: u64 = 0xc000_0000;
/// PCI's BARs are placed from the end of RAM on up to here.
pub const PCI_MEMORY_END: u64 = 0xe000_0000;
/// PCI's configuration windows (ECAM), of 256 buses.
pub const ECAM: u64 = 0xe000_0000;
/// Where they end.
pub const ECAM_END: u64 = 0xf000_0000;
/// Interrupt controllers and firmware, up to 4 GiB.
pub const SYSTEM_WINDOWS: u64 = 0xfec0_0000;
/// RAM goes on here.
pub const RAM_ABOVE_4G: u64 = 0x1_0000_0000;
