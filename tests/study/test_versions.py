"""Text that no hash pins has the version of its source in the run's id: Python's own library."""

import platform

import pytest
import yaml

from upcycle.data.versions import full_version
from upcycle.errors import UserError
from upcycle.study.check import CHECKOUT
from upcycle.study.spec import RunSpec
from upcycle.workflow.invocation import read_workflow
from upcycle.workflow.needs import check_needs


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """The plan of one dense run on the standard library, with these settings of `data`, under this Python."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()

    def make(python: str, data: dict | None = None, of_sweep: dict | None = None):
        monkeypatch.setattr(platform, "python_version", lambda: python)
        study = yaml.safe_load((CHECKOUT / "config.yaml").read_text())
        study = {key: study[key] for key in ("context", "execution", "models")} | {"study": "code"}
        study["data"] = {"dataset": "python-stdlib", "vocab_size": 1024} | (data or {})
        study["sweeps"] = {"dense": {"kind": "dense", "model": "33k", "steps": [240], "set": of_sweep or {}}}
        study["evaluations"] = {"code": {"dataset": "python-stdlib", "sweep": "dense"}}
        (tmp_path / "config" / "code.yaml").write_text(yaml.safe_dump(study))
        return read_workflow("code", tmp_path)

    return make


def finished(workflow) -> RunSpec:
    return workflow.plan.runs[workflow.plan.finished_models[0]]


def test_another_python_is_another_run_and_another_token_set(plan):
    here, there = plan("3.11.7"), plan("3.12.1")
    assert finished(here).data.version == "1_py3.11.7"
    assert finished(here).data.tokens_id == "python-stdlib-1_py3.11.7-bpe1024"
    assert finished(here).id != finished(there).id
    assert set(there.token_sets) == {
        "python-stdlib-1_py3.12.1-bpe1024",
        "python-stdlib-1_py3.12.1-as-python-stdlib-1_py3.12.1-bpe1024",
    }
    assert finished(plan("3.11.7", {"version": "1"})) == finished(here)
    assert finished(plan("3.11.7", {"dataset": "english"}, {"data.dataset": "python-stdlib"})) == finished(here)
    assert finished(plan("3.11.7", {"dataset": "english"})).data.version == "1"


def test_a_version_that_is_written_out_keeps_a_finished_run_and_is_refused_where_its_text_is_needed(plan):
    pinned = plan("3.12.1", {"version": "1_py3.11.7"})
    assert finished(pinned) == finished(plan("3.11.7"))
    plan("3.12.1", {"version": "1_py3.11.7"})
    with pytest.raises(
        UserError, match=r"data.version 1_py3.11.7: the source of `python-stdlib` here makes .*3\.12\.1"
    ):
        check_needs(pinned)
    with pytest.raises(UserError, match=r"no version '2_py3\.11\.7' here"):
        plan("3.11.7", {"version": "2_py3.11.7"})


def test_other_data_sets_are_pinned_by_hash():
    assert full_version("english", "1") == "1"
    assert full_version("mine", "1") == "1"
