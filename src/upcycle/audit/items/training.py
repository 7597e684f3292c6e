"""Audit of the training settings: Tables 4 to 6, budgets and warm-up (A.5), the numbers of A.6 and A.9 in tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from upcycle.audit.items.models import shape
from upcycle.audit.printed import TABLE_4, TABLE_5, TABLE_6
from upcycle.audit.verdict import (
    STUDY,
    AuditItem,
    Evidence,
    claim,
    follows,
    lost,
    number_item,
    plain_number,
    reading,
    settings,
)
from upcycle.laws.forms import get_law
from upcycle.study.counting import count_parameters

_FROM = f"{STUDY.parent.name}/{STUDY.name}"


def training_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _settings(evidence)
    yield from _budgets(evidence)
    yield from _warmup(evidence)
    yield from _ablations(evidence)
    yield from _grids(evidence)


def largest_budget(evidence: Evidence, name: str) -> int:
    """Tokens of a size at its maximum iteration: batch x context x iterations (Tables 4 and 5)."""
    entry = evidence.study.models[name]
    return max(entry.budgets) * entry.batch * evidence.study.context


def _settings(evidence: Evidence) -> Iterator[AuditItem]:
    study = evidence.study
    yield settings("Table 4", TABLE_4, {"context": study.context, **study.optim.model_dump()}, _FROM)
    yield claim(
        "Table 4, embedding tying, optimizer",
        "False, AdamW",
        count_parameters(shape("15M")).head > 0,
        "the model has a head of its own; training has no other optimizer",
        recomputed="the same",
        count=2,
    )
    names = {"warm-up": "warmup_steps", "max": "max_steps", "batch": "batch", "lr": "lr", "lr_moe": "lr_moe"}
    for name, cells in TABLE_5.items():
        entry = study.models[name].model_dump()
        yield settings(
            f"Table 5, {name}",
            {key: cells[key] for key in names},
            {key: entry[field] for key, field in names.items()},
            _FROM,
        )
    for what, field in (("training length", "max_steps"), ("batch size", "batch")):
        values = {name: float(entry.model_dump()[field]) for name, entry in study.models.items()}
        rising = all(low <= high for low, high in itertools.pairwise(values.values()))
        yield claim(f"Section A.5, {what} increases with model size", "increases", rising, "Table 5", values=values)
    yield settings(
        "Section A.5, decay of the schedule",
        {"final share of the maximum": "0.1", "share of the run": "0.1"},
        {"final share of the maximum": study.schedule.floor, "share of the run": study.schedule.decay_fraction},
        _FROM,
    )
    yield settings(
        "Section 4.1, Huber loss", {"δ": "1e-3"}, {"δ": get_law("multiplicative").delta}, "the laws' default"
    )
    yield settings("Section 3.2, balance coefficient", {"η": "1e-3"}, {"η": study.moes["8x2"].aux_coef}, _FROM)
    vocabularies = {"main text": study.data.vocab_size, "Japanese": study.sweeps["japanese"].set["data.vocab_size"][0]}
    yield settings(
        "Section 2.1 and B, vocabularies", {"main text": "32,000", "Japanese": "102,400"}, vocabularies, _FROM
    )
    yield settings("Section A.1, GPUs of a node", {"GPUs": "8"}, {"GPUs": study.execution.devices}, _FROM)
    for label, printed in (
        ("Figure 7", "WSD and cosine schedules yield similar performances"),
        ("Figure 8", "the MoE's learning rate works best"),
        ("Figure 9", "a coefficient of 1 performs worst, 1e-3 is right"),
        ("Figure 10", "repeated data make a very small difference"),
        ("Figure 11", "Japanese is harder to saturate with D1, code saturates sooner"),
        ("Section A.6", "noise, partial and low-rank initialisation show no advantage"),
    ):
        yield lost(label, printed, "needs the losses of its runs")
    yield lost("Section 3.1, SlimPajama's CommonCrawl part", "368B and 0.3B tokens", "a count of the corpus", 2)


def _budgets(evidence: Evidence) -> Iterator[AuditItem]:
    tokens = {name: largest_budget(evidence, name) for name in TABLE_5}
    source = "70,400 iterations x 1,024 sequences x 1,024 tokens (Tables 4 and 5)"
    yield number_item("Table 7, tokens of the 1B model", "74", tokens["1B"] / 1e9, source, suffix="B")
    half = max(evidence.study.models["1B"].budgets) // 2 * evidence.study.models["1B"].batch * evidence.study.context
    yield number_item("Table 7, tokens of the upcycled 8x1B", "37", half / 1e9, "half of that", suffix="B")
    both = (tokens["1B"] + half) / 1e11
    yield number_item(
        "Section A.9, dense and upcycled tokens", "1", both, "the two before", shown="around 100B", suffix=" x 100B"
    )
    common = tokens["15M"]
    yield number_item("Section 4.2, D1 = D2", "2.3", common / 1e9, "the largest budget of 15M (Table 5)", suffix="B")
    grids = {
        name: [steps * entry.batch * evidence.study.context for steps in entry.budgets]
        for name, entry in evidence.study.models.items()
    }
    yield follows(
        "Tables 4 and 5, largest budgets (B tokens)",
        {name: value / 1e9 for name, value in tokens.items()},
        "batch x context x maximum iterations",
    )
    yield follows(
        "Section 4.1, budgets of 0.1B (B tokens)",
        {str(place): tokens / 1e9 for place, tokens in enumerate(grids["0.1B"], start=1)},
        "five budgets by halving (inferred from A.10)",
        "the printed figures show them, the text does not",
    )
    yield follows(
        "Section 4.2, sizes whose grid of halvings holds 2.3B",
        {name: float(common in grid) for name, grid in grids.items()},
        "five budgets by halving (inferred from A.10)",
        "of the sizes that section 4.2 trains all do; only 1B does not",
    )
    smallest = min(min(grid) for grid in grids.values())
    yield claim(
        "Section 2.2, footnote 1",
        "X of 10^6 or more, so that X + 1 ≈ X",
        smallest >= 1e6,
        "smallest budget of the grid of halvings",
        values={"smallest": float(smallest), "relative error of X": 1 / smallest},
    )
    per_size = {name: value / count_parameters(shape(name)).non_embedding for name, value in tokens.items()}
    lowest = min(min(grid) / count_parameters(shape(name)).non_embedding for name, grid in grids.items())
    yield follows(
        "Tables 3 and 5, largest tokens per parameter",
        {**per_size, "smallest of the grid": lowest},
        "largest budget / N_dense; the grid of halvings",
    )


def _warmup(evidence: Evidence) -> Iterator[AuditItem]:
    models = evidence.study.models
    sizes = {name: count_parameters(shape(name)).non_embedding for name in TABLE_5}
    tokens = {name: models[name].warmup_steps * models[name].batch * evidence.study.context for name in TABLE_5}
    ratios = {name: tokens[name] / sizes[name] for name in TABLE_5}
    printed = {name: models[name].warmup_steps / sizes[name] for name in TABLE_5}
    span = f"{min(ratios.values()):.2f} to {max(ratios.values()):.2f}"
    yield claim(
        "Section A.5, warm-up steps against model size",
        "roughly the same",
        all(0.5 <= ratio <= 2 for ratio in printed.values()),
        "Table 5, steps / N_dense",
        values=printed,
        remark=f"warm-up TOKENS are meant: batch x context x steps is {span} times N_dense",
    )
    alike = all(0.5 <= ratio <= 2 for ratio in ratios.values())
    source = "Table 5, batch x context x steps / N_dense"
    yield reading(claim("Section A.5, the same in tokens", "roughly the same", alike, source, values=ratios))
    yield follows(
        "Table 5, warm-up (M tokens)", {name: value / 1e6 for name, value in tokens.items()}, "batch x context x steps"
    )


def _ablations(evidence: Evidence) -> Iterator[AuditItem]:
    study = evidence.study
    sweep = study.sweeps["upcycling_lr"]
    entry = study.models[sweep.model[0]]
    steps = (sweep.steps or [0])[0]
    found = {
        "batch": entry.batch,
        "steps": steps,
        "warmup_steps": entry.warmup_steps,
        "aux_coef": study.moes["8x2"].aux_coef,
    }
    yield settings("Table 6", TABLE_6, found, _FROM)
    parent = steps * entry.batch * study.context / 1e9
    yield number_item("Figure 8, tokens of the dense model", "2", parent, "Table 6: 4,000 x 512 x 1,024", suffix="B")
    dense, moe = entry.lr * study.schedule.floor, entry.lr_moe * study.schedule.floor
    yield number_item(
        "Figure 8, LR at the end of dense training",
        "2e-4",
        dense,
        "10 % of the 0.1B model's 4e-3 (Table 5, A.5)",
        remark=f"the dense 0.1B model ends at {plain_number(dense, 1)}; "
        f"{plain_number(moe, 1)} is 10 % of its mixture's maximum",
    )


def _grids(evidence: Evidence) -> Iterator[AuditItem]:
    study = evidence.study
    budgets = {float(len(entry.budgets)) for entry in study.models.values()}
    source = f"{_FROM}: five budgets a size (inferred)"
    yield number_item("Section 4.1, side of the grid of D1 and D2", "5", max(budgets), source)
    sweep = study.sweeps["configuration"]
    mixtures = [study.moes[name] for name in sweep.moe]
    printed = {"experts": "4 8 16 32", "active": "1 2 4", "sizes": "15M 44M 0.1B 0.2B"}
    found: dict[str, object] = {
        "experts": " ".join(str(value) for value in sorted({moe.n_expert for moe in mixtures})),
        "active": " ".join(str(value) for value in sorted({moe.top_k for moe in mixtures})),
        "sizes": " ".join(sweep.model),
    }
    yield settings("Section 4.2, sizes and mixtures", printed, found, _FROM)
    yield follows("Section 4.2, models", {"runs": float(len(sweep.model) * len(mixtures))}, "sizes x experts x active")
    architectures = [study.moes[name] for name in study.sweeps["architectures"].moe]
    shapes = " ".join(f"({moe.n_expert},{moe.top_k})" for moe in architectures)
    yield settings("Section 4.1, mixtures", {"mixtures": "(4,1) (4,2) (8,1) (8,2)"}, {"mixtures": shapes}, _FROM)
