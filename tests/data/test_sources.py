"""Fetching: pip brings a pinned file once; any other file is refused. Everything here is made locally, offline."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from upcycle.data.sources import Package, fetch, members, sha256_file
from upcycle.errors import UserError

WHEEL = "made_up_text-1.2-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("made_up_text/data/b.txt", "second")
        wheel.writestr("made_up_text/data/a.txt", "first")
        wheel.writestr(
            "made_up_text-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up-text\nVersion: 1.2\n"
        )
        wheel.writestr("made_up_text-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("made_up_text-1.2.dist-info/RECORD", "")
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    return folder


def test_a_wheel_is_fetched_once_and_then_read_from_the_cache(index: Path, tmp_path: Path) -> None:
    package = Package("made-up-text", "1.2", sha256_file(index / WHEEL))
    path = fetch(package, tmp_path / "cache")
    assert path == tmp_path / "cache" / WHEEL
    (index / WHEEL).unlink()  # from now on pip would fail
    assert fetch(package, tmp_path / "cache") == path
    assert list(members(path, "made_up_text/data/*.txt")) == [
        ("made_up_text/data/a.txt", b"first"),
        ("made_up_text/data/b.txt", b"second"),
    ]


def test_a_wheel_with_a_changed_byte_is_refused_with_both_hashes(index: Path, tmp_path: Path) -> None:
    """The index serves another file than the pinned one; pip takes it."""
    package = Package("made-up-text", "1.2", sha256_file(index / WHEEL))
    content = (index / WHEEL).read_bytes()
    (index / WHEEL).write_bytes(content.replace(b"second", b"secund"))
    with pytest.raises(UserError, match=f"{sha256_file(index / WHEEL)}.*{package.sha256}.*do not use it"):
        fetch(package, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_cached_file_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{'0' * 64}.*delete .*{WHEEL}"):
        fetch(Package("made-up-text", "1.2", "0" * 64), tmp_path)


def test_what_pip_cannot_find_is_named_with_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"(?s)could not download made-up-text==9.9.*put made_up_text-9.9-\S+ .*by hand"
    ):
        fetch(Package("made-up-text", "9.9", "0" * 64), tmp_path / "cache")


@pytest.fixture
def hostile(index: Path, tmp_path: Path) -> Path:
    """The index has an sdist alone, whose setup.py and build backend touch the file that is returned."""
    marker = tmp_path / "ran"
    mark = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n"
    files = {
        "setup.py": mark,
        "backend.py": mark,
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n",
        "docs/b.txt": "second",
        "docs/a.txt": "first",
    }
    with tarfile.open(index / "hostile-1.0.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            item = tarfile.TarInfo(f"hostile-1.0/{name}")
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content.encode()))
    return marker


def test_an_sdist_is_fetched_and_its_code_does_not_run(
    index: Path, hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_ONLY_BINARY", ":all:")  # a setting of the user's does not change what is asked for
    package = Package("hostile", "1.0", sha256_file(index / "hostile-1.0.tar.gz"), sdist=True)
    path = fetch(package, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [path]
    assert list(members(path, "docs/*.txt")) == [("docs/a.txt", b"first"), ("docs/b.txt", b"second")]
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    with pytest.raises(UserError, match=r"could not download hostile==1\.0"):  # a wheel is not built of it
        fetch(replace(package, sdist=False), tmp_path / "cache")
    with pytest.raises(UserError, match=r"(?s)could not download hostile==2\.0.*put hostile-2.0.tar.gz"):
        fetch(replace(package, version="2.0"), tmp_path / "cache")
    assert not hostile.exists()


def test_pip_alone_runs_the_code_of_an_sdist(hostile: Path, tmp_path: Path) -> None:
    """So the test above shows something."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", str(tmp_path)]
    subprocess.run([*pip, "hostile==1.0"], capture_output=True, check=False)
    assert hostile.exists()


def test_a_pattern_that_matches_nothing_in_a_wheel_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as wheel:
        wheel.writestr("a/small.txt", "small")
    with pytest.raises(UserError, match=rf"{WHEEL} holds no file that matches \*\.rst"):
        list(members(tmp_path / WHEEL, "*.rst"))
