"""The audit of the paper's numbers as a table of the report."""

from __future__ import annotations

import pandas as pd

from upcycle.audit.audit import all_items, collect_items, items_table, trivial


def audit(everything: bool = False) -> pd.DataFrame:
    """The paper's numbers, recomputed.

    Numbers and statements of the paper that are not reproduced exactly: printed and recomputed value, the verdict
    (within rounding, or a slip) and what is right. This table uses no losses of this study. docs/audit.md has all
    items: also those that are reproduced, need the paper's losses, or follow without being printed.
    """
    items = all_items(collect_items())
    return items_table([item for item in items if everything or not trivial(item)])
