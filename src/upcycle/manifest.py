"""`manifest.json` of a finished run: what its files were when it was finished, and its own SHA-256.

The manifest vouches for all other files, so it vouches for itself too: `sha256` is the hash of the rest of its content,
written as JSON without the seal, and the file is what `json_bytes` writes, to the byte. Standard library only: tables
of losses read it without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from upcycle.errors import UserError, brief

MANIFEST = "manifest.json"
METRICS = "metrics.json"
WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
SEAL = "sha256"
REMOVED = "removed"
"""Key of a manifest: its files that were removed later. `files` still describes them as they were."""
FIX = "restore it from a copy, or train this run again with --fresh"


class DamagedError(UserError):
    """A file of a run is missing, truncated, altered or of another run; the message names it."""


class RemovedError(UserError):
    """A file of a finished run is not there because a study's `keep` removed it; the message says when and by what."""


def read_file(path: Path) -> bytes | None:
    """Content of a run's file, None where there is none. DamagedError for a folder or a loop of links in its place."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path}: damaged, it cannot be read ({error.strerror}); {FIX}") from None


def json_bytes(value: Any) -> bytes:
    """Readable JSON as every file of a run has it; refuses NaN and infinity."""
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its own SHA-256."""
    return content | {SEAL: hashlib.sha256(json_bytes(content)).hexdigest()}


def unsealed(data: bytes) -> dict[str, Any] | None:
    """The content of what `json_bytes(sealed(content))` wrote; None for any other bytes."""
    try:
        content: dict[str, Any] = json.loads(data)
        del content[SEAL]
        return content if data == json_bytes(sealed(content)) else None
    except (ValueError, KeyError, TypeError, RecursionError):  # no JSON, no object, or without a seal
        return None


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """A finished run's manifest: id, step, tokens_fingerprint, tokenizer_sha256, files, metrics.

    Raises DamagedError if there is none, or if it is not what was written.
    """
    path = run_dir / MANIFEST
    data = read_file(path)
    if data is None:
        raise DamagedError(f"{path}: missing, so {run_dir.name} is not a finished run; train it first")
    manifest = unsealed(data)
    if manifest is None:
        raise DamagedError(f"{path}: damaged, not the manifest that was written; {FIX}")
    check_beside(path, manifest["files"])
    return manifest


def check_beside(manifest: Path, names: Iterable[str]) -> None:
    """DamagedError unless these are names of files beside a manifest: someone else's seal proves nothing of them."""
    for name in names:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise DamagedError(
                f"{manifest}: names the file {brief(name)}, which is not beside it; do not use its folder"
            )


def removed_files(manifest: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Files that a study's `keep` removed since, by name: `time` (ISO 8601) and `by` (the key and the study)."""
    found: dict[str, dict[str, str]] = manifest.get(REMOVED, {})
    return found


def check_kept(run_dir: Path, manifest: dict[str, Any], name: str) -> None:
    """RemovedError if a file of a finished run was removed on purpose."""
    if note := removed_files(manifest).get(name):
        raise RemovedError(
            f"{run_dir / name}: removed on {note['time'][:10]} by {note['by']}; `upcycle train {run_dir.name} --fresh` "
            "trains the run again"
        )


def check_bytes(path: Path, data: bytes, expected: dict[str, Any]) -> None:
    """DamagedError naming the file unless its bytes have the size and SHA-256 of its entry in a manifest's `files`."""
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DamagedError(f"{path}: damaged, {len(data):,} bytes of {expected['bytes']:,} expected, or altered; {FIX}")


def check_listed(path: Path) -> None:
    """DamagedError naming a file of a finished run that is not what the manifest beside it lists; else nothing."""
    if (path.parent / MANIFEST).exists() and (expected := read_manifest(path.parent)["files"].get(path.name)):
        check_bytes(path, read_file(path) or b"", expected)


def check_metrics(run_dir: Path, metrics: dict[str, Any]) -> None:
    """DamagedError naming metrics.json if the run has a manifest, and it keeps other metrics."""
    if (run_dir / MANIFEST).exists() and read_manifest(run_dir)["metrics"] != metrics:
        raise DamagedError(
            f"{run_dir / METRICS}: damaged, not the metrics that {MANIFEST} keeps; "
            f"`upcycle train {run_dir.name}` restores it"
        )
