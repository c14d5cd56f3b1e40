//! When user programs get windows ([`crate::windows`]), and what opens and closes them.
//!
//! A program gets them when timer ticks have found it running a few times: by then it is worth the pages that have to be mapped
//! and the code that has to be translated once more. They are its address space's, on every CPU that runs a thread of it, until
//! another one of the CPU gets some. Where another program's windows lie where this one's would, its own are elsewhere, for which
//! it has code that adds how far; where there is no room for that either, it goes without for as long as those are used. They
//! follow the guest's TLB: what is flushed is looked up again, and closed if it has changed, before user code runs on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cpu::Cpu;
use crate::engine::Engine;
use crate::exception::Exception;
use crate::exec::vcpu::Vcpu;
use crate::mmu::walk::{self, Need, Page};
use crate::mmu::windowed::Flushed;
use crate::ram::PAGE;
use crate::windows::{self, Claim, Opening, Tenure};

/// Ticks that find a program running before it gets windows.
const TICKS: u32 = 2;
/// Under stress, ticks that find a program running before another one loses its windows.
const STRESSED_TICKS: u32 = 8;
/// Accesses that windows are of no use for before the program loses them.
const MAX_REFUSED: u32 = 2000;
/// Pages mapped at once at most, where the guest has several that follow each other in both spaces.
const AROUND: u64 = 16;
/// Faults in a row that the window for an access does not end before the access is made without. Several CPUs may close it.
const MAX_REPEATS: u32 = 3;
/// The same, where there is no window yet: its page is another one each time.
const MAX_CHANGES: u32 = 1000;
/// A large page.
const LARGE: u64 = 2 << 20;
/// Windows whose program no tick has found running for so long are closed where another program wants some in their place.
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

impl Cpu {
    /// The machine, among those of this process.
    fn machine(&self) -> usize {
        Arc::as_ptr(&self.ram).addr()
    }

    /// The present address space has windows from now on; `shifted`: its code expects some elsewhere than at its own addresses. It
    /// does too where another program has windows for where the code is: a program's data is not far from there.
    pub(super) fn open_windows(&mut self, shifted: bool) {
        self.close_windows();
        let Some(root) = walk::root(&self.env, &self.ram) else { return };
        let shifted = shifted || windows::is_taken(root, self.env.rip);
        let (tenure, joined) = windows::join(root, self.machine(), self.index);
        self.mmu.windows().opened(tenure, root, joined, shifted);
        self.mmu.flush_jumps();
        tracing::debug!(target: "mmu", root, joined, shifted, "windows opened");
    }

    /// Closes the windows of another program if it was not seen running for `time`. Whether they are.
    fn end_unused_windows(&mut self, tenure: Tenure, time: Duration) -> bool {
        if !windows::is_unused(tenure, time) {
            return false;
        }
        let Some(members) = windows::members(tenure, self.machine()) else { return false };
        self.close_windows_of(tenure, members.cpus);
        windows::end(tenure, members)
    }

    /// No address space of this CPU has windows any more.
    pub fn close_windows(&mut self) {
        self.close_windows_if(|_| true);
    }

    /// As [`Cpu::close_windows`], of tenures that `which` names.
    pub(crate) fn close_windows_if(&mut self, which: impl Fn(Tenure) -> bool) {
        let mapping = Arc::clone(self.env.mapping());
        let mut changed = false;
        for windows in self.mmu.all_windows() {
            if windows.tenure().is_some_and(&which)
                && let Some((tenure, regions)) = windows.closed()
            {
                regions.into_iter().for_each(|region| mapping.leave_region(region));
                windows::leave(tenure, self.index);
                changed = true;
            }
        }
        if changed {
            tracing::debug!(target: "mmu", windows = windows::count(), "windows closed");
            self.mmu.flush_all_jumps();
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
        let Some(tenure) = self.windows_here() else { return self.close_windows() };
        let begun = Instant::now();
        let closed = match self.mmu.windows().take_flushed() {
            Flushed::Pages(pages) => pages.into_iter().filter(|&page| windows::close(tenure, page)).count(),
            Flushed::All => {
                let (env, ram) = (&self.env, &self.ram);
                windows::retain(tenure, |at, host, writable| {
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

    /// Whose the windows of the present address space are, if it has some.
    fn windows_here(&mut self) -> Option<Tenure> {
        let root = walk::root(&self.env, &self.ram);
        let windows = self.mmu.windows();
        windows.tenure().filter(|_| root == Some(windows.root))
    }

    /// Opens a window for an access to the process's `address`, and for what lies around it if that is as simple.
    fn open_window(&mut self, address: u64, write: bool) -> Opened {
        let Some(tenure) = self.windows_here() else { return Opened::Refused };
        let Some(offset) = windows::offset_at(tenure, address) else { return Opened::Refused };
        let address = address.wrapping_sub(offset);
        if address >> 47 != 0 {
            // Below the first region.
            return Opened::Refused;
        }
        let page = address & !(PAGE - 1);
        let need = Need { write, user: true, fetch: false, smap: false };
        let found = match walk::walk(&self.env, &self.ram, address, need) {
            Ok(found) => found,
            Err(exception) => return Opened::Fault(exception),
        };
        let Some(ram_page) = self.ram.page(found.gpa) else { return Opened::Refused };
        if write && (!found.writable || self.ram.is_code(ram_page.index)) {
            return Opened::Refused;
        }
        let opening = self.open_large(tenure, page, offset, &found);
        let opening = opening.unwrap_or_else(|| self.open_alike(tenure, page, offset, &found));
        match opening {
            Opening::Open { writable } if writable || !write => Opened::Done,
            Opening::Changed => Opened::Done,
            _ => Opened::Refused,
        }
    }

    /// Opens a window for all of the large page that `page`, which is `found`, is part of, if it is one in RAM too and has no code.
    fn open_large(&self, tenure: Tenure, page: u64, offset: u64, found: &Page) -> Option<Opening> {
        let large = found.size.min(LARGE);
        let (start, gpa) = (page & !(large - 1), found.gpa & !(large - 1));
        let (first, (backing, left)) = (self.ram.page(gpa)?, self.ram.backing(gpa)?);
        let pages = large / PAGE;
        let no_code = || (first.index..first.index + pages as u32).all(|index| !self.ram.is_code(index));
        if large == PAGE || left < pages || !no_code() {
            return None;
        }
        let rights = || self.is_still(page, found).then(|| found.writable && no_code());
        Some(windows::open(tenure, start + offset, backing, pages, rights))
    }

    /// Opens windows for the page at `page`, which is `found`, and for those behind it that follow each other in RAM, too, and have the
    /// same rights, some [`AROUND`] at most.
    fn open_alike(&self, tenure: Tenure, page: u64, offset: u64, found: &Page) -> Opening {
        let (Some(first), Some((backing, left))) = (self.ram.page(found.gpa), self.ram.backing(found.gpa))
        else {
            return Opening::Refused;
        };
        let has_code = |number: u64| self.ram.is_code(first.index + number as u32);
        let nth = |number: u64| Page { gpa: found.gpa + number * PAGE, ..*found };
        let first_has_code = has_code(0);
        let most = left.min(AROUND).min((LARGE - page % LARGE) / PAGE);
        let alike = |&number: &u64| {
            let at = page + number * PAGE;
            self.is_still(at, &nth(number))
                && has_code(number) == first_has_code
                && windows::shown(tenure, at + offset).is_none()
        };
        let pages = 1 + (1..most).take_while(alike).count() as u64;
        let rights = || {
            let still = (0..pages).all(|number| self.is_still(page + number * PAGE, &nth(number)));
            still.then(|| found.writable && !(0..pages).any(has_code))
        };
        windows::open(tenure, page + offset, backing, pages, rights)
    }

    /// Whether the page at `page` is `found` for the program, or still is. Asked under the windows' lock, no window shows what was
    /// flushed meanwhile, here or by a CPU that shares them.
    fn is_still(&self, page: u64, found: &Page) -> bool {
        walk::accessed(&self.env, &self.ram, page) == Some((found.gpa, found.writable))
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
        // Under stress somebody loses them at every few ticks.
        let unused = if self.stress.windows { Duration::ZERO } else { UNUSED };
        let windows = self.cpu.mmu.windows();
        if let Some(tenure) = windows.tenure() {
            windows::still_used(tenure);
            windows.ticks += 1;
            if self.stress.windows
                && windows.ticks.is_multiple_of(STRESSED_TICKS)
                && let Some(other) = windows::another(self.cpu.machine(), tenure)
            {
                self.cpu.end_unused_windows(other, unused);
            }
            return;
        }
        windows.is_of(root);
        windows.ticks += 1;
        let enough = if self.stress.windows { 1 } else { TICKS };
        if windows.ticks < enough || windows.denied {
            return;
        }
        let in_the_way = windows.in_the_way;
        if in_the_way.is_none_or(|other| self.cpu.end_unused_windows(other, unused)) {
            self.cpu.open_windows(self.stress.shifts);
        }
    }

    /// A page fault of the host at `pc` in generated code: of a look at a region, or of an access, at an address, a write
    /// or not. True: it can be made again.
    pub fn window_fault(&mut self, pc: u64, (address, write): (u64, bool), look: bool) -> bool {
        if !self.windows_allowed || self.cpu.env.cpl() != 3 {
            return false;
        }
        let Some(tenure) = self.cpu.windows_here() else { return false };
        if let Some(table) = self.cpu.env.mapping().region_table()
            && table.contains(&address)
        {
            let region = (address - table.start) >> 12 << windows::REGION_BITS;
            return self.enter_region(tenure, region);
        }
        // A look beside the table is at what is no address of the guest's, and what is looked up may be none that ends in page 0. Where
        // no window can be, the instruction says what it wants.
        if look || address < PAGE || windows::offset_at(tenure, address).is_none() {
            return false;
        }
        let again = (pc, address) == self.last_window;
        self.last_window = (pc, address);
        self.window_repeats = if again { self.window_repeats + 1 } else { 0 };
        let shown = windows::shown(tenure, address & !(PAGE - 1));
        let as_wanted = shown.is_some_and(|(_, writable)| writable || !write);
        if self.window_repeats > if as_wanted { MAX_REPEATS } else { MAX_CHANGES } {
            return false;
        }
        match self.cpu.open_window(address, write) {
            Opened::Done => return true,
            Opened::Fault(exception) => {
                self.window_repeats = 0;
                self.window_exception = Some(exception);
                self.window_wanted = Some((address, write));
            }
            // The instruction is executed without; then the program loses them.
            Opened::Refused if windows::are_exhausted(tenure) => {
                self.cpu.mmu.windows().refused = MAX_REFUSED;
            }
            Opened::Refused => {}
        }
        false
    }

    /// Has generated code reach windows in the region that begins at `region`. False: there can be none.
    fn enter_region(&mut self, tenure: Tenure, region: u64) -> bool {
        if self.cpu.mmu.windows().regions.contains(&region) {
            return false;
        }
        let claim = windows::claim(tenure, region, self.stress.shifts.into());
        let shifted = self.cpu.mmu.windows().shifted;
        let entered = match claim {
            Claim::Granted { shift } if shift == 0 || shifted => {
                self.cpu.env.mapping().enter_region(region, shift)
            }
            _ => false,
        };
        let windows = self.cpu.mmu.windows();
        match claim {
            Claim::Granted { .. } if entered => windows.regions.push(region),
            // The code that runs takes the program's addresses for the windows'.
            Claim::Granted { .. } if !shifted => windows.wants_shift = true,
            Claim::Taken(other) => windows.in_the_way = Some(other),
            _ if region >> 47 == 0 => windows.refused += UNCLAIMED,
            _ => {}
        }
        entered
    }

    /// The access that had no page is going to be made again: a window for it now spares a host fault then.
    pub(super) fn open_wanted_window(&mut self) {
        if let Some((address, write)) = self.window_wanted.take() {
            self.cpu.open_window(address, write);
        }
    }

    /// The access of the code at `pc` is made without a window: from now on it always is.
    pub(super) fn window_refused(&mut self, pc: u64) {
        if self.cpu.mmu.windows().wants_shift {
            return self.cpu.open_windows(true);
        }
        if self.cpu.mmu.windows().in_the_way.is_some() {
            // Others who have the same code do have windows there.
            return self.cpu.close_windows();
        }
        let mut code = self.engine.code();
        if let Some(id) = code.at(pc)
            && let Some(mark) = code.mark_at(id, pc)
        {
            let gone = code.use_table(id, usize::from(mark.insn));
            drop(code);
            if let Some(gone) = gone {
                self.cpu.forget_block_here(&gone);
            }
        }
        let windows = self.cpu.mmu.windows();
        windows.refused += 1;
        if windows.refused > MAX_REFUSED && windows.is_open() {
            windows.denied = true;
            self.cpu.close_windows();
        }
    }
}
