//! XSAVE, XSAVEOPT, XSAVEC, XSAVES and FXSAVE (SDM vol. 1, *Operation of XSAVE* and the sections after it).

use iced_x86::Instruction;

use crate::complex::xstate::image::{MXCSR_INIT, X87_PIECES};
use crate::complex::xstate::layout::{COMPONENTS, SSE, X87, compacted, extended, visible};
use crate::complex::xstate::{requested, require_x87, require_xsave};
use crate::cpu::Cpu;
use crate::env::XsaveArea;
use crate::exception::{Exception, Exec};
use crate::mmu::Access;
use crate::mmu::access::Target;
use crate::ram::{PAGE, store};

/// Which instruction saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// XSAVE: every requested component, in its fixed place.
    Standard,
    /// XSAVEOPT: components in use, in their fixed places.
    Optimised,
    /// XSAVEC: components in use, compacted.
    Compacted,
    /// XSAVES: XSAVEC for CPL 0 (no supervisor components exist).
    Supervisor,
}

/// A stretch of the image and where it goes in the guest's area.
#[derive(Clone, Copy, Default)]
struct Piece {
    to: usize,
    from: usize,
    len: usize,
}

/// The stretches of one save, at most two for x87, one for MXCSR and one for each other component.
#[derive(Default)]
struct Pieces {
    list: [Piece; COMPONENTS + 2],
    count: usize,
    end: usize,
}

impl Pieces {
    fn push(&mut self, to: usize, from: usize, len: usize) {
        if len != 0 {
            self.list[self.count] = Piece { to, from, len };
            self.count += 1;
            self.end = self.end.max(to + len);
        }
    }

    fn as_slice(&self) -> &[Piece] {
        &self.list[..self.count]
    }
}

/// Adds the pieces of the legacy region for the components `saved`.
fn push_legacy(cpu: &mut Cpu, pieces: &mut Pieces, saved: u64, mxcsr: bool) {
    let wide = cpu.env.is_64bit();
    let image = &mut cpu.env.xsave;
    if saved & 1 != 0 {
        image.settle(X87);
        image.forget_x87_pointers();
        for (at, len) in X87_PIECES {
            pieces.push(at, at, len);
        }
    }
    if mxcsr {
        image.settle_mxcsr_mask();
        pieces.push(24, 24, 8);
    }
    if saved & 2 != 0 {
        image.settle(SSE);
        let (at, len) = XsaveArea::place(SSE);
        pieces.push(at, at, if wide { len } else { len / 2 });
    }
}

/// XSAVE and its kin.
pub fn xsave(cpu: &mut Cpu, insn: &Instruction, form: Form) -> Exec<()> {
    require_xsave(cpu)?;
    if form == Form::Supervisor && cpu.env.cpl() != 0 {
        return Err(Exception::gp(0));
    }
    let rfbm = requested(cpu);
    let mut in_use = cpu.env.xsave.in_use();
    let compact = matches!(form, Form::Compacted | Form::Supervisor);
    if compact && cpu.env.xsave.mxcsr() != MXCSR_INIT {
        // There MXCSR is a part of the SSE component.
        in_use |= 1 << SSE;
    }
    let saved = if form == Form::Standard { rfbm } else { rfbm & in_use };
    let mxcsr = if compact { saved & 2 != 0 } else { rfbm & 6 != 0 };
    let mut pieces = Pieces::default();
    push_legacy(cpu, &mut pieces, saved, mxcsr);
    let offsets = if compact { Some(compacted(rfbm).0) } else { None };
    let wide = cpu.env.is_64bit();
    for index in extended(saved) {
        cpu.env.xsave.settle(index);
        let (from, size) = XsaveArea::place(index);
        let to = offsets.map_or(from, |offsets| offsets[index]);
        pieces.push(to, from, visible(index, size, wide));
    }
    let area = area(cpu, insn, pieces.end.max(576), 63, true)?;
    let header = cpu.wrap(area + 512);
    cpu.probe_write(header, 16, Access::Current)?;
    for piece in pieces.as_slice() {
        cpu.probe_write(cpu.wrap(area.wrapping_add(piece.to as u64)), piece.len as u64, Access::Current)?;
    }
    if compact {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&saved.to_le_bytes());
        bytes[8..].copy_from_slice(&(rfbm | 1 << 63).to_le_bytes());
        cpu.write_bytes(header, &bytes, Access::Current)?;
    } else {
        let before = cpu.read(header, 8, Access::Current)?;
        cpu.write(header, 8, before & !rfbm | in_use & rfbm, Access::Current)?;
    }
    write_pieces(cpu, area, &pieces)
}

/// FXSAVE, in the 64-bit form and the other.
pub fn fxsave(cpu: &mut Cpu, insn: &Instruction) -> Exec<()> {
    require_x87(cpu)?;
    let mut pieces = Pieces::default();
    push_legacy(cpu, &mut pieces, 3, true);
    let area = area(cpu, insn, 512, 15, true)?;
    for piece in pieces.as_slice() {
        cpu.probe_write(cpu.wrap(area.wrapping_add(piece.to as u64)), piece.len as u64, Access::Current)?;
    }
    write_pieces(cpu, area, &pieces)
}

/// The area's linear address, checked for alignment and limit.
pub(super) fn area(cpu: &Cpu, insn: &Instruction, len: usize, align_mask: u64, write: bool) -> Exec<u64> {
    let linear = cpu.operand_linear(insn, 0, len as u64, write)?;
    if linear & align_mask != 0 { Err(Exception::gp(0)) } else { Ok(linear) }
}

fn write_pieces(cpu: &mut Cpu, area: u64, pieces: &Pieces) -> Exec<()> {
    let mode = cpu.tlb_mode(Access::Current);
    for piece in pieces.as_slice() {
        let mut linear = cpu.wrap(area.wrapping_add(piece.to as u64));
        cpu.note_watch(linear, piece.len, true);
        let (mut from, end) = (piece.from, piece.from + piece.len);
        while from < end {
            let here = (end - from).min((PAGE - (linear & (PAGE - 1))) as usize);
            match cpu.target(linear, mode, true)? {
                Target::Ram(host) => store(host, &cpu.env.xsave.0[from..from + here]),
                Target::Code(_) | Target::Mmio(_) => {
                    // In small steps over a copy: the write may change the CPU.
                    for at in (from..from + here).step_by(8) {
                        let len = (from + here - at).min(8);
                        let mut bytes = [0; 8];
                        bytes[..len].copy_from_slice(&cpu.env.xsave.0[at..at + len]);
                        cpu.write_bytes(linear + (at - from) as u64, &bytes[..len], Access::Current)?;
                    }
                }
            }
            from += here;
            linear = cpu.wrap(linear.wrapping_add(here as u64));
        }
    }
    Ok(())
}
