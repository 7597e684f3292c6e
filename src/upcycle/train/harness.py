"""Benchmarks by the LM Evaluation Harness: its prompts and metrics, our documents, our models or exports of them.

Wants the optional library: `pip install upcycle[benchmarks]`. Nothing is loaded from a hub.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the library is imported

import datasets
import lm_eval
from lm_eval.api.model import LM, TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers import Tokenizer

from upcycle.data.benchmarks import BENCHMARK_CACHE, BENCHMARK_TASKS, benchmark_documents
from upcycle.data.sources import DEFAULT_CACHE
from upcycle.data.tokenizer import end_of_text
from upcycle.data.tokens import TokenSet
from upcycle.errors import UserError
from upcycle.manifest import WEIGHTS, read_manifest
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.study.benchmark import asked_sha256, task_configs
from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec
from upcycle.train.device import use_device
from upcycle.train.scoring import Continuation, score
from upcycle.train.states.checkpoint import read_spec, read_tensors

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task's config leaves as it is


class NativeLM(TemplateLM):
    """A model of ours as the harness asks for it. An empty context is the end of text, as before a document."""

    def __init__(self, model: Transformer, run: RunSpec, tokenizer: Tokenizer, batch_tokens: int) -> None:
        super().__init__()
        self.model, self.run, self.cutter, self.batch_tokens = model, run, tokenizer, batch_tokens
        self.truncated = 0
        """Requests whose context was cut."""

    @property
    def eot_token_id(self) -> int:
        """Id of the end of text."""
        return end_of_text(self.cutter)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, none added."""
        ids: list[int] = self.cutter.encode(string, add_special_tokens=False).ids
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = [Continuation(context, scored) for _, context, scored in requests]
        scores = score(self.model, self.run, asked, self.batch_tokens)
        self.truncated += sum(each.truncated for each in scores)
        return [(each.loglikelihood, each.greedy) for each in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the model's context that do not overlap."""
        totals = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.eot_token_id, max_seq_len=self.run.model.context, context_len=1
            )
            asked = [Continuation(*make_disjoint_window(window)) for window in windows]
            totals.append(sum(each.loglikelihood for each in score(self.model, self.run, asked, self.batch_tokens)))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """No task of ours generates text."""
        raise NotImplementedError("the tasks of benchmark_tasks.yaml score continuations")


def exported_model(folder: Path, batch: int = 1) -> LM:
    """A Hugging Face folder, such as `upcycle export` writes, by the harness's own back end, in float32 on the CPU."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch)


def subsample(documents: int, limit: int | None, seed: int) -> list[int]:
    """Indices of the documents of a task that are asked: all, or `limit` of them drawn by `seed`, ascending.

    A smaller subsample of the same seed is a part of a larger one.
    """
    order = np.random.default_rng(seed).permutation(documents)
    return sorted(order[:limit].tolist())


def run_task(
    lm: LM, name: str, indices: Sequence[int], cache: Path = BENCHMARK_CACHE, downloads: Path = DEFAULT_CACHE
) -> list[dict[str, Any]]:
    """What the harness notes of each document: its `doc`, `arguments`, `resps` and metrics."""
    documents = benchmark_documents(name, cache, downloads)
    chosen = [documents[index] for index in indices]
    config = task_configs()[name] | {
        "task": name,
        "test_split": "test",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(chosen)},
        "num_fewshot": 0,
    }
    task = ConfigurableTask(config=config)
    found = lm_eval.evaluate(lm=lm, task_dict={name: task}, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = sorted(found["samples"][name], key=lambda each: int(each["doc_id"]))
    return samples


def summary(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, the same by log-likelihood a byte (None where the task has none), bits per byte of the right answer.

    Each is a mean over documents with its standard error std / sqrt(n).
    """
    columns: dict[str, list[float]] = {"accuracy": [], "accuracy_bytes": [], "bits_per_byte": []}
    for sample in samples:
        columns["accuracy"].append(float(sample["acc"]))
        if "acc_bytes" in sample:
            columns["accuracy_bytes"].append(float(sample["acc_bytes"]))
        columns["bits_per_byte"].append(_bits_per_byte(sample))
    found: dict[str, Any] = {"documents": len(samples)}
    for key, values in columns.items():
        found[key] = float(np.mean(values)) if values else None
        found[f"{key}_se"] = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return found


def _bits_per_byte(sample: dict[str, Any]) -> float:
    gold = int(sample["doc"].get("gold", 0))
    (loglikelihood, _), (_, continuation) = sample["resps"][gold][0], sample["arguments"][gold]
    return -float(loglikelihood) / np.log(2) / len(continuation.encode())


def benchmark_run(
    run_dir: Path, tokens_dir: Path, execution: Execution, *, task: str, limit: int | None, seed: int
) -> dict[str, Any]:
    """Scores of a finished run on one task, with what they are of.

    Raises DamagedError (a UserError) for weights that do not verify, UserError for tokens of another tokenizer.
    """
    run, manifest, tokens = read_spec(run_dir), read_manifest(run_dir), TokenSet(tokens_dir)
    if tokens.manifest["tokenizer"]["sha256"] != manifest["tokenizer_sha256"]:
        raise UserError(f"{tokens_dir}: not the tokenizer that {run.id} was trained with; restore that token set")
    device = use_device(execution)
    kernels = choose_kernels(run.model, execution.kernels, moe=run.moe, device=execution.device, dtype=run.dtype)
    model = Transformer(run.model, run.moe, kernels)
    model.load_state_dict(read_tensors(run_dir, WEIGHTS))
    lm = NativeLM(model.to(device), run, tokens.tokenizer(), execution.eval_batch * run.model.context)
    about = BENCHMARK_TASKS[task]
    samples = run_task(lm, task, subsample(about.documents, limit, seed))
    return {
        "id": run.id,
        "task": task,
        "split": about.split,
        "of_documents": about.documents,
        "seed": seed,
        **summary(samples),
        "truncated": lm.truncated,
        "weights_sha256": manifest["files"][WEIGHTS]["sha256"],
        "asked_sha256": asked_sha256(task),
        "harness": f"lm_eval {lm_eval.__version__}",
    }
