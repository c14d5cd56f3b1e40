//! The machine of the conformance suite: RAM, CPUs, a recording port, a one-vector interrupt controller.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use devices::cpu_interrupts::{InterruptKind, InterruptTarget, LocalInterrupts, NoSuchRegister};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::arch_state::{CpuArchState, RunMode, SegmentState, reg, seg};
use crate::contract::{Accelerator, CpuIo, Irqchip, VcpuConfig};
use crate::cpu_handle::CpuHandle;
use crate::cpu_model::CpuModel;
use crate::cpu_set::CpuSet;
use crate::cpu_state::CpuState;
use crate::observer::{CpuEvent, CpuObserver};

/// Guest RAM ends here; MMIO above.
const RAM_BYTES: usize = 0xa_0000;
/// Where guest code goes.
pub(super) const CODE: u16 = 0x1000;
/// Port on which a guest reports.
pub(super) const OUT_PORT: u8 = 0x80;
/// Port from which a guest reads [`Port::input`].
pub(super) const IN_PORT: u8 = 0x81;
/// How long anything may take, on a busy host too.
const PATIENCE: Duration = Duration::from_secs(40);

/// Waits until `done`.
pub(super) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

type OnAccess = Box<dyn Fn(&CpuHandle) + Send + Sync>;

/// A CPU's way out.
pub(super) struct Port {
    cpu: CpuHandle,
    /// Writes to [`OUT_PORT`].
    outs: AtomicU64,
    /// All accesses.
    accesses: AtomicU64,
    /// The last value written there.
    output: AtomicU8,
    /// What [`IN_PORT`] reads.
    pub(super) input: AtomicU8,
    /// Run during each access, on the CPU's thread.
    pub(super) on_access: Mutex<Option<OnAccess>>,
    interrupts: Option<OneVector>,
}

impl Port {
    /// How many bytes the guest has reported.
    pub(super) fn outs(&self) -> u64 {
        self.outs.load(Ordering::SeqCst)
    }

    /// The last one.
    pub(super) fn output(&self) -> u8 {
        self.output.load(Ordering::SeqCst)
    }

    /// Forgets the last value.
    pub(super) fn clear_output(&self) {
        self.output.store(0, Ordering::SeqCst);
    }

    /// How many times the guest has accessed a port.
    pub(super) fn accesses(&self) -> u64 {
        self.accesses.load(Ordering::SeqCst)
    }

    /// Raises a maskable interrupt at its CPU.
    pub(super) fn interrupt(&self, vector: u8) {
        let interrupts = self.interrupts.as_ref().expect("our interrupt controller");
        interrupts.vector.store(u32::from(vector), Ordering::SeqCst);
        self.cpu.raise(InterruptKind::Hard);
    }

    fn accessed(&self) {
        self.accesses.fetch_add(1, Ordering::SeqCst);
        if let Some(hook) = &*self.on_access.lock().expect("no hook panics") {
            hook(&self.cpu);
        }
    }
}

impl CpuIo for Port {
    fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port == u16::from(IN_PORT) {
            data[0] = self.input.load(Ordering::SeqCst);
            self.accessed();
        }
    }

    fn pio_write(&self, port: u16, data: &[u8]) {
        if port == u16::from(OUT_PORT) {
            self.output.store(data[0], Ordering::SeqCst);
            self.outs.fetch_add(1, Ordering::SeqCst);
            self.accessed();
        }
    }

    fn mmio_read(&self, _gpa: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _gpa: u64, _data: &[u8]) {}

    fn interrupts(&self) -> Option<&dyn LocalInterrupts> {
        self.interrupts.as_ref().map(|interrupts| interrupts as &dyn LocalInterrupts)
    }
}

/// An interrupt controller that holds at most one vector and one start-up IPI.
struct OneVector {
    cpu: CpuHandle,
    vector: AtomicU32,
    sipi: AtomicU32,
}

const NONE: u32 = u32::MAX;

fn take(slot: &AtomicU32) -> Option<u8> {
    u8::try_from(slot.swap(NONE, Ordering::SeqCst)).ok()
}

impl LocalInterrupts for OneVector {
    fn has_interrupt(&self) -> bool {
        self.vector.load(Ordering::SeqCst) != NONE
    }
    fn acknowledge(&self) -> Option<u8> {
        self.cpu.lower_hard();
        take(&self.vector)
    }
    fn take_sipi(&self) -> Option<u8> {
        take(&self.sipi)
    }
    fn tsc_changed(&self) {}
    fn init(&self) {
        self.cpu.lower_hard();
        self.vector.store(NONE, Ordering::SeqCst);
    }
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _value: u8) {}
    fn read_msr(&self, _index: u32) -> Result<u64, NoSuchRegister> {
        Err(NoSuchRegister)
    }
    fn write_msr(&self, _index: u32, _value: u64) -> Result<(), NoSuchRegister> {
        Err(NoSuchRegister)
    }
    fn mmio_base(&self) -> Option<u64> {
        None
    }
    fn mmio_read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&self, _offset: u64, _data: &[u8]) {}
}

/// Keeps what CPUs report.
#[derive(Default)]
struct Events(Mutex<Vec<(usize, CpuEvent)>>);

impl CpuObserver for Events {
    fn cpu_event(&self, index: usize, event: CpuEvent) {
        self.0.lock().expect("no holder panics").push((index, event));
    }
}

/// Makes CPU `index` of `most` and adds it.
fn add(accelerator: &dyn Accelerator, set: &CpuSet, index: usize, most: usize) -> Arc<Port> {
    let cpu = set.new_cpu(index);
    let userspace = matches!(accelerator.irqchip(), Irqchip::Userspace);
    let port = Arc::new(Port {
        cpu: cpu.clone(),
        outs: AtomicU64::new(0),
        accesses: AtomicU64::new(0),
        output: AtomicU8::new(0),
        input: AtomicU8::new(0),
        on_access: Mutex::new(None),
        interrupts: userspace.then(|| OneVector {
            cpu: cpu.clone(),
            vector: AtomicU32::new(NONE),
            sipi: AtomicU32::new(NONE),
        }),
    });
    let model = Arc::new(CpuModel::default());
    let apic_id = u32::try_from(index).expect("a few CPUs");
    let config = VcpuConfig { index, apic_id, cpu_count: most, model };
    let seed = accelerator.new_vcpu(&config).expect("a CPU is reserved");
    set.spawn(seed, cpu, Arc::clone(&port) as Arc<dyn CpuIo>).expect("a CPU is created");
    port
}

/// Makes `cpu` execute at `ip` in real mode, segments at 0, interrupts off, AL = `al`, on a stack of its own.
pub(super) fn start(cpu: &CpuHandle, ip: u16, al: u8) {
    let started = cpu.run_on(move |cpu| {
        let mut state = cpu.backend.state()?;
        real_mode(&mut state, ip, al);
        state.gpr[reg::RSP] -= 0x100 * cpu.cpu().index() as u64;
        cpu.backend.set_state(&state)
    });
    started.expect("the CPU is there").expect("the CPU takes its state");
}

/// The machine.
pub(super) struct Rig {
    pub(super) set: Arc<CpuSet>,
    pub(super) cpus: Vec<CpuHandle>,
    pub(super) ports: Vec<Arc<Port>>,
    memory: GuestMemoryMmap,
    events: Arc<Events>,
    most: usize,
    // Last: CPUs are gone before it is.
    accelerator: Box<dyn Accelerator>,
}

impl Rig {
    /// A machine of `count` CPUs, paused, in the power-on state, with room for `most`.
    pub(super) fn new(accelerator: Box<dyn Accelerator>, count: usize, most: usize) -> Self {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("memory for a guest");
        accelerator.memory_listener().set_map(&memory).expect("the accelerator takes the map");
        let events = Arc::new(Events::default());
        let set = CpuSet::new(&*accelerator, Arc::clone(&events) as Arc<dyn CpuObserver>);
        let ports = (0..count).map(|index| add(&*accelerator, &set, index, most)).collect();
        Self { cpus: set.cpus(), set: Arc::new(set), ports, memory, events, most, accelerator }
    }

    /// Adds CPU `index`, waiting for a start-up IPI, to the machine as it is.
    pub(super) fn add(&self, index: usize) -> (CpuHandle, Arc<Port>) {
        let port = add(&*self.accelerator, &self.set, index, self.most);
        (port.cpu.clone(), port)
    }

    /// Stores guest code or data.
    pub(super) fn load(&self, gpa: u16, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(u64::from(gpa))).expect("within RAM");
    }

    /// Makes CPU `index` execute at `ip` in real mode, segments at 0, interrupts off, AL = `al`.
    pub(super) fn start_at(&self, index: usize, ip: u16, al: u8) {
        start(&self.cpus[index], ip, al);
    }

    /// A byte of guest memory.
    pub(super) fn read(&self, gpa: u16) -> u8 {
        self.memory.read_obj(GuestAddress(u64::from(gpa))).expect("within RAM")
    }

    /// The state of CPU `index`.
    pub(super) fn state(&self, index: usize) -> CpuArchState {
        self.cpus[index]
            .run_on(|cpu| cpu.backend.state())
            .expect("the CPU is there")
            .expect("the CPU tells its state")
    }

    /// Stops all CPUs and checks that they are.
    pub(super) fn pause(&self) {
        self.set.pause_all().expect("not a CPU's thread");
        for cpu in &self.cpus {
            assert_eq!(cpu.state(), CpuState::Stopped, "{cpu:?} after pause_all");
        }
    }

    /// Waits until CPU `index` has reported `more` bytes more.
    pub(super) fn wait_outs(&self, index: usize, more: u64) {
        let goal = self.ports[index].outs() + more;
        wait_for("the guest's output", || self.ports[index].outs() >= goal);
    }

    /// Waits until CPU `index` has reported `bytes` bytes in all.
    pub(super) fn wait_outs_since_start(&self, index: usize, bytes: u64) {
        wait_for("the guest's output", || self.ports[index].outs() >= bytes);
    }

    /// INIT.
    pub(super) fn init(&self, index: usize) {
        self.cpus[index].raise(InterruptKind::Init);
    }

    /// NMI.
    pub(super) fn nmi(&self, index: usize) {
        self.cpus[index].raise(InterruptKind::Nmi);
    }

    /// Raises a maskable interrupt.
    pub(super) fn interrupt(&self, index: usize, vector: u8) {
        self.ports[index].interrupt(vector);
    }

    /// INIT, then a start-up IPI.
    pub(super) fn start_up(&self, index: usize, vector: u8) {
        let interrupts = self.ports[index].interrupts.as_ref().expect("our interrupt controller");
        self.init(index);
        interrupts.sipi.store(u32::from(vector), Ordering::SeqCst);
        self.cpus[index].raise(InterruptKind::Sipi);
    }

    /// Waits for an event and takes it.
    pub(super) fn wait_event(&self) -> (usize, CpuEvent) {
        let mut event = None;
        wait_for("an event", || {
            event = self.events.0.lock().expect("no holder panics").pop();
            event.is_some()
        });
        event.expect("waited for")
    }
}

/// Where each CPU is, a line each.
pub(super) fn diagnosis(set: &CpuSet) -> String {
    set.cpus().iter().map(|cpu| cpu.diagnosis() + "\n").collect()
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprint!("{}", diagnosis(&self.set));
        }
        self.set.exit_all();
        if !std::thread::panicking() {
            let events = self.events.0.lock().expect("no holder panics");
            assert!(events.is_empty(), "unexpected: {events:?}");
        }
    }
}

/// `state` becomes that of real-mode code about to execute at `ip`.
pub(super) fn real_mode(state: &mut CpuArchState, ip: u16, al: u8) {
    let data = SegmentState { selector: 0, base: 0, limit: 0xffff, access: 0x93 };
    state.segments = [data; 6];
    state.segments[seg::CS].access = 0x9b;
    state.rip = u64::from(ip);
    state.rflags = 2;
    state.gpr = [0; 16];
    state.gpr[reg::RAX] = u64::from(al);
    state.gpr[reg::RSP] = 0x8000;
    state.idt.base = 0;
    state.idt.limit = 0x3ff;
    state.run_mode = RunMode::Running;
    state.nmi_blocked = false;
    state.interrupt_shadow = false;
}
