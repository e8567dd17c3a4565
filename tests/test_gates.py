"""A gate says what is missing, where, and gives an example of how it can be."""

import copy
import re
import subprocess
from functools import partial

import pytest
import test_book
import test_conformance
import test_exercises
import test_reference
from examples import said
from test_book import Chapter

NAME = "core/masks"
FILE = f"book/{NAME}.ipynb"


def broken(cell_id: str, **changes) -> Chapter:
    """A chapter in which a cell is changed."""
    chapter = copy.deepcopy(Chapter(NAME))
    (cell,) = (cell for cell in chapter.cells if cell["id"] == cell_id)
    for key, change in changes.items():
        cell[key] = change(cell[key]) if callable(change) else change
    hidden = {"hide-input", "exercise", "solution"}
    chapter.shown = [
        cell for cell in chapter.code if not hidden & set(test_book.tangle.tags(cell))
    ]
    return chapter


def padded(chapter: Chapter) -> Chapter:
    for cell in chapter.shown:
        cell["source"] += "\nx = 1" * 6
    return chapter


def without(*tags: str):
    return lambda metadata: {**metadata, "tags": [*tags]}


WHOLE = {"mystnb": {"figure": {"name": "fig-x", "caption": "A map."}}}
LACKING = {
    "output_type": "stream",
    "name": "stdout",
    "text": "not yet: name 'log' is not defined\n",
}
TOLD = {
    "a figure without a caption": (
        test_book.test_every_figure_says_what_it_shows_and_what_to_conclude,
        broken("map", metadata={}),
        (FILE, "cell", "(map)", "must have a caption", '"name": "fig-near"'),
    ),
    "a caption that concludes nothing": (
        test_book.test_every_figure_says_what_it_shows_and_what_to_conclude,
        broken("map", metadata=lambda old: {"mystnb": old["mystnb"] | WHOLE["mystnb"]}),
        (FILE, "(map)", "what to conclude, like", "fig-near", "not 'A map.'"),
    ),
    "a name made by a machine": (
        test_book.test_cells_have_readable_names_of_their_own,
        broken("harm", id="3f2a9b7c"),
        (FILE, "cell", "(3f2a9b7c)", "id of words, like by-hand-text"),
    ),
    "a cell that was not run": (
        test_book.test_every_code_cell_was_executed_in_order,
        broken("harm", execution_count=None),
        (FILE, "(harm)", "run as number 4, not None", f"CHAPTERS={NAME}"),
    ),
    "long cells": (
        test_book.test_code_cells_are_short,
        padded(broken("harm")),
        (FILE, "at most 5 lines, not", "has", "hide-input"),
    ),
    "more code than words": (
        test_book.test_prose_and_code_keep_their_balance,
        padded(broken("harm")),
        (
            FILE,
            "at least",
            "words and at most",
            "8 to 20 for each",
            "say what the code",
        ),
    ),
    "more folded code than any number of words fits": (
        test_book.test_prose_and_code_keep_their_balance,
        broken("sol-window", source="\n".join(["x = 1"] * 600)),
        (FILE, "words and at most", "No text can do that", "hide-input"),
    ),
    "a stub that passes": (
        test_book.test_an_exercise_fails_until_it_is_solved,
        broken("ex-window", outputs=[]),
        (FILE, "(ex-window)", "stub must fail its check", "not yet", "not ''"),
    ),
    "a stub that lacks a name": (
        test_book.test_an_exercise_fails_until_it_is_solved,
        broken("ex-window", outputs=[LACKING]),
        (FILE, "(ex-window)", "find its names", "import them earlier", "name 'log'"),
    ),
    "two exercises": (
        test_book.test_an_exercise_fails_until_it_is_solved,
        broken("ex-window", metadata=without()),
        (FILE, "at least 3 cells tagged `exercise`", "(2, 3)", "like ex-window"),
    ),
    "a solution in view": (
        test_book.test_an_exercise_fails_until_it_is_solved,
        broken("sol-window", metadata=without("solution")),
        (FILE, "(sol-window)", "must be folded, by the tag `hide-cell`"),
    ),
    "no sources": (
        test_book.test_a_chapter_ends_in_exercises_and_sources,
        broken("sources", source="## Literature"),
        (FILE, "must end with `## Exercises` and `## Sources`", "Literature"),
    ),
    "a line that does not fit": (
        test_book.test_lines_of_code_fit_the_page,
        broken("harm", source="x" * 89),
        (FILE, "(harm)", "at most 88 characters, not 89"),
    ),
}


@pytest.mark.parametrize(("gate", "chapter", "fields"), TOLD.values(), ids=[*TOLD])
def test_a_gate_says_what_is_missing_where_and_how_it_can_be(gate, chapter, fields):
    gate(Chapter(NAME))
    with pytest.raises(AssertionError, match=said(*fields)):
        gate(chapter)


def test_an_exercise_without_answers_is_told_with_its_file_and_an_example(monkeypatch):
    monkeypatch.setattr(test_exercises, "answers", lambda *asked: [])
    fields = (
        "tests/exercises/masks.py",
        "class window_mask, class wrong",
        "at least 3",
    )
    with pytest.raises(AssertionError, match=said(*fields, "refuse", "like those in")):
        test_exercises.test_every_exercise_has_three_wrong_answers_and_two_right_ones(
            NAME, "window_mask"
        )


@pytest.mark.parametrize(
    ("gone", "giver"),
    [("window_mask", "by ex-window, sol-window"), ("never", "by no cell")],
)
def test_a_name_that_an_exercise_lacks_is_told_with_its_giver(gone, giver, monkeypatch):
    def check(answer):
        return eval(gone, {})

    space = test_exercises.space(NAME) | {"check_window_mask": check}
    monkeypatch.setattr(test_exercises, "space", lambda chapter: space)
    asked = NAME, "window_mask", "right"
    answer = test_exercises.answers(*asked)[0]
    fields = (
        FILE,
        "window_mask: expected",
        f"`{gone}`",
        giver,
        "earlier cell",
        "masks.py",
    )
    with pytest.raises(NameError, match=said(*fields)):
        test_exercises.test_a_right_answer_passes_in_other_words_too(*asked[:2], answer)


def test_a_name_that_does_not_exist_is_told_with_what_to_do(monkeypatch):
    texts = test_book.texts
    more = ["`no_such_name` is."]
    monkeypatch.setattr(test_book, "texts", lambda name: texts(name) + more)
    fields = (f"book/{NAME}", "backticks must exist", "no_such_name", "Mend", "WORDS")
    with pytest.raises(AssertionError, match=said(*fields)):
        test_book.test_every_name_in_backticks_exists(NAME)


def test_what_attends_is_told_that_a_reason_will_not_do(monkeypatch):
    fields = ("names.py", "OTHERS holds `attend`", "entry in MECHANISMS", "Mechanism(")
    with pytest.raises(AssertionError, match=said(*fields)):
        test_conformance.test_what_is_said_not_to_attend_does_not_look_like_it("attend")
    monkeypatch.setitem(test_conformance.OTHERS, "no_such_name", "it is gone")
    fields = ("['no_such_name']", "must leave OTHERS", "names.py", "no such name")
    with pytest.raises(AssertionError, match=said(*fields)):
        test_conformance.test_no_reason_is_left_over()


PAGE = f"book/{NAME}"
PROSE = test_reference.prose(PAGE)
in_bold = (
    test_reference.test_a_term_in_bold_is_one_of_the_glossary_that_the_chapter_links
)
LOOKED_UP = {
    "a term in bold that is not linked": (
        "prose",
        lambda page: PROSE + "\n\nA **good idea** it is.",
        partial(in_bold, PAGE),
        (FILE, "must be linked", "[**good idea**](#term-good-idea)", "glossary.md"),
    ),
    "a term that is linked twice": (
        "prose",
        lambda page: PROSE + "\n\nA [query](#term-query), a [query](#term-query).",
        partial(test_reference.test_a_chapter_links_a_term_once, PAGE),
        (FILE, "linked once", "first used", "term-query"),
    ),
    "a term that the glossary lacks": (
        "glossary",
        dict,
        test_reference.test_every_term_is_linked_from_a_chapter,
        ("glossary.md", "must explain", "term-query", "line of its own"),
    ),
    "a term that no chapter links": (
        "links",
        lambda page: [],
        test_reference.test_every_term_is_linked_from_a_chapter,
        ("glossary.md", "linked from a chapter, like", "term-query"),
    ),
    "a term that is explained at length": (
        "glossary",
        lambda: {"term-query": "One. Two. Three. "},
        test_reference.test_a_term_is_explained_in_a_sentence_or_two,
        ("glossary.md", "term-query", "one or two sentences, not 3"),
    ),
    "a source that is not cited": (
        "prose",
        lambda page: "{cite:p}`raschka2024`",
        test_reference.test_every_source_is_cited_in_a_chapter,
        ("references.bib", "must be cited", "vaswani2017`", "these are not"),
    ),
}


@pytest.mark.parametrize(
    ("name", "given", "gate", "fields"), LOOKED_UP.values(), ids=[*LOOKED_UP]
)
def test_what_is_looked_up_is_told_with_its_file_and_an_example(
    name, given, gate, fields, monkeypatch
):
    gate()
    monkeypatch.setattr(test_reference, name, given)
    with pytest.raises(AssertionError, match=said(*fields)):
        gate()


@pytest.mark.parametrize(
    ("tasks", "fields"),
    [
        ([("1. One", "easy")] * 3, (FILE, "begin with its name in bold", "(easy)")),
        (
            [("1. One", ""), ("2. Two", ""), ("3. Three", "")],
            (FILE, "levels", "(easy)"),
        ),
    ],
)
def test_an_exercise_without_a_name_or_a_level_is_told_how_both_are_written(
    tasks, fields, monkeypatch
):
    monkeypatch.setattr(test_reference.exercises, "tasks", lambda root, page: tasks)
    with pytest.raises(AssertionError, match=said(*fields)):
        test_reference.test_every_exercise_is_listed_by_name_and_level(PAGE)


def test_a_module_that_does_not_attend_is_told_of_the_table_for_it(monkeypatch):
    monkeypatch.delitem(test_conformance.AROUND, "QKNorm")
    fields = ("['QKNorm']", "MECHANISMS", "names.py", "AROUND, like", "OTHERS, like")
    with pytest.raises(AssertionError, match=said(*fields)):
        test_conformance.test_every_public_name_is_a_mechanism_or_has_a_reason()
    asked = test_conformance.test_what_is_said_not_to_attend_does_not_look_like_it
    fields = ("OTHERS holds `QKNorm`", "is a module", "MECHANISMS", "AROUND, like")
    with pytest.raises(AssertionError, match=said(*fields)):
        asked("QKNorm")


def test_a_module_that_attends_is_told_that_another_table_will_not_do():
    asked = test_conformance.test_what_attends_through_another_does_not_attend_by_itself
    fields = ("names.py", "AROUND holds `SelfAttention`", "['attend']", "MECHANISMS")
    with pytest.raises(AssertionError, match=said(*fields)):
        asked("SelfAttention")


def test_the_short_loop_says_how_to_mend_style_and_asks_for_the_entry_of_each_name():
    asked = ["make", "--dry-run", "check", f"CHAPTER={NAME}"]
    made = subprocess.run(asked, cwd=test_book.ROOT, capture_output=True, text=True)
    names = "is_a_mechanism_or_has_a_reason", "left_over", "said_not_to_attend"
    for words in "ruff check --fix", *names, "attends_through", "new.py --left":
        assert words in made.stdout, made.stderr


def test_the_short_loop_asks_what_a_chapter_can_spoil_for_the_others():
    """What its words choose is collected, not run."""
    asked = ["make", "--dry-run", "check", f"CHAPTER={NAME}"]
    made = subprocess.run(asked, cwd=test_book.ROOT, capture_output=True, text=True)
    words = re.search(r'-k "(masks or [^"]+)"', made.stdout).group(1)
    for name in (
        "test_every_public_name_is_a_mechanism_or_has_a_reason",
        "test_no_reason_is_left_over",
        "test_what_is_said_not_to_attend_does_not_look_like_it[QKNorm]",
        "test_what_attends_through_another_does_not_attend_by_itself[Block]",
        "test_every_term_is_linked_from_a_chapter",
        "test_every_source_is_cited_in_a_chapter",
        "test_a_chapter_links_a_term_once[book/core/masks]",
    ):
        assert any(word in name for word in words.split(" or ")), name
    assert "tests/test_reference.py" in made.stdout
