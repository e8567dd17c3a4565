"""Time flash_attend beside the fused call, its backends, FlexAttention and by hand.

    python benchmarks/flash.py            a quarter of an hour; writes flash.md, .csv
    python benchmarks/flash.py --quick    two minutes; prints, writes nothing

Causal attention alone, without a module around it. Results are compared before any is
timed. A speed above 1 means faster than the fused call.
"""

import itertools
import time
from collections.abc import Callable
from functools import cache, partial

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
    explain,
    finish,
    first_line,
    memory_table,
    peaks_by_length,
    picture,
    progress,
    results_of,
    say,
    tells_memory,
    timed_rows,
    times_table,
)
from harness import Patience, Timing, in_fresh_process, time_side_by_side
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attention import attend, attention_weights, flash_attend

HEADS, HEAD_DIM = 12, 64
LENGTHS = [1024, 2048, 4096, 8192]
LONGEST_BY_HAND = 4096
TOLERANCE = {"float32": 1e-5, "bfloat16": 3e-2}  # relative, for each token's vector
GOALS = {  # speed as a multiple of the fused call's
    ("float32", "forward"): 0.95,
    ("bfloat16", "forward"): 1.25,
    ("float32", "forward+backward"): 0.9,
    ("bfloat16", "forward+backward"): 0.9,
}
OURS, FUSED, BY_HAND = "flash_attend", "fused call", "by hand"
FLEX = "FlexAttention, compiled"


def attend_by_hand(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool
) -> Tensor:
    """The oracle: the whole table of weights."""
    return attention_weights(queries, keys, causal=causal) @ values


def attend_by(
    backend: SDPBackend, queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool
) -> Tensor:
    """The fused call with one backend of CUDA alone; RuntimeError elsewhere."""
    if not queries.is_cuda:
        raise RuntimeError(f"a backend for CUDA; this is {queries.device}")
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)


def attend_flex(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool
) -> Tensor:
    """FlexAttention, compiled, with its mask made once for each length."""
    if not causal:
        raise ValueError(f"causal: expected True for attend_flex, got {causal}")
    blocks = past(queries.shape[-2], queries.device.type)
    return compiled_flex()(queries, keys, values, block_mask=blocks)


@cache
def compiled_flex() -> Callable[..., Tensor]:
    """One for all calls: every length is compiled by itself, at its first call."""
    return torch.compile(flex_attention, dynamic=False)


@cache
def past(length: int, device: str):
    """Where a query may see a key, as FlexAttention wants to know it."""
    return create_block_mask(
        lambda b, h, i, j: i >= j, None, None, length, length, device=device
    )


BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CONTENDERS: dict[str, Callable[..., Tensor]] = {
    OURS: flash_attend,
    FUSED: attend,
    **{name: partial(attend_by, backend) for name, backend in BACKENDS.items()},
    FLEX: attend_flex,
    BY_HAND: attend_by_hand,
}


class Step:
    """One contender's call on one input, forward alone or with its backward pass."""

    def __init__(self, form: Callable, length: int, device: str, backward: bool):
        torch.manual_seed(123)
        shape = (4, 1, HEADS, length, HEAD_DIM)
        *self.inputs, self.do = torch.randn(shape).to(device)
        self.form, self.backward = form, backward

    def to(self, dtype: torch.dtype) -> "Step":
        """The same with inputs that are rounded to `dtype`."""
        self.inputs = [t.to(dtype).requires_grad_(self.backward) for t in self.inputs]
        self.do = self.do.to(dtype)
        return self

    def __call__(self) -> list[Tensor]:
        """The context and, after a backward pass, the three gradients."""
        if not self.backward:
            with torch.no_grad():
                return [self.form(*self.inputs, causal=True)]
        context = self.form(*self.inputs, causal=True)
        gradients = torch.autograd.grad(context, self.inputs, self.do)
        return [context.detach(), *gradients]


# Time and errors.


def time_cell(
    device: str, dtype: str, direction: str, length: int, rounds: int
) -> list[Row]:
    """Rows of the CSV, one for each contender that is not too long a wait."""
    backward = direction != "forward"
    steps = {
        name: Step(form, length, device, backward).to(DTYPES[dtype])
        for name, form in CONTENDERS.items()
        if name != BY_HAND or length <= LONGEST_BY_HAND
    }
    # The exact result is that of the rounded inputs.
    exact = Step(attend, length, device, backward).to(DTYPES[dtype]).to(torch.float64)
    expected = exact()
    errors = {}
    for name, step in steps.items():
        try:
            results = step()
        except CANNOT_RUN as error:
            if name in (OURS, FUSED):
                raise
            explain(f"{name} cannot run {direction} on {device}: {first_line(error)}")
            continue
        errors[name] = mean_error(name, results, expected, dtype)
    steps = {name: steps[name] for name in errors}
    timings = time_side_by_side(steps, rounds, device, Patience(PATIENCE_SECONDS))
    cell = {"device": device, "dtype": dtype, "direction": direction, "length": length}

    def columns(name: str, timing: Timing) -> Row:
        return {
            "speed": round(1 / timing.ratio(timings[FUSED]), 3),
            "error": errors[name],
            "error_ratio": round(errors[name] / errors[FUSED], 3),
        }

    return timed_rows(cell, timings, columns)


def mean_error(
    name: str, results: list[Tensor], expected: list[Tensor], dtype: str
) -> float:
    """The mean over all numbers of the context; AssertionError if any result is off."""
    for result, wanted in zip(results, expected, strict=True):
        distance = (result - wanted).norm(dim=-1).mean() / wanted.norm(dim=-1).mean()
        if not distance <= TOLERANCE[dtype]:  # NaN fails too
            raise AssertionError(
                f"{name} must compute attention, to {TOLERANCE[dtype]:g}; "
                f"the relative error is {distance:.1e}"
            )
    return (results[0] - expected[0]).abs().mean().item()


# Memory.


def measure_memory(device: str, lengths: list[int]) -> list[Row]:
    """Rows of the CSV: the peak of each contender, dtype, pass and length."""
    if not tells_memory(device):
        return []
    rows = []
    for name, dtype in itertools.product(CONTENDERS, DTYPES):
        peaks = in_fresh_process(memory_peaks, name, dtype, device, lengths)
        place = {"device": device, "dtype": dtype, "contender": name}
        rows += [
            {**place, "direction": direction, "length": length, "peak_mib": peak}
            for (direction, length), peak in peaks.items()
        ]
    return rows


def memory_peaks(
    name: str, dtype: str, device: str, lengths: list[int]
) -> dict[tuple[str, int], float]:
    """MiB by pass and length, up to the length that might not fit."""
    peaks: dict[tuple[str, int], float] = {}
    for direction in PASSES:

        def ready(length, backward=direction != "forward"):
            return Step(CONTENDERS[name], length, device, backward).to(DTYPES[dtype])

        what = f"{name}, {direction}"
        try:
            for length, peak in peaks_by_length(what, device, lengths, ready):
                peaks[direction, length] = peak
        except CANNOT_RUN:  # explained when it was to be timed
            continue
    return peaks


# The report.


def report(rows: list[Row], machines: dict[str, str], rounds: int) -> str:
    """The tables and what follows from them, in Markdown."""
    parts = [
        "# flash_attend beside the fused call",
        "Written by `benchmarks/flash.py`.",
    ]
    for device, description in machines.items():
        times, peaks = results_of(rows, device)
        parts += [
            f"## {device}",
            description,
            times_table(times, CONTENDERS, OURS, time_and_ratios),
            f"Milliseconds, the median of {rounds} rounds; the speed as a multiple of "
            "the fused call's, the median of the rounds' ratios; the mean error of the "
            "context against float64, as a multiple of the fused call's. Spread is the "
            f"interquartile range of {OURS}. Causal, batch 1, {HEADS} heads of width "
            f"{HEAD_DIM}.",
            verdict(times),
            picture("flash", device, OURS),
        ]
        if peaks:
            parts += [
                memory_table(peaks, "dtype", "direction", "contender"),
                "MiB at the peak of a second call, beyond the input and what the first "
                "left behind; the context and the gradients are counted. The exponent "
                "is the slope of log(memory) over log(length): 1 is linear, 2 "
                "quadratic.",
            ]
    return "\n\n".join(parts) + "\n"


def time_and_ratios(row: Row) -> str:
    """What the table of times has in a cell."""
    ratios = f"{row['speed']:.2f} × speed, {row['error_ratio']:.2f} × error"
    return f"{row['milliseconds']:.1f} ({ratios})"


def verdict(rows: list[Row]) -> str:
    """Where the goals are met, where not, and how disturbed the run was."""
    mine = [row for row in rows if row["contender"] == OURS]
    missed = [
        row for row in mine if row["speed"] < GOALS[row["dtype"], row["direction"]]
    ]
    words = [
        f"{OURS} meets the goal for its speed in {len(mine) - len(missed)} of "
        f"{len(mine)} cells."
    ]
    for row in missed:
        goal = GOALS[row["dtype"], row["direction"]]
        place = f"{row['dtype']} {row['direction']} {row['length']}"
        words.append(f"Not in {place}: {row['speed']:.2f} ×, the goal is {goal:.2f} ×.")
    return " ".join([*words, *disturbance(rows)])


# The command.


def main() -> None:
    options = arguments(__doc__)
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    shape = (1, HEADS, max(lengths), HEAD_DIM)
    machines = {device: describe(device, shape) for device in options.devices}
    rows: list[Row] = []
    for device, description in machines.items():
        say(f"{device}: {description}")
        cells = list(itertools.product(DTYPES, PASSES, lengths))
        for number, cell in enumerate(cells, start=1):
            start = time.perf_counter()
            found = time_cell(device, *cell, options.rounds)
            rows += found
            ours = next(row for row in found if row["contender"] == OURS)
            say(
                f"{progress(number, len(cells))} {device} {' '.join(map(str, cell))}: "
                f"{ours['milliseconds']:.1f} ms, {ours['speed']:.2f} × the fused "
                f"call's speed, {ours['error_ratio']:.2f} × its error "
                f"({time.perf_counter() - start:.0f} s)"
            )
        rows += measure_memory(device, lengths)
    finish("flash", OURS, report(rows, machines, options.rounds), rows, options)


if __name__ == "__main__":
    main()
