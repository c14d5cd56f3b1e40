//! Gathers, scatters and masked moves against the host's own, and their faults.

#![expect(unsafe_code, reason = "the host's instructions are the reference")]

use std::arch::asm;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::complex::Next;
use crate::complex::testing::{DATA, Machine, Random};
use crate::exception::{Exception, pf, vector};

const RSI: usize = 6;
const RDI: usize = 7;
/// Bytes of memory that the random indices reach, around the middle.
const LEN: usize = 0x2000;

/// Registers before and after: vectors 0 to 2 and K1.
#[derive(Clone, PartialEq, Debug)]
#[repr(C, align(64))]
struct Registers {
    vectors: [[u8; 64]; 3],
    k1: u64,
}

/// Runs one instruction natively with RSI and RDI = `base`, on ZMM registers where the host has them, else YMM.
macro_rules! native {
    ($name:ident, $bytes:literal) => {
        fn $name(registers: &mut Registers, base: u64) {
            // SAFETY: the caller's indices and masks stay within the memory around `base`.
            unsafe {
                if is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bw") {
                    asm!(
                        "vmovups zmm0, [{r}]", "vmovups zmm1, [{r} + 64]", "vmovups zmm2, [{r} + 128]",
                        "kmovq k1, [{r} + 192]", concat!(".byte ", $bytes), "vmovups [{r}], zmm0",
                        "vmovups [{r} + 64], zmm1", "vmovups [{r} + 128], zmm2", "kmovq [{r} + 192], k1",
                        "vzeroupper",
                        r = in(reg) registers, in("rsi") base, in("rdi") base, clobber_abi("sysv64"),
                    );
                } else {
                    asm!(
                        "vmovups ymm0, [{r}]", "vmovups ymm1, [{r} + 64]", "vmovups ymm2, [{r} + 128]",
                        concat!(".byte ", $bytes), "vmovups [{r}], ymm0",
                        "vmovups [{r} + 64], ymm1", "vmovups [{r} + 128], ymm2", "vzeroupper",
                        r = in(reg) registers, in("rsi") base, in("rdi") base, clobber_abi("sysv64"),
                    );
                }
            }
        }
    };
}

macro_rules! natives {
    ($($name:ident $index:literal $evex:literal $bytes:literal)*) => {
        $(native!($name, $bytes);)*
        /// Name, bytes of an index element (0: no index), whether AVX-512 is needed, code, native version.
        const NATIVES: &[(&str, usize, bool, &str, fn(&mut Registers, u64))] =
            &[$((stringify!($name), $index, $evex, $bytes, $name)),*];
    };
}

natives! {
    vpgatherdd_x 4 false "0xc4,0xe2,0x69,0x90,0x04,0x8e"
    vpgatherdd_y 4 false "0xc4,0xe2,0x6d,0x90,0x04,0x8e"
    vpgatherdq_x 4 false "0xc4,0xe2,0xe9,0x90,0x04,0xce"
    vpgatherdq_y 4 false "0xc4,0xe2,0xed,0x90,0x04,0xce"
    vpgatherqd_x 8 false "0xc4,0xe2,0x69,0x91,0x04,0x8e"
    vpgatherqd_y 8 false "0xc4,0xe2,0x6d,0x91,0x04,0x8e"
    vpgatherqq_y 8 false "0xc4,0xe2,0xed,0x91,0x04,0xce"
    vgatherdps_y 4 false "0xc4,0xe2,0x6d,0x92,0x44,0x8e,0x10"
    vgatherqpd_x 8 false "0xc4,0xe2,0xe9,0x93,0x04,0x0e"
    vpgatherdd_z 4 true "0x62,0xf2,0x7d,0x49,0x90,0x04,0x8e"
    vpgatherqd_z 8 true "0x62,0xf2,0x7d,0x49,0x91,0x04,0x8e"
    vpgatherqq_z 8 true "0x62,0xf2,0xfd,0x49,0x91,0x04,0xce"
    vpscatterdd_z 4 true "0x62,0xf2,0x7d,0x49,0xa0,0x04,0x8e"
    vpscatterqd_z 8 true "0x62,0xf2,0x7d,0x49,0xa1,0x04,0x8e"
    vscatterdpd_z 4 true "0x62,0xf2,0xfd,0x49,0xa2,0x04,0xce"
    vmaskmovps_load 0 false "0xc4,0xe2,0x6d,0x2c,0x06"
    vmaskmovpd_load_x 0 false "0xc4,0xe2,0x69,0x2d,0x06"
    vpmaskmovd_load 0 false "0xc4,0xe2,0x6d,0x8c,0x06"
    vpmaskmovq_load 0 false "0xc4,0xe2,0xed,0x8c,0x06"
    vmaskmovps_store 0 false "0xc4,0xe2,0x6d,0x2e,0x06"
    vmaskmovpd_store 0 false "0xc4,0xe2,0x6d,0x2f,0x06"
    vpmaskmovd_store_x 0 false "0xc4,0xe2,0x69,0x8e,0x06"
    vpmaskmovq_store 0 false "0xc4,0xe2,0xed,0x8e,0x06"
    maskmovdqu 0 false "0x66,0x0f,0xf7,0xc2"
    vmaskmovdqu 0 false "0xc5,0xf9,0xf7,0xc2"
}

fn parse(bytes: &str) -> Vec<u8> {
    bytes.split(',').map(|byte| u8::from_str_radix(&byte[2..], 16).unwrap()).collect()
}

fn random_registers(random: &mut Random, index_size: usize) -> Registers {
    let mut registers = Registers { vectors: [[0; 64]; 3], k1: random.next() };
    for vector in &mut registers.vectors {
        random.fill(vector);
    }
    // Small indices of either sign, some of them equal.
    if index_size != 0 {
        for at in (0..64).step_by(index_size) {
            let index = random.below(128) as i64 - 64;
            registers.vectors[1][at..][..index_size].copy_from_slice(&index.to_le_bytes()[..index_size]);
        }
    }
    registers
}

fn machine_with(registers: &Registers, wide: bool) -> Machine {
    let mut machine = Machine::new();
    let env = &mut machine.cpu.env;
    env.xcr0 = if wide { 0xe7 } else { 7 };
    for (index, vector) in registers.vectors.iter().enumerate() {
        env.xsave.set_vector(index, vector, if wide { 64 } else { 32 });
    }
    if wide {
        env.xsave.set_opmask(1, registers.k1);
    }
    machine
}

#[test]
fn they_are_as_on_the_host() {
    let wide = is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512bw");
    if !is_x86_feature_detected!("avx2") {
        eprintln!("this host has no AVX2: nothing to compare");
        return;
    }
    let mut random = Random(0x6a7);
    let base = DATA + LEN as u64 / 2;
    for &(name, index_size, evex, bytes, native) in NATIVES {
        if evex && !wide {
            eprintln!("{name}: this host has no AVX-512");
            continue;
        }
        for round in 0..50 {
            let mut registers = random_registers(&mut random, index_size);
            let mut memory = vec![0; LEN];
            random.fill(&mut memory);
            let mut machine = machine_with(&registers, wide);
            let env = &mut machine.cpu.env;
            (env.gpr[RSI], env.gpr[RDI]) = (base, base);
            machine.poke(DATA, &memory);
            assert_eq!(machine.execute(&parse(bytes)), Ok(Next::Fallthrough), "{name}");
            let host = Machine::new();
            host.poke(DATA, &memory);
            native(&mut registers, host.memory.get_host_address(GuestAddress(base)).unwrap() as u64);
            let width = if wide { 64 } else { 32 };
            for (index, vector) in registers.vectors.iter().enumerate() {
                let ours = machine.cpu.env.xsave.vector(index);
                assert_eq!(ours[..width], vector[..width], "{name} round {round} vector {index}");
            }
            if wide {
                assert_eq!(machine.cpu.env.xsave.opmask(1), registers.k1, "{name}");
            }
            assert!(machine.peek(DATA, LEN) == host.peek(DATA, LEN), "{name} round {round}: memory");
        }
    }
}

#[test]
fn a_gather_that_faults_keeps_what_it_has() {
    let mut registers = Registers { vectors: [[0x11; 64], [0; 64], [0xff; 64]], k1: 0 };
    for at in 0..8u32 {
        // Element 5 is in the hole.
        let index = if at == 5 { 0x400 } else { at };
        registers.vectors[1][at as usize * 4..][..4].copy_from_slice(&index.to_le_bytes());
    }
    let mut machine = machine_with(&registers, false);
    machine.map(DATA + 0x1000, 0);
    machine.cpu.env.gpr[RSI] = DATA;
    machine.poke(DATA, &[0x22; 64]);
    let insn = parse("0xc4,0xe2,0x6d,0x90,0x04,0x8e");
    let fault = machine.execute(&insn).unwrap_err();
    assert_eq!(fault, Exception::page_fault(DATA + 0x1000, 0));
    let image = &machine.cpu.env.xsave;
    assert_eq!(image.vector(0)[..20], [0x22; 20]);
    assert_eq!(image.vector(0)[20..32], [0x11; 12]);
    assert_eq!(image.vector(2)[..20], [0; 20]);
    assert_eq!(image.vector(2)[20..32], [0xff; 12]);
    // With the page there it goes on where it was.
    machine.map(DATA + 0x1000, (DATA + 0x1000) | 7);
    machine.poke(DATA, &[0x33; 64]);
    assert_eq!(machine.execute(&insn), Ok(Next::Fallthrough));
    let image = &machine.cpu.env.xsave;
    assert_eq!(image.vector(0)[..20], [0x22; 20]);
    assert_eq!(image.vector(0)[24..32], [0x33; 8]);
    assert_eq!(image.vector(2), [0; 64]);
}

#[test]
fn elements_that_are_not_chosen_do_not_fault() {
    let mut registers = Registers { vectors: [[0x44; 64], [0; 64], [0; 64]], k1: 0 };
    registers.vectors[2][3] = 0x80;
    registers.vectors[2][7] = 0x80;
    let mut machine = machine_with(&registers, false);
    let hole = DATA + 0x1000;
    machine.map(hole, 0);
    machine.cpu.env.gpr[RSI] = hole - 8;
    // vpmaskmovd [rsi], ymm2, ymm0: two elements before the hole, six in it.
    let insn = parse("0xc4,0xe2,0x6d,0x8e,0x06");
    assert_eq!(machine.execute(&insn), Ok(Next::Fallthrough));
    assert_eq!(machine.peek(hole - 8, 8), [0x44; 8]);
    // A third one: nothing is stored.
    registers.vectors[2][11] = 0x80;
    machine.cpu.env.xsave.set_vector(2, &registers.vectors[2], 32);
    machine.poke(hole - 8, &[0; 8]);
    assert_eq!(machine.execute(&insn), Err(Exception::page_fault(hole, pf::WRITE)));
    assert_eq!(machine.peek(hole - 8, 8), [0; 8]);
    // The load of the same.
    let insn = parse("0xc4,0xe2,0x6d,0x8c,0x06");
    assert_eq!(machine.execute(&insn), Err(Exception::page_fault(hole, 0)));
    assert_eq!(machine.cpu.env.xsave.vector(0)[..32], [0x44; 32]);
}

#[test]
fn maskmovq_makes_the_stack_mmx() {
    let mut machine = Machine::new();
    let image = &mut machine.cpu.env.xsave;
    image.set_x87_environment(0x37f, 2 << 11, 0);
    // MM0 is ST(6) and MM1 ST(7) while TOP is 2.
    image.set_st(6, &[1, 2, 3, 4, 5, 6, 7, 8, 0xff, 0xff]);
    image.set_st(7, &[0x80, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xff]);
    machine.cpu.env.gpr[RDI] = DATA;
    assert_eq!(machine.execute(&[0x0f, 0xf7, 0xc1]), Ok(Next::Fallthrough));
    assert_eq!(machine.peek(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 8]);
    assert_eq!((machine.cpu.env.xsave.fsw(), machine.cpu.env.xsave.ftw()), (0, 0xff));
    machine.cpu.env.cr0 |= 8;
    assert_eq!(machine.execute(&[0x0f, 0xf7, 0xc1]), Err(Exception::NM));
}

#[test]
fn they_need_xcr0_and_distinct_registers() {
    let registers = Registers { vectors: [[0; 64]; 3], k1: 0 };
    let mut machine = machine_with(&registers, false);
    // Destination and mask are one; the decoder may refuse it already.
    let same = [0xc4, 0xe2, 0x7d, 0x90, 0x04, 0x8e];
    let decoded = iced_x86::Decoder::new(64, &same, iced_x86::DecoderOptions::NONE).decode();
    if !decoded.is_invalid() {
        assert_eq!(machine.execute(&same), Err(Exception::UD));
    }
    machine.cpu.env.xcr0 = 3;
    assert_eq!(machine.execute(&parse("0xc4,0xe2,0x6d,0x90,0x04,0x8e")), Err(Exception::UD));
    assert_eq!(machine.execute(&parse("0xc4,0xe2,0x6d,0x8c,0x06")), Err(Exception::UD));
    machine.cpu.env.xcr0 = 7;
    machine.cpu.env.cr0 |= 8;
    let fault = machine.execute(&parse("0xc4,0xe2,0x6d,0x8c,0x06")).unwrap_err();
    assert_eq!(fault.vector, vector::NM);
}
