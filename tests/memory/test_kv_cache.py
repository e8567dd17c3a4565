"""What must stay true of `attention.memory.kv_cache`: the cache that keeps it all.

What it shares with other caches is asked in `test_caches.py`.
"""

from itertools import pairwise

import pytest
import torch
from caches import some_piece
from examples import said

from attention import KVCache
from attention.memory.kv_cache import check_piece


@torch.no_grad()
def test_with_a_capacity_its_memory_never_moves():
    cache = KVCache(7)
    places = {cache.extend(*some_piece(1, start=n))[0].data_ptr() for n in range(7)}
    assert len(places) == 1
    assert cache.positions.tolist() == [*range(7)]


@torch.no_grad()
def test_without_one_it_moves_once_in_a_block():
    cache = KVCache(block=4)
    places = [cache.extend(*some_piece(1, start=n))[0].data_ptr() for n in range(13)]
    moves = sum(a != b for a, b in pairwise(places))
    assert moves == 3  # after 4, 8 and 12 tokens


@torch.no_grad()
def test_a_text_longer_than_the_capacity_is_refused(as_importer):
    cache = KVCache(7)
    cache.extend(*some_piece(5))
    with pytest.raises(ValueError, match=said("keys", "capacity=7", "got 3 beside 5")):
        cache.extend(*some_piece(3, start=5))
    assert cache.length == 5
    assert cache.extend(*some_piece(2, start=5))[0].shape[-2] == 7
    with pytest.raises(ValueError, match=said("keys", "capacity=7", "got 8 beside 0")):
        KVCache(7).extend(*some_piece(8))


@torch.no_grad()
def test_an_empty_cache_takes_another_kind_of_text():
    cache = KVCache()
    cache.extend(*some_piece(3))
    cache.truncate(0)
    other = some_piece(2, batch=(5,), heads=1, widths=(4, 6), dtype=torch.float64)
    for got, given in zip(cache.extend(*other), other, strict=True):
        assert torch.equal(got, given)
    assert cache.length == 2


@torch.no_grad()
def test_rows_with_positions_of_their_own_may_come_before_or_after_shared_ones():
    own, shared = torch.tensor([[0, 0, 1], [0, 1, 2]]), torch.tensor([3, 4])
    cache = KVCache()
    cache.extend(*some_piece(3)[:2], own)
    positions = cache.extend(*some_piece(2)[:2], shared)[2]
    assert positions.tolist() == [[0, 0, 1, 3, 4], [0, 1, 2, 3, 4]]
    cache.truncate(0)
    assert cache.extend(*some_piece(2)[:2], shared)[2].tolist() == [3, 4]
    positions = cache.extend(*some_piece(1)[:2], torch.tensor([[5], [9]]))[2]
    assert positions.tolist() == [[3, 4, 5], [3, 4, 9]]


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "7"])
@pytest.mark.parametrize("name", ["capacity", "block"])
def test_a_size_that_counts_no_tokens_is_refused(name, wrong, as_importer):
    with pytest.raises(ValueError, match=said(name, "whole number", "got")):
        KVCache(**{name: wrong})


def test_positions_in_few_bits_do_not_wrap(as_importer):
    keys, values, _ = some_piece(2)
    with pytest.raises(ValueError, match=said("positions", "less", "got", "[4, 3]")):
        check_piece(keys, values, torch.tensor([4, 3], dtype=torch.uint8))
