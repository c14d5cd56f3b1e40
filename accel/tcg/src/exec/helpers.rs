//! The helpers that generated code calls.
//!
//! Each gets the environment's address, finds its CPU, and says 0 to go on in the block, 1 to leave generated code for the
//! reason that it has stored in the CPU ([`Vcpu::leave`]), or 2 to go on at `env.rip`. The guest's registers are in the environment; its arithmetic flags
//! in `env.lahf`.

#![expect(unsafe_code, reason = "door: generated code calls Rust")]

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::code::tb::{Site, mode};
use crate::code::thunks::{Helpers, LINEAR};
use crate::complex::{self, Next};
use crate::cpu::Cpu;
use crate::env::{EnvBlock, SLOTS, TlbSlot, flag};
use crate::exception::{Exception, Exec, vector};
use crate::exec::blocks::mode_bits;
use crate::exec::vcpu::{Leave, Vcpu};
use crate::interrupt;
use crate::mmu::access::Target;
use crate::mmu::soft_tlb::jumps_offset;
use crate::ram::PAGE;
use crate::translate::block::MAX_INSN_BYTES;
use crate::translate::native::has_memory;

/// FSW: an unmasked exception is pending.
const FSW_ES: u16 = 1 << 7;
/// MXCSR: misaligned operands are welcome (AMD).
const MXCSR_MM: u32 = 1 << 17;

/// A helper's answer: leave generated code; the reason is in the vCPU.
const LEAVE: u64 = 1;
/// A helper's answer: go on at `env.rip`, in the mode whose jump cache is at `env.resume_jumps`.
pub const RESUME: u64 = 2;

/// The table for the thunks.
pub const HELPERS: Helpers =
    Helpers { complex: complex_helper, read_miss, write_miss, commit, time_stamp, linear };

/// Size argument of the miss helpers: a store that also loads.
pub const ALSO_LOADS: u32 = 1 << 31;
/// Size argument of the miss helpers: an access through the stack segment.
pub const STACK: u32 = 1 << 30;

/// Size argument of the miss helpers: the instruction insists on an operand aligned to its size.
pub const ALIGNED: u32 = 1 << 29;
/// Size argument of the miss helpers: misaligned accesses raise #AC.
pub const CHECK_ALIGNMENT: u32 = 1 << 28;
/// Size argument of the miss helpers: an x87 instruction that a pending exception comes before.
pub const X87: u32 = 1 << 27;
/// Size argument of the miss helpers: the site has missed its slot often; is it to use one at all?
pub const JUDGE: u32 = 1 << 26;
/// Of the address that a miss returns to, the bits above these are the number of the site's counter.
pub const SITE_SHIFT: u32 = 3;
/// Size argument of the miss helpers: a check for several accesses, which raises nothing.
pub const GROUP: u32 = 1 << 14;
/// Size argument of the miss helpers: place of the number of the site's slot.
pub const SLOT_SHIFT: u32 = 8;
/// Bytes of an operand at most whose check is [`crate::translate::address::Path::Near`].
pub const NEAR_SIZE: u32 = 64;
/// The size in the size argument.
pub const SIZE: u32 = 0xff;

/// The alignment that #AC insists on for an operand of `size` bytes: its size, 16 at most (measured on a Zen 4).
pub fn alignment(size: u64) -> u64 {
    if size == 10 { 8 } else { size.min(16) }
}

/// Checks an address by itself, and unpacks the size argument: bytes, and whether a store also loads.
fn check(cpu: &Cpu, linear: u64, packed: u64) -> Exec<(u64, bool)> {
    let packed = packed as u32;
    let size = u64::from(packed & SIZE);
    let segment = if packed & STACK != 0 { 2 } else { 3 };
    cpu.check_linear(linear, size, segment)?;
    if packed & CHECK_ALIGNMENT != 0 && packed & ALIGNED == 0 && linear & (alignment(size) - 1) != 0 {
        return Err(Exception::with_code(vector::AC, 0));
    }
    Ok((size, packed & ALSO_LOADS != 0))
}

/// The CPU whose generated code is calling.
fn owner<'a>(block: *mut EnvBlock) -> &'a mut Vcpu {
    // SAFETY: `Vcpu::enter` stores its own address before it enters generated code and touches nothing of itself until
    // the code has come back; this helper runs in between, on the same thread.
    unsafe { &mut *((*block).env.owner as *mut Vcpu) }
}

/// Whether the block may go on after an instruction that a helper took part in. Not when its own code was changed, a trap is
/// due, or the CPU was kicked: a device that the instruction reached may have switched the machine off.
fn goes_on(cpu: &Cpu) -> bool {
    !cpu.code_changed && cpu.pending_debug == 0 && !cpu.is_called_out()
}

extern "C" fn complex_helper(block: *mut EnvBlock, site: u64, _: u64, _: u64) -> u64 {
    let vcpu = owner(block);
    // SAFETY: the translator put the address of a site into the block; the block outlives its running code.
    let site = unsafe { &*(site as *const Site) };
    let alone = vcpu.is_alone();
    let cpu = &mut vcpu.cpu;
    cpu.counters.executed += 1;
    cpu.env.flags_from_code();
    cpu.env.rip = site.rip;
    if !alone && is_atomic(&site.insn) {
        vcpu.leave = Leave::Exclusive;
        cpu.give_back(site.left + 1);
        return LEAVE;
    }
    cpu.env.left = site.left + 1;
    let result = match site.raise {
        Some(exception) => Err(exception),
        None => complex::execute(cpu, &site.insn),
    };
    let next_rip = site.insn.next_ip();
    let leave = match result {
        Ok(Next::Fallthrough) => {
            cpu.env.rip = next_rip;
            if goes_on(cpu) {
                vcpu.flush_if_asked();
                let cpu = &mut vcpu.cpu;
                cpu.env.flags_to_code();
                cpu.settle();
                return 0;
            }
            Leave::InstructionDone
        }
        Ok(Next::EndBlock) => {
            cpu.env.rip = next_rip;
            Leave::InstructionDone
        }
        Ok(Next::Jumped) => Leave::InstructionDone,
        Ok(Next::Repeat) => Leave::Repeat,
        Ok(Next::Halt) => {
            cpu.env.rip = next_rip;
            cpu.env.halted = true;
            Leave::InstructionDone
        }
        Ok(Next::Shutdown) => Leave::Shutdown,
        Err(exception) => Leave::Exception(exception),
    };
    // What is repeated has not been done.
    vcpu.cpu.give_back(site.left + u32::from(leave == Leave::Repeat));
    leave_with(vcpu, leave)
}

/// Says why to leave the block: [`LEAVE`], or [`RESUME`] where the loop would do nothing but look for the next block.
fn leave_with(vcpu: &mut Vcpu, leave: Leave) -> u64 {
    vcpu.leave = leave;
    if vcpu.single || !vcpu.chaining {
        return LEAVE;
    }
    match leave {
        Leave::InstructionDone => {}
        Leave::Exception(exception) => {
            vcpu.leave = match interrupt::raise(&mut vcpu.cpu, exception) {
                Next::Shutdown => Leave::Shutdown,
                _ => Leave::Delivered,
            };
            if vcpu.leave == Leave::Shutdown {
                return LEAVE;
            }
        }
        _ => return LEAVE,
    }
    vcpu.flush_if_asked();
    let cpu = &mut vcpu.cpu;
    let quiet = !cpu.is_called_out()
        && cpu.handle.interrupt_request() == 0
        && cpu.pending_debug == 0
        && !cpu.env.halted;
    let env = &mut *cpu.env;
    if !quiet || env.interrupt_shadow != 0 || env.dr7 & 0xff != 0 || env.sysflags & flag::TF != 0 {
        return LEAVE;
    }
    let bits = mode_bits(env);
    let Some(class) = mode::class(bits) else { return LEAVE };
    // What `Vcpu::find_block` does to the state.
    env.branch_from = 0;
    env.sysflags &= !flag::RF;
    env.resume_jumps = jumps_offset(class) as u64;
    env.flags_to_code();
    cpu.code_changed = false;
    cpu.mmu.follow_mode(bits);
    cpu.settle();
    RESUME
}

/// The exception that comes before `exception` of an access at `linear`, if the instruction has one pending or its operand
/// is misaligned.
fn first_of(vcpu: &Vcpu, exception: Exception, linear: u64, packed: u32) -> Exception {
    let area = &vcpu.cpu.env.xsave;
    if packed & X87 != 0 && area.fsw() & FSW_ES != 0 {
        return Exception::plain(vector::MF);
    }
    let size = u64::from(packed & SIZE);
    if packed & ALIGNED != 0 && linear & (size - 1) != 0 && area.mxcsr() & MXCSR_MM == 0 {
        return Exception::gp(0);
    }
    exception
}

/// Runs `access` for the instruction whose code called from before `return_address`. An exception becomes the reason
/// to leave, and so does nothing: that the instruction must be executed with all other CPUs standing still.
fn checked(
    block: *mut EnvBlock,
    return_address: u64,
    (linear, packed): (u64, u64),
    access: impl FnOnce(&mut Vcpu) -> Exec<Option<u64>>,
) -> u64 {
    let vcpu = owner(block);
    vcpu.cpu.counters.operands += 1;
    if let Some(counting) = &mut vcpu.cpu.icount {
        counting.pc = return_address - 1;
    }
    let result = access(vcpu);
    if let Some(counting) = &mut vcpu.cpu.icount {
        counting.pc = 0;
    }
    match result {
        Ok(Some(result)) => {
            vcpu.cpu.env.scratch[7] = result;
            vcpu.cpu.env.scratch[LINEAR] = linear;
            if packed as u32 & JUDGE != 0 {
                vcpu.judge_site(return_address);
            }
            0
        }
        Ok(None) => {
            vcpu.cpu.env.rip = vcpu.rip_at(return_address - 1).0;
            vcpu.cpu.env.flags_from_code();
            vcpu.leave = Leave::Exclusive;
            vcpu.cpu.give_back_from(return_address - 1, true);
            LEAVE
        }
        Err(exception) => {
            let exception = first_of(vcpu, exception, linear, packed as u32);
            vcpu.cpu.env.rip = vcpu.rip_at(return_address - 1).0;
            vcpu.cpu.env.flags_from_code();
            vcpu.cpu.give_back_from(return_address - 1, false);
            leave_with(vcpu, Leave::Exception(exception))
        }
    }
}

extern "C" fn read_miss(block: *mut EnvBlock, linear: u64, packed: u64, return_address: u64) -> u64 {
    if packed as u32 & GROUP != 0 {
        return group_miss(block, (linear, packed as u32), false, return_address);
    }
    checked(block, return_address, (linear, packed), |vcpu| {
        let cpu = &mut vcpu.cpu;
        let mode = cpu.tlb_mode(crate::mmu::Access::Current);
        let (size, _) = check(cpu, linear, packed)?;
        if linear & (PAGE - 1) <= PAGE - size && !cpu.page_is_watched(linear) {
            match cpu.target(linear, mode, false)? {
                Target::Ram(host) => return Ok(Some(host.wrapping_sub(linear))),
                Target::Code(page) => {
                    return Ok(Some((page.host | linear & (PAGE - 1)).wrapping_sub(linear)));
                }
                Target::Mmio(_) => {}
            }
        }
        let mut bytes = [0; 64];
        let bytes = &mut bytes[..size as usize];
        cpu.read_bytes_mode(linear, bytes, mode)?;
        Ok(Some(bounce(cpu, linear, bytes).wrapping_sub(linear)))
    })
}

/// The check of a group was not passed. Fills its slot if the whole of it lies in one page of RAM that may be accessed so; else
/// the block goes on without groups, where each access is judged by itself. The walk may have set the page's dirty bit
/// by then although the access that writes is never reached.
fn group_miss(block: *mut EnvBlock, (linear, packed): (u64, u32), write: bool, return_address: u64) -> u64 {
    let vcpu = owner(block);
    let cpu = &mut vcpu.cpu;
    cpu.counters.operands += 1;
    let mode = cpu.tlb_mode(crate::mmu::Access::Current);
    let size = u64::from(packed & SIZE);
    let one_page = linear & (PAGE - 1) <= PAGE - size;
    let target = if one_page && check(cpu, linear, packed.into()).is_ok() {
        cpu.target(linear, mode, write).ok()
    } else {
        None
    };
    if let Some(Target::Ram(host)) = target
        && !cpu.page_is_watched(linear)
        && !vcpu.stress.ungrouped
    {
        let slot = (packed >> SLOT_SHIFT) as usize % SLOTS;
        let addend = host.wrapping_sub(linear);
        let tag = if vcpu.stress.misses { TlbSlot::NEVER } else { linear & !(PAGE - 1) };
        cpu.env.slots[mode][usize::from(write)][slot] = TlbSlot { tag, addend };
        cpu.env.scratch[7] = addend;
        cpu.env.scratch[LINEAR] = linear;
        if packed & JUDGE != 0 {
            vcpu.judge_site(return_address);
        }
        return 0;
    }
    // A page that is not there yet is no reason to do without groups for long.
    let often = target.is_some() || !one_page;
    vcpu.ungroup(return_address - 1, !one_page, often && !vcpu.stress.ungrouped);
    LEAVE
}

/// Whether `insn` reads and writes its operand in one: with LOCK, or XCHG with memory, which is so without.
fn is_atomic(insn: &Instruction) -> bool {
    insn.has_lock_prefix() || insn.mnemonic() == Mnemonic::Xchg && has_memory(insn)
}

impl Vcpu {
    /// Whether no other CPU executes.
    pub(super) fn is_alone(&self) -> bool {
        self.alone || self.cpu.sharing || !self.engine.peers.several()
    }

    /// The instruction whose code called from before `return_address`.
    fn insn_at(&mut self, return_address: u64) -> Option<Instruction> {
        let (rip, next) = self.rip_at(return_address - 1);
        let env = &self.cpu.env;
        let linear = if env.is_64bit() { rip } else { env.seg[1].base.wrapping_add(rip) & 0xffff_ffff };
        let mut bytes = [0; MAX_INSN_BYTES];
        let bytes = &mut bytes[..(next.wrapping_sub(rip) as usize).min(MAX_INSN_BYTES)];
        self.cpu.read_bytes(linear, bytes, crate::mmu::Access::Current).ok()?;
        Some(Decoder::new(self.cpu.env.code_bits(), bytes, DecoderOptions::NONE).decode())
    }
}

/// Puts `bytes` of the operand at `linear` into the bounce buffer, aligned as they were, and returns their address there:
/// the host judges the alignment as it would have.
fn bounce(cpu: &mut Cpu, linear: u64, bytes: &[u8]) -> u64 {
    let at = (linear & 63) as usize;
    cpu.env.bounce[at..at + bytes.len()].copy_from_slice(bytes);
    cpu.env.bounce.as_ptr() as u64 + at as u64
}

extern "C" fn write_miss(block: *mut EnvBlock, linear: u64, packed: u64, return_address: u64) -> u64 {
    if packed as u32 & GROUP != 0 {
        return group_miss(block, (linear, packed as u32), true, return_address);
    }
    checked(block, return_address, (linear, packed), |vcpu| {
        let cpu = &mut vcpu.cpu;
        let mode = cpu.tlb_mode(crate::mmu::Access::Current);
        cpu.env.bounce_len = 0;
        let (size, also_loads) = check(cpu, linear, packed)?;
        let first = cpu.target(linear, mode, true)?;
        if linear & (PAGE - 1) <= PAGE - size {
            if let Target::Ram(host) = first
                && !cpu.page_is_watched(linear)
            {
                return Ok(Some(host.wrapping_sub(linear)));
            }
        } else {
            let second = cpu.wrap(linear.wrapping_add(size - 1)) & !(PAGE - 1);
            cpu.target(second, mode, true)?;
        }
        if also_loads && !vcpu.is_alone() && vcpu.insn_at(return_address).is_some_and(|insn| is_atomic(&insn))
        {
            return Ok(None);
        }
        let cpu = &mut vcpu.cpu;
        let mut bytes = [0; 64];
        let bytes = &mut bytes[..size as usize];
        if also_loads {
            cpu.read_bytes_mode(linear, bytes, mode)?;
        }
        let address = bounce(cpu, linear, bytes);
        cpu.env.bounce_va = linear;
        cpu.env.bounce_len = size as u32;
        cpu.env.bounce_mode = mode as u32;
        Ok(Some(address.wrapping_sub(linear)))
    })
}

extern "C" fn commit(block: *mut EnvBlock, _: u64, _: u64, return_address: u64) -> u64 {
    let vcpu = owner(block);
    let cpu = &mut vcpu.cpu;
    cpu.counters.committed += 1;
    let (linear, mode) = (cpu.env.bounce_va, cpu.env.bounce_mode as usize);
    let len = std::mem::take(&mut cpu.env.bounce_len) as usize;
    let bytes = cpu.env.bounce;
    let at = (linear & 63) as usize;
    if let Some(counting) = &mut cpu.icount {
        counting.pc = return_address - 1;
    }
    let result = cpu.write_bytes_mode(linear, &bytes[at..at + len], mode);
    if let Some(counting) = &mut cpu.icount {
        counting.pc = 0;
    }
    // Where the instruction is takes a search: only for those that leave.
    if result.is_ok() && goes_on(cpu) {
        return 0;
    }
    let (rip, next) = vcpu.rip_at(return_address - 1);
    vcpu.cpu.give_back_from(return_address - 1, false);
    let cpu = &mut vcpu.cpu;
    if let Err(exception) = result {
        // Both pages were translated for this very store; only another CPU's change of the tables can get here.
        cpu.env.flags_from_code();
        cpu.env.rip = rip;
        vcpu.leave = Leave::Exception(exception);
        return 1;
    }
    cpu.env.flags_from_code();
    cpu.env.rip = next;
    vcpu.leave = Leave::InstructionDone;
    1
}

extern "C" fn time_stamp(block: *mut EnvBlock, _: u64, _: u64, _: u64) -> u64 {
    owner(block).cpu.read_tsc()
}

extern "C" fn linear(block: *mut EnvBlock, offset: u64, packed: u64, return_address: u64) -> u64 {
    let (segment, size, write) = ((packed & 0xff) as usize, packed >> 8 & 0xff, packed & 1 << 31 != 0);
    checked(block, return_address, (offset, packed & u64::from(X87)), |vcpu| {
        vcpu.cpu.linear(segment, offset, size, write).map(Some)
    })
}
