"""Attention in one pass

A context vector needs each score once: a running maximum and a running sum are all
that softmax must remember, and two partial results merge into one.

Written by `book/speed/online_softmax.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attention.tools.workbench import check_tensor, expected, told

__all__ = ["merge_states"]


def _check_parts(
    context_a: Tensor, logsumexp_a: Tensor, context_b: Tensor, logsumexp_b: Tensor
) -> None:
    """ValueError unless both are parts of attention by the same queries."""
    check_tensor(context_a=context_a, logsumexp_a=logsumexp_a)
    check_tensor(context_b=context_b, logsumexp_b=logsumexp_b)
    if context_a.ndim < 2 or not context_a.is_floating_point():
        raise expected("context_a", "floats (..., num_queries, value_dim)", context_a)
    per_query, device = context_a.shape[:-1], context_a.device
    if logsumexp_a.shape != per_query or not logsumexp_a.is_floating_point():
        must = f"floats {tuple(per_query)}, one for each query of context_a"
        raise expected("logsumexp_a", must, logsumexp_a)
    if logsumexp_a.device != device:
        raise expected("logsumexp_a", f"to be on {device}, like context_a", logsumexp_a)
    for name, a, b in (
        ("context", context_a, context_b),
        ("logsumexp", logsumexp_a, logsumexp_b),
    ):
        if (a.dtype, a.shape, a.device) != (b.dtype, b.shape, b.device):
            raise expected(f"{name}_b", f"{told(a)}, like {name}_a", b)


def merge_states(
    context_a: Float[Tensor, "*lead i e"],
    logsumexp_a: Float[Tensor, "*lead i"],
    context_b: Float[Tensor, "*lead i e"],
    logsumexp_b: Float[Tensor, "*lead i"],
) -> tuple[Float[Tensor, "*lead i e"], Float[Tensor, "*lead i"]]:
    """Attention to all keys from attention to two disjoint sets of them.

    A part is its context vectors and the logsumexp of its scores, base e, as
    `flash_attend(..., return_lse=True)` gives them. A part with no key has logsumexp
    -inf and counts for nothing; two of them give zeros and -inf. Order and grouping of
    parts do not matter, but for rounding. A nan or +inf among the logsumexps gives nan.
    ValueError for parts that do not fit. Milakov and Gimelshein 2018, section 3.1; Rabe
    and Staats 2021; Dao et al. 2022, section 3.1.
    """
    _check_parts(context_a, logsumexp_a, context_b, logsumexp_b)
    lowest = torch.finfo(logsumexp_a.dtype).min
    largest = torch.maximum(logsumexp_a, logsumexp_b).detach().clamp(min=lowest)
    sum_a, sum_b = (logsumexp_a - largest).exp(), (logsumexp_b - largest).exp()
    total = sum_a + sum_b  # at least 1, unless both parts are empty
    total = total.masked_fill(total == 0, 1)

    context_a = context_a.masked_fill(logsumexp_a.isneginf()[..., None], 0)
    context_b = context_b.masked_fill(logsumexp_b.isneginf()[..., None], 0)
    share_a, share_b = (sum_a / total)[..., None], (sum_b / total)[..., None]
    context = (share_a * context_a + share_b * context_b).to(context_a.dtype)

    empty = logsumexp_a.isneginf() & logsumexp_b.isneginf()
    return context, (largest + total.log()).masked_fill(empty, -torch.inf)
