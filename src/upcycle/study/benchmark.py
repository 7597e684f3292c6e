"""`benchmarks` of a study."""

from __future__ import annotations

from upcycle.study.shape import Frozen
from upcycle.study.values import Count, Names, Whole


class BenchmarkConfig(Frozen):
    """Scores of finished models on benchmarks (Table 7), by the LM Evaluation Harness."""

    tasks: Names
    """Names of `upcycle.data.benchmarks`: arc_challenge, arc_easy, lambada, logiqa, piqa, sciq, winogrande."""
    sweep: Names
    """Sweeps whose finished models are scored, and with them the checkpoints that these begin with."""
    limit: Count | None = None
    """At most so many documents of each task, drawn by `seed`; None: all of them."""
    seed: Whole = 0
    """Of the draw."""
