"""Scaled dot-product attention

Attention with queries, keys and values made by trainable matrices, and scores
divided by the square root of the width of the keys: the core of what runs in
today's language models.

Written by `book/core/scaled_dot_product.ipynb`: read and change it there.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention.idea.simple import softmax
from attention.tools.checks import (
    all_finite,
    are_groups,
    as_given,
    autocast_on,
    check_bias,
    check_fit,
    check_form,
    check_input,
    check_returned,
    check_scale,
    check_sizes,
    first_order,
    has_numbers,
    is_size,
    nan_of,
    precise,
    readable,
    repeat_kv,
    scale_queries,
    second_derivative,
    spread,
    surely,
    unified,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "Attend",
    "SelfAttention",
    "attend",
    "attention_weights",
    "check_window",
    "clear_unseen",
    "dot_product",
    "visible",
    "weights_of",
]


def visible(
    shape: tuple[int, ...],
    mask: Tensor | None,
    causal: bool,
    device: torch.device,
    window: int | None = None,
) -> Bool[Tensor, "..."] | None:
    """Where a query may see a key, for scores of `shape`; None if everywhere.

    Causal is lower-right: the queries are the last of the keys. A window counts the
    query itself. ValueError for a mask or a window that does not fit.
    """
    if mask is not None:
        check_tensor(mask=mask)
        if mask.dtype != torch.bool or mask.device != device:
            raise expected("mask", f"booleans (True: may see) on {device}", mask)
        mask = spread("mask", mask, shape)
    window = check_window(window, causal)
    if causal:
        i, j = shape[-2:]
        past = torch.ones(i, j, dtype=torch.bool, device=device).tril(j - i)
        if window is not None:
            past = past.triu(j - i - window + 1)
        mask = past if mask is None else mask & past
    return mask


def check_window(window: int | None, causal: bool) -> int | None:
    """The window; ValueError unless it is a number of keys, of a causal query."""
    if window is None:
        return None
    if not (is_size(window) and window >= 1 and causal):
        must = "a whole number of at least 1, with causal=True"
        raise expected("window", must, f"{window!r}, with {causal=}")
    return check_sizes(window=window)[0]


def dot_product(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Scores: the dot product of every query with every key, in float32 at least."""
    return queries.to(precise(queries)) @ keys.to(precise(keys)).mT


def attention_weights(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    scale: float | Tensor | None = None,
    score: Callable[[Tensor, Tensor], Tensor] = dot_product,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """Weights by hand: softmax(scale · score + bias), the oracle of every faster form.

    Vaswani et al. 2017, equation 1. `scale` is 1/√head_dim for the dot product and 1
    for another score; a tensor may be learned. Keys may have fewer heads (axis -3)
    than queries, each serving several in a row. With causal=True a query sees the keys
    up to its own place, lower-right: the queries are the last of the keys. (PyTorch's
    `scaled_dot_product_attention(is_causal=True)` and JAX align upper-left: pass
    mask=torch.ones(i, j, dtype=torch.bool).tril() for that.) With `window` it sees only
    the last `window` of them, its own included. A query that may see no key gets zeros.
    A nan or +inf among the scores that it may see makes its row nan; a hidden one has
    no effect. Inputs of 16 bits are scored in float32, to which a bias in float32 may
    be added; the weights have their dtype. ValueError for a misfit.
    """
    check_tensor(queries=queries, keys=keys)
    queries, keys = unified(queries, keys)
    shape = check_fit(queries, keys, keys, causal=causal)
    mask = visible(shape, mask, causal, queries.device, window)
    if scale is None:
        scale = queries.shape[-1] ** -0.5 if score is dot_product else 1.0
    scale = check_scale(scale, queries)
    with as_given(queries):
        scores = scale * score(queries, repeat_kv(keys, queries))
        if scores.shape != shape:
            raise expected("score", f"scores of {shape}", tuple(scores.shape))
        if bias is not None:
            scores = scores + check_bias(bias, shape, queries)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return softmax(scores).to(queries.dtype)


def _blind(mask: Tensor) -> Tensor | None:
    """Where a query may see no key; None if there is surely none."""
    if mask.shape[-1] == 0:
        return ~mask.any(dim=-1, keepdim=True)
    sees = mask.to(torch.uint8).amax(dim=-1, keepdim=True) > 0  # any(), but sooner
    return None if surely(sees.all()) else ~sees


def _table(
    shape: tuple[int, ...], mask: Tensor | None, bias: Tensor | None, axes: int
) -> tuple[Tensor | None, Tensor | None]:
    """The call's `attn_mask`, and which rows are blind; None for what is not needed.

    The table gets all four axes: PyTorch's fused kernels take none with three.
    """
    blind = None if mask is None else _blind(mask)
    if bias is not None and mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf)
    if blind is not None:
        mask = mask | blind
        bias = None if bias is None else bias.masked_fill(blind, 0.0)
    mask = mask if bias is None else bias
    if mask is not None and mask.ndim < axes:
        mask = mask[(None,) * (axes - mask.ndim)]
    return mask, blind


def clear_unseen(
    keys: Tensor, values: Tensor, mask: Tensor | None, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Both as they are if all is finite; else zeros where no query may see them."""
    if mask is None or all_finite(keys, values):
        return keys, values
    return _cleared(keys, mask, shape), _cleared(values, mask, shape)


def _cleared(tensor: Tensor, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    (*batch, _, num_keys), own = shape, tensor.shape[:-1]
    seen = mask.any(dim=-2).expand(*batch, num_keys)  # by any query
    if len(own) > 1 and 1 < own[-2] < batch[-1]:  # a head for several of the queries'
        seen = seen.unflatten(-2, (own[-2], -1)).any(dim=-2)
    seen = seen.float().sum_to_size(own) > 0
    return torch.where(seen.unsqueeze(-1), tensor, 0.0)


def _average(queries, keys, values, mask, dropout_p, **options) -> Tensor:
    """By hand: what a query does not see of the keys has no effect, not even a nan."""
    weights = attention_weights(queries, keys, mask, **options)
    return F.dropout(weights, dropout_p) @ repeat_kv(values, queries)


def _has_kernel(queries: Tensor, values: Tensor, dropout_p: float) -> bool:
    """Whether a fused kernel may run; else the call does the steps one by one."""
    four, even = queries.ndim == 4, queries.shape[-1] == values.shape[-1]
    return four and even and dropout_p == 0


def _as_it_is(queries: Tensor, keys: Tensor, values: Tensor, causal: bool) -> bool:
    """Whether the call is right with these three as they are, and no table."""
    if not queries.ndim == keys.ndim == 4 or keys.shape != values.shape:
        return False
    (batch, heads, i, d), (rows, groups, j, width) = queries.shape, keys.shape
    if 0 in (d, j, groups, heads) or heads % groups or (batch, d) != (rows, width):
        return False
    one_kind = queries.dtype == keys.dtype == values.dtype
    one_place = queries.device == keys.device == values.device
    alike = one_kind and one_place and queries.is_floating_point()
    if (
        not alike
        or queries.itemsize < 2
        or autocast_on(queries)
        or (causal and i not in (1, j))
    ):
        return False
    return not _few(j) or all_finite(queries, keys)


def _few(num_keys: int) -> bool:
    """Whether a CPU's kernel may overlook a nan among so few keys (see `nan_of`).

    True where a graph is exported, which is to serve any number of them.
    """
    return _exporting() or num_keys < 16


_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def _call(queries, *inputs, **options) -> Tensor:
    """PyTorch's call, which says in words what it has no derivative for."""
    if 1 in queries.stride()[:-1]:  # as windows of one series have, a step apart:
        queries = queries.contiguous()  # a kernel would lay its result out like them
    try:
        context = F.scaled_dot_product_attention(queries, *inputs, **options)
    except NotImplementedError as error:  # forward mode
        raise second_derivative("attend") from error
    except RuntimeError as error:
        if "attn_mask" not in str(error):
            raise
        with sdpa_kernel(SDPBackend.MATH):  # torch.func hid that the table is learned
            context = F.scaled_dot_product_attention(queries, *inputs, **options)
    return first_order(context)


def _fused(queries, keys, values, table, dropout_p, **options) -> Tensor:
    """PyTorch's call, which handles groups of heads if all four axes are there."""
    groups = keys.shape[:-2]
    alike = groups == values.shape[:-2] and groups[:-1] == queries.shape[:-3]
    one = alike and groups[-1:] == (1,) and queries.shape[-3] > 1
    in_one_row = one and not _has_kernel(queries, values, dropout_p)
    if in_one_row:  # step by step, each query would get a copy of all keys
        heads, queries = queries.shape[-3:-1], queries.flatten(-3, -2).unsqueeze(-3)
        if table is not None:
            table = table.expand(*table.shape[:-3], *heads, -1)
            table = table.flatten(-3, -2).unsqueeze(-3)
    elif alike and queries.ndim == 4 and (one or are_groups(keys, queries)):
        options["enable_gqa"] = True
    else:
        keys, values = repeat_kv(keys, queries), repeat_kv(values, queries)
    context = _call(queries, keys, values, table, dropout_p, **options)
    return context.squeeze(-3).unflatten(-2, heads) if in_one_row else context


def attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | Tensor | None = None,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
) -> Float[Tensor, "*batch num_queries value_dim"]:
    """Context vectors by PyTorch's fused call; equals `attention_weights` @ values.

    Options are those of `attention_weights`, without `score`. causal=True is
    lower-right: the queries are the last of the keys. (PyTorch's
    `scaled_dot_product_attention(is_causal=True)` and JAX align upper-left: pass
    mask=torch.ones(i, j, dtype=torch.bool).tril() for that.) `mask` is True where a
    query may see a key; a query that sees none gets zeros. `dropout_p` drops weights
    whenever it is above 0: pass 0 outside training. Inputs of 16 bits are scored in
    float32 by PyTorch's kernels; a bias in float32 is added there. Memory grows
    linearly with length where a fused kernel runs (no mask, no dropout, equal widths,
    four axes). A nan gives nan wherever it is used. In a key or value that no query may
    see it has no effect. From a key that some may see it does not spread to the others
    on a CPU; elsewhere it may. From a value that some may see it may spread to the
    others, since 0 · nan = nan: with causal=True from the future to the past. An
    infinity does the same, but a CPU's kernel may give numbers for infinite queries or
    keys of 16 bits. RuntimeError for a second derivative, or one in forward mode, of a
    fused kernel; ValueError for a misfit.
    """
    if not 0 <= dropout_p <= 1 or dropout_p is True:
        raise expected("dropout_p", "a probability from 0 to 1", dropout_p)
    check_tensor(queries=queries, keys=keys, values=values)
    plain = mask is bias is window is scale is None and dropout_p == 0
    if plain and _as_it_is(queries, keys, values, causal):  # nearly always, at once
        options = {"is_causal": bool(causal and queries.shape[-2] > 1)}
        if queries.shape[-3] != keys.shape[-3]:
            options["enable_gqa"] = True
        return _call(queries, keys, values, **options)
    queries, keys, values = unified(queries, keys, values)
    shape = check_fit(queries, keys, values, causal=causal)
    queries = queries.expand(*shape[:-1], -1)  # the others may have more batch axes
    if bias is not None:
        bias = check_bias(bias, shape, queries)
    window = check_window(window, causal)
    queries, scale = scale_queries(queries, scale)
    if scale != scale:  # nan, from which the kernel may make zeros
        queries = queries * scale
    options = {"dropout_p": dropout_p, "scale": scale}
    alone = causal and mask is None and bias is None and window is None
    by_itself = alone and shape[-2] == shape[-1] and scale > 0
    by_itself = by_itself and _has_kernel(queries, values, dropout_p)
    if by_itself:  # the kernel hides the future
        options["is_causal"], causal = True, False
    causal = causal and (shape[-2] > 1 or window is not None)  # one query sees all
    mask = visible(shape, mask, causal, queries.device, window)
    given, (keys, values) = keys, clear_unseen(keys, values, mask, shape)
    if keys is not given and readable(keys) and not all_finite(keys):
        return _average(queries, keys, values, mask, bias=bias, **options)
    table, blind = _table(shape, mask, bias, queries.ndim)
    context = _fused(queries, keys, values, table, **options)
    few = table is None and queries.device.type == "cpu" and _few(shape[-1])
    if few and not all_finite(queries, keys):
        context = context + nan_of(queries, repeat_kv(keys, queries), by_itself)
    return context if blind is None else context.masked_fill(blind, 0.0)


attend.attention_weights = attention_weights


@runtime_checkable
class Attend(Protocol):
    """A form of attention, as every module calls it: what `attend=` takes.

    Called as form(queries, keys, values, mask, causal=…, dropout_p=…), where mask may
    be None, and causal is lower-right: the queries are the last of the keys. Queries
    are (..., num_queries, head_dim), keys and values (..., num_keys, head_dim), with an
    axis of heads before the length where there are several. It gives the context,
    (..., num_queries, head_dim). Further options may be fixed beforehand:
    partial(attend, scale=0.5). `dropout_p` is 0 except in training. `Attention` adds
    bias=… if it has one.

    The weights that a module shows are those of its form. A form may offer them, as
    its attribute `attention_weights`, a function (queries, keys, mask, *, causal);
    otherwise `weights_of` finds them.
    """

    def __call__(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        dropout_p: float = 0.0,
    ) -> Tensor: ...


def _by_identity(form, queries, keys, values, mask, options) -> Tensor:
    """What comes out for the identity in place of the values, block by block."""
    (*batch, count, width), blocks = values.shape, []
    for start in range(0, max(count, 1), max(width, 1)):
        kind = {"dtype": values.dtype, "device": values.device}
        block = torch.zeros(count, max(width, 1), **kind)
        block.diagonal(-start).fill_(1)
        block = block.expand(*batch, *block.shape)
        blocks.append(form(queries, keys, block, mask, **options))
        check_returned(attend=blocks[-1])
    return torch.cat(blocks, dim=-1)[..., :count]


def weights_of(
    form: Attend,
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    **options: object,
) -> Float[Tensor, "*batch num_queries num_keys"]:
    """The weights that `form` uses: its context is weights @ values.

    Those that it offers as its attribute `attention_weights`, or else found by handing
    it the identity in place of the values. ValueError for a form that has none.
    """
    if (offered := _offered(form)) is not None:
        return offered(queries, keys, mask, **options)
    inputs, options = unified(queries, keys, values), options | {"dropout_p": 0.0}
    weights = _by_identity(form, *inputs, mask, options)
    if has_numbers(weights):
        _check_average(form, weights, *inputs, mask, options)
    return weights


def _offered(form: Attend) -> Callable[..., Tensor] | None:
    """What gives the weights of `form`; of a partial one, with the same options."""
    if not isinstance(form, partial):
        weights = getattr(form, "attention_weights", None)
        inner = getattr(form, "__wrapped__", None)  # functools.wraps copies attributes
        copied = getattr(inner, "attention_weights", None)
        return None if weights is copied else weights
    inner = None if form.args else _offered(form.func)
    if inner is None:
        return None
    settled = {k: v for k, v in form.keywords.items() if k != "dropout_p"}
    return partial(inner, **settled)


@torch.no_grad()
def _check_average(form, weights, queries, keys, values, mask, options) -> None:
    """ValueError unless the form's context is weights @ values, up to rounding."""
    context = form(queries, keys, values, mask, **options)
    values = repeat_kv(values, queries)
    weights, context, values = (t.to(precise(t)) for t in (weights, context, values))
    with as_given(weights):
        average = weights @ values
    rounding = max(16 * torch.finfo(queries.dtype).eps, 1e-3)
    size = 1 + values.nan_to_num().abs().max().item() if values.numel() else 1.0
    close = {"rtol": 0.0, "atol": rounding * size, "equal_nan": True}
    if average.shape != context.shape or not average.allclose(context, **close):
        name = getattr(form, "__name__", type(form).__name__)
        must = "a form whose context is weights @ values, to show its weights"
        raise expected("attend", must, f"{name}, which does something else")


class SelfAttention(nn.Module):
    """Self-attention with trainable queries, keys and values: all tokens see all.

    Maps (..., length, d_in) to (..., length, d_out). `attend` is a form of attention
    (`Attend`). Companion, section 3.4.2. ValueError for a size, a form, an input
    or a mask that does not fit.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        qkv_bias: bool = False,
        *,
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        d_in, d_out = check_sizes(d_in=d_in, d_out=d_out)
        check_form(attend)
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
        inputs = self._inputs(x)
        return self.attend(*inputs, mask, causal=False, dropout_p=0.0)

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length length"]:
        """The weights that `forward` uses for the same input."""
        return weights_of(self.attend, *self._inputs(x), mask, causal=False)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        check_input(self, x)
        return self.W_query(x), self.W_key(x), self.W_value(x)
