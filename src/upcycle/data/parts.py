"""How the making of a token set is divided into steps. Standard library only: the DAG is planned with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PART_BYTES = 10**9
"""Bytes of a user's files, as they are on disk, for each step that reads and each that encodes."""
PREPARE = "prepare"
FEW_STEPS = 2
"""A stage of so many steps (a part of the training text, and the held-out text) is done in one process."""
WORK = "work"
"""Folder of the steps' records and spooled text inside a token set's; it goes when the manifest is there."""


def file_groups(files: Sequence[Path], part_bytes: int = PART_BYTES) -> list[list[int]]:
    """Numbers of the files that each reading step reads: neighbours, of `part_bytes` together or one larger file."""
    groups: list[list[int]] = []
    held = 0
    for number, file in enumerate(files):
        size = file.stat().st_size
        if not groups or held + size > part_bytes:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += size
    return groups


def n_encoding(files: Sequence[Path], part_bytes: int = PART_BYTES) -> int:
    """Number of steps that encode training text; one more encodes the held-out text."""
    return max(1, -(-sum(file.stat().st_size for file in files) // part_bytes))


def making_steps(files: Sequence[Path], part_bytes: int = PART_BYTES) -> list[list[str]]:
    """Names of the steps, in stages: the steps of a stage are independent and need those before."""
    reading = [f"read-{number}" for number in range(max(1, len(file_groups(files, part_bytes))))]
    encoding = [f"encode-{number}" for number in range(n_encoding(files, part_bytes) + 1)]
    return [reading, [PREPARE], encoding]
