//! The windows of one address space.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::ram::PAGE;
use crate::windows::{Backing, GRANULE, SHIFT_BITS, host};

/// In less time so many windows do not pay: the program goes through more memory than they can show.
const MIN_TIME: Duration = Duration::from_secs(3);

#[derive(Clone, Copy)]
struct Window {
    host: u64,
    writable: bool,
    /// How far it is from where the program has the page.
    offset: u64,
    /// The next window that shows the same page, or 0.
    next: u64,
}

/// What one address space may have of what the host allows the process.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Changes to the host's mappings, each of which may leave two mappings more.
    pub runs: usize,
    /// Pages that are shown at a time.
    pub pages: usize,
}

/// An address space that has windows.
pub struct Occupant {
    /// Tells it from others that had the same tables.
    pub number: u64,
    /// The machine that it belongs to.
    pub machine: usize,
    /// Bits of the machine's CPUs that reach its windows.
    pub members: u64,
    /// How often one came to reach them.
    pub joins: u64,
    /// When its program was last seen running.
    pub used: Instant,
    /// When it got windows, or they ran out last.
    since: Instant,
    /// By the process's addresses.
    windows: HashMap<u64, Window>,
    /// The shift of each region that the program has windows for.
    pub regions: HashMap<u64, u8>,
    /// All of them, a bit each.
    shifts: u32,
    /// The first window of each page that is shown.
    shown: HashMap<u64, u64>,
    /// Of each granule with windows: the lowest and the highest.
    extent: HashMap<u64, (u64, u64)>,
    /// Changes to the host's mappings since there were none.
    runs: usize,
}

impl Occupant {
    pub fn new(number: u64, machine: usize) -> Self {
        let now = Instant::now();
        Self {
            number,
            machine,
            members: 0,
            joins: 0,
            used: now,
            since: now,
            windows: HashMap::new(),
            regions: HashMap::new(),
            shifts: 0,
            shown: HashMap::new(),
            extent: HashMap::new(),
            runs: 0,
        }
    }

    /// The program has windows for `region`, shifted by `shift`.
    pub fn claimed(&mut self, region: u64, shift: u8) {
        self.regions.insert(region, shift);
        self.shifts |= 1 << shift;
    }

    /// How many windows there are.
    pub fn count(&self) -> usize {
        self.windows.len()
    }

    pub fn is_full(&self, share: Share) -> bool {
        self.runs >= share.runs || self.windows.len() >= share.pages
    }

    /// What the window at page address `at` shows, and whether it can be written.
    pub fn shown(&self, at: u64) -> Option<(u64, bool)> {
        self.windows.get(&at).map(|window| (window.host, window.writable))
    }

    /// Makes room for more windows, unless they were used up too soon. False: there is none.
    pub fn make_room(&mut self, share: Share) -> bool {
        if self.is_full(share) {
            if self.since.elapsed() < MIN_TIME {
                return false;
            }
            self.close_all();
            self.since = Instant::now();
        }
        true
    }

    /// Shows `pages` pages from `backing` on at `address`, which is `offset` bytes above the program's. False: the host refused.
    pub fn open(&mut self, address: u64, backing: Backing, pages: u64, writable: bool, offset: u64) -> bool {
        self.runs += 1;
        let range = address..address + pages * PAGE;
        if !host::show(&range, backing, writable) {
            for at in range.step_by(PAGE as usize) {
                self.forget(at);
            }
            return false;
        }
        for (at, page) in range.step_by(PAGE as usize).zip((backing.host..).step_by(PAGE as usize)) {
            match self.windows.get_mut(&at) {
                Some(window) if window.host == page => window.writable = writable,
                _ => {
                    self.forget(at);
                    let next = self.shown.insert(page, at).unwrap_or(0);
                    self.windows.insert(at, Window { host: page, writable, offset, next });
                    let extent = self.extent.entry(at / GRANULE).or_insert((at, at));
                    *extent = (extent.0.min(at), extent.1.max(at));
                }
            }
        }
        true
    }

    /// Closes the windows for the program's page at `page`. Whether there was one.
    pub fn close(&mut self, page: u64, share: Share) -> bool {
        let (shifts, mut closed) = (self.shifts, false);
        for shift in (0..u32::BITS).filter(|shift| shifts >> shift & 1 != 0) {
            let at = page + (u64::from(shift) << SHIFT_BITS);
            if self.forget(at) {
                closed = true;
                if self.has_room_for(1, share) {
                    host::clear(&(at..at + PAGE));
                }
            }
        }
        closed
    }

    /// Closes all windows but those that `keep` wants, given the program's address, its page and whether it is writable.
    /// How many were closed.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, u64, bool) -> bool, share: Share) -> usize {
        let mut gone: Vec<u64> = self
            .windows
            .iter()
            .filter(|&(&at, window)| !keep(at - window.offset, window.host, window.writable))
            .map(|(&at, _)| at)
            .collect();
        gone.sort_unstable();
        let runs = || gone.chunk_by(|&one, &next| next == one + PAGE);
        if gone.len() * 2 > self.windows.len() || self.runs + runs().count() > share.runs {
            let all = self.windows.len();
            self.close_all();
            return all;
        }
        for run in runs() {
            self.runs += 1;
            host::clear(&(run[0]..run[run.len() - 1] + PAGE));
            for &at in run {
                self.forget(at);
            }
        }
        gone.len()
    }

    /// No window that shows the page at `host` can be written any more when this returns.
    pub fn revoke(&mut self, host: u64, share: Share) {
        let mut at = self.shown.get(&host).copied().unwrap_or(0);
        while at != 0 {
            let Some(window) = self.windows.get_mut(&at) else { break };
            let next = window.next;
            if std::mem::take(&mut window.writable) {
                if !self.has_room_for(1, share) {
                    return;
                }
                host::protect(at);
            }
            at = next;
        }
    }

    /// Closes all of them.
    pub fn close_all(&mut self) {
        for (_, (low, high)) in self.extent.drain() {
            host::clear(&(low..high + PAGE));
        }
        self.windows.clear();
        self.shown.clear();
        self.runs = 0;
    }

    /// Takes note of `runs` more changes; where the host might not have mappings for them, all windows are closed instead.
    fn has_room_for(&mut self, runs: usize, share: Share) -> bool {
        self.runs += runs;
        let room = self.runs <= share.runs;
        if !room {
            self.close_all();
        }
        room
    }

    /// Takes the window at `address` off the lists. Whether there was one.
    fn forget(&mut self, address: u64) -> bool {
        let Some(window) = self.windows.remove(&address) else { return false };
        let first = self.shown.get_mut(&window.host).expect("every window's page is listed");
        if *first == address {
            match window.next {
                0 => _ = self.shown.remove(&window.host),
                next => *first = next,
            }
            return true;
        }
        let mut before = *first;
        while let Some(other) = self.windows.get_mut(&before) {
            if other.next == address {
                other.next = window.next;
                break;
            }
            before = other.next;
        }
        true
    }
}
