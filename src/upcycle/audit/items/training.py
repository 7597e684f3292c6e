"""Audit of the training settings: Tables 4 to 6, budgets and warm-up (A.5), the numbers of A.6 and A.9 in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from upcycle.audit.items.models import rising, shape
from upcycle.audit.printed import TABLE_4, TABLE_5, TABLE_6
from upcycle.audit.verdict import AuditItem, Evidence, Texts, plain_number, reading
from upcycle.laws.forms import get_law
from upcycle.study.counting import count_parameters

_TEXTS = Texts.of("training")


def training_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _settings(evidence)
    yield from _budgets(evidence)
    yield from _warmup(evidence)
    yield from _ablations(evidence)
    yield from _grids(evidence)


def largest_budget(evidence: Evidence, name: str) -> int:
    """Tokens of a size at its maximum iteration: batch x context x iterations (Tables 4 and 5)."""
    return max(_budgets_of(evidence, name))


def _budgets_of(evidence: Evidence, name: str) -> list[int]:
    """Tokens of every budget of a size."""
    entry = evidence.study.models[name]
    return [steps * entry.batch * evidence.study.context for steps in entry.budgets]


def _settings(evidence: Evidence) -> Iterator[AuditItem]:
    study = evidence.study
    yield _TEXTS.settings("table_4", TABLE_4, {"context": study.context, **study.optim.model_dump()})
    head = count_parameters(shape("15M")).head
    yield _TEXTS.claim("tying", head > 0, {"parameters of 15M's head": head})
    names = {"warm-up": "warmup_steps", "max": "max_steps", "batch": "batch", "lr": "lr", "lr_moe": "lr_moe"}
    models = {name: entry.model_dump() for name, entry in study.models.items()}
    for name, cells in TABLE_5.items():
        found = {key: models[name][field] for key, field in names.items()}
        yield _TEXTS.settings("table_5", {key: cells[key] for key in names}, found, name=name)
    for what, field in (("training length", "max_steps"), ("batch size", "batch")):
        values = {name: entry[field] for name, entry in models.items()}
        yield _TEXTS.claim("increases", rising(values.values()), values, what=what)
    found = {"final share of the maximum": study.schedule.floor, "share of the run": study.schedule.decay_fraction}
    yield _TEXTS.settings("decay", dict.fromkeys(found, "0.1"), found)
    yield _TEXTS.settings("huber", {"δ": "1e-3"}, {"δ": get_law("multiplicative").delta})
    yield _TEXTS.settings("balance", {"η": "1e-3"}, {"η": study.moes["8x2"].aux_coef})
    found = {"main text": study.data.vocab_size, "Japanese": study.sweeps["japanese"].set["data.vocab_size"][0]}
    yield _TEXTS.settings("vocabularies", {"main text": "32,000", "Japanese": "102,400"}, found)
    yield _TEXTS.settings("node", {"GPUs": "8"}, {"GPUs": study.execution.devices})
    for figure in ("figure_7", "figure_8", "figure_9", "figure_10", "figure_11", "initialisation"):
        yield _TEXTS.lost(figure)
    yield _TEXTS.lost("corpus", 2)


def _budgets(evidence: Evidence) -> Iterator[AuditItem]:
    grids = {name: _budgets_of(evidence, name) for name in evidence.study.models}
    tokens = {name: max(grids[name]) for name in TABLE_5}
    half = max(evidence.study.models["1B"].budgets) // 2 * evidence.study.models["1B"].batch * evidence.study.context
    yield _TEXTS.number("tokens_1b", tokens["1B"] / 1e9)
    yield _TEXTS.number("tokens_8x1b", half / 1e9)
    yield _TEXTS.number("tokens_both", (tokens["1B"] + half) / 1e11)
    yield _TEXTS.number("equal_tokens", tokens["15M"] / 1e9)
    yield _TEXTS.follows("budgets", {name: value / 1e9 for name, value in tokens.items()})
    yield _TEXTS.follows("halvings", {str(k): value / 1e9 for k, value in enumerate(grids["0.1B"], start=1)})
    yield _TEXTS.follows("common", {name: float(tokens["15M"] in grid) for name, grid in grids.items()})
    smallest = min(min(grid) for grid in grids.values())
    yield _TEXTS.claim("footnote_1", smallest >= 1e6, {"smallest": smallest, "relative error of X": 1 / smallest})
    sizes = {name: count_parameters(shape(name)).non_embedding for name in grids}
    lowest = min(min(grid) / sizes[name] for name, grid in grids.items())
    per_size = {name: value / sizes[name] for name, value in tokens.items()}
    yield _TEXTS.follows("per_parameter", {**per_size, "smallest of the grid": lowest})


def _warmup(evidence: Evidence) -> Iterator[AuditItem]:
    models = evidence.study.models
    sizes = {name: count_parameters(shape(name)).non_embedding for name in TABLE_5}
    tokens = {name: models[name].warmup_steps * models[name].batch * evidence.study.context for name in TABLE_5}
    ratios = {name: tokens[name] / sizes[name] for name in TABLE_5}
    printed = {name: models[name].warmup_steps / sizes[name] for name in TABLE_5}
    same, same_tokens = (all(0.5 <= ratio <= 2 for ratio in each.values()) for each in (printed, ratios))
    yield _TEXTS.claim("warmup", same, printed, low=min(ratios.values()), high=max(ratios.values()))
    yield reading(_TEXTS.claim("warmup_tokens", same_tokens, ratios))
    yield _TEXTS.follows("warmup_millions", {name: value / 1e6 for name, value in tokens.items()})


def _ablations(evidence: Evidence) -> Iterator[AuditItem]:
    study = evidence.study
    sweep = study.sweeps["upcycling_lr"]
    entry = study.models[sweep.model[0]]
    steps = (sweep.steps or [0])[0]
    found = {"batch": entry.batch, "warmup_steps": entry.warmup_steps, "aux_coef": study.moes["8x2"].aux_coef}
    yield _TEXTS.settings("table_6", TABLE_6, {**found, "steps": steps})
    yield _TEXTS.number("parent_tokens", steps * entry.batch * study.context / 1e9)
    dense, moe = entry.lr * study.schedule.floor, entry.lr_moe * study.schedule.floor
    yield _TEXTS.number("parent_lr", dense, dense=plain_number(dense, 1), moe=plain_number(moe, 1))


def _grids(evidence: Evidence) -> Iterator[AuditItem]:
    study = evidence.study
    yield _TEXTS.number("grid_side", max(len(entry.budgets) for entry in study.models.values()))
    sweep = study.sweeps["configuration"]
    mixtures = [study.moes[name] for name in sweep.moe]
    printed = {"experts": "4 8 16 32", "active": "1 2 4", "sizes": "15M 44M 0.1B 0.2B"}
    experts, active = ({moe.n_expert for moe in mixtures}, {moe.top_k for moe in mixtures})
    found: dict[str, Iterable[object]] = {
        "experts": sorted(experts),
        "active": sorted(active),
        "sizes": sweep.model,
    }
    yield _TEXTS.settings("configurations", printed, {name: " ".join(map(str, each)) for name, each in found.items()})
    yield _TEXTS.follows("configuration_runs", {"runs": len(sweep.model) * len(mixtures)})
    architectures = [study.moes[name] for name in study.sweeps["architectures"].moe]
    shapes = " ".join(f"({moe.n_expert},{moe.top_k})" for moe in architectures)
    yield _TEXTS.settings("mixtures", {"mixtures": "(4,1) (4,2) (8,1) (8,2)"}, {"mixtures": shapes})
