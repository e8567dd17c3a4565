"""Self-attention with nothing to train

The simplest attention that computes its own scores: each token is compared with
every token, itself included, by a dot product.

Written by `book/idea/simple.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from attention.tools.checks import as_given, precise
from attention.tools.workbench import check_tensor, expected

__all__ = ["simple_self_attention", "softmax"]


def softmax(scores: Float[Tensor, "*rows num_keys"]) -> Float[Tensor, "*rows num_keys"]:
    """Weights from scores along the last axis: none negative, together one.

    Finite for scores of any size. A row of only -inf gives zeros. A nan or +inf among
    the scores gives nan in its row. ValueError if the scores are not floating-point.
    """
    check_tensor(scores=scores)
    if not scores.is_floating_point() or scores.ndim == 0:
        raise expected("scores", "floats with a last axis", scores)
    if scores.shape[-1] == 0:
        return scores.exp()  # nothing, in the dtype that weights would have
    lowest = torch.finfo(scores.dtype).min
    largest = scores.detach().amax(dim=-1, keepdim=True).clamp(min=lowest)
    powers = torch.exp(scores - largest)
    total = powers.sum(dim=-1, keepdim=True, dtype=precise(powers))
    total = total.masked_fill(total == 0, 1)
    return (powers / total).to(powers.dtype)


def simple_self_attention(
    x: Float[Tensor, "*batch length d_in"],
) -> Float[Tensor, "*batch length d_in"]:
    """Context vectors from dot products alone: softmax(x xᵀ) x.

    Nothing is trainable, and nothing is scaled. For 16 bits the scores are computed in
    float32. ValueError if x has no length axis or is not floating-point.
    """
    check_tensor(x=x)
    if x.ndim < 2 or not x.is_floating_point():
        raise expected("x", "floats (..., length, d_in)", x)
    wide = x.to(precise(x))
    with as_given(x):  # or autocast would compute them in 16 bits
        weights = softmax(wide @ wide.mT).to(x.dtype)
    return weights @ x
