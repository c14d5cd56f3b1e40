// Integer, SSE, AVX2, x87 and libm arithmetic, signals, setjmp, qsort: prints sums that depend on arithmetic alone.
#include <immintrin.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { N = 4096 };
static float f[N], g[N];
static double d[N];
static int32_t in[N];

static uint64_t fnv(const void *p, size_t n)
{
    const unsigned char *c = p;
    uint64_t h = 0xcbf29ce484222325;
    while (n--) h = (h ^ *c++) * 0x100000001b3;
    return h;
}

static uint64_t next(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    return *s ^= *s << 17;
}

static void integers(void)
{
    uint64_t s = 88172645463325252, h = 0;
    for (int i = 0; i < 200000; i++) {
        uint64_t a = next(&s), b = next(&s) | 1;
        h += a / b + a % b + (a << (b & 63) | a >> (-b & 63));
        h ^= (uint64_t)((unsigned __int128)a * b >> 64);
        h += __builtin_popcountll(a) + __builtin_clzll(b) + __builtin_ctzll(b) + __builtin_bswap64(a);
        h += (int16_t)a / (int16_t)(b | 1) + (int8_t)(a >> 8) * (int8_t)b;
        if (a > b) h = -h;
    }
    printf("integers %016" PRIx64 "\n", h);
}

static void vectors(void)
{
    uint64_t s = 1;
    for (int i = 0; i < N; i++) {
        in[i] = (int32_t)next(&s);
        f[i] = (float)in[i] / 65536.0f;
        g[i] = (float)(in[i] >> 7) * 0.25f + 1.0f;
        d[i] = f[i] * 3.0 - g[i];
    }
    for (int r = 0; r < 50; r++)
        for (int i = 0; i < N; i++) {
            f[i] = f[i] * 0.999f + g[i] / (1.0f + (float)(i & 7));
            d[i] = sqrt(fabs(d[i])) + (double)f[i];
            in[i] = (in[i] ^ (in[i] << 5)) + (int32_t)d[i] % 1000;
        }
    printf("vectors %016" PRIx64 " %016" PRIx64 " %016" PRIx64 "\n", fnv(f, sizeof f), fnv(d, sizeof d), fnv(in, sizeof in));
}

__attribute__((target("avx2"))) static uint64_t sum_avx2(const int32_t *p)
{
    const __m256i swap = _mm256_broadcastsi128_si256(_mm_set_epi32(0x0c0d0e0f, 0x08090a0b, 0x04050607, 0x00010203));
    __m256i acc = _mm256_setzero_si256();
    for (int i = 0; i < N; i += 8) {
        __m256i v = _mm256_loadu_si256((const __m256i *)(p + i));
        v = _mm256_shuffle_epi8(v, swap);
        acc = _mm256_add_epi64(acc, _mm256_mul_epu32(v, _mm256_srli_epi64(v, 32)));
    }
    uint64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, acc);
    return lane[0] + lane[1] + lane[2] + lane[3];
}

static uint64_t sum_plain(const int32_t *p)
{
    uint64_t sum = 0;
    for (int i = 0; i < N; i += 2)
        sum += (uint64_t)__builtin_bswap32((uint32_t)p[i]) * __builtin_bswap32((uint32_t)p[i + 1]);
    return sum;
}

static void x87(void)
{
    long double x = 1.0L, y = 0.0L;
    for (int i = 1; i < 20000; i++) {
        x += 1.0L / ((long double)i * i);
        y += sinl(x * i) * logl(x + i) + fmodl((long double)i * 1e15L, 97.3L);
    }
    unsigned char bytes[10];
    memcpy(bytes, &y, sizeof bytes);
    printf("x87 %.20Lg %.20Lg %016" PRIx64 "\n", x, y, fnv(bytes, sizeof bytes));
}

static void libm(void)
{
    double s = 0;
    for (int i = 1; i < 20000; i++) s += exp(-i * 1e-3) + pow(i, 0.37) + tan(i * 0.01) + cbrt(i) + lgamma(i * 0.5) + atan(s);
    printf("libm %a %a %.17g\n", s, ldexp(s, -1060), strtod("2.2250738585072011e-308", NULL));
}

static sigjmp_buf env;
static volatile sig_atomic_t address_right;
static unsigned char *page;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)context;
    address_right = signal == SIGFPE || info->si_addr == page + 123;
    siglongjmp(env, signal);
}

static void faults(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile int zero = 0;
    int caught = 0;
    for (int i = 0; i < 100; i++) {
        int signal = sigsetjmp(env, 1);
        if (signal == 0) {
            if (i & 1) page[123] = 1;
            else caught += 7 / zero;
        }
        caught += signal * address_right;
    }
    printf("faults %d\n", caught);
}

static _Atomic uint64_t shared;

static void *adder(void *p)
{
    for (uint64_t i = 0; i < 100000; i++) shared += i ^ (uintptr_t)p;
    return NULL;
}

static void threads(void)
{
    pthread_t t[4];
    shared = 0;
    for (uintptr_t i = 0; i < 4; i++) pthread_create(&t[i], NULL, adder, (void *)i);
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    printf("threads %" PRIu64 "\n", (uint64_t)shared);
}

static int order(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

int main(void)
{
    integers();
    vectors();
    // A processor without AVX2 prints the same: the plain sum is the definition of the vector one.
    printf("avx2 %016" PRIx64 "\n", __builtin_cpu_supports("avx2") ? sum_avx2(in) : sum_plain(in));
    if (__builtin_cpu_supports("avx2") && sum_avx2(in) != sum_plain(in)) return 1;
    x87();
    libm();
    faults();
    threads();
    qsort(in, N, sizeof in[0], order);
    printf("sorted %016" PRIx64 " %s\n", fnv(in, sizeof in), strstr("a needle in a haystack", "needle"));
    return 0;
}
