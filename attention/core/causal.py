"""Causal attention

Hiding the future: each token attends to itself and to what came before, so that a
model can be trained to predict what comes next.

Written by `book/core/causal.ipynb`: read and change it there.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention.core.scaled_dot_product import (
    attend,
    attention_weights,
    check_input,
    check_sizes,
)

__all__ = ["CausalAttention", "causal_mask", "future_leak", "ignore_saved_mask"]


def future_leak(
    forward: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch length d_in"]
) -> float:
    """How far the past moves when only the future changes; 0 means causal.

    For each position, all later inputs are replaced by noise from a fixed seed. Returns
    the largest change of an output up to that position. `forward` must be
    deterministic: call `eval()` on a module with dropout first.
    """
    if x.ndim < 2 or not x.is_floating_point() or x.shape[-2] < 2:
        must, came = "floats with at least 2 positions", f"{x.dtype} {tuple(x.shape)}"
        raise ValueError(f"x must be {must}, to have a future, {came=!s}")
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    changes = []
    with torch.no_grad():
        past = forward(x)
        if past.shape[:-1] != x.shape[:-1]:
            must, came = (*x.shape[:-1], "d_out"), tuple(past.shape)
            raise ValueError(f"forward must keep the positions, {must=}, {came=}")
        for now in range(1, x.shape[-2]):
            changed = torch.cat([x[..., :now, :], noise[..., now:, :]], dim=-2)
            moved = forward(changed)[..., :now, :] - past[..., :now, :]
            changes.append(moved.abs().max())
    return torch.stack(changes).max().item()  # a nan stays a nan


def causal_mask(
    length: int,
    num_keys: int | None = None,
    *,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "length num_keys"]:
    """True where a key is not later than the query: itself and the past.

    With `num_keys` greater than `length`, the queries are the last of the keys.
    """
    num_keys = length if num_keys is None else num_keys
    if not 0 <= length <= num_keys or length % 1 or num_keys % 1:
        raise ValueError(f"{length=} must lie from 0 to {num_keys=}, both whole")
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
    context_length. Loads checkpoints of the companion's class (section 3.5.3).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float = 0.0,
        qkv_bias: bool = False,
        *,
        attend: Callable[..., Tensor] = attend,
    ) -> None:
        super().__init__()
        check_sizes(d_in=d_in, d_out=d_out, context_length=context_length)
        self.d_in, self.context_length, self.attend = d_in, context_length, attend
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        ignore_saved_mask(self)

    def forward(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d_out"]:
        """Context vectors; `mask` (True where a query may see) hides further keys."""
        check_input(self, x)
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)
        dropout_p = self.dropout.p if self.training else 0.0
        return self.attend(
            queries, keys, values, mask, causal=True, dropout_p=dropout_p
        )

    def attention_weights(
        self,
        x: Float[Tensor, "*batch length d_in"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length length"]:
        """The weights that `forward` gives the same input, before dropout."""
        check_input(self, x)
        return attention_weights(self.W_query(x), self.W_key(x), mask, causal=True)
