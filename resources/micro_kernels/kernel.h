/* What the micro-kernels share: the console, claims, traps. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define KERNEL_CS 0x10
#define KERNEL_DS 0x18
#define USER_CS32 0x23
#define USER_DS 0x2b
#define USER_CS 0x33
#define ABSENT_DS 0x38
#define CALL_GATE 0x40
#define TSS_SELECTOR 0x50

enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, XM = 19 };

/* A trap, as it was pushed. */
struct trap {
    u64 rax, rcx, rdx, rbx, unused, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

/* The last one that ended a try(), with CR2 and the address that its frame was at. */
extern struct trap trap;
extern u64 trap_cr2, trap_frame;
extern volatile u32 trap_count;
typedef void handler(struct trap *);
extern handler *handlers[256];

extern u8 vectors[];
extern u64 gdt[], idt[], page_root[], page_pointers[], page_directories[];
extern u8 tss[], boot_stack_top[], end[];
extern u32 start_info;
extern u8 user_stack_top[], kernel_stack_top[], ist_stack_top[];

int try(void (*code)(void));
int try_far(const void *code, u64 flags, u64 cs, u64 ss, u64 rsp);
void finish(int failed) __attribute__((noreturn));
int main(void);

void print(const char *text);
void print_hex(u64 value);
void claim(int holds, const char *what, int line, u64 seen, u64 wanted);
void name(const char *part);
void skip(const char *part, const char *why);
int has_argument(const char *word);
/* 0 where it is not there. */
u32 number_argument(const char *key);

/* Gates: type and DPL as in the descriptor's access byte. */
void set_gate(int vector, const void *to, int ist, int access);
void reload_idt(u16 limit);

/* A page of its own for `virt`: the 2 MiB page there is split first. Entry bits 0 to 11 and NX are the caller's. */
u64 *page_entry(u64 virt);
#define NX (1ul << 63)

#define CHECK(claimed) claim(!!(claimed), #claimed, __LINE__, 0, 0)
#define SAME(seen, wanted) do { \
        u64 one_ = (u64)(seen), two_ = (u64)(wanted); \
        claim(one_ == two_, #seen " == " #wanted, __LINE__, one_, two_); \
    } while (0)

/* A function in assembly; `name_at` marks the instruction of interest where the body sets it. */
#define CODE(name, body) \
    asm(".text\n.globl " #name "\n" #name ":\n" body "\nret\n"); \
    extern u8 name[], name##_at[]; \

#define RUN(name) try((void (*)(void))name)
#define USER(name) try_far(name, 0x202, USER_CS, USER_DS, (u64)user_stack_top)

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void outw(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 value; asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u16 inw(u16 port) { u16 value; asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u32 inl(u16 port) { u32 value; asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port)); return value; }
static inline u64 rdmsr(u32 index) { u32 low, high; asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index)); return low | (u64)high << 32; }
static inline void wrmsr(u32 index, u64 value) { asm volatile("wrmsr" : : "a"((u32)value), "d"((u32)(value >> 32)), "c"(index) : "memory"); }
static inline u64 rdtsc(void) { u32 low, high; asm volatile("rdtsc" : "=a"(low), "=d"(high)); return low | (u64)high << 32; }
static inline void cpuid(u32 leaf, u32 subleaf, u32 out[4]) { asm volatile("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf)); }
static inline void invlpg(u64 at) { asm volatile("invlpg (%0)" : : "r"(at) : "memory"); }

#define CONTROL(n) \
    static inline u64 read_cr##n(void) { u64 value; asm volatile("mov %%cr" #n ", %0" : "=r"(value)); return value; } \
    static inline void write_cr##n(u64 value) { asm volatile("mov %0, %%cr" #n : : "r"(value) : "memory"); }
CONTROL(0) CONTROL(2) CONTROL(3) CONTROL(4) CONTROL(8)
#define DEBUG(n) \
    static inline u64 read_dr##n(void) { u64 value; asm volatile("mov %%dr" #n ", %0" : "=r"(value)); return value; } \
    static inline void write_dr##n(u64 value) { asm volatile("mov %0, %%dr" #n : : "r"(value) : "memory"); }
DEBUG(0) DEBUG(1) DEBUG(2) DEBUG(3) DEBUG(6) DEBUG(7)
