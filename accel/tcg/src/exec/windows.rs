//! When user programs get windows ([`crate::windows`]), and what opens and closes them.
//!
//! A program gets them when timer ticks have found it running a few times: by then it is worth the pages that have to be mapped
//! and the code that has to be translated once more. They are its address space's until another one of the same CPU gets them.
//! They follow the guest's TLB: what is flushed is looked up again, and closed if it has changed, before user code runs on.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::engine::Engine;
use crate::env::EnvMapping;
use crate::exception::Exception;
use crate::exec::vcpu::Vcpu;
use crate::mmu::soft_tlb::CONTEXTS;
use crate::mmu::walk::{self, Need, Page};
use crate::mmu::windowed::Flushed;
use crate::ram::PAGE;
use crate::windows::{self, Owner};

/// Ticks that find a program running before it gets windows.
const TICKS: u32 = 2;
/// Accesses that windows are of no use for before the program loses them.
const MAX_REFUSED: u32 = 2000;
/// Pages mapped at once at most, where the guest has several that follow each other in both spaces.
const AROUND: u64 = 16;
/// A large page.
const LARGE: u64 = 2 << 20;
/// Windows whose program no tick has found running for so long are another CPU's for the asking.
const UNUSED: Duration = Duration::from_millis(50);
/// What it costs to open a window again that a flush has closed.
const REOPENED: Duration = Duration::from_micros(15);
/// What a region that cannot be claimed counts for: a program that lies there has no use for windows.
const UNCLAIMED: u32 = MAX_REFUSED / 8;

/// Whether user programs may have windows at all.
pub fn windows_allowed(cpu: &Cpu, engine: &Engine) -> bool {
    let stress = engine.stress;
    cpu.icount.is_none()
        && cpu.ram.is_file()
        && cpu.env.mapping().region_table().is_some()
        && std::arch::is_x86_feature_detected!("bmi2")
        && !(stress.misses || stress.flushes || stress.stepped || stress.hashed)
}

/// The address spaces of the CPU with this environment, as owners of windows.
pub fn owners(mapping: &EnvMapping) -> Range<Owner> {
    // No two CPUs have their environments at one place.
    let first = mapping.block() as Owner;
    first..first + CONTEXTS as Owner
}

impl Cpu {
    fn owner(&self) -> Owner {
        owners(self.env.mapping()).start + self.mmu.context_number() as Owner
    }

    /// The present address space gets all windows, if no other CPU has them, or has not used them for the time `unused`.
    pub(super) fn open_windows(&mut self, unused: Option<Duration>) -> bool {
        self.close_windows();
        let Some(root) = walk::root(&self.env, &self.ram) else { return false };
        if !windows::take(self.owner()) && !unused.is_some_and(|time| self.take_unused_windows(time)) {
            return false;
        }
        let windows = self.mmu.windows();
        windows.opened(root);
        windows.take_flushed();
        self.mmu.flush_jumps();
        tracing::debug!(target: "mmu", root, "windows opened");
        true
    }

    /// Takes the windows from another CPU of this machine that has not used them for `time`.
    fn take_unused_windows(&mut self, time: Duration) -> bool {
        let Some(unused) = windows::unused(time) else { return false };
        self.close_windows_of(unused.owner) && windows::seize(unused, self.owner())
    }

    /// No address space of this CPU has windows any more.
    pub fn close_windows(&mut self) {
        let mut changed = false;
        for windows in self.mmu.all_windows() {
            if std::mem::take(&mut windows.open) {
                changed = true;
                windows.take_flushed();
                windows.ticks = 0;
            }
        }
        if changed {
            tracing::debug!(target: "mmu", windows = windows::count(), "windows closed");
            self.mmu.flush_all_jumps();
            windows::give_up(owners(self.env.mapping()));
        }
    }

    /// Has the windows of the present address space be as its tables are, where it was flushed.
    #[inline]
    pub(crate) fn follow_windows_if_stale(&mut self) {
        if self.mmu.windows().is_stale() {
            self.follow_windows();
        }
    }

    fn follow_windows(&mut self) {
        let root = walk::root(&self.env, &self.ram);
        if root != Some(self.mmu.windows().root) {
            return self.close_windows();
        }
        let begun = Instant::now();
        let closed = match self.mmu.windows().take_flushed() {
            Flushed::Pages(pages) => pages.into_iter().filter(|&page| windows::close(page)).count(),
            Flushed::All => {
                let (env, ram) = (&self.env, &self.ram);
                windows::retain(|at, host, writable| {
                    let Some((gpa, may_write)) = walk::accessed(env, ram, at) else { return false };
                    ram.page(gpa).is_some_and(|page| page.host == host) && (!writable || may_write)
                })
            }
        };
        let cost = begun.elapsed() + REOPENED * closed as u32;
        if self.mmu.windows().costs_too_much(cost) {
            self.mmu.windows().denied = true;
            self.close_windows();
        }
    }

    /// Opens a window for an access to `address`, and for what lies around it if that is as simple.
    fn open_window(&mut self, address: u64, write: bool) -> Opened {
        let page = address & !(PAGE - 1);
        let need = Need { write, user: true, fetch: false, smap: false };
        let found = match walk::walk(&self.env, &self.ram, address, need) {
            Ok(found) => found,
            Err(exception) => return Opened::Fault(exception),
        };
        let Some(ram_page) = self.ram.page(found.gpa) else { return Opened::Refused };
        let may_write = |index| found.writable && !self.ram.is_code(index);
        if write && !may_write(ram_page.index) {
            return Opened::Refused;
        }
        // All of a large page, if it is one in RAM too and has no code; else some that follow.
        let large = found.size.min(LARGE);
        let (start, gpa) = (page & !(large - 1), found.gpa & !(large - 1));
        let whole = large > PAGE
            && self.ram.page(gpa).is_some_and(|first| {
                let pages = (large / PAGE) as u32;
                self.ram.backing(gpa).is_some_and(|(_, left)| left >= u64::from(pages))
                    && (first.index..first.index + pages).all(|index| !self.ram.is_code(index))
            });
        let (start, gpa, pages) = if whole {
            (start, gpa, large / PAGE)
        } else {
            (page, found.gpa, self.pages_alike(page, &found))
        };
        let (Some((backing, _)), Some(first)) = (self.ram.backing(gpa), self.ram.page(gpa)) else {
            return Opened::Refused;
        };
        let no_code = || (first.index..first.index + pages as u32).all(may_write);
        let opened = windows::open(start, backing, pages, no_code);
        if opened && (!write || windows::shown(page).is_some_and(|(_, writable)| writable)) {
            Opened::Done
        } else {
            Opened::Refused
        }
    }

    /// How many pages, from the one at `page` on, which is `found`, follow each other in RAM, too, have the same rights and no window.
    fn pages_alike(&self, page: u64, found: &Page) -> u64 {
        let Some((_, left)) = self.ram.backing(found.gpa) else { return 1 };
        let code = |gpa| self.ram.page(gpa).is_none_or(|page| self.ram.is_code(page.index));
        let first_has_code = code(found.gpa);
        let most = left.min(AROUND).min((LARGE - page % LARGE) / PAGE);
        let alike = |&number: &u64| {
            let (at, gpa) = (page + number * PAGE, found.gpa + number * PAGE);
            walk::accessed(&self.env, &self.ram, at) == Some((gpa, found.writable))
                && code(gpa) == first_has_code
                && windows::shown(at).is_none()
        };
        1 + (1..most).take_while(alike).count() as u64
    }
}

/// What came of the wish for a window.
enum Opened {
    /// The access can be made again.
    Done,
    /// The guest's page tables do not allow it.
    Fault(Exception),
    /// No window can be of use.
    Refused,
}

impl Vcpu {
    /// An external interrupt is going to be delivered.
    pub(super) fn note_tick(&mut self) {
        if !self.windows_allowed || self.cpu.env.cpl() != 3 || self.cpu.env.walk.root == 0 {
            return;
        }
        let root = self.cpu.env.walk.root;
        let windows = self.cpu.mmu.windows();
        if windows.open {
            return windows::still_used();
        }
        windows.is_of(root);
        windows.ticks += 1;
        if windows.ticks >= TICKS && !windows.denied {
            // Under stress they change hands at every tick.
            self.cpu.open_windows(Some(if self.stress.windows { Duration::ZERO } else { UNUSED }));
        }
    }

    /// A page fault of the host at `pc` in generated code, at `address`. True: the access can be made again.
    pub fn window_fault(&mut self, pc: u64, address: u64, write: bool) -> bool {
        if !self.windows_allowed || !self.cpu.mmu.windows().open || self.cpu.env.cpl() != 3 {
            return false;
        }
        let again = (pc, address) == self.last_window;
        self.last_window = (pc, address);
        if let Some(table) = self.cpu.env.mapping().region_table()
            && table.contains(&address)
        {
            let region = (address - table.start) >> 12 << windows::REGION_BITS;
            if !again && windows::claim(region) && self.cpu.env.mapping().enter_region(region) {
                return true;
            }
            if region >> 47 == 0 {
                self.cpu.mmu.windows().refused += UNCLAIMED;
            }
            return false;
        }
        if address >> 47 != 0 || address < PAGE || again && self.is_shown(address, write) {
            return false;
        }
        match self.cpu.open_window(address, write) {
            Opened::Done => return true,
            Opened::Fault(exception) => {
                self.window_exception = Some(exception);
                self.window_wanted = Some((address, write));
            }
            // The instruction is executed without; then the program loses them.
            Opened::Refused if windows::are_exhausted() => self.cpu.mmu.windows().refused = MAX_REFUSED,
            Opened::Refused => {}
        }
        false
    }

    /// The access that had no page is going to be made again: a window for it now spares a host fault then.
    pub(super) fn open_wanted_window(&mut self) {
        if let Some((address, write)) = self.window_wanted.take() {
            self.cpu.open_window(address, write);
        }
    }

    fn is_shown(&self, address: u64, write: bool) -> bool {
        windows::shown(address & !(PAGE - 1)).is_some_and(|(_, writable)| writable || !write)
    }

    /// The access of the code at `pc` is made without a window: from now on it always is.
    pub(super) fn window_refused(&mut self, pc: u64) {
        let mut code = self.engine.code();
        if let Some(id) = code.cache.at(pc)
            && let Some(mark) = code.cache.mark_at(id, pc)
        {
            let gone = code.cache.use_table(id, usize::from(mark.insn));
            drop(code);
            if let Some(gone) = gone {
                self.cpu.forget_block_here(&gone);
            }
        }
        let windows = self.cpu.mmu.windows();
        windows.refused += 1;
        if windows.refused > MAX_REFUSED && windows.open {
            windows.denied = true;
            self.cpu.close_windows();
        }
    }
}
