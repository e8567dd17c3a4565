"""Scaled dot-product attention

Attention with queries, keys and values made by trainable matrices, and scores
divided by the square root of the width of the keys: the core of what runs in
today's language models.

Written by `book/core/scaled_dot_product.ipynb`: read and change it there.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from attention.idea.simple import softmax

__all__ = [
    "SelfAttention",
    "attend",
    "attention_weights",
    "check_bias",
    "check_fit",
    "check_input",
    "check_kind",
    "check_sizes",
    "dot_product",
    "nan_of",
    "spread",
    "visible",
]


def check_kind(name: str, tensor: Tensor, queries: Tensor) -> None:
    """ValueError if `tensor` is not floats with length and width, like `queries`."""
    came = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
    if tensor.ndim < 2 or not tensor.is_floating_point():
        raise ValueError(f"{name} must be floats (..., length, dim), {came=!s}")
    if (tensor.dtype, tensor.device) != (queries.dtype, queries.device):
        must = f"{queries.dtype} on {queries.device}"
        raise ValueError(f"{name} must be {must} like the queries, {came=!s}")


def check_fit(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False
) -> tuple[int, ...]:
    """The shape of the scores; ValueError if the three do not fit together."""
    for name, tensor in {"queries": queries, "keys": keys, "values": values}.items():
        check_kind(name, tensor, queries)
    (i, d), (j, e) = queries.shape[-2:], keys.shape[-2:]
    if d != e or d == 0:
        raise ValueError(f"queries and keys must have one width, came {d} and {e}")
    if j != values.shape[-2]:
        came = f"{j} and {values.shape[-2]}"
        raise ValueError(f"keys and values must have one length, {came=!s}")
    if causal and i > j:
        raise ValueError(f"causal needs no more queries than keys, came {i} and {j}")
    leading = [tuple(tensor.shape[:-2]) for tensor in (queries, keys, values)]
    try:
        return (*torch.broadcast_shapes(*leading), i, j)
    except RuntimeError:
        came = ", ".join(map(str, leading))
        raise ValueError(f"batch and head axes must broadcast, {came=!s}") from None


def spread(name: str, table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`table` with its last two axes those of `shape`; ValueError if it cannot be."""
    try:
        table.expand(shape)
    except RuntimeError:
        came = tuple(table.shape)
        raise ValueError(f"{name} must broadcast to {shape}, {came=}") from None
    return table.expand(torch.broadcast_shapes(table.shape, shape[-2:]))


def check_bias(
    bias: Tensor, shape: tuple[int, ...], queries: Tensor
) -> Float[Tensor, "..."]:
    """`bias` for scores of `shape`; ValueError if it cannot be added to them."""
    if (bias.dtype, bias.device) != (queries.dtype, queries.device):
        must, came = f"{queries.dtype} on {queries.device}", f"{bias.dtype}"
        raise ValueError(
            f"bias must be {must} like the queries, came {came} on {bias.device}"
        )
    return spread("bias", bias, shape)


def visible(
    shape: tuple[int, ...], mask: Tensor | None, causal: bool, device: torch.device
) -> Bool[Tensor, "..."] | None:
    """Where a query may see a key, for scores of `shape`; None if everywhere."""
    if mask is not None:
        came = f"{mask.dtype} {tuple(mask.shape)} on {mask.device}"
        if mask.dtype != torch.bool or mask.device != device:
            must = f"boolean (True may see) on {device}"
            raise ValueError(f"mask must be {must}, {came=!s}")
        mask = spread("mask", mask, shape)
    if causal:
        i, j = shape[-2:]
        past = torch.ones(i, j, dtype=torch.bool, device=device).tril(j - i)
        mask = past if mask is None else mask & past
    return mask


def dot_product(
    queries: Float[Tensor, "*#batch num_queries head_dim"],
    keys: Float[Tensor, "*#batch num_keys head_dim"],
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Scores: the dot product of every query with every key."""
    return queries @ keys.mT


def attention_weights(
    queries: Float[Tensor, "*#batch num_queries head_dim"],
    keys: Float[Tensor, "*#batch num_keys head_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    score: Callable[[Tensor, Tensor], Tensor] = dot_product,
    bias: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Weights by hand: softmax(scale · score + bias), the oracle of every faster form.

    Vaswani et al. 2017, equation 1. `scale` is 1/√head_dim for the dot product and 1
    for another score. A query that may see no key gets zeros. A nan or +inf among the
    scores that it may see makes its row nan; a hidden one has no effect. ValueError
    for a misfit.
    """
    shape = check_fit(queries, keys, keys, causal=causal)
    mask = visible(shape, mask, causal, queries.device)
    if scale is None:
        scale = queries.shape[-1] ** -0.5 if score is dot_product else 1.0
    scores = scale * score(queries, keys)
    if scores.shape != shape:
        came = tuple(scores.shape)
        raise ValueError(f"score must give scores of {shape}, {came=}")
    if bias is not None:
        scores = scores + check_bias(bias, shape, queries)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return softmax(scores)


def nan_of(queries: Tensor, keys: Tensor) -> Tensor:
    """For each query 0, or nan if it or a key of its sequence is nan or infinite."""
    queries, keys = queries.detach(), keys.detach()
    of_keys = (0 * keys).sum(dim=(-2, -1), keepdim=True)
    return (0 * queries).sum(dim=-1, keepdim=True) + of_keys


def attend(
    queries: Float[Tensor, "*#batch num_queries head_dim"],
    keys: Float[Tensor, "*#batch num_keys head_dim"],
    values: Float[Tensor, "*#batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    bias: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch num_queries value_dim"]:
    """Context vectors by PyTorch's fused call; equals `attention_weights` @ values.

    `mask` is True where a query may see a key; a query that sees none gets zeros.
    `dropout_p` drops weights, in training only: pass 0 otherwise. Memory grows
    linearly with length where a fused kernel runs (no mask, no dropout, equal
    widths, four axes). A nan is never answered by a number: what depends on it is nan
    and, for one in a hidden key or value, perhaps its whole sequence. So is an
    infinity, except that a CPU's kernel may give numbers for infinite queries of 16
    bits. ValueError for a misfit.
    """
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"{dropout_p=} must lie from 0 to 1")
    shape = check_fit(queries, keys, values, causal=causal)
    options = {"dropout_p": dropout_p, "scale": scale}
    if bias is not None:
        bias = check_bias(bias, shape, queries)
    # The call can do this by itself:
    if mask is None and not (causal and (bias is not None or shape[-2] != shape[-1])):
        context = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=bias, is_causal=causal, **options
        )
        overlooks_nan = queries.device.type == "cpu" and shape[-1] < 16
        return context + nan_of(queries, keys) if overlooks_nan else context
    mask = visible(shape, mask, causal, queries.device)
    blind = ~mask.any(dim=-1, keepdim=True)
    mask = mask | blind
    if bias is not None:
        mask = bias.masked_fill(~mask, -torch.inf)
    context = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, **options
    )
    return context.masked_fill(blind, 0.0)


def check_sizes(**sizes: int) -> None:
    """ValueError if a size is not a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}={size!r} must be a whole number of at least 1")


def check_input(module: nn.Module, x: Tensor) -> None:
    """ValueError if `x` does not fit the sizes, dtype or device of `module`."""
    d_in, shape = module.d_in, tuple(x.shape)
    if x.ndim < 2 or shape[-1] != d_in:
        raise ValueError(f"x must be (..., length, {d_in=}), came {shape}")
    context_length = getattr(module, "context_length", None)
    if context_length is not None and shape[-2] > context_length:
        raise ValueError(f"x has length {shape[-2]}, more than {context_length=}")
    weight = getattr(module.W_query, "weight", x)  # an adapter may hide its weight
    if weight.device != x.device:
        raise ValueError(f"x must be on {weight.device}, came on {x.device}")
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if weight.is_floating_point() and weight.dtype != x.dtype and not autocast:
        raise ValueError(f"x must be {weight.dtype} like the weights, came {x.dtype}")


class SelfAttention(nn.Module):
    """Self-attention with trainable queries, keys and values: all tokens see all.

    Maps (..., length, d_in) to (..., length, d_out). Companion, section 3.4.2.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        qkv_bias: bool = False,
        *,
        attend: Callable[..., Tensor] = attend,
    ) -> None:
        super().__init__()
        check_sizes(d_in=d_in, d_out=d_out)
        self.d_in, self.attend = d_in, attend
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; `mask` is True where a query may see a key."""
        check_input(self, x)
        return self.attend(self.W_query(x), self.W_key(x), self.W_value(x), mask)

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length length"]:
        """The weights that `forward` gives the same input, by hand."""
        check_input(self, x)
        return attention_weights(self.W_query(x), self.W_key(x), mask)
