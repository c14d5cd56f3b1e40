//! The address check: from a guest operand to a host address. The one module that emits it.
//!
//! Two schemes: a slot (`env.slots`) that remembers the page that accesses of one kind last went to, which keeps the lookup
//! off the way from address to data; and one probe of a direct-mapped table. The stack, segments and constants stay on one
//! page for long and go by slots; other registers go from object to object, and their accesses by the table. (Measured:
//! with slots by base register, an interpreter of objects misses every fifth time and takes a third longer; kernels a
//! tenth.) A site that misses its slot often goes by the table all the same ([`crate::exec::sites`]).
//!
//! A miss calls a helper, which translates and comes back with the host address, or raises the fault. A store that may
//! not go straight to memory (MMIO, a page with code, two pages) goes to the bounce buffer: the stub executes a copy
//! of the instruction on it and has it committed.

mod direct;
mod group_check;
pub mod ramps;
pub mod window;

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, Register};

use crate::code::emitter::{Patch, cc};
use crate::code::tb::mode;
use crate::code::thunks::{T0, T1, gpr_offset};
use crate::env::{FIRST_GROUPS, SLOTS, TlbSlot};
use crate::env_offset;
use crate::exec::helpers;
use crate::mmu::soft_tlb::{TLB_ENTRIES, table_offset};
use crate::operand::segment_index;
use crate::translate::address::direct::Linear;
use crate::translate::block::Item;
use crate::translate::cold::Held;
use crate::translate::encode::{Memory, Op};
use crate::translate::flags::Flags;
use crate::translate::generator::Translator;
use crate::translate::groups::{Member, Way};
use crate::translate::native::waits;
use crate::translate::place::Place;
use crate::translate::registers::{gpr_number, host_number};

/// The stack pointer's slot.
pub const STACK_SLOT: usize = 0;
/// First slot of operands in FS and GS: four each.
const SEGMENT_SLOTS: usize = 1;
/// First slot of operands at constant addresses.
const CONSTANT_SLOTS: usize = 9;
/// How many of them there are.
const CONSTANT_PAGES: usize = 16;
/// Not used: what a helper that fills a slot fills for groups that have none.
const NO_SLOT: usize = SLOTS - 1;
const _: () = assert!(CONSTANT_SLOTS + CONSTANT_PAGES <= NO_SLOT);

/// What is done with the host address that a check has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// The instruction itself, re-encoded on it.
    Native,
    /// The bit test whose bit offset went into the address.
    BitTest,
    /// A push of what the instruction names.
    Push,
    /// A push of the word in scratch 1.
    PushScratch,
    /// A push of the next instruction's address.
    PushReturn,
    /// A load: no copy is needed.
    Load,
    /// Nothing yet: several accesses follow.
    Member,
}

/// The way to an operand.
#[derive(Clone, Copy, Debug)]
pub enum Path {
    /// By this slot; then it is at this place.
    Slot(usize, Place),
    /// By the table.
    Table,
    /// By this slot, to this address, without T0.
    Constant {
        /// The slot.
        slot: usize,
        /// The linear address.
        linear: u64,
    },
    /// By the table, to so many bytes above this host register, without T0.
    Near {
        /// Host register.
        base: u8,
        /// In bytes, not negative.
        displacement: i32,
    },
}

impl Path {
    /// To `displacement` bytes from the 64-bit stack pointer.
    pub fn stack(displacement: i32) -> Self {
        Self::Slot(STACK_SLOT, Place::Base { base: 9, displacement })
    }

    /// The slot.
    fn slot(self) -> Option<usize> {
        match self {
            Self::Slot(slot, _) | Self::Constant { slot, .. } => Some(slot),
            Self::Table | Self::Near { .. } => None,
        }
    }
}

/// Offset of a slot from the host's RSP.
fn slot_offset(tlb_mode: usize, write: bool, slot: usize) -> i32 {
    let index = (tlb_mode * 2 + usize::from(write)) * SLOTS + slot;
    env_offset!(slots) + (index * size_of::<TlbSlot>()) as i32
}

/// Offset of where the address of table group `number` is kept.
fn kept_offset(number: usize) -> i32 {
    match number.checked_sub(FIRST_GROUPS) {
        None => env_offset!(first_groups) + 8 * number as i32,
        Some(number) => env_offset!(groups) + 8 * number as i32,
    }
}

/// How T0 becomes the linear address again after a check has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restore {
    /// It is.
    Nothing,
    /// By the tag of the slot at this offset.
    Slot(i32),
    /// By the tag of the entry at T1 in the table at this offset.
    Entry(i32),
}

/// The way for accesses that miss, emitted behind the block.
pub struct MissStub {
    patch: Patch,
    misaligned: Option<Patch>,
    restore: Restore,
    linear: Linear,
    thunk: u64,
    place: Place,
    /// After the host page was loaded.
    back: u64,
    /// After the access.
    pub(super) after: u64,
    /// For the helper: size and what else it must know.
    packed: u32,
    write: bool,
    used_for: Use,
    insn: usize,
    /// State at the check.
    flags: Flags,
    fp_loaded: bool,
}

impl MissStub {
    /// With what the check's kind decides; the rest is [`Translator::check`]'s.
    fn new(patch: Patch, restore: Restore, thunk: u64, packed: u32) -> Self {
        Self {
            patch,
            misaligned: None,
            restore,
            linear: Linear::Ready,
            thunk,
            place: Place::Sum(0),
            back: 0,
            after: 0,
            packed,
            write: false,
            used_for: Use::Load,
            insn: 0,
            flags: Flags::Dead,
            fp_loaded: false,
        }
    }
}

impl Translator {
    /// T0 = the linear address of the memory operand of `insn`, before the check. Clobbers T1; keeps EFLAGS, except for
    /// segments that a helper must check.
    pub(super) fn linear_to_t0(&mut self, insn: &Instruction, size: u32, write: bool) -> Path {
        if self.segment_at_once(insn) {
            return self.path_of(insn);
        }
        self.offset_to_t0(insn);
        self.segment_t0(insn.memory_segment(), size, write, waits(insn));
        self.path_of(insn)
    }

    /// The way to the operand of `insn`. Sites share a slot that go by the stack pointer, to the same page of a segment, or to
    /// the same constant page.
    pub(super) fn path_of(&self, insn: &Instruction) -> Path {
        let displacement = insn.memory_displacement64();
        let page = (displacement >> 12) as usize;
        let segment = segment_index(insn.memory_segment());
        if segment >= 4 {
            return Path::Slot(SEGMENT_SLOTS + (segment - 4) * 4 + page % 4, Place::Sum(0));
        }
        match (insn.memory_base(), insn.memory_index()) {
            (Register::RSP, Register::None) => Path::stack(displacement as i32),
            (Register::None | Register::RIP | Register::EIP, Register::None) => {
                Path::Slot(CONSTANT_SLOTS + page % CONSTANT_PAGES, Place::Sum(0))
            }
            _ => Path::Table,
        }
    }

    /// T0 = the linear address of an operand in FS or GS of 64-bit code, with one addition, if it can be.
    fn segment_at_once(&mut self, insn: &Instruction) -> bool {
        let segment = segment_index(insn.memory_segment());
        let displacement = i32::try_from(insn.memory_displacement64() as i64);
        let base = gpr_number(insn.memory_base());
        let resident = base.map(host_number);
        let (Ok(displacement), true) = (displacement, self.bits == 64 && segment >= 4) else { return false };
        if insn.memory_index() != Register::None
            || matches!(insn.memory_base(), Register::RIP | Register::EIP)
            || address_width(insn, 64) != 64
            || resident == Some(None)
        {
            return false;
        }
        let at = env_offset!(seg) + (segment * size_of::<crate::env::Segment>()) as i32;
        dynasm!(self.e ; .arch x64 ; mov r10, [rsp + at]);
        let memory = match resident.flatten() {
            Some(base) => Memory { base: Some(base as u8), index: Some((10, 1)), displacement },
            None if displacement == 0 => return true,
            None => Memory { base: Some(10), index: None, displacement },
        };
        self.e.memory_op(Op::Lea, 10, memory, 8);
        true
    }

    /// T0 = T0 made linear in `segment`. `waits`: a pending x87 exception comes before what the segment raises.
    pub(super) fn segment_t0(&mut self, segment: Register, size: u32, write: bool, waits: bool) {
        let index = segment_index(segment);
        if self.bits == 64 {
            if index >= 4 {
                let base = env_offset!(seg) + (index * size_of::<crate::env::Segment>()) as i32;
                dynasm!(self.e ; .arch x64 ; mov r11, [rsp + base] ; lea r10, [r10 + r11]);
                self.t1 = None;
            }
            return;
        }
        let flat = self.key.mode & mode::FLAT != 0 && matches!(index, 0 | 2 | 3);
        if !flat {
            self.flags_saved();
            self.t1 = None;
            self.flags = Flags::Saved;
            let packed =
                index as u32 | size << 8 | if waits { helpers::X87 } else { 0 } | u32::from(write) << 31;
            dynasm!(self.e ; .arch x64 ; mov r11d, packed as i32);
            self.e.call(self.thunks.linear);
            self.fp_loaded = false;
        }
    }

    /// T0 = the offset that the memory operand of `insn` names, of the address size. Clobbers T1; keeps EFLAGS.
    pub(super) fn offset_to_t0(&mut self, insn: &Instruction) {
        let width = address_width(insn, self.bits);
        let constant = self.offset_to(T0, 8, insn);
        // Guest registers may hold anything above the address size.
        match width {
            16 => dynasm!(self.e ; .arch x64 ; movzx r10d, r10w),
            32 if !constant => dynasm!(self.e ; .arch x64 ; mov r10d, r10d),
            _ => {}
        }
    }

    /// Host register `to` = what the memory operand of `insn` is made of, not yet cut to the address size, in a register of
    /// `size` bytes. Whether it is a constant.
    pub(super) fn offset_to(&mut self, to: u8, size: u32, insn: &Instruction) -> bool {
        let base = insn.memory_base();
        let displacement = insn.memory_displacement64();
        let index = gpr_number(insn.memory_index()).map(|index| (index, insn.memory_index_scale()));
        let constant = match (base, gpr_number(base), index) {
            (Register::RIP | Register::EIP, ..) => displacement,
            (_, None, None) if address_width(insn, self.bits) == 64 => displacement,
            (_, None, None) => displacement & 0xffff_ffff,
            (_, base, index) => {
                self.address_to(to, size, base, index, displacement as i64 as i32);
                return false;
            }
        };
        self.constant_to(to, if size == 8 { constant } else { constant & 0xffff_ffff });
        true
    }

    /// T0 = the sum of guest registers `base`, `index` times its scale, and a constant.
    fn address_to_t0(&mut self, base: Option<usize>, index: Option<(usize, u32)>, displacement: i32) {
        self.address_to(T0, 8, base, index, displacement);
    }

    /// Host register `to`, of `size` bytes, = the sum of guest registers `base`, `index` times its scale, and a constant. Clobbers
    /// T0 and T1 for what is cold.
    fn address_to(
        &mut self,
        to: u8,
        size: u32,
        base: Option<usize>,
        index: Option<(usize, u32)>,
        displacement: i32,
    ) {
        let base = base.map(|number| self.resident(number, T0));
        // The base may be held where the index would go.
        let scratch = if base == Some(T1) { T0 } else { T1 };
        let index = index.map(|(number, scale)| (self.resident(number, scratch), scale));
        // An index that is not scaled does as a base, whose displacement can be short.
        let (base, index) = match (base, index) {
            (None, Some((index, 1))) => (Some(index), None),
            both => both,
        };
        match (base, index, displacement, size) {
            (Some(base), None, 0, 8) if base == to => {}
            (Some(base), None, 0, 8) => dynasm!(self.e ; .arch x64 ; mov Rq(to), Rq(base)),
            _ => self.e.memory_op(Op::Lea, to, Memory { base, index, displacement }, size),
        }
        if to == T0 {
            self.t0 = None;
        }
    }

    /// The host register that has guest register `number`, which is loaded into `scratch` if it is cold and not held.
    fn resident(&mut self, number: usize, scratch: u8) -> u8 {
        if let Some(host) = host_number(number) {
            return host as u8;
        }
        if let Some(host) = self.held_in(number) {
            return host;
        }
        self.e.load_env(scratch, gpr_offset(number));
        self.holds(scratch, number);
        scratch
    }

    /// Host register `to` = a constant.
    fn constant_to(&mut self, to: u8, value: u64) {
        match (i32::try_from(value as i64), u32::try_from(value)) {
            (_, Ok(unsigned)) => dynasm!(self.e ; .arch x64 ; mov Rd(to), unsigned as i32),
            (Ok(short), _) => dynasm!(self.e ; .arch x64 ; mov Rq(to), short),
            _ => dynasm!(self.e ; .arch x64 ; mov Rq(to), QWORD value as i64),
        }
        if to == T0 {
            self.t0 = None;
        }
    }

    /// Checks an access of as many bytes as `packed` says (see [`helpers::ALSO_LOADS`]) at the linear address in T0, which
    /// `path` leads to. Afterwards the operand is at [`Translator::place`]. The flags must be free
    /// ([`Translator::flags_free`]). Returns the number of the stub, whose `after` the caller sets for stores.
    pub(super) fn check(&mut self, packed: u32, write: bool, path: Path, used_for: Use) -> usize {
        let alignment = helpers::alignment((packed & helpers::SIZE).into()) as u32;
        let aligned = self.key.mode & mode::ALIGN != 0 && alignment > 1 && alignment.is_power_of_two();
        let by_table = aligned || self.hashed >> self.now & 1 != 0;
        self.t0 = None;
        // The flags are free.
        let stub = match path {
            Path::Slot(slot, place) if !by_table => {
                self.count(env_offset!(counted.slot_checks));
                self.check_slot(packed, write, slot, place)
            }
            Path::Constant { slot, linear } => {
                self.count(env_offset!(counted.slot_checks));
                self.check_constant(packed, write, slot, linear)
            }
            Path::Near { base, displacement } => {
                self.count(env_offset!(counted.table_checks));
                self.check_near(packed, write, base, displacement)
            }
            _ => {
                self.count(env_offset!(counted.table_checks));
                self.check_hashed(packed, write, aligned.then_some(alignment))
            }
        };
        // The access itself can fault, with the flags where they are now.
        self.mark();
        let back = self.e.here();
        self.miss_stubs.push(MissStub {
            back,
            after: back,
            packed: stub.packed,
            write,
            used_for,
            insn: self.now,
            flags: self.flags,
            fp_loaded: self.fp_loaded,
            place: self.place,
            ..stub
        });
        self.miss_stubs.len() - 1
    }

    /// By `slot`, to `place`:
    ///
    /// ```text
    ///     xor t0, [slot.tag]          ; offset in the page, if it is this page's
    ///     cmp t0, 0x1000 - size       ; the page's, and not running over its end
    ///     ja  miss
    ///     mov t1, [slot.addend]
    ///     ... [base + t1 + disp]
    /// ```
    fn check_slot(&mut self, packed: u32, write: bool, slot: usize, place: Place) -> MissStub {
        let size = (packed & helpers::SIZE) as i32;
        let tlb_mode = mode::tlb_mode(self.key.mode);
        let at = slot_offset(tlb_mode, write, slot);
        let restore = match place {
            Place::Base { .. } => {
                dynasm!(self.e ; .arch x64 ; xor r10, [rsp + at] ; cmp r10, 0x1000 - size);
                Restore::Slot(at)
            }
            Place::Sum(_) | Place::Host(_) | Place::Window(_) | Place::Own(_) => {
                dynasm!(self.e ; .arch x64 ; mov r11, r10 ; xor r11, [rsp + at] ; cmp r11, 0x1000 - size);
                Restore::Nothing
            }
        };
        let patch = self.e.jcc(cc::A);
        dynasm!(self.e ; .arch x64 ; mov r11, [rsp + at + 8]);
        self.t1 = Some(Held::Addend(at + 8));
        self.place = place;
        let packed = packed | (slot as u32) << helpers::SLOT_SHIFT;
        MissStub::new(patch, restore, self.thunks.slot_miss[tlb_mode][usize::from(write)], packed)
    }

    /// By one probe of the table:
    ///
    /// ```text
    ///     rorx  t1d, t0d, 8               ; page number * 16
    ///     and   t1d, (entries - 1) * 16
    ///     xor   t0, gs:[t1 + table]
    ///     cmp   t0, 0x1000 - size
    ///     ja    miss
    ///     mov   t1, gs:[t1 + table + 8]   ; host page
    ///     ...   [t1 + t0]
    /// ```
    fn check_hashed(&mut self, packed: u32, write: bool, alignment: Option<u32>) -> MissStub {
        let size = (packed & helpers::SIZE) as i32;
        let tlb_mode = mode::tlb_mode(self.key.mode);
        let table = table_offset(tlb_mode, write);
        self.table_index_to_t1(10);
        dynasm!(self.e ; .arch x64 ; gs xor r10, [r11 + table]);
        let misaligned = alignment.map(|alignment| {
            dynasm!(self.e ; .arch x64 ; test r10d, alignment as i32 - 1);
            self.e.jcc(cc::NE)
        });
        dynasm!(self.e ; .arch x64 ; cmp r10, 0x1000 - size);
        let patch = self.e.jcc(cc::A);
        dynasm!(self.e ; .arch x64 ; gs mov r11, [r11 + table + 8]);
        self.t1 = None;
        self.place = Place::Sum(0);
        let packed = packed | if alignment.is_some() { helpers::CHECK_ALIGNMENT } else { 0 };
        let thunk = self.thunks.refill[tlb_mode][usize::from(write)];
        MissStub { misaligned, ..MissStub::new(patch, Restore::Entry(table), thunk, packed) }
    }

    /// T1 = 16 times the index in a table of the address in host register `address`.
    fn table_index_to_t1(&mut self, address: u8) {
        if self.bmi2 {
            dynasm!(self.e ; .arch x64 ; rorx r11d, Rd(address), 8);
        } else {
            dynasm!(self.e ; .arch x64 ; mov r11d, Rd(address) ; shr r11d, 8);
        }
        dynasm!(self.e ; .arch x64 ; and r11d, (TLB_ENTRIES as i32 - 1) << 4);
    }

    /// Reaches the operand of the present instruction, which `path` leads to and makes an address in T0 of: by a check, or
    /// because its group was checked. Returns what [`Translator::checked_access_ends`] is to be told.
    pub(super) fn reach(
        &mut self,
        (packed, write): (u32, bool),
        live: u8,
        used_for: Use,
        path: impl FnOnce(&mut Self, Use) -> Path,
    ) -> Option<usize> {
        if let Some(member) = self.groups.members[self.now] {
            let path = path(self, Use::Member);
            self.reach_member(member, path);
            return None;
        }
        self.flags_free(live);
        let path = path(self, used_for);
        Some(self.check(packed, write, path, used_for))
    }

    /// The operand of an instruction whose group was checked.
    fn reach_member(&mut self, member: Member, path: Path) {
        let (kept, place) = match (member.way, path) {
            (Way::Slot(slot), Path::Slot(_, place)) => {
                (slot_offset(mode::tlb_mode(self.key.mode), member.write, slot) + 8, place)
            }
            (Way::Slot(_), _) => unreachable!("its group has found it by the same path"),
            (Way::Table(number), _) => (kept_offset(number), Place::Host(member.distance)),
        };
        if self.t1 != Some(Held::Addend(kept)) {
            self.e.load_env(T1, kept);
            self.t1 = Some(Held::Addend(kept));
        }
        self.place = place;
        self.mark();
    }

    /// The access that [`Translator::reach`] has led to has been emitted up to here.
    pub(super) fn checked_access_ends(&mut self, stub: Option<usize>) {
        let Some(stub) = stub else { return };
        self.miss_stubs[stub].after = self.e.here();
        if self.miss_stubs[stub].write {
            // Where it was committed they hold something else.
            self.nothing_held();
        }
    }

    pub(super) fn miss_stub(&mut self, items: &[Item], stub: MissStub) {
        let item = &items[stub.insn];
        self.now = stub.insn;
        self.flags = stub.flags;
        self.fp_loaded = stub.fp_loaded;
        self.nothing_held();
        self.mark();
        let ramp = self.ramp(stub.restore, stub.thunk, stub.packed);
        self.e.bind(stub.patch);
        if let Some(patch) = stub.misaligned {
            self.e.bind(patch);
        }
        if stub.used_for == Use::Member {
            self.leave_if_on_two_pages(stub.packed & helpers::SIZE, item.insn.ip());
        }
        self.linear_for_stub(stub.linear);
        self.e.call(ramp);
        self.unlinear_for_stub(stub.linear);
        self.place = stub.place;
        if stub.fp_loaded {
            // Not every way through the thunk gives them up.
            self.e.call(self.thunks.fp_again);
        }
        if !stub.write || stub.used_for == Use::Member {
            self.e.jmp_to(stub.back);
            return;
        }
        self.e.jcc_to(cc::E, stub.back);
        match stub.used_for {
            Use::Native => self.native_on_host(item),
            Use::BitTest => self.bit_test_on_host(item),
            Use::Push => self.store_pushed(item),
            Use::PushScratch => self.store_scratch(item),
            Use::PushReturn => self.store_return(item),
            Use::Load | Use::Member => {}
        }
        self.mark();
        self.e.call(if self.flags.in_host() { self.thunks.commit_flags } else { self.thunks.commit });
        if stub.fp_loaded {
            self.e.call(self.thunks.fp_restore);
        }
        self.e.jmp_to(stub.after);
    }

    /// T0 = the zero-extended word of `size` (4 or 8) bytes that `item`'s memory operand names.
    pub(super) fn memory_to_t0(&mut self, item: &Item, size: u32) {
        if self.reach_window(&item.insn) {
            return self.load(10, size);
        }
        self.flags_free(item.live_in);
        let path = self.path_to(&item.insn, size, false);
        self.check(size | stack_bit(&item.insn, self.bits), false, path, Use::Load);
        self.load(10, size);
    }
}

/// [`helpers::STACK`] if the memory operand of `insn` is in the stack segment. In 64-bit mode its base says so: overrides
/// other than FS and GS are ignored.
pub fn stack_bit(insn: &Instruction, bits: u32) -> u32 {
    let stack = match insn.memory_segment() {
        Register::FS | Register::GS => false,
        segment if bits != 64 => segment == Register::SS,
        _ => matches!(insn.memory_base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP),
    };
    if stack { helpers::STACK } else { 0 }
}

/// Address size of the memory operand of `insn` in bits.
pub fn address_width(insn: &Instruction, bits: u32) -> u32 {
    let register =
        if insn.memory_base() != Register::None { insn.memory_base() } else { insn.memory_index() };
    match register.size() {
        8 => 64,
        4 => 32,
        2 => 16,
        // No register: the displacement tells; its size is 2, 4 or 8 bytes, sign-extended to the address size.
        _ => match (insn.memory_displ_size(), bits) {
            (2, _) => 16,
            (8, _) | (_, 64) => 64,
            _ => 32,
        },
    }
}
