//! Giving guest memory back to the host (madvise(2)).

#![expect(unsafe_code, reason = "madvise is C")]

use std::io;

use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

/// Pages of the host. Guest regions begin on one.
const PAGE_BYTES: u64 = 4096;

/// Gives the whole pages among the `len` bytes at `address` back, so far as they are RAM: they read as zero until somebody writes
/// them. Returns how many bytes that were.
pub fn release(memory: &GuestMemoryMmap, address: GuestAddress, len: u64) -> u64 {
    let Some(end) = address.0.checked_add(len) else { return 0 };
    // The end of all addresses is no page's beginning.
    let Some(first) = address.0.checked_next_multiple_of(PAGE_BYTES) else { return 0 };
    let end = end & !(PAGE_BYTES - 1);
    let mut released = 0;
    for region in memory.iter() {
        let base = region.start_addr().raw_value();
        let (from, to) = (first.max(base), end.min(base + region.len()));
        if from >= to {
            continue;
        }
        match give_back(region, from - base, to - from) {
            Ok(()) => released += to - from,
            // Pages that are locked, say. The guest loses nothing.
            Err(error) => tracing::debug!(target: "virtio", %error, from, to, "the host keeps its pages"),
        }
    }
    released
}

fn give_back(region: &vm_memory::GuestRegionMmap, offset: u64, len: u64) -> io::Result<()> {
    let start = region.get_host_address(MemoryRegionAddress(offset)).map_err(io::Error::other)?;
    let length = usize::try_from(len).expect("mapped, so it fits");
    // Of a file that others map, too, the pages themselves must go.
    let is_shared = region.flags() & libc::MAP_SHARED != 0;
    let advice = if is_shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    // SAFETY: the range lies in the region's mapping, which the caller's borrow keeps. No Rust object is there: guest memory may
    // change at any time, to zero too.
    if unsafe { libc::madvise(start.cast(), length, advice) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, FileOffset, GuestRegionMmap};

    #[test]
    fn whole_pages_become_zero_and_their_neighbours_stay() {
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.set_len(0x10000).unwrap();
        let shared = Some(FileOffset::new(file.try_clone().unwrap(), 0));
        let ranges = [(GuestAddress(0), 0x10000, None), (GuestAddress(0x2_0000), 0x10000, shared)];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        assert!(memory.iter().any(|region: &GuestRegionMmap| region.flags() & libc::MAP_SHARED != 0));
        for base in [0, 0x2_0000u64] {
            for page in 0..16u64 {
                memory.write_obj(page + 1, GuestAddress(base + page * 4096)).unwrap();
            }
            assert_eq!(release(&memory, GuestAddress(base + 4095), 3 * 4096), 2 * 4096);
            let page = |page: u64| memory.read_obj::<u64>(GuestAddress(base + page * 4096)).unwrap();
            assert_eq!([page(0), page(1), page(2), page(3)], [1, 0, 0, 4]);
            memory.write_obj(9u64, GuestAddress(base + 4096)).unwrap();
            assert_eq!(page(1), 9);
        }
        // In no region, over the end of one, around all of them, and past the end of addresses.
        assert_eq!(release(&memory, GuestAddress(0x1_0000), 0x1_0000), 0);
        assert_eq!(release(&memory, GuestAddress(0xf000), 0x2000), 0x1000);
        assert_eq!(release(&memory, GuestAddress(0), 1 << 40), 0x2_0000);
        assert_eq!(release(&memory, GuestAddress(u64::MAX - 10), 4096), 0);
        assert_eq!(release(&memory, GuestAddress(u64::MAX - 10), 5), 0);
        assert_eq!(release(&memory, GuestAddress(1), 4096), 0);
    }
}
