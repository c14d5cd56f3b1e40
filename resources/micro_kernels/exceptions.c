/* Exceptions: vector, error code, frame (SDM vol. 3A, Exception and Interrupt Reference). */
#include "kernel.h"

CODE(de, "mov $1, %eax; cltd; xor %ecx, %ecx; de_at: div %ecx")
CODE(de_overflow, "mov $0x80000000, %eax; cltd; mov $-1, %ecx; de_overflow_at: idiv %ecx")
CODE(icebp, ".byte 0xf1; icebp_at:")
CODE(bp, "int3; bp_at:")
CODE(bp_long, ".byte 0xcd, 3; bp_long_at:")
CODE(of, "int $4; of_at:")
CODE(ud, "ud_at: ud2")
CODE(nm, "nm_at: fninit")
CODE(nm_sse, "nm_sse_at: xorps %xmm0, %xmm0")
CODE(absent_ds, "mov $0x38, %eax; absent_ds_at: mov %eax, %ds")
CODE(absent_ss, "mov $0x38, %eax; absent_ss_at: mov %eax, %ss")
CODE(beyond, "mov $0x1000, %eax; beyond_at: mov %eax, %es")
CODE(null_ss, "mov $3, %eax; null_ss_at: mov %eax, %ss")
CODE(code_ss, "mov $0x10, %eax; code_ss_at: mov %eax, %ss")
CODE(msr, "mov $0x12345678, %ecx; msr_at: rdmsr")
CODE(noncanonical, "mov $0x8000000000000000, %rax; noncanonical_at: mov (%rax), %eax")
CODE(stack, "mov %rsp, %rcx; mov $0x8000000000000000, %rsp; stack_at: push %rax")
CODE(stack_bp, "mov $0x8000000000000000, %rbp; stack_bp_at: mov (%rbp), %eax")
CODE(jump, "mov $0x8000000000000000, %rax; jump_at: jmp *%rax")
CODE(cr0_bad, "mov $0x80000000, %eax; cr0_bad_at: mov %rax, %cr0")
CODE(cr4_bad, "mov %cr4, %rax; bts $31, %rax; cr4_bad_at: mov %rax, %cr4")
CODE(long_code, "long_code_at: .byte 0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x26,0x90")
CODE(lock_bad, "lock_bad_at: .byte 0xf0, 0x01, 0xc0")
CODE(ltr_busy, "mov $0x50, %eax; ltr_busy_at: ltr %ax")
CODE(mf, "fninit; push $0x37b; fldcw (%rsp); add $8, %rsp; fld1; fldz; fdivrp; nop; mf_at: fwait")
CODE(mf_mmx, "fninit; push $0x37b; fldcw (%rsp); add $8, %rsp; fld1; fldz; fdivrp; mf_mmx_at: movd %eax, %mm0")
CODE(xm, "push $0x1d80; ldmxcsr (%rsp); add $8, %rsp; xorps %xmm1, %xmm1; mov $0x3f800000, %eax; movd %eax, %xmm0; xm_at: divss %xmm1, %xmm0")
CODE(misaligned, "misaligned_at: movaps 8(%rsp), %xmm0")
CODE(user_cli, "user_cli_at: cli")
CODE(user_hlt, "user_hlt_at: hlt")
CODE(user_in, "user_in_at: in $0x80, %al")
CODE(user_int, "user_int_at: int $0x30")
CODE(user_cr, "user_cr_at: mov %cr0, %rax")
CODE(user_ac, "push %rax; pushfq; orl $0x40000, (%rsp); popfq; user_ac_at: mov 1(%rsp), %eax; ud2")
CODE(user_frame, "mov $0x1234, %r15d; user_frame_at: int $0x80; ud2")
CODE(user_end, "int $0x80; user_end_at:")
CODE(frame, "lea -5(%rsp), %rsp; frame_at: ud2")
CODE(int31, "int $0x31")
CODE(intff, "int $0xff")
CODE(int32, "sti; nop; int $0x32")

static void at(int vector, int wanted, u8 *rip, u64 error, const char *what)
{
    name(what);
    SAME(vector, wanted);
    SAME(trap.rip, rip);
    SAME(trap.error, error);
}

static void plain(void)
{
    at(RUN(de), DE, de_at, 0, "#DE");
    at(RUN(de_overflow), DE, de_overflow_at, 0, "#DE by overflow");
    at(RUN(icebp), DB, icebp_at, 0, "INT1");
    at(RUN(bp), BP, bp_at, 0, "#BP");
    at(RUN(bp_long), BP, bp_long_at, 0, "INT 3");
    at(RUN(of), OF, of_at, 0, "INT 4");
    at(RUN(ud), UD, ud_at, 0, "#UD");
    at(RUN(lock_bad), UD, lock_bad_at, 0, "LOCK on a register");
    at(RUN(long_code), GP, long_code_at, 0, "16-byte instruction");
}

static void segments(void)
{
    at(RUN(absent_ds), NP, absent_ds_at, ABSENT_DS, "#NP");
    at(RUN(absent_ss), SS, absent_ss_at, ABSENT_DS, "#SS of a segment not present");
    at(RUN(beyond), GP, beyond_at, 0x1000, "selector beyond the limit");
    at(RUN(null_ss), GP, null_ss_at, 0, "null SS with RPL 3");
    at(RUN(code_ss), GP, code_ss_at, 0x10, "code segment in SS");
    at(RUN(ltr_busy), GP, ltr_busy_at, TSS_SELECTOR, "LTR of a busy TSS");
}

static void general(void)
{
    at(RUN(msr), GP, msr_at, 0, "RDMSR of no register");
    at(RUN(noncanonical), GP, noncanonical_at, 0, "non-canonical data");
    at(RUN(stack_bp), SS, stack_bp_at, 0, "non-canonical through RBP");
    name("jump to a non-canonical address");
    SAME(RUN(jump), GP);
    SAME(trap.error, 0);
    CHECK(trap.rip == (u64)jump_at || trap.rip == 0x8000000000000000);
    at(RUN(cr0_bad), GP, cr0_bad_at, 0, "CR0.PG without PE");
    at(RUN(cr4_bad), GP, cr4_bad_at, 0, "CR4 reserved bit");
    name("#SS and its stack");
    set_gate(SS, vectors + 16 * SS, 1, 0x8e);
    at(RUN(stack), SS, stack_at, 0, "PUSH to a non-canonical address");
    SAME(trap.rsp, 0x8000000000000000);
    SAME(trap_frame + sizeof trap, (u64)ist_stack_top);
    set_gate(SS, vectors + 16 * SS, 0, 0x8e);
}

static void numeric(void)
{
    at(RUN(mf), MF, mf_at, 0, "#MF at FWAIT");
    at(RUN(mf_mmx), MF, mf_mmx_at, 0, "#MF at an MMX instruction");
    asm volatile("fninit");
    at(RUN(xm), XM, xm_at, 0, "#XM");
    name("#XM sets the flag");
    u32 mxcsr;
    asm volatile("stmxcsr %0" : "=m"(mxcsr));
    SAME(mxcsr & 0x3f, 4);
    write_cr4(read_cr4() & ~(1ul << 10));
    at(RUN(xm), UD, xm_at, 0, "#XM without OSXMMEXCPT");
    write_cr4(read_cr4() | 1ul << 10);
    mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
    at(RUN(misaligned), GP, misaligned_at, 0, "MOVAPS misaligned");

    u64 cr0 = read_cr0();
    write_cr0(cr0 | 8);
    at(RUN(nm), NM, nm_at, 0, "#NM with TS");
    at(RUN(nm_sse), NM, nm_sse_at, 0, "#NM of SSE with TS");
    asm volatile("clts");
    CHECK(!(read_cr0() & 8));
    SAME(RUN(nm), -1);
    write_cr0((cr0 & ~2ul) | 4);
    at(RUN(nm), NM, nm_at, 0, "#NM with EM");
    at(RUN(nm_sse), UD, nm_sse_at, 0, "SSE with EM");
    write_cr0(cr0);
    write_cr4(read_cr4() & ~(1ul << 9));
    at(RUN(nm_sse), UD, nm_sse_at, 0, "SSE without OSFXSR");
    write_cr4(read_cr4() | 1ul << 9);
}

static void user(void)
{
    at(USER(user_cli), GP, user_cli_at, 0, "CLI at CPL 3");
    at(USER(user_hlt), GP, user_hlt_at, 0, "HLT at CPL 3");
    at(USER(user_in), GP, user_in_at, 0, "IN at CPL 3");
    at(USER(user_cr), GP, user_cr_at, 0, "CR0 at CPL 3");
    at(USER(user_int), GP, user_int_at, 0x30 * 8 + 2, "INT to a kernel's gate");
    name("frame from CPL 3");
    SAME(USER(user_frame), 0x80);
    SAME(trap.rip, (u64)user_frame_at + 2);
    SAME(trap.cs, USER_CS);
    SAME(trap.ss, USER_DS);
    SAME(trap.rsp, (u64)user_stack_top);
    SAME(trap.rflags, 0x202);
    SAME(trap.r15, 0x1234);
    SAME(trap_frame + sizeof trap, (u64)kernel_stack_top);
    name("#AC");
    write_cr0(read_cr0() | 1ul << 18);
    SAME(USER(user_ac), AC);
    SAME(trap.error, 0);
    SAME(trap.rip, user_ac_at);
    write_cr0(read_cr0() & ~(1ul << 18));
    SAME(USER(user_ac), UD);
    name("frame at CPL 0");
    SAME(RUN(frame), UD);
    SAME(trap.cs, KERNEL_CS);
    SAME(trap.ss, KERNEL_DS);
    SAME((trap_frame + sizeof trap) & 15, 0);
    CHECK(trap.rsp - (trap_frame + sizeof trap) < 16);
}

/* What the IDT itself does wrong. */
static void delivery(void)
{
    name("gate not present");
    set_gate(0x31, vectors + 16 * 0x31, 0, 0x0e);
    SAME(RUN(int31), NP);
    SAME(trap.error, 0x31 * 8 + 2);
    SAME(trap.rip, int31);

    name("gate beyond the IDT's limit");
    reload_idt(16 * 0x80 - 1);
    SAME(RUN(intff), GP);
    SAME(trap.error, 0xff * 8 + 2);
    reload_idt(0xfff);

    name("#DF");
    set_gate(DF, vectors + 16 * DF, 1, 0x8e);
    set_gate(GP, vectors + 16 * GP, 0, 0x0e);
    SAME(RUN(msr), DF);
    SAME(trap.error, 0);
    SAME(trap_frame + sizeof trap, (u64)ist_stack_top);
    set_gate(GP, vectors + 16 * GP, 0, 0x8e);

    name("#NP in delivering #DE: double fault");
    set_gate(DE, vectors + 16 * DE, 0, 0x0e);
    SAME(RUN(de), DF);
    set_gate(DE, vectors + 16 * DE, 0, 0x8e);

    name("#UD with its gate absent is no double fault");
    set_gate(UD, vectors + 16 * UD, 0, 0x0e);
    SAME(RUN(ud), NP);
    SAME(trap.error, UD * 8 + 3);
    set_gate(UD, vectors + 16 * UD, 0, 0x8e);

    name("trap gate keeps IF");
    set_gate(0x32, vectors + 16 * 0x32, 0, 0x8f);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    SAME(RUN(int32), 0x32);
    CHECK(trap.rflags & 0x200);
}

int main(void)
{
    plain();
    segments();
    general();
    numeric();
    user();
    delivery();
    return 0;
}
