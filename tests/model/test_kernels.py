"""The kernel seam: choices, refusals, and each kernel against its plain reference."""

from __future__ import annotations

import importlib
import logging
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch

from upcycle.errors import UserError
from upcycle.model import cuda_kernels
from upcycle.model.kernels import Kernels, choose_kernels, float32_kernels
from upcycle.study.shape import ModelSpec

GROUPABLE = ModelSpec(n_layer=1, d_model=16, n_head=1, vocab_size=8, context=8)
UNGROUPABLE = ModelSpec(n_layer=1, d_model=12, n_head=1, vocab_size=8, context=8)


def test_auto_takes_grouped_mm_where_the_shape_allows_and_logs_it(caplog) -> None:
    with caplog.at_level(logging.INFO):
        chosen = choose_kernels(GROUPABLE, {"layers": "composed"})
    assert chosen == Kernels()
    assert chosen.describe() == {
        "attention": "sdpa",
        "experts": "grouped_mm",
        "rms_norm": "torch",
        "cross_entropy": "plain",
        "router": "torch",
        "layers": "composed",
        "torch": torch.__version__,
    }
    assert f"experts=grouped_mm torch {torch.__version__}: the first choice on this device" in caplog.text


def test_auto_takes_the_loop_elsewhere_and_logs_the_reason(caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_kernels(UNGROUPABLE).describe()["experts"] == "loop"
    assert "d_model 12 not a multiple of 8" in caplog.text


def test_a_named_kernel_that_cannot_run_is_refused_with_its_reason() -> None:
    with pytest.raises(UserError, match="grouped_mm cannot be used: d_model 12 not a multiple of 8"):
        choose_kernels(UNGROUPABLE, {"experts": "grouped_mm"})


@pytest.mark.parametrize(
    ("op", "name", "nearest"), [("attention", "spda", "sdpa"), ("experts", "grouped", "grouped_mm")]
)
def test_an_unknown_kernel_is_refused_with_the_nearest_name(op: str, name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"unknown {op} kernel `{name}`; did you mean `{nearest}`"):
        choose_kernels(GROUPABLE, {op: name})


# --- kernels of GPU libraries: found, refused, recorded; what they compute is tested in tests/gpu


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where none of the GPU libraries is installed."""

    def version(distribution: str) -> str:
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(cuda_kernels.importlib.metadata, "version", version)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with an H100 and flash-attn 2.8.3.post2; no kernel is called."""

    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, deterministic=False): ...

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda_kernels.importlib.metadata, "version", lambda _: "2.8.3.post2")
    module = SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(cuda_kernels.importlib, "import_module", lambda _: module)


CUDA = {"device": "cuda", "dtype": "bfloat16"}


def test_auto_on_cuda_takes_flash2_where_it_is_and_records_its_version(h100: None) -> None:
    chosen = choose_kernels(GROUPABLE, **CUDA)
    assert chosen.attention.__name__ == "flash2"
    assert chosen.describe() == Kernels().describe() | {"attention": "flash2", "flash-attn": "2.8.3.post2"}


@pytest.mark.usefixtures("no_library")
def test_auto_on_cuda_without_flash2_takes_torchs_flash_and_logs_the_reason(caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_kernels(GROUPABLE, **CUDA).describe()["attention"] == "sdpa_flash"
    assert f"attention=sdpa_flash torch {torch.__version__}: not flash2: flash-attn is not installed" in caplog.text


def test_auto_on_cuda_in_float32_takes_sdpa_and_logs_the_reasons(h100: None, caplog) -> None:
    with caplog.at_level(logging.INFO):
        assert choose_kernels(GROUPABLE, device="cuda", dtype="float32").describe()["attention"] == "sdpa"
    assert "not flash2: it computes in bfloat16 only, and the dtype is float32; not sdpa_flash: it" in caplog.text


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(
    ("op", "name", "message"),
    [
        (
            "attention",
            "flash2",
            "flash-attn is not installed; to install: pip install --no-build-isolation -e '.[flash2]'",
        ),
        ("attention", "te", "transformer-engine is not installed; to install: pip install --no-build-isolation"),
        ("experts", "te", "transformer-engine is not installed"),
        ("rms_norm", "te", "transformer-engine is not installed"),
    ],
)
def test_a_named_kernel_whose_library_is_missing_is_refused_with_the_mend(op: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        choose_kernels(GROUPABLE, {op: name}, **CUDA)
    assert f"{op} kernel {name} cannot be used: {message}" in str(refusal.value)
    assert "docs/cluster.md" in str(refusal.value)


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError, AssertionError])
def test_a_library_that_breaks_on_import_is_refused_with_what_it_said(error, h100: None, monkeypatch) -> None:
    """Transformer Engine without its CUDA part, an extension built for another torch, a missing driver library."""

    def broken(_: str) -> None:
        raise error("undefined symbol: at::_ops\nand more")

    monkeypatch.setattr(cuda_kernels.importlib, "import_module", broken)
    told = f"flash-attn 2.8.3.post2 does not import: {error.__name__}: undefined symbol: at::_ops;"
    with pytest.raises(UserError, match=told):
        choose_kernels(GROUPABLE, {"attention": "flash2"}, **CUDA)


def test_a_folder_flash_attn_without_functions_is_not_taken_for_flash_attn_2(h100: None, monkeypatch) -> None:
    """Another distribution that puts files there makes `import flash_attn` succeed, as an empty namespace."""
    monkeypatch.setattr(cuda_kernels.importlib, "import_module", lambda _: SimpleNamespace(__name__="flash_attn"))
    with pytest.raises(UserError, match="does not import: AttributeError"):
        choose_kernels(GROUPABLE, {"attention": "flash2"}, **CUDA)


def test_a_named_kernel_for_another_device_is_refused(h100: None, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UserError, match=r"compute capability 7.5, it needs 8.0 or newer"):
        choose_kernels(GROUPABLE, {"attention": "flash2"}, **CUDA)


def test_a_named_cuda_kernel_on_a_machine_without_cuda_is_refused(h100: None, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="attention kernel flash2 cannot be used: torch finds no CUDA device here"):
        choose_kernels(GROUPABLE, {"attention": "flash2"}, **CUDA)


def test_probing_reads_real_metadata() -> None:
    """The fixtures above stand in for this: a distribution that is there has a version, another has none."""
    assert metadata.version("torch") == torch.__version__
    assert importlib.import_module("torch") is torch
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("no-such-kernel-library")


def test_chunked_cross_entropy_brings_its_form_by_token() -> None:
    chosen = choose_kernels(GROUPABLE, {"cross_entropy": "chunked"})
    assert chosen.cross_entropy.__name__ == "chunked_cross_entropy"
    assert chosen.token_cross_entropy.__name__ == "chunked_token_cross_entropy"
    assert chosen.describe()["cross_entropy"] == "chunked"


def test_with_compile_what_cannot_be_traced_stays_out_of_the_graph(caplog) -> None:
    """torch 2.13 refuses to trace grouped_mm in float32."""
    x, w_in, w_out = torch.ones(4, 16), torch.ones(2, 16, 16), torch.ones(2, 16, 8)
    ends = torch.tensor([3, 4], dtype=torch.int32)
    with caplog.at_level(logging.INFO):
        experts = choose_kernels(GROUPABLE, compile=True).experts
    assert "experts=grouped_mm stays outside of the compiled graph" in caplog.text
    compiled = torch.compile(lambda *inputs: experts(*inputs) + 1, backend="eager")
    torch.testing.assert_close(compiled(x, ends, w_in, w_out), Kernels().experts(x, ends, w_in, w_out) + 1)


@pytest.mark.usefixtures("no_library")
def test_in_float32_kernels_that_know_bfloat16_alone_give_way_to_others() -> None:
    names = {"attention": "flash2", "experts": "loop", "rms_norm": "auto", "cross_entropy": "chunked", "layers": "auto"}
    described = float32_kernels(GROUPABLE, names, device="cuda").describe()
    assert described["attention"] == "sdpa"
    assert described["experts"] == "loop"
    assert described["cross_entropy"] == "chunked"
