/* Paging (SDM vol. 3A, Paging): error codes, CR2, accessed and dirty, WP, NX, large pages, SMEP, SMAP, PCID, stale translations. */
#include "kernel.h"

#define AT 0x4000000ul
#define OTHER 0x4400000ul

static u64 address = AT;

asm(".text; read_it: mov address, %rax; read_it_at: mov (%rax), %ecx; ret");
asm(".text; write_it: mov address, %rax; write_it_at: movl $5, (%rax); ret");
asm(".text; jump_it: mov address, %rax; jump_it_at: jmp *%rax");
asm(".text; stac_read: stac; mov address, %rax; mov (%rax), %ecx; clac; ret");
asm(".text; user_read: mov address, %rax; user_read_at: mov (%rax), %ecx; int $0x80");
asm(".text; user_write: mov address, %rax; user_write_at: movl $5, (%rax); int $0x80");
extern u8 read_it[], read_it_at[], write_it[], write_it_at[], jump_it[], user_read[], user_read_at[], user_write[], user_write_at[], stac_read[];

static void faults(int vector, u64 error, const char *what)
{
    name(what);
    SAME(vector, PF);
    SAME(trap.error, error);
    SAME(trap_cr2, address);
}

static void set(u64 *entry, u64 flags)
{
    *entry = (*entry & 0x3ffffffff000) | flags;
    invlpg(address);
}

static void protection(void)
{
    u64 *entry = page_entry(AT);
    *(u8 *)AT = 0xc3; /* ret */

    set(entry, 0);
    faults(RUN(read_it), 0, "read of an absent page");
    SAME(trap.rip, read_it_at);
    faults(RUN(write_it), 2, "write to an absent page");
    SAME(trap.rip, write_it_at);
    faults(RUN(jump_it), 0x10, "fetch from an absent page");
    SAME(trap.rip, AT);
    faults(USER(user_read), 4, "user read of an absent page");
    SAME(trap.rip, user_read_at);
    faults(USER(user_write), 6, "user write to an absent page");

    set(entry, 3);
    SAME(RUN(read_it), -1);
    SAME(RUN(write_it), -1);
    faults(USER(user_read), 5, "user read of a supervisor page");
    faults(USER(user_write), 7, "user write to a supervisor page");

    set(entry, 5);
    SAME(USER(user_read), 0x80);
    faults(USER(user_write), 7, "user write to a read-only page");
    faults(RUN(write_it), 3, "supervisor write to a read-only page, WP");
    write_cr0(read_cr0() & ~0x10000ul);
    name("supervisor write without WP");
    SAME(RUN(write_it), -1);
    faults(USER(user_write), 7, "user write to a read-only page without WP");
    write_cr0(read_cr0() | 0x10000);
    faults(RUN(write_it), 3, "WP again");

    set(entry, 7);
    *(u8 *)AT = 0xc3;
    SAME(RUN(jump_it), -1);
    set(entry, 7 | NX);
    faults(RUN(jump_it), 0x11, "fetch from an NX page");
    name("data on an NX page");
    SAME(RUN(read_it), -1);

    set(entry, 7 | 1ul << 51);
    faults(RUN(read_it), 9, "reserved bit");
    set(entry, 7);

    /* The directory's rights count too. */
    u64 *directory = &page_directories[AT >> 21];
    *directory &= ~2ul;
    write_cr3(read_cr3());
    faults(RUN(write_it), 3, "read-only directory entry");
    *directory = (*directory | 2) & ~4ul;
    write_cr3(read_cr3());
    faults(USER(user_read), 5, "supervisor directory entry");
    *directory |= 4;
    write_cr3(read_cr3());
}

static void marks(void)
{
    name("accessed and dirty");
    u64 *entry = page_entry(AT), *directory = &page_directories[AT >> 21];
    *directory &= ~0x20ul;
    set(entry, 7);
    SAME(RUN(read_it), -1);
    SAME(*entry & 0x60, 0x20);
    SAME(*directory & 0x20, 0x20);
    SAME(RUN(write_it), -1);
    SAME(*entry & 0x60, 0x60);
    set(entry, 7);
    SAME(RUN(write_it), -1);
    SAME(*entry & 0x60, 0x60);
    name("a write that faults does not mark dirty");
    set(entry, 5);
    SAME(RUN(write_it), PF);
    SAME(*entry & 0x40, 0);
    set(entry, 7);
}

static void translation(void)
{
    name("remapping with INVLPG");
    u64 *one = page_entry(AT), *two = page_entry(OTHER);
    *(volatile u32 *)AT = 111;
    *(volatile u32 *)OTHER = 222;
    u64 first = *one, second = *two;
    *one = second;
    invlpg(AT);
    SAME(*(volatile u32 *)AT, 222);
    *one = first;
    invlpg(AT);
    SAME(*(volatile u32 *)AT, 111);

    name("remapping with CR3");
    *one = second;
    write_cr3(read_cr3());
    SAME(*(volatile u32 *)AT, 222);
    *one = first;
    write_cr3(read_cr3());
    SAME(*(volatile u32 *)AT, 111);

    name("global pages go with CR4.PGE");
    *one = first | 0x100;
    invlpg(AT);
    SAME(*(volatile u32 *)AT, 111);
    *one = second;
    write_cr4(read_cr4() & ~0x80ul);
    write_cr4(read_cr4() | 0x80);
    SAME(*(volatile u32 *)AT, 222);
    *one = first;
    invlpg(AT);

    name("2 MiB pages");
    u64 *directory = &page_directories[0x5000000ul >> 21];
    u64 before = *directory;
    *(volatile u32 *)0x5012344 = 333;
    *directory = 0x5200000 | 0x87;
    invlpg(0x5000000);
    *(volatile u32 *)0x5012344 = 444;
    *directory = before;
    invlpg(0x5012345);
    SAME(*(volatile u32 *)0x5012344, 333);
    SAME(*(volatile u32 *)0x5212344, 444);

    u32 out[4];
    cpuid(0x80000001, 0, out);
    if (out[3] >> 26 & 1) {
        name("1 GiB pages");
        page_pointers[4] = 0x87;
        SAME(*(volatile u32 *)(0x100000000ul + 0x5212344), 444);
        page_pointers[4] = 0x87 | 0x2000;
        invlpg(0x100000000ul);
        address = 0x100000000ul;
        faults(RUN(read_it), 9, "reserved bit of a 1 GiB page");
        address = AT;
        page_pointers[4] = 0;
        write_cr3(read_cr3());
    } else
        skip("1 GiB pages", "CPUID does not show them");
}

static void guards(void)
{
    u32 out[4];
    cpuid(7, 0, out);
    u64 *entry = page_entry(AT);
    *(u8 *)AT = 0xc3;
    /* The kernel's own pages are everybody's: make them the supervisor's for this. */
    for (u64 at = 0; at < (u64)end; at += 4096)
        *page_entry(at) &= ~4ul;
    write_cr3(read_cr3());
    if (out[1] >> 7 & 1) {
        write_cr4(read_cr4() | 1ul << 20);
        faults(RUN(jump_it), 0x11, "SMEP");
        write_cr4(read_cr4() & ~(1ul << 20));
        SAME(RUN(jump_it), -1);
    } else
        skip("SMEP", "CPUID does not show it");
    if (out[1] >> 20 & 1) {
        write_cr4(read_cr4() | 1ul << 21);
        set(entry, 7);
        faults(RUN(read_it), 1, "SMAP read");
        faults(RUN(write_it), 3, "SMAP write");
        name("STAC lifts SMAP");
        SAME(RUN(stac_read), -1);
        SAME(RUN(read_it), PF);
        write_cr4(read_cr4() & ~(1ul << 21));
        SAME(RUN(read_it), -1);
    } else
        skip("SMAP", "CPUID does not show it");
    for (u64 at = 0; at < (u64)end; at += 4096)
        *page_entry(at) |= 4;
    write_cr3(read_cr3());
}

static void contexts(void)
{
    u32 out[4];
    cpuid(1, 0, out);
    if (!(out[2] >> 17 & 1)) {
        skip("PCID", "CPUID does not show it");
        return;
    }
    name("PCID");
    u64 *one = page_entry(AT), *two = page_entry(OTHER);
    u64 root = read_cr3() & ~0xffful, first = *one & ~0x100ul, second = *two;
    write_cr4(read_cr4() | 1ul << 17);
    *one = first;
    write_cr3(root | 1);
    *(volatile u32 *)AT = 111;
    *(volatile u32 *)OTHER = 222;
    SAME(*(volatile u32 *)AT, 111);
    *one = second;
    write_cr3(root | 2);
    SAME(*(volatile u32 *)AT, 222);
    SAME(read_cr3() & 0xfff, 2);
    *one = first;
    write_cr3(root | 1);
    SAME(*(volatile u32 *)AT, 111);
    name("INVPCID");
    cpuid(7, 0, out);
    if (out[1] >> 10 & 1) {
        struct { u64 pcid, at; } one_address = { 1, AT };
        *one = second;
        asm volatile("invpcid %0, %1" : : "m"(one_address), "r"(0ul) : "memory");
        SAME(*(volatile u32 *)AT, 222);
        *one = first;
        asm volatile("invpcid %0, %1" : : "m"(one_address), "r"(2ul) : "memory");
        SAME(*(volatile u32 *)AT, 111);
    }
    write_cr3(root);
    write_cr4(read_cr4() & ~(1ul << 17));
}

/* Accesses that cross into another page: nothing is written unless all can be. */
static void crossing(void)
{
    name("crossing");
    u64 *one = page_entry(AT), *two = page_entry(AT + 4096), *other = page_entry(OTHER);
    u64 second = *two;
    *two = *other;
    invlpg(AT + 4096);
    address = AT + 4094;
    *(volatile u32 *)address = 0x11223344;
    SAME(*(volatile u16 *)(AT + 4094), 0x3344);
    SAME(*(volatile u16 *)OTHER, 0x1122);
    *two = 0;
    invlpg(AT + 4096);
    SAME(RUN(write_it), PF);
    SAME(trap_cr2, AT + 4096);
    SAME(*(volatile u16 *)(AT + 4094), 0x3344);
    *two = second;
    *one = *one;
    invlpg(AT + 4096);
    address = AT;
}

int main(void)
{
    protection();
    marks();
    translation();
    guards();
    contexts();
    crossing();
    return 0;
}
