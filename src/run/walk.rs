//! A guest's linear address through its page tables, to show the code at RIP (SDM vol. 3A, *Paging*).

use accel::CpuArchState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CR0_PG: u64 = 1 << 31;
const CR4_PSE: u64 = 1 << 4;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The guest-physical address of `linear`; `None` where nothing is mapped.
pub fn translate(memory: &GuestMemoryMmap, state: &CpuArchState, linear: u64) -> Option<u64> {
    if state.cr0 & CR0_PG == 0 {
        return Some(linear & 0xffff_ffff);
    }
    if state.cr4 & CR4_PAE == 0 {
        return translate_32(memory, state, linear & 0xffff_ffff);
    }
    let levels = match (state.efer & EFER_LMA != 0, state.cr4 & CR4_LA57 != 0) {
        (true, true) => 5,
        (true, false) => 4,
        (false, _) => 3,
    };
    let mut table = if levels == 3 { state.cr3 & 0xffff_ffe0 } else { state.cr3 & ADDRESS };
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let index = (linear >> shift) & if levels == 3 && level == 2 { 3 } else { 0x1ff };
        let entry: u64 = memory.read_obj(GuestAddress(table + index * 8)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || (level < 3 && entry & LARGE != 0 && !(levels == 3 && level == 2)) {
            let mask = (1u64 << shift) - 1;
            return Some((entry & ADDRESS & !mask) | (linear & mask));
        }
        table = entry & ADDRESS;
    }
    None
}

/// Two levels of 4-byte entries.
fn translate_32(memory: &GuestMemoryMmap, state: &CpuArchState, linear: u64) -> Option<u64> {
    let read = |address: u64| memory.read_obj::<u32>(GuestAddress(address)).ok().map(u64::from);
    let directory =
        read((state.cr3 & 0xffff_f000) + (linear >> 22) * 4).filter(|entry| entry & PRESENT != 0)?;
    if directory & LARGE != 0 && state.cr4 & CR4_PSE != 0 {
        return Some((directory & 0xffc0_0000) | (linear & 0x3f_ffff));
    }
    let page = read((directory & 0xffff_f000) + ((linear >> 12) & 0x3ff) * 4)
        .filter(|entry| entry & PRESENT != 0)?;
    Some((page & 0xffff_f000) | (linear & 0xfff))
}

/// Up to `count` bytes at `linear`, as far as they are mapped.
pub fn read(memory: &GuestMemoryMmap, state: &CpuArchState, linear: u64, count: u64) -> Vec<u8> {
    (0..count)
        .map_while(|offset| {
            let address = translate(memory, state, linear.wrapping_add(offset))?;
            memory.read_obj(GuestAddress(address)).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::entry_state;

    #[test]
    fn through_the_boot_page_tables() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let mut state = entry_state::long_mode(&memory, 0).unwrap();
        memory.write_slice(&[0xf4, 0x90], GuestAddress(0x20_0ffe)).unwrap();
        assert_eq!(read(&memory, &state, 0x20_0ffe, 2), [0xf4, 0x90]);
        assert_eq!(read(&memory, &state, (4 << 20) - 1, 8).len(), 1, "RAM ends");
        assert_eq!(translate(&memory, &state, 1 << 40), None);
        state.cr0 = 0x11;
        assert_eq!(translate(&memory, &state, 0x1234), Some(0x1234));
    }

    #[test]
    fn through_two_levels() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_obj(0x2003u32, GuestAddress(0x1000 + 4)).unwrap();
        memory.write_obj(0x5003u32, GuestAddress(0x2000 + 8)).unwrap();
        let state = CpuArchState { cr0: CR0_PG | 1, cr3: 0x1000, ..CpuArchState::default() };
        assert_eq!(translate(&memory, &state, 0x40_2345), Some(0x5345));
        assert_eq!(translate(&memory, &state, 0x40_3345), None);
    }
}
