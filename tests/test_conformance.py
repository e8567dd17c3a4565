"""Every mechanism holds every property, or says why it does not apply.

The mechanisms, the properties and their faults stand in `conformance/`, and
`python tests/conformance_table.py` prints who held what, on how many examples.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from hypothesis import settings
from torch import nn

import attention
from attention import attend
from attention.core.scaled_dot_product import clear_unseen, dot_product, visible
from attention.tools.checks import as_given, check_fit, repeat_kv, unified
from conformance.alone import chosen
from conformance.cases import takes_mask
from conformance.faults import FAULTS, faulty, form, of_form
from conformance.mechanism import QUERIES_KEYS_VALUES, Excuse, Mechanism, softmax
from conformance.mechanisms import KERNELS, MECHANISMS
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
from conformance.suite import UNSHRUNK, Property, catches, check, excuse_for, share

HERE = Path(__file__).parent
FORMS = "conformance.forms"  # where its properties stand


# The shapes that functions promise are checked while these properties are asked, which
# draw every size, dtype and mask; beside the others, too, the checks would cost as much
# again, and find nothing new.
SHAPED = {"oracle", "edges", "half", "blind", "grouped", "window", "shown", "pieces"}


@pytest.fixture(autouse=True)
def _unshaped(request):
    asked = getattr(request.node, "callspec", None)
    property = asked and asked.params.get("property")
    off = isinstance(property, Property) and property.name not in SHAPED
    jaxtyping.config.update("jaxtyping_disable", off)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pairs(applies):
    """All pairs of a property and a mechanism to which it applies, or does not."""
    return [
        pytest.param(property, mechanism, id=f"{property.name}-{mechanism.name}")
        for property in PROPERTIES.values()
        for mechanism in MECHANISMS
        if (excuse_for(property, mechanism) is None) == applies
    ]


def needed_alone(items: list[pytest.Item]) -> set[tuple[str, str]]:
    """Property and mechanism of the tests that need an interpreter of its own."""
    asked = set()
    for params in (item.callspec.params for item in items if hasattr(item, "callspec")):
        property = params.get("property")
        if isinstance(property, Property) and property.alone:
            thing = params.get("mechanism") or params["fault"]
            asked.add((property.name, thing.name))
    return asked


@pytest.fixture(scope="session", autouse=True)
def _early(request):
    """What needs an interpreter of its own begins while the other tests run."""
    if needed_alone(request.session.items):
        request.getfixturevalue("_started")


@pytest.fixture(scope="session")
def _started(request, tmp_path_factory):
    """The interpreter that tries it, and its folder.

    The first of the workers to get here starts it, for all, and lets it end.
    """
    folder, shared = tmp_path_factory.getbasetemp(), "PYTEST_XDIST_WORKER" in os.environ
    folder = (folder.parent if shared else folder) / "alone"
    try:
        folder.mkdir()
    except FileExistsError:
        yield folder, None
        return
    profile = settings.get_current_profile_name()
    command = [sys.executable, "-m", "conformance.alone", profile, folder / "results"]
    asked = sorted(needed_alone(request.session.items))  # the same for all workers
    (folder / "asked").write_text(json.dumps(asked))
    with (folder / "printed").open("w") as out:
        streams = {"stdout": out, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, cwd=HERE, **streams) as process:
            (folder / "pid").write_text(f"{process.pid}\n")
            yield folder, process
            if not shared:
                process.kill()


def has_ended(folder: Path, process: subprocess.Popen | None) -> bool:
    """Has the interpreter that this worker started, or another one, come to an end?"""
    if process is not None:
        return process.poll() is not None
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return True
    except (FileNotFoundError, ValueError):  # it is being started
        return False
    return False


@pytest.fixture(scope="session")
def alone(_started):
    """What that interpreter found, by property and mechanism."""
    folder, process = _started
    results, ended = folder / "results", False
    while not results.exists():  # which is there when it is whole
        assert not ended, (folder / "printed").read_text()
        ended = has_ended(folder, process)
        time.sleep(0.1)
    found = map(json.loads, results.read_text().splitlines())
    return {(each["property"], each["mechanism"]): each for each in found}


# What PyTorch 2.6 cannot see through, or only at one length.
NOT_IN_2_6 = {
    ("compiles", "Attention by position"),
    ("compiles", "LatentAttention absorbed"),
    ("compiles", "cpp_attend"),
    ("compiles", "cpp_attend biased"),
    ("compiles", "cpp_attend causal"),
    ("compiles", "flash_attend"),
    ("compiles", "flash_attend biased"),
    ("compiles", "flash_attend causal"),
    ("compiles", "ring_attend causal"),
    ("compiles", "tree_attend causal"),
    ("compiles", "ulysses_attend causal"),
    ("exports", "Attention rotary"),
    ("exports", "LatentAttention"),
    ("exports", "LatentAttention absorbed"),
}


def test_only_what_is_asked_is_tried_in_an_interpreter_of_its_own():
    def item(property, **about):
        params = {"property": PROPERTIES[property]} | about
        return SimpleNamespace(callspec=SimpleNamespace(params=params))

    first, second = MECHANISMS[:2]
    (fault, _) = FAULTS["exports"]
    items = [item("compiles", mechanism=second), item("rows", mechanism=first)]
    items += [item("exports", fault=fault), SimpleNamespace()]
    asked = needed_alone(items)
    assert asked == {("compiles", second.name), ("exports", fault.name)}
    assert [*chosen(asked)] == [
        (PROPERTIES["compiles"], second),
        (PROPERTIES["exports"], fault),
    ]


@pytest.mark.parametrize(("property", "mechanism"), pairs(applies=True))
def test_the_property_holds(property, mechanism, request):
    if property.name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    known = (property.name, mechanism.name) in NOT_IN_2_6
    if known and torch.__version__ < (2, 7):
        pytest.skip("PyTorch 2.6 cannot trace it")
    if not property.alone:
        check(property, mechanism, share(property, MECHANISMS))
        return
    found = request.getfixturevalue("alone")[property.name, mechanism.name]
    assert "error" not in found, found["error"]


def untrue(excuse: Excuse, mechanism: Mechanism) -> str:
    """What to do in an entry that stands on an excuse which is not true of it."""
    entry = f"tests/conformance/mechanisms.py: {mechanism}"
    return f'{entry}: the excuse "{excuse.reason}" is not true: {excuse.remedy}'


@pytest.mark.parametrize(("property", "mechanism"), pairs(applies=False))
def test_a_property_that_does_not_apply_has_a_reason_that_is_true(
    property, mechanism, request
):
    excuse = excuse_for(property, mechanism)
    if excuse.holds == "fails" and property.alone:
        found = request.getfixturevalue("alone")[property.name, mechanism.name]
        assert found["caught"], untrue(excuse, mechanism)
    elif excuse.holds == "fails":
        assert catches(property, mechanism, examples=50), untrue(excuse, mechanism)
    else:
        assert excuse.holds(mechanism), untrue(excuse, mechanism)


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


def passing_on(queries, keys, values, mask=None, **options):
    """What it takes cannot be read from its signature."""
    return attend(queries, keys, values, mask, **options)


FALSE = {  # excuses that name what is not so
    "torchs": faulty("tells of no peer", attend, peer=None),
    "scale": faulty("hides its scale", passing_on, covers=passing_on),
    "hidden_bias": faulty("hides its bias", passing_on, covers=passing_on),
}


@pytest.mark.parametrize("name", FALSE)
def test_an_excuse_that_is_false_is_caught(name):
    excuse = excuse_for(PROPERTIES[name], FALSE[name])
    assert not excuse.holds(FALSE[name])


@pytest.mark.parametrize(
    ("name", "changes", "remedy"),
    [("torchs", {"peer": None}, "peer="), ("unseen", {"covers": form}, "form=")],
)
def test_an_entry_that_lacks_something_is_told_what(name, changes, remedy):
    lacking, asked = faulty("lacks it", attend, **changes), PROPERTIES[name]
    with pytest.raises(AssertionError, match=rf"mechanisms.py: lacks it: .*`{remedy}`"):
        test_a_property_that_does_not_apply_has_a_reason_that_is_true(
            asked, lacking, None
        )


@pytest.mark.parametrize(
    ("name", "remedy"), [("unseen", "clear_unseen.*excused="), ("oracle", "weigh=")]
)
def test_a_property_that_fails_says_what_may_be_missing(name, remedy):
    with pytest.raises(AssertionError, match=remedy):
        check(PROPERTIES[name], FAULTS[name][0], 50, UNSHRUNK)


def test_an_excuse_has_a_check():
    with pytest.raises(TypeError, match="holds"):
        Excuse("there is no time")


def sigmoid(scores, allowed):
    """Each key by itself, and the less of it the more are seen."""
    count = allowed.sum(dim=-1, keepdim=True).clamp(min=1)
    return (scores - count.log()).masked_fill(~allowed, -torch.inf).sigmoid()


def sigmoid_attend(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
    """A form with the options of the protocol alone, and no softmax in it."""
    queries, keys, values = unified(queries, keys, values)
    shape = check_fit(queries, keys, values, causal=causal)
    mask = visible(shape, mask, causal, queries.device)
    keys, values = clear_unseen(keys, values, mask, shape)
    allowed = torch.ones(shape, dtype=torch.bool, device=queries.device)
    allowed = allowed if mask is None else allowed & mask
    with as_given(queries):
        scores = dot_product(queries, repeat_kv(keys, queries))
        weights = sigmoid(scores * queries.shape[-1] ** -0.5, allowed)
        weights = nn.functional.dropout(weights.to(values.dtype), dropout_p)
        return weights @ repeat_kv(values, queries)


BY_SIGMOID = Mechanism(
    name="sigmoid_attend",
    covers=sigmoid_attend,
    form=sigmoid_attend,
    make=lambda sizes, dropout=0.0: partial(sigmoid_attend, dropout_p=dropout),
    reads=QUERIES_KEYS_VALUES,
    weigh=sigmoid,
)


@pytest.mark.parametrize(
    "name", [n for n, each in PROPERTIES.items() if not each.alone]
)
def test_an_entry_is_enough_for_a_form_that_is_no_softmax(name, request):
    property = PROPERTIES[name]
    if excuse_for(property, BY_SIGMOID) is None:
        check(property, BY_SIGMOID, 10)
    else:
        test_a_property_that_does_not_apply_has_a_reason_that_is_true(
            property, BY_SIGMOID, request
        )


def test_a_form_that_is_no_softmax_is_asked_what_it_takes():
    asked = {n for n, each in PROPERTIES.items() if not excuse_for(each, BY_SIGMOID)}
    assert asked > {"oracle", "half", "hidden", "unseen", "grouped", "dropout"}
    assert not asked & {"rows", "torchs", "loud", "scale", "learned", "window"}
    assert catches(PROPERTIES["oracle"], replace(BY_SIGMOID, weigh=softmax), 20)
    wrong = replace(BY_SIGMOID, weigh=lambda scores, allowed: scores.sigmoid())
    assert catches(PROPERTIES["grouped"], wrong, 20)


def test_a_peer_is_missed_whatever_the_scale_and_the_bias():
    by_name = {mechanism.name: mechanism for mechanism in MECHANISMS}
    for name in ("attend biased", "simple_self_attention", "CrossAttention"):
        silent = replace(by_name[name], peer=None)
        assert not excuse_for(PROPERTIES["torchs"], silent).holds(silent)


def test_what_is_taken_through_options_is_asked_for():
    passing = faulty("passes options on", passing_on, covers=passing_on)
    assert excuse_for(PROPERTIES["dropout"], passing) is None
    assert catches(PROPERTIES["dropout"], passing, examples=50)  # it does not drop
    assert takes_mask(faulty("", lambda **options: None, covers=lambda **options: None))


def paired(queries, keys, values, mask=None):
    """As rotary forms, it takes even widths alone."""
    if queries.shape[-1] % 2:
        raise ValueError(f"head_dim: expected an even width, got {queries.shape[-1]}")
    return attend(queries, keys, values, mask)


def even(sizes):
    return replace(sizes, head_dim=2 * sizes.head_dim, heads=2 * sizes.heads)


@pytest.mark.parametrize("name", ["oracle", "torchs", "edges", "rows"])
def test_a_mechanism_says_which_sizes_fit_it(name):
    check(PROPERTIES[name], faulty("in pairs", paired, fits=even), 20)
    with pytest.raises(ValueError, match="an even width"):
        check(PROPERTIES[name], faulty("in pairs", paired), 20, UNSHRUNK)


def test_a_failure_that_is_expected_is_not_shrunk():
    calls = []

    def never(case):
        calls.append(case)
        raise AssertionError

    wants = {"excuse": lambda mechanism: None, "wants": {}, "alone": False}
    property = Property("never", "is never true", never, **wants)
    assert catches(property, MECHANISMS[1], examples=200)
    assert len(calls) <= 3  # found, and told once more


@pytest.mark.parametrize(
    "name",
    [name for name, each in PROPERTIES.items() if each.holds.__module__ == FORMS],
)
def test_what_is_asked_of_forms_is_true_of_the_plain_table(name):
    check(PROPERTIES[name], of_form("the plain table", form), 20)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, which interprets
@pytest.mark.parametrize("name", ["scale", "learned", "loud", "grouped", "window"])
def test_kernels_hold_what_is_asked_of_forms(name):
    pytest.importorskip("triton", minversion="3.7")
    check(PROPERTIES[name], KERNELS, 2, UNSHRUNK)


def test_each_property_has_a_fault():
    assert FAULTS.keys() == PROPERTIES.keys()


def test_every_public_name_is_a_mechanism_or_has_a_reason():
    new = sorted(unaccounted())
    assert not new, (
        f"{new} must each have an entry in MECHANISMS (tests/conformance/mechanisms.py)"
        " if it attends, or else a reason in tests/conformance/names.py: a module in"
        ' AROUND, like "QKNorm": f"none: {TURNS}", any other name in OTHERS, like'
        ' "alibi": BIAS'
    )


def test_no_reason_is_left_over():
    covered = {mechanism.covers.__name__ for mechanism in MECHANISMS}
    listed = {*OTHERS, *ELSEWHERE, *AROUND}
    left = sorted(listed - (public().keys() - covered))
    assert not left, (
        f"{left}: must leave OTHERS, ELSEWHERE and AROUND (tests/conformance/names.py):"
        " no such name is public, or it has an entry in MECHANISMS"
    )


PUBLIC = public()  # once: it goes through all modules


@pytest.mark.parametrize("name", sorted(OTHERS.keys() & PUBLIC.keys()))
def test_what_is_said_not_to_attend_does_not_look_like_it(name):
    thing = PUBLIC[name]
    looks = "makes numbers of values or of a sequence"
    around = ""
    if isinstance(thing, type):
        looks = "is a module"
        around = (
            ", or, if it does not attend by itself, a reason in AROUND, like"
            ' "QKNorm": f"none: {TURNS}"'
        )
    assert not seems_to_attend(thing), (
        f"tests/conformance/names.py: OTHERS holds `{name}`, which {looks}: it must"
        " have an entry in MECHANISMS instead (tests/conformance/mechanisms.py), like"
        f' Mechanism(name="SelfAttention", …){around}'
    )


@pytest.mark.parametrize("name", sorted(AROUND))
def test_what_attends_through_another_does_not_attend_by_itself(name):
    by = attends_by_itself(PUBLIC[name])
    assert not by, (
        f"tests/conformance/names.py: AROUND holds `{name}`, which calls {sorted(by)}:"
        " what attends by itself must have an entry in MECHANISMS instead"
        ' (tests/conformance/mechanisms.py), like Mechanism(name="SelfAttention", …)'
    )
    assert attends_by_itself(PUBLIC["SelfAttention"]) == {"attend"}


def test_a_new_mechanism_is_found_by_itself(monkeypatch):
    def hasty_attend(queries, keys, values):
        return attend(queries, keys, values)

    monkeypatch.setattr(attention, "hasty_attend", hasty_attend, raising=False)
    monkeypatch.setattr(attention, "__all__", [*attention.__all__, "hasty_attend"])
    assert unaccounted() == {"hasty_attend"}
    must = r"\['hasty_attend'\] must each have an entry in MECHANISMS"
    with pytest.raises(AssertionError, match=must):
        test_every_public_name_is_a_mechanism_or_has_a_reason()
