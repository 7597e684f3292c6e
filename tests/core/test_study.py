"""Strict reading of a study: every mistake is one line that names the key and the mend."""

import copy
from pathlib import Path

import pytest
import yaml

from upcycle.errors import UserError
from upcycle.study.check import check_names, override_execution
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study

STUDY = {
    "study": "test",
    "data": {"dataset": "english", "vocab_size": 1024},
    "context": 256,
    "execution": {"device": "cpu"},
    "models": {
        "tiny": {
            "n_layer": 2,
            "d_model": 64,
            "n_head": 2,
            "batch": 8,
            "warmup_steps": 4,
            "lr": "8e-3",
            "lr_moe": "4e-3",
        }
    },
    "moes": {"8x2": {"n_expert": 8, "top_k": 2}},
    "sweeps": {
        "dense": {"kind": "dense", "model": "tiny", "tokens": ["2.048e5", 409600]},
        "upcycled": {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_tokens": [204800], "tokens": [204800]},
    },
    "fits": {"mult": {"law": "multiplicative", "sweep": "upcycled"}},
    "figures": {"figure4": {}},
}


def write(folder: Path, study: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(study if isinstance(study, str) else yaml.safe_dump(study))
    return path


def changed(path: str, value: object) -> dict:
    """STUDY with one dotted key set (or removed: None)."""
    study = copy.deepcopy(STUDY)
    *sections, key = path.split("/")
    target = study
    for section in sections:
        target = target[section]
    if value is None:
        del target[key]
    else:
        target[key] = value
    return study


def test_yaml_numbers_in_scientific_notation_are_numbers(tmp_path):
    """YAML reads `8e-3` and `2.048e5` as strings; number fields take them."""
    study = load_study(write(tmp_path, STUDY))
    assert study.models["tiny"].lr == 8e-3
    assert study.sweeps["dense"].tokens == [204800, 409600]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("contxt", 256, r"unknown key `contxt`; did you mean `context`\?"),
        ("models/tiny/n_heads", 2, r"unknown key `models.tiny.n_heads`; did you mean `n_head`\?"),
        ("models/tiny/n_head", None, "key `models.tiny.n_head` is missing"),
        ("models/tiny/n_head", 3, "models.tiny: n_head 3 does not divide d_model 64"),
        ("models/tiny/lr", "fast", "`models.tiny.lr`: 'fast' is not a number"),
        ("models/tiny/n_dense", 5, "models.tiny.n_dense says 5 but the shape has 131,392 parameters"),
        ("moes/8x2/gate", "softmax", "`moes.8x2.gate`"),
        ("moes/8x2/top_k", 1, "must name its gate"),
        ("sweeps/dense/model", "tinny", r"sweeps.dense.model: `tinny` is not under `models`; did you mean `tiny`\?"),
        ("sweeps/upcycled/moe", "8x3", r"did you mean `8x2`\?"),
        ("sweeps/dense/moe", "8x2", "`moe` names the mixtures"),
        (
            "fits/mult/sweep",
            "upcicled",
            r"fits.mult.sweep: `upcicled` is not under `sweeps`; did you mean `upcycled`\?",
        ),
        ("execution/device", "tpu", "`execution.device`"),
        ("context", "2.5", "not a whole number"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_mend(tmp_path, path, value, message):
    with pytest.raises(UserError, match=message) as error:
        load_study(write(tmp_path, changed(path, value)))
    assert "config.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data/dataset", "englich", "english"),
        (
            "fits/mult/law",
            "multiplicativ",
            r"fits.mult.law: unknown law `multiplicativ`; did you mean `multiplicative`\?",
        ),
        ("figures/figure44", {}, r"figures.figure44: unknown figure; did you mean `figure4`\?"),
        ("figures/figure4", {"sweeep": "x"}, "sweep"),
        ("figures/figure4", {"sweep": "upcicled"}, r"did you mean `upcycled`\?"),
        ("figures/figure4", {"sweep": "dense"}, r"figures.figure4.sweep: the study has no upcycled sweep `dense`"),
        ("figures/figure4", {"sweep": ["a"]}, r"figures.figure4.sweep: .* valid string"),
        ("figures/figure4", {"model": "tinny"}, r"figures.figure4.model: the study has no model `tinny`; did you mean"),
        (
            "tables",
            {"table6": {"sweeps": ["dense", "mo"]}},
            r"tables.table6.sweeps: the study has no sweep `mo`; valid: `dense`",
        ),
        ("sweeps/upcycled/method", "copi", r"sweeps.upcycled.method: unknown method `copi`; did you mean `copy`\?"),
    ],
)
def test_unknown_names_of_other_layers_are_found_when_planning(tmp_path, path, value, message):
    study = load_study(write(tmp_path, changed(path, value)))
    with pytest.raises(UserError, match=message):
        check_names(study)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"where": "D2 >"}, r"fits\.mult\.where: `D2 >` is no expression"),
        ({"where": "D3 > 1"}, r"fits\.mult\.where: .*no column `D3`; did you mean `D"),
        ({"where": "learnig_rate > 1"}, r"fits\.mult\.where: .*no column `learnig_rate`; .*columns: id, sweeps"),
        ({"where": "sed == 0"}, r"no column `sed`; did you mean `seed`"),
        ({"where": "model > 1"}, r"fits\.mult\.where: .*`model` holds words"),
        ({"where": "D2"}, r"fits\.mult\.where: .*must hold or not for each row"),
        (
            {"fixed": {"alpha4": 1}},
            r"fits\.mult\.fixed: law `multiplicative` has no parameter `alpha4`; did you mean `alpha",
        ),
        (
            {"fixed": {"D0": 1}},
            r"fits\.mult\.fixed: law `multiplicative` has no parameter `D0`; valid: `A`, `E`, `alpha1`",
        ),
        ({"by": "N1", "shared": ["e"]}, r"fits\.mult\.shared: law `multiplicative` has no parameter `e`"),
        ({"shared": ["E"]}, r"fits\.mult\.shared: without `by`"),
        ({"by": "D1"}, r"fits\.mult\.by: `D1` is an input of law `multiplicative`.*one of N1, lineage$"),
        ({"law": "exponent_vs_d1"}, r"fits\.mult\.law: `exponent_vs_d1` is fitted to parameters.*`by: D1`"),
        (
            {"law": "power", "fixed": {"A": 1, "alpha": 1, "E": 1}},
            r"fits\.mult\.fixed: all parameters of law `power` are held",
        ),
        (
            {"law": "power", "fixed": {"A": 1, "alpha": 1}, "floor_from": ["dense"]},
            r"fits\.mult\.fixed: all parameters of law `power` are held",
        ),
    ],
)
def test_a_fit_that_cannot_be_is_found_when_planning(tmp_path, keys, message):
    """By the key, before a run is trained; with the nearest valid name."""
    study = load_study(write(tmp_path, changed("fits/mult", STUDY["fits"]["mult"] | keys)))
    with pytest.raises(UserError, match=message) as error:
        check_names(study)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"where": "D2 >= 5e5 and seed == 0 and 'layers=native' in kernels"},
        {"where": "  "},
        {"fixed": {"E": 1.5}, "by": "N1", "shared": ["alpha1"]},
        {"law": "joint_offset", "fixed": {"D0": 1e6}, "floor_from": ["dense"]},
        {"law": "power", "by": "D1", "shared": ["E"]},
    ],
)
def test_a_fit_that_can_be_passes(tmp_path, keys):
    check_names(load_study(write(tmp_path, changed("fits/mult", STUDY["fits"]["mult"] | keys))))


def test_a_key_given_twice_is_an_error(tmp_path):
    text = yaml.safe_dump(STUDY) + "context: 128\n"
    with pytest.raises(UserError, match=r"line \d+: key `context` is given twice"):
        load_study(write(tmp_path, text))


def test_broken_yaml_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="not valid YAML"):
        load_study(write(tmp_path, "a: [1"))
    with pytest.raises(UserError, match=r"nowhere.yaml: No such file"):
        load_study(tmp_path / "nowhere.yaml")


def test_command_line_overrides_are_execution_settings_only(tmp_path):
    execution = load_study(write(tmp_path, STUDY)).execution
    assert override_execution(execution, {"device": "cuda"}).device == "cuda"
    with pytest.raises(UserError, match=r"devise: not a setting; did you mean `device`\?"):
        override_execution(execution, {"devise": "cuda"})


def test_a_model_may_be_tensor_parallel_by_itself(tmp_path):
    """The paper shares the matrices of its largest model alone. Execution, so ids stay; what cannot be is refused."""
    study = copy.deepcopy(STUDY)
    for key in ("fits", "figures"):
        study[key] = {}
    del study["sweeps"]["upcycled"]
    study["execution"] |= {"devices": 2}
    plain = load_study(write(tmp_path, study))
    study["models"]["wide"] = study["models"]["tiny"] | {"d_model": 96, "tensor_parallel": 2}
    study["sweeps"]["dense"]["model"] = ["tiny", "wide"]
    both = load_study(write(tmp_path, study))
    runs = build_plan(both, tmp_path).runs
    assert set(build_plan(plain, tmp_path).runs) < set(runs)
    for run in runs.values():
        assert both.execution_of(run).tensor_parallel == (2 if run.model.d_model == 96 else 1)
    assert "tensor_parallel" not in str([run.identity() for run in runs.values()])
    study["execution"]["devices"] = 1
    with pytest.raises(UserError, match=r"tensor_parallel 2 .* does not divide execution.devices 1"):
        build_plan(load_study(write(tmp_path, study)), tmp_path)


def test_the_papers_largest_model_is_tensor_parallel():
    paper = load_study(Path("config/paper.yaml"))
    assert {name: entry.tensor_parallel for name, entry in paper.models.items() if entry.tensor_parallel} == {"1B": 2}
