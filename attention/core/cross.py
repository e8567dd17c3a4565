"""Cross-attention

Attention between two sequences: the queries come from one, the keys and values from
the other, so that a model can read one thing while it writes another.

Written by `book/core/cross.ipynb`: read and change it there.
"""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.core.scaled_dot_product import (
    attend,
    attention_weights,
    check_input,
    check_sizes,
)

__all__ = ["CrossAttention", "check_context"]


def check_context(module: nn.Module, x: Tensor, context_input: Tensor) -> None:
    """ValueError if `context_input` does not fit the module, or `x`."""
    d_context, shape = module.d_context, tuple(context_input.shape)
    if context_input.ndim < 2 or shape[-1] != d_context:
        must = f"(..., length, {d_context=})"
        raise ValueError(f"context_input must be {must}, came {shape}")
    if shape[:-2] != x.shape[:-2]:
        came = f"{tuple(x.shape)} and {shape}"
        raise ValueError(f"x and context_input must share batch axes, {came=!s}")
    if (context_input.dtype, context_input.device) != (x.dtype, x.device):
        came = f"{context_input.dtype} on {context_input.device}"
        must = f"{x.dtype} on {x.device}"
        raise ValueError(f"context_input must be {must} like x, {came=!s}")


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another.

    Maps x (..., length, d_in) and context_input (..., context, d_context) to
    (..., length, d_out). A mask broadcasts to (..., num_heads, length, context).
    Vaswani et al. 2017, section 3.2.3.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        *,
        d_context: int | None = None,
        dropout: float = 0.0,
        qkv_bias: bool = False,
        attend: Callable[..., Tensor] = attend,
    ) -> None:
        super().__init__()
        d_context = d_in if d_context is None else d_context
        check_sizes(d_in=d_in, d_out=d_out, num_heads=num_heads, d_context=d_context)
        if d_out % num_heads != 0:
            raise ValueError(f"{d_out=} must be a multiple of {num_heads=}")
        self.d_in, self.d_out, self.d_context = d_in, d_out, d_context
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_context, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_context, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.attend = attend

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        context_input: Float[Tensor, "*batch context d_context"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors of `x`; `mask` is True where a query may see a key."""
        check_input(self, x)
        check_context(self, x, context_input)
        queries = self._split(self.W_query(x))
        keys = self._split(self.W_key(context_input))
        values = self._split(self.W_value(context_input))
        dropout_p = self.dropout.p if self.training else 0.0
        context = self.attend(queries, keys, values, mask, dropout_p=dropout_p)
        return self.out_proj(rearrange(context, "... h i d -> ... i (h d)"))

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        context_input: Float[Tensor, "*batch context d_context"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_heads length context"]:
        """The weights that `forward` gives the same inputs, before dropout."""
        check_input(self, x)
        check_context(self, x, context_input)
        queries = self._split(self.W_query(x))
        return attention_weights(queries, self._split(self.W_key(context_input)), mask)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "... i (h d) -> ... h i d", h=self.num_heads)
