"""The audit of the paper's numbers as a table of the report."""

from __future__ import annotations

import pandas as pd

from upcycle.audit.audit import all_items, collect_items, items_table, trivial


def audit(everything: bool = False) -> pd.DataFrame:
    """The paper's numbers, recomputed.

    What does not simply hold among the numbers and statements of the paper: printed and recomputed value, the verdict
    (within rounding, or a slip) and what is wrong and right. No losses of this study enter. docs/audit.md has the
    others: what holds, what needs the paper's losses, what follows without being printed.
    """
    items = all_items(collect_items())
    return items_table([item for item in items if everything or not trivial(item)])
