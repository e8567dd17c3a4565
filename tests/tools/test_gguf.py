"""What must stay true of `attention.tools.gguf`."""

import random
import struct
import tracemalloc

import pytest
import torch
from examples import said
from gguf_bytes import gguf, list_of, mutants, text_of

from attention import read_gguf


def example():
    """A file with each kind of value, and of tensor."""
    draw = random.Random(0)
    metadata = [
        ("general.alignment", 4, struct.pack("<I", 32)),
        ("a.text", 8, text_of("café")),
        ("a.float", 6, struct.pack("<f", 0.5)),
        ("a.bool", 7, b"\1"),
        ("a.long", 11, struct.pack("<q", -5)),
        ("texts", 9, list_of(8, [text_of("x"), text_of("")])),
        ("numbers", 9, list_of(5, [struct.pack("<i", n) for n in (1, -2, 3)])),
        ("lists", 9, list_of(9, [list_of(0, [b"\7"]), list_of(8, [])])),
    ]

    def half():
        return struct.pack("<e", draw.uniform(-1, 1))

    q4_1 = b"".join(half() + half() + draw.randbytes(16) for _ in range(6))
    q8_0 = b"".join(half() + draw.randbytes(32) for _ in range(4))
    tensors = [
        (
            "f32",
            (2, 3),
            0,
            struct.pack("<6f", *(draw.uniform(-1, 1) for _ in "abcdef")),
        ),
        ("f16", (5,), 1, b"".join(half() for _ in range(5))),
        ("q4_1", (3, 64), 3, q4_1),
        ("q8_0", (2, 2, 32), 8, q8_0),
    ]
    return gguf(metadata, tensors)


def plain(kind, data):
    """The numbers in a tensor's bytes, one by one."""
    if kind in (0, 1):
        return [n for (n,) in struct.iter_unpack("<f" if kind == 0 else "<e", data)]
    found, size = [], 20 if kind == 3 else 34
    for start in range(0, len(data), size):
        block = data[start : start + size]
        (step,) = struct.unpack("<e", block[:2])
        if kind == 8:
            found += [step * code for code in struct.unpack("<32b", block[2:])]
            continue
        (least,) = struct.unpack("<e", block[2:4])
        codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
        found += [step * code + least for code in codes]
    return found


def test_each_kind_of_value_and_of_tensor_is_read(tmp_path):
    path = tmp_path / "example.gguf"
    path.write_bytes(example())
    for file in (path, str(path), example()):
        metadata, tensors = read_gguf(file)
        assert metadata == {
            "general.alignment": 32,
            "a.text": "café",
            "a.float": 0.5,
            "a.bool": True,
            "a.long": -5,
            "texts": ["x", ""],
            "numbers": [1, -2, 3],
            "lists": [[7], []],
        }
        shapes = {"f32": (2, 3), "f16": (5,), "q4_1": (3, 64), "q8_0": (2, 2, 32)}
        assert tensors.shapes == shapes
        assert len(tensors) == 4
        assert_plain(example(), tensors)


def assert_plain(data, tensors):
    """All tensors are what a second reader makes of the same bytes."""
    for name in tensors:
        shape, kind, start = tensors._entries[name]
        sizes = {0: (1, 4), 1: (1, 2), 3: (32, 20), 8: (32, 34)}
        numbers, size = sizes[kind]
        count = torch.Size(shape).numel() // numbers * size
        must = plain(kind, data[start : start + count])
        got = tensors[name]
        assert tuple(got.shape) == shape
        must = torch.tensor(must, dtype=torch.float64).float().reshape(shape)
        torch.testing.assert_close(got, must, equal_nan=True, rtol=1e-5, atol=1e-5)


def read_or_told(data):
    """Reads all of a file; True if it is sound, False if it was refused in a line."""
    try:
        _, tensors = read_gguf(data)
    except ValueError as error:
        told = str(error)
    else:
        assert_plain(data, tensors)
        return True
    assert ": expected " in told
    assert len(told) < 400
    assert "\n" not in told
    return False


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 10))]
)
def test_a_file_that_was_changed_gives_a_sentence_or_the_right_tensors(seed):
    read_or_told(example())
    tracemalloc.start()
    try:
        sound = [read_or_told(data) for data in mutants(example(), 200, seed)]
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4e6
    assert 10 < sum(sound) < 190


@pytest.mark.parametrize(("kind", "size"), [(0, 1), (2, 2), (4, 4), (10, 8)])
def test_a_long_list_takes_at_most_thirty_times_its_bytes(kind, size):
    numbers = [bytes([n % 256] * size) for n in range(2**17 // size)]
    data = gguf([("a", 9, list_of(kind, numbers))])
    tracemalloc.start()
    try:
        read_gguf(data)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 30 * len(data)


WRONG = {
    "another kind of file": b"PK\3\4" + b"\0" * 40,
    "an empty file": b"",
    "a version of tomorrow": gguf(version=4),
    "values that are not there": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
    "tensors that are not there": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
    "a long text": gguf([("a", 8, struct.pack("<Q", 2**62))]),
    "a long list": gguf([("a", 9, struct.pack("<IQ", 8, 2**62))]),
    "a long list of numbers": gguf([("a", 9, struct.pack("<IQ", 4, 2**62))]),
    "lists without end": gguf([("a", 9, struct.pack("<IQ", 9, 1) * 2000)]),
    "a kind of value that is none": gguf([("a", 99, b"")]),
    "a name twice": gguf([("a", 0, b"\1"), ("a", 0, b"\1")]),
    "other bytes than text": gguf([("a", 8, struct.pack("<Q", 1) + b"\xff")]),
    "a tensor twice": gguf((), [("a", (8,), 0, b"\0" * 32)] * 2),
    "a long name": gguf((), [("a" * 65, (8,), 0, b"\0" * 32)]),
    "no axis": gguf((), [("a", (), 0, b"\0" * 32)]),
    "five axes": gguf((), [("a", (1, 1, 1, 1, 8), 0, b"\0" * 32)]),
    "an axis of none": gguf((), [("a", (0, 8), 0, b"\0" * 32)]),
    "half a block": gguf((), [("a", (16,), 3, b"\0" * 20)]),
    "a kind of tensor that is not read": gguf((), [("a", (256,), 14, b"\0" * 210)]),
    "a tensor beyond the end": gguf((), [("a", (2**40, 2**20), 0, b"\0" * 32)]),
    "an odd place": gguf([("general.alignment", 4, struct.pack("<I", 33))]),
    "a place that is no number": gguf([("general.alignment", 8, text_of("32"))]),
    "a place of none": gguf([("general.alignment", 4, struct.pack("<I", 0))]),
}


@pytest.mark.parametrize("why", WRONG)
def test_a_file_is_refused_for(why):
    assert not read_or_told(WRONG[why])


def test_a_file_that_was_cut_off_since_is_told(tmp_path):
    path = tmp_path / "example.gguf"
    path.write_bytes(example())
    _, tensors = read_gguf(path)
    path.write_bytes(example()[:-70])
    with pytest.raises(ValueError, match=said("file", "all of", "got", "an end")):
        tensors["q8_0"]
    with pytest.raises(KeyError):
        tensors["none"]
