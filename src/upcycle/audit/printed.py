"""The paper's tables as printed, from printed.yaml: text, since digits say how they were rounded.

Liew, Kato, Takase, *Scaling Laws for Upcycling Mixture-of-Experts Language Models*, ICML 2025. Nothing is computed.
Table 2 is in `upcycle.decisions.published`, because decisions use it.
"""

from __future__ import annotations

from pathlib import Path

from upcycle.study.strict_yaml import read_yaml

_PRINTED = read_yaml(Path(__file__).with_name("printed.yaml"))

MIXTURES = ("(4,1)", "(4,2)", "(8,1)", "(8,2)")
"""Columns of Tables 1 and 8: experts, active experts."""

TABLE_1: dict[str, list[str]] = _PRINTED["TABLE_1"]
"""Leave-one-out RMS by law and mixture."""

TABLE_3: dict[str, dict[str, str]] = _PRINTED["TABLE_3"]
"""Shapes and non-embedding parameters."""

TABLE_4: dict[str, str] = _PRINTED["TABLE_4"]
"""Training constants; embeddings are not tied, the optimizer is AdamW."""

TABLE_5: dict[str, dict[str, str]] = _PRINTED["TABLE_5"]
"""Training settings by model; iterations, batch in sequences."""

TABLE_6: dict[str, str] = _PRINTED["TABLE_6"]
"""Settings of the ablations."""

BENCHMARKS = ("ARC-c", "ARC-e", "lambada", "logiqa", "piqa", "sciq", "winogrande")
TABLE_7: dict[str, list[str]] = _PRINTED["TABLE_7"]
"""Accuracies in per cent by model: `BENCHMARKS`, then their mean; `-` where none is printed."""

TABLE_8: dict[str, list[str]] = _PRINTED["TABLE_8"]
"""Exponents of Equation 8 by mixture."""

EQUATION_2: dict[str, str] = _PRINTED["EQUATION_2"]
"""D* in billions of tokens at N1 = 1e9, and the powers of ln(N1 / 1e9)."""

EQUATION_11: dict[str, str] = _PRINTED["EQUATION_11"]
"""Exponents of P and of N2 (section 4.2)."""

EQUATION_19: dict[str, str] = _PRINTED["EQUATION_19"]
"""Exponents that the paper found for the form that it rejects (E.2)."""

CONFIGURATION_RMS: dict[str, str] = _PRINTED["CONFIGURATION_RMS"]
"""Leave-one-out RMS of Equations 17 and 18 with and without interaction (D.1)."""

FLOPS: dict[str, str] = _PRINTED["FLOPS"]
"""Training FLOPs of all sizes at their largest budgets (A.10)."""
