"""The layer with slots: by hand, beside MultiHeadAttention, and in pieces."""

import copy
import io
import math
import pickle
from functools import partial

import pytest
import torch
from examples import said
from torch import nn

from attention import (
    Attention,
    KVCache,
    LatentAttention,
    MultiHeadAttention,
    attend,
    causal,
    flash_attend,
    future_leak,
    prefix,
    window,
)
from attention.core.layer import Cache, in_order

# What may fill the slots


def turned(queries, keys, positions):
    """The first two numbers of each head, turned by its position."""
    cos, sin = positions.cos().unsqueeze(-2), positions.sin().unsqueeze(-2)

    def turn(t):
        a, b, rest = t[..., 0], t[..., 1], t[..., 2:]
        pair = torch.stack([cos * a - sin * b, sin * a + cos * b], dim=-1)
        return torch.cat([pair.to(t), rest], dim=-1)

    return turn(queries), turn(keys)


def absolute(queries, keys, positions):
    """Not of distances alone: what a wrong start would change."""
    place = 0.1 * positions[..., None, :, None]
    return queries + place.to(queries), keys - place.to(keys)


def distance(query_positions, key_positions):
    return query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)


def nearer(query_positions, key_positions):
    return -0.5 * distance(query_positions, key_positions).abs()


class ByHead(nn.Module):
    """A trained bias for each head and distance."""

    def __init__(self, num_heads, most=4):
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_heads, most + 1))

    def forward(self, query_positions, key_positions):
        back = distance(query_positions, key_positions)
        return self.table.T[back.clamp(0, self.table.shape[1] - 1)].movedim(-1, -3)


class Reach(nn.Module):
    """A mask that holds a number of its own: how far back a query sees."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("size", torch.tensor(size))

    def forward(self, query_positions, key_positions):
        back = distance(query_positions, key_positions)
        return (back >= 0) & (back < self.size)


def anything(query_positions, key_positions):
    return distance(query_positions, key_positions) == distance(
        query_positions, key_positions
    )


def causal_again(query_positions, key_positions):
    """The same as `causal`, and not the same function: it is made a table."""
    return distance(query_positions, key_positions) >= 0


SLOTS = {
    "nothing": {},
    "turned": {"process_heads": turned},
    "absolute": {"process_heads": absolute},
    "biased": {"bias": nearer},
    "biased by head": {"bias": ByHead(6)},
    "window": {"masks": (window(3),)},
    "two masks": {"masks": (causal, Reach(4))},
    "grouped": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "all": {
        "num_kv_heads": 3,
        "head_dim": 5,
        "process_heads": turned,
        "bias": ByHead(6),
        "masks": (causal, window(4)),
        "qkv_bias": True,
        "out_bias": False,
    },
}
every = pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS.keys())


def some(slots=None, dtype=torch.float64, **options):
    """A layer of six heads, and two sentences of seven tokens."""
    torch.manual_seed(0)
    layer = Attention(5, 12, 6, **options | (slots or {})).to(dtype)
    return layer, torch.randn(2, 7, 5, dtype=dtype)


# Caches


class Growing:
    def __init__(self):
        self.length, self.keys, self.values, self.positions = 0, None, None, None

    def extend(self, keys, values, positions):
        if self.length:
            keys = torch.cat([self.keys, keys], dim=-2)
            values = torch.cat([self.values, values], dim=-2)
            positions = torch.cat([self.positions, positions], dim=-1)
        self.keep(keys, values, positions)
        self.length = keys.shape[-2]
        return keys, values, positions

    def keep(self, keys, values, positions):
        self.keys, self.values, self.positions = keys, values, positions

    def truncate(self, length):
        keys, values = self.keys[..., :length, :], self.values[..., :length, :]
        self.keep(keys, values, self.positions[..., :length])
        self.length = length


class Terse:
    """It has what is promised, and no more."""

    def __init__(self):
        self.length, self.held = 0, Growing()

    def extend(self, keys, values, positions):
        self.length += positions.shape[-1]
        return self.held.extend(keys, values, positions)


class Ring(Growing):
    """A few of the last keys, where there was room."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def extend(self, keys, values, positions):
        gone_by = self.length + positions.shape[-1]
        keys, values, positions = super().extend(keys, values, positions)
        last = positions.argsort()[-self.size :]
        last = last[(positions[last] % self.size).argsort()]
        self.keep(keys[..., last, :], values[..., last, :], positions[last])
        self.length = gone_by
        return keys, values, positions


class Turned(Growing):
    """Of a piece that is not the first, it gives what came last, and that first."""

    def extend(self, keys, values, positions):
        begun = self.length
        held = super().extend(keys, values, positions)
        pairs = zip(held, (-2, -2, -1), strict=True)
        few = (t.narrow(a, begun, t.shape[a] - begun).flip(a) for t, a in pairs)
        return tuple(few) if begun else held


WAYS = [[], [1], [6], [1, 2, 3, 4, 5, 6], [3, 4], [2, 2, 5], [0, 7]]


def in_pieces(layer, x, ends, cache, call=None):
    parts = torch.tensor_split(x, ends, dim=-2)
    return torch.cat([layer(part, cache=cache) for part in parts], dim=-2)


# By hand


def by_hand(layer, x, positions, mask=None):
    """One sentence, one head, one query at a time, over the keys that it may see."""
    out = []
    for n, sentence in enumerate(x):
        where = positions[n] if positions.ndim > 1 else positions
        cut = [
            W(sentence).unflatten(-1, (-1, layer.head_dim)).transpose(0, 1)
            for W in (layer.W_query, layer.W_key, layer.W_value)
        ]
        queries, keys, values = cut
        if layer.process_heads is not None:
            queries, keys = layer.process_heads(queries, keys, where)
        heads = []
        for h in range(layer.num_heads):
            g = h * layer.num_kv_heads // layer.num_heads
            rows = []
            for i, p in enumerate(where):
                seen, scores = [], []
                for j, r in enumerate(where):
                    pair = p.view(1), r.view(1)
                    may = all(rule(*pair).item() for rule in layer.masks)
                    if not may or (mask is not None and not mask[n, 0, i, j]):
                        continue
                    score = queries[h, i] @ keys[g, j] / math.sqrt(layer.head_dim)
                    if layer.bias is not None:
                        bias = layer.bias(*pair).flatten()
                        score = score + bias[h if len(bias) > 1 else 0]
                    seen.append(values[g, j])
                    scores.append(score)
                weights = torch.stack(scores).softmax(0) if seen else None
                zero = torch.zeros(layer.head_dim, dtype=x.dtype)
                rows.append(weights @ torch.stack(seen) if seen else zero)
            heads.append(torch.stack(rows))
        out.append(layer.out_proj(torch.cat(heads, dim=-1)))
    return torch.stack(out)


@every
def test_each_slot_does_what_it_does_by_hand(slots):
    layer, x = some(slots)
    layer.double()
    torch.testing.assert_close(layer(x), by_hand(layer, x, torch.arange(7)))


@every
def test_so_it_does_where_each_sentence_has_positions_of_its_own(slots):
    layer, x = some(slots)
    positions = torch.tensor([[3, 1, 0, 2, 5, 4, 9], [0, 0, 0, 1, 2, 3, 4]])
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, ..., :2] = False
    expected = by_hand(layer, x, positions, mask)
    torch.testing.assert_close(layer(x, mask, positions=positions), expected)


def test_any_number_of_batch_axes_may_share_positions_or_have_their_own():
    layer, x = some(SLOTS["all"])
    x = torch.randn(2, 3, 7, 5, dtype=x.dtype)
    own = torch.stack([torch.randperm(7) for _ in range(6)]).view(2, 3, 7)
    for positions in (own, own[:, :1], own[0], own[0, 0]):
        rows = positions.expand(2, 3, 7)
        alone = torch.stack(
            [
                torch.stack([layer(x[a, b], positions=rows[a, b]) for b in range(3)])
                for a in range(2)
            ]
        )
        torch.testing.assert_close(layer(x, positions=positions), alone)


# Masks


def table(rule, length=5):
    places = torch.arange(length)
    return rule(places, places).int().tolist()


def test_a_window_counts_the_query_itself():
    assert table(window(1), 3) == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert table(window(2), 3) == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert [sum(row) for row in table(window(3))] == [1, 2, 3, 3, 3]
    assert table(window(9)) == table(causal)


def test_a_prefix_is_seen_by_all_and_what_follows_is_causal():
    assert table(prefix(2), 4) == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1] * 4]
    assert table(prefix(1)) == table(causal)


@pytest.mark.parametrize("rule", [causal, window(2), prefix(3)])
def test_a_mask_is_made_of_positions_wherever_they_stand(rule):
    places, order = torch.arange(7), torch.randperm(7)
    there = torch.tensor([5, 1, 6])
    whole = rule(places, places)
    assert torch.equal(rule(there, order), whole[there][:, order])
    batch = torch.stack([places, order])
    own = torch.stack([rule(row, row) for row in batch])
    assert torch.equal(rule(batch, batch), own)
    assert torch.equal(rule(there, batch), torch.stack([rule(there, r) for r in batch]))


def test_without_masks_all_see_all():
    layer, x = some(masks=())
    assert (layer.attention_weights(x) > 0).all()


# Nothing in the slots


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_with_nothing_in_its_slots_it_is_multi_head_attention(qkv_bias):
    torch.manual_seed(0)
    old = MultiHeadAttention(5, 12, 7, 0.0, 6, qkv_bias)
    torch.manual_seed(0)
    new, x = Attention(5, 12, 6, qkv_bias=qkv_bias), torch.randn(2, 7, 5)
    assert list(old.state_dict()) == list(new.state_dict())
    mask = torch.rand(2, 1, 7, 7) < 0.7
    for given in ((x,), (x, mask), (x[0],)):
        assert torch.equal(new(*given), old(*given))
        weights = new.attention_weights(*given)
        assert torch.equal(weights, old.attention_weights(*given))
    other = MultiHeadAttention(5, 12, 7, 0.0, 6, qkv_bias)
    other.load_state_dict(new.state_dict())
    new.load_state_dict(other.state_dict() | {"mask": torch.ones(7, 7)})
    assert torch.equal(new(x), other(x))


class Telling:
    """A form that keeps what it was called with."""

    def __init__(self, form=attend):
        self.form, self.calls = form, []

    def __call__(self, queries, keys, values, mask=None, **options):
        shapes = {"keys": tuple(keys.shape), "mask": mask}
        self.calls.append(shapes | options)
        return self.form(queries, keys, values, mask, **options)


def told(layer, *given, **options):
    layer.attend = Telling()
    layer(*given, **options)
    (call,) = layer.attend.calls
    return call


def flagged(call):
    return call["causal"] and call["mask"] is None and "bias" not in call


def test_causal_alone_is_told_by_the_flag_and_no_table_is_made():
    layer, x = some(num_kv_heads=2)
    assert told(layer, x) == {
        "keys": (2, 2, 7, 2),  # as few as they are
        "mask": None,
        "causal": True,
        "dropout_p": 0.0,
    }
    mask = torch.ones(7, dtype=torch.bool)
    assert told(layer, x, mask)["mask"] is mask
    memory = Growing()
    for part in torch.tensor_split(x, [3, 4], dim=1):
        assert flagged(told(layer, part, cache=memory))
    assert flagged(told(layer, x, positions=torch.tensor([0, 1, 2, 5, 6, 7, 9])))


def test_what_the_flag_cannot_tell_is_told_by_a_table():
    layer, x = some()
    order = torch.tensor([0, 1, 2, 4, 3, 5, 6])
    call = told(layer, x, positions=order)
    assert torch.equal(call["mask"].squeeze(), causal(order, order))
    assert not call["causal"]
    same = torch.tensor([0, 0, 0, 1, 2, 3, 4])
    assert told(layer, x, positions=same)["mask"] is not None
    own = torch.arange(7).expand(2, 7)
    assert told(layer, x, positions=own)["mask"].shape == (2, 1, 7, 7)
    memory = Ring(3)
    told(layer, x[:, :5], cache=memory)
    assert memory.positions.tolist() == [3, 4, 2]
    mask = told(layer, x[:, 5:], cache=memory)["mask"].squeeze()
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]
    for slots in ({"bias": nearer}, {"masks": (window(3),)}, {"masks": ()}):
        assert not told(some(slots)[0], x)["causal"]
    assert "bias" in told(some({"bias": nearer})[0], x)


def test_a_bias_beside_16_bits_stays_in_float32():
    for dtype in (torch.float16, torch.bfloat16):
        layer, x = some({"bias": nearer}, dtype)
        assert told(layer, x)["bias"].dtype == torch.float32
        assert layer(x).dtype == dtype


def test_one_counted_token_needs_no_table_and_no_look_at_positions(monkeypatch):
    """So a step compiles without one: a graph cannot look at positions."""
    monkeypatch.setattr("attention.core.layer.readable", lambda tensor: False)
    layer, x = some()
    for memory in (Growing(), Ring(3)):
        assert flagged(told(layer, x[:, :5], cache=memory))
        assert flagged(told(layer, x[:, 5:6], cache=memory))
        place = torch.tensor([6])
        assert not flagged(told(layer, x[:, 6:], cache=memory, positions=place))
    memory = Growing()
    told(layer, x[:, :5], cache=memory)
    assert not flagged(told(layer, x[:, 5:], cache=memory))


def test_keys_in_another_order_are_not_taken_for_counted_ones():
    """As many keys as queries are counted together only where the cache was empty."""
    layer, x = some({"process_heads": absolute})
    memory = Turned()
    assert flagged(told(layer, x[:, :3], cache=memory))
    call = told(layer, x[:, 3:], cache=memory)
    assert (
        call["mask"].squeeze().tolist()
        == causal(torch.arange(4), torch.arange(4).flip(0)).tolist()
    )


def test_positions_in_order_are_known_by_their_values():
    places = torch.arange(5)
    assert in_order(places, places)
    assert in_order(places[3:], places)
    assert in_order(places + 4, places + 4)
    assert not in_order(places[:2], places)
    assert not in_order(places, places[2:])
    assert not in_order(places.flip(0), places.flip(0))
    assert not in_order(places[None], places[None])
    assert in_order(places[:0], places[:0])
    assert not in_order(places.to("meta"), places.to("meta"))


@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize("make", [Growing, Terse])
def test_the_flag_hides_what_the_table_hides(ends, make):
    layer, x = some()
    other = some({"masks": (causal_again,)})[0]
    flag = in_pieces(layer, x, ends, make())
    torch.testing.assert_close(flag, in_pieces(other, x, ends, make()))


# Positions


@every
def test_nothing_of_the_future_leaks(slots):
    layer, x = some(slots)
    assert future_leak(layer, x) == 0
    own = torch.arange(7).expand(2, 7)
    assert future_leak(partial(layer, positions=own), x) == 0


@every
def test_a_sentence_padded_on_the_left_says_what_it_says_alone(slots):
    layer, x = some(slots)
    real = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7]).bool()
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    mask = real[:, None, None, :]
    together = layer(x, mask, positions=positions)
    torch.testing.assert_close(together[0, 3:], layer(x[0, 3:]))
    torch.testing.assert_close(together[1], layer(x[1]))
    memory, pieces = Growing(), []
    for start, end in ((0, 4), (4, 5), (5, 7)):  # positions go on by themselves
        given = {"positions": positions[:, :4]} if start == 0 else {}
        pieces.append(layer(x[:, start:end], mask[..., :end], cache=memory, **given))
    torch.testing.assert_close(torch.cat(pieces, dim=1), together)


def test_positions_go_on_from_where_a_text_was():
    layer, x = some({"process_heads": absolute})
    memory = Growing()
    layer(x[:, :3], positions=torch.tensor([10, 11, 12]), cache=memory)
    given = layer(x[:, 3:], cache=memory)
    whole = layer(x, positions=torch.arange(10, 17))
    torch.testing.assert_close(given, whole[:, 3:])
    assert memory.positions.tolist() == [*range(10, 17)]


# Caches


@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize("make", [Growing, Terse])
@every
def test_in_pieces_a_text_says_what_the_whole_says(slots, make, ends):
    layer, x = some(slots)
    torch.testing.assert_close(in_pieces(layer, x, ends, make()), layer(x))


@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize("size", [3, 4])
def test_a_ring_of_a_windows_size_is_memory_enough(size, ends):
    slots = {"masks": (window(size),), "process_heads": turned, "bias": nearer}
    layer, x = some(slots)
    torch.testing.assert_close(in_pieces(layer, x, ends, Ring(size)), layer(x))
    if len(ends) == 6:
        small = in_pieces(layer, x, ends, Ring(size - 2))
        assert not torch.allclose(small, layer(x))  # so the test can tell


def test_two_texts_with_two_caches_do_not_meet():
    layer, x = some(SLOTS["all"])
    one, other = Growing(), Growing()
    for token in x.unbind(dim=1):
        here = layer(token[0, None], cache=one), layer(token[1, None], cache=other)
    torch.testing.assert_close(torch.stack(here), layer(x)[:, -1:])


def test_the_weights_extend_a_cache_as_forward_does():
    layer, x = some(SLOTS["all"])
    memory = Growing()
    layer(x[:, :4], cache=memory)
    with torch.no_grad():
        looked = copy.copy(memory)
        weights = layer.attention_weights(x[:, 4:], cache=looked)
    assert (memory.length, looked.length) == (4, 7)
    torch.testing.assert_close(weights, layer.attention_weights(x)[..., 4:, :])


def test_a_cache_is_what_keeps_the_promise():
    assert isinstance(Terse(), Cache)
    assert not isinstance([], Cache)


# Weights, forms, blind rows


def softly(queries, keys, values, mask=None, *, causal, dropout_p, **bias):
    """A form that offers no weights."""
    return attend(queries, keys, values, mask, causal=causal, scale=0.1, **bias)


@pytest.mark.parametrize("form", [attend, softly, partial(flash_attend, tile=(2, 3))])
@every
def test_the_weights_shown_are_the_weights_used(slots, form):
    layer, x = some(slots, attend=form)
    memory, looked = Growing(), Growing()
    for part in torch.tensor_split(x, [4], dim=1):
        context = layer(part, cache=memory)
        weights = layer.attention_weights(part, cache=looked)
        times = layer.num_heads // layer.num_kv_heads
        values = memory.values.repeat_interleave(times, dim=-3)
        heads = (weights @ values).transpose(-3, -2).flatten(-2)
        torch.testing.assert_close(layer.out_proj(heads), context)


def test_a_form_may_be_a_module_that_is_trained():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, *inputs, **options):
            return attend(*inputs, scale=self.scale, **options)

    layer, x = some(attend=Scaled())
    layer(x).sum().backward()
    assert layer.attend.scale.grad.abs() > 0


@every
def test_a_query_that_sees_no_key_gets_zeros_and_a_zero_gradient(slots):
    layer, x = some(slots)
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[0, :, 4] = False
    x.requires_grad_()
    blind = layer(x, mask)[0, 4]
    bias = layer.out_proj.bias
    torch.testing.assert_close(
        blind, torch.zeros(12).double() if bias is None else bias
    )
    (gradient,) = torch.autograd.grad(blind.sum(), x)
    assert (gradient == 0).all()
    assert (layer.attention_weights(x, mask)[0, :, 4] == 0).all()
    layer(x, mask).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_dropout_drops_in_training_alone():
    layer, x = some(dropout=1.0, out_bias=False)
    assert (layer(x) == 0).all()
    assert (layer.eval()(x) != 0).all()
    assert told(layer.train(), x)["dropout_p"] == 1.0


# Modules in the slots


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, queries, keys, positions):
        return queries * self.gain, keys * self.gain


def filled():
    slots = {"process_heads": Norm(), "bias": ByHead(6), "masks": (causal, Reach(3))}
    return some(slots, torch.float32)


def test_modules_in_the_slots_belong_to_the_layer():
    layer, x = filled()
    names = {"process_heads.gain", "bias.table", "mask_modules.0.size"}
    assert names <= layer.state_dict().keys()
    layer(x).square().sum().backward()
    assert layer.bias.table.grad.abs().sum() > 0
    assert layer.process_heads.gain.grad.abs().sum() > 0
    layer.to("meta")
    assert layer.masks[1].size.device.type == layer.bias.table.device.type == "meta"
    assert layer(x.to("meta")).shape == (2, 7, 12)


def test_copies_and_pickles_compute_the_same_and_share_nothing():
    layer, x = filled()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert twin.masks[1] is twin.mask_modules[0] is not layer.masks[1]
        with torch.no_grad():
            twin.masks[1].size.fill_(1)
        assert not torch.equal(twin(x), layer(x))
        assert layer.masks[1].size == 3


def test_a_checkpoint_holds_the_slots():
    layer, x = filled()
    other, _ = filled()
    with torch.no_grad():
        layer.bias.table.normal_()
        layer.masks[1].size.fill_(2)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("rule", [causal, window(3), prefix(2)])
def test_masks_are_saved_with_a_whole_layer(rule):
    layer, x = some({"masks": (rule,)})
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


# What does not fit


def refused(layer, x, *fields, **options):
    with pytest.raises(ValueError, match=said(*fields)):
        layer(x, **options)


@pytest.mark.parametrize(
    ("positions", "fields"),
    [
        (torch.arange(7.0), ("positions", "float32")),
        (torch.ones(7).bool(), ("positions", "bool")),
        (torch.arange(6), ("positions", "7", "got", "(6,)")),
        (torch.arange(7)[:, None], ("positions", "got", "(7, 1)")),
        (torch.zeros(3, 7).long(), ("positions", "(2, 7)", "got", "(3, 7)")),
        (torch.zeros(1, 2, 7).long(), ("positions", "got", "(1, 2, 7)")),
        (torch.arange(7) - 1, ("positions", "0", "got", "-1")),
        (torch.arange(7).to("meta"), ("positions", "cpu", "got", "meta")),
    ],
)
def test_positions_of_another_kind_are_refused(positions, fields, as_importer):
    layer, x = some()
    refused(layer, x, *fields, positions=positions)


def test_positions_that_are_no_tensor_are_refused(as_importer):
    layer, x = some()
    with pytest.raises(TypeError, match="positions"):
        layer(x, positions=[0, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("width", [1, 3, 4, 6])
@pytest.mark.parametrize("masks", [(causal,), (window(5),)])
def test_a_mask_beside_a_cache_is_as_wide_as_all_keys(width, masks):
    layer, x = some(masks=masks)
    memory = Growing()
    layer(x[:, :4], cache=memory)
    kept = memory.keys
    mask = torch.ones(2, 1, 1, width, dtype=torch.bool)
    refused(layer, x[:, 4:5], "mask", "5", "got", str(width), mask=mask, cache=memory)
    assert memory.length == 4  # as it was
    assert torch.equal(memory.keys, kept)
    whole = layer(x[:, :5])
    mask = torch.ones(5, dtype=torch.bool)
    given = layer(x[:, 4:5], mask, cache=memory)
    torch.testing.assert_close(given, whole[:, 4:])


def test_a_limit_counts_what_is_cached():
    layer, x = some()
    layer.context_length = 6
    refused(layer, x, "x", "6", "got", "7")
    memory = Growing()
    layer(x[:, :4], cache=memory)
    refused(layer, x[:, 4:], "x", "6", "got", "3", cache=memory)
    assert memory.length == 4
    layer(x[:, 4:6], cache=memory)


def wide(query_positions, key_positions):
    return torch.ones(7, 6, dtype=torch.bool)


@pytest.mark.parametrize(
    ("slots", "fields"),
    [
        ({"masks": (wide,)}, ("masks", "(7, 7)", "got", "(7, 6)")),
        ({"masks": (nearer,)}, ("masks", "booleans", "got", "float32")),
        ({"bias": causal}, ("bias", "floats", "got", "bool")),
        ({"bias": distance}, ("bias", "floats", "got", "int64")),
        ({"bias": lambda q, k: torch.zeros(7)}, ("bias", "(7, 7)", "got", "(7,)")),
        (
            {"process_heads": lambda q, k, p: (q[..., 1:, :], k)},
            ("process_heads", "got", "(2, 6, 6, 2)"),
        ),
    ],
)
def test_a_slot_that_gives_another_thing_is_named(slots, fields):
    layer, x = some(slots)
    refused(layer, x, *fields)


def test_a_cache_that_loses_its_positions_is_named():
    class Losing(Growing):
        def extend(self, keys, values, positions):
            keys, values, positions = super().extend(keys, values, positions)
            return keys, values, positions[:-1]

    layer, x = some()
    refused(layer, x, "cache", "7", "got", "(6,)", cache=Losing())


def test_under_autocast_all_slots_work():
    layer, x = some(SLOTS["all"], torch.float32)
    with torch.no_grad():
        exact = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = layer(x)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, rtol=0.0, atol=0.05)  # 8 bits


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_a_window_of_positions_in_few_bits_is_the_same(dtype):
    places = torch.arange(7)
    narrow = places.to(dtype)
    assert torch.equal(window(256)(narrow, narrow), window(256)(places, places))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_a_prefix_of_positions_in_few_bits_is_the_same(dtype):
    places = torch.arange(50, 57)
    narrow = places.to(dtype)
    assert torch.equal(prefix(300)(narrow, narrow), prefix(300)(places, places))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize("masks", [(causal,), (lambda i, j: distance(i, j) >= 0,)])
def test_positions_in_few_bits_hide_the_same_keys(masks, dtype):
    layer, x = Attention(6, 6, 2, masks=masks), torch.randn(4, 6)
    positions = torch.tensor([5, 3, 7, 4])
    torch.testing.assert_close(
        layer(x, positions=positions.to(dtype)), layer(x, positions=positions)
    )


def refusals():
    """Slots and masks of a call that is refused after its cache was extended."""

    def raises(*inputs, **options):
        raise RuntimeError("no such form")

    short = partial(torch.zeros, 1, 1)
    return {
        "a mask of floats": ({}, torch.ones(2, 1, 1, 4), ValueError),
        "a mask of seven texts": ({}, torch.ones(7, 1, 1, 4).bool(), ValueError),
        "a bias of another size": ({"bias": lambda *_: short()}, None, ValueError),
        "a form that raises": ({"attend": raises}, None, RuntimeError),
    }


@pytest.mark.parametrize("called", ["forward", "attention_weights"])
@pytest.mark.parametrize("kind", [Attention, LatentAttention])
@pytest.mark.parametrize("fault", refusals())
def test_a_refused_call_leaves_the_cache_as_it_was(as_importer, fault, kind, called):
    (slots, mask, error), x = refusals()[fault], torch.randn(2, 4, 12)
    sizes = {"latent_dim": 3, "rotary_dim": 2} if kind is LatentAttention else {}
    layer, cache = kind(12, 12, 2, **sizes), KVCache()
    layer(x[:, :3], cache=cache)
    held = cache.positions.tolist()
    for name, slot in slots.items():
        setattr(layer, name, slot)
    with pytest.raises(error):
        getattr(layer, called)(x[:, 3:], mask, cache=cache)
    assert (cache.length, cache.positions.tolist()) == (3, held)


def no_context(*inputs, **options):
    """A form without a `return`."""


@pytest.mark.parametrize("kind", [Attention, LatentAttention])
@pytest.mark.parametrize("fault", ["another dtype", "a hook that raises", "no context"])
def test_a_call_that_fails_after_attention_leaves_the_cache_as_it_was(fault, kind):
    sizes = {"latent_dim": 3, "rotary_dim": 2} if kind is LatentAttention else {}
    layer, cache, x = kind(12, 12, 2, **sizes), KVCache(), torch.randn(2, 4, 12)
    layer(x[:, :3], cache=cache)
    if fault == "another dtype":
        layer.out_proj.to(torch.bfloat16)
    elif fault == "no context":
        layer.attend = no_context
    else:
        layer.out_proj.register_forward_hook(lambda *_: 1 // 0)
    with pytest.raises((RuntimeError, ZeroDivisionError, ValueError)):
        layer(x[:, 3:], cache=cache)
    assert cache.length == 3
