"""Table of scores on benchmarks."""

from __future__ import annotations

import pandas as pd

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import with_interval


def table_7(inputs: Inputs) -> pd.DataFrame:
    """Table 7. Accuracy on benchmarks.

    A row a model: accuracy in percent, by log-likelihood a byte except for LAMBADA and WinoGrande, which choose between
    no answers of different lengths. Then bits per byte of the right answer, which tell models apart whose accuracies
    are at chance; lower is better. Columns name the split and how many of its documents were asked. Brackets: 95 %
    intervals over documents.

    Raises `UserError` where the study has no scores.
    """
    if inputs.scores is None or not inputs.scores.exists():
        raise UserError("table7 shows benchmarks.csv, which is not there; name `benchmarks` in the study")
    scores = pd.read_csv(inputs.scores)
    order = {task: place for place, task in enumerate(BENCHMARK_TASKS)}
    several = scores["benchmark"].nunique() > 1
    rows: dict[str, dict[str, float]] = {}
    for each in sorted(scores.to_dict("records"), key=lambda row: order[str(row["task"])]):
        title = BENCHMARK_TASKS[str(each["task"])].title
        column = f"{title} ({each['split']}, {each['documents']} of {each['of_documents']})"
        kind = "accuracy" if pd.isna(each["accuracy_bytes"]) else "accuracy_bytes"
        for measure, name, scale in (("accuracy, %", kind, 100.0), ("bits per byte", "bits_per_byte", 1.0)):
            row = rows.setdefault(f"{each['id']}{' by ' + str(each['benchmark']) if several else ''}: {measure}", {})
            value, error = scale * each[name], 1.96 * scale * each[f"{name}_se"]
            row |= with_interval(column, value, (value - error, value + error))
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
