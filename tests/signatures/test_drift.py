"""The recorded signatures are those of the libraries' source; flash-attn 2's own Python under fake tensors.

All need the libraries' source, unpacked or installed, and skip without it: `make contract-gpu` downloads 10 MB.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import recorded_libraries as recorded
import torch
from library_sources import HOW, RECORDS, find_source
from record_signatures import record
from torch._subclasses.fake_tensor import FakeTensorMode

from upcycle.model.cuda_kernels import Attention, flash2_attention


def source_of(distribution: str) -> Path:
    root = find_source(distribution)
    if root is None:
        pytest.skip(f"the source of {distribution} {RECORDS[distribution][0]} is not here: {HOW}")
    return root


@pytest.mark.parametrize("distribution", RECORDS)
def test_recorded_signatures_are_those_of_the_source(distribution: str) -> None:
    known = recorded.read(distribution)
    found = record(source_of(distribution), list(known))
    for name, entry in known.items():
        assert found[name] is not None, f"{name} is gone"
        assert found[name].get("params") == entry.get("params"), name


def test_the_recorder_sees_a_changed_name_default_or_kind(tmp_path: Path) -> None:
    path = tmp_path / "library.py"

    def params(source: str) -> list[dict[str, str | None]]:
        path.write_text(source, encoding="utf-8")
        return record(tmp_path, ["library.py:f"])["library.py:f"]["params"]

    base = params("def f(q, scale=None): ...")
    assert base == [
        {"name": "q", "kind": "positional", "default": None},
        {"name": "scale", "kind": "positional", "default": "None"},
    ]
    for changed in ("def f(q, s=None): ...", "def f(q, scale=1.0): ...", "def f(q, *, scale=None): ..."):
        assert params(changed) != base
    assert record(tmp_path, ["library.py:g", "gone.py:f"]) == {"library.py:g": None, "gone.py:f": None}


@contextmanager
def imported(root: Path, module: str, stand_ins: dict[str, ModuleType]) -> Iterator[ModuleType]:
    """A module from this folder, with stand-ins for what its build would have made; gone again afterwards."""
    ours = {name.partition(".")[0] for name in (module, *stand_ins)}
    path = root / module / "__init__.py" if (root / module).is_dir() else root / f"{module}.py"
    spec = importlib.util.spec_from_file_location(module, path)
    made = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            patch.delitem(sys.modules, name)
        sys.modules.update({module: made, **stand_ins})
        spec.loader.exec_module(made)
        yield made
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def flash2() -> Iterator[Attention]:
    """Our attention by flash-attn 2 itself, with an empty module in place of its CUDA extension."""
    root = source_of("flash-attn")
    with imported(root, "flash_attn", {"flash_attn_2_cuda": ModuleType("flash_attn_2_cuda")}) as module:
        yield flash2_attention(module.flash_attn_func)


@pytest.mark.parametrize("head_dim", [60, 70, 80, 94, 104])
def test_the_library_itself_takes_our_call_and_every_head_of_the_paper(flash2: Attention, head_dim: int) -> None:
    """Its argument checks, padding, autograd and the shapes its kernels promise, forward and backward; no numbers.

    On fake CPU tensors: fake CUDA tensors that need gradients end the process on a torch without CUDA.
    """
    with FakeTensorMode():
        qkv = torch.empty(2, 16, 12, head_dim, dtype=torch.bfloat16, requires_grad=True)
        y_BHSC = flash2(*(x.transpose(1, 2) for x in qkv.chunk(3, dim=2)))
        assert y_BHSC.shape == (2, 4, 16, head_dim)
        assert y_BHSC.transpose(1, 2).flatten(2).shape == (2, 16, 4 * head_dim)
        (grad,) = torch.autograd.grad(y_BHSC, qkv, torch.empty_like(y_BHSC))
    assert grad.shape == qkv.shape
    assert grad.dtype == torch.bfloat16
