"""Published numbers come out here: in the package and in the chapters."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from packaging import version
from published import ERRATA, NUMBERS, OURS, ROUNDING, equal, theirs

BOOK = Path(__file__).parent.parent / "book"

# What no chapter prints digit by digit, each with the reason.
NOT_IN_A_CHAPTER = {
    "article-embed": "an input, which no reader expects to see printed",
    "gpt2-larger-tied": "the chapter counts these models with their biases",
    "gpt2-larger-untied": "the chapter counts these models with a tied head",
    "gpt2-millions": "the chapter prints all digits",
}
# What depends on which places PyTorch's dropout draws from a seed.
DROPPED = {"companion-115", "companion-116"}


def test_every_published_number_is_computed_and_no_other():
    assert OURS.keys() == NUMBERS.keys() | ERRATA.keys()


OLDER = version.parse(torch.__version__) < version.parse("2.7")


@pytest.mark.parametrize("name", NUMBERS)
def test_the_package_gives_the_published_number(name):
    if OLDER and name in DROPPED:
        pytest.skip("before 2.7, PyTorch drops other places on some processors")
    assert equal(name)


@pytest.mark.parametrize("name", ERRATA)
def test_the_package_does_not_give_what_is_listed_as_an_error(name):
    assert not equal(name)


def numbers_of(text):
    found = re.findall(r"-?(?:inf|\d[\d,]*\.?\d*(?:e[-+]?\d+)?)", text)
    return [float(number.replace(",", "")) for number in found]


@cache
def printed_numbers():
    """The numbers in each stored output of text, chapter by chapter."""
    found = []
    for path in sorted(BOOK.glob("*/*.ipynb")):
        if path.parent.name == "reference":
            continue
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            text = "".join("".join(o.get("text", "")) for o in cell.get("outputs", []))
            found.append(numbers_of(re.sub(r"(\d),\s", r"\1 ", text)))
    return found


def appears(values, numbers):
    for start in range(len(numbers) - len(values) + 1):
        pairs = zip(values, numbers[start:], strict=False)
        if all(a == b or abs(a - b) <= ROUNDING for a, b in pairs):
            return True
    return False


@pytest.mark.parametrize("name", sorted(NUMBERS.keys() - NOT_IN_A_CHAPTER.keys()))
def test_a_chapter_shows_the_published_number(name):
    values = theirs(name).tolist()
    assert any(appears(values, numbers) for numbers in printed_numbers())
