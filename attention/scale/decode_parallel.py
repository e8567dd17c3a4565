"""Writing on several machines

Each machine keeps its share of the cache and attends to it alone; for the next
token they exchange one small state each, which does not grow with the text.

Written by `book/scale/decode_parallel.ipynb`: read and change it there.
"""

from collections.abc import Sequence
from copy import copy

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from attention.core.scaled_dot_product import attention_weights
from attention.memory.kv_cache import KVCache, check_piece, check_rollback
from attention.speed.flash import flash_attend
from attention.speed.online_softmax import merge_states
from attention.tools.checks import check_no_dropout
from attention.tools.ranks import agree, from_all, place_in
from attention.tools.workbench import expected

__all__ = ["ShardedCache", "merge_tree", "tree_attend"]


def merge_tree(
    states: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Float[Tensor, "*lead i e"], Float[Tensor, "*lead i"]]:
    """One state from several: merged in pairs, then in pairs of pairs, and so on.

    Each is a context and its logsumexp. ValueError for none, and for those that
    `merge_states` refuses.
    """
    states = list(states)
    if not states:
        raise expected("states", "at least one", "none")
    while len(states) > 1:
        pairs = zip(states[::2], states[1::2], strict=False)
        merged = [merge_states(*a, *b) for a, b in pairs]
        states = merged + states[2 * len(merged) :]
    return states[0]


def tree_attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | Tensor | None = None,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Float[Tensor, "*batch num_queries value_dim"]:
    """Context vectors of queries that all ranks have, for the keys of all ranks.

    Each rank of `group` (None: all ranks) calls it with the same queries and its own
    part of keys and values, which may be empty, as `ShardedCache` gives them. `mask`
    (True: may see) and `bias` have a column for each of this rank's keys. Ranks
    exchange one state each, and all get the same context. In a group of one this is
    `flash_attend`. ValueError, on every rank, for what does not fit on one or between
    two; on several ranks also for a gradient, for a window, and for causal=True with
    more than one query. The last two mean nothing for a part of the keys: use a mask
    instead. RuntimeError where a rank does not answer. Shyam et al. 2024, who sum
    over ranks by all-reduce where this exchanges states and merges them.
    """
    options = {"causal": causal, "scale": scale, "bias": bias, "window": window}
    if place_in(group)[1] == 1:
        check_no_dropout("tree_attend", dropout_p)
        return flash_attend(queries, keys, values, mask, **options)
    options["dropout_p"] = dropout_p
    (own, _), states = _states(queries, keys, values, mask, options, group)
    return merge_tree(states)[0].to(own.dtype)


def _states(queries, keys, values, mask, options, group) -> tuple[tuple, list[tuple]]:
    """This rank's state, and in 32 bits those of all ranks, in their order."""
    own = []

    def facts():
        own.extend(_state(queries, keys, values, mask, **options))
        scale = options["scale"]
        return {
            "call": "tree_attend",
            "dtype": str(own[0].dtype),
            "sizes of the context": list(own[0].shape),
            "width of queries": queries.shape[-1],
            "scale": "a tensor" if isinstance(scale, Tensor) else scale,
        }

    ranks = len(agree(facts, group))
    context, lse = own
    packed = torch.cat([context.to(lse.dtype), lse.unsqueeze(-1)], dim=-1)
    found = from_all(packed, -2, [packed.shape[-2]] * ranks, group)
    return (context, lse), [(each[..., :-1], each[..., -1]) for each in found]


def _state(
    queries, keys, values, mask, causal, window, dropout_p, **options
) -> tuple[Tensor, Tensor]:
    """Context and logsumexp for this rank's keys; ValueError for what does not fit."""
    check_no_dropout("tree_attend", dropout_p)
    own = flash_attend(queries, keys, values, mask, **options, return_lse=True)
    if causal and queries.shape[-2] > 1:
        must = "one query where each rank has some of the keys, or a mask instead"
        raise expected("causal=True", must, f"{queries.shape[-2]} queries")
    if window is not None:
        must = "None where each rank has some of the keys: use a mask instead,"
        raise expected("window", must, window)
    if own[0].requires_grad:
        must = "no gradient on several ranks, as within torch.no_grad(),"
        raise expected("queries, keys and values", must, "requires_grad=True")
    return own


def _own_weights(
    queries, keys, mask=None, *, causal=False, window=None, group=None, **options
) -> Tensor:
    """The weights of this rank's keys; those of all ranks sum to one."""
    flags = {"causal": causal, "window": window}
    if place_in(group)[1] == 1:
        return attention_weights(queries, keys, mask, **flags, **options)
    flags |= {"dropout_p": 0.0, "scale": None} | options
    own, states = _states(queries, keys, keys, mask, flags, group)
    _, lse = merge_tree(states)
    lse = lse.clamp(min=torch.finfo(lse.dtype).min)  # for queries that see nothing
    weights = attention_weights(queries, keys, mask, **options)
    return weights * (own[1] - lse).exp().unsqueeze(-1).to(weights.dtype)


tree_attend.attention_weights = _own_weights


class ShardedCache:
    """Keys and values of all tokens so far, dealt to the ranks of `group` in turn.

    Token i of the text lies on rank i mod ranks. Every rank extends it with the same
    tokens, and gets back what it holds: for a form that attends over ranks, such as
    `tree_attend`. A mask used with it has columns rank, rank + ranks, … of the whole.
    `positions` and `length` are those of all tokens. In a group of one it is `KVCache`.
    `truncate` sends nothing: call it alike on all ranks; the next `extend` checks.
    copy.copy gives a cache that goes its own way. ValueError, on every rank, for what
    does not fit on one or between two (`check_piece`); all are then as they were.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group, self._place = group, place_in(group)
        self._text = KVCache()  # positions of all tokens, and no numbers
        self._own, self._like = KVCache(), None  # what new ones must be like

    @property
    def length(self) -> int:
        """How many tokens have gone by, on all ranks together."""
        return self._text.length

    @property
    def positions(self) -> Int[Tensor, "*rows length"]:
        """Those of all tokens, wherever they are held."""
        return self._text.positions

    def extend(
        self,
        keys: Float[Tensor, "*batch num_kv_heads new key_dim"],
        values: Float[Tensor, "*batch num_kv_heads new value_dim"],
        positions: Integer[Tensor, "*rows new"],
    ) -> tuple[
        Float[Tensor, "*batch num_kv_heads held key_dim"],
        Float[Tensor, "*batch num_kv_heads held value_dim"],
        Int[Tensor, "*held_rows held"],
    ]:
        """Keys, values and positions of this rank's tokens, new ones included."""
        rank, ranks = self._place
        if ranks == 1:
            self._check(keys, values, positions)
        else:
            agree(lambda: _facts(self, keys, values, positions), self.group)
        before = self.length
        mine = slice((rank - before) % ranks, None, ranks)
        _, _, places = self._text.extend(keys[..., :0], values[..., :0], positions)
        own = keys[..., mine, :], values[..., mine, :], places[..., before:][..., mine]
        held = self._own.extend(*own)
        self._like = held[:2]
        return held

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; each rank drops those it holds."""
        length = check_rollback(length, self.length)
        self._text.truncate(length)
        rank, ranks = self._place
        self._own.truncate(len(range(rank, length, ranks)))

    def _check(self, *piece: Tensor) -> None:
        """ValueError unless keys, values and positions can follow what is held."""
        last = self.positions[..., -1:] if self.length else None
        check_piece(*piece, like=self._like if self.length else None, last=last)

    def __copy__(self) -> "ShardedCache":
        twin = type(self)(self.group)
        twin._text, twin._own = copy(self._text), copy(self._own)
        twin._like = self._like
        return twin

    def __deepcopy__(self, memo: dict) -> "ShardedCache":
        return self.__copy__()


def _facts(cache: ShardedCache, keys, values, positions) -> dict:
    """What ranks must agree on before a piece is kept; ValueError for a misfit."""
    cache._check(keys, values, positions)
    facts = {"call": "extend", "length of the cache": cache.length}
    for name, tensor in {"keys": keys, "values": values}.items():
        facts[name] = f"{tensor.dtype} {tuple(tensor.shape)}"
    return facts | {"sum of positions": int(positions.sum())}
