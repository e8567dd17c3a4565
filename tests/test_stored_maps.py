"""Every stored map is told in the words that its own cells give."""

import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from examples import token_of
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import describe_weights, show_weights
from attention.tools.maps import _told_apart
from attention.tools.workbench import BLUE, BROWN, GREY, TEAL

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import tangle  # noqa: E402

# Maps in other words than those of `describe_weights`, each with the reason.
OWN_WORDS = {
    "history/additive map": "it names the place of each digit: most stand there twice",
    "history/additive unseen-map": "likewise",
    "position/order looks": "its maps are of two models, and it names them so",
    "speed/flash order": "its cells are tiles, in the order of their turn",
    "tools/maps signed-map": "scores: their ink has a scale of its own",
    "speed/flash_triton programs-picture": "its cells are tiles",
    "training/induction maps": "its maps are of two layers, and it names them so",
}
# A colour has one meaning through the book (tools/workbench). Pictures of scores that
# pass from one to the other:
BLENDED = {"position/rotary distance-drawn"}
SVG = "{http://www.w3.org/2000/svg}"
CELL = re.compile(
    r"fill: (?:#5a62d8(?:; (?:fill-)?opacity: ([\d.]+))?|(url)\(#h\w+\))$"
)


def outputs(kind: str) -> dict[str, tuple[str, str]]:
    """All outputs of this kind with their words, by chapter and cell."""
    found = {}
    for name in tangle.contents(ROOT):
        path = ROOT / f"book/{name}.ipynb"
        for cell in tangle.load(path, ROOT)["cells"] if path.exists() else []:
            for output in cell.get("outputs", []):
                data = {k: "".join(v) for k, v in output.get("data", {}).items()}
                if kind in data:
                    found[f"{name} {cell['id']}"] = data[kind], data["text/plain"]
    return found


def labels(axes: ElementTree.Element, side: str) -> list[str]:
    """The tokens along one side of a map."""
    ticks = axes.iterfind(f"{SVG}g/{SVG}g")  # not those of the bar beside the map
    ticks = [tick for tick in ticks if tick.get("id", "").startswith(side)]
    texts = [text.text for tick in ticks for text in tick.iter(f"{SVG}text")]
    return [token_of(text or "") for text in texts]


def squares(axes: ElementTree.Element) -> Iterator[tuple[re.Match, torch.Tensor]]:
    """The squares of a map, each with its look and its place.

    In a small map each is a path; in a large one those with ink are uses of one path,
    and those that are hatched are pieces of one.
    """
    for path in list(axes.iterfind(f"{SVG}g/{SVG}path"))[1:]:  # the first is the frame
        if cell := CELL.search(path.get("style", "")):
            for piece in path.get("d").split("M")[1:]:
                yield cell, points(piece).mean(dim=0)
    for use in axes.iterfind(f"{SVG}g/{SVG}use"):
        if cell := CELL.search(use.get("style", "")):
            yield cell, torch.tensor([float(use.get("x")), float(use.get("y"))])


def points(line: str) -> torch.Tensor:
    """The corners of a rectangle, each once."""
    found = re.findall(r"([\d.]+) ([\d.]+)", line)[:4]
    return torch.tensor([[float(x), float(y)] for x, y in found])


def corners(path: ElementTree.Element) -> torch.Tensor:
    """The least and largest x and y of a rectangle."""
    around = points(path.get("d"))
    return torch.stack([around.amin(dim=0), around.amax(dim=0)])


def drawn(page: str) -> dict:
    """What a picture shows, read from its ink; a cell without ink is a zero."""
    groups = ElementTree.fromstring(page).iterfind(f"{SVG}g/{SVG}g")
    places = [axes for axes in groups if labels(axes, "xtick")]  # not one to spare
    keys, queries = (labels(places[0], side) for side in ("xtick", "ytick"))
    shape, maps, masks = (len(queries), len(keys)), [], []
    for axes in places:
        start, end = corners(axes.find(f"{SVG}g/{SVG}path"))
        size = (end - start) / torch.tensor([len(keys), len(queries)])
        weights, mask = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
        for cell, place in squares(axes):
            j, i = ((place - start) / size).int().tolist()
            mask[i, j] = not cell[2]
            weights[i, j] = 0 if cell[2] else float(cell[1] or 1)
        maps, masks = [*maps, weights], [*masks, mask]
    stacked = {"weights": torch.stack(maps), "mask": torch.stack(masks)}
    return stacked | {"queries": queries, "keys": keys}


def drawn_small(page: str, height: int, width: int) -> torch.Tensor:
    """The weights of small maps without names, in tenths, read from their ink."""
    axes = ElementTree.fromstring(page).find(f"{SVG}g/{SVG}g[@id='axes_1']")
    paths = [path for path in axes.iterfind(f"{SVG}g/{SVG}path") if path.get("d")]
    starts, ends = torch.stack([corners(path) for path in paths]).unbind(dim=1)
    size = (ends[0] - starts[0]) / torch.tensor([width, height])
    maps = torch.zeros(len(paths), height, width)
    for square in axes.iterfind(f"{SVG}g[@id='PathCollection_1']/{SVG}use"):
        place = torch.tensor([float(square.get("x")), float(square.get("y"))])
        [n] = ((starts < place) & (place < ends)).all(dim=1).nonzero().flatten()
        j, i = ((place - starts[n]) / size).int().tolist()
        ink = re.search(r"fill-opacity: ([\d.]+)", square.get("style"))
        maps[n, i, j] = float(ink[1]) if ink else 1
    return maps


def pairs(words: str) -> list[list[tuple[str, str, float]]]:
    """Of each map that is told, its queries, each with its key and the weight."""
    told = re.findall(r"strongest: (.*?\d)\.(?= |$)", words)
    found = [re.findall(r"(?:^|, )(.+?) → (.+?) ([\d.]+)(?=, |$)", m) for m in told]
    return [[(query, key, float(number)) for query, key, number in m] for m in found]


def explored(page: str) -> dict:
    """What an explorer shows, read from the numbers and headers of its table."""
    data = dict(re.findall(r'data-(weights|layers|heads)="([^"]*)"', page))
    numbers = data["weights"].replace("masked", "nan").replace(";", " ").split()
    tokens = {
        side: [
            token_of(unescape(shown))
            for shown in re.findall(rf'scope="{way}"><bdi>(.*?)</bdi>', page)
        ]
        for side, way in (("queries", "row"), ("keys", "col"))
    }
    axes = [int(data["layers"]), int(data["heads"])]
    sizes = [*axes[axes[0] == 1 :], *map(len, tokens.values())]
    weights = torch.tensor([float(number) for number in numbers]).reshape(sizes)
    named = {"axes": ("layer", "head")} if axes[0] > 1 else {}
    return {"weights": weights.nan_to_num(0), "mask": ~weights.isnan()} | tokens | named


FIGURES = outputs("image/svg+xml")
PICTURES = {
    place: output
    for place, output in FIGURES.items()
    if ">queries</text>" in output[0] and 'id="ytick_1"' in output[0]
}
EXPLORERS = {
    place: output
    for place, output in outputs("text/html").items()
    if "data-weights" in output[0]
}


@pytest.mark.parametrize("place", sorted(PICTURES.keys() - OWN_WORDS.keys()))
def test_the_words_of_a_picture_follow_from_its_ink(place):
    page, words = PICTURES[place]
    assert words == describe_weights(**drawn(page))


@pytest.mark.parametrize("place", sorted(FIGURES.keys() - BLENDED))
def test_a_picture_has_no_colour_without_a_meaning(place):
    found = set(re.findall(r"#[0-9a-f]{3,6}\b", FIGURES[place][0]))
    drawn_in = {ink for ink in found if len(ink) in (4, 7)}
    assert drawn_in <= {BLUE, BROWN, TEAL, GREY, "#000000", "#ffffff"}


@pytest.mark.parametrize("place", EXPLORERS)
def test_the_words_of_an_explorer_follow_from_its_table(place):
    page, words = EXPLORERS[place]
    inside = unescape(re.search("<details>.*<p>(.*?)</p></details>", page)[1])
    assert (
        words
        == re.sub("[\u2068\u2069]", "", inside)
        == describe_weights(**explored(page))
    )


def test_sixteen_small_maps_are_told_by_what_is_darkest_in_each():
    names = drawn(FIGURES["reading/translator map"][0])
    queries, keys = _told_apart(names["queries"]), _told_apart(names["keys"])
    page, words = FIGURES["reading/translator heads-figure"]
    maps = drawn_small(page, len(queries), len(keys))
    assert len(maps) == len(pairs(words)) == 16
    for weights, [(query, key, number)] in zip(maps, pairs(words), strict=True):
        ink = weights[queries.index(query), keys.index(key)]
        assert ink == weights.max() == round(number, 1)


def test_four_small_maps_are_told_by_what_is_darkest_in_each_row():
    page, words = FIGURES["reading/translator examples-figure"]
    axes = ElementTree.fromstring(page).find(f"{SVG}g/{SVG}g[@id='axes_1']")
    pieces = _told_apart(labels(axes, "ytick")[:15])
    maps = drawn_small(page, 15, 15)
    assert len(maps) == len(pairs(words)) == 4
    for weights, told in zip(maps, pairs(words), strict=True):
        assert [query for query, _, _ in told] == pieces
        for row, (_, key, number) in zip(weights, told, strict=True):
            assert row[pieces.index(key)] == row.max()
            assert abs(row.max() - number) < 0.056  # tenths beside hundredths


def test_the_book_has_maps_and_those_with_words_of_their_own_are_among_them():
    assert len(PICTURES) > 8
    assert len(EXPLORERS) > 3
    assert OWN_WORDS.keys() < PICTURES.keys()


LETTERS = st.characters(exclude_categories=())
SIDES = st.lists(st.text(LETTERS, max_size=4), min_size=1, max_size=5)


@settings(max_examples=40)
@given(SIDES, SIDES, st.floats(0, 1), st.integers(0, 999))
def test_picture_and_words_agree_whatever_the_tokens_are(queries, keys, share, seed):
    torch.manual_seed(seed)
    weights = torch.randn(len(queries), len(keys)).softmax(dim=-1)
    mask = torch.rand(len(queries), len(keys)) <= share
    bundle, _ = show_weights(weights, queries, keys, mask=mask)._repr_mimebundle_()
    shown = drawn(bundle["image/svg+xml"])
    assert (shown["queries"], shown["keys"]) == (queries, keys)
    assert bundle["text/plain"] == describe_weights(**shown)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (41, 37)], ids=str)
def test_large_maps_can_be_read_from_their_ink_as_small_ones_can(size):
    weights, mask = torch.rand(2, *size), torch.rand(2, *size) < 0.6
    queries, keys = ([f"t{n}" for n in range(side)] for side in size)
    bundle, _ = show_weights(weights, queries, keys, mask=mask)._repr_mimebundle_()
    shown = drawn(bundle["image/svg+xml"])
    assert torch.equal(shown["mask"], mask)
    torch.testing.assert_close(shown["weights"], weights * mask, atol=5.1e-5, rtol=0)
