# Writes cold.inc: COUNT functions of a few statements each, chosen by a generator of random numbers, no two alike.

function random(below) {
    seed = (seed * 1103515245 + 12345) % 2147483648
    return int(seed / 65536) % below
}

function statement(i, depth, kind) {
    kind = random(depth > 1 ? 6 : 9)
    if (kind == 0) return "a += b * " random(1000) + 3 ";"
    if (kind == 1) return "b ^= a >> " random(30) + 1 ";"
    if (kind == 2) return "a = (a << " (random(20) + 1) ") - b;"
    if (kind == 3) return "b += (uint8_t)a * " random(50) + 1 "u;"
    if (kind == 4) return "a ^= (uint32_t)b + " random(30000) ";"
    if (kind == 5) return "b = a % " random(500) + 3 " + b / 2;"
    if (kind == 6) return "if (a & " 2 ^ random(20) ") { " statement(i, depth + 1) " } else { " statement(i, depth + 1) " }"
    if (kind == 7) return "for (int i = 0; i < " random(3) + 1 "; i++) { " statement(i, depth + 1) " }"
    return i > 1 ? "a += f" i - 1 - random(i > 40 ? 40 : i - 1) "_leaf(b, a);" : "a++;"
}

BEGIN {
    seed = 1
    print "// Made by cold.awk."
    for (i = 1; i <= COUNT; i++) {
        printf "COLD f%d_leaf(uint64_t a, uint64_t b) { %s %s return a ^ b; }\n", i, statement(0, 2), statement(0, 2)
        printf "COLD f%d(uint64_t a, uint64_t b) {\n", i
        for (j = 0; j < 5; j++)
            print "    " statement(i, 0)
        print "    return a + b;\n}"
    }
    printf "#define COLD_FUNCTIONS"
    for (i = 1; i <= COUNT; i++)
        printf " {f%d},%s", i, i < COUNT ? " \\\n" : "\n"
}
