/* Single-step and hardware breakpoints (SDM vol. 3B, Debug, Branch Profile, TSC ...: Debug Exception). */
#include "kernel.h"

static u32 watched[4] __attribute__((aligned(16)));
static u64 steps[16];
static u64 dr6s[16];
static volatile int count;

static void on_debug(struct trap *at)
{
    if (count < 16) {
        steps[count] = at->rip;
        dr6s[count] = read_dr6();
    }
    count++;
    write_dr6(0xffff0ff0);
    /* A code breakpoint is a fault: RF lets the instruction run. */
    at->rflags |= 0x10000;
    if (count > 12)
        at->rflags &= ~0x100ul;
}

asm(".text\nstepped: pushfq; orl $0x100, (%rsp); popfq\nstep0: nop\nstep1: nop\nstep2: pushfq; andl $~0x100, (%rsp)\nstep3: popfq\nstep4: nop; ret");
asm(".text\nnothing: nop\nbroken: nop\nafter: nop; ret");
asm(".text\nstore: movl $1, watched\nstore_after: nop; mov watched, %eax\nload_after: nop; ret");
asm(".text\nshadowed: pushfq; orl $0x100, (%rsp); mov $0x18, %eax; popfq; mov %eax, %ss\nin_shadow: nop\npast_shadow: pushfq; andl $~0x100, (%rsp); popfq; nop; ret");
asm(".text\nread_dr: mov %dr7, %rax; ret");
extern u8 stepped[], step0[], step1[], step2[], step3[], step4[], nothing[], broken[], store[], store_after[], load_after[], shadowed[], in_shadow[], past_shadow[], read_dr[];

static void begin(const char *what)
{
    name(what);
    count = 0;
    write_dr6(0xffff0ff0);
}

int main(void)
{
    handlers[DB] = on_debug;

    begin("TF");
    SAME(RUN(stepped), -1);
    /* The trap comes after each instruction that began with TF set; POPF clears it at the end. */
    SAME(steps[0], step1);
    SAME(steps[1], step2);
    SAME(dr6s[0] & 0x400f, 0x4000);
    CHECK(count >= 4);
    SAME(steps[count - 1], step4);

    begin("TF and MOV SS");
    SAME(RUN(shadowed), -1);
    SAME(steps[0], past_shadow);

    begin("code breakpoint");
    write_dr0((u64)broken);
    write_dr7(0x402);
    SAME(RUN(nothing), -1);
    SAME(count, 1);
    SAME(steps[0], broken);
    SAME(dr6s[0] & 0x400f, 1);
    write_dr7(0x400);

    begin("data breakpoint on writes");
    write_dr1((u64)watched);
    write_dr7(0x400 | 8 | 0xdul << 20);
    SAME(RUN(store), -1);
    SAME(count, 1);
    SAME(steps[0], store_after);
    SAME(dr6s[0] & 0x400f, 2);
    SAME(watched[0], 1);

    begin("data breakpoint on accesses");
    write_dr7(0x400 | 8 | 0xful << 20);
    SAME(RUN(store), -1);
    SAME(count, 2);
    SAME(steps[1], load_after);
    write_dr7(0x400);

    begin("neighbouring data");
    write_dr1((u64)&watched[1]);
    write_dr7(0x400 | 8 | 0xful << 20);
    SAME(RUN(store), -1);
    SAME(count, 0);
    write_dr7(0x400);

    begin("general detect");
    handlers[DB] = 0;
    write_dr7(0x2400);
    SAME(RUN(read_dr), DB);
    SAME(trap.rip, read_dr);
    CHECK(read_dr6() & 0x2000);
    /* Entering the handler has cleared GD. */
    SAME(read_dr7() & 0x2000, 0);

    begin("registers");
    write_dr7(0x400);
    write_dr2(0x123456789abcul);
    SAME(read_dr2(), 0x123456789abcul);
    SAME(read_dr7(), 0x400);
    return 0;
}
