//! The page-table walker (SDM vol. 3A, *Paging*): 4-level, PAE and 32-bit paging, with accessed and dirty bits.

use std::sync::atomic::Ordering;

use crate::env::Env;
use crate::exception::{Exception, pf};
use crate::ram::Ram;

/// Physical address width that CPUID shows.
pub const PHYS_BITS: u32 = 46;
/// Of the bits of an entry that make an address.
pub const PHYS_MASK: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;

const P: u64 = 1 << 0;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// Bits of CR0 and CR4 that paging looks at.
pub mod cr {
    pub const CR0_WP: u64 = 1 << 16;
    pub const CR0_AM: u64 = 1 << 18;
    pub const CR0_PG: u64 = 1 << 31;
    pub const CR4_PSE: u64 = 1 << 4;
    pub const CR4_PAE: u64 = 1 << 5;
    pub const CR4_PGE: u64 = 1 << 7;
    pub const CR4_PCIDE: u64 = 1 << 17;
    pub const CR4_SMEP: u64 = 1 << 20;
    pub const CR4_SMAP: u64 = 1 << 21;
    pub const EFER_LMA: u64 = 1 << 10;
    pub const EFER_NXE: u64 = 1 << 11;
}

/// What an access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// A store.
    pub write: bool,
    /// Made at CPL 3.
    pub user: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// A supervisor access to a user page is a fault (SMAP in force).
    pub smap: bool,
}

/// A translated page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Guest physical address of the 4 KiB page.
    pub gpa: u64,
    /// Bytes of the page that the tables map: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub size: u64,
    /// G, CR4.PGE permitting.
    pub global: bool,
    /// A store of the same privilege is allowed and D is set: a write TLB entry may be made.
    pub writable: bool,
}

/// Rights gathered on the way down.
struct Rights {
    rw: bool,
    us: bool,
    nx: bool,
}

impl Rights {
    fn narrow(&mut self, entry: u64, nxe: bool) {
        self.rw &= entry & RW != 0;
        self.us &= entry & US != 0;
        self.nx |= nxe && entry & NX != 0;
    }

    /// Whether `need` is granted, and whether a store would be.
    fn grant(&self, env: &Env, need: Need) -> (bool, bool) {
        let wp = env.cr0 & cr::CR0_WP != 0;
        let store = if need.user { self.us && self.rw } else { self.rw || !wp };
        let smap_blocks = need.smap && !need.user && self.us;
        let granted = if need.fetch {
            let smep_blocks = !need.user && self.us && env.cr4 & cr::CR4_SMEP != 0;
            !self.nx && !smep_blocks && (!need.user || self.us)
        } else {
            !smap_blocks && (!need.user || self.us) && (!need.write || store)
        };
        (granted, store && !smap_blocks)
    }
}

fn error_code(env: &Env, need: Need, flags: u32) -> u32 {
    let nx_reported =
        env.cr4 & cr::CR4_SMEP != 0 || env.efer & cr::EFER_NXE != 0 && env.cr4 & cr::CR4_PAE != 0;
    flags
        | if need.write { pf::WRITE } else { 0 }
        | if need.user { pf::USER } else { 0 }
        | if need.fetch && nx_reported { pf::FETCH } else { 0 }
}

/// Host address of the level-4 table, if refills in generated code may walk: 4-level paging with write protection and
/// NX, and the table in RAM.
pub fn root(env: &Env, ram: &Ram) -> Option<u64> {
    let wanted = cr::CR0_PG | cr::CR0_WP;
    let efer = cr::EFER_LMA | cr::EFER_NXE;
    if env.cr0 & wanted != wanted || env.efer & efer != efer {
        return None;
    }
    Some(ram.page(env.cr3 & PHYS_MASK)?.host)
}

/// Translates `linear`, setting accessed bits, and the dirty bit for a store.
pub fn walk(env: &Env, ram: &Ram, linear: u64, need: Need) -> Result<Page, Exception> {
    if env.cr0 & cr::CR0_PG == 0 {
        return Ok(Page { gpa: linear & 0xffff_f000, size: 4096, global: false, writable: true });
    }
    let fault = |flags| Exception::page_fault(linear, error_code(env, need, flags));
    if env.cr4 & cr::CR4_PAE == 0 {
        return walk32(env, ram, linear, need);
    }
    let nxe = env.efer & cr::EFER_NXE != 0;
    let long = env.efer & cr::EFER_LMA != 0;
    let mut rights = Rights { rw: true, us: true, nx: false };
    let (mut table, mut shift) = (env.cr3 & PHYS_MASK, 39);
    if !long {
        // PDPTEs have neither rights nor accessed bits. They are read from memory at each walk, not cached at MOV CR3.
        let entry = ram
            .entry64((env.cr3 & 0xffff_ffe0) + (linear >> 30 & 3) * 8)
            .map_or(0, |e| e.load(Ordering::Relaxed));
        if entry & P == 0 {
            return Err(fault(0));
        }
        (table, shift) = (entry & PHYS_MASK, 21);
    }
    loop {
        let slot = ram.entry64(table + (linear >> shift & 0x1ff) * 8).ok_or_else(|| fault(0))?;
        let mut entry = slot.load(Ordering::Acquire);
        loop {
            if entry & P == 0 {
                return Err(fault(0));
            }
            let leaf = shift == 12 || entry & PS != 0 && shift < 39;
            if reserved(entry, shift, leaf, nxe) {
                return Err(fault(pf::PRESENT | pf::RESERVED));
            }
            let mut set = A;
            let mut found = None;
            if leaf {
                let mut whole = Rights { ..rights };
                whole.narrow(entry, nxe);
                let (granted, store) = whole.grant(env, need);
                if !granted {
                    return Err(fault(pf::PRESENT));
                }
                if need.write {
                    set |= D;
                }
                found = Some(store && (entry | set) & D != 0);
            }
            if entry & set != set {
                // The guest may change the entry meanwhile; then all that was concluded from it is void.
                if let Err(now) =
                    slot.compare_exchange(entry, entry | set, Ordering::AcqRel, Ordering::Acquire)
                {
                    entry = now;
                    continue;
                }
            }
            if let Some(writable) = found {
                let size = 1u64 << shift;
                return Ok(Page {
                    gpa: (entry & PHYS_MASK & !(size - 1)) | linear & (size - 1) & !0xfff,
                    size,
                    global: entry & G != 0 && env.cr4 & cr::CR4_PGE != 0,
                    writable,
                });
            }
            rights.narrow(entry, nxe);
            break;
        }
        table = entry & PHYS_MASK;
        shift -= 9;
    }
}

/// What a user program may do at `linear` by the tables as they are, in 4-level paging, where both the page and all tables on the
/// way have been accessed: the page's guest physical address, and whether a write TLB entry may be made. Changes nothing.
pub fn accessed(env: &Env, ram: &Ram, linear: u64) -> Option<(u64, bool)> {
    let (mut table, mut shift) = (env.cr3 & PHYS_MASK, 39);
    let mut rights = RW | US | A | P;
    loop {
        let entry = ram.entry64(table + (linear >> shift & 0x1ff) * 8)?.load(Ordering::Acquire);
        let leaf = shift == 12 || entry & PS != 0 && shift < 39;
        rights &= entry;
        if rights & (US | A | P) != US | A | P || reserved(entry, shift, leaf, true) {
            return None;
        }
        if leaf {
            let size = 1u64 << shift;
            let gpa = (entry & PHYS_MASK & !(size - 1)) | linear & (size - 1) & !0xfff;
            return Some((gpa, rights & RW != 0 && entry & D != 0));
        }
        table = entry & PHYS_MASK;
        shift -= 9;
    }
}

fn reserved(entry: u64, shift: u32, leaf: bool, nxe: bool) -> bool {
    let mut mask = ((1u64 << 52) - 1) & !((1u64 << PHYS_BITS) - 1);
    if !nxe {
        mask |= NX;
    }
    if leaf && shift > 12 {
        // Bit 12 is PAT in a large page's entry.
        mask |= ((1u64 << shift) - 1) & !0x1fff;
    }
    if shift == 39 {
        mask |= PS;
    }
    entry & mask != 0
}

/// 32-bit paging: two levels of 4-byte entries, 4 MiB pages with CR4.PSE.
fn walk32(env: &Env, ram: &Ram, linear: u64, need: Need) -> Result<Page, Exception> {
    let fault = |flags| Exception::page_fault(linear, error_code(env, need, flags));
    let mut rights = Rights { rw: true, us: true, nx: false };
    let (mut table, mut shift) = (env.cr3 & 0xffff_f000, 22);
    loop {
        let slot = ram.entry32(table + (linear >> shift & 0x3ff) * 4).ok_or_else(|| fault(0))?;
        let mut entry = slot.load(Ordering::Acquire);
        loop {
            if u64::from(entry) & P == 0 {
                return Err(fault(0));
            }
            let wide = u64::from(entry);
            let large = shift == 22 && wide & PS != 0 && env.cr4 & cr::CR4_PSE != 0;
            let leaf = shift == 12 || large;
            if large && wide & (1 << 21) != 0 {
                return Err(fault(pf::PRESENT | pf::RESERVED));
            }
            let mut set = A as u32;
            let mut writable = false;
            if leaf {
                let mut whole = Rights { ..rights };
                whole.narrow(wide, false);
                let (granted, store) = whole.grant(env, need);
                if !granted {
                    return Err(fault(pf::PRESENT));
                }
                if need.write {
                    set |= D as u32;
                }
                writable = store && (entry | set) & D as u32 != 0;
            }
            if entry & set != set
                && let Err(now) =
                    slot.compare_exchange(entry, entry | set, Ordering::AcqRel, Ordering::Acquire)
            {
                entry = now;
                continue;
            }
            if leaf {
                let size = 1u64 << shift;
                let mut base = wide & 0xffff_f000 & !(size - 1);
                if large {
                    base |= (wide >> 13 & 0xff) << 32; // PSE-36
                }
                return Ok(Page {
                    gpa: base | linear & (size - 1) & !0xfff,
                    size,
                    global: wide & G != 0 && env.cr4 & cr::CR4_PGE != 0,
                    writable,
                });
            }
            rights.narrow(wide, false);
            break;
        }
        table = u64::from(entry) & 0xffff_f000;
        shift = 12;
    }
}
