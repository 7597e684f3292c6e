"""Notes of which files were hashed and with what result, kept beside them, so that nothing is hashed twice.

A note counts only while size and times of change of its file are the same as when the file was hashed, and only for
its path: a copy is hashed again. Notes do not protect against a disk that alters bytes behind the file system.
Standard library only: the plan reads notes too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upcycle.files import write_atomic
from upcycle.manifest import json_bytes, sealed, unsealed

log = logging.getLogger(__name__)

VERIFIED = "verified.json"


def read_notes(folder: Path) -> dict[str, Any]:
    """The notes of a folder by absolute path of a file; none if they are missing, or damaged, which costs hashing."""
    try:
        return unsealed((folder / VERIFIED).read_bytes()) or {}
    except FileNotFoundError:
        return {}


def write_notes(folder: Path, notes: dict[str, Any]) -> bool:
    """Replace the notes of a folder. False, with a warning, if it cannot be written, which costs hashing again."""
    try:
        write_atomic(folder / VERIFIED, json_bytes(sealed(notes)))
    except OSError as error:
        log.warning("%s: cannot be written (%s); the next job hashes again", folder / VERIFIED, error.strerror)
        return False
    return True


def recall(notes: dict[str, Any], path: Path, stat: os.stat_result) -> str | None:
    """What was noted of a file, if it is as it was then; else None."""
    note = notes.get(_name(path))
    return note["found"] if note is not None and note["stamp"] == _stamp(stat) else None


def note(notes: dict[str, Any], path: Path, stat: os.stat_result, found: str) -> None:
    """Note what was found in a file; `stat` is from before it was read."""
    notes[_name(path)] = {"stamp": _stamp(stat), "found": found}


class NotedHashes:
    """Hashes of files, each computed once and noted in one folder."""

    def __init__(self, folder: Path, hash_of: Callable[[Path], str]) -> None:
        self._folder, self._hash_of = folder, hash_of
        self._notes, self._added = read_notes(folder), False

    def of(self, path: str | Path) -> str | None:
        """Hash of a file, None where there is none."""
        path = Path(path)
        try:
            stat = path.stat()
            found = recall(self._notes, path, stat)
            if found is None:
                found = self._hash_of(path)
                note(self._notes, path, stat, found)
                self._added = True
            return found
        except (FileNotFoundError, NotADirectoryError):
            return None

    def save(self) -> None:
        """Write what was computed here to the folder's notes."""
        if self._added:
            write_notes(self._folder, self._notes)


def _name(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - of thousands of files; resolving links looks at every folder again


def _stamp(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
