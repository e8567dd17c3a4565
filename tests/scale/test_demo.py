"""The program for torchrun: a table, or one line and a status, from every start."""

import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from examples import said

from attention.scale import demo
from attention.tools.ranks import run_ranks

SMALL = ("--length", "53", "--heads", "4", "--key-heads", "2", "--width", "8")
SMALL = (*SMALL, "--rounds", "1")


def start(*words):
    """A torchrun, or what `words` start, with an end of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", *words]
    return subprocess.Popen(command, **pipes, env=environment)


def ended(*runs, seconds=600):
    """Status, output and messages of each; none is left running."""
    try:
        told = [run.communicate(timeout=seconds) for run in runs]
        return [(run.returncode, *each) for run, each in zip(runs, told, strict=True)]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def torchrun(*words):
    return start("torch.distributed.run", *words)


ONE_HOST = ("--standalone", "--nproc-per-node", "2", "-m", "attention.scale.demo")


def ranks_of(printed):
    """Rank, tokens and share of the work, line by line of the table."""
    rows = re.findall(r"(?m)^ *(\d+) +([\d,]+) +([\d.]+) .* s$", printed)
    return [(int(rank), int(tokens), float(work)) for rank, tokens, work in rows]


# Alone


@pytest.mark.parametrize("form", ["ring", "ulysses"])
@pytest.mark.parametrize("order", ["contiguous", "striped", "zigzag"])
def test_alone_it_is_one_rank_and_equal_to_one_device(form, order, capsys):
    options = ("--form", form, "--order", order, "--backward", "--check")
    assert demo.main([*SMALL, *options]) == 0
    printed, messages = capsys.readouterr()
    assert ranks_of(printed) == [(0, 53, 1.0)]
    assert f"{form}_attend, {order} order, forward and backward, cpu" in printed
    assert "4 heads of width 8, 2 of keys" in printed
    assert "allows 1.00" in printed
    assert "difference to it: 0e+00" in printed
    assert messages == "", "no bar without a terminal"


def test_without_a_comparison_nothing_is_said_of_it(capsys):
    assert demo.main([*SMALL]) == 0
    printed, _ = capsys.readouterr()
    assert ", forward, cpu" in printed
    assert "One device" not in printed


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (("--length", "0"), ("length", "whole number of at least 1", "got 0")),
        (("--length", "many"), ("--length", "invalid int", "many")),
        (("--heads", "6", "--key-heads", "4"), ("key_heads", "6 heads", "got 4")),
        (("--key-heads", "0"), ("key_heads", "at least 1", "got 0")),
        (("--width", "-1"), ("width", "at least 1", "got -1")),
        (("--rounds", "0"), ("rounds", "at least 1", "got 0")),
        (("--order", "spiral"), ("order", "'zigzag'", "got 'spiral'")),
        (("--form", "tree"), ("--form", "invalid choice", "tree")),
        (("--device", "abacus"), ("--device", "invalid choice", "abacus")),
        (("--fast",), ("unrecognized", "--fast")),
    ],
)
def test_what_does_not_fit_is_told_in_a_line_with_a_status(
    words, fields, capsys, as_importer
):
    assert demo.main([*SMALL, *words]) == 2
    printed, messages = capsys.readouterr()
    assert printed == ""
    assert messages.count("\n") == 1
    assert re.search(said(*fields), messages), messages


@pytest.mark.parametrize(("there", "here"), [(0, 1), (1, 2)])
def test_each_rank_of_a_machine_wants_a_device(there, here, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert demo.main([*SMALL, "--device", "cuda"]) == 2
    told = said("CUDA devices", f"{here}, one for each rank", f"got {there}")
    assert re.search(told, capsys.readouterr().err)


def test_what_fails_later_is_told_with_the_rank_and_no_report(monkeypatch, capsys):
    def full(asked):
        raise torch.OutOfMemoryError("no memory is left\nand more lines")

    monkeypatch.setattr(demo, "_run", full)
    assert demo.main([*SMALL]) == 1
    assert capsys.readouterr().err == "demo: rank 0 of 1: no memory is left\n"


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as end:
        demo.main(["--help"])
    assert end.value.code == 0
    printed, _ = capsys.readouterr()
    for name in ("device", "form", "order", "length", "heads", "key-heads", "width"):
        assert f"--{name}" in printed


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert demo.main([*SMALL, "--rounds", "2"]) == 0
    bar = capsys.readouterr().err
    assert bar.endswith(f"[{'#' * 20}] 2/2\n")
    assert bar.count("\r") == 3


def test_memory_that_nobody_counts_is_not_told(monkeypatch, capsys):
    def unknown(field):
        raise OSError

    monkeypatch.setattr(demo, "_resident", unknown)
    assert demo.main([*SMALL]) == 0
    assert re.search(r"1\.00 +–", capsys.readouterr()[0])


def test_the_peak_counts_what_a_call_needs_beside_memory_that_is_free():
    large = torch.ones(5 * 2**20)
    del large  # after such a one, the C library takes 20 MiB from what it keeps
    kept = [torch.ones(5 * 2**20) for _ in range(8)]
    last = kept.pop()
    kept.clear()  # free now, and before what is still used
    cpu = torch.device("cpu")
    found = demo._peak(lambda: torch.ones(2**24).sum(), cpu)
    assert found != found or 60 < found < 72  # 64 MiB, where somebody counts
    assert len(last)


# On several ranks


def test_a_misfit_is_told_once_and_no_rank_gives_a_report(capfd):
    assert run_ranks(demo.main, 2, [*SMALL, "--length", "3"]) == [2, 2]
    must = "a whole number of at least 4 tokens, for zigzag order on 2 ranks"
    told = f"demo: length: expected {must}, got 3\n"
    assert capfd.readouterr() == ("", told)


def test_options_that_differ_are_refused_on_every_rank():
    def work():
        return demo.main([*SMALL, *["--backward"] * dist.get_rank()])

    assert run_ranks(work, 2) == [2, 2]


# Started by torchrun


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # as a program it is not
def test_the_program_ends_with_the_status_of_main(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--length", "0"])
    # Its code has the shape checks of this run, which another Python knows nothing of.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(demo.__name__, run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("demo: length: ")


def test_two_ranks_print_one_table_that_is_equal_to_one_device():
    options = ("--order", "contiguous", "--backward", "--check")
    ((status, printed, messages),) = ended(torchrun(*ONE_HOST, *SMALL, *options))
    assert status == 0, messages
    assert ranks_of(printed) == [(0, 26, 0.49), (1, 27, 1.51)]
    assert "allows 0.66" in printed
    (apart,) = re.findall(r"difference to it: (\S+) of", printed)
    assert float(apart) < 1e-6
    assert "]" not in messages, "no bar without a terminal"


@pytest.mark.slow
def test_two_torchruns_meet_at_an_address_and_one_of_them_prints():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    meet = ("--nnodes", "2", "--nproc-per-node", "1", "--local-addr", "127.0.0.1")
    meet = (*meet, "--rdzv-backend", "c10d", "--rdzv-endpoint", place)
    words = (*meet, "--rdzv-id", "test", "-m", "attention.scale.demo", *SMALL)
    found = ended(torchrun(*words), torchrun(*words))
    assert [status for status, *_ in found] == [0, 0], found
    (printed,) = filter(None, (printed for _, printed, _ in found))
    assert [rank for rank, *_ in ranks_of(printed)] == [0, 1]
    assert sum(tokens for _, tokens, _ in ranks_of(printed)) == 53


def children(pid):
    """Processes that this one has started, as Linux tells it."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def memory(pid):
    """MiB that this process has filled, as Linux tells it; 0 once it has ended."""
    told = re.findall(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return sum(map(int, told)) / 2**10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for children")
def test_if_a_rank_is_killed_all_end_without_a_report_of_ours():
    run = torchrun(*ONE_HOST, "--length", "64000", "--rounds", "99")
    deadline, begun = time.monotonic() + 300, False
    while not begun and time.monotonic() < deadline:
        time.sleep(0.2)
        ranks = children(run.pid)
        # A rank that draws its half of the text, 250 MiB, has joined the other.
        begun = len(ranks) == 2 and min(map(memory, ranks)) > 250
    if begun:
        os.kill(ranks[1], signal.SIGKILL)
    else:
        run.terminate()
    ((status, printed, messages),) = ended(run)
    assert begun
    assert status != 0
    assert printed == ""
    assert "attention/scale/demo.py" not in messages
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
