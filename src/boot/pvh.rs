//! `hvm_start_info` with module list and memory map (Xen, *x86/HVM direct boot ABI*).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::layout::{COMMAND_LINE, START_INFO};
use super::memory_map::Range;

const MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const VERSION: u32 = 1;
const MODULES: u64 = START_INFO + 0x80;
const MEMORY_MAP: u64 = START_INFO + 0x100;

/// Writes the start info. `initrd` is its address and length.
pub fn write(
    memory: &GuestMemoryMmap,
    initrd: Option<(u64, u64)>,
    map: &[Range],
    rsdp: u64,
) -> Result<(), linux_loader::configurator::Error> {
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("the map has a handful of ranges"),
        ..hvm_start_info::default()
    };
    let entries: Vec<_> = map
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start,
            size: range.length,
            type_: range.kind as u32,
            reserved: 0,
        })
        .collect();
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&entries, GuestAddress(MEMORY_MAP));
    if let Some((paddr, size)) = initrd {
        params.set_modules(
            &[hvm_modlist_entry { paddr, size, cmdline_paddr: 0, reserved: 0 }],
            GuestAddress(MODULES),
        );
    }
    PvhBootConfigurator::write_bootparams(&params, memory)
}
