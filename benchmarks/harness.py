"""Fair timings and true peaks of memory on a machine that others use too.

Every round times every contender once, in a new random order, so that a ratio is made
of samples taken seconds apart. A sample during which other processes kept a core busy
is taken again, as long as patience lasts.
"""

import ctypes
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

SAMPLE_SECONDS = 0.25  # /proc counts in 0.01 s: a shorter sample could not be judged
FOREIGN_CORES = 0.12  # others may use this much of one core during a sample
RETAKES = 4
PAUSE_SECONDS = 0.5

# Of a CPU's instructions those that decide which products PyTorch can pick.
FEATURES = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]

Call = Callable[[], Any]


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, and the cores that other processes used meanwhile."""

    seconds: float
    foreign: float


@dataclass(frozen=True)
class Timing:
    """The samples of one contender, one from each round."""

    samples: list[Sample]

    @property
    def seconds(self) -> list[float]:
        return [sample.seconds for sample in self.samples]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The interquartile range."""
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return third - first

    @property
    def disturbed(self) -> int:
        """Samples that stayed contaminated when patience was over."""
        return sum(sample.foreign > FOREIGN_CORES for sample in self.samples)

    def ratio(self, other: "Timing") -> float:
        """How many times slower than `other`: the median of the rounds' ratios."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


class Patience:
    """Seconds that may be spent on taking disturbed samples again."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def take(self, sample: Callable[[], Sample]) -> Sample:
        """The first undisturbed sample, or else the least disturbed one."""
        best = sample()
        for _ in range(RETAKES):
            if best.foreign <= FOREIGN_CORES or self.left <= 0:
                break
            start = time.perf_counter()
            time.sleep(PAUSE_SECONDS)
            best = min(best, sample(), key=lambda taken: taken.foreign)
            self.left -= time.perf_counter() - start
        return best


def time_side_by_side(
    calls: dict[str, Call], rounds: int, device: str, patience: Patience
) -> dict[str, Timing]:
    """Time each call once a round; every call must have been warmed up before."""
    repeats = {}
    for name, call in calls.items():
        once = sample(call, 2, device).seconds
        repeats[name] = max(1, round(SAMPLE_SECONDS / once))
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            call, times = calls[name], repeats[name]
            taken = patience.take(lambda c=call, t=times: sample(c, t, device))
            samples[name].append(taken)
    return {name: Timing(taken) for name, taken in samples.items()}


def sample(call: Call, repeats: int, device: str) -> Sample:
    """The mean time of `repeats` calls in a row, behind one that is not counted.

    That one finds in no cache what it needs, after all that others have read since. A
    call that is long enough to be measured alone does not feel it.
    """
    if repeats > 1:
        call()
    synchronize(device)
    # Other processes slow a CPU's sample down; on a GPU only the launches feel them.
    before = foreign_seconds() if device == "cpu" else 0.0
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    wall = time.perf_counter() - start
    after = foreign_seconds() if device == "cpu" else 0.0
    return Sample(wall / repeats, max(0.0, after - before) / wall)


def synchronize(device: str) -> None:
    """Wait until the device has done what it was asked to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def foreign_seconds() -> float:
    """CPU seconds that all other processes have used; 0 where /proc does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    import resource  # which is Unix's, as /proc is

    user, nice, system, _, _, irq, softirq, steal = map(
        int, stat.read_text().split(maxsplit=9)[1:9]
    )
    ticks = user + nice + system + irq + softirq + steal
    own = resource.getrusage(resource.RUSAGE_SELF)
    return ticks / os.sysconf("SC_CLK_TCK") - own.ru_utime - own.ru_stime


def peak_growth(call: Call, device: str) -> int:
    """Bytes that the process, or the GPU, needs at most beyond what it holds now."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held
    ctypes.CDLL(None).malloc_trim(0)  # what is free could be used again, uncounted
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held now
    held = bytes_of("/proc/self/status", "VmRSS")
    call()
    return bytes_of("/proc/self/status", "VmHWM") - held


def bytes_of(file: str, field: str) -> int:
    """What a file of the system says of memory, which it counts in KiB."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{file} must have a field {field}, it has none")


def free_memory(device: str) -> int:
    """Bytes that can be had now without pushing others out."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return bytes_of("/proc/meminfo", "MemAvailable")


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a new process, where nothing was allocated yet."""
    # Blocks above this size go back to the system when they are freed, so that one
    # measurement does not live off the memory of the one before.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


def growth_exponent(sizes: dict[int, float]) -> float:
    """The slope of log(size) over log(length): 1 is linear, 2 quadratic."""
    lengths, values = map(math.log, sizes), map(math.log, sizes.values())
    return statistics.linear_regression(list(lengths), list(values)).slope


def machine(device: str) -> str:
    """What the numbers were taken on, in one line."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    if device == "cuda":
        cudnn = f"cuDNN {torch.backends.cudnn.version()}"
        return f"{torch.cuda.get_device_name()}, {cudnn}, {versions}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    cores = f"{cores or os.cpu_count()} cores, {torch.get_num_threads()} threads"
    model = cpu_info("model name") or platform.processor() or platform.machine()
    features = [name for name in FEATURES if name in cpu_info("flags").split()]
    return ", ".join([model, *features, cores, versions])


def cpu_info(field: str) -> str:
    """What the system says of its first processor; nothing where /proc is not."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""
