# Writes a private key as DER, always the same one: test keys are computed, so that none lies in the repository.
import random, sys

def der(tag, body):
    size = len(body)
    head = bytes([size]) if size < 128 else bytes([0x80 | (size.bit_length() + 7) // 8]) + size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag]) + head + body

def integer(n):
    return der(0x02, n.to_bytes(n.bit_length() // 8 + 1, "big"))

def probable_prime(n, rng):
    if any(n % p == 0 for p in (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)):
        return False
    d, s = n - 1, 0
    while d % 2 == 0:
        d, s = d // 2, s + 1
    for _ in range(24):
        x = pow(rng.randrange(2, n - 1), d, n)
        if x in (1, n - 1):
            continue
        for _ in range(s - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True

def prime(bits, e, rng):
    while True:
        n = rng.getrandbits(bits) | 3 << (bits - 2) | 1
        if (n - 1) % e and probable_prime(n, rng):
            return n

rng = random.Random(2)
if sys.argv[1] == "rsa":
    e = 65537
    p, q = prime(1024, e, rng), prime(1024, e, rng)
    d = pow(e, -1, (p - 1) * (q - 1))
    # RFC 8017, A.1.2: RSAPrivateKey.
    numbers = (0, p * q, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
    key = der(0x30, b"".join(map(integer, numbers)))
else:
    # RFC 8410, 7: OneAsymmetricKey with the algorithm 1.3.101.112.
    seed = der(0x04, der(0x04, rng.randbytes(32)))
    key = der(0x30, integer(0) + der(0x30, der(0x06, b"\x2b\x65\x70")) + seed)
sys.stdout.buffer.write(key)
