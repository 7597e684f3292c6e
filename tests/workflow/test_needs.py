"""Text, tokenizers and checkpoints that are missing are found by the plan, before anything starts."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from checkouts import SNAKEMAKE, Checkout, make_checkout
from megatron_files import write_megatron

from upcycle.data.vocabulary import check_tokenizer
from upcycle.errors import UserError
from upcycle.workflow.invocation import read_workflow
from upcycle.workflow.jobs import tokenize_job
from upcycle.workflow.needs import check_needs
from upcycle.workflow.texts import check_texts

CONFIG = Path(__file__).with_name("config.yaml")
PIECES = {f"piece{number}": number for number in range(299)} | {"</s>": 299}


def plan(checkout: Checkout, *words: str) -> subprocess.CompletedProcess[str]:
    """`upcycle plan words` in the checkout."""
    return subprocess.run(
        [SNAKEMAKE.with_name("upcycle"), "plan", *words],
        cwd=checkout.root, env=checkout.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the test study and its files, where nothing was trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG.read_text().replace("study: test", "study: default"))
    for name in ("words", "heldout", "other"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a"}\n')
    return tmp_path


def needs(**changes) -> str:
    """What `check_needs` says of the study in this folder with changed sections; nothing: all is there."""
    config = yaml.safe_load(Path("config.yaml").read_text())
    for section, values in changes.items():
        config[section] = {**config[section], **values}
    Path("config.yaml").write_text(yaml.safe_dump(config))
    try:
        check_needs(read_workflow(None, Path.cwd()))
    except UserError as error:
        return str(error)
    return ""


def test_text_that_is_there_is_fine(folder):
    assert needs() == ""


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        (["other.jsonl"], "datasets.other.heldout_files: nothing matches `other.jsonl` in {}; put the files there, or"),
        (["heldout.jsonl"], "datasets.words.heldout_files: nothing matches `heldout.jsonl` in {}; put the files"),
        (
            ["words.jsonl"],
            "datasets.words.files: nothing matches `words.jsonl` in {}; put the files there, or name theirs",
        ),
    ],
)
def test_text_that_is_missing_is_named_by_its_key(folder, gone, expected):
    for name in gone:
        (folder / name).unlink()
    found = needs()
    assert found.startswith(expected.format(folder))
    assert "\n" not in found


def test_all_that_is_missing_is_counted(folder):
    for path in folder.glob("*.jsonl"):
        path.unlink()
    assert needs(datasets={"words": {"files": ["a/*.txt"]}}).endswith("(and 1 more is missing or wrong)")
    assert needs(data={"tokenizer": "t.json"}).endswith("(and 1 more is missing or wrong)")


def test_a_file_of_no_known_kind_is_named(folder):
    (folder / "words.docx").write_text("a")
    assert needs(datasets={"words": {"files": ["words.docx"]}}).startswith("words.docx: unknown kind of file")


def test_a_named_pipe_is_refused_without_waiting_for_its_writer(folder):
    os.mkfifo(folder / "pipe.txt")
    os.mkfifo(folder / "pipe.json")
    assert needs(datasets={"words": {"files": ["pipe.txt"]}}).startswith("pipe.txt: not a regular file")
    with pytest.raises(UserError, match=r"pipe\.json: not a regular file"):
        check_tokenizer(folder / "pipe.json", 300)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "heldout.jsonl")
    assert needs().startswith("datasets.words.heldout_files: heldout.jsonl cannot be read")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "tokenizer t.json: no such file; give `bpe`, or the path of a tokenizer.json"),
        ("{", "t.json: not a tokenizer.json"),
        ("[" * 100_000, "t.json: not a tokenizer.json"),
        ("\xff", "t.json: not a tokenizer.json"),
        ("{}", "t.json: not a tokenizer.json, which has its pieces under `model.vocab`"),
        (json.dumps({"model": {"vocab": 3}}), "t.json: not a tokenizer.json"),
        (json.dumps({"model": {"vocab": {"a": 0}}}), "t.json has 1 pieces, but vocab_size is 300: make them equal"),
        (
            json.dumps({"model": {"vocab": {f"{number}": number for number in range(300)}}}),
            "t.json has no end-of-text piece: one of <|endoftext|>, </s>",
        ),
    ],
)
def test_a_tokenizer_that_is_missing_or_none_is_named(folder, content, expected):
    if content is not None:
        (folder / "t.json").write_text(content, encoding="latin-1")
    assert needs(data={"tokenizer": "t.json"}).startswith(expected)


def test_a_vocabulary_has_room_for_the_bytes(folder):
    assert needs(data={"vocab_size": 256}).startswith("vocab_size 256: a byte-level tokenizer needs at least 257")
    assert needs(data={"vocab_size": 257}) == ""


def test_pieces_are_counted_as_the_library_counts_them(folder):
    """Those added to a model's own once, also where they name one of them; and a unigram model's [piece, score]."""
    added = [{"content": "</s>", "id": 299}, {"content": "<pad>", "id": 300}]
    for vocab in (PIECES, [[piece, 0.0] for piece in PIECES]):
        (folder / "t.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": added}))
        check_tokenizer(folder / "t.json", 301)
        with pytest.raises(UserError, match="has 301 pieces, but vocab_size is 300"):
            check_tokenizer(folder / "t.json", 300)


def test_tokens_take_no_setting_of_text(folder):
    """Each refused in turn; then the job makes the set of links."""
    for name in ("train", "valid"):
        write_megatron(folder / f"{name}.bin", [[1, 2, 299]] * 200)
    mine = {"files": ["train.bin"]}
    assert "heldout_files: name files of tokens" in needs(datasets={"words": mine})
    mine["heldout_files"] = ["valid.bin"]
    assert "name their tokenizer.json under `data.tokenizer`" in needs(datasets={"words": mine})
    (folder / "t.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": PIECES, "merges": []}}))
    data = {"tokenizer": "t.json", "decontaminate": True}
    assert "set `data.decontaminate: false`" in needs(data=data)
    data["decontaminate"] = False
    assert "where: tokens have no columns" in needs(data=data, datasets={"words": mine | {"where": {"a": ["b"]}}})
    assert needs(datasets={"words": mine}) == ""
    workflow = read_workflow(None, Path.cwd())
    name = next(name for name in workflow.token_sets if name.startswith("words"))
    tokenize_job(workflow, name, None)
    assert (folder / "results/tokens" / name / "train-00000.bin").readlink() == folder / "train.bin"
    assert needs() == ""
    check_texts(workflow)


# As a user meets it


@pytest.mark.workflow
def test_snakemake_and_plan_stop_before_anything_starts(tmp_path):
    """One line, last; the plan is shown before it; a target that does not need the text is planned."""
    checkout = make_checkout(tmp_path / "a checkout")
    (checkout.root / "other.jsonl").unlink()
    message = f"datasets.other.heldout_files: nothing matches `other.jsonl` in {checkout.root}; put the files there, or"
    for words in ((), ("-n",), ("evaluations",)):
        done = checkout.run(*words, check=False)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"snakemake: {message}")
        assert not (checkout.root / "results/tokens").exists()
    assert checkout.jobs("sweep_dense") == {"tokenize": 1, "pretrain_dense": 3, "decay": 3}
    done = plan(checkout)
    assert done.returncode == 2
    assert re.search(r"all \(runs shared\) +18 +18 ", done.stdout)
    assert done.stderr.startswith(f"upcycle plan: {message}")
    assert json.loads(plan(checkout, "--json").stdout)["total"]["runs"] == 18
    checkout.run("--unlock")


@pytest.mark.workflow
def test_a_finished_study_needs_neither_text_nor_tokens(finished, tmp_path):
    """It is planned, and its figures are drawn again; an added point needs both, and the checkpoint it starts from."""
    checkout = finished.copy(tmp_path / "copied")
    for path in checkout.root.glob("*.jsonl"):
        path.rename(path.with_suffix(".gone"))
    (checkout.root / "results/tokens").rename(checkout.root / "tokens")
    (checkout.root / "results/figures/figure3.svg").unlink()
    assert plan(checkout).returncode == 0
    checkout.run("figure3")
    assert checkout.jobs() == {}

    checkout.edit(
        "config.yaml", "dense, model: tiny, steps: [20, 40, 80]", "dense, model: tiny, steps: [20, 40, 80, 160]"
    )
    done = checkout.run("-n", check=False)
    assert done.returncode == 2
    assert "snakemake: datasets.words.files: nothing matches `words.jsonl`" in done.stderr
    (checkout.root / "tokens").rename(checkout.root / "results/tokens")
    assert checkout.jobs("sweep_dense") == {"pretrain_dense": 1, "decay": 1}

    (last,) = (path.parent for path in (checkout.root / "results/runs").glob("dense-*-9.22k-*/spec.json"))
    for damage, how in (
        (lambda path: path.write_bytes(b"cut"), "has 3 bytes, which is"),
        (Path.unlink, "is missing, and"),
    ):
        damage(last / "state.safetensors")
        for done in (checkout.run("-n", check=False), plan(checkout)):
            assert done.returncode == 2
            assert f"results/runs/{last.name}/state.safetensors {how}" in done.stderr.splitlines()[-1]
            assert f"`upcycle train {last.name} --fresh`" in done.stderr
