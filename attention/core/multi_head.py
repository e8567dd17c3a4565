"""Multi-head attention

Many views at once: the width is split among several heads, each with its own
queries, keys and values, and an output projection brings their findings together.

Written by `book/core/multi_head.ipynb`: read and change it there.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.core.causal import CausalAttention, ignore_saved_mask
from attention.core.scaled_dot_product import Attend, attend, weights_of
from attention.tools.checks import (
    check_dropout,
    check_form,
    check_heads,
    check_input,
    check_returned,
    check_sizes,
    dropout_now,
)

__all__ = ["MultiHeadAttention", "StackedHeads"]


class StackedHeads(nn.Module):
    """Heads of causal attention, one after the other, their outputs side by side.

    Maps (..., length, d_in) to (..., length, num_heads * d_out): here d_out is the
    width of one head. The companion's wrapper, section 3.6.1. ValueError for a
    size, a form, an input or a mask that does not fit.
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
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        (num_heads,) = check_sizes(num_heads=num_heads)
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
    num_heads, length, length). `attend` is a form of attention (`Attend`). Vaswani et
    al. 2017, section 3.2.2. A drop-in for the companion's class (section 3.6.2),
    checkpoints included. ValueError for a size, a form, an input or a mask that
    does not fit.
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
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        d_in, context_length = check_sizes(d_in=d_in, context_length=context_length)
        d_out, num_heads = check_heads(d_out, num_heads)
        check_form(attend)
        self.d_in, self.d_out, self.context_length = d_in, d_out, context_length
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.attend = attend
        ignore_saved_mask(self)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; `mask` (True where a query may see) hides further keys."""
        inputs, dropout_p = self._inputs(x), dropout_now(self)
        context = self.attend(*inputs, mask, causal=True, dropout_p=dropout_p)
        check_returned(attend=context)
        return self.out_proj(rearrange(context, "... h i d -> ... i (h d)"))

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_heads length length"]:
        """The weights that `forward` uses, by head, before dropout."""
        return weights_of(self.attend, *self._inputs(x), mask, causal=True)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, by head."""
        check_input(self, x)
        projected = self.W_query(x), self.W_key(x), self.W_value(x)
        cut = "... i (h d) -> ... h i d"
        return tuple(rearrange(each, cut, h=self.num_heads) for each in projected)
