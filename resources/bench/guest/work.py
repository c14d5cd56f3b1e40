# Pure Python: loops with integers, dictionaries, strings, objects and generators. Modules of the minimal package only.
import sys


class Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key):
        self.key, self.left, self.right = key, None, None

    def insert(self, key):
        node = self
        while True:
            side = "left" if key < node.key else "right"
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(key))
                return
            node = child

    def walk(self):
        if self.left:
            yield from self.left.walk()
        yield self.key
        if self.right:
            yield from self.right.walk()


def numbers(count):
    seed = 42
    for _ in range(count):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        yield seed >> 8


def collatz(limit):
    best = 0
    for start in range(1, limit):
        steps, n = 0, start
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            steps += 1
        best = max(best, steps)
    return best


def words(count):
    seen = {}
    for n in numbers(count):
        word = "-".join((str(n % 97), hex(n % 31), chr(97 + n % 26) * (n % 5)))
        seen[word] = seen.get(word, 0) + 1
    return sorted(seen.items(), key=lambda item: (-item[1], item[0]))[:3], len(" ".join(seen).upper().split("X"))


amount = int(sys.argv[1])
print("collatz", collatz(amount))
print("words", *words(amount * 8))
tree = Node(1 << 22)
for number in numbers(amount):
    tree.insert(number)
print("tree", sum(i * key for i, key in enumerate(tree.walk())) % 1000003)
print("big", pow(3, amount * 2) % 1000000007, len(str(7 ** (amount // 2))))
