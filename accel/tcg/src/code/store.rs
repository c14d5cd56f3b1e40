//! The blocks by their numbers, and by where their code is. What belongs to them is kept region by region of code memory, and
//! goes with its region.

use crate::code::notes::{self, Notes};
use crate::code::tb::{Lists, Site, Slot, Tb, TbId};
use crate::huge_pages::roomy;

/// Bytes of code memory that a block takes as a rule.
const BLOCK_BYTES: usize = 512;
/// Bytes of code memory that hold a few blocks.
const STRETCH: usize = 4096;

/// What belongs to the blocks of one region.
#[derive(Default)]
struct Region {
    /// Their numbers, in the order of their code.
    ids: Vec<TbId>,
    /// For each [`STRETCH`] bytes the first in `ids` that begins there or behind.
    stretches: Vec<u32>,
    slots: Vec<Slot>,
    notes: Vec<u8>,
    #[expect(clippy::vec_box, reason = "generated code has their addresses")]
    sites: Vec<Box<Site>>,
    /// Bytes of code of those that are no longer valid.
    dead: usize,
    /// Which filling it has been filled in, of all regions'.
    filling: u64,
}

/// Blocks and what belongs to them.
pub struct Store {
    blocks: Vec<Tb>,
    /// Numbers of blocks that are gone.
    free: Vec<TbId>,
    regions: Vec<Region>,
    region_len: usize,
    /// Bytes of code of all blocks that are there.
    code_bytes: usize,
    fillings: u64,
}

impl Store {
    /// No blocks, in `regions` regions of `region_len` bytes.
    pub fn new(regions: usize, region_len: usize) -> Self {
        Self {
            blocks: roomy(regions * region_len / BLOCK_BYTES),
            free: Vec::new(),
            regions: (0..regions).map(|_| Region::default()).collect(),
            region_len,
            code_bytes: 0,
            fillings: 0,
        }
    }

    fn region_of(&self, block: &Tb) -> usize {
        block.code as usize / self.region_len
    }

    /// A number for a block that is going to be entered.
    pub fn reserve(&mut self) -> TbId {
        self.free.pop().unwrap_or_else(|| {
            self.blocks.push(Tb::NOT_YET);
            self.blocks.len() as TbId - 1
        })
    }

    /// Enters a block, behind all others of its region, with its lists, as number `id`, which was reserved for it.
    pub fn insert(&mut self, id: TbId, mut block: Tb, lists: &mut Lists) {
        let region = self.region_of(&block);
        let stretch = block.code as usize % self.region_len / STRETCH;
        let kept = &mut self.regions[region];
        (block.slots, block.slots_len) = (kept.slots.len() as u32, lists.slots.len() as u8);
        block.notes = kept.notes.len() as u32;
        kept.slots.extend_from_slice(&lists.slots);
        notes::add(&mut kept.notes, lists);
        kept.sites.append(&mut lists.sites);
        while kept.stretches.len() <= stretch {
            kept.stretches.push(kept.ids.len() as u32);
        }
        self.code_bytes += usize::from(block.code_len);
        self.blocks[id as usize] = block;
        kept.ids.push(id);
    }

    /// The block.
    pub fn block(&self, id: TbId) -> &Tb {
        &self.blocks[id as usize]
    }

    /// The block.
    pub fn block_mut(&mut self, id: TbId) -> &mut Tb {
        &mut self.blocks[id as usize]
    }

    /// What is noted of its code.
    pub fn notes(&self, id: TbId) -> Notes<'_> {
        let block = self.block(id);
        Notes::read(&self.regions[self.region_of(block)].notes[block.notes as usize..])
    }

    /// Its ways on.
    pub fn slots(&self, id: TbId) -> &[Slot] {
        let block = self.block(id);
        &self.regions[self.region_of(block)].slots[block.slots as usize..][..block.slots_len.into()]
    }

    /// Its ways on.
    pub fn slots_mut(&mut self, id: TbId) -> &mut [Slot] {
        let block = &self.blocks[id as usize];
        let region = block.code as usize / self.region_len;
        &mut self.regions[region].slots[block.slots as usize..][..block.slots_len.into()]
    }

    /// The block whose code `offset` in code memory lies in.
    pub fn at(&self, offset: u32) -> Option<TbId> {
        let region = self.regions.get(offset as usize / self.region_len)?;
        let stretch = offset as usize % self.region_len / STRETCH;
        let first_behind =
            |stretch: usize| region.stretches.get(stretch).map_or(region.ids.len(), |&first| first as usize);
        // The first of the stretch may have begun before it.
        let near = &region.ids[first_behind(stretch).saturating_sub(1)..first_behind(stretch + 1)];
        let behind = near.partition_point(|&id| self.block(id).code <= offset);
        let id = near[behind.checked_sub(1)?];
        let block = self.block(id);
        (offset - block.code < block.code_len.into()).then_some(id)
    }

    /// Block `id` is no longer valid.
    pub fn died(&mut self, id: TbId) {
        let block = &self.blocks[id as usize];
        self.regions[block.code as usize / self.region_len].dead += usize::from(block.code_len);
    }

    /// Blocks of `region`, in the order of their code.
    pub fn of_region(&self, region: usize) -> &[TbId] {
        &self.regions[region].ids
    }

    /// Whether block `id` is one of `region`'s.
    pub fn is_of(&self, id: TbId, region: usize) -> bool {
        self.region_of(self.block(id)) == region
    }

    /// Bytes of code in `region` that are of no use any more.
    pub fn dead(&self, region: usize) -> usize {
        self.regions[region].dead
    }

    /// In which filling `region` was filled, of all regions'.
    pub fn filling(&self, region: usize) -> u64 {
        self.regions[region].filling
    }

    /// Bytes of code of all blocks, and of those that are of no use any more.
    pub fn bytes(&self) -> (usize, usize) {
        (self.code_bytes, self.regions.iter().map(|region| region.dead).sum())
    }

    /// Nothing more comes into `region`.
    pub fn close(&mut self, region: usize) {
        let kept = &mut self.regions[region];
        kept.ids.shrink_to_fit();
        kept.slots.shrink_to_fit();
        kept.notes.shrink_to_fit();
        kept.sites.shrink_to_fit();
    }

    /// The blocks of `region` are gone.
    pub fn forget(&mut self, region: usize) {
        let gone = std::mem::take(&mut self.regions[region]);
        for &id in &gone.ids {
            self.code_bytes -= usize::from(self.blocks[id as usize].code_len);
        }
        self.free.extend(gone.ids);
    }

    /// `region`, which has no blocks, is filled from now on.
    pub fn open(&mut self, region: usize) {
        self.fillings += 1;
        self.regions[region].filling = self.fillings;
    }

    /// All blocks are gone, and reserved numbers.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.free.clear();
        self.regions.fill_with(Region::default);
        self.code_bytes = 0;
    }
}

#[cfg(test)]
mod tests;
