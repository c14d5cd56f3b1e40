//! The lifecycle where the conformance suite does not reach: failing engines, dying threads, the machine's order.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use accel::arch_state::{RunMode, seg};
use accel::conformance::ScriptedAccelerator;
use accel::cpu_handle::InjectError;
use accel::cpu_set::SpawnError;
use accel::qtest::QtestAccelerator;
use accel::{
    Accelerator, CpuArchState, CpuEvent, CpuHandle, CpuIo, CpuModel, CpuObserver, CpuSet, CpuState,
    DebugControl, Irqchip, Kick, MachineCheck, MachineLifecycle, MemoryListener, NoIo, RunOnError, Threading,
    VcpuBackend, VcpuConfig, VcpuError, VcpuExit, VcpuSeed,
};
use devices::clock::{Clock, ManualClock};
use devices::device::Device;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// What an engine's CPU does when run.
#[derive(Clone, Copy)]
enum Script {
    /// Cannot be bound.
    NoBind,
    /// `run` fails.
    Fails,
    /// `complete_exit` fails.
    CannotComplete,
    /// `run` and then `step` want an exclusive section.
    AlwaysExclusive,
    /// `run` panics.
    Panics,
}

struct Engine {
    script: Script,
    qtest: QtestAccelerator,
}

impl Engine {
    fn new(script: Script) -> Self {
        Self { script, qtest: QtestAccelerator::new() }
    }
}

impl Accelerator for Engine {
    fn name(&self) -> &'static str {
        "script"
    }
    fn memory_listener(&self) -> &dyn MemoryListener {
        self.qtest.memory_listener()
    }
    fn irqchip(&self) -> Irqchip {
        Irqchip::Userspace
    }
    fn clock(&self) -> Arc<dyn Clock> {
        self.qtest.clock()
    }
    fn threading(&self) -> Threading {
        Threading::PerCpu
    }
    fn new_vcpu(&self, _config: &VcpuConfig) -> Result<Box<dyn VcpuSeed>, VcpuError> {
        Ok(Box::new(Scripted(self.script)))
    }
}

struct NoKick;
impl Kick for NoKick {
    fn kick(&self) {}
}

struct Scripted(Script);

impl VcpuSeed for Scripted {
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::new(NoKick)
    }
    fn bind(self: Box<Self>, _cpu: CpuHandle) -> Result<Box<dyn VcpuBackend>, VcpuError> {
        match self.0 {
            Script::NoBind => Err(VcpuError::Unsupported("binding")),
            _ => Ok(self),
        }
    }
}

impl VcpuBackend for Scripted {
    fn run(&mut self, _io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        match self.0 {
            Script::NoBind | Script::Fails => Err(VcpuError::Unsupported("running")),
            Script::CannotComplete => Ok(VcpuExit::Shutdown(accel::Shutdown::TripleFault)),
            Script::AlwaysExclusive => Ok(VcpuExit::NeedsExclusive),
            Script::Panics => panic!("as the script says"),
        }
    }
    fn step(&mut self, _io: &dyn CpuIo) -> Result<VcpuExit, VcpuError> {
        Ok(VcpuExit::NeedsExclusive)
    }
    fn complete_exit(&mut self, _io: &dyn CpuIo) -> Result<(), VcpuError> {
        match self.0 {
            Script::CannotComplete => Err(VcpuError::Unsupported("completing")),
            _ => Ok(()),
        }
    }
    fn has_work(&self, _io: &dyn CpuIo) -> bool {
        true
    }
    fn reset(&mut self) -> Result<(), VcpuError> {
        Ok(())
    }
    fn state(&mut self) -> Result<CpuArchState, VcpuError> {
        Ok(CpuArchState::power_on())
    }
    fn set_state(&mut self, _state: &CpuArchState) -> Result<(), VcpuError> {
        Ok(())
    }
    fn set_debug(&mut self, _debug: &DebugControl) -> Result<(), VcpuError> {
        Ok(())
    }
    fn describe(&mut self) -> String {
        "scripted".to_owned()
    }
}

/// Sends events to the test.
struct Sender(Mutex<mpsc::Sender<(usize, CpuEvent)>>);
impl CpuObserver for Sender {
    fn cpu_event(&self, index: usize, event: CpuEvent) {
        let _ = self.0.lock().expect("no holder panics").send((index, event));
    }
}

type Events = mpsc::Receiver<(usize, CpuEvent)>;

fn set(accelerator: &dyn Accelerator) -> (CpuSet, Events) {
    let (sender, events) = mpsc::channel();
    (CpuSet::new(accelerator, Arc::new(Sender(Mutex::new(sender)))), events)
}

fn spawn(set: &CpuSet, accelerator: &dyn Accelerator, index: usize) -> Result<CpuHandle, SpawnError> {
    let apic_id = u32::try_from(index).expect("a few CPUs");
    let config = VcpuConfig { index, apic_id, cpu_count: 2, model: Arc::new(CpuModel::default()) };
    let cpu = set.new_cpu(index);
    let seed = accelerator.new_vcpu(&config).expect("reserving does not fail here");
    set.spawn(seed, cpu.clone(), Arc::new(NoIo)).map(|()| cpu)
}

fn next(events: &Events) -> CpuEvent {
    events.recv_timeout(Duration::from_secs(40)).expect("an event").1
}

#[test]
fn a_cpu_that_cannot_be_bound_is_not_in_the_set() {
    let engine = Engine::new(Script::NoBind);
    let (set, _events) = set(&engine);
    let error = spawn(&set, &engine, 0).unwrap_err();
    assert!(
        matches!(error, SpawnError::Vcpu { index: 0, source: VcpuError::Unsupported("binding") }),
        "{error}"
    );
    assert!(set.cpus().is_empty());
    set.resume_all();
    set.pause_all().unwrap();
}

#[test]
fn a_handle_without_a_cpu_says_so() {
    let cpu = CpuHandle::new(0);
    assert_eq!(cpu.state(), CpuState::Creating);
    assert_eq!(cpu.run_on(|_| ()), Err(RunOnError::Gone));
    assert_eq!(cpu.post(|_| ()), Err(RunOnError::Gone));
    cpu.request_exit();
    assert!(cpu.exit_requested());
}

#[test]
fn an_engines_failure_is_told_and_stops_the_cpu() {
    for script in [Script::Fails, Script::AlwaysExclusive] {
        let engine = Engine::new(script);
        let (set, events) = set(&engine);
        let cpu = spawn(&set, &engine, 0).unwrap();
        set.resume_all();
        let CpuEvent::Error { description, .. } = next(&events) else { panic!("another event") };
        assert_eq!(description, "scripted");
        set.pause_all().unwrap();
        assert_eq!(cpu.state(), CpuState::Stopped);
        // Going on, it fails again; nothing hangs.
        set.resume_all();
        assert!(matches!(next(&events), CpuEvent::Error { .. }));
        assert!(cpu.run_on(|_| ()).is_ok());
    }
}

#[test]
fn an_access_that_cannot_be_completed_is_told() {
    let engine = Engine::new(Script::CannotComplete);
    let (set, events) = set(&engine);
    let cpu = spawn(&set, &engine, 0).unwrap();
    set.resume_all();
    assert!(matches!(next(&events), CpuEvent::Shutdown { .. }));
    assert!(matches!(next(&events), CpuEvent::Error { .. }));
    set.pause_all().unwrap();
    assert_eq!(cpu.state(), CpuState::Stopped);
}

#[test]
fn nobody_waits_for_a_thread_that_died() {
    let engine = Engine::new(Script::Panics);
    let (set, _events) = set(&engine);
    let cpu = spawn(&set, &engine, 0).unwrap();
    set.resume_all();
    let start = Instant::now();
    while cpu.run_on(|_| ()).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(40));
    }
    set.pause_all().unwrap();
    let _section = set.start_exclusive();
}

/// A machine of two CPUs on one thread, which the scripted engine interprets; both are at `code` and paused.
fn round_robin(code: &[u8]) -> (CpuSet, Events, [CpuHandle; 2]) {
    let engine = ScriptedAccelerator::new(Threading::RoundRobin);
    let memory: GuestMemoryMmap =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).expect("memory");
    memory.write_slice(code, GuestAddress(0x1000)).expect("within memory");
    engine.memory_listener().set_map(&memory).expect("the engine takes the map");
    let (set, events) = set(&engine);
    let cpus = [0, 1].map(|index| {
        let cpu = spawn(&set, &engine, index).expect("a CPU");
        let start = |cpu: &mut accel::CpuContext<'_>| {
            let mut state = cpu.backend.state().expect("the CPU tells its state");
            (state.segments[seg::CS].base, state.rip, state.run_mode) = (0, 0x1000, RunMode::Running);
            cpu.backend.set_state(&state).expect("the CPU takes its state");
        };
        cpu.run_on(start).expect("the CPU is there");
        cpu
    });
    (set, events, cpus)
}

#[test]
fn cpus_of_one_thread_are_on_one_thread() {
    let (set, _events, cpus) = round_robin(&[0xeb, 0xfe]);
    let threads = cpus.each_ref().map(|cpu| cpu.run_on(|_| std::thread::current().id()).unwrap());
    assert_eq!(threads[0], threads[1]);
    set.exit_all();
    assert_eq!(cpus[0].state(), CpuState::Exited);
    assert_eq!(cpus[1].run_on(|_| ()), Err(RunOnError::Gone));
}

#[test]
fn run_on_within_a_thread() {
    let (set, _events, [first, second]) = round_robin(&[0xeb, 0xfe]);
    set.resume_all();
    let target = second.clone();
    let answer = first.run_on(move |cpu| cpu.run_on(&target, |_| ()));
    assert_eq!(answer, Ok(Err(RunOnError::SameThread)));
    // Posted work is done, though the CPU that posts it executes on.
    let (sender, receiver) = mpsc::channel();
    let posted = first.run_on(move |_| second.post(move |_| sender.send(()).unwrap()));
    assert_eq!(posted, Ok(Ok(())));
    receiver.recv_timeout(Duration::from_secs(40)).unwrap();
}

/// Neither CPU ever leaves the guest by itself, and a request for the one finds the thread executing the other (QEMU's
/// commit d2f86bba). That both have their turns is seen by the conformance suite.
#[test]
fn a_request_gets_the_thread_out_of_its_other_cpu() {
    let (set, _events, cpus) = round_robin(&[0xeb, 0xfe]);
    set.resume_all();
    for _ in 0..300 {
        for cpu in &cpus {
            cpu.run_on(|_| ()).unwrap();
        }
    }
    cpus[1].hold();
    let start = Instant::now();
    while cpus[1].state() != CpuState::Stopped {
        assert!(start.elapsed() < Duration::from_secs(40));
    }
    assert_eq!(cpus[0].state(), CpuState::Running);
    set.pause_all().unwrap();
    assert!(cpus.iter().all(|cpu| cpu.state() == CpuState::Stopped));
}

#[test]
fn a_machine_check_is_refused_where_there_is_no_bank() {
    let accelerator = QtestAccelerator::new();
    let (set, _events) = set(&accelerator);
    let cpu = spawn(&set, &accelerator, 0).unwrap();
    let error = cpu.inject_machine_check(MachineCheck::default()).unwrap_err();
    assert!(matches!(error, InjectError::Vcpu(VcpuError::Unsupported(_))), "{error}");
    assert!(error.to_string().starts_with("a machine check"), "{error}");
    set.remove(&cpu).unwrap();
    let error = cpu.inject_machine_check(MachineCheck::default()).unwrap_err();
    assert!(matches!(error, InjectError::RunOn(RunOnError::Gone)), "{error}");
}

/// Writes down what happens to it, and whether time stands still and CPUs are stopped meanwhile.
struct Recorder {
    name: &'static str,
    log: Arc<Mutex<Vec<String>>>,
    clock: Arc<ManualClock>,
    cpu: CpuHandle,
}

impl Recorder {
    fn note(&self, what: &str) {
        let before = self.clock.now_ns();
        self.clock.advance(1);
        let time = if self.clock.now_ns() == before { "still" } else { "flows" };
        let stopped = self.cpu.state() == CpuState::Stopped;
        let note = format!("{} {what}, time {time}, stopped {stopped}", self.name);
        self.log.lock().expect("no holder panics").push(note);
    }
}

impl Device for Recorder {
    fn name(&self) -> &'static str {
        self.name
    }
    fn reset(&self) {
        self.note("reset");
    }
    fn pause(&self) {
        self.note("pause");
    }
    fn resume(&self) {
        self.note("resume");
    }
}

#[test]
fn a_machine_stops_and_starts_in_order() {
    let accelerator = QtestAccelerator::new();
    let (set, _events) = set(&accelerator);
    let cpu = spawn(&set, &accelerator, 0).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let recorder = |name| -> Arc<dyn Device> {
        let clock = Arc::clone(accelerator.manual_clock());
        Arc::new(Recorder { name, log: Arc::clone(&log), clock, cpu: cpu.clone() })
    };
    let devices = vec![recorder("uart")];
    let irqchip = vec![recorder("ioapic")];
    let machine = MachineLifecycle::new(Arc::new(set), accelerator.clock(), devices, irqchip);
    let taken = || std::mem::take(&mut *log.lock().unwrap());
    assert_eq!(taken(), ["uart pause, time still, stopped true"]);
    assert!(machine.is_paused());
    machine.resume().unwrap();
    assert_eq!(taken(), ["uart resume, time still, stopped true"]);
    machine.reset().unwrap();
    assert_eq!(
        taken(),
        [
            "uart pause, time still, stopped true",
            "uart reset, time still, stopped true",
            "ioapic reset, time still, stopped true",
            "uart resume, time still, stopped true",
        ]
    );
    machine.pause().unwrap();
    machine.reset().unwrap();
    assert!(machine.is_paused(), "a reset does not set a paused machine going");
    machine.resume().unwrap();
    let before = accelerator.manual_clock().now_ns();
    accelerator.manual_clock().advance(5);
    assert_eq!(accelerator.manual_clock().now_ns(), before + 5, "time flows again");
    let machine = Arc::new(machine);
    let on_cpu = Arc::clone(&machine);
    assert_eq!(cpu.run_on(move |_| on_cpu.pause().is_err()), Ok(true), "a CPU cannot wait for itself");
}
