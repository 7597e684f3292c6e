"""A lab's own checkpoint through Snakemake: imported once, upcycled and trained on, with a loss and a law for each."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from built_once import built_once
from checkouts import REPOSITORY, Checkout, make_checkout
from hf_folders import LLAMA, llama_tensors, write_folder, write_weights

pytestmark = pytest.mark.workflow
STUDY = REPOSITORY / "tests/workflow/own_model.yaml"
FIT = "results/fits/by_lineage.json"


def own_model(root: Path) -> Checkout:
    """A checkout with the study and a checkpoint that has grouped queries, in three shards."""
    checkout = make_checkout(root)
    write_folder(root / "mine", shards=3, num_key_value_heads=1)
    shutil.copy(STUDY, root / "config.yaml")
    return checkout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Checkout:
    def build(folder: Path) -> None:
        own_model(folder / "checkout").run(FIT)

    return Checkout(built_once(tmp_path_factory, "own_model", build) / "checkout")


def losses(checkout: Checkout) -> list[dict[str, str]]:
    with (checkout.root / "results/losses.csv").open() as file:
        return list(csv.DictReader(file))


def test_from_a_checkpoint_to_losses_and_laws(trained):
    """One import, no dense training; both lineages by D2 at the D1 that the owner states; a fit of each."""
    runs = {path.name.split("-")[0] for path in (trained.root / "results/runs").iterdir()}
    assert runs == {"import", "up", "cont", "decay"}
    rows = losses(trained)
    assert [(row["lineage"], row["role"], int(row["D1"]), int(row["D2"])) for row in rows] == [
        ("dense", "imported", 0, 0),
        *(("up", "decay", 2_000_000, 128 * steps) for steps in (10, 20, 40, 80)),
        *(("cont", "decay", 2_000_000, 128 * steps) for steps in (10, 20, 40, 80)),
    ]
    assert (int(rows[0]["D"]), rows[0]["sweeps"], rows[0]["lr"], rows[0]["model"]) == (2_000_000, "", "", "mine")
    assert all(float(row["loss"]) < float(rows[0]["loss"]) for row in rows[1:])
    assert {row["dense_parent"] for row in rows[1:]} == {rows[0]["id"]}
    fit = json.loads((trained.root / "results/fits/by_lineage.json").read_text())
    assert [group["lineage"] for group in fit["groups"]] == ["cont", "up"]
    assert trained.jobs(FIT) == {}


def test_the_imported_run_has_a_loss_and_no_updates(trained):
    (folder,) = (trained.root / "results/runs").glob("import-*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["loss"] > 0
    assert metrics["tokens"] == 2_000_000
    assert metrics["segment_tokens"] == metrics["steps"] == 0
    assert metrics["train_loss_last"] is metrics["tokens_per_second"] is None
    assert json.loads((folder / "spec.json").read_text())["model"]["n_kv_head"] == 1
    for child in (trained.root / "results/runs").glob("up-*/receipt.json"):
        if json.loads(child.with_name("spec.json").read_text())["start_step"] == 0:
            assert json.loads(child.read_text())["logit_gap"] < 1e-4


def test_another_learning_rate_imports_nothing_again(trained, tmp_path):
    copied = trained.copy(tmp_path / "lr")
    copied.edit("config.yaml", "lr: 3e-3, lr_moe: 3e-3", "lr: 2e-3, lr_moe: 3e-3")
    jobs = copied.jobs()
    assert jobs["continue_dense"] == 4
    assert "import_checkpoint" not in jobs
    assert "upcycle" not in jobs


def test_another_checkpoint_is_another_run(trained, tmp_path):
    copied = trained.copy(tmp_path / "other")
    shutil.rmtree(copied.root / "mine")
    tensors = llama_tensors(LLAMA | {"num_key_value_heads": 1}, seed=1)
    write_folder(copied.root / "mine", tensors=tensors, num_key_value_heads=1)
    assert copied.jobs()["import_checkpoint"] == 1
    write_weights(copied.root / "mine", llama_tensors(LLAMA, seed=1))
    said = copied.run(check=False).stderr
    assert "models.mine.checkpoint" in said
    assert "k_proj.weight is [16, 16], but config.json asks for [8, 16]" in said
