"""Heads at work

Measures of where a head looks, and a way to remove heads: three kinds of head in a
real language model, found by measuring and tested by taking them away.

Written by `book/reading/heads.ipynb`: read and change it there.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from attention.reading.translator import share
from attention.tools.checks import are_whole, check_counts, own_number
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "HeadScores",
    "ablate",
    "attentions_of",
    "check_head",
    "check_instead",
    "head_scores",
    "where_heads_look",
]


class HeadScores(NamedTuple):
    """How much of a head's weight fits each kind, or where such a head looks."""

    previous: Tensor
    sink: Tensor
    induction: Tensor


def where_heads_look(ids: Integer[Tensor, " length"], *, skip: int = 4) -> HeadScores:
    """For each kind of head, True at the keys where it looks, (length, length).

    Previous: the token before. Sink: the first token, for queries from `skip` on.
    Induction: each token after an earlier one that equals the query's own. ValueError
    unless `ids` is one text.
    """
    check_tensor(ids=ids)
    (skip,) = check_counts(skip=skip)
    if ids.ndim != 1 or not are_whole(ids):
        raise expected("ids", "whole numbers (length,), one text", ids)
    ids = ids.long()
    places = torch.arange(len(ids), device=ids.device)
    before, queries = F.pad(ids[:-1], (1, 0)), places[:, None]
    previous = places == queries - 1
    sink = (places == 0) & (queries >= skip)
    induction = (before == ids[:, None]) & (places > 0) & (places <= queries)
    return HeadScores(previous, sink, induction)


def head_scores(
    model: nn.Module, ids: Int[Tensor, "*batch length"], *, skip: int = 4
) -> HeadScores:
    """Scores of all heads while `model` reads `ids`, three tensors (layers, heads).

    Each is the mean weight where such a head looks (`where_heads_look`), over queries
    that have such a place, and then over texts. Induction is nan if no token occurs
    twice. The model has `blocks`, each with an `attention` of its own, which has heads
    and an out_proj. ValueError for another model, and for texts of `skip` tokens or
    fewer. Olsson et al. 2022.
    """
    (skip,) = check_counts(skip=skip)
    rows = _texts(ids, skip)
    kinds, found = [where_heads_look(row, skip=skip) for row in rows], []

    def measure(attention, inputs, options):
        weights = attention.attention_weights(*inputs, **options)
        weights = weights.reshape(len(rows), *weights.shape[-3:])
        pairs = zip(weights, kinds, strict=True)
        scores = [torch.stack([_score(w, mask) for mask in each]) for w, each in pairs]
        found.append(torch.stack(scores).nanmean(dim=0))

    with torch.no_grad(), ExitStack() as hooks:
        for attention in attentions_of(model):
            hook = attention.register_forward_pre_hook(measure, with_kwargs=True)
            hooks.callback(hook.remove)
        model(ids)
    return HeadScores(*torch.stack(found, dim=1))


def attentions_of(model: nn.Module) -> list[nn.Module]:
    """The attention of each block; ValueError for a model built differently."""
    blocks = getattr(model, "blocks", None)
    found = [getattr(block, "attention", None) for block in blocks or []]
    parts = ("num_heads", "out_proj", "attention_weights")
    if not found or not all(hasattr(each, part) for each in found for part in parts):
        must = "a model with `blocks`, each with an attention of this book in it"
        raise expected("model", must, type(model).__name__)
    if len({id(each.out_proj) for each in found}) < len(found):
        must = "an attention for each block, to tell their heads apart"
        raise expected("model", must, "one that several share")
    return found


def _texts(ids: Tensor, skip: int) -> Tensor:
    """The texts, one a row; ValueError unless they are whole numbers, long enough."""
    check_tensor(ids=ids)
    whole = ids.dtype in (torch.int64, torch.int32)
    if not whole or not ids.ndim or not ids.numel() or ids.shape[-1] <= skip:
        must = f"whole numbers (..., length), more than {skip=} of them in a row"
        raise expected("ids", must, ids)
    return ids.reshape(-1, ids.shape[-1])


def _score(weights: Tensor, where: Bool[Tensor, "length length"]) -> Tensor:
    """The share of each head, or nan where no query has a place to look at."""
    nothing = weights.new_full(weights.shape[:1], torch.nan)
    return share(weights, where) if where.any() else nothing


@contextmanager
def ablate(
    model: nn.Module,
    heads: Iterable[tuple[int, int]],
    *,
    by: str = "zero",
    ids: Int[Tensor, "*batch length"] | None = None,
) -> Iterator[None]:
    """Within the block, `model` works without these heads, pairs (layer, head) from 0.

    What each gives becomes zeros, or with by="mean" its mean over the tokens of `ids`,
    taken when the block begins. Blocks nest; for one head the inner one counts. After
    them, or an error, the model is as before. ValueError for a head that it does not
    have, and for a model that is built differently (`head_scores`).
    """
    attentions = attentions_of(model)
    chosen = _by_layer(attentions, heads)
    check_instead(by, ids)
    instead = _means(model, attentions, chosen, ids) if by == "mean" else {}
    with ExitStack() as hooks:
        for layer, some in chosen.items():
            options = {"heads": some, "num_heads": attentions[layer].num_heads}
            hook = partial(_replaced, **options, instead=instead.get(layer, 0.0))
            handle = attentions[layer].out_proj.register_forward_pre_hook(hook)
            hooks.callback(handle.remove)
        yield


def _replaced(module, inputs, *, heads, num_heads, instead):
    context = inputs[0].clone()
    context.unflatten(-1, (num_heads, -1))[..., heads, :] = instead
    return context, *inputs[1:]


def _means(model, attentions, chosen, ids) -> dict[int, Tensor]:
    """What these heads of each layer give on average, over all tokens of `ids`."""
    found = {}

    def note(module, inputs, *, layer):
        by_head = inputs[0].unflatten(-1, (attentions[layer].num_heads, -1))
        found[layer] = by_head[..., chosen[layer], :].flatten(0, -3).mean(dim=0)

    with torch.no_grad(), ExitStack() as hooks:
        for layer in chosen:
            hook = partial(note, layer=layer)
            handle = attentions[layer].out_proj.register_forward_pre_hook(hook)
            hooks.callback(handle.remove)
        model(ids)
    return found


def _by_layer(attentions, heads) -> dict[int, list[int]]:
    """The heads of each layer; what its out_proj is made of does not matter."""
    found: dict[int, list[int]] = {}
    if not isinstance(heads, Iterable):
        raise expected("heads", "pairs (layer, head)", type(heads).__name__)
    for pair in list(heads):
        layer, head = check_head(pair, attentions)
        found.setdefault(layer, []).append(head)
    return found


def check_head(pair: object, attentions: list[nn.Module]) -> tuple[int, int]:
    """A pair (layer, head) that these layers have; ValueError for any other."""
    must = f"pairs (layer, head), of {len(attentions)} layers"
    pair = tuple(map(own_number, pair)) if isinstance(pair, tuple | list) else pair
    whole = isinstance(pair, tuple) and len(pair) == 2
    if not whole or any(type(number) is not int for number in pair):
        raise expected("heads", must, f"{pair!r} among them")
    layer, head = pair
    if not 0 <= layer < len(attentions):
        raise expected("heads", f"layers from 0 to {len(attentions) - 1}", pair)
    if not 0 <= head < attentions[layer].num_heads:
        last = attentions[layer].num_heads - 1
        raise expected("heads", f"heads from 0 to {last} in layer {layer}", pair)
    return layer, head


def check_instead(by: str, ids: Tensor | None) -> None:
    """ValueError unless a mean has a text to be taken over, and zeros have none."""
    if by not in ("zero", "mean"):
        raise expected("by", "'zero' or 'mean'", repr(by))
    if by == "mean":
        if ids is None:
            raise expected("ids", "a text to take the mean over, with by='mean'", ids)
        _texts(ids, 0)
    elif ids is not None:
        raise expected("ids", "None, unless by='mean'", ids)
