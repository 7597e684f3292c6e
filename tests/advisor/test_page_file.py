"""`upcycle page`: what the file holds, without a browser; bad input."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from advisor_sources import losses, source, three_laws

from upcycle.advisor import page as advisor
from upcycle.advisor.sources import fitted_source, paper_source, source_data
from upcycle.cli import main
from upcycle.decisions.curves import from_fits, published
from upcycle.errors import UserError
from upcycle.laws.result import FitResult, write_fit


def data_of(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_one_file_that_fetches_nothing(tmp_path, capsys):
    """Less than 2 MB; no address is loaded: only scripts and styles inside."""
    out = tmp_path / "new" / "advisor.html"
    assert main(["page", "--out", str(out)]) == 0
    assert "constants of the paper's Table 2" in capsys.readouterr().out
    html = out.read_text()
    assert len(html.encode()) < 2_000_000
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=", html)
    assert "@import" not in html
    assert "BEGIN bokeh.min.js" in html


def test_constants_and_draws_are_pythons_to_the_last_bit():
    """JSON keeps every float; draws are their bytes, each column once."""
    data, three = data_of(advisor.advisor_page([paper_source()]))["sources"][0], published()
    assert len(data["columns"]) == 15  # E is one column for all three laws
    for name, curve in (("dense", three.dense), ("moe", three.moe), ("upcycled", three.upcycled)):
        held = data["mixtures"][0]["curves"][name]
        assert held["values"] == dict(curve.values)
        for parameter, column in held["draws"].items():
            numbers = np.frombuffer(base64.b64decode(data["columns"][column]), dtype="<f8")
            assert np.array_equal(numbers, curve.draws[parameter])


def test_words_of_others_are_text():
    hostile = "</script><script>alert(1)</script>"
    html = advisor.advisor_page([source(hostile, three_laws("multiplicative", notes=(hostile,)), losses=losses())])
    assert "<script>alert" not in html
    assert html.count("<script") == 3 + len(advisor.SCRIPTS)


def test_a_page_that_grows_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(advisor, "LARGEST", 1_500_000)
    with pytest.raises(UserError, match=r"the page would have 1\.\d+ MB, above 1\.5 MB: name fewer studies"):
        advisor.write_advisor_page([paper_source()], tmp_path / "advisor.html")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "config").mkdir()
    rows = "id,sweeps,model,lineage\na,up,33k,up\n"
    study = "study: mine\nlosses_from: mine.csv\nfits: {joint: {law: joint, sweep: up}}\n"
    (tmp_path / "mine.csv").write_text(rows)
    (tmp_path / "config" / "mine.yaml").write_text(study)
    for words, message in (
        (["--out", "empty"], "--out empty is a folder: name a file, e.g. empty/advisor.html"),
        (["--out", "file/advisor.html"], "file: File exists"),
        (["--fits", "empty", "--out", "a.html"], "empty holds no fits (*.json): name a study's folder of fits"),
        (["--study", "other", "--out", "a.html"], "other"),
        (
            ["--study", "mine", "--out", "a.html"],
            "results/mine/losses.csv: no such file; `snakemake --config study=mine` makes it",
        ),
        ([], "the following arguments are required: --out"),
    ):
        code = None
        try:
            code = main(["page", *words])
        except SystemExit as end:
            code = end.code
        error = capsys.readouterr().err
        assert code == 2, error
        assert message in error
        assert len(error.splitlines()) == 1
    assert not Path("a.html").exists()


@pytest.fixture(scope="module")
def fits(joint_inputs) -> dict[str, FitResult]:
    return dict(joint_inputs.fits)


def test_a_folder_of_fits_gives_what_advise_takes(fits, tmp_path):
    for name, fit in fits.items():
        write_fit(fit, tmp_path / f"{name}.json")
    assert main(["page", "--fits", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    held = data_of((tmp_path / "page.html").read_text())["sources"][1]
    three = from_fits(fits, "fits")
    assert held["mixtures"][0]["curves"]["upcycled"]["values"] == dict(three.upcycled.values)
    assert held["mixtures"][0]["law_error"] == fits["joint"].loo_rms
    assert held["mixtures"][0]["points"] == []
    assert "holds no losses" in held["no_points"]


def test_a_study_gives_its_losses_marked_where_they_are_simulated(joint_inputs, fits):
    data = source_data(fitted_source("mine", fits, losses=joint_inputs.losses, mark=joint_inputs.mark))
    points = data["mixtures"][0]["points"]
    assert [point["run"] for point in points] == joint_inputs.losses["id"].tolist()
    mixture = joint_inputs.losses.query("lineage == 'dense' or (n_expert == 8 and top_k == 2)")
    assert {point["run"] for point in points if point["law_of"]} == set(mixture["id"])
    used = {*fits["joint"].ids, *fits["scratch"].ids}
    assert {point["run"] for point in points if point["fitted"]} == used
    assert data["mark"].startswith("SIMULATED LOSSES: ")
    assert "simulated losses" in data["statement"]


def test_each_mixture_with_both_laws_is_offered(fits):
    """A second mixture's laws beside the first's; one without a law from scratch is named, not offered."""
    groups = [dict(group) for group in fits["scratch"].groups]
    other = [dict(group, top_k=1) if group["lineage"] == "moe" else group for group in groups]
    several = {
        **fits,
        "scratch_8x1": replace(fits["scratch"], groups=other),
        "joint_8x1": replace(fits["joint"], top_k=1),
        "joint_16x2": replace(fits["joint"], n_expert=16),
    }
    found = fitted_source("mine", several)
    assert {(three.n_expert, three.top_k) for three in found.mixtures} == {(8, 1), (8, 2)}
    assert "16x2, but no law from scratch" in found.left_out
    fixed = source_data(found)["fixed"]
    assert set(fixed) == {"experts"}
    assert fixed["experts"]["why"].startswith("Losses of 8 experts alone")


def test_the_upcycled_law_is_of_a_mixture_that_has_a_law_from_scratch(fits):
    """Not the one of least error, if that is of another mixture."""
    better = replace(fits["joint"], top_k=1, loo_rms=fits["joint"].loo_rms / 10)
    assert from_fits({**fits, "joint_8x1": better}, "mine").top_k == 2


def test_fits_without_a_law_from_scratch_are_refused(fits):
    with pytest.raises(UserError, match="has no law of MoEs trained from scratch: add a fit of law `chinchilla`"):
        fitted_source("mine", {"joint": fits["joint"]})
