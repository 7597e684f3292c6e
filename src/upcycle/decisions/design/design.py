"""`upcycle design`: what a planned sweep would determine, before it is trained.

Simulates the sweep under a law and a noise, refits, and reports the expected intervals of every parameter and of D*,
what is not identifiable, and which further runs shrink the band of D* most per FLOP.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from upcycle.bars import showing
from upcycle.decisions.curves import Curve, ThreeLaws, published, read_three_laws
from upcycle.decisions.design.answer import DesignAnswer, Verified
from upcycle.decisions.design.candidates import Candidate, largest, linearise, rank, simulated_error
from upcycle.decisions.design.grid import (
    PAPER_BUDGETS,
    PAPER_N1,
    PlannedSweep,
    from_grids,
    from_study,
    parse_numbers,
)
from upcycle.decisions.design.model import extended, set_up
from upcycle.decisions.design.simulation import design_doubts, simulate_sweeps
from upcycle.decisions.design.words import design_in_words
from upcycle.decisions.quantities import quantity
from upcycle.decisions.thresholds import Threshold
from upcycle.errors import UserError
from upcycle.files import plain
from upcycle.laws.certificate.validate import seed_noise
from upcycle.laws.forms import get_law
from upcycle.laws.own_losses import finite_number, named_values
from upcycle.laws.tables.losses import read_losses
from upcycle.study.plan import Plan
from upcycle.study.study import StudyConfig

SHOWN = 5
"""Further runs that are listed."""


def design(
    sweep: PlannedSweep,
    three: ThreeLaws,
    noise: float,
    *,
    law: str | None = None,
    fix: Mapping[str, float | None] | None = None,
    at_n1: float | None = None,
    simulations: int = 400,
    seed: int = 0,
    noise_words: str = "given",
) -> DesignAnswer:
    """Simulate a planned sweep, look at D*, rank further runs, and simulate again with the best (see `set_up`).

    Raises `UserError` for laws, parameters, noise or counts that cannot be.
    """
    setting = set_up(sweep, three, law=law, fix=fix, at_n1=at_n1)
    simulated = simulate_sweeps(setting, noise, simulations=simulations, seed=seed)
    answer = DesignAnswer(setting, three.source, noise_words, simulated)
    threshold = simulated.threshold()
    if threshold is None:
        return answer
    linearised = linearise(setting, noise, threshold)
    if not linearised.determined:
        setting = replace(setting, no_d_star="its runs do not determine both laws where D* is asked for")
        return replace(answer, setting=setting, simulated=replace(simulated, setting=setting))
    candidates: list[Candidate] = []
    if math.isfinite(linearised.error()):
        candidates = [candidate for candidate in rank(linearised) if candidate.gain_per_flop > 0]
    best = largest(candidates, sweep.flops)
    verified = []
    for candidate in [*candidates[:1], *([best] if best is not None and best is not candidates[0] else [])]:
        again = simulate_sweeps(extended(setting, candidate.added), noise, simulations=simulations, seed=seed)
        found = again.threshold()
        assert found is not None
        verified.append(Verified(candidate, found, simulated_error(again, linearised.target)))
    return replace(
        answer,
        threshold=threshold,
        linearised=linearised,
        ranked=tuple(candidates[:SHOWN]),
        largest=best,
        error=simulated_error(simulated, linearised.target),
        verified=tuple(verified),
    )


class PlannedStudy(Protocol):
    """A study as the command line reads it."""

    @property
    def study(self) -> StudyConfig:
        """Its settings."""

    @property
    def plan(self) -> Plan:
        """Its runs."""

    @property
    def out(self) -> Path:
        """Its folder of results."""


ReadStudy = Callable[[], PlannedStudy]
"""Reads the study that `--study` names; called only where an answer needs it."""


def run_design(args: argparse.Namespace, read_study: ReadStudy) -> None:
    """The verb: print the answer in words and tables, or with --json as data."""
    with showing("refits of simulated sweeps"):
        answer = from_arguments(args, read_study)
    print(json.dumps(as_data(answer), indent=1, allow_nan=False) if args.json else design_in_words(answer))


def from_arguments(args: argparse.Namespace, read_study: ReadStudy) -> DesignAnswer:
    """The answer to a command line.

    Raises `UserError` naming the option that is wrong and how to fix it.
    """
    three = read_three_laws(args.fits) if args.fits else published(draws=0)
    three = with_values(three, args.law, parse_fix(args.values or "", "--values"))
    sweep, notes = _sweep(args, three, read_study)
    noise, noise_words = _noise(args, read_study)
    return design(
        replace(sweep, notes=(*sweep.notes, *notes)),
        three.without_draws(),
        noise,
        law=args.law,
        fix=parse_fix(args.fix),
        at_n1=quantity(args.at_n1, "--at-n1") if args.at_n1 else None,
        simulations=args.simulations,
        seed=args.seed,
        noise_words=noise_words,
    )


def with_values(three: ThreeLaws, law: str | None, values: Mapping[str, float | None]) -> ThreeLaws:
    """The truth with other values of the upcycled law; of another law (`law`) than the truth's, all are needed.

    Raises `UserError` for parameters that the law does not have, or lacks.
    """
    if not values:
        return three
    form = get_law(law) if law else three.upcycled.law
    for name, value in values.items():
        form.parameter(name)
        if value is None:
            raise UserError(f"--values: `{name}` needs a value, e.g. {name}=0.1")
    known = three.upcycled.values if form.name == three.upcycled.law.name else {}
    whole = {name: value for name, value in {**known, **values}.items() if value is not None}
    words = ", ".join(f"{name} = {value:g}" for name, value in values.items())
    return replace(
        three.without_draws(),
        upcycled=Curve(form, whole, None, three.upcycled.box),
        source=f"{three.source}, upcycled models by law `{form.name}` with {words}",
    )


def parse_fix(text: str, option: str = "--fix") -> dict[str, float | None]:
    """Parameters to hold: `E=0.165,beta=0.1`; a name alone is held at the truth (None).

    Raises `UserError` for a value that is no number.
    """
    return {
        name: None if value is None else finite_number(f"{option} {name}={value}", value)
        for name, value in named_values(text, option).items()
    }


def _sweep(args: argparse.Namespace, three: ThreeLaws, read_study: ReadStudy) -> tuple[PlannedSweep, list[str]]:
    """The runs that are planned."""
    grids = {"--d1": args.d1, "--d2": args.d2, "--n1": args.n1}
    given = [option for option, text in grids.items() if text]
    if args.sweep:
        if given:
            raise UserError(f"--sweep has a grid of its own: leave out {', '.join(given)}")
        planned = read_study()
        sweep, notes = from_study(planned.study, planned.plan, args.sweep), []
        if (sweep.n_expert, sweep.top_k) != (three.n_expert, three.top_k):
            mixtures = (
                f"{three.n_expert} experts, top-{three.top_k}; the sweep's have {sweep.n_expert}, top-{sweep.top_k}"
            )
            notes.append(f"The truth is of mixtures of {mixtures}: its numbers are a guess for them.")
        return sweep, notes
    if given and len(given) < len(grids):
        raise UserError(
            f"a grid needs --d1, --d2 and --n1 (or --sweep); add {', '.join(sorted(set(grids) - set(given)))}"
        )
    numbers = [
        parse_numbers(text or otherwise, option)
        for (option, text), otherwise in zip(grids.items(), (PAPER_BUDGETS, PAPER_BUDGETS, str(PAPER_N1)), strict=True)
    ]
    sweep = from_grids(*numbers, n_expert=three.n_expert, top_k=three.top_k)
    return sweep, [] if given else ["There was no grid given: the paper's 5 x 5 budgets of its 0.1B model."]


def _noise(args: argparse.Namespace, read_study: ReadStudy) -> tuple[float, str]:
    """Standard deviation of a loss in nats, and where it is from."""
    if args.noise is not None:
        return quantity(args.noise, "--noise"), "given"
    path = read_study().out / "losses.csv"
    fix = "give --noise, e.g. 0.003"
    try:
        measured = seed_noise(read_losses(path))
    except UserError as error:
        raise UserError(f"no noise measured: {error}; or {fix}") from None
    if measured is None:
        raise UserError(f"{path}: no run was repeated with another seed, so no noise is measured; {fix}")
    return measured.deviation, (
        f"measured in {path}: {measured.points} settings repeated with other seeds, {measured.freedom} degrees of "
        f"freedom, so within {100 / math.sqrt(2 * measured.freedom):.0f} %"
    )


def as_data(answer: DesignAnswer) -> dict[str, Any]:
    """The answer as JSON data; what is not finite is null."""
    setting, simulated = answer.setting, answer.simulated
    sides = setting.sides()
    interaction = simulated.interaction()
    data = {
        "planned": {
            "words": setting.sweep.words,
            "runs": {name: len(side.loss_N) for name, side in sides.items()},
            "flops_6nd": setting.sweep.flops,
        },
        "truth": answer.source,
        "noise": {"value": simulated.noise, "unit": "nats", "source": answer.noise_words},
        "simulations": simulated.simulations,
        "converged": simulated.converged,
        "laws": {name: side.law.name for name, side in sides.items()},
        "parameters": {
            name: {
                parameter: {
                    "truth": expected.truth,
                    "unit": sides[name].law.parameter(parameter).unit,
                    "median": None if expected.undetermined else expected.median,
                    "interval": None if expected.undetermined else list(expected.interval),
                    "relative_deviation": None if expected.undetermined else expected.relative,
                    "held": expected.held or None,
                    "identifiable": not expected.doubt,
                    "doubt": expected.doubt or None,
                }
                for parameter, expected in side.items()
            }
            for name, side in simulated.parameters.items()
        },
        "alpha3": None if interaction is None else asdict(interaction),
        "d_star": _threshold_data(answer.threshold) | {"n1": setting.n1} if answer.threshold else None,
        "no_d_star": setting.no_d_star or None,
        "not_identifiable": [
            {"of": name, "parameters": list(names), "why": why} for name, names, why in design_doubts(simulated)
        ],
        "further_runs": _further(answer),
        "notes": list(setting.notes),
    }
    return dict(plain(data))


def _threshold_data(threshold: Threshold) -> dict[str, Any]:
    return {
        "roots": list(threshold.roots),
        "interval": None if threshold.band is None else list(threshold.band),
        "shares": dict(threshold.shares),
        "unit": "tokens",
    }


def _further(answer: DesignAnswer) -> dict[str, Any] | None:
    if answer.linearised is None:
        return None

    def one(candidate: Candidate) -> dict[str, Any]:
        share = candidate.flops / answer.setting.sweep.flops
        return {
            "run": candidate.words,
            "flops_6nd": candidate.flops,
            "share_of_sweep": share,
            "standard_error": candidate.error,
            "reduction_per_flop": candidate.gain_per_flop,
        }

    return {
        "target": answer.linearised.target.what,
        "standard_error": answer.linearised.error(),
        "per_flop": [one(candidate) for candidate in answer.ranked],
        "largest": one(answer.largest) if answer.largest else None,
        "simulated_standard_error": answer.error,
        "simulated": [
            one(each.candidate) | {"simulated_standard_error": each.error, "d_star": _threshold_data(each.threshold)}
            for each in answer.verified
        ],
    }
