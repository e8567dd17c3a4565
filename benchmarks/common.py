"""What the benchmarks of attention share: command line, loops, tables and picture."""

import argparse
import csv
import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from harness import Call, Timing, free_memory, growth_exponent, machine, peak_growth
from matplotlib.figure import Figure
from torch.nn.attention import SDPBackend

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PASSES = ["forward", "forward+backward"]
PATIENCE_SECONDS = 20  # for each cell, to take disturbed samples again
CANNOT_RUN = (ImportError, RuntimeError, TypeError, ValueError)
HERE = Path(__file__).parent

Row = dict[str, Any]


# The command.


def arguments(doc: str) -> argparse.Namespace:
    """The options of the command line; a misfit ends the program with a message.

    `doc` is the script's own docstring, which becomes its help.
    """
    summary, _, rest = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer lengths and rounds, nothing written"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="only this one (default: all there)"
    )
    parser.add_argument(
        "--rounds", type=int, help="samples of each contender (default: 9, quick 3)"
    )
    parser.add_argument(
        "--label", help="a word for the files' names: amd writes them as NAME-amd.md"
    )
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 3 if options.quick else 9
    if options.rounds < 2:
        parser.error(f"--rounds expected at least 2, got {options.rounds}")
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if options.device not in (None, *there):
        parser.error(f"--device {options.device}: PyTorch sees no such device here")
    options.devices = [options.device] if options.device else there
    return options


def describe(device: str, shape: tuple[int, ...]) -> str:
    """The machine, and the kernels that the fused call picks on it for `shape`."""
    picked = ", ".join(f"{name}: {backend(device, name, shape)}" for name in DTYPES)
    return f"{machine(device)}. The fused call picks {picked}."


def backend(device: str, dtype: str, shape: tuple[int, ...]) -> str:
    """The name of the kernel behind scaled_dot_product_attention."""
    queries = torch.zeros(shape, device=device, dtype=DTYPES[dtype])
    # PyTorch has no public way to ask.
    choice = torch._fused_sdp_choice(queries, queries, queries, None, 0.0, True)
    return SDPBackend(choice).name


def finish(
    name: str, ours: str, text: str, rows: list[Row], options: argparse.Namespace
) -> None:
    """Say the report and, unless it was a quick run, write it with its numbers."""
    say(f"\n{text}")
    if options.quick:
        return
    if options.label:  # beside the results of another machine
        text = labelled(text, name, options.label)
        name = f"{name}-{options.label}"
    (HERE / f"{name}.md").write_text(text, encoding="utf-8")
    write_csv(HERE / f"{name}.csv", rows)
    for device in options.devices:
        times, _ = results_of(rows, device)
        draw_times(HERE / f"{name}-{device}.svg", times, ours)
    say(f"Written: {name}.md, .csv and .svg in benchmarks/")


def labelled(text: str, name: str, label: str) -> str:
    """The report, with the pictures that belong to it."""
    return text.replace(f"]({name}-", f"]({name}-{label}-")


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def progress(done: int, of: int) -> str:
    """A bar that fills, and the numbers."""
    full = 20 * done // of
    return f"[{'#' * full}{'.' * (20 - full)}] {done}/{of}"


def say(text: str) -> None:
    print(text, flush=True)


@cache
def explain(why: str) -> None:
    """Say it the first time."""
    say(f"  {why}")


def timed_rows(
    cell: Row,
    timings: dict[str, Timing],
    columns: Callable[[str, Timing], Row],
    digits: int = 3,
) -> list[Row]:
    """Rows of the CSV, one for each contender; `columns` gives those of its own."""
    return [
        {
            **cell,
            "contender": name,
            "milliseconds": round(timing.median * 1e3, digits),
            "spread": round(timing.spread * 1e3, digits),
            **columns(name, timing),
            "rounds": len(timing.samples),
            "disturbed": timing.disturbed,
        }
        for name, timing in timings.items()
    ]


# Memory.


def tells_memory(device: str) -> bool:
    """Whether peaks can be measured; it says so if not."""
    can = device != "cpu" or Path("/proc/self/clear_refs").exists()
    if not can:
        say("cpu memory: not measured, it needs Linux's /proc")
    return can


def peaks_by_length(
    what: str, device: str, lengths: list[int], ready: Callable[[int], Call]
) -> Iterable[tuple[int, float]]:
    """Each length and its peak in MiB, up to the length that might not fit.

    `ready` makes the call for a length. What it needs itself is not measured, nor what
    a first call leaves behind for the later ones: libraries, and kernels made to size.
    """
    ready(64)()
    last = 0
    for length in lengths:
        # Twice the length takes four times the memory at worst; others need some.
        if 4 * last > free_memory(device) / 3:
            say(f"  {what}: {length} and longer might not fit")
            break
        ready(length)()
        last = peak_growth(ready(length), device)
        yield length, round(last / 2**20, 2)


# The report.


def results_of(rows: list[Row], device: str) -> tuple[list[Row], list[Row]]:
    """The rows of one device that hold times, and those that hold peaks of memory."""
    here = [row for row in rows if row["device"] == device]
    peaks = [row for row in here if "peak_mib" in row]
    return [row for row in here if "peak_mib" not in row], peaks


def times_table(
    rows: list[Row], contenders: Iterable[str], ours: str, show: Callable[[Row], str]
) -> str:
    """A row for each cell, a column for each contender and one for our spread."""
    names = list(contenders)
    lines = []
    for cell, group in cells_of(rows, "dtype", "direction", "length"):
        by_name = {row["contender"]: row for row in group}
        shown = [show(row) if row else "–" for row in map(by_name.get, names)]
        spread = by_name[ours]["spread"] / by_name[ours]["milliseconds"]
        lines.append([*map(str, cell), *shown, f"{spread:.0%}"])
    return table(["dtype", "pass", "length", *names, "spread"], lines)


def memory_table(rows: list[Row], *keys: str) -> str:
    """A row for each cell of these `keys`, a column for each length."""
    lengths = sorted({row["length"] for row in rows})
    lines = []
    for cell, group in cells_of(rows, *keys):
        peaks = {row["length"]: row["peak_mib"] for row in group}
        shown = [f"{peaks[n]:.0f}" if n in peaks else "–" for n in lengths]
        exponent = growth_exponent(peaks) if len(peaks) > 1 else math.nan
        lines.append([*cell, *shown, f"{exponent:.2f}"])
    head = ["pass" if key == "direction" else key for key in keys]
    return table([*head, *map(str, lengths), "exponent"], lines)


def disturbance(rows: list[Row]) -> list[str]:
    """A sentence on how many samples others disturbed; none if there were none."""
    disturbed, taken = (
        sum(row[key] for row in rows) for key in ("disturbed", "rounds")
    )
    if not disturbed:
        return []
    return [f"Other processes disturbed {disturbed} of {taken} samples."]


def cells_of(rows: list[Row], *keys: str) -> list[tuple[tuple, list[Row]]]:
    """The rows grouped by the values of `keys`, in the order of their first row."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def table(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def picture(name: str, device: str, ours: str) -> str:
    """The line that shows the picture of the times in the report."""
    words = f"Times on {device} over length, as multiples of {ours}'s"
    return f"![{words}]({name}-{device}.svg)"


def draw_times(path: Path, rows: list[Row], ours: str) -> None:
    """Each contender's time as a multiple of ours over the length, cell by cell."""
    names = list(dict.fromkeys(row["contender"] for row in rows))
    panels = cells_of(rows, "dtype", "direction")
    figure = Figure(figsize=(9, 3.2 * math.ceil(len(panels) / 2)), layout="constrained")
    grid = figure.subplots(math.ceil(len(panels) / 2), 2, squeeze=False, sharey=True)
    for axes, (panel, group) in zip(grid.flat, panels, strict=False):
        base = {r["length"]: r["milliseconds"] for r in group if r["contender"] == ours}
        for number, name in enumerate(names):
            found = [row for row in group if row["contender"] == name]
            lengths = [row["length"] for row in found]
            times = [row["milliseconds"] / base[row["length"]] for row in found]
            look = {"color": f"C{number}", "marker": "os^Dv<>P"[number % 8], "ms": 4}
            axes.loglog(lengths, times, base=2, label=name, **look)
        axes.set(title=", ".join(panel), xlabel="length", ylabel=f"time ÷ {ours}'s")
        axes.set_xticks(list(base), [f"{length}" for length in base])
        axes.yaxis.set_major_formatter("{x:g}")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    with mpl.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def write_csv(path: Path, rows: list[Row]) -> None:
    """All rows, times and peaks; a column that a row has not stays empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
