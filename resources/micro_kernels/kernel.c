/* What the micro-kernels share: the console (16550 at 0x3f8), the IDT and the TSS, the end through isa-debug-exit. */
#include "kernel.h"

struct trap trap;
u64 trap_cr2, trap_frame;
volatile u32 trap_count;
handler *handlers[256];
extern u64 recover_rsp;
void recover(int vector) __attribute__((noreturn));

__attribute__((used)) static u8 stacks[4][8192] __attribute__((aligned(4096)));
asm(".globl user_stack_top, kernel_stack_top, ist_stack_top");
asm(".set user_stack_top, stacks + 8192\n.set kernel_stack_top, stacks + 16384\n.set ist_stack_top, stacks + 24576");

static int failures;
static const char *part = "";

static void put(char c)
{
    /* Not for ever: a machine without this port must still reach its end. */
    for (int i = 0; i < 100000 && !(inb(0x3fd) & 0x20); i++)
        ;
    outb(0x3f8, c);
}

void print(const char *text)
{
    while (*text)
        put(*text++);
}

void print_hex(u64 value)
{
    print("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        if (shift == 0 || value >> shift)
            put("0123456789abcdef"[value >> shift & 15]);
}

/* What follows a word of the command line. */
static const char *argument(const char *word)
{
    const char *line = (const char *)*(u64 *)((u64)start_info + 24);
    for (; line && *line; line++) {
        int i = 0;
        while (word[i] && line[i] == word[i])
            i++;
        if (!word[i])
            return line + i;
    }
    return 0;
}

int has_argument(const char *word) { return !!argument(word); }

u32 number_argument(const char *key)
{
    u32 number = 0;
    for (const char *at = argument(key); at && *at >= '0' && *at <= '9'; at++)
        number = 10 * number + (*at - '0');
    return number;
}

void name(const char *what)
{
    part = what;
    if (has_argument("verbose")) {
        print(what);
        print("\n");
    }
}

void skip(const char *what, const char *why)
{
    print("skipped ");
    print(what);
    print(": ");
    print(why);
    print("\n");
}

static void print_line(int line)
{
    char digits[12];
    int at = 11;
    digits[at] = 0;
    do
        digits[--at] = '0' + line % 10;
    while (line /= 10);
    print(digits + at);
}

void claim(int holds, const char *what, int line, u64 seen, u64 wanted)
{
    if (holds)
        return;
    failures++;
    print("FAILED ");
    print(part);
    print(", line ");
    print_line(line);
    print(": ");
    print(what);
    if (seen || wanted) {
        print(" (");
        print_hex(seen);
        print(", ");
        print_hex(wanted);
        print(")");
    }
    print("; last trap ");
    print_hex(trap.vector);
    print(" error ");
    print_hex(trap.error);
    print(" at ");
    print_hex(trap.rip);
    print("\n");
}

void finish(int failed)
{
    print(failed || failures ? "some claims FAILED\n" : "all claims hold\n");
    /* Odd status: (value << 1) | 1. 33 is good, 35 is not. */
    outb(0xf4, failed || failures ? 0x11 : 0x10);
    for (;;)
        asm volatile("cli; hlt");
}

void on_trap(struct trap *at)
{
    trap_count++;
    if (handlers[at->vector & 255]) {
        handlers[at->vector & 255](at);
        return;
    }
    trap = *at;
    trap_cr2 = read_cr2();
    trap_frame = (u64)at;
    if (!recover_rsp) {
        print("FAILED ");
        print(part);
        print(": trap ");
        print_hex(at->vector);
        print(" error ");
        print_hex(at->error);
        print(" at ");
        print_hex(at->rip);
        print(" cr2 ");
        print_hex(trap_cr2);
        print("\n");
        finish(1);
    }
    recover(at->vector);
}

void set_gate(int vector, const void *to, int ist, int access)
{
    u64 at = (u64)to;
    idt[2 * vector] = (at & 0xffff) | (u64)KERNEL_CS << 16 | (u64)ist << 32 | (u64)access << 40 | (at >> 16 & 0xffff) << 48;
    idt[2 * vector + 1] = at >> 32;
}

void reload_idt(u16 limit)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = { limit, (u64)idt };
    asm volatile("lidt %0" : : "m"(pointer));
}

u64 *page_entry(u64 virt)
{
    static u64 tables[16][512] __attribute__((aligned(4096)));
    static int used;
    u64 *directory = &page_directories[virt >> 21];
    if (*directory & 0x80) {
        u64 *table = tables[used++];
        for (int i = 0; i < 512; i++)
            table[i] = (*directory & ~0x1ffffful) + 4096ul * i + 7;
        *directory = (u64)table | 7;
        write_cr3(read_cr3());
    }
    return (u64 *)(*directory & 0xffffffffff000) + (virt >> 12 & 511);
}

void setup(void)
{
    for (int vector = 0; vector < 256; vector++)
        set_gate(vector, vectors + 16 * vector, 0, 0x8e);
    set_gate(BP, vectors + 16 * BP, 0, 0xee);
    set_gate(OF, vectors + 16 * OF, 0, 0xee);
    set_gate(0x80, vectors + 16 * 0x80, 0, 0xee);
    reload_idt(0xfff);
    u64 base = (u64)tss;
    *(u64 *)(tss + 4) = (u64)kernel_stack_top;
    *(u64 *)(tss + 0x24) = (u64)ist_stack_top;
    *(u16 *)(tss + 0x66) = 0x68;
    gdt[TSS_SELECTOR / 8] = 0x67 | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    asm volatile("ltr %w0" : : "r"(TSS_SELECTOR));
}
