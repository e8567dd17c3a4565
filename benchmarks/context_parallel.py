"""Time attention by two ranks beside one device with one thread.

    python benchmarks/context_parallel.py            some minutes
    python benchmarks/context_parallel.py --quick    half a minute

Both forms and all orders are timed in one run, in random order, with the form of one
device in between on rank 0, while the other rank waits. The share of the ideal is the
time of one device over as many times the time of all ranks. Nothing is written.
"""

import argparse
import random
import statistics
import time

import torch
import torch.distributed as dist

from attention import flash_attend, ring_attend, run_ranks, shard, ulysses_attend

RANKS, HEADS, WIDTH = 2, 12, 64
CONTENDERS = {
    "ring, contiguous": (ring_attend, "contiguous"),
    "ring, striped": (ring_attend, "striped"),
    "ring, zigzag": (ring_attend, "zigzag"),
    "Ulysses": (ulysses_attend, "zigzag"),
}
ONE = "one device"


def rounds(length: int, backward: bool, count: int) -> dict[str, list[float]]:
    """Seconds of each contender on this rank, from one barrier to the next."""
    torch.manual_seed(0)
    text = [torch.randn(1, HEADS, length, WIDTH) for _ in range(3)]
    calls = {ONE: lambda: once(flash_attend, text, backward, {})}
    for name, (form, order) in CONTENDERS.items():
        own = [shard(tensor, order=order) for tensor in text]
        calls[name] = lambda f=form, o=own, n=order: once(f, o, backward, {"order": n})
    seconds = {name: [] for name in calls}
    chance = random.Random(0)  # the same order on all ranks
    for number in range(count + 1):
        for name in chance.sample(list(calls), len(calls)):
            dist.barrier()
            start = time.perf_counter()
            if name != ONE or dist.get_rank() == 0:
                calls[name]()
            dist.barrier()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return seconds


def once(form, inputs, backward: bool, options: dict) -> None:
    inputs = [tensor.detach().requires_grad_(backward) for tensor in inputs]
    context = form(*inputs, causal=True, **options)
    if backward:
        context.sum().backward()


def main() -> None:
    summary, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(description=summary, epilog=rest)
    parser.add_argument("--quick", action="store_true", help="shorter, fewer rounds")
    quick = parser.parse_args().quick
    for length in (2048,) if quick else (2048, 8192):
        for backward in (False, True):
            given = length, backward, 3 if quick else 9
            seconds = run_ranks(rounds, RANKS, *given, seconds=1800)[0]
            print(f"{length} tokens, {'forward+backward' if backward else 'forward'}:")
            for name in CONTENDERS:
                pairs = zip(seconds[ONE], seconds[name], strict=True)
                share = statistics.median(one / (RANKS * ours) for one, ours in pairs)
                print(f"  {name:17} {share:.2f} of the ideal speed", flush=True)


if __name__ == "__main__":
    main()
