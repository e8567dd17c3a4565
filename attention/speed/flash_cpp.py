"""Flash attention in C++

Flash attention as a kernel for a CPU, forward and backward: a tile stays in the
caches of a core, and the tile units of the CPU multiply it.

Written by `book/speed/flash_cpp.ipynb`: read and change it there.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.core.scaled_dot_product import check_window, clear_unseen, visible
from attention.speed.flash import TwoPasses
from attention.tools.checks import (
    broadcast_heads,
    check_bias,
    check_fit,
    check_no_dropout,
    declare_operator,
    precise,
    scale_queries,
    unified,
)
from attention.tools.workbench import expected

__all__ = ["cpp_attend"]


_NAMES = {  # in C++
    torch.float32: "float",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.float64: "double",
}


def _flags(dtype: torch.dtype, factor: torch.dtype) -> list[str]:
    """What the compiler is told: two types, this CPU's vectors, where torch lies."""
    home, vectors = Path(torch.__file__).parent, torch.backends.cpu.get_cpu_capability()
    known = vectors if vectors in ("AVX2", "AVX512", "SVE256") else "DEFAULT"
    return [
        *("-std=c++20", "-O3", "-march=native", "-fPIC", "-shared", "-w"),
        *(f"-DINPUT={_NAMES[dtype]}", f"-DFACTOR={_NAMES[factor]}"),
        *(f"-DCPU_CAPABILITY={known}", f"-DCPU_CAPABILITY_{known}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-I{home / 'include'}", "-x", "c++", "-", "-x", "none"),
        *(f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]


def _compiler() -> str:
    """The compiler that torch would use; RuntimeError without, or on Windows."""
    if find_spec("fcntl") is None:
        must = "cpp_attend: expected a system with fcntl, such as Linux or macOS"
        raise RuntimeError(f"{must}, got {platform.system()}")
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        need = "cpp_attend needs a C++ compiler, g++ or clang++"
        raise RuntimeError(f"{need}: expected {name!r} on the path, got none")
    return name


def _cpu() -> str:
    """The kind of CPU this is, with the instructions that it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    flags = (line for line in lines if line.startswith(("flags", "Features")))
    return next(flags, platform.processor() or platform.machine())


def _identity(compiler: str, flags: list[str], source: str) -> str:
    """A name for all that the compiled kernel depends on."""
    run = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    parts = (source, *flags, compiler, run.stdout, torch.__version__, _cpu())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time into the block."""
    import fcntl  # not on Windows, which _compiler refuses

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(compiler: str, flags: list[str], source: str, path: Path) -> None:
    """Compile the kernel, with threads if the compiler knows OpenMP."""
    half = path.with_suffix(f".{os.getpid()}")
    for threads in (["-fopenmp"], []):
        command = [compiler, *threads, *flags, "-o", str(half)]
        run = subprocess.run(command, input=source, capture_output=True, text=True)
        if run.returncode == 0:
            os.replace(half, path)
            return
    raise RuntimeError(f"cpp_attend: {compiler} cannot compile it: {run.stderr[:2000]}")


@cache
def _library(dtype: torch.dtype, factor: torch.dtype) -> ctypes.CDLL:
    """The kernel compiled for two types, made if it is not there yet."""
    compiler, flags = _compiler(), _flags(dtype, factor)
    from torch.utils.cpp_extension import get_default_build_root  # seldom needed

    source = files("attention.speed").joinpath("flash_cpp.cpp").read_text("utf-8")
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()
    name = f"flash_cpp_{_identity(compiler, flags, source)}.so"
    path = Path(root) / "attention" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():
                _build(compiler, flags, source, path)
    library = ctypes.CDLL(str(path))
    library.flash.restype = ctypes.c_char_p
    return library


class _Matrix(ctypes.Structure):
    """Where a tensor (batch, heads, rows, width) lies; its rows are in one piece."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((axis, ctypes.c_int64) for axis in ("batch", "head", "row")),
    )


_SIZES = "batch heads groups queries keys width value_width causal window"
_TENSORS = "q k v context lse bias mask d_context d_lse dq dk dv d_bias"


class _Call(ctypes.Structure):
    """Everything that is passed to the kernel."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES.split()),
        ("scale", ctypes.c_double),
        *((name, _Matrix) for name in _TENSORS.split()),
    )


def _four(tensor: Tensor) -> Tensor:
    """The same with four axes, and rows in one piece."""
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor.flatten(0, -4)


def _matrix(tensor: Tensor) -> _Matrix:
    place = tensor.data_ptr()
    if tensor.numel() and not place:  # DTensor keeps its numbers elsewhere
        must = "tensors that lie in memory themselves"
        raise expected("queries, keys and values", must, type(tensor).__name__)
    return _Matrix(place, *tensor.stride()[:3])


_WHOLE, _LEAST_SCALE = 32, 1e-20


def _factor(tensor: Tensor, bias: Tensor | None) -> torch.dtype:
    """The type that is multiplied: bfloat16 itself where the CPU can."""
    vectors = torch.backends.cpu.get_cpu_capability()  # less, if torch is told so
    native = vectors == "AVX512" and torch.cpu._is_avx512_bf16_supported()
    direct = native and bias is None and tensor.dtype == torch.bfloat16
    return tensor.dtype if direct else precise(tensor)


class _Kernel(NamedTuple):
    """Both passes, for tensors (..., heads, length, width), bias and mask or None."""

    scale: float
    causal: bool
    window: int | None
    name = "cpp_attend"

    def nothing(self, queries, keys, values):
        """What `forward` gives for queries that have seen no key."""
        (*batch, heads, length, _), width = queries.shape, values.shape[-1]
        context = queries.new_zeros(*batch, length, heads, width).transpose(-2, -3)
        shape, dtype = (*batch, heads, length), precise(queries)
        return context, queries.new_full(shape, -torch.inf, dtype=dtype)

    def run(self, backward: bool, **tensors: Tensor | None) -> None:
        """Call the kernel, which writes its results into the output tensors."""
        computed = tensors["lse"].numel() and tensors["k"].numel()
        real = tensors["q"].untyped_storage().device.type == "cpu"  # no stand-in
        if not real or not computed:
            return
        four = {name: _four(t) for name, t in tensors.items() if t is not None}
        batch, heads, length, width = four["q"].shape
        (_, groups, num_keys, _), value_width = four["k"].shape, four["v"].shape[-1]
        sizes = (batch, heads, groups, length, num_keys, width, value_width)
        options = self.causal, self.window or 0, self.scale
        call = _Call(*sizes, *options, **{n: _matrix(t) for n, t in four.items()})
        types = tensors["q"].dtype, _factor(tensors["q"], tensors["bias"])
        if why := _library(*types).flash(ctypes.byref(call), backward):
            raise RuntimeError(f"cpp_attend: {why.decode().splitlines()[0]}")

    def forward(self, queries, keys, values, bias, mask):
        context, lse = self.nothing(queries, keys, values)
        given = {"q": queries, "k": keys, "v": values, "bias": bias, "mask": mask}
        self.run(False, **given, context=context, lse=lse[..., None])
        return context, lse

    def backward(self, do, dlse, context, lse, queries, keys, values, *rest, needed):
        bias, mask = rest
        three = {"q": queries, "k": keys, "v": values}
        gradients = {f"d{n}": t.new_zeros(t.shape) for n, t in three.items()}
        if needed[3]:
            gradients["d_bias"] = bias.new_zeros(bias.shape)
        given = three | {"bias": bias, "mask": mask, "context": context}
        given |= {"d_context": do, "lse": lse[..., None], "d_lse": dlse[..., None]}
        self.run(True, **given, **gradients)
        return list(gradients.values())


_FIELDS = "float scale, bool causal, int? window"
declare_operator(_Kernel, _FIELDS)


def _padded(tensor: Tensor) -> Tensor:
    """The same with a width of one tile or more; zeros add nothing to a product."""
    missing = -tensor.shape[-1] % _WHOLE if tensor.shape[-1] else _WHOLE
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _check_support(queries, dropout_p):
    """ValueError for what the kernel cannot do."""
    check_no_dropout("cpp_attend", dropout_p)
    if queries.dtype not in _NAMES:
        dtypes = " or ".join(map(str, _NAMES))
        raise expected("queries, keys and values", dtypes, queries.dtype)
    if queries.device.type not in ("cpu", "meta"):
        where = "the CPU; flash_attend and triton_attend run elsewhere"
        raise expected("device", where, queries.device)


def cpp_attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | Tensor | None = None,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    return_lse: bool = False,
) -> (
    Float[Tensor, "*batch num_queries value_dim"]
    | tuple[
        Float[Tensor, "*batch num_queries value_dim"],
        Float[Tensor, "*batch num_queries"],
    ]
):
    """Context vectors by a kernel in C++, for a CPU; equals `attend`.

    Compiled at its first call, which takes some seconds, and kept for later processes
    in TORCH_EXTENSIONS_DIR, or where torch keeps such files. Scores and sums of 16-bit
    inputs are in float32, where a bias in float32 is added. Memory grows linearly
    with length, forward and backward, but for a mask or bias. Axis -3 counts heads:
    keys and values may have fewer, each then serving as many query heads in a row as
    needed, and are read once for all of them. `mask` is True where a query may see a
    key; tiles that it hides entirely cost little; a query that sees no key gets zeros.
    causal=True is lower-right: the queries are the last of the keys;
    `scaled_dot_product_attention(is_causal=True)` and JAX align upper-left: pass
    `mask=torch.ones(i, j, dtype=torch.bool).tril()` for that. `window` is how many keys
    a causal query sees, its own included. A `scale` that is a tensor may be learned.
    With return_lse=True the logsumexp of each query's scores comes along, base e, as
    `merge_states` takes it. A value that is not finite may make other contexts nan,
    unless `mask` hides it from all queries.

    ValueError for a misfit, dropout, and another device; RuntimeError without a C++
    compiler, on Windows, and for a second derivative or one in forward mode. Dao et al.
    2022.
    """
    window = check_window(window, causal)
    queries, keys, values = unified(queries, keys, values)
    shape = check_fit(queries, keys, values, causal=causal)
    _check_support(queries, dropout_p)
    mask = visible(shape, mask, False, queries.device)
    keys, values = clear_unseen(keys, values, mask, shape)
    bias = bias if bias is None else check_bias(bias, shape, queries)
    queries, scale = scale_queries(queries, scale)
    if scale < 0:  # the kernel wants it above 0, and this rounds nothing
        queries, scale = -queries, -scale
    if not scale > _LEAST_SCALE:  # the kernel multiplies -inf by it
        queries, scale = queries * scale, 1.0
    three = [_padded(each) for each in broadcast_heads(queries, keys, values, shape)]
    heads = three[0].shape[:-2]
    mask = mask if mask is None else mask.expand(*heads, *mask.shape[-2:])
    if bias is not None:
        bias = bias.to(precise(queries)).expand(*heads, *bias.shape[-2:])
    form = _Kernel(scale, causal, window)
    context, lse = TwoPasses.run(form, *three, bias, mask)
    context = context[..., : values.shape[-1]].reshape(*shape[:-1], values.shape[-1])
    return (context, lse.reshape(shape[:-1])) if return_lse else context
