//! Cases that failed once: `regressions.txt`, one a line, run first.
//!
//! `BITS CPL BYTES at=ADDRESS flags=... v=N m=N NAME=VALUE ...  # why`, all but BITS and CPL in hexadecimal; unnamed registers
//! are zero. The bytes lie at the address that they failed at: their way out is a relative jump.

use crate::driver::Work;
use crate::operands::GS_BASE;
use crate::program::{Item, Program};
use crate::shared::Input;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// The line that repeats a case.
pub fn line(input: &Input, at: u64, code: &[u8]) -> String {
    let body: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut line = format!(
        "{} {} {body} at={at:x} flags={:x} v={:x} m={:x}",
        input.bits, input.cpl, input.rflags, input.vector_template, input.memory_template
    );
    for (name, value) in NAMES.iter().zip(input.gpr) {
        if value != 0 {
            line += &format!(" {name}={value:x}");
        }
    }
    line
}

fn parse(line: &str) -> Option<Work> {
    let text = line.split('#').next()?.trim();
    let mut words = text.split_whitespace();
    let bits = words.next()?.parse().ok()?;
    let cpl = words.next()?.parse().ok()?;
    let hex = words.next()?;
    let bytes = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok())
        .collect::<Option<Vec<u8>>>()?;
    let mut input = Input { bits, cpl, rflags: 0x202, gs_base: GS_BASE, ..Input::default() };
    let mut at = None;
    for word in words {
        let (name, value) = word.split_once('=')?;
        let value = u64::from_str_radix(value, 16).ok()?;
        match name {
            "at" => at = Some(value),
            "flags" => input.rflags = value,
            "v" => input.vector_template = value as u32,
            "m" => input.memory_template = value as u32,
            _ => input.gpr[NAMES.iter().position(|&known| known == name)?] = value,
        }
    }
    let program = Program { bits, items: vec![Item::Raw(bytes)] };
    Some(Work { program, inputs: vec![input], at: Some(at?) })
}

/// All of the file's cases.
///
/// # Panics
/// On a line that cannot be read: a regression that is not run is worse than none.
pub fn all() -> Vec<Work> {
    let text = include_str!("regressions.txt");
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
        .map(|line| parse(line).unwrap_or_else(|| panic!("regressions.txt: {line}")))
        .collect()
}
