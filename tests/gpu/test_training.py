"""Short bfloat16 trainings: the losses of the plain kernels; the same bits twice; two processes as one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import distributed_worker
import pytest
import small_runs
import torch
from on_devices import DEVICES, kernels, kernels_by_device, relative_error
from safetensors.torch import load_file

from upcycle.model.kernels import Kernels, choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.study.execution import Execution
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import OptimSpec
from upcycle.train import evaluate, start
from upcycle.train.optim import build_optimizer
from upcycle.train.processes.distributed import Group

pytestmark = pytest.mark.slow

MODEL = ModelSpec(n_layer=2, d_model=280, n_head=4, vocab_size=256, context=64, d_mlp=320)
MOE = MoESpec(n_expert=4, top_k=2, balance_group=4)
STEPS = 8
NATS = {"dense": 5e-3, "moe": 2e-2}
"""Largest difference of a loss on the way, in nats. With experts rounding may send a token elsewhere."""


def losses(chosen: Kernels, moe: MoESpec | None, where: str) -> list[float]:
    """Losses of eight updates on random sequences that repeat, so that there is something to learn."""
    model = Transformer(MODEL, moe, chosen).to(where)
    init_weights(model, seed=0)
    optimizer = build_optimizer(model, OptimSpec(lr=2e-3, batch=4))
    period = torch.randint(0, 256, (4, 13), generator=torch.Generator().manual_seed(0))
    ids = period.repeat(1, 5).to(where)
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(where, torch.bfloat16):
            output = model(ids[:, :-1], ids[:, 1:])
        (output.loss + 1e-3 * output.balance).backward()
        optimizer.step()
        found.append(output.loss.item())
    return found


OPS = ("attention", "experts", "rms_norm", "cross_entropy")
PLAIN = {"attention": "plain", "experts": "loop", "rms_norm": "torch", "cross_entropy": "plain"}


@pytest.fixture(scope="module")
def plain_losses() -> dict[tuple[str, str], list[float]]:
    """Losses with the plain kernels, by device and kind, computed when first asked for."""
    return {}


@pytest.mark.parametrize(
    ("where", "name", "op"),
    [
        pytest.param(*each.values, op, id=f"{op}-{each.id}", marks=each.marks)
        for op in OPS
        for each in kernels_by_device(op, without=(PLAIN[op],))
    ],
)
def test_a_training_has_the_losses_of_the_plain_kernels(where: str, name: str, op: str, plain_losses) -> None:
    chosen = kernels(MODEL, where, **PLAIN | {op: name})
    kind, moe = ("moe", MOE) if op == "experts" else ("dense", None)
    if (where, kind) not in plain_losses:
        plain_losses[where, kind] = losses(kernels(MODEL, where, **PLAIN), moe, where)
    reference = plain_losses[where, kind]
    found = losses(chosen, moe, where)
    assert reference[-1] < reference[0] - 0.5
    assert max(abs(one - other) for one, other in zip(found, reference, strict=True)) <= NATS[kind]


@pytest.fixture(scope="module")
def tokens_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_runs.write_tokens(tmp_path_factory.mktemp("tokens"))


@pytest.mark.parametrize("moe", [None, small_runs.MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("where", DEVICES)
def test_the_engine_trains_in_bfloat16_to_the_same_bits_twice(where: str, moe, tokens_dir, tmp_path) -> None:
    run = small_runs.small_run(moe=moe, dtype="bfloat16")
    execution = Execution(device=where, log_steps=1)
    found = []
    for attempt in ("one", "two"):
        folder = small_runs.train_in(tmp_path / attempt, tokens_dir, run, execution)
        found.append((small_runs.tensors_sha256(folder), small_runs.rows_of(folder)))
        rows = [row["loss"] for row in small_runs.rows_of(folder) if "loss" in row]
    assert found[0] == found[1]
    assert rows[-1] < rows[0] - 0.2


@pytest.mark.parametrize("where", DEVICES)
def test_a_bfloat16_run_asks_its_kernels_for_bfloat16_alone_and_the_receipt_others(where: str, tokens_dir, tmp_path):
    """From a dense parent by upcycling to the last evaluation; the receipt is measured in float32."""
    dense = small_runs.small_run(dtype="bfloat16")
    seen: list[torch.dtype] = []

    def choose(*arguments: Any, **keywords: Any) -> Kernels:
        chosen = choose_kernels(*arguments, **keywords)

        def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            seen.extend(x.dtype for x in (q, k, v))
            return chosen.attention(q, k, v)

        return replace(chosen, attention=attention)

    with pytest.MonkeyPatch.context() as patch:
        for module in (start, evaluate):
            patch.setattr(module, "choose_kernels", choose)
        small_runs.train_in(tmp_path, tokens_dir, dense, Execution(device=where))
        folder = small_runs.train_in(
            tmp_path, tokens_dir, small_runs.upcycled_run(dense, dtype="bfloat16"), Execution(device=where)
        )
    assert set(seen) == {torch.bfloat16}
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["logit_gap"] <= receipt["logit_gap_bound"]


@pytest.mark.parametrize("where", DEVICES)
def test_two_processes_have_the_gradients_of_one_in_bfloat16(where: str, tokens_dir: Path, tmp_path: Path) -> None:
    """Dense and MoE: FSDP2 with its mixed precision on two devices, against autocast on one."""
    if where == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA devices, here is {torch.cuda.device_count()}")

    def jobs(devices: int) -> list[dict[str, Any]]:
        return [
            {
                "do": "gradients",
                "run": small_runs.small_run(moe=moe, dtype="bfloat16").model_dump(mode="json"),
                "execution": {"device": where, "devices": devices, "layers": "composed"},
                "folder": str(tmp_path / f"{kind}-{devices}"),
                "tokens": str(tokens_dir),
            }
            for kind, moe in (("dense", None), ("moe", small_runs.MOE))
        ]

    (tmp_path / "jobs.json").write_text(json.dumps(jobs(2)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [distributed_worker.__file__, str(tmp_path / "jobs.json")]
    done = subprocess.run([*launch, *worker], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in jobs(1):
        distributed_worker.gradients(job, Group())
    for kind in ("dense", "moe"):
        one, two = (load_file(tmp_path / f"{kind}-{devices}" / "gradients.safetensors") for devices in (1, 2))
        assert one.keys() == two.keys()
        for name in one:
            assert relative_error(two[name], one[name]) <= 5e-3, (kind, name)  # a rounding is 0.002
