"""Log-likelihoods of continuations do not depend on what they are computed beside, nor on what they share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_runs import MOE, VOCABULARY, small_run

from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer, init_weights
from upcycle.train import scoring
from upcycle.train.scoring import Continuation, score

CLOSE = 1e-5
SUMS = {"rel": 1e-6, "abs": 3e-5}
"""Of float32 logits up to 60: half a unit in the last place is 2e-6 of a nat, and a sum has up to 30 tokens."""
SHAPES = {
    "plain": {},
    "shared heads, biases": {"n_head": 4, "n_kv_head": 2, "qkv_bias": True},
    "QK-norm": {"n_head": 4, "n_kv_head": 2, "qk_norm": True},
}


def asked(count: int, longest: int) -> list[list[Continuation]]:
    """Questions of one request each."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        ids = rng.integers(0, VOCABULARY, int(rng.integers(2, longest)))
        cut = int(rng.integers(1, len(ids)))
        found.append([Continuation(ids[:cut].tolist(), ids[cut:].tolist())])
    return found


def with_choices(count: int) -> list[list[Continuation]]:
    """Questions of up to five answers that share a context, or, as in WinoGrande, contexts that share a beginning."""
    rng = np.random.default_rng(1)

    def ids(most: int) -> list[int]:
        return rng.integers(0, VOCABULARY, int(rng.integers(1, most))).tolist()

    found = []
    for number in range(count):
        context = ids(16)
        if number % 3:
            choices = [Continuation(context, ids(9)) for _ in range(int(rng.integers(2, 6)))]
            found.append([*choices, Continuation(context, choices[0].scored[:1]), choices[1]])
        else:
            end = ids(9)
            found.append([Continuation([*context, *ids(4)], end), Continuation([*context, *ids(4)], end)])
    return [*found, [Continuation([1], [2]), Continuation([3], [4, 5])]]  # nothing in common


def model_of(moe: dict | None, layers: str, **shape: object) -> tuple[Transformer, object]:
    small = small_run(moe=moe)
    run = small.model_copy(update={"model": small.model.model_copy(update=shape)})
    model = Transformer(run.model, run.moe, choose_kernels(run.model, {"layers": layers}))
    init_weights(model, seed=1)
    with torch.no_grad():
        model.head.weight.mul_(20)  # far from uniform
    return model.eval(), run


def alone(model: Transformer, request: Continuation) -> tuple[float, bool]:
    """Score and greediness of one request, by the model's logits of its tokens and no others."""
    ids = torch.tensor([[*request.context, *request.scored]])
    with torch.no_grad():
        logs = model.logits(ids[:, :-1]).double().log_softmax(-1)[0, -len(request.scored) :]
    targets = torch.tensor(request.scored)
    return logs.gather(-1, targets[:, None]).sum().item(), bool((logs.argmax(-1) == targets).all())


@pytest.mark.parametrize("moe", [None, MOE])
@pytest.mark.parametrize(
    ("layers", "shape"),
    [("composed", "plain"), ("native", "plain"), *(("composed", name) for name in list(SHAPES)[1:])],
)
def test_scores_are_those_of_each_request_alone_whatever_the_batch(moe: dict | None, layers: str, shape: str) -> None:
    model, run = model_of(moe, layers, **SHAPES[shape])
    questions = asked(16, 33) + with_choices(9)
    for (ids, _), *_ in questions[:5]:  # and what the model itself would say
        with torch.no_grad():
            said = model.logits(torch.tensor([ids]))[0, -1].argmax().item()
        questions.append([Continuation(ids, [said]), Continuation(ids, [said, 0])])
    expected = [[alone(model, request) for request in question] for question in questions]
    assert any(greedy for question in expected for _, greedy in question)
    for batch_tokens in (1, 50, 10_000):
        found = score(model, run, questions, batch_tokens)
        for scores, each in zip(found, expected, strict=True):
            assert [score.loglikelihood for score in scores] == pytest.approx([logs for logs, _ in each], **SUMS)
            assert [score.greedy for score in scores] == [greedy for _, greedy in each]
            assert not any(score.truncated for score in scores)


def test_a_context_is_computed_once_for_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, run = model_of(None, "composed")
    shapes = []
    logits_at = model.logits_at
    monkeypatch.setattr(model, "logits_at", lambda ids, *rest: (shapes.append(ids.shape), logits_at(ids, *rest))[1])
    context = list(range(20))
    score(
        model, run, [[Continuation(context, [1, 2, 3]), Continuation(context, [4, 5]), Continuation(context, [6])]], 99
    )
    assert shapes == [(1, 20 + 2 + 1 + 0)]  # an answer's last token is only a target
    shapes.clear()
    beginnings = [[1, 2, 3, 4, 10, 11], [1, 2, 3, 4, 12]]
    score(model, run, [[Continuation(ids, [7, 8]) for ids in beginnings]], 99)
    assert shapes == [(1, 4 + 3 + 2)]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    model, run = model_of(None, "composed")
    ids = [(7 * index) % VOCABULARY for index in range(60)]
    ((whole, short),) = score(model, run, [[Continuation(ids[:50], ids[50:]), Continuation(ids[:50], ids[50:52])]], 100)
    ((cut,), (short_cut,)) = score(
        model, run, [[Continuation(ids[27:50], ids[50:])], [Continuation(ids[19:50], ids[50:52])]], 100
    )
    assert whole.truncated
    assert short.truncated
    assert not cut.truncated
    assert whole.loglikelihood == pytest.approx(cut.loglikelihood, abs=CLOSE)
    assert short.loglikelihood == pytest.approx(short_cut.loglikelihood, abs=CLOSE)


def test_a_continuation_that_is_too_long_is_scored_from_where_it_has_a_context() -> None:
    model, run = model_of(None, "composed")
    ids = [(7 * index) % VOCABULARY for index in range(60)]
    ((found,),) = score(model, run, [[Continuation(ids[:2], ids[2:])]], 100)
    ((same,),) = score(model, run, [[Continuation(ids[27:28], ids[28:])]], 100)
    assert found.truncated
    assert found.loglikelihood == pytest.approx(same.loglikelihood, abs=CLOSE)
    assert math.isfinite(found.loglikelihood)


def test_without_branches_no_mask_is_made() -> None:
    none = torch.zeros(2, 5, dtype=torch.int64)
    assert scoring._tree(none, none, torch.device("cpu")) is None
