//! The CPU state that generated code works on.
//!
//! While generated code runs, the host's RSP holds the address of an [`EnvBlock`]: every field is one `[rsp+disp]`
//! away, the first 128 bytes with a one-byte displacement, and the host stack of helpers grows down from it.
//! General registers are in host registers then, and the fields here are stale except for the cold ones (R9, R10,
//! R11); the code stores them before it calls a helper.

#![expect(unsafe_code, reason = "door: the mapping that holds the environment and the translator's stack")]

use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::code::tb::mode;
use crate::mmu::soft_tlb::EMPTY_TAG;

/// A segment register and its descriptor cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights as in `accel::arch_state::SegmentState::access`; zero: unusable.
    pub access: u16,
    /// Visible selector.
    pub selector: u16,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Arithmetic flags: CF PF AF ZF SF OF.
pub const ARITH_FLAGS: u32 = 0x8d5;
/// Bits of RFLAGS.
pub mod flag {
    pub const CF: u32 = 1 << 0;
    pub const PF: u32 = 1 << 2;
    pub const AF: u32 = 1 << 4;
    pub const ZF: u32 = 1 << 6;
    pub const SF: u32 = 1 << 7;
    pub const TF: u32 = 1 << 8;
    pub const IF: u32 = 1 << 9;
    pub const DF: u32 = 1 << 10;
    pub const OF: u32 = 1 << 11;
    pub const IOPL: u32 = 3 << 12;
    pub const NT: u32 = 1 << 14;
    pub const RF: u32 = 1 << 16;
    pub const VM: u32 = 1 << 17;
    pub const AC: u32 = 1 << 18;
    pub const VIF: u32 = 1 << 19;
    pub const VIP: u32 = 1 << 20;
    pub const ID: u32 = 1 << 21;
    /// All that exist.
    pub const ALL: u32 = 0x3f_7fd5;
}

/// [`Env::interrupt_shadow`] after STI.
pub const SHADOW_STI: u32 = 1;
/// [`Env::interrupt_shadow`] after a load of SS, which holds off debug traps as well (SDM vol. 3A, *Masking Exceptions and
/// Interrupts When Switching Stacks*).
pub const SHADOW_SS: u32 = 2;

/// The poll word once a block has set it itself ([`crate::stress::Stress::kicks`]): nobody else wants anything.
pub const POLL_AGAIN: u32 = 1;
/// In the poll word: a kick. -1 in the high half, as QEMU's `icount_decr`.
pub const KICKED: u32 = 0xffff_0000;

/// How many soft-TLB modes there are: user, supervisor with SMAP in force, supervisor without.
pub const TLB_MODES: usize = 3;

/// Bytes reserved for the XSAVE image: x87, SSE, AVX and AVX-512 need 2688.
pub const XSAVE_BYTES: usize = 4096;

/// XSAVE image in standard format (SDM vol. 1, *XSAVE Area*). At a 64-byte boundary within [`EnvBlock`].
#[repr(C)]
pub struct XsaveArea(pub [u8; XSAVE_BYTES]);

/// Model-specific registers that are plain storage or that system instructions use.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_var: [u64; 16],
    pub kvm_system_time: u64,
    pub kvm_wall_clock: u64,
}

/// Groups of accesses of one block that may be looked up in the table.
pub const TABLE_GROUPS: usize = 16;
/// The first of them, whose addresses are where they are reached with a displacement of one byte.
pub const FIRST_GROUPS: usize = 2;
/// Translation slots of one soft-TLB mode and direction ([`TlbSlot`]).
pub const SLOTS: usize = 32;
/// Counters of the misses of sites: of accesses whose slots they share.
pub const SITE_COUNTERS: usize = 1024;
/// Misses after which a site is judged. Counters start so far below zero.
pub const SITE_MISSES: u16 = 1024;

/// Where the page was that the accesses through one base register (or another thing that one address is like the last by)
/// last went to.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct TlbSlot {
    /// Linear address of the page.
    pub tag: u64,
    /// What makes a host address of a linear one in it. Of an empty slot: what makes one in the host's page 0 of one
    /// that matches.
    pub addend: u64,
}

impl TlbSlot {
    /// A tag that no access that can succeed matches: the accesses of a group that was checked use the addend without a look.
    pub const NEVER: u64 = 0x4bad_5eed_0bad_5000;
    const EMPTY: Self = Self { tag: EMPTY_TAG, addend: EMPTY_TAG.wrapping_neg() };
}

/// Entries of a return cache: the low byte of a return address is its index.
pub const RETURN_ENTRIES: usize = 256;

/// Number of the return cache of places that may read the flags that a return comes with.
pub const WITH_FLAGS: usize = 1;

/// Where calls that were made lately return to: entered by the calls, looked up by the returns. Whatever changes what an
/// address means empties it. There are two: one of places that read no flags before they are given new values, where returns
/// go without them, and one ([`WITH_FLAGS`]) of all others.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct ReturnCache {
    /// Return address. An empty entry has an address with another index.
    pub tags: [u64; RETURN_ENTRIES],
    /// Where the call's block goes on.
    pub code: [u64; RETURN_ENTRIES],
}

impl ReturnCache {
    fn clear(&mut self) {
        self.tags = [0; RETURN_ENTRIES];
        self.tags[0] = 1;
    }
}

/// What generated code counts, for the user ([`crate::exec::counters`]). The misses always; how often a check was made only
/// where [`crate::exec::trace::counting`] said so when the engine was made.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct CodeCounters {
    /// Checks that did not find the page in their slot.
    pub slot_misses: u64,
    /// Checks that did not find the page in the table.
    pub table_misses: u64,
    /// Pages that generated code has entered into the table itself.
    pub walks: u64,
    /// Returns whose address the return cache did not have.
    pub return_misses: u64,
    /// Checks of one access by its slot.
    pub slot_checks: u64,
    /// Checks of several accesses at once, by a slot.
    pub group_checks: u64,
    /// Checks by the table, of one access or several.
    pub table_checks: u64,
    /// Indirect branches, and returns that are not predicted.
    pub branches: u64,
    /// Returns that are predicted.
    pub returns: u64,
}

/// What the walk of page tables in generated code goes by ([`crate::code::refill`]).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Walk {
    /// Host address of the level-4 table; 0: helpers walk.
    pub root: u64,
    /// Of the bits of an entry that make an address.
    pub address_mask: u64,
    /// RAM from address 0 on: its end, and where the host has it.
    pub low_end: u64,
    pub low_host: u64,
    /// RAM elsewhere: its start, its length, where the host has it, and the number of its first page.
    pub high_start: u64,
    pub high_len: u64,
    pub high_host: u64,
    pub high_page: u64,
    /// Addresses of the tables of [`crate::ram::Ram`]: pages with code, and write entries.
    pub code: u64,
    pub write_entry: u64,
    /// Of the present context: the number that stands for the first write entry, and where it notes which tables it uses
    /// and what large and huge pages pieces were entered of.
    pub first_entry: u64,
    pub used: u64,
    pub large: u64,
    pub huge: u64,
}

/// The state. Field order is layout: what generated code uses most comes first.
#[repr(C)]
pub struct Env {
    /// Arithmetic flags as `lahf; seto al` leaves them in AX: valid instead of `arith` around generated code.
    pub lahf: u32,
    /// 1 while the host's vector and x87 registers hold the guest's; 0 while [`Env::xsave`] does.
    pub fp_loaded: u32,
    /// As [`Env::groups`], of the first ones.
    pub first_groups: [u64; FIRST_GROUPS],
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8..R15.
    pub gpr: [u64; 16],
    /// Offset in CS of the current instruction (in helpers) or of the next one (between blocks).
    pub rip: u64,
    /// CF PF AF ZF SF OF at their places in RFLAGS, other bits zero.
    pub arith: u32,
    /// DF at its place in RFLAGS or zero.
    pub df: u32,
    /// IF at its place in RFLAGS or zero.
    pub iflag: u32,
    /// AC at its place in RFLAGS or zero.
    pub ac: u32,
    /// All other bits of RFLAGS that are set, bit 1 not among them.
    pub sysflags: u32,
    /// Number of the block whose indirect branch or return was the last, plus 1; 0: none since the loop last looked.
    pub branch_from: u32,
    /// Interrupts are held off for one instruction: [`SHADOW_STI`], [`SHADOW_SS`] or 0.
    pub interrupt_shadow: u32,
    /// Not zero: interrupt requests may be waiting for IF. What is requested after this was set kicks.
    pub waiting: u32,
    /// Under icount: instructions that may be begun before the loop looks ([`crate::icount`]). Below zero only between a
    /// block's poll and its way out.
    pub budget: i64,
    /// Under icount: instructions of the present block from the one that called a helper on; 0 between blocks.
    pub left: u32,
    /// The present context ([`crate::mmu::soft_tlb::Context`]): the base of the host's GS in generated code.
    pub context: u64,
    /// What that base is.
    pub context_loaded: u64,
    /// Where in a context the jump cache is in which a helper has generated code look for the next block.
    pub resume_jumps: u64,
    /// For refills.
    pub walk: Walk,
    /// Scratch for generated code.
    pub scratch: [u64; 8],
    /// ES CS SS DS FS GS.
    pub seg: [Segment; 6],
    pub ldt: Segment,
    pub task: Segment,
    pub gdt: Table,
    pub idt: Table,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub msr: Msrs,
    /// What RDTSC adds to the clock.
    pub tsc_offset: u64,
    /// HLT was executed and nothing has ended it.
    pub halted: bool,
    /// After INIT on an AP.
    pub wait_for_sipi: bool,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// What the bounce buffer stands for; zero length: nothing.
    pub bounce_va: u64,
    pub bounce_len: u32,
    pub bounce_mode: u32,
    /// Host stack pointer to return to from generated code.
    pub host_rsp: u64,
    /// The [`crate::exec::Vcpu`] that helpers work on.
    pub owner: u64,
    /// A host fault in generated code, for [`crate::exec::signals`]: where, and the context's registers (T0 and T1).
    pub fault_pc: u64,
    pub fault_address: u64,
    pub fault_scratch: [u64; 2],
    pub fault_eflags: u32,
    pub fault_signal: u32,
    pub fault_trap: u32,
    /// Host addresses of the running block's groups of accesses, but the first ones.
    pub groups: [u64; TABLE_GROUPS - FIRST_GROUPS],
    /// Slots, by soft-TLB mode and for reads and writes.
    pub slots: [[[TlbSlot; SLOTS]; 2]; TLB_MODES],
    /// Misses of sites, counting up to zero.
    pub site_misses: [u16; SITE_COUNTERS],
    /// Where returns go, for each class that has its returns predicted.
    pub returns: [[ReturnCache; 2]; mode::RETURN_CLASSES],
    /// Counted by generated code.
    pub counted: CodeCounters,
    pub(crate) align: [u8; XSAVE_PAD],
    /// Bounce buffer for operands that the soft TLB cannot map: MMIO, page-crossing, code pages.
    pub bounce: [u8; 128],
    /// Guest vector and x87 state while `fp_loaded` is 0.
    pub xsave: XsaveArea,
}

/// What blocks use most is reached with a displacement of one byte.
const _: () = assert!(offset_of!(EnvBlock, env) + offset_of!(Env, gpr) + 8 * 11 < 128);

/// The low six bits of the address of each [`EnvBlock`]. The host's RSP is such an address in generated code, and so it is a count
/// for SHRX, which takes none but a register's: an address shifted by it is its place in the table of regions.
pub const REGION_SHIFT: u32 = 16;

/// Bytes before [`Env::xsave`] that bring it to a 64-byte boundary.
const XSAVE_PAD: usize = 32;
const _: () =
    assert!((REGION_SHIFT as usize + offset_of!(EnvBlock, env) + offset_of!(Env, xsave)).is_multiple_of(64));
/// Operands in the bounce buffer must be as aligned as instructions may insist on.
const _: () =
    assert!((REGION_SHIFT as usize + offset_of!(EnvBlock, env) + offset_of!(Env, bounce)).is_multiple_of(64));

/// What lies at the host's RSP while generated code runs: [`REGION_SHIFT`] bytes behind a 64-byte boundary.
#[repr(C, align(16))]
pub struct EnvBlock {
    /// Not zero asks the code to leave. Polled at block entry; written by kickers from any thread.
    pub icount_decr: AtomicU32,
    _pad: u32,
    /// The state proper.
    pub env: Env,
}

/// Bytes of host stack below the environment. Helpers run on it, and one makes an address space there (three quarters of a MiB,
/// twice where the compiler moves it).
const STACK_BYTES: usize = 4 << 20;
const GUARD_BYTES: usize = 64 * 1024;
/// Where in the mapping the [`EnvBlock`] is.
const BLOCK_AT: usize = GUARD_BYTES + STACK_BYTES + REGION_SHIFT as usize;
const _: () = assert!(BLOCK_AT % 64 == REGION_SHIFT as usize);

/// Where the table of regions is from the host's RSP in generated code: at a page's start.
pub const REGION_TABLE: i32 = ((BLOCK_AT + size_of::<EnvBlock>()).next_multiple_of(4096) - BLOCK_AT) as i32;
/// Bytes of it: a page for each region of [`crate::windows`], by an address in it shifted right by [`REGION_SHIFT`]. Only half can
/// be asked for by addresses that user space can have; where others lead to does not matter, as nothing is there that could
/// be reached after it.
pub const REGION_TABLE_BYTES: usize = 1 << 32;

/// The mapping: guard, stack, [`EnvBlock`], table of regions. Kept alive by kickers.
pub struct EnvMapping {
    base: *mut libc::c_void,
    len: usize,
    has_table: bool,
}

// SAFETY: the mapping is plain memory; its only parts reached from several threads are atomics.
unsafe impl Send for EnvMapping {}
// SAFETY: as above.
unsafe impl Sync for EnvMapping {}

impl EnvMapping {
    /// Maps a zeroed environment with its stack.
    pub fn new() -> std::io::Result<Arc<Self>> {
        let used = BLOCK_AT + REGION_TABLE as usize;
        let map = |len| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a fresh anonymous mapping touches nothing that exists.
            let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
            (base != libc::MAP_FAILED).then_some(Self { base, len, has_table: len > used })
        };
        // Address space may be limited (RLIMIT_AS): then there are no windows.
        let mapping = map(used + REGION_TABLE_BYTES).or_else(|| map(used));
        let mapping = mapping.ok_or_else(std::io::Error::last_os_error)?;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the guard is the first part of the mapping that was just made, and stays; the table is the last.
        let done = unsafe { libc::mprotect(mapping.base.byte_add(GUARD_BYTES), used - GUARD_BYTES, rights) };
        if done != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Arc::new(mapping))
    }

    /// The addresses of the table of regions, if there is room for one.
    pub fn region_table(&self) -> Option<std::ops::Range<u64>> {
        let start = self.block() as u64 + REGION_TABLE as u64;
        self.has_table.then_some(start..start + REGION_TABLE_BYTES as u64)
    }

    /// Enters the claimed region that has `address` into the table, with `shift` for whoever looks at it. False: the host refuses.
    pub fn enter_region(&self, address: u64, shift: u8) -> bool {
        let Some(table) = self.region_table() else { return false };
        let page = table.start + (address >> REGION_SHIFT & 0xffff_f000);
        let page = page as *mut u8;
        let protect = |protection| {
            // SAFETY: the page is the table's, which nobody but this module writes.
            unsafe { libc::mprotect(page.cast(), 4096, protection) == 0 }
        };
        // SAFETY: it can be read now, and written then; generated code that looks there runs on this very thread.
        unsafe {
            protect(libc::PROT_READ)
                && (page.read() == shift
                    || protect(libc::PROT_READ | libc::PROT_WRITE) && {
                        page.write_bytes(shift, 4096);
                        protect(libc::PROT_READ)
                    })
        }
    }

    /// Takes the region that has `address` out of the table.
    pub fn leave_region(&self, address: u64) {
        let Some(table) = self.region_table() else { return };
        let page = table.start + (address >> REGION_SHIFT & 0xffff_f000);
        // SAFETY: as in `enter_region`.
        let done = unsafe { libc::mprotect(page as *mut _, 4096, libc::PROT_NONE) == 0 };
        // Another address space's windows may come to lie there.
        assert!(done, "a region cannot be left: {}", std::io::Error::last_os_error());
    }

    /// The block's address: the host's RSP in generated code.
    pub fn block(&self) -> *mut EnvBlock {
        self.base.wrapping_byte_add(BLOCK_AT).cast()
    }

    /// The word that kickers write.
    pub fn icount_decr(&self) -> &AtomicU32 {
        // SAFETY: the block is mapped as long as `self` lives, zero is a valid AtomicU32, and nobody has a `&mut` to
        // this field: `EnvRef` only gives out `env`.
        unsafe { &(*self.block()).icount_decr }
    }
}

impl Drop for EnvMapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; kickers and the CPU hold an Arc, so nobody is left to use it.
        unsafe { libc::munmap(self.base, self.len) };
    }
}

/// The owner's access to the environment. One per mapping, on the CPU's thread.
pub struct EnvRef(Arc<EnvMapping>);

impl EnvRef {
    /// Takes the environment of `mapping`; the caller makes one `EnvRef` per mapping.
    pub fn new(mapping: Arc<EnvMapping>) -> Self {
        Self(mapping)
    }

    /// The mapping.
    pub fn mapping(&self) -> &Arc<EnvMapping> {
        &self.0
    }
}

impl Deref for EnvRef {
    type Target = Env;
    fn deref(&self) -> &Env {
        // SAFETY: mapped while `self` lives; zeroed memory is a valid Env (integers and bools); the CPU's thread is
        // the only user, and generated code runs only inside calls made with the owner borrowed.
        unsafe { &(*self.0.block()).env }
    }
}

impl DerefMut for EnvRef {
    fn deref_mut(&mut self) -> &mut Env {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { &mut (*self.0.block()).env }
    }
}

impl Env {
    /// RFLAGS.
    pub fn rflags(&self) -> u32 {
        self.arith | self.df | self.iflag | self.ac | self.sysflags | 2
    }

    /// Empties the translation slots.
    pub fn forget_slots(&mut self) {
        self.slots = [[[TlbSlot::EMPTY; SLOTS]; 2]; TLB_MODES];
    }

    /// Empties the translation slots of the page at linear address `page`.
    pub fn forget_slots_of(&mut self, page: u64) {
        for slot in self.slots.iter_mut().flatten().flatten().filter(|slot| slot.tag == page) {
            *slot = TlbSlot::EMPTY;
        }
    }

    /// Empties the return caches.
    pub fn forget_returns(&mut self) {
        for cache in self.returns.as_flattened_mut() {
            cache.clear();
        }
    }

    /// Takes the arithmetic flags over from generated code.
    pub fn flags_from_code(&mut self) {
        self.arith = self.lahf >> 8 & 0xd5 | (self.lahf & 1) << 11;
    }

    /// Hands the arithmetic flags to generated code.
    pub fn flags_to_code(&mut self) {
        self.lahf = (self.arith & 0xd5 | 2) << 8 | self.arith >> 11 & 1;
    }

    /// Replaces RFLAGS; bits that do not exist are dropped.
    pub fn set_rflags(&mut self, value: u32) {
        let value = value & flag::ALL;
        self.arith = value & ARITH_FLAGS;
        self.df = value & flag::DF;
        self.iflag = value & flag::IF;
        self.ac = value & flag::AC;
        self.sysflags = value & !(ARITH_FLAGS | flag::DF | flag::IF | flag::AC);
    }

    /// Current privilege level: SS.DPL (SDM vol. 3A, *Privilege Levels*), 3 in virtual-8086 mode, 0 in real mode.
    pub fn cpl(&self) -> u8 {
        if self.cr0 & 1 == 0 {
            0
        } else if self.sysflags & flag::VM != 0 {
            3
        } else {
            ((self.seg[2].access >> 5) & 3) as u8
        }
    }

    /// 64-bit code: EFER.LMA and CS.L.
    pub fn is_64bit(&self) -> bool {
        self.efer & (1 << 10) != 0 && self.seg[1].access & (1 << 13) != 0
    }

    /// Real mode or virtual-8086 mode: selectors are paragraph numbers.
    pub fn is_real_or_vm86(&self) -> bool {
        self.cr0 & 1 == 0 || self.sysflags & flag::VM != 0
    }

    /// Decoder bitness of the current code segment: 16, 32 or 64.
    pub fn code_bits(&self) -> u32 {
        if self.is_64bit() {
            64
        } else if self.seg[1].access & (1 << 14) != 0 {
            32
        } else {
            16
        }
    }

    /// Width of the stack pointer in bits: 16, 32 or 64.
    pub fn stack_bits(&self) -> u32 {
        if self.is_64bit() {
            64
        } else if self.seg[2].access & (1 << 14) != 0 {
            32
        } else {
            16
        }
    }
}
