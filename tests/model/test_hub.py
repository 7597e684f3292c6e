"""Hugging Face folders: what is read is what was written, whole and verified, and nothing else; no code runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_pickle import Marks
from safetensors.torch import save_file
from torch import Tensor

from upcycle.data.sources import sha256_file
from upcycle.errors import UserError
from upcycle.model.hub import read_checkpoint
from upcycle.model.interop import to_hugging_face
from upcycle.study.shape import ModelSpec

GROUPED = ModelSpec(n_layer=2, d_model=48, n_head=6, n_kv_head=2, d_mlp=80, vocab_size=64, context=32)
SHAPES = {
    "Llama": GROUPED,
    "tied": GROUPED.model_copy(update={"tied": True}),
    "Qwen2": GROUPED.model_copy(update={"qkv_bias": True}),
    "Qwen3": GROUPED.model_copy(update={"qk_norm": True, "d_head": 16}),
}


def write_shards(folder: Path, tensors: dict[str, Tensor], shards: int = 2) -> dict[str, str]:
    """Tensors dealt out to so many files, neighbours to different ones; returns each file's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        save_file(dict(list(tensors.items())[number::shards]), folder / f"model-{number}.safetensors", {"format": "pt"})
    return {path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)
def test_weights_come_back_to_the_bit(build: Callable, tmp_path: Path, model: ModelSpec, dtype: torch.dtype) -> None:
    """As float32, whatever they were written in: the values of bfloat16 and float16 are values of float32."""
    weights = {name: weight.to(dtype) for name, weight in build(model).state_dict().items()}
    files = write_shards(tmp_path, to_hugging_face(weights, model))
    found = read_checkpoint(tmp_path, model, files)
    assert list(found) == list(weights)
    for name, weight in weights.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight.float()), name
    for path in tmp_path.iterdir():  # a view of a file would change with it
        path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(found["embed.weight"], weights["embed.weight"].float())


@pytest.fixture
def checkpoint(build: Callable, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    return tmp_path, write_shards(tmp_path, to_hugging_face(build(GROUPED).state_dict(), GROUPED))


def test_other_files_of_the_folder_are_not_read(checkpoint: tuple[Path, dict[str, str]]) -> None:
    folder, files = checkpoint
    (folder / "more.safetensors").write_bytes(b"not one of them")
    assert read_checkpoint(folder, GROUPED, files | {"config.json": "0" * 64})


def test_a_changed_byte_is_refused_with_both_hashes(checkpoint: tuple[Path, dict[str, str]]) -> None:
    folder, files = checkpoint
    path = folder / "model-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    message = rf"model-1\.safetensors: changed since it was planned: SHA-256 {sha256_file(path)[:16]}"
    with pytest.raises(UserError, match=message):
        read_checkpoint(folder, GROUPED, files)


def test_a_file_that_is_written_while_it_is_read_is_refused(
    checkpoint: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its hash was taken, with its date set back."""
    folder, files = checkpoint
    path = folder / "model-0.safetensors"

    def write(*_: object) -> dict[str, Tensor]:
        before = path.stat()
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return {}

    monkeypatch.setattr("upcycle.model.hub.from_hugging_face", write)
    with pytest.raises(UserError, match=r"model-0\.safetensors: changed while it was read"):
        read_checkpoint(folder, GROUPED, files)


@pytest.mark.parametrize("kind", ["pickle", "zip", "empty"])
def test_a_pickle_by_the_name_of_safetensors_is_not_loaded(kind: str, tmp_path: Path) -> None:
    """Plain, or in a zip archive as `torch.save` writes it."""
    path, marker = tmp_path / "model.safetensors", tmp_path / "ran"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.writestr("archive/data.pkl", pickle.dumps(Marks(marker)))
    else:
        path.write_bytes(pickle.dumps(Marks(marker)) if kind == "pickle" else b"")
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file") as refused:
        read_checkpoint(tmp_path, GROUPED, {path.name: sha256_file(path)})
    assert "\n" not in str(refused.value)
    assert not marker.exists()
    if kind == "pickle":
        pickle.loads(path.read_bytes())
        assert marker.exists(), "the pickle is harmless: this test shows nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model-0.safetensors").unlink(), r"model-0\.safetensors: no such file"),
        (lambda folder: _replaced(folder, lambda path: path.mkdir()), "not a regular file"),
        (lambda folder: _replaced(folder, os.mkfifo), "not a regular file"),
        (lambda folder: _replaced(folder, lambda path: path.symlink_to("/dev/zero")), "not a regular file"),
        (lambda folder: _replaced(folder, lambda path: path.symlink_to(path.name)), "no such file"),
    ],
    ids=["missing", "folder", "pipe", "device", "loop"],
)
def test_what_is_no_file_is_refused_and_not_waited_for(
    checkpoint: tuple[Path, dict[str, str]], change: Callable[[Path], None], message: str
) -> None:
    folder, files = checkpoint
    change(folder)
    with pytest.raises(UserError, match=message):
        read_checkpoint(folder, GROUPED, files)


def _replaced(folder: Path, make: Callable[[Path], object]) -> None:
    path = folder / "model-0.safetensors"
    path.unlink()
    make(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"tensor model\.norm\.weight is missing"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
            r"tensor model\.norm\.weight is of type int8; float32, bfloat16 and float16 are read",
        ),
    ],
    ids=["missing", "quantised"],
)
def test_a_tensor_that_cannot_be_used_is_named(
    build: Callable, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    tensors = to_hugging_face(build(GROUPED).state_dict(), GROUPED)
    change(tensors)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path, GROUPED, write_shards(tmp_path, tensors))


def test_a_tensor_in_two_files_is_named(checkpoint: tuple[Path, dict[str, str]]) -> None:
    folder, files = checkpoint
    (folder / "again.safetensors").write_bytes((folder / "model-0.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"again\.safetensors: tensor '\S+' is in model-0\.safetensors too"):
        read_checkpoint(folder, GROUPED, files | {"again.safetensors": files["model-0.safetensors"]})
