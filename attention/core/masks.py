"""Masks without tears

Padding, the future and other documents are hidden by one boolean table, made by
small functions and put together by one more.

Written by `book/core/masks.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["and_masks", "document_mask", "padding_mask"]


def padding_mask(
    lengths: Int[Tensor, " batch"], max_length: int, *, left: bool = False
) -> Bool[Tensor, "batch 1 1 max_length"]:
    """True at the real tokens of each sentence, for sentences x heads x queries x keys.

    Padding stands after the real tokens, or before them with `left=True`.
    """
    if lengths.ndim != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        came = f"{lengths.dtype} {tuple(lengths.shape)}"
        raise ValueError(f"lengths must be whole numbers, one a sentence, {came=!s}")
    if max_length < 0 or max_length % 1:
        raise ValueError(f"{max_length=} must be a whole number of at least 0")
    if lengths.numel() and not 0 <= lengths.min() <= lengths.max() <= max_length:
        came = lengths.tolist()
        raise ValueError(f"lengths must lie from 0 to {max_length=}, {came=}")
    place = torch.arange(max_length, device=lengths.device)
    real = (place.flip(0) if left else place) < lengths[:, None]
    return real[:, None, None, :]


def document_mask(
    documents: Int[Tensor, "batch length"],
) -> Bool[Tensor, "batch 1 length length"]:
    """True where query and key belong to the same document."""
    numbers = not documents.is_floating_point() and documents.dtype != torch.bool
    if documents.ndim != 2 or not numbers:
        came = f"{documents.dtype} {tuple(documents.shape)}"
        raise ValueError(f"documents must be whole numbers (batch, length), {came=!s}")
    same = documents[:, :, None] == documents[:, None, :]
    return same[:, None]


def and_masks(*masks: Bool[Tensor, "..."] | None) -> Bool[Tensor, "..."] | None:
    """True where every mask is True; None stands for a mask that hides nothing."""
    together = None
    for mask in masks:
        if mask is None:
            continue
        if mask.dtype != torch.bool:
            raise ValueError(f"masks must be boolean (True may see), came {mask.dtype}")
        if together is None:
            together = mask
            continue
        try:
            torch.broadcast_shapes(together.shape, mask.shape)
        except RuntimeError:
            came = f"{tuple(together.shape)} and {tuple(mask.shape)}"
            raise ValueError(f"masks must broadcast, {came=!s}") from None
        if together.device != mask.device:
            came = f"{together.device} and {mask.device}"
            raise ValueError(f"masks must be on one device, {came=!s}")
        together = together & mask
    return together
