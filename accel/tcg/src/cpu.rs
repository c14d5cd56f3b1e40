//! One translated CPU: its environment, its view of memory, and its way out.

#![expect(unsafe_code, reason = "door: the I/O callback is borrowed for the time of one `run`")]

use std::ptr::NonNull;
use std::sync::Arc;

use accel::{CpuHandle, CpuIo};
use devices::clock::{Clock, ScaledTsc};
use iced_x86::Register;

use crate::cpuid::Cpuid;
use crate::engine::Engine;
use crate::env::EnvRef;
use crate::exception::{Exception, Exec};
use crate::exec::counters::Counters;
use crate::icount::Counting;
use crate::machine_check::Banks;
use crate::mmu::Mmu;
use crate::operand::is_canonical;
use crate::peers::Peer;
use crate::ram::{Ram, RamPage};

/// So many PAUSEs, and the thread gives up its time: a few microseconds. Locks are mostly held for less.
const PAUSES: u32 = 32;

/// One CPU. Owned by its thread.
pub struct Cpu {
    /// Registers.
    pub env: EnvRef,
    /// Soft TLB and page-table walker.
    pub mmu: Mmu,
    /// Guest RAM.
    pub ram: Arc<Ram>,
    /// Requests from other threads.
    pub handle: CpuHandle,
    /// Guest time.
    pub clock: Arc<dyn Clock>,
    /// The time-stamp counter as the local APIC sees it; `env.tsc_offset` is its offset, for RDTSC.
    pub tsc: Arc<ScaledTsc>,
    /// What CPUID shows.
    pub cpuid: Arc<Cpuid>,
    /// 0 for the bootstrap CPU.
    pub index: usize,
    /// DR6 bits of traps that the running instruction has met; delivered when it is finished.
    pub pending_debug: u64,
    /// Hardware errors.
    pub machine_checks: Box<Banks>,
    /// Blocks were invalidated by a store since this was last cleared.
    pub code_changed: bool,
    /// What happened since the start, for the user.
    pub counters: Counters,
    /// Instructions are counted, and guest time is what was executed.
    pub icount: Option<Box<Counting>>,
    /// The CPU waits for another one of its thread, which is to have its turn.
    pub yields: bool,
    /// Other CPUs share the thread with this one.
    pub sharing: bool,
    /// Translated code, to be invalidated by stores; `None` where only helpers run.
    pub engine: Option<Arc<Engine>>,
    /// PAUSEs executed.
    pauses: u32,
    /// What the other CPUs ask of this one.
    pub peer: Arc<Peer>,
    io: Option<NonNull<dyn CpuIo>>,
}

impl Cpu {
    /// A CPU over a zeroed environment; the caller sets its state.
    ///
    /// Its time-stamp counter and CPUID are those of a lone CPU of the `max` model until the caller replaces them.
    pub fn new(mut env: EnvRef, ram: Arc<Ram>, handle: CpuHandle, clock: Arc<dyn Clock>) -> Self {
        let index = handle.index();
        env.walk.address_mask = crate::mmu::walk::PHYS_MASK;
        ram.describe(index, &mut env.walk);
        let peer = Peer::new(index, Arc::clone(env.mapping()));
        let tsc = ScaledTsc::new(Arc::clone(&clock), crate::msr::TSC_HZ);
        let cpuid = Arc::clone(&crate::cpuid::MAX);
        Self {
            env,
            mmu: Mmu::new(),
            ram,
            handle,
            clock,
            tsc,
            cpuid,
            index,
            pending_debug: 0,
            machine_checks: Box::default(),
            code_changed: false,
            counters: Counters::default(),
            icount: None,
            yields: false,
            sharing: false,
            engine: None,
            pauses: 0,
            peer,
            io: None,
        }
    }

    /// Lends `io` to the CPU for the time of `f`.
    pub fn with_io<R>(&mut self, io: &dyn CpuIo, f: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.lend_io(io);
        let result = f(self);
        self.return_io(before);
        result
    }

    /// Lends `io` to the CPU until [`Cpu::return_io`] gives back what this returns: within the borrow of `io`.
    pub(crate) fn lend_io(&mut self, io: &dyn CpuIo) -> Option<NonNull<dyn CpuIo>> {
        // SAFETY: only the lifetime is changed; the callers forget the pointer before `io`'s borrow ends.
        let erased: NonNull<dyn CpuIo> = unsafe {
            std::mem::transmute::<NonNull<dyn CpuIo + '_>, NonNull<dyn CpuIo + 'static>>(NonNull::from(io))
        };
        self.io.replace(erased)
    }

    /// Ends [`Cpu::lend_io`].
    pub(crate) fn return_io(&mut self, before: Option<NonNull<dyn CpuIo>>) {
        self.io = before;
    }

    /// The way out. What is behind it sees the time of the present instruction.
    ///
    /// # Panics
    /// Outside [`Cpu::with_io`]: only code that runs guest instructions does I/O.
    pub fn io(&self) -> &dyn CpuIo {
        self.publish_count();
        let io = self.io.expect("guest instructions run inside with_io");
        // SAFETY: `with_io` holds the borrow that this pointer was made from.
        unsafe { io.as_ref() }
    }

    /// Before generated code runs on: see [`Mmu::settle`].
    pub fn settle(&mut self) {
        self.follow_windows_if_stale();
        self.mmu.settle(&mut self.env, &self.ram);
    }

    /// PAUSE: the CPU waits for another one, which may be waiting for a host CPU, or for its turn on this thread.
    pub fn pause(&mut self) {
        if self.sharing {
            self.yields = true;
            self.call_out();
            return;
        }
        self.pauses = self.pauses.wrapping_add(1);
        if self.pauses.is_multiple_of(PAUSES)
            && self.engine.as_ref().is_some_and(|engine| engine.peers.several())
        {
            std::thread::yield_now();
        }
    }

    /// Bytes of a page that holds translated code were written.
    pub fn code_written(&mut self, page: RamPage, offset: u32, len: u32) {
        let Some(engine) = &self.engine else { return };
        let gone = engine.code().written(&self.ram, page.index, offset, len);
        self.code_changed |= !gone.is_empty();
        self.forget_blocks(&gone);
    }

    /// Raises the exception that an access of `len` bytes at `linear` in segment `seg` raises for its address alone: not
    /// canonical; running over the end of a flat segment.
    pub fn check_linear(&self, linear: u64, len: u64, seg: usize) -> Exec<()> {
        let last = linear.wrapping_add(len - 1);
        let good = if self.env.is_64bit() {
            is_canonical(linear) && is_canonical(last)
        } else {
            last <= 0xffff_ffff || self.env.seg[seg].base != 0
        };
        match (good, seg) {
            (true, _) => Ok(()),
            (false, 2) => Err(Exception::ss(0)),
            _ => Err(Exception::gp(0)),
        }
    }

    /// Reads a general register of any width, zero-extended; RIP and EIP too.
    pub fn reg(&self, register: Register) -> u64 {
        if register == Register::RIP || register == Register::EIP {
            return self.env.rip;
        }
        let value = self.env.gpr[register.full_register().number()];
        match register.size() {
            1 if is_high_byte(register) => self.env.gpr[register.number() - 4] >> 8 & 0xff,
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Writes a general register of any width: 32-bit writes clear the upper half, narrower ones merge.
    pub fn set_reg(&mut self, register: Register, value: u64) {
        if is_high_byte(register) {
            let slot = &mut self.env.gpr[register.number() - 4];
            *slot = *slot & !0xff00 | (value & 0xff) << 8;
            return;
        }
        let slot = &mut self.env.gpr[register.full_register().number()];
        *slot = match register.size() {
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }
}

/// AH, CH, DH, BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
