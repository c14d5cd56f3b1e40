//! Groups of accesses that lie on two pages now and then: they stay groups, and what is on two pages is right.

#[path = "support/long_guest.rs"]
mod long_guest;

use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};
use long_guest::{CODE, DATA, Guest};

/// Rounds of the guest's loop in one run.
const ROUNDS: u32 = 100_000;
/// What each word of the data is.
const WORD: u64 = 0x0101_0101_0101_0101;

/// Sums two words in each round, sixteen bytes farther on each time, eight off: each 256th round is on two pages.
fn guest() -> Guest {
    let mut e = VecAssembler::<X64Relocation>::new(0);
    dynasm!(e ; .arch x64
        ; mov r12d, ROUNDS as i32
        ; mov edi, DATA as i32
        ; xor eax, eax
        ; xor ebx, ebx
        ; again:
        ; and ebx, 0x1ff0
        ; lea rcx, [rdi + rbx + 8]
        ; add rax, [rcx]
        ; add rax, [rcx + 8]
        ; lea ebx, [rbx + 16]
        ; dec r12d
        ; jnz <again
        ; mov [DATA as i32 - 8], rax
        ; syscall);
    Guest::new(&[(CODE, e.finalize().expect("labels are bound")), (DATA, vec![1; 0x4000])])
}

#[test]
fn a_group_that_is_on_two_pages_now_and_then_stays_one() {
    let mut guest = guest();
    let mut run = || {
        guest.run(3);
        assert_eq!(guest.word(DATA - 8), WORD.wrapping_mul(2 * u64::from(ROUNDS)), "what it summed");
        let mut count = |name| guest.counted(name).expect("a row of that name");
        (count("helper"), count("operands found by a helper"), count("blocks whose groups were given up"))
    };
    // Long enough to be noticed, and translated anew.
    run();
    let before = run();
    let after = run();
    // Four hundred rounds were on two pages, and nearly none left for the loop or needed a helper.
    assert!(after.0 - before.0 < 20, "{} exits for helpers", after.0 - before.0);
    assert!(after.1 - before.1 < 20, "{} operands", after.1 - before.1);
    assert_eq!(after.2, 0, "no groups are given up");
}
