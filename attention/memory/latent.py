"""Multi-head latent attention

Each token leaves one short vector behind, from which the keys and values of all
heads can be made; and while a text is being written, they need not even be made.

Written by `book/memory/latent.ipynb`: read and change it there.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from attention.core.layer import (
    Cache,
    causal,
    check_cache,
    counted_in_order,
    extended,
    positions_of,
    set_back,
    what_is_seen,
)
from attention.core.scaled_dot_product import Attend, attend, weights_of
from attention.position.rotary import Rotary, check_rotary, normalised
from attention.tools.checks import (
    check_counts,
    check_dropout,
    check_heads,
    check_input,
    check_pair,
    check_returned,
    check_sizes,
    check_slots,
    dropout_now,
    is_number,
    own_number,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "LatentAttention",
    "RMSNorm",
    "cache_bytes",
    "check_absorbable",
    "latent_operations",
    "takes_scale",
    "with_scale",
]


class RMSNorm(nn.Module):
    """Bring vectors to a mean square of 1, and multiply by trained weights.

    It computes in float32, or float64 for float64. Zhang and Sennrich 2019. ValueError
    for a width below 1, an eps below 0, and what is not floats of this width.
    """

    def __init__(self, width: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        (width,) = check_sizes(width=width)
        if not is_number(eps) or eps < 0:
            raise expected("eps", "a number of at least 0", eps)
        self.weight, self.eps = nn.Parameter(torch.ones(width)), own_number(eps)

    def forward(self, x: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width"]:
        """The vectors, normalised."""
        check_tensor(x=x)
        (width,), device = self.weight.shape, self.weight.device
        fits = x.shape[-1:] == (width,) and x.device == device
        if not fits or not x.is_floating_point():
            raise expected("x", f"floats (..., {width}) on {device}", x)
        return normalised(x, self.weight, self.eps)


def latent_operations(
    new: int,
    held: int,
    *,
    num_heads: int,
    latent_dim: int,
    rotary_dim: int,
    head_dim: int,
    value_dim: int,
) -> dict[str, int]:
    """Operations of both ways, for `new` queries and `held` keys (theirs included).

    What both have in common, like the softmax, is not counted. ValueError for no count.
    """
    new, held = check_counts(new=new, held=held)
    own = 2 * num_heads * latent_dim * (head_dim + value_dim)
    pairs = 2 * num_heads * new * held
    expanded = held * own + pairs * (head_dim + rotary_dim + value_dim)
    absorbed = new * own + pairs * (latent_dim + rotary_dim + latent_dim)
    return {"expanded": expanded, "absorbed": absorbed}


def takes_scale(form: Attend) -> bool:
    """Whether a form of attention can be called with scale=…."""
    try:
        inspect.signature(form, follow_wrapped=False).bind_partial(scale=None)
    except (TypeError, ValueError):
        return False
    return True


def with_scale(form: Attend, scale: float) -> Attend:
    """`form` with this scale, unless partial has already set one."""
    settled = isinstance(form, partial) and "scale" in form.keywords
    return form if settled else partial(form, scale=scale)


def _is_plain(linear: nn.Module) -> bool:
    """Whether it multiplies by its weight, and does nothing else."""
    if type(linear) is not nn.Linear or "forward" in linear.__dict__:
        return False
    return not (linear._forward_hooks or linear._forward_pre_hooks)


def check_absorbable(module: nn.Module) -> None:
    """ValueError unless W_key and W_value can be absorbed, and the form takes scale."""
    for name in ("W_key", "W_value"):
        linear = getattr(module, name)
        if not _is_plain(linear):
            must = "an nn.Linear without hooks, to be absorbed"
            raise expected(name, must, type(linear).__name__)
    if not takes_scale(module.attend):
        name = getattr(module.attend, "__name__", type(module.attend).__name__)
        raise expected("attend", "a form that takes scale=…, to absorb W_key", name)


class LatentAttention(nn.Module):
    """Attention whose keys and values are made from one short vector for each token.

    Maps (..., length, d_in) to (..., length, d_out). A token is remembered by its
    latent (latent_dim numbers) and by one key for all heads, of rotary_dim numbers,
    which turns by its position. From the latent, each head makes keys of head_dim
    numbers (d_out / num_heads, if None) and values of value_dim (head_dim, if None).
    Queries are head_dim + rotary_dim wide, and the scale is one over the root of that.
    They are made from x, or from a latent of their own, query_latent_dim wide.

    Slots and calls are those of `Attention`; process_heads takes and gives the slices
    that turn, and is Rotary(rotary_dim, interleaved=True) if None. A different scale is
    set in the form: attend=partial(attend, scale=…). A `cache` is handed the turned key
    as keys and the latent as values, with one head. `absorb` says whether queries are
    moved to the latents, so that no keys and values are made; both ways give the same
    numbers. If None, they are moved if there is a cache, moving takes fewer operations
    and it can be done: W_key and W_value are nn.Linear without hooks, and the form
    takes scale=…. ValueError for what does not fit. DeepSeek-AI 2024a, eq. 9 to 19.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        num_heads: int,
        *,
        latent_dim: int,
        rotary_dim: int,
        head_dim: int | None = None,
        value_dim: int | None = None,
        query_latent_dim: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = True,
        dropout: float = 0.0,
        process_heads: Callable[..., tuple[Tensor, Tensor]] | None = None,
        bias: Callable[[Tensor, Tensor], Tensor] | None = None,
        masks: Sequence[Callable[[Tensor, Tensor], Tensor]] = (causal,),
        attend: Attend = attend,
        absorb: bool | None = None,
    ) -> None:
        super().__init__()
        if head_dim is None:
            d_out, num_heads = check_heads(d_out, num_heads)
            head_dim = d_out // num_heads
        value_dim = head_dim if value_dim is None else value_dim
        read = d_in if query_latent_dim is None else query_latent_dim
        d_in, d_out, read = check_sizes(d_in=d_in, d_out=d_out, query_latent_dim=read)
        num_heads, latent_dim = check_sizes(num_heads=num_heads, latent_dim=latent_dim)
        head_dim, value_dim = check_sizes(head_dim=head_dim, value_dim=value_dim)
        rotary_dim, _ = check_rotary(rotary_dim)
        if absorb not in (None, True, False):
            raise expected("absorb", "None, True or False", repr(absorb))
        if process_heads is None:
            process_heads = Rotary(rotary_dim, interleaved=True)
        check_slots(masks, process_heads=process_heads, bias=bias, attend=attend)
        self.d_in, self.d_out, self.context_length = d_in, d_out, None
        self.num_heads, self.latent_dim, self.absorb = num_heads, latent_dim, absorb
        self.head_dim, self.rotary_dim, self.value_dim = head_dim, rotary_dim, value_dim
        self.W_query_latent = self.query_norm = None
        if query_latent_dim is not None:
            self.W_query_latent = nn.Linear(d_in, read, bias=qkv_bias)
            self.query_norm = RMSNorm(read)
        own_bias = qkv_bias and query_latent_dim is None  # where it reads the input
        width = num_heads * (head_dim + rotary_dim)
        self.W_query = nn.Linear(read, width, bias=own_bias)
        self.W_latent = nn.Linear(d_in, latent_dim, bias=qkv_bias)
        self.latent_norm = RMSNorm(latent_dim)
        self.W_turned_key = nn.Linear(d_in, rotary_dim, bias=qkv_bias)
        self.W_key = nn.Linear(latent_dim, num_heads * head_dim, bias=False)
        self.W_value = nn.Linear(latent_dim, num_heads * value_dim, bias=False)
        self.out_proj = nn.Linear(num_heads * value_dim, d_out, bias=out_bias)
        self.dropout = nn.Dropout(check_dropout(dropout))
        self.process_heads, self.bias, self.attend = process_heads, bias, attend
        self.masks = tuple(masks)
        trained = [mask for mask in masks if isinstance(mask, nn.Module)]
        self.mask_modules = nn.ModuleList(trained)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; arguments are those of `Attention.forward`."""
        with set_back(cache):
            absorbed, inputs, options = self._inputs(x, mask, positions, cache)
            form = self._form(absorbed)
            context = form(*inputs, dropout_p=dropout_now(self), **options)
            check_returned(attend=context)
            if absorbed:  # what was averaged are latents
                weight = self.W_value.weight.unflatten(0, (self.num_heads, -1))
                context = torch.einsum("...hic,hec->...hie", context, weight)
            context = context[..., : self.value_dim]
            return self.out_proj(rearrange(context, "... h i e -> ... i (h e)"))

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "*batch num_heads length num_keys"]:
        """The weights that `forward` uses for the same input, by head, before dropout.

        It extends `cache` as `forward` does: hand in a copy to leave yours as it is.
        """
        with set_back(cache):
            absorbed, inputs, options = self._inputs(x, mask, positions, cache)
            return weights_of(self._form(absorbed), *inputs, **options)

    def _form(self, absorbed: bool) -> Attend:
        """The form, whose scale does not change with the width of the latents."""
        scale = (self.head_dim + self.rotary_dim) ** -0.5
        return with_scale(self.attend, scale) if absorbed else self.attend

    def _inputs(self, x, mask, positions, cache) -> tuple[bool, tuple, dict]:
        """Whether queries are moved, and what the form is called with."""
        check_input(self, x)
        if cache is not None:
            check_cache(cache, self, x)
        if self.absorb:
            check_absorbable(self)
        counted = counted_in_order(x, positions, cache)
        positions = held = positions_of(x, positions, cache)
        queries, keys, latents = self._made(x, positions)
        if cache is not None:
            keys, latents, held = extended(cache, keys, latents, positions, mask)
        absorbed = self._absorbs(cache, queries.shape[-2], keys.shape[-2])
        way = self._absorbed if absorbed else self._expanded
        places = positions, held, counted
        mask, options = what_is_seen(self, queries, keys, mask, *places)
        return absorbed, (*way(queries, keys, latents), mask), options

    def _made(self, x, positions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of all heads, and one turned key and one latent for each token."""
        read = x
        if self.W_query_latent is not None:
            read = self.query_norm(self.W_query_latent(x))
        cut = "... i (h d) -> ... h i d"
        queries = rearrange(self.W_query(read), cut, h=self.num_heads)
        latents = self.latent_norm(self.W_latent(x)).unsqueeze(-3)
        own, turning = queries.split([self.head_dim, self.rotary_dim], dim=-1)
        slices = turning, self.W_turned_key(x).unsqueeze(-3)
        made = self.process_heads(*slices, positions)
        turned, keys = check_pair("process_heads", made)
        if [turned.shape, keys.shape] != [t.shape for t in slices]:
            must = f"queries and keys {[tuple(t.shape) for t in slices]}"
            got = f"{tuple(turned.shape)} and {tuple(keys.shape)}"
            raise expected("process_heads", must, got)
        return torch.cat([own, turned], dim=-1), keys, latents

    def _absorbs(self, cache, new: int, held: int) -> bool:
        """Whether the queries are moved to the latents."""
        if self.absorb is not None or cache is None:
            return bool(self.absorb)
        plain = _is_plain(self.W_key) and _is_plain(self.W_value)
        names = ("num_heads", "latent_dim", "rotary_dim", "head_dim", "value_dim")
        sizes = {name: getattr(self, name) for name in names}
        ways = latent_operations(new, held, **sizes)
        cheaper = ways["absorbed"] < ways["expanded"]
        return cheaper and plain and takes_scale(self.attend)

    def _expanded(self, queries, keys, latents) -> tuple[Tensor, Tensor, Tensor]:
        """With keys and values of all heads; the latter as wide as the former."""
        cut = "... 1 j (h d) -> ... h j d"
        own = rearrange(self.W_key(latents), cut, h=self.num_heads)
        values = rearrange(self.W_value(latents), cut, h=self.num_heads)
        keys = torch.cat([own, keys.expand(*own.shape[:-1], -1)], dim=-1)
        wanting = max(0, keys.shape[-1] - self.value_dim)
        return queries, keys, F.pad(values, (0, wanting))

    def _absorbed(self, queries, keys, latents) -> tuple[Tensor, Tensor, Tensor]:
        """With queries that are moved to the latents, which are keys and values."""
        own, turned = queries.split([self.head_dim, self.rotary_dim], dim=-1)
        weight = self.W_key.weight.unflatten(0, (self.num_heads, -1))
        moved = torch.einsum("...hid,hdc->...hic", own, weight)
        queries = torch.cat([moved, turned], dim=-1)
        return queries, torch.cat([latents, keys], dim=-1), latents


def cache_bytes(config: Mapping[str, object], *, itemsize: int = 2) -> int:
    """Bytes that one token leaves in the caches of all layers of an open model.

    `config` has the names of its configuration file; a number takes `itemsize` bytes, 2
    in bfloat16. Layers with a window count like the others. ValueError for a size that
    is missing, and for a width that the heads cannot share.
    """
    (itemsize,) = check_sizes(itemsize=itemsize)
    if not isinstance(config, Mapping):
        raise expected("config", "sizes by name", type(config).__name__)
    given = {name: size for name, size in config.items() if size is not None}
    size = partial(_size, given)
    layers, heads = size("num_hidden_layers"), size("num_attention_heads")
    if "kv_lora_rank" in given:
        numbers = size("kv_lora_rank") + size("qk_rope_head_dim")
    else:
        groups = size("num_key_value_heads", heads)
        if "head_dim" not in given and size("hidden_size") % heads:
            must = f"a multiple of num_attention_heads={heads}, or a head_dim beside it"
            raise expected("hidden_size", must, size("hidden_size"))
        wide = "head_dim" in given
        width = size("head_dim") if wide else size("hidden_size") // heads
        numbers = 2 * groups * width
    return layers * numbers * itemsize


def _size(config: Mapping[str, object], name: str, default: int | None = None) -> int:
    if (found := config.get(name, default)) is None:
        raise expected("config", f"a size {name}", sorted(config))
    return check_sizes(**{name: found})[0]
