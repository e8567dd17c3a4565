"""Run the chapters and store their outputs.

    python book/execute.py                  every chapter, in the book's order
    python book/execute.py core/causal      some chapters, by name or by path
    python book/execute.py --twice          refuse what differs between two runs

What is stored depends on the chapter alone: no timings, no names of machines. A
chapter that fails, that writes to stderr, or that gives what `make chapters` would
reject, keeps the outputs it had. It runs in a copy of its folder, which stays as it is.
"""

import argparse
import importlib.util
import json
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from shutil import copytree, ignore_patterns
from stat import S_ISDIR
from tempfile import TemporaryDirectory
from tokenize import TokenError

import nbformat
from IPython.core.displayhook import DisplayHook
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbval.plugin import coalesce_streams
from tangle import ROOT, Refusal, contents, load, place, tags, write

# `import conftest` would find that of tests/, if they run.
SPEC = importlib.util.spec_from_file_location(
    "verifier", Path(__file__).with_name("conftest.py")
)
verifier = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(verifier)

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# How a window looked when the chapter was saved: nothing that a reader needs.
PASSING = ("collapsed", "execution", "scrolled")
UNCHECKED = "nbval-ignore-output"
# What a page never sees again, but `make chapters`, which keeps all, does.
REWRITES = {
    "clear_output": "clear its output",
    "update_display_data": "update a display",
}
TIMEOUT = 600  # seconds a cell; a chapter is meant to take a tenth of that


def main(
    root: Path = ROOT, chapters: list[str] | None = None, twice: bool = False
) -> int:
    """Run these chapters, or all, once or twice, and say how each one went.

    Returns 0 if all went well, 1 if not, and 130 if the run was stopped.
    """
    failed = False
    try:
        paths, where = chosen(root, chapters or []), device()
    except (Refusal, OSError) as refusal:
        print("refused:", refusal, file=sys.stderr)
        return 1
    for path in paths:
        if why := verifier.lacking(path.name):
            kept = f"{path.relative_to(root)} keeps the outputs it had: it {why}"
            print("skipped:", kept, file=sys.stderr, flush=True)
            failed = failed or bool(chapters)  # whoever asked for it wants it run
            continue
        start = time.perf_counter()
        try:
            notebook = run(path, root)
            again = run(path, root) if twice else notebook
            compare(notebook, again, path.relative_to(root))
            done = store(path, notebook)
        except (Refusal, OSError) as refusal:
            print("failed:", refusal, file=sys.stderr, flush=True)
            failed = True
        except KeyboardInterrupt:
            kept = f"{path.relative_to(root)} keeps the outputs it had"
            print("stopped:", kept, file=sys.stderr, flush=True)
            return 130
        else:
            seconds = f"{time.perf_counter() - start:.1f} s on {where}"
            print(f"{path.relative_to(root)}: {seconds}, {done}", flush=True)
    return int(failed)


def chosen(root: Path, asked: list[str]) -> list[Path]:
    """The notebooks asked for, or all, in the order of `_toc.yml`."""
    paths = {name: root / f"book/{name}.ipynb" for name in contents(root)}
    paths = {name: path for name, path in paths.items() if path.is_file()}
    names = [re.sub(r"^(.*/)?book/|\.ipynb$", "", name) for name in asked]
    for name in names:
        if name not in paths:
            raise Refusal(
                f"no chapter {name!r} in _toc.yml, which has {', '.join(paths)}"
            )
    return [path for name, path in paths.items() if not asked or name in names]


def device() -> str:
    """What the chapters compute on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


class Client(NotebookClient):
    """Runs a chapter in a folder that it must leave as it is."""

    def __init__(self, notebook: nbformat.NotebookNode, file: Path, folder: Path):
        super().__init__(
            notebook,
            kernel_name=KERNEL["name"],
            resources={"metadata": {"path": str(folder / file.parent)}},
            timeout=TIMEOUT,
            extra_arguments=["--log-level=CRITICAL"],  # what failed is told below
            on_cell_start=self.started,
            on_cell_executed=self.executed,
            # All is stored by then, and a kernel that ends by itself may write of it:
            # a busy one a traceback, any of them, rarely, an error of its sockets.
            shutdown_kernel="immediate",
        )
        self.file, self.folder, self.held = file, folder, holdings(folder)
        self.here, self.deeds = str(file), []

    def started(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.here = place(self.file, cell_index + 1, cell)

    def process_message(self, msg: dict, cell: nbformat.NotebookNode, cell_index: int):
        if msg["msg_type"] in REWRITES:
            self.deeds.append(REWRITES[msg["msg_type"]])
        elif (msg["content"].get("transient") or {}).get("display_id"):
            self.deeds.append("display what can be updated")
        return super().process_message(msg, cell, cell_index)

    def executed(self, cell, cell_index: int, execute_reply: dict) -> None:
        reply = execute_reply["content"]
        if reply["status"] == "error":  # which nbclient raises next
            return
        if any(each["source"] == "ask_exit" for each in reply.get("payload", [])):
            self.deeds.append("end the kernel")
        now = holdings(self.folder)
        for path in sorted(now.keys() | self.held.keys()):
            if now.get(path) != self.held.get(path):
                name = os.path.relpath(path, self.folder / self.file.parent)
                deed = "change" if path in self.held else "leave"
                self.deeds.append(f"{deed} {name!r} beside the chapter")
        if self.deeds:
            raise Refusal(f"{self.here}: must not {', nor '.join(self.deeds)}")


def run(path: Path, root: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run."""
    notebook, file = nbformat.from_dict(load(path, root)), path.relative_to(root)
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code" and (why := unfit(cell.source)):
            raise Refusal(f"{place(file, number, cell)}: {why}")
    with TemporaryDirectory() as folder:
        mirror(root, Path(folder), file.parent)
        execute(Client(notebook, file, Path(folder)))
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                said = output.text.strip().splitlines()[0]
                must = f"must not write to stderr, wrote: {said}"
                raise Refusal(f"{place(file, number, cell)}: {must}")
    return normal(notebook)


def unfit(source: str) -> str:
    """Why this cell could not give the same to `make chapters`; nothing if it can."""
    if not source.strip():
        return "must hold code, is empty"
    with suppress(TokenError, SyntaxError):  # which will be told when it runs
        if DisplayHook.semicolon_at_end_of_expression(source):
            return "must not end in `;`: `make chapters` sees what that hides"
    return ""


def mirror(root: Path, copy: Path, below: Path) -> None:
    """Make `copy` like `root`: its folder `below` is copied, all the rest are links."""
    for part in below.parts:
        for entry in root.iterdir():
            if entry.name != part:
                (copy / entry.name).symlink_to(entry.absolute())
        root, copy = root / part, copy / part
        copy.mkdir()
    drafts = ignore_patterns(".*")  # of another run, perhaps, and gone in a moment
    copytree(root, copy, ignore=drafts, dirs_exist_ok=True)


def holdings(folder: Path) -> dict[Path, int]:
    """All that lies in the folder, the files with the time when they were written."""
    held = {path: path.lstat() for path in folder.rglob("*")}
    return {p: 0 if S_ISDIR(s.st_mode) else s.st_mtime_ns for p, s in held.items()}


def execute(client: Client) -> None:
    """Run all cells; what fails is a Refusal in one line."""
    try:
        # A set is printed in another order each time, whatever this shell has fixed.
        client.execute(env=os.environ | {"PYTHONHASHSEED": "random"})
    except CellExecutionError as error:
        why = " ".join(f"{error.ename}: {error.evalue}".split())
        raise Refusal(f"{client.here}: {why}") from None
    except (CellTimeoutError, DeadKernelError, NoSuchKernel) as error:
        raise Refusal(f"{client.here}: {str(error).splitlines()[0]}") from None
    except AssertionError:  # nbclient, told to stop, ends its kernel a second time
        raise KeyboardInterrupt from None


def normal(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from machine to machine."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat_minor = 5
    for cell in notebook.cells:
        for key in PASSING:
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = coalesce_streams(cell.outputs)
            describe(cell)
    return notebook


def describe(cell: nbformat.NotebookNode) -> None:
    """Give a picture its alt text: the description that its output carries."""
    bundles = [output.data for output in cell.outputs if "data" in output]
    pictures = [bundle for bundle in bundles if "image/svg+xml" in bundle]
    myst = cell.metadata.setdefault("mystnb", {})
    image = myst.setdefault("image", {})
    image.pop("alt", None)
    if pictures:
        image["alt"] = pictures[0].get("text/plain", "")
    if not image:
        del myst["image"]
    if not myst:
        del cell.metadata["mystnb"]


def compare(notebook: nbformat.NotebookNode, again: dict, file: Path) -> None:
    """Refuse what `make chapters` would: outputs that differ, or cannot be compared."""
    for number, (cell, other) in enumerate(
        zip(notebook.cells, again.cells, strict=True), start=1
    ):
        if cell.cell_type == "code" and UNCHECKED not in tags(cell):
            for reason in verifier.differences(cell.outputs, other.outputs):
                must = "must give what a second run gives"
                raise Refusal(f"{place(file, number, cell)}: {must}: {reason}")


def store(path: Path, notebook: nbformat.NotebookNode) -> str:
    """Write the notebook, unless only the numbers of unchecked cells are new."""
    stored, text = path.read_text("utf-8"), nbformat.writes(notebook) + "\n"
    old, new = json.loads(stored), json.loads(text)
    for was, cell in zip(old["cells"], new["cells"], strict=True):
        if UNCHECKED in tags(cell) and words(was) == words(cell):
            cell["outputs"] = was["outputs"]
    if nbformat.writes(nbformat.from_dict(new)) + "\n" == stored:
        return "unchanged"
    write({path: text})
    return "stored"


def words(cell: dict) -> str:
    """A cell's outputs but for their numbers."""
    return re.sub(r"[\d.]+", "#", json.dumps(cell["outputs"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapter", nargs="*", help="like core/causal; none means all")
    parser.add_argument("--twice", action="store_true", help="compare two runs")
    asked = parser.parse_args()
    sys.exit(main(chapters=asked.chapter, twice=asked.twice))
