"""The LM Evaluation Harness's own answers to our questions: what ours are compared with.

Wants the optional library: `pip install upcycle[benchmarks]`. Nothing is loaded from a hub.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the library is imported

import datasets
import lm_eval
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask

from upcycle.study.benchmark import task_configs

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task's config leaves as it is


def exported_model(folder: Path, batch: int = 1) -> LM:
    """A Hugging Face folder, such as `upcycle export` writes, by the harness's own back end, in float32 on the CPU.

    Logits become log-probabilities in float64. In float32 torch rounds them by up to 1e-5 nats a token where there are
    50,000 pieces, mostly to one side: more than the models differ by.
    """
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", softmax_dtype="float64", device="cpu", batch_size=batch)


def harness_samples(lm: LM, task: str, documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the harness notes of each document: its `doc`, `arguments` and `resps` of each request, and metrics."""
    config = task_configs()[task] | {
        "task": task,
        "test_split": "test",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(documents))},
        "num_fewshot": 0,
    }
    found = lm_eval.evaluate(
        lm=lm, task_dict={task: ConfigurableTask(config=config)}, bootstrap_iters=0, log_samples=True
    )
    samples: list[dict[str, Any]] = sorted(found["samples"][task], key=lambda each: int(each["doc_id"]))
    return samples
