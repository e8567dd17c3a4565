"""Run what needs an interpreter of its own, and write the results to a file at the end.

The shape checks of a test run wrap every function, and PyTorch does not trace through
them: so `python -m conformance.alone PROFILE FILE` is started without them, once for
all. The file `asked` beside FILE names the pairs of a property and a mechanism that are
tried. Each line of FILE is a result as JSON; what is printed beside it is for people.
"""

import gc
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from hypothesis import settings

from . import profiles  # noqa: F401
from .faults import FAULTS
from .mechanism import Mechanism
from .mechanisms import MECHANISMS
from .properties import PROPERTIES
from .suite import UNSHRUNK, Property, catches, check, excuse_for, share


def fails(property: Property, mechanism: Mechanism) -> bool:
    """Is a mechanism refused, or wrong, where its excuse says that it is?"""
    try:
        check(property, mechanism, 1, UNSHRUNK)
    except Exception:  # a compiler's own: there is no common one
        return True
    return False


def found(property: Property, mechanism: Mechanism, examples: int) -> dict:
    """What the test of this pair will be told."""
    excuse = excuse_for(property, mechanism)
    if excuse is not None:
        return {"caught": fails(property, mechanism)} if excuse.holds == "fails" else {}
    try:
        count, seconds = check(property, mechanism, examples, UNSHRUNK)
    except Exception as error:  # told to the test, which fails with it
        return {"error": f"{type(error).__name__}: {error}"}
    return {"examples": count, "seconds": seconds}


def chosen(asked: set[tuple[str, str]]) -> Iterator[tuple[Property, Mechanism]]:
    """The pairs of these names, the faults behind the mechanisms."""
    for property in (each for each in PROPERTIES.values() if each.alone):
        for mechanism in (*MECHANISMS, *FAULTS[property.name]):
            if (property.name, mechanism.name) in asked:
                yield property, mechanism


def main(profile: str, file: str) -> None:
    settings.load_profile(profile)
    torch.set_num_threads(1)  # the other core runs the other tests
    warnings.simplefilter("error")
    gc.set_threshold(200_000, 50, 50)  # tracing makes many objects, and keeps most
    # A float that is made of a size becomes a constant in the end: told so, PyTorch
    # does not trace all of it twice to find out.
    torch._dynamo.config.specialize_float = True
    lines, whole = [], Path(file)
    asked = set(map(tuple, json.loads(whole.with_name("asked").read_text())))
    for property, mechanism in chosen(asked):
        examples = share(property, MECHANISMS)
        if mechanism in FAULTS[property.name]:
            result = {"caught": catches(property, mechanism, examples)}
        else:
            result = found(property, mechanism, examples)
        print(property.name, mechanism.name, result, flush=True)
        names = {"property": property.name, "mechanism": mechanism.name}
        lines.append(json.dumps(names | result) + "\n")
    whole.with_suffix(".draft").write_text("".join(lines))
    whole.with_suffix(".draft").rename(whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
