"""`upcycle init`: a study file that works at once, made from the studies here."""

from pathlib import Path

import pytest

from upcycle.cli import main
from upcycle.study.check import CHECKOUT, check_names, find_study
from upcycle.study.plan import build_plan
from upcycle.study.strict_yaml import read_yaml
from upcycle.study.template import TEMPLATES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
