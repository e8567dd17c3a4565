"""What the pages say of their address and repository: all where the build is told them,
nothing where it is not, as on a reader's own machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from visits import soup

ROOT = Path(__file__).resolve().parents[2]
SITE = "https://owner.github.io/name/"
REPOSITORY = "https://github.com/owner/name"
# Where each page lies, and its address as it is told.
PAGES = {"index.html": SITE, "book/core/causal.html": f"{SITE}book/core/causal.html"}
TOC = "format: jb-book\nroot: book/index\nparts:\n- caption: The core\n  chapters:\n"
BUILD = "from jupyter_book.cli.main import main; main()"
TOC += "  - file: book/core/causal\n"


@pytest.fixture(scope="module")
def sites(tmp_path_factory) -> dict[str, Path]:
    """A home page and one chapter, built with and without the two addresses."""
    builds, told = {}, {"BOOK_ADDRESS": SITE, "BOOK_REPOSITORY": REPOSITORY}
    untold = {name: value for name, value in os.environ.items() if name not in told}
    for name, environment in (("told", untold | told), ("untold", untold)):
        folder = tmp_path_factory.mktemp(name)
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        for part in ("book", "attention"):
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        shutil.copy(ROOT / "_config.yml", folder)
        (folder / "_toc.yml").write_text(TOC)
        (folder / "book" / "index.md").write_text("# Building Attention\n\nA book.\n")
        command = [sys.executable, "-c", BUILD, "build", str(folder)]
        builds[folder] = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    for build in builds.values():
        words, _ = build.communicate()
        assert build.returncode == 0, words.decode()
    told, untold = (folder / "_build" / "html" for folder in builds)
    return {"told": told, "untold": untold}


def properties(page: Path) -> dict[str, str]:
    """The page's description and Open Graph properties."""
    metas = soup(page).select("head meta[property], head meta[name=description]")
    return {meta.get("property", meta.get("name")): meta["content"] for meta in metas}


def take_along(site: Path) -> dict[str, str]:
    links = soup(site / "book/core/causal.html").select(".take-along a")
    return {link.get_text(): link["href"] for link in links}


def test_every_page_is_described_by_its_lead(sites):
    for page, words in zip(PAGES, ("A book.", "Hiding the future: "), strict=True):
        said = properties(sites["told"] / page)
        assert said["description"] == said["og:description"]
        assert said["description"].startswith(words)
        assert said["og:title"] in ("Building Attention", "Causal attention")
        assert said["og:site_name"] == "Building Attention"


def test_a_page_states_its_address_only_where_it_is_known(sites):
    for page, address in PAGES.items():
        canonical = soup(sites["told"] / page).select("link[rel=canonical]")
        assert [link["href"] for link in canonical] == [address]
        assert properties(sites["told"] / page)["og:url"] == address
    for page in sites["untold"].rglob("*.html"):
        text = page.read_text("utf-8")
        assert 'rel="canonical"' not in text
        assert "og:url" not in text
        assert "og:image" not in text


def test_a_pages_social_picture_lies_where_it_says_and_is_not_loaded_by_it(sites):
    for page in PAGES:
        said = properties(sites["told"] / page)
        picture = sites["told"] / said["og:image"].removeprefix(SITE)
        size = tuple(int(said[f"og:image:{side}"]) for side in ("width", "height"))
        with Image.open(picture) as image:
            assert image.size == size
            assert size > (1100, 590)
            assert len(image.convert("RGB").getcolors(1 << 20)) > 8, "nothing drawn"
        assert picture.stat().st_size < 60_000
        assert len((sites["told"] / page).read_text().split(picture.name)) == 2
    assert not list(sites["untold"].rglob("summary_*.png"))


def test_the_sitemap_lists_every_page_once(sites):
    tree = ElementTree.parse(sites["told"] / "sitemap.xml")
    places = [place.text for place in tree.iter() if place.tag.endswith("}loc")]
    assert places == [*PAGES.values()]
    assert not (sites["untold"] / "sitemap.xml").exists()


def test_the_page_for_no_address_leads_home_from_any_depth(sites):
    for name, top in (("told", "/name/"), ("untold", "/")):
        page = soup(sites[name] / "404.html")
        links = [link["href"] for link in page.select("a")]
        assert links
        for link in links:
            assert link.startswith(top)
            assert (sites[name] / link.removeprefix(top)).exists(), link
        assert page.select("link, script, img, [src]") == [], "needs another file"


def test_the_home_page_lies_at_the_sites_own_address(sites):
    for site in sites.values():
        home = soup(site / "index.html")
        assert home.h1.get_text().startswith("Building Attention")
        assert not home.select("[http-equiv]")
        assert not (site / "book/index.html").exists()
        (name,) = {
            a["href"] for a in soup(site / "book/core/causal.html").select(".logo")
        }
        assert name == "../../index.html"


def test_a_chapter_is_opened_elsewhere_only_where_the_repository_is_known(sites):
    assert list(take_along(sites["untold"])) == ["Download this chapter"]
    links = take_along(sites["told"])
    file = "book/core/causal.ipynb"
    assert links.pop("Download this chapter") == f"../../_sources/{file}"
    assert links == {
        "Source": f"{REPOSITORY}/blob/main/{file}",
        "Open in Colab": f"https://colab.research.google.com/github/owner/name/blob/main/{file}",
        "Open in Binder": f"https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/{file}",
    }
    chapter = soup(sites["told"] / "book/core/causal.html")
    assert f"git+{REPOSITORY}" in chapter.select_one(".take-along code").get_text()


def test_a_page_names_no_repository_unless_told(sites):
    for page in PAGES:
        assert f'"{REPOSITORY}/issues"' in (sites["told"] / page).read_text()
        assert "owner/name" not in (sites["untold"] / page).read_text()
        assert "github.com" not in (sites["untold"] / page).read_text()
