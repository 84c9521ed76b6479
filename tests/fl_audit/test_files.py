"""Private files, written whole, never through a link, never a pickle; JSON that nobody doubts."""

from __future__ import annotations

import ast
import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_audit.files import (
    find_special_file,
    private_directory,
    read_json,
    sha256_array,
    write_arrays,
    write_bytes,
    write_text,
)

HOME = Path(__file__).resolve().parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o377], ids=oct)
def umask(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    folder = private_directory(tmp_path / "run")
    write_text(folder / "a.txt", "a")
    write_arrays(folder / "a.safetensors", {"w": np.zeros(2)})
    assert mode(folder) == 0o700
    assert mode(folder / "a.txt") == mode(folder / "a.safetensors") == 0o600


def test_an_open_directory_and_an_open_file_are_closed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    for name in ("a.txt", "a.txt.part"):  # the latter left by a killed process
        (folder / name).write_text("old")
        (folder / name).chmod(0o644)
    write_text(private_directory(folder) / "a.txt", "new")
    assert (mode(folder), mode(folder / "a.txt")) == (0o700, 0o600)
    assert [path.name for path in folder.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """The disk is full after 1000 bytes."""
    file = tmp_path / "run.json"
    write_bytes(file, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_bytes(file, b"n" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    whole = {bytes([letter]) * 200_000 for letter in b"ab"}
    write_bytes(file, b"a" * 200_000)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in whole:
                write_bytes(file, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {file.read_bytes() for _ in range(300)} <= whole
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("planted", ["report.html", "report.html.part"])
def test_a_planted_link_is_replaced_not_followed(planted: str, tmp_path: Path) -> None:
    """A run directory from an enemy must not have us overwrite files elsewhere."""
    victim = tmp_path / "bashrc"
    victim.write_text("mine")
    folder = private_directory(tmp_path / "run")
    (folder / planted).symlink_to(victim)
    write_text(folder / "report.html", "report")
    assert victim.read_text() == "mine"
    assert (folder / "report.html").read_text() == "report"
    assert not (folder / "report.html").is_symlink()


def test_the_digest_of_an_array_is_that_of_its_values() -> None:
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    same = [np.asfortranarray(base), base.astype(">f4"), np.repeat(base, 2, axis=1)[:, ::2]]
    assert {sha256_array(a) for a in same} == {sha256_array(base)}
    assert sha256_array(base.T) != sha256_array(base)


# -- JSON ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '[{"a": {"b": 1, "b": 2}}]',
        "NaN",
        '{"a": -Infinity}',
        "1e999",
        "-1e999",
        "[" * 100 + "]" * 100,
        '{"a":' * 100 + "1" + "}" * 100,
        "[" * 100_000,
        "1" * 5000,
        '"\\ud800"',
        '{"\\udc00": 1}',
        "\ufeff{}",
        "{}{}",
    ],
    ids=lambda text: text[:20],
)
def test_doubtful_json_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError):  # noqa: PT011 — json's own words differ from case to case
        read_json(tmp_path / "a.json")


def test_plain_json_is_read(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, {"b": "é\U0001f600"}], "c": 10**400, "d": 1e-400}
    text = '{"a": [1, 2.5, null, true, {"b": "é\\ud83d\\ude00"}], "c": 1%s, "d": 0.0}' % ("0" * 400)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "a.json") == content


# -- links -----------------------------------------------------------------------------------------


def test_plain_files_and_folders_are_nothing_special(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    assert find_special_file(tmp_path) is None


@pytest.mark.parametrize("kind", ["link to a file", "link to a folder", "broken link", "pipe"])
def test_a_special_file_is_found_at_any_depth(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "file").touch()
    special = tmp_path / "a" / "b" / "c"
    if kind == "pipe":
        os.mkfifo(special)
    else:
        targets = {"link to a file": "file", "link to a folder": "a", "broken link": "gone"}
        special.symlink_to(tmp_path / targets[kind])
    assert find_special_file(tmp_path) == special


# -- never a pickle --------------------------------------------------------------------------------

_FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}
_FORBIDDEN_CALLS = {"torch.save", "torch.load", "np.save", "np.load", "np.savez", "numpy.load"}
_SAFE_CALLS = {("np.load", "allow_pickle", False), ("torch.load", "weights_only", True)}
_WORKERS = {"attacks/shadows/trainers.py: joblib"}  # starts worker processes; touches no file


def _is_safe(call: ast.Call) -> bool:
    """Whether it says itself, in so many words, that no pickle is opened."""
    said = {(k.arg, k.value.value) for k in call.keywords if isinstance(k.value, ast.Constant)}
    name = ast.unparse(call.func)
    return any(name == safe and (key, value) in said for safe, key, value in _SAFE_CALLS)


def test_no_source_file_can_write_or_read_a_pickle() -> None:
    """Whoever opens somebody else's pickle runs their code."""
    found = set()
    for package in ("fl_audit", "attacks", "strategies", "simulations"):
        for path in (HOME / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            safe = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and _is_safe(n)}
            where = path.relative_to(HOME).as_posix()
            for node in ast.walk(tree):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name.partition(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [(node.module or "").partition(".")[0]]
                elif isinstance(node, ast.Attribute) and ast.unparse(node) in _FORBIDDEN_CALLS:
                    found |= set() if id(node) in safe else {f"{where}:{node.lineno}"}
                found |= {f"{where}: {name}" for name in names if name in _FORBIDDEN_MODULES}
    assert found == _WORKERS
