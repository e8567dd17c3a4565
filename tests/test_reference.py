"""What must stay true of the pages for looking things up, and of links to them."""

import ast
import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from pybtex.database import parse_file

import attention

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path[:0] = [str(BOOK), str(BOOK / "_ext")]

import citations  # noqa: E402
import exercises  # noqa: E402
import overview  # noqa: E402
import reference  # noqa: E402
import tangle  # noqa: E402
from published import ERRATA, NUMBERS  # noqa: E402

CHAPTERS = [page for _, pages in overview.parts(ROOT) for page in pages]


GLOSSARY = "book/reference/glossary.md"


def text(name: str) -> str:
    return (BOOK / f"reference/{name}.md").read_text("utf-8")


def cells(page: str) -> list[dict]:
    return tangle.load(ROOT / f"{page}.ipynb", ROOT)["cells"]


def prose(page: str) -> str:
    """The text of a chapter after its title and lead."""
    told = [cell["source"] for cell in cells(page) if cell["cell_type"] == "markdown"]
    return "\n\n".join(told[1:])


# Glossary


def glossary() -> dict[str, str]:
    """Each term's definition, by the address that links use."""
    found = re.findall(r"(?m)^(\w.*)\n((?:  .+\n)+)", text("glossary"))
    return {address(term): definition for term, definition in found}


def address(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term.lower())


def links(page: str) -> list[str]:
    return re.findall(r"\]\(#(term-[^)]+)\)", prose(page))


def test_every_term_is_linked_from_a_chapter():
    linked = {link for page in CHAPTERS for link in links(page)}
    lacks, unused = sorted(linked - glossary().keys()), glossary().keys() - linked
    assert not lacks, (
        f"{GLOSSARY}: must explain what chapters link to, and these are not there: "
        f"{lacks}; a term on a line of its own, like `query`, is #term-query"
    )
    assert not unused, (
        f"{GLOSSARY}: each term must be linked from a chapter, like [**query**]"
        f"(#term-query), and these are not: {sorted(unused)}"
    )


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_links_a_term_once(page):
    twice = sorted({link for link in links(page) if links(page).count(link) > 1})
    must = "a term must be linked once, where it is first used; linked again"
    assert not twice, f"{page}.ipynb: {must}: {twice}"


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_term_in_bold_is_one_of_the_glossary_that_the_chapter_links(page):
    bold = re.findall(r"\*\*([^*\d][^*]*)\*\*", prose(page))
    terms = [words for words in bold if len(words.split()) <= 3 and words[-1] != "."]
    linked = re.findall(r"\[\*\*([^*]+)\*\*\]\(#term-", prose(page))
    for term in sorted(set(terms) - set(linked)):
        assert address(term) in links(page), (
            f"{page}.ipynb: a term in bold must be linked, like "
            f"[**{term}**](#{address(term)}), and explained in {GLOSSARY}; "
            "what is no term stands between *single stars*"
        )


def test_a_term_is_explained_in_a_sentence_or_two():
    for term, definition in glossary().items():
        got = len(re.findall(r"\.(?=\s)", definition))
        must = "must be explained in one or two sentences"
        assert 1 <= got <= 2, f"{GLOSSARY}: {term} {must}, not {got}"


# Notation


def table(heading: str) -> list[list[str]]:
    """The rows of a table of the notation, each as its cells."""
    section = text("notation").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def names(heading: str) -> list[str]:
    return [name for row in table(heading) for name in re.findall(r"`(\w+)`", row[0])]


def test_letters_mean_what_the_package_says_they_mean():
    legend = re.findall(r"  ([a-z])  (\S+(?: \S+)*)", attention.__doc__)
    assert [list(pair) for pair in legend] == table("Letters")


def test_tensors_are_called_as_the_package_calls_them():
    words = attention.__doc__.split("Words are the same")[1].split("Letters")[0]
    assert set(re.findall(r"`(\w+)`", words)) <= set(names("Tensors"))


def test_sizes_are_parameters_or_attributes_of_the_package():
    module = attention.MultiHeadAttention(2, 2, 1, 0.0, 1)
    known = set(vars(module))
    for name in attention.__all__:
        known |= inspect.signature(getattr(attention, name)).parameters.keys()
    assert set(names("Sizes")) <= known


def test_layers_are_those_of_the_module():
    module = attention.MultiHeadAttention(2, 2, 1, 0.0, 1)
    layers = [name for name, layer in module.named_children() if name != "dropout"]
    assert names("Layers") == layers


# Examples of the API page


def test_every_name_of_the_package_has_an_example():
    told, shown = set(reference.told_names(ROOT)), set(reference.examples(ROOT))
    lacks, left = sorted(told - shown), sorted(shown - told)
    assert not lacks, (
        f"{reference.EXAMPLES}: each name of attention/__init__.py must have an "
        f"example, under a heading like ## `attend`; these have none: {lacks}"
    )
    assert not left, f"{reference.EXAMPLES}: no such name is public: {left}"


def test_all_names_without_an_example_are_told_at_once(monkeypatch):
    shown = reference.examples(ROOT)
    few = {name: shown[name] for name in shown if name not in ("attend", "window")}
    monkeypatch.setattr(reference, "examples", lambda root: few)
    with pytest.raises(AssertionError, match=r"examples\.md: .*\['attend', 'window'\]"):
        test_every_name_of_the_package_has_an_example()


# The path on the home page


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_is_said_once_to_build_on_another(page):
    module = ROOT / f"{page.replace('book/', 'attention/', 1)}.py"
    bases = overview.imported(module)
    assert len(set(bases)) == len(bases), bases


# Exercises, published numbers, bibliography


@pytest.mark.parametrize("page", CHAPTERS)
def test_every_exercise_is_listed_by_name_and_level(page):
    tagged = [c for c in cells(page) if "exercise" in tangle.tags(c)]
    tasks = exercises.tasks(ROOT, page)
    must = "begin with its name in bold, which no other has, like **1. Window.** (easy)"
    assert len(set(tasks)) == len(tagged), (
        f"{page}.ipynb: the text before each cell tagged `exercise` must {must}, "
        f"not {tasks}"
    )
    levels = [level for _, level in tasks]
    right = ["easy", "medium", "harder"] if len(tasks) > 1 else [""]
    assert levels == right, (
        f"{page}.ipynb: behind the names of exercises must stand their levels, like "
        f"**1. Window.** (easy): {right} in this order, not {levels}"
    )


def test_the_page_of_published_numbers_shows_every_one():
    page = json.dumps(cells("book/reference/published_numbers"), ensure_ascii=False)
    for entry in [*NUMBERS.values(), *ERRATA.values()]:
        assert f"{entry['what']}<br><small>{entry['source']}</small>" in page


def test_every_source_is_cited_in_a_chapter():
    sources = re.findall(r"(?m)^@\w+\{(\w+),", (BOOK / "references.bib").read_text())
    told = "\n".join(map(prose, CHAPTERS))
    cited = ",".join(re.findall(r"\{cite:\w+\}`([^`]+)`", told))
    keys = set(cited.split(","))
    unused, lacks = set(sources) - keys, keys - set(sources)
    must = "each source must be cited in a chapter, like {cite:p}`vaswani2017`"
    assert not unused, f"book/references.bib: {must}; these are not: {sorted(unused)}"
    must = "must hold what chapters cite, and these keys are not there"
    assert not lacks, f"book/references.bib: {must}: {sorted(lacks)}"


def labels() -> tuple[str, ...]:
    """What the bibliography calls its sources, as Chen et al. 2023b."""
    citations.setup(None)
    entries = parse_file(BOOK / "references.bib").entries.values()
    style = citations.Sources()
    return tuple(style.format_labels(style.sort(entries)))


def docstrings(file: Path) -> list[str]:
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    nodes = [
        n for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, kinds)
    ]
    return [" ".join((ast.get_docstring(node) or "").split()) for node in nodes]


def test_a_docstring_calls_a_source_as_the_bibliography_does():
    known, strange = labels(), []
    for file in sorted((ROOT / "attention").rglob("*.py")):
        for told in docstrings(file):
            for year in re.finditer(r"\b(19\d\d|20[0-3]\d)[a-z]?\b", told):
                if not told[: year.end()].endswith(known):
                    end = told[max(0, year.start() - 30) : year.end()]
                    strange.append(f"{file.relative_to(ROOT)}: …{end}")
    must = "a source must be called as on the page of the bibliography; these are not:"
    assert not strange, "\n".join([must, *strange])
