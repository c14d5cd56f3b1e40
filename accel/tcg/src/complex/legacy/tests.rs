//! Decimal adjustment against the host in compatibility mode; the rest by hand.

#![expect(unsafe_code, reason = "the host's instructions are the reference")]

use crate::complex::Next;
use crate::complex::testing::{DATA, Machine};
use crate::env::{ARITH_FLAGS, flag};
use crate::exception::{Exception, pf, vector};

/// A page below 4 GiB with code that runs one 32-bit instruction on EAX and EFLAGS.
struct Compat(*mut libc::c_void);

/// Linux's selector of 32-bit user code.
const USER32_CS: u16 = 0x23;
const PAGE: usize = 4096;

impl Compat {
    fn new(insn: &[u8]) -> Self {
        // SAFETY: a fresh mapping.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(page, libc::MAP_FAILED);
        let base = page as u32;
        let (save, far, code32) = (base + 0x800, base + 0x808, base + 0x400);
        let mut code = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]; // push rbx rbp r12-r15
        code.extend([0x48, 0x89, 0x24, 0x25]); // mov [save], rsp
        code.extend(save.to_le_bytes());
        code.extend([0x48, 0xc7, 0xc4]); // mov rsp, the page's end
        code.extend((base + 0xff0).to_le_bytes());
        code.extend([0xff, 0x1c, 0x25]); // call far [far]
        code.extend(far.to_le_bytes());
        code.extend([0x48, 0x8b, 0x24, 0x25]); // mov rsp, [save]
        code.extend(save.to_le_bytes());
        code.extend([0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b]); // pop
        code.extend([0x48, 0xc1, 0xe2, 0x20, 0x89, 0xc0, 0x48, 0x09, 0xd0, 0xc3]); // rax = rdx:eax; ret
        let mut compat = vec![0x89, 0xf8, 0x56, 0x9d]; // mov eax, edi; push esi; popfd
        compat.extend(insn);
        compat.extend([0x9c, 0x5a, 0xcb]); // pushfd; pop edx; ret far
        let mut pointer = code32.to_le_bytes().to_vec();
        pointer.extend(USER32_CS.to_le_bytes());
        for (at, bytes) in [(0, &code), (0x400, &compat), (0x808, &pointer)] {
            // SAFETY: within the page, which is ours.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), page.cast::<u8>().add(at), bytes.len());
            }
        }
        Self(page)
    }

    fn run(&self, eax: u32, eflags: u32) -> (u32, u32) {
        // SAFETY: the code written by `new` keeps what the calling convention asks for.
        let function: extern "sysv64" fn(u32, u32) -> u64 = unsafe { std::mem::transmute(self.0) };
        let result = function(eax, eflags | 0x202);
        (result as u32, (result >> 32) as u32 & ARITH_FLAGS)
    }
}

impl Drop for Compat {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nobody runs it any more.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}

#[test]
fn decimal_adjustment_is_as_on_the_host() {
    use flag::{AF, CF, OF, PF, SF, ZF};
    let cases: [(&[u8], u32); 8] = [
        (&[0x37], AF | CF),
        (&[0x3f], AF | CF),
        (&[0x27], AF | CF | SF | ZF | PF),
        (&[0x2f], AF | CF | SF | ZF | PF),
        (&[0xd4, 10], SF | ZF | PF),
        (&[0xd4, 7], SF | ZF | PF),
        (&[0xd5, 10], SF | ZF | PF),
        (&[0xd6], AF | CF | SF | ZF | PF | OF),
    ];
    for (insn, defined) in cases {
        let compat = Compat::new(insn);
        let mut machine = Machine::new_32bit();
        for ax in (0..0x1_0000u32).step_by(3) {
            let flags =
                [0, AF, CF, AF | CF][(ax >> 2 & 3) as usize] | if ax & 0x10 != 0 { OF | SF } else { 0 };
            let eax = 0xabcd_0000 | ax;
            machine.cpu.env.gpr[0] = u64::from(eax);
            machine.cpu.env.arith = flags;
            assert_eq!(machine.execute(insn), Ok(Next::Fallthrough));
            let (host_eax, host_flags) = compat.run(eax, flags);
            let what = format!("{insn:02x?} eax {eax:x} flags {flags:x}");
            assert_eq!(machine.cpu.env.gpr[0], u64::from(host_eax), "{what}");
            assert_eq!(machine.cpu.env.arith & defined, host_flags & defined, "{what}");
        }
    }
}

#[test]
fn aam_zero_divides_by_zero() {
    let mut machine = Machine::new_32bit();
    assert_eq!(machine.execute(&[0xd4, 0]), Err(Exception::plain(vector::DE)));
}

#[test]
fn bound_compares_signed() {
    let mut machine = Machine::new_32bit();
    machine.poke(DATA, &[0xff, 0xff, 5, 0]);
    machine.poke(DATA + 8, &[0xfe, 0xff, 0xff, 0xff, 3, 0, 0, 0]);
    let br = Err(Exception::plain(vector::BR));
    machine.cpu.env.gpr[3] = DATA;
    for (ax, expected) in [(0xffff, Ok(Next::Fallthrough)), (5, Ok(Next::Fallthrough)), (6, br), (0xfffe, br)]
    {
        machine.cpu.env.gpr[0] = ax;
        assert_eq!(machine.execute(&[0x66, 0x62, 0x03]), expected);
    }
    machine.cpu.env.gpr[3] = DATA + 8;
    for (eax, expected) in [(0xffff_fffe, Ok(Next::Fallthrough)), (3, Ok(Next::Fallthrough)), (4, br)] {
        machine.cpu.env.gpr[0] = eax;
        assert_eq!(machine.execute(&[0x62, 0x03]), expected);
    }
}

#[test]
fn enter_copies_the_display() {
    // 64-bit, three levels.
    let mut machine = Machine::new();
    let top = DATA + 0x1800;
    let old = DATA + 0x1200;
    machine.poke(old - 16, &[2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]);
    (machine.cpu.env.gpr[4], machine.cpu.env.gpr[5]) = (top, old);
    assert_eq!(machine.execute(&[0xc8, 0x20, 0, 3]), Ok(Next::Fallthrough));
    let frame = top - 8;
    assert_eq!((machine.cpu.env.gpr[5], machine.cpu.env.gpr[4]), (frame, top - 32 - 0x20));
    let mut expected = frame.to_le_bytes().to_vec();
    expected.extend([2; 8]);
    expected.extend([1; 8]);
    expected.extend(old.to_le_bytes());
    assert_eq!(machine.peek(top - 32, 32), expected);
    // The new top in a missing page: a fault, registers unchanged.
    machine.map(DATA, 0);
    (machine.cpu.env.gpr[4], machine.cpu.env.gpr[5]) = (top, old);
    assert_eq!(machine.execute(&[0xc8, 0xf8, 0x07, 0]), Ok(Next::Fallthrough));
    (machine.cpu.env.gpr[4], machine.cpu.env.gpr[5]) = (top, old);
    let fault = machine.execute(&[0xc8, 0x00, 0x08, 0]).unwrap_err();
    assert_eq!(fault, Exception::page_fault(DATA + 0xff8, pf::WRITE));
    assert_eq!((machine.cpu.env.gpr[4], machine.cpu.env.gpr[5]), (top, old));
    // 16-bit operands on a 32-bit stack: BP takes the low half.
    let mut machine = Machine::new_32bit();
    (machine.cpu.env.gpr[4], machine.cpu.env.gpr[5]) = (top, 0x1234_5678);
    assert_eq!(machine.execute(&[0x66, 0xc8, 4, 0, 0]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[5], 0x1234_0000 | (top - 2) & 0xffff);
    assert_eq!(machine.cpu.env.gpr[4], top - 6);
    assert_eq!(machine.peek(top - 2, 2), [0x78, 0x56]);
}

#[test]
fn pusha_and_popa_keep_esp() {
    let mut machine = Machine::new_32bit();
    for index in 0..8 {
        machine.cpu.env.gpr[index] = 0x100 + index as u64;
    }
    machine.cpu.env.gpr[4] = DATA + 0x100;
    let before = machine.cpu.env.gpr;
    assert_eq!(machine.execute(&[0x60]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[4], DATA + 0x100 - 32);
    assert_eq!(machine.peek(DATA + 0x100 - 4, 4), 0x100u32.to_le_bytes());
    assert_eq!(machine.peek(DATA + 0x100 - 20, 4), (DATA as u32 + 0x100).to_le_bytes());
    for index in [0, 1, 2, 3, 5, 6, 7] {
        machine.cpu.env.gpr[index] = 0;
    }
    assert_eq!(machine.execute(&[0x61]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr, before);
    // POPA that runs off the mapped stack changes nothing.
    machine.map(DATA + 0x1000, 0);
    machine.cpu.env.gpr[4] = DATA + 0x1000 - 8;
    let before = machine.cpu.env.gpr;
    assert_eq!(machine.execute(&[0x61]).unwrap_err().vector, vector::PF);
    assert_eq!(machine.cpu.env.gpr, before);
}

#[test]
fn xlat_adds_al() {
    let mut machine = Machine::new();
    machine.poke(DATA + 0x85, &[0x77]);
    machine.cpu.env.gpr[3] = DATA;
    machine.cpu.env.gpr[0] = 0xff85;
    assert_eq!(machine.execute(&[0xd7]), Ok(Next::Fallthrough));
    assert_eq!(machine.cpu.env.gpr[0], 0xff77);
}
