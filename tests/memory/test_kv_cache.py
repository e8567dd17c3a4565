"""What must stay true of `attention.memory.kv_cache`: the cache that keeps it all.

What it shares with other caches is asked in `test_caches.py`.
"""

from itertools import pairwise

import pytest
import torch
from caches import some_piece
from examples import said
from torch.nn.functional import scaled_dot_product_attention

from attention import Attention, KVCache, Rotary, attend, window
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
@pytest.mark.parametrize("batch", [(), (2,), (2, 5)])
def test_a_text_longer_than_the_capacity_is_refused(batch, as_importer):
    cache = KVCache(7)
    cache.extend(*some_piece(5, batch))
    with pytest.raises(ValueError, match=said("keys", "capacity=7", "got 3 beside 5")):
        cache.extend(*some_piece(3, batch, start=5))
    assert cache.length == 5
    assert cache.extend(*some_piece(2, batch, start=5))[0].shape[-2] == 7
    with pytest.raises(ValueError, match=said("keys", "capacity=7", "got 8 beside 0")):
        KVCache(7).extend(*some_piece(8, batch))


@torch.no_grad()
@pytest.mark.parametrize("batch", [(), (2,), (2, 5)])
def test_the_shape_that_is_wanted_is_told_with_all_its_axes(batch, as_importer):
    cache = KVCache()
    cache.extend(*some_piece(3, batch))
    must = (*batch, 3, "new", 8)
    with pytest.raises(ValueError, match=said("keys", must, "in the cache", "got")):
        cache.extend(*some_piece(2, batch, heads=7, start=3))


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


@torch.no_grad()
def test_shared_positions_behind_those_of_rows_move_no_memory():
    cache = KVCache(7)
    first = cache.extend(*some_piece(3)[:2], torch.tensor([[0, 0, 1], [0, 1, 2]]))
    after = cache.extend(*some_piece(2)[:2], torch.tensor([3, 4]))
    assert [t.data_ptr() for t in after] == [t.data_ptr() for t in first]


def test_a_text_begun_anew_leaves_the_gradients_of_its_first_token():
    cache, (keys, values, place) = KVCache(), some_piece(1)
    held = cache.extend(keys.requires_grad_(), values, place)[0].square()
    cache.truncate(0)
    with torch.no_grad():
        cache.extend(*some_piece(1))
    (given,) = torch.autograd.grad(held.sum(), [keys])
    torch.testing.assert_close(given, 2 * keys)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.5, "7"])
@pytest.mark.parametrize("name", ["capacity", "block"])
def test_a_size_that_counts_no_tokens_is_refused(name, wrong, as_importer):
    with pytest.raises(ValueError, match=said(name, "whole number", "got")):
        KVCache(**{name: wrong})


def test_positions_in_few_bits_do_not_wrap():
    keys, values, _ = some_piece(2)
    with pytest.raises(ValueError, match=said("positions", "less", "got", "[4, 3]")):
        check_piece(keys, values, torch.tensor([4, 3], dtype=torch.uint8))


# By hand


def rows_of_five():
    """Five tokens, turned by their positions."""
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 5, 4)
    queries, keys = Rotary(4)(queries, keys, torch.arange(5))
    return queries[None], keys[None], values[None]


@torch.no_grad()
def test_the_rows_of_two_steps_are_those_of_the_whole_pass():
    must = [[-0.5589, 0.7727, 0.7802, 0.9492], [-0.2318, 0.7365, -0.0531, 0.0564]]
    queries, keys, values = rows_of_five()
    cache = KVCache()
    cache.extend(keys[:, :3], values[:, :3], torch.arange(3))
    for t in (3, 4):
        now = slice(t, t + 1)
        held = cache.extend(keys[:, now], values[:, now], torch.tensor([t]))
        row = attend(queries[:, now], *held[:2], causal=True)[0, 0]
        torch.testing.assert_close(row, torch.tensor(must[t - 3]), rtol=0, atol=6e-5)


def test_two_queries_of_four_keys_in_either_corner():
    upper = [[-0.6136, 0.0316, -0.4927, 0.2484], [-0.3082, 0.055, -0.1641, 0.3043]]
    lower = [[0.2231, 0.3283, 0.2958, 0.3083], [-0.2882, 0.121, -0.1828, 0.2726]]
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(1, 1, n, 4) for n in (2, 4, 4))
    theirs = scaled_dot_product_attention(queries, keys, values, is_causal=True)
    ours = attend(queries, keys, values, causal=True)
    by_mask = attend(queries, keys, values, torch.ones(2, 4, dtype=torch.bool).tril())
    for got, must in ((theirs, upper), (by_mask, upper), (ours, lower)):
        torch.testing.assert_close(got[0, 0], torch.tensor(must), rtol=0, atol=6e-5)


# Mistakes that others made


def text_and_layer(**slots):
    torch.manual_seed(2357)
    layer = Attention(16, 16, 2, process_heads=Rotary(8), **slots)
    return layer.requires_grad_(False), torch.randn(2, 9, 16)


@torch.no_grad()
def test_a_new_token_is_not_aligned_with_the_first_key():
    """PyTorch 108108 and 144858: there, one query sees the first key alone."""

    def upper_left(queries, keys, values, mask=None, *, causal, dropout_p):
        return scaled_dot_product_attention(queries, keys, values, is_causal=causal)

    layer, x = text_and_layer()
    wrong, _ = text_and_layer(attend=upper_left)
    given = {}
    for name, each in {"ours": layer, "theirs": wrong}.items():
        cache = KVCache()
        each(x[:, :8], cache=cache)
        given[name] = each(x[:, 8:], cache=cache)
    whole = layer(x)[:, 8:]
    torch.testing.assert_close(given["ours"], whole)
    first = layer.out_proj(layer.W_value(x[:, :1]))
    torch.testing.assert_close(given["theirs"], first)
    assert not torch.allclose(given["theirs"], whole, atol=0.1)


@torch.no_grad()
def test_a_window_holds_while_a_text_is_written():
    """One query needs no causal mask, and a window even so."""
    layer, x = text_and_layer(masks=(window(3),))
    wide, _ = text_and_layer()
    cache, whole = KVCache(), layer(x)
    given = [layer(token, cache=cache) for token in x.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(given, dim=1), whole)
    assert not torch.allclose(wide(x)[:, 3:], whole[:, 3:], atol=0.01)
