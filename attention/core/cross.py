"""Cross-attention

Attention between two sequences: the queries come from one, the keys and values from
the other, so that a model can read one thing while it writes another.

Written by `book/core/cross.ipynb`: read and change it there.
"""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.core.scaled_dot_product import Attend, attend, weights_of
from attention.tools.checks import (
    autocast_on,
    check_dropout,
    check_form,
    check_heads,
    check_input,
    check_returned,
    check_sizes,
    dropout_now,
)
from attention.tools.workbench import check_tensor, expected

__all__ = ["CrossAttention", "check_context"]


def check_context(module: nn.Module, x: Tensor, context_input: Tensor) -> None:
    """ValueError if `context_input` does not fit the module, or `x`."""
    check_tensor(context_input=context_input)
    d_context, shape = module.d_context, context_input.shape
    floats = context_input.is_floating_point()
    if context_input.ndim < 2 or shape[-1] != d_context or not floats:
        must = f"floats (..., length, {d_context=})"
        raise expected("context_input", must, context_input)
    if shape[:-2] != x.shape[:-2]:
        must = f"the batch axes of x, {tuple(x.shape[:-2])}"
        raise expected("context_input", must, tuple(shape[:-2]))
    alike = context_input.dtype == x.dtype or autocast_on(x)
    if not alike or context_input.device != x.device:
        must = f"{x.dtype} on {x.device}, like x"
        raise expected("context_input", must, context_input)


class CrossAttention(nn.Module):
    """Multi-head attention from one sequence to another.

    Maps x (..., length, d_in) and context_input (..., context, d_context) to
    (..., length, d_out). A mask broadcasts to (..., num_heads, length, context).
    `attend` is a form of attention (`Attend`). Vaswani et al. 2017, section 3.2.3.
    ValueError for a size, a form, an input or a mask that does not fit.
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
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        d_context = d_in if d_context is None else d_context
        d_in, d_context = check_sizes(d_in=d_in, d_context=d_context)
        d_out, num_heads = check_heads(d_out, num_heads)
        check_form(attend)
        self.d_in, self.d_out, self.d_context = d_in, d_out, d_context
        self.num_heads, self.head_dim = num_heads, d_out // num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_context, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_context, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.attend = attend

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        context_input: Float[Tensor, "*batch context d_context"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors of `x`; `mask` is True where a query may see a key."""
        inputs, dropout_p = self._inputs(x, context_input), dropout_now(self)
        context = self.attend(*inputs, mask, causal=False, dropout_p=dropout_p)
        check_returned(attend=context)
        return self.out_proj(rearrange(context, "... h i d -> ... i (h d)"))

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        context_input: Float[Tensor, "*batch context d_context"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch num_heads length context"]:
        """The weights that `forward` uses for the same inputs, before dropout."""
        inputs = self._inputs(x, context_input)
        return weights_of(self.attend, *inputs, mask, causal=False)

    def _inputs(self, x: Tensor, context_input: Tensor) -> tuple[Tensor, ...]:
        """Queries of `x`, keys and values of `context_input`, by head."""
        check_input(self, x)
        check_context(self, x, context_input)
        queries = self.W_query(x)
        projected = queries, self.W_key(context_input), self.W_value(context_input)
        cut = "... i (h d) -> ... h i d"
        return tuple(rearrange(each, cut, h=self.num_heads) for each in projected)
