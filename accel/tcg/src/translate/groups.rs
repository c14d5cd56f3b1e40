//! Groups: accesses of one block that one check is made for.
//!
//! Operands that are addressed by the same registers and constants lie at known distances from each other, as long as the
//! registers change by constants only. One check of the whole stretch, on one page, is then as good as one for each: the
//! slot that it has gone by holds what makes host addresses for all of them, since nothing between them can refill or
//! empty it. It is made where nobody needs the flags, at or before the first access.
//!
//! If the check fails, nothing has happened yet: the block is gone on with in a version without groups, from there.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::env::TABLE_GROUPS;
use crate::translate::block::Item;
use crate::translate::classify::Class;
use crate::translate::native::has_memory;
use crate::translate::registers::gpr_number;

/// Bytes that a group spans at most: what the size argument of the miss helpers can say.
const MAX_SPAN: i64 = 255;
/// Bytes that a register may move by and still lie close to where it was.
pub const STEP: u32 = 1 << 16;
/// Guest register numbers.
pub const RSP: u8 = 4;
pub const RBP: u8 = 5;

/// What an operand's address is made of, beside a constant. Guest register numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Base register.
    pub base: u8,
    /// Index register and scale.
    pub index: Option<(u8, u8)>,
}

impl Base {
    /// The registers, a bit each.
    fn registers(self) -> u16 {
        1 << self.base | self.index.map_or(0, |(index, _)| 1 << index)
    }

    /// What changes in the address when `register` is increased by 1.
    fn factor(self, register: u8) -> i64 {
        let index =
            self.index.filter(|&(index, _)| index == register).map_or(0, |(_, scale)| i64::from(scale));
        i64::from(self.base == register) + index
    }
}

/// A check for a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The instruction that it is made before.
    pub at: usize,
    /// By what it is addressed there.
    pub base: Base,
    /// And the constant.
    pub displacement: i32,
    /// Bytes.
    pub size: u32,
    /// Something in it is written.
    pub write: bool,
    /// By which way it is looked up.
    pub way: Way,
}

/// How a group is looked up, and what its members go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By this slot, which holds what makes host addresses of theirs.
    Slot(usize),
    /// In the table; where the group's lowest byte is on the host is kept as this number.
    Table(usize),
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its group was checked for writing.
    pub write: bool,
    /// Its group's way.
    pub way: Way,
    /// Its distance from the group's lowest byte.
    pub distance: i32,
}

/// The groups of a block.
#[derive(Default)]
pub struct Groups {
    /// In the order of instructions.
    pub heads: Vec<Head>,
    /// For each instruction: its part in a group, if it is in one.
    pub members: Vec<Option<Member>>,
    steps: Vec<Step>,
    runs: Vec<Run>,
    /// Registers and slots that something in runs depends on, a bit each.
    watched: u16,
    watched_slots: u64,
    /// Groups that are looked up in the table so far.
    kept: usize,
    /// Where the accesses of the instructions in runs begin.
    lows: Vec<i64>,
}

/// What an instruction means to groups.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Slots that it may refill, a bit each.
    refills: u64,
    /// What it changes [`Step::register`] by.
    by: i32,
    /// Registers that it gives an unknown value, a bit each.
    written: u16,
    /// A register that it changes by a constant, which may be 0.
    register: u8,
    knowledge: Knowledge,
}

/// What is known about a step.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Knowledge {
    /// All.
    #[default]
    All,
    /// What it refills; nobody has asked for the rest.
    Refills,
    /// Nothing is known behind it.
    Barrier,
}

impl Step {
    /// How an address made of `base` changes.
    fn change(&self, base: Base) -> i64 {
        if self.by == 0 { 0 } else { i64::from(self.by) * base.factor(self.register) }
    }
}

/// Accesses so far that may become a group.
struct Run {
    base: Base,
    slot: Option<usize>,
    start: usize,
    /// The address's change since the start.
    delta: i64,
    low: i64,
    high: i64,
    write: bool,
    /// Instructions, a bit each.
    members: u64,
}

impl Run {
    /// Whether one of the slots `refills` is its own.
    fn is_refilled(&self, refills: u64) -> bool {
        self.slot.is_some_and(|slot| refills >> slot & 1 != 0)
    }
}

/// An access as groups see it.
#[derive(Clone, Copy)]
pub struct Access {
    /// What it is addressed by.
    pub base: Base,
    /// And the constant.
    pub displacement: i64,
    /// Bytes.
    pub size: u32,
    /// It writes.
    pub write: bool,
    /// The slot it would go by; `None`: the table.
    pub slot: Option<usize>,
}

impl Groups {
    /// No groups among `count` instructions.
    pub fn clear(&mut self, count: usize) {
        self.heads.clear();
        self.members.clear();
        self.members.resize(count, None);
        self.steps.clear();
        self.runs.clear();
        (self.watched, self.watched_slots) = (0, 0);
        self.kept = 0;
        self.lows.clear();
        self.lows.resize(count, 0);
    }

    /// Finds the groups of `items`. `access` tells of the one access that an instruction makes by a slot, if it does; for
    /// all others the slots that they may refill, as bits.
    pub fn find(&mut self, items: &[Item], mut access: impl FnMut(usize, &Item) -> (Option<Access>, u64)) {
        self.clear(items.len());
        for (index, item) in items.iter().enumerate() {
            let (access, refills) = access(index, item);
            let refills_here = refills | access.and_then(|access| access.slot).map_or(0, |slot| 1 << slot);
            if access.is_none() && self.runs.is_empty() {
                self.steps.push(Step { knowledge: Knowledge::Refills, refills, ..Step::default() });
                continue;
            }
            if access.is_none()
                && refills & self.watched_slots == 0
                && changed(item).is_some_and(|changed| changed & self.watched == 0)
            {
                self.steps.push(Step { knowledge: Knowledge::Refills, refills, ..Step::default() });
                continue;
            }
            let step = step(item, refills_here);
            self.steps.push(step);
            if step.knowledge == Knowledge::Barrier {
                self.end(items, |_| true);
                continue;
            }
            if let Some(access) = access {
                self.add(items, index, access);
            }
            if refills & self.watched_slots != 0 || step.written & self.watched != 0 {
                self.end(items, |run| run.is_refilled(refills) || run.base.registers() & step.written != 0);
            }
            if step.by != 0 {
                for run in &mut self.runs {
                    run.delta += step.change(run.base);
                }
            }
        }
        self.end(items, |_| true);
        self.heads.sort_by_key(|head| head.at);
    }

    fn add(&mut self, items: &[Item], index: usize, access: Access) {
        if access.slot.is_some_and(|slot| self.watched_slots >> slot & 1 != 0) {
            // Another base in the same slot: it may refill it.
            self.end(items, |run| run.slot == access.slot && run.base != access.base);
        }
        if let Some(run) = self.runs.iter_mut().find(|run| run.base == access.base) {
            let low = run.delta + access.displacement;
            let high = low + i64::from(access.size);
            if run.high.max(high) - run.low.min(low) <= MAX_SPAN {
                (run.low, run.high) = (run.low.min(low), run.high.max(high));
                run.write |= access.write;
                run.members |= 1 << index;
                self.lows[index] = low;
                return;
            }
            self.end(items, |run| run.base == access.base);
        }
        self.lows[index] = access.displacement;
        self.runs.push(Run {
            base: access.base,
            slot: access.slot,
            start: index,
            delta: 0,
            low: access.displacement,
            high: access.displacement + i64::from(access.size),
            write: access.write,
            members: 1 << index,
        });
        self.watch();
    }

    /// Notes what the runs depend on.
    fn watch(&mut self) {
        (self.watched, self.watched_slots) = (0, 0);
        for run in &self.runs {
            self.watched |= run.base.registers();
            self.watched_slots |= run.slot.map_or(0, |slot| 1 << slot);
        }
    }

    /// Ends the runs that `which` chooses: they become groups if that pays.
    fn end(&mut self, items: &[Item], which: impl Fn(&Run) -> bool) {
        let mut index = 0;
        while let Some(run) = self.runs.get(index) {
            if which(run) {
                let run = self.runs.remove(index);
                self.make_group(items, &run);
            } else {
                index += 1;
            }
        }
        self.watch();
    }

    /// Makes a group of what is in `run`, if that pays.
    fn make_group(&mut self, items: &[Item], run: &Run) {
        // One access alone is checked where it is, unless the flags are in the way there.
        let alone = run.members.is_power_of_two();
        if alone && items[run.start].live_in == 0 {
            return;
        }
        let (at, displacement) = place(items, &self.steps, run);
        if alone && at == run.start {
            return;
        }
        let Ok(displacement) = i32::try_from(displacement) else { return };
        let way = match run.slot {
            Some(slot) => Way::Slot(slot),
            None if self.kept == TABLE_GROUPS => return,
            None => {
                self.kept += 1;
                Way::Table(self.kept - 1)
            }
        };
        let mut left = run.members;
        while left != 0 {
            let index = left.trailing_zeros() as usize;
            let distance = (self.lows[index] - run.low) as i32;
            self.members[index] = Some(Member { write: run.write, way, distance });
            left &= left - 1;
        }
        self.heads.push(Head {
            at,
            base: run.base,
            displacement,
            size: (run.high - run.low) as u32,
            write: run.write,
            way,
        });
    }
}

/// Where the check of `run` is made, and the constant of its lowest address there: at the first access, or before it where
/// nobody needs the flags.
fn place(items: &[Item], steps: &[Step], run: &Run) -> (usize, i64) {
    let mut displacement = run.low;
    let mut at = run.start;
    while items[at].live_in != 0 && at > 0 {
        at -= 1;
        let step = match steps[at] {
            Step { knowledge: Knowledge::Refills, refills, .. } => step(&items[at], refills),
            known => known,
        };
        if step.knowledge == Knowledge::Barrier
            || run.is_refilled(step.refills)
            || run.base.registers() & step.written != 0
        {
            return (run.start, run.low);
        }
        displacement += step.change(run.base);
    }
    if items[at].live_in == 0 { (at, displacement) } else { (run.start, run.low) }
}

/// General registers that `item` may change, a bit each; `None`: it is a [`Knowledge::Barrier`].
fn changed(item: &Item) -> Option<u16> {
    match item.class {
        Class::Complex(_) | Class::Raise(_) | Class::System(_) => None,
        Class::Push | Class::PushMemory | Class::Call | Class::CallIndirect | Class::Return => Some(1 << RSP),
        Class::Pop => Some(1 << RSP | gpr_number(item.insn.op0_register()).map_or(0, |to| 1 << to)),
        Class::Leave => Some(1 << RSP | 1 << RBP),
        _ => Some(written(&item.insn)),
    }
}

/// General registers of which `item` may make a value that lies far from the one before, a bit each.
pub fn moved_far(item: &Item) -> u16 {
    match item.class {
        Class::Push | Class::PushMemory | Class::Call | Class::CallIndirect | Class::Return => 0,
        Class::Pop => gpr_number(item.insn.op0_register()).map_or(0, |to| 1 << to),
        _ => match constant_step(&item.insn) {
            Some((_, by)) if by.unsigned_abs() <= STEP => 0,
            _ => changed(item).unwrap_or(u16::MAX),
        },
    }
}

#[inline]
fn step(item: &Item, refills: u64) -> Step {
    let insn = &item.insn;
    let writes = |written| Step { refills, written, ..Step::default() };
    let moves = |written| Step { register: RSP, by: insn.stack_pointer_increment(), ..writes(written) };
    match item.class {
        Class::Complex(_) | Class::Raise(_) | Class::System(_) => {
            Step { knowledge: Knowledge::Barrier, ..writes(0) }
        }
        Class::Push | Class::PushMemory | Class::Call | Class::CallIndirect | Class::Return => moves(0),
        Class::Pop => match gpr_number(insn.op0_register()) {
            Some(4) | None => writes(1 << RSP),
            Some(to) => moves(1 << to),
        },
        Class::Leave => writes(1 << RSP | 1 << RBP),
        _ => match constant_step(insn) {
            None => writes(written(insn)),
            Some((register, by)) => Step { register, by, ..writes(0) },
        },
    }
}

/// The register that `insn` changes by a constant, and the constant.
fn constant_step(insn: &Instruction) -> Option<(u8, i32)> {
    let register = insn.op0_register();
    if insn.op0_kind() != OpKind::Register || !register.is_gpr64() {
        return None;
    }
    let number = register.number() as u8;
    let by = match insn.mnemonic() {
        Mnemonic::Add if is_immediate(insn) => insn.immediate(1) as i64,
        Mnemonic::Sub if is_immediate(insn) => (insn.immediate(1) as i64).wrapping_neg(),
        Mnemonic::Inc => 1,
        Mnemonic::Dec => -1,
        Mnemonic::Lea if insn.memory_base() == register && insn.memory_index() == Register::None => {
            insn.memory_displacement64() as i64
        }
        _ => return None,
    };
    (by.unsigned_abs() <= 1 << 20).then_some((number, by as i32))
}

fn is_immediate(insn: &Instruction) -> bool {
    matches!(insn.op1_kind(), OpKind::Immediate8to64 | OpKind::Immediate32to64)
}

/// General registers that a natively executed `insn` may write, a bit each.
pub fn written(insn: &Instruction) -> u16 {
    use Mnemonic as M;
    const RAX: u16 = 1 << 0;
    const RCX: u16 = 1 << 1;
    const RDX: u16 = 1 << 2;
    // Operands that are no registers have none.
    let bit = |register| gpr_number(register).map_or(0, |number| 1 << number);
    let first = bit(insn.op0_register());
    let rest = match insn.mnemonic() {
        M::Xchg | M::Xadd | M::Mulx => bit(insn.op1_register()),
        M::Mul | M::Div | M::Idiv | M::Cmpxchg8b | M::Cmpxchg16b => RAX | RDX,
        M::Imul if insn.op_count() == 1 => RAX | RDX,
        M::Cbw | M::Cwde | M::Cdqe | M::Cmpxchg | M::Lahf => RAX,
        M::Cwd | M::Cdq | M::Cqo => RDX,
        M::Pcmpestri | M::Pcmpistri | M::Pcmpestri64 | M::Vpcmpestri | M::Vpcmpistri | M::Vpcmpestri64 => RCX,
        _ => 0,
    };
    first | rest
}

/// The access of a natively executed instruction with a memory operand.
pub fn operand(insn: &Instruction, write: bool, slot: Option<usize>) -> Option<Access> {
    let base = insn.memory_base();
    let segment = matches!(insn.segment_prefix(), Register::FS | Register::GS);
    if segment || !has_memory(insn) || !base.is_gpr64() {
        return None;
    }
    let index = gpr_number(insn.memory_index()).map(|index| (index as u8, insn.memory_index_scale() as u8));
    Some(Access {
        base: Base { base: base.number() as u8, index },
        displacement: insn.memory_displacement64() as i64,
        size: (insn.memory_size().size() as u32).max(1),
        write,
        slot,
    })
}
