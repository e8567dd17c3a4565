"""Print the licence of each package that is pinned, as it states it.

python tests/licences.py
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = [ROOT / "requirements.txt", ROOT / "requirements-torch.txt"]


def licences() -> dict[str, str]:
    """By package: an SPDX expression, its classifiers, or the first line of a text."""
    texts = "\n".join(path.read_text("utf-8") for path in PINS)
    pins = re.findall(r"(?m)^([\w.-]+)==", texts)
    return {pin: licence(pin) for pin in pins}


def licence(package: str) -> str:
    """What the package says of its licence, and "" if it says nothing."""
    try:
        about = distribution(package)
    except PackageNotFoundError:
        return "not installed here"
    stated = about.metadata.get("License-Expression")
    if stated:
        return stated
    kinds = about.metadata.get_all("Classifier", [])
    kinds = [kind.split(" :: ")[-1] for kind in kinds if kind.startswith("License")]
    if kinds:
        return ", ".join(kinds)
    texts = [about.metadata.get("License") or ""]
    files = about.files or []
    texts += [f.read_text() for f in files if re.match("LICEN[CS]E", f.name)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return next((line for line in lines if line), "")


if __name__ == "__main__":
    for package, stated in licences().items():
        print(f"{package:28} {stated}")
