"""Limits of a sweep that follow from what was run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import plural
from upcycle.study.spec import short_count

PAPER_SMALLEST_N1 = 14_745_600
"""Non-embedding parameters (Equation 4) of the paper's smallest dense model, 15M."""
PAPER_MIXTURES = 4
"""Mixtures of Tables 1 and 8."""
SHORT_RUN = 250
"""Steps below which trial sweeps of tiny models followed no power law yet."""


def limits(inputs: Inputs, grid: Grid, texts: list[dict[str, Any]]) -> list[str]:
    """Sentences on size, mixtures, steps, repeated text, seeds, extrapolation; only those that apply."""
    found = [
        _size(inputs, grid),
        _sizes(inputs),
        _mixtures(inputs, grid),
        "" if inputs.mark else _short_runs(grid),
        _repetition(inputs, grid, texts),
        "" if inputs.noise else "No run was repeated with another seed: small differences may be chance.",
        f"Predictions outside D1 = {span(grid.D1)} and D2 = {span(grid.D2)} are extrapolations, and so is every E.",
        "Losses by law do not tell what training gives: with too few steps or repeated text it leaves any law."
        if inputs.simulated
        else "Losses of two texts, tokenizers or settings do not compare, so neither do those of two sources."
        if inputs.sources
        else "The losses do not compare with those of other studies: the held-out text comes from the same sources as "
        "the training text, and nats per token depend on the tokenizer.",
    ]
    found += [f"{names}: {sentence}." for sentence, names in _warnings(inputs).items()]
    return [sentence for sentence in found if sentence]


def _warnings(inputs: Inputs) -> dict[str, str]:
    """Warnings of the fits, each with the names of its fits."""
    fits: dict[str, list[str]] = {}
    for name, fit in inputs.fits.items():
        for sentence in fit.warnings.values():
            fits.setdefault(sentence, []).append(name.replace("_", " "))
    return {sentence: f"Fit{'s' if len(names) > 1 else ''} {', '.join(names)}" for sentence, names in fits.items()}


def span(tokens: Sequence[int]) -> str:
    """Ascending token counts as a range, or the only one."""
    low, high = short_count(tokens[0]), short_count(tokens[-1])
    return low if low == high else f"{low} to {high}"


def _size(inputs: Inputs, grid: Grid) -> str:
    size = int(grid.rows["N1"].iloc[0])
    if size >= PAPER_SMALLEST_N1:
        return ""
    tokens = "" if inputs.imported(grid) else f", and at most {short_count(grid.D1[-1])} tokens"
    return (
        f"The dense model is small: {short_count(size)} non-embedding parameters, {PAPER_SMALLEST_N1 / size:,.0f} "
        f"times fewer than the paper's smallest{tokens}. The shape of a law may "
        "carry over to larger models; its numbers do not."
    )


def _sizes(inputs: Inputs) -> str:
    sizes = inputs.losses.loc[inputs.losses["lineage"] == "up", "N1"].nunique()
    if sizes > 2:
        return ""
    return (
        f"The upcycled models have {'one size' if sizes == 1 else 'two sizes'}. How the loss and the paper's D* (the "
        "tokens above which training from scratch wins) depend on the model's size cannot be told."
    )


def _mixtures(inputs: Inputs, grid: Grid) -> str:
    mixtures = len(inputs.grids(grid.sweep))
    if mixtures >= PAPER_MIXTURES:
        return ""
    number = "One mixture of experts was" if mixtures == 1 else f"{mixtures} mixtures of experts were"
    return f"{number} upcycled; the paper compares {PAPER_MIXTURES}. Whether others follow the same law is open."


def _short_runs(grid: Grid) -> str:
    steps = grid.rows["steps"].tolist()
    short = sum(count < SHORT_RUN for count in steps)
    if short == 0:
        return ""
    return (
        f"{short} of {plural(len(steps), 'upcycled run')} took fewer than {SHORT_RUN} steps (the shortest: "
        f"{min(steps)}). A loss falls faster than a power law that early, which bends every fit that includes it."
    )


def _repetition(inputs: Inputs, grid: Grid, texts: list[dict[str, Any]]) -> str:
    if not texts:
        return ""
    available = min(text["parts"]["train"]["tokens"] for text in texts)
    of_dense = 0 if inputs.imported(grid) else grid.D1[-1]  # an imported model was trained on text of its owner's
    largest = max(of_dense, grid.D2[-1])
    both = of_dense + grid.D2[-1]
    if largest > available:
        return f"The text has {short_count(available)} training tokens: budgets above that repeat it."
    if both > available:
        return (
            f"The text has {short_count(available)} training tokens, fewer than the {short_count(both)} of the largest "
            "D1 and D2 together: upcycled training repeats text that its dense parent has seen."
        )
    return ""
