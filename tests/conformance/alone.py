"""Run what needs an interpreter of its own, and print the results as JSON.

The shape checks of a test run wrap every function, and PyTorch does not trace through
them: so `python -m conformance.alone PROFILE` is started without them, once for all.
"""

import json
import sys
import warnings

import torch
from hypothesis import settings

from . import profiles  # noqa: F401
from .faults import FAULTS
from .mechanism import Mechanism
from .mechanisms import MECHANISMS
from .properties import PROPERTIES
from .suite import Property, catches, check, excuse_for, share


def fails(property: Property, mechanism: Mechanism) -> bool:
    """Is a mechanism refused, or wrong, where its excuse says that it is?"""
    try:
        check(property, mechanism, 1)
    except Exception:  # a compiler's own: there is no common one
        return True
    return False


def main(profile: str) -> None:
    settings.load_profile(profile)
    torch.set_num_threads(1)  # the other core runs the other tests
    warnings.simplefilter("error")
    for property in PROPERTIES.values():
        if not property.alone:
            continue
        examples = share(property, MECHANISMS)
        for mechanism in MECHANISMS:
            result = {"property": property.name, "mechanism": mechanism.name}
            excuse = excuse_for(property, mechanism)
            if excuse is not None and excuse.holds == "fails":
                print(json.dumps(result | {"caught": fails(property, mechanism)}))
            if excuse is None:
                try:
                    count, seconds = check(property, mechanism, examples)
                    result |= {"examples": count, "seconds": seconds}
                except Exception as error:  # told to the test, which fails with it
                    result["error"] = f"{type(error).__name__}: {error}"
                print(json.dumps(result), flush=True)
        for fault in FAULTS[property.name]:
            caught = catches(property, fault, examples)
            result = {"property": property.name, "mechanism": fault.name}
            print(json.dumps(result | {"caught": caught}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
