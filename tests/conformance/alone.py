"""Run what needs an interpreter of its own, and write the results to a file at the end.

The shape checks of a test run wrap every function, and PyTorch does not trace through
them: so `python -m conformance.alone PROFILE FILE` is started without them, once for
all. Each line of FILE is a result as JSON; what is printed beside it is for people.
"""

import gc
import json
import sys
import warnings
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


def main(profile: str, file: str) -> None:
    settings.load_profile(profile)
    torch.set_num_threads(1)  # the other core runs the other tests
    warnings.simplefilter("error")
    gc.set_threshold(200_000, 50, 50)  # tracing makes many objects, and keeps most
    # A float that is made of a size becomes a constant in the end: told so, PyTorch
    # does not trace all of it twice to find out.
    torch._dynamo.config.specialize_float = True
    lines = []

    def write(property, mechanism, result):
        print(property.name, mechanism.name, result, flush=True)
        names = {"property": property.name, "mechanism": mechanism.name}
        lines.append(json.dumps(names | result) + "\n")

    for property in (each for each in PROPERTIES.values() if each.alone):
        examples = share(property, MECHANISMS)
        for mechanism in MECHANISMS:
            write(property, mechanism, found(property, mechanism, examples))
        for fault in FAULTS[property.name]:
            caught = catches(property, fault, examples)
            write(property, fault, {"caught": caught})
    whole = Path(file)
    whole.with_suffix(".draft").write_text("".join(lines))
    whole.with_suffix(".draft").rename(whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
