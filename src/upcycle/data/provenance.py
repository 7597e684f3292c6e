"""What a token set was made of: its sealed manifest, and whether a user's files have changed since.

Standard library only: the plan compares files before anything starts.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upcycle.data.rows import Where
from upcycle.data.sources import sha256_file
from upcycle.data.verified import NotedHashes
from upcycle.errors import UserError
from upcycle.manifest import check_beside, json_bytes, sealed, unsealed

MANIFEST = "manifest.json"
FORMAT = 2
PARTS = ("train", "heldout")


def text_fingerprint(tokenizer_sha256: str, parts: dict[str, Any]) -> str:
    """SHA-256 over the hashes of the tokenizer and of both parts' token bytes: equal tokens, equal fingerprint."""
    lines = [tokenizer_sha256, *(parts[part]["sha256"] for part in PARTS)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """A token set's manifest.json: the content with its format and its own SHA-256."""
    return json_bytes(sealed({"format": FORMAT, **content}))


def read_token_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a token set; UserError if there is none, or if it is not, to the byte, what was written."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is no token set: it has no {MANIFEST} (unfinished?); run `upcycle tokenize {folder.name}`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    manifest = unsealed(data)
    again = f"`upcycle tokenize {folder.name}` makes the same tokens again"
    if manifest is None:
        raise UserError(f"{path}: damaged, not the manifest that was written; restore it, or {again}")
    if manifest["format"] != FORMAT:
        raise UserError(f"{path} has format {manifest['format']!r}, this code reads {FORMAT}; {again}")
    check_beside(path, (shard["file"] for part in manifest["parts"].values() for shard in part["shards"]))
    return manifest


# Files of a user


class SourceFile:
    """A user's file as it was when it was looked up, before it was read."""

    def __init__(self, path: Path) -> None:
        self.path, self._stat = path, path.stat()

    def stamp(self) -> dict[str, Any]:
        """Path, size and modification time as they were."""
        return {"file": str(self.path), **_size_and_time(self._stat)}

    def record(self) -> dict[str, Any]:
        """The file in a manifest. UserError if it changed since it was looked up."""
        found = sha256_file(self.path)
        after = self.path.stat()
        if _size_and_time(after) != _size_and_time(self._stat):
            raise UserError(f"{self.path}: changed while it was read; tokenise again once it is whole")
        return {"file": str(self.path), **_size_and_time(after), "sha256": found}


def _size_and_time(stat: os.stat_result) -> dict[str, int]:
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def check_unchanged(folder: Path, now: Mapping[str, Sequence[Path]], *, text_key: str, where: Where) -> None:
    """UserError naming the first of a user's files that is not what the token set in `folder` was made of.

    `now` lists the present files by their role: `files`, `heldout_files`, `tokenizer`. A file is unchanged if its path,
    size and modification time are, or else if its content is, which is hashed once (`verified`): a touched or moved
    file is the same. A role without any file is no change: raw text may be deleted once it is tokenised.
    """
    manifest = read_token_manifest(folder)
    if manifest["text_key"] != text_key:
        raise UserError(
            f"token set {folder.name} was made of column {manifest['text_key']!r}, the study has `text: {text_key}`; "
            f"{_ways_out(folder)}"
        )
    if manifest.get("where", {}) != where:  # sets that were made before there were filters have no key
        raise UserError(f"token set {folder.name} was made with another `where`; {_ways_out(folder)}")
    then = {source["name"]: source.get("files", []) for source in manifest["sources"]}
    then["tokenizer"] = manifest["tokenizer"]["files"]
    hashes = NotedHashes(folder, sha256_file)
    try:
        for kind, paths in now.items():
            if paths:
                _check_kind(folder, paths, then.get(kind, []), hashes)
    finally:
        hashes.save()


def _check_kind(folder: Path, paths: Sequence[Path], recorded: list[dict[str, Any]], hashes: NotedHashes) -> None:
    then = {Path(record["file"]).absolute(): record for record in recorded}
    others = []  # files that are new, or differ in size or time: compared by content with the records left in `then`
    for path in paths:
        name = path.absolute()
        if name in then and _size_and_time(path.stat()).items() <= then[name].items():
            del then[name]
        else:
            others.append(path)
    wanted = Counter((record["bytes"], record["sha256"]) for record in then.values())
    sizes = {size for size, _ in wanted}
    for path in others:
        size = path.stat().st_size
        content = (size, hashes.of(path)) if size in sizes else None  # no file of this size: need not be hashed
        if content is None or not wanted[content]:
            known = path.absolute() in then
            raise _changed(folder, path, "changed" if known else "is new, or changed,")
        wanted[content] -= 1
    for name, record in then.items():
        if wanted[record["bytes"], record["sha256"]]:
            raise _changed(folder, name, "is gone,")


def _changed(folder: Path, path: Path, how: str) -> UserError:
    return UserError(f"{path} {how} since token set {folder.name} was made; {_ways_out(folder)}")


def _ways_out(folder: Path) -> str:
    return (
        "restore what was, or give the changed data another `version`, or, if nothing was trained on them, remove "
        f"{folder}"
    )
