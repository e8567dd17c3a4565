"""What attention costs: the count, and the ledger that checks it."""

import gc

import numpy as np
import pytest
import torch
from examples import said
from torch.utils.flop_counter import FlopCounterMode

from attention import attend, attention_weights
from attention.speed.cost import Ledger, attention_cost


def ledger_of(run):
    with Ledger() as ledger:
        run()
    return ledger


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_step_moves_what_the_ledger_sees(dtype):
    queries, keys, values = torch.randn(3, 13, 7, dtype=dtype)
    scores, hidden = torch.randn(13, 13, dtype=dtype), torch.rand(13, 13) < 0.5
    steps = {
        "scores": lambda: queries @ keys.T,
        "scale": lambda: scores * 0.5,
        "mask": lambda: scores.masked_fill(hidden, -torch.inf),
        "softmax": lambda: torch.softmax(scores, dim=-1),
        "average": lambda: scores @ values,
    }
    cost = attention_cost(13, 7, dtype.itemsize)
    assert list(cost) == list(steps)
    for name, run in steps.items():
        assert ledger_of(run).moved.total() == cost[name][1], name


def test_the_matrix_products_take_what_pytorch_counts():
    queries, keys, values = torch.randn(3, 13, 7)
    with FlopCounterMode(display=False) as counter:
        attention_weights(queries, keys) @ values
    cost = attention_cost(13, 7)
    assert counter.get_total_flops() == cost["scores"][0] + cost["average"][0]


def test_the_steps_between_the_products_are_counted_by_the_cell():
    operations = {name: counts[0] for name, counts in attention_cost(13, 7).items()}
    cells = {name: operations[name] / 13**2 for name in ("scale", "mask", "softmax")}
    assert cells == {"scale": 1, "mask": 0, "softmax": 5}


def test_what_the_block_computes_is_what_it_computes_without():
    with Ledger():
        made = torch.full((13,), 7, dtype=torch.float64).sum(dtype=torch.float32)
    assert (made.item(), made.dtype) == (91, torch.float32)


def test_numbers_take_four_bytes_unless_told_otherwise():
    assert attention_cost(13, 7) == attention_cost(13, 7, itemsize=4)


def test_twice_the_length_is_four_times_the_operations():
    once, twice = attention_cost(11, 5), attention_cost(22, 5)
    for name, (operations, _) in once.items():
        assert twice[name][0] == 4 * operations


@pytest.mark.parametrize(
    ("sizes", "name", "got"),
    [
        ((0, 7), "length", 0),
        ((13, 0), "head_dim", 0),
        ((13, 7, 0), "itemsize", 0),
        ((13, 7.0), "head_dim", 7.0),
    ],
)
def test_a_size_below_one_is_refused(as_importer, sizes, name, got):
    with pytest.raises(ValueError, match=said(name, "whole number", "got", got)):
        attention_cost(*sizes)


def test_a_view_moves_and_holds_nothing():
    x = torch.randn(3, 5)
    ledger = ledger_of(lambda: x.T[1:].unsqueeze(0).expand(7, 4, 3))
    assert ledger.moved.total() == 0
    assert ledger.peak == 0


def test_an_operation_in_place_moves_but_holds_nothing():
    x = torch.randn(3, 5)
    ledger = ledger_of(lambda: x.mul_(2))
    assert ledger.moved == {"mul_": 2 * x.nbytes}
    assert ledger.peak == 0


def test_what_is_let_go_of_is_no_longer_held():
    x = torch.randn(3, 5)

    def three_in_turn():
        y = x + 1
        y = y + 1
        return y + 1

    ledger = ledger_of(three_in_turn)
    gc.collect()
    assert ledger.peak == 2 * x.nbytes
    assert ledger.held == 0


def test_what_is_kept_is_held():
    x = torch.randn(3, 5)
    with Ledger() as ledger:
        kept = [x + 1, x + 2, x + 3]
        views = [y.T for y in kept]
    assert ledger.held == ledger.peak == 3 * x.nbytes
    del kept
    assert ledger.held == 3 * x.nbytes, "a view keeps its tensor"
    del views
    assert ledger.held == 0


def test_the_ledger_changes_no_number():
    queries, keys, values = torch.randn(3, 2, 3, 13, 7)
    expected = attend(queries, keys, values, causal=True)
    with Ledger():
        context = attend(queries, keys, values, causal=True)
    assert torch.equal(context, expected)


def test_the_way_back_is_in_the_ledger():
    x = torch.randn(3, 5, requires_grad=True)
    y = x.exp().sum()
    assert ledger_of(y.backward).moved["mul"] == 3 * x.nbytes


def test_by_hand_holds_three_tables_and_the_fused_call_none():
    inputs = torch.randn(3, 1, 2, 128, 8)
    by_hand = ledger_of(lambda: attention_weights(*inputs[:2]) @ inputs[2])
    fused = ledger_of(lambda: attend(*inputs))
    table = 2 * 128**2 * 4
    assert 3 * table <= by_hand.peak < 3.1 * table
    assert fused.peak < table / 2


def test_a_length_of_numpy_is_counted_like_one_of_python(as_importer):
    small = np.int32(100_000)  # its square does not fit into 32 bits
    assert attention_cost(small, np.int8(64)) == attention_cost(100_000, 64)
