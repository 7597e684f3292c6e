"""What a run leaves on disk: files that are whole or absent, hashed, verified when read, never pickled.

Two kinds. While a run trains, `resume/` holds rolling states: each is ONE file (weights, AdamW moments, notes) whose
name carries its step and SHA-256, so that a single rename publishes it and a damaged one convicts itself; the last
two are kept. When a run is finished, `weights.safetensors` (and `state.safetensors` for a trunk point, whose children
continue from it) are described by `manifest.json`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from upcycle.errors import UserError
from upcycle.spec import RunSpec
from upcycle.train.lease import LEASE
from upcycle.train.preemption import TrainingError

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
MANIFEST = "manifest.json"
METRICS = "metrics.json"
SPEC = "spec.json"
RESUME = "resume"
MANIFEST_KEYS = ("id", "step", "tokens_fingerprint", "tokenizer_sha256", "files", "metrics")
ROLLING_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{64})\.safetensors")
ROLLING_KEPT = 2
TEMPORARY = ".tmp"


class DamagedError(UserError):
    """A file of a run is missing, truncated, altered or of another run; the message names it."""


@dataclass(frozen=True)
class RollingState:
    """Where an unfinished run stands after `step` updates."""

    step: int
    tensors: dict[str, Tensor]
    """`model.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>`."""
    notes: dict[str, Any]
    """JSON-able: `id` of the run, `tokens_fingerprint`, `clock`."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that `path` is, at any moment, the old content or the new one, also after a power cut.

    Raises TrainingError with the mend when the disk is full; what was at `path` is untouched then.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with disk_full_is_named(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def disk_full_is_named(path: Path) -> Iterator[None]:
    """Turn a full disk (or an exhausted quota) into a TrainingError that says which file and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"{path}: the disk is full. The last saved state is intact: "
                "free some space and give the same command again"
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, readable JSON; refuses NaN and infinity."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


# Rolling states


def save_rolling(folder: Path, state: RollingState) -> Path:
    """Publish a rolling state in `folder` (`resume/`), then remove all but the last two."""
    folder.mkdir(exist_ok=True)
    data = safetensors.torch.save(state.tensors, metadata={"notes": json.dumps(state.notes, allow_nan=False)})
    path = folder / f"step-{state.step:09d}-{hashlib.sha256(data).hexdigest()}.safetensors"
    write_bytes(path, data)
    for old in _rolling_files(folder)[ROLLING_KEPT:]:
        old.unlink()
    return path


def load_rolling(folder: Path, run_id: str) -> RollingState | None:
    """Newest valid rolling state of this run, or None if there is none. A damaged one is named, and passed over.

    Raises DamagedError if a valid state belongs to another run: that is not an accident of writing.
    """
    for path in _rolling_files(folder):
        try:
            state = _read_rolling(path)
        except DamagedError as damage:
            log.warning("%s; trying the state before it", damage)
            continue
        if state.notes["id"] != run_id:
            raise DamagedError(f"{path}: state of run {state.notes['id']}, not of {run_id}; move {folder} away")
        return state
    return None


def clear_temporaries(run_dir: Path) -> None:
    """Remove what a killed writer left half written. Call under the lease."""
    for folder in (run_dir, run_dir / RESUME):
        for path in folder.glob(f"*{TEMPORARY}"):
            path.unlink()


def _rolling_files(folder: Path) -> list[Path]:
    """Rolling states, newest step first."""
    return sorted((path for path in folder.glob("step-*") if ROLLING_NAME.fullmatch(path.name)), reverse=True)


def _read_rolling(path: Path) -> RollingState:
    named = ROLLING_NAME.fullmatch(path.name)
    assert named is not None
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != named[2]:
        raise DamagedError(f"{path}: damaged, {len(data):,} bytes do not have the SHA-256 of its name")
    notes = json.loads(_metadata(data)["notes"])
    return RollingState(step=int(named[1]), tensors=safetensors.torch.load(data), notes=notes)


def _metadata(data: bytes) -> dict[str, str]:
    """The text entries of a safetensors file: 8 bytes of header length, then a JSON header."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]


# Finished runs


def save_finished(
    run_dir: Path,
    *,
    run_id: str,
    step: int,
    tokens_fingerprint: str,
    tokenizer_sha256: str,
    tensors: dict[str, dict[str, Tensor]],
    metrics: dict[str, Any],
) -> None:
    """Write the tensor files, `manifest.json`, and last `metrics.json`; then drop the rolling states.

    `tensors` maps file names to their content. The manifest keeps the metrics too: a workflow that runs a job again
    removes its declared output, `metrics.json`, first, and it is then restored without training (`verify_finished`).
    """
    files = {}
    for name, content in tensors.items():
        data = safetensors.torch.save(content)
        write_bytes(run_dir / name, data)
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        "id": run_id,
        "step": step,
        "tokens_fingerprint": tokens_fingerprint,
        "tokenizer_sha256": tokenizer_sha256,
        "files": files,
        "metrics": metrics,
    }
    write_json(run_dir / MANIFEST, manifest)
    write_json(run_dir / METRICS, metrics)
    shutil.rmtree(run_dir / RESUME, ignore_errors=True)


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """What `save_finished` wrote into a finished run's manifest, MANIFEST_KEYS all. DamagedError if there is none."""
    path = run_dir / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        return {key: manifest[key] for key in MANIFEST_KEYS}
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing, so {run_dir.name} is not a finished run; train it first") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedError(f"{path}: not a manifest; train {run_dir.name} again with --fresh") from None


def read_tensors(run_dir: Path, name: str) -> dict[str, Tensor]:
    """Tensors of a finished run's file, from bytes that have its manifest's size and SHA-256. DamagedError if not."""
    files = read_manifest(run_dir)["files"]
    if name not in files:
        raise DamagedError(f"{run_dir / name}: not among the files of {MANIFEST} ({', '.join(files)})")
    data = _read_verified(run_dir / name, files[name])
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise DamagedError(
            f"{run_dir / name}: not a safetensors file ({error}); train this run again with --fresh"
        ) from None


def _read_verified(path: Path, expected: dict[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing, though {MANIFEST} lists it; train this run again with --fresh") from None
    if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise DamagedError(
            f"{path}: damaged, {len(data):,} bytes of {expected['bytes']:,} expected, or altered; "
            "train this run again with --fresh"
        )
    return data


def verify_finished(run_dir: Path, run_id: str) -> bool:
    """Whether the run is finished: False if it never was; DamagedError if it was and its files no longer hold.

    Restores `metrics.json` from the manifest if it was removed, and drops rolling states left by a late kill.
    """
    if not (run_dir / MANIFEST).exists():
        if (run_dir / METRICS).exists():
            raise DamagedError(f"{run_dir / METRICS}: there without {MANIFEST}; train this run again with --fresh")
        return False
    manifest = read_manifest(run_dir)
    if manifest["id"] != run_id:
        raise DamagedError(f"{run_dir / MANIFEST}: of run {manifest['id']}, not of {run_id}; move {run_dir} away")
    for name, expected in manifest["files"].items():
        _read_verified(run_dir / name, expected)
    metrics = run_dir / METRICS
    if not metrics.exists() or json.loads(metrics.read_bytes()) != manifest["metrics"]:
        log.info("%s restored from %s", metrics, MANIFEST)
        write_json(metrics, manifest["metrics"])
    shutil.rmtree(run_dir / RESUME, ignore_errors=True)
    return True


def remove_results(run_dir: Path) -> None:
    """Make a run's folder as if it had never been trained; the lease stays. Call under it."""
    for path in run_dir.iterdir():
        if path.name == RESUME:
            shutil.rmtree(path)
        elif path.name != LEASE:
            path.unlink()


# The specification beside its results


def write_spec(run_dir: Path, run: RunSpec) -> None:
    """Write `spec.json`: the specification and its id. DamagedError if the folder already belongs to another run."""
    path = run_dir / SPEC
    if path.exists() and (found := read_spec(run_dir).id) != run.id:
        raise DamagedError(f"{path}: of run {found}, not of {run.id}; move {run_dir} away")
    write_json(path, {"id": run.id, **run.model_dump(mode="json")})


def read_spec(run_dir: Path) -> RunSpec:
    """Specification of the run in a folder. DamagedError if it is missing, or does not make the id that it states."""
    path = run_dir / SPEC
    try:
        fields = json.loads(path.read_bytes())
        stated = fields.pop("id")
        run = RunSpec.model_validate(fields)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing, so {run_dir} is not a run's folder") from None
    except (ValueError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path}: not a run's specification ({error})") from None
    if run.id != stated:
        raise DamagedError(f"{path}: makes the id {run.id} but states {stated}: edited by hand, or of another version")
    return run
