"""Vectors for places: by hand, one matrix that shifts them all, and trained ones."""

import math

import pytest
import torch
from examples import TRACERS, said
from torch import nn

from attention import sinusoidal
from attention.position.absolute import LearnedPositions

equal = torch.testing.assert_close

# Sines and cosines


def test_sines_and_cosines_take_turns_as_in_the_paper():
    must = [
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        [0.8415, 0.5403, 0.0464, 0.9989, 0.0022, 1.0],
        [-0.544, -0.8391, 0.4477, 0.8942, 0.0215, 0.9998],
    ]
    given = sinusoidal(11, 6)[[0, 1, 10]]
    equal(given, torch.tensor(must), rtol=0, atol=5e-5)  # printed to four digits


@pytest.mark.parametrize(("length", "d"), [(1, 2), (7, 10), (13, 22)])
@pytest.mark.parametrize("base", [10_000.0, 50.0, 0.5])
def test_every_number_is_that_of_the_formula(length, d, base):
    table = sinusoidal(length, d, base=base)
    assert table.shape == (length, d)
    assert table.dtype == torch.float32
    for place in range(length):
        for i in range(d):
            angle = place / base ** (2 * (i // 2) / d)
            must = math.cos(angle) if i % 2 else math.sin(angle)
            assert table[place, i].item() == pytest.approx(must, abs=1e-7)


def test_far_places_are_as_exact_as_near_ones():
    """Angles in 32 bits would be wrong by some thousandths out there."""
    table, place = sinusoidal(100_001, 4), 100_000
    must = [f(place * w) for w in (1.0, 0.01) for f in (math.sin, math.cos)]
    equal(table[place], torch.tensor(must), rtol=0, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 64])
def test_one_matrix_shifts_every_place(k):
    table = sinusoidal(128 + k, 10, base=50.0)  # so that all pairs go round
    matrix = torch.linalg.lstsq(table[:-k].double(), table[k:].double()).solution
    equal(table[:-k].double() @ matrix, table[k:].double(), rtol=0, atol=1e-6)
    equal(matrix @ matrix.T, torch.eye(10).double(), rtol=0, atol=1e-5)


def test_products_depend_on_the_distance_and_all_lengths_are_alike():
    products = sinusoidal(50, 22) @ sinusoidal(50, 22).T
    for far in range(50):
        line = products.diagonal(far)
        equal(line, line[:1].expand_as(line), rtol=0, atol=1e-5)
    equal(products.diagonal(), torch.full((50,), 11.0))


def test_the_table_is_made_on_the_device_that_is_asked_for():
    assert sinusoidal(3, 4, device="meta").device.type == "meta"
    must = sinusoidal(3, 4)
    with torch.device("meta"):
        assert torch.equal(sinusoidal(3, 4, device="cpu"), must)
        assert sinusoidal(3, 4).device.type == "meta"


# Trained vectors


def test_it_begins_with_the_numbers_of_an_embedding():
    torch.manual_seed(123)
    ours = LearnedPositions(4, 6)
    torch.manual_seed(123)
    assert torch.equal(ours(torch.zeros(2, 4, 6))[1], nn.Embedding(4, 6).weight)


def test_each_token_gets_the_vector_of_its_position():
    places, x = LearnedPositions(11, 6), torch.randn(2, 5, 6)
    positions = torch.tensor([[3, 0, 10, 1, 1], [0, 1, 2, 3, 4]])
    equal(places(x, positions), x + places.table.weight[positions])
    equal(places(x, positions[0]), x + places.table.weight[positions[0]])
    equal(places(x), x + places.table.weight[:5])


def test_padding_on_the_left_moves_no_sentence():
    places, x = LearnedPositions(5, 6), torch.randn(2, 5, 6)
    real = torch.arange(5) >= torch.tensor([[2], [0]])
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    padded = places(x, positions)
    assert torch.equal(padded[0, 2:], places(x[0, 2:]))
    assert torch.equal(padded[1], places(x[1]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_whole_numbers_of_every_kind_are_positions(dtype):
    places, x = LearnedPositions(11, 6), torch.randn(3, 6)
    positions = torch.tensor([1, 10, 0])
    assert torch.equal(places(x, positions.to(dtype)), places(x, positions))


def test_only_rows_that_are_used_are_trained():
    places = LearnedPositions(11, 6)
    places(torch.randn(2, 5, 6)).sum().backward()
    assert places.table.weight.grad.any(dim=1).tolist() == [True] * 5 + [False] * 6


@pytest.mark.parametrize("tracer", TRACERS)
def test_it_is_compiled_and_exported(as_importer, tracer):
    places, x = LearnedPositions(11, 6).requires_grad_(False), torch.randn(2, 5, 6)
    equal(TRACERS[tracer](places, x)(x), places(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p, x: p(x), said("x", "context_length=4", "got length 5")),
        (
            lambda p, x: p(x, torch.arange(5)),
            said("positions", "less than context_length=4", "got 4"),
        ),
        (lambda p, x: p(x, -torch.ones(5).long()), said("positions", "0", "got -1")),
        (lambda p, x: p(x, torch.arange(5.0)), said("positions", "whole", "float32")),
        (lambda p, x: p(x, torch.arange(3)), said("positions", "(5,)", "got (3,)")),
        (lambda p, x: p(x[..., :5]), said("x", "d=6", "got", "(2, 5, 5)")),
        (lambda p, x: p(x.long()), said("x", "floats", "got torch.int64")),
    ],
)
def test_what_has_no_row_is_refused(as_importer, call, words):
    with pytest.raises(ValueError, match=words):
        call(LearnedPositions(4, 6), torch.randn(2, 5, 6))


def test_positions_within_the_table_may_stand_in_a_longer_text():
    places, x = LearnedPositions(4, 6), torch.randn(2, 5, 6)
    assert places(x, torch.tensor([0, 0, 1, 2, 3])).shape == x.shape


def test_a_list_is_no_sequence_of_tokens(as_importer):
    with pytest.raises(TypeError, match=said("x", "Tensor", "list")):
        LearnedPositions(4, 2)([[1.0, 2.0]])
