// Floating point: scalar doubles (SSE2), AVX2 with FMA on vectors, and the x87. Contraction is off except where FMA is what
// is asked for, so that the sums are the same on every engine.
//
//     floats nbody|mandelbrot|matrix|spectral|x87 AMOUNT

#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- bodies that attract each other: dependent chains with square roots and divisions

enum { BODIES = 5 };
struct body {
    double place[3], speed[3], mass;
};

static double run_nbody(int amount) {
    struct body bodies[BODIES];
    double sum = 0;
    for (int i = 0; i < BODIES; i++)
        bodies[i] = (struct body){{i * 3.1, i * 1.7 - 2, 0.3 * i}, {0.1 * i, 0.2, -0.1 * i}, 1.0 / (i + 1)};
    for (int step = 0; step < amount; step++) {
        for (int i = 0; i < BODIES; i++)
            for (int j = i + 1; j < BODIES; j++) {
                struct body *a = &bodies[i], *b = &bodies[j];
                double x = a->place[0] - b->place[0], y = a->place[1] - b->place[1], z = a->place[2] - b->place[2];
                double square = x * x + y * y + z * z + 0.01, pull = 0.001 / (square * sqrt(square));
                a->speed[0] -= x * b->mass * pull, a->speed[1] -= y * b->mass * pull, a->speed[2] -= z * b->mass * pull;
                b->speed[0] += x * a->mass * pull, b->speed[1] += y * a->mass * pull, b->speed[2] += z * a->mass * pull;
            }
        for (int i = 0; i < BODIES; i++)
            for (int axis = 0; axis < 3; axis++)
                bodies[i].place[axis] += 0.001 * bodies[i].speed[axis];
    }
    for (int i = 0; i < BODIES; i++)
        sum += bodies[i].place[0] + bodies[i].place[1] + bodies[i].place[2];
    return sum;
}

// ---- iterations until a point escapes: short loops with a compare of doubles

static double run_mandelbrot(int amount) {
    long total = 0;
    for (int row = 0; row < amount; row++)
        for (int column = 0; column < amount; column++) {
            double real = 2.5 * column / amount - 2, imaginary = 2.0 * row / amount - 1, x = 0, y = 0;
            int count = 0;
            for (; count < 100 && x * x + y * y < 4; count++) {
                double next = x * x - y * y + real;
                y = 2 * x * y + imaginary;
                x = next;
            }
            total += count;
        }
    return (double)total;
}

// ---- a product of matrices of floats, eight at a time with fused multiply-add

__attribute__((target("avx2,fma"))) static double run_matrix(int amount) {
    enum { SIZE = 256 };
    static float a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE] __attribute__((aligned(32)));
    double sum = 0;
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++)
            a[i][j] = (float)((i * 7 + j * 3) % 17) / 16, b[i][j] = (float)((i * 5 + j * 11) % 13) / 16;
    for (int round = 0; round < amount; round++)
        for (int i = 0; i < SIZE; i += 4)
            for (int j = 0; j < SIZE; j += 8) {
                __m256 row[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
                for (int k = 0; k < SIZE; k++) {
                    __m256 line = _mm256_loadu_ps(&b[k][j]);
                    for (int r = 0; r < 4; r++)
                        row[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[i + r][k]), line, row[r]);
                }
                for (int r = 0; r < 4; r++)
                    _mm256_storeu_ps(&c[i + r][j], row[r]);
            }
    for (int i = 0; i < SIZE; i++)
        for (int j = 0; j < SIZE; j++)
            sum += c[i][j] * ((i + j) % 3);
    return sum;
}

// ---- a norm by repeated products with a computed matrix: what compilers make vectors of, two doubles at a time

static double cell(int i, int j) { return 1.0 / ((i + j) * (i + j + 1) / 2 + i + 1); }

__attribute__((optimize("O3"))) static double run_spectral(int amount) {
    double *u = malloc(sizeof *u * amount), *v = malloc(sizeof *v * amount), uv = 0, vv = 0;
    for (int i = 0; i < amount; i++)
        u[i] = 1;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < amount; i++) {
            v[i] = 0;
            for (int j = 0; j < amount; j++)
                v[i] += cell(i, j) * u[j];
        }
        for (int i = 0; i < amount; i++) {
            u[i] = 0;
            for (int j = 0; j < amount; j++)
                u[i] += cell(j, i) * v[j];
        }
    }
    for (int i = 0; i < amount; i++)
        uv += u[i] * v[i], vv += v[i] * v[i];
    return sqrt(uv / vv);
}

// ---- long doubles: a continued fraction and a polynomial on the x87's stack

static double run_x87(int amount) {
    long double sum = 0, x = 0.5L;
    for (int i = 1; i <= amount; i++) {
        long double term = x / (i + 1) + 1.0L / (2 * i + 1);
        x = ((0.25L * x + 0.5L) * x - 0.125L) * x + term;
        sum += sqrtl(x * x + 1);
    }
    return (double)(sum + x);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        double (*run)(int);
    } floats[] = {
        {"nbody", run_nbody}, {"mandelbrot", run_mandelbrot}, {"matrix", run_matrix}, {"spectral", run_spectral}, {"x87", run_x87},
    };
    for (size_t i = 0; argc == 3 && i < sizeof floats / sizeof *floats; i++)
        if (!strcmp(argv[1], floats[i].name)) {
            printf("%s %a\n", argv[1], floats[i].run(atoi(argv[2])));
            return 0;
        }
    return 2;
}
