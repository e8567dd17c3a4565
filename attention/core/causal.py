"""Causal attention

Hiding the future: each token attends to itself and to what came before, so that a
model can be trained to predict what comes next.

Written by `book/core/causal.ipynb`: read and change it there.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.core.scaled_dot_product import Attend, attend, weights_of
from attention.tools.checks import (
    check_dropout,
    check_form,
    check_input,
    check_sizes,
    dropout_now,
    is_size,
)
from attention.tools.workbench import check_tensor, expected

__all__ = ["CausalAttention", "causal_mask", "future_leak", "ignore_saved_mask"]


def future_leak(
    forward: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch length d_in"]
) -> float:
    """How far the past moves when only the future changes; 0 means causal.

    For each position, all later inputs are replaced by others, made from `x` so that
    none is what it was. Returns the largest change of an output up to that position.
    `forward` must be deterministic: call `eval()` on a module with dropout first. It
    gets copies, so `x` stays as it is, and the detector itself draws no random number.
    ValueError unless `x` is floats of length 2 or more, with outputs at its places.
    """
    check_tensor(x=x)
    if x.ndim < 2 or not x.is_floating_point() or x.shape[-2] < 2:
        must = (
            "floats (..., length, d_in) with a length of at least 2, to have a future"
        )
        raise expected("x", must, x)
    x = x.detach()
    other, changes = _changed(x), []
    with torch.no_grad():
        past = _copied(forward, x)
        if past.shape[:-1] != x.shape[:-1]:
            must = f"the positions of x, {(*x.shape[:-1], 'd_out')}"
            raise expected("forward(x)", must, tuple(past.shape))
        for now in range(1, x.shape[-2]):
            changed = torch.cat([x[..., :now, :], other[..., now:, :]], dim=-2)
            moved = _copied(forward, changed)[..., :now, :] - past[..., :now, :]
            changes.append(moved.abs().max() if moved.numel() else moved.sum())
    return torch.stack(changes).max().item()  # a nan stays a nan


def _changed(x: Tensor) -> Tensor:
    """Each number of `x` moved one away from zero, times its own negative factor."""
    count = torch.arange(x.numel(), device=x.device).view(x.shape)
    factor = 1 + (0.618 * count) % 1  # never the same for neighbours
    return ((-factor) * (x + torch.where(x < 0, -1.0, 1.0))).to(x.dtype)


def _copied(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What `forward` gives for a copy of `x`, as a copy."""
    context = forward(x.clone())
    check_tensor(**{"forward(x)": context})
    return context.clone()


def causal_mask(
    length: int,
    num_keys: int | None = None,
    *,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "length num_keys"]:
    """True where a key is not later than the query: itself and the past.

    Lower-right: with `num_keys` greater than `length`, the queries are the last of the
    keys. (PyTorch's `is_causal=True` and JAX take them for the first: that mask is
    torch.ones(length, num_keys, dtype=torch.bool).tril().) ValueError unless both
    are whole numbers, with 0 <= length <= num_keys.
    """
    num_keys = length if num_keys is None else num_keys
    if not is_size(num_keys):
        raise expected("num_keys", "a whole number of at least 0", repr(num_keys))
    if not is_size(length) or length > num_keys:
        raise expected("length", f"a whole number from 0 to {num_keys=}", repr(length))
    everywhere = torch.ones(length, num_keys, dtype=torch.bool, device=device)
    return everywhere.tril(num_keys - length)


def ignore_saved_mask(module: nn.Module) -> None:
    """Let `module` load checkpoints that hold a `mask`, which is not needed here."""
    module.register_load_state_dict_pre_hook(_drop_mask)


def _drop_mask(module, state_dict, prefix, *_) -> None:
    state_dict.pop(f"{prefix}mask", None)


class CausalAttention(nn.Module):
    """Self-attention in which no token sees a later one.

    Maps (..., length, d_in) to (..., length, d_out), with length at most
    context_length. `attend` is a form of attention (`Attend`). Loads checkpoints of the
    companion's class (section 3.5.3). ValueError for a size, a form, an input or a mask
    that does not fit.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
        *,
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        d_in, d_out = check_sizes(d_in=d_in, d_out=d_out)
        (context_length,) = check_sizes(context_length=context_length)
        check_form(attend)
        self.d_in, self.context_length, self.attend = d_in, context_length, attend
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(check_dropout(dropout))
        ignore_saved_mask(self)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; `mask` (True where a query may see) hides further keys."""
        inputs, dropout_p = self._inputs(x), dropout_now(self)
        return self.attend(*inputs, mask, causal=True, dropout_p=dropout_p)

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length length"]:
        """The weights that `forward` uses for the same input, before dropout."""
        return weights_of(self.attend, *self._inputs(x), mask, causal=True)

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        check_input(self, x)
        return self.W_query(x), self.W_key(x), self.W_value(x)
