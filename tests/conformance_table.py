"""Print who holds which property: `python tests/conformance_table.py [PROFILE]`.

Each pair of a mechanism and a property shows the number of examples and the seconds,
or – where the property does not apply. The profile "book" is what CI runs; "long" runs
10,000 examples a property, in an hour or more. A property that fails ends the run.
"""

import sys
import time
import warnings

import torch
from hypothesis import settings

from conformance import profiles  # noqa: F401
from conformance.mechanisms import MECHANISMS
from conformance.properties import PROPERTIES
from conformance.suite import check, excuse_for, share


def main(profile: str = "book") -> None:
    settings.load_profile(profile)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    names = [mechanism.name for mechanism in MECHANISMS]
    print("| property |", " | ".join(names), "| all |")
    print("|---" * (len(names) + 2) + "|")
    reasons = {}
    for property in PROPERTIES.values():
        if property.name == "cuda" and not torch.cuda.is_available():
            print(f"| {property.sentence} |" + " no device |" * (len(names) + 1))
            continue
        print(f"| {property.sentence} |", end="", flush=True)
        total, start = 0, time.perf_counter()
        for mechanism in MECHANISMS:
            excuse = excuse_for(property, mechanism)
            if excuse is None:
                examples = share(property, MECHANISMS)
                count, seconds = check(property, mechanism, examples)
                total += count
                print(f" {count}, {seconds:.1f} s |", end="", flush=True)
            else:
                reasons.setdefault((property.name, excuse.reason), []).append(mechanism)
                print(" – |", end="", flush=True)
        print(f" {total}, {time.perf_counter() - start:.1f} s |", flush=True)
    print("\nDoes not apply:\n")
    for (name, reason), mechanisms in reasons.items():
        print(f"- {name}: {reason} ({', '.join(map(str, mechanisms))})")


if __name__ == "__main__":
    main(*sys.argv[1:])
