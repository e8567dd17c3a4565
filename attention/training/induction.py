"""How a model learns to copy

Two layers of attention learn to go on with a text that repeats itself: one head
notes in each token what came before it, and another looks for that note.

Written by `book/training/induction.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention.core.layer import Attention
from attention.reading.heads import where_heads_look
from attention.reading.translator import check_ids
from attention.tools.checks import check_sizes, readable
from attention.tools.workbench import check_tensor, expected

__all__ = ["AttentionOnly", "induction_score", "previous_score", "repeated_tokens"]


class AttentionOnly(nn.Module):
    """A language model of nothing but attention: ids in, logits of the next token out.

    Token vectors, layers of attention that each add what they found, and a logit for
    each token of the vocabulary; no norms, no MLP, nothing but attention and matrices
    (Elhage et al. 2021). `blocks[i].attention` is layer i, an `Attention` with these
    `slots`. ValueError for ids that are not tokens of the vocabulary.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        *,
        num_layers: int = 2,
        num_heads: int = 1,
        **slots: object,
    ) -> None:
        super().__init__()
        vocabulary, d = check_sizes(vocabulary=vocabulary, d=d)
        (num_layers,) = check_sizes(num_layers=num_layers)
        slots = {"out_bias": False} | slots
        self.embedding = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(
            _Block(Attention(d, d, num_heads, **slots)) for _ in range(num_layers)
        )
        self.unembedding = nn.Linear(d, vocabulary, bias=False)

    def forward(
        self, ids: Int[Tensor, "*batch length"]
    ) -> Float[Tensor, "*batch length vocabulary"]:
        x = self._embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(x)

    def attention_weights(
        self, ids: Int[Tensor, "*batch length"]
    ) -> tuple[Float[Tensor, "*batch num_heads length length"], ...]:
        """The weights of each layer, the first one's first."""
        x, weights = self._embed(ids), []
        for block in self.blocks:
            weights.append(block.attention.attention_weights(x))
            x = block(x)
        return tuple(weights)

    def _embed(self, ids):
        table = self.embedding.weight
        check_ids(ids, len(table), device=table.device)
        return self.embedding(ids)


class _Block(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return x + self.attention(x)


def repeated_tokens(
    rows: int,
    period: int,
    vocabulary: int,
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "rows length"]:
    """Texts of `period` random tokens, no two alike, said twice; drawn on the CPU.

    ValueError for a number below 1, or a period longer than the vocabulary.
    """
    sizes = check_sizes(rows=rows, period=period, vocabulary=vocabulary)
    rows, period, vocabulary = sizes
    if period > vocabulary:
        must = f"at most {vocabulary=}, since no token occurs twice in a period"
        raise expected("period", must, period)
    drawn = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    shuffled = torch.rand(rows, vocabulary, **drawn).argsort(dim=-1)
    return shuffled[:, :period].repeat(1, 2)


def previous_score(
    weights: Float[Tensor, "*heads length length"],
) -> Float[Tensor, "*heads"]:
    """The mean weight that queries put on the token before them, for each head.

    ValueError for weights that are not square, or of fewer than 2 tokens.
    """
    _check_square(weights)
    return weights.diagonal(-1, dim1=-2, dim2=-1).mean(dim=-1)


def induction_score(
    weights: Float[Tensor, "*batch heads length length"],
    ids: Int[Tensor, "*batch length"],
) -> Float[Tensor, "*batch heads"]:
    """The mean weight on tokens that came after an earlier one like the query's.

    The mean is over the queries whose token has occurred before. Prefix matching, in
    Olsson et al. 2022. ValueError for a text in which no token occurs twice.
    """
    _check_square(weights)
    check_ids(ids, device=weights.device)
    if ids.shape != (*weights.shape[:-3], weights.shape[-1]):
        must = f"{(*weights.shape[:-3], weights.shape[-1])}, a token for each key"
        raise expected("ids", must, tuple(ids.shape))
    texts = ids.reshape(-1, ids.shape[-1])
    follows = torch.stack([where_heads_look(text).induction for text in texts])
    follows = follows.view(*ids.shape, -1)
    asked = follows.any(dim=-1).sum(dim=-1)
    if readable(asked) and not asked.all():
        raise expected("ids", "a token that occurs twice in each text", "none")
    found = (weights * follows.unsqueeze(-3)).sum(dim=(-2, -1))
    return found / asked.unsqueeze(-1)


def _check_square(weights: Tensor) -> None:
    check_tensor(weights=weights)
    shape = tuple(weights.shape)
    square = weights.ndim > 2 and shape[-1] == shape[-2] and shape[-1] > 1
    if not square or not weights.is_floating_point():
        must = "floats (..., heads, length, length), length ≥ 2"
        raise expected("weights", must, weights)
