"""Multi-head attention

Many views at once: the width is split among several heads, each with its own
queries, keys and values, and an output projection brings their findings together.

Written by `book/core/multi_head.ipynb`: read and change it there.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.core.causal import CausalAttention, ignore_saved_mask
from attention.core.scaled_dot_product import (
    attend,
    attention_weights,
    check_input,
    check_sizes,
)

__all__ = ["MultiHeadAttention", "StackedHeads"]


class StackedHeads(nn.Module):
    """Heads of causal attention, one after the other, their outputs side by side.

    Maps (..., length, d_in) to (..., length, num_heads * d_out): here d_out is the
    width of one head. The companion's wrapper, section 3.6.1.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        *,
        attend: Callable[..., Tensor] = attend,
    ) -> None:
        super().__init__()
        check_sizes(num_heads=num_heads)
        sizes = (d_in, d_out, context_length, dropout, qkv_bias)
        heads = (CausalAttention(*sizes, attend=attend) for _ in range(num_heads))
        self.heads = nn.ModuleList(heads)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length all_heads"]:
        """Context vectors of all heads; all use the same `mask` (True: may see)."""
        return torch.cat([head(x, mask) for head in self.heads], dim=-1)

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_heads length length"]:
        """The weights of each head, before dropout."""
        weights = [head.attention_weights(x, mask) for head in self.heads]
        return torch.stack(weights, dim=-3)


class MultiHeadAttention(nn.Module):
    """Causal multi-head attention with an output projection.

    Maps (..., length, d_in) to (..., length, d_out), with length at most
    context_length and d_out shared among the heads. A mask broadcasts to (...,
    num_heads, length, length). Vaswani et al. 2017, section 3.2.2. A drop-in for the
    companion's class (section 3.6.2), checkpoints included.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
        *,
        attend: Callable[..., Tensor] = attend,
    ) -> None:
        super().__init__()
        check_sizes(d_in=d_in, d_out=d_out)
        check_sizes(context_length=context_length, num_heads=num_heads)
        if d_out % num_heads != 0:
            raise ValueError(f"{d_out=} must be a multiple of {num_heads=}")
        self.d_in, self.d_out, self.context_length = d_in, d_out, context_length
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.attend = attend
        ignore_saved_mask(self)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; `mask` (True where a query may see) hides further keys."""
        check_input(self, x)
        queries = self._split(self.W_query(x))
        keys = self._split(self.W_key(x))
        values = self._split(self.W_value(x))
        dropout_p = self.dropout.p if self.training else 0.0
        context = self.attend(
            queries, keys, values, mask, causal=True, dropout_p=dropout_p
        )
        return self.out_proj(rearrange(context, "... h i d -> ... i (h d)"))

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_heads length length"]:
        """The weights that `forward` gives the same input, by head, before dropout."""
        check_input(self, x)
        queries, keys = self._split(self.W_query(x)), self._split(self.W_key(x))
        return attention_weights(queries, keys, mask, causal=True)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "... i (h d) -> ... h i d", h=self.num_heads)
