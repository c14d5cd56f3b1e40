//! The translation cache: every block, by what it was translated from, by page, and by host address.
//!
//! Invariants:
//! 1. A page's `code` mark ([`Ram::is_code`]) is set while the page has a block, or is going to. It is set, and the page's
//!    write TLB entries are revoked on all CPUs, before the block's bytes are read: from then on a store to it comes
//!    here. The bytes are read, and the block entered, under the lock that a store's search takes. So a store is in the bytes
//!    that were read, or finds the block, or comes between the two, which is noted ([`crate::code::pins`]): then the block is
//!    not entered.
//! 2. An invalid block is not found, and no jump is linked to it; it is in no jump cache once its [`Gone`] was told to the
//!    CPUs. Its code stays until its region is reclaimed ([`crate::code::reclaim`]), so a CPU that is still in it runs it to
//!    its end.
//! 3. A region is reclaimed, and the cache emptied, only while no CPU is in generated code or translates.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::code::buffer::CodeBuffer;
use crate::code::key_table::KeyTable;
use crate::code::pins::Pin;
use crate::code::store::Store;
use crate::code::tb::{Lists, Mark, NO_PAGE, NONE, Slot, Tb, TbId, TbKey, mode, of_way, way};
use crate::code::writers::Writer;
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
    /// Regions of code memory that were reclaimed.
    pub reclaimed: u64,
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
    /// How often what was looked up before has become void: a region was reclaimed, or all was emptied.
    pub(super) voided: u64,
    pub(super) store: Store,
    by_key: KeyTable<BuildHasherDefault<KeyHasher>>,
    pub(super) by_page: KeyMap<u32, Vec<TbId>>,
    /// Blocks in a region at most.
    pub(super) most_blocks: usize,
    /// The pages that CPUs translate from.
    pub(super) pins: Vec<Pin>,
    /// By CPU.
    pub(super) writers: Vec<Writer>,
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

/// Entries of what is only remembered of blocks and pages at most, each.
const REMEMBERED: usize = 1 << 16;
/// Times that the checks of a block's groups may fail for good.
const FAILED_GROUPS: u8 = 32;

impl TbCache {
    /// An empty cache over `buffer`, whose reserved start holds the thunks.
    pub fn new(buffer: CodeBuffer) -> Self {
        let store = Store::new(buffer.regions(), buffer.region_len());
        Self {
            buffer,
            counters: Counters::default(),
            voided: 0,
            store,
            by_key: KeyTable::default(),
            by_page: KeyMap::default(),
            most_blocks: usize::MAX,
            pins: Vec::new(),
            writers: Vec::new(),
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
        let block = self.store.block(id);
        let key = block.key;
        if !block.valid || self.hashed_sites(&key) >> insn & 1 != 0 {
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
    pub fn leads_to_ungrouped(&self, from: TbId, slot: usize) -> bool {
        self.store.slots(from).get(slot).is_some_and(|jump| jump.ungrouped)
    }

    /// The check of a group in block `id` could not be made good; `two_pages`: because the group lies on two. The block, if it is
    /// to be translated anew: with a way on for groups on two pages, or without groups.
    pub fn failed_group(&mut self, id: TbId, two_pages: bool) -> Option<Gone> {
        let block = self.store.block_mut(id);
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
        self.by_key.find(key, |id| &self.store.block(id).key)
    }

    /// The block.
    pub fn block(&self, id: TbId) -> &Tb {
        self.store.block(id)
    }

    /// The executable address of block `id`.
    pub fn code(&self, id: TbId) -> u64 {
        self.buffer.range().start + u64::from(self.store.block(id).code)
    }

    /// Where block `id` is entered with the flags saved.
    pub fn entry_saved(&self, id: TbId) -> u64 {
        self.code(id) + u64::from(self.store.block(id).entries.saved)
    }

    /// How often what was looked up before has become void.
    pub fn voided(&self) -> u64 {
        self.voided
    }

    /// The block that executable address `pc` lies in.
    pub fn at(&self, pc: u64) -> Option<TbId> {
        self.store.at(self.buffer.offset(pc)?)
    }

    /// The guest instruction that executable address `pc` in block `id` belongs to.
    pub fn mark_at(&self, id: TbId, pc: u64) -> Option<Mark> {
        self.store.notes(id).mark_at(pc.checked_sub(self.code(id))?)
    }

    /// RIP of instruction `insn` of block `id`; of the end for one past the last.
    pub fn rip_of(&self, id: TbId, insn: usize) -> u64 {
        self.store.block(id).key.rip.wrapping_add_signed(self.store.notes(id).offset(insn))
    }

    /// Instructions in block `id`.
    pub fn count(&self, id: TbId) -> u32 {
        self.store.notes(id).count
    }

    /// Bytes that the return at the end of block `id` takes off the stack; 0 for other ends.
    pub fn popped(&self, id: TbId) -> u32 {
        self.store.notes(id).popped
    }

    /// Number of the mapping of the second page of block `id`, which its code has, if it is on two.
    pub fn second_number(&self, id: TbId) -> Option<u32> {
        self.store.block(id).key.second_page().map(|_| self.store.notes(id).second_number)
    }

    /// Bytes of code of all blocks, and of those that are of no use any more.
    pub fn bytes(&self) -> (usize, usize) {
        self.store.bytes()
    }

    /// Enters block `id`, whose code is in code memory, with its lists.
    pub(super) fn enter(&mut self, id: TbId, block: Tb, lists: &mut Lists) {
        self.counters.translated += 1;
        self.counters.instructions += lists.insns.len() as u64 - 1;
        self.counters.guest_bytes += u64::from(lists.guest_bytes);
        self.counters.host_bytes += u64::from(block.code_len);
        let key = block.key;
        self.store.insert(id, block, lists);
        self.by_key.insert(&key, id, |id| &self.store.block(id).key);
        for page in key.pages() {
            self.by_page.entry(page).or_default().push(id);
        }
    }

    /// Lets jump `slot` of block `from` go to block `to`.
    pub fn link(&mut self, from: TbId, slot: usize, to: TbId) {
        let target = self.store.block(to);
        if !target.valid || !self.store.block(from).valid || !target.chainable() {
            return;
        }
        let (entries, page_number, incoming) = (target.entries, target.page_number, target.incoming);
        if (self.store.block(from).key.mode ^ target.key.mode) & mode::OF_SPACE != 0 {
            // Another CPU, or another address space, may have one without windows, and none for the other.
            return;
        }
        let (code, target) = (self.code(from), self.code(to));
        let Some(jump) = self.store.slots_mut(from).get_mut(slot) else { return };
        if jump.linked != NONE || jump.guard.is_some() && page_number == NO_PAGE {
            return;
        }
        (jump.linked, jump.next) = (to, incoming);
        let jump = *jump;
        self.store.block_mut(to).incoming = way(from, slot) as u32;
        let at = |offset: u16| code + u64::from(offset);
        let entry = match (jump.flags_saved, jump.forward) {
            (true, _) => entries.saved,
            (false, true) => entries.forward,
            (false, false) => entries.host,
        };
        self.buffer.patch_jump(at(jump.displacement), target + u64::from(entry));
        if let Some(guard) = jump.guard {
            self.buffer.patch_word(at(guard.number), page_number);
            self.buffer.patch_jump(at(guard.otherwise), at(guard.lookup));
        }
        self.counters.linked += 1;
    }

    /// Bytes `offset..offset + len` of RAM page `page` were written: invalidates the blocks that were made from them.
    pub fn written(&mut self, ram: &Ram, page: u32, offset: u32, len: u32) -> Vec<Gone> {
        self.note_written(page);
        let Some(ids) = self.by_page.get(&page) else { return Vec::new() };
        let hit: Vec<TbId> =
            ids.iter().copied().filter(|&id| self.store.block(id).covers(page, offset, len)).collect();
        hit.into_iter().map(|id| self.invalidate(ram, id)).collect()
    }

    /// CPU `cpu` is going to have the block in a jump cache.
    pub fn cached_by(&mut self, id: TbId, cpu: usize) {
        self.store.block_mut(id).cpus |= 1 << cpu;
    }

    /// Block `id` is not found, nor linked to, any more: there will be a better one. It still does what its bytes say, so other
    /// CPUs may have it in their jump caches until a store hits it.
    pub(super) fn supersede(&mut self, id: TbId) -> Gone {
        let block = self.store.block_mut(id);
        let (key, cpus) = (block.key, block.cpus);
        let mut incoming = std::mem::replace(&mut block.incoming, NONE);
        if std::mem::take(&mut block.valid) {
            self.store.died(id);
            self.by_key.remove(&key, |id| &self.store.block(id).key);
        }
        while incoming != NONE {
            let (from, slot) = of_way(incoming.into());
            let code = self.code(from);
            let jump = &mut self.store.slots_mut(from)[slot];
            (jump.linked, incoming) = (NONE, jump.next);
            unlink(&mut self.buffer, code, jump);
        }
        // Its own jumps go back to their stubs too: a CPU that is still in it must come out and look again. They stay in the
        // lists of the blocks that they led to.
        let code = self.code(id);
        for jump in self.store.slots(id).iter().filter(|jump| jump.linked != NONE) {
            unlink(&mut self.buffer, code, jump);
        }
        Gone { rip: key.rip, class: mode::class(key.mode), cpus }
    }

    fn invalidate(&mut self, ram: &Ram, id: TbId) -> Gone {
        self.counters.invalidated += 1;
        let gone = self.supersede(id);
        for page in self.store.block(id).key.pages() {
            self.leave_page(ram, page, |_, other| other == id);
        }
        gone
    }

    /// Blocks that are `gone` are no longer known to `page`.
    pub(super) fn leave_page(&mut self, ram: &Ram, page: u32, gone: impl Fn(&Store, TbId) -> bool) {
        if let Some(ids) = self.by_page.get_mut(&page) {
            ids.retain(|&id| !gone(&self.store, id));
            if ids.is_empty() {
                self.by_page.remove(&page);
                if !self.is_pinned(page) {
                    ram.set_code(page, CodeMark::None);
                }
            }
        }
    }

    /// What is remembered of blocks and pages that may be gone is forgotten where it has become too much: to be without it
    /// costs time, no more. Numbers of mappings go on from where they are.
    pub(super) fn forget_old(&mut self) {
        if self.mappings.len() > REMEMBERED {
            self.mappings = KeyMap::default();
            self.last_mapping = ((u64::MAX, u32::MAX), 0);
        }
        if self.hashed.len() > REMEMBERED {
            self.hashed.clear();
        }
        if self.straddling.len() > REMEMBERED {
            self.straddling.clear();
        }
        if self.ungrouped.len() > REMEMBERED {
            self.ungrouped.clear();
        }
    }

    /// Forgets everything. No CPU may be in generated code or translate; jump caches are the caller's to flush.
    pub fn clear(&mut self, ram: &Ram) {
        self.voided += 1;
        for &page in self.by_page.keys() {
            ram.set_code(page, CodeMark::None);
        }
        self.store.clear();
        self.by_key.clear();
        self.by_page.clear();
        self.mappings.clear();
        self.last_mapping = ((u64::MAX, u32::MAX), 0);
        self.hashed.clear();
        self.straddling.clear();
        self.ungrouped.clear();
        self.writers.clear();
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
