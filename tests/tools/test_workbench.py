"""The workbench: pictures with words, what changed, exercises that answer back."""

from functools import partial
from operator import mul
from unicodedata import is_normalized
from xml.dom import minidom

import numpy
import pytest
import torch
from examples import TOKENS, said, token_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from attention.tools.workbench import (
    canvas,
    check_tensor,
    described,
    draw_arrow,
    draw_boxes,
    draw_table,
    expected,
    grade,
    name_width,
    step,
    told,
    visible_token,
    well_formed,
)


def drawn(figure):
    return figure._repr_mimebundle_()[0]


def line_figure():
    figure = Figure()
    figure.subplots().plot([1, 2, 3], label="a line")
    return figure


def test_a_described_figure_shows_as_svg_together_with_its_words():
    bundle = drawn(described(line_figure(), "A rising line."))
    assert set(bundle) == {"image/svg+xml", "text/plain"}
    assert bundle["text/plain"] == "A rising line."
    assert "<svg" in bundle["image/svg+xml"]


def test_the_same_data_gives_the_same_bytes():
    first, second = (drawn(described(line_figure(), "words")) for _ in range(2))
    assert first == second


def test_a_picture_carries_no_date_and_no_version():
    svg = drawn(described(line_figure(), "words"))["image/svg+xml"]
    assert "dc:date" not in svg
    assert "matplotlib.org" not in svg


def test_a_picture_lets_the_page_shine_through():
    svg = drawn(described(line_figure(), "words"))["image/svg+xml"]
    assert "fill: #ffffff" not in svg


def test_letters_in_a_picture_stay_letters():
    figure = line_figure()
    figure.suptitle("readable")
    assert ">readable<" in drawn(described(figure, "words"))["image/svg+xml"]


def test_a_figure_without_words_is_refused():
    with pytest.raises(ValueError, match=said("description", "expected", "got")):
        described(line_figure(), "  ")


@pytest.mark.filterwarnings("ignore:Glyph")  # of matplotlib, about its font
def test_controls_in_a_title_or_in_the_words_spoil_nothing():
    figure = line_figure()
    figure.suptitle("a\x00b\x1b[0m\ufffe")
    bundle = drawn(described(figure, "one\ntwo \x00\ud83d"))
    minidom.parseString(bundle["image/svg+xml"].encode())
    assert ">a�b�[0m�<" in bundle["image/svg+xml"]
    assert bundle["text/plain"] == "one\ntwo ��"


@given(st.text(st.characters(exclude_categories=())))
@example("\x00\t\n\r\x7f\x85\ud800\ufdd0\ufffe\U0010ffff\U0001fffe")
def test_what_is_well_formed_can_be_written_and_read_back(text):
    clean = well_formed(text)
    element = minidom.Document().createTextNode(clean).toxml()
    read = minidom.parseString(f"<a>{element}</a>".encode()).documentElement
    assert "".join(node.data for node in read.childNodes) == clean
    assert len(clean) == len(text)
    assert clean == text or "�" in clean


# Tokens, and the room of names


@settings(max_examples=1000)
@given(TOKENS)
@example("")
@example("\ud83d")
@example("\ufffe")
@example("e\u0301")
@example("⟨U+000A⟩")
def test_every_token_has_a_look_of_its_own(token):
    shown = visible_token(token)
    assert token_of(shown) == token
    assert is_normalized("NFC", shown)  # so not even alike to a reader of Unicode
    assert shown.isprintable()
    assert shown == shown.strip() != ""


LOOKS = {
    "a word": ("cat", "cat"),
    "a space before": (" cat", "␣cat"),
    "a space inside": ("New York", "New York"),
    "two inside": ("New  York", "New␣␣York"),
    "a line break": ("\n", "↵"),
    "a line break and a space": ("\n a", "↵␣a"),
    "a tab": ("\t", "⇥"),
    "nothing": ("", "∅"),
    "the sign for nothing": ("∅", "⟨U+2205⟩"),
    "a control": ("\x1b[0m", "⟨U+001B⟩[0m"),
    "no character": ("\ufffe", "⟨U+FFFE⟩"),
    "half a character": ("\ud83d", "⟨U+D83D⟩"),
    "a change of direction": ("\u202eabc", "⟨U+202E⟩abc"),
    "a space that does not break": ("New\u00a0York", "New⟨U+00A0⟩York"),
    "a letter": ("é", "é"),
    "its pieces": ("e\u0301", "e⟨U+0301⟩"),
    "an accent alone": ("\u0301", "◌\u0301"),
    "Hindi": ("हिन्दी", "हिन्दी"),
    "Chinese": ("注意", "注意"),
    "a picture": ("😀", "😀"),
    "what is not whitespace in HTML": ("\u3164", "⟨U+3164⟩"),
}


@pytest.mark.parametrize(("token", "shown"), LOOKS.values(), ids=LOOKS.keys())
def test_a_token_is_shown_whole_and_on_one_line(token, shown):
    assert visible_token(token) == shown


def test_a_name_has_the_room_that_its_letters_are_drawn_in():
    for name in ("m" * 40, "W" * 40):
        figure = Figure(figsize=(0.1, 0.1), dpi=3600)
        drawn = figure.text(0, 0, name, fontsize=9).get_window_extent()
        assert name_width(name) == pytest.approx(drawn.width / 3600, rel=5e-3)


def test_the_room_of_a_name_is_that_of_its_parts():
    assert name_width("Wm") == pytest.approx(name_width("W") + name_width("m"))


def test_a_letter_that_the_font_lacks_gets_a_box_and_no_warning():
    figure = Figure()
    lacking, known = (figure.text(0, 0, text) for text in ("a \U0010fffd", "a b"))
    family = known.get_fontfamily()
    draw_boxes(lacking, known)
    figure.draw_without_rendering()
    assert known.get_fontfamily() == family


# What changed, and exercises


def one(x):
    return x


def two(x):
    x = x + 1
    return x


class Before:
    size = 3

    def forward(self, x):
        return x

    def backward(self, x):
        return x


class After:
    def forward(self, x):
        return 2 * x

    def backward(self, x):
        return x


def test_step_shows_the_lines_that_went_and_came():
    lines = step(one, two).splitlines()
    went, came, new, same = lines[1:]
    assert (went, came) == ("-def one(x):", "+def two(x):")
    assert (new, same) == ("+    x = x + 1", "     return x")


def test_step_of_a_thing_with_itself_is_empty():
    assert step(one, one) == ""


def test_step_compares_classes_method_by_method():
    lines = step(Before, After).splitlines()
    assert "-    return x" in lines
    assert "+    return 2 * x" in lines
    around = [line for line in lines if line[0] == " "]
    assert around == [" def forward(self, x):", " "]  # no more than a line each


def is_double(answer):
    if answer(2) != 4:
        raise AssertionError("twice two is four")


def is_double_to_a_digit(answer):
    assert abs(answer(2) - 4) < 0.1, "twice two is four"


def test_grade_says_what_is_missing(capsys):
    grade(is_double, lambda x: x)
    assert capsys.readouterr().out == "not yet: twice two is four\n"


def test_grade_survives_a_half_written_answer(capsys):
    grade(is_double, lambda x: x.nothing)
    said = capsys.readouterr().out
    assert said.startswith("not yet: AttributeError: 'int' object has no attribute")


def test_grade_names_an_error_whose_words_say_little(capsys):
    grade(is_double, lambda x: {}["double"])
    assert capsys.readouterr().out == "not yet: KeyError: 'double'\n"


def test_grade_tells_of_a_list_in_the_place_of_a_tensor(capsys):
    grade(lambda answer: answer().sum(dim=-1), lambda: [1.0, 2.0])
    said = capsys.readouterr().out
    assert said.startswith("not yet: expected a torch.Tensor, got list")


def test_grade_says_what_an_answer_gave_that_a_check_stumbled_over(capsys):
    grade(lambda answer: not answer(), lambda: torch.ones(3) > 0)
    said = capsys.readouterr().out
    assert said.endswith("; the answer gave torch.bool (3,) on cpu\n")


def test_grade_tells_of_an_array_in_the_place_of_a_tensor(capsys):
    def check(answer):
        if answer().dtype != torch.bool:
            raise AssertionError("a mask is boolean")

    grade(check, lambda: numpy.ones(3) > 0)
    assert capsys.readouterr().out == (
        "not yet: a mask is boolean; the answer gave ndarray\n"
    )


def test_grade_hands_a_kernel_or_a_class_over_as_it_is(capsys):
    def check(answer):
        assert answer[2,](3) == 6, "twice three is six"

    class Kernel:
        def __getitem__(self, grid):
            return lambda x: grid[0] * x

        def __call__(self):
            raise TypeError("a kernel is launched with a grid")

    grade(check, Kernel())
    assert capsys.readouterr().out == "Kernel: passed\n"


def test_grade_keeps_to_the_words_of_a_check(capsys):
    grade(is_double, lambda x: 3 * x)
    assert capsys.readouterr().out == "not yet: twice two is four\n"


def test_grade_says_nothing_of_an_earlier_call_if_the_answer_itself_fails(capsys):
    def check(answer):
        answer(1)
        answer(0)

    grade(check, lambda x: 1 / x)
    assert capsys.readouterr().out == "not yet: ZeroDivisionError: division by zero\n"


def test_grade_asks_for_the_return_that_is_missing(capsys):
    grade(is_double_to_a_digit, lambda x: None)
    assert capsys.readouterr().out.endswith("; is a `return` missing?\n")


def test_grade_names_an_error_that_says_nothing(capsys):
    def stub(x):
        raise NotImplementedError

    grade(is_double, stub)
    assert capsys.readouterr().out == "not yet: NotImplementedError\n"


def test_grade_praises_by_name(capsys):
    def double(x):
        return 2 * x

    grade(is_double, double)
    assert capsys.readouterr().out == "double: passed\n"


def test_grade_takes_an_answer_that_has_no_name(capsys):
    grade(is_double, partial(mul, 2))
    assert capsys.readouterr().out == "partial: passed\n"


def test_a_table_has_a_cell_for_each_number_and_says_its_name_and_shape():
    _, axes = canvas(11, 7)
    draw_table(axes, "keys", (2, 3, 5), (1, 2))
    boxes = [cell.get_bbox().bounds for cell in axes.patches]
    assert boxes == [(1 + j, 2 + i, 1, 1) for i in range(3) for j in range(5)]
    name, shape = axes.texts
    assert (name.get_text(), shape.get_text()) == ("keys", "2 × 3 × 5")
    assert 1 < name.get_position()[1] < 2  # both within a cell of the table
    assert 2 + 3 < shape.get_position()[1] < 2 + 3 + 1
    assert name.get_position()[0] == shape.get_position()[0] == 1 + 5 / 2


def test_the_columns_of_a_table_are_shared_among_its_inks():
    _, axes = canvas(11, 7)
    inks = ("#ff0000", "#0000ff")
    draw_table(axes, "wide", (1, 4), (0, 0), inks, shade=lambda i, j: j / 10)
    red, blue = (1, 0, 0), (0, 0, 1)
    assert [cell.get_edgecolor()[:3] for cell in axes.patches] == [red, red, blue, blue]
    assert [cell.get_facecolor() for cell in axes.patches] == [
        (*red, 0.0),
        (*red, 0.1),
        (*blue, 0.2),
        (*blue, 0.3),
    ]


def test_a_canvas_counts_cells_downwards_and_has_no_axes():
    figure, axes = canvas(11, 7)
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 11), (7, 0))
    assert not axes.axison
    assert axes.get_position().bounds == (0, 0, 1, 1)  # nothing is left at its sides
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(11 / 7)  # cells are squares


def test_an_arrow_leads_from_start_to_end_with_its_words_over_its_middle():
    _, axes = canvas(11, 7)
    draw_arrow(axes, (1, 2), (5, 5), "softmax")
    arrow, words = axes.texts
    assert (arrow.xyann, arrow.xy) == ((1, 2), (5, 5))
    assert (arrow.arrow_patch.shrinkA, arrow.arrow_patch.shrinkB) == (0, 0)
    assert words.get_text() == "softmax"
    x, y = words.get_position()
    assert x == (1 + 5) / 2
    assert (2 + 5) / 2 - 1 < y < (2 + 5) / 2


def test_an_error_tells_what_was_expected_and_what_came():
    error = expected("mask", "booleans", torch.ones(2, 3))
    assert isinstance(error, ValueError)
    assert str(error) == "mask: expected booleans, got torch.float32 (2, 3) on cpu"


def test_what_is_no_tensor_is_told_as_it_prints():
    assert told((2, 3)) == "(2, 3)"
    assert told("two words") == "two words"
    assert told(torch.ones(2, device="meta")) == "torch.float32 (2,) on meta"


@pytest.mark.parametrize(
    ("thing", "name", "convertible"),
    [
        ([[1.0]], "list", True),
        ((1.0,), "tuple", True),
        (numpy.ones(2), "ndarray", True),
        ({1.0}, "set", False),
        (None, "NoneType", False),
    ],
)
def test_what_is_no_tensor_is_refused_and_told_how_to_become_one(
    thing, name, convertible
):
    with pytest.raises(TypeError) as caught:
        check_tensor(x=torch.ones(1), weights=thing)
    must = f"weights: expected a torch.Tensor, got {name}"
    how = "; torch.as_tensor(weights) makes one" if convertible else ""
    assert str(caught.value) == must + how
