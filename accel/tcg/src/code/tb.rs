//! A translation block: one entry, straight guest code, at most two direct ways on.

use std::ops::RangeInclusive;

use iced_x86::Instruction;

use crate::exception::Exception;

/// Number of a block. One that is gone leaves its number to another.
pub type TbId = u32;

/// What a block depends on beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TbKey {
    /// RAM page number and offset of the first byte.
    pub physical: u64,
    /// Offset in CS of the first instruction: RIP-relative operands are baked in.
    pub rip: u64,
    /// Mode bits; see [`mode`].
    pub mode: u32,
    /// The RAM page that the last instruction runs over into, or [`NO_PAGE`].
    second_page: u32,
}

impl TbKey {
    /// A key for a block on one page.
    pub fn new(physical: u64, rip: u64, mode: u32) -> Self {
        Self { physical, rip, mode, second_page: NO_PAGE }
    }

    /// The same, of a block whose last instruction runs over into RAM page `page`.
    pub fn crossing_into(self, page: u32) -> Self {
        debug_assert_ne!(page, NO_PAGE);
        Self { second_page: page, ..self }
    }

    /// The RAM page that the last instruction runs over into, where it does.
    pub fn second_page(&self) -> Option<u32> {
        (self.second_page != NO_PAGE).then_some(self.second_page)
    }

    /// Numbers of the RAM pages that it has bytes of.
    pub fn pages(&self) -> impl Iterator<Item = u32> + use<> {
        [Some((self.physical >> 12) as u32), self.second_page()].into_iter().flatten()
    }
}

/// Mode bits: all CPU state that translation depends on.
pub mod mode {
    /// Current privilege level, two bits.
    pub const CPL: u32 = 3;
    /// 64-bit code.
    pub const LONG: u32 = 1 << 2;
    /// CS.D.
    pub const CODE32: u32 = 1 << 3;
    /// SS.B.
    pub const STACK32: u32 = 1 << 4;
    /// Misaligned data accesses raise #AC: CR0.AM, EFLAGS.AC and CPL 3.
    pub const ALIGN: u32 = 1 << 5;
    /// DS, ES and SS are flat, writable and usable (outside 64-bit mode).
    pub const FLAT: u32 = 1 << 6;
    /// CS has base 0.
    pub const FLAT_CODE: u32 = 1 << 7;
    /// CR0.TS.
    pub const TS: u32 = 1 << 8;
    /// CR0.EM.
    pub const EM: u32 = 1 << 9;
    /// CR4.OSFXSR.
    pub const SSE: u32 = 1 << 10;
    /// CR4.OSXSAVE and XCR0 has AVX.
    pub const AVX: u32 = 1 << 11;
    /// XCR0 has AVX-512 as well.
    pub const AVX512: u32 = 1 << 12;
    /// Supervisor accesses reach user pages: CPL below 3, and EFLAGS.AC set or CR4.SMAP clear.
    pub const SMAP_OFF: u32 = 1 << 13;
    /// Real or virtual-8086 mode.
    pub const REAL: u32 = 1 << 14;
    /// One instruction to a block, none chained: single-step, data breakpoints, interrupt shadow, `step`.
    pub const SINGLE: u32 = 1 << 15;

    /// No groups of accesses: a check of one has failed.
    pub const UNGROUPED: u32 = 1 << 16;

    /// Operands are reached through windows ([`crate::windows`]): 64-bit code at CPL 3, in the address space that has them.
    pub const WINDOWED: u32 = 1 << 17;

    /// With [`WINDOWED`]: some of the windows are not at the program's own addresses.
    pub const SHIFTED: u32 = 1 << 18;

    /// Bits that are a whole address space's: blocks that differ in them are not linked, and jump caches are emptied when they
    /// change.
    pub const OF_SPACE: u32 = WINDOWED | SHIFTED;

    /// The soft-TLB mode of a block's own accesses.
    pub fn tlb_mode(bits: u32) -> usize {
        use crate::mmu::access::{MODE_SMAP, MODE_SUPERVISOR, MODE_USER};
        match (bits & CPL, bits & SMAP_OFF) {
            (3, _) => MODE_USER,
            (_, 0) => MODE_SMAP,
            _ => MODE_SUPERVISOR,
        }
    }

    /// Classes of modes that have a jump cache each ([`class`]).
    pub const CLASSES: usize = 4;
    /// 64-bit code at CPL 3.
    pub const USER64: usize = 0;
    /// 64-bit code at CPL 0, SMAP in force or absent.
    pub const KERNEL64: usize = 1;
    /// 64-bit code at CPL 0 with SMAP suspended.
    pub const KERNEL64_AC: usize = 2;
    /// Flat 32-bit code at CPL 3.
    pub const USER32: usize = 3;
    /// Classes that have a second, larger jump cache: the first of them.
    pub const FAR_CLASSES: usize = 2;
    /// Classes whose returns are predicted: the first of them.
    pub const RETURN_CLASSES: usize = 2;
    /// Bits that differ within a class: the CPU's vector state as the operating system has enabled it. When they change,
    /// every jump cache is emptied.
    pub const VARIABLE: u32 = SSE | AVX | AVX512;

    /// The jump cache that finds blocks of `mode`; `None`: the loop looks them up. An entry there is found by its address
    /// alone, so a class is what one address means one block in: it tells all bits but [`VARIABLE`] and [`OF_SPACE`].
    pub fn class(mode: u32) -> Option<usize> {
        match mode & !(VARIABLE | UNGROUPED | OF_SPACE) {
            bits if bits == LONG | FLAT_CODE | 3 => Some(USER64),
            bits if bits == LONG | FLAT_CODE => Some(KERNEL64),
            bits if bits == LONG | FLAT_CODE | SMAP_OFF => Some(KERNEL64_AC),
            bits if bits == CODE32 | STACK32 | FLAT | FLAT_CODE | 3 => Some(USER32),
            _ => None,
        }
    }
}

/// An instruction that a helper executes, at an address that generated code passes.
pub struct Site {
    /// The instruction.
    pub insn: Instruction,
    /// Raise this instead of executing.
    pub raise: Option<Exception>,
    /// Its address as offset in CS.
    pub rip: u64,
    /// Instructions of the block behind it.
    pub left: u32,
}

/// From `host` on (offset in the block's code), the code belongs to guest instruction `insn`. What is kept of each block is
/// kept small: there are a hundred thousand of them, and most is looked at once or never.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    /// Offset of the first byte.
    pub host: u16,
    /// Index of the instruction.
    pub insn: u8,
    pub(super) state: u16,
}

/// [`Mark::state`]: a bit for a register that is never parked.
pub(super) const FLAGS_IN_HOST: u16 = 1 << 5;
/// Where two bits for each scratch register begin there: which cold register it has, of [`FIRST_COLD`] and those that follow,
/// plus 1.
const WAITING_AT: u32 = 8;
const FIRST_COLD: usize = 9;

/// Where four bits begin there that are a signed number: by how many words of 8 bytes the guest's RSP is ahead of the register
/// that has it.
const AHEAD_AT: u32 = 12;
/// What that number can be.
pub const WORDS_AHEAD: RangeInclusive<i32> = -8..=7;

/// The guest registers that scratch registers T0 and T1 have and the environment has not yet.
pub type Waiting = [Option<usize>; 2];

impl Mark {
    /// From these parts; nothing is ahead.
    pub fn new(host: usize, insn: usize, flags_in_host: bool, parked: u8, waiting: Waiting) -> Self {
        let [first, second] = waiting.map(|guest| guest.map_or(0, |guest| (guest - FIRST_COLD + 1) as u16));
        let flags = if flags_in_host { FLAGS_IN_HOST } else { 0 };
        let state = u16::from(parked) | flags | first << WAITING_AT | second << (WAITING_AT + 2);
        Self { host: host as u16, insn: insn as u8, state }
    }

    /// The same, where the guest's RSP is `words` (one of [`WORDS_AHEAD`]) ahead.
    pub fn with_stack_ahead(self, words: i32) -> Self {
        debug_assert!(WORDS_AHEAD.contains(&words));
        Self { state: self.state | (words as u16) << AHEAD_AT, ..self }
    }

    /// By how many words of 8 bytes the guest's RSP is more than the register that has it.
    pub fn stack_ahead(self) -> i64 {
        i64::from(self.state as i16 >> AHEAD_AT)
    }

    /// Whether it says the same as `other` of another place.
    pub fn agrees(self, other: Self) -> bool {
        (self.insn, self.state) == (other.insn, other.state)
    }

    /// The guest's flags are in EFLAGS here (else in `env.lahf`, or dead).
    pub fn flags_in_host(self) -> bool {
        self.state & FLAGS_IN_HOST != 0
    }

    /// Host registers that stand in for others meanwhile, a bit each; their own values are parked from scratch word
    /// [`PARKED`] on, in [`PARKING_ORDER`].
    pub fn parked(self) -> u8 {
        (self.state & !FLAGS_IN_HOST) as u8
    }

    /// The guest registers that scratch registers have.
    pub fn waiting(self) -> Waiting {
        [0, 2].map(|at| {
            let number = usize::from(self.state >> (WAITING_AT + at) & 3);
            (number != 0).then(|| FIRST_COLD + number - 1)
        })
    }
}

/// Host registers that may stand in for others, in the order in which they are taken. They hold the guest registers of the
/// same number.
pub const PARKING_ORDER: [usize; 6] = [3, 6, 7, 2, 1, 0];
/// First scratch word for parked registers.
pub const PARKED: usize = 4;

/// Direct ways on that a block has before it gets further ones for its groups, at most.
pub const GROUP_WAYS: usize = 12;
/// Direct ways on that a block can have, as a power of two.
const WAY_BITS: u32 = 5;

/// The number of slot `slot` of block `id`.
pub fn way(id: TbId, slot: usize) -> u64 {
    debug_assert!(slot < 1 << WAY_BITS);
    u64::from(id) << WAY_BITS | slot as u64
}

/// The block and the slot of a way's number.
pub fn of_way(way: u64) -> (TbId, usize) {
    ((way >> WAY_BITS) as TbId, (way & ((1 << WAY_BITS) - 1)) as usize)
}

/// A direct way on. Places are offsets in the block's code.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The jump's displacement.
    pub displacement: u16,
    /// Where the jump goes while unlinked.
    pub stub: u16,
    /// The target block is entered with its flags saved.
    pub flags_saved: bool,
    /// The target is the version without groups of what the block goes on with.
    pub ungrouped: bool,
    /// The target is at a higher address: no loop closes here, so the poll is passed over.
    pub forward: bool,
    /// The jump goes to another page: what has to be so for it to be taken.
    pub guard: Option<Guard>,
    /// The block that it is linked to, or [`NONE`].
    pub linked: TbId,
    /// The next of the ways that were linked to the same block ([`Tb::incoming`]).
    pub next: u32,
}

/// Number of no block, and of no way.
pub const NONE: u32 = u32::MAX;

impl Slot {
    /// Before its stub is emitted.
    pub const UNKNOWN: Self = Self {
        displacement: 0,
        stub: 0,
        flags_saved: false,
        ungrouped: false,
        forward: false,
        guard: None,
        linked: NONE,
        next: NONE,
    };
}

/// The guard of a jump to another page: a comparison of the target page's entry in the table of code pages
/// ([`crate::env::Env::code_pages`]) with the number that stands for the page as it was mapped when the jump was linked.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// The number; [`NO_PAGE`] while unlinked.
    pub number: u16,
    /// The displacement of the jump that is taken if the numbers differ.
    pub otherwise: u16,
    /// Where that jump goes while linked: the jump cache is asked.
    pub lookup: u16,
}

/// Number of no page, and of no page mapping: never in a table of code pages.
pub const NO_PAGE: u32 = u32::MAX;

/// Where in its code a block is entered.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// With the flags in `env.lahf`.
    pub saved: u8,
    /// With the flags in EFLAGS.
    pub host: u8,
    /// As `host`, behind the poll.
    pub forward: u8,
}

impl Entries {
    /// The block may read the flags that it is entered with: else it has nothing to do about where they are.
    pub fn take_flags(&self) -> bool {
        self.saved != self.host
    }
}

/// The guest bytes that a block is made of, as offsets in its page; those from 4096 on are on the second one.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The first.
    pub start: u16,
    /// Behind the last.
    pub end: u16,
}

/// A block, in one cache line: there are a hundred thousand of them.
#[repr(C, align(64))]
pub struct Tb {
    /// What it was translated from.
    pub key: TbKey,
    /// CPUs that may have it in a jump cache, a bit each.
    pub cpus: u64,
    /// Number of its page's mapping; see [`Guard`].
    pub page_number: u32,
    /// The first of the ways that were linked to this one ([`way`]), a list by [`Slot::next`]; [`NONE`] ends it.
    pub incoming: u32,
    /// Where in code memory its code begins.
    pub code: u32,
    /// Where its parts of its region's lists begin ([`crate::code::store`]): its ways on,
    pub slots: u32,
    /// and what is noted of its code ([`crate::code::notes`]).
    pub notes: u32,
    /// Bytes of code.
    pub code_len: u16,
    /// Its guest bytes.
    pub span: Span,
    /// Where it is entered.
    pub entries: Entries,
    /// How many ways on it has.
    pub slots_len: u8,
    /// Times that a check of a group could not be made good.
    pub ungrouped: u8,
    /// Still to be found and linked to.
    pub valid: bool,
}

const _: () = assert!(size_of::<Tb>() == 64);

/// What comes with a new block: its ways on, what its code belongs to, and what its code has the addresses of.
#[derive(Default)]
pub struct Lists {
    /// Direct ways on.
    pub slots: Vec<Slot>,
    /// Code to guest instruction, ascending.
    pub marks: Vec<Mark>,
    /// Guest offset of each instruction from the key's RIP, and of the end.
    pub insns: Vec<i16>,
    /// Instructions for helpers.
    // Boxed: generated code has their addresses.
    pub sites: Vec<Box<Site>>,
    /// Bytes that the return at the block's end takes off the stack; 0 for other ends.
    pub popped: u32,
    /// Number of the second page's mapping, which its code has; 0 if there is none.
    pub second_number: u32,
    /// Bytes of its instructions.
    pub guest_bytes: u32,
}

impl Lists {
    /// Empties them.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.marks.clear();
        self.insns.clear();
        self.sites.clear();
        (self.popped, self.second_number, self.guest_bytes) = (0, 0, 0);
    }
}

impl Tb {
    /// What stands for a block that is going to be entered.
    pub const NOT_YET: Self = Self {
        key: TbKey { physical: 0, rip: 0, mode: 0, second_page: NO_PAGE },
        cpus: 0,
        page_number: NO_PAGE,
        incoming: NONE,
        code: 0,
        slots: 0,
        notes: 0,
        code_len: 0,
        span: Span { start: 0, end: 0 },
        entries: Entries { saved: 0, host: 0, forward: 0 },
        slots_len: 0,
        ungrouped: 0,
        valid: false,
    };

    /// Number of its page.
    pub fn page(&self) -> u32 {
        (self.key.physical >> 12) as u32
    }

    /// Whether it was made from any of these bytes of RAM page `page`.
    pub fn covers(&self, page: u32, offset: u32, len: u32) -> bool {
        let (start, end) = (u32::from(self.span.start), u32::from(self.span.end));
        let on_first = page == self.page() && offset < end && start < offset + len;
        let on_second = self.key.second_page() == Some(page) && offset < end.saturating_sub(4096);
        on_first || on_second
    }

    /// Whether the block can be reached by a patched jump. One that runs over into another page looks itself whether
    /// that is still mapped as it was.
    pub fn chainable(&self) -> bool {
        self.key.mode & mode::SINGLE == 0
            && (self.key.second_page().is_none() || mode::class(self.key.mode).is_some())
    }
}
