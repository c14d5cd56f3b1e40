//! The loop around generated code: requests, interrupts, blocks, exceptions.

#![expect(unsafe_code, reason = "door: entering generated code")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use accel::contract::Shutdown;
use accel::cpu_handle::request;
use accel::{CpuIo, VcpuExit};
use iced_x86::{Decoder, DecoderOptions};

use crate::code::tb::{PARKED, PARKING_ORDER, TbId, mode, of_way};
use crate::code::thunks::{Exit, exit};
use crate::complex::Next;
use crate::cpu::Cpu;
use crate::engine::Engine;
use crate::env::{ARITH_FLAGS, EnvBlock, SHADOW_SS, SITE_MISSES, flag};
use crate::exception::{Exception, vector};
use crate::exec::blocks::{Blocked, PageCopy};
use crate::exec::icount::KickedAt;
use crate::exec::sites::Sites;
use crate::exec::windows::windows_allowed;
use crate::exec::{signals, trace};
use crate::interrupt::{self, Kind};
use crate::machine_check::Pending;
use crate::ram::PAGE;
use crate::stress::Stress;
use crate::translate::address::stack_bit;
use crate::translate::block::MAX_INSN_BYTES;
use crate::translate::generator::Translator;
use crate::translate::native::has_memory;

const CR4_OSXMMEXCPT: u64 = 1 << 10;

/// Why a helper left generated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The instruction is finished; `env.rip` is at the next one.
    InstructionDone,
    /// `env.rip` is at an instruction that has more to do.
    Repeat,
    /// The instruction at `env.rip` raised this.
    Exception(Exception),
    /// An exception was delivered; `env.rip` is at its handler.
    Delivered,
    /// The block is to be gone on with without groups of accesses, from `env.rip` on.
    Ungrouped,
    /// The instruction at `env.rip` is atomic, but not as it would be executed here: all other CPUs must stand still.
    Exclusive,
    /// Triple fault.
    Shutdown,
}

/// How many instructions may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quota {
    /// Until a reason to stop.
    Unlimited,
    /// One, then stop: the debugger's step, or the exclusive one.
    One,
}

/// One CPU with its generated code.
pub struct Vcpu {
    /// The CPU.
    pub cpu: Cpu,
    /// Shared with the other CPUs.
    pub engine: Arc<Engine>,
    /// Set by the helper that left generated code.
    pub leave: Leave,
    /// Linear addresses at which a debugger stops.
    pub breakpoints: Vec<u64>,
    /// A debugger stops after each instruction.
    pub single_step: bool,
    /// Jumps are linked and cached, so that the loop sees a block only once.
    pub(super) chaining: bool,
    /// For tests.
    pub(super) stress: Stress,
    /// Sites that miss their slots.
    pub(super) sites: Sites,
    pub(super) translator: Translator,
    /// What is translated from the present page.
    pub(super) copy: PageCopy,
    /// The code that runs is to come back after one instruction.
    pub(super) single: bool,
    /// No other CPU executes: [`Vcpu::step`].
    pub(super) alone: bool,
    /// [`Vcpu::step`] is wanted, with no other CPU executing.
    pub(super) wants_exclusive: bool,
    /// [`Engine::voided`] when the jump caches were last good.
    seen_voided: u64,
    /// Under icount: the budget ends within the next block.
    pub(super) at_the_end: bool,
    /// Under icount: the block that a kick kept from being entered.
    pub(super) kicked_at: Option<KickedAt>,
    /// User programs may have windows ([`crate::windows`]).
    pub(super) windows_allowed: bool,
    /// Where a window was wanted last: the code and the address.
    pub(super) last_window: (u64, u64),
    /// How many times it was the same.
    pub(super) window_repeats: u32,
    /// What the access for which there is no window raises.
    pub(super) window_exception: Option<Exception>,
    /// That access: its address, and whether it is a store.
    pub(super) window_wanted: Option<(u64, bool)>,
}

impl Vcpu {
    /// A CPU over `engine`.
    pub fn new(mut cpu: Cpu, engine: Arc<Engine>) -> Self {
        cpu.env.site_misses.fill(0u16.wrapping_sub(SITE_MISSES));
        let windows_allowed = windows_allowed(&cpu, &engine);
        engine.peers.join(&cpu.peer);
        Self {
            cpu,
            leave: Leave::InstructionDone,
            breakpoints: Vec::new(),
            single_step: false,
            chaining: trace::chaining() && !engine.stress.unchained,
            stress: engine.stress,
            seen_voided: engine.voided(),
            sites: Sites::new(),
            translator: engine.translator(),
            engine,
            copy: Box::new([0; PAGE as usize + MAX_INSN_BYTES]),
            single: false,
            alone: false,
            wants_exclusive: false,
            at_the_end: false,
            kicked_at: None,
            windows_allowed,
            last_window: (0, 0),
            window_repeats: 0,
            window_exception: None,
            window_wanted: None,
        }
    }

    /// Runs until there is a reason of the lifecycle to stop.
    pub fn run(&mut self, io: &dyn CpuIo) -> VcpuExit {
        let quota = if self.single_step { Quota::One } else { Quota::Unlimited };
        self.with_io(io, |vcpu| vcpu.main_loop(quota))
    }

    /// Runs one instruction. No other CPU executes meanwhile.
    pub fn step(&mut self, io: &dyn CpuIo) -> VcpuExit {
        self.alone = true;
        let exit = self.with_io(io, |vcpu| {
            // What it executes may be there already, and what wanted room would want it again.
            let engine = Arc::clone(&vcpu.engine);
            let _always_alone = vcpu.make_room(&mut engine.code());
            vcpu.main_loop(Quota::One)
        });
        self.alone = false;
        exit
    }

    /// Whether a halted CPU has something to do.
    pub fn has_work(&self, io: &dyn CpuIo) -> bool {
        let requests = self.cpu.handle.interrupt_request();
        if self.cpu.machine_checks.pending.is_some() {
            return true;
        }
        if self.cpu.env.wait_for_sipi {
            return requests & (request::INIT | request::SIPI) != 0;
        }
        !self.cpu.env.halted
            || requests & request::INIT != 0
            || requests & request::NMI != 0 && !self.cpu.env.nmi_blocked
            || self.cpu.env.iflag != 0 && io.interrupts().is_some_and(|interrupts| interrupts.has_interrupt())
    }

    fn with_io<R>(&mut self, io: &dyn CpuIo, f: impl FnOnce(&mut Self) -> R) -> R {
        if self.windows_allowed {
            signals::prepare_thread();
        }
        let previous = self.cpu.lend_io(io);
        self.cpu.peer.go_inside();
        self.follow_voided();
        let result = f(self);
        self.cpu.return_budget();
        self.cpu.peer.go_outside();
        self.cpu.return_io(previous);
        result
    }

    /// Forgets what was looked up in the block cache if it is void.
    pub(super) fn follow_voided(&mut self) {
        let voided = self.engine.voided();
        if std::mem::replace(&mut self.seen_voided, voided) != voided {
            self.cpu.mmu.flush_all_jumps();
            // A block's number.
            self.cpu.env.branch_from = 0;
        }
    }

    fn main_loop(&mut self, quota: Quota) -> VcpuExit {
        // Whether a debugger asked to stop here already: then it wants to go on from here.
        let mut resumed = true;
        loop {
            // Clear, then look: a kick from here on is seen by the code that is entered next.
            self.cpu.env.mapping().icount_decr().store(0, Ordering::SeqCst);
            self.cpu.serve();
            if self.turn_is_over(quota == Quota::Unlimited) {
                return VcpuExit::Yielded;
            }
            // The new turn may have run timers, on which devices work that write to memory.
            self.cpu.serve();
            if quota == Quota::Unlimited && self.cpu.handle.exit_requested() {
                return VcpuExit::Kicked;
            }
            if let Some(pending) = self.cpu.machine_checks.pending.take()
                && let Some(exit) = self.take_machine_check(pending)
            {
                return exit;
            }
            if self.cpu.handle.interrupt_request() != 0
                && let Some(exit) = self.take_requests()
            {
                return exit;
            }
            if self.cpu.env.wait_for_sipi || self.cpu.env.halted {
                return VcpuExit::Halted;
            }
            if !self.breakpoints.is_empty() && !resumed {
                let pc = self.linear_pc();
                if self.breakpoints.contains(&pc) {
                    return VcpuExit::Debug { pc };
                }
            }
            resumed = false;
            let one = quota == Quota::One || !self.breakpoints.is_empty() || self.at_the_end;
            let done = match self.run_blocks(one) {
                Ok(done) => done,
                Err(shutdown) => return VcpuExit::Shutdown(shutdown),
            };
            if std::mem::take(&mut self.wants_exclusive) {
                return VcpuExit::NeedsExclusive;
            }
            if quota == Quota::One && done {
                return if self.single_step {
                    VcpuExit::Debug { pc: self.linear_pc() }
                } else {
                    VcpuExit::Kicked
                };
            }
        }
    }

    fn linear_pc(&self) -> u64 {
        let env = &self.cpu.env;
        if env.is_64bit() { env.rip } else { env.seg[1].base.wrapping_add(env.rip) & 0xffff_ffff }
    }

    /// Acts on a hardware error, whatever interrupts it holds off.
    fn take_machine_check(&mut self, pending: Pending) -> Option<VcpuExit> {
        match pending {
            Pending::Shutdown => Some(VcpuExit::Shutdown(Shutdown::TripleFault)),
            // An abort: RF is saved as it is, and what its delivery raises follows it.
            Pending::Exception => self.inject(vector::MC, Kind::External),
        }
    }

    /// Acts on what other threads asked of the CPU.
    fn take_requests(&mut self) -> Option<VcpuExit> {
        let requests = self.cpu.handle.interrupt_request();
        if requests & request::INIT != 0 {
            self.cpu.handle.clear_interrupt(request::INIT);
            crate::arch::init(&mut self.cpu);
        }
        if requests & request::SIPI != 0 {
            self.cpu.handle.clear_interrupt(request::SIPI);
            if let Some(vector) = self.cpu.io().interrupts().and_then(|interrupts| interrupts.take_sipi()) {
                crate::arch::start_up(&mut self.cpu, vector);
            }
        }
        if self.cpu.env.wait_for_sipi || self.cpu.env.interrupt_shadow != 0 {
            return None;
        }
        if requests & request::NMI != 0 && !self.cpu.env.nmi_blocked {
            self.cpu.handle.clear_interrupt(request::NMI);
            self.cpu.env.halted = false;
            return self.inject(vector::NMI, Kind::Nmi);
        }
        if requests & request::HARD != 0 && self.cpu.env.iflag != 0 {
            self.cpu.handle.clear_interrupt(request::HARD);
            let vector = self.cpu.io().interrupts().and_then(|interrupts| interrupts.acknowledge());
            if let Some(vector) = vector {
                self.note_tick();
                tracing::trace!(target: "int", vector, rip = self.cpu.env.rip, "interrupt");
                self.cpu.env.halted = false;
                return self.inject(vector, Kind::External);
            }
        }
        None
    }

    fn inject(&mut self, vector: u8, kind: Kind) -> Option<VcpuExit> {
        match interrupt::inject(&mut self.cpu, vector, kind) {
            Next::Shutdown => Some(VcpuExit::Shutdown(Shutdown::TripleFault)),
            _ => None,
        }
    }

    fn raise(&mut self, exception: Exception) -> Result<(), Shutdown> {
        match interrupt::raise(&mut self.cpu, exception) {
            Next::Shutdown => Err(Shutdown::TripleFault),
            _ => Ok(()),
        }
    }

    /// Enters generated code at `env.rip` and comes back with the next reason for the loop. True: an instruction was
    /// finished, or its exception delivered.
    fn run_blocks(&mut self, one: bool) -> Result<bool, Shutdown> {
        let shadow = self.cpu.env.interrupt_shadow;
        let shadow_at = (shadow != 0).then_some(self.cpu.env.rip);
        // With nothing pending the shadow needs no care: what comes during it is seen at the first poll, before the
        // shadowed instruction.
        let shadowed = shadow_at.is_some() && self.cpu.handle.interrupt_request() != 0;
        self.cpu.env.interrupt_shadow = 0;
        let stepped = self.cpu.env.sysflags & flag::TF != 0;
        let single = one || stepped || shadowed || self.cpu.env.dr7 & 0xff != 0 || self.stress.stepped;
        self.single = single;
        let mut link: Option<(TbId, usize, u64)> = None;
        let mut variant = if single { mode::SINGLE } else { 0 };
        loop {
            let found = match self.block_kicked_at(variant) {
                Some(entry) => Ok(entry),
                None => self.find_block(variant, link.take()),
            };
            let entry = match found {
                Ok(entry) if variant & mode::UNGROUPED != 0 && !self.fits(entry) => {
                    variant = mode::SINGLE;
                    self.single = true;
                    continue;
                }
                Ok(entry) => entry,
                Err(Blocked::Exception(exception)) => {
                    self.cpu.count_one();
                    self.raise(exception)?;
                    return Ok(true);
                }
                Err(Blocked::Full) => {
                    self.wants_exclusive = true;
                    self.cpu.env.interrupt_shadow = self.still_shadowed(shadow, shadow_at);
                    return Ok(false);
                }
            };
            let exit = self.enter(entry);
            self.cpu.counters.exited(exit.reason);
            variant &= !mode::UNGROUPED;
            if !matches!(exit.reason, exit::LOOKUP | exit::BLOCK_END) {
                self.cpu.env.branch_from = 0;
            }
            match exit.reason {
                exit::POLL => {
                    self.cpu.env.flags_from_code();
                    self.polled(exit.payload as TbId);
                    self.cpu.env.interrupt_shadow = self.still_shadowed(shadow, shadow_at);
                    return Ok(false);
                }
                exit::LINK | exit::LOOKUP => {
                    self.cpu.env.flags_from_code();
                    if exit.reason == exit::LINK {
                        let (from, slot) = of_way(exit.payload);
                        let cache = &self.engine.code();
                        link = Some((from, slot, cache.voided()));
                        if cache.leads_to_ungrouped(from, slot) {
                            variant |= mode::UNGROUPED;
                        }
                    }
                    // A helper may have found something to do without leaving the code.
                    if self.is_to_look() {
                        return Ok(true);
                    }
                }
                exit::BLOCK_END => {
                    self.cpu.env.flags_from_code();
                    self.finish_instruction(stepped)?;
                    return Ok(true);
                }
                exit::FAULT => {
                    let Some(exception) = self.host_fault() else {
                        // What a window is of no use for is executed without.
                        variant = mode::SINGLE;
                        self.single = true;
                        continue;
                    };
                    self.raise(exception)?;
                    return Ok(true);
                }
                _ => {
                    self.cpu.code_changed = false;
                    match self.leave {
                        Leave::InstructionDone => self.finish_instruction(stepped)?,
                        Leave::Repeat => {
                            // An element of a string instruction is an instruction to traps.
                            self.finish_instruction(stepped)?;
                            return Ok(false);
                        }
                        Leave::Exception(exception) => self.raise(exception)?,
                        Leave::Delivered => {}
                        Leave::Ungrouped => {
                            variant |= mode::UNGROUPED;
                            continue;
                        }
                        Leave::Exclusive => {
                            self.wants_exclusive = true;
                            self.cpu.env.interrupt_shadow = self.still_shadowed(shadow, shadow_at);
                            return Ok(false);
                        }
                        Leave::Shutdown => return Err(Shutdown::TripleFault),
                    }
                    return Ok(true);
                }
            }
        }
    }

    /// The shadow that was over the instruction at `shadow_at`: as long as that is the next one, it stays in force.
    fn still_shadowed(&self, shadow: u32, shadow_at: Option<u64>) -> u32 {
        if shadow_at == Some(self.cpu.env.rip) { shadow } else { 0 }
    }

    /// Traps of the instruction that was just finished. `stepped`: TF was set when it began.
    fn finish_instruction(&mut self, stepped: bool) -> Result<(), Shutdown> {
        // A load of SS holds debug traps off too, until the next instruction is done.
        if !stepped && self.cpu.pending_debug == 0 || self.cpu.env.interrupt_shadow == SHADOW_SS {
            return Ok(());
        }
        match interrupt::deliver_debug_traps(&mut self.cpu, stepped) {
            Next::Shutdown => Err(Shutdown::TripleFault),
            _ => Ok(()),
        }
    }

    /// Enters generated code.
    fn enter(&mut self, entry: u64) -> Exit {
        let owner = std::ptr::from_mut(self) as u64;
        let waiting = u32::from(self.cpu.handle.interrupt_request() != 0);
        let env = &mut *self.cpu.env;
        env.flags_to_code();
        env.owner = owner;
        env.waiting = waiting;
        self.cpu.settle();
        let block = self.cpu.env.mapping().block();
        // SAFETY: the thunk has this signature; `entry` is the entry of a live block, or was found by its key in the
        // same cache; the environment is set up and `self` is not touched until the code returns, except by helpers
        // through `owner`.
        unsafe {
            let enter: extern "C" fn(*mut EnvBlock, u64) -> Exit =
                std::mem::transmute(self.engine.thunks.enter);
            enter(block, entry)
        }
    }

    /// The check of a group at `pc` cannot be made good, because it lies on two pages or else. `often`: not just this time.
    pub(super) fn ungroup(&mut self, pc: u64, two_pages: bool, often: bool) {
        self.cpu.env.flags_from_code();
        self.cpu.env.rip = self.rip_at(pc).0;
        self.leave = Leave::Ungrouped;
        self.cpu.give_back_from(pc, true);
        let mut code = self.engine.code();
        let Some(id) = code.at(pc) else { return };
        if often && let Some(gone) = code.failed_group(id, two_pages) {
            drop(code);
            self.cpu.forget_block_here(&gone);
        }
    }

    /// The guest address of the instruction that the code at executable address `pc` belongs to, and of the next.
    pub fn rip_at(&self, pc: u64) -> (u64, u64) {
        let code = self.engine.code();
        let id = code.at(pc).expect("helpers are called from blocks");
        let mark = code.mark_at(id, pc).expect("a block's code is marked from its start");
        let insn = usize::from(mark.insn);
        (code.rip_of(id, insn), code.rip_of(id, insn + 1))
    }

    /// The exception of the instruction at `env.rip` for its non-canonical operand: #SS(0) if that is on the stack.
    fn not_canonical(&mut self) -> Exception {
        let pc = self.linear_pc();
        let mut bytes = [0; MAX_INSN_BYTES];
        let len = bytes.len().min((PAGE - (pc & (PAGE - 1))) as usize);
        if self.cpu.read_bytes(pc, &mut bytes[..len], crate::mmu::Access::Current).is_err() {
            return Exception::gp(0);
        }
        let bits = self.cpu.env.code_bits();
        let insn = Decoder::new(bits, &bytes[..len], DecoderOptions::NONE).decode();
        let on_stack = !has_memory(&insn) || stack_bit(&insn, bits) != 0;
        if on_stack { Exception::ss(0) } else { Exception::gp(0) }
    }

    /// Turns a host fault in generated code into the guest's exception, with `env.rip` at its instruction. `None`: the instruction
    /// is to be executed, by itself and without windows.
    fn host_fault(&mut self) -> Option<Exception> {
        let (pc, trap) = (self.cpu.env.fault_pc, self.cpu.env.fault_trap);
        self.cpu.give_back_from(pc, false);
        let (rip, mark, windowed) = {
            let code = self.engine.code();
            let id = code.at(pc).expect("the handler checked the range");
            let mark = code.mark_at(id, pc).expect("a block's code is marked from its start");
            let windowed = code.block(id).key.mode & mode::WINDOWED != 0;
            (code.rip_of(id, mark.insn.into()), mark, windowed)
        };
        let parked = PARKING_ORDER.into_iter().filter(|host| mark.parked() >> host & 1 != 0);
        for (slot, register) in parked.enumerate() {
            self.cpu.env.gpr[register] = self.cpu.env.scratch[PARKED + slot];
        }
        for (guest, value) in mark.waiting().into_iter().zip(self.cpu.env.fault_scratch) {
            if let Some(guest) = guest {
                self.cpu.env.gpr[guest] = value;
            }
        }
        let rsp = &mut self.cpu.env.gpr[4];
        *rsp = rsp.wrapping_add_signed(8 * mark.stack_ahead());
        self.cpu.env.flags_from_code();
        if mark.flags_in_host() {
            self.cpu.env.arith = self.cpu.env.fault_eflags & ARITH_FLAGS;
        }
        self.cpu.env.rip = rip;
        let trap = trap as u8;
        if windowed && let Some(exception) = self.window_exception.take() {
            // The way back there leads through the loop, which opens a window.
            self.cpu.mmu.forget_jump(rip, mode::USER64);
            return Some(exception);
        }
        if windowed && matches!(trap, vector::PF | vector::GP | vector::SS | vector::AC) {
            self.window_refused(pc);
            return None;
        }
        Some(match trap {
            vector::XM if self.cpu.env.cr4 & CR4_OSXMMEXCPT == 0 => Exception::UD,
            vector::DE | vector::MF | vector::XM | vector::UD => Exception::plain(trap),
            vector::AC => Exception::with_code(vector::AC, 0),
            // #GP: a misaligned operand, reserved bits of MXCSR. #PF on page 0: an empty TLB entry matched a
            // non-canonical address.
            vector::GP => Exception::gp(0),
            vector::PF if self.cpu.env.fault_address < 0x1000 => self.not_canonical(),
            _ => panic!(
                "host trap {trap} at {pc:#x} for guest rip {rip:#x}, address {:#x}",
                self.cpu.env.fault_address
            ),
        })
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.engine.peers.leave(&self.cpu.peer);
        self.cpu.close_windows();
    }
}
