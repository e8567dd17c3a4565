"""A model on paper: it counts what the real program does, and keeps to its error."""

import itertools
import math

import numpy as np
import pytest
import torch
from examples import said

from attention.scale.at_scale import (
    A100,
    H100,
    H800,
    AttentionSizes,
    Machine,
    attention_times,
    ring_step,
)
from attention.scale.context_parallel import (
    blocks,
    order_ranges,
    ring_attend,
    ring_work,
    scores_in,
    shard,
    ulysses_attend,
)
from attention.tools import ranks as tools
from attention.tools.ranks import run_ranks

RINGS = ["contiguous", "striped", "zigzag"]
SCHEMES = [*RINGS, "ulysses", "all-gather", "tensor"]
SIZES = AttentionSizes(2**16, num_heads=32, num_kv_heads=8, head_dim=128)
REAL = Machine(3e14, 2e11, 2e10, 8, 1e-5, 2e12, 30.0, 1.1)  # all numbers count
PLAIN = Machine(3e14, 2e11)


def seconds(machine, ranks=32, scheme="zigzag", sizes=SIZES, **options):
    return attention_times(sizes, machine, ranks, scheme, **options).seconds


# It counts what the program does


@pytest.mark.parametrize("order", RINGS)
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_step_of_the_busiest_rank_is_that_of_the_real_blocks(order, ranks):
    ranges = order_ranges(14 * ranks, ranks, order)
    work = ring_work(14 * ranks, ranks, order)
    for turn in range(ranks):
        real = []
        for rank, own in enumerate(ranges):
            parts = list(blocks(own, ranges[rank - turn]))
            causal = sum(scores_in(part) for part in parts if part.causal)
            rows = sum(len(part.queries) for part in parts)
            real.append((work[rank][turn], causal, rows))
        most, causal, rows = max(real)
        expected = ring_step(14, order, own=turn == 0)
        assert expected == (causal, most - causal, rows)


def sent(form, order, lengths, heads, kv_heads):
    """Bytes that this rank really gives to others, forward and in both passes."""
    noted, real = [], tools.post

    def noting(outgoing, incoming, group):
        rank, _ = tools.place_in(group)
        for peer, tensors in outgoing.items():
            letters = {torch.uint8}  # in which the ranks agree
            noted.extend(
                t.nbytes for t in tensors if peer != rank and t.dtype not in letters
            )
        return real(outgoing, incoming, group)

    own = [torch.randn(3, h, lengths, 5) for h in (heads, kv_heads, kv_heads)]
    own = [shard(t, order=order).requires_grad_() for t in own]
    from attention.scale import context_parallel

    tools.post = context_parallel.post = noting  # this process ends after the call
    context = form(*own, causal=True, order=order)
    forward = sum(noted)
    context.sum().backward()
    return forward, sum(noted)


@pytest.mark.parametrize(
    ("form", "order", "ranks", "heads", "kv_heads"),
    [
        (ring_attend, "zigzag", 2, 6, 3),
        (ring_attend, "striped", 3, 4, 2),
        (ulysses_attend, "zigzag", 2, 6, 2),
        (ulysses_attend, "zigzag", 4, 8, 2),
    ],
    ids=["ring of 2", "ring of 3", "exchange", "fewer key heads than ranks"],
)
def test_it_counts_the_bytes_that_really_leave_a_rank(
    form, order, ranks, heads, kv_heads
):
    sizes = AttentionSizes(12 * ranks, heads, kv_heads, 5, itemsize=4, batch=3)
    scheme = order if form is ring_attend else "ulysses"
    given = form, order, 12 * ranks, heads, kv_heads
    model = [
        attention_times(sizes, PLAIN, ranks, scheme, backward=back).sent
        for back in (False, True)
    ]
    if (
        form is ulysses_attend
    ):  # it exchanges anew in the backward pass, and keeps nothing
        model[1] = 3 * model[0]
    assert run_ranks(sent, ranks, *given) == [tuple(model)] * ranks


# Properties


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_rank_is_the_ideal_and_sends_nothing(scheme, backward):
    alone = attention_times(SIZES, REAL, 1, scheme, backward=backward)
    assert (alone.share, alone.sent, alone.send) == (1, 0, 0)
    operations = (14 if backward else 4) * 128 * 32 * 2**16 * (2**16 + 1) / 2
    assert alone.seconds == pytest.approx(operations / 3e14, rel=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["operations", "link", "network", "memory", "whole"])
def test_a_faster_machine_is_never_slower(scheme, name):
    better = REAL._replace(**{name: 2 * getattr(REAL, name)})
    for ranks, backward in itertools.product((2, 8, 32), (False, True)):
        case = {"ranks": ranks, "scheme": scheme, "backward": backward}
        assert seconds(better, **case) <= seconds(REAL, **case)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["latency", "merging"])
def test_a_later_message_or_a_dearer_merge_is_never_faster(scheme, name):
    worse = REAL._replace(**{name: 100 * getattr(REAL, name)})
    assert seconds(worse, scheme=scheme) >= seconds(REAL, scheme=scheme)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_hidden_is_a_part_of_what_is_sent(scheme, backward):
    for ranks in (2, 8, 16, 32):
        t = attention_times(SIZES, REAL, ranks, scheme, backward=backward)
        assert 0 <= t.hidden <= t.send
        assert t.hidden <= t.compute + t.merge
        if scheme not in RINGS:
            assert (t.hidden, t.merge) == (0, 0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_clock_has_no_unit(scheme):
    """Rates twice as high, latency half as long: half the time."""
    twice = {n: 2 * getattr(REAL, n) for n in ("operations", "link", "network")}
    twice |= {"memory": 2 * REAL.memory, "latency": REAL.latency / 2}
    fast = seconds(REAL._replace(**twice), scheme=scheme)
    assert fast == pytest.approx(seconds(REAL, scheme=scheme) / 2, rel=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_two_texts_take_twice_as_long_without_latency(scheme):
    two, machine = SIZES._replace(batch=2), REAL._replace(latency=0.0)
    t = attention_times(SIZES, machine, 32, scheme)
    both = attention_times(two, machine, 32, scheme)
    assert tuple(both) == pytest.approx([2 * part for part in t], rel=1e-12)


@pytest.mark.parametrize("ranks", [2, 4, 64, 1024])
def test_contiguous_order_stays_at_its_bound(ranks):
    t = attention_times(SIZES._replace(length=2**24), PLAIN, ranks, "contiguous")
    assert t.share == pytest.approx(ranks / (2 * ranks - 1), rel=1e-3)


@pytest.mark.parametrize("order", ["striped", "zigzag"])
def test_the_other_orders_share_the_work_evenly(order):
    t = attention_times(SIZES._replace(length=2**24), PLAIN, 64, order)
    assert t.compute == pytest.approx(t.ideal, rel=1e-3)
    assert t.share == pytest.approx(1, abs=1e-3)  # all that is sent is hidden


def test_a_ring_that_the_link_holds_up_goes_at_the_speed_of_the_link():
    slow = PLAIN._replace(link=1e6)
    t = attention_times(SIZES, slow, 8)
    last = t.compute - t.hidden  # the step in which nothing is sent
    assert t.send == pytest.approx(t.sent / 1e6)
    assert t.seconds == pytest.approx(t.send + last)
    assert last == pytest.approx(t.compute / 8, rel=1e-3)


@pytest.mark.parametrize(("group", "alone"), [(1, "zigzag"), (8, "ulysses")])
@pytest.mark.parametrize("backward", [False, True])
def test_both_together_end_in_each_alone(group, alone, backward):
    together = attention_times(SIZES, REAL, 8, ulysses=group, backward=backward)
    assert together == attention_times(SIZES, REAL, 8, alone, backward=backward)


def test_exchange_in_a_node_and_a_ring_between_use_the_links_that_they_should():
    def send(**rates):
        t = attention_times(SIZES, REAL._replace(latency=0.0, **rates), 32, ulysses=8)
        return t.send

    inside, between = send(network=math.inf), send(link=1e30)
    ring = attention_times(SIZES, REAL, 32, ulysses=8).sent
    pair = 2 * SIZES.length / 4 * 128 * 2  # one key head of a quarter of the text
    assert between == pytest.approx(3 * pair / 2e10)
    assert inside == pytest.approx(ring / 2e11)
    assert send() == pytest.approx((ring - 3 * pair) / 2e11 + 3 * pair / 2e10)


def test_without_a_network_other_nodes_are_as_near_as_the_own():
    """And not free: a network costs nothing only if it is given so."""
    for scheme in SCHEMES:
        same = seconds(PLAIN._replace(network=PLAIN.link), scheme=scheme)
        assert seconds(PLAIN, scheme=scheme) == same
    near, far = (
        attention_times(SIZES, machine, 32, "ulysses").send
        for machine in (PLAIN._replace(node=32), PLAIN)
    )
    assert near / 2 < far < near


def test_an_exchange_sends_each_byte_straight_to_its_rank():
    near, far = (attention_times(SIZES, REAL, ranks, "ulysses") for ranks in (8, 16))
    head = SIZES.length * 128 * 2
    assert near.send == pytest.approx(1e-5 + 7 * (2 * 4 + 2) * head / 8 / 2e11)
    assert far.send == pytest.approx(1e-5 + 8 * (2 * 2 + 2) * head / 16 / 2e10)
    assert far.sent == 15 * (2 * 2 + 2) * head / 16


@pytest.mark.parametrize(
    ("scheme", "part"),
    [("all-gather", 2 * 8 * 128 * 2), ("tensor", 2 * 32 * 128 * 2)],
)
def test_what_all_get_is_passed_on_over_all_networks_of_a_node(scheme, part):
    part *= SIZES.length
    near, far = (attention_times(SIZES, REAL, ranks, scheme) for ranks in (8, 32))
    assert near.send == pytest.approx(1e-5 + 7 / 8 * part / 2e11)
    assert far.sent == pytest.approx(31 / 32 * part)
    assert far.send == pytest.approx(1e-5 + far.sent / (8 * 2e10))
    inside = attention_times(SIZES, REAL._replace(network=1e30), 32, scheme)
    assert inside.send == pytest.approx(1e-5 + 7 / 8 * far.sent / 2e11)
    alone = attention_times(SIZES, REAL._replace(node=1), 32, scheme)
    assert alone.send == pytest.approx(1e-5 + far.sent / 2e10)


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_a_ring_through_all_nodes_crosses_as_often_as_is_counted(nodes):
    ranks, crossings = 8 * nodes, 0
    for start in range(ranks):  # one ring; the block of each rank goes around
        for hop in range(ranks - 1):
            place = (start + hop) % ranks
            crossings += place // 8 != (place + 1) % ranks // 8
    assert crossings == nodes * (ranks - 1)  # all blocks, less one, on each way out
    t = attention_times(SIZES, REAL._replace(latency=0.0), ranks, "all-gather")
    block = 2 * SIZES.length / ranks * 8 * 128 * 2
    assert t.send == pytest.approx(crossings / ranks * block / 2e10)


def test_backward_the_sums_of_gradients_travel_in_four_bytes():
    forward, both = (
        attention_times(SIZES, PLAIN, 8, backward=back) for back in (False, True)
    )
    pair = 2 * SIZES.length / 8 * 8 * 128
    assert both.sent - forward.sent == pair * (7 * 2 + 8 * 4)
    gathered = attention_times(SIZES, PLAIN, 8, "all-gather", backward=True)
    assert gathered.sent == 7 * pair * (2 + 4)


def test_merging_takes_memory_and_more_of_it_backward():
    numbers = (1.5 + 7) * SIZES.length / 8 * 32 * 128
    merge = attention_times(SIZES, REAL, 8).merge
    assert merge == pytest.approx(numbers * 30 / 2e12)
    pairs = 8 * 2 * SIZES.length / 8 * 8 * 128
    both = attention_times(SIZES, REAL, 8, backward=True).merge
    assert both == pytest.approx((2 * numbers + pairs) * 30 / 2e12)
    assert attention_times(SIZES, PLAIN, 8).merge == 0


def test_whole_blocks_may_be_faster():
    quick = PLAIN._replace(whole=2.0)
    own, other = ring_step(2**13, "zigzag", True), ring_step(2**13, "zigzag", False)
    scores = own[0] + own[1] / 2 + 7 * other[1] / 2
    t = attention_times(SIZES, quick, 8)
    assert t.compute == pytest.approx(scores * 32 * 4 * 128 / 3e14)
    assert attention_times(SIZES, quick, 8, "striped").share < 1 < t.share


# Rows that others have published, with the error that the chapter states


RING_ROWS = [  # machine, both passes?, calls a second of one GPU, then of eight
    (H800, False, 591.5, (38.5, 63.0, 55.0)),
    (H800, True, 154.7, (10.4, 17.4, 16.0)),
    (A100, False, 373.4, (24.0, 38.2, 32.5)),
    (A100, True, 94.7, (6.2, 10.6, 9.75)),
]


@pytest.mark.parametrize(("machine", "backward", "alone", "rows"), RING_ROWS)
def test_the_rings_on_eight_gpus_come_out_within_a_tenth(
    machine, backward, alone, rows
):
    one = AttentionSizes(8192, 32, 8, 128)
    machine = machine._replace(operations=1.0)
    rate = seconds(machine, 1, sizes=one, backward=backward) * alone
    machine = machine._replace(operations=rate)
    for order, calls in zip(("contiguous", "zigzag", "striped"), rows, strict=True):
        model = seconds(machine, 8, order, backward=backward)
        assert 0.90 < model * calls < 1.05
        share = attention_times(SIZES, machine, 8, order, backward=backward).share
        assert share == pytest.approx(8 * calls / alone, abs=0.08)


@pytest.mark.parametrize(
    ("order", "rows", "least"),
    [
        ("contiguous", (15.496, 13.181, 11.332), (0.95, 0.95, 0.93)),
        ("zigzag", (21.464, 21.201, 17.778), (0.95, 0.95, 0.84)),
        ("striped", (20.54, 20.355, 17.057), (0.95, 0.95, 0.90)),
    ],
)
def test_groups_on_eight_a100_come_out_as_near_as_is_said(order, rows, least):
    sizes = AttentionSizes(131_072, 8, 8, 128, batch=2)
    one = attention_times(sizes, A100._replace(operations=1.0), 8, "ulysses")
    machine = A100._replace(operations=one.compute / (1 / 20.983 - one.send))
    for group, calls, bound in zip((4, 2, 1), rows, least, strict=True):
        t = attention_times(sizes, machine, 8, order, ulysses=group)
        assert bound < t.seconds * calls < 1.05


LLAMA_ROWS = [
    (32_000, 1, 7.658, 0.01),
    (8_000, 2, 0.999, 0.08),
    (32_000, 2, 4.015, 0.05),
    (128_000, 2, 21.042, 0.05),
    (128_000, 4, 10.950, 0.05),
    (128_000, 8, 5.85, 0.05),
    (128_000, 16, 3.8, 0.14),
    (1_000_000, 16, 77.0, 0.02),
]


@pytest.mark.parametrize(("length", "nodes", "measured", "error"), LLAMA_ROWS)
def test_405_billion_parameters_come_out_as_near_as_is_said(
    length, nodes, measured, error
):
    sizes = AttentionSizes(length, num_heads=16, num_kv_heads=1, head_dim=128)
    t = attention_times(sizes, H100._replace(node=1), nodes)
    model = 126 * t.seconds + 2.101e-4 * length / nodes
    assert model == pytest.approx(measured, rel=error)


@pytest.mark.parametrize(("nodes", "measured"), [(2, 29.917), (4, 19.841)])
def test_tensor_parallel_over_nodes_comes_out_within_three_percent(nodes, measured):
    sizes = AttentionSizes(128_000, 128, 8, 128)
    t = attention_times(sizes, H100, 8 * nodes, "tensor")
    assert 42.010 / nodes + 2 * 126 * t.send == pytest.approx(measured, rel=0.03)


# What does not fit


@pytest.mark.parametrize("name", Machine._fields)
@pytest.mark.parametrize("value", [-1, math.nan])
def test_a_rate_that_is_none_is_refused_by_name(name, value, as_importer):
    with pytest.raises(ValueError, match=said(name, "got", value)):
        seconds(REAL._replace(**{name: value}))


@pytest.mark.parametrize("name", AttentionSizes._fields)
@pytest.mark.parametrize("value", [0, 2.5])
def test_a_size_that_is_none_is_refused_by_name(name, value, as_importer):
    with pytest.raises(ValueError, match=said(name, "whole number", "got", value)):
        seconds(REAL, sizes=SIZES._replace(**{name: value}))


def test_a_latency_of_nothing_is_allowed_and_no_other_number():
    assert seconds(REAL._replace(latency=0.0)) > 0
    with pytest.raises(ValueError, match=said("machine.link", "above 0", "got", 0)):
        seconds(REAL._replace(link=0))


@pytest.mark.parametrize(
    ("ranks", "scheme", "options", "fields"),
    [
        (0, "zigzag", {}, ("ranks", "at least 1", 0)),
        (8, "spiral", {}, ("scheme", "tensor", "spiral")),
        (2**16, "zigzag", {}, ("length", 2**17, 2**16)),
        (12, "ulysses", {}, ("queries", "12 ranks", 32)),
        (64, "tensor", {}, ("queries", "64 ranks", 32)),
        (12, "zigzag", {"ulysses": 8}, ("ulysses", "divisor", 8)),
        (8, "all-gather", {"ulysses": 2}, ("ulysses", "1 without", 2)),
        (8, "zigzag", {"ulysses": 0}, ("ulysses", "at least 1", 0)),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_name(ranks, scheme, options, fields):
    with pytest.raises(ValueError, match=said(*fields)):
        seconds(REAL, ranks, scheme, **options)


def test_key_heads_that_the_query_heads_cannot_share_are_refused():
    fields = said("num_kv_heads", "divisor", 32, "got", 5)
    with pytest.raises(ValueError, match=fields):
        seconds(REAL, sizes=SIZES._replace(num_kv_heads=5))


@pytest.mark.parametrize(("tokens", "order"), [(0, "zigzag"), (4, "spiral")])
def test_a_step_in_no_order_is_refused(tokens, order):
    with pytest.raises(ValueError, match=said("tokens and order", "zigzag", order)):
        ring_step(tokens, order, own=True)


def test_sizes_of_numpy_take_as_long_as_those_of_python(as_importer):
    small = AttentionSizes(np.int32(100_000), np.int8(8), np.int8(8), np.int8(64))
    found = attention_times(small, H100, np.uint8(8))
    assert found == attention_times(AttentionSizes(100_000, 8, 8, 64), H100, 8)
