"""Files of a folder that others made: read as JSON and safetensors headers, bounded, and never outside the folder.

Layer 0: standard library only. Whatever does not hold is refused with the file's name.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

from upcycle.errors import UserError, brief

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a number by the types of tensors that are read."""
MAX_HEADER_BYTES = 25 << 20
"""Of an index and a safetensors header. 100 layers take some 100 kB."""


def inside(folder: Path, name: str) -> Path:
    """The path of a file of a folder; `UserError` for a name, or a link, that leads out of it.

    Files of a snapshot in the Hugging Face cache are links to its own `blobs`.
    """
    path = folder / name
    pure = PurePosixPath(name)
    root = folder.resolve()
    roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
    plain = len(pure.parts) == 1 and pure.name not in ("", "..") and "\\" not in name and "\0" not in name
    # Not Path.resolve, which raises for a circle of links.
    if not plain or not any(Path(os.path.realpath(path)).is_relative_to(each) for each in roots):
        raise UserError(
            f"{folder}: {brief(name)} leads out of the folder; a checkpoint's files are in it: do not use it"
        )
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a regular file; restore the folder")
    return path


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {' '.join(str(error).split())}; restore it from its source") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: no JSON object; restore it from its source")
    return found


def read_json(folder: Path, name: str, most: int) -> dict[str, Any]:
    """The JSON object of a file of at most so many bytes; `UserError` naming the file for anything else."""
    path = inside(folder, name)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a Hugging Face folder, which has it") from None
    if len(data) > most:
        raise UserError(f"{path}: larger than {most:,} bytes, which no checkpoint of these families needs")
    return _object(data, path)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensors of a safetensors file by name, each with `dtype`, `shape` and `data_offsets`, checked against its size.

    Raises `UserError` naming the file that is missing, cut or damaged.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size - 8 - length
            if length > MAX_HEADER_BYTES or size < 0:
                raise UserError(f"{path} is damaged: a header of {length:,} bytes; restore it from its source")
            header = _object(file.read(length), path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore it from the checkpoint's source") from None
    header.pop("__metadata__", None)
    end = 0
    try:
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        for name, entry in entries:
            shape, (begin, after) = entry["shape"], entry["data_offsets"]
            numbers = [*shape, begin, after]
            if not all(isinstance(number, int) and number >= 0 for number in numbers) or begin != end:
                raise ValueError(f"tensor {brief(name)}: {brief(numbers)}")
            if entry["dtype"] in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[entry["dtype"]] != after - begin:
                raise ValueError(f"tensor {brief(name)}: {after - begin} bytes for shape {shape}")
            end = after
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: its header does not describe its tensors ({error})") from None
    if end != size:
        raise UserError(f"{path} is cut or damaged: {size:,} bytes of tensors, {end:,} described; restore it")
    return header
