//! Pages that CPUs translate from, or make ready to. A pinned page keeps its mark, so that every store to it comes to the cache;
//! one that comes after the bytes were read is noted, since the block that is being made of them is in no list yet.

use crate::code::cache::TbCache;
use crate::ram::{CodeMark, Ram};

/// One page of one CPU's.
pub(super) struct Pin {
    cpu: usize,
    page: u32,
    /// Since the CPU read its bytes.
    written: bool,
}

impl TbCache {
    /// `cpu` begins to make `page` ready to be translated from: its mark is set, and stays. True: every write entry for it is
    /// gone already.
    pub fn pin(&mut self, cpu: usize, ram: &Ram, page: u32) -> bool {
        let ready = ram.is_protected(page);
        if !ready {
            ram.set_code(page, CodeMark::Revoking);
        }
        self.pins.push(Pin { cpu, page, written: false });
        ready
    }

    /// Every write entry for the pages that `cpu` has pinned is gone, and their bytes are read now.
    pub fn read(&mut self, cpu: usize, ram: &Ram) {
        for pin in self.pins.iter_mut().filter(|pin| pin.cpu == cpu) {
            ram.set_code(pin.page, CodeMark::Set);
            pin.written = false;
        }
    }

    /// Whether what `cpu` has read of pinned pages may have been written over since.
    pub fn is_stale(&self, cpu: usize) -> bool {
        self.pins.iter().any(|pin| pin.cpu == cpu && pin.written)
    }

    /// What `cpu` has translated from the pages that it has pinned is entered, or it has not.
    pub fn unpin(&mut self, cpu: usize, ram: &Ram) {
        while let Some(place) = self.pins.iter().position(|pin| pin.cpu == cpu) {
            let Pin { page, .. } = self.pins.swap_remove(place);
            if !self.by_page.contains_key(&page) && !self.is_pinned(page) {
                ram.set_code(page, CodeMark::None);
            }
        }
    }

    pub(super) fn is_pinned(&self, page: u32) -> bool {
        self.pins.iter().any(|pin| pin.page == page)
    }

    /// A store has hit `page`.
    pub(super) fn note_written(&mut self, page: u32) {
        for pin in self.pins.iter_mut().filter(|pin| pin.page == page) {
            pin.written = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::code::buffer::CodeBuffer;

    #[test]
    fn what_is_written_between_reading_and_entering_is_noted() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 * 4096)]).unwrap();
        let (ram, mut cache) = (Ram::new(&memory), TbCache::new(CodeBuffer::new(4 * 4096).unwrap()));
        for (cpu, page) in [(0, 1), (1, 1), (1, 2)] {
            assert!(!cache.pin(cpu, &ram, page), "nobody has made it ready");
            assert!(ram.is_code(page) && !ram.is_protected(page));
        }
        cache.written(&ram, 1, 0, 8);
        cache.read(0, &ram);
        cache.read(1, &ram);
        assert!(ram.is_protected(1) && ram.is_protected(2));
        assert!(!cache.is_stale(0) && !cache.is_stale(1), "it was written before");
        cache.written(&ram, 3, 0, 8);
        cache.written(&ram, 2, 4000, 8);
        assert!(!cache.is_stale(0) && cache.is_stale(1));
        cache.written(&ram, 1, 0, 1);
        assert!(cache.is_stale(0));
        cache.read(0, &ram);
        assert!(!cache.is_stale(0) && cache.is_stale(1), "each reads for itself");
        cache.unpin(1, &ram);
        assert!(ram.is_protected(1), "the other has it still");
        assert!(!ram.is_code(2) && !cache.is_stale(1));
        cache.unpin(0, &ram);
        assert!(!ram.is_code(1), "nothing was made of it");
    }
}
