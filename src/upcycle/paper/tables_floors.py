"""Table of fitted floors beside an entropy that is known."""

from __future__ import annotations

import math

import pandas as pd

from upcycle.data.datasets import DATASETS
from upcycle.data.vocabulary import BYTES
from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import or_nan, with_interval


def floors(inputs: Inputs) -> pd.DataFrame:
    """Fitted floors beside the entropy of the text.

    A row a fit: its E; the exact entropy of the generated text that its losses are of; E minus the entropy with a 95 %
    interval; the standard error of a loss over the held-out text, which is a sample of it; whether the interval,
    widened by two of these, holds the entropy; the lowest loss fitted; nats per token. Determined: whether the losses
    determine the law. At a fixed size E is the floor of that size: it lies above the entropy where the model cannot
    hold the whole language, and because the first tokens of a window see too few letters (0.007 nats for windows of
    64).

    Raises `UserError` where no fit has an E of losses on text whose entropy is known.
    """
    rows = {}
    for name, fit in inputs.fits.items():
        fitted = inputs.losses[inputs.losses["id"].isin(fit.ids)]
        true = _entropy(fitted)
        if "E" not in fit.values or true is None:
            continue
        low, high = fit.intervals.get("E") or (None, None)
        above = [None if end is None else end - true for end in (low, high)]
        error = float(fitted["loss_se"].mean())
        wider = 0.0 if math.isnan(error) else 2 * error  # unknown of losses that nobody measured
        held = or_nan(low) - wider <= true <= (math.inf if high is None else high) + wider
        rows[name.replace("_", " ")] = {
            "E": fit.values["E"],
            "entropy": true,
            **with_interval("E minus entropy", fit.values["E"] - true, above),
            "sampling error": error,
            "held": "" if low is None else "yes" if held else "no",
            "lowest loss": float(fitted["loss"].min()),
            "determined": "yes" if fit.identifiable else "no",
        }
    if not rows:
        raise UserError("table floors: no fit has an `E` of losses on generated text; train on `zipf-markov`")
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("fit")


def _entropy(rows: pd.DataFrame) -> float | None:
    """Exact entropy of the text of these rows, nats per token; None where they are of others, or of other tokens."""
    texts = set(zip(rows["dataset"], rows["tokenizer"], rows["tokenizer_vocab"], strict=True))
    if len(texts) != 1:
        return None
    dataset, tokenizer, pieces = texts.pop()
    known = [source.entropy for source in DATASETS[dataset].sources] if dataset in DATASETS else []
    if len(known) != 1 or known[0] is None or tokenizer != "bpe" or pieces != BYTES + 1:
        return None
    return known[0]()
