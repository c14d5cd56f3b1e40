//! What a CPU counts for the user, and the table of it that `-d jit` prints when the machine stops, as QEMU's `info jit`.
//!
//! Three places count: the cache ([`crate::code::cache::Counters`], shared by all CPUs), Rust code of a CPU ([`Counters`])
//! and its generated code ([`CodeCounters`]: misses always, checks only under `-d jit`).

use crate::code::cache::TbCache;
use crate::code::thunks::exit;
use crate::cpu::Cpu;
use crate::env::CodeCounters;

/// The reasons in the order of the table.
const EXITS: [(u64, &str); exit::REASONS - 1] = [
    (exit::POLL, "poll"),
    (exit::LINK, "link"),
    (exit::LOOKUP, "lookup"),
    (exit::BLOCK_END, "block end"),
    (exit::HELPER, "helper"),
    (exit::FAULT, "fault"),
];

/// Counted in Rust.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    exits: [u64; exit::REASONS],
    /// Instructions that a helper was called to execute, or to raise the exception of.
    pub executed: u64,
    /// Operands that a helper was called for.
    pub operands: u64,
    /// Stores that a helper was called to commit.
    pub committed: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
    /// Interrupts delivered, NMIs among them.
    pub interrupts: u64,
}

impl Counters {
    /// Generated code was left for `reason` ([`exit`]).
    pub fn exited(&mut self, reason: u64) {
        self.exits[reason as usize % exit::REASONS] += 1;
    }

    /// How often it was left for `reason`.
    pub fn exits(&self, reason: u64) -> u64 {
        self.exits[reason as usize % exit::REASONS]
    }
}

/// The lines of the table.
struct Table(Vec<String>);

impl Table {
    fn heading(&mut self, text: impl Into<String>) {
        self.0.push(text.into());
    }

    fn row(&mut self, name: &str, count: u64) {
        self.0.push(format!("  {name:<44}{count:>16}"));
    }

    /// With what `count` is to `of`.
    fn ratio(&mut self, name: &str, count: u64, of: u64, unit: &str) {
        let ratio = if of == 0 { String::new() } else { format!("  {:.2} {unit}", count as f64 / of as f64) };
        self.0.push(format!("  {name:<44}{count:>16}{ratio}"));
    }

    /// How many of `count` did not miss.
    fn hits(&mut self, name: &str, count: u64, misses: u64) {
        let hits = count.saturating_sub(misses) as f64 * 100.0;
        let rate = if count == 0 { String::new() } else { format!("  {:.2} % hit", hits / count as f64) };
        self.0.push(format!("  {name:<44}{count:>16}{rate}"));
    }
}

/// The table for `cpu`. `counting`: blocks count their checks ([`crate::exec::trace::counting`]).
pub fn table(cpu: &Cpu, cache: &TbCache, counting: bool) -> Vec<String> {
    let mut table = Table(Vec::new());
    let (made, counters, counted) = (&cache.counters, &cpu.counters, &cpu.env.counted);
    table.heading(format!("CPU {}: translation, of all CPUs", cpu.index));
    table.row("blocks", made.translated);
    table.ratio("guest instructions", made.instructions, made.translated, "a block");
    table.ratio("guest bytes", made.guest_bytes, made.instructions, "an instruction");
    table.ratio("host bytes", made.host_bytes, made.guest_bytes, "a guest byte");
    let (used, dead) = cache.bytes();
    table.row("bytes of code memory in use", used as u64);
    table.row("bytes of it that are of no use any more", dead as u64);
    table.row("regions of code memory reclaimed", made.reclaimed);
    table.row("blocks invalidated", made.invalidated);
    table.row("jumps linked", made.linked);
    table.row("sites moved from slots to the table", made.moved_sites);
    table.row("blocks whose groups were given up", made.ungrouped);

    table.heading(format!("CPU {}: exits from generated code", cpu.index));
    for (reason, name) in EXITS {
        table.row(name, counters.exits(reason));
    }

    table.heading(format!("CPU {}: in Rust", cpu.index));
    table.row("instructions executed by a helper", counters.executed);
    table.row("operands found by a helper", counters.operands);
    table.row("stores committed by a helper", counters.committed);
    table.row("exceptions delivered", counters.exceptions);
    table.row("interrupts delivered", counters.interrupts);
    table.row("soft-TLB fills", cpu.mmu.fills);
    table.row("whole flushes", cpu.mmu.flushes);

    table.heading(format!("CPU {}: in generated code", cpu.index));
    generated(&mut table, counted, counting);
    table.0
}

/// What generated code has counted. A check that misses its slot may miss the table too: that is not among the table's
/// misses.
fn generated(table: &mut Table, counted: &CodeCounters, counting: bool) {
    if counting {
        let by_slot = counted.slot_checks + counted.group_checks;
        table.row("checks of one access by slot", counted.slot_checks);
        table.row("checks of several accesses by slot", counted.group_checks);
        table.hits("checks by slot, together", by_slot, counted.slot_misses);
        table.hits("checks by table", counted.table_checks, counted.table_misses);
        table.hits("returns predicted", counted.returns, counted.return_misses);
        table.row("other indirect branches", counted.branches);
    }
    table.row("slot misses", counted.slot_misses);
    table.row("table misses", counted.table_misses);
    table.row("soft-TLB refills", counted.walks);
    table.row("return cache misses", counted.return_misses);
}
