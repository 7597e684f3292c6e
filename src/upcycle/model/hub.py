"""Folders of Hugging Face checkpoints: read, safetensors alone and every byte checked, and the tensors of exports.

No pickle is loaded and no code of a folder runs. A file is mapped into memory and one tensor of it converted at a time,
so that reading needs little beyond its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from upcycle.data.sources import sha256_file
from upcycle.errors import UserError, brief
from upcycle.files import check_regular
from upcycle.model.interop import from_hugging_face
from upcycle.study.shape import ModelSpec

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that are read; each value of them is one of float32."""
EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
    "qwen2_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
}
"""By `model_type`: the block of the experts, and the matrices of each: gate, up and down."""


def read_checkpoint(folder: Path, model: ModelSpec, files: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of a Hugging Face folder under our names, in float32, whole.

    `files`: SHA-256 of each of its files by name, as its fingerprint states them (`study.parent`). Raises UserError for
    a file that is missing or has other bytes, that is no safetensors file, or that changes while it is read; and for a
    tensor that is missing, quantised, not finite, or in two files.
    """
    paths = [folder / name for name in files if name.endswith(".safetensors")]
    before = {path: _checked(path, files[path.name]) for path in paths}
    with ExitStack() as opened:
        found = _Weights({path: opened.enter_context(_open(path)) for path in paths})
        weights = from_hugging_face(found, model)
    for path, state in before.items():
        if _state(path) != state:
            raise UserError(f"{path}: changed while it was read; give the same command again once nothing writes there")
    return weights


def _checked(path: Path, sha256: str) -> tuple[int, ...]:
    """The file's state when it was found to have this SHA-256."""
    if not path.exists():
        raise UserError(f"{path}: no such file, though the checkpoint had it when it was planned; restore it")
    check_regular(path)
    state = _state(path)
    if (found := sha256_file(path)) != sha256:
        raise UserError(
            f"{path}: changed since it was planned: SHA-256 {found[:16]}... in place of {sha256[:16]}...; restore the "
            "file, or plan again (another checkpoint makes other runs)"
        )
    return state


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced: its number, size, and times of its content and its record."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({brief(str(error), 200)})") from None


class _Weights(Mapping[str, Tensor]):
    """Tensors of open safetensors files by name; each is read, and converted to float32, when it is asked for."""

    def __init__(self, files: Mapping[Path, Any]) -> None:
        self.places: dict[str, tuple[Path, Any]] = {}
        for path, file in files.items():
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name in self.places:
                    other = self.places[name][0].name
                    raise UserError(f"{path}: tensor {brief(name)} is in {other} too; keep one of them")
                self.places[name] = path, file

    def __getitem__(self, name: str) -> Tensor:
        path, file = self.places[name]
        tensor: Tensor = file.get_tensor(name)
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{path}: tensor {name} is of type {kind}; float32, bfloat16 and float16 are read")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: tensor {name} holds NaN or infinity; take another checkpoint, or save it anew")
        return tensor.to(torch.float32)  # maybe a view of the file: what is made of it is new

    def __contains__(self, name: object) -> bool:
        return name in self.places  # `Mapping` would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def file_tensors(tensors: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """What a file holds of the tensors that `interop.to_hugging_face` names: a matrix for each expert, not one for all.

    transformers stacks experts while it loads; these are the names on which it, its older versions and other engines
    agree. Views, no copies.
    """
    block, (gate, up, down) = EXPERT_NAMES.get(model_type, ("", ("", "", "")))
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, experts, matrix = name.partition(".mlp.experts.")
        if not experts:
            found[name.replace(".mlp.gate.", f".{block}.gate.")] = tensor
            continue
        names = (gate, up) if matrix == "gate_up_proj" else (down,)
        for expert, weight in enumerate(tensor):
            for which, part in zip(names, weight.chunk(len(names)), strict=True):
                found[f"{layer}.{block}.experts.{expert}.{which}.weight"] = part
    return found
