"""What each kernel can take, known without torch; a plan is refused before a job is queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from upcycle.errors import UserError
from upcycle.study.execution import Execution
from upcycle.study.kernel_fit import KERNELS, LIMITS, check_kernels, check_name, why_not
from upcycle.study.plan import build_plan
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.study import StudyConfig, load_study

ROOT = Path(__file__).parents[2]
PAPER_HEADS = {80: (320, 4), 60: (480, 8), 104: (832, 8), 70: (1120, 16), 94: (1504, 16)}


def model(d_model: int, n_head: int, **more: int) -> ModelSpec:
    return ModelSpec(n_layer=1, d_model=d_model, n_head=n_head, vocab_size=8, context=8, **more)


@pytest.fixture(scope="module")
def paper() -> StudyConfig:
    return load_study(ROOT / "config" / "paper.yaml")


def with_execution(study: StudyConfig, **settings: object) -> StudyConfig:
    return study.model_copy(update={"execution": Execution.model_validate(study.execution.model_dump() | settings)})


def test_the_limits_are_of_kernels_that_exist() -> None:
    assert set(LIMITS) <= {(op, name) for op, names in KERNELS.items() for name in names}


@pytest.mark.parametrize("name", KERNELS["attention"])
@pytest.mark.parametrize("head_dim", PAPER_HEADS)
def test_every_attention_takes_every_head_of_the_paper(name: str, head_dim: int) -> None:
    shape = model(*PAPER_HEADS[head_dim])
    assert shape.head_dim == head_dim
    assert why_not("attention", name, shape, device="cuda", dtype="bfloat16") == ""


@pytest.mark.parametrize(
    ("op", "name", "shape", "where", "reason"),
    [
        ("attention", "flash2", model(64, 1), ("cpu", "bfloat16"), "it needs device cuda, and the device is cpu"),
        ("attention", "te", model(64, 1), ("cuda", "float32"), "bfloat16 only, and the dtype is float32"),
        ("attention", "sdpa_flash", model(64, 1), ("cuda", "float32"), "bfloat16 only, and the dtype is float32"),
        ("attention", "flash2", model(264, 1), ("cuda", "bfloat16"), "head dimension 264 is above 256"),
        ("attention", "te", model(130, 1), ("cuda", "bfloat16"), "head dimension 130 is above 128"),
        ("experts", "grouped_mm", model(12, 1), ("cpu", "float32"), "d_model 12 not a multiple of 8"),
        ("experts", "grouped_mm", model(16, 1, d_mlp=20), ("cpu", "float32"), "d_mlp 20 not a multiple of 8"),
        ("experts", "te", model(16, 1), ("cuda", "float32"), "bfloat16 only"),
        ("rms_norm", "te", model(16, 1), ("cpu", "float32"), "it needs device cuda"),
    ],
)
def test_a_kernel_that_does_not_fit_says_why(op, name, shape, where, reason) -> None:
    device, dtype = where
    assert reason in why_not(op, name, shape, device=device, dtype=dtype)


def test_granularity_narrows_the_experts() -> None:
    where: dict[str, str] = {"device": "cuda", "dtype": "bfloat16"}
    moe = MoESpec(n_expert=8, top_k=2, granularity=2)
    assert why_not("experts", "grouped_mm", model(16, 1, d_mlp=32), moe=moe, **where) == ""
    reason = why_not("experts", "grouped_mm", model(16, 1, d_mlp=24), moe=moe, **where)
    assert reason == "d_mlp / granularity 12 not a multiple of 8"


def test_tensor_parallelism_narrows_the_mlp() -> None:
    shape = model(16, 1, d_mlp=24)
    assert why_not("experts", "grouped_mm", shape, device="cuda", dtype="bfloat16") == ""
    shared = why_not("experts", "grouped_mm", shape, device="cuda", dtype="bfloat16", tensor_parallel=2)
    assert shared == "d_mlp 12 (of each of 2 processes) not a multiple of 8"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown attention kernel `flash`; did you mean `flash"):
        check_name("attention", "flash")


@pytest.mark.parametrize("name", KERNELS["attention"])
def test_the_papers_plan_takes_every_attention_on_cuda(name: str, paper: StudyConfig, tmp_path: Path) -> None:
    check_kernels(with_execution(paper, attention=name).execution, build_plan(paper, tmp_path).runs.values())


def test_a_plan_is_refused_where_a_named_kernel_cannot_compute_a_run(paper: StudyConfig, tmp_path: Path) -> None:
    study = with_execution(paper, device="cpu", devices=1, attention="flash2")
    with pytest.raises(UserError, match=r"execution.attention: flash2 cannot compute run \S+: it needs device cuda"):
        build_plan(study, tmp_path)


def test_experts_are_asked_of_mixtures_only(paper: StudyConfig, tmp_path: Path) -> None:
    execution = with_execution(paper, device="cpu", devices=1, experts="te").execution
    runs = build_plan(paper, tmp_path).runs.values()
    check_kernels(execution, [run for run in runs if run.moe is None])
    with pytest.raises(UserError, match=r"execution.experts: te cannot compute run moe"):
        check_kernels(execution, [run for run in runs if run.lineage == "moe"])
