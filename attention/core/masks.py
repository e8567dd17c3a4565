"""Masks without tears

Padding, the future and other documents are hidden by one boolean table: small
functions make its parts, and one more joins them.

Written by `book/core/masks.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from attention.tools.checks import are_whole, is_size, readable
from attention.tools.workbench import check_tensor, expected

__all__ = ["and_masks", "document_mask", "padding_mask"]


def padding_mask(
    lengths: Integer[Tensor, " batch"], max_length: int, *, left: bool = False
) -> Bool[Tensor, "batch 1 1 max_length"]:
    """True at the real tokens of each sentence, for sentences x heads x queries x keys.

    Padding stands after the real tokens, or before them with `left=True`. ValueError
    for lengths that are not from 0 to max_length. Where their values cannot be looked
    at (see `readable`), one below 0 counts as 0, one above max_length as max_length.
    """
    check_tensor(lengths=lengths)
    if lengths.ndim != 1 or not are_whole(lengths):
        raise expected("lengths", "whole numbers, one per sentence", lengths)
    if not is_size(max_length):
        raise expected("max_length", "a whole number of at least 0", repr(max_length))
    if readable(lengths) and not all(0 <= n <= max_length for n in lengths.tolist()):
        raise expected("lengths", f"from 0 to {max_length=}", lengths.tolist())
    place = torch.arange(max_length, device=lengths.device)
    real = (place.flip(0) if left else place) < lengths.long().unsqueeze(1)
    return real.unsqueeze(1).unsqueeze(1)


def document_mask(
    documents: Integer[Tensor, "batch length"],
) -> Bool[Tensor, "batch 1 length length"]:
    """True where query and key belong to the same document. ValueError for a misfit."""
    check_tensor(documents=documents)
    if documents.ndim != 2 or not are_whole(documents):
        raise expected("documents", "whole numbers (batch, length)", documents)
    same = documents.unsqueeze(2) == documents.unsqueeze(1)
    return same.unsqueeze(1)


def and_masks(*masks: Bool[Tensor, "..."] | None) -> Bool[Tensor, "..."] | None:
    """True where every mask is True; None stands for a mask that hides nothing.

    ValueError for masks that are not boolean, or that fit no common shape and device.
    """
    together = None
    for mask in masks:
        if mask is None:
            continue
        check_tensor(mask=mask)
        if mask.dtype != torch.bool:
            raise expected("masks", "booleans (True: may see)", mask)
        if together is None:
            together = mask
            continue
        try:
            torch.broadcast_shapes(together.shape, mask.shape)
        except RuntimeError:
            got = f"{tuple(together.shape)} and {tuple(mask.shape)}"
            raise expected("masks", "shapes that broadcast", got) from None
        if together.device != mask.device:
            got = f"{together.device} and {mask.device}"
            raise expected("masks", "one device", got)
        together = together & mask
    return together
