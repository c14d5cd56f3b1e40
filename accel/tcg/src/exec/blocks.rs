//! Finding the block to run next.

use std::sync::{Arc, MutexGuard};

use crate::code::cache::TbCache;
use crate::code::tb::{TbId, TbKey, mode};
use crate::engine::Engine;
use crate::env::{Env, flag};
use crate::exception::Exception;
use crate::exec::trace;
use crate::exec::vcpu::Vcpu;
use crate::mmu::Mmu;
use crate::mmu::walk::cr;
use crate::operand::is_canonical;
use crate::ram::{PAGE, RamPage, load};
use crate::translate::block::{MAX_INSN_BYTES, window};
use crate::translate::generator::Job;
use crate::translate::liveness::{Peek, WINDOW};

const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXSAVE: u64 = 1 << 18;
const XCR0_AVX: u64 = 7;
const XCR0_AVX512: u64 = 0xe7;

/// The mode bits of the CPU's present state.
pub fn mode_bits(env: &Env) -> u32 {
    let cpl = u32::from(env.cpl());
    let mut bits = cpl;
    let mut set = |condition: bool, bit: u32| bits |= if condition { bit } else { 0 };
    let long = env.is_64bit();
    set(long, mode::LONG);
    set(!long && env.seg[1].big(), mode::CODE32);
    set(!long && env.seg[2].big(), mode::STACK32);
    set(cpl != 3 && (env.ac != 0 || env.cr4 & cr::CR4_SMAP == 0), mode::SMAP_OFF);
    set(cpl == 3 && env.ac != 0 && env.cr0 & cr::CR0_AM != 0, mode::ALIGN);
    if !long {
        let flat = |index: usize| {
            let segment = &env.seg[index];
            segment.base == 0
                && segment.limit == u32::MAX
                && (env.is_real_or_vm86()
                    || segment.usable() && !segment.is_code() && segment.bit_rw() && !segment.expand_down())
        };
        set(flat(0) && flat(2) && flat(3), mode::FLAT);
    }
    set(long || env.seg[1].base == 0, mode::FLAT_CODE);
    set(env.cr0 & CR0_TS != 0, mode::TS);
    set(env.cr0 & CR0_EM != 0, mode::EM);
    set(env.cr4 & CR4_OSFXSR != 0, mode::SSE);
    let xcr0 = if env.cr4 & CR4_OSXSAVE != 0 { env.xcr0 } else { 0 };
    set(xcr0 & XCR0_AVX == XCR0_AVX, mode::AVX);
    set(xcr0 & XCR0_AVX512 == XCR0_AVX512, mode::AVX512);
    set(env.is_real_or_vm86(), mode::REAL);
    bits
}

/// Why there is no block to go on with.
#[derive(Debug)]
pub enum Blocked {
    /// Fetching the instruction raises this.
    Exception(Exception),
    /// A region of code memory is to be reclaimed, and other CPUs may be in it.
    Full,
}

impl From<Exception> for Blocked {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Times that a block is translated without the lock at most.
const IN_VAIN: u32 = 3;

/// Room for a page and the first bytes of the one that follows it.
pub type PageCopy = Box<[u8; PAGE as usize + MAX_INSN_BYTES]>;

/// The code around a block, as far as it has been fetched from.
struct Fetched<'a> {
    mmu: &'a Mmu,
    key: TbKey,
    page: RamPage,
}

impl Peek for Fetched<'_> {
    fn peek(&self, rip: u64, into: &mut [u8; WINDOW]) -> usize {
        let page = if mode::class(self.key.mode).is_some() && rip / PAGE != self.key.rip / PAGE {
            self.mmu.lookup_fetch(self.key.mode & mode::CPL == 3, rip)
        } else {
            Some(self.page)
        };
        let Some(page) = page else { return 0 };
        // By distance: CS may have a base.
        let offset = (self.key.physical & (PAGE - 1)).wrapping_add(rip.wrapping_sub(self.key.rip));
        if page.index == self.page.index && offset >= PAGE && mode::class(self.key.mode).is_none() {
            return 0;
        }
        let offset = offset & (PAGE - 1);
        let len = into.len().min((PAGE - offset) as usize);
        load(page.host + offset, &mut into[..len]);
        len
    }
}

impl Vcpu {
    /// The entry (flags saved) of the block at `env.rip`, translated if need be, and entered into the jump cache. `link`:
    /// the jump that led here, and [`TbCache::voided`] then. Raises what fetching the instruction
    /// raises.
    pub(super) fn find_block(
        &mut self,
        variant: u32,
        link: Option<(TbId, usize, u64)>,
    ) -> Result<u64, Blocked> {
        let rip = self.cpu.env.rip;
        let linear = if self.cpu.env.is_64bit() {
            if !is_canonical(rip) {
                self.undo_branch();
                return Err(Exception::gp(0).into());
            }
            rip
        } else {
            if rip > u64::from(self.cpu.env.seg[1].limit) {
                self.undo_branch();
                return Err(Exception::gp(0).into());
            }
            self.cpu.env.seg[1].base.wrapping_add(rip) & 0xffff_ffff
        };
        self.cpu.env.branch_from = 0;
        self.flush_if_asked();
        // Not once it is known what the block is to be like: this may close them.
        self.cpu.follow_windows_if_stale();
        let cpu = &mut self.cpu;
        if cpu.env.dr7 & 0xff != 0 {
            let hit = cpu.instruction_breakpoints(linear);
            if hit != 0 && cpu.env.sysflags & flag::RF == 0 {
                return Err(Exception::debug(hit).into());
            }
        }
        cpu.env.sysflags &= !flag::RF;
        let page = cpu.fetch_page(linear)?;
        let mut bits = mode_bits(&cpu.env) | variant;
        let may_be_windowed = variant == 0 && mode::class(bits) == Some(mode::USER64);
        // With several CPUs, whose threads take turns at the host's mappings, the first tick is early enough.
        let at_once = self.stress.windows && self.windows_allowed && !self.engine.peers.several();
        if may_be_windowed && at_once && !cpu.mmu.windows().is_open() {
            cpu.open_windows(self.stress.shifts);
        }
        if may_be_windowed && cpu.mmu.windows().is_open() {
            bits |= mode::WINDOWED | if cpu.mmu.windows().shifted { mode::SHIFTED } else { 0 };
            self.open_wanted_window();
        }
        let cpu = &mut self.cpu;
        let offset = linear & (PAGE - 1);
        let mut first_key = TbKey::new(u64::from(page.index) << 12 | offset, rip, bits);
        cpu.mmu.follow_mode(bits);
        let (id, mut code) = loop {
            let mut key = first_key;
            let found = self.engine.code().find(&key);
            let id = match found {
                Some(id) => id,
                None => match self.translate(key, page, None)? {
                    Some(id) => id,
                    None => {
                        let cpu = &mut self.cpu;
                        let next = cpu.wrap((linear & !(PAGE - 1)).wrapping_add(PAGE));
                        let second = cpu.fetch_page(next)?;
                        key = key.crossing_into(second.index);
                        self.translate(key, page, Some(second))?
                            .expect("no instruction is longer than these bytes")
                    }
                },
            };
            if bits & mode::WINDOWED != 0 && !self.cpu.mmu.windows().is_open() {
                // Another program's windows come to lie there: this CPU was told so while it waited.
                bits &= !mode::OF_SPACE;
                first_key.mode = bits;
                continue;
            }
            let code = self.engine.code();
            // Another CPU may have written to it meanwhile.
            if code.block(id).valid {
                break (id, code);
            }
        };
        if let Some((from, slot, voided)) = link
            && voided == code.voided()
            && self.chaining
        {
            code.link(from, slot, id);
        }
        trace::entered(&self.cpu, &code, id);
        code.cached_by(id, self.cpu.index);
        let (block, entry) = (code.block(id), code.entry_saved(id));
        let takes_flags = block.entries.take_flags();
        if let Some(class) = mode::class(bits) {
            // Blocks on two pages look themselves whether they are there.
            let user = bits & mode::CPL == 3;
            self.cpu.mmu.insert_code_page(user, rip, block.page_number);
            if let Some(number) = code.second_number(id) {
                self.cpu.mmu.insert_code_page(user, rip.wrapping_add(PAGE), number);
            }
            if self.chaining && bits & mode::UNGROUPED == 0 {
                self.cpu.mmu.insert_jump(rip, class, entry, takes_flags);
            }
        }
        Ok(entry)
    }

    /// [`crate::stress::Stress::flushes`].
    pub(super) fn flush_if_asked(&mut self) {
        if self.stress.flushes {
            self.cpu.mmu.flush_all();
        }
    }

    /// The indirect branch or return that led to `env.rip` faults on its target: back to before it.
    fn undo_branch(&mut self) {
        let site = std::mem::take(&mut self.cpu.env.branch_from);
        if site == 0 {
            return;
        }
        let code = self.engine.code();
        let id = site as TbId - 1;
        self.cpu.env.rip = code.rip_of(id, code.count(id) as usize - 1);
        self.cpu.env.gpr[4] = self.cpu.env.gpr[4].wrapping_sub(u64::from(code.popped(id)));
    }

    /// The cache, locked, with `pages` pinned and ready to be translated from: every store to them invalidates what is made of
    /// them, from the time that the lock is held.
    fn protect<'a>(&mut self, engine: &'a Engine, pages: &[RamPage]) -> MutexGuard<'a, TbCache> {
        let (ram, cpu) = (&self.cpu.ram, self.cpu.index);
        let mut cache = engine.code();
        // All of them: an invalidation unmarks pages that are neither pinned nor have a block.
        let mut ready = true;
        for page in pages {
            ready &= cache.pin(cpu, ram, page.index);
        }
        if ready {
            return cache;
        }
        drop(cache);
        for &page in pages {
            self.cpu.revoke_write(page);
        }
        engine.code()
    }

    /// Goes on in another region of code memory if the present one is full.
    pub(super) fn make_room(&mut self, cache: &mut TbCache) -> Result<(), Blocked> {
        if cache.is_closed(self.cpu.index) {
            let victim = cache.victim();
            if victim.is_some() && !self.is_alone() {
                return Err(Blocked::Full);
            }
            let engine = Arc::clone(&self.engine);
            engine.go_on_in(self.cpu.index, victim, cache, &self.cpu.ram);
            self.follow_voided();
        }
        Ok(())
    }

    /// The block for `key`, from `page` and, where it runs over into another one, from `second`: translated, if no other CPU
    /// has done it. `None`: the second page is needed. Other CPUs have the cache meanwhile.
    fn translate(
        &mut self,
        key: TbKey,
        page: RamPage,
        second: Option<RamPage>,
    ) -> Result<Option<TbId>, Blocked> {
        let engine = Arc::clone(&self.engine);
        let several = engine.peers.several();
        let pages = [page, second.unwrap_or(page)];
        let pages = &pages[..1 + usize::from(second.is_some())];
        let (cpu, end, virtual_page) = (self.cpu.index, PAGE as usize, key.rip / PAGE);
        let window = window((key.physical & (PAGE - 1)) as usize);
        let mut in_vain = 0;
        let mut cache = self.protect(&engine, pages);
        let result = loop {
            // It was looked for by its first page alone, and while others may have had the lock.
            if (second.is_some() || several)
                && let Some(id) = cache.find(&key)
            {
                break Ok(Some(id));
            }
            if let Err(full) = self.make_room(&mut cache) {
                break Err(full);
            }
            cache.read(cpu, &self.cpu.ram);
            load(page.host + window.start as u64, &mut self.copy[window.clone()]);
            let mut len = end;
            if let Some(second) = second {
                len += MAX_INSN_BYTES;
                load(second.host, &mut self.copy[end..len]);
            }
            let job = Job {
                key,
                mappings: (
                    cache.mapping_number(virtual_page, page.index),
                    second.map(|second| cache.mapping_number(virtual_page.wrapping_add(1), second.index)),
                ),
                bytes: &self.copy[..len],
                peek: &Fetched { mmu: &self.cpu.mmu, key, page },
                berth: cache.berth(cpu),
                hashed: if self.stress.hashed { u64::MAX } else { cache.hashed_sites(&key) },
                extended: !self.stress.short,
                grouped: cache.groups_pay(&key),
                straddling: self.stress.ungrouped || cache.straddles(&key),
            };
            // With the lock where nobody waits for it, and where others write to the page all the time.
            let keeps = !several || in_vain == IN_VAIN;
            let made = if keeps {
                self.translator.translate(&job)
            } else {
                drop(cache);
                let made = self.translator.translate(&job);
                cache = engine.code();
                made
            };
            let Some(block) = made else { break Ok(None) };
            let code = self.translator.code();
            if cache.is_stale(cpu) {
                in_vain += 1;
            } else if !cache.has_room(cpu, code.len()) {
                // To be made once more, for where there is room: it has addresses of where it is.
                cache.close(cpu);
            } else if keeps || cache.find(&key).is_none() {
                let id = cache.insert(cpu, block, self.translator.made());
                trace::translated(&self.translator, cache.code(id));
                break Ok(Some(id));
            }
            self.translator.discard();
        };
        cache.unpin(cpu, &self.cpu.ram);
        result
    }
}
