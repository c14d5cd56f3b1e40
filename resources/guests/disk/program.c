// A program of much code whose every function depends on VERSION: two versions differ everywhere and in nothing but constants, so
// that code of one run in place of the other's gives another sum.
#include <stdio.h>

#define F(n) static unsigned __attribute__((noinline)) f##n(unsigned x) { return (x ^ (n * VERSION)) * 3 + (x >> 5) + VERSION; }
#define F10(n) F(n##0) F(n##1) F(n##2) F(n##3) F(n##4) F(n##5) F(n##6) F(n##7) F(n##8) F(n##9)
#define F100(n) F10(n##0) F10(n##1) F10(n##2) F10(n##3) F10(n##4) F10(n##5) F10(n##6) F10(n##7) F10(n##8) F10(n##9)
#define F1000(n) F100(n##0) F100(n##1) F100(n##2) F100(n##3) F100(n##4) F100(n##5) F100(n##6) F100(n##7) F100(n##8) F100(n##9)
F1000(1)

#define C(n) sum = f##n(sum);
#define C10(n) C(n##0) C(n##1) C(n##2) C(n##3) C(n##4) C(n##5) C(n##6) C(n##7) C(n##8) C(n##9)
#define C100(n) C10(n##0) C10(n##1) C10(n##2) C10(n##3) C10(n##4) C10(n##5) C10(n##6) C10(n##7) C10(n##8) C10(n##9)
#define C1000(n) C100(n##0) C100(n##1) C100(n##2) C100(n##3) C100(n##4) C100(n##5) C100(n##6) C100(n##7) C100(n##8) C100(n##9)

int main(void) {
    unsigned sum = VERSION;
    for (int round = 0; round < 3; round++) { C1000(1) }
    printf("version %d: %08x\n", VERSION, sum);
    return 0;
}
