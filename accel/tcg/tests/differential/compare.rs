//! What differs between two outcomes of one case.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, RflagsBits};

use crate::known;
use crate::layout::{DATA, PAGE, STACK};
use crate::shared::{Input, Outcome, Shared, ending};
use crate::xsave;

const NAMES: [&str; 16] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13", "R14",
    "R15",
];
const PAGE_FAULT: u32 = 14;
const ARITHMETIC: u64 = 0x8d5;

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Short, the same for like cases.
    pub field: String,
    /// The host's value and the engine's.
    pub values: String,
}

fn differ(field: impl Into<String>, native: u64, engine: u64) -> Difference {
    Difference { field: field.into(), values: format!("native {native:#x}, engine {engine:#x}") }
}

/// Arithmetic flags that nothing reads any more at the instruction that faults: engines need not have them (the
/// translator drops flags that the stream overwrites unread). Behind a branch nothing is known, and all count as dead.
fn dead_flags(bits: u32, code: &[u8], fault: u64) -> u64 {
    let mut decoder = Decoder::with_ip(bits, code, fault, DecoderOptions::NONE);
    let (mut dead, mut live) = (0, 0);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        live |= arithmetic(instruction.rflags_read()) & !dead;
        dead |= arithmetic(instruction.rflags_modified()) & !live;
        if instruction.flow_control() != FlowControl::Next {
            return ARITHMETIC & !live;
        }
    }
    ARITHMETIC & !live
}

fn arithmetic(bits: u32) -> u64 {
    [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, 0x800),
    ]
    .iter()
    .filter(|&&(bit, _)| bits & bit != 0)
    .map(|&(_, flag)| flag)
    .sum()
}

/// How often each reason let a difference pass.
pub type Tolerated = BTreeMap<&'static str, u64>;

/// Everything that differs and is not [`known`], the most telling first. `length`: the stream's bytes;
/// `single`: it is one instruction.
pub fn differences(
    shared: &Shared,
    input: &Input,
    length: usize,
    single: bool,
    native: &Outcome,
    engine: &Outcome,
    tolerated: &mut Tolerated,
) -> Vec<Difference> {
    let found = all_differences(shared, input, single, native, engine);
    if found.is_empty() {
        return found;
    }
    let Some(why) = known::tolerated(shared, input, length as u64, native, engine) else { return found };
    *tolerated.entry(why).or_default() += 1;
    Vec::new()
}

fn all_differences(
    shared: &Shared,
    input: &Input,
    single: bool,
    native: &Outcome,
    engine: &Outcome,
) -> Vec<Difference> {
    let mut found = Vec::new();
    if native.vector != engine.vector {
        let names = format!("vector {}->{}", native.vector, engine.vector);
        found.push(Difference {
            values: format!(
                "native vector {} error {:#x} at {:#x}, engine vector {} error {:#x} at {:#x} cr2 {:#x}/{:#x}",
                native.vector, native.error, native.rip, engine.vector, engine.error, engine.rip, native.cr2, engine.cr2
            ),
            field: names,
        });
        return found;
    }
    let fault = native.vector != ending::DONE;
    let narrow = if input.bits == 32 { 0xffff_ffff } else { u64::MAX };
    if fault && native.rip != engine.rip {
        found.push(differ("RIP", native.rip, engine.rip));
    }
    // The native side always runs as a user.
    let user = if input.cpl == 3 || native.vector != PAGE_FAULT { 0 } else { 4 };
    // Linux hides from its processes which of its own pages are there: P is always set.
    let user = if native.vector == PAGE_FAULT && native.cr2 >> 63 != 0 { user | 1 } else { user };
    if fault && (native.error ^ engine.error) & !user != 0 {
        found.push(differ("error code", u64::from(native.error), u64::from(engine.error)));
    }
    if native.vector == PAGE_FAULT && native.cr2 != engine.cr2 {
        found.push(differ("CR2", native.cr2, engine.cr2));
    }
    if native.rflags != engine.rflags {
        let trap = matches!(native.vector, 1 | 3 | 4);
        let dead = if fault && !trap && !single {
            dead_flags(input.bits, &shared.code_at(native.rip, 256), native.rip)
        } else if single && !fault {
            Decoder::new(input.bits, &shared.code_at(input.rip, 15), DecoderOptions::NONE)
                .iter()
                .next()
                .map_or(0, |instruction| known::undefined_flags(instruction.code()))
        } else {
            0
        };
        if (native.rflags ^ engine.rflags) & !dead != 0 {
            let mut one = differ(
                format!("RFLAGS {:#x}", (native.rflags ^ engine.rflags) & !dead),
                native.rflags,
                engine.rflags,
            );
            if dead != 0 {
                one.values += &format!(" (not compared: {dead:#x})");
            }
            found.push(one);
        }
    }
    let registers = if input.bits == 32 { 8 } else { 16 };
    for (index, name) in NAMES.iter().enumerate().take(registers) {
        if (native.gpr[index] ^ engine.gpr[index]) & narrow != 0 {
            found.push(differ(*name, native.gpr[index], engine.gpr[index]));
        }
    }
    let (left, right) = (xsave::canonical(&native.xsave), xsave::canonical(&engine.xsave));
    if left != right {
        let mut last = String::new();
        for offset in 0..left.len() {
            let field = xsave::field(offset);
            let name = field.split(' ').next().unwrap_or_default().to_owned();
            if left[offset] != right[offset] && name != last {
                let end = (offset + 8).min(left.len());
                let word = |bytes: &[u8]| {
                    bytes[offset..end].iter().rev().map(|b| format!("{b:02x}")).collect::<String>()
                };
                found.push(Difference {
                    values: format!("at {field}: native {}, engine {}", word(&left[..]), word(&right[..])),
                    field: name.clone(),
                });
                last = name;
            }
        }
    }
    if native.memory != engine.memory {
        let offset = (0..native.memory.len())
            .find(|&offset| native.memory[offset] != engine.memory[offset])
            .unwrap_or_default();
        let at = if offset < 2 * PAGE { DATA + offset as u64 } else { STACK + (offset - 2 * PAGE) as u64 };
        let end = (offset + 16).min(native.memory.len());
        found.push(Difference {
            field: "memory".into(),
            values: format!(
                "at {at:#x}: native {:02x?}, engine {:02x?}",
                &native.memory[offset..end],
                &engine.memory[offset..end]
            ),
        });
    }
    found
}
