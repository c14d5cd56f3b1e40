//! The guest side: a machine without devices around one CPU of an accelerator, driven through the contract alone
//! (SDM vol. 3A, *Protected-Mode Memory Management* and *Interrupt and Exception Handling* for the tables).
//!
//! Every vector's handler is a HLT of its own on a stack of its own (IST 1): the address says which exception it was, the
//! frame says the rest, and nothing of the stream's state is lost.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use accel::arch_state::{CpuArchState, RunMode, SegmentState, TableState, seg};
use accel::cpu_model::CpuModel;
use accel::{Accelerator, CpuHandle, NoIo, VcpuBackend, VcpuConfig, VcpuExit};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::layout::{CODE, CODE_BYTES, DATA, EXIT_PAGE, EXIT32, EXIT64, PAGE, STACK, selector};
use crate::shared::{Input, Outcome, Shared, ending, memfd};
use crate::xsave;

/// The system's own structures: at this physical address and up, mapped for the supervisor at [`SYSTEM`].
const SYSTEM: u64 = 0xffff_8000_0000_0000;
const SYSTEM_BYTES: usize = 1 << 20;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TASK_STATE: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const HANDLER_BYTES: u64 = 16;
const FAULT_STACK_TOP: u64 = 0x8000;
const TABLES: u64 = 0x10000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

/// Makes an accelerator for a machine.
pub type MakeAccelerator = dyn Fn() -> Arc<dyn Accelerator>;

/// A machine that runs cases.
pub struct Guest {
    memory: GuestMemoryMmap,
    backend: Box<dyn VcpuBackend>,
    cpu: CpuHandle,
    base: [CpuArchState; 3],
    frame: [u8; 48],
    _accelerator: Arc<dyn Accelerator>,
    /// Time inside the engine's `run`.
    pub in_run: Duration,
}

struct Tables<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Tables<'_> {
    fn entry(&mut self, table: u64, index: u64) -> u64 {
        let at = GuestAddress(table + 8 * index);
        let entry: u64 = self.memory.read_obj(at).expect("tables lie in memory");
        if entry & PRESENT != 0 {
            return entry & 0x000f_ffff_ffff_f000;
        }
        let new = self.next;
        self.next += PAGE as u64;
        assert!(self.next <= SYSTEM_BYTES as u64, "the system area has room for page tables");
        self.memory.write_obj(new | PRESENT | WRITABLE | USER, at).expect("tables lie in memory");
        new
    }

    fn map(&mut self, root: u64, virt: u64, phys: u64, bytes: usize, flags: u64) {
        for page in 0..bytes.div_ceil(PAGE) as u64 {
            let (virt, phys) = (virt + page * PAGE as u64, phys + page * PAGE as u64);
            let mut table = root;
            for level in [39, 30, 21] {
                table = self.entry(table, virt >> level & 511);
            }
            let at = GuestAddress(table + 8 * (virt >> 12 & 511));
            self.memory.write_obj(phys | flags | PRESENT, at).expect("tables lie in memory");
        }
    }
}

fn segment(selector: u16, access: u16) -> SegmentState {
    SegmentState { selector, base: 0, limit: 0xffff_ffff, access }
}

fn descriptor(access: u16) -> u64 {
    0x000f_0000_0000_ffff | u64::from(access & 0xff) << 40 | u64::from(access >> 12) << 52
}

const CODE_64: u16 = 0xa09b;
const CODE_32: u16 = 0xc09b;
const FLAT_DATA: u16 = 0xc093;
const DPL_3: u16 = 0x60;

fn build_memory(shared: &Shared) -> GuestMemoryMmap {
    let code = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", shared.descriptors().1))
        .expect("the code arena opens again");
    // Files: an engine may want to map pages once more.
    let file = |bytes| FileOffset::new(memfd(c"differential-memory", bytes).expect("a file in memory"), 0);
    let memory = GuestMemoryMmap::from_ranges_with_files([
        (GuestAddress(0), SYSTEM_BYTES, Some(file(SYSTEM_BYTES))),
        (GuestAddress(CODE), CODE_BYTES, Some(FileOffset::new(code, 0))),
        (GuestAddress(DATA), 5 * PAGE, Some(file(5 * PAGE))),
        (GuestAddress(EXIT_PAGE), PAGE, Some(file(PAGE))),
    ])
    .expect("guest memory");

    let put = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).expect("in memory");
    for (at, access) in [
        (selector::KERNEL_CODE, CODE_64),
        (selector::KERNEL_DATA, FLAT_DATA),
        (selector::USER_CODE_32, CODE_32 | DPL_3),
        (selector::USER_DATA, FLAT_DATA | DPL_3),
        (selector::USER_CODE_64, CODE_64 | DPL_3),
    ] {
        put(GDT + u64::from(at & !7), descriptor(access));
    }
    let task = SYSTEM + TASK_STATE;
    put(
        GDT + u64::from(selector::TASK),
        0x67 | (task & 0xff_ffff) << 16 | 0x8b << 40 | (task >> 24 & 0xff) << 56,
    );
    put(GDT + u64::from(selector::TASK) + 8, task >> 32);
    for stack in [4, 0x24] {
        // RSP0 and IST1.
        put(TASK_STATE + stack, SYSTEM + FAULT_STACK_TOP);
    }
    put(TASK_STATE + 0x60, 0x0068_0000_0000_0000);
    for vector in 0..256 {
        let handler = SYSTEM + HANDLERS + vector * HANDLER_BYTES;
        let dpl = if matches!(vector, 3 | 4 | 0x80) { 3 } else { 0 };
        let low = handler & 0xffff
            | u64::from(selector::KERNEL_CODE) << 16
            | 1 << 32
            | 0x8e << 40
            | dpl << 45
            | (handler >> 16 & 0xffff) << 48;
        put(IDT + 16 * vector, low);
        put(IDT + 16 * vector + 8, handler >> 32);
        // hlt; jmp .-1
        put(HANDLERS + vector * HANDLER_BYTES, 0x00fd_ebf4);
    }
    for exit in [EXIT64, EXIT32] {
        // int 0x80; ud2
        put(exit, 0x0b0f_80cd);
    }

    let mut tables = Tables { memory: &memory, next: TABLES + PAGE as u64 };
    tables.map(TABLES, SYSTEM, 0, SYSTEM_BYTES, WRITABLE);
    tables.map(TABLES, EXIT_PAGE, EXIT_PAGE, PAGE, USER);
    tables.map(TABLES, CODE, CODE, CODE_BYTES, USER);
    tables.map(TABLES, DATA, DATA, 2 * PAGE, USER | WRITABLE | NO_EXECUTE);
    tables.map(TABLES, DATA + 2 * PAGE as u64, DATA + 2 * PAGE as u64, PAGE, USER | NO_EXECUTE);
    tables.map(TABLES, STACK, STACK, PAGE, USER | WRITABLE | NO_EXECUTE);
    memory.write_slice(shared.read_only(), GuestAddress(DATA + 2 * PAGE as u64)).expect("in memory");
    memory
}

fn base_state(bits: u32, cpl: u32) -> CpuArchState {
    let dpl = if cpl == 3 { DPL_3 } else { 0 };
    let (code, data) = match (bits, cpl) {
        (64, 3) => (segment(selector::USER_CODE_64, CODE_64 | dpl), selector::USER_DATA),
        (64, _) => (segment(selector::KERNEL_CODE, CODE_64), selector::KERNEL_DATA),
        _ => (segment(selector::USER_CODE_32, CODE_32 | dpl), selector::USER_DATA),
    };
    let data = segment(data, FLAT_DATA | dpl);
    let user_data = segment(selector::USER_DATA, FLAT_DATA | DPL_3);
    let mut state = CpuArchState::power_on();
    state.segments = [user_data, code, data, user_data, SegmentState::default(), SegmentState::default()];
    state.segments[seg::FS].limit = 0;
    state.ldt = SegmentState::default();
    state.task =
        SegmentState { selector: selector::TASK, base: SYSTEM + TASK_STATE, limit: 0x67, access: 0x8b };
    state.gdt = TableState { base: SYSTEM + GDT, limit: 0x4f };
    state.idt = TableState { base: SYSTEM + IDT, limit: 0xfff };
    // PE MP ET NE WP AM PG
    state.cr0 = 0x8005_0033;
    state.cr3 = TABLES;
    // PAE PGE OSFXSR OSXMMEXCPT UMIP FSGSBASE OSXSAVE
    state.cr4 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 16 | 1 << 18;
    // SCE LME LMA NXE
    state.efer = 0xd01;
    state.xcr0 = xsave::compared();
    state.run_mode = RunMode::Running;
    state
}

impl Guest {
    pub fn new(make: &MakeAccelerator, shared: &Shared) -> Self {
        let memory = build_memory(shared);
        let accelerator = make();
        accelerator.memory_listener().set_map(&memory).expect("the accelerator takes the memory");
        let config = VcpuConfig { index: 0, apic_id: 0, cpu_count: 1, model: Arc::new(CpuModel::default()) };
        let seed = accelerator.new_vcpu(&config).expect("a vCPU");
        let cpu = CpuHandle::new(0);
        cpu.set_kicker(seed.kicker());
        let backend = seed.bind(cpu.clone()).expect("a vCPU binds");
        let base = [base_state(64, 3), base_state(64, 0), base_state(32, 3)];
        Self { memory, backend, cpu, base, frame: [0; 48], _accelerator: accelerator, in_run: Duration::ZERO }
    }

    /// Name of the accelerator.
    pub fn name(&self) -> &'static str {
        self._accelerator.name()
    }

    /// Gets a run that does not end back, from any thread.
    pub fn cpu(&self) -> &CpuHandle {
        &self.cpu
    }

    fn load(&mut self, input: &Input, image: &[u8]) {
        let which = if input.bits == 32 { 2 } else { usize::from(input.cpl != 3) };
        let base = &mut self.base[which];
        base.gpr = input.gpr;
        base.rip = input.rip;
        base.rflags = input.rflags;
        base.segments[seg::GS].base = input.gs_base;
        base.xsave.clear();
        base.xsave.extend_from_slice(&image[..xsave::image_bytes()]);
        self.backend.set_state(base).expect("the accelerator takes the state");
    }

    /// Runs one case.
    pub fn run(&mut self, shared: &Shared, input: &Input, outcome: &mut Outcome) {
        let memory = shared.memory(input.memory_template);
        self.memory.write_slice(&memory[..2 * PAGE], GuestAddress(DATA)).expect("in memory");
        self.memory.write_slice(&memory[2 * PAGE..], GuestAddress(STACK)).expect("in memory");
        self.load(input, shared.vector(input.vector_template));
        let begin = Instant::now();
        let exit = self.backend.run(&NoIo);
        self.in_run += begin.elapsed();
        let state = self.backend.state().expect("the accelerator gives the state");
        outcome.cr2 = state.cr2;
        outcome.gpr = state.gpr;
        outcome.rip = state.rip;
        outcome.rflags = state.rflags;
        outcome.error = 0;
        let handler = state.rip.wrapping_sub(SYSTEM + HANDLERS);
        if matches!(exit, Ok(VcpuExit::Kicked)) && self.cpu.take_exit_request() {
            outcome.vector = ending::HANG;
        } else if !matches!(exit, Ok(VcpuExit::Halted)) || handler >= 256 * HANDLER_BYTES {
            // A stream at CPL 0 that lost its way may find a HLT of its own.
            if !matches!(exit, Ok(VcpuExit::Halted)) {
                eprintln!("engine: {exit:?} at {:#x}; {}", state.rip, self.backend.describe());
            }
            outcome.vector = ending::ENGINE;
        } else {
            outcome.vector = (handler / HANDLER_BYTES) as u32;
            self.memory.read_slice(&mut self.frame, GuestAddress(FAULT_STACK_TOP - 48)).expect("in memory");
            let word = |index: usize| {
                u64::from_le_bytes(self.frame[8 * index..8 * index + 8].try_into().expect("eight bytes"))
            };
            if matches!(outcome.vector, 8 | 10..=14 | 17 | 21 | 29 | 30) {
                outcome.error = word(0) as u32;
            }
            outcome.rip = word(1);
            outcome.rflags = word(3);
            outcome.gpr[4] = word(4);
        }
        let length = state.xsave.len().min(outcome.xsave.len());
        outcome.xsave.fill(0);
        outcome.xsave[..length].copy_from_slice(&state.xsave[..length]);
        self.memory.read_slice(&mut outcome.memory[..2 * PAGE], GuestAddress(DATA)).expect("in memory");
        self.memory.read_slice(&mut outcome.memory[2 * PAGE..], GuestAddress(STACK)).expect("in memory");
    }
}

/// What the guest's CPUID shows, read by the guest: features, and components of XCR0.
pub fn shows(make: &MakeAccelerator, shared: &Shared) -> (crate::features::Shown, u64) {
    let mut guest = Guest::new(make, shared);
    let mut outcome = Outcome::new();
    // cpuid; int 0x80
    let at = CODE_BYTES - PAGE;
    shared.write_code(at, &[0x0f, 0xa2, 0xcd, 0x80]);
    let mut cpuid = |leaf, subleaf| {
        let mut input = Input { bits: 64, cpl: 3, rip: CODE + at as u64, rflags: 0x202, ..Input::default() };
        input.gpr[0] = u64::from(leaf);
        input.gpr[1] = u64::from(subleaf);
        guest.run(shared, &input, &mut outcome);
        assert_eq!(outcome.vector, ending::DONE, "CPUID runs in the guest");
        [0, 3, 1, 2].map(|register| outcome.gpr[register] as u32)
    };
    let shown = crate::features::Shown::read(&mut cpuid);
    let state = cpuid(0xd, 0);
    (shown, u64::from(state[0]) | u64::from(state[3]) << 32)
}
