//! The fixed pieces of generated code: the way in, the ways out, and the glue to helpers written in Rust.
//!
//! Register convention of generated code, for 64-bit values:
//!
//! | guest | host | guest | host |
//! |---|---|---|---|
//! | RAX RCX RDX RBX RBP RSI RDI | the same | RSP | R9 |
//! | R8 R12 R13 R14 R15 | the same | R9 R10 R11 | in the environment |
//!
//! R10 ([`T0`]) and R11 ([`T1`]) are scratch. RSP is the address of the [`EnvBlock`]; helpers' frames grow down from it.
//! The guest's arithmetic flags are in EFLAGS or in [`Env::lahf`], as the translator knows at each point; DF and AC of
//! the host stay clear.

use std::mem::offset_of;

use dynasmrt::{DynasmApi, dynasm};

use crate::code::emitter::{Emitter, cc};
use crate::code::gs_base;
use crate::code::jump_caches::{
    jump_code, jump_index_to_t1, look_far, lookup_missed, probe_jump_cache, return_code, return_tags,
};
use crate::code::refill;
use crate::code::tb::mode;
use crate::env::{Env, EnvBlock, SITE_COUNTERS, SLOTS, TLB_MODES, TlbSlot, WITH_FLAGS};
use crate::exec::helpers::{JUDGE, NEAR_SIZE, RESUME, SITE_SHIFT, SLOT_SHIFT};
use crate::mmu::soft_tlb::{TLB_ENTRIES, table_offset};

/// First scratch register: R10.
pub const T0: u8 = 10;
/// Second scratch register: R11.
pub const T1: u8 = 11;
/// The environment's address.
const RSP: u8 = 4;

/// Offset of a field of [`Env`] from the host's RSP in generated code.
#[macro_export]
macro_rules! env_offset {
    ($($field:tt)+) => {
        (std::mem::offset_of!($crate::env::EnvBlock, env) + std::mem::offset_of!($crate::env::Env, $($field)+)) as i32
    };
}

/// Offset of guest register `index` from the host's RSP in generated code.
pub const fn gpr_offset(index: usize) -> i32 {
    (offset_of!(EnvBlock, env) + offset_of!(Env, gpr) + 8 * index) as i32
}

/// Offset of scratch word `index`.
pub const fn scratch_offset(index: usize) -> i32 {
    (offset_of!(EnvBlock, env) + offset_of!(Env, scratch) + 8 * index) as i32
}

/// Where [`Helpers::read_miss`] and `write_miss` leave their result.
const RESULT: usize = 7;
/// Where [`Helpers::read_miss`] and `write_miss` leave the linear address.
pub const LINEAR: usize = 5;

/// Why generated code came back. The first word of [`Exit`].
pub mod exit {
    /// A helper says so: its reason is in the vCPU.
    pub const HELPER: u64 = 1;
    /// The poll word is not zero. `env.rip` is at the block that was to run.
    pub const POLL: u64 = 2;
    /// A jump that is not linked yet: payload = block number * 2 + slot.
    pub const LINK: u64 = 3;
    /// The jump cache does not have `env.rip`.
    pub const LOOKUP: u64 = 4;
    /// The host faulted in generated code; see `env.fault_*`.
    pub const FAULT: u64 = 5;
    /// A block that is not chained ended; `env.rip` is set.
    pub const BLOCK_END: u64 = 6;
    /// One more than the last.
    pub const REASONS: usize = 7;
}

/// How generated code came back.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Exit {
    /// One of [`exit`].
    pub reason: u64,
    /// Belongs to the reason.
    pub payload: u64,
}

/// A helper: environment, two arguments, host address after the call in generated code. Non-zero: leave the block ([`RESUME`]: for another).
pub type Helper = extern "C" fn(*mut EnvBlock, u64, u64, u64) -> u64;

/// The helpers that generated code calls.
pub struct Helpers {
    /// Executes the instruction of a site (first argument: its address).
    pub complex: Helper,
    /// Translates a load that the soft TLB does not have: linear address, size.
    pub read_miss: Helper,
    /// Translates a store that the soft TLB does not have: linear address, size; may choose the bounce buffer.
    pub write_miss: Helper,
    /// Writes the bounce buffer to where it belongs.
    pub commit: Helper,
    /// Gives the time-stamp counter itself, and always goes on.
    pub time_stamp: Helper,
    /// Checks a segmented access: offset, packed segment, size and direction. Leaves the linear address.
    pub linear: Helper,
}

/// Addresses of the fixed pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thunks {
    /// `extern "C" fn(*mut EnvBlock, code) -> Exit`.
    pub enter: u64,
    /// Jumped to with reason in T1 and payload in T0, flags saved.
    pub exit: u64,
    /// For each reason that a block has of its own, with the flags saved and with them in EFLAGS: jumped to with the address
    /// to go on at in T0 and the payload in T1.
    pub leave: [[u64; 2]; exit::REASONS],
    /// For each class of modes: jumped to where an indirect branch is not in the jump cache: its target in T0, what [`Env::branch_from`] is to be in T1,
    /// flags saved.
    pub branch_miss: [u64; mode::CLASSES],
    /// For each class of modes: jumped to with the target in T0, flags saved: continues in the block there, or leaves.
    pub lookup: [u64; mode::CLASSES],
    /// As `lookup` for the first classes, for returns: leaves the host's return predictor balanced. T1 as for `branch_miss`.
    pub return_lookup: [u64; mode::RETURN_CLASSES],
    /// Called; see [`Helpers::complex`].
    pub complex: u64,
    /// Called with the linear address in T0 and the size in T1; leaves in T1 what makes the host address of it.
    pub read_miss: u64,
    /// As `read_miss`; clobbers flags. ZF: the host address is the operand's, not the bounce buffer's. So for all that ends in
    /// it.
    pub write_miss: u64,
    /// For each soft-TLB mode, reads and writes: as `read_miss` and `write_miss` where a slot did not match; fills it from
    /// the table where that has the page. Clobbers flags.
    pub slot_miss: [[u64; 2]; TLB_MODES],
    /// For each soft-TLB mode, reads and writes: as `read_miss` and `write_miss`, from the guest's page tables where that is
    /// simple. Clobbers flags.
    pub refill: [[u64; 2]; TLB_MODES],
    /// As `refill`, after the page of another address was looked up: the table may have that of this one. The operand has
    /// [`NEAR_SIZE`] bytes at most.
    pub near_miss: [[u64; 2]; TLB_MODES],
    /// As `refill`; ZF says whether it has succeeded. If not, nothing has happened.
    pub try_refill: [[u64; 2]; TLB_MODES],
    /// Called after a store to the bounce buffer, the guest's flags in EFLAGS.
    pub commit_flags: u64,
    /// Called after a store to the bounce buffer, the guest's flags saved or dead.
    pub commit: u64,
    /// Called with the offset in T0 and the packed rest in T1; leaves the linear address in T0.
    pub linear: u64,
    /// Called: RDTSC. Clobbers flags.
    pub time_stamp: u64,
    /// Called: loads the guest's vector and x87 state. Preserves everything else, flags included.
    pub fp_restore: u64,
    /// Called after a miss where the guest's vector state was loaded: loads it if it no longer is. ZF as for `write_miss`.
    pub fp_again: u64,
    /// Where the signal handler sends the CPU after a fault in generated code.
    pub fault: u64,
}

/// The components of the guest's vector and x87 state, a mask for XSAVE, and whether XSAVEOPT exists.
#[derive(Clone, Copy, Debug)]
pub struct FpSave {
    /// XSAVE component mask.
    pub mask: u64,
    /// XSAVEOPT is there.
    pub xsaveopt: bool,
}

/// Guest registers that live in host registers: (guest index, host number).
const RESIDENT: [(usize, u8); 13] = [
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
    (4, 9),
    (5, 5),
    (6, 6),
    (7, 7),
    (8, 8),
    (12, 12),
    (13, 13),
    (14, 14),
    (15, 15),
];

fn store_guest(e: &mut Emitter, depth: i32) {
    for (guest, host) in RESIDENT {
        dynasm!(e ; .arch x64 ; mov [rsp + gpr_offset(guest) + depth], Rq(host));
    }
}

fn load_guest(e: &mut Emitter, depth: i32) {
    for (guest, host) in RESIDENT {
        dynasm!(e ; .arch x64 ; mov Rq(host), [rsp + gpr_offset(guest) + depth]);
    }
}

/// Moves the guest's vector state to the environment if it is loaded. Registers are saved already.
fn save_fp(e: &mut Emitter, depth: i32, fp: FpSave) {
    let loaded = env_offset!(fp_loaded) + depth;
    dynasm!(e ; .arch x64 ; cmp DWORD [rsp + loaded], 0);
    let skip = e.jcc_short(cc::E);
    dynasm!(e ; .arch x64
        ; mov eax, fp.mask as u32 as i32
        ; mov edx, (fp.mask >> 32) as u32 as i32);
    let area = env_offset!(xsave) + depth;
    if fp.xsaveopt {
        dynasm!(e ; .arch x64 ; xsaveopt64 [rsp + area]);
    } else {
        dynasm!(e ; .arch x64 ; xsave64 [rsp + area]);
    }
    // Rust code runs with the default MXCSR, whatever rounding or unmasked exceptions the guest has chosen.
    dynasm!(e ; .arch x64
        ; mov DWORD [rsp + loaded], 0
        ; mov DWORD [rsp + scratch_offset(6) + depth], 0x1f80
        ; ldmxcsr [rsp + scratch_offset(6) + depth]);
    e.bind_short(skip);
}

/// Stores the arithmetic flags of EFLAGS; RAX is saved already and is clobbered.
fn save_flags(e: &mut Emitter, depth: i32) {
    dynasm!(e ; .arch x64 ; lahf ; seto al ; mov [rsp + env_offset!(lahf) + depth], ax);
}

/// Emits the thunks. `e` starts where they will be executed.
pub fn emit(e: &mut Emitter, helpers: &Helpers, fp: FpSave) -> Thunks {
    let mut thunks = Thunks { enter: e.here(), ..Thunks::default() };
    dynasm!(e ; .arch x64
        ; push rbx ; push rbp ; push r12 ; push r13 ; push r14 ; push r15
        ; mov [rdi + env_offset!(host_rsp)], rsp
        ; mov rsp, rdi
        ; mov rbx, rsi);
    gs_base::set(e, RSP, 0);
    dynasm!(e ; .arch x64 ; mov r11, rbx);
    load_guest(e, 0);
    dynasm!(e ; .arch x64 ; jmp r11);

    thunks.exit = e.here();
    store_guest(e, 0);
    let saved = e.here();
    save_fp(e, 0, fp);
    dynasm!(e ; .arch x64
        ; mov rax, r11
        ; mov rdx, r10
        ; mov rsp, [rsp + env_offset!(host_rsp)]
        ; pop r15 ; pop r14 ; pop r13 ; pop r12 ; pop rbp ; pop rbx
        ; ret);

    leaves(e, &mut thunks);
    for class in 0..mode::CLASSES {
        thunks.lookup[class] = e.here();
        let miss = probe_jump_cache(e, class);
        dynasm!(e ; .arch x64 ; gs jmp QWORD [r11 + jump_code(class)]);
        e.bind(miss);
        look_far(e, class, |e| dynasm!(e ; .arch x64 ; jmp r10));
        lookup_missed(e, thunks.exit);
    }
    for class in 0..mode::RETURN_CLASSES {
        thunks.return_lookup[class] = e.here();
        // The site asked the cache of places that take no flags.
        dynasm!(e ; .arch x64
            ; mov [rsp + env_offset!(branch_from)], r11d
            ; movzx r11d, r10b
            ; cmp r10, [rsp + r11 * 8 + return_tags(class, WITH_FLAGS)]);
        let miss = e.jcc_short(cc::NE);
        dynasm!(e ; .arch x64
            ; mov DWORD [rsp + env_offset!(branch_from)], 0
            ; push QWORD [rsp + r11 * 8 + return_code(class, WITH_FLAGS)]
            ; ret);
        e.bind_short(miss);
        dynasm!(e ; .arch x64 ; inc QWORD [rsp + env_offset!(counted.return_misses)]);
        let miss = probe_jump_cache(e, class);
        // Where the site is was noted in case the target is no address: it is one.
        dynasm!(e ; .arch x64
            ; mov DWORD [rsp + env_offset!(branch_from)], 0
            ; gs push QWORD [r11 + jump_code(class)]
            ; ret);
        e.bind(miss);
        look_far(e, class, |e| {
            dynasm!(e ; .arch x64
                ; mov DWORD [rsp + env_offset!(branch_from)], 0
                ; push r10
                ; ret);
        });
        lookup_missed(e, thunks.exit);
    }
    for class in 0..mode::CLASSES {
        thunks.branch_miss[class] = e.here();
        dynasm!(e ; .arch x64 ; mov [rsp + env_offset!(branch_from)], r11d);
        look_far(e, class, |e| {
            dynasm!(e ; .arch x64 ; mov DWORD [rsp + env_offset!(branch_from)], 0 ; jmp r10);
        });
        lookup_missed(e, thunks.exit);
    }

    let resume = e.here();
    gs_base::follow(e, RSP, 0);
    load_guest(e, 0);
    dynasm!(e ; .arch x64 ; mov r10, [rsp + env_offset!(rip)]);
    jump_index_to_t1(e);
    dynasm!(e ; .arch x64 ; add r11, [rsp + env_offset!(resume_jumps)] ; gs cmp r10, [r11]);
    let miss = e.jcc(cc::NE);
    dynasm!(e ; .arch x64 ; gs jmp QWORD [r11 + 8]);
    e.bind(miss);
    lookup_missed(e, thunks.exit);

    let ways = Ways { saved, resume, fp };
    thunks.complex = helper_thunk(e, helpers.complex, &ways, After::Nothing);
    thunks.read_miss = helper_thunk(e, helpers.read_miss, &ways, After::HostAddress);
    thunks.write_miss = helper_thunk(e, helpers.write_miss, &ways, After::HostAddress);
    // ZF clear.
    let failed = e.here();
    dynasm!(e ; .arch x64 ; test rsp, rsp ; ret);
    for mode in 0..TLB_MODES {
        for (write, slow) in [thunks.read_miss, thunks.write_miss].into_iter().enumerate() {
            let is_store = write != 0;
            thunks.slot_miss[mode][write] = e.here();
            dynasm!(e ; .arch x64 ; inc QWORD [rsp + env_offset!(counted.slot_misses) + 8]);
            let filled = e.here();
            slot_miss(e, mode, write, slow);
            refill::emit(e, mode, is_store, Some(filled), slow);
            thunks.refill[mode][write] = e.here();
            dynasm!(e ; .arch x64 ; inc QWORD [rsp + env_offset!(counted.table_misses) + 8]);
            refill::emit(e, mode, is_store, None, slow);
            thunks.near_miss[mode][write] = near_miss(e, mode, is_store, thunks.refill[mode][write]);
            thunks.try_refill[mode][write] = refill::emit(e, mode, is_store, None, failed);
        }
    }
    thunks.linear = helper_thunk(e, helpers.linear, &ways, After::Linear);
    thunks.commit = helper_thunk(e, helpers.commit, &ways, After::Nothing);
    thunks.commit_flags = helper_thunk(e, helpers.commit, &ways, After::Flags);

    thunks.time_stamp = time_stamp(e, helpers.time_stamp, fp);

    thunks.fp_restore = e.here();
    fp_restore(e, fp);
    dynasm!(e ; .arch x64 ; ret);
    thunks.fp_again = e.here();
    dynasm!(e ; .arch x64 ; cmp DWORD [rsp + env_offset!(fp_loaded) + 8], 0);
    let loaded = e.jcc_short(cc::NE);
    fp_restore(e, fp);
    e.bind_short(loaded);
    dynasm!(e ; .arch x64 ; cmp DWORD [rsp + env_offset!(bounce_len) + 8], 0 ; ret);

    thunks.fault = e.here();
    dynasm!(e ; .arch x64 ; mov r11d, exit::FAULT as i32);
    e.jmp_to(thunks.exit);
    thunks
}

/// The ways out that blocks have of their own.
fn leaves(e: &mut Emitter, thunks: &mut Thunks) {
    for reason in [exit::POLL, exit::LINK, exit::LOOKUP, exit::BLOCK_END] {
        for in_host in [false, true] {
            thunks.leave[reason as usize][usize::from(in_host)] = e.here();
            if in_host {
                dynasm!(e ; .arch x64 ; mov [rsp + scratch_offset(0)], rax);
                save_flags(e, 0);
                dynasm!(e ; .arch x64 ; mov rax, [rsp + scratch_offset(0)]);
            }
            dynasm!(e ; .arch x64
                ; mov [rsp + env_offset!(rip)], r10
                ; mov r10d, r11d
                ; mov r11d, reason as i32);
            e.jmp_to(thunks.exit);
        }
    }
}

/// Loads the guest's vector and x87 state. Called: everything is 8 bytes further up.
fn fp_restore(e: &mut Emitter, fp: FpSave) {
    dynasm!(e ; .arch x64
        ; mov [rsp + scratch_offset(2) + 8], rax
        ; mov [rsp + scratch_offset(3) + 8], rdx
        ; mov eax, fp.mask as u32 as i32
        ; mov edx, (fp.mask >> 32) as u32 as i32
        ; xrstor64 [rsp + env_offset!(xsave) + 8]
        ; mov rax, [rsp + scratch_offset(2) + 8]
        ; mov rdx, [rsp + scratch_offset(3) + 8]
        ; mov DWORD [rsp + env_offset!(fp_loaded) + 8], 1);
}

/// Fills a slot from the table, or goes on behind itself where the table does not have the page, or else to `slow`. T0 =
/// linear address; T1 packed as for the helpers, see [`crate::exec::helpers`]. The return address is the site's.
fn slot_miss(e: &mut Emitter, mode: usize, write: usize, slow: u64) {
    // Called: everything is 8 bytes further up. Nothing is parked at a check.
    let park = [(0, scratch_offset(4) + 8), (1, scratch_offset(5) + 8), (2, scratch_offset(6) + 8)];
    for (register, place) in park {
        dynasm!(e ; .arch x64 ; mov [rsp + place], Rq(register));
    }
    let table = table_offset(mode, write != 0);
    let slots = env_offset!(slots) + ((mode * 2 + write) * size_of::<[TlbSlot; SLOTS]>()) as i32 + 8;
    dynasm!(e ; .arch x64
        ; mov eax, r10d
        ; shr eax, 8
        ; and eax, (TLB_ENTRIES as i32 - 1) << 4
        ; mov rcx, r10
        ; and rcx, -0x1000
        ; gs cmp rcx, [rax + table]);
    let not_there = e.jcc(cc::NE);
    // Does the last byte lie on the page, too?
    dynasm!(e ; .arch x64
        ; gs mov rax, [rax + table + 8]
        ; sub rax, rcx
        ; movzx edx, r11b
        ; lea rdx, [rdx + r10 - 1]
        ; xor rdx, rcx
        ; cmp rdx, 0xfff);
    let crosses = e.jcc(cc::A);
    dynasm!(e ; .arch x64
        ; mov edx, r11d
        ; shr edx, SLOT_SHIFT as i8 - 4
        ; and edx, (SLOTS as i32 - 1) << 4
        ; mov [rsp + rdx + slots], rcx
        ; mov [rsp + rdx + slots + 8], rax
        ; mov edx, [rsp]
        ; shr edx, SITE_SHIFT as i8
        ; and edx, SITE_COUNTERS as i32 - 1
        ; add WORD [rsp + rdx * 2 + env_offset!(site_misses) + 8], 1);
    let judge = e.jcc_short(cc::E);
    dynasm!(e ; .arch x64 ; mov r11, rax);
    for (register, place) in park {
        dynasm!(e ; .arch x64 ; mov Rq(register), [rsp + place]);
    }
    dynasm!(e ; .arch x64 ; cmp r11, r11 ; ret);
    e.bind_short(judge);
    dynasm!(e ; .arch x64 ; or r11d, JUDGE as i32);
    e.bind(crosses);
    for (register, place) in park {
        dynasm!(e ; .arch x64 ; mov Rq(register), [rsp + place]);
    }
    e.jmp_to(slow);
    e.bind(not_there);
    for (register, place) in park {
        dynasm!(e ; .arch x64 ; mov Rq(register), [rsp + place]);
    }
}

/// See [`Thunks::near_miss`].
fn near_miss(e: &mut Emitter, mode: usize, write: bool, refill: u64) -> u64 {
    let at = e.here();
    let table = table_offset(mode, write);
    let parked = scratch_offset(4) + 8;
    dynasm!(e ; .arch x64
        ; mov [rsp + parked], rax
        ; mov eax, r10d
        ; shr eax, 8
        ; and eax, (TLB_ENTRIES as i32 - 1) << 4
        ; gs xor r10, [rax + table]
        ; cmp r10, 0x1000 - NEAR_SIZE as i32);
    let not_there = e.jcc_short(cc::A);
    dynasm!(e ; .arch x64
        ; gs xor r10, [rax + table]
        ; gs mov r11, [rax + table + 8]
        ; gs sub r11, [rax + table]
        ; mov rax, [rsp + parked]
        ; cmp r11, r11
        ; ret);
    e.bind_short(not_there);
    dynasm!(e ; .arch x64 ; gs xor r10, [rax + table] ; mov rax, [rsp + parked]);
    e.jmp_to(refill);
    at
}

/// RDTSC: of the guest's registers only those are saved that a function may change.
fn time_stamp(e: &mut Emitter, helper: Helper, fp: FpSave) -> u64 {
    let at = e.here();
    let changed = || RESIDENT.into_iter().filter(|(_, host)| matches!(host, 1 | 6..=9));
    for (guest, host) in changed() {
        dynasm!(e ; .arch x64 ; mov [rsp + gpr_offset(guest) + 8], Rq(host));
    }
    save_fp(e, 8, fp);
    dynasm!(e ; .arch x64
        ; lea rdi, [rsp + 8]
        ; sub rsp, 8
        ; mov rax, QWORD helper as usize as i64
        ; call rax
        ; add rsp, 8
        ; mov rdx, rax
        ; shr rdx, 32
        ; mov eax, eax);
    for (guest, host) in changed() {
        dynasm!(e ; .arch x64 ; mov Rq(host), [rsp + gpr_offset(guest) + 8]);
    }
    dynasm!(e ; .arch x64 ; ret);
    at
}

/// What a helper thunk hands back to generated code.
enum After {
    Nothing,
    /// T0 = the linear address as it was, T1 = the result, ZF as for [`Thunks::write_miss`].
    HostAddress,
    /// T0 = linear address.
    Linear,
    /// EFLAGS as before the call.
    Flags,
}

/// Where a helper thunk goes when the block does not go on.
struct Ways {
    /// The way out, registers saved.
    saved: u64,
    /// To the block at `env.rip`.
    resume: u64,
    fp: FpSave,
}

fn helper_thunk(e: &mut Emitter, helper: Helper, ways: &Ways, after: After) -> u64 {
    let at = e.here();
    store_guest(e, 8);
    if matches!(after, After::Flags) {
        save_flags(e, 8);
    }
    save_fp(e, 8, ways.fp);
    dynasm!(e ; .arch x64
        ; lea rdi, [rsp + 8]
        ; mov rsi, r10
        ; mov rdx, r11
        ; mov rcx, [rsp]
        ; sub rsp, 8
        ; mov rax, QWORD helper as usize as i64
        ; call rax
        ; add rsp, 8
        ; test eax, eax);
    let go_on = e.jcc_short(cc::E);
    dynasm!(e ; .arch x64
        ; add rsp, 8
        ; cmp eax, RESUME as i32);
    e.jcc_to(cc::E, ways.resume);
    dynasm!(e ; .arch x64
        ; mov r11d, exit::HELPER as i32
        ; mov r10d, eax);
    e.jmp_to(ways.saved);
    e.bind_short(go_on);
    match after {
        After::Nothing => gs_base::follow(e, RSP, 8),
        After::HostAddress => {
            dynasm!(e ; .arch x64
                ; mov r11, [rsp + scratch_offset(RESULT) + 8]
                ; mov r10, [rsp + scratch_offset(LINEAR) + 8]
                ; cmp DWORD [rsp + env_offset!(bounce_len) + 8], 0);
        }
        After::Linear => {
            dynasm!(e ; .arch x64 ; mov r10, [rsp + scratch_offset(RESULT) + 8]);
        }
        After::Flags => {
            dynasm!(e ; .arch x64 ; movzx eax, WORD [rsp + env_offset!(lahf) + 8] ; add al, 0x7f ; sahf);
        }
    }
    load_guest(e, 8);
    dynasm!(e ; .arch x64 ; ret);
    at
}
