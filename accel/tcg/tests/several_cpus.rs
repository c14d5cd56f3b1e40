//! CPUs that run at once over one code cache: its regions are reclaimed under them, one rewrites what the other executes, and so
//! does a device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accel::arch_state::{RunMode, seg};
use accel::contract::{Accelerator, NoIo, VcpuConfig};
use accel::cpu_model::CpuModel;
use accel::{CpuArchState, CpuEvent, CpuHandle, CpuObserver, CpuSet, CpuState};
use accel_tcg::engine::MIN_CODE_BYTES;
use accel_tcg::stress::Stress;
use accel_tcg::{Tcg, TcgOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A starved host makes it slow.
const LIMIT: Duration = Duration::from_secs(120);
const SI: usize = 6;

/// What each is run under: regions are large, or hold a few blocks.
fn stresses() -> [Stress; 2] {
    [Stress::default(), Stress { reclaims: true, ..Stress::default() }]
}

/// Nothing that these guests do is an event.
struct NoEvents;

impl CpuObserver for NoEvents {
    fn cpu_event(&self, index: usize, event: CpuEvent) {
        panic!("CPU {index}: {event:?}");
    }
}

/// A machine of 16-bit code without devices.
struct Machine {
    memory: GuestMemoryMmap,
    cpus: CpuSet,
    tcg: Tcg,
}

impl Machine {
    /// As many CPUs as `starts`; CPU n begins at its entry, with `si` in SI.
    fn new(stress: Stress, pieces: &[(u64, &[u8])], starts: &[u64], si: u16) -> Self {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("memory");
        for &(at, code) in pieces {
            memory.write_slice(code, GuestAddress(at)).expect("in memory");
        }
        let tcg = Tcg::new(TcgOptions { code_bytes: MIN_CODE_BYTES, stress, ..TcgOptions::default() })
            .expect("a translator");
        tcg.memory_listener().set_map(&memory).expect("a map");
        let cpus = CpuSet::new(&tcg, Arc::new(NoEvents));
        for (index, &start) in starts.iter().enumerate() {
            let config = VcpuConfig {
                index,
                apic_id: index as u32,
                cpu_count: starts.len(),
                model: CpuModel::default().into(),
            };
            let handle = CpuHandle::new(index);
            let seed = tcg.new_vcpu(&config).expect("a CPU");
            cpus.spawn(seed, handle.clone(), Arc::new(NoIo)).expect("it starts");
            let mut state = CpuArchState::power_on();
            state.rip = start;
            state.gpr[SI] = si.into();
            state.segments[seg::CS].selector = 0;
            state.segments[seg::CS].base = 0;
            state.run_mode = RunMode::Running;
            handle
                .run_on(move |cpu| cpu.backend.set_state(&state))
                .expect("it is there")
                .expect("the state is good");
        }
        Self { memory, cpus, tcg }
    }

    /// Runs until all CPUs have halted, and says what the translator says of itself.
    fn run(&self) -> String {
        self.cpus.resume_all();
        self.run_on()
    }

    /// As [`Machine::run`], of CPUs that run already.
    fn run_on(&self) -> String {
        let begun = Instant::now();
        let running = |cpu: &CpuHandle| cpu.state() != CpuState::Halted;
        while self.cpus.cpus().iter().any(running) {
            assert!(begun.elapsed() < LIMIT, "a CPU does not come to its end");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.cpus.cpu(0).expect("CPU 0").run_on(|cpu| cpu.backend.describe()).expect("it is there")
    }

    fn word(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).expect("in memory")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cpus.exit_all();
    }
}

/// How many regions were reclaimed, of what the translator says of itself.
fn reclaimed(told: &str) -> u32 {
    let number = told.split(" regions reclaimed").next().and_then(|rest| rest.rsplit(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number: {told}"))
}

#[test]
fn regions_are_reclaimed_under_both() {
    stresses().into_iter().for_each(regions_are_reclaimed_under_both_with);
}

fn regions_are_reclaimed_under_both_with(stress: Stress) {
    const CODE: u64 = 0x1000;
    const BLOCKS: usize = 4000;
    const ROUNDS: u16 = 3;
    // lock inc word [0x500]; jmp to the next: a block each, some of them across two pages.
    let mut code = [0xf0, 0xff, 0x06, 0x00, 0x05, 0xeb, 0x00].repeat(BLOCKS);
    // dec si; jz to the hlt; jmp to the start.
    code.extend([0x4e, 0x74, 0x03, 0xe9]);
    let back = -(code.len() as i32 + 2) as i16;
    code.extend(back.to_le_bytes());
    code.push(0xf4);
    let machine = Machine::new(stress, &[(CODE, &code)], &[CODE, CODE], ROUNDS);
    let told = machine.run();
    assert_eq!(usize::from(machine.word(0x500)), 2 * BLOCKS * usize::from(ROUNDS));
    assert!(reclaimed(&told) > 8, "the code memory was large enough: {told}");
}

/// CPU 0 writes version after version into an instruction of CPU 1's loop and waits each time until that has executed it.
#[test]
fn what_one_rewrites_the_other_executes() {
    stresses().into_iter().for_each(what_one_rewrites_the_other_executes_with);
}

fn what_one_rewrites_the_other_executes_with(stress: Stress) {
    const VERSIONS: u16 = 1000;
    #[rustfmt::skip]
    let writer: &[u8] = &[
        0x40,                           // again: inc ax
        0xa3, 0x01, 0x30,               // mov [0x3001], ax: the constant below
        0xf3, 0x90,                     // wait: pause
        0x39, 0x06, 0x00, 0x05,         // cmp [0x500], ax
        0x75, 0xf8,                     // jne wait
        0x4e,                           // dec si
        0x75, 0xf1,                     // jnz again
        0xc7, 0x06, 0x02, 0x05, 1, 0,   // mov word [0x502], 1: the end
        0xf4,                           // hlt
    ];
    #[rustfmt::skip]
    let runner: &[u8] = &[
        0xbb, 0, 0,                     // 0x3000: mov bx, the version
        0x89, 0x1e, 0x00, 0x05,         // mov [0x500], bx
        0x83, 0x3e, 0x02, 0x05, 0,      // cmp word [0x502], 0
        0x74, 0xf2,                     // je 0x3000
        0xf4,                           // hlt
    ];
    let machine = Machine::new(stress, &[(0x1000, writer), (0x3000, runner)], &[0x1000, 0x3000], VERSIONS);
    let told = machine.run();
    assert!(!stress.reclaims || reclaimed(&told) > u32::from(VERSIONS) / 100, "{told}");
    assert_eq!(machine.word(0x500), VERSIONS);
    assert_eq!(machine.word(0x3001), VERSIONS);
}

/// Operands across a page, which no host instruction reaches as one: each ADD is still whole.
#[test]
fn lock_holds_across_pages() {
    const ROUNDS: u16 = 5000;
    #[rustfmt::skip]
    let code: &[u8] = &[
        0xf0, 0x83, 0x06, 0xff, 0x4f, 1, // lock add word [0x4fff], 1
        0x4e,                            // dec si
        0x75, 0xf7,                      // jnz to the start
        0xf4,                            // hlt
    ];
    let machine = Machine::new(Stress::default(), &[(0x1000, code)], &[0x1000, 0x1000], ROUNDS);
    machine.run();
    assert_eq!(machine.word(0x4fff), 2 * ROUNDS);
}

/// Stores the constant of its first instruction to [0x500] until [0x502] is set.
#[rustfmt::skip]
const RUNNER: &[u8] = &[
    0xbb, 0, 0,                     // mov bx, the version
    0x89, 0x1e, 0x00, 0x05,         // mov [0x500], bx
    0x83, 0x3e, 0x02, 0x05, 0,      // cmp word [0x502], 0
    0x74, 0xf2,                     // je to the start
    0xf4,                           // hlt
];

/// A thread that is no CPU's writes version after version into the loop that the CPUs execute, as a device does. Once that
/// is told, no CPU begins the version before; each may be in the midst of it.
fn what_a_device_writes_is_executed(stress: Stress, cpus: usize) {
    const VERSIONS: u16 = 2000;
    const NOBODY: u16 = 0xffff;
    let machine = Machine::new(stress, &[(0x3000, RUNNER)], &vec![0x3000; cpus], 0);
    let observer = machine.tcg.dma_observer().expect("the translator wants to know");
    machine.cpus.resume_all();
    let put = |at: u64, value: u16| machine.memory.write_obj(value, GuestAddress(at)).expect("in memory");
    for version in 1..=VERSIONS {
        put(0x3001, version);
        observer.written(0x3001, 2);
        let begun = Instant::now();
        let mut last_ones = 0;
        let seen = || {
            put(0x500, NOBODY);
            loop {
                match machine.word(0x500) {
                    NOBODY => assert!(begun.elapsed() < LIMIT, "version {version}: nobody executes any more"),
                    seen => return seen,
                }
            }
        };
        while seen() != version {
            last_ones += 1;
            assert!(last_ones <= cpus, "version {version}: an old one is begun again");
        }
    }
    put(0x502, 1);
    let told = machine.run_on();
    let gone = told.split(" invalidated").next().and_then(|rest| rest.rsplit(' ').next());
    let gone = gone.and_then(|gone| gone.parse::<u32>().ok());
    assert!(gone.is_some_and(|gone| gone >= u32::from(VERSIONS) - 1), "{told}");
}

#[test]
fn what_a_device_writes_is_executed_by_one() {
    stresses().into_iter().for_each(|stress| what_a_device_writes_is_executed(stress, 1));
}

#[test]
fn what_a_device_writes_is_executed_by_two() {
    stresses().into_iter().for_each(|stress| what_a_device_writes_is_executed(stress, 2));
}

/// Data beside code, and code that nobody has executed: the blocks stay.
#[test]
fn what_a_device_writes_beside_code_leaves_it() {
    let machine = Machine::new(Stress::default(), &[(0x3000, RUNNER)], &[0x3000], 0);
    let observer = machine.tcg.dma_observer().expect("the translator wants to know");
    machine.cpus.resume_all();
    machine.memory.write_obj(7u16, GuestAddress(0x500)).expect("in memory");
    while machine.word(0x500) != 0 {
        std::thread::yield_now();
    }
    observer.written(0x3000 + RUNNER.len() as u64, 500);
    observer.written(0x5000, 0x8000);
    observer.written(u64::MAX - 10, 10);
    machine.memory.write_obj(1u16, GuestAddress(0x502)).expect("in memory");
    let told = machine.run_on();
    assert!(told.contains(", 0 invalidated"), "{told}");
}
