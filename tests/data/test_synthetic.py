"""The made-up language has the entropy that it states, in tokens that are its letters."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from upcycle.data.datasets import find_dataset
from upcycle.data.synthetic import ALPHABET, true_nats, zipf_markov, zipf_markov_entropy
from upcycle.data.tokenizer import train_bpe


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(zipf_markov(3_000))


def test_the_true_model_reaches_the_exact_entropy_and_an_n_gram_comes_close(texts):
    exact = zipf_markov_entropy()
    assert exact == pytest.approx(2.1589, abs=1e-4)
    assert true_nats(texts[:1_500]) == pytest.approx(exact, abs=0.01)  # 0.75 M tokens: 5 standard errors
    assert _n_gram(texts, 2) == pytest.approx(exact, abs=0.03)
    assert _n_gram(texts, 2) > true_nats(texts[2_700:])
    assert _n_gram(texts, 1) > exact + 0.3  # both letters matter
    assert _n_gram(texts, 0) > exact + 0.5


def _n_gram(texts: list[str], order: int) -> float:
    """Nats per token of a smoothed n-gram model of the first nine tenths, on the rest."""
    counts: Counter[str] = Counter()
    pairs = [("^" * order + text + "$") for text in texts]
    for text in pairs[:2_700]:
        counts.update(text[at : at + order + 1] for at in range(len(text) - order))
    context: Counter[str] = Counter()
    for gram, count in counts.items():
        context[gram[:-1]] += count
    grams = [text[at : at + order + 1] for text in pairs[2_700:] for at in range(len(text) - order)]
    chances = np.array([(counts[gram] + 0.05) / (context[gram[:-1]] + 0.05 * 33) for gram in grams])
    return float(-np.log(chances).mean())


def test_contexts_occur_with_frequencies_over_orders_of_magnitude(texts):
    seen = Counter(text[at : at + 2] for text in texts[:1_000] for at in range(len(text) - 1))
    assert len(seen) > 1_000
    ordered = sorted(seen.values(), reverse=True)
    assert ordered[0] > 10 * ordered[50] > 100 * ordered[600]


def test_a_token_is_a_letter_and_the_manifest_has_the_entropy(texts):
    tokenizer = train_bpe(texts[:20], 257)
    ids = tokenizer.encode(texts[0]).ids
    assert len(ids) == len(texts[0])
    assert len(set(tokenizer.encode(ALPHABET).ids)) == 32
    dataset = find_dataset("zipf-markov")
    [source] = dataset.sources
    assert source.record([])["entropy"] == zipf_markov_entropy()
    assert list(islice(source.parse(), 3)) == list(islice(zipf_markov(), 3))
    assert list(zipf_markov(5, seed=1)) != texts[:5]
