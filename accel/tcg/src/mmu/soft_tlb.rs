//! The soft TLB: what generated code looks translations up in.
//!
//! A context holds all that depends on one address space (one PCID): read and write tables per mode, the
//! instruction-fetch table and the jump cache. Generated code reaches the present context through the host's GS segment
//! ([`crate::code::gs_base`]), so that a switch of address space changes its base and flushes nothing.
//!
//! Invariants:
//! 1. A write entry exists only for a RAM page whose dirty bit is set and that holds no translated code.
//! 2. An entry's tag is a page address. The tag of an empty entry is a non-canonical page address with host address 0:
//!    the accesses that match it fault on the host's page 0, and the signal handler makes the #GP of them that a
//!    non-canonical address has.
//! 3. No entry maps a page on which a data breakpoint lies, nor MMIO: those accesses take the slow path.

use std::mem::offset_of;

use crate::code::tb::mode;
use crate::env::{Env, TLB_MODES};
use crate::mmu::jumps::{
    FAR_ENTRIES, JUMP_ENTRIES, JumpEntry, NO_JUMPS, TAKES_FLAGS, far_jump_index, jump_index, no_far_jump,
};
use crate::mmu::sets::{PageSet, Used};
use crate::mmu::walk::{self, cr};
use crate::mmu::windowed::Windowed;
use crate::ram::{Ram, SEVERAL, WriteNotes};

/// Entries of one table; a power of two.
pub const TLB_ENTRIES: usize = 1024;
/// Entries of the fetch table of one mode.
pub const FETCH_ENTRIES: usize = 256;
/// Entries of a table of code pages.
pub const CODE_PAGES: usize = 4096;
/// Address spaces kept at once. Linux uses six PCIDs for user space at a time.
pub const CONTEXTS: usize = 8;

/// Pages that are looked for in the slots one by one; more empty them.
const MAX_DROPPED: usize = 4;

/// Matches no canonical address.
pub const EMPTY_TAG: u64 = 0x8000_0000_0000_0000;

/// A translation as generated code reads it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TlbEntry {
    /// Linear address of the page.
    pub tag: u64,
    /// Host address of the page.
    pub host: u64,
}

const EMPTY: TlbEntry = TlbEntry { tag: EMPTY_TAG, host: 0 };

/// A page that code may be fetched from.
#[derive(Clone, Copy)]
pub struct FetchEntry {
    /// Linear address of the page.
    pub tag: u64,
    /// Its RAM page.
    pub page: crate::ram::RamPage,
}

const NO_FETCH: FetchEntry = FetchEntry { tag: EMPTY_TAG, page: crate::ram::RamPage { host: 0, index: 0 } };

/// One address space.
#[repr(C)]
pub struct Context {
    tables: [[[TlbEntry; TLB_ENTRIES]; 2]; TLB_MODES],
    jumps: [[JumpEntry; JUMP_ENTRIES]; mode::CLASSES],
    far_jumps: [[JumpEntry; FAR_ENTRIES]; mode::FAR_CLASSES],
    code_pages: [[u32; CODE_PAGES]; 2],
    fetch: [[FetchEntry; FETCH_ENTRIES]; 2],
    used: [[Used; 2]; TLB_MODES],
    fetch_used: [Used; 2],
    jumps_used: [Used; mode::CLASSES],
    far_jumps_used: [Used; mode::FAR_CLASSES],
    code_pages_used: [Used; 2],
    /// Where pieces of 2 MiB (or 4 MiB) pages are, by address: INVLPG in one must drop all of them.
    large: PageSet,
    /// Where pieces of 1 GiB pages are.
    huge: PageSet,
    /// Pages that the jump cache has blocks of.
    jumped: PageSet,
    /// Pages that blocks were looked for on since everything was forgotten: return caches know no others.
    executed: PageSet,
    pcid: u16,
    valid: bool,
    last_use: u64,
    /// Its windows.
    pub(crate) windows: Windowed,
}

/// Where in a context the table of `mode` is, for reads or writes: [`TlbEntry`], by [`table_index`].
pub const fn table_offset(mode: usize, write: bool) -> i32 {
    let number = mode * 2 + write as usize;
    (offset_of!(Context, tables) + number * size_of::<[TlbEntry; TLB_ENTRIES]>()) as i32
}

/// Where in a context the jump cache of `class` is: [`JumpEntry`], by [`jump_index`].
pub const fn jumps_offset(class: usize) -> i32 {
    (offset_of!(Context, jumps) + class * size_of::<[JumpEntry; JUMP_ENTRIES]>()) as i32
}

/// Where in a context the larger jump cache of `class`, one of the first, is: [`JumpEntry`], by [`far_jump_index`].
pub const fn far_jumps_offset(class: usize) -> i32 {
    (offset_of!(Context, far_jumps) + class * size_of::<[JumpEntry; FAR_ENTRIES]>()) as i32
}

/// Where in a context it is noted, a byte each, which pieces of the jump cache of `class` are used.
pub const fn jumps_used_offset(class: usize) -> i32 {
    (offset_of!(Context, jumps_used) + class * size_of::<Used>()) as i32
}

/// Where in a context the entry for `linear` is of the table of pages that code may be fetched from by a user or the
/// supervisor: the number of the page's mapping ([`crate::code::tb::Guard`]), 4 bytes.
pub const fn code_page_offset(user: bool, linear: u64) -> i32 {
    let table = offset_of!(Context, code_pages) + user as usize * size_of::<[u32; CODE_PAGES]>();
    (table + 4 * code_page_index(linear)) as i32
}

impl Context {
    fn new() -> Box<Self> {
        let mut context = Box::new(Self {
            tables: [[[EMPTY; TLB_ENTRIES]; 2]; TLB_MODES],
            jumps: [NO_JUMPS; mode::CLASSES],
            far_jumps: [[no_far_jump(1); FAR_ENTRIES]; mode::FAR_CLASSES],
            code_pages: [[0; CODE_PAGES]; 2],
            fetch: [[NO_FETCH; FETCH_ENTRIES]; 2],
            used: [[Used::NONE; 2]; TLB_MODES],
            fetch_used: [Used::NONE; 2],
            jumps_used: [Used::NONE; mode::CLASSES],
            far_jumps_used: [Used::NONE; mode::FAR_CLASSES],
            code_pages_used: [Used::NONE; 2],
            large: PageSet::NEW,
            huge: PageSet::NEW,
            jumped: PageSet::NEW,
            executed: PageSet::NEW,
            pcid: 0,
            valid: false,
            last_use: 0,
            windows: Windowed::default(),
        });
        for jumps in &mut context.far_jumps {
            jumps[0] = no_far_jump(0);
        }
        context.flush();
        context
    }

    fn flush(&mut self) {
        for mode in 0..TLB_MODES {
            for write in 0..2 {
                self.used[mode][write].flush(&mut self.tables[mode][write], |_| EMPTY);
            }
        }
        for mode in 0..2 {
            self.fetch_used[mode].flush(&mut self.fetch[mode], |_| NO_FETCH);
            self.code_pages_used[mode].flush(&mut self.code_pages[mode], |_| 0);
        }
        self.windows.all_flushed();
        self.flush_jumps();
        self.large.clear();
        self.huge.clear();
        self.executed.clear();
    }

    fn flush_jumps(&mut self) {
        for class in 0..mode::CLASSES {
            self.jumps_used[class].flush(&mut self.jumps[class], |index| NO_JUMPS[index]);
        }
        for class in 0..mode::FAR_CLASSES {
            self.far_jumps_used[class].flush(&mut self.far_jumps[class], no_far_jump);
        }
        self.jumped.clear();
    }

    /// Forgets the page at `linear`; everything if it may be a piece of a large one. Whether return caches may know it too.
    fn flush_page(&mut self, linear: u64) -> bool {
        if self.large.may_have(linear >> 21)
            || self.large.may_have(linear >> 21 ^ 1)
            || self.huge.may_have(linear >> 30)
        {
            // Pieces of a large page are spread over the tables.
            self.flush();
            return true;
        }
        let page = linear & !0xfff;
        self.windows.page_flushed(page);
        let index = table_index(page);
        for mode in 0..TLB_MODES {
            for write in 0..2 {
                let entry = &mut self.tables[mode][write][index];
                if entry.tag == page {
                    *entry = EMPTY;
                }
            }
        }
        for mode in 0..2 {
            let entry = &mut self.fetch[mode][fetch_index(page)];
            if entry.tag == page {
                *entry = NO_FETCH;
            }
            self.code_pages[mode][code_page_index(page)] = 0;
        }
        if self.jumped.may_have(page >> 12) {
            self.flush_jumps();
        }
        self.executed.may_have(page >> 12)
    }

    /// Notes that a piece of a page of `size` bytes is entered.
    fn note_size(&mut self, linear: u64, size: u64) {
        if size > 4 << 20 {
            self.huge.insert(linear >> 30);
        } else if size > 4096 {
            self.large.insert(linear >> 21);
        }
    }
}

/// Index of `linear`'s page in a table.
pub fn table_index(linear: u64) -> usize {
    (linear >> 12) as usize & (TLB_ENTRIES - 1)
}

fn fetch_index(linear: u64) -> usize {
    (linear >> 12) as usize & (FETCH_ENTRIES - 1)
}

/// Index of `linear`'s page in a table of code pages.
pub const fn code_page_index(linear: u64) -> usize {
    (linear >> 12) as usize & (CODE_PAGES - 1)
}

/// All contexts of one CPU.
pub struct Mmu {
    contexts: Vec<Box<Context>>,
    current: usize,
    clock: u64,
    /// Something was forgotten that the environment's return caches may still know.
    stale: bool,
    /// Pages that were forgotten and that its slots may still have, where nothing else is stale.
    dropped: Vec<u64>,
    /// Mode bits that blocks in the jump caches were translated for ([`mode::VARIABLE`]).
    variable: u32,
    /// Nothing is entered ([`crate::stress::Stress::misses`]).
    pub forgetful: bool,
    /// Whole flushes, for the counters.
    pub flushes: u64,
    /// Slow-path fills, for the counters.
    pub fills: u64,
}

impl Default for Mmu {
    fn default() -> Self {
        Self::new()
    }
}

impl Mmu {
    /// One empty context.
    pub fn new() -> Self {
        let mut first = Context::new();
        first.valid = true;
        Self {
            contexts: vec![first],
            current: 0,
            clock: 0,
            stale: true,
            dropped: Vec::new(),
            variable: 0,
            forgetful: false,
            flushes: 0,
            fills: 0,
        }
    }

    /// Points `env` at the present context.
    pub fn publish(&self, env: &mut Env) {
        let context = &*self.contexts[self.current];
        env.context = std::ptr::from_ref(context) as u64;
        env.walk.first_entry = (self.current as u64) << 16 | 1;
        env.walk.used = (&raw const context.used) as u64;
        env.walk.large = (&raw const context.large) as u64;
        env.walk.huge = (&raw const context.huge) as u64;
    }

    /// Before generated code runs on: empties what it has in the environment if that may be out of date.
    pub fn settle(&mut self, env: &mut Env, ram: &Ram) {
        if std::mem::take(&mut self.stale) {
            // Generated code walks to enter what it finds.
            env.walk.root = if self.forgetful { 0 } else { walk::root(env, ram).unwrap_or(0) };
            env.forget_returns();
            env.forget_slots();
        } else {
            for &page in &self.dropped {
                env.forget_slots_of(page);
            }
        }
        self.dropped.clear();
    }

    /// Blocks are now looked for in mode `bits`.
    pub fn follow_mode(&mut self, bits: u32) {
        let variable = bits & mode::VARIABLE;
        if variable != self.variable {
            self.variable = variable;
            self.flush_all_jumps();
        }
    }

    fn current(&mut self) -> &mut Context {
        &mut self.contexts[self.current]
    }

    /// The windows of the present context.
    pub fn windows(&mut self) -> &mut Windowed {
        &mut self.current().windows
    }

    /// The windows of all contexts.
    pub fn all_windows(&mut self) -> impl Iterator<Item = &mut Windowed> {
        self.contexts.iter_mut().map(|context| &mut context.windows)
    }

    /// Forgets every cached jump of the present context.
    pub fn flush_jumps(&mut self) {
        self.stale = true;
        self.current().flush_jumps();
    }

    /// Number of the present context.
    pub fn context_number(&self) -> usize {
        self.current
    }

    /// The entry for `linear`.
    pub fn lookup(&self, mode: usize, write: bool, linear: u64) -> Option<u64> {
        let entry = &self.contexts[self.current].tables[mode][usize::from(write)][table_index(linear)];
        (entry.tag == linear & !0xfff).then_some(entry.host)
    }

    /// Notes that a write entry for `linear` is going to map RAM page `page`; before the page's code mark is looked at.
    pub fn note_write(&self, notes: &WriteNotes, mode: usize, linear: u64, page: crate::ram::RamPage) {
        let (number, index) = (self.current as u32, table_index(linear) as u32);
        notes.note(page.index, (number << 16 | (mode as u32) << 12 | index) + 1);
    }

    /// Enters a translation. `size`: bytes of the page that the guest's tables map. For stores, after
    /// [`Mmu::note_write`].
    pub fn insert(&mut self, mode: usize, write: bool, linear: u64, page: crate::ram::RamPage, size: u64) {
        if self.forgetful {
            return;
        }
        let index = table_index(linear);
        let context = self.current();
        let table = &context.tables[mode][usize::from(write)];
        context.used[mode][usize::from(write)].set(table, index);
        context.note_size(linear, size);
        context.tables[mode][usize::from(write)][index] = TlbEntry { tag: linear & !0xfff, host: page.host };
    }

    /// Removes every write entry for RAM page `page`: code is going to be translated from it.
    pub fn revoke_write(&mut self, notes: &WriteNotes, page: crate::ram::RamPage) {
        let entries = notes.take(page.index);
        // Slots are filled from entries.
        self.stale |= entries != 0;
        match entries {
            0 => {}
            SEVERAL => {
                for context in &mut self.contexts {
                    for mode in 0..TLB_MODES {
                        if context.used[mode][1].any() {
                            for entry in
                                context.tables[mode][1].iter_mut().filter(|entry| entry.host == page.host)
                            {
                                *entry = EMPTY;
                            }
                        }
                    }
                }
            }
            noted => {
                let noted = noted - 1;
                let context = &mut self.contexts[(noted >> 16) as usize];
                let entry = &mut context.tables[(noted >> 12 & 0xf) as usize][1][(noted & 0xfff) as usize];
                if entry.host == page.host {
                    *entry = EMPTY;
                }
            }
        }
    }

    /// The fetch entry for `linear` at this privilege.
    pub fn lookup_fetch(&self, user: bool, linear: u64) -> Option<crate::ram::RamPage> {
        let entry = &self.contexts[self.current].fetch[usize::from(user)][fetch_index(linear)];
        (entry.tag == linear & !0xfff).then_some(entry.page)
    }

    /// Enters a page that code may be fetched from.
    pub fn insert_fetch(&mut self, user: bool, linear: u64, page: crate::ram::RamPage, size: u64) {
        let context = self.current();
        let index = fetch_index(linear);
        context.fetch_used[usize::from(user)].set(&context.fetch[usize::from(user)], index);
        context.note_size(linear, size);
        context.fetch[usize::from(user)][index] = FetchEntry { tag: linear & !0xfff, page };
    }

    /// Enters a block into the jump caches of `class`. One that `takes_flags` is kept out of the first if there is a second.
    pub fn insert_jump(&mut self, pc: u64, class: usize, code: u64, takes_flags: bool) {
        let context = self.current();
        let index = jump_index(pc);
        context.jumps_used[class].set(&context.jumps[class], index);
        context.jumped.insert(pc >> 12);
        context.executed.insert(pc >> 12);
        let has_far = class < mode::FAR_CLASSES;
        if !has_far || !takes_flags {
            context.jumps[class][index] = JumpEntry { tag: pc, code };
        } else if context.jumps[class][index].tag == pc {
            context.jumps[class][index] = NO_JUMPS[index];
        }
        if has_far {
            let index = far_jump_index(pc);
            context.far_jumps_used[class].set(&context.far_jumps[class], index);
            let code = if takes_flags { code | TAKES_FLAGS } else { code };
            context.far_jumps[class][index] = JumpEntry { tag: pc, code };
        }
    }

    /// Enters the page of `linear`, from which code may be fetched now, with the number of its mapping.
    pub fn insert_code_page(&mut self, user: bool, linear: u64, number: u32) {
        let context = self.current();
        let index = code_page_index(linear);
        context.code_pages_used[usize::from(user)].set(&context.code_pages[usize::from(user)], index);
        context.code_pages[usize::from(user)][index] = number;
    }

    /// Forgets the block at `pc` in every context.
    pub fn forget_jump(&mut self, pc: u64, class: usize) {
        let index = jump_index(pc);
        for context in &mut self.contexts {
            let entry = &mut context.jumps[class][index];
            if entry.tag == pc {
                *entry = NO_JUMPS[index];
            }
            if class < mode::FAR_CLASSES {
                let index = far_jump_index(pc);
                let entry = &mut context.far_jumps[class][index];
                if entry.tag == pc {
                    *entry = no_far_jump(index);
                }
            }
        }
    }

    /// Forgets every cached jump in every context: blocks were freed, or mean something else.
    pub fn flush_all_jumps(&mut self) {
        self.stale = true;
        for context in &mut self.contexts {
            context.flush_jumps();
        }
    }

    /// Forgets everything, global pages included, of every PCID.
    pub fn flush_all(&mut self) {
        self.flushes += 1;
        self.stale = true;
        tracing::trace!(target: "mmu", "all address spaces flushed");
        for context in &mut self.contexts {
            context.flush();
        }
    }

    /// Forgets the present address space. Dropping global pages too is allowed (SDM vol. 3A, *Invalidation of TLBs*).
    pub fn flush_current(&mut self) {
        self.flushes += 1;
        self.stale = true;
        self.current().flush();
    }

    /// Forgets the address space of `pcid`.
    pub fn flush_pcid(&mut self, pcid: u16) {
        self.flushes += 1;
        self.stale = true;
        for context in self.contexts.iter_mut().filter(|context| context.pcid == pcid) {
            context.flush();
        }
    }

    /// INVLPG: forgets the page at `linear` of the present PCID, and global ones of all.
    pub fn flush_page(&mut self, linear: u64) {
        tracing::trace!(target: "mmu", "page {linear:#x} flushed");
        // Which entries are global is not recorded; supervisor pages of other PCIDs are taken to be.
        let current = self.current;
        for (index, context) in self.contexts.iter_mut().enumerate() {
            if index == current {
                self.stale |= context.flush_page(linear);
            } else if linear >> 63 != 0 {
                context.flush_page(linear);
            }
        }
        self.stale |= self.dropped.len() >= MAX_DROPPED;
        if !self.stale {
            self.dropped.push(linear & !0xfff);
        }
    }

    /// INVPCID type 0: forgets the page at `linear` of `pcid`, not global ones.
    pub fn flush_page_of(&mut self, pcid: u16, linear: u64) {
        self.stale = true;
        for context in self.contexts.iter_mut().filter(|context| context.pcid == pcid) {
            context.flush_page(linear);
        }
    }

    /// MOV CR3: makes the address space of `value` the present one. `env.cr3` is the caller's to set.
    pub fn switch_to(&mut self, env: &mut Env, value: u64) {
        self.clock += 1;
        self.stale = true;
        tracing::trace!(target: "mmu", "address space {value:#x}");
        if env.cr4 & cr::CR4_PCIDE == 0 {
            self.flush_current();
            return;
        }
        let pcid = (value & 0xfff) as u16;
        let keep = value >> 63 != 0;
        let slot = match self.contexts.iter().position(|context| context.valid && context.pcid == pcid) {
            Some(slot) => slot,
            None => self.recycle(),
        };
        self.current = slot;
        let now = self.clock;
        let context = self.current();
        if !(context.valid && context.pcid == pcid && keep) {
            context.flush();
        }
        context.pcid = pcid;
        context.valid = true;
        context.last_use = now;
        self.publish(env);
    }

    /// A context for a new PCID: a fresh one, or the least recently used.
    fn recycle(&mut self) -> usize {
        if self.contexts.len() < CONTEXTS {
            self.contexts.push(Context::new());
            return self.contexts.len() - 1;
        }
        let oldest = (0..self.contexts.len()).min_by_key(|&slot| self.contexts[slot].last_use).unwrap_or(0);
        self.contexts[oldest].flush();
        self.contexts[oldest].valid = false;
        oldest
    }

    /// CR4.PCIDE changed: PCID 0 is the only address space.
    pub fn reset_contexts(&mut self, env: &mut Env) {
        self.flush_all();
        for context in &mut self.contexts {
            context.valid = false;
        }
        self.current = 0;
        self.contexts[0].valid = true;
        self.contexts[0].pcid = (env.cr3 & 0xfff) as u16 * u16::from(env.cr4 & cr::CR4_PCIDE != 0);
        self.publish(env);
    }
}
