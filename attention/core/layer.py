"""A layer with slots

One attention layer for today's models: how it treats positions, what it masks, what
it adds to scores and what it remembers are arguments, so that a new variant needs a
new function and not a new class.

Written by `book/core/layer.ipynb`: read and change it there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

from attention.core.causal import ignore_saved_mask
from attention.core.masks import and_masks
from attention.core.scaled_dot_product import Attend, attend, visible, weights_of
from attention.tools.checks import (
    check_dropout,
    check_heads,
    check_input,
    check_pair,
    check_places,
    check_positions,
    check_returned,
    check_sizes,
    check_slots,
    dropout_now,
    precise,
    readable,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "Attention",
    "Cache",
    "causal",
    "check_cache",
    "counted_in_order",
    "extended",
    "in_order",
    "positions_of",
    "prefix",
    "set_back",
    "table_of",
    "what_is_seen",
    "window",
]


def causal(
    query_positions: Integer[Tensor, "*queries_batch num_queries"],
    key_positions: Integer[Tensor, "*keys_batch num_keys"],
) -> Bool[Tensor, "*batch num_queries num_keys"]:
    """True where a key is not later than the query. ValueError for a misfit."""
    check_places(query_positions, key_positions)
    return key_positions.long().unsqueeze(-2) <= query_positions.long().unsqueeze(-1)


def window(size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A mask: the `size` keys up to the query's own; ValueError for a size below 1."""
    (size,) = check_sizes(size=size)
    return partial(_within, size=size)


def _within(query_positions: Tensor, key_positions: Tensor, *, size: int) -> Tensor:
    check_places(query_positions, key_positions)
    # In 64 bits: among unsigned numbers, a difference below 0 would wrap around.
    back = query_positions.long().unsqueeze(-1) - key_positions.long().unsqueeze(-2)
    return (back >= 0) & (back < size)


def prefix(length: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A mask: the keys at the first `length` positions, and those not later.

    With a cache, all of the prefix must come in the first piece: its tokens see keys
    that are later than they are. Raffel et al. 2020, section 3.2.1. ValueError
    for a length below 1.
    """
    (length,) = check_sizes(length=length)
    return partial(_opened, length=length)


def _opened(query_positions: Tensor, key_positions: Tensor, *, length: int) -> Tensor:
    past = causal(query_positions, key_positions)
    return past | (key_positions.long().unsqueeze(-2) < length)


@runtime_checkable
class Cache(Protocol):
    """The memory of a layer; the caller owns one for each layer and text.

    `extend` takes keys (..., num_kv_heads, new, head_dim), values likewise, and
    positions (new,) or (*batch, new). It gives all three for everything that it holds,
    the new ones included; they may come in any order, but an empty cache gives back
    what it was given, in that order, unless it drops some. `length` counts the tokens
    that have gone by. A cache may also have `positions`, those of the keys that it
    holds, and `truncate(length)`, which forgets all that came later. One that drops
    tokens has `seen(new)`, how many keys it will give for `new` tokens, and `undo()`,
    which takes back the last `extend`.
    """

    length: int

    def extend(
        self, keys: Tensor, values: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def positions_of(
    x: Float[Tensor, "*batch length d_in"],
    positions: Tensor | None = None,
    cache: Cache | None = None,
) -> Int[Tensor, "*rows length"]:
    """Positions of the tokens of `x`: given, from 0, or on from what `cache` holds.

    ValueError for those given, unless they are whole numbers from 0, of a shape like x.
    """
    if positions is not None:
        return check_positions(positions, x)
    count = torch.arange(x.shape[-2], device=x.device)
    if cache is None or cache.length == 0:
        return count
    held = getattr(cache, "positions", None)
    start = cache.length if held is None else held.amax(dim=-1, keepdim=True) + 1
    return start + count


def check_cache(cache: Cache, module: nn.Module, x: Tensor) -> None:
    """ValueError unless this is a cache, with room for `x` in a limit of `module`."""
    # At each token: isinstance(cache, Cache) asks the same, and takes far longer.
    if not (hasattr(cache, "extend") and hasattr(cache, "length")):
        must = "an object with extend(keys, values, positions) and length"
        raise expected("cache", must, type(cache).__name__)
    limit, held, new = module.context_length, cache.length, x.shape[-2]
    if limit is not None and held + new > limit:
        must = f"at most context_length={limit} tokens, those in the cache included"
        raise expected("x", must, f"{new} beside {held}")


def table_of(
    name: str, slot: Callable, query_positions: Tensor, key_positions: Tensor
) -> Float[Tensor, "..."] | Bool[Tensor, "..."]:
    """What a slot says about queries and keys, (*batch, 1 or heads, queries, keys).

    Booleans for masks, floats for a bias; ValueError for another kind or shape. For
    positions (length,) the first axes may be missing.
    """
    table = slot(query_positions, key_positions)
    check_tensor(**{name: table})
    hides = name == "masks"
    if (table.dtype == torch.bool) != hides or table.is_floating_point() == hides:
        must = "booleans (True: may see)" if hides else "floats, added to the scores"
        raise expected(name, must, table)
    rows = max(query_positions.ndim, key_positions.ndim) - 1
    size = (query_positions.shape[-1], key_positions.shape[-1])
    if table.shape[-2:] != size or table.ndim > rows + 3:
        must = f"a table (..., queries, keys) that ends in {size}"
        raise expected(name, must, table)
    return table.unsqueeze(-3) if table.ndim == rows + 2 else table


def counted_in_order(
    x: Tensor, positions: Tensor | None = None, cache: Cache | None = None
) -> bool:
    """Whether positions are made such that `causal` is the flag causal=True.

    They count from 0, or go on after the cache for one token, which then sees all keys.
    """
    from_0 = cache is None or cache.length == 0
    return positions is None and (from_0 or x.shape[-2] == 1)


def in_order(query_positions: Tensor, key_positions: Tensor) -> bool:
    """Whether `causal` of these positions is the flag causal=True.

    It is if the queries are the last of the keys, and positions grow. False where that
    cannot be looked at (see `readable`).
    """
    one_row = query_positions.ndim == key_positions.ndim == 1
    earlier = key_positions.shape[-1] - query_positions.shape[-1]
    if not one_row or earlier < 0 or not readable(key_positions):
        return False
    last = torch.equal(key_positions[earlier:], query_positions)
    return last and bool((key_positions.long().diff() > 0).all())


def extended(
    cache: Cache, keys: Tensor, values: Tensor, positions: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and positions of `cache` with the new; ValueError for a misfit."""
    if mask is not None:
        check_tensor(mask=mask)
        if hasattr(cache, "seen"):
            _check_width(mask, cache.seen(keys.shape[-2]))
    keys, values, positions = cache.extend(keys, values, positions)
    count = keys.shape[-2]
    if positions.shape[-1] != count:
        must = f"a position for each of its {count} keys"
        raise expected("cache", must, tuple(positions.shape))
    if mask is not None:
        _check_width(mask, count)
    return keys, values, positions


def _check_width(mask: Tensor, count: int) -> None:
    if mask.shape[-1:] != (count,):
        must = f"a last axis of {count}, for all keys in the cache"
        raise expected("mask", must, tuple(mask.shape))


def set_back(*caches: Cache | None) -> AbstractContextManager[None]:
    """Lets a call that fails leave all `caches` as they were, if they can go back."""
    held = [cache for cache in caches if cache is not None]
    return _set_back(held) if held else nullcontext()


@contextmanager
def _set_back(caches: Sequence[Cache]) -> Iterator[None]:
    before = [getattr(cache, "length", None) for cache in caches]
    try:
        yield
    except BaseException:  # an interrupt too
        for cache, length in zip(caches, before, strict=True):
            if getattr(cache, "length", None) == length:
                continue
            if hasattr(cache, "undo"):
                cache.undo()
            elif hasattr(cache, "truncate"):
                cache.truncate(length)
        raise


def what_is_seen(
    layer: nn.Module,
    queries: Tensor,
    keys: Tensor,
    mask: Tensor | None,
    positions: Tensor,
    held: Tensor,
    counted: bool,
) -> tuple[Tensor | None, dict]:
    """The mask and the options with which `layer` calls its form.

    `held` are the positions of the keys; `counted` is what `counted_in_order` says.
    """
    if layer.masks == (causal,) and layer.bias is None:
        alone = positions.shape[-1] == 1
        counted = counted and (alone or held.shape == positions.shape)
        if counted or in_order(positions, held):
            return mask, {"causal": True}
    shape = (*queries.shape[:-1], keys.shape[-2])
    mask = visible(shape, mask, causal=False, device=queries.device)
    seen = (table_of("masks", rule, positions, held) for rule in layer.masks)
    options = {"causal": False}
    if layer.bias is not None:
        bias = table_of("bias", layer.bias, positions, held)
        options["bias"] = bias.to(precise(queries))
    return and_masks(mask, *seen), options


class Attention(nn.Module):
    """The layer of today's models: project, process, remember, attend, project back.

    Maps (..., length, d_in) to (..., length, d_out). Each of `num_kv_heads` heads of
    keys and values (as many as of queries, if None) serves several heads of queries in
    a row; a head is `head_dim` wide, or d_out / num_heads. The slots are functions, or
    modules, which are then trained and moved with the layer:

    * process_heads(queries, keys, positions) gives queries and keys;
    * bias(query_positions, key_positions) gives floats that are added to the scores;
    * each of `masks`, called likewise, gives booleans: a key is seen if all are True;
    * attend is a form of attention (`Attend`), called with bias=… if there is one.

    Positions are (length,) or (*batch, length). A mask gives (*batch, queries, keys), a
    bias the same, or (*batch, heads, queries, keys). With nothing in the slots it is
    `MultiHeadAttention` without a context_length; one that is set as an attribute
    limits the length, what is cached included. ValueError for what does not fit.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = True,
        dropout: float = 0.0,
        process_heads: Callable[..., tuple[Tensor, Tensor]] | None = None,
        bias: Callable[[Tensor, Tensor], Tensor] | None = None,
        masks: Sequence[Callable[[Tensor, Tensor], Tensor]] = (causal,),
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        d_in, d_out = check_sizes(d_in=d_in, d_out=d_out)
        (num_heads,) = check_sizes(num_heads=num_heads)
        (num_kv_heads,) = check_sizes(num_kv_heads=num_kv_heads)
        if num_heads % num_kv_heads:
            raise expected("num_heads", f"a multiple of {num_kv_heads=}", num_heads)
        if head_dim is None:
            d_out, num_heads = check_heads(d_out, num_heads)
            head_dim = d_out // num_heads
        (head_dim,) = check_sizes(head_dim=head_dim)
        check_slots(masks, process_heads=process_heads, bias=bias, attend=attend)
        self.d_in, self.d_out, self.context_length = d_in, d_out, None
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim, width = head_dim, num_kv_heads * head_dim
        self.W_query = nn.Linear(d_in, num_heads * head_dim, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, width, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, width, bias=qkv_bias)
        self.out_proj = nn.Linear(num_heads * head_dim, d_out, bias=out_bias)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.process_heads, self.bias, self.attend = process_heads, bias, attend
        self.masks = tuple(masks)
        trained = [mask for mask in masks if isinstance(mask, nn.Module)]
        self.mask_modules = nn.ModuleList(trained)
        ignore_saved_mask(self)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; `mask` (True where a query may see) hides further keys.

        The mask broadcasts to (..., num_heads, queries, keys); beside a cache its last
        axis has all keys that are held. `cache` is extended. Positions count from 0, or
        go on after the cache, unless they are given.
        """
        with set_back(cache):
            inputs, options = self._inputs(x, mask, positions, cache)
            context = self.attend(*inputs, dropout_p=dropout_now(self), **options)
            check_returned(attend=context)
            return self.out_proj(rearrange(context, "... h i d -> ... i (h d)"))

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "*batch num_heads length num_keys"]:
        """The weights that `forward` uses for the same input, by head, before dropout.

        It extends `cache` as `forward` does: hand in a copy to leave yours as it is.
        """
        with set_back(cache):
            inputs, options = self._inputs(x, mask, positions, cache)
            return weights_of(self.attend, *inputs, **options)

    def _inputs(self, x, mask, positions, cache) -> tuple[tuple, dict]:
        """What the form is called with: queries, keys, values and mask, and options."""
        check_input(self, x)
        only = len(self.masks) == 1 and self.masks[0] is causal
        flag = only and self.bias is None
        if flag and positions is None and cache is None and self.process_heads is None:
            return (*self._heads(x, None), mask), {"causal": True}  # as in 2017
        if cache is not None:
            check_cache(cache, self, x)
        counted = counted_in_order(x, positions, cache)
        positions = held = positions_of(x, positions, cache)
        queries, keys, values = self._heads(x, positions)
        if cache is not None:
            keys, values, held = extended(cache, keys, values, positions, mask)
        places = positions, held, counted
        mask, options = what_is_seen(self, queries, keys, mask, *places)
        return (queries, keys, values, mask), options

    def _heads(self, x, positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, by head, the first two processed."""
        projected = self.W_query(x), self.W_key(x), self.W_value(x)
        cut = "... i (h d) -> ... h i d"
        queries, keys, values = (
            rearrange(each, cut, d=self.head_dim) for each in projected
        )
        if self.process_heads is None:
            return queries, keys, values
        heads = queries.shape[:-1], keys.shape[:-1]
        made = self.process_heads(queries, keys, positions)
        queries, keys = check_pair("process_heads", made)
        if (queries.shape[:-1], keys.shape[:-1]) != heads:
            got = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
            must = f"queries {(*heads[0], 'd')} and keys {(*heads[1], 'd')}"
            raise expected("process_heads", must, got)
        return queries, keys, values
