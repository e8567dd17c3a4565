"""Every cache of the book, what it promises, and small texts to try it with.

A new cache gets an entry in CACHES; `test_caches.py` then asks it all that is asked of
the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from examples import said
from torch import Tensor

from attention import (
    Attention,
    BlockPool,
    KVCache,
    PagedCache,
    QuantizedCache,
    RollingCache,
    Rotary,
    ShardedCache,
    alibi,
    attend,
    causal,
    window,
    window_and_sinks,
)
from attention.core.layer import Cache
from attention.core.masks import and_masks

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LENGTH = 13


@dataclass(frozen=True)
class Kept:
    """One cache, and what it promises beyond `Cache`.

    * `make()` gives a new one;
    * `masks` are those under which it keeps all that is seen, as a window for a cache
      that drops what is older: they take the place of the layer's. None: under any;
    * `oldest(cache)` is the least length to which it can be rolled back; below it, it
      must refuse;
    * `error` is by how much its contexts may differ from the whole pass, as a share of
      the largest number; 0: by rounding alone;
    * `dtypes` that it takes;
    * `uneven`: whether keys and values may differ in width;
    * `drops`: whether it may hand back less than all that went by;
    * `gradients`: whether they are right. If not, they are refused, when they are asked
      for or before.
    """

    make: Callable[[], Cache]
    masks: tuple | None = None
    oldest: Callable[[Cache], int] = lambda cache: 0
    error: float = 0.0
    dtypes: list[torch.dtype] = field(default_factory=lambda: DTYPES)
    uneven: bool = True
    drops: bool = False
    gradients: bool = True


def rolling(window: int, sinks: int, spare: int, rule: Callable) -> Kept:
    """A ring: it goes back as long as all that its mask shows is still there."""

    def oldest(cache):
        dropped = cache._oldest > sinks
        return cache._oldest + window - 1 if dropped else 0

    make = partial(RollingCache, window, sinks, spare=spare)
    return Kept(make, masks=(rule,), oldest=oldest, drops=True)


CACHES: dict[str, Kept] = {
    "KVCache": Kept(KVCache),
    "KVCache, small blocks": Kept(lambda: KVCache(block=3)),
    "KVCache, a capacity": Kept(lambda: KVCache(500)),
    "QuantizedCache, nothing rounded": Kept(lambda: QuantizedCache(2, residual=500)),
    "QuantizedCache, 8 bits": Kept(
        lambda: QuantizedCache(8, group=3), error=0.05, gradients=False
    ),
    "QuantizedCache, 4 bits": Kept(
        lambda: QuantizedCache(4, group=4, residual=2), error=0.8, gradients=False
    ),
    "PagedCache": Kept(lambda: PagedCache(4)),
    "PagedCache, in a pool": Kept(lambda: PagedCache(3, pool=BlockPool(3, 600))),
    "RollingCache": rolling(6, 0, 0, window(6)),
    "RollingCache, some to spare": rolling(4, 0, 3, window(4)),
    "RollingCache, sinks": rolling(4, 2, 1, window_and_sinks(4, 2)),
    "ShardedCache, a group of one": Kept(ShardedCache),
}

SLOTS = {  # of a layer with six heads, each 8 wide
    "nothing": {},
    "rotary": {"process_heads": Rotary(8)},
    "bias": {"bias": alibi(6)},
    "window": {"masks": (window(4),)},
    "grouped": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "all": {
        "num_kv_heads": 3,
        "process_heads": Rotary(8),
        "bias": alibi(6),
        "masks": (causal, window(5)),
        "qkv_bias": True,
    },
}


def some_layer(kept: Kept, slots: dict, dtype: torch.dtype, batch=(2,)):
    """A layer with these slots that hides what the cache drops, and a text."""
    torch.manual_seed(2357)
    if kept.masks is not None:
        slots = slots | {"masks": (*slots.get("masks", ()), *kept.masks)}
    layer = Attention(16, 16, 6, head_dim=8, **slots).to(dtype).requires_grad_(False)
    return layer, torch.randn(*batch, LENGTH, 16, dtype=dtype)


def bound(kept: Kept, must: Tensor) -> float:
    """How far from these numbers a cache may lead: rounding, and its stated error."""
    largest = must.abs().max().item() if must.numel() else 0.0
    return largest * (kept.error + 32 * torch.finfo(must.dtype).eps)


def assert_near(kept: Kept, got: Tensor, must: Tensor) -> None:
    torch.testing.assert_close(got, must, rtol=0.0, atol=bound(kept, must))


def compile_steps(names: list[str]) -> None:
    """Write one token with each of these caches, as one graph and without."""
    for name in names:
        layer, x = some_layer(CACHES[name], SLOTS["nothing"], torch.float32)
        plain, cache = CACHES[name].make(), CACHES[name].make()
        torch.compiler.reset()
        # "aot_eager" traces as "inductor" does, and needs no C++ compiler.
        step = torch.compile(
            lambda x, layer=layer, cache=cache: layer(x, cache=cache),
            fullgraph=True,
            backend="aot_eager",
        )
        with torch.no_grad():
            layer(x[:, :9], cache=plain), layer(x[:, :9], cache=cache)
            must, got = layer(x[:, 9:10], cache=plain), step(x[:, 9:10])
        assert (cache.length, plain.length) == (10, 10)
        torch.testing.assert_close(got, must)


def some_piece(new, batch=(2,), heads=3, widths=(8, 8), dtype=torch.float32, start=0):
    """Keys, values and positions of `new` tokens."""
    keys, values = (torch.randn(*batch, heads, new, w, dtype=dtype) for w in widths)
    return keys, values, torch.arange(start, start + new)


def looked_up(kept: Kept, queries: Tensor, positions: Tensor, held: tuple) -> Tensor:
    """What queries at these positions find in keys, values and positions."""
    keys, values, places = held
    seen = (rule(positions, places) for rule in kept.masks or (causal,))
    mask = and_masks(*seen)
    mask = mask.unsqueeze(-3) if mask.ndim > 2 else mask
    return attend(queries, keys, values, mask)


# What does not fit. Each fault makes a wrong piece of one that would do.


def _keys(change):
    return lambda keys, values, positions: (change(keys), values, positions)


def _values(change):
    return lambda keys, values, positions: (keys, change(values), positions)


def _both(change):
    return lambda keys, values, positions: (change(keys), change(values), positions)


def _places(change):
    return lambda keys, values, positions: (keys, values, change(positions))


def _other(tensor):
    return tensor.to(torch.float64 if tensor.dtype != torch.float64 else torch.float32)


FAULTS = {  # wrong beside an empty cache, too
    "keys of whole numbers": (_keys(Tensor.long), said("keys", "floats", "int64")),
    "values of whole numbers": (_values(Tensor.long), said("values", "floats")),
    "keys without heads": (
        _keys(lambda t: t.flatten(0, -3)[0]),
        said("keys", "num_kv_heads"),
    ),
    "values on another device": (
        _values(lambda t: t.to("meta")),
        said("values", "cpu", "got", "meta"),
    ),
    "fewer values": (_values(lambda t: t[..., 1:, :]), said("values", "shape", "got")),
    "fewer heads of values": (_values(lambda t: t[..., 1:, :, :]), said("values")),
    "one position less": (_places(lambda t: t[1:]), said("positions", "got")),
    "positions of floats": (_places(Tensor.float), said("positions", "float32")),
    "positions of booleans": (_places(Tensor.bool), said("positions", "bool")),
    "positions below 0": (_places(lambda t: t - 999), said("positions", "0", "got")),
    "positions on another device": (
        _places(lambda t: t.to("meta")),
        said("positions", "cpu", "got", "meta"),
    ),
    "positions for more texts": (
        _places(lambda t: t.expand(7, -1)),
        said("positions", "got", "(7, "),
    ),
    "positions turned round": (_places(lambda t: t.flip(-1)), said("positions")),
}
FAULTS_BESIDE = {  # wrong beside what is held
    "another dtype": (_both(_other), said("keys", "like those in the cache", "got")),
    "another dtype of values": (_values(_other), said("values", "in the cache")),
    "another device": (
        lambda *piece: tuple(t.to("meta") for t in piece),
        said("keys", "cpu", "in the cache", "got", "meta"),
    ),
    "another batch": (_both(lambda t: torch.cat([t, t, t])), said("keys", "got")),
    "no batch": (_both(lambda t: t[0]), said("keys", "in the cache", "got")),
    "other heads": (_both(lambda t: t[..., :1, :, :]), said("keys", "in the cache")),
    "another width of keys": (_keys(lambda t: t[..., 1:]), said("keys", "got")),
    "another width of values": (_values(lambda t: t[..., 1:]), said("values", "got")),
    "positions that stand still": (_places(lambda t: t - 1), said("positions", "got")),
    "positions that go back": (_places(lambda t: 0 * t), said("positions", "got")),
}
