//! What the slow ways cost: loops in a guest that take one in each round, against the same loops without.

use accel_tcg::mmu::jumps::jump_index;
use accel_tcg::mmu::soft_tlb::TLB_ENTRIES;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm, x64::X64Relocation};

use crate::long_guest::{CODE, DATA, Guest};
use crate::report::Report;

/// Rounds of each loop.
const LOOPS: i32 = 20_000;
/// Runs, of which the fastest counts.
const RUNS: usize = 50;
/// Multiplications that a loop does besides, one after the other, so that its misses do not have its sites moved to the
/// table: 40 ns between two of one site are too soon for that (`exec::sites`).
const ELSEWHERE: usize = 80;

type Assembler = VecAssembler<X64Relocation>;
/// A second page that shares nothing with the first.
const OTHER: i32 = DATA as i32 + 0x1000;
/// One whose entry in the table is the first's.
const SAME_ENTRY: i32 = DATA as i32 + (TLB_ENTRIES << 12) as i32;

fn assemble(at: u64, emit: impl FnOnce(&mut Assembler)) -> (u64, Vec<u8>) {
    let mut e = Assembler::new(at as usize);
    emit(&mut e);
    (at, e.finalize().expect("labels are bound"))
}

/// What a round does at least: so many of what the row of the CPU's statistics counts.
#[derive(Clone, Copy)]
struct Does(u32, &'static str);

/// Nothing in particular.
const FAST: Does = Does(0, "blocks");

/// Nanoseconds of a round.
fn time(cpl: u16, pieces: &[(u64, Vec<u8>)], Does(times, row): Does) -> f64 {
    let mut guest = Guest::new(pieces);
    guest.run(cpl);
    let before = guest.counted(row).expect("a row of that name");
    let best = (0..RUNS).map(|_| guest.run(cpl)).min().expect("several runs");
    let rounds = LOOPS as u64 * RUNS as u64;
    let counted = (guest.counted(row).expect("a row of that name") - before) as f64 / rounds as f64;
    assert!(counted >= f64::from(times) * 0.9, "{counted} {row} a round, not {times}");
    best.as_nanos() as f64 / f64::from(LOOPS)
}

/// A loop around `body`.
fn looped(body: impl FnOnce(&mut Assembler)) -> Vec<(u64, Vec<u8>)> {
    vec![assemble(CODE, |e| {
        dynasm!(e ; .arch x64 ; xor ecx, ecx ; mov r12d, LOOPS ; again:);
        body(e);
        dynasm!(e ; .arch x64 ; dec r12d ; jnz <again);
        end(e);
    })]
}

/// SYSCALL ends at CPL 3; at CPL 0 too, as SYSCALL does not look where it comes from.
fn end(e: &mut Assembler) {
    dynasm!(e ; .arch x64 ; syscall);
}

/// Two loads through one register, from `first` and `second`; `elsewhere` multiplications besides. Each waits for what is before it: so it
/// is the whole way that counts, not what else the host does meanwhile.
fn two_loads(cpl: u16, (first, second): (i32, i32), elsewhere: usize, does: Does) -> f64 {
    time(
        cpl,
        &looped(|e| {
            // Memory is all zero, so every product is, too. By slot go accesses through RSP.
            match cpl {
                3 => dynasm!(e ; .arch x64
                    ; lea esp, [rcx + first]
                    ; mov eax, [rsp]
                    ; lea esp, [rax + second]
                    ; mov ecx, [rsp]),
                _ => dynasm!(e ; .arch x64
                    ; lea ebx, [rcx + first]
                    ; mov eax, [rbx]
                    ; lea ebx, [rax + second]
                    ; mov ecx, [rbx]),
            }
            for _ in 0..elsewhere {
                dynasm!(e ; .arch x64 ; imul ecx, ecx);
            }
        }),
        does,
    )
}

/// Two indirect jumps a round, to targets whose entries in the jump cache are `same` or not. At CPL 0 there is no second one, which
/// would have them all.
fn two_jumps(same: bool) -> f64 {
    let first = CODE + 0x400;
    let candidates = first + 0x40..first + 0x1_0000;
    let second = candidates
        .filter(|&at| jump_index(at) != jump_index(CODE))
        .find(|&at| (jump_index(at) == jump_index(first)) == same)
        .expect("several addresses share each entry");
    let start = assemble(CODE, |e| {
        dynasm!(e ; .arch x64 ; mov r12d, LOOPS ; again: ; mov eax, first as i32 ; jmp rax);
    });
    let again = CODE + 6;
    time(
        0,
        &[
            start,
            assemble(first, |e| dynasm!(e ; .arch x64 ; mov eax, second as i32 ; jmp rax)),
            assemble(second, |e| {
                let back = again as i32 - (second as i32 + 3 + 6);
                // dec r12d; jnz again
                e.extend([0x41, 0xff, 0xcc, 0x0f, 0x85]);
                e.extend(back.to_le_bytes());
                end(e);
            }),
        ],
        if same { Does(2, "lookup") } else { FAST },
    )
}

/// `count` copies of what `body` emits per round: nanoseconds of one, beyond an empty loop.
fn each(cpl: u16, count: u32, does: Does, body: impl Fn(&mut Assembler)) -> f64 {
    let empty = time(cpl, &looped(|_| {}), FAST);
    let full = time(cpl, &looped(|e| (0..count).for_each(|_| body(e))), Does(does.0 * count, does.1));
    (full - empty) / f64::from(count)
}

/// Measures and reports.
pub fn run(report: &mut Report) {
    report.heading("what the slow ways cost, beyond the fast one");
    let here = DATA as i32;
    let hit = two_loads(3, (here, here), ELSEWHERE, FAST);
    let slot = two_loads(3, (here, OTHER), ELSEWHERE, Does(2, "slot misses"));
    report.figure("slot miss, the table has the page", (slot - hit) / 2.0, "ns");
    let walk = two_loads(3, (here, SAME_ENTRY), ELSEWHERE, Does(2, "soft-TLB refills"));
    report.figure("slot miss, the page tables have the page", (walk - hit) / 2.0, "ns");
    let hit = two_loads(0, (here, OTHER), 0, FAST);
    let refill = two_loads(0, (here, SAME_ENTRY), 0, Does(2, "table misses"));
    report.figure("table miss (refill), the page tables have the page", (refill - hit) / 2.0, "ns");
    let hit = two_jumps(false);
    report.figure("exit, find the block, enter", (two_jumps(true) - hit) / 2.0, "ns");
    let helper = Does(1, "instructions executed by a helper");
    let smsw = each(0, 10, helper, |e| dynasm!(e ; .arch x64 ; smsw eax));
    report.figure("helper call (SMSW)", smsw, "ns");

    report.heading("fast ways, for comparison");
    report.figure("round with two indirect jumps that are found", hit, "ns");
    let call = each(3, 1, FAST, |e| {
        dynasm!(e ; .arch x64 ; call >function ; jmp >over ; function: ; ret ; over:);
    });
    report.figure("call, return and a jump", call, "ns");
    report.figure("push and pop", each(3, 10, FAST, |e| dynasm!(e ; .arch x64 ; push rax ; pop rax)), "ns");
    let strings = each(3, 1, FAST, |e| {
        dynasm!(e ; .arch x64 ; mov edi, here ; mov esi, OTHER ; mov ecx, 64 ; rep movsb);
    });
    report.figure("rep movsb of 64 bytes", strings, "ns");
}
