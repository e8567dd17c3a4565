"""What must stay true of what we take in and hand out."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from licences import licences
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import tangle  # noqa: E402

SOURCES = [
    path
    for room in ("attention", "book", "benchmarks")
    for path in sorted((ROOT / room).rglob("*.py"))
]
# Each of these runs what a file holds. `torch.load` may be told not to.
RUNS_DATA = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUNS_TEXT = {"eval", "exec"}
BROUGHT_BY_IPYKERNEL = {"ipython"}
CUDA = ("nvidia-", "cuda-", "triton")  # with the build that brings them, without a hash


def run(*command, **options) -> str:
    options |= {"capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "-m", *command], **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def dangers(source: str) -> list[str]:
    """The calls and imports that would run what a file or a text holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in RUNS_DATA]
        if isinstance(node, ast.ImportFrom) and node.module in RUNS_DATA:
            found.append(node.module)
        if isinstance(node, ast.Call):
            name, options = ast.unparse(node.func), map(ast.unparse, node.keywords)
            unsafe = name in ("torch.load", "yaml.load", "yaml.unsafe_load")
            if name in RUNS_TEXT or (unsafe and "weights_only=True" not in options):
                found.append(name)
    return found


def test_no_file_is_read_by_what_could_run_it():
    assert SOURCES
    for path in SOURCES:
        found = dangers(path.read_text("utf-8"))
        own = {"pickle"} if path.name == "ranks.py" else set()  # of its own processes
        assert set(found) <= own, path


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f)",
        "eval(text)",
    ],
)
def test_what_could_run_a_file_is_found(source):
    assert dangers(source)
    assert not dangers("torch.load(f, weights_only=True); yaml.safe_load(f)")


def test_the_workflows_have_no_known_weakness():
    shown = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    assert shown, "zizmor is pinned in requirements.txt, and must be installed"
    command = [shown, "--offline", "--quiet", ROOT / ".github"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_jobs_of_a_change_are_together_all_of_make_test():
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    parts = workflow["jobs"]["test"]["strategy"]["matrix"]["include"]
    steps = " ".join(part["steps"] for part in parts).split()
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert steps == re.search(r"(?m)^test: (.*?) *##", makefile)[1].split()


def test_what_one_python_of_a_run_has_compiled_the_next_one_reads():
    makefile = 'include Makefile\ntold: ; @$(PY) -c "import sys; print(sys.flags)"'
    told = subprocess.run(
        ["make", "--silent", "--file=-", "told", f"PY={sys.executable}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        input=makefile,
        capture_output=True,
        text=True,
    )
    assert "dont_write_bytecode=0" in told.stdout, told.stderr


def pins() -> str:
    """The lock, and the pin that has no hash."""
    files = ("requirements.txt", "requirements-torch.txt")
    return "\n".join((ROOT / file).read_text("utf-8") for file in files)


def strangers(pins: str) -> dict[str, str]:
    """Pins that are not what is installed: what was verified is not what they name."""
    named = re.findall(r"(?m)^([\w.-]+)==([^\s;]+)(?: *;([^\\\n]*))?", pins)
    here = [pin[:2] for pin in named if not pin[2] or Marker(pin[2]).evaluate()]
    public = {name: Version(version(name)).public for name, _ in here}
    return {name: public[name] for name, pin in here if public[name] != pin}


def test_what_is_pinned_is_what_is_installed_and_an_edited_pin_is_seen():
    assert strangers(pins()) == {}
    for name in ("einops", "torch"):
        edited = re.sub(rf"(?m)^({name}==[\d.]+)", r"\g<1>9", pins())
        assert list(strangers(edited)) == [name]


@pytest.mark.parametrize(
    ("file", "fewest"), [("requirements.txt", 101), ("benchmarks/requirements.txt", 5)]
)
def test_every_package_but_torch_is_held_by_the_hashes_of_its_files(file, fewest):
    lock = (ROOT / file).read_text("utf-8")
    entries = re.findall(r"(?m)^(\S+)==.*(?:\n +.*)*", lock)
    hashed = re.findall(r"(?m)^(\S+)==.* \\\n    --hash=sha256:[0-9a-f]{64}", lock)
    assert hashed == entries
    assert len(entries) >= fewest
    assert "torch" not in entries
    assert "://" not in lock, "the lock names no registry: each user has their own"


@pytest.mark.parametrize("file", ["Makefile", ".binder/postBuild"])
def test_the_pins_hold_for_what_is_asked_for_with_an_extra(file):
    """Older pips look at the newest `jsonschema[format-nongpl]`, and stop."""
    commands = (ROOT / file).read_text("utf-8").replace("\\\n", "").splitlines()
    installs = [line for line in commands if "-r requirements.txt" in line]
    assert installs
    assert all("-c requirements.txt" in line for line in installs)


def unmet(requirements: Iterable[str]) -> list[str]:
    """Requirements that the lock does not meet with what it holds for this machine."""
    held = dict(re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", pins()))
    asked = map(Requirement, requirements)
    asked = [r for r in asked if not r.marker or r.marker.evaluate({"extra": ""})]
    return [
        str(r)
        for r in asked
        if not r.specifier.contains(held.get(canonicalize_name(r.name), "0"))
        or canonicalize_name(r.name) not in held
    ]


def test_the_lock_holds_what_is_chosen_in_requirements_in_and_a_change_is_seen():
    lines = (ROOT / "requirements.in").read_text("utf-8").splitlines()
    chosen = [line for line in lines if line and not line.startswith("#")]
    assert chosen
    wanted = unmet(chosen)
    assert not wanted, f"`make lock` writes requirements.txt anew, with {wanted}"
    assert unmet([*chosen, "no-such-package"]) == ["no-such-package"]
    assert unmet(["einops>=99"]) == ["einops>=99"]


def test_what_torch_brings_is_held_by_a_hash_too_but_for_cuda():
    brought = [need for need in requires("torch") if not need.startswith(CUDA)]
    assert brought
    assert unmet(brought) == [], "requirements.in names what torch brings"


def test_the_triton_extra_can_be_had_beside_the_pinned_torch():
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert unmet(extras["triton"]) == []


def test_what_is_installed_fits_together():
    assert run("pip", "check") == "No broken requirements found.\n"


def test_every_package_that_is_installed_states_its_licence():
    stated = licences()
    assert "torch" in stated
    assert [package for package, licence in stated.items() if not licence] == []


# What we hand out


def distributions(tree: Path, **told: str) -> tuple[Path, Path]:
    """The sdist and the wheel that are built of a copy of what a build reads."""
    keep = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for room in ("attention", "tests"):
        shutil.copytree(ROOT / room, tree / room, ignore=keep)
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    for path in tree.rglob("*"):
        os.utime(path, (10**9 + len(str(tree)),) * 2)
    build = ["build", "--no-isolation", "--outdir", tree / "dist", tree]
    untold = {"BOOK_REPOSITORY": "", "BOOK_ADDRESS": ""}
    run(*build, env=os.environ | untold | told | {"SOURCE_DATE_EPOCH": "1000000000"})
    ((sdist,), (wheel,)) = ((tree / "dist").glob(kind) for kind in ("*.gz", "*.whl"))
    return sdist, wheel


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    return distributions(tmp_path_factory.mktemp("somewhere") / "tree")


def about(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith("/METADATA"))
        return files.read(name).decode()


def test_the_wheel_is_the_same_bytes_wherever_and_whenever_it_is_built(built, tmp_path):
    _, first = built
    _, second = distributions(tmp_path / "elsewhere" / "and" / "later")
    assert re.fullmatch(r"building_attention-[\d.]+-py3-none-any\.whl", first.name)
    assert first.read_bytes() == second.read_bytes()


def test_the_sdist_holds_the_package_and_no_test(built):
    with tarfile.open(built[0]) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    modules = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("attention/**/*.py")}
    assert modules | {"LICENSE", "README.md", "attention/py.typed"} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_links_hold_on_a_page_of_the_package_and_none_is_made_up(built, tmp_path):
    told = {"BOOK_REPOSITORY": "https://example.org/us/book/"}
    told |= {"BOOK_ADDRESS": "https://us.example.org/book/"}
    _, wheel = distributions(tmp_path / "tree", **told)
    for text in (about(built[1]), about(wheel)):
        targets = re.findall(r"\[[^\]]*\]\(([^)]*)\)", text)
        assert [to for to in targets if not to.startswith("https://")] == []
        assert "Building Attention" in text
    assert "example.org" not in about(built[1])
    assert "Project-URL" not in about(built[1])
    for line in (
        "Project-URL: Homepage, https://us.example.org/book/",
        "Project-URL: Source, https://example.org/us/book",
        "(https://example.org/us/book/blob/main/LICENSE)",
        "(https://example.org/us/book/raw/main/book/_static/first-map.svg)",
    ):
        assert line in about(wheel)


# What a chapter needs


def imported(source: str) -> set[str]:
    """The packages that a text imports, Python's own left out."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return {name.partition(".")[0] for name in found} - sys.stdlib_module_names


def promised(extra: str) -> set[str]:
    """What the package brings with an extra."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    found, queue = set(), [*project["dependencies"]]
    queue += project["optional-dependencies"][extra]
    while queue:
        need = Requirement(queue.pop())
        found.add(canonicalize_name(need.name))
        if need.name == project["name"]:
            for more in need.extras:
                queue += project["optional-dependencies"][more]
    return found


def test_a_chapter_taken_alone_runs_with_the_extra_for_chapters():
    providers, have = packages_distributions(), promised("chapters")
    have |= BROUGHT_BY_IPYKERNEL
    for path in sorted((ROOT / "book").glob("*/*.ipynb")):
        cells = tangle.load(path, ROOT)["cells"]
        code = "\n".join(c["source"] for c in cells if c["cell_type"] == "code")
        # These chapters say what else they need: a clone, and the extra `peers`.
        for name in imported(code) - {"published", "transformers"}:
            source = {canonicalize_name(each) for each in providers.get(name, [name])}
            assert source & have, f"{path.relative_to(ROOT)} imports {name}"
