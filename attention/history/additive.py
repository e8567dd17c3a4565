"""Additive attention

A small network scores every key against a query, so that a decoder can look back at
all that was read, instead of relying on one summary of it.

Written by `book/history/additive.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.tools.checks import check_sizes, unified
from attention.tools.workbench import check_tensor, expected

__all__ = ["AdditiveAttention", "additive_score"]


def additive_score(
    queries: Float[Tensor, "*#batch num_queries d_hidden"],
    keys: Float[Tensor, "*#batch num_keys d_hidden"],
    v: Float[Tensor, " d_hidden"],
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Scores: v · tanh(query + key) for every query with every key.

    Bahdanau et al. 2015, appendix A.1.2, with W and U already applied. Computed in
    the dtype of the queries, to which `v` is cast. `partial(additive_score, v=v)`
    takes the place of a dot product. ValueError for a misfit.
    """
    queries, keys, v = _check_score(queries, keys, v)
    return torch.tanh(queries.unsqueeze(-2) + keys.unsqueeze(-3)) @ v


def _check_score(queries, keys, v) -> tuple[Tensor, ...]:
    """The three in one dtype; ValueError if they do not fit together."""
    check_tensor(queries=queries, keys=keys, v=v)
    queries, keys = unified(queries, keys)
    if v.ndim != 1 or not v.is_floating_point() or v.device != queries.device:
        raise expected("v", f"floats (d_hidden,) on {queries.device}", v)
    for name, tensor in {"queries": queries, "keys": keys}.items():
        _check_kind(name, tensor, len(v), queries, "the queries")
    _batch_axes(queries, keys)
    return queries, keys, v.to(queries.dtype)


def _check_kind(name, tensor, width, like, whose) -> None:
    """ValueError unless `tensor` is (..., length, width), of the kind of `like`."""
    fits = tensor.ndim >= 2 and (width is None or tensor.shape[-1] == width)
    if not (fits and tensor.is_floating_point()):
        width = "d_value" if width is None else width
        raise expected(name, f"floats (..., length, {width})", tensor)
    if (tensor.dtype, tensor.device) != (like.dtype, like.device):
        raise expected(name, f"{like.dtype} on {like.device}, like {whose}", tensor)


def _batch_axes(*tensors) -> tuple[int, ...]:
    """The batch axes of all together; ValueError if they do not broadcast."""
    leading = [tuple(tensor.shape[:-2]) for tensor in tensors]
    try:
        return torch.broadcast_shapes(*leading)
    except RuntimeError:
        got = ", ".join(map(str, leading))
        raise expected("batch axes", "shapes that broadcast", got) from None


def _check(module, mask, **given) -> list[Tensor]:
    """The tensors `given` in one dtype; ValueError if one does not fit the others."""
    check_tensor(**given)
    like, *tensors = unified(module.v, *given.values())
    widths = {"queries": module.d_query, "keys": module.d_key, "values": None}
    for name, tensor in zip(given, tensors, strict=True):
        _check_kind(name, tensor, widths[name], like, "the weights")
    i, j, *lengths = (tensor.shape[-2] for tensor in tensors)
    if lengths and lengths[0] != j:
        raise expected("keys and values", "one length", f"{j} and {lengths[0]}")
    leading = _batch_axes(*tensors)
    if mask is not None:
        check_tensor(mask=mask)
        # Values may still bring batch axes of their own, which their mask has, too.
        free = () if lengths else mask.shape[:-2]
        _check_mask(mask, (*leading, i, j), free, like.device)
    return tensors


def _check_mask(mask, shape, free, device) -> None:
    """ValueError unless `mask` is boolean and broadcasts to `shape` and `free`."""
    check_tensor(mask=mask)
    if mask.dtype != torch.bool or mask.device != device:
        raise expected("mask", f"booleans (True: may see) on {device}", mask)
    try:
        mask.expand(torch.broadcast_shapes(shape, (*free, 1, 1)))
    except RuntimeError:
        raise expected("mask", f"a shape that broadcasts to {shape}", mask) from None


class AdditiveAttention(nn.Module):
    """Attention whose scores come from a small network: v · tanh(W query + U key).

    Maps queries (..., i, d_query), keys (..., j, d_key) and values (..., j, e) to
    (..., i, e). Bahdanau et al. 2015, section 3.1. Memory grows with i · j · d_hidden.
    ValueError for a size, an input or a mask that does not fit.
    """

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        d_query, d_key = check_sizes(d_query=d_query, d_key=d_key)
        (d_hidden,) = check_sizes(d_hidden=d_hidden)
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
        """Context vectors: `attention_weights` of the same input, times the values.

        `mask` is True where a query may see a key; a query that sees none gets zeros.
        A nan in a hidden key or value is not hidden: it may reach its whole sequence.
        """
        queries, keys, values = _check(
            self, mask, queries=queries, keys=keys, values=values
        )
        return self.attention_weights(queries, keys, mask) @ values

    def attention_weights(
        self,
        queries: Float[Tensor, "*#batch num_queries d_query"],
        keys: Float[Tensor, "*#batch num_keys d_key"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "... num_queries num_keys"]:
        """The weights of `forward`; a query that may see no key gets zeros.

        A mask may have batch axes that only the values have; then the weights have
        them, too.
        """
        queries, keys = _check(self, mask, queries=queries, keys=keys)
        scores = additive_score(self.W_query(queries), self.W_key(keys), self.v)
        if mask is None:
            return scores.softmax(dim=-1)
        blind = ~mask.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~(mask | blind), -torch.inf)
        return scores.softmax(dim=-1).masked_fill(blind, 0.0)
