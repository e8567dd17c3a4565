"""What must stay true of the tool that writes the package from the book."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import tangle  # noqa: E402

HEAD = "# A title\n\n> A lead that says\n> what the chapter does."
TOC = """\
format: jb-book
root: book/index
parts:
  - caption: The first part
    chapters:
      - file: book/one/early
      - file: book/one/late
"""


def cell(source: str, name: str, *tags: str) -> dict:
    kind = "markdown" if name == "title" else "code"
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    if tags:
        cell["metadata"]["tags"] = list(tags)
    return cell if kind == "markdown" else cell | {"outputs": [], "execution_count": 1}


def notebook(*sources: str, head: str = HEAD) -> str:
    """A chapter whose code cells are all exported, but those that start with `##`."""
    tags = [() if source.startswith("##") else ("export",) for source in sources]
    cells = [
        cell(source, f"code-{number}", *tag)
        for number, (source, tag) in enumerate(zip(sources, tags, strict=True))
    ]
    cells = [cell(head, "title"), *cells]
    return json.dumps(
        {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
    )


class Book:
    """A small book in a folder of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.put("_toc.yml", TOC)
        self.put("book/index.md", "# Index")
        self.put("attention/__init__.py", '"""By hand."""\n')
        self.put("book/one/early.ipynb", notebook("def early(x):\n    return x"))
        self.put("book/one/late.ipynb", notebook("def late(x):\n    return x"))

    def put(self, path: str, text: str):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def chapter(self, *sources: str, name: str = "late"):
        self.put(f"book/one/{name}.ipynb", notebook(*sources))

    def module(self, name: str = "late") -> str:
        return (self.root / f"attention/one/{name}.py").read_text()

    def package(self) -> dict[str, bytes]:
        files = sorted((self.root / "attention").rglob("*"))
        return {str(path): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


@pytest.fixture
def refused(book, capsys):
    """Tangle in both ways: each must refuse, and neither may touch the package."""

    def refused() -> str:
        capsys.readouterr()
        said = []
        for check in (False, True):
            before = book.package()
            assert tangle.main(book.root, check=check) == 1
            assert book.package() == before
            out, err = capsys.readouterr()
            assert out == ""
            said.append(err)
        assert said[0] == said[1]
        return said[0].removesuffix("\n")

    return refused


# What is written


def test_a_module_is_the_exported_cells_under_a_docstring_that_says_where_to_edit(book):
    book.chapter(
        "import math\nfrom torch import Tensor  # only the type\n\n\n"
        "def half( x: Tensor ) -> Tensor:\n    # a comment stays\n    return x / 2",
        "## x = half(1)",
        "# one constant\n_TWO = 2\nLIMIT: float = math.inf",
        "import os\nfrom math import pi, e\nfirst, (second, *_rest) = pi, (e, 1, _TWO)",
    )
    assert tangle.main(book.root) == 0
    assert (
        book.module()
        == '''\
"""A title

A lead that says what the chapter does.

Written by `book/one/late.ipynb`: read and change it there.
"""

import math
from math import e, pi

from torch import Tensor  # only the type

__all__ = ["LIMIT", "first", "half", "second"]


def half(x: Tensor) -> Tensor:
    # a comment stays
    return x / 2


# one constant
_TWO = 2
LIMIT: float = math.inf

first, (second, *_rest) = pi, (e, 1, _TWO)
'''
    )


def test_imports_for_the_type_checker_follow_the_imports(book):
    book.chapter(
        "def name(x: 'Path') -> str:\n    return x.name",
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from pathlib import Path\n\nSEVEN = 7",
        "import math\n\nTAU = math.tau",
    )
    assert tangle.main(book.root) == 0
    assert (
        book.module()
        .split('"""\n\n')[1]
        .startswith(
            "import math\nfrom typing import TYPE_CHECKING\n\n"
            "if TYPE_CHECKING:\n    from pathlib import Path\n\n__all__ = "
        )
    )


@pytest.mark.parametrize(
    "block",
    [
        "if TYPE_CHECKING:\n    import os\n\n    HERE = os",
        "if TYPE_CHECKING:\n    import os\nelse:\n    os = None",
    ],
    ids=["more than imports", "with another way"],
)
def test_a_block_for_the_type_checker_that_does_more_stays_in_its_place(book, block):
    book.chapter(f"from typing import TYPE_CHECKING\n\nONE = 1\n\n{block}")
    assert tangle.main(book.root) == 0
    assert book.module().endswith(f"ONE = 1\n\n{block}\n")


def test_a_part_is_a_package_named_by_its_caption(book):
    assert tangle.main(book.root) == 0
    assert book.module("__init__") == (
        '"""The first part: one module for each chapter of `book/one`."""\n'
    )


def test_a_chapter_that_exports_nothing_writes_no_module(book):
    book.chapter("## draft = 1")
    assert tangle.main(book.root) == 0
    assert {Path(path).name for path in book.package()} == {"__init__.py", "early.py"}


def test_a_page_of_markdown_needs_no_module(book):
    book.put("_toc.yml", TOC + "      - file: book/one/words\n")
    book.put("book/one/words.md", "Words.")
    assert tangle.main(book.root) == 0


def test_a_second_run_writes_nothing(book, capsys):
    tangle.main(book.root)
    assert "wrote: attention/one/late.py" in capsys.readouterr().out
    times = [os.stat(path).st_mtime_ns for path in book.package()]
    assert tangle.main(book.root) == 0
    assert capsys.readouterr().out == ""
    assert times == [os.stat(path).st_mtime_ns for path in book.package()]


def test_what_is_written_passes_the_check_and_leaves_no_other_file(book):
    tangle.main(book.root)
    assert tangle.main(book.root, check=True) == 0
    names = {
        str(path.relative_to(book.root)) for path in book.root.rglob("attention/**/*")
    }
    assert names == {
        "attention/__init__.py",
        "attention/one",
        "attention/one/__init__.py",
        "attention/one/early.py",
        "attention/one/late.py",
    }


def test_the_docstring_holds_what_a_lead_may_hold(book):
    head = (
        '# On `\\sqrt`\n\n> Why $\\sqrt{d}$, "quotes" and ω stay as they are.\n\nMore.'
    )
    book.put("book/one/late.ipynb", notebook("def late(): ...", head=head))
    assert tangle.main(book.root) == 0
    space = {}
    exec(compile(book.module(), "late.py", "exec"), space)
    assert '$\\sqrt{d}$, "quotes" and ω' in space["__doc__"]
    assert "More" not in space["__doc__"]


@pytest.mark.parametrize("title", ['"""', 'A "word"', 'On """ and \\d', '"""" \\"""'])
def test_the_docstring_holds_quotes_in_a_title(title, book):
    text = notebook("ONE = 1", head=f'# {title}\n\n> A lead with """.')
    book.put("book/one/late.ipynb", text)
    book.put("_toc.yml", TOC.replace("The first part", json.dumps(title)))
    assert tangle.main(book.root) == 0
    for name, says in {
        "late": f'{title}\n\nA lead with """.',
        "__init__": title,
    }.items():
        space = {}
        exec(compile(book.module(name), "late.py", "exec"), space)
        assert space["__doc__"].startswith(says)


def test_no_line_of_the_docstring_is_longer_than_88_letters(book):
    title = f"\\d {'x' * 40} {'y' * 41}"  # 85 letters, after r and three quotes
    book.put("book/one/late.ipynb", notebook("ONE = 1", head=f"# {title}\n\n> Lead."))
    assert tangle.main(book.root) == 0
    assert max(map(len, book.module().splitlines())) <= 88


def test_a_long_word_of_the_lead_stays_whole(book):
    address = "https://example.org/" + "way/" * 20 + "end"
    text = notebook("ONE = 1", head=f"# Title\n\n> Found at {address}.")
    book.put("book/one/late.ipynb", text)
    assert tangle.main(book.root) == 0
    assert address in book.module()


def test_shapes_in_words_are_no_leak(book):
    book.chapter(
        "from jaxtyping import Float\nfrom torch import Tensor\n\n\n"
        'def late(x: Float[Tensor, "b h *i"]) -> Float[Tensor, " b"]:\n    return x'
    )
    assert tangle.main(book.root) == 0


# What the check finds


def test_a_module_that_left_its_chapter_is_stale_and_its_first_line_is_shown(
    book, capsys
):
    tangle.main(book.root)
    book.put("attention/one/late.py", book.module().replace("return x", "return -x"))
    capsys.readouterr()
    before = book.package()
    assert tangle.main(book.root, check=True) == 1
    assert book.package() == before
    assert capsys.readouterr().err == (
        "stale: attention/one/late.py, line 12: is '    return -x', "
        "its chapter gives '    return x'\n"
    )


def test_a_module_that_is_missing_is_stale(book, capsys):
    assert tangle.main(book.root, check=True) == 1
    assert "stale: attention/one/late.py: missing" in capsys.readouterr().err


def test_a_module_that_is_not_text_is_stale(book, capsys):
    tangle.main(book.root)
    (book.root / "attention/one/late.py").write_bytes(b"\xff\xfe")
    assert tangle.main(book.root, check=True) == 1
    assert "stale: attention/one/late.py, line 1: is " in capsys.readouterr().err


def test_bytes_that_read_the_same_are_stale_too():
    why = ": differs in its line ends or encoding"
    assert tangle.difference(b"\xff", "\ufffd") == why


# What is refused: each in one line that names the file and, if there is one, the cell

REFUSED = {
    "an exported cell that does not parse": (
        ["ONE = 1", "def broken(:\n    pass"],
        "cell 3 (code-1): does not parse: invalid syntax, line 1",
    ),
    "IPython magic": (
        ["%timeit 1"],
        "cell 2 (code-0): does not parse: invalid syntax, line 1",
    ),
    "a statement that no module can hold": (
        ["return 1"],
        "cell 2 (code-0): does not parse: 'return' outside function, line 1",
    ),
    "a character that no source can hold": (
        ["x = '\0'"],
        "cell 2 (code-0): does not parse: source code string cannot contain null bytes",
    ),
    "an import beside other code": (
        ["import os; HERE = os.curdir"],
        "cell 2 (code-0): an import must not share its line with other code",
    ),
    "a name exported twice by one chapter": (
        ["def late(): ...", "## 0", "late = 3"],
        "cell 4 (code-2): exports `late` again, after "
        "book/one/late.ipynb, cell 2 (code-0)",
    ),
    "a name that an earlier chapter exports": (
        ["def early(): ..."],
        "cell 2 (code-0): exports `early` again, after "
        "book/one/early.ipynb, cell 2 (code-0)",
    ),
    "a private name exported twice": (
        ["_a = 1", "_a = 2"],
        "cell 3 (code-1): exports `_a` again, after "
        "book/one/late.ipynb, cell 2 (code-0)",
    ),
    "a global of the notebook, leaked into a function": (
        ["ONE = 1\nTWO = 2", "## scale = 2", "def late(x):\n    return scale * x"],
        "cell 4 (code-2): reads `scale`, which no exported cell defines",
    ),
    "a leak before other cells": (
        ["def late(x):\n    return scale * x", "ONE = 1"],
        "cell 2 (code-0): reads `scale`, which no exported cell defines",
    ),
    "a module that only the notebook imports": (
        ["## import torch", "def late(x: torch.Tensor):  # noqa: F821\n    return x"],
        "cell 3 (code-1): reads `torch`, which no exported cell defines",
    ),
    "a name that only IPython knows": (
        ["def late(x):\n    display(x)"],
        "cell 2 (code-0): reads `display`, which no exported cell defines",
    ),
    "a leaked global beside a shape of the same name": (
        [
            "from jaxtyping import Float\nfrom torch import Tensor",
            '## length = 2\ndef late(x: Float[Tensor, " length"] = length): ...',
            'def late(x: Float[Tensor, " length"] = length):\n    return x',
        ],
        "cell 4 (code-2): reads `length`, which no exported cell defines",
    ),
    "a shape of one axis without its space": (
        [
            "from jaxtyping import Float\nfrom torch import Tensor\n\n"
            'def late(x: Float[Tensor, "length"]): ...'
        ],
        "cell 2 (code-0): reads `length`, which no exported cell defines; "
        'a shape of one axis starts with a space: " length"',
    ),
    "a name that both ways of an `if` define, exported again": (
        ["if True:\n    late = 1\nelse:\n    late = 2", "late = 3"],
        "cell 3 (code-1): exports `late` again, after "
        "book/one/late.ipynb, cell 2 (code-0)",
    ),
    **{
        f"a name bound by `{source.split()[0]}`, exported twice": (
            [source.format("early")],
            "cell 2 (code-0): exports `early` again, after "
            "book/one/early.ipynb, cell 2 (code-0)",
        )
        for source in (
            "if True:\n    {} = 1",
            "while not (ONE := 1):\n    pass\nelse:\n    {} = 1",
            "for {} in range(3):\n    pass",
            "try:\n    pass\nfinally:\n    {} = 1",
            "with open(__file__) as (_one, *{}):\n    pass",
            "match 1:\n    case {}:\n        pass",
            "match2 = 1\nmatch {{}}:\n    case {{1: [*{}]}}:\n        pass",
            "mapping = 1\nmatch {{}}:\n    case {{1: 2, **{}}}:\n        pass",
            "print({} := 1)",
            "[({} := one) for one in range(3)]",
            "class {}: ...",
            "async def {}(): ...",
        )
    },
    "an `__all__` of its own": (
        ["__all__ = ['late']\n\n\ndef late(): ..."],
        "cell 2 (code-0): must not touch `__all__`, which is made of what is exported",
    ),
    "a global of the notebook, declared so": (
        ["## calls = 0", "def late():\n    global calls\n    calls += 1"],
        "cell 3 (code-1): global `calls`, which no exported cell defines",
    ),
    "a global of the notebook, hidden in a string": (
        ["## scale = 2", "def late(x):\n    return eval('scale * x')"],
        "cell 3 (code-1): uses `eval`: no check sees what that reads",
    ),
    "a program in a string": (
        ["def late(x):\n    exec('print(scale)')"],
        "cell 2 (code-0): uses `exec`: no check sees what that reads",
    ),
    "the notebook itself": (
        ["import __main__\n\nscale = __main__.scale"],
        "cell 2 (code-0): imports `__main__`: "
        "must be another: behind the package, there is no notebook",
    ),
    "a star import": (
        ["from math import *\nprint(pi)"],
        "cell 2 (code-0): star import: must name what it takes",
    ),
    "an import of a chapter from itself": (
        ["from attention.one.late import late"],
        "cell 2 (code-0): imports `attention.one.late`: "
        "must be of an earlier chapter, in the order of _toc.yml",
    ),
    "an import from the package's top": (
        ["def f():\n    from attention import early\n\n    return early"],
        "cell 2 (code-0): imports `attention`: "
        "must be a chapter's, `attention.<part>.<chapter>`",
    ),
    "an import of a part": (
        ["import attention.one as one\n\nprint(one)"],
        "cell 2 (code-0): imports `attention.one`: "
        "must be a chapter's, `attention.<part>.<chapter>`",
    ),
    "a relative import": (
        ["from .early import early\n\nprint(early)"],
        "cell 2 (code-0): imports `.early`: "
        "must be a chapter's, `attention.<part>.<chapter>`",
    ),
}


@pytest.mark.parametrize(("sources", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_is(sources, reason, book, refused):
    book.put("attention/one/late.py", "as it was")
    book.chapter(*sources)
    assert refused() == f"refused: book/one/late.ipynb, {reason}"


def test_an_import_of_a_later_chapter_is_refused_wherever_it_stands(book, refused):
    tangle.main(book.root)
    book.chapter(
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from attention.one.late import late",
        name="early",
    )
    assert refused() == (
        "refused: book/one/early.ipynb, cell 2 (code-0): imports `attention.one.late`: "
        "must be of an earlier chapter, in the order of _toc.yml"
    )


def test_an_import_of_an_earlier_chapter_is_welcome(book):
    book.chapter("from attention.one.early import early\n\nlate = early")
    assert tangle.main(book.root) == 0


def test_names_that_do_not_last_are_no_exports(book):
    book.chapter(
        "size = 3\nfor i in range(size):\n    TABLE = i\ndel i, size",
        "try:\n    import numpy\nexcept ImportError as error:\n    numpy = None",
        "squares = [k * k for k in range(3)]\nfirst = lambda: (inner := 1)\nlater: int",
        "squares += [9]\n\n\ndef late(value=None):\n    del value",
    )
    assert tangle.main(book.root) == 0
    exports = '__all__ = ["TABLE", "first", "late", "squares"]\n'
    assert exports in book.module()


def test_a_global_that_exported_cells_define_is_welcome(book):
    book.chapter(
        "COUNT = 0",
        "def late():\n    global COUNT, math\n    import math\n\n    COUNT += 1",
    )
    assert tangle.main(book.root) == 0


# Tools


TOOLS = TOC + "      - file: book/one/last\n      - file: book/tools/help\n"


@pytest.fixture
def tools(book):
    """A third chapter, `last`, and the chapter `help` of the tools, which uses it."""
    book.put("_toc.yml", TOOLS)
    uses = "from attention.one.last import last\n\n\ndef aid():\n    return last()"
    book.put("book/tools/help.ipynb", notebook("def help_(): ...", uses))
    book.put("book/one/last.ipynb", notebook("def last(): ..."))
    book.chapter("from attention.tools.help import help_\n\nlate = help_")
    return book


def test_tools_serve_all_chapters_and_use_those_that_need_none(tools):
    assert tangle.main(tools.root) == 0


@pytest.mark.parametrize(
    "source",
    ["from attention.tools.help import aid", "from attention.one.late import late"],
    ids=["directly", "through another"],
)
def test_tools_that_use_what_needs_tools_are_refused(source, tools, refused):
    name = source.split()[-1]
    tools.chapter(
        "ONE = 1", f"{source}\n\n\ndef last():\n    return {name}()", name="last"
    )
    assert refused() == (
        "refused: book/tools/help.ipynb, cell 3 (code-1): "
        "imports `attention.one.last`: an import cycle: "
        "book/one/last.ipynb, cell 3 (code-1) imports what needs tools"
    )


NOT_CHAPTERS = {
    "text": ("<<<<<<< HEAD", "late.ipynb: not JSON: Expecting value: line 1 column 1"),
    "nesting": ("[" * 100_000, "late.ipynb: not JSON: maximum recursion depth"),
    "json": ("[]", "late.ipynb: not a notebook: must be format 4 with a list of cells"),
    "old": ('{"nbformat": 3, "cells": []}', "late.ipynb: not a notebook"),
    "before ids": (
        notebook("x = 1").replace('minor": 5', 'minor": 4').replace('"id"', '"name"'),
        "late.ipynb: is format 4.4, must be 4.5, whose cells have ids: "
        "`nbformat.v4.upgrade` adds them",
    ),
    "of the future": (
        notebook("x = 1").replace('minor": 5', 'minor": 99'),
        "late.ipynb: is format 4.99, must be 4.5",
    ),
    "metadata": (
        notebook("x = 1").replace('"metadata": {}, "cells"', '"cells"'),
        "late.ipynb: not a notebook: 'metadata' is a required property",
    ),
    "no id": (
        notebook("x = 1").replace('"id"', '"name"'),
        "late.ipynb, cell 1: not a cell: 'id' is a required property",
    ),
    "an id twice": (
        notebook("x = 1", "x = 2").replace("code-1", "code-0"),
        "late.ipynb, cell 3 (code-0): must have an id of its own, not that of "
        "book/one/late.ipynb, cell 2 (code-0)",
    ),
    "no outputs": (
        notebook("x = 1").replace('"outputs"', '"puts"'),
        "late.ipynb, cell 2: not a cell: 'outputs' is a required property",
    ),
    "no tags": (
        notebook("x = 1").replace('["export"]', "null"),
        "late.ipynb, cell 2: not a cell: metadata.tags: None is not of type 'array'",
    ),
    "tags in one word": (
        notebook("x = 1").replace('["export"]', '"export"'),
        "late.ipynb, cell 2: not a cell: metadata.tags: 'export' is not of type",
    ),
    "a cell of another type": (
        notebook("x = 1").replace('"code"', '"slide"'),
        "late.ipynb, cell 2: not a cell: its cell_type must be one of code, markdown, "
        "raw, is 'slide'",
    ),
    "a cell of no type": (
        notebook("x = 1").replace('"code"', "[]"),
        "late.ipynb, cell 2: not a cell: its cell_type must be one of code, markdown, "
        "raw, is []",
    ),
    "a cell that is none": (
        notebook("x = 1").replace('"cells": [', '"cells": [7, '),
        "late.ipynb, cell 1: not a cell",
    ),
    "half merged": (
        notebook("x = 1", head=f"{HEAD}\n\n<<<<<<< HEAD\nText.\n=======\n>>>>>>> b"),
        "late.ipynb, cell 1 (title): holds a conflict marker, `<<<<<<<`, line 6",
    ),
    "checked by nobody": (
        notebook("##\n# NBVAL_SKIP\nprint(2 + 2)"),
        "late.ipynb, cell 2 (code-0): holds `# NBVAL_SKIP`: must be tagged instead, or",
    ),
    **{
        f"tagged {tag!r}": (
            notebook("x = 1").replace('["export"]', json.dumps([tag])),
            f"late.ipynb, cell 2 (code-0): tagged {tag!r}, must be {must}",
        )
        for tag, must in {
            "Export": "'export'",
            " export": "'export'",
            "exports": "'export'",
            "Solution ": "'solution'",
            "nbval_ignore_output": "'nbval-ignore-output'",
            "skip-execution": "one of export, exercise, solution, nbval-ignore",
            "nbval-skip": "one of export",
            "raises-exception": "one of export",
        }.items()
    },
    "no cells": (
        json.dumps(json.loads(notebook()) | {"cells": []}),
        "late.ipynb, cell 1: must begin",
    ),
    "no title": (
        notebook("x = 1", head="# "),
        "late.ipynb, cell 1: must begin with `# Title`, an empty line and a lead, "
        "`> one sentence`",
    ),
    "no lead": (
        notebook("x = 1", head="# Title\n\nText."),
        "late.ipynb, cell 1: must begin",
    ),
    "an empty lead": (
        notebook(head="# Title\n\n>\n>"),
        "late.ipynb, cell 1: must begin",
    ),
    "a lead too late": (
        notebook(head="# Title\n\nText.\n\n> Lead."),
        "late.ipynb, cell 1: must begin",
    ),
}


@pytest.mark.parametrize(("text", "reason"), NOT_CHAPTERS.values(), ids=NOT_CHAPTERS)
def test_not_a_chapter(text, reason, book, refused):
    book.put("attention/one/late.py", "as it was")
    book.put("book/one/late.ipynb", text)
    said = refused()
    assert said.startswith(f"refused: book/one/{reason}")
    assert "\n" not in said


def test_a_notebook_that_is_not_utf_8_is_refused(book, refused):
    (book.root / "book/one/late.ipynb").write_bytes(b'{"nbformat": "\xff"}')
    assert refused().startswith("refused: book/one/late.ipynb: not JSON: ")


def test_text_that_no_file_can_hold_is_refused(book, refused):
    book.put("book/one/late.ipynb", notebook("x = 1", head="# \ud800\n\n> Lead."))
    assert "surrogates" in refused()


def test_exported_words_are_refused(book, refused):
    text = json.loads(notebook("## x = 1"))
    text["cells"].append(cell("Words.", "title", "export") | {"id": "words"})
    book.put("book/one/late.ipynb", json.dumps(text))
    assert refused() == (
        "refused: book/one/late.ipynb, cell 3 (words): "
        "tagged `export`, so must be a code cell"
    )


def test_a_page_that_is_half_merged_is_refused(book, refused):
    book.put("book/index.md", "# Index\n\n<<<<<<< HEAD\nText.\n")
    must = "holds a conflict marker, `<<<<<<<`, line 3"
    assert refused() == f"refused: book/index.md: {must}"


def test_a_chapter_missing_from_the_toc_is_refused(book, refused):
    book.put("book/one/unlisted.ipynb", notebook("x = 1"))
    book.put("book/one/.ipynb_checkpoints/late-checkpoint.ipynb", notebook("x = 1"))
    assert refused() == "refused: book/one/unlisted.ipynb: missing from _toc.yml"


def test_a_page_of_the_toc_without_a_file_is_refused(book, refused):
    (book.root / "book/one/early.ipynb").unlink()
    assert (
        refused()
        == "refused: _toc.yml: lists book/one/early, but there is no such file"
    )


@pytest.mark.parametrize("toc", ["- [", "", "parts: 3", "- a\n- b", "\0"])
def test_a_toc_that_is_none_is_refused(toc, book, refused):
    book.put("_toc.yml", toc)
    assert refused().startswith("refused: _toc.yml: ")


def test_a_missing_toc_is_refused(book, refused):
    (book.root / "_toc.yml").unlink()
    assert "_toc.yml" in refused()


@pytest.mark.parametrize(
    "name", ["one/2-late", "one/class", "import/late", "one/é", "one/late.1", "late"]
)
def test_a_module_whose_place_no_import_could_name_is_refused(name, book, refused):
    book.put("_toc.yml", TOC.replace("one/late", name))
    (book.root / f"book/{name}").parent.mkdir(exist_ok=True)
    (book.root / "book/one/late.ipynb").rename(book.root / f"book/{name}.ipynb")
    assert refused() == (
        f"refused: book/{name}.ipynb: exports, so must be "
        "book/<part>/<chapter>.ipynb, both names that Python can import"
    )


@pytest.mark.parametrize("orphan", ["one/gone.py", "two/__init__.py", "helper.py"])
def test_a_module_that_no_chapter_writes_is_refused_and_kept(orphan, book, refused):
    tangle.main(book.root)
    book.put(f"attention/{orphan}", "x = 1\n")
    assert refused() == (
        f"refused: attention/{orphan}: no chapter writes it: "
        "delete it, or add its chapter"
    )


def test_all_refusals_are_told_at_once(book, refused):
    book.chapter("from math import *", name="early")
    book.chapter("def late():\n    return leaked")
    book.put("book/one/unlisted.ipynb", "")
    assert [line.split(":")[1] for line in refused().splitlines()] == [
        " book/one/unlisted.ipynb",
        " book/one/early.ipynb, cell 2 (code-0)",
        " book/one/late.ipynb, cell 2 (code-0)",
    ]


def test_one_bad_chapter_keeps_the_others_from_being_written(book, refused):
    tangle.main(book.root)
    book.chapter("EARLY = 1", name="early")
    book.chapter("def late(:")
    refused()
    assert "EARLY" not in book.module("early")


def test_an_orphan_keeps_every_module_from_being_written(book, capsys):
    tangle.main(book.root)
    book.chapter("LATE = 1")
    book.put("attention/helper.py", "x = 1\n")
    before = book.package()
    capsys.readouterr()
    assert tangle.main(book.root) == 1
    assert book.package() == before
    assert capsys.readouterr().out == ""


def test_who_reads_a_module_while_it_is_written_sees_it_whole(book):
    tangle.main(book.root)
    before = book.module()
    book.chapter("LATE = 1")
    with (book.root / "attention/one/late.py").open() as reader:
        tangle.main(book.root)
        assert reader.read() == before
    assert "LATE" in book.module()


def test_a_link_to_a_module_stays_a_link(book):
    tangle.main(book.root)
    module, real = book.root / "attention/one/late.py", book.root / "elsewhere.py"
    module.rename(real)
    module.symlink_to(real)
    book.chapter("LATE = 1")
    assert tangle.main(book.root) == 0
    assert module.is_symlink()
    assert "LATE" in real.read_text()


def test_a_module_that_is_read_only_is_kept_and_so_are_the_others(book, capsys):
    tangle.main(book.root)
    (book.root / "attention/one/late.py").chmod(0o444)
    before = book.package()
    book.chapter("EARLY = 1", name="early")
    book.chapter("LATE = 1")
    assert tangle.main(book.root) == 1
    assert book.package() == before
    late = book.root / "attention/one/late.py"
    assert f"{late}: cannot be written: it is read-only" in capsys.readouterr().err


def test_a_module_keeps_who_may_read_it(book):
    tangle.main(book.root)
    (book.root / "attention/one/late.py").chmod(0o600)
    book.chapter("LATE = 1")
    tangle.main(book.root)
    assert (book.root / "attention/one/late.py").stat().st_mode & 0o777 == 0o600


def test_a_module_that_cannot_be_written_keeps_the_others_from_it(book, capsys):
    book.put("_toc.yml", TOC + "      - file: book/two/last\n")
    book.put("book/two/last.ipynb", notebook("def last(): ..."))
    book.put("attention/two", "a file where a folder should be")
    before = book.package()
    assert tangle.main(book.root) == 1
    assert book.package() == before
    assert "attention/two" in capsys.readouterr().err


def test_ruff_that_is_missing_is_told_in_one_line(book, refused, monkeypatch):
    monkeypatch.setattr(tangle, "RUFF", [sys.executable, "-m", "no_such_tool"])
    assert "No module named no_such_tool" in refused()


def test_the_command_checks_the_book_it_lies_in(book):
    book.put("book/tangle.py", (ROOT / "book/tangle.py").read_text())
    command = [sys.executable, book.root / "book/tangle.py"]
    check = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert (check.returncode, check.stderr.count("missing")) == (1, 3)
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert subprocess.run([*command, "--check"], capture_output=True).returncode == 0
    wrong = subprocess.run([*command, "--chekc"], capture_output=True, text=True)
    assert (wrong.returncode, "--chekc" in wrong.stderr) == (2, True)
    told = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert "\n\nWrite the package from the book: " in told.stdout
