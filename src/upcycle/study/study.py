"""A study: one strictly read config file of models, sweeps, fits and figures.

Layer 0. `load_study` reads YAML with a loader of its own (duplicate keys are errors, `8e-3` is a number)
and turns every mistake into one `UserError` that names the key path and the nearest valid name. Nothing is
merged: a study is exactly what is in its file. Docstrings of fields are the descriptions in the editor schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from upcycle.errors import UserError, brief, nearest
from upcycle.study.benchmark import BenchmarkConfig
from upcycle.study.counting import count_parameters
from upcycle.study.execution import Execution, ModelExecution
from upcycle.study.forecast import ForecastConfig
from upcycle.study.keep import KeepConfig
from upcycle.study.parent import AbsentError, give_shapes
from upcycle.study.shape import Frozen, ModelShape, ModelSpec, MoESpec
from upcycle.study.spec import EXPAND, DataConfig, OptimConfig, RunSpec, ScheduleKind, ScheduleSpec
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.texts import LocalDataset
from upcycle.study.values import (
    AnyNames,
    Axes,
    Budgets,
    Count,
    LearningRate,
    Name,
    Names,
    Number,
    Pair,
    Paths,
    PathText,
    Sequences,
    Share,
    Slug,
    Version,
    Vocabulary,
    Whole,
    Wholes,
    as_list,
)

Schedules = Annotated[
    list[ScheduleKind],
    BeforeValidator(as_list, json_schema_input_type=ScheduleKind | list[ScheduleKind]),
    Field(min_length=1),
]


class ScheduleConfig(Frozen):
    """WSD (A.5): the decay takes the last `decay_fraction` of a budget, down to `floor` of the maximum."""

    decay_fraction: Annotated[Share, Field(gt=0, lt=1)] = 0.1
    """Share of a budget's steps that the decay takes; rounded to whole steps, at least one."""
    floor: Share = ScheduleSpec.model_fields["floor"].default
    """Final learning rate as a share of the maximum; of wsd and cosine schedules."""


def _or_checkpoint(schema: dict[str, Any]) -> None:
    """Of a model in the editor's schema: its shape is given, or a checkpoint, whose shape `load_study` reads."""
    shape = [name for name, field in ModelShape.model_fields.items() if field.is_required()]
    schema["required"] = [name for name in schema["required"] if name not in shape]
    schema["anyOf"] = [{"required": shape}, {"required": ["checkpoint", "tokens"]}]


class ModelConfig(ModelShape):
    """Tables 3 and 5. A dense size and the settings tuned for it (its MoEs share all but the learning rate)."""

    model_config = ConfigDict(json_schema_extra=_or_checkpoint)

    checkpoint: PathText | None = None
    """A Hugging Face folder, in place of a shape: runs of kinds upcycled and continued begin with its weights."""
    tokens: Count | None = None
    """D1: the tokens that the checkpoint was trained on, as its owner states them."""
    vocab_size: Vocabulary | None = None
    """Rows of the embedding and of the head; None: `data.vocab_size`. A checkpoint's are its own."""
    batch: Sequences
    """Sequences of a step."""
    warmup_steps: Whole
    """Steps of linear warm-up."""
    lr: LearningRate
    """Largest learning rate of dense models, from scratch and continued."""
    lr_moe: LearningRate
    """Largest learning rate of mixtures, from scratch and upcycled."""
    max_steps: Count | None = None
    """Steps of the largest budget at `batch` and the study's context; `budgets` halves it (five points per size:
    inferred). They stand for tokens: a sweep that sets another batch or context trains as many tokens."""
    n_budget: Annotated[Count, Field(le=40)] | None = None
    """Number of budgets; None means 5."""
    execution: ModelExecution = ModelExecution()
    """How this model's own jobs are executed, where it differs from the study's `execution`: changing it retrains
    nothing."""
    execution_moe: ModelExecution = ModelExecution()
    """The same for its mixtures, from scratch and upcycled; a key left out is as in the model's `execution`."""
    n_dense: Count | None = None
    """Expected non-embedding parameters (Table 3), checked at plan time."""
    n_total_8: Count | None = None
    """Expected non-embedding parameters of its 8-expert MoE (Table 3), checked at plan time."""

    @property
    def budgets(self) -> list[int]:
        """Step budgets by halving from `max_steps`, ascending; empty without `max_steps`."""
        return [] if self.max_steps is None else [self.max_steps >> k for k in reversed(range(self.n_budget or 5))]

    @model_validator(mode="after")
    def _check_checkpoint(self) -> ModelConfig:
        if self.checkpoint is not None and self.tokens is None:
            raise ValueError("`tokens` is missing: how many the checkpoint was trained on (D1)")
        if self.checkpoint is None and self.tokens is not None:
            raise ValueError("`tokens` counts those of a `checkpoint`, which is not given")
        return self

    @model_validator(mode="after")
    def _check_halving(self) -> ModelConfig:
        if self.max_steps is None and self.n_budget is not None:
            raise ValueError("n_budget counts the halvings of max_steps, which is not given")
        times = (self.n_budget or 5) - 1
        if self.max_steps is not None and self.max_steps % 2**times:
            raise ValueError(f"max_steps {self.max_steps} cannot be halved {times} times; set n_budget")
        return self


class SweepConfig(Frozen):
    """A named grid of finished models. Lists are axes; the grid is their product."""

    kind: Literal["dense", "moe", "upcycled", "continued", "imported"]
    """Dense models or mixtures from scratch; mixtures upcycled from dense models; dense models trained on; checkpoints
    as they are."""
    model: Names
    """Names under `models`."""
    moe: AnyNames = []
    """Names under `moes`; for kinds moe and upcycled."""
    tokens: Budgets | None = None
    """Budgets D (D2 when upcycled or continued) in tokens, decay included, whatever batch and context `set` gives;
    trained in the nearest number of whole steps."""
    steps: Budgets | None = None
    """The same budgets in steps. Neither given: the model's own `budgets`."""
    dense_tokens: Budgets | None = None
    """Budgets D1 of the dense parents, in tokens; upcycled and continued only. A checkpoint's D1 is its `tokens`."""
    dense_steps: Budgets | None = None
    """The same in steps. Neither given: the model's own `budgets`."""
    points: Annotated[list[Pair], Field(min_length=1)] | None = None
    """Single [D1, D2] points in tokens, in place of a grid; upcycled and continued only."""
    method: Names | None = None
    """Upcycling methods; upcycled only. None: `copy`. `expand` begins with mixtures, all others with dense models."""
    parents: Slug | None = None
    """Of method `expand`, and only of that: a sweep of kind moe or upcycled, whose finished mixtures of the same model
    and seed are the parents. D1 is all their tokens, those of their own parents included."""
    schedule: Schedules | None = None
    """Of the finished models; their dense parents' is wsd unless `dense_set` gives `schedule.kind`. None: wsd."""
    seed: Annotated[Wholes, Field(min_length=1)] = [0]
    """Seeds of weights and of the data order (added to data.seed); a parent has its child's."""
    set: Axes = {}
    """Overrides by dotted path, e.g. `optim.lr: [1e-3, 2e-3]`; a list is an axis. `dtype` and every field of a run's
    model, moe, data, optim, schedule and upcycling; `data.seed` is taken as it is, nothing is added to it."""
    dense_set: Axes = {}
    """The same for the dense parents that are trained; upcycled and continued only."""

    @model_validator(mode="after")
    def _check_kind(self) -> SweepConfig:
        if self.kind == "imported" and (ignored := sorted(self.model_fields_set - {"kind", "model"})):
            raise ValueError(f"`{ignored[0]}`: kind imported trains nothing and has `model` alone; leave it out")
        if (self.kind in ("moe", "upcycled")) != bool(self.moe):
            raise ValueError("`moe` names the mixtures of kinds moe and upcycled, and only of those")
        if self.method and self.kind != "upcycled":
            raise ValueError(f"`method` belongs to kind upcycled: kind {self.kind} would ignore it")
        if (EXPAND in (self.method or ())) != (self.parents is not None):
            raise ValueError(f"method `{EXPAND}` and `parents`, a sweep of mixtures to begin with, belong together")
        if self.parents and self.method != [EXPAND]:
            raise ValueError(f"`{EXPAND}` begins with mixtures, other methods do not: give it a sweep of its own")
        for key in ("points", "dense_tokens", "dense_steps", "dense_set"):
            if getattr(self, key) and self.parents:
                raise ValueError(f"`{key}` is of dense parents: with `parents` it would be ignored")
            if getattr(self, key) and not self.has_parents:
                raise ValueError(f"`{key}` belongs to kinds upcycled and continued: kind {self.kind} ignores it")
        if (self.tokens and self.steps) or (self.dense_tokens and self.dense_steps):
            raise ValueError("give a budget in tokens or in steps, not both")
        if self.points and (self.tokens or self.steps or self.dense_tokens or self.dense_steps):
            raise ValueError("`points` takes the place of tokens and dense_tokens")
        if self.schedule and "schedule.kind" in self.set:
            raise ValueError("`schedule` and `schedule.kind` of `set` are one setting; give one of them")
        return self

    @property
    def has_parents(self) -> bool:
        """Whether its models begin with finished models."""
        return self.kind in ("upcycled", "continued")

    @property
    def has_checkpoints(self) -> bool:
        """Whether checkpoints that its models name are imported."""
        return self.has_parents or self.kind == "imported"


class EvaluationConfig(Frozen):
    """Held-out loss of finished models on another text."""

    dataset: Name
    """A built-in data set (`openwebtext-excerpts` is for evaluation only), or a name under `datasets`."""
    version: Version = "1"
    """Version of the text."""
    sweep: Names
    """Sweeps whose finished models are evaluated, and with them the checkpoints that these begin with."""
    max_tokens: Count = 65_536
    """At most so many tokens of its held-out part are read, in sequences evenly spread over it."""


class FitConfig(Frozen):
    """A law fitted to a selection of losses."""

    law: Name
    """Name of a law; `upcycle fit --law list` shows all."""
    sweep: Names
    """Sweeps whose losses are fitted."""
    where: str = ""
    """An expression over losses.csv's columns (`upcycle.study.expressions`), e.g. `D2 >= 5e5 and seed == 0`."""
    fixed: dict[str, Number] = {}
    """Parameters held at a value."""
    floor_from: AnyNames = []
    """Sweeps of dense models and MoEs from scratch: E is first fitted to these (Equation 3, one E for both), then held
    in this fit (section 5)."""
    by: Literal["D1", "D2", "N1", "lineage"] | None = None
    """One fit for each value of this column (Figure 4; `lineage`: dense models and MoEs from scratch)."""
    shared: AnyNames = []
    """With `by`: parameters common to all groups."""

    @model_validator(mode="after")
    def _check_floor(self) -> FitConfig:
        if self.floor_from and (self.by or "E" in self.fixed):
            raise ValueError("`floor_from` gives E: leave out `by` and fixed `E`")
        return self


class StudyConfig(Frozen):
    """One config file. `config.yaml` is the default study; `--config study=NAME` takes config/NAME.yaml."""

    study: Name
    """The study's name: that of its file, `default` for config.yaml."""
    title: Annotated[str, Field(max_length=300)] = ""
    """Title of the report."""
    data: DataConfig
    """The tokens that every run reads, unless a sweep sets `data.<field>`."""
    datasets: dict[Name, LocalDataset] = {}
    """Your own text files, by the name that `dataset` gives."""
    context: Sequences
    """Training sequence length in tokens (Table 4: 1,024)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products; weights and optimizer are float32 in either."""
    execution: Execution
    """Settings of the jobs that change speed and rounding alone: changing them retrains nothing."""
    keep: KeepConfig = KeepConfig()
    """Which files of finished runs stay."""
    optim: OptimConfig = OptimConfig()
    """AdamW's constants (Table 4)."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning-rate schedule (A.5)."""
    models: dict[Name, ModelConfig]
    """Dense sizes by name (Tables 3 and 5)."""
    moes: dict[Name, MoESpec] = {}
    """Mixtures by name."""
    sweeps: Annotated[dict[Slug, SweepConfig], Field(min_length=1)]
    """Grids of finished models by name. Sweeps share runs: nothing is trained twice."""
    evaluations: dict[Name, EvaluationConfig] = {}
    """Held-out losses on other texts, by name."""
    benchmarks: dict[Name, BenchmarkConfig] = {}
    """Scores on benchmarks, by name."""
    fits: dict[Slug, FitConfig] = {}
    """Fits of laws by name."""
    forecasts: dict[Slug, ForecastConfig] = {}
    """Forecasts of larger runs by name, written before these train."""
    figures: dict[str, dict[str, Any]] = {}
    """Figures to draw, each with its options, e.g. `figure4: {sweep: upcycled}`."""
    tables: dict[str, dict[str, Any]] = {}
    """Tables to set, each with its options."""

    @model_validator(mode="after")
    def _check_names(self) -> StudyConfig:
        if isinstance(self, ImportedStudy):
            return self  # the files have the names: `check.check_names`
        references = (  # section, its key that names entries, and the section of these
            ("sweeps", "model", "models"),
            ("sweeps", "moe", "moes"),
            ("sweeps", "parents", "sweeps"),
            ("fits", "sweep", "sweeps"),
            ("fits", "floor_from", "sweeps"),
            ("forecasts", "sweep", "sweeps"),
            ("forecasts", "seeds", "sweeps"),
            ("evaluations", "sweep", "sweeps"),
            ("benchmarks", "sweep", "sweeps"),
        )
        for section, key, named in references:
            valid = getattr(self, named)
            for entry_name, entry in getattr(self, section).items():
                for name in as_list(getattr(entry, key) or []):
                    if name not in valid:
                        where = f"{section}.{entry_name}.{key}"
                        raise ValueError(f"{where}: `{name}` is not under `{named}`; {nearest(name, valid)}")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> StudyConfig:
        for key in ("execution", "execution_moe"):
            shared: dict[tuple[int, int, int], str] = {}
            for name, entry in self.models.items():
                other = shared.setdefault(_size(entry), name)
                if getattr(self.models[other], key) != getattr(entry, key):
                    raise ValueError(f"models.{other} and models.{name} are one size; give both the same {key}")
        return self

    @model_validator(mode="after")
    def _check_counts(self) -> StudyConfig:
        eight = MoESpec(n_expert=8, top_k=2)
        for name, entry in self.models.items():
            model = self.model_spec(name)
            for key, expected, count in (
                ("n_dense", entry.n_dense, count_parameters(model).non_embedding),
                ("n_total_8", entry.n_total_8, count_parameters(model, eight).non_embedding),
            ):
                if expected is not None and expected != count:
                    raise ValueError(f"models.{name}.{key} is {expected:,} but the shape has {count:,} parameters")
        return self

    def model_spec(self, name: str) -> ModelSpec:
        """The `ModelSpec` of the model of this name."""
        entry = self.models[name]
        shape = entry.model_dump(include=set(ModelShape.model_fields))
        try:
            return ModelSpec(**shape, vocab_size=entry.vocab_size or self.data.vocab_size, context=self.context)
        except ValidationError as error:
            raise ValueError(f"models.{name}: {describe_error(error)}") from None

    def execution_of(self, run: RunSpec) -> Execution:
        """How a run is executed: the study's settings, and those of the model that it is a size of."""
        # By size, not by name: runs know no names, and `_check_sizes` made models of one size agree.
        for entry in self.models.values():
            if _size(entry) == _size(run.model):
                own = entry.execution.model_dump(exclude_none=True)
                own |= entry.execution_moe.model_dump(exclude_none=True) if run.moe else {}
                return self.execution.model_copy(update=own)
        return self.execution


class ImportedStudy(StudyConfig):
    """A study of losses that are there: fits, figures, tables and the report of them. It trains nothing."""

    losses_from: Annotated[Paths, Field(min_length=1)]
    """Tables in the form of losses.csv, from the folder that Snakemake runs in: written by `upcycle import-losses`, or
    losses.csv of another study. Sweeps, models and mixtures are those that their rows name."""
    forecasts_from: Paths = []
    """Forecasts of these losses that another study registered: the files of `upcycle forecast`, from the same folder.
    They are checked and scored, never written."""
    data: DataConfig = DataConfig(dataset="none", vocab_size=2)
    context: Sequences = 1
    execution: Execution = Execution(device="cpu")
    models: dict[Name, ModelConfig] = {}
    sweeps: dict[Slug, SweepConfig] = {}

    @model_validator(mode="before")
    @classmethod
    def _trains_nothing(cls, raw: Any) -> Any:
        for key in raw if isinstance(raw, dict) else ():
            if key in StudyConfig.model_fields and key not in OF_LOSSES:
                raise ValueError(f"`{key}` would have no effect: with `losses_from` nothing is trained; leave it out")
        return raw


OF_LOSSES = ("study", "title", "execution", "fits", "figures", "tables")
"""Keys of a study that takes its losses from files, beside `losses_from`; a profile may set `execution`."""


def validated_study(raw: Any) -> StudyConfig:
    """A study from its keys and values; raises pydantic's `ValidationError`."""
    imported = isinstance(raw, dict) and "losses_from" in raw
    return (ImportedStudy if imported else StudyConfig).model_validate(raw)


def _size(model: ModelConfig | ModelSpec) -> tuple[int, int, int]:
    """What tells a model's size from another's, whatever a sweep sets beside it."""
    return model.n_layer, model.d_model, model.n_head


def _valid_keys(root: type[Frozen], location: tuple[Any, ...]) -> list[str]:
    """Field names of the section of `root` that a validation error's location (less its last part) points into."""
    section: Any = root
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, Frozen) and part in section.model_fields:
            section = section.model_fields[part].annotation
        elif getattr(section, "__origin__", None) is dict:
            section = section.__args__[1]
        else:
            return []
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, Frozen) else []


def describe_error(error: Exception, root: type[Frozen] | None = None) -> str:
    """An error of reading in one line; of pydantic's the first problem: key path, what is wrong, the nearest name.

    `root`: what was read, for the names of its keys; None: a run or a study.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors()
    # A mistyped required key is both missing and unknown: the unknown one is what the user wrote.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location = tuple(part for part in first["loc"] if part != "[key]")
    path = ".".join(map(str, location))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        root = root or (RunSpec if error.title == RunSpec.__name__ else ImportedStudy)
        return f"unknown key `{path}`; {nearest(str(location[-1]), _valid_keys(root, location))}"
    if first["type"] == "missing":
        return f"key `{path}` is missing"
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
        message = "text is wanted, and this is not; put it in quotes"
    # Messages of our own name the value already.
    show = first["type"] != "value_error" and not isinstance(first["input"], dict | Frozen)
    given = f" (given: {brief(first['input'])})" if location and show else ""
    return f"`{path}`: {message}{given}" if path else message


def load_study(path: Path) -> StudyConfig:
    """Read a study strictly.

    Raises `UserError` naming the file, the key path and how to fix it for anything unknown, ill-typed or impossible.
    """
    raw = read_yaml(path)
    try:
        give_shapes(raw)
        return validated_study(raw)
    except (ValidationError, UserError) as error:
        kind = AbsentError if isinstance(error, AbsentError) else UserError
        raise kind(f"{path}: {describe_error(error)}") from None
