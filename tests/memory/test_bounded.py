"""The rolling cache: its slots, its window, its way back, and the first tokens."""

import copy
from itertools import combinations

import pytest
import torch
from examples import said
from torch import nn

from attention import (
    Attention,
    DynamicNTKScaling,
    KVCache,
    LinearScaling,
    MultimodalRotary,
    ProcessHeads,
    QKNorm,
    RollingCache,
    Rotary,
    YaRN,
    alibi,
    causal,
    picture_places,
    window,
    window_and_sinks,
)
from attention.core.layer import Cache

equal = torch.testing.assert_close
LENGTH = 11
WAYS = [[], [3], [7], [1, 2], [5, 6, 10], [2, 9], [4, 8], [*range(1, LENGTH)]]
SLOTS = {
    "rotary": {"process_heads": Rotary(4)},
    "all": {
        "num_kv_heads": 3,
        "process_heads": ProcessHeads(QKNorm(4), Rotary(4, interleaved=True)),
        "bias": alibi(6),
    },
}


def some(masks, dtype=torch.float32, **slots):
    """A layer with six heads and these masks, and two texts."""
    torch.manual_seed(2357)
    layer = Attention(10, 10, 6, head_dim=4, masks=masks, **slots).to(dtype)
    return layer.requires_grad_(False), torch.randn(2, LENGTH, 10, dtype=dtype)


def in_pieces(layer, x, ends, cache, **options):
    pieces = torch.tensor_split(x, ends, dim=-2)
    read = [layer(piece, cache=cache, **options) for piece in pieces]
    return torch.cat(read, dim=-2)


def fill(cache, count, start=0, batch=(2,), widths=(5, 7)):
    """Hand random tokens to a cache; what it gave for them."""
    keys, values = (torch.randn(*batch, 3, count, width) for width in widths)
    return cache.extend(keys, values, torch.arange(start, start + count))


def numbered(cache, tokens):
    """Hand tokens over whose keys are their numbers; those that it gave."""
    numbers = torch.tensor(tokens, dtype=torch.float32).view(1, 1, -1, 1)
    keys, values, positions = cache.extend(numbers, -numbers, torch.tensor(tokens))
    assert torch.equal(keys, -values)
    assert keys.flatten().tolist() == positions.tolist()
    return positions.tolist()


def state(cache):
    return cache.length, cache._oldest, [tensor.clone() for tensor in cache._memory]


def held(cache):
    """How many tokens all its memory has room for."""
    return cache._memory[0].shape[-2]


# The ring


def test_it_is_a_cache():
    assert isinstance(RollingCache(3), Cache)
    assert RollingCache(3).positions.tolist() == []


def test_a_token_goes_to_the_slot_of_its_number_modulo_the_window():
    cache = RollingCache(4)
    for token in range(7):
        given = numbered(cache, [token])
    slots = cache._memory[0].flatten().tolist()
    assert slots + given == [4, 5, 6, 3, 3, 4, 5, 6]  # Jiang et al. 2023, section 2.1


@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 20])
def test_new_tokens_get_the_sinks_and_the_window_before_them(size, sinks, spare, ends):
    cache, before = RollingCache(size, sinks, spare=spare), 0
    for end in [*ends, LENGTH]:
        old = [t for t in range(before) if t < sinks or t > before - size]
        new = [*range(before, end)]
        assert numbered(cache, new) == old + new
        kept = [t for t in range(end) if t < sinks or t >= end - size]
        assert (cache.positions.tolist(), cache.length) == (kept, end)
        before = end
    assert held(cache) <= min(size + spare + sinks, 2 * LENGTH)


def test_what_is_kept_does_not_grow():
    cache, sizes = RollingCache(5, 2, spare=3), []
    for start in range(0, 200, 4):
        fill(cache, 4, start)
        sizes.append(sum(tensor.nbytes for tensor in cache._memory))
    assert len(set(sizes[3:])) == 1
    assert held(cache) == 5 + 2 + 3
    cache = RollingCache(4)
    fill(cache, 500)
    assert held(cache) == 4
    assert cache._memory[0].untyped_storage().nbytes() == 2 * 3 * 4 * 5 * 4


def test_a_window_that_is_never_full_takes_no_more_than_twice_the_text():
    cache = RollingCache(10**9)
    for start in range(70):
        fill(cache, 1, start)
    assert 70 <= held(cache) < 140


def test_tokens_are_written_in_place_where_nobody_could_notice():
    cache = RollingCache(4)
    with torch.no_grad():
        fill(cache, 6)
        memory = cache._memory
        given = fill(cache, 1, 6)
        copies = [tensor.clone() for tensor in given]
        for start in range(7, 12):
            fill(cache, 1, start)
    pairs = zip(memory, cache._memory, strict=True)
    assert all(old.data_ptr() == new.data_ptr() for old, new in pairs)
    for tensor, as_it_was in zip(given, copies, strict=True):
        assert torch.equal(tensor, as_it_was)  # what was given is not written over


# The window


@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize("size", [1, 2, 4, 11])
@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
def test_in_pieces_a_text_says_what_the_whole_says(slots, size, ends):
    layer, x = some((window(size),), **slots)
    equal(in_pieces(layer, x, ends, RollingCache(size)), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_so_it_does_in_every_precision(dtype):
    layer, x = some((causal, window(3)), dtype, **SLOTS["rotary"])
    whole, size = layer(x), 32 * torch.finfo(dtype).eps  # other sums, other rounding
    for ends in WAYS:
        read = in_pieces(layer, x, ends, RollingCache(3))
        equal(read, whole, rtol=size, atol=size)
        assert read.dtype == dtype


def test_every_way_to_cut_a_text_is_the_same():
    layer, x = some((window(3),), **SLOTS["all"])
    x = x[:, :7]
    for count in range(7):
        for ends in combinations(range(1, 7), count):
            equal(in_pieces(layer, x, [*ends], RollingCache(3)), layer(x))


def test_a_window_counts_the_query_itself():
    keys = torch.arange(6)
    seen = window(3)(keys, keys).sum(dim=1).tolist()
    fields = []
    for num_layers in (1, 2, 4):
        torch.manual_seed(num_layers)
        x = torch.randn(1, 13, 6, requires_grad=True)
        y = x
        for _ in range(num_layers):
            y = y + Attention(6, 6, 2, masks=(window(3),))(y)
        y[0, -1].square().sum().backward()
        fields.append(x.grad[0].any(dim=-1).sum().item())
    assert seen + fields == [1, 2, 3, 3, 3, 3, 3, 5, 9]
    given = [numbered(cache := RollingCache(3), [0, 1, 2, 3]), numbered(cache, [4])]
    assert given == [[0, 1, 2, 3], [2, 3, 4]]


def test_a_ring_that_is_one_too_small_is_seen():
    layer, x = some((window(4),))
    tokens = [*range(1, LENGTH)]
    small = in_pieces(layer, x, tokens, RollingCache(3))
    assert not torch.allclose(small, layer(x))
    equal(small[:, :3], layer(x)[:, :3])


def test_the_window_holds_while_tokens_are_written_one_by_one():
    layer, x = some((causal,))  # of itself the layer sees whatever it is given
    read = in_pieces(layer, x, [*range(1, LENGTH)], RollingCache(4))
    near, _ = some((window(4),))
    near.load_state_dict(layer.state_dict())
    equal(read, near(x))
    assert not torch.allclose(read, layer(x))


@pytest.mark.parametrize("ends", WAYS)
def test_a_text_padded_on_the_left_says_what_it_says_alone(ends):
    layer, x = some((window(3),), **SLOTS["all"])
    real = torch.arange(LENGTH) >= torch.tensor([[4], [0]])
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    hide, cache, read, start = real[:, None, None], RollingCache(3), [], 0
    for end in [*ends, LENGTH]:
        mask = hide[..., max(0, start - 2) : end]
        here = positions[:, start:end]
        read.append(layer(x[:, start:end], mask, positions=here, cache=cache))
        start = end
    read = torch.cat(read, dim=1)
    equal(read[0, 4:], layer(x[0, 4:]))
    equal(read[1], layer(x[1]))


@pytest.mark.parametrize("ends", WAYS)
def test_rows_of_positions_may_come_late_and_go_again(ends):
    layer, x = some((window(3),), **SLOTS["rotary"])
    whole, cache, start = layer(x), RollingCache(3), 0
    for turn, end in enumerate([*ends, LENGTH]):
        here = torch.arange(start, end)
        if turn % 2:
            here = here.expand(2, -1)
        read = layer(x[:, start:end], positions=here, cache=cache)
        equal(read, whole[:, start:end])
        start = end
    assert cache.positions.ndim == 1 + (len(ends) > 0)


def test_a_text_may_begin_anywhere_and_leave_positions_out():
    layer, x = some((window(4),), **SLOTS["rotary"])
    positions = 3 * torch.arange(LENGTH) + 100
    cache, read = RollingCache(4), []
    for token, at in zip(x.split(1, dim=1), positions.split(1), strict=True):
        read.append(layer(token, positions=at, cache=cache))
    equal(torch.cat(read, dim=1), layer(x, positions=positions))


def test_nothing_new_changes_nothing():
    cache = RollingCache(3)
    assert [t.shape[-2] for t in fill(cache, 0)[:2]] == [0, 0]
    fill(cache, 5)
    keys, _, positions = fill(cache, 0, 5)
    assert positions.tolist() == [3, 4]
    assert keys.shape == (2, 3, 2, 5)
    assert cache.length == 5


# Back again


@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_it_goes_back_as_far_as_it_can_and_refuses_the_rest(size, sinks, spare):
    rule = window_and_sinks(size, sinks) if sinks else window(size)
    layer, x = some((rule,), **SLOTS["rotary"])
    whole = layer(x)
    for length in range(LENGTH + 1):
        for back in range(length + 1):
            cache = RollingCache(size, sinks, spare=spare)
            layer(x[:, :length], cache=cache)
            dropped = length > size + sinks + spare
            before = state(cache)
            most = spare + (size > 1)
            if dropped and length - back > most:
                least = length - most
                with pytest.raises(ValueError, match=said("length", least, length)):
                    cache.truncate(back)
                assert (cache.length, cache._oldest) == before[:2]
                equal(list(cache._memory), before[2])
            else:
                cache.truncate(back)
                equal(layer(x[:, back:], cache=cache), whole[:, back:])


def test_it_goes_back_again_and_again():
    layer, x = some((window(4),), **SLOTS["all"])
    whole, cache, generator = layer(x), RollingCache(4, spare=2), torch.Generator()
    generator.manual_seed(2357)
    while cache.length < LENGTH:
        at = cache.length
        new = torch.randint(1, 4, (), generator=generator).item()
        equal(layer(x[:, at : at + new], cache=cache), whole[:, at : at + new])
        guesses = torch.randn(2, 2, 10)
        at = cache.length
        layer(guesses, cache=cache)
        cache.truncate(at)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("new", [1, 4, 20])
def test_the_last_call_can_be_undone_whatever_it_dropped(new, recorded, as_importer):
    for length in range(12):
        cache = RollingCache(3, 1, spare=1)
        fill(cache, length)
        before = state(cache)
        with torch.set_grad_enabled(recorded):
            fill(cache, new, length)
        cache.undo()
        assert state(cache)[:2] == before[:2]
        equal(list(cache._memory), before[2])
        with pytest.raises(ValueError, match="undo: expected a call of extend"):
            cache.undo()


def test_what_was_written_in_inference_mode_can_be_undone_outside():
    cache = RollingCache(3, 1)
    with torch.inference_mode():
        fill(cache, 6)
        before = state(cache)
        fill(cache, 2, 6)
    cache.undo()
    assert state(cache)[:2] == before[:2]
    equal(list(cache._memory), before[2])
    fill(cache, 1, 6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_sinks_at_positions_in_few_bits_are_the_same(dtype):
    places, mask = torch.arange(50, 57), window_and_sinks(2, 300)
    narrow = places.to(dtype)
    assert torch.equal(mask(narrow, narrow), mask(places, places))


def test_only_a_call_that_is_the_last_can_be_undone(as_importer):
    cache = RollingCache(3)
    fill(cache, 5)
    twin = copy.copy(cache)
    cache.truncate(4)
    for each in (RollingCache(3), twin, cache):
        with pytest.raises(ValueError, match="undo: expected a call of extend"):
            each.undo()


def test_after_going_back_it_goes_back_no_further():
    cache = RollingCache(4, spare=2)
    fill(cache, 20)
    cache.truncate(18)
    cache.truncate(17)
    with pytest.raises(ValueError, match=said("length", 17, "got 16")):
        cache.truncate(16)
    fill(cache, 1, 17)
    with pytest.raises(ValueError, match=said("length", 17, 18, "got 16")):
        cache.truncate(16)
    assert cache.positions.tolist() == [14, 15, 16, 17]


@pytest.mark.parametrize("length", [-1, 4, 2.0, True, None, "2"])
def test_a_length_that_is_none_of_those_so_far_is_refused(length, as_importer):
    cache = RollingCache(5)
    fill(cache, 3)
    with pytest.raises(ValueError, match=said("length", "0", "3", "got", repr(length))):
        cache.truncate(length)
    assert cache.length == 3


def test_an_empty_cache_takes_any_kind_of_floats():
    cache = RollingCache(3)
    fill(cache, 3)
    cache.truncate(0)
    keys = torch.randn(5, 1, 2, 11, dtype=torch.float64)
    given = cache.extend(keys, keys, torch.arange(2))
    assert torch.equal(given[0], keys)
    assert given[0].data_ptr() != keys.data_ptr()  # its memory is its own
    assert cache._memory[0].dtype == torch.float64


# What does not fit

FAULTS = {
    "another dtype": ({"dtype": torch.float64}, said("keys", "float32", "got")),
    "another batch": ({"batch": 5}, said("keys", "(2, 3", "got", "(5, 3")),
    "other heads": ({"heads": 1}, said("keys", "(2, 3", "got", "(2, 1")),
    "another width of keys": ({"widths": (6, 7)}, said("keys", "5", "got", "6")),
    "another width of values": ({"widths": (5, 5)}, said("values", "7", "got", "5")),
    "another device": ({"device": "meta"}, said("keys", "cpu", "got", "meta")),
    "positions that go back": ({"start": 8}, said("positions", "8", "got", "8")),
}


def piece(batch=2, heads=3, widths=(5, 7), start=9, **kind):
    shapes = ((batch, heads, 2, width) for width in widths)
    keys, values = (torch.zeros(shape, **kind) for shape in shapes)
    device = kind.get("device", "cpu")
    return keys, values, torch.arange(start, start + 2, device=device)


@pytest.mark.parametrize(("fault", "words"), FAULTS.values(), ids=FAULTS)
def test_what_does_not_fit_is_refused_and_leaves_no_trace(fault, words, as_importer):
    cache = RollingCache(4, 1, spare=1)
    fill(cache, 9)
    before = state(cache)
    with pytest.raises(ValueError, match=words):
        cache.extend(*piece(**fault))
    assert (cache.length, cache._oldest) == before[:2]
    equal(list(cache._memory), before[2])
    cache.extend(*piece())


def test_a_window_of_one_refuses_positions_that_go_back(as_importer):
    cache = RollingCache(1)
    fill(cache, 9)
    with pytest.raises(ValueError, match=said("positions", "8", "got", "8")):
        cache.extend(*piece(start=8))


def test_sizes_that_are_none_are_refused(as_importer):
    for size in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match=said("window", "whole number", size)):
            RollingCache(size)
        with pytest.raises(ValueError, match=said("size", "whole number", size)):
            window_and_sinks(size, 1)
    for count in (-1, 2.0, False, None):
        with pytest.raises(ValueError, match=said("sinks", "whole number", count)):
            RollingCache(3, count)
        with pytest.raises(ValueError, match=said("spare", "whole number", count)):
            RollingCache(3, spare=count)
        with pytest.raises(ValueError, match=said("sinks", "whole number", count)):
            window_and_sinks(3, count)
    with pytest.raises(ValueError, match=said("inside", "got 1")):
        RollingCache(3, 1, inside=1)


# The first tokens


@pytest.mark.parametrize("ends", WAYS)
@pytest.mark.parametrize(("size", "sinks"), [(1, 1), (3, 2), (2, 5), (4, 0), (20, 1)])
@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
def test_with_sinks_the_pieces_say_what_the_whole_says(slots, size, sinks, ends):
    layer, x = some((window_and_sinks(size, sinks),), **slots)
    equal(in_pieces(layer, x, ends, RollingCache(size, sinks)), layer(x))


def test_the_mask_is_a_window_and_the_first_positions():
    places = torch.arange(9)
    seen = window_and_sinks(3, 2)(places, places)
    for query in range(9):
        must = [k <= query and (k < 2 or k > query - 3) for k in range(9)]
        assert seen[query].tolist() == must
    rows = torch.stack([places, places + 1])
    table = window_and_sinks(3, 2)(rows, rows)
    assert torch.equal(table[0], seen)
    assert table[1, 8].int().tolist() == [1, 0, 0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(
        window_and_sinks(4, 0)(places, places), window(4)(places, places)
    )


def streamed_anew(layer, x, size, sinks):
    """Each token of a text of the sinks and the last tokens, from nothing."""
    rows = []
    for at in range(x.shape[1]):
        start = max(sinks, at + 1 - size)
        alone = torch.cat([x[:, : min(sinks, at + 1)], x[:, start : at + 1]], dim=1)
        rows.append(layer(alone)[:, -1:])
    return torch.cat(rows, dim=1)


TURNED = {
    "halves": Rotary(4),
    "interleaved": Rotary(4, interleaved=True),
    "a part of the head": Rotary(4, rotary_dim=2),
    "slowed": Rotary(4, scaling=LinearScaling(3)),
    "with a factor": Rotary(4, scaling=YaRN(4, 16)),
}


@pytest.mark.parametrize(
    "masks", [(causal,), (window(3 + 2),)], ids=["causal", "window"]
)
@pytest.mark.parametrize("rotary", TURNED.values(), ids=TURNED)
@pytest.mark.parametrize("spare", [0, 2])
def test_inside_the_cache_is_as_if_the_rest_had_never_been(rotary, masks, spare):
    layer, x = some(masks, process_heads=rotary, num_kv_heads=2)
    cache = RollingCache(3, 2, rotary=rotary, spare=spare)
    read = in_pieces(layer, x, [5, *range(6, LENGTH)], cache)
    equal(read, streamed_anew(layer, x, 3, 2))
    assert cache.positions.tolist() == [6, 7, 8, 9, 10]


@pytest.mark.parametrize("batch", [(), (1, 2), (2, 1, 1)])
def test_so_it_is_with_any_number_of_batch_axes(batch):
    layer, x = some((causal,), process_heads=TURNED["halves"])
    must = streamed_anew(layer, x, 3, 2)
    x, must = (t[0] if batch == () else t.view(*batch, LENGTH, 10) for t in (x, must))
    cache = RollingCache(3, 2, rotary=TURNED["halves"])
    equal(in_pieces(layer, x, [*range(1, LENGTH)], cache), must)


def test_so_it_is_with_a_bias_by_distance_and_no_rotary():
    layer, x = some((causal,), bias=alibi(6))
    cache = RollingCache(3, 2, inside=True)
    equal(
        in_pieces(layer, x, [*range(1, LENGTH)], cache), streamed_anew(layer, x, 3, 2)
    )
    in_the_text = in_pieces(layer, x, [*range(1, LENGTH)], RollingCache(3, 2))
    assert not torch.allclose(in_the_text, streamed_anew(layer, x, 3, 2))


def test_keys_that_are_turned_need_their_rotary_inside_the_cache():
    layer, x = some((causal,), process_heads=TURNED["halves"])
    forgot = in_pieces(layer, x, [*range(1, LENGTH)], RollingCache(3, 2, inside=True))
    assert not torch.allclose(forgot, streamed_anew(layer, x, 3, 2))


def test_positions_of_each_row_move_its_sinks():
    layer, x = some((causal,), process_heads=TURNED["halves"])
    cache, read = RollingCache(3, 2, rotary=TURNED["halves"]), []
    for at, token in enumerate(x.split(1, dim=1)):
        places = torch.full((2, 1), at)
        read.append(layer(token, positions=places, cache=cache))
    equal(torch.cat(read, dim=1), streamed_anew(layer, x, 3, 2))
    assert cache.positions.tolist() == [[6, 7, 8, 9, 10]] * 2


def test_long_texts_and_few_bits_add_up_no_rounding():
    rotary = Rotary(4)
    for dtype, size in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        cache = RollingCache(2, 1, rotary=rotary)
        first = torch.randn(1, 1, 1, 4).to(dtype)
        for at in range(500):
            key = first if at == 0 else torch.zeros_like(first)
            keys, _, positions = cache.extend(key, key, torch.tensor([at]))
        assert positions.tolist() == [497, 498, 499]
        must = rotary(first, first, torch.tensor([497]))[1]
        equal(keys[..., :1, :], must, rtol=size, atol=size)  # angles of 497 radians


def test_sinks_that_move_take_tokens_one_at_a_time():
    rotary = Rotary(4)
    layer, x = some((causal,), process_heads=rotary)
    cache = RollingCache(3, 2, rotary=rotary)
    with pytest.raises(ValueError, match=said("keys", "one", "5", "got 6 beside 0")):
        layer(x[:, :6], cache=cache)
    assert cache.length == 0
    layer(x[:, :5], cache=cache)
    with pytest.raises(ValueError, match=said("keys", "one", "got 2 beside 5")):
        layer(x[:, 5:7], cache=cache)
    read = in_pieces(layer, x[:, 5:], [*range(1, 6)], cache)
    equal(read, streamed_anew(layer, x, 3, 2)[:, 5:])


def test_without_sinks_nothing_moves():
    rotary = Rotary(4)
    layer, x = some((window(3),), process_heads=rotary)
    for ends in WAYS:
        equal(in_pieces(layer, x, ends, RollingCache(3, rotary=rotary)), layer(x))


def test_inside_the_cache_it_goes_back_as_exactly():
    rotary = Rotary(4)
    layer, x = some((causal,), process_heads=rotary)
    must, cache = (
        streamed_anew(layer, x, 3, 2),
        RollingCache(3, 2, rotary=rotary, spare=1),
    )
    for at, token in enumerate(x.split(1, dim=1)):
        if at > 1:
            layer(torch.randn(2, 1, 10), cache=cache)
            cache.truncate(at)
        equal(layer(token, cache=cache), must[:, at : at + 1])


def test_padding_is_no_sink():
    cache = RollingCache(3, 2)
    keys, padded = torch.randn(2, 1, 4, 5), torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match=said("positions", [0, 1], "got", "[0, 0]")):
        cache.extend(keys, keys, padded)
    with pytest.raises(ValueError, match=said("positions", [0, 1], "got", [7, 8])):
        cache.extend(keys, keys, torch.arange(7, 11))
    assert cache.length == 0
    cache.extend(keys[..., :1, :], keys[..., :1, :], torch.arange(1))
    with pytest.raises(ValueError, match=said("positions", [1], "got", [2])):
        cache.extend(keys, keys, torch.arange(2, 6))
    cache.extend(keys, keys, torch.arange(1, 5))
    cache.extend(keys, keys, torch.arange(7, 11))


def test_a_rotary_whose_turns_do_not_add_up_is_refused(as_importer):
    stale = Rotary(4, scaling=DynamicNTKScaling(2, 16))
    with pytest.raises(ValueError, match=said("rotary", "evenly", "DynamicNTK")):
        RollingCache(3, 1, rotary=stale)
    pictures = MultimodalRotary(16, picture_places(7), sections=(2, 3, 3))
    for other in (pictures, QKNorm(4), 7):
        with pytest.raises(
            ValueError, match=said("rotary", "got", type(other).__name__)
        ):
            RollingCache(3, 1, rotary=other)


# Gradients, modes and copies


@pytest.mark.parametrize("ends", WAYS)
def test_gradients_in_pieces_are_those_of_the_whole(ends):
    layer, x = some((window_and_sinks(3, 1),), **SLOTS["rotary"])
    layer.requires_grad_(True)
    wanted = torch.autograd.grad(layer(x).square().sum(), layer.parameters())
    read = in_pieces(layer, x, ends, RollingCache(3, 1))
    given = torch.autograd.grad(read.square().sum(), layer.parameters())
    for got, must in zip(given, wanted, strict=True):
        equal(got, must, rtol=1e-4, atol=1e-5)  # sums in another order


def test_gradients_come_from_what_is_held_and_from_nothing_else():
    cache = RollingCache(3)
    old = torch.randn(1, 1, 3, 2, requires_grad=True)
    cache.extend(old, old, torch.arange(3))
    with torch.no_grad():
        new = torch.randn(1, 1, 2, 2)
        cache.extend(new, new, torch.arange(3, 5))
    last = torch.randn(1, 1, 1, 2)
    keys, _, positions = cache.extend(last, last, torch.arange(5, 6))
    assert positions.tolist() == [3, 4, 5]
    assert not keys.requires_grad


@pytest.mark.parametrize(
    "modes",
    [
        (torch.inference_mode, torch.no_grad, torch.enable_grad),
        (torch.enable_grad, torch.inference_mode, torch.no_grad),
    ],
)
def test_a_text_may_go_on_in_another_mode(modes):
    layer, x = some((window(3),), **SLOTS["rotary"])
    whole, cache = layer(x), RollingCache(3)
    pieces, modes = x.split([4, 4, 3], dim=1), iter(modes)
    for piece_of, start in zip(pieces, (0, 4, 8), strict=True):
        with next(modes)():
            read = layer(piece_of, cache=cache)
            equal(read, whole[:, start : start + read.shape[1]])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_goes_its_own_way(copied):
    layer, x = some((window_and_sinks(3, 1),), **SLOTS["rotary"])
    whole = layer(x)
    with torch.no_grad():
        cache = RollingCache(3, 1, spare=1)
        layer(x[:, :6], cache=cache)
        other = copied(cache)
        in_pieces(layer, torch.randn(2, 4, 10), [1, 2, 3], other)
        equal(layer(x[:, 6:], cache=cache), whole[:, 6:])
    assert (other.length, other.window, other.sinks, other.spare) == (10, 3, 1, 1)


def test_a_copy_may_be_made_while_gradients_are_recorded():
    layer, x = some((window(3),))
    layer.requires_grad_(True)
    cache = RollingCache(3)
    layer(x[:, :5], cache=cache)
    equal(layer(x[:, 5:], cache=copy.deepcopy(cache)), layer(x)[:, 5:])


def test_on_a_device_without_numbers_it_has_shapes():
    with torch.device("meta"):
        layer = Attention(8, 8, 2, masks=(window(3),))
        cache = RollingCache(3, 1)
        for _ in range(5):
            layer(torch.empty(1, 2, 8), cache=cache)
    assert cache.length == 10
    assert cache._memory[0].shape == (1, 2, 4, 4)
    assert cache._memory[0].device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_it_is_the_same():
    layer, x = some((window_and_sinks(3, 1),), **SLOTS["rotary"])
    whole, layer = layer(x), layer.cuda()
    for ends in WAYS:
        cache = RollingCache(3, 1)
        equal(
            in_pieces(layer, x.cuda(), ends, cache).cpu(), whole, rtol=1e-4, atol=1e-4
        )
    padded = torch.zeros(2, 4, dtype=torch.int64).cuda()
    keys = torch.zeros(2, 1, 4, 5).cuda()
    with pytest.raises(ValueError, match=said("positions", "[0, 1]")):
        RollingCache(3, 2).extend(keys, keys, padded)


# Several layers


class Stack(nn.Module):
    """Some layers with a window, one after the other."""

    def __init__(self, size):
        super().__init__()
        options = {"masks": (window(size),), "process_heads": Rotary(4)}
        self.layers = nn.ModuleList(
            Attention(10, 10, 2, head_dim=4, **options) for _ in "123"
        )

    def forward(self, x, caches=(None, None, None)):
        for layer, cache in zip(self.layers, caches, strict=True):
            x = x + layer(x, cache=cache)
        return x


@pytest.mark.parametrize("ends", WAYS)
def test_in_several_layers_a_window_loses_nothing(ends):
    torch.manual_seed(2357)
    stack, x = Stack(3).requires_grad_(False), torch.randn(2, LENGTH, 10)
    caches, everything = ([make(3) for _ in "123"] for make in (RollingCache, some_kv))
    pieces = torch.tensor_split(x, ends, dim=1)
    read = torch.cat([stack(piece_of, caches) for piece_of in pieces], dim=1)
    equal(read, stack(x))
    equal(read, torch.cat([stack(piece_of, everything) for piece_of in pieces], dim=1))


def some_kv(size):
    return KVCache()


@pytest.mark.parametrize("ends", [[], [1], [2], [1, 2, 3]])
def test_padding_is_not_the_one_sink_either(ends):
    places = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    keys, cache = torch.randn(2, 1, 4, 2), RollingCache(3, 1)
    pieces = zip(
        keys.tensor_split(ends, -2), places.tensor_split(ends, -1), strict=True
    )
    with pytest.raises(ValueError, match=said("positions", "at least 1", "got")):
        all(cache.extend(piece, piece, there) for piece, there in pieces)


@pytest.mark.parametrize(("size", "sinks", "spare"), [(1, 0, 0), (4, 2, 1), (3, 5, 0)])
def test_it_knows_how_many_keys_it_will_give(size, sinks, spare):
    for first in range(10):
        for new in range(4):
            cache = RollingCache(size, sinks, spare=spare)
            keys = torch.randn(1, 1, first + new, 2)
            places = torch.arange(first + new)
            cache.extend(keys[..., :first, :], keys[..., :first, :], places[:first])
            count = cache.seen(new)
            rest = keys[..., first:, :]
            assert cache.extend(rest, rest, places[first:])[0].shape[-2] == count


def test_a_mask_of_another_width_is_refused_before_anything_is_dropped():
    layer, x = some((window(3),))
    cache = RollingCache(3)
    layer(x[:, :3], cache=cache)
    with pytest.raises(ValueError, match=said("mask", "4", "got")):
        layer(x[:, 3:5], torch.ones(1, 2, 2, dtype=torch.bool), cache=cache)
    assert cache.positions.tolist() == [0, 1, 2]
    assert cache.length == 3
