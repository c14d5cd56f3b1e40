//! MOVS, STOS, LODS, CMPS and SCAS with their prefixes (SDM vol. 2, *REP/REPE/REPZ/REPNE/REPNZ*).
//!
//! Work is done in chunks that stay within one page of each operand and go through the host's string instructions.
//! What a chunk cannot be (MMIO, an element across pages, a segment's end, data breakpoints) goes element by element.
//! RCX, RSI and RDI always say how far it came, so a fault or an interrupt between chunks needs nothing else.

pub mod native;
#[cfg(test)]
mod tests;

use iced_x86::{Code, Instruction, OpKind};

use crate::complex::Next;
use crate::cpu::Cpu;
use crate::env::flag;
use crate::exception::Exec;
use crate::mmu::Access;
use crate::mmu::access::Target;
use crate::operand::{is_canonical, segment_index};
use crate::ram::{PAGE, RamPage, load_int};
use native::{Compared, Stride, cmps, movs, scas, stos};

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Bytes after which a repeated instruction lets interrupts in.
const BUDGET: u64 = 64 * 1024;
/// What an element outside the chunks counts for in [`BUDGET`].
const CAREFUL_COST: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

/// A prefix that repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rep {
    None,
    /// F3: REP, REPE.
    Equal,
    /// F2: REPNE; repeats the instructions without a condition as F3 does.
    NotEqual,
}

impl Rep {
    pub(crate) fn of(insn: &Instruction) -> Self {
        if insn.has_repne_prefix() {
            Self::NotEqual
        } else if insn.has_rep_prefix() {
            Self::Equal
        } else {
            Self::None
        }
    }
}

/// The address size of a string instruction, as a mask over its offsets.
pub(crate) fn address_mask(insn: &Instruction) -> u64 {
    let of = |kind| match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(0xffff),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(0xffff_ffff),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(u64::MAX),
        _ => None,
    };
    of(insn.op0_kind()).or_else(|| of(insn.op1_kind())).unwrap_or(u64::MAX)
}

impl Cpu {
    /// Adds to RCX, RSI or RDI as wide as the address size says: 16-bit merges, 32-bit clears the upper half.
    pub(crate) fn advance_index(&mut self, index: usize, mask: u64, by: u64) {
        let slot = &mut self.env.gpr[index];
        let value = slot.wrapping_add(by);
        *slot = if mask == 0xffff { *slot & !mask | value & mask } else { value & mask };
    }
}

/// A run of elements in one page of RAM.
struct Run {
    /// Host address of the first element.
    host: u64,
    /// How many elements there is room for, at least 1.
    elements: u64,
    /// Code was translated from the page: stores must be told.
    code: Option<RamPage>,
    /// The first element's offset in its page.
    offset: u64,
}

struct Op {
    kind: Kind,
    stride: Stride,
    mask: u64,
    source_segment: usize,
    rep: Rep,
    /// Soft-TLB mode.
    mode: usize,
}

/// Executes `insn` if it is one of these.
pub fn execute(cpu: &mut Cpu, insn: &Instruction) -> Option<Exec<Next>> {
    let (kind, size) = match insn.code() {
        Code::Movsb_m8_m8 => (Kind::Movs, 1),
        Code::Movsw_m16_m16 => (Kind::Movs, 2),
        Code::Movsd_m32_m32 => (Kind::Movs, 4),
        Code::Movsq_m64_m64 => (Kind::Movs, 8),
        Code::Stosb_m8_AL => (Kind::Stos, 1),
        Code::Stosw_m16_AX => (Kind::Stos, 2),
        Code::Stosd_m32_EAX => (Kind::Stos, 4),
        Code::Stosq_m64_RAX => (Kind::Stos, 8),
        Code::Lodsb_AL_m8 => (Kind::Lods, 1),
        Code::Lodsw_AX_m16 => (Kind::Lods, 2),
        Code::Lodsd_EAX_m32 => (Kind::Lods, 4),
        Code::Lodsq_RAX_m64 => (Kind::Lods, 8),
        Code::Cmpsb_m8_m8 => (Kind::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Kind::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Kind::Cmps, 4),
        Code::Cmpsq_m64_m64 => (Kind::Cmps, 8),
        Code::Scasb_AL_m8 => (Kind::Scas, 1),
        Code::Scasw_AX_m16 => (Kind::Scas, 2),
        Code::Scasd_EAX_m32 => (Kind::Scas, 4),
        Code::Scasq_RAX_m64 => (Kind::Scas, 8),
        _ => return None,
    };
    let op = Op {
        kind,
        stride: Stride { size, backward: cpu.env.df != 0 },
        mask: address_mask(insn),
        source_segment: segment_index(insn.memory_segment()),
        rep: Rep::of(insn),
        mode: cpu.tlb_mode(Access::Current),
    };
    Some(op.run(cpu))
}

impl Op {
    fn run(&self, cpu: &mut Cpu) -> Exec<Next> {
        if self.rep == Rep::None {
            if self.chunk(cpu, 1)?.is_none() {
                self.element(cpu)?;
            }
            return Ok(Next::Fallthrough);
        }
        let single_step = cpu.env.sysflags & flag::TF != 0;
        let mut budget = BUDGET;
        loop {
            let count = cpu.env.gpr[RCX] & self.mask;
            if count == 0 {
                return Ok(Next::Fallthrough);
            }
            if budget == 0 {
                return Ok(Next::Repeat);
            }
            let most = if single_step { 1 } else { count.min(budget.div_ceil(self.stride.size)) };
            let done = match self.chunk(cpu, most)? {
                Some(done) => {
                    budget = budget.saturating_sub(done * self.stride.size);
                    done
                }
                None => {
                    self.element(cpu)?;
                    budget = budget.saturating_sub(CAREFUL_COST);
                    1
                }
            };
            cpu.advance_index(RCX, self.mask, done.wrapping_neg());
            if self.decided(cpu) {
                return Ok(Next::Fallthrough);
            }
            // A trap of the element that was done comes before the next one.
            if (single_step || cpu.pending_debug != 0) && done < count {
                return Ok(Next::Repeat);
            }
        }
    }

    /// Whether the condition of REPE or REPNE ends the loop.
    fn decided(&self, cpu: &Cpu) -> bool {
        let equal = cpu.env.arith & flag::ZF != 0;
        matches!(self.kind, Kind::Cmps | Kind::Scas) && equal != (self.rep == Rep::Equal)
    }

    /// Does up to `most` elements within one page of each operand, RSI and RDI included, and says how many; `None`
    /// if the next element is not a plain one.
    fn chunk(&self, cpu: &mut Cpu, most: u64) -> Exec<Option<u64>> {
        if cpu.env.dr7 & 0xff != 0 || cpu.alignment_is_checked() {
            return Ok(None);
        }
        let source = match self.kind {
            Kind::Movs | Kind::Lods | Kind::Cmps => match self.source_run(cpu, most)? {
                Some(run) => Some(run),
                None => return Ok(None),
            },
            Kind::Stos | Kind::Scas => None,
        };
        let most = source.as_ref().map_or(most, |run| run.elements);
        let target = match self.kind {
            Kind::Lods => None,
            _ => match self.page_run(cpu, 0, cpu.env.gpr[RDI] & self.mask, most, self.writes())? {
                Some(run) => Some(run),
                None => return Ok(None),
            },
        };
        let elements = target.as_ref().map_or(most, |run| run.elements);
        let while_equal = self.rep != Rep::NotEqual;
        let done = match (&source, &target) {
            (Some(source), None) => {
                let last = (elements - 1) * self.stride.size;
                let at = if self.stride.backward { source.host - last } else { source.host + last };
                self.set_accumulator(cpu, load_int(at, self.stride.size as usize));
                elements
            }
            (Some(source), Some(target)) if self.kind == Kind::Movs => {
                movs(self.stride, target.host, source.host, elements);
                self.tell(cpu, target, elements);
                elements
            }
            (Some(source), Some(target)) => {
                let compared = cmps(self.stride, source.host, target.host, elements, while_equal);
                self.set_flags(cpu, compared)
            }
            (None, Some(target)) if self.kind == Kind::Stos => {
                stos(self.stride, target.host, cpu.env.gpr[RAX], elements);
                self.tell(cpu, target, elements);
                elements
            }
            (None, Some(target)) => {
                let compared = scas(self.stride, cpu.env.gpr[RAX], target.host, elements, while_equal);
                self.set_flags(cpu, compared)
            }
            (None, None) => return Ok(None),
        };
        self.advance(cpu, done);
        Ok(Some(done))
    }

    fn source_run(&self, cpu: &mut Cpu, most: u64) -> Exec<Option<Run>> {
        self.page_run(cpu, self.source_segment, cpu.env.gpr[RSI] & self.mask, most, false)
    }

    fn writes(&self) -> bool {
        matches!(self.kind, Kind::Movs | Kind::Stos)
    }

    /// How far elements from `offset` in `segment` go, at most `most`, within one page of RAM.
    fn page_run(
        &self,
        cpu: &mut Cpu,
        segment: usize,
        offset: u64,
        most: u64,
        write: bool,
    ) -> Exec<Option<Run>> {
        let size = self.stride.size;
        let wide = cpu.env.is_64bit();
        let base = if wide && segment < 4 { 0 } else { cpu.env.seg[segment].base };
        let linear = base.wrapping_add(offset);
        let linear = if wide { linear } else { linear & 0xffff_ffff };
        let in_page = linear & (PAGE - 1);
        if in_page + size > PAGE {
            return Ok(None);
        }
        let (page_room, offset_room) = if self.stride.backward {
            (in_page / size + 1, (offset / size).saturating_add(1))
        } else {
            ((PAGE - in_page) / size, (self.mask - offset).saturating_add(1) / size)
        };
        let elements = most.min(page_room).min(offset_room);
        if elements == 0 {
            return Ok(None);
        }
        if wide {
            if !is_canonical(linear) {
                return Ok(None);
            }
        } else {
            let span = (elements - 1) * size;
            let low = if self.stride.backward { offset - span } else { offset };
            if cpu.linear(segment, low, span + size, write).is_err() {
                // Perhaps only a later element is outside the limit; one at a time will tell.
                return Ok(None);
            }
        }
        let (host, code) = match cpu.target(linear, self.mode, write)? {
            Target::Ram(host) => (host, None),
            Target::Code(page) => (page.host | in_page, Some(page)),
            Target::Mmio(_) => return Ok(None),
        };
        Ok(Some(Run { host, elements, code, offset: in_page }))
    }

    /// Tells of stores to a page that code was translated from.
    fn tell(&self, cpu: &mut Cpu, run: &Run, elements: u64) {
        if let Some(page) = run.code {
            let len = elements * self.stride.size;
            let start = if self.stride.backward { run.offset + self.stride.size - len } else { run.offset };
            cpu.code_written(page, start as u32, len as u32);
        }
    }

    fn set_flags(&self, cpu: &mut Cpu, compared: Compared) -> u64 {
        cpu.env.arith = compared.flags;
        compared.done
    }

    fn set_accumulator(&self, cpu: &mut Cpu, value: u64) {
        let slot = &mut cpu.env.gpr[RAX];
        *slot = match self.stride.size {
            1 => *slot & !0xff | value,
            2 => *slot & !0xffff | value,
            _ => value,
        };
    }

    /// Moves RSI and RDI past `elements`.
    fn advance(&self, cpu: &mut Cpu, elements: u64) {
        let by = elements * self.stride.size;
        let by = if self.stride.backward { by.wrapping_neg() } else { by };
        if !matches!(self.kind, Kind::Stos | Kind::Scas) {
            cpu.advance_index(RSI, self.mask, by);
        }
        if self.kind != Kind::Lods {
            cpu.advance_index(RDI, self.mask, by);
        }
    }

    /// Does one element with every check, RSI and RDI included.
    fn element(&self, cpu: &mut Cpu) -> Exec<()> {
        let size = self.stride.size as usize;
        let source = match self.kind {
            Kind::Stos | Kind::Scas => cpu.env.gpr[RAX],
            _ => self.read(cpu, self.source_segment, RSI)?,
        };
        match self.kind {
            Kind::Movs | Kind::Stos => {
                let linear = cpu.linear(0, cpu.env.gpr[RDI] & self.mask, size as u64, true)?;
                cpu.write(linear, size, source, Access::Current)?;
            }
            Kind::Lods => self.set_accumulator(cpu, source),
            Kind::Cmps | Kind::Scas => {
                let other = self.read(cpu, 0, RDI)?;
                cpu.env.arith = subtract_flags(source, other, size);
            }
        }
        self.advance(cpu, 1);
        Ok(())
    }

    fn read(&self, cpu: &mut Cpu, segment: usize, index: usize) -> Exec<u64> {
        let size = self.stride.size as usize;
        let linear = cpu.linear(segment, cpu.env.gpr[index] & self.mask, size as u64, false)?;
        cpu.read(linear, size, Access::Current)
    }
}

/// CF PF AF ZF SF OF of `a - b` in `size` bytes.
pub(crate) fn subtract_flags(a: u64, b: u64, size: usize) -> u32 {
    let shift = 64 - 8 * size as u32;
    let (a, b) = (a << shift, b << shift);
    let result = a.wrapping_sub(b);
    let mut flags = 0;
    if a < b {
        flags |= flag::CF;
    }
    if ((result >> shift) as u8).count_ones().is_multiple_of(2) {
        flags |= flag::PF;
    }
    flags |= (((a ^ b ^ result) >> shift) as u32) & flag::AF;
    if result == 0 {
        flags |= flag::ZF;
    }
    if (result as i64) < 0 {
        flags |= flag::SF;
    }
    if ((a ^ b) & (a ^ result)) >> 63 != 0 {
        flags |= flag::OF;
    }
    flags
}
