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
const RSP: u8 = 4;
const RBP: u8 = 5;

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
    /// Groups that are looked up in the table so far.
    kept: usize,
}

/// What an instruction means to groups.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Nothing is known behind it.
    barrier: bool,
    /// Registers that it gives an unknown value, a bit each.
    written: u16,
    /// A register that it changes by a constant.
    constant: Option<(u8, i64)>,
    /// Slots that it may refill, a bit each.
    refills: u64,
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
    /// Instructions, and where their accesses begin.
    members: Vec<(usize, i64)>,
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
        self.kept = 0;
    }

    /// Finds the groups of `items`. `access` tells of the one access that an instruction makes by a slot, if it does; for
    /// all others the slots that they may refill, as bits.
    pub fn find(&mut self, items: &[Item], mut access: impl FnMut(usize, &Item) -> (Option<Access>, u64)) {
        self.clear(items.len());
        for (index, item) in items.iter().enumerate() {
            let (access, refills) = access(index, item);
            let mut step = step(item);
            step.refills = refills | access.and_then(|access| access.slot).map_or(0, |slot| 1 << slot);
            self.steps.push(step);
            if step.barrier {
                self.end(items, |_| true);
                continue;
            }
            if let Some(access) = access {
                self.add(items, index, access);
            }
            self.end(items, |run| run.is_refilled(refills) || run.base.registers() & step.written != 0);
            if let Some((register, by)) = step.constant {
                for run in &mut self.runs {
                    run.delta += by * run.base.factor(register);
                }
            }
        }
        self.end(items, |_| true);
        self.heads.sort_by_key(|head| head.at);
    }

    fn add(&mut self, items: &[Item], index: usize, access: Access) {
        // Another base in the same slot: it may refill it.
        self.end(items, |run| run.slot.is_some() && run.slot == access.slot && run.base != access.base);
        if let Some(run) = self.runs.iter_mut().find(|run| run.base == access.base) {
            let low = run.delta + access.displacement;
            let high = low + i64::from(access.size);
            if run.high.max(high) - run.low.min(low) <= MAX_SPAN {
                (run.low, run.high) = (run.low.min(low), run.high.max(high));
                run.write |= access.write;
                run.members.push((index, low));
                return;
            }
        }
        self.end(items, |run| run.base == access.base);
        self.runs.push(Run {
            base: access.base,
            slot: access.slot,
            start: index,
            delta: 0,
            low: access.displacement,
            high: access.displacement + i64::from(access.size),
            write: access.write,
            members: vec![(index, access.displacement)],
        });
    }

    /// Ends the runs that `which` chooses: they become groups if that pays.
    fn end(&mut self, items: &[Item], which: impl Fn(&Run) -> bool) {
        let Self { heads, members, steps, runs, kept } = self;
        runs.retain(|run| {
            if !which(run) {
                return true;
            }
            let (at, displacement) = place(items, steps, run);
            // One access alone is checked where it is, unless the flags are in the way there.
            if run.members.len() < 2 && at == run.start {
                return false;
            }
            let Ok(displacement) = i32::try_from(displacement) else { return false };
            let way = match run.slot {
                Some(slot) => Way::Slot(slot),
                None if *kept == TABLE_GROUPS => return false,
                None => {
                    *kept += 1;
                    Way::Table(*kept - 1)
                }
            };
            for &(member, low) in &run.members {
                members[member] = Some(Member { write: run.write, way, distance: (low - run.low) as i32 });
            }
            heads.push(Head {
                at,
                base: run.base,
                displacement,
                size: (run.high - run.low) as u32,
                write: run.write,
                way,
            });
            false
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
        let step = steps[at];
        if step.barrier || run.is_refilled(step.refills) || run.base.registers() & step.written != 0 {
            return (run.start, run.low);
        }
        if let Some((register, by)) = step.constant {
            displacement += by * run.base.factor(register);
        }
    }
    if items[at].live_in == 0 { (at, displacement) } else { (run.start, run.low) }
}

fn step(item: &Item) -> Step {
    let insn = &item.insn;
    let moves = |written| Step {
        written,
        constant: Some((RSP, insn.stack_pointer_increment().into())),
        ..Step::default()
    };
    match item.class {
        Class::Complex(_) | Class::Raise(_) | Class::System(_) => Step { barrier: true, ..Step::default() },
        Class::Push | Class::PushMemory | Class::Call | Class::CallIndirect | Class::Return => moves(0),
        Class::Pop => match gpr_number(insn.op0_register()) {
            Some(4) | None => Step { written: 1 << RSP, ..Step::default() },
            Some(to) => moves(1 << to),
        },
        Class::Leave => Step { written: 1 << RSP | 1 << RBP, ..Step::default() },
        _ => match constant_step(insn) {
            None => Step { written: written(insn), ..Step::default() },
            constant => Step { constant, ..Step::default() },
        },
    }
}

/// The register that `insn` changes by a constant, and the constant.
fn constant_step(insn: &Instruction) -> Option<(u8, i64)> {
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
    (by.unsigned_abs() <= 1 << 20).then_some((number, by))
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
    let operand = |index: u32| {
        let register = insn.op_kind(index) == OpKind::Register;
        let number = if register { gpr_number(insn.op_register(index)) } else { None };
        number.map_or(0, |number| 1 << number)
    };
    let first = if insn.op_count() > 0 { operand(0) } else { 0 };
    let rest = match insn.mnemonic() {
        M::Xchg | M::Xadd | M::Mulx => operand(1),
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
    let segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
    let base = insn.memory_base();
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
