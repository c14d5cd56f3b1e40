//! The memory table of a vhost device (Linux, `struct vhost_memory`): which of the process's bytes are the guest's.

use vm_memory::VolatileSlice;

/// One region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub guest: u64,
    pub bytes: u64,
    pub host: u64,
}

/// The table.
#[derive(Default)]
pub struct Table(Vec<Region>);

impl Table {
    /// One of `regions`.
    ///
    /// # Safety
    ///
    /// They are there as long as the table is asked, and everybody reaches them with volatile accesses only.
    pub unsafe fn new(regions: Vec<Region>) -> Self {
        Self(regions)
    }

    /// Where the guest's bytes from `at` on are, in pieces; `None`: not all of them are there.
    pub fn find(&self, mut at: u64, mut len: u64) -> Option<Vec<VolatileSlice<'_>>> {
        let mut pieces = Vec::new();
        while len > 0 {
            let holds =
                |region: &&Region| at.checked_sub(region.guest).is_some_and(|skip| skip < region.bytes);
            let region = self.0.iter().find(holds)?;
            let skip = at - region.guest;
            let bytes = len.min(region.bytes - skip);
            // SAFETY: whoever made the table says so, and these are bytes of the region.
            pieces.push(unsafe { VolatileSlice::new((region.host + skip) as *mut u8, bytes as usize) });
            at = at.wrapping_add(bytes);
            len -= bytes;
        }
        Some(pieces)
    }

    /// Whether a region has all these bytes of the process.
    pub fn holds(&self, host: u64, bytes: u64) -> bool {
        self.0.iter().any(|region| {
            let skip = host.checked_sub(region.host);
            skip.is_some_and(|skip| skip <= region.bytes && bytes <= region.bytes - skip)
        })
    }
}
