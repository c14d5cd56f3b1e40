//! The memory map that the guest is told (ACPI, *System Address Map Interfaces*).

use super::layout::{
    ACPI, ECAM, ECAM_END, HIGH_RAM, LOW_RAM_END, RAM_ABOVE_4G, RAM_GAP, SYSTEM_WINDOWS, VGA_HOLE,
};

/// What a stretch of memory is, with E820's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// The operating system's.
    Ram = 1,
    /// Not the operating system's.
    Reserved = 2,
}

/// A stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// How much of `memory_bytes` lies below the gap under 4 GiB.
pub fn low_bytes(memory_bytes: u64) -> u64 {
    memory_bytes.min(RAM_GAP)
}

/// Where RAM is: (first address, bytes), ascending.
pub fn ram(memory_bytes: u64) -> Vec<(u64, u64)> {
    let low = low_bytes(memory_bytes);
    let mut ranges = vec![(0, low)];
    if memory_bytes > low {
        ranges.push((RAM_ABOVE_4G, memory_bytes - low));
    }
    ranges
}

/// The map, ascending.
pub fn e820(memory_bytes: u64) -> Vec<Range> {
    let range = |start, end, kind| Range { start, length: end - start, kind };
    let low = low_bytes(memory_bytes);
    let mut map = vec![
        range(0, LOW_RAM_END, RangeKind::Ram),
        range(LOW_RAM_END, VGA_HOLE, RangeKind::Reserved),
        range(ACPI, HIGH_RAM, RangeKind::Reserved),
    ];
    if low > HIGH_RAM {
        map.push(range(HIGH_RAM, low, RangeKind::Ram));
    }
    // On machines without PCI too, where nothing is.
    map.push(range(ECAM, ECAM_END, RangeKind::Reserved));
    map.push(range(SYSTEM_WINDOWS, RAM_ABOVE_4G, RangeKind::Reserved));
    if memory_bytes > low {
        map.push(range(RAM_ABOVE_4G, RAM_ABOVE_4G + memory_bytes - low, RangeKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ram_is_in_the_map_but_for_the_legacy_area() {
        for bytes in [1 << 20, 128 << 20, 3 << 30, 5 << 30] {
            let map = e820(bytes);
            let told: u64 =
                map.iter().filter(|range| range.kind == RangeKind::Ram).map(|range| range.length).sum();
            assert_eq!(told, bytes - (HIGH_RAM - LOW_RAM_END));
            assert_eq!(ram(bytes).iter().map(|(_, bytes)| bytes).sum::<u64>(), bytes);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].length <= pair[1].start, "{pair:x?}");
            }
        }
    }
}
