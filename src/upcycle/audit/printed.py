"""The paper's tables as printed: strings, since digits say how they were rounded (Table 2: `decisions.published`).

Liew, Kato, Takase, *Scaling Laws for Upcycling Mixture-of-Experts Language Models*, ICML 2025. Nothing is computed.
"""

from __future__ import annotations

MIXTURES = ("(4,1)", "(4,2)", "(8,1)", "(8,2)")
"""Columns of Tables 1 and 8: experts, active experts."""

TABLE_1: dict[str, tuple[str, str, str, str]] = {
    "Mul.": ("0.0111", "0.0081", "0.0105", "0.0031"),
    "Mul. (α3 = 0)": ("0.0169", "0.0085", "0.0180", "0.0095"),
    "Add.": ("0.0165", "0.00843", "0.0167", "0.0093"),
    "Add. (α3 = 0)": ("0.0196", "0.0117", "0.0430", "0.0113"),
}
"""Leave-one-out RMS by law and mixture."""

TABLE_3: dict[str, dict[str, str]] = {
    "15M": {"n_layer": "9", "d_model": "320", "n_head": "4", "N_dense": "14,751,680", "N_MoE": "92,189,120"},
    "44M": {"n_layer": "12", "d_model": "480", "n_head": "8", "N_dense": "44,248,800", "N_MoE": "276,538,080"},
    "0.1B": {"n_layer": "15", "d_model": "640", "n_head": "8", "N_dense": "98,323,840", "N_MoE": "614,496,640"},
    "0.2B": {"n_layer": "21", "d_model": "832", "n_head": "8", "N_dense": "232,623,040", "N_MoE": "1,453,845,952"},
    "0.5B": {"n_layer": "26", "d_model": "1120", "n_head": "16", "N_dense": "521,889,760", "N_MoE": "3,261,732,320"},
    "1B": {"n_layer": "30", "d_model": "1504", "n_head": "16", "N_dense": "1,085,859,424", "N_MoE": "6,786,500,704"},
}
"""Shapes and non-embedding parameters."""

TABLE_4: dict[str, str] = {
    "context": "1,024",
    "beta1": "0.9",
    "beta2": "0.95",
    "eps": "1e-8",
    "weight_decay": "0.1",
    "clip": "1.0",
}
"""Training constants; embeddings are not tied, the optimizer is AdamW."""

TABLE_5: dict[str, dict[str, str]] = {
    "15M": {"warm-up": "200", "init": "0.035", "max": "17,600", "batch": "128", "lr": "8e-3", "lr_moe": "2e-3"},
    "44M": {"warm-up": "200", "init": "0.029", "max": "17,600", "batch": "256", "lr": "4e-3", "lr_moe": "2e-3"},
    "0.1B": {"warm-up": "200", "init": "0.025", "max": "17,600", "batch": "512", "lr": "4e-3", "lr_moe": "2e-3"},
    "0.2B": {"warm-up": "400", "init": "0.022", "max": "35,200", "batch": "512", "lr": "2e-3", "lr_moe": "2e-3"},
    "0.5B": {"warm-up": "800", "init": "0.019", "max": "70,400", "batch": "512", "lr": "4e-4", "lr_moe": "4e-4"},
    "1B": {"warm-up": "800", "init": "0.016", "max": "70,400", "batch": "1024", "lr": "4e-4", "lr_moe": "4e-4"},
}
"""Training settings by model; iterations, batch in sequences."""

TABLE_6: dict[str, str] = {"batch": "512", "steps": "4,000", "warmup_steps": "200", "aux_coef": "1e-3"}
"""Settings of the ablations."""

BENCHMARKS = ("ARC-c", "ARC-e", "lambada", "logiqa", "piqa", "sciq", "winogrande")
TABLE_7: dict[str, tuple[str, ...]] = {
    "Pythia-1B": ("25.59", "47.26", "53.52", "29.49", "69.31", "77.3", "51.22", "50.53"),
    "TinyLlama-1.1B": ("24.32", "44.91", "-", "-", "67.30", "-", "53.28", "-"),
    "1B": ("27.65", "52.10", "45.08", "26.11", "65.89", "78.10", "54.93", "49.98"),
    "Upcycled 8x1B": ("30.12", "56.14", "49.72", "27.65", "67.19", "82.00", "57.77", "52.94"),
}
"""Accuracies in per cent by model: `BENCHMARKS`, then their mean; `-` where none is printed."""

TABLE_8: dict[str, tuple[str, str, str, str]] = {
    "alpha1": ("0.28", "0.19", "0.29", "0.18"),
    "alpha2": ("0.29", "0.20", "0.30", "0.20"),
    "alpha3": ("0.01", "0.008", "0.01", "0.008"),
}
"""Exponents of Equation 8 by mixture."""

EQUATION_2 = {"prefactor": "4", "linear": "-0.7", "quadratic": "0.04"}
"""D* in billions of tokens at N1 = 1e9, and the powers of ln(N1 / 1e9)."""

EQUATION_11 = {"beta1": "1.87", "beta2": "0.34"}
"""Exponents of P and of N2 (section 4.2)."""

EQUATION_19 = {"alpha1": "0.10", "alpha2": "-0.07", "beta": "-0.08", "alpha3": "-0.008"}
"""Exponents that the paper found for the form that it rejects (E.2)."""

CONFIGURATION_RMS = {
    "multiplicative, interaction": "0.0414",
    "multiplicative": "0.0351",
    "additive, interaction": "0.0341",
    "additive": "0.0322",
}
"""Leave-one-out RMS of Equations 17 and 18 with and without interaction (D.1)."""

FLOPS = {"dense": "6.14e17", "moe": "1.08e18", "upcycled": "5.38e18"}
"""Training FLOPs of all sizes at their largest budgets (A.10)."""
