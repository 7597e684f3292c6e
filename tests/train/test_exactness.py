"""The exactness promises that need one process: resume, chain of segments, E = 1, copy, accumulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from preempted import preempt_at
from safetensors.torch import load_file
from small_runs import EXECUTION, MOE, rows_of, small_run, tensors_sha256, train_in, upcycled_run

from upcycle.study.spec import RunSpec
from upcycle.train.evaluate import evaluate_run
from upcycle.train.record import Clock
from upcycle.train.start import prepare_trainee
from upcycle.train.step import accumulate
from upcycle.train.trainee import run_batch

N_STEPS = 24
BEYOND = {"gate": "sigmoid_topk_renormalised", "bias_rate": 1e-2, "z_coef": 1e-3}
"""Routing beyond the paper: experts have biases, which a state must hold."""


@pytest.fixture(scope="module")
def family(tokens_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, RunSpec]]:
    """One undisturbed run of each kind, trained."""
    root = tmp_path_factory.mktemp("family")
    trunk = small_run(end_step=N_STEPS)
    decay = small_run(role="decay", start_step=N_STEPS, end_step=2 * N_STEPS, parent=trunk.id)
    runs = {
        "trunk": trunk,
        "decay": decay,
        "moe": small_run(end_step=N_STEPS, moe=MOE | BEYOND),
        "upcycled": upcycled_run(decay, end_step=N_STEPS),
        "permuted": upcycled_run(decay, end_step=N_STEPS, origin="upcycle:permuted", upcycling={"optimizer": "copied"}),
        "cosine": small_run(role="full", schedule={"kind": "cosine", "warmup_steps": 4}, end_step=N_STEPS),
    }
    for run in runs.values():
        train_in(root, tokens_dir, run)
    return root, runs


@pytest.mark.parametrize("stop_after", [1, 3, 8, 16, 23])
@pytest.mark.parametrize("kind", ["trunk", "decay", "moe", "permuted", "cosine"])
def test_stopped_and_resumed_equals_undisturbed(
    kind: str, stop_after: int, family: tuple[Path, dict[str, RunSpec]], tokens_dir: Path, tmp_path: Path
) -> None:
    """N steps = k steps, SIGTERM, the same command again: the bits of weights and optimizer state, and every row."""
    undisturbed, runs = family
    run = runs[kind]
    for name in filter(None, [run.parent, run.copies_moments and runs["trunk"].id]):
        (tmp_path / name).symlink_to(undisturbed / name)
    preempt_at(run.start_step + stop_after, tmp_path, tokens_dir, run)
    assert not (tmp_path / run.id / "metrics.json").exists()
    train_in(tmp_path, tokens_dir, run)
    assert tensors_sha256(tmp_path / run.id) == tensors_sha256(undisturbed / run.id)
    assert rows_of(tmp_path / run.id) == rows_of(undisturbed / run.id)
    assert json.loads((tmp_path / run.id / "metrics.json").read_text())["resumed"] == 1


@pytest.mark.parametrize("kind", ["trunk", "moe", "permuted"])
def test_a_chain_of_segments_equals_one_run(
    kind: str, family: tuple[Path, dict[str, RunSpec]], tokens_dir: Path, tmp_path: Path
) -> None:
    """Three segments, each starting from the finished one before, give the bits of one run, and its rows."""
    undisturbed, runs = family
    whole = runs[kind]
    for path in undisturbed.iterdir():
        if path.name != whole.id:
            (tmp_path / path.name).symlink_to(path)
    rows, parent, start = [], whole.parent, 0
    for end in (5, 16, N_STEPS):
        segment = whole.model_copy(update={"start_step": start, "end_step": end, "parent": parent})
        rows += rows_of(train_in(tmp_path, tokens_dir, segment))
        parent, start = segment.id, end
    assert segment.id == whole.id, "a trunk point is the same run whatever chain led to it"
    assert tensors_sha256(tmp_path / whole.id) == tensors_sha256(undisturbed / whole.id)
    assert [row for row in rows if "loss" in row] == [row for row in rows_of(undisturbed / whole.id) if "loss" in row]


def test_a_branch_takes_the_trunks_biases_over_and_evaluation_leaves_them(
    family: tuple[Path, dict[str, RunSpec]], tokens_dir: Path, tmp_path: Path
) -> None:
    """A decay of one step moves each bias of its trunk by the rate or not at all; evaluating a run moves none."""
    undisturbed, runs = family
    trunk = runs["moe"]
    (tmp_path / trunk.id).symlink_to(undisturbed / trunk.id)
    decay = trunk.model_copy(
        update={"role": "decay", "start_step": N_STEPS, "end_step": N_STEPS + 1, "parent": trunk.id}
    )
    train_in(tmp_path, tokens_dir, decay)
    before, after = (load_file(tmp_path / run.id / "weights.safetensors") for run in (trunk, decay))
    for name in ("blocks.0.moe.router.bias", "blocks.1.moe.router.bias"):
        assert before[name].abs().max() > BEYOND["bias_rate"]
        steps = (after[name] - before[name]) / BEYOND["bias_rate"]
        assert torch.equal(steps.round().abs().clamp(max=1), steps.round().abs())
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        assert steps.round().any()
    found = evaluate_run(tmp_path / decay.id, tokens_dir, EXECUTION)
    assert found["loss"] == json.loads((tmp_path / decay.id / "metrics.json").read_text())["loss"]


@pytest.mark.parametrize("experts", ["loop", "grouped_mm"])
def test_one_expert_equals_dense_bit_for_bit(experts: str, tokens_dir: Path, tmp_path: Path) -> None:
    """A MoE of one expert and the dense model of one seed: equal losses, norms and shared weights over 20 steps."""
    execution = EXECUTION.model_copy(update={"experts": experts})
    dense = train_in(tmp_path, tokens_dir, small_run(end_step=20), execution)
    one = {"n_expert": 1, "top_k": 1, "gate": "topk_softmax", "balance_group": 2}
    moe = train_in(tmp_path, tokens_dir, small_run(end_step=20, moe=one), execution)
    compared = ("step", "loss", "grad_norm", "heldout")
    dense_rows, moe_rows = ([{key: row.get(key) for key in compared} for row in rows_of(path)] for path in (dense, moe))
    assert moe_rows == dense_rows
    weights, moe_weights = load_file(dense / "weights.safetensors"), load_file(moe / "weights.safetensors")
    for name, weight in weights.items():
        twin = moe_weights.pop(name.replace(".mlp.", ".moe."))
        assert torch.equal(twin.view_as(weight), weight), name
    assert {name.rsplit(".", 2)[1] for name in moe_weights} == {"router"}


def test_first_loss_of_a_copy_is_the_dense_loss(family: tuple[Path, dict[str, RunSpec]], tokens_dir: Path) -> None:
    """Before its first update an upcycled copy has its parent's held-out loss (1e-5), and its receipt says why."""
    root, runs = family
    parent = [row for row in rows_of(root / runs["decay"].id) if "heldout" in row][-1]
    copied = next(row for row in rows_of(root / runs["upcycled"].id) if "heldout" in row)
    assert copied["step"] == 0
    assert copied["heldout"] == pytest.approx(parent["heldout"], abs=1e-5)
    assert (root / runs["upcycled"].id / "receipt.json").exists()


def test_copied_moments_are_those_of_the_parents_trunk_moved_as_its_weights_are(
    family: tuple[Path, dict[str, RunSpec]], tokens_dir: Path, tmp_path: Path
) -> None:
    """Divided by Adam's bias after the trunk's 24 updates; the routers' are zero and count from the first update."""
    root, runs = family
    run = runs["permuted"]
    trainee = prepare_trainee(
        run,
        run_dir=tmp_path,
        tokens_dir=tokens_dir,
        parent_dir=root / str(run.parent),
        execution=EXECUTION,
        clock=Clock(),
    )
    trunk, weights = load_file(root / runs["trunk"].id / "state.safetensors"), dict(trainee.model.named_parameters())
    dense = load_file(root / runs["decay"].id / "weights.safetensors")
    for moment, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.95)):
        for name, weight in weights.items():
            state = trainee.optimizer.state[weight]
            if name.endswith("router.weight"):
                assert not state[moment].any()
                assert state["step"] == 0
                continue
            if ".moe." not in name:
                assert torch.equal(state[moment], trunk[f"{moment}.{name}"] / (1 - beta**N_STEPS))
                continue
            own = name.replace(".moe.", ".mlp.")
            expected = trunk[f"{moment}.{own}"] / (1 - beta**N_STEPS)
            units = -1 if own.endswith("w_out") else -2
            for moved, found in zip(weight, state[moment], strict=True):
                rows = dense[own].transpose(units, 0).tolist()
                order = [rows.index(unit) for unit in moved.transpose(units, 0).tolist()]
                assert order != sorted(order)
                assert torch.equal(found, expected.index_select(units, torch.tensor(order)))


@pytest.mark.parametrize("moe", [None, MOE])
def test_accumulation_changes_rounding_only(moe: dict | None, tokens_dir: Path, tmp_path: Path) -> None:
    """1 x 8, 4 x 2 and 6 + 2 sequences give the same gradients to 1e-6 of each one's norm (8 units of float32 rounding)
    and the same loss and balance to 1e-6: the balance loss is taken over groups, not over micro-batches."""
    run = small_run(optim={"lr": 2e-2, "batch": 8}, moe=moe)
    found = []
    for micro_batch in (8, 2, 6):
        execution = EXECUTION.model_copy(update={"micro_batch": micro_batch})
        (tmp_path / str(micro_batch)).mkdir()
        trainee = prepare_trainee(
            run,
            run_dir=tmp_path / str(micro_batch),
            tokens_dir=tokens_dir,
            parent_dir=None,
            execution=execution,
            clock=Clock(),
        )
        sums = accumulate(trainee, run_batch(run, trainee.tokens, 0))
        found.append(
            (
                sums.loss.item(),
                sums.balance.item(),
                {name: weight.grad for name, weight in trainee.model.named_parameters()},
            )
        )
    loss, balance, gradients = found[0]
    for micro_loss, micro_balance, micro_gradients in found[1:]:
        assert micro_loss == pytest.approx(loss, rel=1e-6)
        assert micro_balance == pytest.approx(balance, rel=1e-6)
        for name, gradient in gradients.items():
            difference = torch.linalg.vector_norm(micro_gradients[name] - gradient)
            assert difference <= 1e-6 * torch.linalg.vector_norm(gradient), name


def test_bfloat16_is_another_run_with_float32_master_weights(tokens_dir: Path, tmp_path: Path) -> None:
    """dtype is identity; autocast keeps weights and moments in float32, and the loss within 2 % of float32's."""
    exact, rough = small_run(), small_run(dtype="bfloat16")
    assert exact.id != rough.id
    folders = [train_in(tmp_path, tokens_dir, run) for run in (exact, rough)]
    for name in ("weights.safetensors", "state.safetensors"):
        assert {tensor.dtype for tensor in load_file(folders[1] / name).values()} == {torch.float32}
    losses = [rows_of(folder)[-2]["loss"] for folder in folders]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
