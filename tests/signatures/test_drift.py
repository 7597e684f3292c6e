"""The recorded signatures are still those of the libraries' source; and flash-attn 2's own Python, under fake tensors.

Both need the libraries' source, unpacked or installed, and skip without it: `make contract-gpu` downloads 10 MB.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import recorded
import torch
from record_signatures import record
from sources import FOLDER, HOW, RECORDS, find_source
from torch._subclasses.fake_tensor import FakeTensorMode

from upcycle.model.cuda_kernels import LIBRARIES, flash2_attention


def source_of(distribution: str) -> Path:
    root = find_source(distribution)
    if root is None:
        version, _ = RECORDS[distribution]
        how = HOW if version else f"put a checkout of flash-attention at {FOLDER.name}/{distribution}"
        pytest.skip(f"the source of {distribution} {version} is not here: {how}")
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


@pytest.fixture(scope="module")
def flash_attn() -> Iterator[ModuleType]:
    """flash-attn 2 itself, with an empty module in place of its CUDA extension."""
    root = source_of("flash-attn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flash_attn_2_cuda", ModuleType("flash_attn_2_cuda"))
        patch.syspath_prepend(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            patch.delitem(sys.modules, name)
        import flash_attn

        yield flash_attn
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]


@pytest.mark.parametrize("head_dim", [60, 70, 80, 94, 104])
def test_flash_attn_2_itself_takes_our_call_and_every_head_of_the_paper(head_dim: int, flash_attn: ModuleType) -> None:
    """Its argument checks, padding, autograd and the shapes its kernels promise, forward and backward; no numbers.

    On fake CPU tensors: fake CUDA tensors that need gradients end the process on a torch without CUDA.
    """
    assert all(hasattr(flash_attn, function) for function in LIBRARIES["flash2"].functions)
    attention = flash2_attention(flash_attn.flash_attn_func)
    with FakeTensorMode():
        qkv = torch.empty(2, 16, 12, head_dim, dtype=torch.bfloat16, requires_grad=True)
        y_BHSC = attention(*(x.transpose(1, 2) for x in qkv.chunk(3, dim=2)))
        assert y_BHSC.shape == (2, 4, 16, head_dim)
        assert y_BHSC.transpose(1, 2).flatten(2).shape == (2, 16, 4 * head_dim)
        (grad,) = torch.autograd.grad(y_BHSC, qkv, torch.empty_like(y_BHSC))
    assert grad.shape == qkv.shape
    assert grad.dtype == torch.bfloat16
