"""Other layouts, real sizes: GPT-2

How checkpoints in other layouts are read into our module, whole or not at all; and
what attention costs in the four GPT-2 models.

Written by `book/core/gpt2.ipynb`: read and change it there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

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

    `holds` tells which projections a tensor holds, in this order, one below the other
    once the weight is turned; `out_proj` is the last. Its keys are names of tensors
    without their last word, weight or bias. Of each group in `optional`, all biases
    are there or none. `passing` are names of stored masks and their constants.
    """

    holds: dict[str, tuple[str, ...]]
    optional: tuple[tuple[str, ...], ...] = ()
    transposed: bool = False
    passing: tuple[str, ...] = ()

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
_LAYOUTS = {
    "ours": Layout(
        {"W_query.": _QUERY, "W_key.": _KEY, "W_value.": _VALUE, "out_proj.": _OUT},
        optional=(("W_query.", "W_key.", "W_value."),),
        passing=("mask",),
    ),
    "torch": Layout(
        {"in_proj_": _QUERY + _KEY + _VALUE, "out_proj.": _OUT},
        optional=(("in_proj_", "out_proj."),),
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
    where: str, must: Mapping[str, tuple[int, ...]], came: Mapping[str, Tensor]
) -> None:
    """ValueError unless `came` has exactly the names and shapes in `must`.

    All must be floats of one dtype on one device.
    """
    missing, extra = sorted(must.keys() - came), sorted(came.keys() - must)
    if missing or extra:
        held = f"{where} must hold {sorted(must)}, came {sorted(came)}"
        raise ValueError(f"{missing=}, {extra=}: {held}")
    for name, shape in must.items():
        if tuple(came[name].shape) != shape:
            wrong = tuple(came[name].shape)
            raise ValueError(f"{name} must be {shape} in {where}, came {wrong}")
    kinds = sorted({f"{t.dtype} on {t.device}" for t in came.values()})
    if len(kinds) > 1 or not all(t.is_floating_point() for t in came.values()):
        must = "floats of one dtype on one device"
        raise ValueError(f"{where} must have {must}, came {kinds}")


def _last_axis(state, name):
    if name not in state:
        return 0
    if state[name].ndim != 2:
        raise ValueError(f"{name} must have two axes, came {tuple(state[name].shape)}")
    return state[name].shape[-1]


def check_layout(state: Mapping[str, Tensor], name: str) -> None:
    """ValueError if the tensors of `state` are not one attention layer in a layout.

    It names a tensor that is missing, extra or misshapen, or several dtypes or devices.
    """
    layout = _LAYOUTS[name]
    first, *_, last = layout.holds
    d_out = _last_axis(state, f"{last}weight")
    d_in = d_out if layout.fused else _last_axis(state, f"{first}weight")
    with_bias = [start for start in layout.holds if f"{start}bias" in state]
    biased = layout.biased(each for start in with_bias for each in layout.holds[start])
    must = {}
    for start, projections in layout.holds.items():
        shape = (len(projections) * d_out, d_out if start == last else d_in)
        must[f"{start}weight"] = shape[::-1] if layout.transposed else shape
        if start in biased:
            must[f"{start}bias"] = shape[:1]
    came = {key: state[key] for key in state if key not in layout.passing}
    size = f" with {d_in=} and {d_out=}" if d_in and d_out else ""
    check_tensors(f"layout {name!r}{size}", must, came)


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


def _pack(ours, layout):
    zeros = ours["out_proj.weight"].new_zeros(len(ours["out_proj.weight"]))
    held = [name.removesuffix(".bias") for name in ours if name.endswith(".bias")]
    needed = layout.biased(held)
    state = {}
    for start, projections in layout.holds.items():
        weight = torch.cat([ours[f"{each}.weight"] for each in projections])
        weight = weight.mT.contiguous() if layout.transposed else weight
        state[f"{start}weight"] = weight
        if start in needed:
            biases = [ours.get(f"{each}.bias", zeros) for each in projections]
            state[f"{start}bias"] = torch.cat(biases)
    return state


def convert_state_dict(
    state: Mapping[str, Tensor], source: str, target: str = "ours"
) -> dict[str, Tensor]:
    """The tensors of one attention layer, from layout `source` in layout `target`.

    Layouts are "ours" (weights d_out x d_in), "torch" (nn.MultiheadAttention, 3 d x d),
    "gpt2" (c_attn d x 3 d and c_proj, as in Hugging Face's GPT-2) and "separate"
    (q_proj, k_proj, v_proj, o_proj). There and back gives the same bits. A bias that
    only the target needs is zeros. Stored masks are dropped. The result is a copy.
    ValueError for an unknown layout; for a tensor that is missing, extra or misshapen;
    for others than floats of one dtype on one device; and where "torch" or "gpt2"
    would need d_in to be d_out.
    """
    for name in (source, target):
        if name not in _LAYOUTS:
            raise ValueError(f"a layout must be one of {[*_LAYOUTS]}, came {name!r}")
    check_layout(state, source)
    ours = _unpack(state, _LAYOUTS[source])
    d_out, d_in = ours["W_query.weight"].shape
    if _LAYOUTS[target].fused and d_in != d_out:
        raise ValueError(f"layout {target!r} must have {d_in=} equal to {d_out=}")
    return _pack(ours, _LAYOUTS[target])


def load_safetensors(path: Path | str, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a safetensors file whose names begin with `prefix`, without it.

    A dot follows the prefix "h.0.attn", so that h.0.attn_norm is left out. Only these
    tensors are read, to the CPU. No pickle is ever opened. ValueError if there are
    none, or for another format. Needs safetensors, the extra `checkpoints`.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        hint = "pip install 'building-attention[checkpoints]'"
        raise ImportError(f"checkpoints are read by safetensors: {hint}") from error
    start = prefix if prefix.endswith(".") or not prefix else f"{prefix}."
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            chosen = [name for name in names if name.startswith(start)]
            state = {name[len(start) :]: file.get_tensor(name) for name in chosen}
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file, came {error}") from None
    if not state:
        raise ValueError(f"{prefix=} must begin a name in {path}, came {names}")
    return state


def load_weights(
    module: nn.Module, state: Mapping[str, Tensor], layout: str = "ours"
) -> None:
    """Copy a checkpoint in this layout into `module`: all of it, or nothing.

    `module` has our four projections, as `MultiHeadAttention` has. Numbers are cast to
    its dtype and moved to its device. ValueError for an unknown layout; for a tensor
    that is missing, extra or misshapen; for others than floats of one dtype on one
    device; and for a tensor on the meta device. The module is then as it was.
    """
    state, own = convert_state_dict(state, layout), module.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    check_tensors("the module", shapes, state)
    if empty := [name for name in own if own[name].is_meta or state[name].is_meta]:
        raise ValueError(f"{empty} must hold numbers, came on the meta device")
    module.load_state_dict(state)
