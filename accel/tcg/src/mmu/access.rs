//! Guest memory as helpers reach it: by linear address, through the soft TLB, with page faults as values.

use crate::cpu::Cpu;
use crate::env::{TLB_MODES, flag};
use crate::exception::{Exception, Exec, vector};
use crate::mmu::walk::{Need, cr, walk};
use crate::ram::{PAGE, RamPage, load, load_int, store, store_int};

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The running program, at its privilege.
    Current,
    /// The CPU itself (descriptor tables, TSS, privilege-changing stacks): supervisor, SMAP in force whatever AC says.
    System,
}

/// Where an access ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// RAM at this host address; stores need no further care.
    Ram(u64),
    /// RAM that holds translated code: a store must invalidate it.
    Code(RamPage),
    /// Not RAM, at this guest physical address.
    Mmio(u64),
}

/// Soft-TLB mode of user accesses.
pub const MODE_USER: usize = 0;
/// Soft-TLB mode of supervisor accesses with SMAP in force.
pub const MODE_SMAP: usize = 1;
/// Soft-TLB mode of supervisor accesses without.
pub const MODE_SUPERVISOR: usize = 2;

const _: () = assert!(TLB_MODES == 3);

impl Cpu {
    /// The soft-TLB mode of `access` now.
    pub fn tlb_mode(&self, access: Access) -> usize {
        let smap = self.env.cr4 & cr::CR4_SMAP != 0;
        match access {
            Access::Current if self.env.cpl() == 3 => MODE_USER,
            Access::Current if smap && self.env.ac & flag::AC == 0 => MODE_SMAP,
            Access::System if smap => MODE_SMAP,
            _ => MODE_SUPERVISOR,
        }
    }

    /// Translates the page of `linear` for an access in `mode`, and enters it into the soft TLB where that may be.
    pub fn fill(&mut self, linear: u64, mode: usize, write: bool) -> Exec<Target> {
        self.mmu.fills += 1;
        let need = Need { write, user: mode == MODE_USER, fetch: false, smap: mode == MODE_SMAP };
        let page = walk(&self.env, &self.ram, linear, need)?;
        let Some(ram_page) = self.ram.page(page.gpa) else {
            return Ok(Target::Mmio(page.gpa | linear & (PAGE - 1)));
        };
        let watched = self.page_is_watched(linear);
        if write {
            self.mmu.note_write(self.ram.write_notes(self.index), mode, linear, ram_page);
        }
        let code = self.ram.is_code(ram_page.index);
        let protected = write && code;
        if !watched && !protected {
            self.mmu.insert(mode, write, linear, ram_page, page.size);
        }
        if write && code {
            return Ok(Target::Code(ram_page));
        }
        Ok(Target::Ram(ram_page.host | linear & (PAGE - 1)))
    }

    /// Where an access to `linear` ends. Does not cross pages: the caller splits.
    pub fn target(&mut self, linear: u64, mode: usize, write: bool) -> Exec<Target> {
        match self.mmu.lookup(mode, write, linear) {
            Some(host) => Ok(Target::Ram(host | linear & (PAGE - 1))),
            None => self.fill(linear, mode, write),
        }
    }

    /// Whether misaligned accesses of the running program raise #AC.
    pub fn alignment_is_checked(&self) -> bool {
        self.env.ac != 0 && self.env.cr0 & cr::CR0_AM != 0 && self.env.cpl() == 3
    }

    /// Raises #AC for a misaligned access of the running program, where that is asked for.
    pub fn check_alignment(&self, linear: u64, size: usize, access: Access) -> Exec<()> {
        if linear & (size as u64 - 1) != 0 && access == Access::Current && self.alignment_is_checked() {
            return Err(Exception::with_code(vector::AC, 0));
        }
        Ok(())
    }

    /// Reads `size` bytes (1, 2, 4, 8) at `linear`, zero-extended.
    pub fn read(&mut self, linear: u64, size: usize, access: Access) -> Exec<u64> {
        self.check_alignment(linear, size, access)?;
        self.read_element(linear, size, access)
    }

    /// As [`Cpu::read`], for elements of vectors, whose alignment is never checked.
    pub fn read_element(&mut self, linear: u64, size: usize, access: Access) -> Exec<u64> {
        let mode = self.tlb_mode(access);
        if linear & (PAGE - 1) <= PAGE - size as u64
            && let Some(host) = self.mmu.lookup(mode, false, linear)
        {
            return Ok(load_int(host | linear & (PAGE - 1), size));
        }
        let mut bytes = [0; 8];
        self.read_bytes_mode(linear, &mut bytes[..size], mode)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` bytes (1, 2, 4, 8) of `value` at `linear`. Nothing is written on a fault.
    pub fn write(&mut self, linear: u64, size: usize, value: u64, access: Access) -> Exec<()> {
        self.check_alignment(linear, size, access)?;
        self.write_element(linear, size, value, access)
    }

    /// As [`Cpu::write`], for elements of vectors, whose alignment is never checked.
    pub fn write_element(&mut self, linear: u64, size: usize, value: u64, access: Access) -> Exec<()> {
        let mode = self.tlb_mode(access);
        if linear & (PAGE - 1) <= PAGE - size as u64
            && let Some(host) = self.mmu.lookup(mode, true, linear)
        {
            store_int(host | linear & (PAGE - 1), size, value);
            return Ok(());
        }
        self.write_bytes_mode(linear, &value.to_le_bytes()[..size], mode)
    }

    /// Reads bytes, up to many pages.
    pub fn read_bytes(&mut self, linear: u64, into: &mut [u8], access: Access) -> Exec<()> {
        let mode = self.tlb_mode(access);
        self.read_bytes_mode(linear, into, mode)
    }

    /// Writes bytes, at most two pages. Nothing is written on a fault.
    pub fn write_bytes(&mut self, linear: u64, from: &[u8], access: Access) -> Exec<()> {
        let mode = self.tlb_mode(access);
        self.write_bytes_mode(linear, from, mode)
    }

    /// Raises the fault that a store of `len` bytes at `linear` would, if any (at most two pages).
    pub fn probe_write(&mut self, linear: u64, len: u64, access: Access) -> Exec<()> {
        let mode = self.tlb_mode(access);
        self.target(linear, mode, true)?;
        if linear & (PAGE - 1) > PAGE - len {
            self.target(self.wrap_from(linear, len - 1) & !(PAGE - 1), mode, true)?;
        }
        Ok(())
    }

    /// Linear addresses wrap at 4 GiB outside 64-bit mode.
    pub fn wrap(&self, linear: u64) -> u64 {
        if self.env.is_64bit() { linear } else { linear & 0xffff_ffff }
    }

    /// `linear + len`, wrapped as [`Cpu::wrap`] does unless `linear` is of IA-32e mode's tables and stacks, which lie
    /// above 4 GiB while compatibility mode runs.
    fn wrap_from(&self, linear: u64, len: u64) -> u64 {
        let end = linear.wrapping_add(len);
        if linear >> 32 != 0 { end } else { self.wrap(end) }
    }

    /// [`Cpu::read_bytes`] in a given soft-TLB mode.
    pub fn read_bytes_mode(&mut self, linear: u64, into: &mut [u8], mode: usize) -> Exec<()> {
        self.note_watch(linear, into.len(), false);
        let mut linear = linear;
        let mut rest = into;
        while !rest.is_empty() {
            let here = rest.len().min((PAGE - (linear & (PAGE - 1))) as usize);
            let (part, tail) = rest.split_at_mut(here);
            match self.target(linear, mode, false)? {
                Target::Ram(host) => load(host, part),
                Target::Code(page) => load(page.host | linear & (PAGE - 1), part),
                Target::Mmio(gpa) => self.mmio_read(gpa, part),
            }
            linear = self.wrap_from(linear, here as u64);
            rest = tail;
        }
        Ok(())
    }

    /// [`Cpu::write_bytes`] in a given soft-TLB mode.
    pub fn write_bytes_mode(&mut self, linear: u64, from: &[u8], mode: usize) -> Exec<()> {
        let first = from.len().min((PAGE - (linear & (PAGE - 1))) as usize);
        let target = self.target(linear, mode, true)?;
        if first == from.len() {
            self.note_watch(linear, from.len(), true);
            self.store_target(linear, target, from);
            return Ok(());
        }
        let next = self.wrap_from(linear, first as u64);
        let second = self.target(next, mode, true)?;
        self.note_watch(linear, from.len(), true);
        self.store_target(linear, target, &from[..first]);
        // A store to code waits for other CPUs, one of which may meanwhile translate from the second page.
        let second = if matches!(target, Target::Code(_)) {
            self.target(next, mode, true).unwrap_or(second)
        } else {
            second
        };
        self.store_target(next, second, &from[first..]);
        Ok(())
    }

    fn store_target(&mut self, linear: u64, target: Target, from: &[u8]) {
        match target {
            Target::Ram(host) => match from.len() {
                1 | 2 | 4 | 8 => {
                    let mut value = [0; 8];
                    value[..from.len()].copy_from_slice(from);
                    store_int(host, from.len(), u64::from_le_bytes(value));
                }
                _ => store(host, from),
            },
            Target::Code(page) => {
                let offset = linear & (PAGE - 1);
                store(page.host | offset, from);
                self.code_written(page, offset as u32, from.len() as u32);
            }
            Target::Mmio(gpa) => self.mmio_write(gpa, from),
        }
    }

    fn mmio_read(&self, gpa: u64, into: &mut [u8]) {
        let mut at = gpa;
        for part in into.chunks_mut(8) {
            split(part.len(), |offset, len| {
                self.io().mmio_read(at + offset as u64, &mut part[offset..offset + len]);
            });
            at += 8;
        }
    }

    fn mmio_write(&self, gpa: u64, from: &[u8]) {
        let mut at = gpa;
        for part in from.chunks(8) {
            split(part.len(), |offset, len| {
                self.io().mmio_write(at + offset as u64, &part[offset..offset + len])
            });
            at += 8;
        }
    }

    /// Translates the page of `linear` for instruction fetch.
    pub fn fetch_page(&mut self, linear: u64) -> Exec<RamPage> {
        let user = self.env.cpl() == 3;
        if let Some(page) = self.mmu.lookup_fetch(user, linear) {
            return Ok(page);
        }
        let page = walk(&self.env, &self.ram, linear, Need { write: false, user, fetch: true, smap: false })?;
        // Code outside RAM: hardware would run from ROM or device memory; nothing on this machine has code there.
        let ram_page = self.ram.page(page.gpa).ok_or(Exception::gp(0))?;
        self.mmu.insert_fetch(user, linear, ram_page, page.size);
        Ok(ram_page)
    }
}

/// Cuts an access of `len` (1 to 8) bytes into pieces of 1, 2, 4 or 8, the sizes that buses have.
fn split(len: usize, mut each: impl FnMut(usize, usize)) {
    let mut offset = 0;
    for size in [8, 4, 2, 1] {
        while len - offset >= size {
            each(offset, size);
            offset += size;
        }
    }
}
