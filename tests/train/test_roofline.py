"""`benchmarks/roofline.py` at a small shape: what it traces is what the formulas and the engine say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from small_runs import MOE, small_run

from upcycle.study.counting import count_parameters, flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec

ROOT = Path(__file__).parents[2]
SHAPE = {"n_layer": 3, "d_model": 64, "n_head": 2, "vocab_size": 512, "context": 128}


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline", ROOT / "benchmarks" / "roofline.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = module
    spec.loader.exec_module(module)
    return module


def run_of(moe: dict[str, int] | None) -> RunSpec:
    data = {"dataset": "walk", "vocab_size": 512}
    return small_run(model=SHAPE, data=data, moe=moe, dtype="bfloat16", optim={"lr": 1e-3, "batch": 32})


def execution_of(**settings: object) -> Execution:
    chosen = {"device": "cuda", "devices": 4, "micro_batch": 4, "cross_entropy": "chunked"} | settings
    return Execution.model_validate(chosen)


@pytest.mark.slow
@pytest.mark.parametrize("moe", [None, MOE])
@pytest.mark.parametrize("exchange", ["micro_batch", "update"])
def test_products_and_collectives_of_an_update_are_counted(
    moe: dict[str, int] | None, exchange: str, roofline: ModuleType
) -> None:
    """FLOPs of a process's share by the model's formula, but for attention's backward pass, of 5 products and not 4;
    whole matrices in bfloat16 and gradients in float32, as often as the setting says."""
    run = run_of(moe)
    cost, passes = roofline.update_cost(run, execution_of(exchange=exchange))
    assert passes == 2
    tokens = run.tokens_per_step / 4
    attention = 2 * SHAPE["context"] * SHAPE["d_model"] * SHAPE["n_layer"]
    assert cost.flops == pytest.approx(tokens * (flops_per_token(run.model, run.moe) + attention / 2), rel=1e-6)

    counts = count_parameters(run.model, run.moe)
    matrices, vocabulary = counts.attention + counts.mlp, counts.embedding + counts.head
    often = 2 if exchange == "micro_batch" else 1
    gathered = often * (often * 2 * matrices + 4 * vocabulary)
    summed = often * 4 * (matrices + vocabulary)
    assert cost.exchanged == pytest.approx(gathered + summed, rel=0.02), "beside two messages of kilobytes"
    assert cost.collectives == often * (often * 3 + 1) + often * 4 + 2


@pytest.mark.slow
def test_what_a_compiler_fuses_moves_less_and_computes_the_same(roofline: ModuleType) -> None:
    eager, _ = roofline.update_cost(run_of(MOE), execution_of())
    compiled, _ = roofline.update_cost(run_of(MOE), execution_of(compile=True))
    assert compiled.flops == eager.flops
    assert compiled.exchanged == eager.exchanged
    assert compiled.bytes < 0.8 * eager.bytes
    assert compiled.kernels < 0.7 * eager.kernels


def test_a_fused_run_reads_what_comes_in_and_writes_what_is_used_later(roofline: ModuleType) -> None:
    """x -> a -> b, product of b; then c of a. Fused: x in, a and b out."""
    op = roofline.Operation
    operations = [
        op("mul", {1: 8.0}, {2: 8.0}, region="block"),
        op("add", {2: 8.0}, {3: 4.0}, region="block"),
        op("mm", {3: 4.0, 4: 2.0}, {5: 2.0}, flops=16.0, region="block"),
        op("mul", {2: 8.0}, {6: 8.0}, region="block"),
        op("add", {6: 8.0}, {7: 8.0}, region="block"),
    ]
    first, product, last = roofline.fused_runs(operations, ["block"])
    assert (first.reads, first.writes) == ({1: 8.0}, {2: 8.0, 3: 4.0})
    assert product is operations[2]
    assert (last.reads, last.writes) == ({2: 8.0}, {7: 8.0})
    assert list(roofline.fused_runs(operations, [])) == operations
