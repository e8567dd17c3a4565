"""Checkpoint layouts

How checkpoints in other layouts are read into our module and written from it, whole
or not at all.

Written by `book/tools/layouts.ipynb`: read and change it there.
"""

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from attention.tools.checks import check_sizes
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "Layout",
    "check_layout",
    "check_tensors",
    "convert_state_dict",
    "load_safetensors",
    "load_weights",
]


@dataclass(frozen=True)
class Layout:
    """How a checkpoint names and stores the four projections of attention.

    `holds` says which projections a tensor holds, in this order, one below the other
    once the weight is transposed; `out_proj` is the last. Its keys are names of tensors
    without their last word, weight or bias. Of each group in `optional`, all biases
    are there or none; one in `filled` is written, as zeros, even where another layout
    has none. `passing` are names of stored masks and their constants; a
    `masked` layout needs its mask. `refused` says what cannot be converted, and why.
    """

    holds: dict[str, tuple[str, ...]]
    optional: tuple[tuple[str, ...], ...] = ()
    filled: tuple[str, ...] = ()
    transposed: bool = False
    passing: tuple[str, ...] = ()
    masked: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def fused(self) -> bool:
        """Are queries, keys and values one tensor? Then d_in must be d_out."""
        return len(self.holds) == 2

    def biased(self, held: Iterable[str]) -> set[str]:
        """The keys of `holds` that need a bias if the projections `held` have one."""
        needed, held = set(self.holds), set(held)
        for group in self.optional:
            if not held & {each for start in group for each in self.holds[start]}:
                needed -= set(group)
        return needed


_QUERY, _KEY, _VALUE, _OUT = ("W_query",), ("W_key",), ("W_value",), ("out_proj",)
_OURS = Layout(
    {"W_query.": _QUERY, "W_key.": _KEY, "W_value.": _VALUE, "out_proj.": _OUT},
    optional=(("W_query.", "W_key.", "W_value."), ("out_proj.",)),
    filled=("out_proj.",),
    passing=("mask",),
)
_EXTRA_KEY = "no learned key that every query sees (add_bias_kv)"
_WIDTHS = "one width for queries, keys and values (no kdim, no vdim)"
_REFUSED = dict.fromkeys(("bias_k", "bias_v"), _EXTRA_KEY)
_REFUSED |= dict.fromkeys((f"{each}_proj_weight" for each in "qkv"), _WIDTHS)

_LAYOUTS = {
    "ours": _OURS,
    "companion": replace(_OURS, optional=_OURS.optional[:1], masked=True),
    "torch": Layout(
        {"in_proj_": _QUERY + _KEY + _VALUE, "out_proj.": _OUT},
        optional=(("in_proj_", "out_proj."),),
        refused=_REFUSED,
    ),
    "gpt2": Layout(
        {"c_attn.": _QUERY + _KEY + _VALUE, "c_proj.": _OUT},
        transposed=True,
        passing=("bias", "masked_bias"),
    ),
    "separate": Layout(
        {"q_proj.": _QUERY, "k_proj.": _KEY, "v_proj.": _VALUE, "o_proj.": _OUT},
        optional=(("q_proj.", "k_proj.", "v_proj."), ("o_proj.",)),
    ),
}


def check_tensors(
    where: str, must: Mapping[str, tuple[int, ...]], got: Mapping[str, Tensor]
) -> None:
    """ValueError unless `got` has exactly the names and shapes in `must`.

    All must be floats of one dtype on one device.
    """
    check_tensor(**got)
    missing, extra = sorted(must.keys() - got), sorted(got.keys() - must)
    if missing or extra:
        held = f"{where} to hold {sorted(must)}"
        raise expected(f"{missing=}, {extra=}", held, sorted(got))
    for name, shape in must.items():
        if tuple(got[name].shape) != shape:
            raise expected(name, f"{shape} in {where}", tuple(got[name].shape))
    kinds = sorted({f"{t.dtype} on {t.device}" for t in got.values()})
    if len(kinds) > 1 or not all(t.is_floating_point() for t in got.values()):
        raise expected(where, "floats of one dtype on one device", kinds)


def _shape(state, name):
    if name not in state:
        return 0, 0
    if state[name].ndim != 2:
        raise expected(name, "two axes", tuple(state[name].shape))
    return tuple(state[name].shape)


def _sizes(state, layout):
    """The shape of each projection's weight, outputs x inputs, from those that lead."""
    first, *middle, last = (f"{start}weight" for start in layout.holds)
    if layout.fused:
        _, d = _shape(state, last)
        return dict.fromkeys(_QUERY + _KEY + _VALUE + _OUT, (d, d))
    queries, (d_out, _) = _shape(state, first), _shape(state, last)
    keys = tuple(state[middle[0]].shape) if middle[0] in state else ()
    if len(keys) != 2 or not keys[0] or queries[0] % keys[0]:
        keys = queries
    out = d_out or queries[0], queries[0]
    return {"W_query": queries, "W_key": keys, "W_value": keys, "out_proj": out}


def check_layout(state: Mapping[str, Tensor], name: str, head: str = "") -> None:
    """ValueError if the tensors of `state` are not one attention layer in a layout.

    It names a tensor that is missing, extra or misshapen, or several dtypes or devices;
    and the `head` to which they belong.
    """
    layout = _LAYOUTS[name]
    for key, must in layout.refused.items():
        if key in state:
            raise expected(key, must, state[key])
    state = {key: state[key] for key in state if key not in layout.passing}
    check_tensor(**state)
    sizes = _sizes(state, layout)
    with_bias = [start for start in layout.holds if f"{start}bias" in state]
    biased = layout.biased(each for start in with_bias for each in layout.holds[start])
    must = {}
    for start, held in layout.holds.items():
        if held == _OUT and not layout.fused and not _has(state, start):
            continue
        shape = sum(sizes[each][0] for each in held), sizes[held[0]][1]
        must[f"{start}weight"] = shape[::-1] if layout.transposed else shape
        if start in biased:
            must[f"{start}bias"] = shape[:1]
    d_in, d_out = sizes["W_query"][1], sizes["out_proj"][0]
    size = f" with {d_in=} and {d_out=}" if d_in and d_out else ""
    check_tensors(f"{head}layout {name!r}{size}", must, state)


def _has(state, start):
    return any(name.startswith(start) for name in state)


def _unpack(state, layout):
    ours = {}
    for start, projections in layout.holds.items():
        for kind in ("weight", "bias"):
            if f"{start}{kind}" in state:
                tensor = state[f"{start}{kind}"].detach()
                tensor = tensor.mT if layout.transposed and kind == "weight" else tensor
                names = [f"{each}.{kind}" for each in projections]
                ours |= zip(names, tensor.chunk(len(projections)), strict=True)
    return ours


def _pack(ours, layout, fill):
    held = [name.removesuffix(".bias") for name in ours if name.endswith(".bias")]
    needed = layout.biased(held) | set(layout.filled if fill else ())
    state = {}
    for start, projections in layout.holds.items():
        weights = [ours[f"{each}.weight"] for each in projections if _has(ours, each)]
        if not weights:
            continue  # a head without an output projection
        weight = torch.cat(weights)
        weight = weight.mT.contiguous() if layout.transposed else weight
        state[f"{start}weight"] = weight
        if start in needed:
            zeros = weight.new_zeros(len(weights[0]))  # those in one tensor are alike
            biases = [ours.get(f"{each}.bias", zeros) for each in projections]
            state[f"{start}bias"] = torch.cat(biases)
    return state


def convert_state_dict(
    state: Mapping[str, Tensor] | nn.Module,
    source: str,
    target: str = "ours",
    *,
    context_length: int | None = None,
) -> dict[str, Tensor]:
    """The tensors of one attention layer, from layout `source` in layout `target`.

    Layouts are "ours" (weights d_out x d_in), "companion" (ours, with a mask of
    context_length), "torch" (nn.MultiheadAttention, 3 d x d), "gpt2" (c_attn d x 3 d
    and c_proj, as in Hugging Face's GPT-2) and "separate" (q_proj, k_proj, v_proj,
    o_proj). Keys and values may be narrower than queries or read another width, heads
    wider than the output, and `out_proj` missing, but not in "torch" and "gpt2". Each
    head of `StackedHeads` (heads.0, …) is a layer.

    There and back gives the same bits. A bias that only the target needs is zeros; so
    is that of `out_proj` in "ours", if another layout has none.
    Stored masks are dropped; "companion" gets a new one, as long as the stored one
    unless `context_length` is given. The result is a copy. `state` may be a module: a
    state dict does not show its add_zero_attn, which has no counterpart here.

    ValueError for an unknown layout; for a tensor that is missing, extra or misshapen;
    for others than floats of one dtype on one device; for bias_k, bias_v, add_zero_attn
    and kdim of nn.MultiheadAttention; and where the target cannot hold the layer.
    """
    for name in (source, target):
        if not isinstance(name, str) or name not in _LAYOUTS:
            raise expected("layout", f"one of {[*_LAYOUTS]}", repr(name))
    if context_length is not None and not _LAYOUTS[target].masked:
        must = f"None, since layout {target!r} stores no mask"
        raise expected("context_length", must, context_length)
    result = {}
    for head, layer in _by_head(_state_of(state)).items():
        check_layout(layer, source, head and f"{head[:-1]} in ")
        ours = _unpack(layer, _LAYOUTS[source])
        _check_target(ours, target)
        packed = _pack(ours, _LAYOUTS[target], fill=source != target)
        if _LAYOUTS[target].masked:
            packed["mask"] = _future(layer, packed, context_length)
        result |= {f"{head}{name}": tensor for name, tensor in packed.items()}
    return result


def _state_of(source):
    """The tensors of a module or a state dict; ValueError for what no tensor shows."""
    if getattr(source, "add_zero_attn", False):
        raise expected("add_zero_attn", "no key of zeros that every query sees", True)
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(state, Mapping):
        got = type(state).__name__
        raise TypeError(f"state: expected tensors by name, or a module, got {got}")
    if other := [name for name in state if not isinstance(name, str)]:
        raise expected("state", "names of tensors", repr(other[0]))
    return state


def _by_head(state):
    """The tensors of each head by its prefix, heads.0. and so on; of a layer by ""."""
    layers = {}
    for name, tensor in state.items():
        found = re.match(r"heads\.\d+\.", name)
        head = found[0] if found else ""
        layers.setdefault(head, {})[name.removeprefix(head)] = tensor
    return layers or {"": {}}


def _check_target(ours, target):
    """ValueError if the layer has another form than a fused layout can hold."""
    if not _LAYOUTS[target].fused:
        return
    if "out_proj.weight" not in ours:
        raise expected("out_proj", f"an output projection, for layout {target!r}", None)
    d_out, width = ours["out_proj.weight"].shape
    (_, d_in), (kv_out, d_keys) = (
        ours[f"W_{n}.weight"].shape for n in ("query", "key")
    )
    if not d_in == d_out == width == kv_out == d_keys:
        must = f"one width for all, for layout {target!r}"
        got = (
            f"{d_in=}, {d_out=} and keys of {kv_out} from {d_keys}, queries of {width}"
        )
        raise expected("layer", must, got)


def _future(state, packed, context_length):
    """The companion's mask: ones in the future, as long as asked for or as stored."""
    stored = state.get("mask")
    if context_length is None and stored is not None:
        check_tensor(mask=stored)
        if stored.ndim != 2 or stored.shape[0] != stored.shape[1]:
            raise expected("mask", "(context_length, context_length)", stored)
        context_length = len(stored)
    check_sizes(context_length=context_length)
    ones = packed["W_query.weight"].new_ones(context_length, context_length)
    return ones.triu(diagonal=1)


def load_safetensors(path: Path | str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`, without it.

    A dot follows the prefix "h.0.attn", so that h.0.attn_norm is left out. Only these
    tensors are read, to the CPU. No pickle is ever opened. ValueError if there are
    none, or for another format; ImportError without safetensors, the extra
    `checkpoints`.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        hint = "pip install 'building-attention[checkpoints]'"
        raise ImportError(f"checkpoints are read by safetensors: {hint}") from error
    if not isinstance(prefix, str):
        raise expected("prefix", "a str", repr(prefix))
    start = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            chosen = [name for name in names if name.startswith(start)]
            state = {name[len(start) :]: file.get_tensor(name) for name in chosen}
    except SafetensorError as error:
        raise expected(str(path), "a safetensors file", error) from None
    if not state:
        raise expected("prefix", f"a start of {names} in {path}", repr(prefix))
    return state


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor] | nn.Module,
    layout: str = "ours",
) -> None:
    """Copy a checkpoint in this layout into `module`: all of it, or nothing.

    `module` is one of our layers, or what has their projections: `MultiHeadAttention`,
    `CrossAttention`, `StackedHeads`, or `SelfAttention` and `CausalAttention`, which
    have no `out_proj`. Numbers are cast to its dtype and moved to its device. A bias of
    zeros that it does not have is left out. `state` may be a module, too. ValueError
    for what `convert_state_dict` refuses; for a module of other sizes; for a number too
    large for its dtype; for a tensor on the meta device; and for two numbers where the
    module has one place in memory. The module is then as it was.
    """
    if not isinstance(module, nn.Module):
        raise expected("module", "an nn.Module", type(module).__name__)
    heads = [getattr(one, "num_heads", None) for one in (state, module)]
    if None not in heads and heads[0] != heads[1]:
        raise expected("num_heads", f"{heads[1]}, as the module has", heads[0])
    state, own = convert_state_dict(state, layout), module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    spare = [name for name in state.keys() - own if name.endswith(".bias")]
    for name in spare:
        if not state[name].is_meta and not state[name].any():
            del state[name]  # zeros add nothing
    check_tensors("the module", shapes, state)
    if empty := [name for name in own if own[name].is_meta or state[name].is_meta]:
        raise expected(f"{empty}", "numbers", "tensors on the meta device")
    for name, tensor in state.items():
        _check_range(name, tensor, own[name].dtype)
    _check_shared(own, state)
    module.load_state_dict(state)


def _check_range(name, tensor, dtype):
    """ValueError if a number becomes infinite in another dtype."""
    if tensor.dtype == dtype:
        return
    lost = tensor.isfinite() & ~tensor.to(dtype).isfinite()
    if lost.any():
        got = f"{tensor[lost][0].item():.3g} among them"
        raise expected(name, f"numbers that {dtype} can hold", got)


def _check_shared(own, state):
    """ValueError if one place in memory would be given two numbers."""
    memory = {name: t.untyped_storage().data_ptr() for name, t in own.items()}
    lone = {name for name, t in own.items() if t.is_contiguous()}
    lone = {n for n in lone if [*memory.values()].count(memory[n]) == 1}
    trial = deepcopy({n: own[n] for n in own if n not in lone})  # shares as own does
    for name, tensor in trial.items():
        try:
            tensor.copy_(state[name])
        except RuntimeError:
            got = "a view that repeats some"
            raise expected(name, "memory for each number", got) from None
    for name, tensor in trial.items():
        given = state[name].to(tensor)
        if not torch.allclose(tensor, given, rtol=0, atol=0, equal_nan=True):
            shared = [each for each in trial if memory[each] == memory[name]]
            raise expected(name, f"equal numbers where {shared} share memory", "others")
