"""Preparation: split by document, nothing shared between the parts, whatever the order of the sources."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from prepared import Prepared, prepared
from shared_windows import shared_windows

from upcycle.data.corpus import SHARED, is_heldout
from upcycle.data.datasets import Dataset, TextSource, find_dataset


def dataset(*sources: Sequence[str], fraction: float = 0.2) -> Dataset:
    """A data set of given documents, one source a list."""
    return Dataset(
        name="made",
        version="1",
        description="",
        layout="prose",
        heldout_fraction=fraction,
        sources=tuple(
            TextSource(name=f"s{number}", description="", licence="", parse=lambda texts=texts: iter(texts))
            for number, texts in enumerate(sources)
        ),
    )


def documents(count: int, seed: int, shared: int = 0) -> list[str]:
    """Documents of three lines of 20 random words; every line is one of `shared` templates in one case of four."""
    random_ = random.Random(seed)
    vocabulary = [f"{chr(97 + number % 26)}{number}" for number in range(500)]
    line = lambda: " ".join(random_.choices(vocabulary, k=20))  # noqa: E731
    templates = [line() for _ in range(shared)]

    def one() -> str:
        if templates and random_.random() < 0.25:  # a template with one word changed at its end
            return f"{random_.choice(templates)} {random_.choice(vocabulary)}"
        return line()

    return ["\n".join(one() for _ in range(3)) for _ in range(count)]


def texts(corpus: Prepared, part: str) -> list[str]:
    return [document.text.decode() for document in getattr(corpus, part)]


def test_no_thirteen_word_window_is_in_both_parts(tmp_path: Path) -> None:
    raw = documents(400, seed=1, shared=10)
    corpus = prepared(dataset(raw), tmp_path)
    heldout = set(texts(corpus, "heldout"))
    assert len(list(shared_windows(heldout, set(raw) - heldout))) > 100  # there was something to do
    assert not list(shared_windows(heldout, texts(corpus, "train")))
    near = corpus.removed[SHARED]
    assert near.passages > 50
    assert near.bytes > 50 * 40


def test_shared_text_stays_where_it_is_asked_for(tmp_path: Path) -> None:
    raw = documents(400, seed=1, shared=10)
    corpus = prepared(dataset(raw), tmp_path, decontaminate=False)
    assert texts(corpus, "heldout") == texts(prepared(dataset(raw), tmp_path), "heldout")
    assert len(list(shared_windows(texts(corpus, "heldout"), texts(corpus, "train")))) > 100
    assert SHARED not in corpus.removed


def test_held_out_text_stays_as_it_was_and_clean_training_text_too(tmp_path: Path) -> None:
    raw = documents(400, seed=2)
    corpus = prepared(dataset(raw), tmp_path)
    assert sorted(texts(corpus, "heldout") + texts(corpus, "train")) == sorted(raw)
    assert 40 < len(corpus.heldout) < 120
    assert all(is_heldout(document.digest, 0.2) for document in corpus.heldout)


def test_the_split_and_the_order_do_not_depend_on_the_order_of_the_text(tmp_path: Path) -> None:
    a, b = documents(100, seed=3), documents(100, seed=4)
    one = prepared(dataset(a, b), tmp_path)
    other = prepared(dataset(b[::-1], a[::-1]), tmp_path)
    for part in ("train", "heldout"):
        assert texts(one, part) == texts(other, part)


def test_sources_are_mixed(tmp_path: Path) -> None:
    first, second = ([f"{name}\n{text}" for text in documents(200, seed)] for name, seed in (("a", 5), ("z", 6)))
    corpus = prepared(dataset(first, second, fraction=0.1), tmp_path)
    half = [document.source for document in corpus.train[: len(corpus.train) // 2]]
    assert 0.4 < half.count(0) / len(half) < 0.6


def test_a_larger_fraction_only_adds_to_the_held_out_part(tmp_path: Path) -> None:
    raw = documents(200, seed=7)
    small, large = (set(texts(prepared(dataset(raw), tmp_path, f), "heldout")) for f in (0.1, 0.3))
    assert small < large


def test_repeated_and_empty_documents_are_counted_and_gone(tmp_path: Path) -> None:
    raw = documents(20, seed=8)
    corpus = prepared(dataset([*raw, raw[0], f"  {raw[1]}\r\n", " \n", "\x00", "\t"]), tmp_path)
    assert len(corpus.train) + len(corpus.heldout) == 20
    repeated, empty = corpus.removed["repeated document"], corpus.removed["empty document"]
    assert (repeated.documents, repeated.bytes) == (2, len(raw[0]) + len(raw[1]))
    assert empty.documents == 3


@pytest.mark.slow
def test_the_english_default_shares_no_window_across_its_split(tmp_path: Path) -> None:
    """The real default: enough of every source on both sides, and no 13-word window in both."""
    corpus = prepared(find_dataset("english"), tmp_path, cache=Path(".cache/downloads"))
    size = {part: sum(len(text.encode()) for text in texts(corpus, part)) for part in ("train", "heldout")}
    assert 12_000_000 < size["train"] < 13_000_000
    assert 140_000 < size["heldout"] < 240_000
    for part in ("train", "heldout"):
        for source in range(3):
            share = sum(len(d.text) for d in getattr(corpus, part) if d.source == source) / size[part]
            assert share > 0.15, (part, source)
    assert not list(shared_windows(texts(corpus, "train"), texts(corpus, "heldout")))
