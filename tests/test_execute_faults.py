"""What must stay true of the runner when the machine lets it down.

Whatever happens, a chapter is as it was or whole; and a failure is one line that names
the file, with an exit status that is not 0.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_execute import ROOT, Book, cell, execute, notebook
from test_verifier import verifier

RUN = """\
import os, signal, sys
from pathlib import Path

sys.path.insert(0, "{book}")
import execute

execute.device = lambda: "cpu"
{change}
sys.exit(execute.main(Path("{root}"), {chapters}))
"""
WAITS = """\
import time

open({started!r}, "w").close()
time.sleep(60)"""
KILLED_IN_WRITING = """\
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)"""


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path / "book-of-two")


def start(root: Path, chapters=("one/late",), change="", before=()):
    """Run chapters as `make execute` does, in a process of its own."""
    code = RUN.format(
        book=ROOT / "book", root=root, chapters=list(chapters), change=change
    )
    command = [*before, sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes)


def end(process) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def until(holds) -> None:
    """Wait for a file; what never comes is told by the test's own assert."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("nothing happened within a minute")


# Stopped


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_run_that_is_stopped_half_way_leaves_the_chapter_as_it_was(book, name):
    started = book.root / "started"
    waits = cell(WAITS.format(started=str(started)), "waits")
    book.late.write_text(notebook(cell("print(1)", "one"), waits))
    before = book.late.read_bytes()
    process = start(book.root)
    until(started.exists)
    process.send_signal(getattr(signal, name))
    status, out, err = end(process)
    assert status != 0
    assert book.late.read_bytes() == before
    assert out == ""
    if name != "SIGKILL":
        assert err == "stopped: book/one/late.ipynb keeps the outputs it had\n"


def test_a_run_that_is_killed_while_it_writes_leaves_the_chapter_as_it_was(book):
    before = book.late.read_bytes()
    status, _, _ = end(start(book.root, change=KILLED_IN_WRITING))
    assert status == -signal.SIGKILL
    assert book.late.read_bytes() == before
    status, _, err = end(start(book.root))
    assert (status, err) == (0, "")
    assert book.outputs(book.late)[1]


def test_two_runs_at_once_give_what_one_gives(book):
    source = "import time\n\nfor i in range(5):\n    time.sleep(0.1)\n    print(i)"
    book.late.write_text(notebook(cell(source, "slow")))
    both = [start(book.root, ["one/early", "one/late"]) for _ in range(2)]
    for status, out, err in [end(each) for each in both]:
        assert (status, err) == (0, "")
        assert len(out.splitlines()) == 2
    together = book.files()
    assert end(start(book.root, []))[0] == 0
    assert book.files() == together
    assert "".join(book.outputs(book.late)[1][0]["text"]) == "0\n1\n2\n3\n4\n"


def test_nothing_is_heard_of_the_kernel_when_it_ends(book):
    late = "import atexit, os\n\n_ = atexit.register(os.write, 2, b'Assertion failed')"
    book.late.write_text(notebook(cell(late, "late"), cell("print(1)", "one")))
    status, out, err = end(start(book.root))
    assert (status, err) == (0, "")
    assert out.startswith("book/one/late.ipynb: ")


# A disk that cannot be written

LEFT = ["status 1", "early.ipynb", "late.ipynb", "as it was"]

ON_A_DISK = """\
mount -t tmpfs -o size=256k tmpfs {disk}
cp -r {root}/. {disk}
{change}
cd {disk}
"$@" || echo "status $?"
ls -A book/one
cmp book/one/late.ipynb {root}/book/one/late.ipynb && echo "as it was"
"""
OURS = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


def on_a_disk(book, change: str) -> tuple[list[str], str]:
    """Run the late chapter from a disk of its own, which only that process sees."""
    disk = book.root.parent / "disk"
    disk.mkdir()
    try:
        subprocess.run([*OURS, f"mount -t tmpfs tmpfs {disk}"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine does not let its users mount a disk")
    script = ON_A_DISK.format(
        disk=disk, root=book.root, change=change.format(disk=disk)
    )
    return end(start(disk, before=[*OURS, script, "sh"]))[1:]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("mount -o remount,ro {disk}", "Read-only file system"),
        ("dd if=/dev/zero of={disk}/all 2>&- || true", "No space left on device"),
    ],
    ids=["read-only", "full"],
)
def test_a_disk_that_takes_no_more_is_told_in_one_line(book, change, why):
    said, err = on_a_disk(book, change)
    assert said.splitlines() == LEFT
    late = book.root.parent / "disk/book/one/late.ipynb"
    assert err == f"failed: {late}: cannot be written: {why}\n"


# What is not there


def test_a_package_that_is_not_installed_is_named_with_the_cell(book):
    book.late.write_text(notebook(cell("import no_such_package", "imports")))
    before = book.late.read_bytes()
    status, out, err = end(start(book.root))
    assert (status, out) == (1, "")
    must = "ModuleNotFoundError: No module named 'no_such_package'"
    assert err == f"failed: book/one/late.ipynb, cell 2 (imports): {must}\n"
    assert book.late.read_bytes() == before


# The same again


def test_a_chapter_gives_the_same_with_one_thread_and_with_two(monkeypatch):
    path, runs = ROOT / "book/core/masks.ipynb", []
    for threads in "12":
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        runs.append(execute.run(path, ROOT))
    stored = json.loads(path.read_text("utf-8"))
    for was, *cells in zip(stored["cells"], *(r["cells"] for r in runs), strict=True):
        for each in cells:
            outputs = zip(was.get("outputs", []), each.get("outputs", []), strict=True)
            for old, new in outputs:
                assert texts(old).keys() == texts(new).keys()
                for kind, text in texts(old).items():
                    assert not verifier.difference(text, texts(new)[kind], kind)


def texts(output: dict) -> dict[str, str]:
    """The output's texts by their kinds."""
    held = output.get("data", {}) or {"text/plain": output.get("text", "")}
    return {kind: "".join(text) for kind, text in held.items()}
