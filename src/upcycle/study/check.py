"""What a study names must exist: its file, data sets, methods, laws, figures, tables and execution settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upcycle.errors import UserError, nearest
from upcycle.study.catalogue import catalogue
from upcycle.study.execution import Execution
from upcycle.study.registry import law_names, method_names
from upcycle.study.study import StudyConfig


def study_file(name: str, root: Path) -> Path:
    """`default` is config.yaml at the root; any other study is config/<name>.yaml.

    Raises `UserError` naming the nearest study.
    """
    if name == "default":
        return root / "config.yaml"
    path = root / "config" / f"{name}.yaml"
    if not path.exists():
        raise UserError(
            f"no study `{name}` (config/{name}.yaml); {nearest(name, [p.stem for p in path.parent.glob('*.yaml')])}"
        )
    return path


def override_execution(execution: Execution, config: dict[str, Any]) -> Execution:
    """Execution settings given to Snakemake by --config (a profile's `device`), over the study's.

    Raises `UserError` for an unknown or ill-typed one.
    """
    given = {key: value for key, value in config.items() if key != "study"}
    for key in given:
        if key not in Execution.model_fields:
            raise UserError(f"--config {key}: not a setting; {nearest(key, ['study', *Execution.model_fields])}")
    try:
        return Execution.model_validate({**execution.model_dump(), **given})
    except ValueError as error:
        raise UserError(f"--config: {error}") from None


def check_names(study: StudyConfig) -> None:
    """Data sets, laws, figures and tables that a study names must exist, and have the options that it gives them.

    Raises `UserError` naming the key and the nearest valid name.
    """
    from upcycle.data.datasets import find_dataset

    laws = law_names()
    for where, dataset, version in dataset_references(study):
        if dataset not in study.datasets:
            try:
                find_dataset(dataset, version)
            except UserError as error:
                raise UserError(f"{where}: {error} (or describe your own under `datasets`)") from None
    for name, sweep in study.sweeps.items():
        for method in sweep.method:
            if method not in method_names():
                raise UserError(f"sweeps.{name}.method: unknown method `{method}`; {nearest(method, method_names())}")
    for name, fit in study.fits.items():
        if fit.law not in laws:
            raise UserError(f"fits.{name}.law: unknown law `{fit.law}`; {nearest(fit.law, laws)}")
    _check_items(study)


def _check_items(study: StudyConfig) -> None:
    """Figures and tables: their names, the type of each option, and the sweep and model that one names."""
    items = catalogue()
    grids = {name: sweep for name, sweep in study.sweeps.items() if sweep.kind == "upcycled"}
    named: dict[str, Mapping[str, object]] = {"model": study.models, "sweeps": study.sweeps, "sweep": grids}
    for section, kind in (("figures", "figure"), ("tables", "table")):
        known = {name: item for name, item in items.items() if item.kind == kind}
        for name, options in getattr(study, section).items():
            if name not in known:
                raise UserError(f"{section}.{name}: unknown {kind}; {nearest(name, known)}")
            if "sweep" in known[name].parameters and not grids:
                raise UserError(f"{section}.{name}: it shows an upcycled sweep and the study has none; leave it out")
            for option, value in known[name].read(options).items():
                for each in value if isinstance(value, list) else [value]:
                    if option in named and each is not None and each not in named[option]:
                        what = "upcycled sweep" if option == "sweep" else option.removesuffix("s")
                        where, fix = f"{section}.{name}.{option}", nearest(each, named[option])
                        raise UserError(f"{where}: the study has no {what} `{each}`; {fix}")


def dataset_references(study: StudyConfig) -> list[tuple[str, str, str]]:
    """(key path, data set, version) wherever a study names a data set."""
    references = [("data.dataset", study.data.dataset, study.data.version)]
    for name, evaluation in study.evaluations.items():
        references.append((f"evaluations.{name}.dataset", evaluation.dataset, evaluation.version))
    for name, sweep in study.sweeps.items():
        for section in ("set", "dense_set"):
            for dataset in getattr(sweep, section).get("data.dataset", []):
                references.append((f"sweeps.{name}.{section}", str(dataset), study.data.version))
    return references
