/* Interrupts from the PIT through PIC and I/O APIC, from the local APIC's timer and from the CPU itself (Intel 8259A, 82093AA; SDM vol. 3A, APIC). */
#include "kernel.h"

#define APIC 0xfee00000ul
#define IOAPIC 0xfec00000ul
#define APIC_BASE 0x1b
#define TSC_DEADLINE 0x6e0

static volatile u32 ticks, others;
static int x2apic;
static volatile u64 interrupted;

static u32 apic_read(u32 at) { return x2apic ? rdmsr(0x800 + at / 16) : *(volatile u32 *)(APIC + at); }
static void apic_write(u32 at, u32 value)
{
    if (x2apic)
        wrmsr(0x800 + at / 16, value);
    else
        *(volatile u32 *)(APIC + at) = value;
}
static void ioapic_write(u32 at, u32 value)
{
    *(volatile u32 *)IOAPIC = at;
    *(volatile u32 *)(IOAPIC + 0x10) = value;
}
static u32 ioapic_read(u32 at)
{
    *(volatile u32 *)IOAPIC = at;
    return *(volatile u32 *)(IOAPIC + 0x10);
}

static void on_pic(struct trap *at)
{
    interrupted = at->rip;
    ticks++;
    outb(0x20, 0x20);
}
static void on_apic(struct trap *at)
{
    interrupted = at->rip;
    ticks++;
    apic_write(0xb0, 0);
}
static void on_other(struct trap *at)
{
    (void)at;
    others++;
    apic_write(0xb0, 0);
}

/* Waits in HLT: sti; hlt must not lose the interrupt. Gives up when another clock says that long is over. */
static int wait(u32 wanted)
{
    u64 begin = rdtsc();
    while (ticks < wanted) {
        asm volatile("sti; hlt; cli");
        if (rdtsc() - begin > 60000000000ul)
            return 0;
    }
    return 1;
}

static int spin(volatile u32 *what, u32 wanted)
{
    u64 begin = rdtsc();
    asm volatile("sti");
    while (*what < wanted && rdtsc() - begin < 60000000000ul)
        asm volatile("pause");
    asm volatile("cli");
    return *what >= wanted;
}

/* Takes what a source that was just silenced had already asked for: what stays in the IRR would count as the next test's. */
static void settle(void)
{
    for (int i = 0; i < 100; i++)
        asm volatile("sti; nop; cli");
}

static void pit(u16 divisor)
{
    outb(0x43, 0x34);
    outb(0x40, divisor & 0xff);
    outb(0x40, divisor >> 8);
}

static void pic(void)
{
    name("PIT through the PIC");
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 0x800);
    apic_write(0xf0, 0x1ff);
    apic_write(0x350, 0x700);
    outb(0x20, 0x11);
    outb(0x21, 0x40);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0xa0, 0x11);
    outb(0xa1, 0x48);
    outb(0xa1, 2);
    outb(0xa1, 1);
    outb(0x21, 0xfe);
    outb(0xa1, 0xff);
    handlers[0x40] = on_pic;
    ticks = 0;
    pit(11932);
    CHECK(wait(5));
    CHECK(spin(&ticks, 10));
    outb(0x21, 0xff);
    u32 before = ticks;
    for (int i = 0; i < 100000; i++)
        asm volatile("sti; nop; cli");
    CHECK(ticks <= before + 1);
    apic_write(0x350, 0x10700);
}

static void ioapic(void)
{
    name("PIT through the I/O APIC");
    CHECK((ioapic_read(1) >> 16 & 0xff) >= 23);
    handlers[0x50] = on_apic;
    ticks = 0;
    u32 id = x2apic ? apic_read(0x20) : apic_read(0x20) >> 24;
    /* The PIT is on pin 2, or on pin 0 where the board says so. */
    ioapic_write(0x15, id << 24);
    ioapic_write(0x14, 0x50);
    ioapic_write(0x11, id << 24);
    ioapic_write(0x10, 0x50);
    pit(11932);
    CHECK(wait(5));
    ioapic_write(0x14, 0x10000);
    ioapic_write(0x10, 0x10000);
    settle();
}

static void timer(const char *once, const char *again)
{
    handlers[0x60] = on_apic;
    name(once);
    apic_write(0x3e0, 0xb);
    apic_write(0x320, 0x60);
    ticks = 0;
    apic_write(0x380, 1000000);
    CHECK(apic_read(0x390) <= 1000000);
    CHECK(wait(1));
    SAME(apic_read(0x390), 0);
    for (int i = 0; i < 10000; i++)
        asm volatile("sti; nop; cli");
    SAME(ticks, 1);

    name(again);
    ticks = 0;
    apic_write(0x320, 0x20060);
    apic_write(0x380, 500000);
    CHECK(wait(5));
    CHECK(spin(&ticks, 10));
    apic_write(0x380, 0);
    settle();
    apic_write(0x320, 0x10060);
}

static void deadline(void)
{
    u32 out[4];
    cpuid(1, 0, out);
    if (!(out[2] >> 24 & 1)) {
        skip("TSC-deadline timer", "CPUID does not show it");
        return;
    }
    name("TSC-deadline timer");
    apic_write(0x320, 0x40060);
    asm volatile("mfence");
    ticks = 0;
    u64 at = rdtsc() + 3000000;
    wrmsr(TSC_DEADLINE, at);
    SAME(rdmsr(TSC_DEADLINE), at);
    CHECK(wait(1));
    CHECK(rdtsc() >= at);
    SAME(rdmsr(TSC_DEADLINE), 0);
    name("TSC deadline in the past");
    wrmsr(TSC_DEADLINE, 1);
    CHECK(wait(2));
    name("TSC deadline withdrawn");
    wrmsr(TSC_DEADLINE, rdtsc() + 100000000);
    wrmsr(TSC_DEADLINE, 0);
    SAME(rdmsr(TSC_DEADLINE), 0);
    apic_write(0x320, 0x10060);
}

static void command(u32 value)
{
    if (x2apic)
        wrmsr(0x830, value);
    else
        apic_write(0x300, value);
}

static void itself(const char *what)
{
    if (has_argument("emulated")) {
        skip(what, "a KVM that emulates looks for interrupts between few instructions only");
        return;
    }
    name(what);
    handlers[0x70] = on_other;
    handlers[0x71] = on_apic;
    others = ticks = 0;
    command(0x40070); /* self */
    SAME(others, 0);
    asm volatile("sti; nop; nop; cli");
    SAME(others, 1);
    /* Priority: 0x71 of the same class waits for EOI; the task priority holds both. */
    command(0x40070);
    command(0x40071);
    write_cr8(8);
    asm volatile("sti; nop; nop; cli");
    SAME(others, 1);
    SAME(ticks, 0);
    SAME(apic_read(0x200 + 0x10 * 3) >> 16 & 3, 3);
    write_cr8(0);
    asm volatile("sti; nop; nop; nop; nop; cli");
    SAME(others, 2);
    SAME(ticks, 1);
    name("the instruction after STI");
    command(0x40071);
    asm volatile("sti\nafter_sti: nop\nafter_next: nop; nop; cli");
    extern u8 after_next[];
    SAME(interrupted, after_next);
}

int main(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    pic();
    ioapic();
    timer("APIC timer once", "APIC timer again and again");
    deadline();
    itself("IPI to itself");
    u32 out[4];
    cpuid(1, 0, out);
    if (out[2] >> 21 & 1) {
        name("x2APIC");
        u32 id = apic_read(0x20) >> 24;
        wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 0xc00);
        x2apic = 1;
        SAME(apic_read(0x20), id);
        timer("x2APIC timer once", "x2APIC timer again and again");
        deadline();
        itself("x2APIC IPI to itself");
        name("x2APIC self-IPI register");
        handlers[0x70] = on_other;
        others = 0;
        wrmsr(0x83f, 0x70);
        CHECK(spin(&others, 1));
    } else
        skip("x2APIC", "CPUID does not show it");
    return 0;
}
