"""What `mutate.py` changes in a program, and what it remembers."""

import ast

from mutate import Record, change, mutants

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


def test_a_record_is_read_as_it_was_written_and_keeps_the_reasons(tmp_path):
    file, what = "book/tangle.py", "`a \\| b` → `a & b`"
    record = Record(tmp_path / "record.md")
    record.counts[file] = {"mutants": 7, "tried": 5, "killed": 3, "slow": 1}
    record.survivors[file] = [(2, what), (11, "`3` → `4`")]
    record.reasons[file, what] = "both are the same"
    record.write()
    read = Record(record.path)
    assert (read.counts, read.survivors) == (record.counts, record.survivors)
    assert read.reasons[file, what] == "both are the same"
    read.again(file, {"killed": 1, "slow": 0}, [(2, what)])
    read.write()
    assert Record(record.path).counts[file]["killed"] == 4
    assert "| book/tangle.py | 2 | `a \\| b` → `a & b` | both are the same |" in (
        record.path.read_text("utf-8")
    )
