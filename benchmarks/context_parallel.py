"""Time attention by two ranks beside one device, and measure the memory of each rank.

    python benchmarks/context_parallel.py            writes .md, .csv and .svg
    python benchmarks/context_parallel.py --quick    two minutes; prints, writes nothing

Causal, on CPUs, one thread for each rank. Both forms and all orders are timed in one
run, in random order, with the form of one device in between on rank 0, while the other
rank waits; and with the whole text on each rank, both at once, which is what two cores
cost each other. Results are compared before any is timed. The share of the ideal is the
time of one device over as many times the time of all ranks.
"""

import itertools
import random
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from common import (
    PASSES,
    Row,
    arguments,
    disturbance,
    finish,
    memory_table,
    picture,
    progress,
    results_of,
    say,
    tells_memory,
    timed_rows,
    times_table,
)
from harness import (
    FOREIGN_CORES,
    PAUSE_SECONDS,
    SAMPLE_SECONDS,
    Sample,
    Timing,
    foreign_seconds,
    in_fresh_process,
    machine,
    peak_growth,
)
from torch import Tensor

from attention import flash_attend, ring_attend, run_ranks, shard, ulysses_attend
from attention.tools.ranks import from_all

RANKS, HEADS, WIDTH = 2, 12, 64
LENGTHS = [2048, 4096, 8192]
RETAKES = 10  # of disturbed samples, for each cell
TOLERANCE = 1e-5  # relative, of context and gradients
SECONDS = 3600  # after which a cell is given up
ONE, APART, OURS = "one device", "each by itself", "ring, zigzag"
CONTENDERS = {
    ONE: (flash_attend, None),
    APART: (flash_attend, None),  # on all ranks at once, each the whole text
    "ring, contiguous": (ring_attend, "contiguous"),
    "ring, striped": (ring_attend, "striped"),
    OURS: (ring_attend, "zigzag"),
    "Ulysses": (ulysses_attend, "zigzag"),
}
GOALS = {  # share of the ideal at the longest text
    (OURS, "forward"): 0.93,
    (OURS, "forward+backward"): 0.9,
    ("Ulysses", "forward"): 0.9,
    ("Ulysses", "forward+backward"): 0.9,
}
BOUND = RANKS / (2 * RANKS - 1)  # of the contiguous order


class Step:
    """A contender's call on this rank's part of a text, or on all of it."""

    def __init__(self, name: str, length: int, backward: bool):
        torch.manual_seed(0)
        self.form, self.order = CONTENDERS[name]
        *text, do = torch.randn(4, 1, HEADS, length, WIDTH)
        self.inputs = [self.cut(tensor).requires_grad_(backward) for tensor in text]
        self.do, self.backward = self.cut(do), backward

    def cut(self, tensor: Tensor) -> Tensor:
        return tensor if self.order is None else shard(tensor, order=self.order)

    def __call__(self) -> list[Tensor]:
        """The context and, after a backward pass, the three gradients."""
        options = {} if self.order is None else {"order": self.order}
        context = self.form(*self.inputs, causal=True, **options)
        if not self.backward:
            return [context]
        gradients = torch.autograd.grad(context, self.inputs, self.do)
        return [context.detach(), *gradients]


# Time: what follows runs on each rank.


def time_cell(direction: str, length: int, rounds: int) -> dict[str, Timing]:
    """Timings by contender, the same on all ranks."""
    backward = direction != "forward"
    steps = {name: Step(name, length, backward) for name in CONTENDERS}
    compare(steps)
    repeats = {name: repeats_of(name, step) for name, step in steps.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in steps}
    chance, left = random.Random(0), [RETAKES]  # alike on all ranks
    for _ in range(rounds):
        for name in chance.sample(list(steps), len(steps)):
            once = partial(sample, name, steps[name], repeats[name])
            samples[name].append(least_disturbed(once, left))
    return {name: Timing(taken) for name, taken in samples.items()}


def compare(steps: dict[str, Step]) -> None:
    """AssertionError unless each gives this rank's part of what one device gives."""
    wanted = steps[ONE]()
    for name, step in steps.items():
        for found, whole in zip(step(), wanted, strict=True):
            distance = (found - step.cut(whole)).norm() / whole.norm()
            if not distance <= TOLERANCE:  # nan fails too
                raise AssertionError(f"{name} must give what {ONE} gives: {distance}")


def repeats_of(name: str, step: Step) -> int:
    """How many calls make a sample that can be judged."""
    return max(1, round(SAMPLE_SECONDS / sample(name, step, 1).seconds))


def sample(name: str, step: Step, repeats: int) -> Sample:
    """The mean of some calls, from one barrier to the next, as rank 0 has seen it.

    What others used is what all processes used, less what all ranks did.
    """
    dist.barrier()
    before, own, start = foreign_seconds(), time.process_time(), time.perf_counter()
    for _ in range(repeats if name != ONE or dist.get_rank() == 0 else 0):
        step()
    dist.barrier()
    wall = time.perf_counter() - start
    foreign, own = foreign_seconds() - before, time.process_time() - own
    seen = torch.tensor([wall, foreign, own], dtype=torch.float64)
    first, *others = from_all(seen, 0, [3] * dist.get_world_size(), None)
    wall, foreign, _ = first.tolist()
    foreign -= sum(other[2].item() for other in others)
    return Sample(wall / repeats, max(0.0, foreign) / wall)


def least_disturbed(once: Callable[[], Sample], left: list[int]) -> Sample:
    """The first undisturbed sample, or else the best, while retakes are left.

    They are counted, and not timed as in `harness`: all ranks must decide alike.
    """
    best = once()
    while best.foreign > FOREIGN_CORES and left[0] > 0:
        left[0] -= 1
        time.sleep(PAUSE_SECONDS)
        best = min(best, once(), key=lambda taken: taken.foreign)
    return best


# Memory.


def measure_memory(lengths: list[int]) -> list[Row]:
    """Rows of the CSV: the peak of each contender, pass, rank and length."""
    if not tells_memory("cpu"):
        return []
    rows = []
    for name in [name for name in CONTENDERS if name != APART]:
        ranks = 1 if name == ONE else RANKS
        say(f"memory: {name}")
        patient = partial(run_ranks, seconds=SECONDS)
        found = in_fresh_process(patient, memory_peaks, ranks, name, lengths)
        for rank, peaks in enumerate(found):
            place = {**PLACE, "contender": name, "rank": f"rank {rank}"}
            rows += [
                {**place, "direction": direction, "length": length, "peak_mib": peak}
                for (direction, length), peak in peaks.items()
            ]
    return rows


def memory_peaks(name: str, lengths: list[int]) -> dict[tuple[str, int], float]:
    """MiB on this rank, its inputs included, by pass and length."""
    peaks = {}
    for direction, length in itertools.product(PASSES, lengths):
        step = Step(name, length, direction != "forward")
        step()
        dist.barrier()
        given = step.inputs + [step.do] * step.backward
        held = sum(tensor.nbytes for tensor in given) + peak_growth(step, "cpu")
        peaks[direction, length] = round(held / 2**20, 2)
    return peaks


# The report.

PLACE = {"device": "cpu", "dtype": "float32"}


def rows_of(timings: dict[str, Timing], direction: str, length: int) -> list[Row]:
    """Rows of the CSV, one for each contender."""

    def columns(name: str, timing: Timing) -> Row:
        share = 1 / (shared_by(name) * timing.ratio(timings[ONE]))
        return {"share": round(share, 3)}

    cell = {**PLACE, "direction": direction, "length": length}
    return timed_rows(cell, timings, columns)


def shared_by(name: str) -> int:
    """How many ranks share one text."""
    return 1 if name in (ONE, APART) else RANKS


def report(rows: list[Row], machines: dict[str, str], rounds: int) -> str:
    """The tables and what follows from them, in Markdown."""
    times, peaks = results_of(rows, "cpu")
    parts = [
        f"# Attention by {RANKS} ranks beside one device",
        "Written by `benchmarks/context_parallel.py`.",
        "## cpu",
        f"{machines['cpu']}.",
        times_table(times, CONTENDERS, OURS, time_and_share),
        f"Milliseconds, the median of {rounds} rounds; in brackets the share of the "
        f"ideal: the time of one device with one thread over {RANKS} times the time of "
        f"{RANKS} ranks with one thread each, the median of the rounds' ratios. In "
        f"*{APART}* all ranks attend to the whole text at once and exchange nothing: "
        "its share is what the cores of this machine leave each other. Spread is the "
        f"interquartile range of {OURS}. Causal, batch 1, {HEADS} heads of width "
        f"{WIDTH}.",
        verdict(times),
        picture("context_parallel", "cpu", OURS),
    ]
    if peaks:
        parts += [
            memory_table(peaks, "direction", "contender", "rank"),
            "MiB at the peak of a second call: queries, keys and values, the context, "
            "the gradients, and what the call needs in between. What the first call "
            "left behind is not counted. The exponent is the slope of log(memory) over "
            "log(length).",
        ]
    return "\n\n".join(parts) + "\n"


def time_and_share(row: Row) -> str:
    """What the table of times has in a cell."""
    return f"{row['milliseconds']:.0f} ({row['share']:.2f})"


def verdict(rows: list[Row]) -> str:
    """Which goals are met at the longest text, and how disturbed the run was."""
    longest = max(row["length"] for row in rows)
    share = {
        (row["contender"], row["direction"]): row["share"]
        for row in rows
        if row["length"] == longest
    }
    words = [f"At {longest} tokens:"]
    for (name, direction), goal in GOALS.items():
        met = "meets" if share[name, direction] >= goal else "misses"
        got = f"{share[name, direction]:.2f}, the goal is {goal:.2f}"
        apart = share[name, direction] / share[APART, direction]
        words.append(
            f"{name}, {direction}, {met} its goal: {got}; "
            f"it has {apart:.2f} of the speed of {APART}."
        )
    contiguous = share["ring, contiguous", "forward"]
    words.append(
        f"The contiguous order has {contiguous:.2f}; its bound is {BOUND:.2f}."
    )
    return " ".join([*words, *disturbance(rows)])


# The command.


def main() -> None:
    options = arguments(__doc__)
    options.devices = ["cpu"]  # gloo's: two ranks want two GPUs
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    torch.set_num_threads(1)
    machines = {"cpu": machine("cpu")}
    say(f"cpu: {machines['cpu']}")
    rows: list[Row] = []
    cells = list(itertools.product(PASSES, lengths))
    for number, cell in enumerate(cells, start=1):
        given = *cell, options.rounds
        timings, *_ = run_ranks(time_cell, RANKS, *given, seconds=SECONDS)
        found = rows_of(timings, *cell)
        rows += found
        shares = [f"{row['contender']} {row['share']:.2f}" for row in found[1:]]
        told = f"{' '.join(map(str, cell))}: {', '.join(shares)} of the ideal speed"
        say(f"{progress(number, len(cells))} {told}")
    rows += measure_memory(lengths)
    text = report(rows, machines, options.rounds)
    finish("context_parallel", OURS, text, rows, options)


if __name__ == "__main__":
    main()
