"""Every mechanism holds every property, or says why it does not apply.

The mechanisms, the properties and their faults stand in `conformance/`, and
`python tests/conformance_table.py` prints who held what, on how many examples.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import attention
from attention import attend
from conformance.faults import FAULTS
from conformance.mechanisms import MECHANISMS
from conformance.names import (
    AROUND,
    ELSEWHERE,
    OTHERS,
    attends_by_itself,
    public,
    seems_to_attend,
    unaccounted,
)
from conformance.properties import PROPERTIES
from conformance.suite import catches, check, excuse_for, share

HERE = Path(__file__).parent


def pairs(applies):
    """All pairs of a property and a mechanism to which it applies, or does not."""
    return [
        pytest.param(property, mechanism, id=f"{property.name}-{mechanism.name}")
        for property in PROPERTIES.values()
        for mechanism in MECHANISMS
        if (excuse_for(property, mechanism) is None) == applies
    ]


@pytest.fixture(scope="module", autouse=True)
def _started():
    """What needs an interpreter of its own begins while the other tests run."""
    profile = settings.get_current_profile_name()
    command = [sys.executable, "-m", "conformance.alone", profile]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=HERE, **pipes) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def alone(_started):
    """What that interpreter found, by property and mechanism."""
    out, errors = _started.communicate()
    assert _started.returncode == 0, errors
    results = map(json.loads, out.splitlines())
    return {(found["property"], found["mechanism"]): found for found in results}


@pytest.mark.parametrize(("property", "mechanism"), pairs(applies=True))
def test_the_property_holds(property, mechanism, request):
    if property.name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if not property.alone:
        check(property, mechanism, share(property, MECHANISMS))
        return
    found = request.getfixturevalue("alone")[property.name, mechanism.name]
    assert "error" not in found, found["error"]


@pytest.mark.parametrize(("property", "mechanism"), pairs(applies=False))
def test_a_property_that_does_not_apply_has_a_reason_that_is_true(
    property, mechanism, request
):
    excuse = excuse_for(property, mechanism)
    if excuse.holds == "fails" and property.alone:
        found = request.getfixturevalue("alone")[property.name, mechanism.name]
        assert found["caught"], excuse.reason
    elif excuse.holds == "fails":
        assert catches(property, mechanism, examples=50), excuse.reason
    else:
        assert excuse.holds(mechanism), excuse.reason


@pytest.mark.parametrize(
    ("property", "fault"),
    [
        pytest.param(PROPERTIES[name], fault, id=f"{name}-{fault.name}")
        for name, faults in FAULTS.items()
        for fault in faults
    ],
)
def test_each_property_catches_its_fault(property, fault, request):
    if property.alone:
        assert request.getfixturevalue("alone")[property.name, fault.name]["caught"]
    else:
        assert catches(property, fault, examples=200)


def test_each_property_has_a_fault():
    assert FAULTS.keys() == PROPERTIES.keys()


def test_every_public_name_is_a_mechanism_or_has_a_reason():
    new = sorted(unaccounted())
    assert not new, (
        f"{new} must each have an entry in MECHANISMS (tests/conformance/mechanisms.py)"
        " if it attends, or else a reason in OTHERS (tests/conformance/names.py)"
    )


def test_no_reason_is_left_over():
    covered = {mechanism.covers.__name__ for mechanism in MECHANISMS}
    listed = {*OTHERS, *ELSEWHERE, *AROUND}
    assert listed <= public().keys() - covered


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_what_is_said_not_to_attend_does_not_look_like_it(name):
    assert not seems_to_attend(public()[name])


@pytest.mark.parametrize("name", sorted(AROUND))
def test_what_attends_through_another_does_not_attend_by_itself(name):
    assert attends_by_itself(public()[name]) == set()
    assert attends_by_itself(public()["SelfAttention"]) == {"attend"}


def test_a_new_mechanism_is_found_by_itself(monkeypatch):
    def hasty_attend(queries, keys, values):
        return attend(queries, keys, values)

    monkeypatch.setattr(attention, "hasty_attend", hasty_attend, raising=False)
    monkeypatch.setattr(attention, "__all__", [*attention.__all__, "hasty_attend"])
    assert unaccounted() == {"hasty_attend"}
    must = r"\['hasty_attend'\] must each have an entry in MECHANISMS"
    with pytest.raises(AssertionError, match=must):
        test_every_public_name_is_a_mechanism_or_has_a_reason()
