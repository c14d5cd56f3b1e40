//! The translator as an accelerator.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;

use accel::contract::{
    Accelerator, CpuIo, CpuTime, DebugControl, Irqchip, Kick, MachineCheck, MemoryError, MemoryListener,
    Threading, VcpuBackend, VcpuConfig, VcpuError, VcpuExit, VcpuSeed,
};
use accel::{CpuArchState, CpuHandle};
use devices::clock::icount::Pace;
use devices::clock::{Clock, GuestTsc, HostClock, IcountClock, ScaledTsc};
use devices::dma::DmaObserver;
use vm_memory::GuestMemoryMmap;

use crate::code::thunks::FpSave;
use crate::cpu::Cpu;
use crate::cpuid::Cpuid;
use crate::engine::{CODE_BYTES, Engine, MIN_CODE_BYTES};
use crate::env::{EnvMapping, EnvRef, KICKED};
use crate::exec::{Vcpu, counters};
use crate::icount::{Counting, CountingKicker, IcountTime};
use crate::ram::{MAX_CPUS, PAGE, Ram};
use crate::stress::Stress;
use crate::translate::features::Features;

/// What the user chose.
#[derive(Clone, Copy, Debug)]
pub struct TcgOptions {
    /// A thread per CPU, or one for all.
    pub threading: Threading,
    /// Bytes of code memory, at least [`crate::engine::MIN_CODE_BYTES`], a multiple of the page size. What
    /// it is too small for is translated anew.
    pub code_bytes: usize,
    /// Guest time is what was executed; one thread for all CPUs then.
    pub icount: Option<Pace>,
    /// For tests.
    pub stress: Stress,
}

impl Default for TcgOptions {
    fn default() -> Self {
        Self { threading: Threading::PerCpu, code_bytes: CODE_BYTES, icount: None, stress: Stress::default() }
    }
}

/// Why there can be no translator on this host.
#[derive(Debug, thiserror::Error)]
pub enum TcgError {
    /// The host refused memory for code, or the clock.
    #[error("translator: {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
    /// The host's CPU or kernel lacks what generated code is built on.
    #[error("translator: this host's CPU has no {0}")]
    MissingHostFeature(&'static str),
}

/// The accelerator.
pub struct Tcg {
    options: TcgOptions,
    clock: Arc<dyn Clock>,
    icount: Option<Arc<IcountClock>>,
    shared: Arc<Shared>,
}

struct Shared {
    code_bytes: usize,
    stress: Stress,
    ram: Mutex<Option<Arc<Ram>>>,
    engine: Mutex<Option<Arc<Engine>>>,
}

impl Shared {
    fn ram(&self) -> Option<Arc<Ram>> {
        self.ram.lock().expect("no holder of this lock panics").clone()
    }

    /// The engine, made for the first CPU: all CPUs of a machine are of one model.
    fn engine(&self, cpuid: &Cpuid, icount: bool) -> std::io::Result<Arc<Engine>> {
        let mut engine = self.engine.lock().expect("no holder of this lock panics");
        if let Some(engine) = &*engine {
            return Ok(Arc::clone(engine));
        }
        let features = Features::new(|leaf, subleaf| cpuid.query(leaf, subleaf, 0, cpuid.xcr0()));
        let made = Arc::new(Engine::new(features, host_fp(), self.code_bytes, self.stress, icount)?);
        *engine = Some(Arc::clone(&made));
        Ok(made)
    }
}

/// The vector state that guests can have on this host.
fn host_fp() -> FpSave {
    let mask = crate::cpuid::host_xcr0();
    FpSave { mask, xsaveopt: std::arch::is_x86_feature_detected!("xsaveopt") }
}

impl Tcg {
    /// A translator. Cheap: code memory is mapped with the first CPU.
    pub fn new(options: TcgOptions) -> Result<Self, TcgError> {
        if !std::arch::is_x86_feature_detected!("xsave") {
            return Err(TcgError::MissingHostFeature("XSAVE"));
        }
        let icount = options.icount.map(IcountClock::new);
        let clock: Arc<dyn Clock> = match &icount {
            Some(icount) => Arc::clone(icount) as Arc<dyn Clock>,
            None => HostClock::new().map_err(|source| TcgError::Host { what: "no timer", source })?,
        };
        let stress = options.stress;
        let code_bytes = if stress.flushes || stress.reclaims {
            MIN_CODE_BYTES
        } else {
            options.code_bytes.max(MIN_CODE_BYTES)
        };
        Ok(Self {
            options,
            clock,
            icount,
            shared: Arc::new(Shared { code_bytes, stress, ram: Mutex::new(None), engine: Mutex::new(None) }),
        })
    }
}

impl Accelerator for Tcg {
    fn name(&self) -> &'static str {
        "tcg"
    }

    fn translates(&self) -> bool {
        true
    }

    fn memory_listener(&self) -> &dyn MemoryListener {
        &*self.shared
    }

    fn dma_observer(&self) -> Option<Arc<dyn DmaObserver>> {
        Some(Arc::clone(&self.shared) as Arc<dyn DmaObserver>)
    }

    fn irqchip(&self) -> Irqchip {
        Irqchip::Userspace
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn threading(&self) -> Threading {
        if self.icount.is_some() { Threading::RoundRobin } else { self.options.threading }
    }

    fn cpu_time(&self) -> Option<Arc<dyn CpuTime>> {
        self.icount.as_ref().map(|clock| Arc::new(IcountTime(Arc::clone(clock))) as Arc<dyn CpuTime>)
    }

    fn new_vcpu(&self, config: &VcpuConfig) -> Result<Box<dyn VcpuSeed>, VcpuError> {
        if config.index >= MAX_CPUS {
            return Err(VcpuError::Unsupported("a CPU number above 63"));
        }
        let mut config = config.clone();
        if self.icount.is_some() {
            // What the host's CPU makes of them differs from run to run.
            let model = Arc::make_mut(&mut config.model);
            model.hide("rdrand");
            model.hide("rdseed");
        }
        let cpuid = Arc::new(Cpuid::new(&config)?);
        let mapping = EnvMapping::new().map_err(|source| VcpuError::Host { what: "CPU state", source })?;
        let tsc = ScaledTsc::new(Arc::clone(&self.clock), crate::msr::TSC_HZ);
        Ok(Box::new(Seed {
            cpuid,
            mapping,
            tsc,
            clock: Arc::clone(&self.clock),
            icount: self.icount.clone(),
            cpus: config.cpu_count,
            sharing: self.threading() == Threading::RoundRobin && config.cpu_count > 1,
            thread: Arc::default(),
            shared: Arc::clone(&self.shared),
        }))
    }
}

impl MemoryListener for Shared {
    fn set_map(&self, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
        let mut ram = self.ram.lock().expect("no holder of this lock panics");
        let before = ram.replace(Arc::new(Ram::new(memory)));
        // No CPU runs while the map changes. Blocks are made of pages by their numbers, which mean others now.
        if let (Some(before), Some(engine)) =
            (before, &*self.engine.lock().expect("no holder of this lock panics"))
        {
            engine.empty(&mut engine.code(), &before);
        }
        Ok(())
    }
}

impl DmaObserver for Shared {
    /// As a CPU's store to a page with code ([`crate::code::cache`]): the bytes come first, then the look at the page's mark.
    /// A CPU that translates sets the mark first, then reads the bytes. So it reads the new ones, or its block is found.
    fn written(&self, gpa: u64, len: u64) {
        let Some(ram) = self.ram() else { return };
        fence(Ordering::SeqCst);
        let mut pieces = Vec::new();
        let (mut at, end) = (gpa, gpa.saturating_add(len));
        while at < end {
            let next = (at | (PAGE - 1)).saturating_add(1).min(end);
            if let Some(page) = ram.page(at)
                && ram.is_code(page.index)
            {
                pieces.push((page.index, (at % PAGE) as u32, (next - at) as u32));
            }
            at = next;
        }
        if pieces.is_empty() {
            return;
        }
        let Some(engine) = self.engine.lock().expect("no holder of this lock panics").clone() else { return };
        let mut gone = Vec::new();
        {
            let mut code = engine.code();
            for (page, offset, len) in pieces {
                gone.extend(code.written(&ram, page, offset, len));
            }
        }
        engine.peers.forget_blocks(&gone);
    }
}

struct Seed {
    cpuid: Arc<Cpuid>,
    mapping: Arc<EnvMapping>,
    tsc: Arc<ScaledTsc>,
    clock: Arc<dyn Clock>,
    icount: Option<Arc<IcountClock>>,
    cpus: usize,
    /// Other CPUs share the thread.
    sharing: bool,
    /// The CPU's thread, once it is bound.
    thread: Arc<OnceLock<ThreadId>>,
    shared: Arc<Shared>,
}

/// Writes the poll word of one CPU.
struct Kicker(Arc<EnvMapping>);

impl Kick for Kicker {
    fn kick(&self) {
        // SeqCst pairs with the loop's clear-then-look.
        self.0.icount_decr().store(KICKED, Ordering::SeqCst);
    }
}

impl Seed {
    fn counting_kicker(&self) -> CountingKicker {
        CountingKicker { mapping: Arc::clone(&self.mapping), thread: Arc::clone(&self.thread) }
    }
}

impl VcpuSeed for Seed {
    fn kicker(&self) -> Arc<dyn Kick> {
        match &self.icount {
            None => Arc::new(Kicker(Arc::clone(&self.mapping))),
            Some(_) => Arc::new(self.counting_kicker()),
        }
    }

    fn tsc(&self) -> Option<Arc<dyn GuestTsc>> {
        Some(Arc::clone(&self.tsc) as Arc<dyn GuestTsc>)
    }

    fn bind(self: Box<Self>, handle: CpuHandle) -> Result<Box<dyn VcpuBackend>, VcpuError> {
        let host = |what| move |source| VcpuError::Host { what, source };
        let ram = self.shared.ram().ok_or(VcpuError::Unsupported("a CPU without memory"))?;
        let icount = self.icount.is_some();
        let engine = self.shared.engine(&self.cpuid, icount).map_err(host("code memory"))?;
        self.thread.set(std::thread::current().id()).expect("a CPU is bound once");
        if let Some(clock) = &self.icount {
            let kicker = self.counting_kicker();
            clock.when_earlier(Arc::new(move || kicker.kick()));
        }
        let mut cpu = Cpu::new(EnvRef::new(self.mapping), ram, handle, self.clock);
        cpu.tsc = self.tsc;
        cpu.cpuid = self.cpuid;
        cpu.engine = Some(Arc::clone(&engine));
        cpu.icount = self.icount.map(|clock| Box::new(Counting::new(clock, self.cpus)));
        cpu.sharing = self.sharing;
        let Cpu { mmu, env, .. } = &mut cpu;
        mmu.forgetful = engine.stress.misses;
        mmu.publish(env);
        let mut backend = Backend { vcpu: Box::new(Vcpu::new(cpu, engine)), shared: self.shared };
        backend.reset()?;
        Ok(Box::new(backend))
    }
}

struct Backend {
    vcpu: Box<Vcpu>,
    shared: Arc<Shared>,
}

impl Backend {
    /// Takes over a memory map that has changed while the CPU was stopped.
    fn follow_map(&mut self) {
        let Some(ram) = self.shared.ram() else { return };
        if Arc::ptr_eq(&ram, &self.vcpu.cpu.ram) {
            return;
        }
        let Cpu { ram: old, mmu, env, index, .. } = &mut self.vcpu.cpu;
        ram.describe(*index, &mut env.walk);
        *old = ram;
        mmu.flush_all();
    }

    /// The state was replaced: what was derived from it is void.
    fn state_replaced(&mut self) {
        self.vcpu.forget_place();
        let Cpu { mmu, env, .. } = &mut self.vcpu.cpu;
        mmu.reset_contexts(env);
    }
}

impl VcpuBackend for Backend {
    fn run(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        self.follow_map();
        Ok(self.vcpu.run(io))
    }

    fn step(&mut self, io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        self.follow_map();
        Ok(self.vcpu.step(io))
    }

    /// Accesses are finished when `run` returns.
    fn complete_exit(&mut self, _io: &dyn CpuIo) -> Result<(), VcpuError> {
        Ok(())
    }

    fn has_work(&self, io: &dyn CpuIo) -> bool {
        self.vcpu.has_work(io)
    }

    fn reset(&mut self) -> Result<(), VcpuError> {
        let cpu = &mut self.vcpu.cpu;
        crate::exec::trace::before_reset(cpu);
        crate::arch::reset(cpu);
        cpu.env.wait_for_sipi = cpu.index != 0;
        self.state_replaced();
        Ok(())
    }

    fn state(&mut self) -> Result<CpuArchState, VcpuError> {
        Ok(crate::arch::cpu_to_arch(&mut self.vcpu.cpu))
    }

    fn set_state(&mut self, state: &CpuArchState) -> Result<(), VcpuError> {
        crate::arch::arch_to_cpu(&mut self.vcpu.cpu, state);
        self.state_replaced();
        Ok(())
    }

    fn machine_check(&mut self, check: &MachineCheck) -> Result<(), VcpuError> {
        self.vcpu.cpu.machine_check(check)
    }

    fn set_debug(&mut self, debug: &DebugControl) -> Result<(), VcpuError> {
        self.vcpu.single_step = debug.single_step;
        self.vcpu.breakpoints.clone_from(&debug.breakpoints);
        Ok(())
    }

    fn statistics(&mut self) -> Vec<String> {
        let code = self.vcpu.engine.code();
        counters::table(&self.vcpu.cpu, &code, crate::exec::trace::counting())
    }

    fn describe(&mut self) -> String {
        let code = self.vcpu.engine.code();
        let counters = code.counters;
        let mmu = &self.vcpu.cpu.mmu;
        format!(
            "tcg: {} blocks of {} instructions translated, {} invalidated, {} jumps linked, {} regions reclaimed, \
             {} bytes of code; {} TLB fills, {} flushes",
            counters.translated,
            counters.instructions,
            counters.invalidated,
            counters.linked,
            counters.reclaimed,
            code.bytes().0,
            mmu.fills,
            mmu.flushes,
        )
    }
}
