"""A product is stale when what it was made from has changed, and refused when somebody edited it."""

import json
import shutil
import subprocess

import pytest
from checkouts import SNAKEMAKE

from upcycle.workflow.records import Digests

METRICS = {
    "id": "run", "loss": 3.25, "wall_seconds": 4.0, "started": "now", "mfu": 0.5,
    "execution": {"device": "cpu", "threads": 1, "kernels": {"layers": "native"}},
}  # fmt: skip


def digest_of(folder, **changes) -> str | None:
    path = folder / "metrics.json"
    path.write_text(json.dumps(METRICS | changes))
    return Digests(folder).of(path)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"wall_seconds": 9.0, "save_background_seconds": 1.0, "started": "then", "mfu": 0.1, "resumed": 3}, True),
        ({"execution": {"device": "cuda", "threads": 2, "kernels": {"layers": "native"}}}, True),
        ({"loss": 3.25000001}, False),
        ({"loss_se": 0.1}, False),
        ({"execution": {"device": "cpu", "threads": 1, "kernels": {"layers": "composed"}}}, False),
    ],
)
def test_only_what_bears_on_losses_counts_of_a_runs_metrics(tmp_path, changes, same):
    assert (digest_of(tmp_path, **changes) == digest_of(tmp_path)) == same


def test_digests_are_remembered_until_the_file_changes(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text("one")
    digests = Digests(tmp_path)
    first = digests.of(path)
    digests.save()
    note = json.loads((tmp_path / "verified.json").read_text())[str(path.resolve())]
    assert note["found"] == first == Digests(tmp_path).of(path)
    path.write_text("two")
    assert Digests(tmp_path).of(path) not in (first, None)
    assert Digests(tmp_path).of(tmp_path / "missing") is None


def test_damaged_notes_or_metrics_are_no_error(tmp_path):
    """Damaged metrics are another content: the job that reads them names them."""
    (tmp_path / "metrics.json").write_text("{cut")
    (tmp_path / "verified.json").write_text("[]")
    assert Digests(tmp_path).of(tmp_path / "metrics.json")


def retrain(checkout, run: str) -> None:
    """`upcycle train run --fresh`, as a user calls it."""
    done = subprocess.run(
        [SNAKEMAKE.with_name("upcycle"), "train", run, "--fresh"],
        cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.workflow
def test_a_run_trained_again_with_another_loss_redraws_what_read_it(checkout):
    """The same loss redraws nothing; torch's ops in place of the C kernels give another in its last digits."""
    runs = checkout.root / "results/runs"
    run = sorted(path.name for path in runs.glob("decay-up-*"))[0]
    loss = json.loads((runs / run / "metrics.json").read_text())["loss"]
    retrain(checkout, run)
    assert json.loads((runs / run / "metrics.json").read_text())["loss"] == loss
    assert checkout.jobs() == {}
    checkout.edit("config.yaml", "execution: {", "execution: {layers: composed, ")
    assert checkout.jobs() == {}
    retrain(checkout, run)
    assert json.loads((runs / run / "metrics.json").read_text())["loss"] != loss
    assert checkout.jobs() == {"losses": 1, "fit": 5, "figure": 1, "table": 1, "report": 1}
    checkout.run("losses")
    assert repr(loss) not in (checkout.root / "results/losses.csv").read_text()


@pytest.mark.workflow
def test_an_evaluated_run_trained_again_is_evaluated_again(checkout):
    runs = checkout.root / "results/runs"
    run = sorted(path.name for path in runs.glob("decay-dense-*"))[0]
    checkout.edit("config.yaml", "execution: {", "execution: {layers: composed, ")
    retrain(checkout, run)
    jobs = checkout.jobs("evaluations")
    assert jobs == {"evaluate": 1, "evaluations": 1}
    checkout.run("evaluations")
    assert checkout.jobs("evaluations") == {}


@pytest.mark.workflow
def test_another_text_of_an_evaluation_is_evaluated_in_one_call(checkout):
    """Two studies may call different texts by one name, so a result is named by its text."""
    before = (checkout.root / "results/evaluations.csv").read_text()
    checkout.edit("config.yaml", "other: {dataset: other,", "other: {dataset: words,")
    assert checkout.jobs() == {"tokenize": 1, "evaluate": 3, "evaluations": 1, "report": 1}
    checkout.run("evaluations")
    assert (checkout.root / "results/evaluations.csv").read_text() != before
    assert checkout.jobs("evaluations") == {}


@pytest.mark.workflow
@pytest.mark.parametrize("name", ["losses.csv", "evaluations.csv", "fits/additive.json"])
def test_a_product_edited_or_cut_by_hand_is_refused_by_name(finished, tmp_path, name):
    checkout = finished.copy(tmp_path / "checkout")
    path = checkout.root / "results" / name
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole.replace(b"3", b"4", 1)):
        path.write_bytes(damaged)
        done = checkout.run("-n", check=False)
        assert done.returncode != 0
        assert f"results/{name}: altered or cut since `upcycle " in done.stdout + done.stderr
        assert path.read_bytes() == damaged
    by_hand = subprocess.run(
        [SNAKEMAKE.with_name("upcycle"), "report"],
        cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert by_hand.returncode == 2
    assert f"results/{name}: altered or cut since" in by_hand.stderr
    path.unlink()
    jobs = checkout.jobs()
    assert jobs, "made again once it is removed"
    assert not set(jobs) & {"pretrain_dense", "pretrain_moe", "upcycle", "decay"}
    shutil.rmtree(checkout.root)
