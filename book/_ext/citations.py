"""A source is called by its authors and year, in the list as in the text.

Those of the same names and year get a letter each. A link says to which host it leads.
"""

from collections.abc import Iterator
from string import ascii_lowercase
from urllib.parse import urlsplit

from pybtex.backends.plaintext import Backend
from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.template import field, href, join
from sphinx.application import Sphinx


class Labels(BaseLabelStyle):
    def format_labels(self, sorted_entries: list[Entry]) -> Iterator[str]:
        names = [called(entry) for entry in sorted_entries]
        for number, name in enumerate(names):
            letter = ascii_lowercase[names[:number].count(name)]
            yield name + (letter if names.count(name) > 1 else "")


class Sources(Style):
    default_label_style = "authors"
    default_sorting_style = "author_year_title"

    def format_url(self, e: Entry):
        return href[field("url", raw=True), field("url", apply_func=place, raw=True)]

    def format_doi(self, e: Entry):
        number = field("doi", raw=True)
        return href[join["https://doi.org/", number], join["doi.org/", number]]


def place(url: str) -> str:
    host, path = urlsplit(url)[1:3]
    return f"{host}{path}".rstrip("/")


def called(entry: Entry) -> str:
    """Vaswani et al. 2017; Milakov and Gimelshein 2018; Graves 2013."""
    people = entry.persons["author"]
    last = [
        " ".join(map(str, p.rich_prelast_names + p.rich_last_names)) for p in people
    ]
    who = f"{last[0]} et al." if len(last) > 2 else " and ".join(last)
    return f"{who} {entry.fields.get('year', '')}".strip()


def setup(app: Sphinx) -> None:
    register_plugin("pybtex.style.labels", "authors", Labels, force=True)
    register_plugin("pybtex.style.formatting", "authors", Sources, force=True)
    # Else pybtex looks through all installed packages for it, at every citation.
    register_plugin("pybtex.backends", "plaintext", Backend, force=True)
