"""Sweeps on text that this machine cannot get: they are skipped, by name, and so is what shows them alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from upcycle.data.debian import AbsentTextError
from upcycle.data.versions import full_version
from upcycle.study.study import StudyConfig
from upcycle.study.values import is_name

log = logging.getLogger(__name__)


def without_absent(study: StudyConfig) -> StudyConfig:
    """The study without sweeps and evaluations on text that cannot be had here, each named in a warning.

    Left out too are fits, forecasts, figures and tables that name such a sweep. Raises `AbsentTextError` if no sweep is
    left.
    """
    reasons = {name: reason for name in study.sweeps if (reason := _absent(_texts(study, name)))}
    texts = {
        name: reason
        for name, each in study.evaluations.items()
        if (reason := _absent(iter([(each.dataset, each.version)])))
    }
    for kind, left_out in (("sweep", reasons), ("evaluation", texts)):
        for name, reason in left_out.items():
            log.warning("%s `%s` is skipped: %s", kind, name, reason)
    if reasons and len(reasons) == len(study.sweeps):
        raise next(iter(reasons.values()))
    if not reasons and not texts:
        return study
    evaluations = {
        name: each.model_copy(update={"sweep": [sweep for sweep in each.sweep if sweep not in reasons]})
        for name, each in study.evaluations.items()
        if name not in texts
    }
    benchmarks = {
        name: each.model_copy(update={"sweep": [sweep for sweep in each.sweep if sweep not in reasons]})
        for name, each in study.benchmarks.items()
    }
    return study.model_copy(
        update={
            "benchmarks": {name: each for name, each in benchmarks.items() if each.sweep},
            "sweeps": {name: sweep for name, sweep in study.sweeps.items() if name not in reasons},
            "evaluations": {name: each for name, each in evaluations.items() if each.sweep},
            "fits": {
                name: fit for name, fit in study.fits.items() if reasons.keys().isdisjoint(fit.sweep + fit.floor_from)
            },
            "forecasts": {
                name: each
                for name, each in study.forecasts.items()
                if reasons.keys().isdisjoint([each.sweep, *each.seeds])
            },
            "figures": {name: options for name, options in study.figures.items() if not _names(options, reasons)},
            "tables": {name: options for name, options in study.tables.items() if not _names(options, reasons)},
        }
    )


def _texts(study: StudyConfig, name: str) -> Iterator[tuple[str, str]]:
    """(data set, version) of the runs of a sweep and of their parents."""
    sweep, places = study.sweeps[name], [study.sweeps[name].set]
    begins = {name}
    while sweep.parents and sweep.parents not in begins:
        begins.add(sweep.parents)
        sweep = study.sweeps[sweep.parents]
        places.append(sweep.set)
    for axes in [*places, sweep.dense_set] if sweep.has_parents else places:
        pairs = product(axes.get("data.dataset", [study.data.dataset]), axes.get("data.version", [study.data.version]))
        yield from (pair for pair in pairs if all(map(is_name, pair)))  # others are refused where they are expanded


def _absent(texts: Iterator[tuple[str, str]]) -> AbsentTextError | None:
    for dataset, version in texts:
        try:
            full_version(dataset, version)
        except AbsentTextError as error:
            return error
    return None


def _names(options: Mapping[str, Any], sweeps: Mapping[str, Any]) -> bool:
    """Whether an option names one of these sweeps."""
    given = (options.get("sweep"), options.get("sweeps"))
    return any(name in sweeps for each in given for name in (each if isinstance(each, list) else [each]))
