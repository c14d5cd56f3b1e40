//! Every instruction of every extension that CPUID may show is either on the translator's white list or executed by a
//! helper: none ends in #UD because nobody has it.

use std::collections::BTreeMap;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Instruction, Mnemonic};

use crate::code::tb::mode;
use crate::complex::execute;
use crate::complex::testing::{DATA, Machine};
use crate::cpuid::features::ALLOWED;
use crate::exception::{Exception, Exec};
use crate::translate::classify::{Class, classify};
use crate::translate::features::Features;

/// Extensions that only helpers look after, and those whose place in CPUID the white list does not need to know.
#[rustfmt::skip]
const HELPED: &[CpuidFeature] = &[
    CpuidFeature::FXSR, CpuidFeature::XSAVE, CpuidFeature::XSAVEOPT, CpuidFeature::XSAVEC, CpuidFeature::FSGSBASE,
    CpuidFeature::SYSCALL, CpuidFeature::SEP, CpuidFeature::MSR, CpuidFeature::TSC, CpuidFeature::RDTSCP,
    CpuidFeature::RDPID, CpuidFeature::INVPCID, CpuidFeature::SMAP, CpuidFeature::CPUID, CpuidFeature::RDPMC,
];

/// One instruction for each of the decoder's codes.
fn samples(bits: u32) -> BTreeMap<usize, (Vec<u8>, Instruction)> {
    let mut found = BTreeMap::new();
    let mut try_bytes = |bytes: &[u8]| {
        let insn = Decoder::with_ip(bits, bytes, 0, DecoderOptions::NONE).decode();
        if !insn.is_invalid() {
            found.entry(insn.code() as usize).or_insert_with(|| (bytes[..insn.len()].to_vec(), insn));
        }
    };
    // [ebx] and [rbx] first, then the rest of each row; registers last.
    let modrm: Vec<u8> = (0..32).map(|row| row << 3 | 3).chain(0..=255).collect();
    let prefixes: &[&[u8]] =
        &[&[], &[0x66], &[0xf2], &[0xf3], &[0x48], &[0x66, 0x48], &[0xf2, 0x48], &[0xf3, 0x48]];
    for prefix in prefixes {
        for map in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
            for opcode in 0..=255u8 {
                for &modrm in &modrm {
                    try_bytes(&[prefix, map, &[opcode, modrm, 1, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat());
                }
            }
        }
    }
    for map in 1..=3u8 {
        for rest in 0..16u8 {
            // W, vvvv (unused or register 1), L, pp.
            for vvvv in [0x78, 0x70] {
                let third = (rest & 8) << 4 | vvvv | rest & 7;
                for opcode in 0..=255u8 {
                    // A vector index too: [rbx + xmm2].
                    for modrm in (0..8).flat_map(|reg| [reg << 3 | 3, reg << 3 | 0xc3, reg << 3 | 4]) {
                        try_bytes(&[0xc4, 0xe0 | map, third, opcode, modrm, 0x13, 0, 0, 0, 0, 0]);
                    }
                }
            }
        }
    }
    found
}

/// A machine whose operating system has enabled everything.
fn ready(bits: u32) -> Machine {
    let mut machine = if bits == 64 { Machine::new() } else { Machine::new_32bit() };
    let env = &mut machine.cpu.env;
    env.cr4 |= 1 << 16 | 1 << 21;
    env.xcr0 = 7;
    env.gpr = [DATA; 16];
    env.gpr[1] = 1;
    machine
}

fn run(machine: &mut Machine, insn: &Instruction) -> Exec<()> {
    let Machine { cpu, io, .. } = machine;
    cpu.with_io(&*io, |cpu| execute(cpu, insn)).map(|_| ())
}

fn unclaimed(bits: u32, mode_bits: u32) -> Vec<String> {
    let everything = |leaf, subleaf| {
        let mut registers = [0; 4];
        for allow in ALLOWED.iter().filter(|allow| (allow.leaf, allow.subleaf) == (leaf, subleaf)) {
            registers[allow.register] |= allow.host | allow.own;
        }
        registers
    };
    let features = Features::new(everything);
    let mut unclaimed = Vec::new();
    for (bytes, insn) in samples(bits).values() {
        let shown = |feature: &CpuidFeature| features.has(*feature) || HELPED.contains(feature);
        // Extensions that are hidden do raise #UD, and so do these.
        let undefined = match insn.mnemonic() {
            Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Rsm => true,
            // PREFETCHW's bit is not 3DNow's.
            Mnemonic::Femms => true,
            // Intel's processors have these in 64-bit mode only.
            Mnemonic::Syscall | Mnemonic::Sysret => bits != 64,
            _ => false,
        };
        if undefined || !insn.cpuid_features().iter().all(shown) {
            continue;
        }
        let result = match classify(insn, bits, mode_bits, &features) {
            Class::Raise(exception) => Err(exception),
            Class::Complex(_) => run(&mut ready(bits), insn),
            _ => Ok(()),
        };
        if result == Err(Exception::UD) {
            unclaimed.push(format!("{insn} {:?} {bytes:02x?} {:?}", insn.code(), insn.cpuid_features()));
        }
    }
    unclaimed
}

#[test]
fn nothing_in_64_bit_mode_is_unclaimed() {
    let unclaimed = unclaimed(64, mode::LONG | mode::SSE | mode::AVX);
    assert!(unclaimed.is_empty(), "{unclaimed:#?}");
}

#[test]
fn nothing_in_32_bit_mode_is_unclaimed() {
    let flat = mode::CODE32 | mode::STACK32 | mode::FLAT | mode::FLAT_CODE;
    let unclaimed = unclaimed(32, flat | mode::SSE | mode::AVX);
    assert!(unclaimed.is_empty(), "{unclaimed:#?}");
}

#[test]
fn nothing_on_a_16_bit_stack_is_unclaimed() {
    let unclaimed = unclaimed(32, mode::CODE32 | mode::SSE | mode::AVX);
    assert!(unclaimed.is_empty(), "{unclaimed:#?}");
}
