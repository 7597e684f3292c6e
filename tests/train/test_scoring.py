"""Log-likelihoods of continuations do not depend on what they are computed beside."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_runs import MOE, VOCABULARY, small_run

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.train.scoring import Continuation, score

CLOSE = 1e-5
SUMS = {"rel": 1e-6, "abs": CLOSE}
"""Of float32 logits, some of them large."""


def asked(count: int, longest: int) -> list[Continuation]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        ids = rng.integers(0, VOCABULARY, int(rng.integers(2, longest)))
        cut = int(rng.integers(1, len(ids)))
        found.append(Continuation(ids[:cut].tolist(), ids[cut:].tolist()))
    return found


def model_of(moe: dict | None, layers: str) -> tuple[Transformer, object]:
    run = small_run(moe=moe)
    model = Transformer(run.model, run.moe, choose_kernels(run.model, {"layers": layers}))
    init_weights(model, seed=1)
    with torch.no_grad():
        model.head.weight.mul_(20)  # far from uniform
    return model.eval(), run


@pytest.mark.parametrize("moe", [None, MOE])
@pytest.mark.parametrize("layers", ["composed", "native"])
def test_scores_are_those_of_each_row_alone_whatever_the_batch(moe: dict | None, layers: str) -> None:
    model, run = model_of(moe, layers)
    rows = asked(40, 33)
    with torch.no_grad():  # and what the model itself would say
        rows += [Continuation(ids, [model.logits(torch.tensor([ids]))[0, -1].argmax().item()]) for ids, _ in rows[:5]]
    alone = []
    for row in rows:
        ids = torch.tensor([[*row.context, *row.scored]])
        with torch.no_grad():
            logs = model.logits(ids[:, :-1]).double().log_softmax(-1)[0, -len(row.scored) :]
        targets = torch.tensor(row.scored)
        alone.append((logs.gather(-1, targets[:, None]).sum().item(), bool((logs.argmax(-1) == targets).all())))
    assert any(greedy for _, greedy in alone)
    for batch_tokens in (1, 50, 10_000):
        found = score(model, run, rows, batch_tokens)
        assert [each.loglikelihood for each in found] == pytest.approx([each for each, _ in alone], **SUMS)
        assert [each.greedy for each in found] == [each for _, each in alone]
        assert not any(each.truncated for each in found)


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    model, run = model_of(None, "composed")
    ids = [(7 * index) % VOCABULARY for index in range(60)]
    (whole,) = score(model, run, [Continuation(ids[:50], ids[50:])], 100)
    (cut,) = score(model, run, [Continuation(ids[27:50], ids[50:])], 100)
    assert whole.truncated
    assert not cut.truncated
    assert whole.loglikelihood == pytest.approx(cut.loglikelihood, abs=CLOSE)


def test_a_continuation_that_is_too_long_is_scored_from_where_it_has_a_context() -> None:
    model, run = model_of(None, "composed")
    ids = [(7 * index) % VOCABULARY for index in range(60)]
    (found,) = score(model, run, [Continuation(ids[:2], ids[2:])], 100)
    (same,) = score(model, run, [Continuation(ids[27:28], ids[28:])], 100)
    assert found.truncated
    assert found.loglikelihood == pytest.approx(same.loglikelihood, abs=CLOSE)
    assert math.isfinite(found.loglikelihood)
