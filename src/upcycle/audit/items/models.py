"""Audit of the models and mixtures: Tables 3 and 5 (initial weights), Equations 4 to 6 and 15, A.2 and A.3."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from upcycle.audit.printed import TABLE_3, TABLE_5
from upcycle.audit.verdict import AuditItem, Evidence, Texts, box, reading
from upcycle.study.counting import count_parameters, n1, n2, n_total
from upcycle.study.shape import ModelSpec, MoESpec, default_init_std

EIGHT = MoESpec(n_expert=8, top_k=2)
"""The mixture of Tables 2 and 3."""
_TEXTS = Texts.of("models")


def models_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _table_3(evidence)
    yield from _sizes()
    yield from _shapes(evidence)
    yield from _mixtures(evidence)


def shape(name: str) -> ModelSpec:
    """A row of Table 3 as a model of the paper's vocabulary and context."""
    cells = {key: int(TABLE_3[name][key]) for key in ("n_layer", "d_model", "n_head")}
    return ModelSpec(**cells, vocab_size=32_000, context=1024)


def _table_3(evidence: Evidence) -> Iterator[AuditItem]:
    for name, cells in TABLE_3.items():
        chosen = {key: cells[key] for key in ("n_layer", "d_model", "n_head")}
        yield _TEXTS.settings("shape", chosen, evidence.study.models[name].model_dump(), name=name)
        dense, moe = count_parameters(shape(name)), count_parameters(shape(name), EIGHT)
        yield _TEXTS.number("n_dense", dense.non_embedding, cells["N_dense"], name=name)
        yield _TEXTS.number("n_moe", moe.non_embedding, cells["N_MoE"], name=name)
    for name in TABLE_3:
        size = count_parameters(shape(name)).non_embedding / {"M": 1e6, "B": 1e9}[name[-1]]
        yield _TEXTS.number("size", size, name[:-1], name=name, unit=name[-1])
    yield _TEXTS.number("largest", count_parameters(shape("1B"), EIGHT).non_embedding / 1e9)


def _sizes() -> Iterator[AuditItem]:
    models = [shape(name) for name in TABLE_3]
    parts = [count_parameters(model) for model in models]
    moes = [count_parameters(model, EIGHT) for model in models]
    squares = models[0].n_layer * models[0].d_model ** 2
    yield _TEXTS.number("attention", parts[0].attention / squares)
    yield _TEXTS.number("mlp", parts[0].mlp / squares)
    yield _TEXTS.number("factor", n1(models[0]) / squares)
    short = max(1 - n1(model) / count.non_embedding for model, count in zip(models, parts, strict=True))
    active = max(abs(1 - n2(model, EIGHT) / count.active) for model, count in zip(models, moes, strict=True))
    total = max(abs(1 - n_total(model, EIGHT) / count.non_embedding) for model, count in zip(models, moes, strict=True))
    for equation, formula, error, power in (
        ("Equation 4", "N1 ≈ 16 n_layer d²", short, n1(models[0]) / squares),
        ("Equation 5", "N2 ≈ (4 + 12 n_TopK) n_layer d²", active, n2(models[0], EIGHT) / squares),
        ("Equation 6", "N_total ≈ (4 + 12 n_expert) n_layer d²", total, n_total(models[0], EIGHT) / squares),
    ):
        values = {"factor": power, "largest relative error": error}
        yield _TEXTS.claim("leading_order", error < 0.002, values, equation=equation, formula=formula)
    ratios = [count.active / part.non_embedding for part, count in zip(parts, moes, strict=True)]
    ends = min(ratios), max(ratios)
    for where in ("Section 5, N2 / N1", "Section F.2, compute of the mixture over the dense model's"):
        yield _TEXTS.number("ratio", n2(models[0], EIGHT) / n1(models[0]), allowed=ends, where=where)
    yield _TEXTS.follows("ratio_exact", dict(zip(("smallest", "largest"), ends, strict=True)))


def _shapes(evidence: Evidence) -> Iterator[AuditItem]:
    models = {name: shape(name) for name in TABLE_3}
    printed = {name: model.n_layer / model.d_model for name, model in models.items()}
    inverted = {name: model.d_model / model.n_layer for name, model in models.items()}
    fits, fits_inverted = (all(32 <= ratio <= 64 for ratio in each.values()) for each in (printed, inverted))
    yield _TEXTS.claim("depth_to_width", fits, printed, low=min(inverted.values()), high=max(inverted.values()))
    yield reading(_TEXTS.claim("width_to_depth", fits_inverted, inverted))
    dims = {name: model.head_dim for name, model in models.items()}
    yield _TEXTS.follows("head_dim", dims, odd=", ".join(str(dim) for dim in dims.values() if dim % 8))
    heads = {name: model.n_head for name, model in models.items()}
    yield _TEXTS.claim("heads", rising(heads.values()), heads)
    for name, cells in TABLE_5.items():
        yield _TEXTS.number("init", evidence.study.model_spec(name).weight_std, cells["init"], name=name)
    variance = {name: default_init_std(model.d_model) ** 2 * model.d_model for name, model in models.items()}
    allowed = [box(lambda std, d=model.d_model: std**2 * d, TABLE_5[name]["init"]) for name, model in models.items()]
    yield _TEXTS.claim(
        "router_variance",
        all(low <= value <= high for value, (low, high) in zip(variance.values(), allowed, strict=True)),
        {"2/5": 2 / 5, "Table 5 allows from": max(low for low, _ in allowed), "to": min(high for _, high in allowed)},
    )


def rising(values: Iterable[float]) -> bool:
    """Whether no value is below the one before it."""
    return all(low <= high for low, high in itertools.pairwise(values))


def _mixtures(evidence: Evidence) -> Iterator[AuditItem]:
    logits = np.random.default_rng(0).normal(size=EIGHT.n_expert)
    kept = np.where(logits >= np.sort(logits)[-EIGHT.top_k], logits, -np.inf)
    gate = np.exp(kept) / np.exp(kept).sum()
    activated = int((gate > 0).sum())
    yield _TEXTS.claim("gate", np.isclose(gate.sum(), 1.0), {"sum of the gate": gate.sum(), "non-zero": activated})
    values = {"activated": activated, "n_expert": EIGHT.n_expert}
    yield _TEXTS.claim("activated", activated == EIGHT.n_expert, values)
    yield _TEXTS.follows("top_1", {"gate": np.exp(logits.max()) / np.exp(logits.max())})
    factors = {name: moe.n_expert / moe.top_k for name, moe in evidence.study.moes.items()}
    yield _TEXTS.number("balance_8x2", factors["8x2"])
    yield _TEXTS.claim("balance_any", all(value == 4 for value in factors.values()), factors)
