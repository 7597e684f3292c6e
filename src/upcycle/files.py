"""Files: written whole or not at all; JSON records read so that damage is named."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from upcycle.errors import UserError

TEMPORARY = ".tmp"
"""End of the name of what is not whole yet."""

Part = bytes | memoryview


def write_atomic(path: Path, *content: str | Part) -> None:
    """Write beside `path`, in parts, make it durable, rename. Text is UTF-8; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Of its own for every call: processes of two machines may share a pid and a disk.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("wb") as handle:
            for part in content:
                handle.write(part.encode() if isinstance(part, str) else part)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make what was renamed, made or removed in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def given_path(text: str) -> Path:
    """A path as a user gives it, its `~` or `~name` replaced by that home folder.

    Raises `UserError` where there is no such home.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: nobody here has this home folder; write the path without `~`") from None


def cache_folder() -> Path:
    """The user's cache of this program: what can be made again at any time.

    Raises `OSError` where the user has no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upcycle"
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        raise OSError(str(error)) from None


def plain(value: Any) -> Any:
    """A value as strict JSON holds it: mappings as dicts, tuples as lists, a number that is not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float):  # numpy's float64 too
        return float(value) if math.isfinite(value) else None
    return value


class Record(dict[str, Any]):
    """A JSON object read from a file: a key that it lacks is damage of that file, not a bug."""

    def __init__(self, pairs: Iterable[tuple[str, Any]], path: Path) -> None:
        super().__init__(pairs)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path} is damaged: it does not state `{key}`; restore it, or make it again")


def read_record(path: Path) -> Record:
    """The JSON object of a file, with all objects in it as `Record`s.

    Raises `UserError` naming the file when it is missing or damaged.
    """
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=lambda pairs: Record(pairs, path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; `snakemake` makes what is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; restore it, or make it again") from None
    if not isinstance(content, Record):
        raise UserError(f"{path} is damaged: it holds no JSON object; restore it, or make it again")
    return content


def check_regular(path: Path) -> None:
    """`UserError` for a path that is there and is no regular file: opening a named pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; name a file")
