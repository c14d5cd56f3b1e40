//! Windows: guest RAM at the very addresses where a user program of the guest has it.
//!
//! Where a program runs for long, the pages that it uses are mapped into this process once more, at its own addresses and with
//! its own rights, as it comes to use them: its loads and stores need no look-up then, and an address that has no page is a
//! host fault, from which [`crate::exec::windows`] makes a page or the guest's fault.
//!
//! For that no access of a guest's may reach what else lies in this process. The address space is cut into regions of 256 MiB.
//! Generated code reaches through windows only in regions that were *claimed*: the whole region, and [`REACH`] bytes on either
//! side of it, were free and are reserved for windows for good (nothing can be mapped there any more, by the host's
//! linker or allocator neither). Before it uses an address it reads a byte at the region's place in a table
//! ([`crate::env::EnvMapping::region_table`]) that has pages for claimed regions only. Nothing branches, and EFLAGS stay:
//!
//! ```text
//!     shrx  t1, base, rsp         ; by 16, which the low bits of RSP are
//!     movzx t1d, byte [rsp + t1 + table]
//!     ...   [base + displacement]
//! ```
//!
//! For an address above 2^48, which is no user's, that byte may be any or none: the access that follows has nothing to reach.
//!
//! Addresses are the process's, so at any time one address space of one CPU owns all windows.

#![expect(
    unsafe_code,
    reason = "door: maps guest RAM at fixed addresses, all of which this module has reserved"
)]

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::ram::PAGE;

/// Bytes of a region, as a power of two.
pub const REGION_BITS: u32 = 28;
/// Bytes beyond a claimed region that are reserved as well: so far from an address that was looked at others may lie.
pub const REACH: u64 = 32 << 20;
/// What is reserved at a time.
const GRANULE: u64 = REACH;
/// No page below is ever mapped (Linux, *vm.mmap_min_addr*).
const START: u64 = 0x1_0000;
/// End of what user space can have.
const END: u64 = (1 << 47) - PAGE;
/// Mappings that a process can have as a rule (Linux, *vm.max_map_count*).
const USUAL_MAPPINGS: usize = 65_530;
/// Pages that are shown at a time: 1 GiB, for some 30 MiB of lists.
const MAX_PAGES: usize = 1 << 18;
/// In less time so many windows do not pay: the program goes through more memory than they can show.
const MIN_TIME: Duration = Duration::from_secs(3);
/// Regions that are ever looked at: a guest may ask for any.
const MAX_REGIONS: usize = 1024;

/// A page that a window shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// The file that guest RAM is.
    pub file: RawFd,
    /// Where in it.
    pub offset: u64,
    /// The page's address in the mapping of all RAM, which stands for it.
    pub host: u64,
}

#[derive(Clone, Copy)]
struct Window {
    host: u64,
    writable: bool,
    /// The next window that shows the same page, or 0.
    next: u64,
}

/// Who may have windows: a number that is never 0, the same for as long as it is the same address space of the same CPU.
pub type Owner = u64;

/// An owner, for the time that it has had windows without giving them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Who.
    pub owner: Owner,
    number: u64,
}

#[derive(Default)]
struct Space {
    owner: Owner,
    /// How many times somebody became that.
    tenures: u64,
    /// When it became that, or windows ran out last.
    since: Option<Instant>,
    /// When its program was last seen running.
    used: Option<Instant>,
    /// Granules that are reserved.
    reserved: HashMap<u64, bool>,
    /// Regions that were asked for, and whether they are claimed.
    regions: HashMap<u64, bool>,
    windows: HashMap<u64, Window>,
    /// The first window of each page that is shown.
    shown: HashMap<u64, u64>,
    /// Of each granule with windows: the lowest and the highest.
    extent: HashMap<u64, (u64, u64)>,
    /// Changes to the host's mappings since there were none.
    runs: usize,
    /// Times that windows were opened, ever.
    opened: u64,
}

static SPACE: LazyLock<Mutex<Space>> = LazyLock::new(Mutex::default);

fn space() -> MutexGuard<'static, Space> {
    SPACE.lock().expect("no holder of the windows' lock panics")
}

/// Times that windows are opened, or changed one by one, before all are closed. Each may cost two of the mappings that a process
/// can have; what the rest of the program and the regions need is left to them.
static MAX_RUNS: LazyLock<usize> = LazyLock::new(|| {
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_MAPPINGS);
    (limit.min(USUAL_MAPPINGS) / 2).saturating_sub(4 * MAX_REGIONS)
});

/// Reserves `start..end`, if nothing is there.
fn reserve(start: u64, end: u64) -> bool {
    let (start, end) = (start.max(START), end.min(END));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: MAP_FIXED_NOREPLACE leaves what exists as it is.
    let got = unsafe { libc::mmap(start as *mut _, (end - start) as usize, libc::PROT_NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return false;
    }
    if got as u64 != start {
        // A kernel that does not know the flag takes the address for a wish.
        // SAFETY: just mapped, and nobody knows of it.
        unsafe { libc::munmap(got, (end - start) as usize) };
        return false;
    }
    true
}

/// Has `start..end`, which is reserved, be without windows.
fn clear(start: u64, end: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range was reserved by this module, which alone maps anything there.
    let got = unsafe { libc::mmap(start as *mut _, (end - start) as usize, libc::PROT_NONE, flags, -1, 0) };
    // Of what is reserved no page may stay where the guest has another.
    assert!(got as u64 == start, "windows cannot be closed: {}", std::io::Error::last_os_error());
}

/// Claims the region that has `address` (below 2^47). False: something of this process lies in it or next to it.
pub fn claim(address: u64) -> bool {
    if address >> 47 != 0 {
        return false;
    }
    let mut space = space();
    let region = address >> REGION_BITS;
    if let Some(&claimed) = space.regions.get(&region) {
        return claimed;
    }
    if space.regions.len() == MAX_REGIONS {
        return false;
    }
    let (start, end) = (region << REGION_BITS, (region + 1) << REGION_BITS);
    let granules = (start / GRANULE).saturating_sub(1)..=(end / GRANULE).min(END / GRANULE);
    let claimed = granules.into_iter().all(|granule| {
        *space.reserved.entry(granule).or_insert_with(|| reserve(granule * GRANULE, (granule + 1) * GRANULE))
    });
    tracing::debug!(target: "mmu", region = start, claimed, "region for windows");
    space.regions.insert(region, claimed);
    claimed
}

/// Makes `owner` the owner of all windows, if nobody else is.
pub fn take(owner: Owner) -> bool {
    let mut space = space();
    let free = space.owner == 0 || space.owner == owner;
    if free {
        space.own(owner);
    }
    free
}

/// The owner's program is running.
pub fn still_used() {
    space().used = Some(Instant::now());
}

/// The owner, if its program was not seen running for `time`.
pub fn unused(time: Duration) -> Option<Tenure> {
    let space = space();
    let unused = space.used.is_none_or(|used| used.elapsed() >= time);
    (space.owner != 0 && unused).then_some(Tenure { owner: space.owner, number: space.tenures })
}

/// Makes `new` the owner, if `old` is or there is none. Nobody reaches windows in `old` any more; its owner may have come to
/// have windows again meanwhile, and keeps them then.
pub fn seize(old: Tenure, new: Owner) -> bool {
    let mut space = space();
    let free = space.owner == 0 || (space.owner, space.tenures) == (old.owner, old.number);
    if free {
        space.close_all();
        space.own(new);
    }
    free
}

/// `owners` have no windows any more.
pub fn give_up(owners: Range<Owner>) {
    let mut space = space();
    if owners.contains(&space.owner) {
        space.close_all();
        space.owner = 0;
    }
}

/// How often windows were opened since the start.
pub fn opened() -> u64 {
    space().opened
}

/// How many windows there are.
pub fn count() -> usize {
    space().windows.len()
}

/// Shows `pages` pages from `backing` on at `address`, which lies in a claimed region. `writable` is asked under the lock that
/// [`revoke`] takes. False: the host refused.
pub fn open(address: u64, backing: Backing, pages: u64, writable: impl FnOnce() -> bool) -> bool {
    let mut space = space();
    if space.is_full() {
        if space.since.is_some_and(|since| since.elapsed() < MIN_TIME) {
            return false;
        }
        space.close_all();
        space.since = Some(Instant::now());
    }
    space.runs += 1;
    space.opened += 1;
    let writable = writable();
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
    let len = (pages * PAGE) as usize;
    // SAFETY: the address is in a claimed region, where nothing but windows lie; the file is guest RAM.
    let got = unsafe {
        libc::mmap(address as *mut _, len, protection, flags, backing.file, backing.offset as libc::off_t)
    };
    if got as u64 != address {
        // MAP_FIXED may have unmapped what was reserved.
        clear(address, address + pages * PAGE);
        for page in 0..pages {
            space.forget(address + page * PAGE);
        }
        return false;
    }
    for page in 0..pages {
        let (at, host) = (address + page * PAGE, backing.host + page * PAGE);
        match space.windows.get_mut(&at) {
            Some(window) if window.host == host => window.writable = writable,
            _ => {
                space.forget(at);
                let next = space.shown.insert(host, at).unwrap_or(0);
                space.windows.insert(at, Window { host, writable, next });
                let extent = space.extent.entry(at / GRANULE).or_insert((at, at));
                *extent = (extent.0.min(at), extent.1.max(at));
            }
        }
    }
    true
}

/// Whether the owner has used up its windows, and too soon.
pub fn are_exhausted() -> bool {
    space().is_full()
}

/// What the window at page address `address` shows, and whether it can be written.
pub fn shown(address: u64) -> Option<(u64, bool)> {
    space().windows.get(&address).map(|window| (window.host, window.writable))
}

/// Closes the window at page address `address`. Whether there was one.
pub fn close(address: u64) -> bool {
    let mut space = space();
    let there = space.forget(address);
    if there && space.has_room_for(1) {
        clear(address, address + PAGE);
    }
    there
}

/// Closes all windows but those that `keep` wants, given the window's address, its page and whether it is writable.
/// How many were closed.
pub fn retain(mut keep: impl FnMut(u64, u64, bool) -> bool) -> usize {
    let mut space = space();
    let mut gone: Vec<u64> = space
        .windows
        .iter()
        .filter(|&(&at, window)| !keep(at, window.host, window.writable))
        .map(|(&at, _)| at)
        .collect();
    gone.sort_unstable();
    let runs = || gone.chunk_by(|&one, &next| next == one + PAGE);
    if gone.len() * 2 > space.windows.len() || space.runs + runs().count() > *MAX_RUNS {
        let all = space.windows.len();
        space.close_all();
        return all;
    }
    for run in runs() {
        space.runs += 1;
        clear(run[0], run[run.len() - 1] + PAGE);
        for &at in run {
            space.forget(at);
        }
    }
    gone.len()
}

/// No window that shows the page at `host` can be written any more when this returns.
pub fn revoke(host: u64) {
    let mut space = space();
    let mut at = space.shown.get(&host).copied().unwrap_or(0);
    while at != 0 {
        let Some(window) = space.windows.get_mut(&at) else { break };
        let next = window.next;
        if std::mem::take(&mut window.writable) {
            if !space.has_room_for(1) {
                return;
            }
            // SAFETY: a window of this module's; fewer rights harm nobody.
            let done = unsafe { libc::mprotect(at as *mut _, PAGE as usize, libc::PROT_READ) };
            assert!(done == 0, "a window cannot be protected: {}", std::io::Error::last_os_error());
        }
        at = next;
    }
}

impl Space {
    /// Takes note of `runs` more changes; where the host might not have mappings for them, all windows are closed instead.
    fn has_room_for(&mut self, runs: usize) -> bool {
        self.runs += runs;
        let room = self.runs <= *MAX_RUNS;
        if !room {
            self.close_all();
        }
        room
    }

    fn is_full(&self) -> bool {
        self.runs >= *MAX_RUNS || self.windows.len() >= MAX_PAGES
    }

    fn own(&mut self, owner: Owner) {
        let now = Some(Instant::now());
        self.tenures += 1;
        (self.owner, self.since, self.used) = (owner, now, now);
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

    fn close_all(&mut self) {
        for (_, (low, high)) in self.extent.drain() {
            clear(low, high + PAGE);
        }
        self.windows.clear();
        self.shown.clear();
        self.runs = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who asks for windows that are not used, and is slow, does not get those that their owner has had anew since.
    #[test]
    fn windows_that_were_taken_again_are_not_seized() {
        const ONE: Owner = 1;
        const OTHER: Owner = 2;
        assert!(take(ONE));
        let unused_then = unused(Duration::ZERO).expect("ONE has them");
        give_up(ONE..ONE + 1);
        assert!(take(ONE));
        assert!(!seize(unused_then, OTHER));
        assert!(!take(OTHER));
        let unused_now = unused(Duration::ZERO).expect("ONE has them");
        assert!(seize(unused_now, OTHER));
        assert!(!take(ONE));
        // What nobody has is for everybody.
        give_up(OTHER..OTHER + 1);
        assert!(seize(unused_then, ONE));
        give_up(ONE..ONE + 1);
    }
}
