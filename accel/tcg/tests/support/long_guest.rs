//! A machine without devices for small pieces of 64-bit code: 32 MiB of RAM, mapped page by page for all rights, linear
//! address = physical. Code at CPL 3 ends with SYSCALL, code at CPL 0 with HLT.

use std::time::{Duration, Instant};

use accel::CpuHandle;
use accel::arch_state::{CpuArchState, RunMode, SegmentState, seg};
use accel::contract::{Accelerator, NoIo, VcpuBackend, VcpuConfig, VcpuExit};
use accel::cpu_model::CpuModel;
use accel_tcg::{Tcg, TcgOptions};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where code starts.
pub const CODE: u64 = 0x10_0000;
/// Memory for data, to the end.
pub const DATA: u64 = 0x80_0000;
/// Top of the stack.
pub const STACK: u64 = 0x70_0000;

const MEMORY: u64 = 32 << 20;
/// Level 4, 3, 2, then the tables of level 1.
const TABLES: u64 = 0x1000;
/// HLT, where SYSCALL leads.
const END: u64 = 0x800;
/// Present, writable, for the user, accessed, dirty.
const ALL: u64 = 0x67;

const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;

/// The machine.
pub struct Guest {
    backend: Box<dyn VcpuBackend>,
    #[allow(dead_code, reason = "some tests that share this file do not look")]
    memory: GuestMemoryMmap<()>,
    _accelerator: Tcg,
}

fn segment(selector: u16, access: u16) -> SegmentState {
    SegmentState { selector, base: 0, limit: u32::MAX, access }
}

fn state(cpl: u16) -> CpuArchState {
    let mut state = CpuArchState::power_on();
    let data = segment(0x28 | cpl, 0xc093 | cpl << 5);
    state.segments = [data; 6];
    state.segments[seg::CS] = segment(0x30 | cpl, 0xa09b | cpl << 5);
    state.rip = CODE;
    state.gpr[4] = STACK;
    // PE MP ET NE WP PG; PAE OSFXSR OSXMMEXCPT; SCE LME LMA NXE.
    (state.cr0, state.cr3, state.cr4, state.efer) = (0x8001_0033, TABLES, 0x620, 0xd01);
    state.msrs = vec![(STAR, 0x10 << 32), (LSTAR, END)];
    state.run_mode = RunMode::Running;
    state
}

impl Guest {
    /// A machine with `pieces` of code where they belong; the first is to start at [`CODE`].
    pub fn new(pieces: &[(u64, Vec<u8>)]) -> Self {
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
        let put = |at: u64, entry: u64| memory.write_obj(entry, GuestAddress(at)).expect("in memory");
        put(TABLES, (TABLES + 0x1000) | ALL);
        put(TABLES + 0x1000, (TABLES + 0x2000) | ALL);
        for table in 0..MEMORY >> 21 {
            put(TABLES + 0x2000 + 8 * table, (TABLES + 0x3000 + (table << 12)) | ALL);
        }
        for page in 0..MEMORY >> 12 {
            put(TABLES + 0x3000 + 8 * page, page << 12 | ALL);
        }
        memory.write_obj(0xf4u8, GuestAddress(END)).expect("in memory");
        for (at, code) in pieces {
            memory.write_slice(code, GuestAddress(*at)).expect("in memory");
        }
        let accelerator =
            Tcg::new(TcgOptions { code_bytes: 16 << 20, ..TcgOptions::default() }).expect("a translator");
        accelerator.memory_listener().set_map(&memory).expect("a map");
        let config = VcpuConfig { index: 0, apic_id: 0, cpu_count: 1, model: CpuModel::default().into() };
        let seed = accelerator.new_vcpu(&config).expect("a CPU");
        let backend = seed.bind(CpuHandle::new(0)).expect("a CPU binds");
        Self { backend, memory, _accelerator: accelerator }
    }

    /// Runs from [`CODE`] to the end, at CPL 3 or 0; how long that took.
    pub fn run(&mut self, cpl: u16) -> Duration {
        self.backend.set_state(&state(cpl)).expect("the state is good");
        let begun = Instant::now();
        let exit = self.backend.run(&NoIo).expect("it runs");
        let took = begun.elapsed();
        let rip = self.backend.state().expect("a state").rip;
        assert_eq!(exit, VcpuExit::Halted, "at {rip:#x}");
        took
    }

    /// The eight bytes at `address`.
    #[allow(dead_code, reason = "some tests that share this file do not look")]
    pub fn word(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).expect("in memory")
    }

    /// The count in the row `name` of the CPU's statistics, if there is one.
    pub fn counted(&mut self, name: &str) -> Option<u64> {
        let lines = self.backend.statistics();
        let row =
            lines.iter().find_map(|line| line.strip_prefix("  ")?.strip_prefix(name)?.strip_prefix(' '))?;
        row.split_whitespace().next()?.parse().ok()
    }
}
