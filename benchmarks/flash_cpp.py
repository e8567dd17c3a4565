"""Time cpp_attend beside the fused call and flash_attend; masks; one query.

    python benchmarks/flash_cpp.py            an hour; writes flash_cpp.md, .csv, .svg
    python benchmarks/flash_cpp.py --quick    three minutes; prints, writes nothing

On the CPU, without a module around it. Results are compared before any is timed. A
speed above 1 means faster than PyTorch's call.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial

import torch
from common import (
    DTYPES,
    PASSES,
    PATIENCE_SECONDS,
    Row,
    arguments,
    cells_of,
    describe,
    disturbance,
    finish,
    picture,
    progress,
    results_of,
    say,
    table,
    tells_memory,
    timed_rows,
)
from harness import Patience, Timing, in_fresh_process, peak_growth, time_side_by_side
from torch import Tensor
from torch.nn import functional as F

from attention import cpp_attend, document_mask, flash_attend

OURS, FUSED, TILES, COPY = "cpp_attend", "fused call", "flash_attend", "a copy"
CONTENDERS = [OURS, FUSED, TILES]
HEADS, LONG = 12, 8192  # from LONG on, 4 heads and one sequence
LENGTHS = [1024, 4096, 16384]
GOALS = {  # speed as a multiple of the fused call's
    ("float32", "forward"): 1.3,
    ("bfloat16", "forward"): 2.0,
    ("float32", "forward+backward"): 1.15,
    ("bfloat16", "forward+backward"): 1.15,
}
GOALS_AMX = GOALS | {("bfloat16", "forward"): 1.25}  # the fused call uses it as well
MASKED, SHARE, ERROR, MEMORY = 5.0, 0.9, 1.1, 2.0


def fused(*three: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """PyTorch's call itself."""
    grouped = three[0].shape[1] != three[1].shape[1]
    options = {"is_causal": causal, "attn_mask": mask, "enable_gqa": grouped}
    return F.scaled_dot_product_attention(*three, **options)


FORMS: dict[str, Callable[..., Tensor]] = {
    OURS: cpp_attend,
    FUSED: fused,
    TILES: flash_attend,
}


def draw(dtype: str, batch: int, heads: int, length: int, width: int) -> list[Tensor]:
    """Queries, keys, values, and the gradient of the context."""
    torch.manual_seed(123)
    four = torch.randn(4, batch, heads, length, width).to(DTYPES[dtype])
    return [tensor.clone() for tensor in four]


def step(form: Callable, inputs: list[Tensor], direction: str, causal: bool):
    """A call that computes the context, or it and the gradients."""
    *three, do = inputs
    if direction == "forward":
        return partial(torch.no_grad()(form), *three, causal=causal)
    three = [tensor.requires_grad_() for tensor in three]

    def both():
        context = form(*three, causal=causal)
        return torch.autograd.grad(context, three, do)

    return both


def error(form: Callable, inputs: list[Tensor], causal: bool) -> float:
    """The mean error of the context of one head, against float64."""
    three = [tensor[:1, :1, :4096].detach() for tensor in inputs[:3]]
    exact = fused(*(tensor.double() for tensor in three), causal=causal)
    return (form(*three, causal=causal) - exact).abs().mean().item()


def rows_for(place: Row, calls: dict[str, Callable], base: str, rounds: int):
    timings = time_side_by_side(calls, rounds, "cpu", Patience(PATIENCE_SECONDS))

    def columns(_: str, timing: Timing) -> Row:
        return {"speed": round(1 / timing.ratio(timings[base]), 3)}

    return timed_rows(place, timings, columns)


def time_cell(dtype, direction, length, width, causal, batch, rounds) -> list[Row]:
    """The contenders on one kind of input."""
    inputs = draw(dtype, batch, 4 if length >= LONG else HEADS, length, width)
    errors = {name: error(form, inputs, causal) for name, form in FORMS.items()}
    calls = {n: step(form, inputs, direction, causal) for n, form in FORMS.items()}
    kind = f"width {width}, {'causal' if causal else 'full'}, batch {batch}"
    place = {"device": "cpu", "dtype": dtype, "direction": direction, "length": length}
    rows = rows_for(place | {"kind": kind}, calls, FUSED, rounds)
    for row in rows:
        row["error_ratio"] = round(errors[row["contender"]] / errors[FUSED], 3)
    return rows


@torch.no_grad()
def time_masks(dtype: str, length: int, rounds: int) -> list[Row]:
    """A window of 256, and sixteen documents: what can be left out."""
    inputs = draw(dtype, 1, HEADS, length, 64)[:3]
    ids = torch.arange(length) * 16 // length
    documents = document_mask(ids[None])[0]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    strip = (distance >= 0) & (distance < 256)
    rows = []
    for kind, mask, options in (
        ("window 256", strip, {"causal": True, "window": 256}),
        ("16 documents", documents, {"mask": documents}),
    ):
        calls = {
            OURS: partial(cpp_attend, *inputs, **options),
            FUSED: partial(fused, *inputs, mask=mask),
        }
        distant = (calls[OURS]() - calls[FUSED]()).abs().max()
        if not distant <= 0.05:  # nan fails too
            raise AssertionError(f"{kind}: the two must agree, {distant:.1e} apart")
        place = {"device": "cpu", "dtype": dtype, "direction": kind, "length": length}
        rows += rows_for(place | {"kind": "masks"}, calls, FUSED, rounds)
    return rows


@torch.no_grad()
def time_query(dtype: str, heads: int, groups: int, keys: int, rounds: int):
    """One query, many keys, beside a copy of as many bytes as are read."""
    torch.manual_seed(123)
    query = torch.randn(1, heads, 1, 64).to(DTYPES[dtype])
    both = torch.randn(2, 1, groups, keys, 64).to(DTYPES[dtype])
    half = both.flatten().view(torch.float32).clone()[: both.nbytes // 8]
    target = torch.empty_like(half)  # a copy of half reads and writes as much
    calls = {
        OURS: partial(cpp_attend, query, *both),
        FUSED: partial(fused, query, *both),
        COPY: partial(target.copy_, half),
    }
    kind = f"one query, {heads} heads, {groups} of keys"
    place = {"device": "cpu", "dtype": dtype, "direction": kind, "length": keys}
    return rows_for(place | {"kind": "one query"}, calls, COPY, rounds)


def memory_peak(name: str, dtype: str, direction: str, length: int) -> int:
    call = step(FORMS[name], draw(dtype, 1, HEADS, length, 64), direction, True)
    call()
    return peak_growth(call, "cpu")


def measure_memory(lengths: list[int]) -> list[Row]:
    if not tells_memory("cpu"):
        return []
    cells = itertools.product((OURS, FUSED), DTYPES, PASSES, lengths)
    return [
        {"device": "cpu", "dtype": dtype, "direction": direction, "length": length}
        | {"contender": name, "peak_mib": round(peak / 2**20, 2)}
        for name, dtype, direction, length in cells
        if (peak := in_fresh_process(memory_peak, name, dtype, direction, length)) + 1
    ]


# The report.


def report(rows: list[Row], machines: dict[str, str], rounds: int) -> str:
    """The tables and what follows from them, in Markdown."""
    times, peaks = results_of(rows, "cpu")
    parts = [
        "# cpp_attend beside the fused call",
        "Written by `benchmarks/flash_cpp.py`.",
    ]
    parts += [machines["cpu"]]
    lines = []
    for cell, group in cells_of(times, "dtype", "direction", "length", "kind"):
        by_name = {row["contender"]: row for row in group}
        names = (OURS, FUSED, TILES, COPY)
        shown = [show(by_name[name]) if name in by_name else "–" for name in names]
        lines.append([*map(str, cell), *shown])
    head = ["dtype", "pass", "length", "kind", OURS, FUSED, TILES, COPY]
    parts += [
        table(head, lines),
        f"Milliseconds, the median of {rounds} rounds; the speed as a multiple of the "
        "fused call's, or for one query of a copy that moves as many bytes; the mean "
        f"error of the context, as a multiple of the fused call's. {HEADS} heads, or 4 "
        f"from {LONG} tokens on.",
        " ".join([*verdict(times, machines["cpu"]), *disturbance(times)]),
        picture("flash_cpp", "cpu", OURS),
    ]
    if peaks:
        lines = []
        for cell, group in cells_of(peaks, "dtype", "direction", "length"):
            by_name = {row["contender"]: row["peak_mib"] for row in group}
            ratio = by_name[OURS] / max(by_name[FUSED], 0.01)
            shown = (f"{by_name[OURS]:.0f}", f"{by_name[FUSED]:.0f}", f"{ratio:.2f}")
            lines.append([*map(str, cell), *shown])
        head = ["dtype", "pass", "length", OURS, FUSED, "ratio"]
        parts += [table(head, lines), f"MiB at the peak; the goal is {MEMORY:.0f} ×."]
    return "\n\n".join(parts) + "\n"


def show(row: Row) -> str:
    error = f", {row['error_ratio']:.2f} × error" if "error_ratio" in row else ""
    return f"{row['milliseconds']:.1f} ({row['speed']:.2f} × speed{error})"


def verdict(times: list[Row], machine: str) -> list[str]:
    """In how many cells each goal is met, and the least and middle speed."""
    words = []
    goals = GOALS_AMX if "amx" in machine else GOALS
    mine = [row for row in times if row["contender"] == OURS]
    kinds: dict[tuple, list[Row]] = {}
    for row in mine:
        plain = row["kind"] not in ("masks", "one query")
        key = (row["dtype"], row["direction"]) if plain else (row["dtype"], row["kind"])
        kinds.setdefault(key, []).append(row)
    for key, group in kinds.items():
        goal = goals.get(key, MASKED if key[1] == "masks" else SHARE)
        speeds = sorted(row["speed"] for row in group)
        met = sum(speed >= goal for speed in speeds)
        words.append(
            f"{' '.join(key)}: the goal of {goal:.2f} × is met in {met} of "
            f"{len(speeds)} cells; least {speeds[0]:.2f}, middle "
            f"{speeds[len(speeds) // 2]:.2f}."
        )
    ratios = [row["error_ratio"] for row in mine if "error_ratio" in row]
    if ratios:
        most = max(ratios)
        words.append(f"The largest error is {most:.2f} × the fused call's ({ERROR}).")
    return words


# The command.


def main() -> None:
    options = arguments(__doc__)
    quick = options.quick
    lengths = LENGTHS[:1] if quick else LENGTHS
    cells = [
        cell
        for cell in itertools.product(
            DTYPES, PASSES, lengths, (64, 128), (True, False), (1, 4)
        )
        if not (cell[-1] == 4 and (cell[2] >= LONG or quick))
    ]
    say(described := describe("cpu", (1, HEADS, max(lengths), 64)))
    rows: list[Row] = []
    for number, cell in enumerate(cells, start=1):
        start = time.perf_counter()
        found = time_cell(*cell, options.rounds)
        rows += found
        ours = found[0]
        say(
            f"{progress(number, len(cells))} {' '.join(map(str, cell[:3]))} "
            f"{ours['kind']}: {ours['milliseconds']:.1f} ms, {ours['speed']:.2f} × the "
            f"fused call's speed, {ours['error_ratio']:.2f} × its error "
            f"({time.perf_counter() - start:.0f} s)"
        )
    for dtype in DTYPES:
        rows += time_masks(dtype, 2048 if quick else 8192, options.rounds)
        for heads, groups in ((12, 12), (32, 8), (32, 4)):
            rows += time_query(dtype, heads, groups, 32768, options.rounds)
    rows += measure_memory(lengths)
    finish(
        "flash_cpp",
        OURS,
        report(rows, {"cpu": described}, options.rounds),
        rows,
        options,
    )


if __name__ == "__main__":
    main()
