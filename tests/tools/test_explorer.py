"""The explorer: a table that reads without a script, whatever its tokens are."""

import gzip
import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from examples import said, token_of
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import describe_weights, explore, show_weights
from attention.tools.workbench import visible_token, well_formed

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("verifier", ROOT / "book/conftest.py")
verifier = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(verifier)

QUERIES, KEYS = ["a", "b", "c"], ["v", "w", "x", "y", "z"]
LAYERS = ("layer", "head")


def some_weights(*heads):
    return torch.randn(*heads, 3, 5).softmax(dim=-1)


class Page(HTMLParser):
    """What a browser without scripts reads: elements in order, each with its text."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.found.append(element)
        if tag != "meta":
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, *tags, **wanted):
        return [
            (attrs, text)
            for tag, attrs, text in self.found
            if tag in tags and wanted.items() <= attrs.items()
        ]

    def texts(self, *tags, **wanted):
        return [text for _, text in self.all(*tags, **wanted)]

    @property
    def maps(self):
        """The maps that the script shows, by layer and head; NaN is masked."""
        attrs, _ = self.all("div")[0]
        rows, columns = (len(self.all("th", scope=side)) for side in ("row", "col"))
        texts = attrs["data-weights"].replace("masked", "nan").replace(";", " ").split()
        axes = int(attrs["data-layers"]), int(attrs["data-heads"]), rows, columns
        return torch.tensor([float(text) for text in texts]).reshape(axes)


def read(explorer) -> Page:
    return Page(explorer._repr_html_())


def close(given, weights):
    torch.testing.assert_close(given, weights, atol=5.1e-5, rtol=0)  # 4 decimals


def test_the_first_map_is_a_table_with_headers_and_a_caption():
    page = read(explore(some_weights(2), QUERIES, KEYS, caption="Who looks where?"))
    assert page.texts("th", scope="row") == QUERIES
    assert page.texts("th", scope="col") == KEYS
    assert len(page.all("th")) == len(QUERIES) + len(KEYS)
    caption = page.texts("caption")[0]
    assert caption.startswith("Who looks where? In view: head 1 of 2.")


def test_a_cell_says_its_weight_as_text_and_as_ink():
    weights = some_weights(2)
    cells = read(explore(weights, QUERIES, KEYS)).all("td")[1:]  # the corner is empty
    close(torch.tensor([float(text) for _, text in cells]).reshape(3, 5), weights[0])
    assert [attrs["style"] for attrs, _ in cells] == [f"--w:{t}" for _, t in cells]


@pytest.mark.parametrize("axes", [(), (2,), (2, 3), (1, 2)], ids=str)
def test_all_maps_are_on_the_page_by_layer_and_head(axes):
    weights = some_weights(*axes)
    page = read(explore(weights, QUERIES, KEYS, axes=LAYERS[2 - len(axes) :]))
    close(page.maps, weights.reshape(*(1, 1, *axes)[-2:], 3, 5))


@pytest.mark.parametrize("axes", [(), (2,), (2, 3)], ids=str)
def test_the_map_in_view_at_first_is_the_first_for_the_script_too(axes):
    names = LAYERS[2 - len(axes) :]
    page = read(explore(some_weights(*axes), QUERIES, KEYS, axes=names))
    ((root, _),) = page.all("div", **{"class": "attention-explorer"})
    assert (root["data-layer"], root["data-head"]) == ("0", "0")


def test_the_map_in_view_at_first_is_the_one_asked_for():
    weights = some_weights(2, 7)
    page = read(explore(weights, QUERIES, KEYS, show=(1, 4), axes=LAYERS))
    cells = [float(text) for _, text in page.all("td")[1:]]
    close(torch.tensor(cells).reshape(3, 5), weights[1, 4])
    assert "In view: layer 2 of 2, head 5 of 7." in page.texts("caption")[0]
    ((root, _),) = page.all("div", **{"class": "attention-explorer"})
    assert (root["data-layer"], root["data-head"]) == ("1", "4")


@pytest.mark.parametrize(
    "show",
    [(2, 0), (0, 7), (-1, 0), (1,), (0, 0, 0), 1, "10", (True, 0), (0, 1.0)],
    ids=str,
)
def test_a_place_where_no_map_is_is_refused(as_importer, show):
    with pytest.raises(ValueError, match=said("show", (2, 7), "got", show)):
        explore(some_weights(2, 7), QUERIES, KEYS, show=show, axes=LAYERS)


def test_of_heads_alone_a_number_is_a_place(as_importer):
    weights = some_weights(3)
    want = explore(weights, QUERIES, KEYS, show=(2,))
    assert explore(weights, QUERIES, KEYS, show=2) == want


def test_axes_have_the_names_that_the_caller_gives():
    name = '<b>"sentence" & more'
    page = read(explore(some_weights(2, 3), QUERIES, KEYS, axes=(name, "head")))
    assert f"In view: {name} 1 of 2, head 1 of 3." in page.texts("caption")[0]
    ((root, _),) = page.all("div", **{"class": "attention-explorer"})
    assert (root["data-layer-name"], root["data-head-name"]) == (name, "head")


def test_a_batch_without_a_name_is_refused():
    with pytest.raises(ValueError, match=said("axes", (2, 3), "sentence", "got None")):
        explore(some_weights(2, 3), QUERIES, KEYS)


def test_a_caption_that_is_no_text_is_refused(as_importer):
    with pytest.raises(ValueError, match=said("caption", "expected a str", "got int")):
        explore(some_weights(), QUERIES, KEYS, caption=3)


def test_a_map_alone_names_no_head():
    page = read(explore(some_weights(), QUERIES, KEYS))
    assert "In view" not in page.texts("caption")[0]


def test_a_masked_cell_says_so_and_carries_no_weight():
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)
    masks = torch.stack([mask, torch.ones_like(mask)])
    weights = torch.randn(2, 3, 5).masked_fill(~masks, -torch.inf).softmax(dim=-1)
    page = read(explore(weights, QUERIES, KEYS, mask=masks))
    cells = page.all("td")[1:]
    said = torch.tensor([text == "masked" for _, text in cells]).reshape(3, 5)
    assert torch.equal(said, ~mask)
    inks = [attrs["style"] for attrs, text in cells if text == "masked"]
    assert set(inks) == {"--w:0"}
    assert torch.equal(page.maps[0].isnan(), ~masks)


def test_one_mask_serves_all_layers_and_heads():
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)
    weights = torch.randn(2, 7, 3, 5).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    maps = read(explore(weights, QUERIES, KEYS, mask=mask, axes=LAYERS)).maps
    assert torch.equal(maps.isnan(), (~mask).expand(2, 7, 3, 5))


def test_a_query_that_may_see_no_key_has_zeros():
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    weights = some_weights().masked_fill(~mask, 0.0)
    page = read(explore(weights, QUERIES, KEYS, mask=mask))
    assert page.texts("td")[6:11] == ["masked"] * 5


# Tokens

TOKENS = {
    "a script": ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    "the end of the table": ("</td></table>", "</td></table>"),
    "quotes and ampersands": ("\"'&amp;<", "\"'&amp;<"),
    "right to left": ("שלום", "שלום"),
    "a change of direction": ("\u202eabc", "⟨U+202E⟩abc"),
    "a space in front": (" cat", "␣cat"),
    "spaces alone": ("  ", "␣␣"),
    "a space inside": ("New York", "New York"),
    "a space that does not break": ("\u00a0cat", "⟨U+00A0⟩cat"),
    "a line break": ("\n", "↵"),
    "a line break inside": ("a\nb", "a↵b"),
    "a tab": ("\t", "⇥"),
    "a control": ("\x00\x1b", "⟨U+0000⟩⟨U+001B⟩"),
    "the last controls": ("\x1f\x7f", "⟨U+001F⟩⟨U+007F⟩"),
    "the ends of what is printed": ("!~", "!~"),
    "nothing": ("", "∅"),
    "half a character": ("\ud83d", "⟨U+D83D⟩"),
    "a long token": ("long" * 99, "long" * 99),
}


@pytest.mark.parametrize(("token", "shown"), TOKENS.values(), ids=TOKENS.keys())
def test_a_token_adds_nothing_to_the_page_but_itself(token, shown, tmp_path):
    tokens, plain = ["a", token, "c"], ["a", "b", "c"]
    explorer = explore(torch.eye(3), tokens, tokens)
    page, reference = read(explorer), read(explore(torch.eye(3), plain, plain))
    assert page.texts("th", scope="col") == ["a", shown, "c"]
    assert page.texts("th", scope="row") == ["a", shown, "c"]
    assert page.texts("bdi") == ["a", shown, "c"] * 2
    assert [tag for tag, *_ in page.found] == [tag for tag, *_ in reference.found]
    explorer.save(tmp_path / "map.html")


ANY = st.text(st.characters(exclude_categories=()), max_size=5)


@settings(max_examples=50)
@given(st.lists(ANY, min_size=1, max_size=4), ANY, ANY.filter(str.strip))
def test_no_text_spoils_the_page(tokens, caption, name):
    weights = torch.full((2, len(tokens), len(tokens)), 1 / len(tokens))
    explorer = explore(weights, tokens, tokens, caption=caption, axes=(name,))
    assert well_formed(explorer.html) == explorer.html
    assert well_formed(explorer.words) == explorer.words
    page = read(explorer)
    assert page.texts("bdi") == 2 * list(map(visible_token, tokens))
    assert list(map(token_of, page.texts("bdi"))) == 2 * tokens
    assert page.texts("p") == [explorer.words]


ROOM = {
    "eight by eight": (["q"] * 8, ["k"] * 8, "few", 2),
    "nine keys": (["q"] * 7, ["k"] * 9, "tilt few", 2),
    "65 cells": (["q"] * 13, ["k"] * 5, "", 2),
    "nine keys and many cells": (["q"] * 8, ["k"] * 9, "tilt", 2),
    "a key of four letters": (["q"], ["k", "four"], "few", 2),
    "a key of five letters": (["q"], ["k", "fifth"], "tilt few", 2),
    "two wide letters": (["q"], ["k", "注意"], "few", 2),
    "the first wide letter, twice": (["⺀⺀"], ["k", "⺀⺀k"], "tilt few", 4),
    "two wide letters and one": (["q"], ["k", "注意k"], "tilt few", 2),
    "a query of three letters": (["q", "que"], ["k"], "few", 3),
    "two wide letters as a query": (["注意", "q"], ["k"], "few", 4),
    "a query of twelve letters": (["q" * 12], ["k"], "few", 12),
    "a query of 13 letters": (["q" * 13], ["k"], "few", 12),
}


@pytest.mark.parametrize(("queries", "keys", "kind", "name"), ROOM.values(), ids=ROOM)
def test_the_room_of_a_cell_follows_from_the_tokens(queries, keys, kind, name):
    weights = torch.full((len(queries), len(keys)), 1 / len(keys))
    ((attrs, _),) = read(explore(weights, queries, keys)).all("table")
    assert attrs == {"class": kind, "style": f"--keys:{len(keys)};--name:{name}"}


def test_a_caption_is_text_not_html():
    caption = '<b>"Tom" & שלום</b>'
    page = read(explore(some_weights(), QUERIES, KEYS, caption=caption))
    assert page.texts("caption")[0].startswith(caption)


# Words


def test_elsewhere_it_is_words():
    weights = some_weights(2, 3)
    words = describe_weights(weights, QUERIES, KEYS, axes=LAYERS)
    assert repr(explore(weights, QUERIES, KEYS, axes=LAYERS)) == words
    assert "Layer 2, head 3, strongest: a → " in words


def test_an_explorer_cannot_be_changed():
    explorer = explore(some_weights(), QUERIES, KEYS)
    with pytest.raises(AttributeError, match="cannot assign to field 'html'"):
        explorer.html = ""


@pytest.mark.parametrize("first", ["a", "שלום"])
def test_the_page_holds_the_words_of_all_heads(first):
    weights, queries = some_weights(7), [first, *QUERIES[1:]]
    words = read(explore(weights, queries, KEYS)).texts("details")[0]
    assert words.removeprefix("In words") == describe_weights(weights, queries, KEYS)
    isolates = 7 * 3 * 2 if first == "שלום" else 0
    assert words.count("\u2068") == words.count("\u2069") == isolates


# Bytes


def test_the_same_weights_give_the_same_page():
    weights = some_weights(2)
    one, two = (explore(w, QUERIES, KEYS) for w in (weights, weights.clone()))
    assert one == two


def test_the_verifier_forgives_a_last_digit_and_no_more():
    weights = some_weights(2)
    page, near, far = (
        explore((scale * weights.log()).softmax(dim=-1), QUERIES, KEYS).html
        for scale in (1, 1.00005, 1.01)
    )
    assert page != near
    assert verifier.difference(page, near, "text/html") is None
    assert verifier.difference(page, far, "text/html") is not None


def test_eight_heads_of_fifteen_by_fourteen_take_at_most_15_kb():
    weights = torch.randn(8, 15, 14).softmax(dim=-1)
    queries, keys = [f"query {i}" for i in range(15)], [f"key {j}" for j in range(14)]
    page = explore(weights, queries, keys).html.encode()
    assert len(gzip.compress(page)) <= 15_000


def test_style_and_script_are_the_same_in_every_explorer():
    small = read(explore(some_weights(), QUERIES, KEYS))
    named = {"caption": "Another one.", "axes": ("sentence", "head")}
    large = read(explore(some_weights(2, 7), QUERIES, KEYS, **named))
    for tag in ("style", "script"):
        assert small.texts(tag) == large.texts(tag)
        assert len(small.texts(tag)) == 1


def test_an_explorer_asks_for_nothing_from_anywhere():
    page = explore(some_weights(2), QUERIES, KEYS).html
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bsrc=|\bfetch\b", page)


def test_it_saves_as_a_page_of_its_own(tmp_path):
    explorer = explore(some_weights(2), QUERIES, KEYS)
    explorer.save(tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert explorer.html in text
    page = Page(text)
    assert page.all("html", lang="en")
    assert page.all("meta", charset="utf-8")
    assert len(page.texts("title")) == len(page.texts("main")) == 1


# What goes in


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_with_a_gradient_in_half_precision_are_shown(dtype):
    weights = torch.randn(7, 11, 13).softmax(dim=-1).to(dtype).requires_grad_()
    explore(weights, "abcdefghijk", "abcdefghijklm")


def test_many_rounded_weights_still_sum_to_one():
    names = [f"t{n}" for n in range(257)]
    explore(torch.full((2, 257), 1 / 257), ["q", "r"], names)


@pytest.mark.parametrize("off", [-0.0101, 0.0101])
def test_a_sum_may_be_off_by_one_in_a_hundred_and_what_rounding_adds(off):
    weights = torch.full((1, 5), 0.2)
    weights[0, 0] += off
    explore(weights, ["q"], KEYS)
    weights[0, 0] += off / 50
    with pytest.raises(ValueError, match=said("weights", "a sum of 1", "got")):
        explore(weights, ["q"], KEYS)


def refusal(draw, arguments):
    with pytest.raises(ValueError, match=said("expected", "got")) as error:
        draw(**arguments)
    return str(error.value)


BAD = {
    "too few keys": {"keys": KEYS[:4]},
    "no heads": {"weights": torch.ones(0, 3, 5)},
    "one axis": {"weights": torch.ones(5)},
    "five axes": {"weights": torch.full((1, 1, 2, 3, 5), 0.2)},
    "above one": {"weights": torch.full((3, 5), 1.5)},
    "below zero": {"weights": torch.full((3, 5), -0.5)},
    "not a number": {"weights": torch.full((3, 5), torch.nan)},
    "number mask": {"mask": torch.ones(3, 5)},
    "wrong mask": {"mask": torch.ones(5, 3, dtype=torch.bool)},
    "a token that is a number": {"keys": [1, 2, 3, 4, 5]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_what_is_no_map_is_refused_in_the_words_of_the_picture(as_importer, change):
    good = {"weights": some_weights(), "queries": QUERIES, "keys": KEYS}
    assert refusal(explore, good | change) == refusal(show_weights, good | change)


def test_a_row_that_does_not_sum_to_one_is_refused():
    weights = some_weights(2)
    weights[1, 2] *= 0.5
    must = said("weights", "a sum of 1", "got 0.5", "query 3", "'c'", "map 2")
    with pytest.raises(ValueError, match=must):
        explore(weights, QUERIES, KEYS)


def test_weight_on_a_masked_key_is_refused():
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 0] = False
    weights = torch.full((3, 5), 0.2)
    with pytest.raises(ValueError, match=said("a sum of 1", "got 0.8000", "query 1")):
        explore(weights, QUERIES, KEYS, mask=mask)


def test_zeros_without_a_mask_are_refused():
    weights = some_weights()
    weights[1] = 0
    with pytest.raises(ValueError, match=said("a sum of 1", "got 0.0000", "query 2")):
        explore(weights, QUERIES, KEYS)
