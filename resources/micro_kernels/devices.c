/* Devices as a driver finds them: 16550 in loopback, RTC, ACPI PM timer, PIT channel 2, 8042. */
#include "kernel.h"

static u8 cmos(u8 index)
{
    outb(0x70, index);
    return inb(0x71);
}

static u32 pm_timer(void)
{
    u64 rsdp = *(u64 *)((u64)start_info + 32);
    if (!rsdp)
        return 0;
    u64 xsdt = *(u64 *)(rsdp + 24);
    for (u64 at = 36; at + 8 <= *(u32 *)(xsdt + 4); at += 8) {
        u64 table = *(u64 *)(xsdt + at);
        if (*(u32 *)table == 0x50434146)
            return *(u32 *)(table + 76);
    }
    return 0;
}

int main(void)
{
    name("serial port in loopback");
    while (!(inb(0x3fd) & 0x40))
        ;
    u8 control = inb(0x3fc);
    outb(0x3fc, 0x10 | 0x0f);
    SAME(inb(0x3fe) >> 4, 0xf);
    outb(0x3f8, 'x');
    SAME(inb(0x3fd) & 1, 1);
    SAME(inb(0x3f8), 'x');
    SAME(inb(0x3fd) & 1, 0);
    outb(0x3fc, 0x10);
    SAME(inb(0x3fe) >> 4, 0);
    outb(0x3fc, control);
    name("scratch register");
    outb(0x3ff, 0x5a);
    SAME(inb(0x3ff), 0x5a);
    name("divisor latch");
    u8 line = inb(0x3fb);
    outb(0x3fb, line | 0x80);
    outb(0x3f8, 3);
    SAME(inb(0x3f8), 3);
    outb(0x3f8, 1);
    outb(0x3fb, line);

    name("RTC");
    CHECK(cmos(0x0d) & 0x80);
    u8 status = cmos(0x0b), month = cmos(8), second = cmos(0);
    if (!(status & 4)) {
        month = (month >> 4) * 10 + (month & 15);
        second = (second >> 4) * 10 + (second & 15);
    }
    CHECK(month >= 1 && month <= 12);
    CHECK(second < 60);
    u8 first = cmos(0);
    u64 begin = rdtsc();
    while (cmos(0) == first && rdtsc() - begin < 60000000000ul)
        ;
    CHECK(cmos(0) != first);

    name("PM timer");
    u32 port = pm_timer();
    if (port) {
        u32 from = inl(port);
        u64 until = rdtsc() + 20000000;
        while (rdtsc() < until)
            ;
        CHECK(((inl(port) - from) & 0xffffff) > 1000);
    } else
        skip("PM timer", "no RSDP in the start information");

    name("PIT channel 2");
    outb(0x61, (inb(0x61) & ~2) | 1);
    outb(0x43, 0xb0);
    outb(0x42, 0xff);
    outb(0x42, 0x0f);
    begin = rdtsc();
    while (!(inb(0x61) & 0x20) && rdtsc() - begin < 60000000000ul)
        ;
    CHECK(inb(0x61) & 0x20);
    CHECK(rdtsc() - begin > 100000);

    name("no device at this port");
    SAME(inb(0x1234), 0xff);
    return 0;
}
