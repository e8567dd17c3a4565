"""Draft and verify

A cheap model drafts a few tokens, the large one checks them all in one pass, and
what is written has exactly the distribution of the large one.

Written by `book/memory/speculative.ipynb`: read and change it there.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from attention.tools.checks import (
    are_whole,
    check_counts,
    is_number,
    is_whole,
    readable,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "accept",
    "acceptance_rate",
    "check_draft",
    "check_drafted",
    "check_probabilities",
    "expected_tokens",
    "residual",
    "tree_mask",
]


def residual(
    target: Float[Tensor, "*batch vocabulary"],
    draft: Float[Tensor, "*batch vocabulary"],
) -> Float[Tensor, "*batch vocabulary"]:
    """What is drawn from after a rejection: the target's surplus over the draft.

    Leviathan et al. 2023, section 2.3. Where there is no surplus, it is the target.
    ValueError unless both are floats of one shape, on one device.
    """
    _check_alike(target, draft)
    surplus = (target - draft).clamp(min=0)
    total = surplus.sum(dim=-1, keepdim=True)
    share = surplus / total.where(total > 0, 1)  # 0 / 0 would have no gradient
    return torch.where(total > 0, share, target)


def acceptance_rate(
    target: Float[Tensor, "*batch vocabulary"],
    draft: Float[Tensor, "*batch vocabulary"],
) -> Float[Tensor, "*batch"]:
    """How probable it is that a drafted token is accepted.

    Leviathan et al. 2023, theorem 3.5. ValueError for what are no probabilities.
    """
    _check_alike(target, draft)
    if readable(target):
        check_probabilities(target=target, draft=draft)
    return torch.minimum(target, draft).sum(dim=-1)


def expected_tokens(rate: float, drafted: int) -> float:
    """Tokens of a round, on average, if each of `drafted` is accepted at this rate.

    Leviathan et al. 2023, equation 1. ValueError for a rate that is no probability, and
    a count below 0.
    """
    drafted = check_drafted(rate, drafted)
    return float(sum(rate**count for count in range(drafted + 1)))


def accept(
    target: Float[Tensor, "*batch places vocabulary"],
    draft: Float[Tensor, "*batch drafted vocabulary"],
    tokens: Integer[Tensor, "*batch drafted"],
    *,
    generator: torch.Generator | None = None,
) -> tuple[Int[Tensor, "*batch"], Int[Tensor, "*batch"]]:
    """How many drafted tokens are accepted, and the token that follows them.

    `target` has a row of probabilities for each drafted token and one after the last;
    `draft` has those from which each of `tokens` was drawn. The tokens accepted and the
    one that follows have exactly the target's distribution: Leviathan et al. 2023,
    algorithm 1; Chen et al. 2023a, algorithm 2. If one token of each row has all the
    probability, this is the rule of greedy decoding. ValueError for rows that are not
    probabilities, and for tokens that the draft cannot have drawn.
    """
    check_draft(target, draft, tokens)
    if not isinstance(generator, torch.Generator | None):
        raise expected("generator", "a torch.Generator, or None", repr(generator))
    target, draft, tokens = _exact(target), _exact(draft), tokens.long()
    p = target[..., :-1, :].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    q = draft.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    drawn = torch.rand(q.shape, dtype=q.dtype, device=q.device, generator=generator)
    kept = (drawn * q <= p) & (p > 0)
    accepted = kept.long().cumprod(dim=-1).sum(dim=-1)
    left = residual(target, torch.nn.functional.pad(draft, (0, 0, 0, 1)))
    row = accepted[..., None, None].expand(*accepted.shape, 1, left.shape[-1])
    left = left.gather(-2, row).flatten(0, -2)
    following = torch.multinomial(left, 1, generator=generator)
    return accepted, following.view(accepted.shape)


def _exact(rows: Tensor) -> Tensor:
    """Probabilities in 64 bits that sum to one."""
    rows = rows.detach().double()
    return rows / rows.sum(dim=-1, keepdim=True)


def check_draft(target: Tensor, draft: Tensor, tokens: Tensor) -> None:
    """ValueError unless `tokens` may come from `draft`, and `target` fits both."""
    check_tensor(target=target, draft=draft, tokens=tokens)
    if draft.ndim < 2:
        raise expected("draft", "floats (..., drafted, vocabulary)", draft)
    *batch, drafted, vocabulary = draft.shape
    must = (*batch, drafted + 1, vocabulary)
    if target.shape != must or target.device != draft.device:
        told = f"floats {must} on {draft.device}, a row more than the draft"
        raise expected("target", told, target)
    check_probabilities(target=target, draft=draft)
    fits = tokens.shape == draft.shape[:-1] and tokens.device == draft.device
    if not are_whole(tokens) or not fits:
        told = f"whole numbers {(*batch, drafted)} on {draft.device}"
        raise expected("tokens", told, tokens)
    tokens = tokens.long()  # few bits may not hold the size of the vocabulary
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if outside.numel():
        told = f"from 0 to {vocabulary - 1}, the last of the vocabulary"
        raise expected("tokens", told, outside[0].item())
    drawn = draft.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if (drawn == 0).any():
        told = f"{tokens[drawn == 0][0].item()}, whose draft probability is 0"
        raise expected("tokens", "tokens that the draft may have drawn", told)


def check_probabilities(**rows: Tensor) -> None:
    """ValueError unless the last axis holds probabilities, up to rounding."""
    for name, tensor in rows.items():
        if not tensor.is_floating_point() or tensor.shape[-1] == 0:
            raise expected(name, "floats (..., vocabulary), at least one token", tensor)
        if tensor.is_meta:
            raise expected(name, "a device that holds numbers", tensor)
        wrong = tensor[~(tensor >= 0)]
        if wrong.numel():
            raise expected(name, "probabilities of at least 0", wrong[0].item())
        sums = tensor.double().sum(dim=-1)
        near = max(1e-5, 4 * torch.finfo(tensor.dtype).eps)
        wrong = sums[~((sums - 1).abs() <= near)]
        if wrong.numel():
            raise expected(name, "rows that sum to one", wrong[0].item())


def _check_alike(target: Tensor, draft: Tensor) -> None:
    """ValueError unless both hold a number for each token, at the same places."""
    check_tensor(target=target, draft=draft)
    if not target.is_floating_point() or target.shape[-1:] in ((), (0,)):
        must = "floats (..., vocabulary), at least one token"
        raise expected("target", must, target)
    like = draft.shape == target.shape and draft.device == target.device
    if not draft.is_floating_point() or not like:
        must = f"floats {tuple(target.shape)} on {target.device}, like the target"
        raise expected("draft", must, draft)


def check_drafted(rate: float, drafted: int) -> int:
    """How many are drafted, as Python's; ValueError unless both fit."""
    one = isinstance(rate, Tensor) and rate.ndim == 0 and rate.is_floating_point()
    if not (one or is_number(rate)) or not 0 <= rate <= 1:
        raise expected("rate", "a probability, from 0 to 1", rate)
    return check_counts(drafted=drafted)[0]


def tree_mask(
    parents: Sequence[int],
) -> tuple[Bool[Tensor, "nodes nodes"], Int[Tensor, " nodes"]]:
    """Which nodes of a token tree each may see, its ancestors and itself; and depths.

    `parents` has the place of each node's parent, which stands before it, or -1 for a
    root. Depths count from 0; added to the position of the roots, they are positions.
    Miao et al. 2024 (SpecInfer), section 4; Cai et al. 2024 (Medusa), section 2.1.
    ValueError for a parent that does not stand before its child.
    """
    if not isinstance(parents, Sequence):
        must = "a sequence of whole numbers, one for each node"
        raise expected("parents", must, type(parents).__name__)
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if not is_whole(parent) or not -1 <= parent < node:
            must = f"a whole number from -1 to {node - 1} for node {node}"
            raise expected("parents", must, repr(parent))
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask, mask.sum(dim=-1) - 1
