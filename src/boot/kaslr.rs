//! Where a kernel that we unpack goes: what its decompressor would choose (Linux, arch/x86/boot/compressed/kaslr.c).

use std::fs::File;
use std::io::{self, Read};

/// `KERNEL_IMAGE_SIZE` of a kernel that can be randomised: the end of its mapping.
const MAPPING_BYTES: u64 = 1 << 30;

/// Where a kernel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Physical address.
    pub physical: u64,
    /// Offset from the start of the kernel's mapping.
    pub virtual_offset: u64,
}

/// What limits the choice.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Where the kernel was linked to run, physically and above the mapping's start.
    pub link: u64,
    /// What it needs.
    pub bytes: u64,
    /// `kernel_alignment`.
    pub alignment: u64,
    /// Memory that may be taken ends here.
    pub top: u64,
}

/// What the command line says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// `nokaslr`.
    Fixed,
    /// Memory is restricted in ways that the decompressor looks at before it chooses: only the virtual address is random.
    VirtualOnly,
    /// Both are random.
    Random,
}

/// Reads the command line as the decompressor does.
pub fn wish(command_line: &str) -> Wish {
    let mut wish = Wish::Random;
    for word in command_line.split_ascii_whitespace() {
        match word.split('=').next().unwrap_or_default() {
            "nokaslr" if word == "nokaslr" => return Wish::Fixed,
            "mem" | "memmap" | "hugepages" | "hugepagesz" | "movable_node" | "crashkernel" => {
                wish = Wish::VirtualOnly;
            }
            _ => {}
        }
    }
    wish
}

impl Room {
    /// Where the kernel goes without randomisation.
    pub fn fixed(&self) -> Place {
        Place { physical: self.link, virtual_offset: self.link }
    }

    /// A place by two random numbers.
    pub fn choose(&self, wish: Wish, random: [u64; 2]) -> Place {
        let slots = |top: u64| match top.checked_sub(self.link + self.bytes) {
            Some(spare) if self.alignment.is_power_of_two() => spare / self.alignment + 1,
            _ => 1,
        };
        let pick = |top: u64, random: u64| self.link + random % slots(top) * self.alignment;
        match wish {
            Wish::Fixed => self.fixed(),
            Wish::VirtualOnly => {
                Place { physical: self.link, virtual_offset: pick(MAPPING_BYTES, random[1]) }
            }
            Wish::Random => {
                Place { physical: pick(self.top, random[0]), virtual_offset: pick(MAPPING_BYTES, random[1]) }
            }
        }
    }
}

/// What a kernel's place is made of where every run is to be the same.
pub const FIXED: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03];

/// The host's randomness (Linux, random(4)).
pub fn random() -> io::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let number = u128::from_le_bytes(bytes);
    Ok([number as u64, (number >> 64) as u64])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_command_line_decides() {
        assert_eq!(wish("console=ttyS0 quiet"), Wish::Random);
        assert_eq!(wish("a nokaslr b"), Wish::Fixed);
        assert_eq!(wish("nokaslrx xnokaslr nokaslr=1"), Wish::Random);
        assert_eq!(wish("mem=256M"), Wish::VirtualOnly);
        assert_eq!(wish("memmap=1M$4M nokaslr"), Wish::Fixed);
    }

    #[test]
    fn every_place_is_aligned_and_within() {
        let room = Room { link: 16 * MIB, bytes: 51 * MIB + 5, alignment: 2 * MIB, top: 512 * MIB };
        let (mut lowest, mut highest) = (u64::MAX, 0);
        for number in 0..1000 {
            let place = room.choose(Wish::Random, [number, number * 3]);
            for (at, top) in [(place.physical, 512 * MIB), (place.virtual_offset, MAPPING_BYTES)] {
                assert!(at >= room.link && at % room.alignment == 0 && at + room.bytes <= top, "{place:x?}");
            }
            lowest = lowest.min(place.physical);
            highest = highest.max(place.physical);
        }
        assert_eq!((lowest, highest), (16 * MIB, 460 * MIB));
        assert_eq!(
            room.choose(Wish::VirtualOnly, [7, 1]),
            Place { physical: 16 * MIB, virtual_offset: 18 * MIB }
        );
        assert_eq!(room.choose(Wish::Fixed, [7, 1]), room.fixed());
    }

    #[test]
    fn no_room_is_the_fixed_place() {
        let room = Room { link: 16 * MIB, bytes: 51 * MIB, alignment: 2 * MIB, top: 60 * MIB };
        assert_eq!(room.choose(Wish::Random, [5, 0]).physical, 16 * MIB);
        let odd = Room { alignment: 0, top: 512 * MIB, ..room };
        assert_eq!(odd.choose(Wish::Random, [5, 5]), odd.fixed());
    }

    #[test]
    fn two_calls_differ() {
        assert_ne!(random().unwrap(), random().unwrap());
    }
}
