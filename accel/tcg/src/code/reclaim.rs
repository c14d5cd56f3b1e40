//! How code memory is used again.
//!
//! It is filled region by region, by each CPU one of its own. When one is full, the one with the most code that is of no use any
//! more is reclaimed, if that is most of it; else a new one is begun, and where there is none, some region has to go. The blocks
//! of a reclaimed region are forgotten, those that are still of use too: they are translated anew, into the region that is being
//! filled, if they are wanted again.
//!
//! Where a region's code can be known (its own blocks apart) and who forgets it there:
//!
//! - jumps of other blocks and their lists, the index of blocks, the lists of pages, the ramps of the translator: here;
//! - jump caches, return caches, what a CPU's loop has looked up: each CPU ([`TbCache::voided`]) before it enters generated code;
//! - program counters and return addresses: nowhere, since no CPU is in generated code.

use crate::code::cache::TbCache;
use crate::code::tb::{NONE, TbId, of_way};
use crate::ram::Ram;

/// A region is reclaimed rather than a new one begun when so much of it is of no use, as a divisor.
const MOST: usize = 2;
/// Where there is no new one, the region with the most of no use is reclaimed if that is so much, as a divisor; else the oldest.
const SOME: usize = 8;

impl TbCache {
    /// No region gets more than `blocks`.
    pub fn fill_regions_with(&mut self, blocks: usize) {
        self.most_blocks = blocks;
    }

    /// The region that is to be reclaimed for a CPU to go on; `None`: there is a new one. What another one is filling stays
    /// where there is anything else.
    pub fn victim(&self) -> Option<usize> {
        let opened = 0..self.buffer.fresh().unwrap_or(self.buffer.regions());
        let full = opened.clone().filter(|&region| self.writer_in(region).is_none());
        let most = full.clone().max_by_key(|&region| self.store.dead(region));
        let is_dead =
            |region: &usize, divisor| self.store.dead(*region) >= self.buffer.region_len() / divisor;
        match self.buffer.fresh() {
            Some(_) => most.filter(|region| is_dead(region, MOST)),
            None => {
                let oldest = || full.min_by_key(|&region| self.store.filling(region));
                let any = || opened.min_by_key(|&region| self.store.filling(region));
                most.filter(|region| is_dead(region, SOME)).or_else(oldest).or_else(any)
            }
        }
    }

    /// `cpu` goes on with another region: `victim`, which is reclaimed, or a new one. For the former no CPU may be in generated
    /// code or translating, and each has to follow ([`TbCache::voided`]) before it enters it again.
    pub fn go_on_in(&mut self, cpu: usize, victim: Option<usize>, ram: &Ram) {
        let region = victim.or(self.buffer.fresh()).expect("where no region is new there is a victim");
        if victim.is_some() {
            if let Some(other) = self.writer_in(region) {
                self.close(other);
            }
            self.reclaim(ram, region);
        }
        self.open(cpu, region);
    }

    fn reclaim(&mut self, ram: &Ram, region: usize) {
        self.counters.reclaimed += 1;
        self.voided += 1;
        let ids = self.store.of_region(region).to_vec();
        for &id in &ids {
            if self.store.block(id).valid {
                self.supersede(id);
            }
        }
        // Blocks elsewhere that ways of these led to know them.
        let ways = ids.iter().flat_map(|&id| self.store.slots(id));
        let mut targets: Vec<TbId> = ways.map(|way| way.linked).filter(|&linked| linked != NONE).collect();
        targets.sort_unstable();
        targets.dedup();
        for target in targets {
            self.forget_ways(target, region);
        }
        let mut pages: Vec<u32> = ids.iter().flat_map(|&id| self.store.block(id).key.pages()).collect();
        pages.sort_unstable();
        pages.dedup();
        for page in pages {
            self.leave_page(ram, page, |store, id| store.is_of(id, region));
        }
        self.store.forget(region);
        self.forget_old();
    }

    /// Takes the ways of blocks in `region` out of the list of those that lead to block `id`.
    fn forget_ways(&mut self, id: TbId, region: usize) {
        let mut way = self.store.block(id).incoming;
        let mut last: Option<u32> = None;
        while way != NONE {
            let (from, slot) = of_way(way.into());
            let next = self.store.slots(from)[slot].next;
            if !self.store.is_of(from, region) {
                last = Some(way);
            } else if let Some(last) = last {
                let (from, slot) = of_way(last.into());
                self.store.slots_mut(from)[slot].next = next;
            } else {
                self.store.block_mut(id).incoming = next;
            }
            way = next;
        }
    }
}

#[cfg(test)]
mod tests;
