"""Held-out losses: over the whole set, with their error, the same from the loop and from `evaluate_run`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import EXECUTION, MOE, rows_of, small_run, tensors_sha256, train_in, write_tokens
from torch.nn.functional import cross_entropy

from upcycle.data.provenance import manifest_bytes, read_token_manifest
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError
from upcycle.manifest import read_manifest
from upcycle.model.transformer import Transformer
from upcycle.train.evaluate import evaluate_run, heldout, spread_sequences
from upcycle.train.finish import evaluate_later
from upcycle.train.rows import is_log_spaced


@pytest.mark.parametrize("moe", [None, MOE])
def test_loss_is_the_mean_over_all_sequences_with_its_standard_error(
    moe: dict | None, tokens_dir: Path, tmp_path: Path
) -> None:
    """metrics.json against a float64 evaluation, sequence by sequence, of the saved weights."""
    run = small_run(moe=moe)
    run_dir = train_in(tmp_path, tokens_dir, run)
    model = Transformer(run.model, run.moe).eval()
    model.load_state_dict(load_file(run_dir / "weights.safetensors"))
    losses = []
    for sequence in torch.from_numpy(heldout(TokenSet(tokens_dir), run)):
        with torch.no_grad():
            logits_SV = model(sequence[None, :-1]).logits_BSV[0].double()
        losses.append(cross_entropy(logits_SV, sequence[1:]).item())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["heldout_tokens"] == len(losses) * 32 == 62 * 32
    assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert metrics["loss_se"] == pytest.approx(np.std(losses, ddof=1) / np.sqrt(len(losses)), rel=1e-5)


def test_evaluate_gives_the_loop_s_own_loss_and_bounds_its_work(tokens_dir: Path, tmp_path: Path) -> None:
    run_dir = train_in(tmp_path, tokens_dir, small_run())
    metrics = json.loads((run_dir / "metrics.json").read_text())
    found = evaluate_run(run_dir, tokens_dir, EXECUTION)
    assert {key: found[key] for key in ("id", "loss", "loss_se", "tokens_fingerprint", "heldout_tokens")} == {
        key: metrics[key] for key in ("id", "loss", "loss_se", "tokens_fingerprint", "heldout_tokens")
    }
    assert evaluate_run(run_dir, tokens_dir, EXECUTION, max_tokens=10 * 32)["heldout_tokens"] == 10 * 32


def test_a_run_that_no_product_reads_is_evaluated_later(tokens_dir: Path, tmp_path: Path) -> None:
    """Its loss is null until then, its curve and weights are the evaluated run's; what is added is that run's loss."""
    run, other = small_run(), tmp_path / "other"
    evaluated = train_in(other, tokens_dir, run)
    folder = train_in(tmp_path, tokens_dir, run, evaluate=False)
    assert rows_of(folder) == rows_of(evaluated)
    assert tensors_sha256(folder) == tensors_sha256(evaluated)
    keys = ("loss", "loss_se", "heldout_tokens", "curve_heldout", "train_loss_last")
    before, wanted = (json.loads((path / "metrics.json").read_text()) for path in (folder, evaluated))
    assert {key: before[key] for key in keys} == {key: wanted[key] for key in keys} | dict.fromkeys(keys[:3])
    train_in(tmp_path, tokens_dir, run, evaluate=False)  # verified, not trained or evaluated again
    assert json.loads((folder / "metrics.json").read_text()) == before

    (tmp_path / "tokens").mkdir()
    with pytest.raises(UserError, match="tokens changed"):
        evaluate_later(folder, write_tokens(tmp_path / "tokens", seed=5), EXECUTION)
    found = evaluate_later(folder, tokens_dir, EXECUTION)
    assert {key: found[key] for key in keys} == {key: wanted[key] for key in keys}
    assert found["eval_seconds"] > before["eval_seconds"]
    assert found == json.loads((folder / "metrics.json").read_text()) == read_manifest(folder)["metrics"]
    assert evaluate_later(folder, tokens_dir, EXECUTION) == found, "done before"
    train_in(tmp_path, tokens_dir, run, evaluate=False)
    assert json.loads((folder / "metrics.json").read_text()) == found
    train_in(tmp_path, tokens_dir, small_run(start_step=12, end_step=14, role="decay", parent=run.id))


def test_a_set_of_another_tokenizer_is_refused_naming_both(tokens_dir: Path, tmp_path: Path) -> None:
    run_dir = train_in(tmp_path, tokens_dir, small_run())
    (tmp_path / "other").mkdir()
    other = write_tokens(tmp_path / "other", seed=2)
    manifest = read_token_manifest(other)
    expected, foreign = manifest["tokenizer"]["sha256"], hashlib.sha256(b"another").hexdigest()
    manifest["tokenizer"]["sha256"] = foreign
    (other / "manifest.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(UserError, match=f"{foreign}.*{expected}"):
        evaluate_run(run_dir, other, EXECUTION)


def test_a_held_out_part_of_one_sequence_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    short = write_tokens(tmp_path / "short", n_heldout=40)
    with pytest.raises(UserError, match="holds 1 sequences of 32 tokens"):
        train_in(tmp_path, short, small_run())


def test_held_out_rows_are_at_log_spaced_steps_of_any_segment(tokens_dir: Path, tmp_path: Path) -> None:
    """2^(k/2) from 16 up, step 0 of a start, and the end; so the chain's curve is the whole run's."""
    assert [step for step in range(1, 300) if is_log_spaced(step)] == [16, 23, 32, 45, 64, 91, 128, 181, 256]
    first = small_run(end_step=20)
    second = small_run(start_step=20, end_step=40, parent=first.id)
    steps = [
        [row["step"] for row in rows_of(train_in(tmp_path, tokens_dir, run)) if "heldout" in row]
        for run in (first, second)
    ]
    assert steps == [[0, 16, 20], [23, 32, 40]]


def test_the_subset_is_spread_over_the_whole_set() -> None:
    assert spread_sequences(100, 4).tolist() == [0, 25, 50, 75]
    assert spread_sequences(3, 10).tolist() == [0, 1, 2]
    assert spread_sequences(10, 0).tolist() == [0, 5], "a standard error needs two"


def test_metrics_rows_of_a_moe_say_where_tokens_went(tokens_dir: Path, tmp_path: Path) -> None:
    """Load by layer and expert sums to one, dead experts are those without load, entropy is at most log E."""
    run = small_run(moe=MOE)
    for row in rows_of(train_in(tmp_path, tokens_dir, run)):
        if "loss" in row:
            assert np.sum(row["load"], axis=1) == pytest.approx([1, 1], abs=1e-5)
            assert row["dead"] == sum(share == 0 for layer in row["load"] for share in layer)
            assert 0 <= max(row["entropy"]) <= np.log(4) + 1e-6
            assert row["aux"] == pytest.approx(1e-3 * row["balance"])
            assert row["balance"] >= 1.9  # 1 a layer at perfect balance, less only by sampling
