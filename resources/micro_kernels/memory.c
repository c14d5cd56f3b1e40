/* String instructions that fault half-way, and code that changes under the CPU (SDM vol. 2, REP; vol. 3A, Self- and Cross-Modifying Code). */
#include "kernel.h"

#define AT 0x4000000ul

static u64 regs[3];
asm(".text; movs: mov regs, %rsi; mov regs + 8, %rdi; mov regs + 16, %rcx; movs_at: rep movsb; ret");
asm(".text; stos: mov regs + 8, %rdi; mov regs + 16, %rcx; mov $0x5a5a5a5a, %eax; stos_at: rep stosl; ret");
asm(".text; movs_down: std; mov regs, %rsi; mov regs + 8, %rdi; mov regs + 16, %rcx; movs_down_at: rep movsw; cld; ret");
asm(".text; cmps: mov regs, %rsi; mov regs + 8, %rdi; mov regs + 16, %rcx; cmps_at: repe cmpsb; ret");
asm(".text; scas: mov regs + 8, %rdi; mov regs + 16, %rcx; xor %eax, %eax; scas_at: repne scasb; ret");
extern u8 movs[], movs_at[], stos[], stos_at[], movs_down[], movs_down_at[], cmps[], cmps_at[], scas[], scas_at[];

static void set(u64 from, u64 to, u64 count)
{
    regs[0] = from;
    regs[1] = to;
    regs[2] = count;
}

static void strings(void)
{
    u8 *page = (u8 *)AT;
    u64 *second = page_entry(AT + 4096), was = *second;
    for (int i = 0; i < 4096; i++)
        page[i] = i * 7 + 1;
    *second = 0;
    invlpg(AT + 4096);

    name("REP MOVSB into an absent page");
    set(AT, AT + 4096 - 100, 300);
    SAME(RUN(movs), PF);
    SAME(trap.rip, movs_at);
    SAME(trap.rcx, 200);
    SAME(trap.rsi, AT + 100);
    SAME(trap.rdi, AT + 4096);
    SAME(trap_cr2, AT + 4096);
    SAME(trap.error, 2);
    CHECK(page[4095] == page[99] && page[3996] == page[0]);

    name("REP MOVSB from an absent page");
    set(AT + 4096 - 10, AT, 20);
    SAME(RUN(movs), PF);
    SAME(trap.rcx, 10);
    SAME(trap.rsi, AT + 4096);
    SAME(trap.rdi, AT + 10);
    SAME(trap.error, 0);

    name("REP STOSD across the end, not aligned");
    set(0, AT + 4096 - 18, 8);
    SAME(RUN(stos), PF);
    SAME(trap.rcx, 4);
    SAME(trap.rdi, AT + 4096 - 2);
    SAME(trap_cr2, AT + 4096);
    SAME(page[4093], 0x5a);

    name("REPE CMPSB and REPNE SCASB");
    for (int i = 0; i < 64; i++)
        page[i] = page[i + 4096 - 64] = 9;
    set(AT, AT + 4096 - 64, 100);
    SAME(RUN(cmps), PF);
    SAME(trap.rip, cmps_at);
    SAME(trap.rcx, 36);
    SAME(trap.rdi, AT + 4096);
    set(0, AT + 4096 - 64, 100);
    SAME(RUN(scas), PF);
    SAME(trap.rcx, 36);

    *second = was;
    invlpg(AT + 4096);
    u64 *before = page_entry(AT - 4096), kept = *before;
    *before = 0;
    invlpg(AT - 4096);
    name("downwards");
    set(AT + 200, AT + 10, 50);
    SAME(RUN(movs_down), PF);
    asm volatile("cld");
    SAME(trap.rip, movs_down_at);
    SAME(trap.rcx, 50 - 6);
    SAME(trap.rdi, AT - 2);
    SAME(trap.rsi, AT + 200 - 12);
    CHECK(trap.rflags & 0x400);
    *before = kept;
    invlpg(AT - 4096);

    name("a count of zero touches nothing");
    set(0xdead000000000000, 0xdead000000000000, 0);
    SAME(RUN(movs), -1);
    name("overlap");
    for (int i = 0; i < 32; i++)
        page[i] = i;
    set(AT, AT + 1, 20);
    SAME(RUN(movs), -1);
    SAME(page[20], 0);
    SAME(page[21], 21);
}

typedef int function(void);

/* mov $value, %eax; ret */
static void put_function(u8 *at, u32 value)
{
    volatile u8 *code = at;
    code[0] = 0xb8;
    for (int i = 0; i < 4; i++)
        code[1 + i] = value >> 8 * i;
    code[5] = 0xc3;
    asm volatile("jmp 1f\n1:" : : : "memory");
}

static void code(void)
{
    name("code that is written and called");
    for (u32 value = 1; value < 200; value++) {
        put_function((u8 *)AT + 64, value * 0x10001);
        SAME(((function *)(AT + 64))(), (int)(value * 0x10001));
    }
    name("code across a page boundary");
    for (u32 value = 1; value < 50; value++) {
        put_function((u8 *)AT + 4096 - 3, value);
        SAME(((function *)(AT + 4096 - 3))(), (int)value);
        *(volatile u8 *)(AT + 4096) = 0x77;
        SAME(((function *)(AT + 4096 - 3))() >> 16 & 0xff, 0x77);
    }
    name("code written through another address");
    u64 *alias = page_entry(AT + 0x10000);
    u64 was = *alias;
    *alias = *page_entry(AT);
    invlpg(AT + 0x10000);
    for (u32 value = 1; value < 50; value++) {
        put_function((u8 *)AT + 0x10000 + 128, value);
        SAME(((function *)(AT + 128))(), (int)value);
    }
    *alias = was;
    invlpg(AT + 0x10000);

    name("an instruction that changes the next one");
    /* movb $2, 1(next); next: mov $1, %eax; ret */
    static const u8 changes[] = { 0xc6, 0x05, 0x01, 0, 0, 0, 2, 0xb8, 1, 0, 0, 0, 0xc3 };
    for (int times = 0; times < 20; times++) {
        for (u64 i = 0; i < sizeof changes; i++)
            ((volatile u8 *)AT)[256 + i] = changes[i];
        SAME(((function *)(AT + 256))(), 2);
    }
    name("a loop that changes itself");
    /* mov $5, %ecx; xor %eax, %eax; l: add $1, %eax; incb l+2; loop l; ret */
    static const u8 loop[] = { 0xb9, 5, 0, 0, 0, 0x31, 0xc0, 0x83, 0xc0, 0x01, 0xfe, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xe2, 0xf5, 0xc3 };
    for (u64 i = 0; i < sizeof loop; i++)
        ((volatile u8 *)AT)[512 + i] = loop[i];
    SAME(((function *)(AT + 512))(), 1 + 2 + 3 + 4 + 5);
    name("another page at the same address");
    u64 *entry = page_entry(AT), first = *entry, other = *page_entry(AT + 0x20000);
    put_function((u8 *)AT + 1024, 1);
    put_function((u8 *)AT + 0x20000 + 1024, 2);
    for (int times = 0; times < 20; times++) {
        SAME(((function *)(AT + 1024))(), 1 + (times & 1));
        *entry = times & 1 ? first : other;
        invlpg(AT);
    }
    *entry = first;
    invlpg(AT);
}

int main(void)
{
    strings();
    code();
    return 0;
}
