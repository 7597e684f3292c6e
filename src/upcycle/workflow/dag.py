"""What the Snakefile knows: the frozen plan, the paths of everything, and which products are stale.

Imported whenever the Snakefile is parsed, on every node of a cluster too, so neither torch nor matplotlib is.
Training is keyed by content: a run's id is a hash of its settings. Products (losses, fits, figures, tables, report)
are keyed by their code's fingerprint, their settings and the keys of their sources; beside the key each job records
digests of what it read (`records`). Snakemake compares only one input of a product by date, its key file under
results/.keys: the file is old while the product is fresh and new when it is stale. So copied results, touched files
and edited comments rebuild nothing, and an edited figure function redraws its figure, whatever Snakemake's own records.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from upcycle.data.sources import sha256_file
from upcycle.errors import UserError, nearest
from upcycle.files import given_path, read_record
from upcycle.fingerprint import PACKAGE_ROOT, fingerprint
from upcycle.manifest import MANIFEST
from upcycle.study.benchmark import BenchmarkConfig, asked_sha256
from upcycle.study.catalogue import CatalogueItem, catalogue
from upcycle.study.check import OF_BENCHMARKS, OF_FORECASTS
from upcycle.study.imported import study_names
from upcycle.study.plan import Plan
from upcycle.study.spec import DataConfig, canonical_json
from upcycle.study.study import EvaluationConfig, ImportedStudy, StudyConfig
from upcycle.study.targets import ForecastRuns, forecast_runs
from upcycle.workflow.nodes import Node
from upcycle.workflow.paths import (
    RESULTS,
    benchmark_path,
    evaluation_path,
    evaluation_tokens_id,
    forecast_path,
    forecasts_of,
    metrics_path,
    on_disk,
    tokens_path,
)
from upcycle.workflow.records import Digests, Made, read_made


@dataclass(frozen=True)
class Product:
    """Something cheap made from finished runs, and the key that it must have been made with."""

    name: str
    outputs: list[str]
    inputs: list[str]
    key: str
    sources: tuple[str, ...] = ()
    """Products that it reads."""
    files: tuple[str, ...] = ()
    """What it reads of run folders: metrics.json, or results of evaluations."""

    @property
    def verb(self) -> str:
        """The command that makes it."""
        folder, _, name = self.name.partition("/")
        return f"upcycle {folder.removesuffix('s')} {name}" if name else f"upcycle {folder}"


@dataclass(frozen=True)
class TokenRecipe:
    """How a token set is made."""

    data: DataConfig
    borrowed_from: str | None = None
    """Folder name of the token set whose tokenizer it uses."""


@dataclass(frozen=True)
class Workflow:
    """One study as Snakemake sees it; built once when the Snakefile is parsed.

    Everything beyond study and plan is found when it is asked for, and once: the parse that a job of a cluster repeats
    asks for little, and what a study's size multiplies is looked up, not searched.
    """

    study: StudyConfig
    plan: Plan
    out: Path
    node: Node | None = None
    """A node of the cluster that runs the jobs; None: this machine runs them."""
    frozen_keys: Mapping[str, str] = field(default_factory=dict)
    """Keys of the products as the running invocation found them; none in the process that the user started."""

    @cached_property
    def products(self) -> dict[str, Product]:
        """Everything made from finished runs, each after what it is made from, by name: `losses`, `figures/figure4`."""
        return list_products(self)

    @cached_property
    def digests(self) -> Digests:
        """Digests of files that products read and wrote."""
        return Digests(RESULTS)

    # Runs

    def runs_of(self, kind: str) -> str:
        """Pattern of the ids of one kind of run (a wildcard constraint): those that begin with its word.

        Snakemake tries the pattern on every file, so it must not list the ids. Only orphans are excluded by name: a run
        that is finished, and whose parent is gone, is a plain file to Snakemake, or it would train the parent again.
        """
        orphans = "|".join(re.escape(run_id) for run_id in self.plan.orphans)
        return (f"(?!(?:{orphans})/)" if orphans else "") + rf"{kind}-[A-Za-z0-9_.-]+"

    def check_planned(self, run_id: str) -> None:
        """Raise `UserError` for a run that the study does not plan."""
        if run_id not in self.plan.runs:
            raise UserError(
                f"study `{self.plan.study}` plans no run `{run_id}` (for another study give --study NAME); "
                f"{nearest(run_id, list(self.plan.runs))}"
            )

    def parent_of(self, run_id: str) -> list[str]:
        """metrics.json of the run that this one starts from."""
        return [metrics_path(parent) for parent in self.plan.needs(run_id)]

    def checkpoint_of(self, run_id: str) -> Path:
        """The Hugging Face folder that an imported run reads."""
        model, _ = self.plan.names[run_id]
        folder = self.study.models[model].checkpoint
        assert folder is not None
        return given_path(folder)

    def tokens_of(self, run_id: str) -> str:
        """Manifest of the tokens that a run reads."""
        return tokens_path(self.plan.runs[run_id].data.tokens_id)

    # Forecasts

    @cached_property
    def forecasts(self) -> dict[str, ForecastRuns]:
        """The runs of each forecast of the study, by its name."""
        return forecast_runs(self.study.forecasts, self.plan)

    def forecasts_before(self, run_id: str) -> list[str]:
        """Files of the forecasts that a run waits for, or waited for when it trained, in whichever study.

        Snakemake compares the inputs of a finished run with those that it had, so they stay the same once it trained.
        """
        written = self._written_forecasts.get(run_id, [])
        names = [name for name, runs in self.forecasts.items() if run_id in runs.waiting]
        if not names or on_disk(metrics_path(run_id)):
            return written
        return sorted({*written, *(forecast_path(self.out, name) for name in names)})

    @cached_property
    def _written_forecasts(self) -> dict[str, list[str]]:
        """Files of all studies' forecasts, by the runs that wait for them."""
        found: dict[str, list[str]] = {}
        for path in sorted([*RESULTS.glob("forecasts/*.json"), *RESULTS.glob("*/forecasts/*.json")]):
            for run_id in read_record(path)["waiting"]:
                found.setdefault(run_id, []).append(str(path))
        return found

    @property
    def forecasts_not_written(self) -> str:
        """Pattern of the names of forecasts not written yet. One that is has no rule, so it is never made again."""
        names = [name for name in self.study.forecasts if not on_disk(forecast_path(self.out, name))]
        return "|".join(names) or "no-such-forecast"

    def check_unforeseen(self, name: str) -> None:
        """Raise `UserError` if a run that a forecast predicts, or that only such runs need, is finished already."""
        for run_id in sorted(self.forecasts[name].waiting):
            if on_disk(metrics_path(run_id)):
                raise UserError(
                    f"forecasts.{name}: run {run_id}, which waits for the forecast, is finished, so nothing could be "
                    "forecast; raise `up_to` beyond it, or leave the forecast out"
                )

    # Other texts

    @cached_property
    def evaluations(self) -> dict[str, list[tuple[str, str]]]:
        """(run, result file) of every evaluation of the study, by its name."""
        return {
            name: [(run_id, evaluation_path(run_id, evaluation)) for run_id in self._evaluated(evaluation)]
            for name, evaluation in self.study.evaluations.items()
        }

    @cached_property
    def benchmarks(self) -> dict[str, list[tuple[str, str, str]]]:
        """(run, task, result file) of every benchmark of the study, by its name."""
        return {
            name: [
                (run_id, task, benchmark_path(run_id, benchmark, task))
                for run_id in self._evaluated(benchmark)
                for task in benchmark.tasks
            ]
            for name, benchmark in self.study.benchmarks.items()
        }

    @cached_property
    def stale_benchmarks(self) -> set[str]:
        """Result files that are missing, or are of other weights, documents or prompts than there are now."""
        return {
            path
            for name, asked in self.benchmarks.items()
            for run_id, task, path in asked
            if not self._is_scored(run_id, task, path, self.study.benchmarks[name].own(task))
        }

    def _is_scored(self, run_id: str, task: str, path: str, own: Path | None) -> bool:
        result, weights = _json(Path(path)), _json(RESULTS / "runs" / run_id / MANIFEST)
        gone = own is not None and not own.exists()  # the documents of finished scores may be
        return (
            result is not None
            and (weights is None or weights["files"]["weights.safetensors"]["sha256"] == result["weights_sha256"])
            and (gone or result["asked_sha256"] == asked_sha256(task, own))
        )

    def _evaluated(self, evaluation: EvaluationConfig | BenchmarkConfig) -> list[str]:
        """The finished models of its sweeps, each once, after the checkpoints that these begin with."""
        found: dict[str, None] = {}
        for sweep in evaluation.sweep:
            # Not by the model's name: two models, of several learning rates, may begin with one checkpoint.
            runs = self.plan.sweeps[sweep] if self.plan.checkpoints else ()
            begun = {self.plan.runs[run].dense_parent for run in runs}
            found |= dict.fromkeys(run for run in self.plan.checkpoints if run in begun)
        return list(found | {run: None for sweep in evaluation.sweep for run in self.plan.sweeps[sweep]})

    @cached_property
    def stale_evaluations(self) -> set[str]:
        """Result files that are missing, or are of other weights or tokens than those that are there now."""
        return {
            path
            for name, pairs in self.evaluations.items()
            for run_id, path in pairs
            if not self._is_evaluated(run_id, name, path)
        }

    def _is_evaluated(self, run_id: str, name: str, path: str) -> bool:
        result = _json(Path(path))
        weights = _json(RESULTS / "runs" / run_id / MANIFEST)
        tokens = _json(Path(self.evaluation_tokens(run_id, name)))
        return (
            result is not None
            and (weights is None or weights["files"]["weights.safetensors"]["sha256"] == result["weights_sha256"])
            and (tokens is None or tokens["fingerprint"] == result["tokens_fingerprint"])
        )

    @cached_property
    def token_sets(self) -> dict[str, TokenRecipe]:
        """Every token set that the study's runs and evaluations read, by folder name."""
        sets = {run.data.tokens_id: TokenRecipe(run.data) for run in self.plan.runs.values()}
        for evaluation in self.study.evaluations.values():
            text = {"dataset": evaluation.dataset, "version": evaluation.version, "decontaminate": True}
            for run in (self.plan.runs[run_id] for run_id in self._evaluated(evaluation)):
                recipe = TokenRecipe(run.data.model_copy(update=text), borrowed_from=run.data.tokens_id)
                sets[evaluation_tokens_id(run, evaluation)] = recipe
        return sets

    def evaluation_tokens(self, run_id: str, name: str) -> str:
        """Manifest of an evaluation's tokens, cut by the tokenizer that the run was trained with."""
        return tokens_path(evaluation_tokens_id(self.plan.runs[run_id], self.study.evaluations[name]))

    @cached_property
    def making_stages(self) -> dict[str, list[list[str]]]:
        """Steps of token sets that several jobs make, as found when first asked (`texts.stages_of`)."""
        return {}

    @property
    def tokens_not_made(self) -> str:
        """Pattern of the names of token sets that are not there.

        One that is there is a plain file to Snakemake: the steps that made a large one are gone, and without them
        Snakemake would make it again.
        """
        made = "|".join(re.escape(path.parent.name) for path in sorted(RESULTS.glob(f"tokens/*/{MANIFEST}")))
        return (f"(?!(?:{made})/)" if made else "") + "[A-Za-z0-9_.-]+"

    def tokenizer_source(self, tokens_id: str) -> list[str]:
        """Manifest of the token set whose tokenizer another one borrows, if it does."""
        source = self.token_sets[tokens_id].borrowed_from
        return [tokens_path(source)] if source else []

    # Products

    @cached_property
    def stale(self) -> frozenset[str]:
        """Names of the products that are missing, were made with another key, or from other content."""
        return frozenset(name for name, product in self.products.items() if self._is_stale(product))

    def _is_stale(self, product: Product) -> bool:
        made = self._made[product.name]
        if made is None or made.key != product.key or not all(map(on_disk, product.outputs)):
            return True
        return made.read != self.content_read(product)

    @cached_property
    def _made(self) -> dict[str, Made | None]:
        """How each product was made, by its name."""
        return {name: read_made(self.out, name) for name in self.products}

    @cached_property
    def _digests_read(self) -> dict[tuple[str, ...], str]:
        """Digests of lists of files of run folders, which many products have in common."""
        return {}

    def content_read(self, product: Product) -> dict[str, str]:
        """Digests of what a product reads: of its sources as recorded, of run folders from the files, when first asked.

        A job asks before its work: what changes meanwhile is found by the next parse.
        """
        content = {source: made.wrote for source in product.sources if (made := self._made[source])}
        if not product.files:
            return content
        if product.files not in self._digests_read:
            self._digests_read[product.files] = self.digests.of_all(product.files)
        return content | {"runs": self._digests_read[product.files]}

    def check_unaltered(self, product: Product) -> None:
        """Raise UserError naming a file of a product that is not what its job wrote; a missing one is stale only."""
        made = self._made[product.name]
        if made is None or not all(map(on_disk, product.outputs)):
            return
        if self.digests.of_all(product.outputs) != made.wrote:
            raise UserError(
                f"{' or '.join(product.outputs)}: altered or cut since `{product.verb}` wrote it; remove the file and "
                "call snakemake, which makes it again"
            )

    def made_from(self, product: Product, content: dict[str, str]) -> Made:
        """The record of a product that was just made from `content`."""
        return Made(key=product.key, read=content, wrote=self.digests.of_all(product.outputs))

    def may_be_made(self, path: str) -> bool:
        """Whether this invocation may make a file: of an unfinished run, of a stale product or evaluation.

        Such inputs are plain; all others are `ancient()`. (Were all of them ancient, Snakemake would not look at a
        product's own reasons once anything before it runs.)
        """
        if path not in self._may_be_made:
            self._may_be_made[path] = not on_disk(path) or path in self._stale_files
        return self._may_be_made[path]

    @cached_property
    def _may_be_made(self) -> dict[str, bool]:
        """As found when first asked: a file that a job makes meanwhile changes no input of the DAG."""
        return {}

    @cached_property
    def _stale_files(self) -> set[str]:
        return self.stale_evaluations.union(
            self.stale_benchmarks, *(self.products[name].outputs for name in self.stale)
        )

    def keys(self, name: str) -> str:
        """The key file of a product: its only input that is compared by date."""
        return str(self.out / ".keys" / name)

    def names(self, folder: str) -> list[str]:
        """Names of the products in a folder: fits, figures or tables."""
        return list(getattr(self.study, folder))

    @property
    def has_report(self) -> bool:
        """Whether the study upcycles: that is what a report is about."""
        return bool(study_names(self.study).upcycled)


def audit_digests() -> list[str]:
    """Digests of the files, beside code, that the audit's table is made from.

    They are its words, the printed numbers, and the paper's settings. The settings are missing where the package is
    installed apart from its repository: making the table then fails and names the file.
    """
    settings = PACKAGE_ROOT.parents[1] / "config" / "paper.yaml"
    words = sorted((PACKAGE_ROOT / "audit").rglob("*.yaml"))
    return [sha256_file(path) for path in (*words, settings) if path.is_file()]


def _key(*parts: Any) -> str:
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()[:16]


def list_products(workflow: Workflow) -> dict[str, Product]:
    """Losses, evaluations, fits, figures, tables and report, each after what it is made from."""
    study, plan, out = workflow.study, workflow.plan, workflow.out
    items: dict[str, CatalogueItem] = catalogue()
    products: dict[str, Product] = {}

    def add(
        name: str,
        outputs: list[str],
        files: tuple[str, ...],
        code: tuple[str, ...],
        *settings: Any,
        of: list[str],
        also: tuple[str, ...] = (),
    ) -> None:
        key = workflow.frozen_keys.get(name)
        if key is None:
            key = _key(name, fingerprint(*code), settings, [products[source].key for source in of])
        inputs = [output for source in of for output in products[source].outputs]
        # Figures, tables and the report also read curves of runs, which are there once losses.csv is.
        inputs += also if of else files
        products[name] = Product(name, [str(out / output) for output in outputs], inputs, key, tuple(of), files + also)

    runs = tuple(metrics_path(run_id) for run_id in plan.runs)
    rows = {run_id: [sweeps, plan.names[run_id]] for run_id, sweeps in plan.membership().items()}
    finished = tuple(metrics_path(run_id) for run_id in plan.finished_models)
    losses_code = ("upcycle.laws.tables.losses",)
    taken = tuple(study.losses_from) if isinstance(study, ImportedStudy) else ()
    gathered_by = ("upcycle.laws.tables.importing",) if taken else losses_code
    add("losses", ["losses.csv"], taken or finished, gathered_by, rows, of=[])
    evaluations = {name: evaluation.model_dump() for name, evaluation in study.evaluations.items()}
    if evaluations:
        files = tuple(path for pairs in workflow.evaluations.values() for _, path in pairs)
        add("evaluations", ["evaluations.csv"], files, losses_code, evaluations, files, of=[])
    benchmarks = {name: benchmark.model_dump() for name, benchmark in study.benchmarks.items()}
    if benchmarks:
        files = tuple(path for asked in workflow.benchmarks.values() for _, _, path in asked)
        add("benchmarks", ["benchmarks.csv"], files, losses_code, benchmarks, files, of=[])
    fit_code = ("upcycle.laws.fit", "upcycle.laws.forms", "upcycle.laws.tables.losses")
    for name, fit in study.fits.items():
        add(f"fits/{name}", [f"fits/{name}.json"], (), fit_code, fit.model_dump(), of=["losses"])
    fits = [name for name in products if name.startswith("fits/")]
    for folder, suffixes in (("figures", (".svg", ".pdf")), ("tables", (".csv", ".md"))):
        for name, options in getattr(study, folder).items():
            outputs = [f"{folder}/{name}{suffix}" for suffix in suffixes]
            code: tuple[str, ...] = (f"{items[name].module}:{items[name].function}", "upcycle.paper.draw")
            of_study = items[name].of_study
            # What is the same for every study is the audit; its sources are not code alone.
            settings = [options] if of_study else [options, audit_digests()]
            reads = ["losses", *fits, *(["benchmarks"] if name in OF_BENCHMARKS else [])] if of_study else []
            also = tuple(map(str, forecasts_of(study, out).values())) if name in OF_FORECASTS else ()
            add(f"{folder}/{name}", outputs, runs if of_study else (), code, *settings, of=reads, also=also)
    sources = list(products)
    captions = {name: [items[name].title, items[name].caption] for name in (*study.figures, *study.tables)}
    if workflow.has_report:
        templates = PACKAGE_ROOT / "report"
        page = [sha256_file(path) for path in sorted([*templates.glob("*.j2"), *templates.glob("*.css")])]
        code = ("upcycle.report.page",)
        add("report", ["report.html", "summary.txt"], runs, code, page, captions, study.title, of=sources)
    return products


def _json(path: Path) -> Any:
    """A JSON file's content; None where there is none."""
    return read_record(path) if path.exists() else None
