"""Rolling states of an unfinished run, from which the same command continues after a stop, a kill or a power cut.

One process writes ONE file (weights, AdamW moments, notes), several write a folder (`sharded`). Either has its step and
a SHA-256 in its name, so that a single rename publishes it and a damaged one convicts itself, and either is read by any
number of processes. The last two are kept in `resume/`. A damaged one is set aside when the run resumes from an older
one, so that it does not count as one of the two; the next save removes it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from upcycle.manifest import DamagedError
from upcycle.model.fill import give
from upcycle.train.states.checkpoint import entry_of, file_entry, safetensors_parts, write_bytes
from upcycle.train.states.folder import (
    NAME,
    check_tensor_names,
    make_folder,
    prune,
    put_aside,
    set_aside,
    states_in,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RollingState:
    """A valid state on disk, after `step` updates."""

    path: Path
    step: int
    notes: dict[str, Any]
    """JSON-able: `id` of the run, `tokens_fingerprint`, `clock`."""

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the state into `model.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>`, in place.

        Shapes may differ from the saved ones where the elements and their order do not ((3D, D) and (3, D, D)).
        Raises DamagedError naming the file if it holds other tensors than these.
        """
        if self.path.is_dir():
            from upcycle.train.states import sharded  # its imports take half a second

            sharded.fill_sharded(self.path, tensors)
            return
        with safetensors.safe_open(self.path, framework="pt") as file:
            check_tensor_names(self.path, set(file.keys()), tensors)
            give(tensors, lambda name, shape: file.get_tensor(name).view(shape))


def save_rolling(folder: Path, step: int, tensors: Mapping[str, Tensor], notes: dict[str, Any]) -> Path:
    """Publish a one-file state in `folder` (`resume/`), then remove all but it and the one before."""
    make_folder(folder)
    parts = safetensors_parts(tensors, {"notes": json.dumps(notes | {"step": step}, allow_nan=False)})
    path = folder / f"step-{step:09d}-{file_entry(*parts)['sha256']}.safetensors"
    write_bytes(path, *parts)
    prune(folder)
    return path


def load_rolling(folder: Path, run_id: str) -> RollingState | None:
    """Newest valid rolling state of this run, or None if there is no state at all. Call under the lease.

    Damaged ones that are newer are named and set aside (`DAMAGED`). Raises DamagedError if all are damaged, so that
    nothing begins anew where hours of work may be saved by a look at the disk, and if a valid one belongs to another
    run, which is no accident of writing.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise DamagedError(f"{folder}: not a folder; move it away, or begin anew with --fresh")
    damaged: list[Path] = []
    for path in states_in(folder):
        try:
            state = _verified(path)
        except DamagedError as damage:
            log.warning("%s; passed over", damage)
            damaged.append(path)
            continue
        if state.notes["id"] != run_id:
            raise DamagedError(f"{path}: state of run {state.notes['id']}, not of {run_id}; move {folder} away")
        put_aside(damaged)
        return state
    found = [*damaged, *set_aside(folder)]
    if found:
        raise DamagedError(
            f"{folder}: no state in it is valid ({', '.join(path.name for path in found)}); "
            "restore one from a copy, or begin anew with --fresh"
        )
    return None


def _verified(path: Path) -> RollingState:
    """The state at a path; DamagedError naming the file that is not what was written."""
    named = NAME.fullmatch(path.name)
    assert named is not None
    if path.is_dir():
        from upcycle.train.states import sharded

        # The folder's name has the SHA-256 of its manifest, which has those of the files.
        manifest = sharded.verify(path, named[2])
        step, notes = manifest["step"], manifest["notes"]
    else:
        notes = _verified_notes(path, named[2])
        step = notes.pop("step")
    if step != int(named[1]):
        raise DamagedError(f"{path}: damaged, renamed: it was saved after step {step}")
    return RollingState(path, step, notes)


def _verified_notes(path: Path, sha256: str) -> dict[str, Any]:
    """The notes of a one-file state that can be read and has this SHA-256, else DamagedError."""
    try:
        found = entry_of(path)
        if found["sha256"] != sha256:
            raise DamagedError(f"{path}: damaged, {found['bytes']:,} bytes do not have the SHA-256 of its name")
        with safetensors.safe_open(path, framework="pt") as file:
            notes: dict[str, Any] = json.loads(file.metadata()["notes"])
    except OSError as error:
        raise DamagedError(f"{path}: damaged, it cannot be read ({error.strerror or error})") from None
    except safetensors.SafetensorError as error:  # a file of another kind, under a name that its hash makes
        raise DamagedError(f"{path}: damaged, no rolling state ({error})") from None
    return notes
