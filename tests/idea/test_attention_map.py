"""Maps: what is drawn, what is said, and what is refused."""

import re
import subprocess
import sys

import pytest
import torch
from matplotlib.colors import to_rgb

from attention import describe, show_weights

QUERIES, KEYS = ["a", "b", "c"], ["v", "w", "x", "y", "z"]


def some_weights(*heads):
    return torch.rand(*heads, 3, 5).softmax(dim=-1)


def svg(figure):
    return figure._repr_mimebundle_()[0]["image/svg+xml"]


def opacities(figure):
    return [float(o) for o in re.findall(r"opacity: ([\d.]+)", svg(figure))]


def test_the_description_names_the_key_where_each_query_looks_most():
    weights = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
    words = describe(weights, ["cat", "sat"], ["the", "mat"])
    assert words == (
        "Attention map: 2 queries (rows) by 2 keys (columns). "
        "Strongest: cat → the 0.70, sat → mat 0.80."
    )


def test_a_tie_up_to_rounding_goes_to_the_first_key():
    weights = torch.tensor([[0.5 - 1e-6, 0.5 + 1e-6]])
    assert "q → k 0.50" in describe(weights, ["q"], ["k", "l"])


def test_several_heads_are_described_one_by_one():
    words = describe(some_weights(2), QUERIES, KEYS)
    assert "Head 1, strongest: a → " in words
    assert "Head 2, strongest: a → " in words


def test_a_large_map_is_described_by_its_strongest_pair():
    weights = torch.full((17, 2), 0.5)
    weights[11, 1] = 0.75
    names = [f"q{i}" for i in range(17)]
    words = describe(weights, names, ["k", "l"])
    assert words.endswith("Strongest: q11 → l 0.75.")


def test_equal_tokens_are_told_apart_by_their_place():
    weights = torch.eye(3)
    words = describe(weights, ["the", "cat", "the"], ["the", "The", "a"])
    assert words.endswith("the (1) → the 1.00, cat → The 1.00, the (3) → a 1.00.")


def test_the_description_says_that_cells_are_forbidden():
    mask = torch.ones(3, 5, dtype=torch.bool)
    assert "Hatched" not in describe(some_weights(), QUERIES, KEYS, mask=mask)
    mask[0, 0] = False
    assert "Hatched" in describe(some_weights(), QUERIES, KEYS, mask=mask)


WITHOUT_MATPLOTLIB = """
import sys
sys.modules["matplotlib"] = None
import torch, attention
print(attention.describe(torch.ones(1, 1), ["q"], ["k"]))
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
    assert bundle["text/plain"] == describe(weights, QUERIES, KEYS)


def test_the_weight_of_a_cell_is_its_opacity():
    weights = torch.tensor([[0.25, 0.75]])
    assert opacities(show_weights(weights, ["q"], ["k", "l"])) == [0.25, 0.75]


def test_the_first_query_is_drawn_on_top():
    figure = show_weights(some_weights(), QUERIES, KEYS)
    axes = figure.axes[0]
    assert axes.get_ylim() == (3, 0)
    assert [label.get_text() for label in axes.get_yticklabels()] == QUERIES
    assert [label.get_text() for label in axes.get_xticklabels()] == KEYS


def test_forbidden_cells_are_hatched_and_carry_no_number():
    mask = torch.ones(3, 5, dtype=torch.bool).tril()
    figure = show_weights(some_weights(), QUERIES, KEYS, mask=mask)
    patches = figure.axes[0].patches
    assert [bool(p.get_hatch()) for p in patches] == (~mask).flatten().tolist()
    assert len(figure.axes[0].texts) == mask.sum()


def test_numbers_are_written_up_to_eight_rows_and_a_bar_is_drawn_beyond():
    small = show_weights(torch.ones(8, 8) / 8, "abcdefgh", "abcdefgh")
    large = show_weights(torch.ones(9, 9) / 9, "abcdefghi", "abcdefghi")
    assert len(small.axes[0].texts) == 64
    assert len(large.axes[0].texts) == 0
    assert not small.axes[0].child_axes
    assert len(large.axes[0].child_axes) == 1


SIDES = {
    "short and few": ("abcdefgh", 0),
    "short and many": ("abcdefghijk", 0),
    "of six letters": (["abcdef"] * 8, 0),
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


def test_signed_values_have_two_inks_on_a_scale_centred_on_zero():
    scores = torch.tensor([[-2.0, 1.0, 0.0]])
    figure = show_weights(scores, ["q"], ["k", "l", "m"], signed=True)
    colours = [p.get_facecolor() for p in figure.axes[0].patches]
    assert [c[3] for c in colours] == [1.0, 0.5, 0.0]
    blue, brown = (to_rgb(ink) for ink in ("#5a62d8", "#b3541e"))
    assert [c[:3] for c in colours[:2]] == [brown, blue]


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


def test_weights_with_a_gradient_in_half_precision_are_drawn():
    weights = some_weights().to(torch.bfloat16).requires_grad_()
    show_weights(weights, QUERIES, KEYS)


def test_a_map_saves_to_a_file(tmp_path):
    show_weights(some_weights(), QUERIES, KEYS).savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


BAD = {
    "too few keys": ({"keys": KEYS[:4]}, r"queries x keys \(3, 4\), came=\(3, 5\)"),
    "no heads": ({"weights": torch.ones(0, 3, 5)}, r"came=\(0, 3, 5\)"),
    "one axis": ({"weights": torch.ones(5)}, r"came=\(5,\)"),
    "above one": ({"weights": torch.full((3, 5), 1.5)}, "from 0 to 1.*high=1.5"),
    "below zero": ({"weights": torch.full((3, 5), -0.5)}, "from 0 to 1.*low=-0.5"),
    "not a number": ({"weights": torch.full((3, 5), torch.nan)}, "low=nan"),
    "infinite scores": (
        {"weights": torch.full((3, 5), torch.inf), "signed": True},
        "values must be finite, came .*high=inf",
    ),
    "number mask": ({"mask": torch.ones(3, 5)}, "boolean .*came torch.float32"),
    "wrong mask": (
        {"mask": torch.ones(5, 3, dtype=torch.bool)},
        r"broadcast to \(1, 3, 5\), came=\(5, 3\)",
    ),
}


@pytest.mark.parametrize("draw", [describe, show_weights])
@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_what_is_no_map_is_refused(as_importer, draw, change, message):
    good = {"weights": some_weights(), "queries": QUERIES, "keys": KEYS}
    with pytest.raises(ValueError, match=message):
        draw(**(good | change))
