//! `boot_params`, the zero page (Linux, *Zero Page*; *The Linux/x86 Boot Protocol*).

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::layout::{COMMAND_LINE, ZERO_PAGE};
use super::memory_map::Range;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// 2.15: what an ELF kernel, which has no header of its own, may believe.
const PROTOCOL: u16 = 0x020f;
const UNDEFINED_LOADER: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// A header for a kernel that brings none.
pub fn synthetic_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: PROTOCOL,
        type_of_loader: UNDEFINED_LOADER,
        loadflags: 1,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..setup_header::default()
    }
}

/// Writes the zero page. `initrd` is its address and length.
pub fn write(
    memory: &GuestMemoryMmap,
    header: setup_header,
    initrd: Option<(u64, u64)>,
    map: &[Range],
    rsdp: u64,
) -> Result<(), linux_loader::configurator::Error> {
    let mut params = boot_params { hdr: header, ..boot_params::default() };
    // All of these are below 4 GiB by placement.
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    if let Some((address, length)) = initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = length as u32;
    }
    params.acpi_rsdp_addr = rsdp;
    let mut table = params.e820_table;
    for (slot, range) in table.iter_mut().zip(map) {
        *slot = boot_e820_entry { addr: range.start, size: range.length, r#type: range.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(map.len()).expect("the map has a handful of ranges");
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, GuestAddress(ZERO_PAGE)), memory)
}
