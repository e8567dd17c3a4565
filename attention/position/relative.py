"""Distance, not place

A number for each distance between query and key is added to the scores: trained in
T5's buckets, or fixed by ALiBi's slopes for any number of heads.

Written by `book/position/relative.ipynb`: read and change it there.
"""

from collections.abc import Callable
from functools import partial
from math import ceil

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from attention.tools.checks import are_whole, check_places, check_sizes
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "RelativeBias",
    "alibi",
    "alibi_slopes",
    "distances",
    "relative_bucket",
    "relative_shift",
]


def distances(
    query_positions: Integer[Tensor, "*queries_batch num_queries"],
    key_positions: Integer[Tensor, "*keys_batch num_keys"],
) -> Integer[Tensor, "*batch num_queries num_keys"]:
    """Key minus query, as in T5: negative where the key comes first.

    ValueError unless both are whole numbers on one device, of batches that fit.
    """
    check_places(query_positions, key_positions)
    # int64: a difference of unsigned numbers would wrap around.
    return key_positions.long().unsqueeze(-2) - query_positions.long().unsqueeze(-1)


def relative_shift(
    by_distance: Float[Tensor, "*batch num_queries num_keys"],
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Columns that are distances, num_keys - 1 to 0 back, become columns of keys.

    The queries are the last of the keys; what stands at a later key means nothing. Dai
    et al. 2019, appendix B. ValueError for more queries than keys.
    """
    check_tensor(by_distance=by_distance)
    shape = by_distance.shape[-2:]
    if len(shape) < 2 or shape[0] > shape[1]:
        must = "(..., queries, keys), no more queries than keys"
        raise expected("by_distance", must, by_distance)
    line = nn.functional.pad(by_distance, (1, 0)).flatten(-2)
    return line[..., shape[0] :].unflatten(-1, shape)


def _bucket(back: Tensor, count: int, most: int) -> Tensor:
    """Buckets of distances from 0, in one direction."""
    exact = count // 2
    wide = range(1, count - exact)
    ends = (exact * (most / exact) ** (k / (count - exact)) for k in wide)
    first = [*range(1, exact + 1), *(ceil(end - 1e-9) for end in ends)]
    first = torch.tensor(first, device=back.device)
    return torch.bucketize(back.contiguous(), first, right=True)


def relative_bucket(
    distance: Integer[Tensor, "*shape"],
    *,
    bidirectional: bool = True,
    num_buckets: int = 32,
    max_distance: int = 128,
) -> Integer[Tensor, "*shape"]:
    """T5's bucket of each distance, key minus query: from 0 to num_buckets - 1.

    Near distances have a bucket each, farther ones share one, and from `max_distance`
    on all share the last. Keys after the query have the second half of the buckets, or,
    unless `bidirectional`, count as distance 0. Raffel et al. 2020, section 2.1.
    ValueError for anything but whole numbers, and for buckets that cannot be made.
    """
    check_tensor(distance=distance)
    if not are_whole(distance):
        raise expected("distance", "whole numbers", distance)
    checked = _check_buckets(bidirectional, num_buckets, max_distance)
    num_buckets, max_distance = checked
    distance = distance.long()
    if not bidirectional:
        return _bucket(-distance.clamp(max=0), num_buckets, max_distance)
    half = num_buckets // 2
    return half * (distance > 0) + _bucket(distance.abs(), half, max_distance)


def _check_buckets(
    bidirectional: bool, num_buckets: int, max_distance: int
) -> tuple[int, int]:
    (num_buckets,) = check_sizes(num_buckets=num_buckets)
    (max_distance,) = check_sizes(max_distance=max_distance)
    ways = 2 if bidirectional else 1
    if num_buckets % ways or num_buckets < 2 * ways:
        must = "an even number of at least 4" if bidirectional else "at least 2"
        raise expected("num_buckets", f"{must}, with {bidirectional=}", num_buckets)
    exact = num_buckets // ways // 2
    if max_distance <= exact:
        must = f"more than the {exact} distances that have a bucket each"
        raise expected("max_distance", must, max_distance)
    return num_buckets, max_distance


class RelativeBias(nn.Module):
    """A trained bias for each head and bucket of distances, for the slot `bias`.

    Called with positions (*batch, queries) and (*batch, keys) it gives (*batch, heads,
    queries, keys). T5 adds it to scores that are not scaled: there the slot `attend` is
    partial(attend, scale=1.0). In T5's checkpoints `table.weight` is called
    relative_attention_bias.weight, and all layers share that of the first. Options are
    those of `relative_bucket`. Raffel et al. 2020, section 2.1. ValueError for sizes
    and positions that do not fit.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        bidirectional: bool = True,
        num_buckets: int = 32,
        max_distance: int = 128,
    ) -> None:
        super().__init__()
        (num_heads,) = check_sizes(num_heads=num_heads)
        checked = _check_buckets(bidirectional, num_buckets, max_distance)
        num_buckets, max_distance = checked
        buckets = {"num_buckets": num_buckets, "max_distance": max_distance}
        self.options = {"bidirectional": bidirectional} | buckets
        self.table = nn.Embedding(num_buckets, num_heads)
        nn.init.zeros_(self.table.weight)

    def forward(
        self,
        query_positions: Integer[Tensor, "*queries_batch num_queries"],
        key_positions: Integer[Tensor, "*keys_batch num_keys"],
    ) -> Float[Tensor, "*batch num_heads num_queries num_keys"]:
        """What is added to the scores of each head."""
        distance = distances(query_positions, key_positions)
        device = self.table.weight.device
        if distance.device != device:
            must = f"whole numbers on {device}, like the table"
            raise expected("query_positions", must, query_positions)
        return self.table(relative_bucket(distance, **self.options)).movedim(-1, -3)


def alibi_slopes(
    num_heads: int, *, device: torch.device | str | None = None
) -> Float[Tensor, " num_heads"]:
    """ALiBi's cost of a step, for each head: 2^(-8/n), its square, its cube, …

    This is for n heads, a power of two. Otherwise n is the next smaller one, and every
    other slope of 2n heads follows, from the steepest. Press et al. 2022, their code.
    ValueError for a number of heads below 1.
    """
    (num_heads,) = check_sizes(num_heads=num_heads)
    n = 2 ** (num_heads.bit_length() - 1)
    series = [8 * k / n for k in range(1, n + 1)]
    further = [8 * k / (2 * n) for k in range(1, 2 * n, 2)]
    exponents = (series + further)[:num_heads]
    slopes = [2.0**-exponent for exponent in exponents]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


def alibi(num_heads: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A bias for the slot of that name: each step of distance costs a head's slope.

    It gives (*batch, heads, queries, keys), in float32, to be added after the scale.
    Keys after the query cost as much as those before. Press et al. 2022, section 3.
    ValueError for a number of heads below 1.
    """
    (num_heads,) = check_sizes(num_heads=num_heads)
    return partial(_cost, num_heads=num_heads)


def _cost(query_positions: Tensor, key_positions: Tensor, *, num_heads: int) -> Tensor:
    away = distances(query_positions, key_positions).abs().unsqueeze(-3)
    slopes = alibi_slopes(num_heads, device=away.device)
    return -slopes[:, None, None] * away
