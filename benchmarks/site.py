"""A chapter's page beside the one that Jupyter Book 1 builds by itself, in a browser.

    python benchmarks/site.py            # about six minutes; writes site.md
    python benchmarks/site.py --quick    # a first look; writes nothing

Both books are built from the same chapters and stored outputs: ours as it is, the other
with Jupyter Book's own settings. A server with gzip on this machine hands them to
Chromium, without a cache, on a processor four times slower, the size of a phone.
Jupyter Book's pages load MathJax from another host. Here npm fetches the same package
beforehand, and the browser gets its files in place of that host's answer.
"""

import argparse
import gzip
import os
import platform
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from threading import Thread
from urllib.parse import urlsplit

from playwright.sync_api import Browser, CDPSession, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "site.md"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
OURS, STOCK = "this book", "Jupyter Book 1"
BUILD = "import jupyter_book.cli.main as cli; cli.main()"
# What Jupyter Book cannot know: which files are the book's, and that it is executed.
SETTINGS = """title: Building Attention
only_build_toc_files: true
bibtex_bibfiles: [book/references.bib]
execute: {execute_notebooks: "off"}
"""
MATHJAX = "mathjax@3"  # as the addresses in Jupyter Book's pages name it
SLOWER = 4
QUIET = 2_000  # milliseconds after the load event in which scripts still count
WATCH = """
window.seen = {paint: 0, first: Infinity, tasks: []};
const watch = (type, note) => new PerformanceObserver(list =>
    list.getEntries().forEach(note)).observe({type, buffered: true});
watch("largest-contentful-paint", entry => { seen.paint = entry.startTime; });
watch("paint", entry => { seen.first = Math.min(seen.first, entry.startTime); });
watch("longtask", entry => seen.tasks.push([entry.startTime, entry.duration]));
"""
# Of each long task after the first paint, what goes beyond 50 ms.
BLOCKED = """seen.tasks.reduce((sum, [start, length]) =>
    sum + Math.max(0, Math.min(length, start + length - seen.first) - 50), 0)"""
GOALS = {
    "requests": 0.5,
    "kB compressed": 1 / 3,
    "largest contentful paint, ms": 0.5,
    "total blocking time, ms": 0.5,
}
GOAL_BUILD = 15


# The two books


def books(folder: Path) -> dict[str, Path]:
    """Two copies of the book: with its own settings, and with none."""
    copies = {OURS: folder / "ours", STOCK: folder / "stock"}
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for copy in copies.values():
        for part in ("book", "attention", "tests"):  # pages read them all
            shutil.copytree(ROOT / part, copy / part, ignore=ignored)
        shutil.copy(ROOT / "_toc.yml", copy)
    shutil.copy(ROOT / "_config.yml", copies[OURS])
    (copies[STOCK] / "_config.yml").write_text(SETTINGS)
    return copies


def build(book: Path) -> float:
    """The seconds that building the whole book takes, from nothing."""
    shutil.rmtree(book / "_build", ignore_errors=True)
    start = time.perf_counter()
    command = [sys.executable, "-c", BUILD, "build", str(book), "--quiet"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(
            f"{book.name} was not built:\n{run.stdout[-2000:]}{run.stderr}"
        )
    return time.perf_counter() - start


def mathjax(folder: Path) -> Path | None:
    """MathJax's package, unpacked in `folder`; None, and a line that says why."""
    command = ["npm", "pack", MATHJAX, "--loglevel=error", "--pack-destination", folder]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        print(f"{MATHJAX} is left out: npm is not installed")
    except subprocess.CalledProcessError as error:
        print(f"{MATHJAX} is left out: npm could not fetch it\n{error.stderr.strip()}")
    else:
        with tarfile.open(folder / run.stdout.split()[-1]) as package:
            package.extractall(folder, filter="data")
        return folder / "package"
    return None


# The server


@cache
def sent(file: Path) -> tuple[bytes, bool]:
    """A file as it goes over the wire, and whether that is compressed."""
    body = file.read_bytes()
    if file.suffix in (".woff", ".woff2", ".png", ".jpg", ".ico"):
        return body, False
    return gzip.compress(body, mtime=0), True


class Compressing(SimpleHTTPRequestHandler):
    """Hands out files as common hosts do: text compressed, connections kept."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        body, packed = sent(file)
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(str(file)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which `folder` is handed out."""
    handler = partial(Compressing, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


# The browser


def stand_in(wire: CDPSession, package: Path, sizes: dict[str, int]) -> None:
    """Answer what is asked of MathJax's host, and that alone, from its package.

    The size of an answer is the one that it would have on the wire.
    """

    def answer(event: dict) -> None:
        path = urlsplit(event["request"]["url"]).path
        file = package / path.partition(f"/{MATHJAX}/")[2]
        reply = {"requestId": event["requestId"], "responseCode": 404}
        if file.is_file():
            sizes[event["networkId"]] = len(sent(file)[0])
            kind = "text/javascript" if file.suffix == ".js" else "font/woff"
            headers = {"Content-Type": kind, "Access-Control-Allow-Origin": "*"}
            reply["responseCode"] = 200
            reply["responseHeaders"] = [
                {"name": name, "value": value} for name, value in headers.items()
            ]
            reply["body"] = b64encode(file.read_bytes()).decode()
        wire.send("Fetch.fulfillRequest", reply)

    wire.on("Fetch.requestPaused", answer)
    wire.send("Fetch.enable", {"patterns": [{"urlPattern": f"*/{MATHJAX}/*"}]})


def visit(browser: Browser, address: str, package: Path | None) -> dict:
    """One cold visit: what was asked for, what came, and when it could be read."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.add_init_script(WATCH)
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    wire.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    asked, sizes = {}, {}
    if package:
        stand_in(wire, package, sizes)

    def ask(event: dict) -> None:
        asked[event["requestId"]] = event["request"]["url"]

    def end(event: dict) -> None:
        sizes.setdefault(event["requestId"], event["encodedDataLength"])

    wire.on("Network.requestWillBeSent", ask)
    wire.on("Network.loadingFinished", end)
    page.goto(address, wait_until="load")
    page.wait_for_timeout(QUIET)
    urls = {id: url for id, url in asked.items() if not url.startswith("data:")}
    here = urlsplit(address).netloc
    foreign = [url for url in urls.values() if urlsplit(url).netloc != here]
    found = {
        "requests": len(urls),
        "kB compressed": sum(sizes.get(id, 0) for id in urls) / 1000,
        "largest contentful paint, ms": page.evaluate("seen.paint"),
        "total blocking time, ms": page.evaluate(BLOCKED),
        "foreign": foreign,
        "lost": [urls[id] for id in urls if id not in sizes],
    }
    context.close()
    return found


def visits(
    books: dict[str, Path], chapter: str, rounds: int, package: Path | None
) -> tuple[str, dict[str, list[dict]]]:
    """The browser, and what it saw of every page once a round, in a random order.

    A round before the first warms up.
    """
    found, order = {name: [] for name in books}, random.Random(0)
    with (
        served(books[OURS] / "_build/html") as ours,
        served(books[STOCK] / "_build/html") as stock,
        sync_playwright() as playwright,
    ):
        addresses = {OURS: ours, STOCK: stock}
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        for number in range(rounds + 1):
            for name in order.sample(list(addresses), len(addresses)):
                seen = visit(browser, f"{addresses[name]}{chapter}.html", package)
                if number:
                    found[name].append(seen)
        about = f"Chromium {browser.version}"
        browser.close()
    return about, found


# The table


def table(found: dict[str, list[dict]], seconds: dict[str, list[float]]) -> list[str]:
    lines = [
        f"| | {OURS} | {STOCK} | ratio | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, goal in GOALS.items():
        ours, stock = (median(s[name] for s in found[book]) for book in (OURS, STOCK))
        ratio = f"{ours / stock:.2f}" if stock else "–"
        lines.append(f"| {name} | {ours:.0f} | {stock:.0f} | {ratio} | ≤ {goal:.2f} |")
    hosts = [len(found[book][0]["foreign"]) for book in (OURS, STOCK)]
    lines.append(f"| of the requests, to other hosts | {hosts[0]} | {hosts[1]} | | 0 |")
    ours, stock = (median(seconds[book]) for book in (OURS, STOCK))
    return [
        *lines,
        f"| whole book built, s | {ours:.1f} | {stock:.1f} | {ours / stock:.2f} "
        f"| < {GOAL_BUILD} s |",
    ]


def words(found: dict, where: str, load: float) -> list[str]:
    """What the table was measured with, and what it does not hold."""
    lost = {url for seen in found[STOCK] for url in seen["lost"]}
    lost = sorted(url for url in lost if url in found[STOCK][0]["foreign"])
    files = len(found[STOCK][0]["foreign"]) - len(lost)
    said = [
        f"{where} Times are medians, of pages in interleaved rounds. The processor is "
        f"slowed down {SLOWER} times, the network is not. Blocking time is what goes "
        "beyond 50 ms of each task, from the first paint to "
        f"{QUIET // 1000} s after the load event.",
    ]
    if files:
        said += [
            "",
            f"{STOCK}'s page asks another host for MathJax. In its place the browser "
            f"was answered at once with the {files} files asked for, from the package "
            f"`{MATHJAX}`, which npm had fetched. They count as requests and with the "
            "bytes that they have compressed, and MathJax runs as it does for a "
            "reader. What the way to another host costs him is not in the times.",
        ]
    if lost:
        said += [
            "",
            "Could not be fetched here, so that their bytes and the time to run them "
            f"are missing from {STOCK}'s column: {', '.join(lost)}.",
        ]
    if load > 0.5:
        said += [
            "",
            f"**The machine was not quiet**: its load was {load:.1f} before the run. "
            "Requests and bytes do not depend on it; times do.",
        ]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds, no file")
    parser.add_argument("--chapter", default="book/core/causal")
    options = parser.parse_args()
    if CHROMIUM is None:
        raise SystemExit("Chromium is not installed")
    rounds, builds = (3, 1) if options.quick else (31, 3)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        copies = books(Path(folder))
        seconds = {name: [] for name in copies}
        for _ in range(builds):
            for name, copy in copies.items():
                seconds[name].append(build(copy))
        package = mathjax(Path(folder))
        browser, found = visits(copies, options.chapter, rounds, package)
    where = (
        f"`{options.chapter}` in {browser}, {os.cpu_count()} cores, "
        f"{platform.machine()}; {rounds} rounds and {builds} builds."
    )
    text = "\n".join([*table(found, seconds), "", *words(found, where, load)])
    print(text)
    if not options.quick:
        title = "# A page beside Jupyter Book's own"
        TABLE.write_text(
            f"{title}\n\nWritten by `python benchmarks/site.py`.\n\n{text}\n"
        )


if __name__ == "__main__":
    main()
