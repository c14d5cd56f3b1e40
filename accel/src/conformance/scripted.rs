//! A small accelerator of our own that interprets the conformance suite's guest code: the suite's own test, and an
//! example of every obligation of the contract in its shortest form.
//!
//! It keeps an access pending, as KVM does, and notices requests only by its kick, as the translator does, so that a
//! lifecycle that forgets `complete_exit` or kicks before it publishes fails here already.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use devices::clock::{Clock, ManualClock};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch_state::{CpuArchState, RunMode, reg, seg};
use crate::contract::{
    Accelerator, CpuIo, DebugControl, Irqchip, Kick, MemoryError, MemoryListener, Shutdown, Threading,
    VcpuBackend, VcpuConfig, VcpuError, VcpuExit, VcpuSeed,
};
use crate::cpu_handle::{CpuHandle, request};

const RFLAGS_IF: u64 = 1 << 9;

/// The accelerator.
pub struct ScriptedAccelerator {
    threading: Threading,
    clock: Arc<ManualClock>,
    memory: Arc<MemoryMap>,
}

impl ScriptedAccelerator {
    /// One whose CPUs are hosted so.
    pub fn new(threading: Threading) -> Self {
        Self { threading, clock: Arc::default(), memory: Arc::default() }
    }
}

#[derive(Default)]
struct MemoryMap(Mutex<Option<GuestMemoryMmap>>);

impl MemoryListener for MemoryMap {
    fn set_map(&self, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
        *self.0.lock().expect("no holder panics") = Some(memory.clone());
        Ok(())
    }
}

impl Accelerator for ScriptedAccelerator {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn memory_listener(&self) -> &dyn MemoryListener {
        &*self.memory
    }

    fn irqchip(&self) -> Irqchip {
        Irqchip::Userspace
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn threading(&self) -> Threading {
        self.threading
    }

    fn new_vcpu(&self, _config: &VcpuConfig) -> Result<Box<dyn VcpuSeed>, VcpuError> {
        Ok(Box::new(Seed { kicked: Arc::default(), memory: Arc::clone(&self.memory) }))
    }
}

/// The word that the interpreter polls.
#[derive(Default)]
struct Kicked(AtomicBool);

impl Kick for Kicked {
    fn kick(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Seed {
    kicked: Arc<Kicked>,
    memory: Arc<MemoryMap>,
}

impl VcpuSeed for Seed {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicked) as Arc<dyn Kick>
    }

    fn bind(self: Box<Self>, cpu: CpuHandle) -> Result<Box<dyn VcpuBackend>, VcpuError> {
        let memory = self.memory.0.lock().expect("no holder panics").clone();
        let Some(memory) = memory else { return Err(VcpuError::Unsupported("a CPU without memory")) };
        let mut backend = Cpu {
            cpu,
            kicked: self.kicked,
            memory,
            state: CpuArchState::default(),
            pending_in: None,
            debug: DebugControl::default(),
            at_breakpoint: None,
        };
        backend.reset()?;
        Ok(Box::new(backend))
    }
}

struct Cpu {
    cpu: CpuHandle,
    kicked: Arc<Kicked>,
    memory: GuestMemoryMmap,
    state: CpuArchState,
    /// What IN has read and AL has not got yet.
    pending_in: Option<u8>,
    debug: DebugControl,
    /// The breakpoint just reported: going on does not report it again.
    at_breakpoint: Option<u64>,
}

impl Cpu {
    fn pc(&self) -> u64 {
        self.state.segments[seg::CS].base + self.state.rip
    }

    fn fetch(&mut self) -> u8 {
        // Beyond memory the bus floats.
        let byte = self.memory.read_obj(GuestAddress(self.pc())).unwrap_or(0xff);
        self.state.rip = (self.state.rip + 1) & 0xffff;
        byte
    }

    /// The byte in DS at the address that follows the opcode.
    fn direct(&mut self) -> GuestAddress {
        let offset = u64::from(u16::from_le_bytes([self.fetch(), self.fetch()]));
        GuestAddress(self.state.segments[seg::DS].base + offset)
    }

    fn al(&self) -> u8 {
        self.state.gpr[reg::RAX] as u8
    }

    fn set_al(&mut self, value: u8) {
        self.state.gpr[reg::RAX] = self.state.gpr[reg::RAX] & !0xff | u64::from(value);
    }

    fn finish_access(&mut self) {
        if let Some(value) = self.pending_in.take() {
            self.set_al(value);
        }
    }

    fn push(&mut self, value: u16) {
        let rsp = (self.state.gpr[reg::RSP] as u16).wrapping_sub(2);
        self.state.gpr[reg::RSP] = u64::from(rsp);
        let address = self.state.segments[seg::SS].base + u64::from(rsp);
        // A store beyond memory goes nowhere.
        let _ = self.memory.write_obj(value, GuestAddress(address));
    }

    fn pop(&mut self) -> u16 {
        let rsp = self.state.gpr[reg::RSP] as u16;
        self.state.gpr[reg::RSP] = u64::from(rsp.wrapping_add(2));
        self.memory
            .read_obj(GuestAddress(self.state.segments[seg::SS].base + u64::from(rsp)))
            .unwrap_or(0xffff)
    }

    fn set_cs(&mut self, selector: u16) {
        let code = &mut self.state.segments[seg::CS];
        code.selector = selector;
        code.base = u64::from(selector) << 4;
    }

    /// Real-mode delivery; with a vector beyond the table, and none to report that by, the CPU shuts down. Protected
    /// mode has the same limit check, and no delivery here.
    fn interrupt(&mut self, vector: u8) -> Option<Shutdown> {
        let protected = self.state.cr0 & 1 != 0;
        let size = if protected { 8 } else { 4 };
        let entry = u64::from(vector) * size;
        if entry + size - 1 > u64::from(self.state.idt.limit) {
            return Some(Shutdown::TripleFault);
        }
        if protected {
            return Some(Shutdown::EngineFailure("an interrupt in protected mode".to_owned()));
        }
        let code = self.state.segments[seg::CS].selector;
        for value in [self.state.rflags as u16, code, self.state.rip as u16] {
            self.push(value);
        }
        let [ip, cs]: [u16; 2] =
            self.memory.read_obj(GuestAddress(self.state.idt.base + entry)).unwrap_or([0xffff; 2]);
        self.set_cs(cs);
        self.state.rip = u64::from(ip);
        self.state.rflags &= !RFLAGS_IF;
        None
    }

    /// Takes what `interrupt_request` says.
    fn take_interrupts(&mut self, io: &dyn CpuIo) -> Result<Option<Shutdown>, VcpuError> {
        let requests = self.cpu.interrupt_request();
        if requests & request::INIT != 0 {
            self.cpu.clear_interrupt(request::INIT);
            self.reset()?;
        }
        if requests & request::SIPI != 0 {
            self.cpu.clear_interrupt(request::SIPI);
            let vector = io.interrupts().and_then(|interrupts| interrupts.take_sipi());
            if let (RunMode::WaitForSipi, Some(vector)) = (self.state.run_mode, vector) {
                self.state = CpuArchState::after_sipi(vector);
            }
        }
        if self.state.run_mode == RunMode::WaitForSipi {
            return Ok(None);
        }
        if requests & request::NMI != 0 && !self.state.nmi_blocked {
            self.cpu.clear_interrupt(request::NMI);
            self.state.run_mode = RunMode::Running;
            self.state.nmi_blocked = true;
            return Ok(self.interrupt(2));
        }
        if requests & request::HARD != 0 && self.interruptible() {
            let interrupts = io.interrupts();
            self.cpu.clear_interrupt(request::HARD);
            if let Some(vector) = interrupts.and_then(|interrupts| interrupts.acknowledge()) {
                self.state.run_mode = RunMode::Running;
                return Ok(self.interrupt(vector));
            }
        }
        Ok(None)
    }

    fn interruptible(&self) -> bool {
        self.state.rflags & RFLAGS_IF != 0 && !self.state.interrupt_shadow
    }

    /// One instruction. `Some` when there is a reason to leave.
    fn execute(&mut self, io: &dyn CpuIo) -> Option<VcpuExit> {
        self.state.interrupt_shadow = false;
        let pc = self.pc();
        match self.fetch() {
            0x90 => {}
            0xb0 => {
                let value = self.fetch();
                self.set_al(value);
            }
            0xe4 => {
                let port = u16::from(self.fetch());
                let mut data = [0];
                io.pio_read(port, &mut data);
                self.pending_in = Some(data[0]);
            }
            0xe6 => {
                let port = u16::from(self.fetch());
                io.pio_write(port, &[self.al()]);
            }
            0xeb => {
                let offset = i64::from(self.fetch().cast_signed());
                self.state.rip = self.state.rip.wrapping_add_signed(offset) & 0xffff;
            }
            0x0f if self.fetch() == 0x0b => {
                self.state.rip -= 2;
                return self.interrupt(6).map(VcpuExit::Shutdown);
            }
            // INC, of a byte at a fixed address; flags are nobody's here.
            0xfe if self.fetch() == 0x06 => {
                let address = self.direct();
                let byte: u8 = self.memory.read_obj(address).unwrap_or(0xff);
                // A store beyond memory goes nowhere.
                let _ = self.memory.write_obj(byte.wrapping_add(1), address);
            }
            0xcf => {
                self.state.rip = u64::from(self.pop());
                let cs = self.pop();
                self.set_cs(cs);
                self.state.rflags = u64::from(self.pop()) | 2;
                self.state.nmi_blocked = false;
            }
            0xf4 => {
                self.state.run_mode = RunMode::Halted;
                return Some(VcpuExit::Halted);
            }
            0xfa => self.state.rflags &= !RFLAGS_IF,
            0xfb => {
                self.state.rflags |= RFLAGS_IF;
                self.state.interrupt_shadow = true;
            }
            opcode => {
                let text = format!("opcode {opcode:#04x} at {pc:#x}");
                return Some(VcpuExit::Shutdown(Shutdown::EngineFailure(text)));
            }
        }
        None
    }
}

impl VcpuBackend for Cpu {
    fn run(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        loop {
            self.finish_access();
            // Clear, then look. Looking only when kicked is the point: see the module's head.
            if self.kicked.0.swap(false, Ordering::SeqCst) && self.cpu.exit_requested() {
                // The kick may have been an interrupt's as well.
                self.kicked.0.store(self.cpu.interrupt_request() != 0, Ordering::SeqCst);
                return Ok(VcpuExit::Kicked);
            }
            if let Some(reason) = self.take_interrupts(io)? {
                return Ok(VcpuExit::Shutdown(reason));
            }
            if self.state.run_mode != RunMode::Running {
                return Ok(VcpuExit::Halted);
            }
            let pc = self.pc();
            if self.debug.breakpoints.contains(&pc) && self.at_breakpoint != Some(pc) {
                self.at_breakpoint = Some(pc);
                return Ok(VcpuExit::Debug { pc });
            }
            self.at_breakpoint = None;
            if let Some(exit) = self.execute(io) {
                return Ok(exit);
            }
            if self.debug.single_step {
                self.finish_access();
                return Ok(VcpuExit::Debug { pc: self.pc() });
            }
        }
    }

    fn step(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        self.finish_access();
        Ok(self.execute(io).unwrap_or(VcpuExit::Kicked))
    }

    fn complete_exit(&mut self, _io: &dyn CpuIo) -> Result<(), VcpuError> {
        self.finish_access();
        Ok(())
    }

    fn has_work(&self, io: &dyn CpuIo) -> bool {
        let requests = self.cpu.interrupt_request();
        match self.state.run_mode {
            RunMode::Running => true,
            RunMode::WaitForSipi => requests & (request::INIT | request::SIPI) != 0,
            RunMode::Halted => {
                let hard = self.interruptible() && io.interrupts().is_some_and(|i| i.has_interrupt());
                hard || requests & (request::INIT | request::NMI) != 0
            }
        }
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        let run_mode = if self.cpu.index() == 0 { RunMode::Running } else { RunMode::WaitForSipi };
        self.state = CpuArchState { run_mode, ..CpuArchState::power_on() };
        self.at_breakpoint = None;
        Ok(())
    }

    fn state(&mut self) -> Result<CpuArchState, VcpuError> {
        Ok(self.state.clone())
    }

    fn set_state(&mut self, state: &CpuArchState) -> Result<(), VcpuError> {
        self.state = state.clone();
        self.at_breakpoint = None;
        Ok(())
    }

    fn set_debug(&mut self, debug: &DebugControl) -> Result<(), VcpuError> {
        self.debug = debug.clone();
        Ok(())
    }
}
