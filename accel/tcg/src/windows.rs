//! Windows: guest RAM at the very addresses where user programs of the guest have it.
//!
//! Where a program runs for long, the pages that it uses are mapped into this process once more, at its own addresses and with
//! its own rights, as it comes to use them: its loads and stores need no look-up then, and an address that has no page is a
//! host fault, from which [`crate::exec::windows`] makes a page or the guest's fault.
//!
//! For that no access of a guest's may reach what else lies in this process. The address space is cut into regions of 256 MiB.
//! Generated code reaches through windows only in regions that its address space has *claimed*: the whole region, and
//! [`REACH`] bytes on either side of it, were free and are reserved for windows (nothing can be mapped there any more, by the
//! host's linker or allocator neither). Before it uses an address it reads a byte at the region's place in a table of the CPU's
//! ([`crate::env::EnvMapping::region_table`]) that has pages for such regions only. Nothing branches, and EFLAGS stay:
//!
//! ```text
//!     shrx  t1, base, rsp         ; by 16, which the low bits of RSP are
//!     movzx t1d, byte [rsp + t1 + table]
//!     ...   [base + displacement]
//! ```
//!
//! For an address above 2^48, which is no user's, that byte may be any or none: the access that follows has nothing to reach. (Nor
//! has it where the byte is added, see below: for an address so close to 2^64 that it would be a user's then, the place in the
//! table is no canonical address.)
//!
//! Addresses are the process's, so a region, with what lies within reach of it, is one address space's at a time. Several address
//! spaces have windows side by side, one for each CPU: programs are loaded at random addresses, and seldom meet. Where one's
//! region is another's already (forked programs, and those that are not position-independent), or something of this process's
//! lies there, its windows are a few times 512 MiB higher: the byte in the table is how many. Code for address spaces with such
//! regions ([`mode::SHIFTED`](crate::code::tb::mode::SHIFTED)) adds that. The CPUs that run threads of one address space share
//! its windows. What a CPU closes is closed for all of them, at once; it opens again what its tables say, so that more may be
//! closed than need be at any time, and nothing that a CPU has flushed is opened by one that has not: the tables are read, and
//! the window opened, under the lock that closing takes.

pub mod host;
mod occupant;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use occupant::{Occupant, Share};

use crate::huge_pages::{HUGE_PAGE, HugePages, Wanted};
use crate::ram::PAGE;

/// Bytes of a region, as a power of two.
pub const REGION_BITS: u32 = 28;
/// Bytes beyond a claimed region that are reserved as well: so far from an address that was looked at others may lie.
pub const REACH: u64 = 32 << 20;
/// What is reserved at a time.
const GRANULE: u64 = REACH;
const GRANULES_PER_REGION: u64 = (1 << REGION_BITS) / GRANULE;
/// Bytes by a multiple of which windows are elsewhere than the program has its memory, as a power of two: a region's place beyond
/// reach.
pub const SHIFT_BITS: u32 = REGION_BITS + 1;
/// The largest multiple.
const MAX_SHIFT: u8 = 31;
/// No page below is ever mapped (Linux, *vm.mmap_min_addr*).
const START: u64 = 0x1_0000;
/// End of what user space can have.
const END: u64 = (1 << 47) - PAGE;
/// Mappings that a process can have as a rule (Linux, *vm.max_map_count*).
const USUAL_MAPPINGS: usize = 65_530;
/// Pages that are shown at a time: 1 GiB, for some 30 MiB of lists.
const MAX_PAGES: usize = 1 << 18;
/// Regions that are known at a time: a guest may ask for any.
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

/// Who may have windows: an address space, by the host address of its level-4 table. Never 0.
pub type Owner = u64;

/// An owner, for the time that it has windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// Who.
    owner: Owner,
    number: u64,
}

/// What comes of the wish for a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Only windows of the one who asked lie where they are shown, and within reach.
    Granted {
        /// Where that is: so many times 2^[`SHIFT_BITS`] bytes higher.
        shift: u8,
    },
    /// Something else of this process's lies there.
    Refused,
    /// Windows of another address space do, or may.
    Taken(Tenure),
}

/// What comes of the wish for a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It is open, and can be written or not.
    Open {
        /// It can.
        writable: bool,
    },
    /// The page is not what it was any more.
    Changed,
    /// There can be none.
    Refused,
}

/// A region that was asked for.
struct Region {
    /// It is reserved, and what is within reach of it.
    reserved: bool,
    /// Whose windows may lie there; 0: nobody's.
    owner: Owner,
    /// How far from where the owner has its memory, as in [`Claim::Granted`].
    shift: u8,
}

#[derive(Default)]
struct Space {
    /// All by the process's addresses: granules that somebody wanted, and whether they are reserved.
    granules: HashMap<u64, bool>,
    regions: HashMap<u64, Region>,
    occupants: HashMap<Owner, Occupant>,
    /// How many tenures there were.
    tenures: u64,
    /// Times that windows were opened, ever.
    opened: u64,
    huge_pages: HugePages,
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

/// The CPU of number `cpu` (below 64) of `machine` is going to reach windows of `owner`. Whether it had some before: what they show
/// is by other CPUs' flushes.
pub fn join(owner: Owner, machine: usize, cpu: usize) -> (Tenure, bool) {
    let mut space = space();
    let number = space.tenures + 1;
    let occupant = space.occupants.entry(owner).or_insert_with(|| Occupant::new(number, machine));
    occupant.members |= 1 << cpu;
    occupant.joins += 1;
    occupant.used = Instant::now();
    let tenure = Tenure { owner, number: occupant.number };
    let joined = tenure.number != number;
    if !joined {
        space.tenures = number;
        // There is less for each now.
        let share = space.share();
        space.occupants.values_mut().filter(|occupant| occupant.is_full(share)).for_each(Occupant::close_all);
    }
    (tenure, joined)
}

/// The CPU of number `cpu` reaches no windows of `tenure` any more. The last one's close.
pub fn leave(tenure: Tenure, cpu: usize) {
    let mut space = space();
    if let Some(occupant) = space.occupant(tenure) {
        occupant.members &= !(1 << cpu);
        if occupant.members == 0 {
            space.vacate(tenure.owner);
        }
    }
}

/// Claims windows for the region that has `address`, `least` shifts away from it or more.
pub fn claim(tenure: Tenure, address: u64, least: u8) -> Claim {
    let mut space = space();
    let Some(occupant) = space.occupant(tenure).filter(|_| address >> 47 == 0) else { return Claim::Refused };
    let region = address >> REGION_BITS;
    if let Some(&shift) = occupant.regions.get(&region) {
        return Claim::Granted { shift };
    }
    let mut taken = None;
    for shift in least..=MAX_SHIFT {
        let at = region + (u64::from(shift) << (SHIFT_BITS - REGION_BITS));
        if shift > 0 && (at + 1) << REGION_BITS > END {
            break;
        }
        match space.in_the_way(at, tenure.owner, shift) {
            Some(owner) if owner == tenure.owner => {}
            Some(owner) => {
                let number = space.occupants[&owner].number;
                taken = taken.or(Some(Tenure { owner, number }));
            }
            None if space.reserve(at) => {
                let claimed = space.regions.get_mut(&at).expect("it is reserved");
                (claimed.owner, claimed.shift) = (tenure.owner, shift);
                space.occupant(tenure).expect("it is there").claimed(region, shift);
                return Claim::Granted { shift };
            }
            None => {}
        }
    }
    taken.map_or(Claim::Refused, Claim::Taken)
}

/// Whether another than `owner` has windows where those for `address` would be if they were not shifted.
pub fn is_taken(owner: Owner, address: u64) -> bool {
    space().in_the_way(address >> REGION_BITS, owner, 0).is_some_and(|other| other != owner)
}

/// How far the window at the process's `address` is from where the program has it; `None`: there can be none for it.
pub fn offset_at(tenure: Tenure, address: u64) -> Option<u64> {
    space().offset_at(address, tenure.owner)
}

/// The program of `tenure` is running.
pub fn still_used(tenure: Tenure) {
    if let Some(occupant) = space().occupant(tenure) {
        occupant.used = Instant::now();
    }
}

/// Whether the program of `tenure` was not seen running for `time`.
pub fn is_unused(tenure: Tenure, time: Duration) -> bool {
    space().occupant(tenure).is_none_or(|occupant| occupant.used.elapsed() >= time)
}

/// The CPUs that reach windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Members {
    /// A bit for each.
    pub cpus: u64,
    joins: u64,
}

/// The CPUs of `machine` that reach windows of `tenure`; `None`: it is another machine's.
pub fn members(tenure: Tenure, machine: usize) -> Option<Members> {
    match space().occupant(tenure) {
        Some(occupant) => {
            (occupant.machine == machine).then_some(Members { cpus: occupant.members, joins: occupant.joins })
        }
        None => Some(Members { cpus: 0, joins: 0 }),
    }
}

/// Somebody else who has windows in `machine`, if anybody.
pub fn another(machine: usize, than: Tenure) -> Option<Tenure> {
    let space = space();
    let mut others = space.occupants.iter();
    let other = others.find(|&(&owner, occupant)| owner != than.owner && occupant.machine == machine);
    other.map(|(&owner, occupant)| Tenure { owner, number: occupant.number })
}

/// Closes all windows of `tenure`, which none of `members` reaches any more. False: one came to reach them meanwhile.
pub fn end(tenure: Tenure, members: Members) -> bool {
    let mut space = space();
    match space.occupant(tenure) {
        Some(occupant) if occupant.joins != members.joins => return false,
        Some(_) => space.vacate(tenure.owner),
        None => {}
    }
    true
}

/// How often windows were opened since the start.
pub fn opened() -> u64 {
    space().opened
}

/// How many windows there are.
pub fn count() -> usize {
    space().occupants.values().map(Occupant::count).sum()
}

/// Shows `pages` pages from `backing` on at the process's `address`, which lies in a region of `tenure` or within reach of one;
/// all in one large page. Whether they are still there, and can be written, is asked under the lock that closing and [`revoke`] take.
pub fn open(
    tenure: Tenure,
    address: u64,
    backing: Backing,
    pages: u64,
    rights: impl FnOnce() -> Option<bool>,
) -> Opening {
    let mut space = space();
    let share = space.share();
    let Some(offset) = space.offset_at(address, tenure.owner) else { return Opening::Refused };
    let Some(occupant) = space.occupant(tenure) else { return Opening::Refused };
    if !occupant.make_room(share) {
        return Opening::Refused;
    }
    let Some(writable) = rights() else { return Opening::Changed };
    let opened = occupant.open(address, backing, pages, writable, offset);
    space.opened += 1;
    if opened && pages * PAGE == HUGE_PAGE as u64 {
        space.huge_pages.want(Wanted::Window(address as usize));
    }
    if opened { Opening::Open { writable } } else { Opening::Refused }
}

/// Whether the address space has used up its windows, and too soon.
pub fn are_exhausted(tenure: Tenure) -> bool {
    let mut space = space();
    let share = space.share();
    space.occupant(tenure).is_some_and(|occupant| occupant.is_full(share))
}

/// What the window at the process's page address `address` shows, and whether it can be written.
pub fn shown(tenure: Tenure, address: u64) -> Option<(u64, bool)> {
    space().occupant(tenure)?.shown(address)
}

/// Closes the windows for the program's page at `address`. Whether there was one.
pub fn close(tenure: Tenure, address: u64) -> bool {
    let mut space = space();
    let share = space.share();
    space.occupant(tenure).is_some_and(|occupant| occupant.close(address, share))
}

/// Closes all windows but those that `keep` wants, given the program's address, its page and whether it is writable.
/// How many were closed.
pub fn retain(tenure: Tenure, keep: impl FnMut(u64, u64, bool) -> bool) -> usize {
    let mut space = space();
    let share = space.share();
    space.occupant(tenure).map_or(0, |occupant| occupant.retain(keep, share))
}

/// No window that shows the page at `host` can be written any more when this returns.
pub fn revoke(host: u64) {
    let mut space = space();
    let share = space.share();
    space.occupants.values_mut().for_each(|occupant| occupant.revoke(host, share));
}

/// The granules of `region` and on either side of it.
fn granules(region: u64) -> Range<u64> {
    let first = region * GRANULES_PER_REGION;
    first.saturating_sub(1)..(first + GRANULES_PER_REGION).min(END / GRANULE) + 1
}

/// The addresses of `granule` that can be reserved.
fn addresses(granule: u64) -> Range<u64> {
    (granule * GRANULE).max(START)..((granule + 1) * GRANULE).min(END)
}

impl Space {
    fn occupant(&mut self, tenure: Tenure) -> Option<&mut Occupant> {
        self.occupants.get_mut(&tenure.owner).filter(|occupant| occupant.number == tenure.number)
    }

    fn share(&self) -> Share {
        let among = self.occupants.len().max(1);
        Share { runs: *MAX_RUNS / among, pages: MAX_PAGES / among }
    }

    /// Who keeps `owner` from having windows in `region`, which are `shift` away from where it has its memory: it may itself, with
    /// others than belong there.
    fn in_the_way(&self, region: u64, owner: Owner, shift: u8) -> Option<Owner> {
        let others = |near| self.regions.get(&near).filter(|other| other.owner != 0);
        let conflict = |near| others(near).filter(|other| (other.owner, other.shift) != (owner, shift));
        // Nothing of its own with this shift can be there already.
        others(region)
            .or_else(|| conflict(region.wrapping_sub(1)))
            .or_else(|| conflict(region + 1))
            .map(|other| other.owner)
    }

    /// How far `address` is from where `owner` has what windows show there: it is in a region of its, or within reach of one.
    fn offset_at(&self, address: u64, owner: Owner) -> Option<u64> {
        let (region, granule) = (address >> REGION_BITS, address / GRANULE % GRANULES_PER_REGION);
        let near = match granule {
            0 => region.checked_sub(1),
            _ if granule == GRANULES_PER_REGION - 1 => Some(region + 1),
            _ => None,
        };
        let of = |region| self.regions.get(&region).filter(|region| region.owner == owner);
        let claimed = of(region).or_else(|| near.and_then(of))?;
        Some(u64::from(claimed.shift) << SHIFT_BITS)
    }

    /// Has `region` be reserved, and what is within reach of it. False: something lies there.
    fn reserve(&mut self, region: u64) -> bool {
        if let Some(known) = self.regions.get(&region) {
            return known.reserved;
        }
        if self.regions.len() == MAX_REGIONS {
            self.release_unused();
        }
        if self.regions.len() == MAX_REGIONS {
            return false;
        }
        let reserved = granules(region).all(|granule| {
            *self.granules.entry(granule).or_insert_with(|| host::reserve(&addresses(granule)))
        });
        tracing::debug!(target: "mmu", region = region << REGION_BITS, reserved, "region for windows");
        self.regions.insert(region, Region { reserved, owner: 0, shift: 0 });
        reserved
    }

    /// Gives back what nobody has windows in.
    fn release_unused(&mut self) {
        self.regions.retain(|_, region| region.owner != 0);
        let used: HashSet<u64> = self.regions.keys().flat_map(|&region| granules(region)).collect();
        self.granules.retain(|granule, &mut reserved| {
            let keep = used.contains(granule);
            if reserved && !keep {
                host::release(&addresses(*granule));
            }
            keep
        });
    }

    fn vacate(&mut self, owner: Owner) {
        if let Some(mut occupant) = self.occupants.remove(&owner) {
            occupant.close_all();
        }
        self.regions.values_mut().filter(|region| region.owner == owner).for_each(|region| region.owner = 0);
    }
}

#[cfg(test)]
mod tests;
