# Python: big integers, floats, decimals, hashes, compression, threads, processes, signals, exceptions.
import array, collections, decimal, fractions, hashlib, itertools, json, math, os, random, signal, struct, threading, time, zlib

a, b = 0, 1
for _ in range(5000):
    a, b = b, a + b
print("fibonacci", hashlib.sha256(str(a).encode()).hexdigest())
print("power", pow(0xC0FFEE, 1 << 512, (1 << 521) - 1) % (1 << 61))
print("floats", math.fsum(1 / n for n in range(1, 20001)).hex(), math.gamma(7.3).hex(), math.erf(0.7).hex())
print("trig", sum(math.sin(n) * math.cos(n / 3) + math.atan2(n, 7) for n in range(5000)).hex())
print("edges", float("inf") - float("inf"), -0.0, 5e-324 / 2, math.nextafter(1.0, 2.0).hex(), round(2.675, 2))
decimal.getcontext().prec = 60
print("decimal", decimal.Decimal(2).sqrt(), decimal.Decimal(1).exp())
print("fraction", sum(fractions.Fraction(1, n) for n in range(1, 60)))

rng = random.Random(20)
numbers = [rng.getrandbits(64) for _ in range(20000)]
packed = struct.pack("<20000Q", *numbers)
print("random", zlib.crc32(packed), zlib.adler32(packed), hashlib.blake2b(packed).hexdigest()[:32])
text = json.dumps({str(n): [n * 0.1, n % 7 == 0, hex(n)] for n in range(4000)}, sort_keys=True).encode()
squeezed = zlib.compress(text, 9)
assert zlib.decompress(squeezed) == text
print("json", len(text), hashlib.md5(text).hexdigest())
print("sort", hashlib.sha1(array.array("Q", sorted(numbers)).tobytes()).hexdigest())
words = collections.Counter("".join(p) for p in itertools.product("abc", repeat=6) if p[0] != p[5])
print("words", len(words), max(words))

total = collections.Counter()
lock = threading.Lock()
def work(start):
    for n in range(start, 4000, 4):
        with lock:
            total["n"] += n * n
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print("threads", total["n"])

pid = os.fork()
if pid == 0:
    signal.pause()
os.kill(pid, signal.SIGKILL)
print("killed", os.waitpid(pid, 0)[1])
hits = []
signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.01)
while not hits:
    time.sleep(0.001)
print("alarm", len(hits))
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
try:
    depth(10**6)
except RecursionError:
    print("recursion caught")
try:
    print(1 // 0)
except ZeroDivisionError as error:
    print("error", error)
