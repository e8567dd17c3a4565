"""From a shell

A program that torchrun starts on each machine: it measures attention over all of
them, and prints each rank's tokens, memory and time.

Written by `book/scale/demo.ipynb`: read and change it there.
"""

import argparse
import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from attention.scale.context_parallel import (
    heads_of,
    order_ranges,
    ring_attend,
    ring_work,
    ulysses_attend,
    unshard,
)
from attention.speed.flash import flash_attend
from attention.tools.checks import check_sizes
from attention.tools.ranks import agree, from_all, place_in
from attention.tools.workbench import expected

__all__ = ["main"]


_FORMS = {"ring": ring_attend, "ulysses": ulysses_attend}


class _Parser(argparse.ArgumentParser):
    """A parser that prints its help on one rank, and raises its errors."""

    def error(self, message: str) -> None:
        raise ValueError(message)

    def print_help(self, file=None) -> None:
        if place_in(None)[0] == 0:
            super().print_help(file)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """What the command line asks for; ValueError if it cannot be read."""
    parser = _Parser(
        prog="torchrun … -m attention.scale.demo",
        description="Attend to one text with all ranks, and print what each needed.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--form", choices=[*_FORMS], default="ring")
    parser.add_argument("--order", default="zigzag", help="contiguous, striped, zigzag")
    for name, default, what in (
        ("length", 4096, "tokens of the whole text"),
        ("heads", 8, "heads of queries"),
        ("key-heads", None, "heads of keys and of values (default: as many)"),
        ("width", 64, "of each head"),
        ("rounds", 3, "how often to time it; the median is reported"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--backward", action="store_true", help="gradients, too")
    parser.add_argument("--check", action="store_true", help="compare with one device")
    options = parser.parse_args(arguments)
    if options.key_heads is None:
        options.key_heads = options.heads
    return options


def _join() -> None:
    """Join the group that torchrun prepared; a single process has none."""
    if not dist.is_torchelastic_launched():
        return
    alone = os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]
    if alone and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # 127.0.0.1
    dist.init_process_group("gloo")
    dist.barrier()  # or one could end while others are still joining


def _place(device: str) -> tuple[torch.device, dist.ProcessGroup | None]:
    """This rank's device, and the group over which its tensors travel."""
    if device == "cpu":
        return torch.device("cpu"), None
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(own)
    return own, dist.new_group(backend="nccl") if dist.is_initialized() else None


def _checked(arguments: list[str] | None, ranks: int) -> argparse.Namespace:
    """The options; ValueError if these ranks, or this machine, cannot do it."""
    asked = _options(arguments)
    sizes = ("length", "heads", "key_heads", "width", "rounds")
    check_sizes(**{name: getattr(asked, name) for name in sizes})
    if asked.heads % asked.key_heads:
        must = f"a number that divides the {asked.heads} heads"
        raise expected("key_heads", must, asked.key_heads)
    order_ranges(asked.length, ranks, asked.order)
    if asked.form == "ulysses":
        heads_of(0, ranks, asked.heads, asked.key_heads)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if asked.device == "cuda" and (there := torch.cuda.device_count()) < here:
        must = f"{here}, one for each rank of this machine"
        raise expected("CUDA devices", must, there)
    return asked


def _part(asked: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """This rank's queries, keys and values, and the gradient of its context."""
    rank, ranks = place_in(None)
    tokens = sum(map(len, order_ranges(asked.length, ranks, asked.order)[rank]))
    draw, groups = torch.Generator().manual_seed(rank), asked.key_heads
    return [
        torch.randn(1, heads, tokens, asked.width, generator=draw).to(device)
        for heads in (asked.heads, groups, groups, asked.heads)
    ]


def _results(form: Callable, tensors: list[Tensor], backward: bool) -> list[Tensor]:
    """The context, and what `backward` asks for: gradients of the first three."""
    *three, do = tensors
    three = [tensor.detach().requires_grad_(backward) for tensor in three]
    context = form(*three, causal=True)
    gradients = torch.autograd.grad(context, three, do) if backward else ()
    return [context.detach(), *gradients]


def _bar(rounds: int) -> Callable[[int], None]:
    """A function that shows how many rounds are over, if rank 0 has a terminal."""
    shown = place_in(None)[0] == 0 and sys.stderr.isatty()

    def show(done: int) -> None:
        full, end = 20 * done // rounds, "\n" if done == rounds else ""
        line = f"\r[{'#' * full}{'.' * (20 - full)}] {done}/{rounds}{end}"
        print(line, end="", file=sys.stderr, flush=True)

    return show if shown else lambda done: None


def _peak(call: Callable, device: torch.device) -> float:
    """The most MiB that the call holds beyond its input; nan if that is not counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
        held = _resident("VmRSS")
        call()
        return max(_resident("VmHWM") - held, 0) / 2**10
    except OSError:  # not Linux, or not allowed
        call()
        return float("nan")


def _give_back() -> None:
    """Give free memory back: a call that reused it would seem to need none."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in every C library
        if trim is not None:
            trim(0)


def _resident(field: str) -> int:
    """A field of Linux's status of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1])


def _together() -> None:
    """Wait until all ranks are here."""
    if dist.is_initialized():
        dist.barrier()


def _finished(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _seconds(
    call: Callable, device: torch.device, rounds: int, begin: Callable
) -> float:
    """How long a call takes: the median of rounds that each begin with `begin`."""
    bar, seconds = _bar(rounds), []
    for number in range(rounds):
        bar(number)
        begin()
        start = time.perf_counter()
        call()
        _finished(device)
        seconds.append(time.perf_counter() - start)
    bar(rounds)
    return statistics.median(seconds)


def _one_device(asked, device, group, tensors, found) -> tuple[float, float] | None:
    """Seconds of one device with the whole text, and how far the ranks are from it.

    Only rank 0 computes it; None on the others.
    """
    place, one = {"group": group, "order": asked.order}, None
    text = [unshard(tensor, **place) for tensor in tensors]
    found = [unshard(tensor, **place) for tensor in found]
    if place_in(None)[0] == 0:
        call = partial(_results, flash_attend, text, asked.backward)
        pairs = zip(found, call(), strict=True)
        apart = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        one = _seconds(call, device, asked.rounds, begin=int), apart
    _together()
    return one


def _run(asked: argparse.Namespace) -> None:
    """Attend, measure, and print on rank 0."""
    (rank, ranks), (device, group) = place_in(None), _place(asked.device)
    form = partial(_FORMS[asked.form], group=group, order=asked.order)
    short = argparse.Namespace(**{**vars(asked), "length": 2 * ranks})
    _results(form, _part(short, device), asked.backward)
    tensors = _part(asked, device)
    call = partial(_results, form, tensors, asked.backward)
    measured = _peak(call, device), _seconds(call, device, asked.rounds, _together)
    own = torch.tensor([tensors[0].shape[-2], *measured], dtype=torch.float64)
    rows = from_all(own, 0, [3] * ranks, None)
    one = _one_device(asked, device, group, tensors, call()) if asked.check else None
    if rank == 0:
        print(_report(asked, [row.tolist() for row in rows], one), flush=True)


def _report(asked, rows: list[list[float]], one: tuple[float, float] | None) -> str:
    """The table, and what follows from it."""
    ranks, ring = len(rows), asked.form == "ring"
    counts = ring_work(asked.length, ranks, asked.order) if ring else [[1]] * ranks
    ideal = sum(map(sum, counts)) / ranks
    allowed = ideal / sum(map(max, zip(*counts, strict=True)))
    passes = "forward and backward" if asked.backward else "forward"
    heads = f"{asked.heads} heads of width {asked.width}, {asked.key_heads} of keys"
    lines = [f"{asked.form}_attend, {asked.order} order, {passes}, {asked.device}"]
    lines.append(f"{asked.length:,} tokens, {heads}")
    lines.append("rank     tokens   work        memory        time")
    for rank, (tokens, peak, seconds) in enumerate(rows):
        work, counted = sum(counts[rank]) / ideal, peak == peak
        memory = f"{peak:9.1f} MiB" if counted else f"{'–':>13}"
        lines.append(f"{rank:4} {tokens:10,.0f} {work:6.2f} {memory} {seconds:9.3f} s")
    lines.append(f"The order allows {allowed:.2f} of the ideal speed.")
    if one is not None:
        alone, apart = one
        reached = alone / (ranks * max(seconds for *_, seconds in rows))
        lines.append(f"One device: {alone:.3f} s; so {reached:.2f} is reached.")
        lines.append(f"Largest difference to it: {apart:.0e} of the largest number.")
    return "\n".join(lines)


def _say(error: Exception, who: str = "") -> None:
    """A line for the stream of messages."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    print(f"demo: {who}{line}", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the program on this rank, and give its status: 0, or 1 if a rank fails.

    `arguments` are the words of the command line; None: those of this process. The
    status is 2 if what they ask for does not fit. Rank 0 prints.
    """
    try:
        _join()
        found, ranks = [], place_in(None)[1]

        def facts():
            found.append(_checked(arguments, ranks))
            return vars(found[0])

        agree(facts, None)
        _run(*found)
    except ValueError as misfit:  # known to all ranks
        if place_in(None)[0] == 0:
            _say(misfit)
        _together()
        return 2
    except RuntimeError as failure:
        _say(failure, "rank {} of {}: ".format(*place_in(None)))
        return 1
    _together()
    return 0


if __name__ == "__main__" and __package__:
    sys.exit(main())
