"""A lab's own checkpoint through Snakemake: imported once, upcycled and trained on, with a loss and a law for each."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from built_once import built_once
from checkouts import REPOSITORY, SNAKEMAKE, Checkout, make_checkout
from hf_folders import LLAMA, llama_tensors, write_folder, write_weights
from torch.nn.functional import cross_entropy

from upcycle.cli import main
from upcycle.data.batches import heldout_batches
from upcycle.data.tokens import TokenSet
from upcycle.study.parent import read_parent

pytestmark = pytest.mark.workflow
STUDY = REPOSITORY / "tests/workflow/own_model.yaml"


def own_model(root: Path) -> Checkout:
    """A checkout with the study and a checkpoint that has grouped queries, in several shards, as a lab saves it."""
    checkout = make_checkout(root)
    folder = write_folder(root / "mine", num_key_value_heads=1)
    torch.manual_seed(0)
    llama = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    (folder / "model.safetensors").unlink()
    llama.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    shutil.copy(STUDY, root / "config.yaml")
    return checkout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Checkout:
    def build(folder: Path) -> None:
        own_model(folder / "checkout").run()

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
    evaluated = (trained.root / "results/evaluations.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in evaluated] == [rows[0]["id"], *(row["id"] for row in rows[5:])]
    assert trained.root.joinpath("results/report.html").stat().st_size > 0
    assert trained.jobs() == {}


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


def loss_of(folder: Path, tokens: TokenSet) -> float:
    """Mean cross-entropy on the held-out tokens of what transformers loads."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.from_numpy(heldout_batches(tokens.heldout, 32))
    with torch.no_grad():
        return cross_entropy(model(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def test_transformers_loads_and_continues_text_with_what_is_exported(trained, tmp_path, monkeypatch):
    """The whole way by the command line, and back: every loss is what transformers computes."""
    monkeypatch.chdir(trained.root)
    tokens = TokenSet(*(trained.root / "results/tokens").glob("words-*"))
    rows = {row["lineage"]: row for row in losses(trained)}
    assert loss_of(trained.root / "mine", tokens) == pytest.approx(float(rows.pop("dense")["loss"]), abs=1e-5)
    for lineage, row in rows.items():
        assert main(["export", row["id"], str(tmp_path / lineage)]) == 0
        assert loss_of(tmp_path / lineage, tokens) == pytest.approx(float(row["loss"]), abs=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "up")
    mixtral = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "up")
    assert type(mixtral).__name__ == "MixtralForCausalLM"
    given = tokenizer("a text of", return_tensors="pt")
    made = mixtral.generate(**given, max_new_tokens=8, min_new_tokens=8, do_sample=False)[0]
    assert len(made) == given["input_ids"].shape[1] + 8
    assert tokenizer.decode(made).startswith("a text of")
    assert read_parent(tmp_path / "cont").shape == read_parent(trained.root / "mine").shape


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


def test_finished_results_need_no_checkpoint_and_unfinished_ones_do(trained, tmp_path):
    """Copied without its folder: what was read of it at last is in the notes."""
    copied = trained.copy(tmp_path / "copied")
    shutil.rmtree(copied.root / "mine")
    assert copied.jobs() == {}
    (folder,) = (copied.root / "results/runs").glob("import-*")
    shutil.rmtree(folder)
    said = copied.run("-n", check=False).stderr
    assert f"mine: no such folder, and {folder.name} is still to be imported from it; restore it" in said


def test_imported_and_continued_runs_are_adopted(trained, tmp_path):
    """By another folder with the same checkpoint: nothing is imported or trained again."""
    other = own_model(tmp_path / "other")
    upcycle = [SNAKEMAKE.with_name("upcycle"), "adopt", trained.root / "results"]
    done = subprocess.run(upcycle, cwd=other.root, env=other.environment(), capture_output=True, text=True, check=True)
    assert "took 17 runs" in done.stdout
    assert other.jobs().keys() <= {"tokenize", "losses", "evaluations", "fit", "report"}


def test_two_processes_import_and_train_on_as_one_does(trained, tmp_path):
    """The same weights to the bit, and a loss that differs by rounding."""
    (imported,) = (path.name for path in (trained.root / "results/runs").glob("import-*"))
    first = min(path.name for path in (trained.root / "results/runs").glob("cont-*"))
    shared = trained.copy(tmp_path / "two")
    shutil.rmtree(shared.root / "results/runs")
    shared.edit("config.yaml", "device: cpu,", "device: cpu, devices: 2,")
    shared.edit("config.yaml", "balance_group: 4", "balance_group: 2")  # of the mixtures, which are not trained here
    shared.run(f"results/runs/{first}/metrics.json")
    one, two = (checkout.root / "results/runs" for checkout in (trained, shared))
    assert (one / imported / "weights.safetensors").read_bytes() == (
        two / imported / "weights.safetensors"
    ).read_bytes()
    for run_id in (imported, first):
        assert last_heldout(one / run_id) == pytest.approx(last_heldout(two / run_id), abs=1e-5)


def last_heldout(folder: Path) -> float:
    return json.loads((folder / "metrics.json").read_text())["curve_heldout"][-1][1]
