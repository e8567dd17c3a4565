"""What `mutate.py` changes in a program, and how it tells of it."""

import ast
from types import SimpleNamespace

import mutate
from mutate import SoonRed, change, mutants

SOURCE = '''
def largest(numbers: Float[Tensor, "2 n"], start: float | None = 1.5) -> Int[3]:
    """The largest of 2 numbers."""
    for number in numbers:
        if start < number and not number == 7:
            start = -number
    if start > 5:
        raise ValueError("more than 5")
    return start
'''


def test_every_mutant_is_another_program_with_one_change():
    texts = [text for _, text in mutants(SOURCE)]
    plain = ast.unparse(ast.parse(SOURCE))
    assert len({plain, *texts}) == len(texts) + 1 == 14
    for text in texts:
        lines = zip(plain.splitlines(), text.splitlines(), strict=True)
        assert sum(a != b for a, b in lines) == 1


def test_a_mutant_is_told_with_its_line_and_what_stands_around_it():
    plain = ast.unparse(ast.parse(SOURCE))
    told = {(line, change(plain, text)) for line, text in mutants(SOURCE)}
    assert (6, "`start = -number` → `start = number`") in told
    assert (9, "`return start` → `return None`") in told


def test_text_and_annotations_are_left_as_they_are():
    for _, text in mutants(SOURCE):
        assert "The largest of 2 numbers." in text
        assert 'Float[Tensor, "2 n"]' in text.replace("'", '"')
        assert "-> Int[3]" in text


def test_a_mutant_that_takes_too_long_is_told_and_is_none_that_was_killed(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "plain.py").write_text("def half(number):\n    return number / 2\n")
    outcomes = iter([True, None, True, False])  # first, the plain code passes
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    monkeypatch.setattr(mutate, "begin", lambda *asked: 1.0)
    monkeypatch.setattr(mutate, "passes", lambda *asked, limit: next(outcomes))
    fates = mutate.run("plain.py", None)
    assert fates == {"too slow": 1, "survived": 1, "killed": 1}
    *lines, last = capsys.readouterr().out.splitlines()
    assert ["too slow" in line for line in lines] == [True, False]
    assert last == "plain.py: 1 killed, 1 survived, 1 too slow, of 3"


def test_a_test_that_has_noticed_a_mutant_comes_sooner(tmp_path):
    order, red = SoonRed(), tmp_path / "red"
    took = {"slow": 1.0, "quick": 0.1, "cases[0]": 2.0, "cases[1]": 0.0}
    items = [SimpleNamespace(nodeid=name) for name in took]
    for name, seconds in took.items():
        report = {"nodeid": name, "duration": seconds, "failed": False}
        order.pytest_runtest_logreport(SimpleNamespace(**report))
    order.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["quick", "slow", "cases[0]", "cases[1]"]
    red.write_text("cases[1]")
    for _ in range(2):  # the second time there is nothing new
        order.learn(red)
    order.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == ["cases[1]", "quick", "slow", "cases[0]"]
    assert order.noticed.total() == 1
