"""GGUF files that tests write, value by value."""

import random
import struct


def gguf(metadata=(), tensors=(), *, version=3, alignment=32):
    """The bytes of a file: values are (name, kind, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, kind, value in metadata:
        head += text_of(name) + struct.pack("<I", kind) + value
    data = b""
    for name, shape, kind, stored in tensors:
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += text_of(name) + axes + struct.pack("<IQ", kind, len(data))
        data += stored + b"\0" * (-len(stored) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def text_of(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def list_of(kind, values):
    return struct.pack("<IQ", kind, len(values)) + b"".join(values)


def mutants(data, count, seed):
    """Copies of a file with a few bytes changed, cut out or put in, or cut off."""
    draw = random.Random(seed)
    large = [2**64 - 1, 2**63, 2**40, 2**32 - 1, 2**31, 10**6, 0]
    for _ in range(count):
        new = bytearray(data)
        for _ in range(draw.choice((1, 1, 1, 2, 5))):
            at, what = draw.randrange(len(new) or 1), draw.randrange(6)
            if what == 0:
                new[at : at + 1] = draw.randbytes(1)
            elif what == 1:
                new[at : at + 8] = struct.pack("<Q", draw.choice(large))
            elif what == 2:
                new[at : at + 4] = struct.pack("<I", draw.randrange(16))
            elif what == 3:
                del new[at:]
            elif what == 4:
                del new[at : at + draw.randrange(1, 20)]
            else:
                new[at:at] = draw.randbytes(draw.randrange(1, 20))
        yield bytes(new)
