"""Our forms in their models

The forms of this book entered under names that the models of *transformers* can
look up, and the maps of such a model.

Written by `book/reading/interface.ipynb`: read and change it there.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attention.core.layer import window
from attention.core.scaled_dot_product import Attend, attend, weights_of
from attention.memory.latent import takes_scale, with_scale
from attention.speed.flash import flash_attend
from attention.speed.flash_triton import triton_attend
from attention.tools.checks import readable
from attention.tools.workbench import check_tensor, expected

__all__ = ["as_interface", "register_forms"]


def as_interface(
    form: Attend, *, show: bool = False
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`form` as the models of transformers call attention: (context, weights or None).

    Called as interface(module, query, key, value, attention_mask, *, dropout, scaling,
    …): the mask is boolean, True where a query may see, or floats to add. Without one,
    `is_causal`, or else the module's attribute, says whether queries see what is to
    come; it is upper-left, and a `sliding_window` then holds as well. A position_bias
    is added to the scores. The context is (batch, length, heads, width). Weights are
    made where output_attentions=True asks for them, and with show=True at each call.
    ValueError for a softcap, for sinks (s_aux), and for a mask that is not a table of
    queries and keys.
    """

    if not callable(form):
        raise expected("form", "a form of attention (`Attend`)", repr(form))

    def interface(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **others: object,
    ) -> tuple[Tensor, Tensor | None]:
        _refuse(others)
        if position_bias is not None:
            check_tensor(position_bias=position_bias)
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        mask, bias = _split(attention_mask)
        if attention_mask is None and is_causal:
            key, value, mask, position_bias = _from_the_start(
                query, key, value, sliding_window, position_bias
            )
        if position_bias is not None:
            bias = position_bias if bias is None else bias + position_bias
        options = {"causal": attention_mask is None and bool(is_causal)}
        options |= {} if bias is None else {"bias": bias}
        scaled = _scaled(form, scaling, query.shape[-1])
        inputs = scaled, query, key, value, mask
        context = scaled(*inputs[1:], dropout_p=dropout, **options)
        weights = weights_of(*inputs, **options) if show or output_attentions else None
        return context.transpose(1, 2).contiguous(), weights

    interface.form = form
    return interface


def _from_the_start(query, key, value, size, position_bias):
    """Keys and values without empty slots, the window as a mask, the bias that fits."""
    queries, keys, mask = query.shape[-2], key.shape[-2], None
    if queries > 1:
        key, value = key[..., :queries, :], value[..., :queries, :]
        keys = queries
        if position_bias is not None and position_bias.ndim:
            position_bias = position_bias[..., :queries]
    seen = None if size is None else window(size)
    if seen is not None and keys > size:
        places = torch.arange(keys, device=query.device)
        mask = seen(places[keys - queries :], places)
    return key, value, mask, position_bias


def _split(attention_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What a table hides and what it adds; it may do both."""
    if attention_mask is None:
        return None, None
    check_tensor(attention_mask=attention_mask)
    if attention_mask.ndim != 4:
        must = "four axes: texts, heads or 1, queries, keys"
        raise expected("attention_mask", must, tuple(attention_mask.shape))
    if attention_mask.dtype == torch.bool:
        return attention_mask, None
    if not attention_mask.is_floating_point():
        raise expected("attention_mask", "booleans or floats", attention_mask.dtype)
    hidden = attention_mask <= torch.finfo(attention_mask.dtype).min / 2
    bias = attention_mask.masked_fill(hidden, 0.0)
    plain = not bias.requires_grad and readable(bias) and not bias.any()
    return ~hidden, None if plain else bias


def _scaled(form: Attend, scaling: float | None, width: int) -> Attend:
    if scaling is None or scaling == width**-0.5:  # what each form does by itself
        return form
    if not takes_scale(form):
        name = getattr(form, "__name__", type(form).__name__)
        raise expected("form", f"one that takes scale=…, here {scaling}", name)
    return with_scale(form, scaling)


def _refuse(others: dict) -> None:
    """ValueError for what changes the weights and is unknown to our forms."""
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            must = f"None; {name} needs attn_implementation='eager'"
            raise expected(name, must, type(others[name]).__name__)


def register_forms(show: bool = False, **forms: Attend) -> tuple[str, ...]:
    """Enter forms in the tables of transformers; the names for attn_implementation.

    register_forms(mine=form) enters that one; without arguments these are `attend`,
    `flash_attend` as "tiled_attend", and `triton_attend`. `show` is that of
    `as_interface`. ValueError for a name that is theirs, or holds "flash";
    ModuleNotFoundError without transformers.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pip install 'transformers>=5.24'") from error
    entries = {}
    for name, form in (forms or _FORMS).items():
        _check_name(name, AttentionInterface().get(name))
        entries[name] = as_interface(form, show=show)
    for name, entry in entries.items():  # all of them, or none
        AttentionInterface.register(name, entry)
        AttentionMaskInterface.register(name, sdpa_mask)
    return tuple(forms or _FORMS)


_FORMS = {
    "attend": attend,
    "tiled_attend": flash_attend,
    "triton_attend": triton_attend,
}


def _check_name(name: str, entered: Callable | None) -> None:
    theirs = name == "eager" or (entered is not None and not hasattr(entered, "form"))
    if theirs or "flash" in name or not name.isidentifier():
        must = "plain names, without flash, that transformers does not use itself"
        raise expected("forms", must, repr(name))
