//! What the user is told of a guest that stopped without wanting to: why, where, and what it last said.

use std::fmt::Write as _;
use std::sync::Arc;

use accel::CpuArchState;
use accel::arch_state::seg;
use devices::backend::BufferBackend;
use vm_memory::GuestMemoryMmap;

use super::main_loop::{Stop, StopReason};
use super::walk;
use crate::run_state::Phase;

/// How much of what the guest last said.
const TAIL_LINES: usize = 20;
/// What the line says that Linux begins its report of a panic with.
const PANIC: &str = "Kernel panic - not syncing";
/// How much of the code at RIP.
const CODE_BYTES: u64 = 16;

const GENERAL: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];
const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];

/// The report. The first line tells all to those who read no further.
pub fn text(stop: &Stop, memory: &GuestMemoryMmap, tails: &[(String, Arc<BufferBackend>)]) -> String {
    let place = stop.state.as_deref().map_or_else(String::new, place);
    let cpu = stop.cpu;
    let mut text = match &stop.reason {
        StopReason::TripleFault => format!("bivisor: the guest crashed: triple fault on CPU {cpu}{place}\n"),
        StopReason::Panic => {
            format!("bivisor: the guest crashed: its kernel panicked on CPU {cpu} (pvpanic)\n")
        }
        StopReason::Watchdog => "bivisor: the guest hangs: its watchdog was not fed in time\n".to_owned(),
        StopReason::Engine(what) => format!("bivisor: CPU {cpu} cannot go on{place}: {what}\n"),
        StopReason::Timeout { limit, phase: Phase::Running } => {
            format!("bivisor: timeout after {} s; CPU {cpu} is{place}\n", limit.as_secs_f64())
        }
        StopReason::Timeout { limit, phase } => {
            let (limit, phase) = (limit.as_secs_f64(), phase.name());
            format!("bivisor: timeout after {limit} s, run state {phase}; CPU {cpu} is{place}\n")
        }
    };
    // The engine repeats the registers; what else it knows matters where it is the engine that gave up.
    if stop.state.is_none() || matches!(stop.reason, StopReason::Engine(_)) {
        for line in stop.description.lines() {
            text += &format!("  {line}\n");
        }
    }
    if let Some(state) = &stop.state {
        write_state(&mut text, state, memory).expect("a string takes everything");
    }
    for line in &stop.others {
        text += &format!("{line}\n");
    }
    for (name, tail) in tails {
        text += &last_lines(name, &tail.contents(), stop.reason == StopReason::Panic);
    }
    text
}

/// Where a CPU is, that the report is not about.
pub fn line(cpu: usize, state: Option<Box<CpuArchState>>) -> String {
    match state {
        Some(state) => {
            let (place, flags) = (place(&state), flags(state.rflags));
            format!("CPU {cpu} is{place} RFL={:08x} [{flags}] {:?}", state.rflags, state.run_mode)
        }
        None => format!("CPU {cpu} does not answer"),
    }
}

/// What a CPU was found at ([`CpuHandle::diagnosis`](accel::CpuHandle::diagnosis)), and what waits for it.
pub fn found(at: &str, waiting: &str) -> String {
    let separator = if waiting.is_empty() { "" } else { "; " };
    format!("  {at}{separator}{waiting}")
}

fn place(state: &CpuArchState) -> String {
    format!(" at {:04x}:{:016x}", state.segments[seg::CS].selector, state.rip)
}

fn write_state(text: &mut String, state: &CpuArchState, memory: &GuestMemoryMmap) -> std::fmt::Result {
    for (index, name) in GENERAL.iter().enumerate() {
        let end = if index % 4 == 3 { "\n" } else { " " };
        write!(text, "{name:>3}={:016x}{end}", state.gpr[index])?;
    }
    writeln!(
        text,
        "RIP={:016x} RFL={:08x} [{}] {:?}",
        state.rip,
        state.rflags,
        flags(state.rflags),
        state.run_mode
    )?;
    for (name, segment) in SEGMENTS.iter().zip(&state.segments) {
        writeln!(
            text,
            " {name}={:04x} base={:016x} limit={:08x} access={:04x}",
            segment.selector, segment.base, segment.limit, segment.access
        )?;
    }
    let (task, ldt) = (&state.task, &state.ldt);
    writeln!(
        text,
        " TR={:04x} base={:016x}  LDT={:04x} base={:016x}",
        task.selector, task.base, ldt.selector, ldt.base
    )?;
    let (gdt, idt) = (&state.gdt, &state.idt);
    writeln!(
        text,
        "GDT={:016x} limit={:04x}  IDT={:016x} limit={:04x}",
        gdt.base, gdt.limit, idt.base, idt.limit
    )?;
    writeln!(
        text,
        "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} CR8={:x} EFER={:x}",
        state.cr0, state.cr2, state.cr3, state.cr4, state.cr8, state.efer
    )?;
    let linear = state.segments[seg::CS].base.wrapping_add(state.rip);
    let code = walk::read(memory, state, linear, CODE_BYTES);
    let code: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(text, "Code at RIP: {}", if code.is_empty() { "not mapped".into() } else { code.join(" ") })
}

fn flags(rflags: u64) -> String {
    const FLAGS: [(u32, &str); 13] = [
        (0, "CF"),
        (2, "PF"),
        (4, "AF"),
        (6, "ZF"),
        (7, "SF"),
        (8, "TF"),
        (9, "IF"),
        (10, "DF"),
        (11, "OF"),
        (14, "NT"),
        (16, "RF"),
        (17, "VM"),
        (18, "AC"),
    ];
    let set: Vec<&str> =
        FLAGS.iter().filter(|(bit, _)| rflags & (1 << bit) != 0).map(|(_, name)| *name).collect();
    set.join(" ")
}

/// The last lines that a serial port said, without what would move the reader's cursor; all of those about a panic.
fn last_lines(name: &str, bytes: &[u8], panicked: bool) -> String {
    let said: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|&c| c == '\n' || c == '\t' || !c.is_control())
        .collect();
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return format!("{name} said nothing.\n");
    }
    let last = lines.len().saturating_sub(TAIL_LINES);
    let panic = lines.iter().rposition(|line| panicked && line.contains(PANIC));
    let last = &lines[panic.map_or(last, |panic| panic.min(last))..];
    let mut text = format!("{name} said last:\n");
    for line in last {
        text += &format!("  {line}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::backend::CharBackend;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_report_says_why_where_and_what() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        memory.write_slice(&[0x0f, 0x0b], GuestAddress(0xfff0)).unwrap();
        let mut state = CpuArchState::power_on();
        state.segments[seg::CS].base = 0;
        let tail = BufferBackend::new(1000);
        tail.write(b"\x1b[1mhello\r\nKernel panic\r\n");
        let stop = Stop {
            reason: StopReason::TripleFault,
            cpu: 0,
            state: Some(Box::new(state)),
            description: String::new(),
            others: vec![line(1, None)],
        };
        let text = text(&stop, &memory, &[("COM1".into(), tail)]);
        assert!(
            text.starts_with(
                "bivisor: the guest crashed: triple fault on CPU 0 at f000:000000000000fff0\nRAX="
            ),
            "{text}"
        );
        assert!(text.contains("Code at RIP: 0f 0b 00"));
        let long = format!("before\n{PANIC}: why\n{}", "trace\n".repeat(TAIL_LINES + 5));
        let lines = last_lines("COM1", long.as_bytes(), true);
        assert!(lines.contains("why") && !lines.contains("before"), "{lines}");
        assert!(!last_lines("COM1", long.as_bytes(), false).contains("why"));
        assert_eq!(found("CPU 1: Halted", ""), "  CPU 1: Halted");
        assert_eq!(found("CPU 1: Halted", "IRR 41"), "  CPU 1: Halted; IRR 41");
        assert!(text.contains("\nCPU 1 does not answer\nCOM1 said"), "{text}");
        assert!(text.ends_with("COM1 said last:\n  [1mhello\n  Kernel panic\n"));
        assert_eq!(stop.exit_code(), crate::exit_code::GUEST_CRASH);
    }
}
