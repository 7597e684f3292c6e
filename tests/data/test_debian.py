"""Debian packages as text, with an apt made up here; and what a study does on a machine without apt."""

import gzip
import hashlib
import io
import logging
import os
import tarfile
from pathlib import Path

import pytest
import yaml

from upcycle.data.datasets import find_dataset
from upcycle.data.debian import AbsentTextError, debian_record, fetch_debian
from upcycle.data.rows import Rows
from upcycle.errors import UserError
from upcycle.study.check import CHECKOUT
from upcycle.workflow.invocation import read_workflow

PAGE = r""".\" 注釈
.TH LS 1
.SH 名前
ls \- ディレクトリの\fI内容\fRを表示する
.B ls
[\fI\,オプション\/\fR]...
Only English here.
"""
VERSION = "0.5.0+dfsg-1"
FULL = "1_deb0.5.0.dfsg.1"


@pytest.fixture
def apt(tmp_path, monkeypatch) -> Path:
    """An apt that has one package, and a dpkg-deb whose packages are plain tars; the folder of the package."""
    there, tools = tmp_path / "mirror", tmp_path / "bin"
    there.mkdir()
    tools.mkdir()
    deb = there / "manpages-ja.deb"
    with tarfile.open(deb, "w") as tar:
        for name, text in (("ja/man1/ls.1.gz", PAGE), ("ja/man1/en.1.gz", "English.\n"), ("man1/ls.1.gz", "日本語\n")):
            content = gzip.compress(text.encode(), mtime=0)
            member = tarfile.TarInfo(f"./usr/share/man/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    sha256 = hashlib.sha256(deb.read_bytes()).hexdigest()
    show = (
        f'[ "$3" = manpages-ja ] || exit 100\nprintf "Package: manpages-ja\\nVersion: {VERSION}\\nSHA256: {sha256}\\n"'
    )
    scripts = {
        "apt-cache": show,
        "apt-get": f'[ "$3" = "manpages-ja={VERSION}" ] && cp {deb} .',
        "dpkg-deb": 'cat "$2"',
    }
    for name, body in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return there


def test_pages_are_read_from_the_package_and_the_manifest_has_its_version_and_hash(apt, tmp_path):
    dataset = find_dataset("japanese-man")
    assert dataset.version == FULL
    (source,) = dataset.sources
    assert list(source.documents(tmp_path / "cache", None, Rows())) == [
        "名前\nls - ディレクトリの内容を表示する\n[オプション]..."
    ]
    sha256 = hashlib.sha256((apt / "manpages-ja.deb").read_bytes()).hexdigest()
    record = source.record([])
    assert (record["package"], record["version"], record["sha256"]) == ("manpages-ja", VERSION, sha256)


def test_a_package_that_is_not_what_apt_lists_is_refused(apt, tmp_path):
    with (apt / "manpages-ja.deb").open("ab") as file:
        file.write(b"more")
    with pytest.raises(UserError, match="is not the package that apt lists; delete it"):
        fetch_debian("manpages-ja", tmp_path / "cache")
    with pytest.raises(AbsentTextError, match="apt knows no package manpages-xx"):
        debian_record("manpages-xx")


STUDY = {
    "study": "texts",
    "sweeps": {
        "english": {"kind": "dense", "model": "33k", "steps": [240, 480]},
        "japanese": {"kind": "dense", "model": "33k", "steps": [240], "set": {"data.dataset": "japanese-man"}},
    },
    "evaluations": {"pages": {"dataset": "japanese-man", "sweep": ["english", "japanese"]}},
    "fits": {
        "english": {"law": "power_in_tokens", "sweep": "english"},
        "both": {"law": "power_in_tokens", "sweep": ["english", "japanese"]},
    },
    "tables": {"table6": {"sweeps": ["japanese"]}},
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    study = yaml.safe_load((CHECKOUT / "config.yaml").read_text())
    kept = {key: study[key] for key in ("data", "context", "execution", "models")}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "texts.yaml").write_text(yaml.safe_dump(kept | STUDY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_packages_version_is_in_the_id_of_a_run(apt, folder):
    workflow = read_workflow("texts", folder)
    (run,) = (workflow.plan.runs[run_id] for run_id in workflow.plan.sweeps["japanese"])
    assert run.data.version == FULL
    assert run.data.tokens_id == f"japanese-man-{FULL}-bpe1024"
    assert set(workflow.study.fits) == {"english", "both"}


def test_without_apt_such_a_sweep_is_skipped_by_name(folder, monkeypatch, caplog):
    monkeypatch.setenv("PATH", str(folder))
    with caplog.at_level(logging.WARNING):
        workflow = read_workflow("texts", folder)
    assert "sweep `japanese` is skipped: Debian's package manpages-ja is fetched by apt-get" in caplog.text
    assert "evaluation `pages` is skipped" in caplog.text
    assert list(workflow.plan.sweeps) == ["english"]
    assert (list(workflow.study.fits), workflow.study.evaluations, workflow.study.tables) == (["english"], {}, {})
    study = folder / "config" / "texts.yaml"
    study.write_text(study.read_text().replace("dataset: english", "dataset: japanese-man"))
    with pytest.raises(AbsentTextError, match="there is no apt on this machine"):
        read_workflow("texts", folder)


def test_runs_that_name_the_whole_version_are_planned_without_apt(folder, monkeypatch):
    """They may be finished, and then nothing is fetched."""
    monkeypatch.setenv("PATH", str(folder))
    study = folder / "config" / "texts.yaml"
    pinned = f"{{data.dataset: japanese-man, data.version: {FULL}}}"
    content = yaml.safe_load(study.read_text())
    content["sweeps"]["japanese"]["set"] = yaml.safe_load(pinned)
    study.write_text(yaml.safe_dump(content))
    workflow = read_workflow("texts", folder)
    assert {workflow.plan.runs[run_id].data.version for run_id in workflow.plan.sweeps["japanese"]} == {FULL}
