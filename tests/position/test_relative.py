"""Distances: the shift, T5's buckets, ALiBi's slopes, and both in the layer."""

import copy
import io
import math
import pickle
from functools import partial

import pytest
import torch
from examples import TRACERS, said
from torch import nn

from attention import (
    Attention,
    RelativeBias,
    alibi,
    alibi_slopes,
    attend,
    attention_weights,
    flash_attend,
    future_leak,
    relative_bucket,
    window,
)
from attention.position.relative import distances, relative_shift

equal = torch.testing.assert_close


def t5(num_heads, **options):
    """A bias with numbers of its own, as after training."""
    bias = RelativeBias(num_heads, **options)
    nn.init.normal_(bias.table.weight)
    return bias


BIASES = {
    "ALiBi": alibi,
    "T5": t5,
    "T5, causal": partial(t5, bidirectional=False, num_buckets=6, max_distance=5),
}
every = pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())


def some(bias, heads=6, dtype=torch.float64, **options):
    """A layer with this bias, and two sentences of eleven tokens."""
    layer = Attention(5, 12, heads, bias=bias(heads), **options).to(dtype)
    return layer.requires_grad_(False), torch.randn(2, 11, 5, dtype=dtype)


# Published numbers


def test_the_shift_gives_the_table_of_transformer_xl():
    given = relative_shift(torch.arange(15.0).view(3, 5))
    assert given.tolist() == [[2, 3, 4, 0, 5], [6, 7, 8, 9, 0], [10, 11, 12, 13, 14]]


def test_buckets_are_those_of_t5():
    distance = [-200, -128, -64, -20, -8, -1, 0, 1, 7, 8, 9, 12, 16, 20, 64, 128]
    must = [15, 15, 14, 10, 8, 1, 0, 17, 23, 24, 24, 25, 26, 26, 30, 31]
    assert relative_bucket(torch.tensor(distance)).tolist() == must


def test_the_last_row_of_alibi_is_the_published_one():
    bias = alibi(2)(torch.tensor([3]), torch.arange(4))
    nothing = torch.zeros(2, 1, 3), torch.zeros(2, 4, 3)
    weights = attention_weights(*nothing, bias=bias)[:, 0]
    must = [[0.2271, 0.2417, 0.2573, 0.2739], [0.2485, 0.2495, 0.2505, 0.2515]]
    equal(weights, torch.tensor(must), rtol=0, atol=5e-5)  # printed to four digits


# The shift


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 5), (3, 3), (3, 7), (5, 11)])
def test_the_shift_brings_each_distance_to_its_key(queries, keys):
    by_distance = torch.randn(2, 3, queries, keys)
    shifted = relative_shift(by_distance)
    for i in range(queries):
        place = keys - queries + i
        for j in range(place + 1):
            column = keys - 1 - (place - j)
            assert torch.equal(shifted[..., i, j], by_distance[..., i, column])


# Buckets


def t5_formula(distance, bidirectional, num_buckets, max_distance):
    """As in T5's code, with a logarithm."""
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = (distance > 0) * num_buckets
        back = distance.abs()
    else:
        back = -distance.clamp(max=0)
    exact = num_buckets // 2
    steps = (back.double() / exact).log() / math.log(max_distance / exact)
    far = exact + (steps * (num_buckets - exact) + 1e-9).clamp(min=0).long()
    return offset + torch.where(back < exact, back, far.clamp(max=num_buckets - 1))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"),
    [(32, 128), (4, 3), (6, 20), (10, 7), (64, 256), (320, 800), (12, 1000)],
)
def test_buckets_follow_the_formula(bidirectional, num_buckets, max_distance):
    options = (bidirectional, num_buckets, max_distance)
    distance = torch.arange(-2 * max_distance, 2 * max_distance + 1)
    if max_distance <= num_buckets // (2 if bidirectional else 1) // 2:
        pytest.skip("the exact buckets reach farther than max_distance")
    given = relative_bucket(
        distance,
        bidirectional=bidirectional,
        num_buckets=num_buckets,
        max_distance=max_distance,
    )
    assert torch.equal(given, t5_formula(distance, *options))
    assert set(given.tolist()) <= set(range(num_buckets))


def test_a_later_key_is_like_the_query_itself_to_a_causal_layer():
    given = relative_bucket(torch.tensor([1, 5, 1000]), bidirectional=False)
    assert given.tolist() == [0, 0, 0]


def test_two_buckets_are_here_and_elsewhere():
    distance = torch.tensor([0, -1, -2, -1000])
    options = {"bidirectional": False, "num_buckets": 2, "max_distance": 2}
    assert relative_bucket(distance, **options).tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_whole_numbers_of_every_kind_are_distances_and_positions(dtype):
    query, keys = torch.tensor([3], dtype=dtype), torch.tensor([0, 3, 9], dtype=dtype)
    assert distances(query, keys).tolist() == [[-3, 0, 6]]
    assert relative_bucket(keys).tolist() == [0, 19, 24]


def test_distances_of_a_view_are_as_good():
    distance = distances(torch.arange(3), torch.arange(5)).mT
    assert torch.equal(relative_bucket(distance), relative_bucket(distance.clone()))


# Slopes


@pytest.mark.parametrize("num_heads", [1, 2, 4, 8, 16, 32])
def test_a_power_of_two_has_slopes_evenly_apart(num_heads):
    slopes, first = alibi_slopes(num_heads), 2 ** (-8 / num_heads)
    equal(slopes, torch.tensor([first ** (h + 1) for h in range(num_heads)]))


@pytest.mark.parametrize("num_heads", [3, 5, 6, 7, 12, 20, 24, 25, 40])
def test_other_numbers_of_heads_take_every_other_slope_of_twice_as_many(num_heads):
    """The rule of the authors' `get_slopes`, which calls itself."""
    slopes, n = alibi_slopes(num_heads), 2 ** math.floor(math.log2(num_heads))
    equal(slopes[:n], alibi_slopes(n))
    equal(slopes[n:], alibi_slopes(2 * n)[0::2][: num_heads - n])


def test_slopes_of_six_and_twelve_heads_by_hand():
    six = [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]
    equal(alibi_slopes(6), torch.tensor(six))
    between = [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    twelve = [2.0**-k for k in range(1, 9)] + between
    equal(alibi_slopes(12), torch.tensor(twelve))


def test_slopes_are_made_on_the_device_that_is_asked_for():
    assert alibi_slopes(6, device="meta").device.type == "meta"


def test_alibi_costs_its_slope_for_each_step_either_way():
    bias = alibi(3)(torch.tensor([2]), torch.arange(5))
    away = torch.tensor([2.0, 1, 0, 1, 2])
    equal(bias, -alibi_slopes(3)[:, None, None] * away)


def test_far_positions_stay_apart_in_sixteen_bits():
    """Slopes times positions in bfloat16 would make 300 and 301 one."""
    layer, _ = some(alibi, heads=2, dtype=torch.bfloat16)
    for weight in layer.parameters():
        weight.zero_()
    x, positions = torch.zeros(1, 3, 5).bfloat16(), torch.tensor([0, 300, 301])
    weights = layer.attention_weights(x, positions=positions)[0, 0, 2]
    must = (-alibi_slopes(2)[0] * torch.tensor([301.0, 1, 0])).softmax(dim=-1)
    equal(weights, must.bfloat16())


# The bias that is trained


def test_at_first_no_distance_is_better_than_another():
    assert not RelativeBias(3)(torch.arange(5), torch.arange(7)).any()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_head_looks_up_its_own_number(bidirectional):
    bias = t5(3, bidirectional=bidirectional)
    table = bias(torch.tensor([2, 40]), torch.arange(5))
    for i, query in enumerate((2, 40)):
        for j in range(5):
            far = torch.tensor(j - query)
            bucket = relative_bucket(far, bidirectional=bidirectional)
            assert torch.equal(table[:, i, j], bias.table.weight[bucket])


def test_the_numbers_are_trained_with_the_layer_and_saved_with_it():
    layer = Attention(5, 12, 6, bias=RelativeBias(6, bidirectional=False))
    layer(torch.randn(2, 11, 5)).square().sum().backward()
    assert layer.bias.table.weight.grad[:10].abs().min() > 0
    assert layer.state_dict()["bias.table.weight"].shape == (32, 6)


@every
def test_a_layer_can_be_copied_pickled_and_saved(bias):
    layer, x = some(bias)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(twin(x), layer(x))


# In the layer


def by_hand(layer, x, positions):
    """One query and one key at a time."""
    out = []
    for sentence, where in zip(x, positions.expand(len(x), -1), strict=True):
        cut = [
            W(sentence).unflatten(-1, (layer.num_heads, -1)).transpose(0, 1)
            for W in (layer.W_query, layer.W_key, layer.W_value)
        ]
        heads = []
        for h, (queries, keys, values) in enumerate(zip(*cut, strict=True)):
            rows = []
            for query, p in zip(queries, where, strict=True):
                scores = []
                for key, r in zip(keys, where, strict=True):
                    number = layer.bias(p.view(1), r.view(1))[h, 0, 0]
                    score = query @ key / len(key) ** 0.5 + number
                    scores.append(score if r <= p else score - torch.inf)
                rows.append(torch.stack(scores).softmax(-1).to(values) @ values)
            heads.append(torch.stack(rows))
        out.append(layer.out_proj(torch.cat(heads, dim=-1)))
    return torch.stack(out)


@every
def test_a_layer_equals_the_sum_by_hand(bias):
    layer, x = some(bias)
    equal(layer(x), by_hand(layer, x, torch.arange(11)))
    places = torch.randperm(100)[:22].view(2, 11)
    equal(layer(x, positions=places), by_hand(layer, x, places))


@every
@pytest.mark.parametrize("first", [1, 7, 1000])
def test_it_does_not_matter_from_what_number_positions_count(bias, first):
    layer, x = some(bias)
    equal(layer(x, positions=torch.arange(first, first + 11)), layer(x))


@every
@pytest.mark.parametrize("attend", [attend, flash_attend])
def test_the_bias_is_added_after_the_scale(bias, attend):
    layer, x = some(bias, attend=attend)
    places = torch.arange(11)
    queries, keys, values = layer._heads(x, places)
    scores = queries @ keys.mT / 2**0.5 + layer.bias(places, places)
    future = torch.ones(11, 11, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    equal(layer.attention_weights(x), weights)
    context = (weights @ values).transpose(1, 2).flatten(-2)
    equal(layer(x), layer.out_proj(context))


@every
def test_the_weights_shown_are_the_weights_used(bias):
    layer, x = some(bias)
    *_, values = layer._heads(x, torch.arange(11))
    context = (layer.attention_weights(x) @ values).transpose(1, 2).flatten(-2)
    equal(layer.out_proj(context), layer(x))


@every
def test_nothing_of_the_future_leaks(bias):
    assert future_leak(*some(bias)) == 0


class Ring:
    """The last keys, each where the oldest of them was, so in no order."""

    def __init__(self, size):
        self.size, self.length, self.held = size, 0, None

    def extend(self, keys, values, positions):
        self.length += positions.shape[-1]
        if self.held is not None:
            pairs = zip(self.held, (keys, values, positions), (-2, -2, -1), strict=True)
            keys, values, positions = (torch.cat(pair[:2], pair[2]) for pair in pairs)
        last = positions.argsort()[-self.size :]
        last = last[(positions[last] % self.size).argsort()]
        self.held = keys[..., last, :], values[..., last, :], positions[last]
        self.positions = self.held[2]
        return keys, values, positions


WAYS = [[], [1], [10], [3, 4], [2, 2, 5], list(range(1, 11))]


@every
@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize("size", [3, 11, 64])
def test_pieces_give_the_whole_with_keys_in_the_order_of_a_ring(bias, ends, size):
    layer, x = some(bias, masks=(window(min(size, 11)),))
    memory, looking = Ring(size), Ring(size)
    pieces = torch.tensor_split(x, ends, dim=-2)
    given = torch.cat([layer(piece, cache=memory) for piece in pieces], dim=-2)
    equal(given, layer(x))
    for piece in pieces[:-1]:
        layer.attention_weights(piece, cache=looking)
    held = None if looking.held is None else looking.positions
    shown = layer.attention_weights(pieces[-1], cache=looking)
    new = torch.arange(11 - pieces[-1].shape[-2], 11)
    keys = new if held is None else torch.cat([held, new])
    equal(shown, layer.attention_weights(x)[..., new, :][..., keys])


@every
def test_positions_decide_and_places_do_not(bias):
    layer, x = some(bias)
    order = torch.tensor([8, 9, 10, 0, 1, 2, 3, 4, 5, 6, 7])
    equal(layer(x[:, order], positions=order), layer(x)[:, order])


@every
def test_padding_on_the_left_changes_nothing_for_the_real_tokens(bias):
    layer, x = some(bias)
    real = torch.arange(11) >= torch.tensor([[4], [0]])
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    padded = layer(x, real[:, None, None], positions=positions)
    equal(padded[0, 4:], layer(x[0, 4:]))
    equal(padded[1], layer(x[1]))


@every
def test_each_sentence_may_have_positions_of_its_own(bias):
    slot = bias(6)
    queries, keys = torch.arange(10).view(2, 5), torch.arange(14).view(2, 7)
    alone = [slot(*rows) for rows in zip(queries, keys, strict=True)]
    assert torch.equal(slot(queries, keys), torch.stack(alone))


@every
def test_one_query_may_meet_the_keys_of_a_batch(bias):
    assert bias(6)(torch.tensor([7]), torch.arange(14).view(2, 7)).shape == (2, 6, 1, 7)


@every
def test_fewer_heads_of_keys_take_the_bias_of_their_queries(bias):
    few, x = some(bias, num_kv_heads=2)
    many = Attention(5, 12, 6, bias=few.bias).double()
    state = few.state_dict()
    for name in ("W_key.weight", "W_value.weight"):
        groups = state[name].unflatten(0, (2, -1))
        state[name] = groups.repeat_interleave(3, dim=0).flatten(0, 1)
    many.load_state_dict(state)
    equal(few(x), many(x))


@every
@pytest.mark.parametrize("tracer", TRACERS)
def test_a_layer_is_compiled_and_exported(as_importer, bias, tracer):
    layer, x = some(bias, dtype=torch.float32)
    equal(TRACERS[tracer](layer, x)(x), layer(x))


# What is refused


@pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES.keys())
@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ((torch.arange(5.0), torch.arange(5)), said("query_positions", "float32")),
        ((torch.arange(5), torch.arange(5.0)), said("key_positions", "float32")),
        ((torch.arange(5), torch.ones(5).bool()), said("key_positions", "torch.bool")),
        ((torch.tensor(3), torch.arange(5)), said("query_positions", "got", "()")),
        (
            (torch.arange(5), torch.arange(5, device="meta")),
            said("key_positions", "cpu", "got", "meta"),
        ),
        (
            (torch.ones(2, 5).long(), torch.ones(3, 5).long()),
            said("positions", "broadcast", "got (2, 5) and (3, 5)"),
        ),
        (
            (torch.ones(2, 3, 5).long(), torch.ones(2, 2, 5).long()),
            said("positions", "broadcast", "got (2, 3, 5) and (2, 2, 5)"),
        ),
        (
            (torch.ones(2, 2, 5).long(), torch.ones(2, 3, 5).long()),
            said("positions", "broadcast", "got (2, 2, 5) and (2, 3, 5)"),
        ),
    ],
)
def test_what_are_no_positions_is_refused(as_importer, bias, positions, words):
    with pytest.raises(ValueError, match=words):
        bias(6)(*positions)


def test_a_list_is_no_tensor(as_importer):
    with pytest.raises(TypeError, match=said("query_positions", "Tensor", "list")):
        alibi(2)([0, 1], torch.arange(2))
    with pytest.raises(TypeError, match=said("distance", "Tensor", "int")):
        relative_bucket(3)
    with pytest.raises(TypeError, match=said("by_distance", "Tensor", "list")):
        relative_shift([[1.0]])


def test_the_table_has_the_buckets_of_the_function_by_itself():
    bias, far = RelativeBias(1).requires_grad_(False), torch.arange(-300, 301)
    bias.table.weight.copy_(torch.arange(32.0).unsqueeze(1))
    given = bias(torch.tensor([0]), far).flatten()
    assert torch.equal(given, relative_bucket(far).float())


def test_two_buckets_do_not_serve_two_directions():
    with pytest.raises(ValueError, match=said("num_buckets", "at least 4", "got 2")):
        RelativeBias(2, num_buckets=2)


def test_a_bias_for_another_number_of_heads_is_refused():
    layer = Attention(5, 12, 6, bias=alibi(4))
    with pytest.raises(ValueError, match=said("bias", "(2, 6, 11, 11)", "4")):
        layer(torch.randn(2, 11, 5))
