"""What re-runs and what does not. Each test says what was changed and counts the jobs that `snakemake -n` would do."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from checkouts import REPOSITORY, SNAKEMAKE, Checkout, make_checkout, wait_for

pytestmark = pytest.mark.workflow
PRODUCTS = {"losses": 1, "fit": 5, "figure": 1, "table": 1, "report": 1}
"""Everything that follows from new losses (evaluations have a list of their own)."""


def metrics(checkout: Checkout) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (checkout.root / "results/runs").glob("*/metrics.json")}


def test_a_sweep_from_nothing_makes_everything(finished):
    """18 runs; losses, fits, figure, table, evaluations, report; one line a run; a finding last."""
    results = finished.root / "results"
    assert len(metrics(finished)) == 18
    for name in (
        "losses.csv",
        "evaluations.csv",
        "fits/multiplicative.json",
        "fits/power_by_d1.json",
        "timing.json",
        "summary.txt",
    ):
        assert (results / name).stat().st_size > 0, name
    for name in ("figures/figure3.svg", "figures/figure3.pdf", "tables/table1.csv", "tables/table1.md", "report.html"):
        assert (results / name).stat().st_size > 0, name
    rows = (results / "losses.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 + 2 + 4


def test_trunk_points_are_not_evaluated_as_no_product_reads_them(finished):
    """Half of the test study's runs: their loss is null, theirs alone."""
    losses = {name: json.loads(content)["loss"] for name, content in metrics(finished).items()}
    trunks = {name for name in losses if not name.startswith("decay-")}
    assert len(trunks) == 9
    assert {name for name, loss in losses.items() if loss is None} == trunks


def test_four_points_choose_no_law(finished):
    """Too few losses for any of the laws: the headline does not name a winner, the table has no numbers."""
    results = finished.root / "results"
    assert "fits best" not in (results / "summary.txt").read_text()
    rows = (results / "tables/table1.csv").read_text().splitlines()[1:]
    assert [row.rpartition(",")[2] for row in rows] == [""] * 4
    assert json.loads((results / "fits/multiplicative.json").read_text())["identifiable"] is False


def test_a_second_run_does_nothing(checkout):
    assert checkout.jobs() == {}
    assert "Nothing to be done" in checkout.run().stderr


def test_a_dry_run_writes_nothing(checkout, tmp_path):
    """Neither at first nor where a product is stale, though the next run will do what it shows."""

    def files() -> dict[Path, tuple[int, int]]:
        found = {path: path.stat() for path in (checkout.root / "results").rglob("*")}
        return {path: (stat.st_mtime_ns, stat.st_ino) for path, stat in found.items()}

    bare = make_checkout(tmp_path / "bare")
    assert sum(bare.jobs().values()) > 18
    assert not (bare.root / "results").exists()
    checkout.edit("src/upcycle/paper/figures_data.py", "def figure_3(", "def figure_3(  # edited\n")
    checkout.edit("src/upcycle/paper/tables_laws.py", "import ", "import sys as unused\nimport ")
    before = files()
    checkout.jobs()
    assert files() == before


def test_a_comment_in_the_config_reruns_nothing(checkout):
    checkout.edit("config.yaml", "study: default", "# a comment\nstudy:   default   # another")
    assert checkout.jobs() == {}


def test_touched_files_rerun_nothing(checkout):
    """Every file of results, code and workflow gets a new date, in random order."""
    files = [path for path in checkout.root.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
    random.Random(0).shuffle(files)
    for moment, path in enumerate(files):
        os.utime(path, (time.time() - len(files) + moment,) * 2)
    assert checkout.jobs() == {}


def test_results_copied_into_a_new_checkout_rerun_nothing(finished, tmp_path):
    """No records of Snakemake's, no dates kept."""
    copied = finished.copy(tmp_path / "copied")
    assert copied.jobs() == {}
    copied.edit("config.yaml", "steps: [20, 80]}\nevaluations", "steps: [20, 80, 160]}\nevaluations")
    assert copied.jobs() == {"upcycle": 2, "decay": 2} | PRODUCTS


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param("steps: [20, 80]}\nev", "steps: [20, 80, 160]}\nev", {"upcycle": 2, "decay": 2}, id="D2 appended"),
        pytest.param("steps: [20, 80]}\nev", "steps: [20, 40, 80]}\nev", {"upcycle": 2, "decay": 2}, id="D2 inserted"),
        pytest.param(
            "dense_steps: [20, 80]",
            "dense_steps: [20, 40, 80]",
            {"upcycle": 2, "decay": 2},
            id="D1 inserted, parent trained",
        ),
        pytest.param(
            "dense_steps: [20, 80]",
            "dense_steps: [20, 60, 80]",
            {"pretrain_dense": 1, "upcycle": 2, "decay": 3},
            id="D1 inserted",
        ),
        pytest.param(
            "evaluations:\n",
            "  seeds: {kind: moe, model: tiny, moe: 4x2, steps: [20], seed: 1}\nevaluations:\n",
            {"pretrain_moe": 1, "decay": 1},
            id="a new sweep",
        ),
        pytest.param(
            "evaluations:\n",
            "  again: {kind: moe, model: tiny, moe: 4x2, steps: [40]}\nevaluations:\n",
            {},
            id="a sweep of known runs",
        ),
    ],
)
def test_an_extended_grid_trains_the_difference(checkout, old, new, expected):
    """Only the new runs are trained, and only what follows from losses is made again."""
    checkout.edit("config.yaml", old, new)
    assert checkout.jobs() == expected | PRODUCTS


def test_an_inserted_point_is_trained_and_the_rest_stays(checkout):
    """Really run: old runs keep every byte, the new ones finish, and then there is nothing to do."""
    before = metrics(checkout)
    checkout.edit("config.yaml", "steps: [20, 80]}\nev", "steps: [20, 40, 80]}\nev")
    told = checkout.run()
    after = metrics(checkout)
    assert {run: after[run] for run in before} == before
    assert len(after) == len(before) + 4
    lines = re.findall(r"^(\d+)/22  upcycled D1=\S+ (?:D2=|trunk to )\S+ +loss \d\.\d{3}  0:\d\d", told.stderr, re.M)
    assert lines == ["19", "20", "21", "22"]
    assert told.stdout == ""
    assert not re.search("Finished jobid|steps .* done|Select jobs", told.stderr)
    assert checkout.jobs() == {}


def test_a_changed_law_is_fitted_again_and_nothing_is_trained(checkout):
    checkout.edit(
        "src/upcycle/laws/fit.py",
        "from __future__ import annotations\n",
        "from __future__ import annotations\n\nEDITED = 1\n",
    )
    assert checkout.jobs() == {rule: count for rule, count in PRODUCTS.items() if rule != "losses"}


def test_a_changed_fit_in_the_config_is_fitted_again(checkout):
    checkout.edit(
        "config.yaml",
        "{law: multiplicative, sweep: upcycled}",
        "{law: multiplicative, sweep: upcycled, fixed: {E: 1.0}}",
    )
    assert checkout.jobs() == {"fit": 1, "figure": 1, "table": 1, "report": 1}


def test_an_edited_figure_redraws_that_figure_and_the_report(checkout):
    source = "src/upcycle/paper/figures_data.py"
    checkout.edit("config.yaml", "  figure3: {}", "  figure3: {}\n  figure4: {}")
    checkout.run("figure4")
    lines = (checkout.root / source).read_text().splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith("def figure_3("))
    end = next(number for number in range(start, len(lines)) if lines[number].rstrip().endswith('"""'))
    lines.insert(end + 1, "    edited = True\n")
    (checkout.root / source).write_text("".join(lines))
    assert checkout.jobs() == {"figure": 1, "report": 1}
    assert checkout.jobs("figure4") == {}


def test_a_comment_in_code_redraws_nothing(checkout):
    checkout.edit("src/upcycle/paper/figures_data.py", "def figure_3(", "# a comment\ndef figure_3(")
    checkout.edit("src/upcycle/train/loop.py", "import time\n", "import time\n\nEDITED = 1\n")
    assert checkout.jobs() == {}


def test_a_lost_product_is_made_again_with_what_follows(checkout):
    (checkout.root / "results/fits/multiplicative.json").unlink()
    jobs = checkout.jobs()
    assert jobs["fit"] == 1
    assert "losses" not in jobs
    assert "upcycle" not in jobs


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("sweep_dense", {"tokenize": 1, "pretrain_dense": 3, "decay": 3}),
        ("sweep_moe", {"tokenize": 1, "pretrain_moe": 2, "decay": 2}),
        ("losses", {"tokenize": 1, "pretrain_dense": 3, "pretrain_moe": 2, "upcycle": 4, "decay": 9, "losses": 1}),
        ("results/fits/multiplicative.json", {"losses": 1, "fit": 1}),
        ("figure3", {"losses": 1, "fit": 5, "figure": 1}),
        ("results/figures/figure3.svg", {"losses": 1, "fit": 5, "figure": 1}),
        ("table1", {"losses": 1, "fit": 5, "table": 1}),
    ],
)
def test_single_targets_build_just_that(tmp_path, target, expected):
    jobs = make_checkout(tmp_path / "checkout").jobs(target)
    assert {rule: jobs.get(rule) for rule in expected} == expected
    assert not set(jobs) - set(expected) - {"tokenize", "pretrain_dense", "pretrain_moe", "upcycle", "decay"} - {target}


def test_an_unfinished_sweep_resumes(tmp_path):
    """Snakemake is killed outright while a run trains; the next call finishes, and finished runs keep every byte."""
    checkout = make_checkout(tmp_path / "checkout")
    checkout.edit("config.yaml", "steps: [20, 40, 80]", "steps: [20, 40, 2000]")
    process = subprocess.Popen(
        [SNAKEMAKE, "sweep_dense"], cwd=checkout.root, env=checkout.environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: len(metrics(checkout)) >= 3, "three finished runs")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = metrics(checkout)
    assert len(before) < 6
    checkout.run("sweep_dense", "--unlock")
    checkout.run("sweep_dense")
    # 3 models of 2 runs each, and a link of their trunk at which the upcycled sweep's parent branches off
    assert len(metrics(checkout)) == 7
    assert {run: metrics(checkout)[run] for run in before} == before
    assert checkout.jobs("sweep_dense") == {}


def test_a_config_edited_while_jobs_queue_does_not_reach_them(tmp_path):
    """The plan is frozen when the invocation starts: garbage in config.yaml afterwards changes nothing."""
    checkout = make_checkout(tmp_path / "checkout")
    process = subprocess.Popen(
        [SNAKEMAKE, "sweep_dense"], cwd=checkout.root, env=checkout.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(lambda: (checkout.root / "results/.plans").exists(), "the frozen plan")
    wait_for(lambda: (checkout.root / "results/tokens").exists(), "the first job")
    (checkout.root / "config.yaml").write_text("garbage: [")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert len(metrics(checkout)) == 6


def test_a_deleted_metrics_file_is_restored_without_training(checkout):
    """Snakemake deletes declared outputs before a rerun; the run is verified, its record comes back to the byte."""
    before = metrics(checkout)
    run = next(name for name in before if name.startswith("up-"))
    (checkout.root / "results/runs" / run / "metrics.json").unlink()
    checkout.run(f"results/runs/{run}/metrics.json")
    assert metrics(checkout) == before


def test_a_forced_run_is_verified_not_trained_again(checkout):
    before = metrics(checkout)
    checkout.run("sweep_moe", "--forcerun", "pretrain_moe")
    assert metrics(checkout) == before


def test_bad_input_stops_before_anything_starts(tmp_path):
    """An unknown key: one clear message with its mend, no job, no results."""
    checkout = make_checkout(tmp_path / "checkout")
    checkout.edit("config.yaml", "context: 32", "contxt: 32")
    done = checkout.run(check=False)
    assert done.returncode != 0
    assert "unknown key `contxt`; did you mean `context`?" in done.stderr
    assert not (checkout.root / "results").exists()


def test_snakemakes_own_report_is_built(checkout):
    """`snakemake --report` with captions and categories."""
    checkout.run("--report", "own-report.html")
    text = (checkout.root / "own-report.html").read_text()
    for word in ("Figures", "Tables", "figure3", "held-out loss"):
        assert word in text, word


def test_the_default_study_plans_from_the_root():
    """`snakemake -n` in the repository: the default study's grid, counted by rule."""
    jobs = Checkout(REPOSITORY).run("-n", "--forceall", "--quiet", "rules", "--nolock")
    for rule in (
        "tokenize",
        "pretrain_dense",
        "pretrain_moe",
        "upcycle",
        "decay",
        "losses",
        "fit",
        "figure",
        "table",
        "report",
    ):
        assert rule in jobs.stdout + jobs.stderr


def test_the_papers_study_plans_with_the_slurm_profile(tmp_path):
    """`snakemake --profile slurm -n` from the root: the paper's runs, sized for H100 nodes; no SLURM is needed."""
    checkout = make_checkout(tmp_path / "checkout")
    shutil.copytree(REPOSITORY / "config", checkout.root / "config")
    (checkout.root / "slurm").symlink_to("profiles/slurm")
    write_stand_ins(checkout.root / "data")
    jobs = checkout.jobs("--profile", "slurm")
    plan = subprocess.run(
        [SNAKEMAKE.with_name("upcycle"), "plan", "--study", "paper", "--json"],
        cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    runs = json.loads(plan.stdout)["total"]["runs"]
    assert sum(jobs[rule] for rule in ("pretrain_dense", "pretrain_moe", "upcycle", "decay")) == runs == 963


def write_stand_ins(data: Path) -> None:
    """Files where the paper's study looks for its corpora and tokenizers, so that it can be planned."""
    for dataset, ending in (("slimpajama-cc", "jsonl.zst"), ("japanese-cc", "jsonl.zst"), ("stack", "parquet")):
        for part in ("train", "validation"):
            (data / dataset / part).mkdir(parents=True)
            (data / dataset / part / f"0.{ending}").touch()
    for name, size in (("llama", 32_000), ("japanese", 102_400)):
        vocab = {"</s>": 0} | {f"piece{number}": number for number in range(1, size)}
        (data / f"{name}-tokenizer").mkdir()
        (data / f"{name}-tokenizer" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))


def test_the_link_to_the_slurm_profile_is_there():
    assert Path(REPOSITORY / "slurm").resolve() == (REPOSITORY / "profiles/slurm").resolve()
