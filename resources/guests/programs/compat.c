// A 32-bit program without a C library: compatibility mode, `int $0x80`, x87 and SSE arithmetic there.
typedef unsigned int u32;
typedef unsigned long long u64;

static int syscall3(int number, int a, int b, int c)
{
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

static void print(const char *name, u32 value)
{
    char line[64];
    int n = 0;
    while (*name) line[n++] = *name++;
    line[n++] = ' ';
    for (int shift = 28; shift >= 0; shift -= 4) line[n++] = "0123456789abcdef"[value >> shift & 15];
    line[n++] = '\n';
    syscall3(4, 1, (int)line, n);
}

static u32 recurse(u32 n) { return n < 2 ? n : recurse(n - 1) + recurse(n - 2); }

// The stack is 16-byte aligned at the entry, which a plain C function must not assume of its caller: realign.
__attribute__((force_align_arg_pointer, noreturn)) void _start(void)
{
    u32 x = 2463534242u, h = 0;
    double sum = 0;
    for (u32 i = 1; i < 100000; i++) {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        h = h * 31 + x / i + x % i;
        sum += (double)(int)x / i;
    }
    u64 bits;
    __builtin_memcpy(&bits, &sum, sizeof bits);
    print("compat integers", h);
    print("compat x87", (u32)(bits >> 32) ^ (u32)bits);
    print("compat calls", recurse(22));
    u32 sp;
    __asm__("pushl %%ds; popl %0" : "=r"(sp));
    print("compat ds", sp);
    syscall3(1, 0, 0, 0);
    __builtin_unreachable();
}
