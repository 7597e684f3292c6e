"""`upcycle audit`: every number of the paper that can be recomputed, and whether it holds.

A topic is a module of `upcycle.audit.items` with the arithmetic, and a YAML file of the same name with the words of its
items. Verdicts: `upcycle.audit.verdict`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from upcycle.audit.items import allocation, cost, laws, models, sparsity, tables, thresholds, training
from upcycle.audit.verdict import VERDICTS, AuditItem, Evidence
from upcycle.files import plain, write_atomic

TOPICS = {
    "Models and mixtures": models.models_items,
    "Training": training.training_items,
    "Cost": cost.cost_items,
    "Tables of results": tables.tables_items,
    "Laws": laws.laws_items,
    "Threshold D*": thresholds.thresholds_items,
    "Allocation of compute": allocation.allocation_items,
}
"""Every topic's items, in the order in which they are shown."""

PAGE = Path(__file__).with_name("page.md")
"""The page's head, with a place for the counts."""
LOSSES = Path(__file__).with_name("losses.md")
"""The head of the page on the paper's losses."""


OF_LOSSES = "The paper's losses of section 4.2"
"""The topic that needs a table of them."""


def collect_items(evidence: Evidence | None = None, losses: Path | None = None) -> dict[str, list[AuditItem]]:
    """All items by topic; with a table of the paper's losses (`sparsity.read_sparsity`) also those of `OF_LOSSES`.

    Raises `UserError` where there is no config/paper.yaml, and for another table.
    """
    rows = None if losses is None else sparsity.read_sparsity(losses)
    evidence = evidence or Evidence.read()
    topics = {topic: list(items(evidence)) for topic, items in TOPICS.items()}
    return topics if rows is None else topics | {OF_LOSSES: list(sparsity.sparsity_items(evidence, rows))}


def all_items(topics: dict[str, list[AuditItem]]) -> list[AuditItem]:
    """The items of all topics."""
    return [item for items in topics.values() for item in items]


def counts(items: Iterable[AuditItem]) -> dict[str, int]:
    """Items by verdict, in the order of `VERDICTS`."""
    found = Counter(item.verdict for item in items)
    return {verdict: found[verdict] for verdict in VERDICTS}


def verdict_counts(items: Sequence[AuditItem]) -> str:
    """One line: how many items there are of each verdict."""
    *printed, (_, following) = counts(items).items()
    slips = ("slip", "slips")
    parts = [f"{count} {slips[count != 1] if verdict == 'slip' else verdict}" for verdict, count in printed if count]
    cells = sum(item.count for item in items if item.verdict != VERDICTS[-1])
    return (
        f"{sum(count for _, count in printed)} items, {cells} printed numbers and statements: {', '.join(parts)}. "
        f"{following} more that are not printed follow from them."
    )


def items_table(items: Sequence[AuditItem]) -> pd.DataFrame:
    """The items as a table of text, one row each."""
    rows = [(item.printed, item.recomputed, item.verdict, item.source, item.remark) for item in items]
    index = pd.Index([item.label for item in items], name="where")
    return pd.DataFrame(rows, index, columns=["printed", "recomputed", "verdict", "from", "remark"])


def trivial(item: AuditItem) -> bool:
    """Whether an item simply holds, or cannot be looked at, or is only a consequence."""
    return item.verdict not in ("within rounding", "slip")


def as_json(topics: dict[str, list[AuditItem]]) -> str:
    """Strict JSON: counts by verdict, and every item at full precision."""
    data = {
        "summary": verdict_counts(all_items(topics)),
        "counts": counts(all_items(topics)),
        "items": [{"topic": topic, **_record(item)} for topic, items in topics.items() for item in items],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)


def page(topics: dict[str, list[AuditItem]], *, everything: bool = True) -> str:
    """The audit as Markdown: what does not simply hold, then (`everything`) every item, a table a topic."""
    parts = [PAGE.read_text(encoding="utf-8").format(summary=verdict_counts(all_items(topics)))]
    doubtful = [item for item in all_items(topics) if not trivial(item)]
    parts.append(f"## What does not simply hold\n\n{_markdown(items_table(doubtful))}")
    for topic, items in topics.items() if everything else ():
        parts.append(f"## {topic}\n\n{_markdown(items_table(items))}")
    return "\n".join(parts)


def run_audit(args: argparse.Namespace) -> None:
    """`upcycle audit`: print the items that do not simply hold (`--all`: every one), and the counts.

    `--json` prints strict JSON of all of them; `--out FOLDER` also writes audit.csv and audit.md.
    """
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    topics = collect_items(losses=args.losses)
    items = all_items(topics)
    if args.out is not None:
        write(topics, args.out, everything=args.all)
    if args.json:
        print(as_json(topics))
        return
    for topic, found in topics.items():
        chosen = [item for item in found if args.all or not trivial(item)]
        if chosen:
            print(f"{topic}\n" + "\n".join(_lines(item) for item in chosen) + "\n")
    print(verdict_counts(items))


def write(topics: dict[str, list[AuditItem]], folder: Path, *, everything: bool = True) -> None:
    """audit.csv (every item), audit.md (every one, or those that do not simply hold), audit-losses.md (`OF_LOSSES`)."""
    topics = dict(topics)
    if (of_losses := topics.pop(OF_LOSSES, None)) is not None:
        page_of_losses = LOSSES.read_text(encoding="utf-8") + _markdown(items_table(of_losses))
        write_atomic(folder / "audit-losses.md", page_of_losses)
    table = items_table(all_items(topics))
    table.insert(0, "topic", [topic for topic, items in topics.items() for _ in items])
    write_atomic(folder / "audit.csv", table.to_csv(lineterminator="\n"))
    write_atomic(folder / "audit.md", page(topics, everything=everything))


def _lines(item: AuditItem) -> str:
    """An item as two or three indented lines."""
    printed = f"printed {item.printed}; " if item.printed else ""
    source = f" ({item.source})" if item.source else ""
    text = f"  {item.verdict.upper()}  {item.label}\n    {printed}recomputed {item.recomputed}{source}"
    return text + (f"\n    {item.remark}" if item.remark else "")


def _record(item: AuditItem) -> dict[str, Any]:
    """An item as JSON holds it: numbers that do not exist are null."""
    return dict(plain({"from" if name == "source" else name: value for name, value in vars(item).items()}))


def _markdown(table: pd.DataFrame) -> str:
    """A Markdown table without padding, which rows of remarks would make mostly blanks."""
    header = [str(table.index.name), *table.columns]
    cells = [[label, *row] for label, row in zip(table.index, table.values, strict=True)]
    escaped = [[cell.replace("|", "\\|").replace("*", "\\*") for cell in row] for row in cells]
    return "".join("| " + " | ".join(row) + " |\n" for row in [header, ["---"] * len(header), *escaped])
