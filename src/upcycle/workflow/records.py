"""Records of how each product was made: results/.made/<product>.

A product's key is known when the Snakefile is parsed, before a run exists. Only the job knows what it read. So the job
records the key with digests of what it read and wrote, and the next parse compares these with the files. This finds a
run that was trained again with another loss, and a losses.csv that somebody edited.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from upcycle.data.verified import NotedHashes
from upcycle.files import write_atomic
from upcycle.manifest import METRICS
from upcycle.study.shape import Frozen
from upcycle.study.spec import canonical_json

PLACE_AND_TIME = frozenset(
    ("started", "finished", "resumed", "tokens_per_second", "gemm_flops_per_second", "mfu", "hardware", "software")
)
"""Keys of metrics.json that say where and how fast a run was trained; so does every key that ends in `_seconds`."""


class Digests(NotedHashes):
    """Digests of files, each computed once and noted in one folder.

    Of a run's metrics.json only what bears on losses counts: a run trained again with the same loss is no change.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _digest)

    def of_all(self, paths: Iterable[str | Path]) -> str:
        """One digest of several files, missing ones included."""
        lines = "\n".join(f"{path} {self.of(path)}" for path in paths)
        return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(_loss_relevant(content) if path.name == METRICS else content).hexdigest()[:16]


def _loss_relevant(content: bytes) -> bytes:
    """metrics.json without place and time, in canonical form; what is no JSON object as it is."""
    try:
        metrics = json.loads(content)
        kept = {key: value for key, value in metrics.items() if not _is_place_or_time(key)}
        if "execution" in kept:
            kept["execution"] = kept["execution"]["kernels"]
        return canonical_json(kept).encode()
    except (ValueError, AttributeError, TypeError, KeyError):  # damaged: the job that reads it names it
        return content


def _is_place_or_time(key: str) -> bool:
    return key in PLACE_AND_TIME or key.endswith("_seconds")


class Made(Frozen):
    """The record of a product's last making."""

    key: str
    read: dict[str, str]
    """Digests by what was read: `runs`, `evaluations`, or the name of another product."""
    wrote: str
    """Digest of its output files."""


def read_made(out: Path, product: str) -> Made | None:
    """The record of a product; None if it was never made, or if the record is damaged: it is then made again."""
    try:
        return Made.model_validate_json((out / ".made" / product).read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def record_made(out: Path, product: str, made: Made) -> None:
    """Record a product as made: the last act of the job that makes it."""
    write_atomic(out / ".made" / product, made.model_dump_json(indent=1) + "\n")


def forget_made(out: Path, product: str) -> None:
    """The job's first act, so that a product whose job was killed is made again and not refused as altered."""
    (out / ".made" / product).unlink(missing_ok=True)
