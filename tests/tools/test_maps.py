"""Maps: what is drawn, what is said, and what is refused."""

import io
import re
import subprocess
import sys
import time
from itertools import pairwise
from xml.dom import minidom

import numpy
import pytest
import torch
from examples import TOKENS, said
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib import pyplot, rc_context, rcParamsDefault
from matplotlib.colors import to_rgb

from attention import describe_weights, show_weights
from attention.tools.maps import _told_apart, as_maps
from attention.tools.workbench import visible_token

QUERIES, KEYS = ["a", "b", "c"], ["v", "w", "x", "y", "z"]
LAYERS = {"axes": ("layer", "head")}


def some_weights(*heads):
    return torch.rand(*heads, 3, 5).softmax(dim=-1)


def svg(figure):
    return figure._repr_mimebundle_()[0]["image/svg+xml"]


def opacities(figure):
    return [float(o) for o in re.findall(r"opacity: ([\d.]+)", svg(figure))]


def test_the_description_names_the_key_where_each_query_looks_most():
    weights = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    words = describe_weights(weights, ["cat", "sat"], ["the", "mat"])
    assert words == (
        "Attention map: 2 queries (rows) by 2 keys (columns). "
        "Strongest: cat → the 0.70, sat → mat 0.80."
    )


def test_a_tie_up_to_rounding_goes_to_the_first_key():
    weights = torch.tensor([[0.5 - 1e-6, 0.5 + 1e-6]])
    assert "q → k 0.50" in describe_weights(weights, ["q"], ["k", "l"])


def test_several_heads_are_described_one_by_one():
    words = describe_weights(some_weights(2), QUERIES, KEYS)
    assert "Head 1, strongest: a → " in words
    assert "Head 2, strongest: a → " in words


def test_layers_and_heads_are_both_named():
    words = describe_weights(some_weights(2, 3), QUERIES, KEYS, **LAYERS)
    for layer in (1, 2):
        for head in (1, 2, 3):
            assert f"Layer {layer}, head {head}, strongest: a → " in words


@pytest.mark.parametrize(("heads", "pairs"), [((16,), 3 * 16), ((17,), 17)], ids=str)
def test_more_than_sixteen_maps_are_described_by_one_pair_each(heads, pairs):
    assert describe_weights(some_weights(*heads), QUERIES, KEYS).count(" → ") == pairs


@pytest.mark.parametrize(("size", "brief", "pairs"), [(2, True, 1), (17, False, 17)])
def test_who_asks_gets_one_pair_or_all_of_them(size, brief, pairs):
    weights, names = torch.full((size, 2), 0.5), [f"q{i}" for i in range(size)]
    assert (
        describe_weights(weights, names, ["k", "l"], brief=brief).count(" → ") == pairs
    )


def test_sixteen_queries_are_described_one_by_one():
    weights, names = torch.full((16, 2), 0.5), [f"q{i}" for i in range(16)]
    assert describe_weights(weights, names, ["k", "l"]).count(" → ") == 16


def test_of_scores_the_strongest_is_the_farthest_from_zero():
    words = describe_weights(
        torch.tensor([[-2.0, 1.0]]), ["q"], ["k", "l"], signed=True
    )
    assert words.endswith("(columns). Strongest: q → k -2.00.")
    assert words.startswith("Scores: 1 queries")


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (-0.004, "0.00"),
        (-0.006, "-0.01"),
        (9.99, "9.99"),
        (9.996, "10.0"),
        (-16.92, "-16.9"),
        (99.96, "100"),
        (-1692.4, "-1692"),
        (99999.7, "1.00e+05"),
    ],
)
def test_a_score_has_three_digits_or_its_whole_part_and_zero_no_minus(score, told):
    words = describe_weights(torch.tensor([[score]]), "q", "k", signed=True)
    assert words.endswith(f"q → k {told}.")
    figure = show_weights(torch.tensor([[score]]), "q", "k", signed=True)
    assert [text.get_text() for text in figure.axes[0].texts] == [told]


def test_a_large_map_is_described_by_its_strongest_pair():
    weights = torch.full((17, 2), 0.5)
    weights[11, 1] = 0.75
    names = [f"q{i}" for i in range(17)]
    words = describe_weights(weights, names, ["k", "l"])
    assert words.endswith("Strongest: q11 → l 0.75.")


def test_equal_tokens_are_told_apart_by_their_place():
    weights = torch.eye(3)
    words = describe_weights(weights, ["the", "cat", "the"], ["the", "The", "a"])
    assert words.endswith("the (1) → the 1.00, cat → The 1.00, the (3) → a 1.00.")


def test_the_description_says_that_cells_are_forbidden():
    mask = torch.ones(3, 5, dtype=torch.bool)
    assert "Hatched" not in describe_weights(some_weights(), QUERIES, KEYS, mask=mask)
    mask[0, 0] = False
    assert "Hatched" in describe_weights(some_weights(), QUERIES, KEYS, mask=mask)


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
import torch, attention
print(attention.describe_weights(torch.ones(1, 1), ["q"], ["k"]))
attention.show_weights(torch.ones(1, 1), ["q"], ["k"])
"""


def test_without_matplotlib_maps_are_described_and_drawing_says_what_is_missing():
    command = [sys.executable, "-c", WITHOUT_MATPLOTLIB]
    run = subprocess.run(command, capture_output=True, text=True)
    assert "q → k 1.00" in run.stdout, run.stderr
    assert "pip install 'building-attention[maps]'" in run.stderr


def test_the_picture_carries_the_description():
    weights = some_weights()
    bundle = show_weights(weights, QUERIES, KEYS)._repr_mimebundle_()[0]
    assert bundle["text/plain"] == describe_weights(weights, QUERIES, KEYS)


def test_the_weight_of_a_cell_is_its_opacity():
    weights = torch.tensor([[0.25, 0.75]])
    assert opacities(show_weights(weights, ["q"], ["k", "l"])) == [0.25, 0.75]


def test_the_first_query_is_drawn_on_top():
    figure = show_weights(some_weights(), QUERIES, KEYS)
    axes = figure.axes[0]
    assert axes.get_ylim() == (3, 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == QUERIES
    assert [label.get_text() for label in axes.get_xticklabels()] == KEYS


def test_a_cell_is_a_square_in_its_place_with_its_number_in_the_middle():
    weights = torch.tensor([[0.05, 0.95], [0.04, 0.96]])
    axes = show_weights(weights, ["q", "r"], ["k", "l"]).axes[0]
    middles = [(0.5, 0.5), (1.5, 0.5), (0.5, 1.5), (1.5, 1.5)]
    centres = torch.tensor(
        [[*map(float, square.get_center())] for square in axes.patches]
    )
    torch.testing.assert_close(centres, torch.tensor(middles))
    assert {(p.get_width(), p.get_height()) for p in axes.patches} == {(0.94, 0.94)}
    assert [text.get_position() for text in axes.texts] == middles
    told = [(text.get_text(), text.get_color()) for text in axes.texts]
    assert told == [
        ("0.05", "black"), ("0.95", "black"), ("0.04", "black"), ("0.96", "white")
    ]  # fmt: skip


def test_keys_stand_above_queries_on_the_left_and_nothing_frames_the_map():
    axes = show_weights(some_weights(), QUERIES, KEYS).axes[0]
    assert axes.get_xlim() == (0, 5)
    assert axes.get_aspect() == 1
    assert axes.get_xticks().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert axes.get_yticks().tolist() == [0.5, 1.5, 2.5]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("keys", "queries")
    assert axes.xaxis.get_ticks_position() == axes.xaxis.get_label_position() == "top"
    assert not any(spine.get_visible() for spine in axes.spines.values())
    ticks = axes.xaxis.get_ticklines() + axes.yaxis.get_ticklines()
    assert {tick.get_markersize() for tick in ticks} == {0}


@pytest.mark.parametrize(
    ("heads", "sides", "inches"),
    [
        ((), (3, 5), (3.3, 2.34)),
        ((), (8, 8), (4.6, 4.6)),  # no wider than can be read on a phone
        ((), (9, 5), (2.0, 2.88)),
        ((), (3, 40), (9.7, 1.56)),  # wider than a page
        ((2,), (3, 5), (4.6, 2.01)),
        ((3,), (3, 4), (4.6, 1.825)),
        ((5,), (3, 5), (4.6, 6.63)),  # three in a row would be too wide for a phone
        ((2,), (3, 8), (4.6, 4.975)),
        ((2,), (3, 40), (9.7, 3.52)),
    ],
    ids=str,
)
def test_a_picture_is_as_large_as_its_cells(heads, sides, inches):
    weights = torch.full((*heads, *sides), 1 / sides[1])
    figure = show_weights(weights, ["q"] * sides[0], ["k"] * sides[1])
    assert figure.get_size_inches().tolist() == pytest.approx(inches)


def test_long_names_take_no_room_from_the_cells():
    weights, tokens = torch.full((2, 5, 5), 0.2), ["international", *"abcd"]
    for maps, inches in ((weights, 0.3), (weights[0], 0.48)):
        figure = show_weights(maps, tokens, tokens)
        figure.draw_without_rendering()
        assert figure.axes[0].get_window_extent().width / figure.dpi >= 5 * inches


def test_queries_are_named_once_a_row_of_maps():
    figure = show_weights(some_weights(3), QUERIES, KEYS)
    maps = figure.axes[:3]  # two in the first row, one in the second
    named = [[label.get_text() for label in axes.get_yticklabels()] for axes in maps]
    assert named == [QUERIES, [], QUERIES]
    assert [axes.get_ylabel() for axes in maps] == ["queries", "", "queries"]


def test_a_map_alone_has_no_title():
    assert show_weights(some_weights(1), QUERIES, KEYS).axes[0].get_title() == ""


def test_forbidden_cells_are_hatched_and_carry_no_number():
    mask = torch.ones(3, 5, dtype=torch.bool).tril()
    figure = show_weights(some_weights(), QUERIES, KEYS, mask=mask)
    patches = figure.axes[0].patches
    assert [bool(p.get_hatch()) for p in patches] == (~mask).flatten().tolist()
    assert len(figure.axes[0].texts) == mask.sum()
    hidden = [patch for patch in patches if patch.get_hatch()]
    assert {(p.get_facecolor()[3], p.get_linewidth()) for p in hidden} == {(0, 0)}


def test_numbers_are_written_up_to_eight_rows_and_a_bar_is_drawn_beyond():
    small = show_weights(torch.ones(8, 8) / 8, "abcdefgh", "abcdefgh")
    large = show_weights(torch.ones(9, 9) / 9, "abcdefghi", "abcdefghi")
    assert len(small.axes[0].texts) == 64
    assert len(large.axes[0].texts) == 0
    assert not small.axes[0].child_axes
    assert len(large.axes[0].child_axes) == 1
    for sides in ((1, 9), (9, 1)):
        large = show_weights(
            torch.ones(sides) / sides[1], "q" * sides[0], "k" * sides[1]
        )
        assert len(large.axes[0].child_axes) == 1


@pytest.mark.parametrize(
    ("signed", "ends"), [(False, ["1", "0"]), (True, ["2", "-2"])], ids=str
)
def test_a_bar_beside_the_map_says_which_opacity_is_which_value(signed, ends):
    weights = torch.zeros(2, 9)
    weights[:, 0] = -2 if signed else 1
    figure = show_weights(weights, "ab", "abcdefghi", signed=signed)
    axes = figure.axes[0]
    (bar,) = axes.child_axes
    assert [label.get_text() for label in bar.get_yticklabels()] == ends
    assert bar.get_yticks().tolist() == [0.5, 19.5]
    assert (bar.get_xlim(), bar.get_ylim()) == ((0, 1), (20, 0))
    assert bar.get_xticks().tolist() == []
    assert bar.yaxis.get_ticks_position() == "right"
    opacity = torch.tensor([square.get_alpha() for square in bar.patches])
    steps = torch.linspace(1, -1 if signed else 0, 20).abs()
    torch.testing.assert_close(opacity, steps, atol=1e-4, rtol=0)
    figure.draw_without_rendering()
    whole, strip = axes.get_window_extent(), bar.get_window_extent()
    assert strip.x0 == pytest.approx(whole.x0 + 1.04 * whole.width)
    assert strip.width == pytest.approx(0.05 * whole.width)
    assert (strip.y0, strip.y1) == pytest.approx((whole.y0, whole.y1))


SIDES = {
    "short and few": ("abcdefgh", 0),
    "short and many": ("abcdefghijk", 0),
    "of six letters": (["abcdef"] * 7, 0),
    "of six letters, eight times": (["abcdef"] * 8, 90),
    "of seven letters": (["abcdefg"] * 2, 90),
    "of three letters and many": (["abc"] * 11, 90),
}


@pytest.mark.parametrize(("keys", "angle"), SIDES.values(), ids=SIDES.keys())
def test_keys_are_turned_only_where_they_do_not_fit(keys, angle):
    weights = torch.ones(1, len(keys)) / len(keys)
    axes = show_weights(weights, ["q"], list(keys)).axes[0]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {angle}


def test_many_queries_leave_less_room_for_keys():
    weights, queries = torch.full((11, 2), 0.5), [f"q{n}" for n in range(11)]
    axes = show_weights(weights, queries, ["abc", "d"]).axes[0]
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {90}


def test_heads_stand_side_by_side_and_spare_places_stay_empty():
    figure = show_weights(some_weights(5), QUERIES, KEYS)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"head {n}" for n in range(1, 6)] + [""]
    assert not figure.axes[5].axison
    assert figure.get_figwidth() < 8  # two fit beside each other on a page


@pytest.mark.parametrize("masked", [False, True], ids=["open", "masked"])
def test_layers_and_heads_are_drawn_and_described_one_by_one(masked):
    weights, mask = some_weights(2, 3), torch.rand(2, 3, 3, 5) < 0.5
    mask = mask if masked else None
    figure = show_weights(weights, QUERIES, KEYS, mask=mask, **LAYERS)
    titles = [f"layer {m}, head {n}" for m in (1, 2) for n in (1, 2, 3)]
    assert [axes.get_title() for axes in figure.axes] == titles
    words = figure._repr_mimebundle_()[0]["text/plain"]
    assert words == describe_weights(weights, QUERIES, KEYS, mask=mask, **LAYERS)


def test_signed_values_have_two_inks_on_a_scale_centred_on_zero():
    scores = torch.tensor([[-2.0, 0.5, 0.0]])
    figure = show_weights(scores, ["q"], ["k", "l", "m"], signed=True)
    colours = [p.get_facecolor() for p in figure.axes[0].patches]
    assert [c[3] for c in colours] == [1.0, 0.25, 0.0]
    blue, brown = (to_rgb(ink) for ink in ("#5a62d8", "#b3541e"))
    assert [c[:3] for c in colours[:2]] == [brown, blue]


def test_the_score_farthest_from_zero_has_all_the_ink_however_small_it_is():
    scores = torch.tensor([[-0.03, 0.01]])
    figure = show_weights(scores, ["q"], ["k", "l"], signed=True)
    assert [p.get_alpha() for p in figure.axes[0].patches] == [1.0, 0.3333]


def test_scores_that_are_all_zero_have_no_ink():
    figure = show_weights(torch.zeros(1, 2), ["q"], ["k", "l"], signed=True)
    assert [p.get_alpha() for p in figure.axes[0].patches] == [0, 0]


@pytest.mark.parametrize("keys", ["kl", "k" * 17])
@pytest.mark.parametrize("size", [1e5, 1e38, 1e300, 1e305, 1.7e308])
def test_scores_of_any_size_are_drawn_and_told_in_few_signs(size, keys):
    scores = torch.zeros(2, len(keys), dtype=torch.float64)
    scores[0, 0], scores[1, 1] = size, -size
    figure = show_weights(scores, "qr", keys, signed=True)
    if len(keys) < 9:
        alphas = [patch.get_alpha() for patch in figure.axes[0].patches]
        assert alphas == [1, 0, 0, 1]
    words = describe_weights(scores, "qr", keys, signed=True)
    for number in (f"{size:.2e}", f"{-size:.2e}"):
        assert f" {number}" in words
        assert len(keys) > 8 or f">{number}<" in svg(figure)


@pytest.mark.parametrize("size", [1, 8, 80, 3000, 3e4, 3e8])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("tokens", [6, 8])
def test_numbers_in_cells_run_into_nothing(size, heads, tokens):
    scores = -size * (1 + torch.rand(heads, tokens, tokens))
    figure = show_weights(scores, "abcdefgh"[:tokens], "abcdefgh"[:tokens], signed=True)
    figure.draw_without_rendering()
    for axes in figure.axes:
        names = axes.get_xticklabels() + axes.get_yticklabels()
        boxes = [text.get_window_extent() for text in [*axes.texts, *names]]
        for place, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:place])


@pytest.mark.parametrize("edge", [-5e-5, 1 + 5e-5])
@pytest.mark.parametrize("keys", ["kl", "k" * 17])
def test_a_weight_that_misses_an_end_by_a_rounding_is_drawn_at_that_end(edge, keys):
    weights = torch.full((1, len(keys)), edge, dtype=torch.float64)
    want = show_weights(weights.round(), "q", keys)._repr_mimebundle_()[0]
    assert show_weights(weights, "q", keys)._repr_mimebundle_()[0] == want


def test_each_head_may_have_a_mask_of_its_own():
    mask = torch.rand(2, 3, 5) < 0.5
    mask[0, 0, 0], mask[1, 0, 0] = True, False
    figure = show_weights(some_weights(2), QUERIES, KEYS, mask=mask)
    for axes, hidden in zip(figure.axes, ~mask, strict=True):
        hatched = [bool(patch.get_hatch()) for patch in axes.patches]
        assert hatched == hidden.flatten().tolist()


def test_no_colour_hangs_on_the_last_bit():
    weights = some_weights()
    nudged = weights * (1 + 1e-7)
    one, two = (svg(show_weights(w, QUERIES, KEYS)) for w in (weights, nudged))
    assert one == two


def test_tokens_are_shown_as_they_are():
    tokens = ["$x^2$", "<b>", "שלום"]
    text = svg(show_weights(torch.eye(3), tokens, tokens))
    assert text.count(">$x^2$<") == 2  # as a query and as a key
    assert "&lt;b&gt;" in text
    assert "שלום" in text


def test_the_name_of_an_axis_is_shown_as_it_is():
    figure = show_weights(some_weights(2), QUERIES, KEYS, axes=("$x^2$",))
    assert ">$x^2$ 1<" in svg(figure)


def test_weights_with_a_gradient_in_half_precision_are_drawn():
    weights = some_weights().to(torch.bfloat16).requires_grad_()
    show_weights(weights, QUERIES, KEYS)


def test_a_map_saves_to_a_file(tmp_path):
    show_weights(some_weights(), QUERIES, KEYS).savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_values_are_weights_unless_they_are_said_to_be_signed(as_importer):
    with pytest.raises(ValueError, match=said("weights", "0 to 1", "got", "-2")):
        as_maps(torch.full((3, 5), -2.0), QUERIES, KEYS)


BAD = {
    "too few keys": ({"keys": KEYS[:4]}, ("weights", (3, 4), "got", (3, 5))),
    "no heads": ({"weights": torch.ones(0, 3, 5)}, ("weights", "got", (0, 3, 5))),
    "one axis": ({"weights": torch.ones(5)}, ("weights", "got", (5,))),
    "five axes": (
        {"weights": torch.ones(1, 1, 1, 3, 5)},
        ("weights", "got", (1, 1, 1, 3, 5)),
    ),
    "a batch": (
        {"weights": torch.full((2, 4, 3, 5), 0.2)},
        ("axes", "2 axes (2, 4)", '("sentence", "head")', "got None"),
    ),
    "one name for two axes": (
        {"weights": torch.full((2, 4, 3, 5), 0.2), "axes": ("head",)},
        ("axes", "2 axes", "got ('head',)"),
    ),
    "a name for no axis": ({"axes": ("head",)}, ("axes", "0 axes", "got")),
    "one name twice": (
        {"weights": torch.full((2, 4, 3, 5), 0.2), "axes": ("head", "head")},
        ("axes", "got ('head', 'head')"),
    ),
    "names in one word": (
        {"weights": torch.full((2, 4, 3, 5), 0.2), "axes": "lh"},
        ("axes", "got lh"),
    ),
    "a name without a letter": (
        {"weights": torch.full((2, 3, 5), 0.2), "axes": (" ",)},
        ("axes", "got (' ',)"),
    ),
    "a query that is a number": (
        {"queries": ["a", 2, "c"]},
        ("queries", "sequence of str", "got 2 at place 2"),
    ),
    "a key that is a number": (
        {"keys": [*KEYS[:4], 2]},
        ("keys", "sequence of str", "got 2 at place 5"),
    ),
    "a set": ({"keys": set(KEYS)}, ("keys", "sequence of str", "got set")),
    "a generator": (
        {"queries": (query for query in QUERIES)},
        ("queries", "sequence of str", "got generator"),
    ),
    "an array of tokens": (
        {"queries": numpy.array(QUERIES)},
        ("queries", "sequence of str", "got ndarray"),
    ),
    "token ids": (
        {"queries": torch.arange(3)},
        ("queries", "sequence of str", "got Tensor"),
    ),
    "above one": (
        {"weights": torch.full((3, 5), 1.5)},
        ("weights", "0 to 1", "got", "1.5"),
    ),
    "below zero": (
        {"weights": torch.full((3, 5), -0.5)},
        ("weights", "0 to 1", "got -0.5"),
    ),
    "not a number": (
        {"weights": torch.full((3, 5), torch.nan)},
        ("weights", "0 to 1", "got nan"),
    ),
    "infinite scores": (
        {"weights": torch.full((3, 5), torch.inf), "signed": True},
        ("weights", "finite", "got inf"),
    ),
    "complex": (
        {"weights": torch.ones(3, 5, dtype=torch.complex64), "signed": True},
        ("weights", "real numbers", "got torch.complex64"),
    ),
    "without data": (
        {"weights": torch.ones(3, 5, device="meta")},
        ("weights", "got", "on meta"),
    ),
    "number mask": (
        {"mask": torch.ones(3, 5)},
        ("mask", "booleans", "got torch.float32"),
    ),
    "wrong mask": (
        {"mask": torch.ones(5, 3, dtype=torch.bool)},
        ("mask", (1, 3, 5), "got", (5, 3)),
    ),
    "a mask with an axis of its own": (
        {"weights": torch.full((2, 3, 5), 0.2), "mask": torch.ones(1, 2, 3, 5) > 0},
        ("mask", (2, 3, 5), "got", (1, 2, 3, 5)),
    ),
}


@pytest.mark.parametrize("draw", [describe_weights, show_weights])
@pytest.mark.parametrize(("change", "fields"), BAD.values(), ids=BAD.keys())
def test_what_is_no_map_is_refused(as_importer, draw, change, fields):
    good = {"weights": some_weights(), "queries": QUERIES, "keys": KEYS}
    with pytest.raises(ValueError, match=said(*fields)):
        draw(**(good | change))


@pytest.mark.parametrize("draw", [describe_weights, show_weights])
@pytest.mark.parametrize("convert", [numpy.asarray, torch.Tensor.tolist], ids=str)
@pytest.mark.parametrize("name", ["weights", "mask"])
def test_what_is_no_tensor_is_refused_and_told_how_to_become_one(
    as_importer, draw, convert, name
):
    good = {"weights": some_weights(), "mask": torch.ones(3, 5, dtype=torch.bool)}
    wrong = convert(good[name])
    fields = (name, "torch.Tensor", f"got {type(wrong).__name__}", "torch.as_tensor")
    with pytest.raises(TypeError, match=said(*fields)):
        draw(queries=QUERIES, keys=KEYS, **(good | {name: wrong}))


KINDS = {
    "whole numbers": lambda weights: weights.long(),
    "booleans": lambda weights: weights.bool(),
    "half precision": lambda weights: weights.half(),
    "eight bits": lambda weights: weights.to(torch.float8_e4m3fn),
    "with a gradient": lambda weights: weights.requires_grad_() * 1,
    "sparse": lambda weights: weights.to_sparse(),
    "turned": lambda weights: weights.T.contiguous().T,
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_weights_of_every_kind_of_real_number_are_shown(as_importer, kind):
    weights = torch.eye(5)[[4, 2, 2]]
    want = show_weights(weights, QUERIES, KEYS)._repr_mimebundle_()[0]
    got = show_weights(kind(weights), QUERIES, KEYS)._repr_mimebundle_()[0]
    assert got == want


def test_a_sparse_mask_is_that_of_its_dense_form(as_importer):
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)
    weights = mask / mask.sum(dim=-1, keepdim=True)
    want, got = (
        show_weights(weights, QUERIES, KEYS, mask=each)._repr_mimebundle_()[0]
        for each in (mask, mask.to_sparse())
    )
    assert got == want


# In any style


def pixels(figure):
    """The picture as it is saved, row by row, in red, green and blue."""
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=50)
    return numpy.frombuffer(file.getvalue(), dtype=numpy.uint8).reshape(-1, 4)[:, :3]


STYLES = [style for style in pyplot.style.available if not style.startswith("_")]
OWN_MARGINS = {"classic", "fivethirtyeight"}  # and hinting of letters
LETTERS = {
    key: value
    for key, value in rcParamsDefault.items()
    if key.startswith("font.")
    or key.endswith(("size", "weight", "width", "pad", "style", "direction"))
}


@pytest.mark.parametrize("style", sorted({*STYLES} - OWN_MARGINS))
def test_a_map_with_the_same_letters_is_the_same_in_every_style(style):
    mask = torch.ones(2, 3, 5, dtype=torch.bool).tril(2)
    weights, many = some_weights(2) * mask, "abcdefghi"

    def draw(*styles):
        look = pyplot.style.context(["default", *styles], after_reset=True)
        with look, rc_context(LETTERS):
            small = show_weights(weights, QUERIES, KEYS, mask=mask)
            return [pixels(f) for f in (small, show_weights(torch.eye(9), many, many))]

    for got, want in zip(draw(style), draw(), strict=True):
        assert numpy.array_equal(got, want)


@pytest.mark.parametrize("style", STYLES)
def test_in_every_style_weights_of_zero_are_white_under_black_numbers(style):
    with pyplot.style.context(style):
        figure = show_weights(torch.zeros(3, 5), QUERIES, KEYS)
        seen = pixels(figure).astype(int)
    assert (seen.max(axis=-1) == seen.min(axis=-1)).all()  # no colour
    assert seen[0].tolist() == [255, 255, 255]
    assert (seen[:, 0] > 250).mean() > 0.8
    assert (seen[:, 0] < 100).sum() > 50


# Two axes before the queries


def test_a_batch_is_told_as_what_it_is_called():
    weights = some_weights(2, 3)
    words = describe_weights(weights, QUERIES, KEYS, axes=("sentence", "head"))
    assert "Sentence 2, head 3, strongest: a → " in words
    figure = show_weights(weights, QUERIES, KEYS, axes=("sentence", "head"))
    assert figure.axes[-1].get_title() == "sentence 2, head 3"
    assert "Item of GPT 2, strongest" in describe_weights(
        weights[:, 0], QUERIES, KEYS, axes=("item of GPT",)
    )


def test_of_one_sentence_or_one_layer_the_heads_are_named():
    weights = some_weights(1, 3)
    words = describe_weights(weights, QUERIES, KEYS)
    assert words == describe_weights(weights[0], QUERIES, KEYS)
    titles = [a.get_title() for a in show_weights(weights, QUERIES, KEYS).axes[:3]]
    assert titles == ["head 1", "head 2", "head 3"]


def test_long_titles_do_not_touch_each_other():
    weights = torch.full((2, 2, 2, 2), 0.5)
    figure = show_weights(weights, "ab", "ab", axes=("sentence", "attention head"))
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    for one, other in pairwise(boxes):
        assert one.x1 < other.x0 or one.y0 > other.y1


# What the mask hides


@pytest.mark.parametrize("hidden", [torch.nan, torch.inf, 0.7, -3.0])
def test_what_is_hidden_is_neither_shown_nor_told(hidden):
    mask = torch.ones(3, 5, dtype=torch.bool).tril(1)
    clean = some_weights().masked_fill(~mask, 0.0)
    want, got = (
        show_weights(weights, QUERIES, KEYS, mask=mask)._repr_mimebundle_()[0]
        for weights in (clean, clean.masked_fill(~mask, hidden))
    )
    assert got == want
    assert want["text/plain"] == describe_weights(clean, QUERIES, KEYS, mask=mask)


def test_a_query_that_may_see_no_key_looks_at_none():
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    mask[2, 0] = False
    weights = some_weights()
    weights[2] = 0
    words = describe_weights(weights, QUERIES, KEYS, mask=mask)
    assert words.endswith("b → no key, c → w 0.00. Hatched cells may not be seen.")


# Tokens of every kind


@settings(max_examples=300)
@given(st.lists(TOKENS | st.sampled_from(["a", "a (1)", "a (2)"]), max_size=6))
@example(["a", "a", "a (1)"])
def test_tokens_are_told_apart_in_words(tokens):
    names = _told_apart(list(map(visible_token, tokens)))
    assert len(set(names)) == len(tokens)


@pytest.mark.parametrize("token", ["שלום", "عربي", "٣"])
def test_words_are_isolated_where_one_runs_from_right_to_left(token):
    words = describe_weights(torch.eye(2), ["cat", token], ["the", token])
    assert "\u2068cat\u2069 → \u2068the\u2069 1.00" in words
    assert f"\u2068{token}\u2069 → \u2068{token}\u2069 1.00" in words
    latin = describe_weights(torch.eye(2), ["cat", "é"], ["the", "注意"])
    assert not set("\u2068\u2069") & set(latin)


SCRIPTS = {
    "Chinese": ["注意力", "就是", "一切"],
    "Hindi": ["ध्यान", "ही", "सब"],
    "Hebrew": ["שלום", "עולם", "hello"],
    "pictures": ["😀", "👨‍👩‍👧", "❤️"],
    "controls": ["\x00", "\x1b[0m", "\ud83d"],
}


@pytest.mark.parametrize("tokens", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize("length", [3, 18])
def test_every_script_is_drawn_without_a_warning(tokens, length):
    tokens = (tokens * 6)[:length]
    weights = torch.full((2, length, length), 1 / length)
    figure = show_weights(weights, tokens, tokens)
    page = svg(figure)
    minidom.parseString(page.encode())
    for token in tokens:
        assert f">{visible_token(token)}<" in page  # letters stay letters
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    figure.draw_without_rendering()


@pytest.mark.parametrize("token", ["W" * 40, "注" * 20, "क" * 30, "\x00" * 12])
def test_wide_names_take_little_room_from_the_cells(token):
    weights, tokens = torch.full((5, 5), 0.2), [token, *"abcd"]
    figure = show_weights(weights, tokens, tokens)
    figure.draw_without_rendering()
    width = figure.axes[0].get_window_extent().width / figure.dpi
    assert width > 5 * 0.24  # of 0.3 inches; what names need is an estimate


# Large maps


def test_a_large_map_is_a_few_objects_however_many_its_cells():
    weights, mask = torch.rand(2, 40, 40), torch.rand(40, 40) < 0.5
    names = [f"token {n}" for n in range(40)]
    figure = show_weights(weights, names, names, mask=mask)
    for axes in figure.axes:
        assert len(axes.collections) == 1
        assert [bool(patch.get_hatch()) for patch in axes.patches] == [True]


@pytest.mark.parametrize("signed", [False, True])
def test_a_large_map_has_the_squares_of_small_ones(signed):
    mask = torch.rand(17, 17) < 0.7
    weights = torch.rand(17, 17) - (0.5 if signed else 0)
    weights[0, 0] = 0
    figure = show_weights(weights, "a" * 17, "b" * 17, mask=mask, signed=signed)
    axes = figure.axes[0]
    (squares,), (hatched,) = axes.collections, axes.patches
    table = (1e4 * weights.double()).round() / 1e4 * mask
    i, j = table.nonzero(as_tuple=True)
    centres = torch.tensor(squares.get_offsets().tolist())
    assert torch.equal(centres, torch.stack([j, i], dim=-1) + 0.5)
    limit = table.abs().max() if signed else 1
    colors = torch.tensor(squares.get_facecolor().tolist())
    strength = (table[i, j].abs() / limit).float()
    torch.testing.assert_close(colors[:, 3], strength, atol=1e-4, rtol=0)
    inks = torch.tensor([to_rgb("#5a62d8"), to_rgb("#b3541e")])
    torch.testing.assert_close(colors[:, :3], inks[(table[i, j] < 0).long()])
    figure.draw_without_rendering()
    corner, _, opposite, *_ = squares.get_paths()[0].vertices.tolist()
    assert (corner, opposite) == (pytest.approx([-0.47] * 2), pytest.approx([0.47] * 2))
    cell = axes.transData.transform([[0.94, 0.94]]) - axes.transData.transform([[0, 0]])
    size = squares.get_transform().transform([[0.94, 0.94]])
    assert size.tolist() == [pytest.approx(cell[0])]
    pieces = hatched.get_path().to_polygons(closed_only=False)
    middles = {tuple((piece.min(0) + piece.max(0)) / 2) for piece in pieces}
    hidden = (~mask).nonzero().tolist()
    assert len(pieces) == len(middles) == len(hidden)
    for i, j in hidden:
        assert any(abs(x - j - 0.5) + abs(y - i - 0.5) < 1e-5 for x, y in middles)


def test_a_large_map_takes_no_more_bytes_than_small_ones():
    def size(length):
        names = ["t"] * length
        weights, mask = torch.full((length, length), 0.5), torch.ones(length, length)
        return len(svg(show_weights(weights, names, names, mask=mask.tril() > 0)))

    assert size(32) / 32**2 < size(16) / 16**2


def test_a_map_of_128_tokens_is_drawn_in_seconds():
    weights = torch.randn(128, 128).softmax(dim=-1)
    names = [f"token {n}" for n in range(128)]
    start = time.process_time()  # of this process alone, however busy the machine
    svg(show_weights(weights, names, names, mask=torch.ones(128, 128).tril() > 0))
    assert time.process_time() - start < 4
