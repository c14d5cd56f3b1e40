/* Transfers between privilege levels and code segments: SYSCALL, SYSENTER, far calls, IRET, compatibility mode (SDM vol. 2, vol. 3A). */
#include "kernel.h"

#define STAR 0xc0000081
#define LSTAR 0xc0000082
#define CSTAR 0xc0000083
#define SFMASK 0xc0000084
#define EFER 0xc0000080
#define KERNEL_GS_BASE 0xc0000102
#define GS_BASE 0xc0000101
#define FS_BASE 0xc0000100

u64 saved[8];

/* A system call's kernel end notes what it got and goes back; the user's end traps with what it has. */
asm(".text\n"
    "syscall_entry: mov %rcx, saved; mov %r11, saved + 8; mov %rsp, saved + 16; pushfq; popq saved + 24\n"
    "  mov %cs, %eax; mov %rax, saved + 32; mov %ss, %eax; mov %rax, saved + 40; mov $0x77, %eax; sysretq\n"
    "do_syscall: mov $0x1111, %ebx; syscall\nafter_syscall: mov %cs, %ecx; mov %ss, %edx; int $0x80\n"
    "syscall_bad: mov $0x8000000000000000, %rcx; sysretq_at: sysretq\n"
    "sysenter_entry: mov %rsp, saved; mov %cs, %eax; mov %rax, saved + 8; mov %ss, %eax; mov %rax, saved + 16; pushfq; popq saved + 24\n"
    "  lea after_sysenter(%rip), %rdx; mov saved + 32, %rcx; rex.w sysexit\n"
    "do_sysenter: mov %rsp, saved + 32; sysenter\nafter_sysenter: mov %cs, %ecx; mov %ss, %edx; int $0x80\n"
    "far_gate: mov $0x1234, %esi; lcall *gate_pointer\nafter_gate: int $0x80\n"
    "gate_entry: mov %cs, %eax; mov %rax, saved; mov %rsp, saved + 8; mov (%rsp), %rax; mov %rax, saved + 16; mov 8(%rsp), %rax; mov %rax, saved + 24\n"
    "  mov 16(%rsp), %rax; mov %rax, saved + 32; mov 24(%rsp), %rax; mov %rax, saved + 40; rex.w lret\n"
    "int_back: mov $5, %edi; int $0x90\nafter_int: ud2\n"
    "swap: swapgs; ret\n"
    "gs_read: mov %gs:0, %rax; mov %rax, saved; mov %fs:8, %rax; mov %rax, saved + 8; ret\n"
    ".code32\n"
    "compat: mov $0x2b, %eax; mov %eax, %ds; push $0x12345678; pop %ecx; inc %ecx; dec %edx; mov $0xffffffff, %ebx; add $2, %ebx\n"
    "  pusha; popa; ljmp $0x33, $from_compat\n"
    "compat_into: mov $0x7fffffff, %eax; inc %eax\ncompat_into_at: into\ncompat_into_after: ud2\n"
    "compat_bound: mov $0x2b, %eax; mov %eax, %ds; mov $7, %eax; compat_bound_at: bound %eax, bounds\nud2\n"
    "compat_push: push %es\nud2\n"
    ".code64\n"
    "from_compat: int $0x80\n"
    ".data\n.balign 8\ngate_pointer: .long 0\n.word 0x43\nbounds: .long 1, 6\n.text");
extern u8 syscall_entry[], do_syscall[], after_syscall[], syscall_bad[], sysretq_at[], sysenter_entry[], do_sysenter[], after_sysenter[],
    far_gate[], after_gate[], gate_entry[], int_back[], after_int[], swap[], gs_read[], compat[], compat_into[], compat_into_after[], compat_bound[],
    compat_bound_at[];

static void fast_calls(void)
{
    name("SYSCALL and SYSRET");
    wrmsr(EFER, rdmsr(EFER) | 1);
    wrmsr(STAR, (u64)KERNEL_CS << 32 | 0x23ul << 48);
    wrmsr(LSTAR, (u64)syscall_entry);
    wrmsr(SFMASK, 0x40600);
    SAME(try_far(do_syscall, 0x246, USER_CS, USER_DS, (u64)user_stack_top), 0x80);
    SAME(saved[0], after_syscall);
    SAME(saved[1] & 0xffffff, 0x246);
    SAME(saved[2], (u64)user_stack_top);
    SAME(saved[3], 0x46);
    SAME(saved[4], KERNEL_CS);
    SAME(saved[5], KERNEL_DS);
    SAME(trap.rcx, USER_CS);
    SAME(trap.rdx, USER_DS);
    SAME(trap.rax, 0x77);
    SAME(trap.rflags, 0x246);
    SAME(trap.rbx, 0x1111);

    name("SYSCALL without SCE");
    wrmsr(EFER, rdmsr(EFER) & ~1ul);
    SAME(USER(do_syscall), UD);
    wrmsr(EFER, rdmsr(EFER) | 1);

    u32 out[4];
    cpuid(0, 0, out);
    name("SYSENTER and SYSEXIT");
    wrmsr(0x174, KERNEL_CS);
    wrmsr(0x175, (u64)kernel_stack_top - 64);
    wrmsr(0x176, (u64)sysenter_entry);
    int vector = try_far(do_sysenter, 0x202, USER_CS, USER_DS, (u64)user_stack_top);
    if (vector == UD && out[1] == 0x68747541)
        skip("SYSENTER", "AMD's CPUs do not have it in long mode");
    else {
        SAME(vector, 0x80);
        SAME(saved[0], (u64)kernel_stack_top - 64);
        SAME(saved[1], KERNEL_CS);
        SAME(saved[2], KERNEL_CS + 8);
        SAME(saved[3] & 0x200, 0);
        SAME(trap.rcx, KERNEL_CS + 32 + 3);
        SAME(trap.rdx, KERNEL_CS + 40 + 3);
    }
}

static void gates(void)
{
    name("call gate to CPL 0 and back");
    u64 to = (u64)gate_entry;
    gdt[CALL_GATE / 8] = (to & 0xffff) | (u64)KERNEL_CS << 16 | 0xecul << 40 | (to >> 16 & 0xffff) << 48;
    gdt[CALL_GATE / 8 + 1] = to >> 32;
    SAME(USER(far_gate), 0x80);
    SAME(saved[0], KERNEL_CS);
    SAME(saved[1], (u64)kernel_stack_top - 32);
    SAME(saved[2], after_gate);
    SAME(saved[3], USER_CS);
    SAME(saved[4], (u64)user_stack_top);
    SAME(saved[5], USER_DS);
    SAME(trap.cs, USER_CS);
    SAME(trap.rsp, (u64)user_stack_top);

    name("call gate with a lower DPL");
    gdt[CALL_GATE / 8] &= ~(3ul << 45);
    SAME(USER(far_gate), GP);
    SAME(trap.error, CALL_GATE);
    gdt[CALL_GATE / 8] |= 3ul << 45;
    gdt[CALL_GATE / 8] &= ~(1ul << 47);
    SAME(USER(far_gate), NP);
    SAME(trap.error, CALL_GATE);
}

static void on_90(struct trap *at)
{
    at->rdi += 7;
    at->rip = (u64)after_int;
}

static void returns(void)
{
    name("handler that returns to CPL 3");
    handlers[0x90] = on_90;
    set_gate(0x90, vectors + 16 * 0x90, 0, 0xee);
    SAME(USER(int_back), UD);
    SAME(trap.rdi, 12);
    SAME(trap.rip, after_int);
    SAME(trap.cs, USER_CS);
    SAME(trap.rsp, (u64)user_stack_top);

    name("IRET to a non-canonical address");
    int vector = try_far((void *)0x8000000000000000, 0x202, USER_CS, USER_DS, (u64)user_stack_top);
    SAME(vector, GP);
    SAME(trap.error, 0);
    name("IRET to a data segment");
    SAME(try_far(int_back, 0x202, USER_DS, USER_DS, (u64)user_stack_top), GP);
    SAME(trap.error, USER_DS & ~3ul);
    name("IRET to a null SS at CPL 3");
    SAME(try_far(int_back, 0x202, USER_CS, 0, (u64)user_stack_top), GP);
    SAME(trap.error, 0);
    name("IRET to a segment not present");
    SAME(try_far(int_back, 0x202, USER_CS, ABSENT_DS | 3, (u64)user_stack_top), GP);
    SAME(trap.error, ABSENT_DS);
}

static void bases(void)
{
    static u64 one[2] = { 11, 12 }, two[2] = { 21, 22 };
    name("FS, GS and SWAPGS");
    wrmsr(GS_BASE, (u64)one);
    wrmsr(KERNEL_GS_BASE, (u64)two);
    wrmsr(FS_BASE, (u64)two);
    SAME(RUN(gs_read), -1);
    SAME(saved[0], 11);
    SAME(saved[1], 22);
    SAME(RUN(swap), -1);
    SAME(RUN(gs_read), -1);
    SAME(saved[0], 21);
    SAME(rdmsr(GS_BASE), (u64)two);
    SAME(rdmsr(KERNEL_GS_BASE), (u64)one);
    name("SWAPGS at CPL 3");
    SAME(USER(swap), GP);
    name("loading a null GS");
    asm volatile("mov %0, %%gs" : : "r"(KERNEL_DS));
    SAME(rdmsr(GS_BASE), 0);
}

static void compatibility(void)
{
    name("compatibility mode and back");
    SAME(try_far(compat, 0x202, USER_CS32, USER_DS, (u64)user_stack_top), 0x80);
    SAME((u32)trap.rcx, 0x12345679);
    SAME((u32)trap.rbx, 1);
    SAME(trap.cs, USER_CS);
    SAME(trap.rsp, (u64)user_stack_top);
    name("INTO");
    SAME(try_far(compat_into, 0x202, USER_CS32, USER_DS, (u64)user_stack_top), OF);
    SAME(trap.rip, compat_into_after);
    SAME(trap.cs, USER_CS32);
    name("BOUND");
    SAME(try_far(compat_bound, 0x202, USER_CS32, USER_DS, (u64)user_stack_top), BR);
    SAME(trap.rip, compat_bound_at);
}

int main(void)
{
    fast_calls();
    gates();
    returns();
    bases();
    compatibility();
    return 0;
}
