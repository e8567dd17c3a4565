"""Numbers that others published, and the calls that give ours.

They are listed in `published.json`, each with its source. The tests compare the two,
and the page `book/reference/published_numbers.ipynb` shows them side by side.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from attention import (
    CausalAttention,
    MultiHeadAttention,
    SelfAttention,
    StackedHeads,
    attention_weights,
    causal_mask,
    simple_self_attention,
    softmax,
)

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))
NUMBERS = {entry["id"]: entry for entry in PUBLISHED["numbers"]}
ERRATA = {entry["id"]: entry for entry in PUBLISHED["errata"]}
ROUNDING = 1e-4  # of four digits behind the point: single precision may tip the last

X = torch.tensor(PUBLISHED["inputs"])
BATCH = torch.stack([X, X])


def theirs(name: str) -> Tensor:
    """The published numbers, in the order in which they are printed."""
    entry = {**NUMBERS, **ERRATA}[name]
    return torch.tensor([float(v) for v in entry["values"]], dtype=torch.float64)


def ours(name: str) -> Tensor:
    """The same numbers, computed by the package."""
    return OURS[name]().detach().flatten().double()


def equal(name: str) -> bool:
    """Are ours the published numbers, as far as these are printed?"""
    return torch.allclose(ours(name), theirs(name), rtol=0, atol=ROUNDING)


def seeded(seed, make, *arguments, **options):
    torch.manual_seed(seed)
    return make(*arguments, **options)


def projections():
    """The companion's three 3 x 2 matrices, and what they make of the tokens."""
    torch.manual_seed(123)
    return [X @ torch.rand(3, 2) for _ in range(3)]


def article_sentence():
    place = torch.tensor([0, 4, 5, 2, 1, 3])
    return seeded(123, nn.Embedding, 6, 16)(place).detach()


def article(*shapes):
    """The article's sentence, projected by random matrices drawn in a row."""
    sentence = article_sentence()
    torch.manual_seed(123)
    return [sentence @ torch.rand(*shape).mT for shape in shapes]


def masked_scores():
    module = seeded(789, SelfAttention, 3, 2)
    scores = module.W_query(X) @ module.W_key(X).T
    return scores.masked_fill(~causal_mask(6), -torch.inf)


def dropped(weights):
    return seeded(123, nn.Dropout(0.5), weights)


def of_journey():
    return X @ X[1]


def projected_weights():
    queries, keys, _ = projections()
    return attention_weights(queries, keys)


def with_sum(weights):
    return torch.cat([weights, weights.sum(dim=-1, keepdim=True)])


def products():
    a = [
        [0.2745, 0.6584, 0.2775, 0.8573, 0.8993, 0.0390, 0.9268, 0.7388],
        [0.7179, 0.7058, 0.9156, 0.4340, 0.0772, 0.3565, 0.1479, 0.5331],
        [0.4066, 0.2318, 0.4545, 0.9737, 0.4606, 0.5159, 0.4220, 0.5786],
    ]
    a = torch.tensor(a).view(2, 3, 4)
    return a @ a.mT


def two_sequences():
    """Queries of the article's sentence, keys of the eight random tokens after it."""
    torch.manual_seed(123)
    _, W_key, _ = (torch.rand(d, 16) for d in (24, 24, 28))
    other = torch.rand(8, 16)
    (queries,) = article((24, 16))
    return queries, other @ W_key.T


def three_heads():
    single = [(24, 16), (24, 16), (28, 16)]
    heads = [(3, 24, 16), (3, 24, 16)]
    return article(*single, *heads)[3:]


def renormalised():
    weights = seeded(789, SelfAttention, 3, 2).attention_weights(X).tril()
    return weights / weights.sum(dim=-1, keepdim=True)


# Width, layers and heads of the four GPT-2 models.
SIZES = {"small": (768, 12, 12), "medium": (1024, 24, 16)}
SIZES |= {"large": (1280, 36, 20), "xl": (1600, 48, 25)}
LARGER = ("medium", "large", "xl")
VOCABULARY, CONTEXT = 50257, 1024


def attention_parameters(size, qkv_bias):
    d, _, num_heads = SIZES[size]
    with torch.device("meta"):  # shapes alone can be counted
        layer = MultiHeadAttention(d, d, CONTEXT, 0.0, num_heads, qkv_bias)
    return torch.tensor([sum(p.numel() for p in layer.parameters())])


def gpt2(*sizes, qkv_bias):
    """All parameters of these models; the head uses the token embedding's matrix."""
    totals = []
    for size in sizes:
        d, num_layers, _ = SIZES[size]
        mlp, norm = 8 * d * d + 5 * d, 2 * d
        layer = attention_parameters(size, qkv_bias) + mlp + 2 * norm
        totals.append(num_layers * layer + norm + (VOCABULARY + CONTEXT) * d)
    return torch.cat(totals)


def small():
    return gpt2("small", qkv_bias=False)


def untied(*sizes):
    """What a head with a matrix of its own adds."""
    return torch.tensor([VOCABULARY * SIZES[size][0] for size in sizes])


OURS = {
    "companion-28": of_journey,
    "companion-30": lambda: torch.stack([(X[1] * X[0]).sum(), X[1].dot(X[0])]),
    "companion-33": lambda: with_sum(of_journey() / of_journey().sum()),
    "companion-35": lambda: with_sum(of_journey().exp() / of_journey().exp().sum()),
    "companion-37": lambda: with_sum(softmax(of_journey())),
    "companion-40": lambda: softmax(of_journey()) @ X,
    "companion-47": lambda: torch.stack(
        [torch.stack([q.dot(k) for k in X]) for q in X]
    ),
    "companion-49": lambda: X @ X.T,
    "companion-51": lambda: softmax(X @ X.T),
    "companion-53": lambda: softmax(X @ X.T).sum(dim=-1),
    "companion-55": lambda: simple_self_attention(X),
    "companion-57": lambda: simple_self_attention(X)[1],
    "companion-70": lambda: projections()[0][1],
    "companion-75": lambda: projections()[0][1] @ projections()[1][1],
    "companion-77": lambda: projections()[1] @ projections()[0][1],
    "companion-80": lambda: projected_weights()[1],
    "companion-83": lambda: projected_weights()[1] @ projections()[2],
    "companion-86": lambda: projected_weights() @ projections()[2],
    "companion-89": lambda: seeded(789, SelfAttention, 3, 2)(X),
    "companion-98": lambda: seeded(789, SelfAttention, 3, 2).attention_weights(X),
    "companion-100": lambda: causal_mask(6).float(),
    "companion-102": lambda: (
        seeded(789, SelfAttention, 3, 2).attention_weights(X).tril()
    ),
    "companion-105": renormalised,
    "companion-108": masked_scores,
    "companion-110": lambda: softmax(masked_scores() / 2**0.5),
    "companion-115": lambda: dropped(torch.ones(6, 6)),
    "companion-116": lambda: dropped(softmax(masked_scores() / 2**0.5)),
    "companion-121": lambda: seeded(123, CausalAttention, 3, 2, 6, 0.0)(BATCH),
    "companion-127": lambda: seeded(123, StackedHeads, 3, 2, 6, 0.0, num_heads=2)(
        BATCH
    ),
    "companion-131": lambda: seeded(123, MultiHeadAttention, 3, 2, 6, 0.0, 2)(BATCH),
    "companion-138": products,
    "companion-140": products,
    "article-embed": article_sentence,
    "article-omega2": lambda: (lambda q, k: k @ q[1])(*article((24, 16), (24, 16))),
    "article-alpha2": lambda: attention_weights(*article((24, 16), (24, 16)))[1],
    "article-z2": lambda: (lambda q, k, v: attention_weights(q, k)[1] @ v)(
        *article((24, 16), (24, 16), (28, 16))
    ),
    "article-mh-weights-row2": lambda: attention_weights(*three_heads())[:, 1],
    "article-cross-scores": lambda: (lambda q, k: k @ q[1])(*two_sequences()),
    "article-cross-weights": lambda: attention_weights(*two_sequences())[1],
    "gpt2-parameters": lambda: attention_parameters("small", qkv_bias=False),
    "gpt2-tied": lambda: torch.cat([small(), small() + untied("small")]),
    "gpt2-larger-tied": lambda: gpt2(*LARGER, qkv_bias=False),
    "gpt2-larger-untied": lambda: gpt2(*LARGER, qkv_bias=False) + untied(*LARGER),
    "gpt2-millions": lambda: (gpt2(*SIZES, qkv_bias=True) / 1e6).round(),
    "companion-exercise-3.2": lambda: seeded(
        123, StackedHeads, 3, 1, 6, 0.0, num_heads=2
    )(X),
}
