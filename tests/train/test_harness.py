"""The LM Evaluation Harness on made-up documents of all tasks: its answers of an export are ours of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmark_documents import made_up_document
from made_up_text import write_texts
from small_runs import MOE, small_run, train_in, upcycled_run

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.data.tokens import TokenSet, tokenize_corpus
from upcycle.manifest import WEIGHTS
from upcycle.model.transformer import Transformer
from upcycle.train.questions import answers, question
from upcycle.train.states.checkpoint import read_tensors

pytest.importorskip("lm_eval", reason="the LM Evaluation Harness (`pip install upcycle[benchmarks]`) is not installed")
pytest.importorskip("transformers")
from upcycle.train import harness
from upcycle.train.export import export_run

pytestmark = pytest.mark.slow
PIECES = 300
SHAPE = {"n_layer": 2, "d_model": 24, "n_head": 4, "n_kv_head": 2, "d_mlp": 40, "vocab_size": PIECES, "context": 96}
BRIEF = {
    "data": {"dataset": "words", "vocab_size": PIECES, "repeat": True},
    "optim": {"lr": 2e-2, "batch": 4},
    "end_step": 12,
}
RUN = small_run(**BRIEF, model=SHAPE)
MIXTURE = upcycled_run(RUN, **BRIEF, model=SHAPE, moe=MOE)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, their tokens, and `exported` of each run."""
    root = tmp_path_factory.mktemp("results")
    write_texts(root)
    tokens = root / "tokens" / RUN.data.tokens_id
    texts = {"files": [root / "words.jsonl"], "heldout_files": [root / "heldout.jsonl"]}
    tokenize_corpus("words", tokens, vocab_size=PIECES, **texts)
    for run in (RUN, MIXTURE):
        export_run(train_in(root / "runs", tokens, run), tokens, root / "exported" / run.id)
    return root


@pytest.mark.parametrize("run", [RUN, MIXTURE], ids=["dense", "mixture"])
def test_requests_scores_and_metrics_are_those_of_the_harness(results: Path, run: Any) -> None:
    model = Transformer(run.model, run.moe)
    model.load_state_dict(read_tensors(results / "runs" / run.id, WEIGHTS))
    tokenizer = TokenSet(results / "tokens" / run.data.tokens_id).tokenizer()
    exported = harness.exported_model(results / "exported" / run.id, batch=3)
    for task in BENCHMARK_TASKS:
        documents = [made_up_document(task, number) for number in (0, 2, 5, 8)]
        asked = [question(task, document) for document in documents]
        theirs = harness.harness_samples(exported, task, documents)
        for batch_tokens in (500, 1):
            ours = answers(model, run, tokenizer, asked, batch_tokens)
            for each, answer, sample in zip(asked, ours, theirs, strict=True):
                assert each.requests == [tuple(arguments) for arguments in sample["arguments"]]
                expected = [float(response[0][0]) for response in sample["resps"]]
                assert [score.loglikelihood for score in answer.scores] == pytest.approx(expected, abs=1e-4), task
                assert answer.accuracy == sample["acc"], task
                assert answer.accuracy_bytes == sample.get("acc_bytes"), task
