"""What a finished run leaves on disk: files that are whole or absent, hashed, verified when read, never pickled.

`weights.safetensors` (and `state.safetensors` for a trunk point, whose children continue from it), the specification
and the curve are described by `manifest.json`, which keeps the metrics and vouches for itself (`upcycle.manifest`).
What an unfinished run leaves is in `rolling`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from upcycle.files import Part, sync_folder, write_atomic
from upcycle.manifest import (
    FIX,
    MANIFEST,
    METRICS,
    DamagedError,
    check_bytes,
    check_kept,
    check_listed,
    json_bytes,
    read_file,
    read_manifest,
    removed_files,
    sealed,
)
from upcycle.study.recorded import SPEC, stated_spec
from upcycle.study.spec import RunSpec
from upcycle.train.processes.preemption import HOPELESS, TrainingError
from upcycle.train.states.lease import LEASE

log = logging.getLogger(__name__)

CURVE = "metrics.jsonl"
RECEIPT = "receipt.json"
RESUME = "resume"


# Files that are whole or absent


def write_bytes(path: Path, *parts: Part) -> None:
    """Write a file, in parts, so that `path` is at any moment the old content or the new one, also after a power cut.

    Raises TrainingError when the disk is full, and DamagedError where `path` is a folder; both name the fix, and what
    was at `path` is untouched.
    """
    with disk_full_is_named(path):
        try:
            write_atomic(path, *parts)
        except IsADirectoryError:
            raise DamagedError(f"{path}: a folder is in the place of this file; move it away") from None
        sync_folder(path.parent)


@contextmanager
def disk_full_is_named(path: Path) -> Iterator[None]:
    """Turn a full disk (or an exhausted quota) into a TrainingError that says which file and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_is_full(path) from error
        raise


def disk_is_full(path: Path) -> TrainingError:
    """The error that reports a full disk, with what to do."""
    return TrainingError(
        f"{path}: the disk is full. The last saved state is intact: free some space and give the same command again",
        HOPELESS,
    )


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, readable JSON; refuses NaN and infinity."""
    write_bytes(path, json_bytes(value))


def file_entry(*parts: Part) -> dict[str, Any]:
    """Size and SHA-256 of a file with this content, as a manifest's `files` keep them."""
    running = hashlib.sha256()
    for part in parts:
        running.update(part)
    return {"bytes": sum(map(len, parts)), "sha256": running.hexdigest()}


def entry_of(path: Path) -> dict[str, Any]:
    """`file_entry` of a file on disk, which is never whole in memory."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": sha256}


# Tensors as a safetensors file

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64", torch.int64: "I64"}


def safetensors_parts(tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> list[Part]:
    """A safetensors file in parts, byte for byte what `safetensors.torch.save` makes, without a second copy in memory.

    The parts are the header and views of the tensors, so hashing and writing them releases the interpreter's lock: a
    training thread computes on while another thread saves. Tensors elsewhere than in CPU memory are copied there.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    parts: list[Part] = []
    end = 0
    for name in order:
        tensor = tensors[name].detach().cpu().contiguous()
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *parts]


# Finished runs


def save_finished(
    run_dir: Path, about: dict[str, Any], tensors: dict[str, dict[str, Tensor]], metrics: dict[str, Any]
) -> None:
    """Write the tensor files, `manifest.json`, and last `metrics.json`; then drop the rolling states.

    `about` are the manifest's own keys (`read_manifest`); `tensors` maps file names to their content. The manifest
    describes them and what the run wrote before, durably by now: specification, curve, receipt. It keeps the metrics
    too: a workflow that runs a job again removes its declared output, `metrics.json`, first, and it is then restored
    without training (`verify_finished`).
    """
    files = {}
    for name, content in tensors.items():
        parts = safetensors_parts(content)
        write_bytes(run_dir / name, *parts)
        files[name] = file_entry(*parts)
    for name in (SPEC, CURVE, RECEIPT):
        if (run_dir / name).exists():
            files[name] = file_entry((run_dir / name).read_bytes())
    write_json(run_dir / MANIFEST, sealed(about | {"files": files, "metrics": metrics}))
    write_json(run_dir / METRICS, metrics)
    shutil.rmtree(run_dir / RESUME, ignore_errors=True)


def replace_metrics(run_dir: Path, metrics: dict[str, Any]) -> None:
    """Give a finished run other metrics. Call under its lease; killed in between, `verify_finished` ends it."""
    write_json(run_dir / MANIFEST, sealed({**read_manifest(run_dir), "metrics": metrics}))
    write_json(run_dir / METRICS, metrics)


def read_tensors(run_dir: Path, name: str) -> dict[str, Tensor]:
    """Tensors of a finished run's file, from bytes that have its manifest's size and SHA-256.

    Raises DamagedError if they have not, RemovedError if a study's `keep` removed the file.
    """
    manifest = read_manifest(run_dir)
    files = manifest["files"]
    check_kept(run_dir, manifest, name)
    if name not in files:
        raise DamagedError(f"{run_dir / name}: not among the files of {MANIFEST} ({', '.join(files)})")
    data = _read_verified(run_dir / name, files[name])
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise DamagedError(f"{run_dir / name}: not a safetensors file ({error}); {FIX}") from None


def _read_verified(path: Path, expected: dict[str, Any]) -> bytes:
    data = read_file(path)
    if data is None:
        raise DamagedError(f"{path}: missing, though {MANIFEST} lists it; {FIX}")
    check_bytes(path, data, expected)
    return data


def verify_finished(run_dir: Path, run_id: str) -> bool:
    """Whether the run is finished: False if it never was; DamagedError if it was and its files no longer hold.

    Restores `metrics.json` from the manifest if it was removed or damaged, and logs it; drops rolling states left by a
    late kill.
    """
    if not (run_dir / MANIFEST).exists():
        if (run_dir / METRICS).exists():
            raise DamagedError(f"{run_dir / METRICS}: there without {MANIFEST}; {FIX}")
        return False
    manifest = read_manifest(run_dir)
    if manifest["id"] != run_id:
        raise DamagedError(f"{run_dir / MANIFEST}: of run {manifest['id']}, not of {run_id}; move {run_dir} away")
    for name, expected in manifest["files"].items():
        if name not in removed_files(manifest):
            _read_verified(run_dir / name, expected)
    path, found = run_dir / METRICS, read_file(run_dir / METRICS)
    if found != json_bytes(manifest["metrics"]):
        log.warning("%s %s; restored from %s", path, "was missing" if found is None else "was damaged", MANIFEST)
        write_json(path, manifest["metrics"])
    shutil.rmtree(run_dir / RESUME, ignore_errors=True)
    return True


def remove_results(run_dir: Path) -> None:
    """Make a run's folder as if it had never been trained; the lease stays. Call under it."""
    for path in run_dir.iterdir():
        if path.name != LEASE:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to) or a folder and all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# The specification beside its results


def write_spec(run_dir: Path, run: RunSpec) -> None:
    """Write `spec.json`: the specification and its id. DamagedError if the folder already belongs to another run."""
    path = run_dir / SPEC
    if path.exists() and (found := read_spec(run_dir).id) != run.id:
        raise DamagedError(f"{path}: of run {found}, not of {run.id}; move {run_dir} away")
    write_json(path, {"id": run.id, **run.model_dump(mode="json")})


def read_spec(run_dir: Path) -> RunSpec:
    """Specification of the run in a folder.

    Raises DamagedError if it is missing, does not make the id that it states, or is not what a finished run's manifest
    describes (which also covers what the id leaves out).
    """
    run = stated_spec(run_dir)
    if run is None:
        raise DamagedError(f"{run_dir / SPEC}: missing, so {run_dir} is not a run's folder")
    check_listed(run_dir / SPEC)
    return run
