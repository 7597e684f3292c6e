"""`benchmarks` of a study, and what each task asks: documents and prompts."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.fingerprint import PACKAGE_ROOT
from upcycle.study.shape import Frozen
from upcycle.study.spec import canonical_json
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.values import Count, Names, Whole


class BenchmarkConfig(Frozen):
    """Scores of finished models on benchmarks (Table 7), with the prompts and metrics of the LM Evaluation Harness."""

    tasks: Names
    """Names of `upcycle.data.benchmarks`: arc_challenge, arc_easy, lambada, logiqa, piqa, sciq, winogrande."""
    sweep: Names
    """Sweeps whose finished models are scored, and with them the checkpoints that these begin with."""
    limit: Count | None = None
    """At most so many documents of each task, drawn by `seed`; None: all of them."""
    seed: Whole = 0
    """Of the draw."""


@cache
def task_configs() -> dict[str, Any]:
    """Each task in the form of the LM Evaluation Harness, by name: prompts and metrics."""
    configs: dict[str, Any] = read_yaml(PACKAGE_ROOT / "train" / "benchmark_tasks.yaml")
    return configs


def asked_sha256(task: str) -> str:
    """SHA-256 over a task's documents and prompts: scores of other ones are stale."""
    asked = [BENCHMARK_TASKS[task].sha256, task_configs()[task]]
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()
