"""A study: one strictly read config file of models, sweeps, fits and figures.

Layer 0. `load_study` reads YAML with a loader of its own (duplicate keys are errors, `8e-3` is a number)
and turns every mistake into one `UserError` that names the key path and the nearest valid name. Nothing is
merged: a study is exactly what its file says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from upcycle.errors import UserError, nearest
from upcycle.study.counting import count_parameters
from upcycle.study.execution import Execution
from upcycle.study.spec import Count, Frozen, ModelSpec, MoESpec, Number, Positive, RunSpec, Whole


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_axes(value: Any) -> Any:
    return {key: _as_list(item) for key, item in value.items()} if isinstance(value, dict) else value


Names = Annotated[list[str], BeforeValidator(_as_list)]
Seeds = Annotated[list[Whole], BeforeValidator(_as_list)]
Budgets = Annotated[list[Count], BeforeValidator(_as_list)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Axes = Annotated[dict[str, list[Any]], BeforeValidator(_as_axes)]


class DataConfig(Frozen):
    """The tokens of every run of a study, unless a sweep sets `data.<field>`."""

    dataset: str
    version: str = "1"
    tokenizer: str = "bpe"
    vocab_size: Count
    seed: Whole = 0
    repeat: bool = False
    decontaminate: bool = True
    """Whether training passages that share a 13-word window with the held-out text are removed, a user's own too."""


class LocalDataset(Frozen):
    """A user's own text: txt, jsonl, jsonl.zst or parquet files."""

    files: Names
    """Paths or glob patterns, from the folder that Snakemake runs in."""
    heldout_files: Names = []
    """Files of a validation set of their own; none: documents are split off `files`."""
    text: str = "text"
    """Key or column that holds the text."""


class OptimConfig(Frozen):
    """Table 4's constants, for every run of the study."""

    beta1: Number = 0.9
    beta2: Number = 0.95
    eps: Positive = 1e-8
    weight_decay: Number = 0.1
    clip: Positive = 1.0


class ScheduleConfig(Frozen):
    """WSD (A.5): the decay takes the last `decay_fraction` of a budget, down to `floor` of the maximum."""

    decay_fraction: Annotated[float, BeforeValidator(lambda v: float(v)), Field(gt=0, lt=1)] = 0.1
    floor: Annotated[float, BeforeValidator(lambda v: float(v)), Field(ge=0, le=1)] = 0.1


class ModelConfig(Frozen):
    """Tables 3 and 5. A dense size and the settings tuned for it (its MoEs share all but the learning rate)."""

    n_layer: Count
    d_model: Count
    n_head: Count
    d_mlp: Count | None = None
    init_std: Positive | None = None
    output_init: Literal["scaled", "plain"] = "scaled"
    norm_eps: Positive = 1e-5
    rope_base: Positive = 10_000.0
    batch: Count
    warmup_steps: Whole
    lr: Positive
    lr_moe: Positive
    max_steps: Count | None = None
    """Steps of the largest budget; `budgets` halves it (spec.md: five points per size)."""
    n_budget: Count = 5
    tensor_parallel: Count | None = None
    """Execution, not identity: processes that share each matrix of this model; None: `execution.tensor_parallel`."""
    n_dense: Count | None = None
    """Expected non-embedding parameters (Table 3), checked at plan time."""
    n_total_8: Count | None = None
    """Expected non-embedding parameters of its 8-expert MoE (Table 3), checked at plan time."""

    @property
    def budgets(self) -> list[int]:
        """Step budgets by halving from `max_steps`, ascending; empty without `max_steps`."""
        if self.max_steps is None:
            return []
        return [self.max_steps // 2**k for k in reversed(range(self.n_budget))]

    @model_validator(mode="after")
    def _check_halving(self) -> ModelConfig:
        if self.max_steps is not None and self.max_steps % 2 ** (self.n_budget - 1):
            raise ValueError(f"max_steps {self.max_steps} cannot be halved {self.n_budget - 1} times")
        return self


class SweepConfig(Frozen):
    """A named grid of finished models. Lists are axes; the grid is their product."""

    kind: Literal["dense", "moe", "upcycled"]
    model: Names
    """Names under `models`."""
    moe: Names = []
    """Names under `moes`; for kinds moe and upcycled."""
    tokens: Budgets | None = None
    """Budgets D (D2 when upcycled) in tokens, rounded to whole steps; decay included."""
    steps: Budgets | None = None
    """The same budgets in steps. Neither given: the model's own `budgets`."""
    dense_tokens: Budgets | None = None
    """Budgets D1 of the dense parents, in tokens; upcycled only."""
    dense_steps: Budgets | None = None
    """The same in steps. Neither given: the model's own `budgets`."""
    points: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] | None = None
    """Single [D1, D2] points in tokens, in place of a grid; upcycled only."""
    method: Names = ["copy"]
    """Upcycling methods; upcycled only."""
    schedule: Annotated[list[Literal["wsd", "cosine", "constant"]], BeforeValidator(_as_list)] = ["wsd"]
    seed: Seeds = [0]
    """Seeds of weights and of the data order (added to data.seed); a dense parent has its child's."""
    set: Axes = {}
    """Overrides of RunSpec fields by dotted path, e.g. `optim.lr: [1e-3, 2e-3]`; a list is an axis."""
    dense_set: Axes = {}
    """The same for the dense parents; upcycled only."""

    @model_validator(mode="after")
    def _check_kind(self) -> SweepConfig:
        if (self.kind == "dense") == bool(self.moe):
            raise ValueError("`moe` names the mixtures of kinds moe and upcycled, and only of those")
        if self.kind != "upcycled" and (self.dense_tokens or self.dense_steps or self.points or self.dense_set):
            raise ValueError("`dense_tokens`, `dense_steps`, `points` and `dense_set` belong to kind upcycled")
        if (self.tokens and self.steps) or (self.dense_tokens and self.dense_steps):
            raise ValueError("give a budget in tokens or in steps, not both")
        if self.points and (self.tokens or self.steps or self.dense_tokens or self.dense_steps):
            raise ValueError("`points` takes the place of tokens and dense_tokens")
        return self


class EvaluationConfig(Frozen):
    """Held-out loss of finished models on another text."""

    dataset: str
    version: str = "1"
    sweep: Names
    max_tokens: Count = 65_536
    """Only the first so many tokens of its held-out part are read."""


class FitConfig(Frozen):
    """A law fitted to a selection of losses."""

    law: str
    sweep: Names
    where: str = ""
    """An expression over losses.csv's columns (`upcycle.study.expressions`), e.g. `D2 >= 5e5 and seed == 0`."""
    fixed: dict[str, Number] = {}
    """Parameters held at a value."""
    floor_from: Names = []
    """Sweeps of dense models and MoEs from scratch: E is first fitted to these (Equation 3, one E for both), then held
    in this fit (section 5)."""
    by: Literal["D1", "D2", "N1", "lineage"] | None = None
    """One fit for each value of this column (Figure 4; `lineage`: dense models and MoEs from scratch)."""
    shared: Names = []
    """With `by`: parameters common to all groups."""

    @model_validator(mode="after")
    def _check_floor(self) -> FitConfig:
        if self.floor_from and (self.by or "E" in self.fixed):
            raise ValueError("`floor_from` gives E: leave out `by` and fixed `E`")
        return self


class StudyConfig(Frozen):
    """One config file. `config.yaml` is the default study; `--config study=NAME` takes config/NAME.yaml."""

    study: Name
    title: str = ""
    data: DataConfig
    datasets: dict[Name, LocalDataset] = {}
    context: Count
    dtype: Literal["float32", "bfloat16"] = "float32"
    execution: Execution
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    models: dict[Name, ModelConfig]
    moes: dict[Name, MoESpec] = {}
    sweeps: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], SweepConfig]
    evaluations: dict[Name, EvaluationConfig] = {}
    fits: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], FitConfig] = {}
    figures: dict[str, dict[str, Any]] = {}
    """Figures to draw, each with its options, e.g. `figure4: {sweep: upcycled}`."""
    tables: dict[str, dict[str, Any]] = {}
    """Tables to set, each with its options."""

    @model_validator(mode="after")
    def _check_names(self) -> StudyConfig:
        for name, sweep in self.sweeps.items():
            for model in sweep.model:
                _known(model, self.models, f"sweeps.{name}.model", "models")
            for moe in sweep.moe:
                _known(moe, self.moes, f"sweeps.{name}.moe", "moes")
        for section in ("fits", "evaluations"):
            for name, entry in getattr(self, section).items():
                for sweep_name in entry.sweep:
                    _known(sweep_name, self.sweeps, f"{section}.{name}.sweep", "sweeps")
        for name, fit in self.fits.items():
            for sweep_name in fit.floor_from:
                _known(sweep_name, self.sweeps, f"fits.{name}.floor_from", "sweeps")
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
                    raise ValueError(f"models.{name}.{key} says {expected:,} but the shape has {count:,} parameters")
        return self

    def model_spec(self, name: str) -> ModelSpec:
        """The `ModelSpec` of the model of this name."""
        entry = self.models[name]
        shape = entry.model_dump(include=set(ModelSpec.model_fields) & set(ModelConfig.model_fields))
        try:
            return ModelSpec(**shape, vocab_size=self.data.vocab_size, context=self.context)
        except ValidationError as error:
            raise ValueError(f"models.{name}: {describe_error(error)}") from None

    def execution_of(self, run: RunSpec) -> Execution:
        """How a run is executed: the study's settings, and those of the model that it is a size of."""
        size = (run.model.n_layer, run.model.d_model, run.model.n_head)
        for entry in self.models.values():
            if entry.tensor_parallel is not None and (entry.n_layer, entry.d_model, entry.n_head) == size:
                return self.execution.model_copy(update={"tensor_parallel": entry.tensor_parallel})
        return self.execution


def _known(name: str, valid: Any, where: str, section: str) -> None:
    if name not in valid:
        raise ValueError(f"{where}: `{name}` is not under `{section}`; {nearest(name, valid)}")


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"line {key_node.start_mark.line + 1}: key `{key}` is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    """Field names of the config section that a validation error's location (less its last part) points into."""
    section: Any = StudyConfig
    for part in location[:-1]:
        if isinstance(section, type) and issubclass(section, Frozen) and part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = annotation
        elif getattr(section, "__origin__", None) is dict:
            section = section.__args__[1]
        else:
            return []
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, Frozen) else []


def describe_error(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: key path, what is wrong, the nearest valid name."""
    problems = error.errors()
    # A mistyped required key is both missing and unknown: the unknown one is what the user wrote.
    first = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    location = tuple(first["loc"])
    path = ".".join(str(part) for part in location)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"unknown key `{path}`; {nearest(str(location[-1]), _valid_keys(location))}"
    if first["type"] == "missing":
        return f"key `{path}` is missing"
    given = f" (given: {first['input']!r})" if location and not isinstance(first["input"], dict | Frozen) else ""
    return f"`{path}`: {message}{given}" if path else message


def load_study(path: Path) -> StudyConfig:
    """Read a study strictly.

    Raises `UserError` naming the file, the key path and the mend for anything unknown, ill-typed or impossible.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"study file {path}: {error.strerror}") from None
    try:
        raw = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
        return StudyConfig.model_validate(raw)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {describe_error(error)}") from None
