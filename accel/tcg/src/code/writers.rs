//! Where CPUs put the blocks that they translate: each fills a region of code memory of its own, and has the number of its next
//! block reserved. So a block can be translated, which needs to know both, while other CPUs have the cache.

use crate::code::buffer::Cursor;
use crate::code::cache::TbCache;
use crate::code::tb::{Lists, Tb, TbId};

/// One CPU's.
#[derive(Default)]
pub(super) struct Writer {
    /// In the region that it fills; none before it has begun one, and when that is full.
    cursor: Option<Cursor>,
    /// The number of its next block.
    reserved: Option<TbId>,
}

/// What a block has to know of where it will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Berth {
    /// Its number.
    pub id: TbId,
    /// Where its code will be executed.
    pub base: u64,
    /// In which filling of a region it lies, of all regions'.
    pub filling: u64,
}

impl TbCache {
    fn writer(&mut self, cpu: usize) -> &mut Writer {
        if self.writers.len() <= cpu {
            self.writers.resize_with(cpu + 1, Writer::default);
        }
        &mut self.writers[cpu]
    }

    /// Whether `cpu` has no region to go on in.
    pub fn is_closed(&mut self, cpu: usize) -> bool {
        self.writer(cpu).cursor.is_none()
    }

    /// Where the next block of `cpu` will be, which stays so until it is there. The CPU has a region.
    pub fn berth(&mut self, cpu: usize) -> Berth {
        let writer = &mut self.writers[cpu];
        let id = *writer.reserved.get_or_insert_with(|| self.store.reserve());
        let cursor = writer.cursor.as_ref().expect("the caller makes room first");
        let filling = self.store.filling(self.buffer.region(cursor));
        Berth { id, base: self.buffer.next_address(cursor), filling }
    }

    /// Whether code of `len` bytes has room in the region that `cpu` fills.
    pub fn has_room(&self, cpu: usize, len: usize) -> bool {
        let cursor = self.writers.get(cpu).and_then(|writer| writer.cursor.as_ref());
        cursor.is_some_and(|cursor| {
            let blocks = self.store.of_region(self.buffer.region(cursor)).len();
            len <= cursor.free() && blocks < self.most_blocks
        })
    }

    /// Nothing more comes into the region that `cpu` fills.
    pub fn close(&mut self, cpu: usize) {
        if let Some(cursor) = self.writer(cpu).cursor.take() {
            self.store.close(self.buffer.region(&cursor));
        }
    }

    /// The CPU that fills `region`.
    pub(super) fn writer_in(&self, region: usize) -> Option<usize> {
        let is_there = |cursor: &Cursor| self.buffer.region(cursor) == region;
        self.writers.iter().position(|writer| writer.cursor.as_ref().is_some_and(is_there))
    }

    /// `cpu` fills `region` from now on, which has no blocks.
    pub(super) fn open(&mut self, cpu: usize, region: usize) {
        self.store.open(region);
        let cursor = self.buffer.open(region);
        self.writer(cpu).cursor = Some(cursor);
    }

    /// Enters `block` of `cpu`, made for its berth, with its code, for which there is room, and its lists.
    pub fn insert(&mut self, cpu: usize, mut block: Tb, (code, lists): (&[u8], &mut Lists)) -> TbId {
        let writer = &mut self.writers[cpu];
        let cursor = writer.cursor.as_mut().expect("the caller makes room first");
        let id = writer.reserved.take().expect("it was made for a berth");
        let at = self.buffer.append(cursor, code);
        block.code = self.buffer.offset(at).expect("code is in code memory");
        self.enter(id, block, lists);
        id
    }
}
