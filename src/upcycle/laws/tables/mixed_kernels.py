"""Which kernels computed a loss: a fit of losses of different ones warns, a comparison refuses them.

Kernels change rounding only, so a run's id excludes them. But rounding flips a route now and then, and from there
on a mixture is another sample: results/reference has the size of it. The differences that a comparison is about are of
that size too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.study.spec import RunSpec

MIXED_KERNELS = "mixed kernels"
"""Name of the warning."""
_OF_MIXTURES = ("experts", "router")


def kernels_text(recorded: Mapping[str, str], run: RunSpec) -> str:
    """A run's record of kernels and versions as one cell, `op=kernel` joined by `;`.

    What a dense model does not use is left out, and so is each op that whole layers replace.
    """
    kept = {
        name: kernel
        for name, kernel in recorded.items()
        if (run.moe or name not in _OF_MIXTURES) and (name == "layers" or kernel != "native")
    }
    return ";".join(f"{name}={kept[name]}" for name in sorted(kept))


def check_one_set_of_kernels(rows: pd.DataFrame, where: str) -> None:
    """Raise `UserError` if the runs of a comparison were not all computed by the same kernels and versions.

    `where` names the comparison; the message names the kernels, and the runs of the rarer ones.
    """
    mixed = mixed_kernels(rows)
    if not mixed:
        return
    name, found = next(iter(mixed.items()))
    common = f"{name}={found.most_common(1)[0][0]}"
    parts = [set(text.split(";")) for text in rows["kernels"]]
    others = [run for run, its in zip(rows["id"], parts, strict=True) if common not in its]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    raise UserError(
        f"{where}: its runs were computed by different kernels ({_counts(mixed)}), which differ by as much as seeds "
        f"do; name the kernels under `execution` and train again what lacks {common}: "
        f"`upcycle train {others[0]} --fresh`{more}"
    )


def warned(result: FitResult, rows: pd.DataFrame) -> FitResult:
    """The fit with a warning if the losses of `rows`, those fitted and those that its floor is from, mix kernels."""
    mixed = mixed_kernels(rows)
    if not mixed:
        return result
    name, found = next(iter(mixed.items()))
    common = f"'{name}={found.most_common(1)[0][0]}' in kernels"
    sentence = (
        f"losses of different kernels are mixed ({_counts(mixed)}). Kernels round differently: that moved losses of "
        "mixtures by up to 0.011 nats, as much as another seed would, and of dense models by up to 9e-4 "
        f'(results/reference/README.md). Fit losses of one kind ("{common}"), or train all with the same kernels'
    )
    return replace(result, warnings={**result.warnings, MIXED_KERNELS: sentence})


def _counts(mixed: Mapping[str, Counter[str]]) -> str:
    """`layers: composed in 5, native in 20`."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{kernel} in {count}" for kernel, count in sorted(found.items()))
        for name, found in mixed.items()
    )


def mixed_kernels(rows: pd.DataFrame) -> dict[str, Counter[str]]:
    """Ops and libraries of which the rows have more than one kernel or version: rows by kernel."""
    counts: dict[str, Counter[str]] = {}
    for text in rows["kernels"]:
        for part in filter(None, str(text).split(";")):
            name, _, kernel = part.partition("=")
            counts.setdefault(name, Counter())[kernel] += 1
    return {name: found for name, found in sorted(counts.items()) if len(found) > 1}
