"""What a study names must exist: its file, data sets, methods, laws, figures, tables and execution settings."""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from upcycle.data.versions import full_version
from upcycle.errors import UserError, brief, nearest
from upcycle.fingerprint import PACKAGE_ROOT
from upcycle.study.absent import without_absent
from upcycle.study.catalogue import ItemKind, catalogue
from upcycle.study.columns import KINDS
from upcycle.study.execution import Execution
from upcycle.study.expressions import check_condition, parse
from upcycle.study.imported import StudyNames, forecast_files, study_names
from upcycle.study.kernel_fit import named_kernels
from upcycle.study.registry import law_names, method_parameters
from upcycle.study.study import EvaluationConfig, FitConfig, ImportedStudy, StudyConfig, describe_error, load_study
from upcycle.study.values import NAME_LENGTH, is_name

DEFAULT = "default"
CHECKOUT = PACKAGE_ROOT.parents[1]
"""The folder of config.yaml, config/, Snakefile and workflow/ that this package was installed from."""
RESERVED = ("evaluations", "figures", "fits", "forecasts", "logs", "runs", "simulated", "tables", "tokens")
"""Folders of results/: a study of such a name would write among another's products."""

OF_BENCHMARKS = ("table7",)
"""Figures and tables that read benchmarks.csv."""
OF_FORECASTS = ("forecasts", "forecast_errors")
"""Figures and tables that read files of forecasts."""
OF_ONE_SET_OF_KERNELS = ("methods", "methods_compared")
"""Figures and tables of differences so small that other kernels would make them: the study must fix its kernels."""
OF_RUNS = (
    *("figure3", "figure7", "figure8", "figure9", "figure10", "routing", "methods", "methods_compared"),
    *("table3", "table4", "table5", "table6"),
)
"""Figures and tables that read more of a run than its row of losses.csv: its curve, or its specification."""


def find_study(name: str, root: Path) -> StudyConfig:
    """The study of this name: `default` is config.yaml, any other config/<name>.yaml.

    Looked for under `root`, the folder that Snakemake works in, then in the checkout: with `--directory` a folder of
    results need not hold a copy of the configs. Raises `UserError` naming the nearest study, or the key `study` of a
    file that says another name than the file's.
    """
    path = find_study_file(name, root)
    study = load_study(path)
    if study.study != name:
        raise UserError(
            f"{path}: `study: {study.study}`, but its file name makes it study `{name}`; write `study: {name}`, or "
            f"rename the file to config/{study.study}.yaml"
        )
    study = without_absent(study)
    texts = {name: each.model_copy(update=_full_version(each)) for name, each in study.evaluations.items()}
    return study.model_copy(update={"evaluations": texts})


def _full_version(evaluation: EvaluationConfig) -> dict[str, str]:
    return {"version": full_version(evaluation.dataset, evaluation.version)}


def study_file(name: str) -> Path:
    """Where the file of a study is, in the folder that Snakemake works in: config.yaml for `default`.

    Raises `UserError` for a name that no study can have, and says why.
    """
    if not is_name(name):
        raise UserError(
            f"study {brief(name)}: a study's name, which is its file's, is 1 to {NAME_LENGTH} letters, digits, `_`, "
            "`.` or `-`, the first a letter or digit"
        )
    if name in RESERVED:
        raise UserError(f"study `{name}`: results/{name} is a folder of the default study; give it another name")
    return Path("config.yaml") if name == DEFAULT else Path("config") / f"{name}.yaml"


def find_study_file(name: str, root: Path) -> Path:
    """The file of a study that is there, under `root` or in the checkout.

    Raises `UserError` naming the nearest study.
    """
    relative = study_file(name)
    places = list(dict.fromkeys((root, CHECKOUT)))
    for place in places:
        if (place / relative).exists():
            return place / relative
    known = [DEFAULT, *(path.stem for place in places for path in (place / "config").glob("*.yaml"))]
    raise UserError(f"no study `{name}` ({relative}); {nearest(name, known)}")


def list_studies(root: Path) -> list[str]:
    """Names of the studies whose files are under `root`."""
    named = sorted(path.stem for path in (root / "config").glob("*.yaml") if is_name(path.stem))
    return [*([DEFAULT] if (root / study_file(DEFAULT)).exists() else []), *named]


def override_execution(execution: Execution, settings: dict[str, Any]) -> Execution:
    """Execution settings given to Snakemake by --config (a profile's `device`), over the study's.

    Raises `UserError` for an unknown or ill-typed one.
    """
    for key in settings:
        if key not in Execution.model_fields:
            raise UserError(f"--config {key}: not a setting; {nearest(key, ['study', *Execution.model_fields])}")
    try:
        return Execution.model_validate({**execution.model_dump(), **settings})
    except ValidationError as error:
        raise UserError(f"--config: {describe_error(error)}") from None


def check_names(study: StudyConfig) -> None:
    """Data sets, laws, figures and tables that a study names must exist and have the options that it gives them.

    Raises `UserError` naming the key and the nearest valid name.
    """
    from upcycle.data.benchmarks import BENCHMARK_TASKS
    from upcycle.data.datasets import DATASETS, find_dataset

    for name in study.datasets:
        if name in DATASETS:
            raise UserError(f"datasets.{name}: `{name}` is a built-in data set; give your files another name")
    for where, dataset, version in [] if isinstance(study, ImportedStudy) else dataset_references(study):
        if dataset in study.datasets:
            continue
        try:
            found = find_dataset(dataset, version)
        except UserError as error:
            raise UserError(f"{where}: {error} (or describe your own under `datasets`)") from None
        if found.heldout_fraction == 1 and not where.startswith("evaluations."):
            raise UserError(
                f"{where}: `{dataset}` is for evaluation only, it has no text to train on; name it under "
                "`evaluations`, and another data set here"
            )
    for name, sweep in study.sweeps.items():
        for method in sweep.method or ():
            if method not in method_parameters():
                raise UserError(
                    f"sweeps.{name}.method: unknown method `{method}`; {nearest(method, method_parameters())}"
                )
    for name, benchmark in study.benchmarks.items():
        for task in benchmark.tasks:
            if task not in BENCHMARK_TASKS:
                raise UserError(f"benchmarks.{name}.tasks: unknown task `{task}`; {nearest(task, BENCHMARK_TASKS)}")
    names = study_names(study)
    for name, fit in study.fits.items():
        check_fit(f"fits.{name}", fit)
        chosen = [study.sweeps[each] for each in fit.sweep if each in study.sweeps]
        methods = sorted({each for sweep in chosen if sweep.kind == "upcycled" for each in sweep.method or ["copy"]})
        if len(methods) > 1 and "method" not in fit.where:
            raise UserError(
                f"fits.{name}: its sweeps have upcycled models of methods {', '.join(methods)}, and a law is fitted to "
                f"one; choose with `where`, e.g. `where: method == '{methods[0]}'`"
            )
        for wanted in (*fit.sweep, *fit.floor_from):
            if wanted not in names.sweeps:  # of rows from files; a study's own were checked when it was read
                raise UserError(
                    f"fits.{name}: no row of `losses_from` is of sweep `{wanted}`; {nearest(wanted, names.sweeps)}"
                )
    for name, forecast in study.forecasts.items():
        for each in forecast.laws:
            check_fit(f"forecasts.{name}.laws", FitConfig(law=each, sweep=[forecast.sweep]))
    _check_items(study, names)


def _check_items(study: StudyConfig, names: StudyNames) -> None:
    """Figures and tables: their names, the type of each option, and the sweep and model that one names."""
    grids = names.upcycled
    named: dict[str, Collection[str]] = {"model": names.models, "sweeps": names.sweeps, "sweep": grids}
    kinds: tuple[ItemKind, ...] = ("figure", "table")
    for section, kind in ((f"{kind}s", kind) for kind in kinds):
        known = catalogue(kind)
        for name, options in getattr(study, section).items():
            if name not in known:
                raise UserError(f"{section}.{name}: unknown {kind}; {nearest(name, known)}")
            if name in OF_RUNS and isinstance(study, ImportedStudy):
                raise UserError(
                    f"{section}.{name}: it reads folders of runs, and losses from files have none; leave it out"
                )
            if name in OF_BENCHMARKS and not study.benchmarks:
                raise UserError(f"{section}.{name}: it shows scores of `benchmarks`, and the study has none; add them")
            if name in OF_FORECASTS and not (study.forecasts or forecast_files(study)):
                raise UserError(f"{section}.{name}: it scores `forecasts`, and the study has none; add them")
            if name in OF_ONE_SET_OF_KERNELS and not isinstance(study, ImportedStudy):
                _check_fixed_kernels(f"{section}.{name}", study.execution)
            if "sweep" in known[name].parameters and not grids:
                raise UserError(f"{section}.{name}: it shows an upcycled sweep and the study has none; leave it out")
            for option, value in {**known[name].defaults, **known[name].read(options)}.items():
                for each in value if isinstance(value, (list, tuple)) else [value]:
                    if option in named and each is not None and each not in named[option]:
                        what = "upcycled sweep" if option == "sweep" else option.removesuffix("s")
                        where = f"{section}.{name}.{option}" + ("" if option in options else " (as by default)")
                        raise UserError(f"{where}: the study has no {what} `{each}`; {nearest(each, named[option])}")
            if name == "laws":
                _check_compared(study, [options["sweep"]] if options.get("sweep") else sorted(grids))


def _check_fixed_kernels(where: str, execution: Execution) -> None:
    """Raise `UserError` where `auto` may choose other kernels for one run than for another."""
    if execution.layers == "native":
        return
    if execution.layers == "composed" and {"attention", "experts"} <= named_kernels(execution.kernels).keys():
        return
    raise UserError(
        f"{where}: it compares runs that must be computed by the same kernels, and `auto` may choose others for some; "
        "name execution.layers: native (device cpu, float32), or composed with execution.attention and "
        "execution.experts by name"
    )


def _check_compared(study: StudyConfig, sweeps: Collection[str]) -> None:
    """Table `laws` compares fits to the runs of one sweep: before it is trained, there must be such a fit."""
    if not any(fit.by is None and fit.sweep == [sweep] for fit in study.fits.values() for sweep in sweeps):
        raise UserError(
            f"tables.laws: it compares laws that are fitted to one upcycled sweep, and `fits` has none of "
            f"{' or '.join(f'`sweep: {name}`' for name in sweeps)}; add one, or leave the table out"
        )


def check_fit(key: str, fit: FitConfig) -> None:
    """What a fit names must exist: its law, the law's parameters, columns of losses.csv.

    Raises `UserError` naming the key and the nearest valid name.
    """
    laws = law_names()
    if fit.law not in laws:
        raise UserError(f"{key}.law: unknown law `{fit.law}`; {nearest(fit.law, laws)}")
    law = laws[fit.law]
    if law.of_fits:
        raise UserError(
            f"{key}.law: `{fit.law}` is fitted to parameters of other fits, not to losses: fit the law whose "
            f"parameters these are, with `by: {law.inputs[0]}`, and this law comes with it"
        )
    for section in ("fixed", "shared"):
        for parameter in getattr(fit, section):
            if parameter not in law.parameters:
                raise UserError(
                    f"{key}.{section}: law `{fit.law}` has no parameter `{parameter}`; "
                    f"{nearest(parameter, law.parameters)}"
                )
    if fit.floor_from and "E" not in law.parameters:
        raise UserError(f"{key}.floor_from: law `{fit.law}` has no parameter `E` to hold; leave `floor_from` out")
    if set(law.parameters) <= {*fit.fixed, *(["E"] if fit.floor_from else [])}:
        raise UserError(f"{key}.fixed: all parameters of law `{fit.law}` are held; leave one free")
    if fit.shared and fit.by is None:
        raise UserError(
            f"{key}.shared: without `by` there are no groups to share parameters; add `by`, or leave it out"
        )
    if fit.by in law.inputs:
        columns = get_args(get_args(FitConfig.model_fields["by"].annotation)[0])
        raise UserError(
            f"{key}.by: `{fit.by}` is an input of law `{fit.law}`: name a column that is constant within each fit, one "
            f"of {', '.join(column for column in columns if column not in law.inputs)}"
        )
    if fit.where.strip():
        try:
            check_condition(parse(fit.where, KINDS), KINDS)
        except UserError as error:
            raise UserError(f"{key}.where: {error}") from None


def dataset_references(study: StudyConfig) -> list[tuple[str, str, str]]:
    """(key path, data set, version) wherever a study names a data set."""
    references = [("data.dataset", study.data.dataset, study.data.version)]
    for name, evaluation in study.evaluations.items():
        references.append((f"evaluations.{name}.dataset", evaluation.dataset, evaluation.version))
    for name, sweep in study.sweeps.items():
        for section in ("set", "dense_set"):
            axes = getattr(sweep, section)
            if "data.dataset" in axes or "data.version" in axes:
                datasets = axes.get("data.dataset", [study.data.dataset])
                versions = axes.get("data.version", [study.data.version])
                where = f"sweeps.{name}.{section}"
                # What is no name is refused, by name, where the sweep is expanded.
                pairs = [pair for pair in product(datasets, versions) if all(map(is_name, pair))]
                references += [(where, each, version) for each, version in pairs]
    return references
