/* Several CPUs: start by INIT and SIPI, IPIs of each kind in xAPIC and x2APIC mode, time, atomic instructions (SDM vol. 3A, MP Initialization, APIC). */
#include "kernel.h"

#define APIC 0xfee00000ul
#define APIC_BASE 0x1b
#define PAGE_OF_START 0x10
#define MAX_CPUS 64
/* Of all CPUs together. */
#define ADDITIONS 60000u
#define IPIS 900u

enum { WAKE = 0x41, LOWEST = 0x81, FIXED = 0x91, ABOVE = 0xa1 };
enum { ID = 0x20, TPR = 0x80, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0, ICR = 0x300, ICR_HIGH = 0x310 };
enum { TO_LOWEST = 0x100, AS_NMI = 0x400, AS_INIT = 0x500, AS_SIPI = 0x600, LOGICAL = 0x800, ASSERT = 0x4000, LEVEL = 0x8000 };
enum { TO_SELF = 0x40000, TO_ALL = 0x80000, TO_OTHERS = 0xc0000 };
enum { OF_FIXED, OF_LOWEST, OF_NMI, KINDS };

typedef void job(void);

/* By APIC ID. */
static struct cpu {
    volatile u32 online, cs, cr0, woken;
    volatile u32 heard[KINDS];
    job *volatile job;
    volatile u64 tsc, seen;
} cpus[MAX_CPUS];

volatile u32 started;
extern u8 trampoline[], trampoline_end[];
void cpu_main(u32 cs, u32 cr0);

/* STI keeps interrupts off until the next instruction is over (SDM vol. 2B, STI): one that came before HLT would be slept over.
   HLT is left out then, so that the claims about all else hold. */
CODE(sleep, "sti\nsleep_at: hlt")
static volatile u32 too_early;
static void awake(struct trap *at)
{
    if (at->rip != (u64)sleep_at)
        return;
    at->rip++;
    /* NMIs may come there (SDM vol. 3A, Masking Maskable Hardware Interrupts). */
    if (at->vector != NMI)
        asm volatile("lock incl %0" : "+m"(too_early));
}

static void wait_for_interrupt(void)
{
    ((void (*)(void))sleep)();
    asm volatile("cli");
}

/* The others' APIC IDs, ascending. */
static u32 ids[MAX_CPUS], others, me;
/* Where each CPU would be asked, one of so many is: at most eight. */
static u32 step;
static u64 bit(u32 id) { return 1ul << (id % MAX_CPUS); }

static int x2apic(void) { return rdmsr(APIC_BASE) >> 10 & 1; }
static u32 apic_read(u32 at) { return x2apic() ? rdmsr(0x800 + at / 16) : *(volatile u32 *)(APIC + at); }
static void apic_write(u32 at, u32 value)
{
    if (x2apic())
        wrmsr(0x800 + at / 16, value);
    else
        *(volatile u32 *)(APIC + at) = value;
}
static u32 my_id(void) { return x2apic() ? apic_read(ID) : apic_read(ID) >> 24; }
static struct cpu *this_cpu(void) { return &cpus[my_id() % MAX_CPUS]; }

static void ipi(u32 to, u32 command)
{
    if (x2apic()) {
        wrmsr(0x830, (u64)to << 32 | command);
        return;
    }
    apic_write(ICR_HIGH, to << 24);
    apic_write(ICR, command);
    while (apic_read(ICR) & 0x1000)
        asm volatile("pause");
}

static void on_wake(struct trap *at) { awake(at); this_cpu()->woken = 1; apic_write(EOI, 0); }
static void on_fixed(struct trap *at) { awake(at); this_cpu()->heard[OF_FIXED]++; apic_write(EOI, 0); }
static void on_lowest(struct trap *at) { awake(at); this_cpu()->heard[OF_LOWEST]++; apic_write(EOI, 0); }
static void on_nmi(struct trap *at) { awake(at); this_cpu()->heard[OF_NMI]++; }

/* The life of the other CPUs: HLT, interrupts, jobs. */
void cpu_main(u32 cs, u32 cr0)
{
    reload_idt(0xfff);
    apic_write(SVR, 0x1ff);
    struct cpu *cpu = this_cpu();
    cpu->cs = cs;
    cpu->cr0 = cr0;
    cpu->online++;
    for (;;) {
        asm volatile("cli");
        if (cpu->job) {
            cpu->job();
            cpu->job = 0;
        } else
            wait_for_interrupt();
    }
}

/* Waits, taking interrupts, while a 32-bit word is what it should not be. */
static int until(volatile u32 *word, u32 wanted)
{
    u64 begin = rdtsc();
    while (*word != wanted && rdtsc() - begin < 60000000000ul)
        asm volatile("sti; pause; cli");
    return *word == wanted;
}

static void idle(u64 ticks)
{
    for (u64 begin = rdtsc(); rdtsc() - begin < ticks;)
        asm volatile("pause");
}

static void begin_on(u32 id, job *what)
{
    cpus[id].job = what;
    ipi(id, ASSERT | WAKE);
}

static void end_on(u32 id)
{
    u64 begin = rdtsc();
    while (cpus[id].job && rdtsc() - begin < 60000000000ul)
        asm volatile("sti; pause; cli");
    CHECK(!cpus[id].job);
}

static void run_on(u32 id, job *what)
{
    begin_on(id, what);
    end_on(id);
}

static void nothing(void) {}

static u32 before[MAX_CPUS];
static void listen(int kind)
{
    for (int id = 0; id < MAX_CPUS; id++)
        before[id] = cpus[id].heard[kind];
}

/* A bit for each APIC ID whose CPU has heard one since; none may have heard more. What was sent before has arrived where a
   lower vector has. */
static u64 who_heard(int kind)
{
    u64 mask = 0;
    for (u32 i = 0; i < others; i++)
        run_on(ids[i], nothing);
    cpus[me].woken = 0;
    ipi(0, TO_SELF | ASSERT | WAKE);
    while (!cpus[me].woken)
        wait_for_interrupt();
    for (u32 id = 0; id < MAX_CPUS; id++) {
        u32 count = cpus[id].heard[kind] - before[id];
        CHECK(count <= 1);
        mask |= count ? bit(id) : 0;
    }
    return mask;
}

static u64 the_others(void)
{
    u64 mask = 0;
    for (u32 i = 0; i < others; i++)
        mask |= bit(ids[i]);
    return mask;
}

static u64 everybody(void) { return the_others() | bit(me); }

static void start(void)
{
    name("INIT and SIPI");
    for (u8 *from = trampoline, *to = (u8 *)(u64)(PAGE_OF_START << 12); from < trampoline_end;)
        *to++ = *from++;
    apic_write(SVR, 0x1ff);
    me = my_id();
    idle(10000000);
    SAME(started, 0);
    /* INIT starts nobody. */
    ipi(0, TO_OTHERS | ASSERT | LEVEL | AS_INIT);
    ipi(0, TO_OTHERS | LEVEL | AS_INIT);
    idle(10000000);
    SAME(started, 0);
    ipi(0, TO_OTHERS | ASSERT | AS_SIPI | PAGE_OF_START);
    u32 wanted = number_argument("cpus=") - 1;
    CHECK(until(&started, wanted));
    for (u64 begin = rdtsc(); others != wanted && rdtsc() - begin < 60000000000ul;) {
        others = 0;
        for (u32 id = 0; id < MAX_CPUS; id++)
            if (id != me && cpus[id].online)
                ids[others++] = id;
    }
    SAME(others, wanted);
    step = 1 + others / 8;
    for (u32 i = 0; i < others; i++) {
        SAME(cpus[ids[i]].online, 1);
        SAME(cpus[ids[i]].cs, PAGE_OF_START << 8);
        SAME(cpus[ids[i]].cr0 & 0x80000001, 0);
    }
    name("SIPI to those that run");
    ipi(0, TO_OTHERS | ASSERT | AS_SIPI | PAGE_OF_START);
    for (u32 i = 0; i < others; i++)
        run_on(ids[i], nothing);
    SAME(started, wanted);
}

static void ask_identity(void)
{
    u32 leaf[4], level[4];
    cpuid(1, 0, leaf);
    cpuid(0xb, 0, level);
    this_cpu()->seen = leaf[1] >> 24 | (u64)level[3] << 8 | (u64)(rdmsr(APIC_BASE) >> 8 & 1) << 48;
}

static void identity(void)
{
    name("APIC IDs in CPUID, the bootstrap flag");
    ask_identity();
    SAME(cpus[me].seen, me | (u64)me << 8 | 1ul << 48);
    for (u32 i = 0; i < others; i++) {
        run_on(ids[i], ask_identity);
        SAME(cpus[ids[i]].seen, ids[i] | (u64)ids[i] << 8);
    }
}

static void block_nmi(void)
{
    /* With interrupts off, so that nothing but the NMI ends it. */
    struct cpu *cpu = this_cpu();
    u32 heard = cpu->heard[OF_NMI];
    cpu->seen = 1;
    for (u64 begin = rdtsc(); cpu->heard[OF_NMI] == heard && rdtsc() - begin < 60000000000ul;)
        asm volatile("pause");
}

static void raise_priority(void) { write_cr8(9); }
static void lower_priority(void)
{
    struct cpu *cpu = this_cpu();
    cpu->seen = cpu->heard[OF_FIXED];
    write_cr8(0);
}

static void physical(void)
{
    name("fixed, to one");
    for (u32 i = 0; i < others; i += step) {
        listen(OF_FIXED);
        ipi(ids[i], ASSERT | FIXED);
        SAME(who_heard(OF_FIXED), bit(ids[i]));
    }
    listen(OF_FIXED);
    ipi(me, ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), bit(me));
    name("fixed, to an ID that nobody has");
    listen(OF_FIXED);
    ipi(0xee, ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), 0);
    name("fixed, to all by the ID of all");
    listen(OF_FIXED);
    ipi(x2apic() ? 0xffffffff : 0xff, ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), everybody());
    name("fixed, by shorthand");
    listen(OF_FIXED);
    ipi(0, TO_SELF | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), bit(me));
    listen(OF_FIXED);
    ipi(0, TO_ALL | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), everybody());
    listen(OF_FIXED);
    ipi(0, TO_OTHERS | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), the_others());
    if (x2apic()) {
        name("self-IPI register");
        listen(OF_FIXED);
        wrmsr(0x83f, FIXED);
        SAME(who_heard(OF_FIXED), bit(me));
    }
    name("fixed, below the task priority");
    run_on(ids[0], raise_priority);
    listen(OF_FIXED);
    cpus[ids[0]].job = lower_priority;
    ipi(ids[0], ASSERT | FIXED);
    ipi(ids[0], ASSERT | WAKE);
    ipi(ids[0], ASSERT | ABOVE);
    end_on(ids[0]);
    SAME(cpus[ids[0]].seen, before[ids[0]]);
    SAME(who_heard(OF_FIXED), bit(ids[0]));
}

static void nmi(void)
{
    name("NMI, to one that halts");
    for (u32 i = 0; i < others; i += step) {
        listen(OF_NMI);
        ipi(ids[i], ASSERT | AS_NMI);
        SAME(who_heard(OF_NMI), bit(ids[i]));
    }
    name("NMI, to the others");
    listen(OF_NMI);
    ipi(0, TO_OTHERS | ASSERT | AS_NMI);
    SAME(who_heard(OF_NMI), the_others());
    name("NMI, to one with interrupts off");
    cpus[ids[0]].seen = 0;
    listen(OF_NMI);
    begin_on(ids[0], block_nmi);
    for (u64 begin = rdtsc(); !cpus[ids[0]].seen && rdtsc() - begin < 60000000000ul;)
        asm volatile("pause");
    ipi(ids[0], ASSERT | AS_NMI);
    end_on(ids[0]);
    SAME(who_heard(OF_NMI), bit(ids[0]));
}

/* One of those named takes it, each time. */
static void lowest(u32 to, u64 mask)
{
    name("lowest priority");
    for (int i = 0; i < 8; i++) {
        listen(OF_LOWEST);
        ipi(to, LOGICAL | TO_LOWEST | ASSERT | LOWEST);
        u64 heard = who_heard(OF_LOWEST);
        CHECK(heard && !(heard & (heard - 1)) && !(heard & ~mask));
    }
}

static u32 model;
static void set_logical_id(void)
{
    u32 id = my_id();
    apic_write(DFR, model);
    /* Flat: a bit each. Cluster: two CPUs in each. */
    apic_write(LDR, (model == 0xffffffff ? 1u << id : id / 2 << 4 | 1u << id % 2) << 24);
}

static void logical_xapic(void)
{
    u32 pair = 1u << ids[0] | 1u << ids[1];
    if (ids[others - 1] > 7) {
        skip("logical destinations of xAPICs", "there are more than eight CPUs");
        return;
    }
    name("logical, flat");
    model = 0xffffffff;
    set_logical_id();
    for (u32 i = 0; i < others; i++)
        run_on(ids[i], set_logical_id);
    listen(OF_FIXED);
    ipi(pair, LOGICAL | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), pair);
    listen(OF_FIXED);
    ipi(0xff, LOGICAL | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), everybody());
    lowest(pair, pair);
    name("logical, clusters");
    model = 0x0fffffff;
    set_logical_id();
    for (u32 i = 0; i < others; i++)
        run_on(ids[i], set_logical_id);
    listen(OF_FIXED);
    ipi(0x13, LOGICAL | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), 0xc & everybody());
    listen(OF_FIXED);
    ipi(0x02, LOGICAL | ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), 2);
    lowest(0x13, 0xc & everybody());
}

/* The CPUs that an x2APIC's logical destination names: a cluster of sixteen IDs, a bit each. */
static u64 named(u32 destination)
{
    u64 mask = 0;
    for (u32 id = 0; id < MAX_CPUS; id++)
        if (id >> 4 == destination >> 16 && destination >> (id & 15) & 1)
            mask |= bit(id);
    return mask & everybody();
}

static void logical_x2apic(void)
{
    u32 pair = 1u << ids[0] | 1u << ids[1];
    name("logical, x2APIC's clusters");
    SAME(rdmsr(0x80d), 1u << me);
    for (u32 cluster = 0; cluster < 4; cluster++) {
        u32 destinations[] = { cluster << 16 | pair, cluster << 16 | 0xffff, cluster << 16 };
        for (int i = 0; i < 3; i++) {
            listen(OF_FIXED);
            ipi(destinations[i], LOGICAL | ASSERT | FIXED);
            SAME(who_heard(OF_FIXED), named(destinations[i]));
        }
    }
    lowest(pair, named(pair));
}

static void read_tsc(void) { this_cpu()->tsc = rdtsc(); }

static void time(void)
{
    name("TSCs agree");
    for (int turn = 0; turn < 10; turn++)
        for (u32 i = 0; i < others; i += step) {
            u64 first = rdtsc();
            run_on(ids[i], read_tsc);
            u64 last = rdtsc();
            CHECK(first <= cpus[ids[i]].tsc);
            CHECK(cpus[ids[i]].tsc <= last);
        }
}

static volatile u32 go, atomic_sum, taken;
static volatile u64 plain_sum;
static void add(void)
{
    while (!go)
        asm volatile("pause");
    for (u32 i = 0; i < ADDITIONS / (others + 1); i++) {
        asm volatile("lock incl %0" : "+m"(atomic_sum) : : "memory");
        u32 held = 1;
        for (;;) {
            asm volatile("xchgl %0, %1" : "+r"(held), "+m"(taken) : : "memory");
            if (!held)
                break;
            asm volatile("pause");
        }
        plain_sum++;
        asm volatile("movl $0, %0" : "=m"(taken) : : "memory");
    }
}

static void sums(void)
{
    name("atomic instructions");
    go = atomic_sum = taken = plain_sum = 0;
    for (u32 i = 0; i < others; i++)
        begin_on(ids[i], add);
    go = 1;
    add();
    for (u32 i = 0; i < others; i++)
        end_on(ids[i]);
    SAME(atomic_sum, ADDITIONS / (others + 1) * (others + 1));
    SAME(plain_sum, atomic_sum);
}

static void storm(void)
{
    name("many IPIs");
    for (u32 turn = 0; turn < IPIS / others; turn++)
        for (u32 i = 0; i < others; i++) {
            struct cpu *cpu = &cpus[ids[i]];
            u32 wanted = cpu->heard[OF_FIXED] + 1;
            ipi(ids[i], ASSERT | FIXED);
            if (!until(&cpu->heard[OF_FIXED], wanted)) {
                CHECK(cpu->heard[OF_FIXED] == wanted);
                return;
            }
        }
}

static void again(void)
{
    name("INIT and SIPI to one that ran");
    struct cpu *cpu = &cpus[ids[1]];
    u32 mode = x2apic(), count = started, online = cpu->online;
    cpu->cs = 0;
    ipi(ids[1], ASSERT | LEVEL | AS_INIT);
    idle(10000000);
    listen(OF_FIXED);
    /* It waits for SIPI: no interrupt reaches it, its APIC is as after power-on. */
    ipi(ids[1], ASSERT | FIXED);
    idle(10000000);
    SAME(cpu->heard[OF_FIXED], before[ids[1]]);
    SAME(started, count);
    ipi(ids[1], ASSERT | AS_SIPI | PAGE_OF_START);
    CHECK(until(&started, count + 1));
    CHECK(until(&cpu->online, online + 1));
    SAME(cpu->cs, PAGE_OF_START << 8);
    listen(OF_FIXED);
    ipi(ids[1], ASSERT | FIXED);
    SAME(who_heard(OF_FIXED), bit(ids[1]));
    SAME(x2apic(), mode);
}

/* With one that waits already, so that it comes as early as it may. */
static void shadow(void)
{
    name("no interrupt between STI and HLT");
    for (int i = 0; i < 500; i++) {
        cpus[me].woken = 0;
        ipi(0, TO_SELF | ASSERT | WAKE);
        while (!cpus[me].woken)
            wait_for_interrupt();
    }
    if (has_argument("no-sti-shadow")) {
        print("interrupts between STI and HLT: ");
        print_hex(too_early);
        print("\n");
    } else
        SAME(too_early, 0);
}

static void enter_x2apic(void) { wrmsr(APIC_BASE, rdmsr(APIC_BASE) | 0xc00); }

/* A byte of the RTC's RAM, which a reset leaves alone: how often this has been run. */
#define RUNS 0x50
static u8 rtc_read(u8 at) { outb(0x70, at); return inb(0x71); }
static void rtc_write(u8 at, u8 value) { outb(0x70, at); outb(0x71, value); }

static void spin(void)
{
    for (;;)
        asm volatile("pause");
}

static void flood(void)
{
    for (;;) {
        ipi(0, TO_OTHERS | ASSERT | FIXED);
        ipi(0, TO_OTHERS | ASSERT | AS_NMI);
    }
}

/* Starts over as often as the command line says, in the middle of all that CPUs may be at: one has interrupts off, one sends
   as many as it can. */
static void reset(void)
{
    u8 runs = rtc_read(RUNS);
    if (runs >= number_argument("resets=")) {
        rtc_write(RUNS, 0);
        return;
    }
    rtc_write(RUNS, runs + 1);
    name("reset");
    begin_on(ids[0], spin);
    begin_on(ids[1], flood);
    idle(10000000);
    outb(0xcf9, 2);
    outb(0xcf9, 6);
    for (;;)
        asm volatile("cli; hlt");
}

int main(void)
{
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    handlers[WAKE] = on_wake;
    handlers[FIXED] = on_fixed;
    handlers[ABOVE] = on_wake;
    handlers[LOWEST] = on_lowest;
    handlers[NMI] = on_nmi;
    start();
    /* All that follows takes three others. */
    CHECK(others >= 3);
    if (others < 3)
        return 1;
    identity();
    physical();
    nmi();
    logical_xapic();
    again();
    time();
    sums();
    storm();
    u32 out[4];
    cpuid(1, 0, out);
    if (out[2] >> 21 & 1) {
        for (u32 i = 0; i < others; i++)
            run_on(ids[i], enter_x2apic);
        enter_x2apic();
        identity();
        physical();
        nmi();
        logical_x2apic();
        again();
        storm();
    } else
        skip("x2APIC", "CPUID does not show it");
    shadow();
    reset();
    return 0;
}
