"""Debian packages as a source of text: found and fetched by apt without root, verified, read and never installed.

apt offers one version, which changes with the machine's release: so the version is a part of the data set's
(`upcycle.data.versions`), and a machine without apt has no such text.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from upcycle.data.sources import sha256_file
from upcycle.errors import UserError


class AbsentTextError(UserError):
    """Text that this machine cannot get: sweeps on it are skipped."""


def debian_record(package: str) -> dict[str, str]:
    """Version and SHA-256 of the package that apt would fetch.

    Raises `AbsentTextError` where there is no apt, or where apt knows no such package.
    """
    return _shown(package, os.environ.get("PATH", ""))


@cache
def _shown(package: str, _path: str) -> dict[str, str]:
    try:
        done = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", package], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise AbsentTextError(
            f"Debian's package {package} is fetched by apt-get, and there is no apt on this machine"
        ) from None
    fields = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line[:1].strip() and ": " in line)
    if done.returncode or not {"Version", "SHA256"} <= set(fields):
        raise AbsentTextError(f"apt knows no package {package}: call `apt-get update`, on a Debian that has it")
    return {"version": fields["Version"], "sha256": fields["SHA256"]}


def fetch_debian(package: str, cache_dir: Path) -> Path:
    """Path of the verified package in `cache_dir`; apt-get downloads it only when it is not there.

    Raises `UserError` with apt-get's words, and for a file that is not what apt's index lists.
    """
    wanted = debian_record(package)
    path = cache_dir / f"{package}_{wanted['sha256'][:16]}.deb"
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir, prefix="fetching-") as folder:
            command = ["apt-get", "download", "--quiet", f"{package}={wanted['version']}"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            found = list(Path(folder).glob("*.deb"))
            if done.returncode or len(found) != 1:
                raise UserError(f"{' '.join(command)}: {done.stderr.strip() or 'brought no package'}")
            found[0].replace(path)
    if sha256_file(path) != wanted["sha256"]:
        raise UserError(f"{path} is not the package that apt lists; delete it and run again")
    return path


def debian_members(deb: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Name and content, unpacked if it ends in .gz, of every file in a package that matches the glob, by name.

    Raises `UserError` if none does, or if dpkg-deb cannot read the package.
    """
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=False)
    if done.returncode:
        raise UserError(f"{deb}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        chosen = sorted((each for each in tar if each.isfile() and fnmatch.fnmatch(each.name, pattern)), key=_name)
        if not chosen:
            raise UserError(f"{deb.name} holds no file that matches {pattern}")
        for each in chosen:
            file = tar.extractfile(each)
            assert file is not None  # a regular file
            content = file.read()
            yield each.name, gzip.decompress(content) if each.name.endswith(".gz") else content


def _name(member: tarfile.TarInfo) -> str:
    return member.name
