"""Batches: a pure function of (tokens, slice, seed, step) that visits every sequence once an epoch."""

import tracemalloc

import numpy as np
import pytest

from upcycle.data.batches import batch, check_budget, heldout_batches, permute, sequences
from upcycle.data.shards import ShardedTokens
from upcycle.errors import UserError

CONTEXT = 8


def tokens_of(n: int) -> np.ndarray:
    """Tokens whose value is their place, so that a batch tells what it read."""
    return np.arange(n, dtype=np.uint32)


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The whole order of one epoch."""
    places = np.arange(n, dtype=np.uint64)
    return permute(places, n, seed=seed, epochs=np.full(n, epoch, np.uint64))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 1024, 1025, 65_537])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_an_epochs_order_is_a_permutation(n: int, seed: int) -> None:
    np.testing.assert_array_equal(np.sort(order(n, seed, epoch=3)), np.arange(n))


def test_epochs_and_seeds_have_different_orders() -> None:
    first = order(1000, seed=0, epoch=0)
    for other in (order(1000, seed=0, epoch=1), order(1000, seed=1, epoch=0)):
        assert (first == other).mean() < 0.02  # two unrelated orders of 1,000 agree in about one place


def test_an_order_has_no_trace_of_the_original_one() -> None:
    """Over 400 seeds each number comes first about equally often, and neighbours do not stay together."""
    n, seeds = 20, 400
    orders = np.stack([order(n, seed, epoch=0) for seed in range(seeds)]).astype(int)
    counts = np.bincount(orders[:, 0], minlength=n)
    chi2 = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
    assert chi2 < 43.8  # 99.9 % point of chi-squared with 19 degrees of freedom
    successors = (np.diff(orders, axis=1) == 1).mean()
    assert successors == pytest.approx(1 / n, abs=0.02)


def test_an_epochs_steps_read_every_sequence_once() -> None:
    tokens = tokens_of(CONTEXT * 24 + 5)
    seen = np.concatenate([batch(tokens, context=CONTEXT, batch=4, step=step, seed=7) for step in range(6)])
    assert seen.shape == (24, CONTEXT + 1)
    np.testing.assert_array_equal(np.sort(seen[:, :-1].ravel()), np.arange(CONTEXT * 24))


def test_targets_are_the_inputs_moved_by_one() -> None:
    rows = batch(tokens_of(1000), context=CONTEXT, batch=3, step=2, seed=1)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(CONTEXT + 1))


def test_a_batch_does_not_depend_on_the_order_of_calls() -> None:
    tokens = tokens_of(5000)
    forward = [batch(tokens, context=CONTEXT, batch=4, step=step, seed=0) for step in range(20)]
    backward = [batch(tokens, context=CONTEXT, batch=4, step=step, seed=0) for step in reversed(range(20))]
    np.testing.assert_array_equal(forward, backward[::-1])


def test_a_batch_may_span_two_epochs() -> None:
    """With 10 sequences and batches of 4, 5 steps are exactly two epochs."""
    tokens = tokens_of(CONTEXT * 10 + 1)
    rows = np.concatenate([batch(tokens, context=CONTEXT, batch=4, step=s, seed=0, repeat=True) for s in range(5)])
    for epoch in (rows[:10], rows[10:]):
        np.testing.assert_array_equal(np.sort(epoch[:, 0]), CONTEXT * np.arange(10))
    assert (rows[:10] != rows[10:]).any()


def test_slices_are_disjoint_even_in_their_targets() -> None:
    tokens = tokens_of(1001)
    seen = []
    for start, stop in ((0.0, 0.3), (0.3, 0.5), (0.5, 1.0)):
        n = sequences(len(tokens), context=CONTEXT, start=start, stop=stop)[1]
        rows = batch(tokens, context=CONTEXT, batch=n, step=0, seed=0, start=start, stop=stop)
        assert len(np.unique(rows[:, 0])) == n
        seen.append(set(rows.ravel().tolist()))
    assert sum(len(part) for part in seen) == len(set.union(*seen))


def test_over_budget_names_both_numbers_unless_repeat() -> None:
    tokens = tokens_of(CONTEXT * 10 + 1)
    check_budget(len(tokens), wanted=80, context=CONTEXT)
    check_budget(len(tokens), wanted=81, context=CONTEXT, repeat=True)
    with pytest.raises(UserError, match=r"81 tokens wanted.* holds 80 .*data.repeat"):
        check_budget(len(tokens), wanted=81, context=CONTEXT)
    with pytest.raises(UserError, match=r"96 tokens wanted.* holds 80"):
        batch(tokens, context=CONTEXT, batch=4, step=2, seed=0)


def test_a_slice_without_a_whole_sequence_is_refused() -> None:
    with pytest.raises(UserError, match=r"holds 8 tokens: fewer than one sequence of 8 \+ 1"):
        sequences(80, context=CONTEXT, start=0.1, stop=0.2)


def test_any_step_of_a_huge_set_is_found_at_once() -> None:
    """A late step of 300 billion tokens does not write the order out, which would take 2 GB."""

    class Huge(ShardedTokens):
        def __init__(self) -> None:
            super().__init__([], np.dtype("<u4"))

        def __len__(self) -> int:
            return 300_000_000_000

        def __getitem__(self, index: slice) -> np.ndarray:
            return np.arange(index.start, index.stop)

    tracemalloc.start()
    rows = batch(Huge(), context=1024, batch=512, step=571_000, seed=0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50e6  # the batch itself takes 4 MB
    assert rows.shape == (512, 1025)
    assert len(np.unique(rows[:, 0])) == 512
    assert rows.max() - rows.min() > 250_000_000_000


def test_heldout_sequences_are_all_in_order() -> None:
    rows = heldout_batches(tokens_of(CONTEXT * 5 + 4), CONTEXT)
    np.testing.assert_array_equal(rows, CONTEXT * np.arange(5)[:, None] + np.arange(CONTEXT + 1))
    assert rows.flags.owndata
