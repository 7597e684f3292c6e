"""Benchmarks of a study: named by what is asked, gathered, drawn."""

import json
from pathlib import Path

import pandas as pd
import pytest
from small_studies import small_study

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.manifest import MANIFEST
from upcycle.paper.inputs import Inputs
from upcycle.paper.tables_benchmarks import table_7
from upcycle.study.benchmark import asked_sha256, task_configs
from upcycle.study.check import check_names
from upcycle.study.plan import build_plan
from upcycle.workflow.dag import Workflow
from upcycle.workflow.make import make_benchmarks
from upcycle.workflow.paths import metrics_path
from upcycle.workflow.pruning import Retention
from upcycle.workflow.texts import tokens_to_make

SWEEPS = {"dense": {"kind": "dense", "model": "tiny", "steps": [40, 80]}}
ASKED = {"table7": {"tasks": ["lambada", "piqa"], "sweep": "dense", "limit": 50, "seed": 3}}


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Workflow:
    monkeypatch.chdir(tmp_path)
    study = small_study(SWEEPS, benchmarks=ASKED, tables={"table7": {}})
    check_names(study)
    return Workflow(study, build_plan(study, Path("results")), Path("results/test"))


def write_results(workflow: Workflow, weights: str = "w") -> None:
    for number, (run_id, task, path) in enumerate(workflow.benchmarks["table7"]):
        about = BENCHMARK_TASKS[task]
        by_bytes = {"accuracy_bytes": None, "accuracy_bytes_se": None} if task == "lambada" else {
            "accuracy_bytes": 0.625, "accuracy_bytes_se": 0.05}  # fmt: skip
        result = {"id": run_id, "task": task, "split": about.split, "of_documents": about.documents}
        result |= {"seed": 3, "documents": 50, "accuracy": 0.5, "accuracy_se": 0.07, "truncated": 2}
        result |= {"bits_per_byte": 1.5 + number, "bits_per_byte_se": 0.1, **by_bytes}
        result |= {"weights_sha256": weights, "asked_sha256": asked_sha256(task)}
        write_atomic(Path(path), json.dumps(result))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["arc_eazy"]}, r"benchmarks\.table7\.tasks: unknown task `arc_eazy`; .*`arc_easy`"),
        ({"sweep": "densee"}, r"benchmarks\.table7\.sweep: `densee` is not under `sweeps`; .*`dense`"),
        ({"tasks": []}, r"at least 1 item"),
        ({"limit": 0}, r"greater than or equal to 1"),
    ],
)
def test_what_a_benchmark_names_must_exist(changes, message):
    with pytest.raises(ValueError, match=message):
        check_names(small_study(SWEEPS, benchmarks={"table7": ASKED["table7"] | changes}))


def test_table_7_wants_benchmarks():
    with pytest.raises(UserError, match=r"tables\.table7: it shows scores of `benchmarks`, and the study has none"):
        check_names(small_study(SWEEPS, tables={"table7": {}}))


def test_a_result_is_named_by_what_is_asked_and_is_stale_for_other_weights_or_documents(planned):
    paths = [path for _, _, path in planned.benchmarks["table7"]]
    assert len(paths) == len(planned.plan.finished_models) * 2 == 4
    assert Path(paths[0]).name == "lambada-50-3.json"
    assert planned.stale_benchmarks == set(paths)
    assert tokens_to_make(planned) == ["english-1-bpe1024"]
    write_results(planned)
    first = planned.benchmarks["table7"][0][0]
    manifest = {"files": {"weights.safetensors": {"sha256": "other"}}}
    write_atomic(Path(metrics_path(first)).with_name(MANIFEST), json.dumps(manifest))
    again = Workflow(planned.study, planned.plan, planned.out)
    assert again.stale_benchmarks == set(paths[:2])
    with pytest.raises(UserError, match=rf"or prompts; run `upcycle benchmark {first} table7 lambada`"):
        make_benchmarks(again, Path("benchmarks.csv"))
    assert paths[0] in Retention(again, None).unfinished


def test_other_prompts_make_scores_stale(planned, monkeypatch):
    write_results(planned)
    assert not Workflow(planned.study, planned.plan, planned.out).stale_benchmarks
    assert task_configs().keys() == BENCHMARK_TASKS.keys()
    monkeypatch.setitem(task_configs(), "piqa", {"doc_to_text": "another"})
    stale = Workflow(planned.study, planned.plan, planned.out).stale_benchmarks
    assert {Path(path).name for path in stale} == {"piqa-50-3.json"}


def test_scores_are_gathered_and_table_7_names_the_splits(planned):
    write_results(planned)
    out = Path("benchmarks.csv")
    make_benchmarks(planned, out)
    rows = pd.read_csv(out)
    assert rows["task"].tolist() == ["lambada", "piqa"] * 2
    assert rows["accuracy_bytes"].isna().tolist() == [True, False] * 2
    assert set(rows["split"]) == {"test", "validation"}
    table = table_7(Inputs(pd.DataFrame(), {}, Path("runs"), scores=out))
    lambada, piqa = "LAMBADA (test, 50 of 5153)", "PIQA (validation, 50 of 1838)"
    assert [column for column in table.columns if column.endswith(")")] == [lambada, piqa]
    first = planned.plan.finished_models[0]
    assert table.loc[f"{first}: accuracy, %", lambada] == 50
    assert table.loc[f"{first}: accuracy, %", piqa] == 62.5
    assert table.loc[f"{first}: accuracy, %", f"{piqa} low"] == pytest.approx(62.5 - 1.96 * 5)
    assert table.loc[f"{first}: bits per byte", piqa] == 2.5
    product = planned.products["tables/table7"]
    assert "benchmarks" in product.sources


def test_table_7_without_scores_says_what_to_add():
    with pytest.raises(UserError, match="name `benchmarks` in the study"):
        table_7(Inputs(pd.DataFrame(), {}, Path("runs")))
