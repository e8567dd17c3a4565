"""Additive attention

A small network scores every key against a query, so that a decoder can look back at
all that was read, instead of living on one summary of it.

Written by `book/idea/additive.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["AdditiveAttention", "additive_score", "unified"]


def additive_score(
    queries: Float[Tensor, "*#batch num_queries d_hidden"],
    keys: Float[Tensor, "*#batch num_keys d_hidden"],
    v: Float[Tensor, " d_hidden"],
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Scores: v · tanh(query + key) for every query with every key.

    Bahdanau et al. 2015, appendix A.1.2, with W and U already applied.
    `partial(additive_score, v=v)` takes the place of a dot product.
    """
    _check_score(queries, keys, v)
    return torch.tanh(queries.unsqueeze(-2) + keys.unsqueeze(-3)) @ v


def unified(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of autocast, where that is on for their device.

    Floats are cast, except float64, as autocast does before a matrix product; all else
    is left as it is.
    """
    return tuple(map(_as_autocast, tensors))


def _as_autocast(tensor):
    kind = tensor.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensor
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.to(torch.get_autocast_dtype(kind)) if eligible else tensor


def _check_score(queries, keys, v) -> None:
    """ValueError if the three do not fit: floats, of one width, that broadcast."""
    shapes = [tuple(tensor.shape) for tensor in (queries, keys, v)]
    if v.ndim != 1 or min(queries.ndim, keys.ndim) < 2:
        must = "(..., length, width), (..., length, width) and (width,)"
        raise ValueError(f"queries, keys and v must be {must}, came {shapes}")
    if (queries.shape[-1], keys.shape[-1]) != (len(v), len(v)):
        must = f"have the {len(v)} numbers of v each"
        raise ValueError(f"queries and keys must {must}, came {shapes[:2]}")
    dtypes = [tensor.dtype for tensor in (queries, keys, v)]
    if not all(dtype.is_floating_point for dtype in dtypes):
        raise ValueError(f"queries, keys and v must be floats, came {dtypes}")
    try:
        torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2])
    except RuntimeError:
        raise ValueError(f"batch axes must broadcast, came {shapes[:2]}") from None


def _check(module, queries, keys, values, mask) -> None:
    """ValueError if the inputs do not fit the module, or each other."""
    v, given = module.v, {"queries": queries, "keys": keys, "values": values}
    widths = {"queries": module.d_query, "keys": module.d_key, "values": "d_value"}
    kind = v.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    for name, tensor in given.items():
        shape, width = tuple(tensor.shape), widths[name]
        if len(shape) < 2 or (name != "values" and shape[-1] != width):
            raise ValueError(f"{name} must be (..., length, {width}), came {shape}")
        dtype = v.dtype
        if autocast and tensor.is_floating_point():
            dtype = tensor.dtype
        if (tensor.dtype, tensor.device) != (dtype, v.device):
            must, came = f"{dtype} on {v.device}", f"{tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name} must be {must} like the weights, {came=!s}")
    if keys.shape[-2] != values.shape[-2]:
        came = f"{keys.shape[-2]} and {values.shape[-2]}"
        raise ValueError(f"keys and values must have one length, {came=!s}")
    leading = [tuple(tensor.shape[:-2]) for tensor in given.values()]
    try:
        leading = torch.broadcast_shapes(*leading)
    except RuntimeError:
        came = ", ".join(map(str, leading))
        raise ValueError(f"batch axes must broadcast, {came=!s}") from None
    if mask is None:
        return
    if mask.dtype != torch.bool or mask.device != v.device:
        must, came = f"boolean (True may see) on {v.device}", f"{mask.dtype} on "
        raise ValueError(f"mask must be {must}, came {came}{mask.device}")
    shape = (*leading, queries.shape[-2], keys.shape[-2])
    try:
        mask.expand(shape)
    except RuntimeError:
        came = tuple(mask.shape)
        raise ValueError(f"mask must broadcast to {shape}, {came=}") from None


class AdditiveAttention(nn.Module):
    """Attention whose scores come from a small network: v · tanh(W query + U key).

    Maps queries (..., i, d_query), keys (..., j, d_key) and values (..., j, e) to
    (..., i, e). Bahdanau et al. 2015, section 3.1. Memory grows with i · j · d_hidden.
    """

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        sizes = {"d_query": d_query, "d_key": d_key, "d_hidden": d_hidden}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                must = "must be a whole number of at least 1"
                raise ValueError(f"{name}={size!r} {must}")
        self.d_query, self.d_key = d_query, d_key
        self.W_query = nn.Linear(d_query, d_hidden, bias=False)
        self.W_key = nn.Linear(d_key, d_hidden, bias=False)
        self.v = nn.Parameter(nn.Linear(d_hidden, 1, bias=False).weight.detach()[0])

    def forward(
        self,
        queries: Float[Tensor, "*#batch num_queries d_query"],
        keys: Float[Tensor, "*#batch num_keys d_key"],
        values: Float[Tensor, "*#batch num_keys d_value"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_queries d_value"]:
        """Context vectors; `mask` is True where a query may see a key."""
        _check(self, queries, keys, values, mask)
        return self.attention_weights(queries, keys, mask) @ values

    def attention_weights(
        self,
        queries: Float[Tensor, "*#batch num_queries d_query"],
        keys: Float[Tensor, "*#batch num_keys d_key"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_queries num_keys"]:
        """The weights of `forward`; a query that may see no key gets zeros."""
        _check(self, queries, keys, keys, mask)
        scores = additive_score(self.W_query(queries), self.W_key(keys), self.v)
        if mask is None:
            return scores.softmax(dim=-1)
        blind = ~mask.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~(mask | blind), -torch.inf)
        return scores.softmax(dim=-1).masked_fill(blind, 0.0)
