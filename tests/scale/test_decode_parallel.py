"""A cache that is dealt to ranks: together they write what one device writes."""

import copy
import itertools
import os
import random
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist
from examples import MISFITS, assert_twins, change, said, some_mask, some_tensors
from torch.distributed.device_mesh import init_device_mesh

from attention import (
    Attention,
    KVCache,
    LatentAttention,
    MultiHeadAttention,
    Rotary,
    alibi,
    attend,
    attention_weights,
    causal,
    parallelize_attention,
    window,
)
from attention.scale.decode_parallel import ShardedCache, merge_tree, tree_attend
from attention.speed.flash import flash_attend
from attention.tools.ranks import run_ranks

LENGTH = 11
SLOTS = {  # of a layer with six heads, each 8 wide
    "nothing": {},
    "grouped, rotary": {"num_kv_heads": 2, "process_heads": Rotary(8)},
    "bias": {"bias": alibi(6)},
    "window": {"masks": (window(4),), "num_kv_heads": 1},
    "all": {
        "num_kv_heads": 3,
        "process_heads": Rotary(8),
        "bias": alibi(6),
        "masks": (causal, window(5)),
        "qkv_bias": True,
    },
}
ROUNDING = {torch.float32: {}, torch.bfloat16: {"rtol": 3e-2, "atol": 3e-2}}


def on_ranks(ranks, function, *arguments):
    """What the first of them returns; all must return the same."""
    first, *others = run_ranks(function, ranks, *arguments, seconds=180)
    assert all(other == first for other in others)
    return first


def layers(slots, dtype=torch.float32, **more):
    """A layer for one device, and its twin for several ranks."""
    torch.manual_seed(2357)
    one, many = (Attention(16, 16, 6, head_dim=8, **slots, **more) for _ in range(2))
    many.load_state_dict(one.state_dict())
    many.attend = tree_attend
    return one.to(dtype), many.to(dtype)


# Equal to one device


def in_pieces(layer, x, ends, cache):
    parts = torch.tensor_split(x, ends, dim=-2)
    return torch.cat([layer(part, cache=cache) for part in parts], dim=-2)


@torch.no_grad()
def all_slots():
    """A prompt in pieces, steps, and a rollback into the prompt with other tokens."""
    for (name, slots), dtype in itertools.product(SLOTS.items(), ROUNDING):
        if dtype == torch.bfloat16 and name != "all":
            continue
        one, many = layers(slots, dtype)
        x, guesses = torch.randn(2, LENGTH, 16), torch.randn(2, 3, 16)
        x, guesses = x.to(dtype), guesses.to(dtype)
        whole, cache, close = one(x), ShardedCache(), ROUNDING[dtype]
        context = in_pieces(many, x, [1, 5, *range(7, LENGTH)], cache)
        torch.testing.assert_close(context, whole, **close)
        cache.truncate(6)
        many(guesses, cache=cache)
        cache.truncate(4)
        again = many(x[:, 4:], cache=cache)
        torch.testing.assert_close(again, whole[:, 4:], **close)
    return "equal"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_layer_writes_what_it_writes_on_one_device(ranks):
    assert on_ranks(ranks, all_slots) == "equal"


def some_piece(chance, shape, start):
    """New keys, values and positions; in a ragged text some rows wait at first."""
    new = chance.choice([0, 1, 1, 1, 2, 3, 5, 8])
    keys, values = (
        torch.randn(*shape["batch"], shape["groups"], new, w, dtype=shape["dtype"])
        for w in shape["widths"]
    )
    places = torch.arange(start, start + new)
    if shape["ragged"]:
        waits = torch.randint(0, 3, (*shape["batch"], 1))
        places = (places - (waits if start == 0 else 0)).clamp(min=0)
        places = places.expand(*shape["batch"], new)
    return keys, values, places


def wrong_piece(chance, piece):
    """The same with a mistake, which one rank makes or all make."""
    keys, values, places = piece
    mistakes = [
        lambda: (keys.half(), values.half(), places),
        lambda: (keys, values[..., 1:], places),
        lambda: (keys, values, places - 999),
        lambda: (keys, values[..., :0, :], places),
        lambda: (keys, values, places.float()),
    ]
    mistake, who = chance.choice(mistakes), chance.choice(["all", 0, 1])
    return mistake() if who in ("all", dist.get_rank()) else piece


def program(seed):
    """Random calls to a dealt cache, beside one that is whole on every rank."""
    chance, rank, ranks = random.Random(seed), dist.get_rank(), dist.get_world_size()
    torch.manual_seed(seed)
    batch = chance.choice([(), (2,), (2, 3)])
    shape = {
        "batch": batch,
        "groups": chance.choice([1, 2, 3]),
        "widths": chance.choice([(4, 4), (4, 3)]),
        "dtype": chance.choice([torch.float32, torch.float64, torch.bfloat16]),
        "ragged": bool(batch) and chance.random() < 0.4,
    }
    cache, whole = ShardedCache(), KVCache(block=4)
    twins = []
    for _ in range(chance.randrange(2, 6)):
        move = chance.choice(["extend"] * 5 + ["truncate"] * 2 + ["refuse", "fork"])
        piece = some_piece(chance, shape, start=whole.length)
        if move == "truncate":
            length = chance.randint(0, whole.length)
            for each in (cache, whole):
                each.truncate(length)
        elif move == "fork":
            twins.append((copy.copy(cache), copy.copy(whole)))
            cache, whole = twins.pop(chance.randrange(len(twins)))
        elif move == "refuse" and min(whole.length, piece[2].numel()) > 0:
            wrong = wrong_piece(chance, piece)
            with pytest.raises(ValueError, match="expected"):
                cache.extend(*wrong)
        elif move == "extend":
            looked_up(cache.extend(*piece), whole.extend(*piece), piece[2])
        assert cache.length == whole.length
        assert torch.equal(cache.positions, whole.positions) or cache.length == 0
        assert cache._own.length == len(range(rank, cache.length, ranks))


def looked_up(own, held, positions):
    """New queries find in all parts together what they find in the whole."""
    keys, values, places = held
    queries = torch.randn(
        *keys.shape[:-3], 6, positions.shape[-1], keys.shape[-1], dtype=keys.dtype
    )

    def mask(places):
        seen = causal(positions, places)
        return seen.unsqueeze(-3) if seen.ndim > 2 else seen

    must = attend(queries, keys, values, mask(places))
    got = tree_attend(queries, *own[:2], mask(own[2]))
    loose = ROUNDING[torch.bfloat16] if keys.dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, must, **loose)


@torch.no_grad()
def programs(first, last):
    for seed in range(first, last):
        program(seed)
    return "ended"


@pytest.mark.parametrize(("ranks", "seeds"), [(2, (0, 120)), (3, (120, 200))])
def test_whatever_is_done_ranks_hold_and_find_what_one_device_does(
    ranks, seeds, as_importer
):
    assert on_ranks(ranks, programs, *seeds) == "ended"


@torch.no_grad()
def padded():
    one, many = layers(SLOTS["grouped, rotary"])
    x, (rank, ranks) = torch.randn(2, LENGTH, 16), (dist.get_rank(), 3)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :5] = False
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    given, cache = [], ShardedCache()
    for start, end in ((0, 4), (4, 8), (8, 9), (9, LENGTH)):
        mask = real[:, None, None, rank:end:ranks]
        places = {"positions": positions[:, start:end]} if start < 8 else {}
        given.append(many(x[:, start:end], mask, cache=cache, **places))
    context = torch.cat(given, dim=1)
    torch.testing.assert_close(context[0, 5:], one(x[0, 5:]))
    torch.testing.assert_close(context[1], one(x[1]))
    return "equal"


def test_texts_of_several_lengths_are_padded_on_the_left():
    assert on_ranks(3, padded) == "equal"


@torch.no_grad()
def latent():
    sizes = {"latent_dim": 5, "rotary_dim": 2, "head_dim": 4}
    torch.manual_seed(3)
    one, many = (LatentAttention(8, 8, 2, **sizes) for _ in range(2))
    many.load_state_dict(one.state_dict())
    many.attend = tree_attend
    x = torch.randn(2, 9, 8)
    context = in_pieces(many, x, [4, 5, 6, 8], ShardedCache())
    torch.testing.assert_close(context, one(x))
    return "equal"


def test_latents_are_dealt_as_keys_are():
    assert on_ranks(2, latent) == "equal"


@torch.no_grad()
def two_groups():
    pairs = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    mine = pairs[dist.get_rank() % 2]
    torch.manual_seed(dist.get_rank() % 2)
    queries, keys, values = torch.randn(3, 2, 7, 4)
    cache = ShardedCache(mine)
    for start in range(7):
        new = slice(start, start + 1)
        held = cache.extend(keys[:, new], values[:, new], torch.arange(7)[new])
        context = tree_attend(queries[:, new], *held[:2], group=mine)
        seen = keys[:, : start + 1], values[:, : start + 1]
        torch.testing.assert_close(context, attend(queries[:, new], *seen))
    return "equal"


@torch.no_grad()
def rows_then_one():
    """Rows that wait stay rows on a rank that has none of their tokens."""
    cache, whole = ShardedCache(), KVCache()
    for places in (torch.tensor([[4], [5]]), torch.tensor([5]), torch.tensor([5])):
        new = torch.randn(2, 1, 1, 4), torch.randn(2, 1, 1, 4), places
        own, held = cache.extend(*new), whole.extend(*new)
        looked_up(own, held, places)
    return cache.positions.tolist()


def test_a_rank_without_tokens_knows_that_rows_may_wait():
    assert on_ranks(3, rows_then_one) == [[4, 5, 5], [5, 5, 5]]


def test_two_groups_work_side_by_side():
    assert on_ranks(4, two_groups) == "equal"


@torch.no_grad()
def heads_and_text():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("text", "heads"))
    group = mesh["text"].get_group()
    one, many = layers(SLOTS["grouped, rotary"])
    many.attend = partial(tree_attend, group=group)
    parallelize_attention(many, mesh["heads"])
    x = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(2))
    context = in_pieces(many, x, [4, 5, 6], ShardedCache(group))
    torch.testing.assert_close(context, one(x))
    return "equal"


def test_heads_are_shared_by_some_and_the_text_by_others():
    assert on_ranks(4, heads_and_text) == "equal"


# The form


def own(tensor, dim=-2):
    """This rank's part of what all have."""
    index = torch.arange(tensor.shape[dim])[dist.get_rank() :: dist.get_world_size()]
    return tensor.index_select(dim, index)


@torch.no_grad()
def with_options():
    torch.manual_seed(7)
    queries, keys, values = some_tensors()
    for keys_there in (7, 2, 1, 0):  # on three ranks: some have none
        k, v = keys[..., :keys_there, :], values[..., :keys_there, :]
        bias = torch.randn(3, 5, keys_there)
        mask = some_mask(2, 1, 5, 7, blind=2)[..., :keys_there]
        scale = torch.rand(3, 1, 1)
        for options in ({}, {"bias": bias}, {"mask": mask}, {"scale": 0.3}):
            cut = {
                name: own(table, -1) if isinstance(table, torch.Tensor) else table
                for name, table in options.items()
            }
            context = tree_attend(queries, own(k), own(v), **cut)
            torch.testing.assert_close(context, flash_attend(queries, k, v, **options))
        context = tree_attend(queries, own(k), own(v), scale=scale)
        torch.testing.assert_close(context, attend(queries, k, v, scale=scale))
        one_query = queries[..., :1, :]
        context = tree_attend(one_query, own(k), own(v), causal=True)
        torch.testing.assert_close(context, attend(one_query, k, v))
    return context.double().sum().item()  # to the last bit, on every rank


def test_parts_with_options_give_the_whole_and_no_key_at_all_zeros():
    assert on_ranks(3, with_options) == 0


@torch.no_grad()
def bits():
    torch.manual_seed(7)
    queries, keys, values = torch.randn(3, 2, 8, 50, 16)
    context = tree_attend(queries, own(keys), own(values))
    return context.view(torch.int32).sum().item(), context.double().sum().item()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_all_ranks_get_the_same_to_the_last_bit(ranks):
    on_ranks(ranks, bits)


@torch.no_grad()
def large():
    """Scores that float32 can only hold less their largest."""
    torch.manual_seed(7)
    queries, keys, values = torch.randn(3, 2, 9, 4)
    for factor in (300, -300):
        many = factor * queries, own(keys), own(values)
        must = attend(factor * queries, keys, values)
        torch.testing.assert_close(tree_attend(*many), must, rtol=1e-4, atol=1e-4)
    return "equal"


def test_large_scores_do_not_overflow():
    assert on_ranks(3, large) == "equal"


def test_it_runs_under_autocast_in_its_dtype():
    @torch.no_grad()
    def work():
        torch.manual_seed(7)
        queries, keys, values = torch.randn(3, 2, 9, 4)
        with torch.autocast("cpu", torch.bfloat16):
            context = tree_attend(queries, own(keys), own(values))
        must = attend(queries, keys, values).bfloat16()
        torch.testing.assert_close(context, must, **ROUNDING[torch.bfloat16])
        return str(context.dtype)

    assert on_ranks(2, work) == "torch.bfloat16"


@torch.no_grad()
def shown():
    one, many = layers(SLOTS["all"])
    x, cache = torch.randn(2, 9, 16), ShardedCache()
    many(x[:, :5], cache=cache)
    weights = many.attention_weights(x[:, 5:], cache=cache)
    must = one.attention_weights(x)[..., 5:, :]
    torch.testing.assert_close(weights, own(must, -1))
    blind = attention_weights(x, x, torch.zeros(9, 9, dtype=torch.bool))
    none = torch.zeros(9, own(x).shape[-2], dtype=torch.bool)
    part = tree_attend.attention_weights(x, own(x), none)
    torch.testing.assert_close(part, own(blind, -1))
    return "equal"


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_layer_shows_the_weights_of_this_ranks_keys(ranks):
    assert on_ranks(ranks, shown) == "equal"


def test_alone_it_is_flash_attention_to_the_last_bit():
    tensors, mask = some_tensors(), some_mask(2, 1, 5, 7, blind=2)
    options = {"causal": True, "bias": torch.randn(5, 7), "scale": 0.3}
    assert torch.equal(
        tree_attend(*tensors, mask, **options), flash_attend(*tensors, mask, **options)
    )
    sizes = (3, 4, 5, 0.0, 2)
    twin = MultiHeadAttention(*sizes, attend=tree_attend)
    assert_twins(MultiHeadAttention(*sizes), twin, torch.randn(2, 5, 3))


# Merging


@pytest.mark.parametrize("parts", range(1, 10))
def test_any_number_of_states_in_any_order_make_the_whole(parts):
    queries, keys, values = some_tensors(torch.float64)
    cuts = torch.randint(0, 8, (parts - 1,)).sort().values.tolist()  # some are empty
    pieces = [tensor.tensor_split(cuts, dim=-2) for tensor in (keys, values)]
    states = [
        flash_attend(queries, *piece, return_lse=True)
        for piece in zip(*pieces, strict=True)
    ]
    random.Random(parts).shuffle(states)
    must = flash_attend(queries, keys, values, return_lse=True)
    for got, whole in zip(merge_tree(states), must, strict=True):
        torch.testing.assert_close(got, whole)


def test_no_state_cannot_be_merged(as_importer):
    with pytest.raises(ValueError, match=said("states", "at least one", "got none")):
        merge_tree([])


# What it costs


def held_and_sent(length):
    cache, past = ShardedCache(), torch.zeros(1, 2, length - 1, 16)
    cache.extend(past, past, torch.arange(length - 1))
    sent, transfer = [], dist.P2POp

    def counted(op, tensor, *rest):
        sent.extend([tensor.nbytes] * (op is dist.isend))
        return transfer(op, tensor, *rest)

    dist.P2POp, new = counted, past[:, :, :1]
    keys, values, _ = cache.extend(new, new, torch.tensor([length - 1]))
    tree_attend(torch.zeros(1, 8, 1, 16), keys, values)
    return keys.shape[-2], values.shape[-2], sum(sent)


@pytest.mark.parametrize("ranks", [2, 3])
def test_memory_is_shared_evenly_and_bytes_do_not_grow_with_the_text(ranks):
    for length in (50, 501):
        shares = [len(range(rank, length, ranks)) for rank in range(ranks)]
        found = run_ranks(held_and_sent, ranks, length)
        bytes_sent = (ranks - 1) * (4 * 8 * 17 + 2 * 4096)
        assert found == [(share, share, bytes_sent) for share in shares]


# What does not fit


@pytest.mark.parametrize(("arguments", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_misfit_is_refused_in_words(arguments, message, as_importer):
    with pytest.raises(ValueError, match=message):
        tree_attend(**arguments)


@pytest.mark.parametrize("call", [ShardedCache, lambda **o: tree_attend(**change(**o))])
def test_what_is_no_group_is_refused(call, as_importer):
    with pytest.raises(ValueError, match=said("group", "belongs to", "got 3")):
        call(group=3)


CLASHES = {  # what rank 1 alone does otherwise
    "dtype": ({"dtype": torch.float64}, ("dtype", "same on all ranks", "float64")),
    "heads": ({"heads": 8}, ("sizes of the context", "[1, 8, 1, 4] on rank 1")),
    "queries": ({"queries": 2}, ("sizes of the context", "[1, 4, 2, 4] on rank 1")),
    "width": ({"width": 2}, ("width of queries", "got 4 on rank 0, 2 on rank 1")),
    "scale": ({"scale": 0.5}, ("scale", "same on all ranks", "0.5 on rank 1")),
    "learned": ({"scale": torch.ones(1)}, ("scale", "a tensor on rank 1")),
    "dropout": ({"dropout_p": 0.5}, ("dropout_p", "tree_attend", "got 0.5")),
    "no tensor": ({"mask": 3}, ("mask",)),
    "window": ({"window": 2}, ("window", "None", "a mask", "got 2")),
    "causal": ({"queries": 2, "causal": True}, ("causal=True", "one query", "got 2")),
}


def answers(function, **changes):
    """What a call is refused with, or what it gives."""
    try:
        return function(**changes)
    except (TypeError, ValueError) as error:
        return str(error)


def a_call(dtype=torch.float32, heads=4, queries=1, width=4, **options):
    q = torch.randn(1, heads, queries, width, dtype=dtype)
    k, v = (torch.randn(1, 2, 5, w, dtype=dtype) for w in (width, 4))
    tree_attend(q, k, v, **options)
    return "given"


@torch.no_grad()
def all_clashes():
    first = dist.get_rank() == 0
    found = {
        name: answers(a_call, **{} if first else changes)
        for name, (changes, _) in CLASHES.items()
    }
    misfits = [
        answers(tree_attend, **arguments)
        for name, (arguments, _) in MISFITS.items()
        if name != "more queries than keys"
    ]
    with torch.enable_grad():
        learned = {"scale": torch.ones(1, requires_grad=True)}
        found["gradient"] = answers(a_call, **learned)
    cache, piece = ShardedCache(), torch.zeros(1, 2, 3, 4)
    places = torch.arange(3)
    given = (
        (lambda: a_call()) if first else (lambda: cache.extend(piece, piece, places))
    )
    found["another call"] = answers(given)
    assert a_call() == "given"  # and they go on together
    return found, misfits


def test_ranks_that_disagree_are_told_so_on_every_rank(as_importer):
    for found, misfits in run_ranks(all_clashes, 2):
        for name, (_, words) in CLASHES.items():
            assert re.search(said(*words), found[name]), (name, found[name])
        messages = [m for n, (_, m) in MISFITS.items() if n != "more queries than keys"]
        for told, message in zip(misfits, messages, strict=True):
            assert re.search(message, told), told
        assert re.search(said("no gradient", "requires_grad=True"), found["gradient"])
        told = found["another call"]
        assert told.startswith("call: expected the same on all ranks"), told
        assert "tree_attend on rank 0, extend on rank 1" in told


@torch.no_grad()
def pieces_that_clash():
    rank, found = dist.get_rank(), {}
    cache, piece = ShardedCache(), torch.randn(1, 2, 3, 4)
    cache.extend(piece, piece, torch.arange(3))

    def extend(dtype=torch.float32, new=3, start=3, back=3):
        cache.truncate(back)
        more = torch.zeros(1, 2, new, 4, dtype=dtype)
        cache.extend(more, more, torch.arange(start, start + new))

    for name, changes in {
        "keys": {"dtype": torch.float64},
        "more": {"new": 4},
        "positions": {"start": 5},
        "back": {"start": 0},
    }.items():
        found[name] = answers(extend, **changes if rank == 1 else {}), cache.length
    found["length"] = answers(extend, **{"back": 2} if rank == 1 else {}), cache.length
    cache.truncate(2)
    assert answers(extend, back=2) is None
    return found


def test_a_piece_that_one_rank_refuses_changes_no_cache(as_importer):
    for found in run_ranks(pieces_that_clash, 2):
        for name, words in {
            "keys": ("float32", "got torch.float64"),
            "more": ("keys", "same on all ranks", "(1, 2, 4, 4) on rank 1"),
            "positions": ("sum of positions", "12 on rank 0, 18 on rank 1"),
            "back": ("positions", "to go on after 2", "got 0"),
        }.items():
            told, length = found[name]
            assert re.search(said(*words), told), (name, told)
            assert length == 3
        told, _ = found["length"]
        assert re.search(said("length of the cache", "got 3 on rank 0, 2"), told), told


@torch.no_grad()
def refused_in_a_layer():
    """Calls that are refused after the cache was extended leave it as it was."""
    one, many = layers(SLOTS["grouped, rotary"], dropout=0.5)
    x, cache, rank = torch.randn(2, 9, 16), ShardedCache(), dist.get_rank()
    one.eval(), many.eval()
    many(x[:, :5], cache=cache)
    many.train()
    dropped = answers(many, x=x[:, 5:], cache=cache)
    many.eval()
    assert cache.length == 5
    mask = torch.ones(1, 5 if rank == 0 else 4, dtype=torch.bool)  # 9 tokens: 5 and 4
    wide = mask if rank == 0 else torch.ones(1, 9, dtype=torch.bool)
    columns = answers(many, x=x[:, 5:], mask=wide, cache=cache)
    if rank == 1:  # it has been refused alone; rank 0 hears of it now
        answers(many, x=x[:, 5:], mask=mask, cache=cache)
    assert cache.length == 5
    torch.testing.assert_close(many(x[:, 5:], mask, cache=cache), one(x)[:, 5:])
    return dropped, columns


def test_a_refused_call_of_a_layer_leaves_the_caches_as_they_were(as_importer):
    (dropped, heard), (also, alone) = run_ranks(refused_in_a_layer, 2)
    for told in (dropped, also):
        assert re.search(said("dropout_p", "no dropout", "got 0.5"), told), told
    assert re.search(said("mask", "a last axis of 4", "got (1, 9)"), alone), alone
    assert re.search(said("call", "same", "tree_attend on rank 0, extend"), heard)


def test_a_length_that_is_not_held_is_refused(as_importer):
    def work():
        cache, piece = ShardedCache(), torch.zeros(2, 5, 3)
        cache.extend(piece, piece, torch.arange(5))
        return answers(cache.truncate, length=6), cache.length

    told, length = on_ranks(2, work)
    assert re.search(said("length", "from 0 to 5", "got 6"), told)
    assert length == 5


def test_the_others_end_if_a_rank_dies_and_it_is_named():
    def work():
        with torch.no_grad():
            a_call()
            if dist.get_rank() == 1:
                os._exit(9)
            a_call()

    with pytest.raises(RuntimeError, match=said("rank 1 of 3", "exit code 9")):
        run_ranks(work, 3, seconds=20)
