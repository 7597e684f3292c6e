"""Table of scores on benchmarks."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from upcycle.audit.printed import TABLE_7
from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import with_interval

MEAN = "mean"
"""Column of the mean over tasks."""


def table_7(inputs: Inputs, *, printed: bool = False) -> pd.DataFrame:
    """Table 7. Accuracy on benchmarks.

    A row a model: accuracy in percent, by log-likelihood a byte except for LAMBADA and WinoGrande, which choose between
    no answers of different lengths. Then bits per byte of the right answer, which tell models apart whose accuracies
    are at chance; lower is better. Columns name the split and how many of its documents were asked; the last one is the
    mean over them. Brackets: 95 % intervals over documents. Rows marked as printed are the paper's, which does not
    state its splits.

    Raises `UserError` where the study has no scores.
    """
    if inputs.scores is None or not inputs.scores.exists():
        raise UserError("table7 shows benchmarks.csv, which is not there; name `benchmarks` in the study")
    scores = pd.read_csv(inputs.scores)
    order = {task: place for place, task in enumerate(BENCHMARK_TASKS)}
    several = scores["benchmark"].nunique() > 1
    columns: dict[str, str] = {}
    rows: dict[str, dict[str, tuple[float, float]]] = {}
    for each in sorted(scores.to_dict("records"), key=lambda row: order[str(row["task"])]):
        title = BENCHMARK_TASKS[str(each["task"])].title
        column = f"{title} ({each['split']}, {each['documents']} of {each['of_documents']})"
        columns[column] = str(each["task"])
        model = f"{each['model']}{' by ' + str(each['benchmark']) if several else ''}"
        kind = "accuracy" if pd.isna(each["accuracy_bytes"]) else "accuracy_bytes"
        for measure, name, scale in (("accuracy, %", kind, 100.0), ("bits per byte", "bits_per_byte", 1.0)):
            rows.setdefault(f"{model}: {measure}", {})[column] = scale * each[name], scale * each[f"{name}_se"]
    found = {label: _with_mean(row) for label, row in rows.items()} | (_printed(columns) if printed else {})
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("model")


def _with_mean(row: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Values with their intervals, and their mean: its error is that of a mean of independent values."""
    values, errors = zip(*row.values(), strict=True)
    mean = sum(values) / len(values), math.sqrt(sum(error**2 for error in errors)) / len(values)
    found: dict[str, float] = {}
    for column, (value, error) in (row | {MEAN: mean}).items():
        found |= with_interval(column, value, (value - 1.96 * error, value + 1.96 * error))
    return found


def _printed(columns: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The paper's accuracies under the columns of their tasks; its mean where all its tasks have one."""
    tasks = list(BENCHMARK_TASKS)
    found = {}
    for model, cells in TABLE_7.items():
        by_task = {task: cell for task, cell in zip(tasks, cells, strict=False) if cell != "-"}
        row = {column: float(by_task[task]) for column, task in columns.items() if task in by_task}
        mean = {MEAN: float(cells[-1])} if cells[-1] != "-" and {*columns.values()} == {*tasks} else {}
        found[f"{model}, as printed: accuracy, %"] = row | mean
    return found
