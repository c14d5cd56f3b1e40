// Integer loops in C, and the file that the gcc workload compiles: it includes no header, so that what is compiled does not
// depend on the libc's. Each prints a number that depends on all of its work.
//
//     loops quicksort|hash|lz|interpreter AMOUNT

typedef unsigned char byte;
typedef unsigned int word;
typedef unsigned long long wide;

extern int printf(const char *, ...);
extern int strcmp(const char *, const char *);
extern int atoi(const char *);
extern void *calloc(unsigned long, unsigned long);

static word seed = 12345;

static word random_word(void) {
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

// ---- quicksort with an insertion sort for short ranges

static void insertion_sort(int *values, int count) {
    for (int i = 1; i < count; i++) {
        int value = values[i], j = i;
        for (; j > 0 && values[j - 1] > value; j--)
            values[j] = values[j - 1];
        values[j] = value;
    }
}

static void swap(int *a, int *b) {
    int kept = *a;
    *a = *b;
    *b = kept;
}

static void quicksort(int *values, int count) {
    while (count > 12) {
        int middle = count / 2, last = count - 1;
        if (values[middle] < values[0])
            swap(&values[middle], &values[0]);
        if (values[last] < values[0])
            swap(&values[last], &values[0]);
        if (values[last] < values[middle])
            swap(&values[last], &values[middle]);
        int pivot = values[middle], i = -1, j = count;
        for (;;) {
            do
                i++;
            while (values[i] < pivot);
            do
                j--;
            while (values[j] > pivot);
            if (i >= j)
                break;
            swap(&values[i], &values[j]);
        }
        quicksort(values, j + 1);
        values += j + 1;
        count -= j + 1;
    }
    insertion_sort(values, count);
}

static wide run_quicksort(int amount) {
    int *values = calloc(amount, sizeof *values);
    wide sum = 0;
    for (int i = 0; i < amount; i++)
        values[i] = (int)random_word();
    quicksort(values, amount);
    for (int i = 0; i < amount; i++) {
        if (i && values[i - 1] > values[i])
            return 0;
        sum = sum * 31 + (word)values[i];
    }
    return sum;
}

// ---- a hash table of short words, chained, that grows

struct entry {
    struct entry *next;
    word hash, uses;
    byte length, text[11];
};

struct table {
    struct entry **buckets;
    word mask, count;
};

static word hash_of(const byte *text, int length) {
    word hash = 2166136261u;
    for (int i = 0; i < length; i++)
        hash = (hash ^ text[i]) * 16777619u;
    return hash ^ hash >> 15;
}

static int same(const byte *a, const byte *b, int length) {
    for (int i = 0; i < length; i++)
        if (a[i] != b[i])
            return 0;
    return 1;
}

static void grow(struct table *table) {
    word mask = table->mask * 2 + 1;
    struct entry **buckets = calloc(mask + 1ul, sizeof *buckets);
    for (word i = 0; i <= table->mask; i++)
        for (struct entry *entry = table->buckets[i], *next; entry; entry = next) {
            next = entry->next;
            entry->next = buckets[entry->hash & mask];
            buckets[entry->hash & mask] = entry;
        }
    table->buckets = buckets;
    table->mask = mask;
}

static struct entry *intern(struct table *table, const byte *text, int length) {
    word hash = hash_of(text, length);
    struct entry *entry = table->buckets[hash & table->mask];
    for (; entry; entry = entry->next)
        if (entry->hash == hash && entry->length == length && same(entry->text, text, length))
            return entry;
    if (table->count++ > table->mask)
        grow(table);
    entry = calloc(1, sizeof *entry);
    entry->hash = hash;
    entry->length = (byte)length;
    for (int i = 0; i < length; i++)
        entry->text[i] = text[i];
    entry->next = table->buckets[hash & table->mask];
    table->buckets[hash & table->mask] = entry;
    return entry;
}

static wide run_hash(int amount) {
    struct table table = {calloc(64, sizeof *table.buckets), 63, 0};
    wide sum = 0;
    for (int i = 0; i < amount; i++) {
        byte text[10];
        // A few words are frequent and many are rare, as in texts.
        word number = random_word() % (random_word() % 60000 + 1);
        int length = 0;
        for (; number && length < 10; number /= 7)
            text[length++] = (byte)('a' + number % 7);
        sum += ++intern(&table, text, length)->uses * (wide)(i & 15);
    }
    return sum * 31 + table.count;
}

// ---- an LZ77 compressor with a hash of three bytes, and its decompressor

enum { LZ_HASH = 1 << 14, LZ_WINDOW = 1 << 15, LZ_LONGEST = 129 };

static int lz_compress(const byte *in, int size, byte *out) {
    static int heads[LZ_HASH];
    int written = 0, at = 0;
    for (int i = 0; i < LZ_HASH; i++)
        heads[i] = -1;
    while (at < size) {
        int length = 0, from = -1;
        if (at + 3 <= size) {
            word key = in[at] | in[at + 1] << 8 | in[at + 2] << 16;
            int *head = &heads[key * 2654435761u >> 18];
            from = *head;
            *head = at;
            if (from >= 0 && at - from < LZ_WINDOW)
                while (length < LZ_LONGEST && at + length < size && in[from + length] == in[at + length])
                    length++;
        }
        if (length >= 4) {
            out[written++] = (byte)(128 + length - 3);
            out[written++] = (byte)(at - from);
            out[written++] = (byte)((at - from) >> 8);
            at += length;
        } else {
            out[written++] = in[at++] & 127;
        }
    }
    return written;
}

static int lz_expand(const byte *in, int size, byte *out) {
    int written = 0;
    for (int at = 0; at < size;) {
        if (in[at] < 128) {
            out[written++] = in[at++];
            continue;
        }
        int length = in[at] - 128 + 3, back = in[at + 1] | in[at + 2] << 8;
        for (; length > 0; length--, written++)
            out[written] = out[written - back];
        at += 3;
    }
    return written;
}

static wide run_lz(int amount) {
    enum { SIZE = 1 << 18 };
    byte *text = calloc(1, SIZE), *packed = calloc(2, SIZE), *again = calloc(1, SIZE + 256);
    static const char *const words[] = {"the ", "guest ", "writes ", "a page ", "of ", "memory, ", "and ", "reads\n"};
    wide sum = 0;
    for (int round = 0; round < amount; round++) {
        for (int i = 0; i < SIZE;)
            for (const char *word = words[random_word() >> 29]; *word && i < SIZE; word++)
                text[i++] = (byte)*word;
        int size = lz_compress(text, SIZE, packed);
        if (lz_expand(packed, size, again) != SIZE || !same(text, again, SIZE))
            return 0;
        sum = sum * 31 + size;
    }
    return sum;
}

// ---- an interpreter of byte codes, on a stack; its program counts the primes below a limit with a sieve

enum op { PUSH, LOAD, STORE, ADD, LESS, JUMP, JUMP_IF_NOT, GET, SET, END };

static long interpret(const int *program, long *locals, byte *heap) {
    const int *code = program;
    long stack[32], *top = stack;
    for (;;)
        switch ((enum op)*code++) {
        case PUSH: *top++ = *code++; break;
        case LOAD: *top++ = locals[*code++]; break;
        case STORE: locals[*code++] = *--top; break;
        case ADD: top--; top[-1] += top[0]; break;
        case LESS: top--; top[-1] = top[-1] < top[0]; break;
        case JUMP: code = program + *code; break;
        case JUMP_IF_NOT: code = *--top ? code + 1 : program + *code; break;
        case GET: top[-1] = heap[top[-1]]; break;
        case SET: top -= 2; heap[top[0]] = (byte)top[1]; break;
        case END: return locals[0];
        }
}

static wide run_interpreter(int amount) {
    enum { PRIMES, CANDIDATE, MULTIPLE, LIMIT };
    static const int program[] = {
        /*  0 */ PUSH, 0, STORE, PRIMES, PUSH, 2, STORE, CANDIDATE,
        /*  8 */ LOAD, CANDIDATE, LOAD, LIMIT, LESS, JUMP_IF_NOT, 67,
        /* 15 */ LOAD, CANDIDATE, GET, PUSH, 1, LESS, JUMP_IF_NOT, 58,
        /* 23 */ LOAD, PRIMES, PUSH, 1, ADD, STORE, PRIMES,
        /* 30 */ LOAD, CANDIDATE, LOAD, CANDIDATE, ADD, STORE, MULTIPLE,
        /* 37 */ LOAD, MULTIPLE, LOAD, LIMIT, LESS, JUMP_IF_NOT, 58,
        /* 44 */ LOAD, MULTIPLE, PUSH, 1, SET, LOAD, MULTIPLE, LOAD, CANDIDATE, ADD, STORE, MULTIPLE,
        /* 56 */ JUMP, 37,
        /* 58 */ LOAD, CANDIDATE, PUSH, 1, ADD, STORE, CANDIDATE,
        /* 65 */ JUMP, 8,
        /* 67 */ END,
    };
    long locals[] = {0, 0, 0, amount};
    return (wide)interpret(program, locals, calloc(1, amount + 1ul));
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        wide (*run)(int);
    } loops[] = {{"quicksort", run_quicksort}, {"hash", run_hash}, {"lz", run_lz}, {"interpreter", run_interpreter}};
    for (int i = 0; argc == 3 && i < (int)(sizeof loops / sizeof *loops); i++)
        if (!strcmp(argv[1], loops[i].name)) {
            wide sum = loops[i].run(atoi(argv[2]));
            printf("%s %llu\n", argv[1], sum);
            return sum == 0;
        }
    return 2;
}
