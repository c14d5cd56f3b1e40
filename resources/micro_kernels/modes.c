/* What modes.S found on its way through the modes. */
#include "kernel.h"

extern u8 low_begin[], low_end[];
extern u32 mode_protected, seen_32;
void enter_modes(void);

int main(void)
{
    name("modes");
    volatile u8 *low = (u8 *)0x8000;
    for (u8 *at = low_begin; at < low_end; at++)
        low[at - low_begin] = *at;
    volatile u8 *data = (u8 *)0x20000;
    for (u32 i = 0; i < 0x20000; i++)
        data[i] = 0;
    for (int times = 0; times < 3; times++) {
        mode_protected = 0;
        *(volatile u32 *)0x400000 = 0;
        enter_modes();
        SAME(mode_protected, 1);
        SAME(seen_32, 0x89abcdef);
        SAME(*(volatile u16 *)0x20010, 0x1266);
        SAME(data[0xfffe], 0x55);
        SAME(data[0xffff], 0x55);
        SAME(data[0], 0x55);
        SAME(*(volatile u16 *)(0x8000 - 0x100), 1);
        SAME(*(volatile u16 *)(0x8000 - 0xfe), 0xfffe);
        SAME(*(volatile u16 *)0x3fffe, 0xabcd);
        SAME(*(volatile u16 *)(0x8000 - 0xfc), 0x2121);
        SAME(*(volatile u16 *)(0x8000 - 0xfa), 0xde);
        SAME(*(volatile u32 *)(0x8000 - 0xf8), 0x23456789);
        SAME(*(volatile u8 *)(0x8000 - 0xf4), *(volatile u8 *)0x100000);
        SAME(*(volatile u32 *)0x400000, 0xfeedface);
    }
    reload_idt(0xfff);
    name("after the modes");
    extern u8 modes_ud[];
    asm("jmp 1f\nmodes_ud: ud2\n1:");
    SAME(RUN(modes_ud), UD);
    return 0;
}
