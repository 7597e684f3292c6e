"""`benchmarks` of a study, and what each task asks: documents and prompts."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import model_validator

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.data.sources import sha256_file
from upcycle.files import given_path
from upcycle.fingerprint import PACKAGE_ROOT
from upcycle.study.shape import Frozen
from upcycle.study.spec import canonical_json
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.values import Count, Name, Names, PathText, Whole


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
    documents: dict[Name, PathText] = {}
    """Files of your own documents, by task, in place of the pinned ones: JSON lines with the task's fields."""

    def own(self, task: str) -> Path | None:
        """The file of a task's own documents, if any."""
        return given_path(self.documents[task]) if task in self.documents else None

    @model_validator(mode="after")
    def _check_documents(self) -> BenchmarkConfig:
        for task in self.documents:
            if task not in self.tasks:
                raise ValueError(f"documents.{task}: `tasks` does not name it, so they would be ignored")
        return self


@cache
def task_configs() -> dict[str, Any]:
    """Each task in the form of the LM Evaluation Harness, by name: prompts and metrics."""
    configs: dict[str, Any] = read_yaml(PACKAGE_ROOT / "train" / "benchmark_tasks.yaml")
    return configs


def asked_sha256(task: str, own: Path | None = None) -> str:
    """SHA-256 over a task's documents and prompts: scores of other ones are stale."""
    asked = [sha256_file(own) if own else BENCHMARK_TASKS[task].sha256, task_configs()[task]]
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()
