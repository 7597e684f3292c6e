"""Documents of all benchmarks as questions, the answers to them, and their means. No library of the harness."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from benchmark_documents import made_up_document
from made_up_text import write_texts
from small_runs import EXECUTION, small_run, train_in

from upcycle.data.tokens import TokenSet, tokenize_corpus
from upcycle.study.benchmark import BenchmarkConfig
from upcycle.train import questions
from upcycle.train.questions import Answer, BenchmarkQuestion, encode_request, question, subsample, summary
from upcycle.train.scoring import Score

PIECES = 300
SHAPE = {"n_layer": 1, "d_model": 16, "n_head": 2, "vocab_size": PIECES, "context": 96}
RUN = small_run(
    data={"dataset": "words", "vocab_size": PIECES, "repeat": True},
    optim={"lr": 2e-2, "batch": 4},
    end_step=4,
    model=SHAPE,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its tokens."""
    root = tmp_path_factory.mktemp("results")
    write_texts(root)
    tokens = root / "tokens" / RUN.data.tokens_id
    texts = {"files": [root / "words.jsonl"], "heldout_files": [root / "heldout.jsonl"]}
    tokenize_corpus("words", tokens, vocab_size=PIECES, **texts)
    train_in(root / "runs", tokens, RUN)
    return root


def test_prompts_are_those_of_the_harness_s_own_tasks() -> None:
    def first(task: str) -> tuple[str, str]:
        return question(task, made_up_document(task, 0)).requests[0]

    asks = "Is it wood?"
    assert first("arc_easy") == first("arc_challenge") == first("piqa") == (f"Question: {asks}\nAnswer:", " a stone")
    assert first("sciq") == (f"{asks}\nQuestion: {asks}\nAnswer:", " a stone")
    listed = "A. a stone\nB. the old house by the sea\nC. light\nD. three of them, é\n"
    assert first("logiqa") == (f"Passage: {asks}\nQuestion: {asks}\nChoices:\n{listed}Answer:", " a stone")
    assert first("lambada") == ("a stone and the old house by the sea are", " light")
    assert first("winogrande") == ("So a stone", " light")
    assert question("arc_easy", made_up_document("arc_easy", 6)).gold == 2
    assert question("arc_easy", made_up_document("arc_easy", 0)).sizes == [7, 24, 5, 17]  # bytes, é is two
    assert question("winogrande", made_up_document("winogrande", 0))[1:] == (1, None)
    assert question("lambada", made_up_document("lambada", 0))[1:] == (None, None)


def test_a_continuation_begins_where_the_context_alone_ends(results: Path) -> None:
    tokenizer = TokenSet(results / "tokens" / RUN.data.tokens_id).tokenizer()
    context, scored = encode_request(tokenizer, "the old house", " by the sea")
    assert tokenizer.decode([*context, *scored]) == "the old house by the sea"
    assert tokenizer.decode(context) == "the old house"
    assert encode_request(tokenizer, "the old house ", "by the sea") == (context, scored)  # the space is the answer's


def test_an_answer_is_right_by_its_sum_or_by_its_bytes() -> None:
    scores = [Score(-2.0, False, False), Score(-3.0, False, True)]
    asked = BenchmarkQuestion([("q", " a"), ("q", " long answer")], 1, [1, 11])
    found = questions._answer(asked, scores)
    assert (found.accuracy, found.accuracy_bytes) == (0, 1)
    assert found.bits_per_byte == pytest.approx(3 / math.log(2) / 12)
    assert questions._answer(asked._replace(gold=0), scores)[1:3] == (1, 0)
    assert questions._answer(BenchmarkQuestion([("q", " é")], None, None), [Score(-3.0, True, False)])[1:3] == (1, None)
    assert questions._answer(BenchmarkQuestion([("q", " é")], None, None), [Score(-0.1, False, False)]).accuracy == 0


def test_a_summary_is_means_over_documents_with_their_errors() -> None:
    cut, whole = Score(-1.0, False, True), Score(-1.0, False, False)
    found = summary([Answer([cut, whole], 1, 0, 1.0), Answer([cut, cut], 0, 0, 2.0), Answer([whole], 0, 1, 0.0)])
    assert (found["documents"], found["truncated"]) == (3, 3)
    assert found["accuracy"] == found["accuracy_bytes"] == pytest.approx(1 / 3)
    assert found["accuracy_se"] == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))
    assert found["bits_per_byte"] == pytest.approx(1)
    assert summary([Answer([whole], 0, None, 1.0)])["accuracy_bytes"] is None


def test_a_smaller_subsample_is_a_part_of_a_larger_one() -> None:
    few, many = subsample(1000, 20, 3), subsample(1000, 100, 3)
    assert len(few) == 20
    assert set(few) < set(many)
    assert many == sorted(many)
    assert subsample(1000, None, 3) == list(range(1000))
    assert subsample(1000, 20, 4) != few


def test_a_finished_run_is_scored_with_what_the_scores_are_of(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [made_up_document("piqa", number) for number in range(5)]
    monkeypatch.setattr(questions, "benchmark_documents", lambda task: documents)
    where = results / "runs" / RUN.id, results / "tokens" / RUN.data.tokens_id
    found = questions.benchmark_run(
        *where, EXECUTION, task="piqa", asked=BenchmarkConfig(tasks="piqa", sweep="dense", limit=2)
    )
    assert (found["id"], found["task"], found["split"]) == (RUN.id, "piqa", "validation")
    assert (found["documents"], found["of_documents"], found["truncated"]) == (2, 5, 0)
