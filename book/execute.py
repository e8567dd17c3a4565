"""Run the chapters and store their outputs.

    python book/execute.py                  every chapter, in the book's order
    python book/execute.py core/causal      some chapters, by name or by path

What is stored depends on the chapter alone: no timings, no names of machines. A
chapter that fails, or that writes to stderr, keeps the outputs it had.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tangle import ROOT, Refusal, contents, load, place, tags, write

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# How a window looked when the chapter was saved: nothing that a reader needs.
PASSING = ("collapsed", "execution", "scrolled")
TIMEOUT = 600  # seconds a cell; a chapter is meant to take a tenth of that


def main(root: Path = ROOT, chapters: list[str] | None = None) -> int:
    """Run these chapters, or all, and say how each one went.

    Returns 0 if all went well, 1 if not, and 130 if the run was stopped.
    """
    failed = False
    try:
        paths, where = chosen(root, chapters or []), device()
    except (Refusal, OSError) as refusal:
        print("refused:", refusal, file=sys.stderr)
        return 1
    for path in paths:
        start = time.perf_counter()
        try:
            done = store(path, run(path, root))
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


def run(path: Path, root: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run."""
    notebook, file = nbformat.from_dict(load(path, root)), path.relative_to(root)
    here = f"{file}"

    def note(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal here
        here = place(file, cell_index + 1, cell)

    client = NotebookClient(
        notebook,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(path.parent)}},
        timeout=TIMEOUT,
        coalesce_streams=True,
        extra_arguments=["--log-level=CRITICAL"],  # what failed is told below
        on_cell_start=note,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        why = " ".join(f"{error.ename}: {error.evalue}".split())
        raise Refusal(f"{here}: {why}") from None
    except (CellTimeoutError, DeadKernelError, NoSuchKernel) as error:
        raise Refusal(f"{here}: {str(error).splitlines()[0]}") from None
    except AssertionError:  # nbclient, told to stop, ends its kernel a second time
        raise KeyboardInterrupt from None
    for number, cell in enumerate(notebook.cells, start=1):
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                said = output.text.strip().splitlines()[0]
                must = f"must not write to stderr, wrote: {said}"
                raise Refusal(f"{place(file, number, cell)}: {must}")
    return normal(notebook)


def normal(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from machine to machine."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat_minor = 5
    for cell in notebook.cells:
        for key in PASSING:
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
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


def store(path: Path, notebook: nbformat.NotebookNode) -> str:
    """Write the notebook, unless only the numbers of unchecked cells are new."""
    stored, text = path.read_text("utf-8"), nbformat.writes(notebook) + "\n"
    old, new = json.loads(stored), json.loads(text)
    for was, cell in zip(old["cells"], new["cells"], strict=True):
        if "nbval-ignore-output" in tags(cell) and words(was) == words(cell):
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
    sys.exit(main(chapters=parser.parse_args().chapter))
