//! The bootstrap CPU's state at the kernel's entry, and the tables behind it (Linux, *The Linux/x86 Boot Protocol*,
//! 64-bit boot protocol; Xen, *x86/HVM direct boot ABI*).

use accel::CpuArchState;
use accel::arch_state::{SegmentState, TableState, reg, seg};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{GDT, PAGE_TABLES, STACK_TOP, START_INFO, ZERO_PAGE};

/// `__BOOT_CS` and `__BOOT_DS` are 0x10 and 0x18: Linux relies on them until it has its own GDT.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const GDT_64: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const GDT_32: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Access rights as [`SegmentState::access`] has them.
const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const DATA: u16 = 0xc093;
const BUSY_TSS: u16 = 0x008b;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

const PAGE: u64 = 0x1000;
/// Present, writable.
const TABLE_ENTRY: u64 = 0x3;
/// Present, writable, 2 MiB page.
const LARGE_PAGE: u64 = 0x83;
/// As much as a kernel may look at before it has its own page tables: all below 4 GiB.
const IDENTITY_GIB: u64 = 4;

/// 64-bit mode with identity-mapped memory, `RSI` at the zero page.
pub fn long_mode(memory: &GuestMemoryMmap, entry: u64) -> Result<CpuArchState, GuestMemoryError> {
    write_page_tables(memory)?;
    let mut state = flat(memory, &GDT_64, CODE_64)?;
    state.cr0 = CR0_PE | CR0_ET | CR0_PG;
    state.cr3 = PAGE_TABLES;
    state.cr4 = CR4_PAE;
    state.efer = EFER_LME | EFER_LMA;
    state.rip = entry;
    state.gpr[reg::RSI] = ZERO_PAGE;
    state.gpr[reg::RSP] = STACK_TOP;
    Ok(state)
}

/// 32-bit protected mode without paging, `EBX` at the start info.
pub fn pvh(memory: &GuestMemoryMmap, entry: u64) -> Result<CpuArchState, GuestMemoryError> {
    let mut state = flat(memory, &GDT_32, CODE_32)?;
    state.cr0 = CR0_PE | CR0_ET;
    state.rip = entry;
    state.gpr[reg::RBX] = START_INFO;
    state.gpr[reg::RSP] = STACK_TOP;
    Ok(state)
}

/// Flat segments, a GDT that says the same, no IDT.
fn flat(memory: &GuestMemoryMmap, gdt: &[u64; 4], code: u16) -> Result<CpuArchState, GuestMemoryError> {
    for (index, descriptor) in (0u64..).zip(gdt) {
        memory.write_obj(*descriptor, GuestAddress(GDT + index * 8))?;
    }
    let mut state = CpuArchState::power_on();
    state.gpr[reg::RDX] = 0;
    let data = SegmentState { selector: DATA_SELECTOR, base: 0, limit: u32::MAX, access: DATA };
    state.segments = [data; 6];
    state.segments[seg::CS] =
        SegmentState { selector: CODE_SELECTOR, base: 0, limit: u32::MAX, access: code };
    state.task = SegmentState { selector: 0, base: 0, limit: 0x67, access: BUSY_TSS };
    state.gdt = TableState { base: GDT, limit: 4 * 8 - 1 };
    state.idt = TableState { base: 0, limit: 0 };
    Ok(state)
}

fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let (pml4, pdpt, directories) = (PAGE_TABLES, PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE);
    let mut table = [0u8; PAGE as usize];
    table[..8].copy_from_slice(&(pdpt | TABLE_ENTRY).to_le_bytes());
    memory.write_slice(&table, GuestAddress(pml4))?;
    table.fill(0);
    for gib in 0..IDENTITY_GIB {
        let entry = (directories + gib * PAGE) | TABLE_ENTRY;
        table[gib as usize * 8..][..8].copy_from_slice(&entry.to_le_bytes());
    }
    memory.write_slice(&table, GuestAddress(pdpt))?;
    for gib in 0..IDENTITY_GIB {
        for (index, slot) in (0u64..).zip(table.chunks_exact_mut(8)) {
            slot.copy_from_slice(&(((gib << 30) + (index << 21)) | LARGE_PAGE).to_le_bytes());
        }
        memory.write_slice(&table, GuestAddress(directories + gib * PAGE))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tables_map_every_address_below_4_gib_to_itself() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let state = long_mode(&memory, 0x100_0200).unwrap();
        let entry = |table: u64, index: u64| {
            memory.read_obj::<u64>(GuestAddress((table & !0xfff) + index * 8)).unwrap()
        };
        for address in [0u64, 0x1f_ffff, 0x20_0000, 0xfee0_0000, 0xffff_ffff] {
            let pdpt = entry(state.cr3, address >> 39);
            let directory = entry(pdpt, (address >> 30) & 0x1ff);
            let page = entry(directory, (address >> 21) & 0x1ff);
            assert_eq!((pdpt & 3, directory & 3, page & 0x83), (3, 3, 0x83));
            assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
        assert_eq!(entry(state.cr3, 1), 0);
    }

    #[test]
    fn hidden_and_visible_segments_agree() {
        for enter in [long_mode, pvh] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let state = enter(&memory, 0).unwrap();
            for segment in state.segments {
                let at = state.gdt.base + u64::from(segment.selector);
                let descriptor: u64 = memory.read_obj(GuestAddress(at)).unwrap();
                assert_eq!(u64::from(segment.access), (descriptor >> 40) & 0xf0ff);
            }
        }
    }
}
