//! The architectural state in and out of the environment; reset, INIT and start-up IPI
//! (SDM vol. 3A, *Processor Management and Initialization*).

use accel::CpuArchState;
use accel::arch_state::{RunMode, SegmentState, TableState};

use crate::cpu::Cpu;
use crate::env::{Segment, Table, XSAVE_BYTES};

fn segment_out(segment: &Segment) -> SegmentState {
    SegmentState {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        access: segment.access,
    }
}

fn segment_in(state: &SegmentState) -> Segment {
    Segment { base: state.base, limit: state.limit, access: state.access & 0xf0ff, selector: state.selector }
}

fn table_out(table: &Table) -> TableState {
    TableState { base: table.base, limit: table.limit }
}

fn table_in(state: &TableState) -> Table {
    Table { base: state.base, limit: state.limit }
}

/// The architectural state. The vector state must be in the environment (`fp_loaded` 0). CR8 is 0 here: it is part of
/// the local APIC, which is the machine's and not the engine's.
pub fn cpu_to_arch(cpu: &mut Cpu) -> CpuArchState {
    let msrs = crate::msr::save(cpu);
    let env = &*cpu.env;
    CpuArchState {
        gpr: env.gpr,
        rip: env.rip,
        rflags: u64::from(env.rflags()),
        segments: std::array::from_fn(|index| segment_out(&env.seg[index])),
        ldt: segment_out(&env.ldt),
        task: segment_out(&env.task),
        gdt: table_out(&env.gdt),
        idt: table_out(&env.idt),
        cr0: env.cr0,
        cr2: env.cr2,
        cr3: env.cr3,
        cr4: env.cr4,
        cr8: 0,
        efer: env.efer,
        xcr0: env.xcr0,
        dr: env.dr,
        dr6: env.dr6,
        dr7: env.dr7,
        xsave: env.xsave.0.to_vec(),
        msrs,
        run_mode: if env.wait_for_sipi {
            RunMode::WaitForSipi
        } else if env.halted {
            RunMode::Halted
        } else {
            RunMode::Running
        },
        nmi_blocked: env.nmi_blocked,
        interrupt_shadow: env.interrupt_shadow != 0,
    }
}

/// Replaces the architectural state; MSRs that `state` does not list keep their values. The vector state is in the
/// environment afterwards (`fp_loaded` 0).
pub fn arch_to_cpu(cpu: &mut Cpu, state: &CpuArchState) {
    set_registers(cpu, state);
    let env = &mut *cpu.env;
    env.xcr0 = state.xcr0 | 1;
    env.fp_loaded = 0;
    if state.xsave.is_empty() {
        initial_xsave(&mut env.xsave.0);
    } else {
        let len = state.xsave.len().min(XSAVE_BYTES);
        env.xsave.0[..len].copy_from_slice(&state.xsave[..len]);
        env.xsave.0[len..].fill(0);
    }
    for &(index, value) in &state.msrs {
        crate::msr::restore(cpu, index, value);
    }
}

/// Power-on or RESET, MSRs included.
pub fn reset(cpu: &mut Cpu) {
    crate::msr::power_on(cpu);
    arch_to_cpu(cpu, &CpuArchState::power_on());
}

/// INIT: MSRs, vector state and the cache bits of CR0 stay. An AP waits for its start-up IPI, the bootstrap CPU goes
/// to the reset vector.
pub fn init(cpu: &mut Cpu) {
    const CACHE_BITS: u64 = 3 << 29;
    let mut state = CpuArchState::power_on();
    state.cr0 = state.cr0 & !CACHE_BITS | cpu.env.cr0 & CACHE_BITS;
    if cpu.index != 0 {
        state.run_mode = RunMode::WaitForSipi;
    }
    set_registers(cpu, &state);
    if let Some(interrupts) = cpu.io().interrupts() {
        interrupts.init();
    }
}

/// Start-up IPI with `vector`: a CPU that waits for one starts in real mode at `vector << 12`; others ignore it.
pub fn start_up(cpu: &mut Cpu, vector: u8) {
    if !cpu.env.wait_for_sipi {
        return;
    }
    let state = CpuArchState::after_sipi(vector);
    cpu.env.seg[1] = segment_in(&state.segments[1]);
    cpu.env.rip = state.rip;
    cpu.env.wait_for_sipi = false;
}

/// All but vector state and MSRs.
fn set_registers(cpu: &mut Cpu, state: &CpuArchState) {
    let env = &mut *cpu.env;
    env.gpr = state.gpr;
    env.rip = state.rip;
    env.set_rflags(state.rflags as u32);
    env.seg = std::array::from_fn(|index| segment_in(&state.segments[index]));
    env.ldt = segment_in(&state.ldt);
    env.task = segment_in(&state.task);
    env.gdt = table_in(&state.gdt);
    env.idt = table_in(&state.idt);
    env.cr0 = state.cr0;
    env.cr2 = state.cr2;
    env.cr3 = state.cr3;
    env.cr4 = state.cr4;
    env.efer = state.efer;
    env.dr = state.dr;
    env.dr6 = state.dr6;
    env.dr7 = state.dr7;
    env.halted = state.run_mode == RunMode::Halted;
    env.wait_for_sipi = state.run_mode == RunMode::WaitForSipi;
    env.nmi_blocked = state.nmi_blocked;
    env.interrupt_shadow = u32::from(state.interrupt_shadow);
    env.bounce_len = 0;
    cpu.pending_debug = 0;
    cpu.mmu.reset_contexts(&mut cpu.env);
}

/// The XSAVE image after reset: every component in its initial configuration.
fn initial_xsave(area: &mut [u8; XSAVE_BYTES]) {
    area.fill(0);
    area[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    area[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
}
