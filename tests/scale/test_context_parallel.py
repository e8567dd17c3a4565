"""Several ranks: together they give what one device gives, and share the work."""

import itertools
import os
import random
import re
from functools import partial

import numpy
import pytest
import torch
import torch.distributed as dist
from examples import MISFITS, assert_twins, change, said, some_mask, some_tensors

import attention.core.layer as layers
from attention import (
    Attention,
    MultiHeadAttention,
    Rotary,
    attend,
    document_mask,
    weights_of,
)
from attention.scale import context_parallel
from attention.scale.context_parallel import (
    block_of,
    blocks,
    heads_of,
    order_positions,
    order_ranges,
    ring_attend,
    ring_work,
    shard,
    ulysses_attend,
    unshard,
)
from attention.scale.decode_parallel import tree_attend
from attention.speed.cost import Ledger
from attention.speed.flash import flash_attend
from attention.tools.ranks import run_ranks

ORDERS = ["contiguous", "striped", "zigzag"]
FORMS = [ring_attend, ulysses_attend]
LENGTH = 53  # a prime: no number of ranks divides it
KEY_HEADS = {2: 4, 3: 1, 4: 2}  # for as many ranks; 12 heads of queries
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 9},
    "window of one": {"causal": True, "window": 1},
    "documents": {"causal": True, "documents": True},
    "mask, bias": {"mask": True, "bias": True, "scale": 0.3},
    "all": {
        "causal": True,
        "window": 20,
        "mask": True,
        "bias": True,
        "documents": True,
    },
}


# Equal to one device


def differences(form, order, options):
    """How far context and gradients are from one device's.

    Of the largest number, at most; and as a whole, by the norms of context and of all
    gradients.
    """
    options, draw = dict(options), torch.Generator().manual_seed(7)
    groups = KEY_HEADS[dist.get_world_size()]
    text = [torch.randn(2, h, LENGTH, 4, generator=draw) for h in (12, groups, groups)]
    do, bias = torch.randn(2, 12, LENGTH, 4, generator=draw), None
    if options.pop("bias", False):
        text.append(torch.randn(12, LENGTH, LENGTH, generator=draw))
    mask = documents = together = None
    if options.pop("mask", False):
        mask = together = some_mask(2, 1, LENGTH, LENGTH, blind=5)
    if options.pop("documents", False):
        documents = torch.arange(LENGTH).div(21).long().expand(2, LENGTH)
        same = document_mask(documents)
        together = same if mask is None else mask & same

    def cut(tensor, dim=-2):
        return tensor if tensor is None else shard(tensor, dim, order=order)

    found = []
    for three, tables in (
        (text, {"mask": together}),
        (map(cut, text), {"mask": cut(mask), "documents": cut(documents, -1)}),
    ):
        three = [tensor.clone().requires_grad_() for tensor in three]
        bias = three[3] if len(three) > 3 else None
        if not found:
            context = flash_attend(*three[:3], **tables, bias=bias, **options)
            slope = do
        else:
            call = tables | {"bias": bias, "order": order}
            context, slope = form(*three[:3], **call, **options), cut(do)
        found.append([context, *torch.autograd.grad(context, three, slope)])
    pairs = [(cut(a).detach(), b.detach()) for a, b in zip(*found, strict=True)]
    apart = [(a - b).abs().max() / a.abs().max().clamp(min=1) for a, b in pairs]
    norms = [norm_apart(pairs[:1]), norm_apart(pairs[1:])]
    return [each.item() for each in apart], norms


def norm_apart(pairs):
    """The distance of some tensors from others, as a share of their norm."""
    ours, theirs = (
        torch.cat([each.flatten() for each in side])
        for side in zip(*pairs, strict=True)
    )
    return ((ours - theirs).norm() / ours.norm()).item()


def all_differences():
    # On two ranks the ring goes around by three of four heads of keys, then by one. The
    # rank with fewer tokens would take all four, if it did not count with the other's.
    context_parallel._AT_ONCE = 840
    torch.manual_seed(2357)
    cases = itertools.product(FORMS, ORDERS, OPTIONS)
    return {
        (form.__name__, order, name): differences(form, order, OPTIONS[name])
        for form, order, name in cases
    }


@pytest.fixture(scope="module")
def found():
    """Differences on two, three and four ranks: each number is started once."""
    kept = {}

    def on(ranks):
        if ranks not in kept:
            kept[ranks] = []  # so that a failure is not run into again
            kept[ranks] = run_ranks(all_differences, ranks, seconds=300)
        assert kept[ranks], "it has failed before"
        return kept[ranks]

    return on


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ORDERS)
def test_context_and_gradients_are_those_of_one_device(found, form, order, ranks):
    for case, of_rank in itertools.product(OPTIONS, found(ranks)):
        (context, *gradients), norms = of_rank[form.__name__, order, case]
        assert max(norms) <= 5e-7, case
        assert context < 1e-6, (
            case
        )  # a single number; one device is as far from 64 bits
        assert max(gradients) < 1.5e-6, case


def distances_to_64_bits(order):
    """Of one device and of the ring, for context and gradients as a whole."""
    found = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        text = torch.randn(4, 2, 12, LENGTH, 4, generator=draw)
        results = []
        for numbers in (text.double(), text, torch.stack([*map_cut(text, order)])):
            *three, do = numbers
            three = [tensor.clone().requires_grad_() for tensor in three]
            form = (
                flash_attend if len(results) < 2 else partial(ring_attend, order=order)
            )
            context = form(*three)
            gradients = torch.autograd.grad(context, three, do)
            results.append([context.detach(), *gradients])
        exact, one, ours = results
        exact, one = ([*map_cut(some, order)] for some in (exact, one))
        found.append(
            [norm_apart(list(zip(exact, some, strict=True))) for some in (one, ours)]
        )
    return found


def map_cut(tensors, order):
    return (shard(tensor, order=order) for tensor in tensors)


@pytest.mark.parametrize("order", ORDERS)
def test_the_ring_is_as_near_to_64_bits_as_one_device(order):
    for of_rank in run_ranks(distances_to_64_bits, 4, order):
        one, ours = (sum(side) for side in zip(*of_rank, strict=True))
        assert ours < 1.15 * one  # 1.3 with logsumexps of 32 bits


class Replicated(torch.autograd.Function):
    """What all ranks hold alike: its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def slopes_are_right(form, order):
    torch.manual_seed(3)
    options = {"dtype": torch.float64, "requires_grad": True}
    text = [torch.randn(heads, 7, 2, **options) for heads in (2, 1, 1)]

    def of_the_whole(*text):
        own = [shard(Replicated.apply(each), order=order) for each in text]
        return unshard(form(*own, causal=True, window=4, order=order), order=order)

    return torch.autograd.gradcheck(of_the_whole, text, fast_mode=True)


@pytest.mark.parametrize(
    ("form", "order"), [(ring_attend, "zigzag"), (ulysses_attend, "striped")]
)
def test_the_gradient_is_right(form, order):
    assert run_ranks(slopes_are_right, 2, form, order) == [True, True]


def test_a_learned_scale_gets_its_gradient():
    def work(form):
        torch.manual_seed(3)
        text, own = torch.randn(3, 4, 12, 8), torch.tensor(0.3, requires_grad=True)
        one = torch.tensor(0.3, requires_grad=True)
        form(*map(shard, text), causal=True, scale=own).sin().sum().backward()
        flash_attend(*text, causal=True, scale=one).sin().sum().backward()
        dist.all_reduce(own.grad)
        torch.testing.assert_close(own.grad, one.grad)
        return True

    for form in FORMS:
        assert run_ranks(work, 2, form) == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_that_all_heads_share_gets_the_sum_of_their_gradients(form):
    def work(form):
        context_parallel._AT_ONCE = 1  # a head at a time
        torch.manual_seed(3)
        *text, bias = *torch.randn(3, 4, 12, 8), torch.randn(12, 12)
        one, ours = bias.clone().requires_grad_(), shard(bias).requires_grad_()
        form(*map(shard, text), bias=ours).sin().sum().backward()
        flash_attend(*text, bias=one).sin().sum().backward()
        torch.testing.assert_close(ours.grad, shard(one.grad))
        return True

    assert run_ranks(work, 2, form) == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_there_is_no_second_derivative(form):
    def work():
        own = torch.randn(2, 6, 3, requires_grad=True)
        (slope,) = torch.autograd.grad(form(own, own, own).sum(), own, None, True, True)
        with pytest.raises(RuntimeError):
            slope.sum().backward()
        return True

    assert run_ranks(work, 2) == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_queries_may_be_of_another_text_than_keys(form):
    def work():
        torch.manual_seed(3)
        queries, keys = torch.randn(2, 7, 5), torch.randn(2, 11, 5)
        ours = form(shard(queries), shard(keys), shard(keys))
        torch.testing.assert_close(ours, shard(attend(queries, keys, keys)))
        return True

    assert run_ranks(work, 2) == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_sixteen_bits_are_rounded_once(form):
    def work():
        torch.manual_seed(3)
        text = torch.randn(3, 1, 4, 64, 16).bfloat16()
        must = flash_attend(*text.float(), causal=True)
        ours = form(*map(shard, text), causal=True)
        torch.testing.assert_close(ours.float(), shard(must), atol=2e-2, rtol=2e-2)
        return str(ours.dtype)

    assert run_ranks(work, 2) == ["torch.bfloat16"] * 2


def gradients_in_16_bits(form):
    """How far they are from those in 32 bits: one device's, and this rank's."""
    torch.manual_seed(3)
    *text, do = torch.randn(4, 1, 4, 256, 16).bfloat16()

    def gradients(form, three, do):
        three = [tensor.requires_grad_() for tensor in three]
        return torch.autograd.grad(form(*three), three, do)

    exact, one = (
        gradients(flash_attend, [tensor.to(kind) for tensor in text], do.to(kind))
        for kind in (torch.float32, torch.bfloat16)
    )
    ours = gradients(form, [*map(shard, text)], shard(do))
    exact, one = ([shard(each) for each in some] for some in (exact, one))
    pairs = (
        list(zip(exact, map(torch.Tensor.float, some), strict=True))
        for some in (one, ours)
    )
    return [norm_apart(each) for each in pairs]


@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_16_bits_are_as_near_as_one_devices(form):
    one, ours = map(sum, zip(*run_ranks(gradients_in_16_bits, 4, form), strict=True))
    assert ours < 1.1 * one


def test_a_tensor_without_heads_will_do():
    def work():
        torch.manual_seed(3)
        text = torch.randn(3, 9, 5)
        ours = ring_attend(*map(shard, text), causal=True)
        torch.testing.assert_close(ours, shard(attend(*text, causal=True)))
        return True

    assert run_ranks(work, 2) == [True, True]


@pytest.mark.parametrize("form", FORMS)
def test_two_groups_work_side_by_side(form):
    def work():
        pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
        mine = dist.get_rank() % 2
        torch.manual_seed(mine)
        text = torch.randn(3, 2, 11, 5)
        own = [shard(each, group=pairs[mine]) for each in text]
        ours = unshard(form(*own, causal=True, group=pairs[mine]), group=pairs[mine])
        torch.testing.assert_close(ours, attend(*text, causal=True))
        return True

    assert run_ranks(work, 4) == [True] * 4


# A group of one


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("order", ORDERS)
def test_alone_it_is_flash_attention_to_the_last_bit(form, order):
    tensors, mask = some_tensors(), some_mask(2, 1, 5, 7, blind=2)
    options = {"causal": True, "window": 3, "bias": torch.randn(5, 7)}
    ours = form(*tensors, mask, order=order, **options)
    assert torch.equal(ours, flash_attend(*tensors, mask, **options))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_documents_see_their_own_tokens_alone(form, batch):
    text = torch.randn(3, *batch, 7, 5)
    numbers = torch.tensor([0, 0, 1, 1, 1, 4, 0])
    same = numbers[:, None] == numbers
    ours = form(*text, causal=True, documents=numbers)
    torch.testing.assert_close(ours, attend(*text, same, causal=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16])
def test_numbers_of_documents_may_be_of_any_kind(form, dtype):
    text, numbers = torch.randn(3, 7, 5), torch.tensor([0, 0, 1, 1, 1, 4, 0])
    must = form(*text, causal=True, documents=numbers)
    assert torch.equal(form(*text, causal=True, documents=numbers.to(dtype)), must)


@pytest.mark.parametrize(("arguments", "message"), MISFITS.values(), ids=MISFITS.keys())
@pytest.mark.parametrize("form", FORMS)
def test_a_misfit_is_refused_in_words(form, arguments, message, as_importer):
    with pytest.raises(ValueError, match=message):
        form(**arguments)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"dropout_p": 0.1}, ("dropout_p", "no dropout", "got 0.1")),
        ({"order": "spiral"}, ("order", "zigzag", "got 'spiral'")),
        ({"group": 3}, ("group", "belongs to", "got 3")),
        ({"window": 3}, ("window", "causal=True")),
        ({"documents": torch.zeros(7).long()}, ("documents", "got 5", "and 7 keys")),
    ],
)
def test_what_no_rank_can_use_is_refused(form, wrong, words, as_importer):
    with pytest.raises(ValueError, match=said(*words)):
        form(**change(**wrong))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bool])
def test_numbers_of_documents_are_whole_and_no_mask(form, dtype, as_importer):
    text, documents = torch.randn(3, 2, 3, 7, 11), torch.ones(2, 7, dtype=dtype)
    with pytest.raises(ValueError, match=said("documents", "whole numbers", dtype)):
        form(*text, documents=documents)


@pytest.mark.parametrize("form", FORMS)
def test_documents_have_a_number_for_each_token(form, as_importer):
    text, words = torch.randn(3, 2, 3, 7, 11), said("documents", "(2, 7)", "got")
    for shape in ((5,), (2, 5), (3, 7), (2, 1, 7), ()):
        with pytest.raises(ValueError, match=words):
            form(*text, documents=torch.zeros(shape).long())
    with pytest.raises(TypeError, match=said("documents", "Tensor", "list")):
        form(*text, documents=[0] * 7)


# What does not fit between ranks


def own_text(dtype=torch.float32, heads=4, length=6, **options):
    return [torch.randn(1, heads, length, 8, dtype=dtype) for _ in range(3)], options


CLASHES = {
    "dtype": ({"dtype": torch.float64}, ("dtype", "same on all ranks", "float64")),
    "heads": ({"heads": 8}, ("queries", "same on all ranks", "[1, 8, 8] on rank 1")),
    "length": ({"length": 8}, ("queries", "[7, 7]", "got [6, 8]")),
    "order": ({"order": "striped"}, ("order", "same on all ranks")),
    "no order": ({"order": "spiral"}, ("order", "'zigzag'", "got 'spiral'")),
    "causal": ({"causal": True}, ("causal", "same on all ranks", "True on rank 1")),
    "scale": ({"scale": 0.5}, ("scale", "same on all ranks", "0.5 on rank 1")),
    "window": ({"window": 2}, ("window", "with causal=True")),
    "dropout": ({"dropout_p": 0.5}, ("dropout_p", "got 0.5")),
    "documents": (
        {"documents": torch.zeros(6).long()},
        ("documents", "same on all ranks", "None on rank 0"),
    ),
    "columns": (
        {"mask": torch.ones(6, 6, dtype=torch.bool)},
        ("mask", "same on all ranks"),
    ),
    "mask": (
        {"mask": torch.ones(6, 6)},
        ("mask", "booleans", "got torch.float32 (6, 6)"),
    ),
}


def refusals(form):
    """What each clash is answered with, and that the ranks go on together after it."""
    found = {}
    for name, (changes, _) in CLASHES.items():
        inputs, options = own_text(**changes if dist.get_rank() == 1 else {})
        try:
            form(*inputs, **options)
        except ValueError as error:
            found[name] = str(error)
    inputs, _ = own_text()
    form(*inputs)
    inputs[0].requires_grad_(dist.get_rank() == 1)
    try:
        form(*inputs)
    except ValueError as error:
        found["gradient"] = str(error)
    inputs, _ = own_text()
    try:
        form(*inputs, torch.ones(6, 6, dtype=torch.bool))
    except ValueError as error:
        found["all columns"] = str(error)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_ranks_that_disagree_are_told_so_on_every_rank(form, as_importer):
    for told in run_ranks(refusals, 2, form):
        for name, (_, words) in CLASHES.items():
            assert re.search(said(*words), told[name]), (name, told[name])
        assert "requires_grad" in told["gradient"]
        assert "a last axis of 12" in told["all columns"]


@pytest.mark.parametrize("form", [*FORMS, tree_attend])
@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ({"scale": numpy.float32(0.5)}, {"scale": 0.5}),
        ({"scale": numpy.int64(2)}, {"scale": 2}),
        ({"causal": numpy.bool_(True)}, {"causal": True}),
        ({"causal": torch.tensor(True)}, {"causal": True}),
    ],
    ids=repr,
)
@pytest.mark.usefixtures("as_importer")
def test_an_option_may_be_a_number_of_numpy_or_a_tensor_on_one_rank(form, odd, plain):
    def work():
        torch.manual_seed(1)
        inputs, _ = own_text(length=1 if form is tree_attend else 6)
        given = [odd if dist.get_rank() else plain, plain]
        found, must = (form(*inputs, **options) for options in given)
        return torch.equal(found, must)

    assert run_ranks(work, 2) == [True] * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.usefixtures("as_importer")
def test_a_whole_number_of_more_than_64_bits_is_a_scale_like_any_other(form):
    def work():
        inputs, _ = own_text()
        return torch.equal(form(*inputs, scale=2**100), form(*inputs, scale=2.0**100))

    assert run_ranks(work, 2) == [True] * 2


def test_a_call_of_another_name_is_told_on_every_rank():
    def work():
        inputs, _ = own_text()
        try:
            FORMS[dist.get_rank()](*inputs)
        except ValueError as error:
            return str(error)

    told = "call: expected the same on all ranks, got ring_attend on rank 0, "
    assert all(each.startswith(told) for each in run_ranks(work, 2))


@pytest.mark.parametrize("form", FORMS)
def test_the_others_end_if_a_rank_dies_and_it_is_named(form):
    def work():
        inputs, _ = own_text()
        form(*inputs)
        if dist.get_rank() == 1:
            os._exit(9)
        form(*inputs)

    with pytest.raises(RuntimeError, match=said("rank 1 of 4", "exit code 9")):
        run_ranks(work, 4, seconds=20)


@pytest.mark.parametrize(
    ("heads", "groups", "words"),
    [
        (3, 3, ("queries", "2 ranks", "got 3")),
        (6, 3, ("keys and values", "2 ranks", "got 3")),
    ],
)
def test_heads_that_cannot_be_shared_are_refused(heads, groups, words, as_importer):
    with pytest.raises(ValueError, match=said(*words)):
        heads_of(0, 2, heads, groups)


def test_causal_queries_are_as_many_as_keys():
    def work():
        inputs, _ = own_text()
        shorter = torch.randn(1, 4, 5, 8)
        try:
            ring_attend(shorter, *inputs[1:], causal=True)
        except ValueError as error:
            return str(error)

    found = run_ranks(work, 2)
    assert all(told.endswith("got 10 and 12") for told in found)


# No deadlock


def program(seed):
    """A random program of calls in random groups of four ranks."""
    chance, rank = random.Random(seed), dist.get_rank()
    groups = {
        (first, last): dist.new_group(list(range(first, last)))
        for first in range(4)
        for last in range(first + 1, 5)
    }
    for _ in range(40):
        first, last = chance.choice(sorted(groups))
        form, order = chance.choice(FORMS), chance.choice(ORDERS)
        learns, causal = chance.random() < 0.5, chance.random() < 0.5
        length, joined = chance.randrange(8, 20), chance.random() < 0.5
        if not first <= rank < last:
            continue
        place = {"group": groups[first, last], "order": order}
        own = [shard(torch.ones(12, length, 2), **place) for _ in range(3)]
        own = [tensor.requires_grad_(learns) for tensor in own]
        context = form(*own, causal=causal, **place)
        torch.testing.assert_close(context, torch.ones_like(context))
        if joined:
            assert unshard(context, **place).shape == (12, length, 2)
        if learns:
            context.sum().backward()
    return "ended"


@pytest.mark.parametrize("seed", [1, 2])
def test_random_programs_of_calls_end(seed):
    assert run_ranks(program, 4, seed, seconds=120) == ["ended"] * 4


# Orders


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("length", "ranks"), [(12, 3), (29, 4), (8, 4), (7, 1)])
def test_each_token_has_one_rank_and_shares_are_nearly_equal(order, length, ranks):
    ranges = order_ranges(length, ranks, order)
    held = [list(itertools.chain(*some)) for some in ranges]
    assert sorted(itertools.chain(*held)) == list(range(length))
    assert all(some == sorted(some) for some in held)
    sizes = [len(some) for some in held]
    assert len(held) == ranks
    assert max(sizes) - min(sizes) <= 2


def test_zigzag_is_the_order_of_all():
    assert order_ranges(8, 2) == [[range(2), range(6, 8)], [range(2, 4), range(4, 6)]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("whole", [numpy.int64, numpy.uint8, torch.tensor])
@pytest.mark.usefixtures("as_importer")
def test_a_length_is_any_whole_number(whole, order):
    assert order_ranges(whole(10), 2, order) == order_ranges(10, 2, order)
    positions = order_positions(whole(10), order=order)
    assert torch.equal(positions, torch.arange(10))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.usefixtures("as_importer")
def test_ranks_are_any_whole_number(order):
    assert order_ranges(900, numpy.uint8(200), order) == order_ranges(900, 200, order)


@pytest.mark.parametrize("order", ORDERS)
def test_a_rank_alone_has_one_range_of_any_length(order):
    assert order_ranges(1, 1, order) == [[range(1)]]
    assert order_ranges(7, 1, order) == [[range(7)]]


@pytest.mark.parametrize(
    ("length", "ranks", "order", "words"),
    [
        (7, 4, "zigzag", ("length", "at least 8 tokens", "got 7")),
        (3, 4, "striped", ("length", "at least 4 tokens", "got 3")),
        (8.0, 2, "zigzag", ("length", "a whole number", "got 8.0")),
        (True, 1, "zigzag", ("length", "a whole number", "got True")),
        (torch.ones(9), 2, "zigzag", ("length", "a whole number", "got torch.float32")),
        (8, 0, "zigzag", ("ranks", "whole number", "got 0")),
        (8, 2, "Zigzag", ("order", "got 'Zigzag'")),
    ],
)
def test_an_order_that_cannot_be_is_refused(length, ranks, order, words, as_importer):
    with pytest.raises(ValueError, match=said(*words)):
        order_ranges(length, ranks, order)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_what_is_cut_is_joined_again(dim, dtype):
    def work():
        text = (torch.arange(77).view(7, 11) % 5).to(dtype)
        for order in ORDERS:
            part = shard(text, dim, order=order)
            assert torch.equal(unshard(part, dim, order=order), text)
        return True

    assert run_ranks(work, 3) == [True] * 3


def test_the_gradient_of_a_part_is_that_of_the_whole_there():
    def work():
        part = shard(torch.arange(7.0)[:, None]).requires_grad_()
        unshard(part).square().sum().backward()
        assert torch.equal(part.grad, 2 * part.detach())
        return True

    assert run_ranks(work, 2) == [True, True]


def test_alone_nothing_is_cut():
    text = torch.randn(7, 3)
    assert torch.equal(shard(text), text)
    assert torch.equal(unshard(text), text)
    assert order_positions(5).tolist() == [0, 1, 2, 3, 4]


def test_positions_lie_where_they_are_asked_for():
    assert order_positions(5, device="meta").device.type == "meta"
    assert shard(torch.empty(5, 2, device="meta")).device.type == "meta"


@pytest.mark.parametrize("call", [shard, unshard])
@pytest.mark.parametrize("dim", [2, -3, 0.5, True])
def test_an_axis_that_is_not_there_is_refused(call, dim, as_importer):
    with pytest.raises(ValueError, match=said("dim", "an axis", "got", dim)):
        call(torch.ones(3, 3), dim)


# Work and memory


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("window", [None, 1, 5, 7, 15, 40])
@pytest.mark.parametrize(("length", "ranks"), [(24, 3), (29, 4), (17, 2), (8, 4)])
def test_each_score_is_made_by_one_block(order, window, length, ranks):
    total = sum(min(i + 1, window or length) for i in range(length))
    counts = ring_work(length, ranks, order, window=window)
    assert sum(map(sum, counts)) == total
    whole = ring_work(length, ranks, order, causal=False)
    assert sum(map(sum, whole)) == length**2


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_contiguous_order_has_its_bound_and_the_others_have_none(ranks):
    length = 96 * ranks
    ideal = length * (length + 1) / 2 / ranks
    for order, least, most in (
        ("contiguous", 0.99, 1.02),
        ("striped", 0.98, 1.0),
        ("zigzag", 1.0, 1.0),
    ):
        counts = ring_work(length, ranks, order)
        slowest = sum(max(of_step) for of_step in zip(*counts, strict=True))
        bound = ranks / (2 * ranks - 1) if order == "contiguous" else 1
        assert least * bound <= ideal / slowest <= most * bound


def test_blocks_that_nobody_sees_are_left_out():
    assert block_of(range(4), range(4, 8)) is None
    assert block_of(range(8, 12), range(4), window=5) is None
    assert block_of(range(8, 12), range(4), window=6) is not None
    assert block_of(range(0, 8, 2), range(1, 8, 2), window=1) is None
    assert len(list(blocks([range(4)], [range(4)], causal=False))) == 1


@pytest.mark.parametrize("backward", [False, True])
def test_a_rank_holds_its_share_of_what_one_device_holds(backward):
    def held(form):
        """All at the peak: what is given, what comes out, and what is in between."""
        text = [shard(torch.ones(32, 256, 128)) for _ in range(3)]
        own = [tensor.requires_grad_(backward) for tensor in text]
        with Ledger() as ledger:
            context = form(*own, causal=True)
            if backward:
                context.sum().backward()
        return ledger.peak + sum(tensor.nbytes for tensor in own)

    def held_by_both():
        context_parallel._AT_ONCE = 2**14  # as for a text that is much longer
        return [held(form) for form in FORMS]

    one, of_a_head = held(flash_attend), 4 * 256 * 128
    for ranks in (2, 4):
        of_forms = zip(*run_ranks(held_by_both, ranks), strict=True)
        for form, most in zip(FORMS, of_forms, strict=True):
            under_way = 2 * of_a_head  # which does not shrink with the ranks
            if form is ulysses_attend:  # the next head comes, the one before goes home
                under_way += (11 if backward else 5) * of_a_head
            assert max(most) < one / ranks + under_way


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_values_that_no_query_may_see_may_hold_anything(form):
    def work(form):
        torch.manual_seed(3)
        three = [torch.randn(2, 4, 9, 8) for _ in range(3)]
        mask = (torch.arange(9) != 5).expand(9, 9)
        found = []
        for hidden in (0.0, torch.nan, torch.inf):
            for tensor in three[1:]:
                tensor[..., 5, :] = hidden
            own = [shard(tensor).requires_grad_() for tensor in three]
            context = form(*own, shard(mask))
            found.append([context, *torch.autograd.grad(context.square().sum(), own)])
        torch.testing.assert_close(found[1:], found[:1] * 2)
        return True

    assert run_ranks(work, 2, form) == [True, True]


# In a layer


def test_a_layer_takes_it_with_the_positions_of_its_tokens():
    def work(order, form):
        torch.manual_seed(3)
        slots = {"num_kv_heads": 2, "process_heads": Rotary(8)}
        layer = Attention(16, 16, 4, head_dim=8, **slots)
        cut = {"attend": partial(form, order=order)}
        ours = Attention(16, 16, 4, head_dim=8, **slots, **cut)
        ours.load_state_dict(layer.state_dict())
        x = torch.randn(2, 13, 16)
        positions = order_positions(13, order=order)
        context = unshard(ours(shard(x, order=order), positions=positions), order=order)
        torch.testing.assert_close(context, layer(x))
        for each in (context, layer(x)):
            each.square().sum().backward()
        for a, b in zip(ours.parameters(), layer.parameters(), strict=True):
            dist.all_reduce(a.grad)
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        return True

    for order, form in (("zigzag", ring_attend), ("striped", ulysses_attend)):
        assert run_ranks(work, 2, order, form) == [True, True]


def test_a_layer_that_cannot_look_at_positions_leaves_causal_to_its_form():
    def of_the_text(*three, causal, **options):
        return ring_attend(*three, causal=True, **options)

    def work():
        layers.readable = lambda tensor: False  # as for positions on a GPU
        torch.manual_seed(3)
        layer, x = Attention(16, 16, 4, process_heads=Rotary(4)), torch.randn(13, 16)
        part, positions = shard(x), order_positions(13)
        one, layer.attend = layer(x), ring_attend
        with pytest.raises(ValueError, match="a last axis of 13, for the keys of all"):
            layer(part, positions=positions)
        layer.attend, layer.masks = of_the_text, ()
        torch.testing.assert_close(unshard(layer(part, positions=positions)), one)
        return True

    assert run_ranks(work, 2) == [True, True]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [8, 9])
def test_a_layer_whose_keys_lie_on_several_ranks_says_that_it_has_no_weights(
    form, length, as_importer
):
    def work():
        layer = Attention(8, 8, 2, attend=partial(form, order="contiguous"))
        x = shard(torch.randn(1, length, 8), order="contiguous")
        with pytest.raises(ValueError, match=said("attend", "weights @ values", "got")):
            layer.attention_weights(x)
        return layer(x).shape[1]

    assert sum(run_ranks(work, 2)) == length


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("length", [0, 1, 7])
def test_alone_it_shows_the_weights_of_attend(form, heads, length):
    torch.manual_seed(1)
    queries, keys, values = torch.randn(3, *heads, length, 4)
    documents = torch.arange(length) // 3
    same = documents[:, None] == documents
    told = {"causal": True, "scale": 0.3}
    must = weights_of(attend, queries, keys, values, same, **told)
    options = {"documents": documents, "order": "striped"}
    found = weights_of(partial(form, **options), queries, keys, values, **told)
    torch.testing.assert_close(found, must)


def test_alone_it_takes_the_place_of_attend():
    sizes = (3, 4, 5, 0.0, 2)
    twin = MultiHeadAttention(*sizes, attend=ring_attend)
    assert_twins(MultiHeadAttention(*sizes), twin, torch.randn(2, 5, 3))
