"""Time MultiHeadAttention beside what a user would pick instead.

    python benchmarks/multi_head.py            half an hour; writes .md, .csv and .svg
    python benchmarks/multi_head.py --quick    two minutes; prints, writes nothing

All contenders hold the same weights, and their outputs and gradients are compared
before any is timed. A ratio above 1 means slower than the fastest of the others.
"""

import copy
import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import (
    CANNOT_RUN,
    DTYPES,
    PASSES,
    PATIENCE_SECONDS,
    Row,
    arguments,
    describe,
    disturbance,
    finish,
    first_line,
    memory_table,
    peaks_by_length,
    picture,
    progress,
    results_of,
    say,
    tells_memory,
    times_table,
)
from flash import attend_flex
from harness import Patience, Timing, in_fresh_process, sample, time_side_by_side
from torch import Tensor, nn
from torch.nn import functional as F

from attention import MultiHeadAttention

WIDTH, HEADS, BATCH = 768, 12, 4
HEAD_DIM = WIDTH // HEADS
LENGTHS, MEMORY_LENGTHS = [256, 1024, 2048, 4096], [512, 1024, 2048, 4096, 8192]
TOO_SLOW = 4  # times ours: such a contender is named, and not waited for
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}  # relative, for each token's vector
GOAL = 1.05  # times the fastest peer
OURS = "MultiHeadAttention"


# The contenders: each is built from our module and holds the same weights.


def ours(module: MultiHeadAttention) -> nn.Module:
    """The module as the package gives it."""
    return module


def with_form(form: Callable[..., Tensor], module: MultiHeadAttention) -> nn.Module:
    """The same module with another form of attention, without mask and dropout."""

    def attend(queries, keys, values, mask, *, causal, dropout_p):
        if mask is not None or dropout_p:
            raise ValueError("there must be no mask and no dropout")
        return form(queries, keys, values, causal=causal)

    twin = MultiHeadAttention(
        WIDTH, WIDTH, module.context_length, 0.0, HEADS, attend=attend
    )
    twin.load_state_dict(module.state_dict())
    return twin


def attend_by_hand(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool
) -> Tensor:
    """Causal attention as the texts write it, with PyTorch's softmax."""
    if not causal:
        raise ValueError(f"attend_by_hand: expected causal=True, got {causal=}")
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    scores = scores.masked_fill(future(queries.shape[-2], queries.device), -torch.inf)
    return scores.softmax(dim=-1) @ values


@functools.lru_cache(maxsize=1)
def future(length: int, device: torch.device) -> Tensor:
    """True where key j comes after query i."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


class Companion(nn.Module):
    """The companion's class by its description: section 3.6.2, dropout at 0.

    The mask is a buffer of context_length × context_length ones, cut to size at each
    call; scores are masked in place, then divided by the root of the width.
    """

    def __init__(self, module: MultiHeadAttention) -> None:
        super().__init__()
        self.W_query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.W_key = nn.Linear(WIDTH, WIDTH, bias=False)
        self.W_value = nn.Linear(WIDTH, WIDTH, bias=False)
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.0)
        self.load_state_dict(module.state_dict())
        size = module.context_length
        self.register_buffer("mask", torch.ones(size, size).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        queries, keys, values = (
            layer(x).view(batch, length, HEADS, HEAD_DIM).transpose(1, 2)
            for layer in (self.W_query, self.W_key, self.W_value)
        )
        scores = queries @ keys.transpose(2, 3)
        scores.masked_fill_(self.mask.bool()[:length, :length], -torch.inf)
        weights = self.dropout(torch.softmax(scores / HEAD_DIM**0.5, dim=-1))
        context = (weights @ values).transpose(1, 2).contiguous()
        return self.out_proj(context.view(batch, length, WIDTH))


class FusedProjection(nn.Module):
    """One linear layer makes queries, keys and values; one fused call attends."""

    def __init__(self, module: MultiHeadAttention) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out_proj = nn.Linear(WIDTH, WIDTH)
        self.qkv.load_state_dict({"weight": stacked_weights(module)})
        self.out_proj.load_state_dict(module.out_proj.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            part.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        context = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.out_proj(context.transpose(1, 2).flatten(-2))


class TorchAttention(nn.Module):
    """torch.nn.MultiheadAttention in its fastest causal form.

    That is: no weights asked for, `is_causal` set, and the mask which it then demands
    but does not read kept ready as floats. It stays in training mode (its dropout is
    0), since the special path of eval mode computes all weights and is slower.
    """

    def __init__(self, module: MultiHeadAttention) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        weights = {
            "in_proj_weight": stacked_weights(module),
            "in_proj_bias": torch.zeros(3 * WIDTH),
            "out_proj.weight": module.out_proj.weight,
            "out_proj.bias": module.out_proj.bias,
        }
        self.attention.load_state_dict(weights)
        self.mask = torch.empty(0, 0)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        if self.mask.shape[0] != length or self.mask.dtype != x.dtype:
            self.mask = nn.Transformer.generate_square_subsequent_mask(
                length, device=x.device, dtype=x.dtype
            )
        options = {"attn_mask": self.mask, "is_causal": True, "need_weights": False}
        return self.attention(x, x, x, **options)[0]


def x_transformers(module: MultiHeadAttention) -> nn.Module:
    """Attention of the x-transformers package, fused; its output has no bias."""
    try:
        from x_transformers.x_transformers import Attention
    except ImportError as error:
        hint = "pip install -r benchmarks/requirements.txt"
        raise ImportError(f"{error}: {hint}") from error
    peer = Attention(WIDTH, heads=HEADS, dim_head=HEAD_DIM, causal=True, flash=True)
    peer.to_q.load_state_dict(module.W_query.state_dict())
    peer.to_k.load_state_dict(module.W_key.state_dict())
    peer.to_v.load_state_dict(module.W_value.state_dict())
    peer.to_out.load_state_dict({"weight": module.out_proj.weight})
    return peer


def stacked_weights(module: MultiHeadAttention) -> Tensor:
    """The three projections as the one matrix (3 · width, width)."""
    layers = (module.W_query, module.W_key, module.W_value)
    return torch.cat([layer.weight.detach() for layer in layers])


CONTENDERS: dict[str, Callable[[MultiHeadAttention], nn.Module]] = {
    OURS: ours,
    "torch.nn.MultiheadAttention": TorchAttention,
    "fused QKV": FusedProjection,
    "x-transformers": x_transformers,
    "FlexAttention": functools.partial(with_form, attend_flex),
    "companion's class": Companion,
    "by hand": functools.partial(with_form, attend_by_hand),
}


def reference(context_length: int) -> MultiHeadAttention:
    """Our module in float32 on the CPU, from a seed, without a bias at its output."""
    torch.manual_seed(123)
    module = MultiHeadAttention(WIDTH, WIDTH, context_length, 0.0, HEADS)
    nn.init.zeros_(module.out_proj.bias)  # x-transformers has none
    return module


# Time.


@dataclass(frozen=True)
class Cell:
    """One row of the table of times."""

    device: str
    dtype: str
    direction: str
    length: int

    def __str__(self) -> str:
        return f"{self.device} {self.dtype} {self.direction} length {self.length}"


class Step:
    """One contender's call on one input, forward alone or with its backward pass."""

    def __init__(self, module: nn.Module, x: Tensor, backward: bool) -> None:
        self.module, self.backward = module, backward
        self.x = x.clone().requires_grad_(backward)
        self.upstream = x.flip(1)

    def __call__(self) -> Tensor:
        """Run once; the gradients of the call before are dropped first."""
        if not self.backward:
            with torch.no_grad():
                return self.module(self.x)
        self.module.zero_grad(set_to_none=True)
        self.x.grad = None
        output = self.module(self.x)
        output.backward(self.upstream)
        return output.detach()

    def results(self) -> list[Tensor]:
        """The output and, after a backward pass, the gradient of the input."""
        output = self()
        return [output, self.x.grad] if self.backward else [output]


def prepare(cell: Cell) -> dict[str, Step]:
    """The calls that can run, warmed up and seen to compute the same as ours."""
    where = {"device": cell.device, "dtype": DTYPES[cell.dtype]}
    module, x = reference(cell.length), torch.randn(BATCH, cell.length, WIDTH)
    steps: dict[str, Step] = {}
    seconds: dict[str, float] = {}
    expected: list[Tensor] = []
    for name, build in CONTENDERS.items():
        try:
            peer = copy.deepcopy(build(module)).to(**where)
            step = Step(peer, x.to(**where), cell.direction != "forward")
            results = step.results()
        except CANNOT_RUN as error:
            if name == OURS:
                raise
            say(f"  {name} cannot run: {first_line(error)}")
            continue
        expected = expected or results
        compare(name, results, expected, TOLERANCE[cell.dtype])
        seconds[name] = sample(step, 1, cell.device).seconds
        if seconds[name] > TOO_SLOW * seconds[OURS]:
            say(f"  {name} is left out: {seconds[name]:.1f} s a call")
            continue
        steps[name] = step
    return steps


def compare(
    name: str, results: list[Tensor], expected: list[Tensor], tolerance: float
) -> None:
    """AssertionError unless each token's vector is that of the expected result."""
    for result, wanted in zip(results, expected, strict=True):
        distance = (result - wanted).float().norm(dim=-1)
        error = (distance / wanted.float().norm(dim=-1)).max().item()
        if not error <= tolerance:  # NaN fails too
            raise AssertionError(
                f"{name} must compute what {OURS} computes, to {tolerance:g}; "
                f"the relative error is {error:.1e}"
            )


def time_cells(
    cells: list[Cell],
    rounds: int,
    prepare: Callable[[Cell], dict[str, Step]] = prepare,
    ours: str = OURS,
    batch: int = BATCH,
) -> list[Row]:
    """Rows of the CSV, one for each contender of each cell."""
    rows = []
    for number, cell in enumerate(cells, start=1):
        start = time.perf_counter()
        timings = time_side_by_side(
            prepare(cell), rounds, cell.device, Patience(PATIENCE_SECONDS)
        )
        fastest = fastest_peer(timings, ours)
        rows += [
            {
                **vars(cell),
                "batch": batch,
                "contender": name,
                "milliseconds": round(timing.median * 1e3, 3),
                "spread": round(timing.spread * 1e3, 3),
                "ratio": round(timing.ratio(timings[fastest]), 3),
                "fastest": fastest,
                "rounds": rounds,
                "disturbed": timing.disturbed,
            }
            for name, timing in timings.items()
        ]
        ratio = timings[ours].ratio(timings[fastest])
        disturbed = sum(timing.disturbed for timing in timings.values())
        seconds = time.perf_counter() - start
        say(
            f"{progress(number, len(cells))} {cell}: "
            f"{timings[ours].median * 1e3:.1f} ms, {ratio:.2f} × {fastest}, "
            f"{disturbed} samples disturbed ({seconds:.0f} s)"
        )
    return rows


def fastest_peer(timings: dict[str, Timing], ours: str) -> str:
    """The name of the fastest contender but ours."""
    peers = {name: timing.median for name, timing in timings.items() if name != ours}
    return min(peers, key=peers.__getitem__)


# Memory.


def measure_memory(device: str, lengths: list[int]) -> list[Row]:
    """Rows of the CSV: the peak of each contender, pass and length, in float32."""
    if not tells_memory(device):
        return []
    rows = []
    for number, name in enumerate(CONTENDERS, start=1):
        start = time.perf_counter()
        peaks = in_fresh_process(memory_peaks, name, device, lengths)
        if not peaks:
            continue
        place = {"device": device, "dtype": "float32", "batch": 1, "contender": name}
        rows += [
            {**place, "direction": direction, "length": length, "peak_mib": peak}
            for (direction, length), peak in peaks.items()
        ]
        direction, length = max(peaks, key=lambda cell: cell[1])
        seconds = time.perf_counter() - start
        say(
            f"{progress(number, len(CONTENDERS))} {device} memory, {name}: {direction} "
            f"length {length}: {peaks[direction, length]:.0f} MiB ({seconds:.0f} s)"
        )
    return rows


def memory_peaks(
    name: str, device: str, lengths: list[int]
) -> dict[tuple[str, int], float]:
    """MiB by pass and length, up to the length that might not fit."""
    peaks: dict[tuple[str, int], float] = {}
    try:
        module = CONTENDERS[name](reference(max(lengths))).to(device)
    except ImportError as error:
        say(f"  {name} cannot run: {first_line(error)}")
        return peaks
    for direction in PASSES:

        def ready(length, backward=direction != "forward"):
            module.zero_grad(set_to_none=True)
            return Step(module, torch.randn(1, length, WIDTH).to(device), backward)

        what = f"{name}, {direction}"
        try:
            for length, peak in peaks_by_length(what, device, lengths, ready):
                peaks[direction, length] = peak
        except CANNOT_RUN as error:
            say(f"  {what} cannot run: {first_line(error)}")
    return peaks


# The report.


def report(rows: list[Row], machines: dict[str, str], rounds: int) -> str:
    """The tables and what follows from them, in Markdown."""
    parts = ["# MultiHeadAttention beside its peers", "Written by `make bench`."]
    for device, description in machines.items():
        times, peaks = results_of(rows, device)
        shown = times_table(times, CONTENDERS, OURS, time_and_ratio)
        parts += [f"## {device}", description, shown]
        parts.append(
            f"Milliseconds, the median of {rounds} rounds; in brackets the ratio to "
            "the fastest peer, the median of the rounds' ratios. Spread is the "
            f"interquartile range of {OURS}. Batch {BATCH}, width {WIDTH}, "
            f"{HEADS} heads. A dash is for what cannot run, or takes more than "
            f"{TOO_SLOW} × our time."
        )
        parts += [verdict(times), picture("multi_head", device, OURS)]
        if peaks:
            parts += [
                memory_table(peaks, "direction", "contender"),
                "MiB at the peak of a second call, beyond the input, the weights and "
                "what the first call left behind; the weights' gradients, "
                f"{weights_mib():.0f} MiB, are counted. Batch 1, float32. "
                "The exponent is the slope of log(memory) over log(length): 1 is "
                "linear, 2 quadratic.",
            ]
    return "\n\n".join(parts) + "\n"


def weights_mib() -> float:
    """The size of the parameters in float32, and so of their gradients."""
    return sum(weight.nbytes for weight in reference(1).parameters()) / 2**20


def time_and_ratio(row: Row) -> str:
    """What the table of times has in a cell."""
    return f"{row['milliseconds']:.1f} ({row['ratio']:.2f})"


def verdict(rows: list[Row], ours: str = OURS, goal: float = GOAL) -> str:
    """In how many cells the goal is met, and where it is not."""
    mine = [row for row in rows if row["contender"] == ours]
    missed = [row for row in mine if row["ratio"] > goal]
    words = [
        f"{ours} is within {goal} × the fastest peer in "
        f"{len(mine) - len(missed)} of {len(mine)} cells."
    ]
    for row in missed:
        place = f"{row['dtype']} {row['direction']} {row['length']}"
        words.append(f"Not in {place}: {row['ratio']:.2f} × {row['fastest']}.")
    return " ".join([*words, *disturbance(rows)])


# The command.


def main() -> None:
    options = arguments(__doc__)
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    memory_lengths = MEMORY_LENGTHS[:3] if options.quick else MEMORY_LENGTHS
    shape = (BATCH, HEADS, max(LENGTHS), HEAD_DIM)
    machines = {device: describe(device, shape) for device in options.devices}
    rows: list[Row] = []
    for device, description in machines.items():
        say(f"{device}: {description}")
        product = itertools.product(DTYPES, PASSES, lengths)
        rows += time_cells([Cell(device, *cell) for cell in product], options.rounds)
        rows += measure_memory(device, memory_lengths)
    finish("multi_head", OURS, report(rows, machines, options.rounds), rows, options)


if __name__ == "__main__":
    main()
