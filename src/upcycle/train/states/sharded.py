"""Rolling states of several processes: a folder in which each has written its own part (torch.distributed.checkpoint).

`resume/step-<step>-<SHA-256 of its manifest>/` holds DCP's files and `manifest.json` with the size and SHA-256 of each
of them, written last under a temporary name of the folder; one rename publishes it. DCP's own description of the parts,
`.metadata`, is a pickle. It is read only after every file, this one too, has proved to be what was written, so that
damage never reaches the unpickler.

All processes call `save_sharded` for the same states in the same order. It talks over a group of its own, so that it
can run in a thread beside the training's collectives; it agrees after every part that can fail, so that a full disk
under one process is an error of all, and none waits for another that is gone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from upcycle.files import TEMPORARY, sync_folder
from upcycle.manifest import MANIFEST, DamagedError, json_bytes, read_file
from upcycle.train.states.checkpoint import disk_is_full, entry_of, write_bytes
from upcycle.train.states.folder import check_tensor_names, make_folder, prune

T = TypeVar("T")


def save_sharded(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    notes: dict[str, Any],
    processes: dist.ProcessGroup,
    *,
    before: Callable[[], None],
) -> None:
    """Publish a state in `folder` (`resume/`), of which this process holds parts (DTensor) and whole tensors.

    `before()` is done first, on every process. Raises the same error on every process if any of them cannot write:
    TrainingError if the disk is full.
    """
    rank = dist.get_rank(processes)
    temporary = folder / f"step-{step:09d}{TEMPORARY}"

    def begin() -> None:
        before()
        if rank == 0:
            make_folder(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()

    def publish() -> None:
        manifest = {"step": step, "notes": notes, "files": {name: part[name] for part in parts for name in part}}
        data = json_bytes(manifest)
        write_bytes(temporary / MANIFEST, data)
        sync_folder(temporary)
        temporary.rename(folder / f"step-{step:09d}-{hashlib.sha256(data).hexdigest()}")
        sync_folder(folder)
        prune(folder)

    # `_together` after every step that can fail: a process that raised alone would leave the others waiting in the next
    # collective until its timeout. The last one holds every process until the state is published, so that when `Saver`
    # reports a save as done on any process, the state is there for all.
    try:
        _together(processes, folder, begin)
        try:
            writer = dcp.FileSystemWriter(temporary, sync_files=True, overwrite=False)
            dcp.save(dict(tensors), storage_writer=writer, process_group=processes)
        except CheckpointException as failure:  # of any process; no Exception, so it would pass every net
            raise _first_error(folder, [error for error, _ in failure.failures.values()]) from failure
        parts = _together(processes, folder, lambda: _own_files(temporary, rank))
        _together(processes, folder, publish if rank == 0 else lambda: None)
    except Exception:
        # The others do not wait for this. Their next save meets the first process in `begin`, after the removal; until
        # then the folder has a temporary name, which `states_in` does not take for a state.
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _own_files(temporary: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the files that this process wrote."""
    paths = [*temporary.glob(f"__{rank}_*"), *([temporary / ".metadata"] if rank == 0 else [])]
    return {path.name: entry_of(path) for path in sorted(paths)}


def _together(processes: dist.ProcessGroup, folder: Path, work: Callable[[], T]) -> list[T]:
    """Results of all processes' `work`; if it failed anywhere, the first such error, on all."""
    result: T | Exception
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 (raised below, on all)
        result = error
    results: list[Any] = [None] * dist.get_world_size(processes)
    dist.all_gather_object(results, result, group=processes)
    errors = [found for found in results if isinstance(found, Exception)]
    if errors:
        raise _first_error(folder, errors)
    return results


def _first_error(folder: Path, errors: Sequence[BaseException]) -> BaseException:
    """The first error, or the message on a full disk if any of them is one."""
    for error in errors:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return disk_is_full(folder)
    return errors[0]


# Reading


def verify(path: Path, manifest_sha256: str) -> dict[str, Any]:
    """The manifest of a state's folder. DamagedError naming the first file that is not what was written."""
    data = read_file(path / MANIFEST) or b""
    if hashlib.sha256(data).hexdigest() != manifest_sha256:
        raise DamagedError(f"{path / MANIFEST}: damaged, it does not have the SHA-256 in the name of its folder")
    manifest: dict[str, Any] = json.loads(data)

    def check(name: str) -> str | None:
        try:
            found = entry_of(path / name)
        except OSError as error:
            return f"{path / name}: damaged, it cannot be read ({error.strerror})"
        if found != manifest["files"][name]:
            return f"{path / name}: damaged, {found['bytes']:,} bytes that are not those of {MANIFEST}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # hashing releases the interpreter's lock
        for damage in threads.map(check, manifest["files"]):
            if damage is not None:
                raise DamagedError(damage)
    return manifest


def fill_sharded(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy a verified state into tensors, in place: whole ones or parts of any other layout (DTensor).

    Each process reads what it needs, without talking to others. DamagedError if the names differ.
    """
    reader = dcp.FileSystemReader(path)
    entries = reader.read_metadata().state_dict_metadata
    check_tensor_names(path, entries.keys(), tensors)
    # DCP wants the saved shapes, which for a whole tensor may be those of the stack ((3, D, D) for (3D, D)): a view.
    targets = {}
    for name, tensor in tensors.items():
        entry = entries[name]
        assert isinstance(entry, TensorStorageMetadata)
        targets[name] = tensor if isinstance(tensor, DTensor) else tensor.view(entry.size)
    with warnings.catch_warnings():  # that no_dist is on is no news to who asked for it
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(targets, storage_reader=reader, no_dist=True)
