/* The ways a machine ends, chosen on the command line: poweroff, reset, triple, status=N. */
#include "kernel.h"

static u16 acpi_control(void)
{
    /* From the start info (RSDP at offset 32): XSDT, FADT, PM1a_CNT_BLK. */
    u64 rsdp = *(u64 *)((u64)start_info + 32);
    if (!rsdp)
        return 0;
    u64 xsdt = *(u64 *)(rsdp + 24);
    u32 length = *(u32 *)(xsdt + 4);
    for (u64 at = 36; at + 8 <= length; at += 8) {
        u64 table = *(u64 *)(xsdt + at);
        if (*(u32 *)table == 0x50434146)
            return *(u32 *)(table + 64);
    }
    return 0;
}

int main(void)
{
    print("here\n");
    if (has_argument("poweroff")) {
        u16 port = acpi_control();
        CHECK(port);
        if (port)
            outw(port, 5 << 10 | 0x2000);
    } else if (has_argument("reset")) {
        outb(0x64, 0xfe);
    } else if (has_argument("triple")) {
        reload_idt(0);
        asm volatile("ud2");
    } else if (has_argument("status")) {
        outb(0xf4, 0x2a);
    }
    for (u64 begin = rdtsc(); rdtsc() - begin < 20000000000ul;)
        asm volatile("pause");
    print("still here\n");
    return 1;
}
