"""`upcycle init`: a study file that works at once, made from the studies here."""

import json
import re
from pathlib import Path

import pytest
from hf_folders import PIECES, write_folder

from upcycle.audit.printed import TABLE_8
from upcycle.cli import main
from upcycle.decisions.published import TABLE_2
from upcycle.study.check import CHECKOUT, check_names, find_study
from upcycle.study.plan import build_plan
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.template import TEMPLATES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def example(folder: Path) -> Path:
    """A checkpoint where the own-model template's example has one, of its tokenizer's size."""
    return write_folder(
        folder / ".cache" / "own-model" / "SmolLM2-135M",
        vocab_size=49152,
        num_key_value_heads=1,
        max_position_embeddings=2048,
    )


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_a_whole_study_under_its_new_name(template: str, folder: Path, capsys: pytest.CaptureFixture):
    assert main(["init", "mine", "--template", template]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"config/mine.yaml: a study from template `{template}`")
    for command in ("upcycle plan --study mine", f"snakemake --snakefile {CHECKOUT}/Snakefile --config study=mine"):
        assert command in printed
    text, original = (folder / "config" / "mine.yaml").read_text(), (CHECKOUT / TEMPLATES[template]).read_text()
    expected = read_yaml(CHECKOUT / TEMPLATES[template]) | {"study": "mine"}
    assert read_yaml(folder / "config" / "mine.yaml") == expected
    assert text.partition("\ndata: ")[2] == original.partition("\ndata: ")[2]  # comments too
    schema = text.partition("\n")[0].removeprefix("# yaml-language-server: $schema=")
    assert (folder / "config" / schema).is_file()
    study = find_study("mine", folder)
    check_names(study)
    name = "default" if template == "small" else template
    runs = build_plan(study, folder / "results").runs
    assert runs.keys() == build_plan(find_study(name, CHECKOUT), folder / "results").runs.keys()


def test_a_study_of_an_own_model_is_planned_once_it_has_a_checkpoint_and_a_text(folder: Path, capsys):
    """What docs/own-model.md asks a newcomer to edit, and nothing else."""
    assert main(["init", "mine", "--template", "own-model"]) == 0
    assert main(["plan", "--study", "mine"]) == 2
    assert "models.mine.checkpoint: .cache/own-model/SmolLM2-135M: no such folder" in capsys.readouterr().err
    write_folder(folder / "checkpoint", num_key_value_heads=1)
    study = folder / "config" / "mine.yaml"
    content = read_yaml(study) | {"datasets": {"mine": {"files": "texts/*.jsonl"}}, "context": 64}
    content["data"] |= {"dataset": "mine", "tokenizer": "checkpoint/tokenizer.json", "vocab_size": PIECES}
    content["models"]["mine"] |= {"checkpoint": "checkpoint"}
    study.write_text(json.dumps(content))
    assert main(["plan", "--study", "mine"]) == 2  # what it costs is shown before the text is there
    assert "texts/*.jsonl" in capsys.readouterr().err
    (folder / "texts").mkdir()
    (folder / "texts" / "mine.jsonl").write_text('{"text": "ai bj ck"}\n' * 20)
    assert main(["plan", "--study", "mine", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["kind"] for run in runs if run["lineage"] == "dense"] == ["import"]
    assert {run["kind"] for run in runs if run["role"] == "trunk"} == {"up", "cont"}


def test_the_laws_that_the_template_has_as_comments_are_laws(folder: Path, example: Path):
    text = (CHECKOUT / TEMPLATES["own-model"]).read_text()
    commented = re.findall(r"^  # (\w+: \{law: .*)$", text, re.MULTILINE)
    assert len(commented) == 2
    (folder / "config").mkdir()
    (folder / "config" / "own-model.yaml").write_text(re.sub(r"^  # (?=\w+: \{law: )", "  ", text, flags=re.MULTILINE))
    study = find_study("own-model", folder)
    check_names(study)
    assert set(study.fits) == {"in_d2", "joint", "multiplicative"}
    published = {name: float(value) for name, value in TABLE_2["upcycled"].items()}
    assert published.items() >= study.fits["joint"].fixed.items()
    alphas = {name: float(cells[3]) for name, cells in TABLE_8.items()}
    assert alphas.items() >= study.fits["multiplicative"].fixed.items()


def test_without_a_name_it_is_the_templates(folder: Path):
    assert main(["init"]) == main(["init", "--template", "paper"]) == 0
    assert sorted(path.name for path in (folder / "config").iterdir()) == ["paper.yaml", "small.yaml"]


def test_a_path_is_taken_for_the_name_in_it(folder: Path):
    assert main(["init", "config/mine.yaml"]) == 0
    assert [path.name for path in (folder / "config").iterdir()] == ["mine.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["there"], "config/there.yaml is there already; give another name: `upcycle init NAME --template small`"),
        (["link"], "config/link.yaml is there already"),
        (["a b"], "study 'a b': a study's name, which is its file's, is 1 to 64 letters"),
        (["../x"], "study '../x': a study's name"),
        (["runs"], "study `runs`: results/runs is a folder of the default study"),
        (["x", "--template", "smal"], "no template `smal`; did you mean `small`?"),
    ],
)
def test_it_refuses_in_one_line_and_writes_nothing(words, message, folder, capsys):
    (folder / "config").mkdir()
    (folder / "config" / "there.yaml").write_text("mine")
    (folder / "config" / "link.yaml").symlink_to("nowhere.yaml")
    assert main(["init", *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert sorted(path.name for path in (folder / "config").iterdir()) == ["link.yaml", "there.yaml"]
    assert (folder / "config" / "there.yaml").read_text() == "mine"


def test_in_a_folder_of_the_checkout_it_names_the_checkout(monkeypatch, capsys):
    monkeypatch.chdir(CHECKOUT / "docs")
    assert main(["init", "mine"]) == 2
    assert f"is inside the checkout; run this in {CHECKOUT}" in capsys.readouterr().err
    assert not (CHECKOUT / "docs" / "config").exists()
