"""Benchmarks of a study: named by what is asked, gathered, drawn."""

import json
from pathlib import Path

import pandas as pd
import pytest
from benchmark_documents import made_up_document
from small_studies import small_study

from upcycle.data.benchmarks import BENCHMARK_TASKS
from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.manifest import MANIFEST
from upcycle.paper.inputs import Inputs
from upcycle.paper.tables_benchmarks import table_7
from upcycle.study.benchmark import BenchmarkConfig, asked_sha256, task_configs
from upcycle.study.check import check_names, find_study
from upcycle.study.plan import build_plan
from upcycle.study.varying import run_labels
from upcycle.workflow.dag import Workflow
from upcycle.workflow.make import make_benchmarks
from upcycle.workflow.needs import check_scored
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
    first = run_labels(planned.plan)[planned.plan.finished_models[0]]
    assert first.startswith("dense D=")
    assert table.loc[f"{first}: accuracy, %", lambada] == 50
    assert table.loc[f"{first}: accuracy, %", piqa] == 62.5
    assert table.loc[f"{first}: accuracy, %", f"{piqa} low"] == pytest.approx(62.5 - 1.96 * 5)
    assert table.loc[f"{first}: bits per byte", piqa] == 2.5
    product = planned.products["tables/table7"]
    assert "benchmarks" in product.sources


def test_table_7_has_means_and_the_printed_numbers_beside(planned):
    write_results(planned)
    out = Path("benchmarks.csv")
    make_benchmarks(planned, out)
    inputs = Inputs(pd.DataFrame(), {}, Path("runs"), scores=out)
    table = table_7(inputs, printed=True)
    first = run_labels(planned.plan)[planned.plan.finished_models[0]]
    assert table.loc[f"{first}: accuracy, %", "mean"] == (50 + 62.5) / 2
    error = 100 * (0.07**2 + 0.05**2) ** 0.5 / 2
    assert table.loc[f"{first}: accuracy, %", "mean low"] == pytest.approx(56.25 - 1.96 * error)
    lambada, piqa = "LAMBADA (test, 50 of 5153)", "PIQA (validation, 50 of 1838)"
    assert table.loc["Upcycled 8x1B, as printed: accuracy, %", [lambada, piqa]].tolist() == [49.72, 67.19]
    assert table.loc["TinyLlama-1.1B, as printed: accuracy, %", [lambada, piqa]].isna().tolist() == [True, False]
    assert table.loc["1B, as printed: accuracy, %"].isna()["mean"]  # the paper's mean is over seven tasks
    assert len(table) == len(table_7(inputs)) + 4


def test_the_paper_s_study_scores_its_1b_models():
    study = find_study("paper", Path(__file__).parents[2])
    plan = build_plan(study, Path("no-results"))
    asked = Workflow(study, plan, Path("no-results")).benchmarks["table7"]
    models = [plan.runs[run_id] for run_id in dict.fromkeys(run_id for run_id, _, _ in asked)]
    assert [(run.lineage, run.model.n_layer, run.tokens, run.dense_tokens) for run in models] == [
        ("dense", 30, 73_819_750_400, 0),
        ("up", 30, 36_909_875_200, 73_819_750_400),
    ]
    assert len(asked) == 2 * len(BENCHMARK_TASKS)


def test_table_7_without_scores_says_what_to_add():
    with pytest.raises(UserError, match="name `benchmarks` in the study"):
        table_7(Inputs(pd.DataFrame(), {}, Path("runs")))


# Documents of one's own


def lines(count: int, **changes: object) -> str:
    documents = [made_up_document("piqa", number) | {"gold": number % 2} | changes for number in range(count)]
    return "".join(json.dumps(document) + "\n" for document in documents)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"benchmarks\.table7\.documents\.piqa: own\.jsonl: no such file; put the documents of `piqa` there"),
        ("", r"own\.jsonl: no documents"),
        ("{]", r"own\.jsonl: line 1 is no JSON"),
        ('{"goal": "a"}', r"line 1 has no `choices`; a document of `piqa` has goal, choices, gold"),
        (lines(1, goal=3), r"line 1 has a field that is no text or empty"),
        (lines(1, choices="ab"), r"line 1 has a field that is no text or empty; `choices` is a list"),
        (lines(2, gold=4), r"line 1 has gold 4; give the number of the right one of its 4 choices, from 0"),
    ],
)
def test_own_documents_are_checked_before_anything_starts(planned, text, message):
    if text is not None:
        Path("own.jsonl").write_text(text)
    study = small_study(SWEEPS, benchmarks={"table7": ASKED["table7"] | {"documents": {"piqa": "own.jsonl"}}})
    workflow = Workflow(study, planned.plan, planned.out)
    with pytest.raises(UserError, match=message):
        check_scored(workflow, planned.plan.finished_models[0], "table7", "piqa")


def test_own_documents_name_their_scores_which_are_stale_when_they_change(planned):
    own = Path("own.jsonl")
    own.write_text(lines(3))
    study = small_study(SWEEPS, benchmarks={"table7": ASKED["table7"] | {"documents": {"piqa": "own.jsonl"}}})

    def stale() -> set[str]:
        return {Path(path).name for path in Workflow(study, planned.plan, planned.out).stale_benchmarks}

    write_results(planned)
    assert stale() == {"piqa-0bb94fc7-50-3.json"}
    for _, task, path in Workflow(study, planned.plan, planned.out).benchmarks["table7"]:
        if task == "piqa":
            write_atomic(Path(path), json.dumps({"weights_sha256": "w", "asked_sha256": asked_sha256(task, own)}))
    assert stale() == set()
    own.write_text(lines(4))
    assert stale() == {"piqa-0bb94fc7-50-3.json"}
    own.unlink()
    assert stale() == set()  # finished scores do not need their documents


def test_own_documents_of_a_task_that_is_not_asked_are_refused():
    with pytest.raises(ValueError, match=r"documents\.piqa: `tasks` does not name it"):
        BenchmarkConfig(tasks="sciq", sweep="dense", documents={"piqa": "own.jsonl"})


@pytest.mark.slow
@pytest.mark.workflow
def test_snakemake_scores_finished_models_and_draws_table_7(checkout):
    """Rule `benchmark`, on documents of one's own: nothing is fetched, and no library of the harness is needed."""
    own = checkout.root / "own, too.jsonl"
    own.write_text(lines(5))
    asked = "{tasks: piqa, sweep: dense, limit: 4, documents: {piqa: 'own, too.jsonl'}}"
    checkout.edit("config.yaml", "tables:\n", f"benchmarks:\n  mine: {asked}\ntables:\n  table7: {{}}\n")
    checkout.run()
    rows = pd.read_csv(checkout.root / "results/benchmarks.csv")
    assert rows["id"].nunique() == len(rows) == 3
    assert set(rows["split"]) == {"own, too.jsonl"}
    assert set(rows["documents"]) == {4}
    assert (rows["bits_per_byte"] > 0).all()
    assert "PIQA (own, too.jsonl, 4 of 5)" in (checkout.root / "results/tables/table7.md").read_text()
    assert checkout.jobs() == {}
    own.write_text(lines(6))
    assert checkout.jobs("benchmarks") == {"benchmark": 3, "benchmarks": 1}
    own.write_text(lines(6, gold=4))
    stopped = checkout.run("-n", check=False)
    assert "benchmarks.mine.documents.piqa: own, too.jsonl: line 1 has gold 4" in stopped.stdout + stopped.stderr
