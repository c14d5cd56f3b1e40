//! `-d ITEM,...`: what to log (QEMU, *Invocation*).

use std::collections::BTreeSet;

use super::error::{Context, OptionError};

/// One kind of log entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogItem {
    /// Guest code of each translated block.
    InAsm,
    /// What the translator decided for each instruction.
    Op,
    /// Host code of each translated block.
    OutAsm,
    /// Interrupts and exceptions.
    Int,
    /// Each block as it is entered.
    Exec,
    /// Registers on entry to each block.
    Cpu,
    /// Vector and x87 registers too.
    Fpu,
    /// Page faults and TLB flushes.
    Mmu,
    /// Registers before a CPU is reset.
    CpuReset,
    /// What the guest asked for and this program does not have.
    Unimp,
    /// What the guest did wrong.
    GuestErrors,
    /// At the end, what each CPU's engine has counted.
    Jit,
    /// At the end, how many instructions were executed under `-icount`.
    Icount,
    /// Blocks are not chained, so that `exec` and `cpu` are complete.
    NoChain,
}

/// The items with their names and what they log.
pub const ITEMS: &[(LogItem, &str, &str)] = &[
    (LogItem::InAsm, "in_asm", "guest code of each translated block"),
    (LogItem::Op, "op", "what the translator decided for each instruction"),
    (LogItem::OutAsm, "out_asm", "host code of each translated block"),
    (LogItem::Int, "int", "interrupts and exceptions"),
    (LogItem::Exec, "exec", "each block as it is entered (a lot)"),
    (LogItem::Cpu, "cpu", "registers on entry to each block (a lot)"),
    (LogItem::Fpu, "fpu", "vector and x87 registers in 'cpu'"),
    (LogItem::Mmu, "mmu", "page faults and TLB flushes"),
    (LogItem::CpuReset, "cpu_reset", "registers before a CPU is reset"),
    (LogItem::Unimp, "unimp", "what the guest asked for and is not there"),
    (LogItem::GuestErrors, "guest_errors", "what the guest did wrong"),
    (
        LogItem::Jit,
        "jit",
        "at the end, what the translator has counted; its code counts too, so it is slower",
    ),
    (LogItem::Icount, "icount", "at the end, how many instructions were executed, under -icount"),
    (LogItem::NoChain, "nochain", "do not chain blocks, so that 'exec' and 'cpu' are complete"),
];

const NOT_BUILT: &[&str] = &[
    "op_opt",
    "op_ind",
    "op_plugin",
    "pcall",
    "page",
    "plugin",
    "strace",
    "tid",
    "vpu",
    "invalid_mem",
    "all",
];

/// Reads the argument of `-d`.
pub fn items(context: Context) -> Result<BTreeSet<LogItem>, OptionError> {
    let mut set = BTreeSet::new();
    for name in context.value.split(',') {
        match ITEMS.iter().find(|(_, known, _)| *known == name) {
            Some((item, ..)) => {
                set.insert(*item);
            }
            None if NOT_BUILT.contains(&name) || name.starts_with("trace:") => {
                return Err(context.not_built(name));
            }
            None => return Err(context.bad(format!("no log item '{name}' (see -d help)"))),
        }
    }
    Ok(set)
}

/// The text of `-d help`.
pub fn help() -> String {
    let lines = ITEMS.iter().map(|(_, name, text)| format!("  {name:<13}{text}\n"));
    std::iter::once("Log items (-d ITEM,...):\n".to_owned()).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_items() {
        let read = |value| items(Context { option: "-d", value });
        assert_eq!(read("int,in_asm,int").unwrap(), [LogItem::InAsm, LogItem::Int].into());
        assert_eq!(read("foo").unwrap_err().to_string(), "-d foo: no log item 'foo' (see -d help)");
        assert!(read("plugin").unwrap_err().to_string().ends_with("plugin: not built yet"));
        assert!(read("").is_err());
    }
}
