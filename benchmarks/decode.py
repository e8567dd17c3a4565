"""Time one step of writing, with a cache, beside recomputation and other caches.

    python benchmarks/decode.py            half an hour; writes decode.md, .csv
    python benchmarks/decode.py --quick    some minutes; prints, writes nothing

A stack of attention layers has read a text and reads one token more. The limit is a
sum over as many bytes as weights and cache have: what is read once at least. All
contenders say the same, and are compared before any is timed.
"""

import itertools
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from common import (
    CANNOT_RUN,
    DTYPES,
    PATIENCE_SECONDS,
    Row,
    arguments,
    cells_of,
    disturbance,
    explain,
    finish,
    first_line,
    picture,
    progress,
    results_of,
    say,
    timed_rows,
    times_table,
)
from harness import Patience, Timing, machine, time_side_by_side
from torch import Tensor, nn

from attention import Attention, KVCache, cpp_attend


class Size(NamedTuple):
    """A stack of layers, whose heads are 64 wide."""

    width: int
    layers: int

    def __str__(self) -> str:
        return f"width {self.width}"


SIZES = [Size(768, 8), Size(2048, 4), Size(4096, 2)]
LENGTHS = [500, 1000, 2000]
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}  # relative, after all layers
SHARES = {"float32": 0.75, "bfloat16": 0.90}  # of the limit's speed
TIMES_FASTER = 100  # than a pass over 2,000 tokens
OURS, CPP, COMPILED = "KVCache", "KVCache, cpp_attend", "KVCache, compiled"
OWN = (OURS, CPP, COMPILED)
CAT = "torch.cat"
WHOLE, TORCH = "whole pass", "nn.MultiheadAttention"
THEIRS, LIMIT = "transformers", "limit"


class Growing:
    """The smallest cache: each step moves all that is held."""

    length = 0

    def extend(self, *new: Tensor) -> tuple[Tensor, ...]:
        if self.length > 0:
            pairs = zip(self.held, new, (-2, -2, -1), strict=True)
            new = tuple(torch.cat([old, more], axis) for old, more, axis in pairs)
        self.held, self.length = new, new[2].shape[-1]
        return new

    def truncate(self, length: int) -> None:
        keys, values, positions = self.held
        self.held = keys[..., :length, :], values[..., :length, :], positions[:length]
        self.length = length


# The contenders. Each is made of the layers and a text, and is then called for the
# vector of the text's last token.


class Cached:
    """A step with a cache of this kind for each layer."""

    def __init__(self, make: Callable, layers: nn.ModuleList, text: Tensor):
        self.layers, self.last = layers, text[:, -1:]
        self.caches = [make() for _ in layers]
        self.before = text.shape[1] - 1
        self.read(text[:, :-1])

    def read(self, x: Tensor) -> Tensor:
        for layer, memory in zip(self.layers, self.caches, strict=True):
            x = layer(x, cache=memory)
        return x

    def __call__(self) -> Tensor:
        for memory in self.caches:
            memory.truncate(self.before)
        return self.read(self.last)


def with_form(layer: Attention, attend: Callable) -> Attention:
    """The same layer with another form of attention."""
    sizes = (layer.d_in, layer.d_out, layer.num_heads)
    twin = Attention(*sizes, qkv_bias=True, attend=attend).to(layer.W_query.weight)
    twin.load_state_dict(layer.state_dict())
    return twin.eval().requires_grad_(False)


class InCpp(Cached):
    """The same with the kernel in C++."""

    def __init__(self, layers: nn.ModuleList, text: Tensor):
        super().__init__(
            KVCache, [with_form(each, cpp_attend) for each in layers], text
        )


class Compiled(Cached):
    """The same, compiled whole; the weights are laid out for the compiled products."""

    def __init__(self, layers: nn.ModuleList, text: Tensor):
        super().__init__(partial(KVCache, text.shape[1]), layers, text)
        self.layers = nn.ModuleList(with_form(each, one_query) for each in layers)
        torch.compiler.reset()
        options = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
        options |= {"autotune_num_choices_displayed": 0}
        options |= {"max_autotune_report_choices_stats": False}
        self.read = torch.compile(self.read, fullgraph=True, options=options)
        with torch._inductor.config.patch(freezing=True):  # weights do not change
            self()


def one_query(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of one query that may see all keys, in one pass over each."""
    if queries.shape[-2] != 1 or mask is not None:
        raise ValueError("queries: expected one, and no mask, for this form")
    scores = (queries.float() * keys.float()).sum(dim=-1, keepdim=True)
    weights = (scores * queries.shape[-1] ** -0.5).softmax(dim=-2)
    return (weights * values.float()).sum(dim=-2, keepdim=True).to(values.dtype)


class Whole:
    """A pass over the whole text for its last token."""

    def __init__(self, layers: nn.ModuleList, text: Tensor):
        self.layers, self.text = layers, text

    def __call__(self) -> Tensor:
        x = self.text
        for layer in self.layers:
            x = layer(x)
        return x[:, -1:]


class TorchWhole(Whole):
    """The same by PyTorch's own module."""

    def __init__(self, layers: nn.ModuleList, text: Tensor):
        super().__init__(nn.ModuleList(map(self.twin, layers)), text)
        places = torch.arange(text.shape[1], device=text.device)
        self.hidden = places > places[:, None]  # True: may not see

    def twin(self, layer: Attention) -> nn.MultiheadAttention:
        weight = layer.W_query.weight
        sizes, options = (layer.d_out, layer.num_heads), {"batch_first": True}
        twin = nn.MultiheadAttention(*sizes, **options).to(weight)
        three = (layer.W_query, layer.W_key, layer.W_value)
        twin.in_proj_weight.data = torch.cat([each.weight for each in three])
        twin.in_proj_bias.data = torch.cat([each.bias for each in three])
        twin.out_proj.load_state_dict(layer.out_proj.state_dict())
        return twin.eval().requires_grad_(False)

    def __call__(self) -> Tensor:
        x, options = self.text, {"need_weights": False, "is_causal": True}
        for layer in self.layers:
            x, _ = layer(x, x, x, attn_mask=self.hidden, **options)
        return x[:, -1:]


class Theirs:
    """A step of transformers' GPT-2 layers with their DynamicCache."""

    def __init__(self, layers: nn.ModuleList, text: Tensor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
            from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

            sizes = {"n_embd": layers[0].d_out, "n_head": layers[0].num_heads}
            sizes |= {"n_layer": len(layers)}
            config = transformers.GPT2Config(**sizes, attn_implementation="sdpa")
            self.layers = [GPT2Attention(config, layer_idx=n).eval() for n in
                           range(len(layers))]  # fmt: skip
        for theirs, layer in zip(self.layers, layers, strict=True):
            three = (layer.W_query, layer.W_key, layer.W_value)
            theirs.requires_grad_(False).to(text)
            theirs.c_attn.weight.copy_(torch.cat([w.weight for w in three]).T)
            theirs.c_attn.bias.copy_(torch.cat([w.bias for w in three]))
            theirs.c_proj.weight.copy_(layer.out_proj.weight.T)
            theirs.c_proj.bias.copy_(layer.out_proj.bias)
        self.cache, self.last = transformers.DynamicCache(config=config), text[:, -1:]
        self.read(text[:, :-1])
        self.drop = lambda: None

    def read(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, cache=self.cache)[0]
        return x

    def __call__(self) -> Tensor:
        self.drop()
        self.drop = partial(self.cache.crop, -1)  # what this call adds
        return self.read(self.last)


CONTENDERS: dict[str, Callable] = {
    OURS: partial(Cached, KVCache),
    CPP: InCpp,
    COMPILED: Compiled,
    CAT: partial(Cached, Growing),
    THEIRS: Theirs,
    WHOLE: Whole,
    TORCH: TorchWhole,
}


# Time.


def some_layers(device: str, dtype: str, size: Size) -> nn.ModuleList:
    torch.manual_seed(123)
    width, heads = size.width, size.width // 64
    layers = [Attention(width, width, heads, qkv_bias=True) for _ in range(size.layers)]
    layers = nn.ModuleList(layers).eval().requires_grad_(False)
    for layer in layers:
        layer.out_proj.weight.mul_(5)  # so that the layers do not fade
    return layers.to(device, DTYPES[dtype])


def some_text(device: str, dtype: str, size: Size, length: int) -> Tensor:
    torch.manual_seed(length)
    return torch.randn(1, length, size.width).to(device, DTYPES[dtype])


def bytes_read(dtype: str, size: Size, length: int) -> int:
    """Weights and cache, once."""
    width = size.width
    numbers = size.layers * (4 * width**2 + 4 * width + 2 * length * width)
    return numbers * DTYPES[dtype].itemsize


def ready(
    device: str, dtype: str, size: Size, length: int, contenders: dict[str, Callable]
) -> dict[str, Callable]:
    """The calls of all that can run, after they were found to say the same."""
    layers = some_layers(device, dtype, size)
    text = some_text(device, dtype, size, length)
    calls, must = {}, Whole(layers, text)()
    for name, make in contenders.items():
        try:
            call = make(layers, text)
            given = call(), call()  # a second call stands where the first did
        except CANNOT_RUN as error:
            if name in (OURS, WHOLE):
                raise
            explain(f"{name} cannot run on {device}: {first_line(error)}")
            continue
        for each in given:
            compare(name, each, must, TOLERANCE[dtype])
        calls[name] = call
    return calls


def compare(name: str, given: Tensor, must: Tensor, tolerance: float) -> None:
    distance = (given.double() - must.double()).norm() / must.double().norm()
    if not distance <= tolerance:  # NaN fails too
        raise AssertionError(
            f"{name} must say what the whole pass says, to {tolerance:g}; "
            f"the relative error is {distance:.1e}"
        )


@torch.no_grad()
def time_cell(
    device: str, dtype: str, size: Size, length: int, rounds: int
) -> list[Row]:
    """Rows of the CSV, one for each contender and one for the limit."""
    calls = ready(device, dtype, size, length, CONTENDERS)
    everything = torch.zeros(bytes_read(dtype, size, length) // 4, device=device)
    calls[LIMIT] = everything.sum
    calls[LIMIT]()
    timings = time_side_by_side(calls, rounds, device, Patience(PATIENCE_SECONDS))
    cell = {"device": device, "dtype": dtype, "direction": f"step, {size}"}
    cell |= {"length": length}

    def columns(_: str, timing: Timing) -> Row:
        share, faster = 1 / timing.ratio(timings[LIMIT]), timings[WHOLE].ratio(timing)
        return {"share": round(share, 4), "faster": round(faster, 2)}

    return timed_rows(cell, timings, columns, digits=4)


# The report.


def report(rows: list[Row], machines: dict[str, str], rounds: int) -> str:
    """The tables and what follows from them, in Markdown."""
    parts = ["# A step with a cache", "Written by `benchmarks/decode.py`."]
    for device, description in machines.items():
        times, _ = results_of(rows, device)
        parts += [
            f"## {device}",
            f"{description}.",
            times_table(times, [*CONTENDERS, LIMIT], OURS, time_and_share),
            f"Milliseconds for the next token, the median of {rounds} rounds; in "
            "brackets the share of the limit's speed, the median of the rounds' "
            f"ratios. Spread is the interquartile range of {OURS}. Batch 1, "
            f"{sizes_of(times)}; heads of width 64; length counts the new token. "
            "The limit is a sum over as many bytes as weights and cache have.",
            verdict(times),
            picture("decode", device, OURS),
        ]
    return "\n\n".join(parts) + "\n"


def met_or_missed(row: Row | None, goal: float) -> str:
    if row is None:
        return "did not run"
    met = "meets" if row["share"] >= goal else "misses"
    return f"{met} it, {row['share']:.2f}"


def sizes_of(rows: list[Row]) -> str:
    timed = {row["direction"] for row in rows}
    sizes = [size for size in SIZES if f"step, {size}" in timed]
    return ", ".join(f"{size.layers} layers of {size}" for size in sizes)


def time_and_share(row: Row) -> str:
    """What the table has in a cell."""
    return f"{row['milliseconds']:.1f} ({row['share']:.2f})"


def verdict(rows: list[Row]) -> str:
    """Where the goals are met, where not, and how disturbed the run was."""
    words = []
    for cell, group in cells_of(rows, "dtype", "direction", "length"):
        (dtype, step, length), goal = cell, SHARES[cell[0]]
        words.append(f"In {dtype}, {step}, at {length} (the goal is {goal:.2f}):")
        by_name = {row["contender"]: row for row in group}
        each = [f"{name} {met_or_missed(by_name.get(name), goal)}" for name in OWN]
        words.append("; ".join(each) + ".")
        fastest = max(row["faster"] for row in group if row["contender"] in OWN)
        words.append(
            f"The fastest of them is {fastest:.0f} × as fast as the whole pass"
            + (f", the goal is {TIMES_FASTER} ×." if length >= 2000 else ".")
        )
    return " ".join([*words, *disturbance(rows)])


# The command.


def main() -> None:
    options = arguments(__doc__)
    lengths = LENGTHS[:1] if options.quick else LENGTHS
    machines = {device: machine(device) for device in options.devices}
    rows: list[Row] = []
    for device, description in machines.items():
        say(f"{device}: {description}")
        cells = list(itertools.product(DTYPES, SIZES, lengths))
        for number, (dtype, size, length) in enumerate(cells, start=1):
            start = time.perf_counter()
            found = time_cell(device, dtype, size, length, options.rounds)
            rows += found
            ours = next(row for row in found if row["contender"] == OURS)
            say(
                f"{progress(number, len(cells))} {device} {dtype} {size} {length}: "
                f"{ours['milliseconds']:.1f} ms, {ours['share']:.2f} of the limit, "
                f"{ours['faster']:.0f} × the whole pass "
                f"({time.perf_counter() - start:.0f} s)"
            )
    finish("decode", OURS, report(rows, machines, options.rounds), rows, options)


if __name__ == "__main__":
    main()
