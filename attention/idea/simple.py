"""Self-attention with nothing to train

The simplest attention that computes its own scores: each token is compared with
every token, itself included, by a dot product.

Written by `book/idea/simple.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["simple_self_attention", "softmax"]


def softmax(scores: Float[Tensor, "*rows num_keys"]) -> Float[Tensor, "*rows num_keys"]:
    """Weights from scores along the last axis: none negative, together one.

    Finite for scores of any size. A row of only -inf gives zeros. A nan or +inf among
    the scores gives nan in its row. ValueError if the scores are not floating-point.
    """
    if not scores.is_floating_point() or scores.ndim == 0:
        came = f"{scores.dtype} of shape {tuple(scores.shape)}"
        raise ValueError(f"scores must be floating-point with a last axis, came {came}")
    if scores.shape[-1] == 0:
        return scores
    lowest = torch.finfo(scores.dtype).min
    largest = scores.detach().amax(dim=-1, keepdim=True).clamp(min=lowest)
    powers = torch.exp(scores - largest)
    return powers / powers.sum(dim=-1, keepdim=True).clamp(min=1)


def simple_self_attention(
    x: Float[Tensor, "*batch length d_in"],
) -> Float[Tensor, "*batch length d_in"]:
    """Context vectors from dot products alone: softmax(x xᵀ) x.

    Nothing is trainable, and nothing is scaled. ValueError if x has no length axis or
    is not floating-point.
    """
    if x.ndim < 2:
        raise ValueError(f"x must be (..., length, d_in), came {tuple(x.shape)}")
    return softmax(x @ x.mT) @ x
