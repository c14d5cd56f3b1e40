//! The translation cache: every block, by what it was translated from, by page, and by host address.
//!
//! Invariants:
//! 1. A page's `code` mark ([`Ram::is_code`]) is set while the page has a block, or is going to. It is set, and the page's
//!    write TLB entries are revoked on all CPUs, before the block's bytes are read: from then on a store to it comes
//!    here, and its bytes are read, and the block entered, under the lock that a store's search takes. So a store is
//!    either in the bytes that were read or finds the block.
//! 2. An invalid block is not found, and no jump is linked to it; it is in no jump cache once its [`Gone`] was told to the
//!    CPUs. Its code stays until the whole cache is emptied, so a CPU that is still in it runs it to its end.
//! 3. The cache is emptied only while no CPU is in generated code.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use crate::code::buffer::CodeBuffer;
use crate::code::huge_pages::roomy;
use crate::code::key_table::KeyTable;
use crate::code::tb::{Lists, Mark, NO_PAGE, NONE, Slot, Tb, TbId, TbKey, mode, of_way, way};
use crate::ram::{CodeMark, Ram};

/// A multiply-and-rotate hash: keys are addresses that the guest could choose, but a slow look-up is all it would gain.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        // The last product's low bits know little of the high ones.
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

type KeyMap<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// What happened since the start, for the user.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Blocks translated.
    pub translated: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Blocks invalidated by stores.
    pub invalidated: u64,
    /// Times that the cache was full.
    pub emptied: u64,
    /// Jumps linked.
    pub linked: u64,
    /// Guest bytes of the translated blocks.
    pub guest_bytes: u64,
    /// Bytes of code made of them.
    pub host_bytes: u64,
    /// Sites moved from their slots to the table.
    pub moved_sites: u64,
    /// Blocks whose groups were given up.
    pub ungrouped: u64,
}

/// A block that was invalidated: what the CPUs are to forget ([`crate::cpu::Cpu::forget_blocks`]).
#[derive(Clone, Copy, Debug)]
pub struct Gone {
    /// Its address.
    pub rip: u64,
    /// The class of its mode, if there are jump caches for it.
    pub class: Option<usize>,
    /// CPUs that may have it in a jump cache, a bit each.
    pub cpus: u64,
}

/// The cache.
pub struct TbCache {
    /// Code memory.
    pub buffer: CodeBuffer,
    /// For the user.
    pub counters: Counters,
    blocks: Vec<Tb>,
    lists: Lists,
    by_key: KeyTable<BuildHasherDefault<KeyHasher>>,
    by_page: KeyMap<u32, Vec<TbId>>,
    /// For each [`STRETCH`] bytes of code memory the first block that begins there or behind.
    by_code: Vec<TbId>,
    /// Pages that are being made ready to be translated from: their marks stay. One for each CPU that does it.
    pins: Vec<u32>,
    /// Numbers of page mappings: (virtual page, RAM page). Never used twice, so that a stale one matches nothing.
    mappings: KeyMap<(u64, u32), u32>,
    next_mapping: u32,
    /// The one that was asked for last. Numbers are never used twice, and nothing has number 0.
    last_mapping: ((u64, u32), u32),
    /// Sites that miss their slots often: a bit for each instruction of a block.
    hashed: KeyMap<TbKey, u64>,
    /// Blocks with groups that often lie on two pages.
    straddling: HashSet<TbKey, BuildHasherDefault<KeyHasher>>,
    /// Blocks whose groups do not pay.
    ungrouped: HashSet<TbKey, BuildHasherDefault<KeyHasher>>,
}

/// Bytes of code memory that a block takes as a rule.
const BLOCK_BYTES: usize = 512;
/// Bytes of code memory that hold a few blocks.
const STRETCH: u64 = 4096;
/// Times that the checks of a block's groups may fail for good.
const FAILED_GROUPS: u8 = 32;

impl TbCache {
    /// An empty cache over `buffer`, whose reserved start holds the thunks.
    pub fn new(buffer: CodeBuffer) -> Self {
        let range = buffer.range();
        let blocks = (range.end - range.start) as usize / BLOCK_BYTES;
        Self {
            buffer,
            counters: Counters::default(),
            blocks: roomy(blocks),
            lists: Lists::with_room(blocks),
            by_key: KeyTable::default(),
            by_page: KeyMap::default(),
            by_code: Vec::new(),
            pins: Vec::new(),
            mappings: KeyMap::default(),
            next_mapping: 1,
            last_mapping: ((u64::MAX, u32::MAX), 0),
            hashed: KeyMap::default(),
            straddling: HashSet::default(),
            ungrouped: HashSet::default(),
        }
    }

    /// The instructions of a block for `key` whose operands are looked up in the table, a bit each.
    pub fn hashed_sites(&self, key: &TbKey) -> u64 {
        self.hashed.get(key).copied().unwrap_or(0)
    }

    /// From now on the operand of instruction `insn` of block `id` is looked up in the table: the block is to be
    /// translated anew, and the old one to be forgotten where it was asked for.
    pub fn use_table(&mut self, id: TbId, insn: usize) -> Option<Gone> {
        let key = self.blocks[id as usize].key;
        if !self.blocks[id as usize].valid || self.hashed_sites(&key) >> insn & 1 != 0 {
            return None;
        }
        self.counters.moved_sites += 1;
        *self.hashed.entry(key).or_default() |= 1 << insn;
        Some(self.supersede(id))
    }

    /// Whether accesses of a block for `key` are to be checked together.
    pub fn groups_pay(&self, key: &TbKey) -> bool {
        !self.ungrouped.contains(key)
    }

    /// Whether groups of a block for `key` often lie on two pages, for which it is to have a way on.
    pub fn straddles(&self, key: &TbKey) -> bool {
        self.straddling.contains(key)
    }

    /// Whether jump `slot` of block `from` leads to a version without groups.
    pub fn leads_to_ungrouped(&mut self, from: TbId, slot: usize) -> bool {
        let Some(block) = self.blocks.get(from as usize) else { return false };
        self.lists.slots(block.parts).get(slot).is_some_and(|jump| jump.ungrouped)
    }

    /// The check of a group in block `id` could not be made good; `two_pages`: because the group lies on two. The block, if it is
    /// to be translated anew: with a way on for groups on two pages, or without groups.
    pub fn failed_group(&mut self, id: TbId, two_pages: bool) -> Option<Gone> {
        let block = &mut self.blocks[id as usize];
        block.ungrouped = block.ungrouped.saturating_add(1);
        if !block.valid || block.ungrouped < FAILED_GROUPS {
            return None;
        }
        let key = block.key;
        if !two_pages || !self.straddling.insert(key) {
            self.counters.ungrouped += 1;
            self.ungrouped.insert(key);
        }
        Some(self.supersede(id))
    }

    /// The number that stands for virtual page `page` being mapped to RAM page `ram_page`.
    pub fn mapping_number(&mut self, page: u64, ram_page: u32) -> u32 {
        // One block of a page follows another.
        if self.last_mapping.0 == (page, ram_page) {
            return self.last_mapping.1;
        }
        let next = &mut self.next_mapping;
        let number = *self.mappings.entry((page, ram_page)).or_insert_with(|| {
            let number = *next;
            // After four billion the last one would stand for several: then it stands for none.
            *next = next.saturating_add(1);
            number
        });
        self.last_mapping = ((page, ram_page), number);
        number
    }

    /// The block for `key`.
    pub fn find(&self, key: &TbKey) -> Option<TbId> {
        self.by_key.find(key, |id| &self.blocks[id as usize].key)
    }

    /// The block.
    pub fn block(&self, id: TbId) -> &Tb {
        &self.blocks[id as usize]
    }

    /// The block that executable address `pc` lies in.
    pub fn at(&self, pc: u64) -> Option<TbId> {
        let stretch = |pc: u64| (pc.wrapping_sub(self.buffer.range().start) / STRETCH) as usize;
        let first_behind =
            |stretch: usize| self.by_code.get(stretch).map_or(self.blocks.len(), |&id| id as usize);
        // The first of the stretch may have begun before it.
        let from = first_behind(stretch(pc)).saturating_sub(1);
        let near = &self.blocks[from..first_behind(stretch(pc).saturating_add(1))];
        let id = (from + near.partition_point(|block| block.code <= pc)).checked_sub(1)?;
        let block = &self.blocks[id];
        (pc < block.code + u64::from(block.code_len)).then_some(id as TbId)
    }

    /// Number of the next block.
    pub fn next_id(&self) -> TbId {
        self.blocks.len() as TbId
    }

    /// The guest instruction that executable address `pc` in block `id` belongs to.
    pub fn mark_at(&self, id: TbId, pc: u64) -> Option<Mark> {
        let block = self.block(id);
        self.lists.mark_at(block.parts, pc.checked_sub(block.code)?)
    }

    /// RIP of instruction `insn` of block `id`; of the end for one past the last.
    pub fn rip_of(&self, id: TbId, insn: usize) -> u64 {
        let block = self.block(id);
        block.key.rip.wrapping_add_signed(self.lists.insns(block.parts)[insn].into())
    }

    /// Offsets of the instructions of block `id` from its RIP, and of the end.
    pub fn insns(&self, id: TbId) -> &[i16] {
        self.lists.insns(self.block(id).parts)
    }

    /// Instructions in block `id`.
    pub fn count(&self, id: TbId) -> u32 {
        self.insns(id).len() as u32 - 1
    }

    /// Enters a block with its lists.
    pub fn insert(&mut self, mut block: Tb, lists: &mut Lists) -> TbId {
        let id = self.next_id();
        self.counters.translated += 1;
        self.counters.instructions += lists.insns.len() as u64 - 1;
        block.parts = self.lists.add(lists);
        self.counters.guest_bytes += u64::from(block.guest_bytes);
        self.counters.host_bytes += u64::from(block.code_len);
        self.by_key.insert(&block.key, id, |id| &self.blocks[id as usize].key);
        self.by_page.entry(block.page()).or_default().push(id);
        if let Some(second) = block.key.second_page {
            self.by_page.entry(second).or_default().push(id);
        }
        let stretch = (block.code - self.buffer.range().start) / STRETCH;
        while self.by_code.len() as u64 <= stretch {
            self.by_code.push(id);
        }
        self.blocks.push(block);
        id
    }

    /// Lets jump `slot` of block `from` go to block `to`.
    pub fn link(&mut self, from: TbId, slot: usize, to: TbId) {
        let target = &self.blocks[to as usize];
        if !target.valid || !self.blocks[from as usize].valid || !target.chainable() {
            return;
        }
        let (entry, entry_saved, entry_forward) = (target.entry, target.entry_saved, target.entry_forward);
        let page_number = target.page_number;
        let (incoming, target_mode) = (target.incoming, target.key.mode);
        let source = &self.blocks[from as usize];
        if (source.key.mode ^ target_mode) & mode::WINDOWED != 0 {
            // Another CPU, or another address space, may have one without windows, and none for the other.
            return;
        }
        let code = source.code;
        let Some(jump) = self.lists.slots(source.parts).get_mut(slot) else { return };
        if jump.linked != NONE || jump.guard.is_some() && page_number == NO_PAGE {
            return;
        }
        (jump.linked, jump.next) = (to, incoming);
        let jump = *jump;
        self.blocks[to as usize].incoming = way(from, slot) as u32;
        let at = |offset: u16| code + u64::from(offset);
        let entry = match (jump.flags_saved, jump.forward) {
            (true, _) => entry_saved,
            (false, true) => entry_forward,
            (false, false) => entry,
        };
        self.buffer.patch_jump(at(jump.displacement), entry);
        if let Some(guard) = jump.guard {
            self.buffer.patch_word(at(guard.number), page_number);
            self.buffer.patch_jump(at(guard.otherwise), at(guard.lookup));
        }
        self.counters.linked += 1;
    }

    /// Bytes `offset..offset + len` of RAM page `page` were written: invalidates the blocks that were made from them.
    pub fn written(&mut self, ram: &Ram, page: u32, offset: u32, len: u32) -> Vec<Gone> {
        let Some(ids) = self.by_page.get(&page) else { return Vec::new() };
        let hit: Vec<TbId> =
            ids.iter().copied().filter(|&id| self.blocks[id as usize].covers(page, offset, len)).collect();
        hit.into_iter().map(|id| self.invalidate(ram, id)).collect()
    }

    /// Begins to make `page` ready to be translated from: its mark is set, and stays. True: every write entry for it is
    /// gone already.
    pub fn pin(&mut self, ram: &Ram, page: u32) -> bool {
        let ready = ram.is_protected(page);
        if !ready {
            ram.set_code(page, CodeMark::Revoking);
        }
        self.pins.push(page);
        ready
    }

    /// Every write entry for `page` is gone. What is translated from it is entered before the lock is given back.
    pub fn unpin(&mut self, ram: &Ram, page: u32) {
        ram.set_code(page, CodeMark::Set);
        if let Some(pin) = self.pins.iter().position(|&pinned| pinned == page) {
            self.pins.swap_remove(pin);
        }
    }

    /// CPU `cpu` is going to have the block in a jump cache.
    pub fn cached_by(&mut self, id: TbId, cpu: usize) {
        self.blocks[id as usize].cpus |= 1 << cpu;
    }

    /// Block `id` is not found, nor linked to, any more: there will be a better one. It still does what its bytes say, so other
    /// CPUs may have it in their jump caches until a store hits it.
    fn supersede(&mut self, id: TbId) -> Gone {
        let block = &mut self.blocks[id as usize];
        let key = block.key;
        let mut incoming = std::mem::replace(&mut block.incoming, NONE);
        if std::mem::take(&mut block.valid) {
            self.by_key.remove(&key, |id| &self.blocks[id as usize].key);
        }
        while incoming != NONE {
            let (from, slot) = of_way(incoming.into());
            let source = &self.blocks[from as usize];
            let jump = &mut self.lists.slots(source.parts)[slot];
            (jump.linked, incoming) = (NONE, jump.next);
            unlink(&mut self.buffer, source.code, jump);
        }
        // Its own jumps go back to their stubs too: a CPU that is still in it must come out and look again. They stay in the
        // lists of the blocks that they led to.
        let block = &self.blocks[id as usize];
        for jump in self.lists.slots(block.parts).iter().filter(|jump| jump.linked != NONE) {
            unlink(&mut self.buffer, block.code, jump);
        }
        Gone { rip: key.rip, class: mode::class(key.mode), cpus: self.blocks[id as usize].cpus }
    }

    fn invalidate(&mut self, ram: &Ram, id: TbId) -> Gone {
        self.counters.invalidated += 1;
        let gone = self.supersede(id);
        let block = &self.blocks[id as usize];
        let (key, page) = (block.key, block.page());
        for page in [Some(page), key.second_page].into_iter().flatten() {
            if let Some(ids) = self.by_page.get_mut(&page) {
                ids.retain(|&other| other != id);
                if ids.is_empty() {
                    self.by_page.remove(&page);
                    if !self.pins.contains(&page) {
                        ram.set_code(page, CodeMark::None);
                    }
                }
            }
        }
        gone
    }

    /// Forgets everything. No CPU may be in generated code; jump caches are the caller's to flush.
    pub fn clear(&mut self, ram: &Ram) {
        self.counters.emptied += 1;
        for &page in self.by_page.keys() {
            ram.set_code(page, CodeMark::None);
        }
        self.blocks.clear();
        self.lists.clear();
        self.by_key.clear();
        self.by_page.clear();
        self.by_code.clear();
        self.mappings.clear();
        self.last_mapping = ((u64::MAX, u32::MAX), 0);
        self.hashed.clear();
        self.straddling.clear();
        self.ungrouped.clear();
        self.buffer.clear();
    }
}

/// Has `jump` of the block whose code is at `code` go to its stub.
fn unlink(buffer: &mut CodeBuffer, code: u64, jump: &Slot) {
    let at = |offset: u16| code + u64::from(offset);
    if let Some(guard) = jump.guard {
        buffer.patch_word(at(guard.number), NO_PAGE);
        buffer.patch_jump(at(guard.otherwise), at(jump.stub));
    }
    buffer.patch_jump(at(jump.displacement), at(jump.stub));
}

impl Tb {
    /// Whether it was made from any of these bytes of RAM page `page`.
    fn covers(&self, page: u32, offset: u32, len: u32) -> bool {
        let Range { start, end } = self.span;
        let on_first = page == self.page() && offset < end && start < offset + len;
        let on_second = self.key.second_page == Some(page) && offset < end.saturating_sub(4096);
        on_first || on_second
    }
}
