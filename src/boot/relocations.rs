//! The relocation table behind a kernel (Linux, arch/x86/tools/relocs.c, arch/x86/boot/compressed/misc.c,
//! `handle_relocations`).
//!
//! Words of 32 bits, each list behind a zero: places of 64-bit addresses, places from which the shift is subtracted (per-CPU
//! references; kernels since 6.15 have no such list), places of 32-bit addresses. A place is the low half of a link-time
//! address in the kernel's mapping.

use vm_memory::{Bytes, VolatileSlice};

/// `__START_KERNEL_map`.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;

/// What has to change in a kernel that runs elsewhere than it was linked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Relocations {
    add_64: Vec<u32>,
    subtract_32: Vec<u32>,
    add_32: Vec<u32>,
}

impl Relocations {
    /// Reads the table for an image of `image_bytes` linked at `link` above the kernel mapping's start. `None`: this is no
    /// such table, or names a place outside.
    pub fn parse(table: &[u8], link: u64, image_bytes: u64) -> Option<Self> {
        if !table.len().is_multiple_of(4) {
            return None;
        }
        let mut lists: Vec<Vec<u32>> = Vec::new();
        for word in table.chunks_exact(4) {
            match u32::from_le_bytes(word.try_into().ok()?) {
                0 if lists.len() == 3 => return None,
                0 => lists.push(Vec::new()),
                place => {
                    let address = i64::from(place as i32) as u64;
                    let offset = address.checked_sub(KERNEL_MAP.checked_add(link)?)?;
                    if offset.checked_add(8)? > image_bytes {
                        return None;
                    }
                    lists.last_mut()?.push(u32::try_from(offset).ok()?);
                }
            }
        }
        let add_32 = lists.pop()?;
        let subtract_32 = if lists.len() == 2 { lists.pop()? } else { Vec::new() };
        Some(Self { add_64: lists.pop()?, subtract_32, add_32 })
    }

    /// Shifts the addresses in `image` by `shift`.
    pub fn apply(&self, image: &VolatileSlice, shift: u64) -> Result<(), vm_memory::VolatileMemoryError> {
        // The addresses wrap where the linker's did: all are in the top 2 GiB.
        let low = shift as u32;
        for &at in &self.add_64 {
            let old: u64 = image.read_obj(at as usize)?;
            image.write_obj(old.wrapping_add(shift), at as usize)?;
        }
        for &at in &self.subtract_32 {
            let old: u32 = image.read_obj(at as usize)?;
            image.write_obj(old.wrapping_sub(low), at as usize)?;
        }
        for &at in &self.add_32 {
            let old: u32 = image.read_obj(at as usize)?;
            image.write_obj(old.wrapping_add(low), at as usize)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: u64 = 0x100_0000;

    fn table(lists: &[&[u32]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for list in lists {
            bytes.extend(0u32.to_le_bytes());
            for offset in *list {
                bytes.extend((0x8100_0000 + offset).to_le_bytes());
            }
        }
        bytes
    }

    #[test]
    fn each_list_does_its_own_arithmetic() {
        let found =
            Relocations::parse(&table(&[&[0], &[8], &[12, 17]]), LINK, 64).expect("a table of three lists");
        let mut image = [0u8; 64];
        image[..8].copy_from_slice(&0xffff_ffff_81ff_fff0u64.to_le_bytes());
        image[8..12].copy_from_slice(&0x1000u32.to_le_bytes());
        image[12..16].copy_from_slice(&0x8100_0000u32.to_le_bytes());
        found.apply(&VolatileSlice::from(&mut image[..]), 0x120_0000).unwrap();
        assert_eq!(image[..8], 0xffff_ffff_831f_fff0u64.to_le_bytes());
        assert_eq!(image[8..12], 0xfee0_1000u32.to_le_bytes());
        assert_eq!(image[12..16], 0x8220_0000u32.to_le_bytes());
        assert_eq!(image[17..21], 0x120_0000u32.to_le_bytes());
    }

    #[test]
    fn newer_kernels_have_two_lists() {
        let found = Relocations::parse(&table(&[&[16, 0], &[8]]), LINK, 64).expect("a table of two lists");
        assert_eq!(found, Relocations { add_64: vec![16, 0], subtract_32: vec![], add_32: vec![8] });
    }

    #[test]
    fn what_is_no_table_is_none() {
        assert_eq!(Relocations::parse(&[], LINK, 64), None);
        assert_eq!(Relocations::parse(&table(&[&[0]]), LINK, 64), None);
        assert_eq!(Relocations::parse(&table(&[&[0], &[], &[], &[]]), LINK, 64), None);
        // Outside the image; before it; no zero in front; a length that is no multiple of four.
        assert_eq!(Relocations::parse(&table(&[&[57], &[]]), LINK, 64), None);
        assert_eq!(Relocations::parse(&table(&[&[0], &[1]]), LINK + 1, 64), None);
        assert_eq!(Relocations::parse(&table(&[&[0], &[1]])[4..], LINK, 64), None);
        assert_eq!(Relocations::parse(&table(&[&[0], &[1]])[1..], LINK, 64), None);
        // Linked above all addresses.
        assert_eq!(Relocations::parse(&table(&[&[0], &[1]]), 1 << 31, 64), None);
        for noise in 0..200u32 {
            let bytes: Vec<u8> = (0..noise).map(|n| (n * noise * 7 + n) as u8).collect();
            let _ = Relocations::parse(&bytes, LINK, 1 << 20);
        }
    }
}
