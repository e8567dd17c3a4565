"""Grouped-query attention

Fewer heads for keys and values than for queries: neighbours share one, the cache
shrinks in the same proportion, and a trained layer is converted by taking means.

Written by `book/memory/grouped_query.ipynb`: read and change it there.
"""

from collections.abc import Callable
from copy import deepcopy

from jaxtyping import Float
from torch import Tensor, nn

from attention.core.layer import Attention
from attention.tools.checks import check_sizes, precise
from attention.tools.workbench import check_tensor, expected

__all__ = ["check_poolable", "check_pooled", "mean_head", "pool_heads"]


def mean_head(
    heads: Float[Tensor, "num_kv_heads members ..."],
) -> Float[Tensor, "num_kv_heads ..."]:
    """The mean of the heads of each group, taken in float32 at least."""
    return heads.to(precise(heads)).mean(dim=1).to(heads.dtype)


def pool_heads(
    layer: Attention,
    num_kv_heads: int,
    *,
    pool: Callable[[Tensor], Tensor] = mean_head,
) -> Attention:
    """A copy of `layer` in which `num_kv_heads` heads of keys and values are left.

    Neighbours become one, by their mean; another `pool` turns (num_kv_heads, members,
    …) into (num_kv_heads, …). The copy is no longer the function that was trained:
    train it further. ValueError unless the number divides that of the layer. Ainslie et
    al. 2023, section 2.1.
    """
    num_kv_heads = check_poolable(layer, num_kv_heads)
    pooled = deepcopy(layer)
    pooled.num_kv_heads = num_kv_heads
    for linear in (pooled.W_key, pooled.W_value):
        linear.out_features = num_kv_heads * layer.head_dim
        for name, old in list(linear.named_parameters()):
            heads = old.detach().unflatten(0, (num_kv_heads, -1, layer.head_dim))
            rows = check_pooled(pool(heads), heads).flatten(0, 1)
            setattr(linear, name, nn.Parameter(rows, old.requires_grad))
    return pooled


def check_poolable(layer: Attention, num_kv_heads: int) -> int:
    """That many, as Python's; ValueError unless the layer's heads can be so joined."""
    if not isinstance(layer, Attention):
        raise expected("layer", "an Attention", type(layer).__name__)
    for name in ("W_key", "W_value"):
        kind = type(getattr(layer, name))
        if kind is not nn.Linear:
            raise expected(f"layer.{name}", "an nn.Linear", kind.__name__)
    (num_kv_heads,) = check_sizes(num_kv_heads=num_kv_heads)
    if layer.num_kv_heads % num_kv_heads:
        must = f"a divisor of the {layer.num_kv_heads} that the layer has"
        raise expected("num_kv_heads", must, num_kv_heads)
    return num_kv_heads


def check_pooled(
    pooled: Tensor, heads: Float[Tensor, "num_kv_heads members ..."]
) -> Tensor:
    """What a slot `pool` made of `heads`; ValueError unless it is one per group."""
    check_tensor(pool=pooled)
    shape = (heads.shape[0], *heads.shape[2:])
    must = shape, heads.dtype, heads.device
    if (pooled.shape, pooled.dtype, pooled.device) != must:
        raise expected("pool", f"{heads.dtype} {shape} on {heads.device}", pooled)
    return pooled
