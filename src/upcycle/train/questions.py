"""Benchmarks of finished runs: documents made into questions, a model's answers, their means.

`benchmark_tasks.yaml` has the prompts and metrics in the form of the LM Evaluation Harness. This module understands
those of its rules that the file uses, and needs no library of the harness; `harness.py` reads the same file, and
`tests/train/test_harness.py` holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from tokenizers import Tokenizer

from upcycle.data.benchmarks import BENCHMARK_TASKS, benchmark_documents, own_documents
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError
from upcycle.manifest import WEIGHTS, read_manifest
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.study.benchmark import BenchmarkConfig, asked_sha256, task_configs
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.device import use_device
from upcycle.train.scoring import Continuation, Score, score
from upcycle.train.states.checkpoint import read_spec, read_tensors


class BenchmarkQuestion(NamedTuple):
    """A document as a model is asked it."""

    requests: list[tuple[str, str]]
    """Context and continuation of each answer."""
    gold: int | None
    """Number of the right answer; None where there is one alone, and the model must find it."""
    sizes: list[int] | None
    """Bytes of each answer in UTF-8; None where they differ in nothing that is scored."""


class Answer(NamedTuple):
    """What a model makes of a question."""

    scores: list[Score]
    """Of each request."""
    accuracy: float
    """1: the right answer has the highest log-likelihood (a lone one: each of its tokens is the most likely)."""
    accuracy_bytes: float | None
    """The same by log-likelihood a byte; None where answers have no sizes."""
    bits_per_byte: float
    """Of the right answer, with the space before it."""


def question(task: str, document: dict[str, Any]) -> BenchmarkQuestion:
    """A document of a task, by its entry in benchmark_tasks.yaml."""
    config = task_configs()[task]
    text, target = (_rendered(config[key], document) for key in ("doc_to_text", "doc_to_target"))
    if config["output_type"] == "loglikelihood":
        return BenchmarkQuestion([(text, target)], None, None)
    choices: list[str] = document[config["doc_to_choice"]]
    if isinstance(text, int):  # the choices are contexts
        return BenchmarkQuestion([(choice, f" {target}") for choice in choices], text, None)
    sizes = [len(choice.encode()) for choice in choices]
    return BenchmarkQuestion([(text, f" {choice}") for choice in choices], target, sizes)


def _rendered(template: str, document: dict[str, Any]) -> Any:
    """A field of the document by its name, or a text with fields in it."""
    return document[template] if template in document else _template(template).render(**document)


@cache
def _template(text: str) -> jinja2.Template:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(text)


def encode_request(tokenizer: Tokenizer, context: str, continuation: str) -> Continuation:
    """Token ids, as the harness cuts them: of the whole text, those after as many as the context has alone.

    A space at the context's end belongs to the continuation, whose first token begins with it.
    """
    stripped = context.rstrip()
    whole, before = (
        tokenizer.encode(text, add_special_tokens=False).ids for text in (context + continuation, stripped)
    )
    return Continuation(before, whole[len(before) :])


def subsample(documents: int, limit: int | None, seed: int) -> list[int]:
    """Indices of the documents of a task that are asked: all, or `limit` of them drawn by `seed`, ascending.

    A smaller subsample of the same seed is a part of a larger one.
    """
    order = np.random.default_rng(seed).permutation(documents)
    return sorted(order[:limit].tolist())


def answers(
    model: Transformer, run: RunSpec, tokenizer: Tokenizer, questions: Sequence[BenchmarkQuestion], batch_tokens: int
) -> list[Answer]:
    """A model's answers. Batches hold about `batch_tokens` tokens; answers do not depend on them, up to rounding."""
    asked = [[encode_request(tokenizer, *request) for request in each.requests] for each in questions]
    found = score(model, run, asked, batch_tokens)
    return [_answer(each, scores) for each, scores in zip(questions, found, strict=True)]


def _answer(asked: BenchmarkQuestion, scores: list[Score]) -> Answer:
    logs = np.array([each.loglikelihood for each in scores])
    correct = scores[0].greedy if asked.gold is None else int(logs.argmax()) == asked.gold
    by_bytes = None if asked.sizes is None else float(int((logs / np.array(asked.sizes)).argmax()) == asked.gold)
    right = asked.gold or 0
    bits = -logs[right] / np.log(2) / len(asked.requests[right][1].encode())
    return Answer(scores, float(correct), by_bytes, float(bits))


def summary(found: Sequence[Answer]) -> dict[str, Any]:
    """Accuracy, the same by log-likelihood a byte (None where the task has none), bits per byte of the right answer.

    Each is a mean over documents with its standard error std / sqrt(n). `truncated` counts requests.
    """
    columns = {
        "accuracy": [each.accuracy for each in found],
        "accuracy_bytes": [each.accuracy_bytes for each in found if each.accuracy_bytes is not None],
        "bits_per_byte": [each.bits_per_byte for each in found],
    }
    means: dict[str, Any] = {"documents": len(found)}
    for key, values in columns.items():
        means[key] = float(np.mean(values)) if values else None
        means[f"{key}_se"] = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return means | {"truncated": sum(score.truncated for each in found for score in each.scores)}


def benchmark_run(
    run_dir: Path, tokens_dir: Path, execution: Execution, *, task: str, asked: BenchmarkConfig
) -> dict[str, Any]:
    """Scores of a finished run on one task, with what they are of. The split of a user's documents is their file.

    Raises DamagedError (a UserError) for weights that do not verify, UserError for tokens of another tokenizer and for
    a document that is none of the task.
    """
    run, manifest, tokens = read_spec(run_dir), read_manifest(run_dir), TokenSet(tokens_dir)
    if tokens.manifest["tokenizer"]["sha256"] != manifest["tokenizer_sha256"]:
        raise UserError(f"{tokens_dir}: not the tokenizer that {run.id} was trained with; restore that token set")
    device = use_device(execution)
    kernels = choose_kernels(run.model, execution.kernels, moe=run.moe, device=execution.device, dtype=run.dtype)
    model = Transformer(run.model, run.moe, kernels)
    model.load_state_dict(read_tensors(run_dir, WEIGHTS))
    own = asked.own(task)
    documents = own_documents(task, own) if own else benchmark_documents(task)
    questions = [question(task, documents[index]) for index in subsample(len(documents), asked.limit, asked.seed)]
    batch_tokens = execution.eval_batch * run.model.context
    return {
        "id": run.id,
        "task": task,
        "split": own.name if own else BENCHMARK_TASKS[task].split,
        "of_documents": len(documents),
        "seed": asked.seed,
        **summary(answers(model.to(device), run, tokens.tokenizer(), questions, batch_tokens)),
        "weights_sha256": manifest["files"][WEIGHTS]["sha256"],
        "asked_sha256": asked_sha256(task, own),
    }
