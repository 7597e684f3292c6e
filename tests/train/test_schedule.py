"""The learning rate at the edges of warm-up, trunk, decay and cosine."""

import math

import pytest
from small_runs import small_run

from upcycle.train.schedule import learning_rate

LR = 2e-2


def test_warm_up_reaches_the_maximum_at_its_last_step() -> None:
    run = small_run(schedule={"warmup_steps": 4}, end_step=10)
    assert [learning_rate(run, step) for step in range(6)] == pytest.approx([LR / 4, LR / 2, 3 * LR / 4, LR, LR, LR])


def test_no_warm_up_starts_at_the_maximum() -> None:
    assert learning_rate(small_run(schedule={"warmup_steps": 0}), 0) == LR


def test_a_trunk_stays_exactly_at_the_maximum() -> None:
    run = small_run(end_step=1000)
    assert {learning_rate(run, step) for step in range(4, 1000)} == {LR}


def test_a_decay_falls_evenly_and_its_last_update_uses_the_floor() -> None:
    run = small_run(role="decay", start_step=100, end_step=110, parent="p", schedule={"warmup_steps": 4, "floor": 0.1})
    rates = [learning_rate(run, step) for step in range(100, 110)]
    assert rates[-1] == pytest.approx(0.1 * LR, rel=1e-12)
    assert [a - b for a, b in zip([LR, *rates], rates, strict=False)] == pytest.approx([0.09 * LR] * 10)


def test_cosine_starts_at_the_maximum_after_warm_up_and_ends_at_the_floor() -> None:
    run = small_run(role="full", end_step=104, schedule={"kind": "cosine", "warmup_steps": 4, "floor": 0.2})
    assert learning_rate(run, 3) == LR
    assert learning_rate(run, 4) == pytest.approx((1 - 0.8 * math.sin(math.pi / 200) ** 2) * LR, rel=1e-12)
    assert learning_rate(run, 53) == pytest.approx(0.6 * LR)  # half way: midway between 1 and 0.2
    assert learning_rate(run, 103) == pytest.approx(0.2 * LR, rel=1e-12)


def test_constant_ends_at_the_maximum() -> None:
    run = small_run(role="full", schedule={"kind": "constant", "warmup_steps": 4}, end_step=50)
    assert learning_rate(run, 49) == LR
