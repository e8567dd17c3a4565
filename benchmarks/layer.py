"""Time Attention, with nothing in its slots, beside MultiHeadAttention.

    python benchmarks/layer.py            ten minutes; writes .md, .csv and .svg
    python benchmarks/layer.py --quick    one minute; prints, writes nothing

Both hold the same weights, and outputs and gradients must be the same numbers before
any is timed. One token is the hardest case: there is little to compute, so that each
look at a slot counts.
"""

import itertools

import torch
from common import PASSES, Row, arguments, describe, finish, picture, say, times_table
from multi_head import HEAD_DIM, HEADS, WIDTH, Cell, Step, time_cells, verdict

from attention import Attention, MultiHeadAttention

BATCH = 1
LENGTHS = [1, 64, 256, 1024]
GOAL = 1.02  # times MultiHeadAttention
OURS, PEER = "Attention", "MultiHeadAttention"
CONTENDERS = [OURS, PEER]


def prepare(cell: Cell) -> dict[str, Step]:
    """Both calls, warmed up and seen to give the same numbers."""
    torch.manual_seed(123)
    peer = MultiHeadAttention(WIDTH, WIDTH, cell.length, 0.0, HEADS)
    ours = Attention(WIDTH, WIDTH, HEADS)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(BATCH, cell.length, WIDTH).to(cell.device)
    modules = {OURS: ours.to(cell.device), PEER: peer.to(cell.device)}
    backward = cell.direction != "forward"
    steps = {name: Step(module, x, backward) for name, module in modules.items()}
    for given, wanted in zip(*(step.results() for step in steps.values()), strict=True):
        if not torch.equal(given, wanted):
            raise AssertionError(f"{OURS} must compute what {PEER} computes")
    return steps


def report(rows: list[Row], machines: dict[str, str], rounds: int) -> str:
    """The table and what follows from it, in Markdown."""
    parts = [f"# {OURS} beside {PEER}", "Written by `make bench`."]
    for device, description in machines.items():
        here = [row for row in rows if row["device"] == device]
        parts += [f"## {device}", description]
        parts.append(times_table(here, CONTENDERS, OURS, time_and_ratio))
        parts.append(
            f"Milliseconds, the median of {rounds} rounds; in brackets the ratio to "
            f"{PEER}, the median of the rounds' ratios. Spread is the interquartile "
            f"range of {OURS}. Batch {BATCH}, width {WIDTH}, {HEADS} heads."
        )
        parts += [verdict(here, OURS, GOAL), picture("layer", device, OURS)]
    return "\n\n".join(parts) + "\n"


def time_and_ratio(row: Row) -> str:
    """What the table has in a cell."""
    return f"{row['milliseconds']:.3g} ({row['ratio']:.3f})"


def main() -> None:
    options = arguments(__doc__)
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    shape = (BATCH, HEADS, max(LENGTHS), HEAD_DIM)
    machines = {device: describe(device, shape) for device in options.devices}
    rows: list[Row] = []
    for device, description in machines.items():
        say(f"{device}: {description}")
        product = itertools.product(["float32"], PASSES, lengths)
        cells = [Cell(device, *cell) for cell in product]
        rows += time_cells(cells, options.rounds, prepare, OURS, BATCH)
    finish("layer", OURS, report(rows, machines, options.rounds), rows, options)


if __name__ == "__main__":
    main()
