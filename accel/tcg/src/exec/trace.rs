//! What `-d` shows of the translator: an event per line, under the item's name as target.

use iced_x86::{Decoder, DecoderOptions};
use tracing::{Level, enabled, trace};

use crate::code::cache::TbCache;
use crate::code::tb::TbId;
use crate::cpu::Cpu;
use crate::translate::generator::Translator;

const REGISTERS: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];

/// The block that `translator` has just made, to be executed at `address`.
pub fn translated(translator: &Translator, address: u64) {
    if enabled!(target: "in_asm", Level::TRACE) {
        trace!(target: "in_asm", "----------------");
        for item in translator.items() {
            trace!(target: "in_asm", "{:#018x}: {}", item.insn.ip(), item.insn);
        }
    }
    if enabled!(target: "op", Level::TRACE) {
        trace!(target: "op", "----------------");
        for item in translator.items() {
            let (class, live) = (item.class, item.live_out);
            trace!(target: "op", "{:#018x}: {class:?}, flags {:?}, live after {live:#x}", item.insn.ip(), item.flags);
        }
    }
    if enabled!(target: "out_asm", Level::TRACE) {
        trace!(target: "out_asm", "---------------- {} bytes", translator.code().len());
        for insn in Decoder::with_ip(64, translator.code(), address, DecoderOptions::NONE) {
            trace!(target: "out_asm", "{:#018x}: {insn}", insn.ip());
        }
    }
}

/// The loop enters block `id`. Blocks that are reached by a chained jump do not come here; `-d nochain` makes all do.
pub fn entered(cpu: &Cpu, cache: &TbCache, id: TbId) {
    if enabled!(target: "exec", Level::TRACE) {
        let block = cache.block(id);
        trace!(target: "exec", "Trace {}: {:#x} [{:#018x}/{:#x}]", cpu.index, cache.code(id), block.key.rip, block.key.mode);
    }
    if enabled!(target: "cpu", Level::TRACE) {
        registers("cpu", cpu);
    }
    if enabled!(target: "fpu", Level::TRACE) {
        let area = &cpu.env.xsave;
        trace!(target: "fpu", "FCW={:04x} FSW={:04x} FTW={:02x} MXCSR={:08x}", area.fcw(), area.fsw(), area.ftw(), area.mxcsr());
        for index in 0..8 {
            let mut value = area.st(index);
            value.reverse();
            trace!(target: "fpu", "FPR{index}={}", hex(&value));
        }
        for index in 0..16 {
            let mut value = area.vector(index);
            value.reverse();
            trace!(target: "fpu", "YMM{index:02}={}", hex(&value[32..]));
        }
    }
}

/// The registers of `cpu`, before a reset.
pub fn before_reset(cpu: &Cpu) {
    if enabled!(target: "cpu_reset", Level::TRACE) {
        trace!(target: "cpu_reset", "CPU {} reset", cpu.index);
        registers("cpu_reset", cpu);
    }
}

/// Whether blocks may be chained.
pub fn chaining() -> bool {
    !enabled!(target: "nochain", Level::TRACE)
}

/// Whether blocks are to count what they do, for the table of [`crate::exec::counters`].
pub fn counting() -> bool {
    enabled!(target: "jit", Level::TRACE)
}

fn registers(item: &'static str, cpu: &Cpu) {
    let env = &*cpu.env;
    let line = |text: String| match item {
        "cpu" => trace!(target: "cpu", "{text}"),
        _ => trace!(target: "cpu_reset", "{text}"),
    };
    for row in 0..4 {
        let names =
            (4 * row..4 * row + 4).map(|index| format!("{:<3}={:016x}", REGISTERS[index], env.gpr[index]));
        line(names.collect::<Vec<_>>().join(" "));
    }
    line(format!(
        "RIP={:016x} RFL={:08x} CPL={} CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x} EFER={:x}",
        env.rip,
        env.rflags(),
        env.cpl(),
        env.cr0,
        env.cr2,
        env.cr3,
        env.cr4,
        env.efer
    ));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
