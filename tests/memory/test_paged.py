"""Blocks and tables: nothing wasted, nothing mixed up, nothing left behind."""

import contextlib
import copy
import math
import pickle
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from examples import said
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from attention import Attention, BlockPool, PagedCache, Rotary, attend
from attention.memory.paged import (
    Request,
    Scheduler,
    block_names,
    blocks_for,
    paged_attend,
    publish_prefix,
    reuse_prefix,
    slots_of,
    stack_tables,
    triton_paged_attend,
    wasted_slots,
)


def piece(new, start=0, batch=(), heads=2, widths=(3, 5), dtype=torch.float32):
    keys, values = (torch.randn(*batch, heads, new, w, dtype=dtype) for w in widths)
    return keys, values, torch.arange(start, start + new)


def grown(pool, length, start=0, **options):
    """A cache of the pool, and the keys, values and positions that went into it."""
    cache, given = PagedCache(pool.block_size, pool=pool), piece(length, **options)
    cache.append(*given)
    return cache, given


def held(cache):
    """All that a cache holds, by adding nothing."""
    batch, memory = cache.batch, (cache.pool.keys, cache.pool.values)
    none = (t.new_empty(*batch, t.shape[2], 0, t.shape[3]) for t in memory)
    return cache.extend(*none, cache.positions[..., :0])


def assert_holds(cache, given):
    for got, must in zip(held(cache), given, strict=True):
        assert torch.equal(got, must)


def joined(*pieces):
    axes = (-2, -2, -1)
    return [
        torch.cat(p, a) for p, a in zip(zip(*pieces, strict=True), axes, strict=True)
    ]


def accounts(pool, caches):
    """Every block is free, or has as many users as rows name it, and not both."""
    named = [block for cache in caches for row in cache.rows for block in row]
    assert pool.users == [named.count(block) for block in range(len(pool.users))]
    assert sorted(pool.free) == [b for b, n in enumerate(pool.users) if n == 0]
    assert {b: n for n, b in pool.known.items()} == pool.names


# Places and slots


def test_kwon_2023_where_ten_tokens_lie_in_blocks_7_2_and_5():
    slots = slots_of(torch.tensor([7, 2, 5]), torch.arange(10), 4)
    counts = torch.tensor([blocks_for(10, 4), wasted_slots([10], 4)])
    golden = [28, 29, 30, 31, 8, 9, 10, 11, 20, 21, 3, 2]
    assert torch.cat([slots, counts]).tolist() == golden


def test_each_text_has_a_table_of_its_own():
    table = torch.tensor([[3, 0], [1, 2]])
    assert slots_of(table, torch.tensor([0, 4, 2]), 3).tolist() == [
        [9, 1, 11],
        [3, 7, 5],
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16])
def test_places_and_tables_may_be_whole_numbers_of_any_kind(dtype):
    table, places = torch.tensor([[100, 0], [1, 2]]), torch.tensor([0, 4, 2])
    must = slots_of(table, places, 300)
    assert torch.equal(slots_of(table, places.to(dtype), 300), must)
    assert torch.equal(slots_of(table.to(dtype), places, 300), must)


@pytest.mark.parametrize("places", [[-1], [0, 6], [7, 0]])
def test_a_place_that_no_block_covers_is_refused(places, as_importer):
    with pytest.raises(ValueError, match=said("places", "from 0 to 5", "got")):
        slots_of(torch.tensor([4, 1]), torch.tensor(places), 3)


def test_a_text_in_one_piece_wastes_what_it_does_not_reach():
    lengths = [1, 5, 16]
    assert wasted_slots(lengths, 16) == 15 + 11
    assert wasted_slots(lengths, 4) == 3 + 3
    assert wasted_slots(lengths, 1) == wasted_slots([], 7) == wasted_slots([0], 7) == 0
    assert [blocks_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize(("length", "size"), [(-1, 4), (3, 0), (3, 2.5)])
def test_what_cannot_be_counted_is_refused(length, size, as_importer):
    name = "length" if length < 0 else "block_size"
    with pytest.raises(ValueError, match=said(name, "at least", "got")):
        wasted_slots([length], size)


# The pool


def test_the_block_that_was_free_the_longest_is_taken_first():
    pool = BlockPool(4, 3)
    one, two = pool.take(1), pool.take(2)
    assert (one, two, [*pool.free]) == ([0], [1, 2], [])
    pool.release(two)
    pool.release(one)
    assert [*pool.free] == [2, 1, 0], "of a text, the last block is free first"
    assert pool.take(3) == [2, 1, 0]


def test_a_block_is_free_when_its_last_user_has_left():
    pool = BlockPool(4, 2)
    (block,) = pool.take(1)
    pool.hold([block])
    pool.release([block])
    assert block not in pool.free
    pool.release([block])
    assert block in pool.free


def test_a_block_that_nobody_holds_cannot_be_given_back(as_importer):
    pool = BlockPool(4, 2)
    blocks = pool.take(2)
    pool.release(blocks[:1])
    with pytest.raises(ValueError, match=said("blocks", "in use", "got [0, 1]")):
        pool.release(blocks)
    assert pool.users == [0, 1]


def test_a_block_with_one_user_cannot_be_given_back_twice_at_once(as_importer):
    pool = BlockPool(4, 2)
    blocks = pool.take(2)
    with pytest.raises(ValueError, match=said("blocks", "in use", "got [0, 0]")):
        pool.release([blocks[0]] * 2)
    pool.hold(blocks[:1])
    pool.release([blocks[0]] * 2)
    assert (pool.users, [*pool.free]) == ([0, 1], [0])


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_is_not_there_cannot_be_held(block, as_importer):
    pool = BlockPool(4, 2)
    with pytest.raises(ValueError, match=said("blocks", "0 to 1", "got", block)):
        pool.hold([0, block])
    assert (pool.users, [*pool.free]) == ([0, 0], [0, 1])


@pytest.mark.usefixtures("as_importer")
def test_blocks_may_be_named_by_a_tensor():
    pool = BlockPool(4, 3)
    pool.hold(torch.tensor([0, 2]))
    assert (pool.users, [*pool.free]) == ([1, 0, 1], [1])
    pool.release(torch.tensor([0, 2], dtype=torch.int32))
    assert (pool.users, [*pool.free]) == ([0, 0, 0], [1, 2, 0])
    assert all(type(block) is int for block in pool.take(3))


@pytest.mark.parametrize("blocks", [[0, 0.0], torch.zeros(2), ["0"], [[0]], 0])
def test_what_names_no_block_changes_nothing(blocks, as_importer):
    pool = BlockPool(4, 2)
    pool.take(1)
    for use in (pool.hold, pool.release):
        with pytest.raises(ValueError, match=said("blocks", "whole numbers", "got")):
            use(blocks)
    assert (pool.users, [*pool.free]) == ([1, 0], [1])


def test_a_pool_without_a_limit_grows_and_keeps_what_it_says():
    pool = BlockPool(3)
    cache, given = grown(pool, 2)
    sizes = [len(pool.users)]
    for start in range(2, 40):
        new = piece(1, start)
        cache.append(*new)
        given = joined(given, new)
        sizes.append(len(pool.users))
    assert_holds(cache, given)
    assert len(set(sizes)) <= 6, "it doubles, and does not grow at each step"
    assert len(pool.keys) == len(pool.values) == sizes[-1] >= blocks_for(40, 3)


def test_a_pool_is_allocated_once_if_it_has_a_limit():
    pool = BlockPool(3, 5)
    cache, _ = grown(pool, 1)
    where = pool.keys.data_ptr(), pool.values.data_ptr()
    for start in range(1, 15):
        cache.append(*piece(1, start))
    assert (pool.keys.data_ptr(), pool.values.data_ptr()) == where
    assert pool.keys.shape == (5, 3, 2, 3)
    assert pool.values.shape == (5, 3, 2, 5)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
@pytest.mark.parametrize("make", [PagedCache, BlockPool, lambda n: BlockPool(4, n)])
def test_a_size_that_counts_nothing_is_refused(make, size, as_importer):
    with pytest.raises(ValueError, match=said("at least 1", "got", size)):
        make(size)


def test_a_cache_and_its_pool_have_blocks_of_one_size(as_importer):
    with pytest.raises(ValueError, match=said("pool", "block_size=4", "got 3")):
        PagedCache(4, pool=BlockPool(3))
    with pytest.raises(ValueError, match=said("num_blocks", "pool", "got 7")):
        PagedCache(3, 7, pool=BlockPool(3))


# A full pool


def test_what_does_not_fit_is_refused_and_changes_nothing(as_importer):
    pool = BlockPool(4, 3)
    one, given = grown(pool, 5)
    two, other = grown(pool, 4)
    for cache, new in ((one, 4), (two, 1)):
        before = copy.deepcopy([cache.rows, cache.length, pool.users, pool.free])
        with pytest.raises(ValueError, match=said("pool", "1 free", "got 0 of 3")):
            cache.extend(*piece(new, cache.length))
        assert before == [cache.rows, cache.length, pool.users, pool.free]
    one.append(*(more := piece(3, 5)))  # to the end of its block
    assert_holds(one, joined(given, more))
    assert_holds(two, other)


def test_a_fork_that_cannot_be_copied_is_refused_and_shares_on(as_importer):
    pool = BlockPool(4, 2)
    one, given = grown(pool, 6)
    two = one.fork()
    with pytest.raises(ValueError, match=said("pool", "1 free", "got 0")):
        two.append(*piece(1, 6))
    assert one.rows == two.rows
    accounts(pool, [one, two])
    assert_holds(two, given)


def test_an_empty_cache_may_be_refused_and_asked_again(as_importer):
    cache = PagedCache(4, 2)
    with pytest.raises(ValueError, match=said("pool", "3 free", "got 2 of 2")):
        cache.extend(*piece(3, batch=(3,)))
    assert (cache.length, cache.batch) == (0, None)
    cache.append(*(given := piece(3, batch=(2,))))
    assert_holds(cache, given)


@pytest.mark.parametrize("texts", [1, 3])
def test_a_cache_that_was_refused_is_as_it_was(texts, as_importer):
    cache, fresh = PagedCache(4, 2), PagedCache(4, 2)
    with pytest.raises(ValueError, match=said("pool", "free blocks", "got 2 of 2")):
        cache.extend(*piece(9, batch=(texts,)))
    names = "rows", "length", "batch"
    for name in names:
        assert getattr(cache, name) == getattr(fresh, name)
    assert [cache.needs(n) for n in range(9)] == [fresh.needs(n) for n in range(9)]


@pytest.mark.parametrize("length", [0, 5])
@pytest.mark.parametrize("num_blocks", [None, 4])
def test_a_cache_may_be_loaded_in_inference_mode_and_go_on(length, num_blocks):
    cache, given = PagedCache(4, num_blocks), piece(9)
    cache.append(*(t[..., :length, :] for t in given[:2]), given[2][:length])
    with torch.inference_mode():
        other = pickle.loads(pickle.dumps(cache))
        pool = copy.deepcopy(cache.pool)
        other.append(*(t[..., length:7, :] for t in given[:2]), given[2][length:7])
        assert length == 0 or not pool.keys.is_inference()
    other.append(*(t[..., 7:, :] for t in given[:2]), given[2][7:])
    assert_holds(other, given)


@pytest.mark.parametrize("length", range(9))
def test_needs_says_what_will_be_taken(length):
    for new in range(7):
        pool = BlockPool(4, 20)
        cache, _ = grown(pool, length)
        cache.fork()
        told, before = cache.needs(new), len(pool.free)
        cache.append(*piece(new, length))
        assert told == before - len(pool.free) + 0 * new


# Recycled blocks


def test_recycled_blocks_leak_nothing_of_the_last_text():
    pool = BlockPool(4, 3)
    first, _ = grown(pool, 12)
    first.free()
    pool.keys.fill_(math.nan)
    pool.values.fill_(math.nan)
    second, given = grown(pool, 5)
    assert_holds(second, given)
    queries = torch.randn(1, 4, 3)
    context = paged_attend(queries, pool.keys, pool.values, *stack_tables([second]))
    must = attend(queries[0, :, None], *given[:2])[:, 0]
    torch.testing.assert_close(context[0], must)


def test_what_was_truncated_is_written_over():
    pool = BlockPool(4, 9)
    cache, given = grown(pool, 11)
    for length in (9, 8, 6, 3, 0):
        cache.truncate(length)
        assert len(cache.rows[0]) == blocks_for(length, 4)
        new = piece(11 - length, length)
        cache.append(*new)
        given = joined(
            [t[..., :length, :] for t in given[:2]] + [given[2][:length]], new
        )
        assert_holds(cache, given)
        accounts(pool, [cache])


USES = {
    "extend": lambda cache: cache.extend(*piece(1)),
    "append": lambda cache: cache.append(*piece(1)),
    "truncate": lambda cache: cache.truncate(0),
    "fork": lambda cache: cache.fork(),
    "copy": copy.copy,
    "free": lambda cache: cache.free(),
    "needs": lambda cache: cache.needs(1),
    "reuse": lambda cache: reuse_prefix(cache, torch.arange(9)),
    "publish": lambda cache: publish_prefix(cache, torch.arange(0)),
    "stack_tables": lambda cache: stack_tables([cache]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_freed_cache_is_of_no_use(use, as_importer):
    pool = BlockPool(4, 4)
    cache, _ = grown(pool, 6)
    other, given = grown(pool, 6)
    cache.free()
    with pytest.raises(ValueError, match=said("cache", "got")):
        use(cache)
    accounts(pool, [other])
    assert_holds(other, given)


# Forks


@pytest.mark.parametrize("length", range(1, 10))
@pytest.mark.parametrize("first", [0, 1])
def test_a_fork_does_not_write_into_its_sibling(first, length):
    pool = BlockPool(4, 12)
    one, given = grown(pool, length)
    pair = [one, one.fork()]
    whole = {}
    for cache in (pair[first], pair[1 - first]):
        new = piece(2, length)
        cache.append(*new)
        whole[id(cache)] = joined(given, new)
        accounts(pool, pair)
    for cache in pair:
        assert_holds(cache, whole[id(cache)])
    full = length // 4
    shared = set(pair[0].rows[0]) & set(pair[1].rows[0])
    assert len(shared) == full, "full blocks stay common, and no other"


def test_the_last_user_writes_without_a_copy():
    pool = BlockPool(4, 12)
    one, _ = grown(pool, 6)
    two = one.fork()
    one.append(*piece(1, 6))
    before = [*two.rows[0]]
    two.append(*piece(1, 6))
    assert two.rows[0] == before
    assert one.rows[0] != before


def test_a_fork_copies_nothing_until_somebody_writes():
    pool = BlockPool(4, 3)
    one, _ = grown(pool, 6)
    many = [one, *(one.fork() for _ in range(20)), copy.copy(one), copy.deepcopy(one)]
    many[3].append(*(t[..., :0, :] for t in piece(1)[:2]), torch.arange(0))
    assert len(pool.free) == 1
    accounts(pool, many)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 6, 7])
def test_who_truncates_into_a_shared_block_leaves_it_to_the_others(length):
    pool = BlockPool(4, 12)
    one, given = grown(pool, 8)
    two = one.fork()
    two.truncate(length)
    new = piece(3, length)
    two.append(*new)
    assert_holds(one, given)
    start = [t[..., :length, :] for t in given[:2]] + [given[2][:length]]
    assert_holds(two, joined(start, new))
    accounts(pool, [one, two])


def test_a_cache_may_be_freed_while_its_fork_goes_on():
    pool = BlockPool(4, 4)
    one, given = grown(pool, 6)
    two = one.fork()
    one.free()
    other, _ = grown(pool, 8)  # all that is left
    new = piece(2, 6)
    two.append(*new)
    assert_holds(two, joined(given, new))
    accounts(pool, [two, other])


def test_texts_of_a_batch_are_forked_together():
    pool = BlockPool(2)
    one, given = grown(pool, 3, batch=(2, 3))
    two = one.fork()
    new = piece(2, 3, batch=(2, 3))
    two.append(*new)
    assert_holds(one, given)
    assert_holds(two, joined(given, new))
    accounts(pool, [one, two])


# Equal beginnings


def told(cache, tokens):
    """Keys and values that depend on all tokens up to their own, as a layer's do."""
    past = tokens.double().cumsum(-1).sin()
    keys = past[:, None] * torch.arange(1.0, 4.0, dtype=torch.float64)
    return keys.expand(2, -1, -1), -keys.expand(2, -1, -1)


def read(cache, tokens):
    """What a program does with a new text; how many tokens it did not have to read."""
    known = reuse_prefix(cache, tokens)
    keys, values = told(cache, tokens)
    new = keys[:, known:], values[:, known:], torch.arange(known, len(tokens))
    cache.append(*new)
    publish_prefix(cache, tokens)
    assert_holds(cache, (keys, values, torch.arange(len(tokens))))
    return known


def test_texts_that_begin_alike_share_their_full_blocks():
    pool, text = BlockPool(4, 30), torch.arange(20)
    caches = [PagedCache(4, pool=pool) for _ in range(5)]
    other = torch.cat([text[:10], 100 + text])
    texts = text, other, text, text[:9], text[:8]
    known = [read(c, t) for c, t in zip(caches, texts, strict=True)]
    assert known == [0, 8, 16, 8, 4], "and the last token is always read"
    assert caches[0].rows[0][:2] == caches[1].rows[0][:2] == caches[3].rows[0][:2]
    accounts(pool, caches)


def test_a_freed_block_is_found_until_it_is_taken_again():
    pool, text = BlockPool(4, 4), torch.arange(13)
    first = PagedCache(4, pool=pool)
    read(first, text)
    first.free()
    second = PagedCache(4, pool=pool)
    assert read(second, text) == 12
    second.free()
    third = PagedCache(4, pool=pool)
    assert read(third, 50 + text[:8]) == 0
    third.free()
    fourth = PagedCache(4, pool=pool)
    assert read(fourth, text) == 8, "the end of the text was taken first"
    accounts(pool, [fourth])


def test_blocks_are_found_from_the_first_on_without_a_gap():
    pool, text = BlockPool(4, 4), torch.arange(16)
    first = PagedCache(4, pool=pool)
    read(first, text)
    pool.forget(first.rows[0][1])
    assert reuse_prefix(PagedCache(4, pool=pool), text) == 4


def test_the_same_tokens_after_others_are_another_text():
    pool, text = BlockPool(4, 20), torch.arange(8)
    read(PagedCache(4, pool=pool), text)
    assert read(PagedCache(4, pool=pool), torch.cat([text[4:], text[4:]])) == 0
    assert read(PagedCache(4, pool=pool), torch.cat([7 - text[:4], text[4:]])) == 0


def test_the_same_tokens_at_other_positions_are_not_reused():
    pool, text = BlockPool(4, 20), torch.arange(8)
    padded = PagedCache(4, pool=pool)
    keys, values = told(padded, text)
    padded.append(keys, values, torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])[:8].sort()[0])
    publish_prefix(padded, text)
    assert reuse_prefix(PagedCache(4, pool=pool), text) == 0


@pytest.mark.parametrize("length", [5, 6, 7])
def test_a_block_that_is_written_again_is_not_found_under_its_old_name(length):
    pool, text = BlockPool(4, 20), torch.arange(9)
    cache = PagedCache(4, pool=pool)
    read(cache, text)
    cache.truncate(length)
    other = text.clone()
    other[length:] += 70
    keys, values = told(cache, other)
    cache.append(keys[:, length:], values[:, length:], torch.arange(length, 9))
    assert read(PagedCache(4, pool=pool), text) == 4
    publish_prefix(cache, other)
    assert read(PagedCache(4, pool=pool), other) == 8


def test_names_do_not_collide_where_hashes_do():
    assert hash((-1, 7)) == hash((-2, 7))
    assert block_names([-1, 7], [0, 1], 2) != block_names([-2, 7], [0, 1], 2)
    assert block_names([1, 12], [0, 1], 2) != block_names([11, 2], [0, 1], 2)
    assert len(block_names(range(7), range(7), 2)) == 3


def test_a_block_keeps_its_first_name_and_a_name_its_first_block():
    pool, text = BlockPool(4, 20), torch.arange(8)
    first = PagedCache(4, pool=pool)
    read(first, text)
    twin = PagedCache(4, pool=pool)
    keys, values = told(twin, text)
    twin.append(keys, values, torch.arange(8))
    publish_prefix(twin, text)
    third = PagedCache(4, pool=pool)
    reuse_prefix(third, torch.arange(9))
    assert third.rows == first.rows
    accounts(pool, [first, twin, third])


def test_a_batch_begins_with_as_many_blocks_as_all_its_texts_can():
    pool, text = BlockPool(2, 40), torch.arange(9)
    read(PagedCache(2, pool=pool), text)
    batch = torch.stack([text, text.where(text < 5, 70)])
    cache = PagedCache(2, pool=pool)
    assert reuse_prefix(cache, batch) == 4
    assert cache.rows[0] == cache.rows[1]
    new = [
        torch.stack(both)
        for both in zip(*(told(cache, row) for row in batch), strict=True)
    ]
    cache.append(*(t[:, :, 4:] for t in new), torch.arange(4, 9))
    assert_holds(cache, (*new, torch.arange(9)))
    cache.truncate(3)  # into a block that both texts hold
    cache.append(*(t[:, :, 3:] for t in new), torch.arange(3, 9))
    assert_holds(cache, (*new, torch.arange(9)))
    own = [block for row in cache.rows for block in row]
    assert sum(map(bool, pool.users)) == len({*own, *range(5)})


@pytest.mark.parametrize(
    ("tokens", "fields"),
    [
        (torch.arange(8.0), ("tokens", "whole numbers", "float32")),
        (torch.ones(8).bool(), ("tokens", "whole numbers", "bool")),
        (torch.tensor(8), ("tokens", "whole numbers", "()")),
    ],
)
@pytest.mark.parametrize("use", [reuse_prefix, publish_prefix])
def test_tokens_are_whole_numbers(use, tokens, fields, as_importer):
    with pytest.raises(ValueError, match=said(*fields)):
        use(PagedCache(4), tokens)
    with pytest.raises(TypeError, match=said("tokens", "Tensor", "list")):
        use(PagedCache(4), [1, 2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16])
def test_tokens_of_few_bits_name_the_same_blocks(dtype):
    cache, _ = grown(pool := BlockPool(4), 9)
    publish_prefix(cache, torch.arange(9).to(dtype))
    for kind in (dtype, torch.int64):
        assert reuse_prefix(PagedCache(4, pool=pool), torch.arange(9).to(kind)) == 8


def test_a_text_is_published_with_all_its_tokens(as_importer):
    cache, _ = grown(BlockPool(4), 6)
    for wrong in (torch.arange(5), torch.arange(12).view(2, 6)):
        with pytest.raises(ValueError, match=said("tokens", "6 tokens", "1 rows")):
            publish_prefix(cache, wrong)
    assert not cache.pool.known


def test_a_cache_that_has_begun_reuses_nothing(as_importer):
    cache, _ = grown(BlockPool(4), 6)
    with pytest.raises(ValueError, match=said("cache", "empty", "got 6")):
        reuse_prefix(cache, torch.arange(9))


def test_what_was_found_goes_on_as_so_many_texts(as_importer):
    pool, text = BlockPool(4, 20), torch.arange(9)
    read(PagedCache(4, pool=pool), text)
    for batch in ((), (1,), (1, 1)):
        cache = PagedCache(4, pool=pool)
        reuse_prefix(cache, text)
        cache.append(*piece(1, 8, batch, 2, (3, 3), torch.float64))
        assert cache.batch == batch
        cache.free()
    cache = PagedCache(4, pool=pool)
    reuse_prefix(cache, text)
    with pytest.raises(ValueError, match=said("keys", "1 texts", "got", "(2, ")):
        cache.append(*piece(1, 8, (2,), 2, (3, 3), torch.float64))


def test_what_was_found_lies_where_the_pool_does_wherever_the_tokens_are():
    pool = BlockPool(4)
    first, _ = grown(pool, 9)
    publish_prefix(first, torch.arange(9))
    pool.keys, pool.values = pool.keys.to("meta"), pool.values.to("meta")
    second = PagedCache(4, pool=pool)
    assert reuse_prefix(second, torch.arange(9)) == 8
    assert second.positions.device == pool.keys.device
    layer = Attention(6, 6, 2).to("meta")
    pool.keys, pool.values = (t[..., :3] for t in (pool.keys, pool.values))
    assert layer(torch.empty(1, 6, device="meta"), cache=second).shape == (1, 6)


def test_a_text_of_no_token_finds_nothing():
    cache = PagedCache(4)
    nothing = torch.zeros(0, dtype=torch.long)
    assert reuse_prefix(cache, nothing) == 0
    publish_prefix(cache, nothing)
    assert reuse_prefix(cache, nothing.expand(2, 0)) == 0
    assert cache.rows == [[], []]


# One pool, many texts


FAULTS = {
    "dtype": {"dtype": torch.float64},
    "heads": {"heads": 3},
    "keys' width": {"widths": (4, 5)},
    "values' width": {"widths": (3, 4)},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_all_texts_of_a_pool_are_of_one_kind(fault, as_importer):
    pool = BlockPool(4)
    grown(pool, 6)
    cache = PagedCache(4, pool=pool)
    with pytest.raises(ValueError, match=said("in the cache", "got")):
        cache.extend(*piece(2, **fault))
    assert (cache.length, cache.rows) == (0, [[]])


def test_texts_of_a_pool_may_come_in_batches_of_any_shape():
    pool = BlockPool(4)
    pairs = [grown(pool, 6, batch=batch) for batch in ((), (2,), (2, 3), (0,))]
    for cache, given in pairs:
        assert_holds(cache, given)
    accounts(pool, [cache for cache, _ in pairs])


def test_an_emptied_cache_may_begin_anew_with_another_batch():
    cache, _ = grown(BlockPool(4), 6, batch=(2,))
    positions = torch.tensor([[6], [7]])
    cache.append(*piece(1, batch=(2,))[:2], positions)
    cache.truncate(0)
    cache.append(*(given := piece(3, batch=(3,))))
    assert_holds(cache, given)


def test_a_cache_can_be_pickled_with_its_pool():
    cache, given = grown(BlockPool(4), 6)
    again = pickle.loads(pickle.dumps(cache))
    assert_holds(again, given)
    new = piece(1, 6)
    again.append(*new)
    assert_holds(cache, given)


def test_a_slot_that_is_written_anew_forgets_where_it_had_its_number_from():
    """Gradients are right even if some is written without them."""
    pool = BlockPool(4)
    cache, (keys, values, places) = PagedCache(4, pool=pool), piece(4)
    keys.requires_grad_()
    cache.append(keys, values, places)
    cache.truncate(3)
    with torch.inference_mode():
        new = piece(1, 3)
        cache.append(*new)
    got = held(cache)[0]
    got.sum().backward()
    assert (keys.grad[:, :3] == 1).all()
    assert (keys.grad[:, 3] == 0).all()


@pytest.mark.parametrize("num_blocks", [None, 9])
def test_what_began_in_inference_mode_goes_on_outside(num_blocks):
    pool, modes = BlockPool(4, num_blocks), [torch.inference_mode, torch.no_grad] * 3
    cache, pieces = PagedCache(4, pool=pool), []
    for mode in modes:
        with mode():
            other = cache.fork()
            cache.free()
            pieces.append(piece(3, 3 * len(pieces)))
            other.append(*pieces[-1])
            cache = other
            copy = cache.fork()
            copy.append(*piece(1, cache.length))  # into a copy of a shared block
            copy.free()
    assert_holds(cache, joined(*pieces))


def test_without_gradients_a_pool_keeps_no_graph():
    pool = BlockPool(4)
    with torch.no_grad():
        keys, values, places = piece(6)
        PagedCache(4, pool=pool).append(keys.requires_grad_(), values, places)
    assert pool.keys.grad_fn is None


def test_a_second_step_of_training_needs_nothing_of_the_first():
    torch.manual_seed(3)
    layer, x = Attention(8, 8, 2), torch.randn(1, 5, 8)
    layer(x).pow(2).sum().backward()
    must = layer.W_key.weight.grad.clone()
    pool = BlockPool(2)
    cache = PagedCache(2, pool=pool)
    for end in ("truncate", "free", "free"):
        layer.zero_grad()
        parts = [layer(part, cache=cache) for part in x.split([3, 2], dim=1)]
        torch.cat(parts, dim=1).pow(2).sum().backward()
        torch.testing.assert_close(layer.W_key.weight.grad, must)
        if end == "truncate":
            cache.truncate(0)
        else:
            cache.free()
            cache = PagedCache(2, pool=pool)
        assert pool.keys.grad_fn is None


def test_a_text_may_be_freed_before_its_backward():
    pool, (keys, values, positions) = BlockPool(2), piece(5)
    cache = PagedCache(2, pool=pool)
    got = cache.extend(keys.requires_grad_(), values, positions)[0]
    cache.free()
    with torch.inference_mode():
        again, _ = grown(pool, 5)
        again.free()
    grown(pool, 5)
    got.sum().backward()
    assert (keys.grad == 1).all()


# Reading through the table


def some_texts(lengths, size=4, dtype=torch.float32, widths=(5, 7), groups=2):
    pool, texts = BlockPool(size), []
    for length in lengths:
        options = {"heads": groups, "widths": widths, "dtype": dtype}
        texts.append(grown(pool, length, **options))
    for memory in (pool.keys, pool.values):
        used = torch.zeros(memory.shape[:2], dtype=torch.bool).flatten()
        for cache, _ in texts:
            table = torch.tensor(cache.rows[0])
            used[slots_of(table, torch.arange(cache.length), size)] = True
        memory.flatten(0, 1)[~used] = math.nan  # what is not a token's
    return pool, [cache for cache, _ in texts], [given for _, given in texts]


def both(form):
    if form is triton_paged_attend:
        pytest.importorskip("triton", minversion="3.7")
    return form


every = pytest.mark.parametrize("form", [paged_attend, triton_paged_attend])


@every
@pytest.mark.parametrize("size", [1, 3, 4, 16])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_reading_through_the_table_is_attention(form, size, heads, scale):
    pool, caches, given = some_texts([1, 3, 4, 13, 8], size)
    queries = torch.randn(5, heads, 5)
    tables = stack_tables(caches)
    got = both(form)(queries, pool.keys, pool.values, *tables, scale=scale)
    for query, (keys, values, _), context in zip(queries, given, got, strict=True):
        must = attend(query[:, None], keys, values, scale=scale)[:, 0]
        torch.testing.assert_close(context, must)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_are_summed_in_32(form, dtype):
    pool, caches, given = some_texts([70, 9], 8, dtype)
    queries = torch.randn(2, 4, 5, dtype=dtype)
    got = both(form)(queries, pool.keys, pool.values, *stack_tables(caches))
    assert got.dtype == dtype
    for query, (keys, values, _), context in zip(queries, given, got, strict=True):
        exact = attend(query[:, None].double(), keys.double(), values.double())[:, 0]
        rounding = torch.finfo(dtype).eps * 2
        torch.testing.assert_close(
            context.double(), exact, rtol=rounding, atol=rounding
        )


@every
def test_large_scores_do_not_overflow(form):
    pool, caches, given = some_texts([6, 9])
    queries = 1000 * torch.randn(2, 2, 5)
    got = both(form)(queries, pool.keys, pool.values, *stack_tables(caches))
    for query, (keys, values, _), context in zip(queries, given, got, strict=True):
        must = attend(query[:, None], keys, values)[:, 0]
        torch.testing.assert_close(context, must)


@every
def test_what_stands_after_a_text_in_the_table_is_never_looked_at(form):
    pool, caches, _ = some_texts([9, 2])
    queries = torch.randn(2, 2, 5)
    table, lengths = stack_tables(caches)
    must = both(form)(queries, pool.keys, pool.values, table, lengths)
    table[1, 1:] = table[0, 1:].flip(0)
    assert torch.equal(form(queries, pool.keys, pool.values, table, lengths), must)


@every
def test_memory_may_be_a_view_and_tables_of_32_bits(form):
    pool, caches, _ = some_texts([9, 2])
    queries = torch.randn(2, 2, 5)
    table, lengths = stack_tables(caches)
    must = both(form)(queries, pool.keys, pool.values, table, lengths)
    keys, values = (
        t.movedim(1, 2).contiguous().movedim(2, 1) for t in (pool.keys, pool.values)
    )
    wide = torch.stack([queries, queries], dim=-1)[..., 0]
    tables = table.int().T.contiguous().T, lengths.int()
    torch.testing.assert_close(form(wide, keys, values, *tables), must)


def test_gradients_of_reading_are_right():
    pool, caches, _ = some_texts([5, 9], dtype=torch.float64)
    queries = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    tables = stack_tables(caches)

    def read(queries):
        return paged_attend(queries, pool.keys, pool.values, *tables)

    assert torch.autograd.gradcheck(read, queries)


def test_the_kernel_refuses_what_wants_a_gradient(as_importer):
    pool, caches, _ = some_texts([5])
    queries = torch.randn(1, 2, 5, requires_grad=True)
    given = queries, pool.keys, pool.values, *stack_tables(caches)
    with pytest.raises(ValueError, match=said("queries", "no gradient", "got")):
        triton_paged_attend(*given)
    pytest.importorskip("triton", minversion="3.7")
    with torch.no_grad():
        torch.testing.assert_close(triton_paged_attend(*given), paged_attend(*given))


@every
@pytest.mark.parametrize("shape", [(), (1,), (6, 1), (3, 1, 1), (3, 6, 1)])
@pytest.mark.usefixtures("as_importer")
def test_a_scale_may_be_a_tensor_for_texts_and_heads(form, shape):
    pool, caches, _ = some_texts([1, 9, 4])
    queries, scale = torch.randn(3, 6, 5), 3 * torch.rand(shape)
    given = pool.keys, pool.values, *stack_tables(caches)
    got = both(form)(queries, *given, scale=scale)
    must = paged_attend(queries * scale, *given, scale=1)
    torch.testing.assert_close(got, must)


@every
@pytest.mark.parametrize(
    "scale", [torch.ones(1, 2, 1), torch.ones(4), torch.ones(2, 4, 5), "a", 1j]
)
def test_a_scale_that_fits_no_query_is_refused(form, scale, as_importer):
    with pytest.raises(ValueError, match=said("scale", "a number", "got")):
        form(**wrong(), scale=scale)


def test_the_kernel_refuses_a_scale_that_wants_a_gradient(as_importer):
    scale = torch.ones(1, requires_grad=True)
    with pytest.raises(ValueError, match=said("no gradient", "got")):
        triton_paged_attend(**wrong(), scale=scale)
    paged_attend(**wrong(), scale=scale).sum().backward()
    assert scale.grad.isfinite()


def wrong(**changes):
    pool, caches, _ = some_texts([5, 9])
    table, lengths = stack_tables(caches)
    given = {"queries": torch.randn(2, 4, 5), "keys": pool.keys, "values": pool.values}
    given |= {"table": table, "lengths": lengths}
    return given | {name: change(given[name]) for name, change in changes.items()}


WRONG = {
    "an axis too few": (
        {"queries": lambda t: t[0]},
        ("queries", "3, 4, 4, 2 and 1 axes"),
    ),
    "fewer blocks of values": ({"values": lambda t: t[1:]}, ("as many blocks", "got")),
    "other slots": ({"values": lambda t: t[:, 1:]}, ("keys and values", "4 and 3")),
    "another width": ({"keys": lambda t: t[..., 1:]}, ("one width", "5 and 4")),
    "another dtype": ({"keys": lambda t: t.double()}, ("keys", "float32", "float64")),
    "heads": ({"queries": lambda t: t[:, :3]}, ("heads", "got")),
    "fewer heads than keys": (
        {"queries": lambda t: t[:, :1]},
        ("heads", "=2", "got 1"),
    ),
    "a table of floats": (
        {"table": lambda t: t.float()},
        ("table", "int32", "float32"),
    ),
    "a table too short": ({"table": lambda t: t[1:]}, ("table", "2 texts", "got")),
    "lengths too few": ({"lengths": lambda t: t[1:]}, ("lengths", "2 texts", "got")),
    "booleans": ({"lengths": lambda t: t.bool()}, ("lengths", "int32", "bool")),
    "no token": (
        {"lengths": lambda t: t - 5},
        ("lengths", "from 1 to 12", "got 0 to 4"),
    ),
    "too long": (
        {"lengths": lambda t: t + 4},
        ("lengths", "from 1 to 12", "got 9 to 13"),
    ),
    "no such block": ({"table": lambda t: t + 9}, ("table", "from 0 to", "got 9")),
    "below 0": ({"table": lambda t: t - 1}, ("table", "from 0 to", "got -1")),
    "another device": ({"table": lambda t: t.to("meta")}, ("table", "cpu", "meta")),
}


@every
@pytest.mark.parametrize(("changes", "fields"), WRONG.values(), ids=WRONG.keys())
def test_tables_that_do_not_fit_are_refused(form, changes, fields, as_importer):
    with pytest.raises(ValueError, match=said(*fields)):
        form(**wrong(**changes))


def test_lists_are_refused(as_importer):
    with pytest.raises(TypeError, match=said("table", "Tensor", "list")):
        paged_attend(**wrong(table=lambda t: t.tolist()))


def test_tables_are_stacked_for_caches_of_one_pool_that_hold_something(as_importer):
    one, _ = grown(BlockPool(4), 6, batch=(2,))
    table, lengths = stack_tables([one, one.fork()])
    assert table.tolist() == [[0, 2], [1, 3]] * 2 or table.shape == (4, 2)
    assert lengths.tolist() == [6] * 4
    other, _ = grown(BlockPool(4), 6)
    empty = PagedCache(4, pool=one.pool)
    for caches, got in (
        ([], "0 pools"),
        ([one, other], "2 pools"),
        ([one, empty], "[6, 0]"),
    ):
        with pytest.raises(ValueError, match=said("caches", "one pool", got)):
            stack_tables(caches)


def test_without_triton_the_kernel_says_what_it_needs():
    code = """
import sys, torch
sys.modules["triton"] = None  # as if it were not installed
from attention.memory.paged import triton_paged_attend
memory, ones = torch.zeros(1, 4, 1, 2), torch.ones(1).long()
try:
    triton_paged_attend(torch.zeros(1, 1, 2), memory, memory, 0 * ones[None], ones)
except ModuleNotFoundError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == (
        "triton_paged_attend needs Triton: pip install 'building-attention[triton]'\n"
    ), run.stderr


def test_on_a_cpu_the_kernel_needs_the_interpreter():
    pytest.importorskip("triton", minversion="3.7")
    code = """
import os, torch
os.environ.pop("TRITON_INTERPRET", None)
from attention.memory.paged import triton_paged_attend
memory, ones = torch.zeros(1, 4, 1, 2), torch.ones(1).long()
try:
    triton_paged_attend(torch.zeros(1, 1, 2), memory, memory, 0 * ones[None], ones)
except ValueError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.startswith("device: expected CUDA"), run.stderr


# The scheduler


def model():
    """A layer and a vector for each of 23 tokens: reads tokens, says which follows."""
    torch.manual_seed(2357)
    layer = Attention(8, 8, 4, num_kv_heads=2, process_heads=Rotary(2), head_dim=2)
    words = torch.randn(23, 8)

    @torch.no_grad()
    def read(tokens, cache):
        context = layer(words[tokens], cache=cache)
        return (words @ context[-1]).argmax().item()

    return read


def alone(read, prompt, count):
    text, cache, new = [*prompt], PagedCache(4), prompt
    for _ in range(count):
        new = [read(new, cache)]
        text += new
    return text


def served(read, sizes, num_blocks, block_size=4):
    """All texts, written together; the scheduler, and what should be written."""
    prompts = [torch.randint(23, (p,)).tolist() for p, _ in sizes]
    requests = [Request([*p], n) for p, (_, n) in zip(prompts, sizes, strict=True)]
    scheduler = Scheduler(BlockPool(block_size, num_blocks), read)
    for request in requests:
        scheduler.add(request)
    musts = [alone(read, p, n) for p, (_, n) in zip(prompts, sizes, strict=True)]
    for _ in range(200):
        scheduler.step()
        accounts(scheduler.pool, [r.cache for r in scheduler.running])
        assert not set(scheduler.waiting) & set(scheduler.running)
    return scheduler, requests, musts


@pytest.mark.parametrize("num_blocks", [None, 40, 9, 6, 5])
def test_texts_are_what_they_would_have_been_alone(num_blocks):
    sizes = [(5, 9), (9, 1), (3, 16), (7, 4), (2, 12), (11, 8)]
    scheduler, requests, musts = served(model(), sizes, num_blocks)
    assert [request.tokens for request in requests] == musts
    assert [request.to_write for request in requests] == [0] * 6
    assert not any(scheduler.pool.users)
    done = [what for step in scheduler.log for what in step.values()]
    assert ("put back" in done) == (num_blocks in (9, 6, 5))


def test_the_youngest_is_put_back_and_is_the_next_to_start():
    sizes = [(4, 9), (4, 9), (4, 9)]
    scheduler, requests, _ = served(model(), sizes, 5)
    log = [
        {requests.index(r): what for r, what in step.items()} for step in scheduler.log
    ]
    first = next(step for step in log if "put back" in step.values())
    assert first == {0: "write", 1: "write", 2: "put back"} or first[2] == "put back"
    ends = [max(n for n, step in enumerate(log) if i in step) for i in range(3)]
    assert ends == sorted(ends)


def test_a_text_that_has_ended_makes_room_at_once():
    scheduler, requests, _ = served(model(), [(9, 2), (4, 9), (8, 3)], 5)
    log = [
        {requests.index(r): what for r, what in step.items()} for step in scheduler.log
    ]
    assert log[0] == {0: "prompt", 1: "prompt"}
    assert log[1] == {0: "write", 1: "write", 2: "prompt"}


def test_nobody_overtakes_a_text_that_waits():
    scheduler, requests, _ = served(model(), [(13, 2), (13, 2), (1, 2)], 5)
    starts = [
        next(n for n, step in enumerate(scheduler.log) if request in step)
        for request in requests
    ]
    assert starts == sorted(starts)
    assert starts[1] > 0


def test_equal_prompts_are_read_once():
    read, seen = model(), []

    def counting(tokens, cache):
        seen.append(len(tokens))
        return read(tokens, cache)

    scheduler, prompt = Scheduler(BlockPool(4, 20), counting), [*range(10)]
    requests = [Request([*prompt], 2) for _ in range(3)]
    for request in requests:
        scheduler.add(request)
    scheduler.step()
    assert seen == [10, 2, 2]
    scheduler.step()
    assert [r.tokens for r in requests] == [alone(read, prompt, 2)] * 3


def test_a_text_that_no_pool_could_hold_is_refused(as_importer):
    scheduler = Scheduler(BlockPool(4, 3), model())
    scheduler.add(Request([1] * 9, 4))  # the last token is not read
    with pytest.raises(
        ValueError, match=said("request", "3 blocks", "got", "4 blocks")
    ):
        scheduler.add(Request([1] * 9, 5))
    with pytest.raises(ValueError, match=said("to_write", "at least 1", "got 0")):
        scheduler.add(Request([1], 0))
    with pytest.raises(ValueError, match=said("prompt", "at least 1", "got 0")):
        scheduler.add(Request([], 1))
    assert len(scheduler.waiting) == 1


@pytest.mark.parametrize("odd", [None, 1.5, [3], "a", torch.ones(2), torch.ones(())])
@pytest.mark.parametrize("when", [0, 1, 3])
def test_what_is_no_token_is_refused_and_nothing_is_lost(odd, when, as_importer):
    read = model()
    answers = iter([True] * when + [False] + [True] * 50)

    def call(tokens, cache):
        following = read(tokens, cache)
        return following if next(answers) else odd

    scheduler, request = Scheduler(BlockPool(2, 9), call), Request([5, 2, 7], 5)
    scheduler.add(request)
    for _ in range(when):
        scheduler.step()
    with pytest.raises(ValueError, match=said("read", "whole number", "got")):
        scheduler.step()
    assert ([*scheduler.waiting], scheduler.running) == ([request], [])
    assert len(scheduler.pool.free) == 9
    for _ in range(6):
        scheduler.step()
    assert request.tokens == alone(read, [5, 2, 7], 5)


def test_tokens_may_come_in_any_sequence_and_as_tensors(as_importer):
    read = model()
    scheduler = Scheduler(BlockPool(2, 9), lambda *a: torch.tensor(read(*a)))
    requests = [Request(kind([5, 2, 7]), 4) for kind in (list, tuple, torch.tensor)]
    for request in requests:
        scheduler.add(request)
    for _ in range(9):
        scheduler.step()
    assert [r.tokens for r in requests] == [alone(read, [5, 2, 7], 4)] * 3
    for odd in ([1, 2.5], [[1, 2]], 7, None):
        with pytest.raises(ValueError, match=said("tokens", "whole numbers", "got")):
            scheduler.add(Request(odd, 1))
    assert not scheduler.waiting


# At random


class Sharing(RuleBasedStateMachine):
    """Texts of one small pool beside what they should hold; nan where nobody is."""

    @initialize(seed=st.integers(0, 2**16), size=st.integers(1, 4))
    def begin(self, seed, size):
        torch.manual_seed(seed)
        self.pool, self.texts = BlockPool(size, 14), []

    def chosen(self, data):
        return data.draw(st.sampled_from(range(len(self.texts))), label="text")

    def tokens(self, data, new):
        return data.draw(st.lists(st.integers(0, 1), min_size=new, max_size=new))

    @precondition(lambda self: len(self.texts) < 5)
    @rule(data=st.data(), length=st.integers(1, 9))
    def start(self, data, length):
        cache = PagedCache(self.pool.block_size, pool=self.pool)
        tokens = self.tokens(data, length)
        known = reuse_prefix(cache, torch.tensor(tokens))
        assert known < length
        self.texts.append((cache, tokens[:known]))
        self.add(self.texts[-1], tokens[known:])

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), new=st.integers(0, 5))
    def extend(self, data, new):
        self.add(self.texts[self.chosen(data)], self.tokens(data, new))

    def add(self, text, new):
        cache, tokens = text
        whole = torch.tensor([*tokens, *new], dtype=torch.long)
        keys, values = told(cache, whole)
        start, fits = len(tokens), cache.needs(len(new)) <= len(self.pool.free)
        given = keys[:, start:], values[:, start:], torch.arange(start, len(whole))
        if fits:
            cache.append(*given)
            tokens += new
        else:
            with pytest.raises(ValueError, match=said("pool", "free blocks", "got")):
                cache.append(*given)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def publish(self, data):
        cache, tokens = self.texts[self.chosen(data)]
        publish_prefix(
            cache, torch.tensor(tokens, dtype=torch.long)
        ) if tokens else None

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def truncate(self, data):
        cache, tokens = self.texts[self.chosen(data)]
        length = data.draw(st.integers(0, len(tokens)), label="length")
        cache.truncate(length)
        del tokens[length:]

    @precondition(lambda self: 0 < len(self.texts) < 5)
    @rule(data=st.data())
    def fork(self, data):
        cache, tokens = self.texts[self.chosen(data)]
        self.texts.append((cache.fork(), [*tokens]))

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def free(self, data):
        cache, _ = self.texts.pop(self.chosen(data))
        cache.free()

    @invariant()
    def all_is_as_it_should_be(self):
        if not hasattr(self, "texts"):
            return
        accounts(self.pool, [cache for cache, _ in self.texts])
        for cache, tokens in self.texts:
            assert cache.length == len(tokens)
            if tokens:
                whole = torch.tensor(tokens)
                got = self.pool.read(cache.rows, len(tokens))
                for one, must in zip(got, told(cache, whole), strict=True):
                    assert torch.equal(one[0], must)
                assert cache.positions.tolist() == [*range(len(tokens))]


def test_whatever_texts_do_they_share_and_do_not_mix():
    few = settings(
        max_examples=max(20, settings().max_examples // 2), stateful_step_count=25
    )
    run_state_machine_as_test(Sharing, settings=few)


def test_a_text_on_which_the_model_fails_is_read_anew_and_writes_the_same():
    faults = iter([False, True, False, False, True] + [False] * 50)

    def failing(read):
        def call(tokens, cache):
            following = read(tokens, cache)
            if next(faults):
                raise OSError("the model is gone")
            return following

        return call

    written = []
    for wrap in (lambda read: read, failing):
        scheduler = Scheduler(BlockPool(2, 9), wrap(model()))
        requests = [Request([5, 2, 7], 4), Request([1, 3], 3)]
        for request in requests:
            scheduler.add(request)
        for _ in range(9):
            with contextlib.suppress(OSError):
                scheduler.step()
        assert not scheduler.waiting
        assert not scheduler.running
        assert len(scheduler.pool.free) == 9
        written.append([request.tokens for request in requests])
    assert written[0] == written[1]
    assert not next(faults), "it has failed twice"


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_a_pool_written_with_gradients_is_stored_as_numbers_and_goes_on(twin):
    keys, values, positions = piece(7)
    cache = PagedCache(4)
    cache.append(keys[..., :5, :].requires_grad_(), values[..., :5, :], positions[:5])
    other = PagedCache(4, pool=twin(cache.pool))
    other.rows, other.length = [[*row] for row in cache.rows], cache.length
    other.batch, other.positions = cache.batch, cache.positions
    other.append(keys[..., 5:, :], values[..., 5:, :], positions[5:])
    assert_holds(other, (keys, values, positions))


def test_a_cache_written_with_gradients_is_pickled_and_goes_on():
    keys, values, positions = piece(7)
    cache = PagedCache(4)
    cache.append(keys[..., :5, :].requires_grad_(), values[..., :5, :], positions[:5])
    other = pickle.loads(pickle.dumps(cache))
    other.append(keys[..., 5:, :], values[..., 5:, :], positions[5:])
    assert_holds(other, (keys, values, positions))


def test_lengths_of_numpy_fill_as_many_blocks_as_those_of_python(as_importer):
    assert blocks_for(np.uint8(200), 7) == 29
    assert wasted_slots([np.uint8(200)], 7) == 3


@pytest.mark.parametrize("length", [2.5, math.nan, True])
def test_a_length_that_is_no_count_fills_no_blocks(length, as_importer):
    words = said("length", "a whole number of at least 0", "got")
    with pytest.raises(ValueError, match=words):
        blocks_for(length, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_round_the_scores_of_pages(dtype):
    keys, values = torch.randn(2, 6, 4, 2, 16).to(dtype)
    queries, table = 20 * torch.randn(2, 4, 16).to(dtype), torch.arange(6).view(2, 3)
    lengths = torch.tensor([12, 7])
    expected = paged_attend(queries, keys, values, table, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = paged_attend(queries, keys, values, table, lengths)
    assert torch.equal(found, expected)
