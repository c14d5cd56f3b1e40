//! State saving against this host's own instructions, and the rules that raise exceptions.

#![expect(unsafe_code, reason = "the host's instructions are the reference")]

use std::arch::asm;
use std::arch::x86_64::_xgetbv;
use std::ops::{Deref, DerefMut};

use super::layout::{COMPONENTS, LAYOUT, MXCSR_MASK, compacted};
use crate::complex::Next;
use crate::complex::testing::{DATA, Machine, Random};
use crate::env::XsaveArea;
use crate::exception::{Exception, pf, vector};

const RBX: usize = 3;
/// Instructions with operand [rbx], 64-bit forms.
const XSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x23];
const XRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x2b];
const XSAVEOPT64: [u8; 4] = [0x48, 0x0f, 0xae, 0x33];
const XSAVEC64: [u8; 4] = [0x48, 0x0f, 0xc7, 0x23];
const XSAVES64: [u8; 4] = [0x48, 0x0f, 0xc7, 0x2b];
const XRSTORS64: [u8; 4] = [0x48, 0x0f, 0xc7, 0x1b];
const FXSAVE64: [u8; 4] = [0x48, 0x0f, 0xae, 0x03];
const FXRSTOR64: [u8; 4] = [0x48, 0x0f, 0xae, 0x0b];

const AREA: usize = 4096;

/// An area where the host's instructions want it.
#[repr(C, align(64))]
struct Area(XsaveArea);

impl Deref for Area {
    type Target = XsaveArea;
    fn deref(&self) -> &XsaveArea {
        &self.0
    }
}

impl DerefMut for Area {
    fn deref_mut(&mut self) -> &mut XsaveArea {
        &mut self.0
    }
}

fn area() -> Box<Area> {
    Box::new(Area(XsaveArea([0; AREA])))
}

fn host_xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: XCR0 exists where XSAVE does.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: these tests need a host with XSAVE, as the translator does.
    unsafe { read() & 0xe7 }
}

/// Loads `from` natively, runs one saving instruction on `to`, and leaves the host's state as Rust wants it.
macro_rules! native {
    ($insn:literal, $from:expr, $load:expr, $to:expr, $mask:expr) => {{
        let (from, to, load, mask): (&XsaveArea, &mut XsaveArea, u64, u64) = ($from, $to, $load, $mask);
        let mxcsr = super::image::MXCSR_INIT;
        let blank = area();
        // SAFETY: both areas are aligned and large enough; every vector and x87 register is declared clobbered, and
        // FCW and MXCSR get their initial values back. The images mask all exceptions.
        unsafe {
            asm!(
                "mov eax, -1", "mov edx, -1", "xrstor64 [{blank}]",
                "mov rax, {load}", "mov rdx, {load}", "shr rdx, 32", "xrstor64 [{from}]",
                "mov rax, {mask}", "mov rdx, {mask}", "shr rdx, 32", concat!($insn, " [{to}]"),
                "fninit", "vzeroupper", "ldmxcsr [{mxcsr}]",
                from = in(reg) from, to = in(reg) to, load = in(reg) load, mask = in(reg) mask,
                mxcsr = in(reg) &mxcsr, blank = in(reg) &*blank,
                out("rax") _, out("rdx") _, clobber_abi("sysv64"),
            );
        }
    }};
}

/// A state to start from: components of `bits` in use, random; nothing unmasked.
fn random_image(random: &mut Random, bits: u64) -> Box<Area> {
    let mut image = area();
    random.fill(&mut image.0.0);
    image.0.0[512..576].fill(0);
    image.set_in_use(bits);
    image.0.0[0..2].copy_from_slice(&0x37fu16.to_le_bytes());
    let fsw = (random.next() as u16) & 0x7f7f;
    image.0.0[2..4].copy_from_slice(&fsw.to_le_bytes());
    image.0.0[5] = 0;
    image.forget_x87_pointers();
    for index in 0..8 {
        image.0.0[32 + 16 * index + 10..][..6].fill(0);
    }
    let mxcsr = if random.below(3) == 0 { 0x1f80 } else { 0x1f80 | random.next() as u32 & 0xe03f };
    image.set_mxcsr(mxcsr);
    image
}

/// The machine with this state and RFBM.
fn machine(image: &XsaveArea, rfbm: u64) -> Machine {
    let mut machine = Machine::new();
    let env = &mut machine.cpu.env;
    env.xsave.0.copy_from_slice(&image.0);
    env.xcr0 = host_xcr0();
    env.gpr[0] = rfbm & 0xffff_ffff;
    env.gpr[2] = rfbm >> 32;
    env.gpr[RBX] = DATA;
    machine
}

/// The host's state after loading `image`, in standard format.
fn as_host(image: &XsaveArea, load: u64) -> Box<Area> {
    let mut saved = area();
    native!("xsave64", image, load, &mut saved, u64::MAX);
    saved
}

fn compare(what: &str, ours: &[u8], host: &[u8]) {
    if let Some(at) = (0..host.len()).find(|&at| ours[at] != host[at]) {
        panic!("{what}: byte {at}: ours {:02x?}, host {:02x?}", &ours[at & !7..][..8], &host[at & !7..][..8]);
    }
}

#[test]
fn saving_is_as_on_the_host() {
    let mut random = Random(0xabcdef12345);
    let xcr0 = host_xcr0();
    for round in 0..400 {
        let image = {
            let bits = random_bits(&mut random, xcr0);
            random_image(&mut random, bits)
        };
        let mut state = settled(&image);
        state.forget_x87_pointers();
        let rfbm = if round % 3 == 0 { u64::MAX } else { random.next() & 0xff };
        let mut before = area();
        random.fill(&mut before.0.0);
        for (name, insn) in [
            ("xsave", XSAVE64),
            ("xsaveopt", XSAVEOPT64),
            ("xsavec", XSAVEC64),
            ("fxsave", FXSAVE64),
            ("xsaves", XSAVES64),
        ] {
            // The host may have components that are not for guests (protection keys).
            let asked = rfbm & xcr0;
            let native = || {
                let mut host = area();
                host.0.0.copy_from_slice(&before.0.0);
                match name {
                    "xsave" => native!("xsave64", &image, xcr0, &mut host, asked),
                    "xsaveopt" => native!("xsaveopt64", &image, xcr0, &mut host, asked),
                    "fxsave" => native!("fxsave64", &image, xcr0, &mut host, asked),
                    _ => native!("xsavec64", &image, xcr0, &mut host, asked),
                }
                host
            };
            let mut machine = machine(&state, rfbm);
            // At a page's end too, so that the area lies in two pages.
            let at = if round % 2 == 0 { DATA } else { DATA + 0xe40 };
            machine.cpu.env.gpr[RBX] = at;
            machine.poke(at, &before.0.0);
            assert_eq!(machine.execute(&insn), Ok(Next::Fallthrough));
            let ours = machine.peek(at, AREA);
            // A host thread that is preempted may come back with more components in use than it had.
            let mut host = native();
            for _ in 0..10 {
                if host.0.0 == ours[..] {
                    break;
                }
                host = native();
            }
            compare(
                &format!("round {round} {name} rfbm {rfbm:x} in use {:x}", state.in_use()),
                &ours,
                &host.0.0,
            );
        }
    }
}

fn random_bits(random: &mut Random, xcr0: u64) -> u64 {
    if random.below(4) == 0 { xcr0 } else { random.next() & xcr0 }
}

/// The bytes that count, components that are not in use at their initial values.
fn settled(image: &XsaveArea) -> Box<Area> {
    let mut copy = area();
    copy.0.0.copy_from_slice(&image.0);
    for component in 0..COMPONENTS {
        copy.settle(component);
    }
    copy.settle_mxcsr_mask();
    copy
}

/// A guest's area of either format, and the components that it has.
fn random_area(random: &mut Random, compact: bool) -> Box<Area> {
    let xcr0 = host_xcr0();
    let mut image = {
        let bits = random_bits(random, xcr0);
        random_image(random, bits)
    };
    if compact {
        let xcomp_bv = xcr0 & (random.next() | image.in_use());
        image.0.0[520..528].copy_from_slice(&(xcomp_bv | 1 << 63).to_le_bytes());
        assert!(compacted(xcomp_bv).1 <= AREA);
    }
    image
}

#[test]
fn restoring_is_as_on_the_host() {
    let mut random = Random(0x99887766);
    let xcr0 = host_xcr0();
    for round in 0..600 {
        let before = {
            let bits = random_bits(&mut random, xcr0);
            random_image(&mut random, bits)
        };
        let from = random_area(&mut random, round % 2 == 0);
        let rfbm = if round % 3 == 0 { u64::MAX } else { random.next() & 0xff };
        let state = as_host(&before, xcr0);
        let mut host = area();
        let mxcsr = super::image::MXCSR_INIT;
        // SAFETY: as in `native`.
        unsafe {
            asm!(
                "mov eax, -1", "mov edx, -1", "xrstor64 [{before}]",
                "mov rax, {mask}", "mov rdx, {mask}", "shr rdx, 32", "xrstor64 [{from}]",
                "mov eax, -1", "mov edx, -1", "xsave64 [{to}]",
                "fninit", "vzeroupper", "ldmxcsr [{mxcsr}]",
                before = in(reg) &*state, from = in(reg) &*from, to = in(reg) &mut *host, mask = in(reg) rfbm,
                mxcsr = in(reg) &mxcsr, out("rax") _, out("rdx") _, clobber_abi("sysv64"),
            );
        }
        let mut machine = machine(&state, rfbm);
        let at = if round % 5 == 0 { DATA + 0xe40 } else { DATA };
        machine.cpu.env.gpr[RBX] = at;
        machine.poke(at, &from.0.0);
        let insn = if round % 4 == 0 { XRSTORS64 } else { XRSTOR64 };
        assert_eq!(machine.execute(&insn), Ok(Next::Fallthrough));
        let ours = settled(&machine.cpu.env.xsave);
        let what = format!("round {round} rfbm {rfbm:x} area {:x}", from.in_use());
        compare(&what, &ours.0.0[..512], &settled(&host).0.0[..512]);
        compare(&what, &ours.0.0[576..], &settled(&host).0.0[576..]);
        assert_eq!(ours.in_use(), machine.cpu.env.xsave.in_use());
    }
}

#[test]
fn fxrstor_is_as_on_the_host() {
    let mut random = Random(0x5555);
    let xcr0 = host_xcr0();
    for _ in 0..100 {
        let before = as_host(&random_image(&mut random, xcr0), xcr0);
        let from = random_image(&mut random, 0);
        let mut machine = machine(&before, 0);
        machine.poke(DATA, &from.0.0);
        assert_eq!(machine.execute(&FXRSTOR64), Ok(Next::Fallthrough));
        let mut host = area();
        host.0.0.copy_from_slice(&before.0.0);
        host.0.0[..416].copy_from_slice(&from.0.0[..416]);
        host.forget_x87_pointers();
        let host = as_host(&host, xcr0);
        let ours = settled(&machine.cpu.env.xsave);
        compare("fxrstor", &ours.0.0[..512], &host.0.0[..512]);
        compare("fxrstor", &ours.0.0[576..], &host.0.0[576..]);
    }
}

#[test]
fn the_layout_is_the_hosts() {
    assert_eq!((LAYOUT[2].offset, LAYOUT[2].size), (576, 256));
    let xcr0 = host_xcr0();
    let end = (2..COMPONENTS)
        .filter(|index| xcr0 >> index & 1 != 0)
        .map(|index| LAYOUT[index].offset + LAYOUT[index].size)
        .max()
        .unwrap();
    assert!(end <= AREA);
}

fn bad_area(change: impl Fn(&mut Machine), insn: &[u8]) -> Exception {
    let mut random = Random(4);
    let image = random_image(&mut random, 3);
    let mut machine = machine(&image, u64::MAX);
    machine.poke(DATA, &image.0.0);
    change(&mut machine);
    let before = settled(&machine.cpu.env.xsave);
    let fault = machine.execute(insn).unwrap_err();
    assert!(settled(&machine.cpu.env.xsave).0.0 == before.0.0, "nothing was loaded");
    fault
}

#[test]
fn headers_are_checked() {
    let gp = Exception::gp(0);
    let poke = |at: u64, byte: u8| move |machine: &mut Machine| machine.poke(DATA + at, &[byte]);
    // XSTATE_BV beyond XCR0; bytes 8 to 23 of the header; an MXCSR bit that no CPU has.
    assert_eq!(bad_area(poke(513, 0x40), &XRSTOR64), gp);
    assert_eq!(bad_area(poke(520, 1), &XRSTOR64), gp);
    assert_eq!(bad_area(poke(535, 1), &XRSTOR64), gp);
    assert_eq!(bad_area(poke(27, 0x80), &XRSTOR64), gp);
    assert_eq!(bad_area(poke(27, 0x80), &FXRSTOR64), gp);
    // XRSTORS wants the compacted format.
    assert_eq!(bad_area(poke(0, 0), &XRSTORS64), gp);
    // Compacted: XSTATE_BV beyond XCOMP_BV; the rest of the header.
    let compact = |bits: u8, extra: u64| {
        move |machine: &mut Machine| {
            machine.poke(DATA + 520, &[bits, 0, 0, 0, 0, 0, 0, 0x80]);
            if extra != 0 {
                machine.poke(DATA + extra, &[1]);
            }
        }
    };
    assert_eq!(bad_area(compact(1, 0), &XRSTOR64), gp);
    assert_eq!(bad_area(compact(3, 528), &XRSTOR64), gp);
    assert_eq!(bad_area(compact(3, 575), &XRSTORS64), gp);
    assert_eq!(bad_area(compact(0xb, 0), &XRSTOR64), gp);
    assert_eq!(bad_area(|machine| machine.cpu.env.gpr[RBX] += 32, &XRSTOR64), gp);
    assert_eq!(bad_area(|machine| machine.cpu.env.gpr[RBX] += 32, &XSAVE64), gp);
    assert_eq!(bad_area(|machine| machine.cpu.env.gpr[RBX] += 8, &FXSAVE64), gp);
    assert_eq!(bad_area(|machine| machine.user(), &XSAVES64), gp);
    assert_eq!(bad_area(|machine| machine.user(), &XRSTORS64), gp);
    assert_eq!(bad_area(|machine| machine.cpu.env.cr0 |= 8, &XSAVEC64), Exception::NM);
    assert_eq!(bad_area(|machine| machine.cpu.env.cr4 &= !(1 << 18), &XSAVEC64), Exception::UD);
}

#[test]
fn a_missing_second_page_faults_before_anything_is_written() {
    let mut random = Random(9);
    let image = as_host(&random_image(&mut random, host_xcr0()), host_xcr0());
    let mut machine = machine(&image, u64::MAX);
    machine.map(DATA + 0x1000, 0);
    let at = DATA + 0xd80;
    machine.cpu.env.gpr[RBX] = at;
    machine.poke(at, &[0x5a; 0x280]);
    let fault = machine.execute(&XSAVEC64).unwrap_err();
    assert_eq!((fault.vector, fault.error_code), (vector::PF, Some(pf::WRITE)));
    assert_eq!(fault.payload & !0xfff, DATA + 0x1000);
    assert_eq!(machine.peek(at, 0x280), [0x5a; 0x280]);
}

#[test]
fn mxcsr_loads_and_stores() {
    let mut machine = Machine::new();
    machine.cpu.env.gpr[RBX] = DATA;
    machine.poke(DATA, &0x3f80u32.to_le_bytes());
    assert_eq!(machine.execute(&[0x0f, 0xae, 0x13]), Ok(Next::Fallthrough));
    machine.cpu.env.gpr[RBX] = DATA + 16;
    assert_eq!(machine.execute(&[0x0f, 0xae, 0x1b]), Ok(Next::Fallthrough));
    assert_eq!(machine.peek(DATA + 16, 4), 0x3f80u32.to_le_bytes());
    machine.poke(DATA + 16, &(!*MXCSR_MASK).to_le_bytes());
    assert_eq!(machine.execute(&[0xc5, 0xf8, 0xae, 0x13]), Err(Exception::gp(0)));
    machine.cpu.env.cr4 &= !(1 << 9);
    assert_eq!(machine.execute(&[0x0f, 0xae, 0x13]), Err(Exception::UD));
}

/// Runs an x87 environment instruction natively on the state of `image`; leaves the state after it in `after`.
macro_rules! native_x87 {
    ($insn:literal, $image:expr, $memory:expr, $after:expr) => {{
        let (image, memory, after): (&XsaveArea, &mut [u8; 128], &mut XsaveArea) = ($image, $memory, $after);
        // SAFETY: as in `native`; the memory operand has at most 108 bytes.
        unsafe {
            asm!(
                "fxrstor64 [{image}]", concat!($insn, " [{memory}]"), "fxsave64 [{after}]", "fninit",
                image = in(reg) image, memory = in(reg) memory, after = in(reg) after, clobber_abi("sysv64"),
            );
        }
    }};
}

#[test]
fn x87_environment_is_as_on_the_host() {
    let mut random = Random(0x87);
    for round in 0..300 {
        let mut image = random_image(&mut random, 3);
        image.set_mxcsr(0x1f80);
        for index in 0..8 {
            // Zeros, infinities, denormals and unnormals among the values.
            match random.below(5) {
                0 => image.0.0[32 + 16 * index..][..10].fill(0),
                1 => image.0.0[32 + 16 * index + 8..][..2].copy_from_slice(&0x7fffu16.to_le_bytes()),
                2 => image.0.0[32 + 16 * index + 8..][..2].fill(0),
                _ => {}
            }
        }
        let mut memory = [0u8; 128];
        random.fill(&mut memory);
        if round % 2 == 0 {
            // A control word that masks everything; FLDENV and FRSTOR take all of the rest as it comes.
            memory[0] |= 0x3f;
        }
        for (name, insn) in [
            ("fnstenv", &[0xd9, 0x33][..]),
            ("fldenv", &[0xd9, 0x23]),
            ("fnsave", &[0xdd, 0x33]),
            ("frstor", &[0xdd, 0x23]),
            ("fnstenvw", &[0x66, 0xd9, 0x33]),
            ("frstorw", &[0x66, 0xdd, 0x23]),
        ] {
            let (mut host_memory, mut after) = (memory, area());
            match name {
                "fnstenv" => native_x87!("fnstenv", &image, &mut host_memory, &mut after),
                "fldenv" => native_x87!("fldenv", &image, &mut host_memory, &mut after),
                "fnsave" => native_x87!("fnsave", &image, &mut host_memory, &mut after),
                "frstor" => native_x87!("frstor", &image, &mut host_memory, &mut after),
                "fnstenvw" => native_x87!("data16 fnstenv", &image, &mut host_memory, &mut after),
                _ => native_x87!("data16 frstor", &image, &mut host_memory, &mut after),
            }
            let mut machine = machine(&image, 0);
            machine.poke(DATA, &memory);
            assert_eq!(machine.execute(insn), Ok(Next::Fallthrough), "{name}");
            let what = format!("round {round} {name}");
            let mut ours = machine.peek(DATA, 128);
            if name.starts_with("fnst") || name == "fnsave" {
                forget_pointers(&mut ours, name);
                forget_pointers(&mut host_memory, name);
            }
            compare(&what, &ours, &host_memory);
            after.forget_x87_pointers();
            after.set_in_use(3);
            compare(&what, &settled(&machine.cpu.env.xsave).0.0[..160], &settled(&after).0.0[..160]);
        }
    }
}

/// Clears instruction and data pointers of an image that the 32-bit or 16-bit form stored.
fn forget_pointers(memory: &mut [u8], name: &str) {
    if name.ends_with('w') {
        memory[6..14].fill(0);
    } else {
        memory[12..20].fill(0);
        memory[20..28].fill(0);
    }
}

#[test]
fn pending_exceptions_come_before_fldenv() {
    let mut machine = Machine::new();
    machine.cpu.env.gpr[RBX] = DATA;
    // FLDENV leaves a division by zero pending; the next one meets it.
    machine.poke(DATA, &[0x7b, 3, 0, 0, 4, 0, 0, 0, 0xff, 0xff]);
    assert_eq!(machine.execute(&[0xd9, 0x23]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.xsave.fsw(), 0x8084);
    assert_eq!(machine.execute(&[0xd9, 0x23]), Err(Exception::plain(vector::MF)));
    // FNSTENV masks all, so that nothing is pending any more.
    assert_eq!(machine.execute(&[0xd9, 0x33]), Ok(Next::Fallthrough));
    assert_eq!((machine.cpu.env.xsave.fcw(), machine.cpu.env.xsave.fsw()), (0x37f, 4));
    machine.cpu.env.cr0 |= 8;
    assert_eq!(machine.execute(&[0xd9, 0x33]), Err(Exception::NM));
}

#[test]
fn mmx_registers_are_where_top_says() {
    let mut image = area();
    image.set_in_use(1);
    image.set_x87_environment(0x37f, 3 << 11, 0);
    image.set_st(0, &[1; 10]);
    assert_eq!(image.mm(3), 0x0101_0101_0101_0101);
    image.enter_mmx();
    assert_eq!(image.mm(3), 0x0101_0101_0101_0101);
    assert_eq!((image.fsw(), image.ftw()), (0, 0xff));
    assert_eq!(image.st(3), [1; 10]);
}

#[test]
fn vector_registers_read_back() {
    let mut random = Random(31);
    let mut machine = machine(&area(), 0);
    for _ in 0..200 {
        let index = random.below(if host_xcr0() & 0xe0 == 0xe0 { 32 } else { 16 }) as usize;
        let len = [16, 32, 64][random.below(if host_xcr0() & 0xe0 == 0xe0 { 3 } else { 2 }) as usize];
        let mut value = [0; 64];
        random.fill(&mut value);
        let image = &mut machine.cpu.env.xsave;
        image.set_vector(index, &value, len);
        value[len..].fill(0);
        assert_eq!(image.vector(index), value);
    }
}
