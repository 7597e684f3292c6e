"""The LM Evaluation Harness on made-up documents of all tasks: our models and their exports have the same scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_text import write_texts
from small_runs import EXECUTION, MOE, small_run, train_in, upcycled_run

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.data.tokens import tokenize_corpus

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
WORDS = ["a stone", "the old house by the sea", "light", "three of them, é", "wood"]


def document(task: str, number: int) -> dict[str, Any]:
    word = [WORDS[(number + place) % len(WORDS)] for place in range(5)]
    match task:
        case "lambada":
            return {"id": str(number), "context": f"{word[0]} and {word[1]} are", "word": word[2]}
        case "winogrande":
            return {"id": "0", "choices": [f"So {word[0]}", f"So {word[1]}"], "continuation": word[2], "gold": 1}
    fields = ("question", "goal", "passage", "support")
    return {"id": str(number), "choices": word[:4], "gold": number % 4} | dict.fromkeys(fields, f"Is it {word[4]}?")


@pytest.fixture(autouse=True)
def documents(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = {task: [document(task, number) for number in range(9)] for task in BENCHMARK_TASKS}
    monkeypatch.setattr(harness, "benchmark_documents", lambda task, *_: made_up[task])


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


def native(results: Path, run: Any, batch_tokens: int) -> Any:
    from upcycle.data.tokens import TokenSet
    from upcycle.manifest import WEIGHTS
    from upcycle.model.transformer import Transformer
    from upcycle.train.states.checkpoint import read_tensors

    model = Transformer(run.model, run.moe)
    model.load_state_dict(read_tensors(results / "runs" / run.id, WEIGHTS))
    tokenizer = TokenSet(results / "tokens" / run.data.tokens_id).tokenizer()
    return harness.NativeLM(model, run, tokenizer, batch_tokens)


def scores(samples: list[dict[str, Any]]) -> list[float]:
    return [float(answer[0][0]) for sample in samples for answer in sample["resps"]]


@pytest.mark.parametrize("run", [RUN, MIXTURE], ids=["dense", "mixture"])
def test_a_model_and_its_export_have_the_same_scores_on_every_task(results: Path, run: Any) -> None:
    exported = harness.exported_model(results / "exported" / run.id, batch=3)
    for task in BENCHMARK_TASKS:
        ours = harness.run_task(native(results, run, 500), task, [0, 2, 5, 8])
        alone = harness.run_task(native(results, run, 1), task, [0, 2, 5, 8])
        theirs = harness.run_task(exported, task, [0, 2, 5, 8])
        assert len(scores(ours)) == 4 * {"lambada": 1, "piqa": 4, "winogrande": 2}.get(task, 4)
        assert scores(ours) == pytest.approx(scores(theirs), abs=1e-4), task
        assert scores(ours) == pytest.approx(scores(alone), abs=1e-4), task
        assert [each["arguments"] for each in ours] == [each["arguments"] for each in theirs]


def test_prompts_are_those_of_the_harness_s_own_tasks(results: Path) -> None:
    lm = native(results, RUN, 500)

    def prompt(task: str) -> tuple[str, str]:
        (sample,) = harness.run_task(lm, task, [0])
        found: tuple[str, str] = tuple(sample["arguments"][0])
        return found

    asks = "Is it wood?"
    assert prompt("arc_easy") == prompt("piqa") == (f"Question: {asks}\nAnswer:", " a stone")
    assert prompt("sciq") == (f"{asks}\nQuestion: {asks}\nAnswer:", " a stone")
    listed = "A. a stone\nB. the old house by the sea\nC. light\nD. three of them, é\n"
    assert prompt("logiqa") == (f"Passage: {asks}\nQuestion: {asks}\nChoices:\n{listed}Answer:", " a stone")
    assert prompt("lambada") == ("a stone and the old house by the sea are", " light")
    assert prompt("winogrande") == ("So a stone", " light")


def test_whole_texts_are_scored_in_windows_as_the_hf_back_end_does(results: Path) -> None:
    from lm_eval.api.instance import Instance

    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(" and ".join(WORDS * 12),), idx=0)
    (ours,) = native(results, RUN, 500).loglikelihood_rolling([request])
    (theirs,) = harness.exported_model(results / "exported" / RUN.id).loglikelihood_rolling([request])
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_a_summary_is_means_over_documents_with_their_errors() -> None:
    def sample(acc: float, loss: float) -> dict[str, Any]:
        resps, arguments = [[(-9.0, False)], [(-loss, False)]], [("q", " no"), ("q", " é")]
        return {"acc": acc, "acc_bytes": acc, "doc": {"gold": 1}, "resps": resps, "arguments": arguments}

    found = harness.summary([sample(1.0, 3 * math.log(2)), sample(0.0, 6 * math.log(2)), sample(0.0, 0.0)])
    assert found["documents"] == 3
    assert found["accuracy"] == found["accuracy_bytes"] == pytest.approx(1 / 3)
    assert found["accuracy_se"] == pytest.approx(np.std([1, 0, 0], ddof=1) / math.sqrt(3))
    assert found["bits_per_byte"] == pytest.approx((1 + 2 + 0) / 3)  # " é" is three bytes
    assert harness.summary([{"acc": 0, "doc": {}, "resps": [[(-1.0, 0)]], "arguments": [("", "a")]}])[
        "accuracy_bytes"
    ] is None  # fmt: skip


def test_a_finished_run_is_scored_with_what_the_scores_are_of(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "subsample", lambda documents, limit, seed: [1, 3, 4][:limit])
    where = results / "runs" / RUN.id, results / "tokens" / RUN.data.tokens_id
    found = harness.benchmark_run(*where, EXECUTION, task="piqa", limit=2, seed=0)
    assert (found["id"], found["task"], found["split"], found["of_documents"]) == (RUN.id, "piqa", "validation", 1838)
    assert (found["documents"], found["truncated"], found["harness"]) == (2, 0, "lm_eval 0.4.13")


def test_a_smaller_subsample_is_a_part_of_a_larger_one() -> None:
    few, many = harness.subsample(1000, 20, 3), harness.subsample(1000, 100, 3)
    assert len(few) == 20
    assert set(few) < set(many)
    assert many == sorted(many)
    assert harness.subsample(1000, None, 3) == list(range(1000))
    assert harness.subsample(1000, 20, 4) != few
