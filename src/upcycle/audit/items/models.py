"""Audit of the models and mixtures: Tables 3 and 5 (initial weights), Equations 4 to 6 and 15, A.2 and A.3."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from upcycle.audit.printed import TABLE_3, TABLE_5
from upcycle.audit.verdict import STUDY, AuditItem, Evidence, box, claim, follows, number_item, reading, settings
from upcycle.study.counting import count_parameters, n1, n2, n_total
from upcycle.study.spec import ModelSpec, MoESpec, default_init_std

EIGHT = MoESpec(n_expert=8, top_k=2)
"""The mixture of Tables 2 and 3."""
_FROM = f"{STUDY.parent.name}/{STUDY.name}"


def models_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _table_3(evidence)
    yield from _sizes(evidence)
    yield from _shapes(evidence)
    yield from _mixtures(evidence)


def shape(name: str) -> ModelSpec:
    """A row of Table 3 as a model of the paper's vocabulary and context."""
    cells = TABLE_3[name]
    return ModelSpec(
        n_layer=int(cells["n_layer"]),
        d_model=int(cells["d_model"]),
        n_head=int(cells["n_head"]),
        vocab_size=32_000,
        context=1024,
    )


def _table_3(evidence: Evidence) -> Iterator[AuditItem]:
    for name, cells in TABLE_3.items():
        model = shape(name)
        chosen = {key: cells[key] for key in ("n_layer", "d_model", "n_head")}
        yield settings(f"Table 3, {name}, shape", chosen, evidence.study.models[name].model_dump(), _FROM)
        dense, moe = count_parameters(model), count_parameters(model, EIGHT)
        yield number_item(f"Table 3, {name}, N_dense", cells["N_dense"], dense.non_embedding, "16 L d² + (2L + 1) d")
        source = "100 L d² + (2L + 1) d + 8 L d"
        yield number_item(f"Table 3, {name}, N_MoE total", cells["N_MoE"], moe.non_embedding, source)
    for name in TABLE_3:
        unit, suffix = (1e6, "M") if name.endswith("M") else (1e9, "B")
        size = count_parameters(shape(name)).non_embedding / unit
        yield number_item(f"Section 3.1, size of {name}", name[:-1], size, "Table 3, N_dense", suffix=suffix)
    largest = count_parameters(shape("1B"), EIGHT).non_embedding / 1e9
    yield number_item("Section 1, largest mixture", "7", largest, "Table 3, 1B", suffix="B total parameters")


def _sizes(evidence: Evidence) -> Iterator[AuditItem]:
    models = [shape(name) for name in TABLE_3]
    parts = [count_parameters(model) for model in models]
    squares = [model.n_layer * model.d_model**2 for model in models]
    source = "weights of the built shape, all sizes"
    attention, mlp = parts[0].attention / squares[0], parts[0].mlp / squares[0]
    yield number_item("Section 3.1, attention parameters per layer", "4", attention, source, suffix=" d²")
    yield number_item(
        "Section 3.1, MLP parameters per layer", "12", mlp, "three matrices of SwiGLU, d_MLP = 4 d", suffix=" d²"
    )
    yield number_item("Equation 4, factor of n_layer d²", "16", n1(models[0]) / squares[0], "4 + 12")
    short = max(1 - n1(model) / count.non_embedding for model, count in zip(models, parts, strict=True))
    moes = [count_parameters(model, EIGHT) for model in models]
    active = max(abs(1 - n2(model, EIGHT) / count.active) for model, count in zip(models, moes, strict=True))
    total = max(abs(1 - n_total(model, EIGHT) / count.non_embedding) for model, count in zip(models, moes, strict=True))
    remark = "what is left out grows as d_model: norms, and the router in Equations 5 and 6"
    for label, formula, error, power in (
        ("Equation 4", "N1 ≈ 16 n_layer d²", short, n1(models[0]) / squares[0]),
        ("Equation 5", "N2 ≈ (4 + 12 n_TopK) n_layer d²", active, n2(models[0], EIGHT) / squares[0]),
        ("Equation 6", "N_total ≈ (4 + 12 n_expert) n_layer d²", total, n_total(models[0], EIGHT) / squares[0]),
    ):
        yield claim(
            f"{label}, exact to the leading order",
            formula,
            error < 0.002,
            "exact counts of Table 3, all sizes, 8 experts, top-2",
            values={"factor": power, "largest relative error": error},
            remark=remark,
        )
    ratios = [count.active / part.non_embedding for part, count in zip(parts, moes, strict=True)]
    for label in ("Section 5, N2 / N1", "Section F.2, compute of the mixture over the dense model's"):
        yield number_item(
            label, "1.75", n2(models[0], EIGHT) / n1(models[0]), "Equations 4 and 5", allowed=(min(ratios), max(ratios))
        )
    yield follows(
        "Section 5, N2 / N1 counted exactly",
        {"smallest": min(ratios), "largest": max(ratios)},
        "exact counts, all sizes",
    )


def _shapes(evidence: Evidence) -> Iterator[AuditItem]:
    models = {name: shape(name) for name in TABLE_3}
    printed = {name: model.n_layer / model.d_model for name, model in models.items()}
    inverted = {name: model.d_model / model.n_layer for name, model in models.items()}
    yield claim(
        "Section A.2, ratio n_layer / d_model",
        "in the range 32 to 64",
        all(32 <= ratio <= 64 for ratio in printed.values()),
        "Table 3",
        values=printed,
        remark=f"inverted: d_model / n_layer is meant, {min(inverted.values()):.1f} to {max(inverted.values()):.1f}",
    )
    in_range = all(32 <= ratio <= 64 for ratio in inverted.values())
    label = "Section A.2, the same as d_model / n_layer"
    yield reading(claim(label, "in the range 32 to 64", in_range, "Table 3", values=inverted))
    heads = {name: model.head_dim for name, model in models.items()}
    odd = [str(heads[name]) for name in models if heads[name] % 8]
    yield follows(
        "Table 3, head dimensions",
        {name: float(value) for name, value in heads.items()},
        "d_model / n_head",
        f"{', '.join(odd)} are not multiples of 8: fused attention pads them or falls back",
    )
    counts = [model.n_head for model in models.values()]
    yield claim(
        "Section A.2, attention heads increase with model size",
        "chosen to increase with model size",
        all(low <= high for low, high in itertools.pairwise(counts)),
        "Table 3",
        values={name: float(model.n_head) for name, model in models.items()},
    )
    for name, cells in TABLE_5.items():
        model = evidence.study.model_spec(name)
        yield number_item(
            f"Table 5, {name}, init. size",
            cells["init"],
            model.weight_std,
            "√(2 / (5 d_model)), the same as the router's variance in A.6",
        )
    variance = {name: default_init_std(model.d_model) ** 2 * model.d_model for name, model in models.items()}
    allowed = [box(lambda std, d=model.d_model: std**2 * d, TABLE_5[name]["init"]) for name, model in models.items()]
    common = max(low for low, _ in allowed), min(high for _, high in allowed)
    yield claim(
        "Section A.6, router variance 2/5d_model",
        "2/5d_model",
        all(low <= value <= high for value, (low, high) in zip(variance.values(), allowed, strict=True)),
        "init. sizes of Table 5, squared, times d_model",
        values={"2/5": 2 / 5, "Table 5 allows from": common[0], "to": common[1]},
        remark="read as 2 / (5 d_model)",
    )


def _mixtures(evidence: Evidence) -> Iterator[AuditItem]:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=EIGHT.n_expert)
    kept = np.where(logits >= np.sort(logits)[-EIGHT.top_k], logits, -np.inf)
    gate = np.exp(kept) / np.exp(kept).sum()
    activated = int((gate > 0).sum())
    yield claim(
        "Equation 15, gate",
        "G(x) = Softmax(TopK(W x)), weights of the experts' sum",
        bool(np.isclose(gate.sum(), 1.0)),
        "softmax over the K largest of 8 random logits",
        values={"sum of the gate": float(gate.sum()), "non-zero": float(activated)},
    )
    yield claim(
        "Equation 15, text",
        "only n_expert experts are activated for each token",
        activated == EIGHT.n_expert,
        "non-zero entries of the gate for 8 experts, top-2",
        values={"activated": float(activated), "n_expert": float(EIGHT.n_expert)},
        remark="should be n_TopK",
    )
    one = np.exp(logits.max()) / np.exp(logits.max())
    yield follows(
        "Equation 15, top-1",
        {"gate": float(one)},
        "softmax over one logit",
        "constant whatever the router says: a copy keeps the function, but the router gets no cross-entropy gradient."
        " The software that A.1 names refuses top-1 in this order, so the K = 1 columns of Tables 1 and 8 differ"
        " in kind from those of K = 2",
    )
    factors = {name: moe.n_expert / moe.top_k for name, moe in evidence.study.moes.items()}
    source = "E/K, the factor with which perfect balance costs the coefficient (Switch form), mixtures of section 4.2"
    yield number_item("Section A.3, factor of the balance loss, 8 experts, top-2", "4", factors["8x2"], "E/K")
    yield claim(
        "Section A.3, factor of the balance loss, any mixture",
        "4",
        all(value == 4 for value in factors.values()),
        source,
        values=factors,
        remark="4 is E/K of the 8-expert top-2 mixture; the formula for n_expert experts needs n_expert / n_TopK",
    )
