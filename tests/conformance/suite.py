"""Properties, and how one is run on one mechanism."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil
from zlib import crc32

from hypothesis import Phase, given, seed, settings

from .cases import Case, cases
from .mechanism import Excuse, Mechanism


@dataclass(frozen=True)
class Property:
    """A sentence that must be true of all mechanisms to which it applies."""

    name: str
    sentence: str
    holds: Callable[[Case], None]
    excuse: Callable[[Mechanism], Excuse | None]
    wants: dict  # of `cases`
    alone: bool  # is it run without the shape checks of a test run?


PROPERTIES: dict[str, Property] = {}


def sentence(text: str, *, excuse=lambda mechanism: None, alone=False, **wants):
    """The function below checks this sentence on one case."""

    def register(holds):
        name = holds.__name__
        PROPERTIES[name] = Property(name, text, holds, excuse, wants, alone)
        return holds

    return register


def excuse_for(property: Property, mechanism: Mechanism) -> Excuse | None:
    """Why `property` does not apply to `mechanism`; None if it does."""
    return mechanism.excused.get(property.name) or property.excuse(mechanism)


def share(property: Property, mechanisms: list[Mechanism]) -> int:
    """How many examples each mechanism gets, so that all reach the profile's number."""
    among = [m for m in mechanisms if excuse_for(property, m) is None]
    return ceil(settings().max_examples / len(among))


def seeded(property: Property, mechanism: Mechanism):
    """Each pair has its own examples, and the same ones each time."""
    same = settings().derandomize
    name = f"{property.name} {mechanism.name}".encode()
    return seed(crc32(name)) if same else lambda run: run


UNSHRUNK = (Phase.generate,)  # no search for a smaller example: it may take minutes


def check(
    property: Property,
    mechanism: Mechanism,
    examples: int,
    phases: Iterable[Phase] = tuple(Phase),
) -> tuple[int, float]:
    """Run `property` on examples of `mechanism`; how many there were, and seconds."""
    count, start = 0, time.perf_counter()

    @seeded(property, mechanism)
    @settings(max_examples=examples, phases=phases, report_multiple_bugs=False)
    @given(cases(mechanism, **property.wants))
    def run(case):
        nonlocal count
        property.holds(case)
        count += 1

    run()
    return count, time.perf_counter() - start


def catches(property: Property, mechanism: Mechanism, examples: int) -> bool:
    """Does `property` fail for `mechanism` within so many examples?"""

    try:
        check(property, mechanism, examples, UNSHRUNK)
    except AssertionError:
        return True
    return False
