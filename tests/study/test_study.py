"""Strict reading of a study: every mistake is one line that names the key and the mend."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from upcycle.cli import main
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
        target = target.setdefault(section, {})
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
        ("models/tiny/n_dense", 5, "models.tiny.n_dense is 5 but the shape has 131,392 parameters"),
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
        ("data/dataset", "openwebtext-excerpts", r"data.dataset: `openwebtext-excerpts` is for evaluation only"),
        (
            "sweeps/dense/set",
            {"data.dataset": "openwebtext-excerpts"},
            r"sweeps.dense.set: `openwebtext-excerpts` is for evaluation only, .* under `evaluations`",
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


def test_the_table_of_laws_needs_a_law_before_anything_is_trained(tmp_path):
    study = changed("tables", {"laws": {}})
    check_names(load_study(write(tmp_path, study)))
    study["fits"] = {"rows": {"law": "power", "sweep": "upcycled", "by": "D1"}}
    with pytest.raises(UserError, match=r"tables.laws: .* `fits` has none of `sweep: upcycled`; add one"):
        check_names(load_study(write(tmp_path, study)))


@pytest.mark.parametrize(
    ("kernels", "refused"),
    [
        ({}, True),
        ({"layers": "native"}, False),
        ({"layers": "composed"}, True),
        ({"layers": "composed", "attention": "sdpa", "experts": "loop"}, False),
    ],
)
def test_a_comparison_of_methods_fixes_its_kernels_before_anything_is_trained(tmp_path, kernels, refused):
    study = changed("figures", {"methods": {}})
    study["execution"] = study["execution"] | kernels
    planned = load_study(write(tmp_path, study))
    if refused:
        with pytest.raises(UserError, match=r"figures.methods: .* name execution.layers: native"):
            check_names(planned)
    else:
        check_names(planned)


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


def test_a_model_may_be_executed_in_its_own_way(tmp_path):
    """The paper shares the matrices of its largest model alone. Execution, so ids stay; what cannot be is refused."""
    study = copy.deepcopy(STUDY)
    for key in ("fits", "figures"):
        study[key] = {}
    del study["sweeps"]["upcycled"]
    study["execution"] |= {"devices": 2}
    plain = load_study(write(tmp_path, study))
    study["models"]["wide"] = study["models"]["tiny"] | {
        "d_model": 96,
        "execution": {"tensor_parallel": 2, "micro_batch": 1},
    }
    study["sweeps"]["dense"]["model"] = ["tiny", "wide"]
    both = load_study(write(tmp_path, study))
    runs = build_plan(both, tmp_path).runs
    assert set(build_plan(plain, tmp_path).runs) < set(runs)
    for run in runs.values():
        execution, wide = both.execution_of(run), run.model.d_model == 96
        assert (execution.tensor_parallel, execution.micro_batch) == ((2, 1) if wide else (1, None))
        assert execution.devices == 2
    assert "tensor_parallel" not in str([run.identity() for run in runs.values()])
    study["execution"]["devices"] = 1
    with pytest.raises(UserError, match=r"tensor_parallel 2 .* does not divide execution.devices 1"):
        build_plan(load_study(write(tmp_path, study)), tmp_path)


def test_mixtures_of_a_model_may_be_executed_in_their_own_way(tmp_path):
    """`execution_moe` overrides the model's `execution` key by key, and dense models never read it."""
    raw = copy.deepcopy(STUDY)
    raw["models"]["tiny"] |= {
        "execution": {"devices": 4, "activation_checkpointing": "block"},
        "execution_moe": {"devices": 2, "nodes": 2, "tensor_parallel": 2},
    }
    study = load_study(write(tmp_path, raw))
    runs = build_plan(study, tmp_path).runs.values()
    assert {run.moe is None for run in runs} == {True, False}
    for run in runs:
        execution = study.execution_of(run)
        assert execution.activation_checkpointing == "block"
        assert (execution.devices, execution.nodes) == ((4, 1) if run.moe is None else (2, 2))


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """What `upcycle plan` prints of a study file: one printable line of bounded length, with exit code 2."""

    def refuse(content: str | bytes) -> str:
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "config"
        folder.mkdir(exist_ok=True)
        (folder / "test.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        code = main(["plan", "--study", "test"])
        printed = capsys.readouterr()
        assert (code, printed.out, printed.err.count("\n")) == (2, "", 1), printed.err[:1000]
        line = printed.err.removesuffix("\n")
        assert line.isprintable()
        assert len(line) < 800
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config"]
        return line

    return refuse


def raw(path: str, value: str) -> str:
    """STUDY with one key given as YAML text."""
    return json.dumps(changed(path, "@value@")).replace('"@value@"', value)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{to}: &{to} [{','.join([f'*{of}'] * 9)}]\n" for of, to in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "k: &a0 [1]\n" + "".join(f"k{i}: &a{i + 1} [*a{i}]\n" for i in range(1000))


FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", "holds no settings"),
    "a list": (b"[1]", "holds no settings"),
    "two documents": (b"a: 1\n---\nb: 2\n", "line 2: not valid YAML: but found another document"),
    "UTF-16": ("study: test".encode("utf-16"), "not UTF-8"),
    "UTF-16 without mark": ("study: test".encode("utf-16-le"), "special characters are not allowed"),
    "invalid UTF-8": (b"study: \xff", "not UTF-8 .* at byte 7"),
    "a file of a megabyte": (b"a: " + b"x" * 2**20, "more than 128 KiB"),
    "lists within lists": (b"[" * 3000, "more than 20 levels"),
    "mappings within mappings": (b"{a: " * 3000 + b"1" + b"}" * 3000, "more than 20 levels"),
    "blocks within blocks": ("".join(" " * i + "a:\n" for i in range(400)), "more than 20 levels"),
    "aliases of aliases": (BOMB, "line 1: more than 50,000 values, aliases written out"),
    "a chain of aliases": (CHAIN, "more than 20 levels of nesting, aliases written out"),
    "an alias of itself": ("a: &a [*a]", "more than 20 levels of nesting, aliases written out"),
    "a list as a key": ("? [a, b]\n: 1", "line 1: a key is a name, not a list or a mapping"),
    "a mapping as a key": ("{a: 1}: 1", "a key is a name"),
    "a number as a key": ("1: 1", "line 1: key `1` is no text; put a name like it in quotes"),
    "a key of 300 characters": ("k" * 300 + ": 1", "a key of 300 characters; a name has at most 64"),
    "a key of two lines": ('"a\\nb": 1', r"key 'a\\nb' holds a character that cannot be printed"),
    "a surrogate": (r'title: "\ud800"', "holds a character that cannot be printed"),
    "text turned around": (r'title: "\u202e"', "holds a character that cannot be printed"),
    "a tag": ("!!python/object/apply:os.system ['touch X']", "line 1: tag .* a study is plain data"),
    "a tag within": ("study: !!binary aGk=", "line 1: tag"),
    "a merge key": ("a: &a {b: 1}\nc: {<<: *a}", "line 2: merge keys"),
    "unclosed": ("a: 'b", "line 1: not valid YAML: found unexpected end of stream"),
    "another YAML": ("%YAML 9.9\n---\na: 1", "not valid YAML: found incompatible YAML document"),
}


def test_a_named_pipe_is_refused_without_waiting_for_its_writer(tmp_path):
    os.mkfifo(tmp_path / "study.yaml")
    with pytest.raises(UserError, match=r"study\.yaml: not a regular file"):
        load_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_study_is_refused_in_one_line(refusal, name):
    content, message = FILES[name]
    assert re.search(message, refusal(content))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Ranges
        ("optim/beta1", "2", "`optim.beta1`: Input should be less than 1"),
        ("optim/beta1", "-0.1", "`optim.beta1`: .* greater than or equal to 0"),
        ("optim/beta2", "1", "`optim.beta2`: .* less than 1"),
        ("optim/weight_decay", "-0.1", "`optim.weight_decay`: .* greater than or equal to 0"),
        ("optim/weight_decay", "1e300", "`optim.weight_decay`: .* less than or equal to 100"),
        ("models/tiny/lr", "10", "upcycle plan: sweeps.dense: `optim`: lr 10 x weight_decay 0.1 is not below 1"),
        ("optim/eps", "0", "`optim.eps`: .* greater than 0"),
        ("optim/eps", "1e300", "`optim.eps`: 1e[+]300 is outside of what training in float32 can use"),
        ("optim/clip", "1e-300", "`optim.clip`: 1e-300 is outside of"),
        ("models/tiny/lr", "-1", "`models.tiny.lr`: .* greater than 0"),
        ("models/tiny/lr", "100", "`models.tiny.lr`: .* less than or equal to 10"),
        ("models/tiny/lr_moe", ".inf", "`models.tiny.lr_moe`: .* finite"),
        ("models/tiny/init_std", "1e20", "`models.tiny.init_std`: .* less than or equal to 10"),
        ("models/tiny/d_model", "1e30", "`models.tiny.d_model`: .* less than or equal to 1048576"),
        ("models/tiny/n_layer", "1e9", "`models.tiny.n_layer`: .* less than or equal to 10000"),
        ("models/tiny/n_budget", "1e9", "`models.tiny.n_budget`: .* less than or equal to 40"),
        ("models/tiny/n_budget", "3", "n_budget counts the halvings of max_steps, which is not given"),
        ("moes/8x2/n_expert", "1e9", "`moes.8x2.n_expert`: .* less than or equal to 1048576"),
        ("moes/8x2/aux_coef", ".inf", "`moes.8x2.aux_coef`: .* finite"),
        ("moes/8x2/aux_coef", ".nan", "`moes.8x2.aux_coef`: .* finite"),
        ("data/vocab_size", "1", "`data.vocab_size`: .* greater than or equal to 2"),
        ("data/seed", "1e19", "`data.seed`: .* less than or equal to 10"),
        ("execution/threads", "1e9", "`execution.threads`: .* less than or equal to 1024"),
        ("execution/nodes", "3", "execution.devices 1 cannot be shared equally by execution.nodes 3"),
        ("context", "1e308", "`context`: .* less than or equal to 1073741824"),
        ("sweeps/dense/tokens", "[1e19]", "`sweeps.dense.tokens.0`: .* less than or equal to"),
        # What is no number
        ("schedule/floor", "true", "`schedule.floor`: True is not a number"),
        ("schedule/floor", "null", "`schedule.floor`: Input should be a valid number .given: None"),
        ("schedule/floor", "[0.1]", "`schedule.floor`: Input should be a valid number"),
        ("schedule/decay_fraction", "null", "`schedule.decay_fraction`: Input should be a valid number"),
        ("schedule/decay_fraction", "[0.1]", "`schedule.decay_fraction`: Input should be a valid number"),
        ("schedule/decay_fraction", "{a: 1}", "`schedule.decay_fraction`: Input should be a valid number"),
        ("context", "60:00", "`context`: '60:00' is not a number"),
        ("context", "010", "`context`: '010' is not a number"),
        ("context", "0x10", "`context`: '0x10' is not a number"),
        ("context", "yes", "`context`: 'yes' is not a number"),
        ("context", "2024-01-01", "`context`: '2024-01-01' is not a number"),
        ("context", "9" * 5000, "`context`: '9{50,60}... is not a number"),
        ("context", "1e999", "`context`: inf is not a whole number"),
        ("context", "&a [*a]", "more than 20 levels of nesting"),
        # Empty lists
        ("sweeps/dense/model", "[]", "`sweeps.dense.model`: .* at least 1 item"),
        ("sweeps/upcycled/method", "[]", "`sweeps.upcycled.method`: .* at least 1 item"),
        ("sweeps/dense/seed", "[]", "`sweeps.dense.seed`: .* at least 1 item"),
        ("sweeps/dense/schedule", "[]", "`sweeps.dense.schedule`: .* at least 1 item"),
        ("sweeps/dense/tokens", "[]", "`sweeps.dense.tokens`: .* at least 1 item"),
        ("sweeps/dense/set", "{optim.lr: []}", "`sweeps.dense.set.optim.lr`: .* at least 1 item"),
        ("sweeps/upcycled/moe", "[]", "`moe` names the mixtures"),
        ("sweeps", "{}", "`sweeps`: .* at least 1 item"),
        ("fits/mult/sweep", "[]", "`fits.mult.sweep`: .* at least 1 item"),
        ("evaluations/web", "{dataset: english, sweep: []}", "`evaluations.web.sweep`: .* at least 1 item"),
        ("datasets/mine/files", "[]", "`datasets.mine`: no `files`: name the text"),
        # Names that become files and words of a command
        ("data/version", '"$(touch X)"', "`data.version`: String should match pattern"),
        ("data/version", "a b", "`data.version`: String should match pattern"),
        ("data/version", "../../..", "`data.version`: String should match pattern"),
        ("data/version", "a-b", "`data.version`: String should match pattern"),
        ("data/version", "1", "`data.version`: text is wanted, and this is not; put it in quotes .given: 1"),
        ("data/dataset", "../x", "`data.dataset`: String should match pattern"),
        ("data/dataset", "x" * 65, "`data.dataset`: .* at most 64 characters"),
        ("data/tokenizer", r'"a\nb.json"', "`data.tokenizer`: String should match pattern"),
        ("evaluations", "{'a b': {dataset: english, sweep: dense}}", "`evaluations.a b`: String should match pattern"),
        ("evaluations", "{web: {dataset: ../x, sweep: dense}}", "`evaluations.web.dataset`: String should match"),
        ("evaluations", "{web: {dataset: english, version: ';', sweep: dense}}", "`evaluations.web.version`: String"),
        ("sweeps/dense/set", "{data.version: $(touch X)}", "sweeps.dense.set: `data.version`: String should match"),
        ("sweeps/dense/set", "{data.dataset: ../x}", "sweeps.dense.set: `data.dataset`: String should match"),
        ("sweeps/" + "s" * 65, "{kind: dense, model: tiny}", "at most 64 characters"),
        ("moes", "{'../x': {n_expert: 8, top_k: 2}}", "`moes.../x`: String should match pattern"),
        ("study", "../x", "`study`: String should match pattern"),
        ("datasets", "{english: {files: [x]}}", "datasets.english: `english` is a built-in data set"),
        # Kernels and sizes that contradict each other
        ("execution", "{device: cpu, layers: native, attention: plain}", "whole layers take no kernels of ops"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line(refusal, path, value, message):
    assert re.search(message, refusal(raw(path, value)))


def test_a_models_execution_is_not_lost_to_another_of_its_size(refusal):
    twin = STUDY["models"]["tiny"] | {"execution": {"tensor_parallel": 2}}
    message = refusal(raw("models/twin", json.dumps(twin)))
    assert "models.tiny and models.twin are one size; give both the same execution" in message


def test_words_of_yaml_have_one_meaning(tmp_path):
    """What YAML 1.1 reads as a boolean, a date, an octal or a sexagesimal number is the text that was written."""
    for word in ("no", "on", "010", "1.2.3", "2024.01.01"):
        assert load_study(write(tmp_path, raw("data/version", word))).data.version == word
    assert load_study(write(tmp_path, raw("data/repeat", "True"))).data.repeat is True
    for number in ("1_024", "1024.", "1.024e3", "+1024", '"1024"'):
        assert load_study(write(tmp_path, raw("data/vocab_size", number))).data.vocab_size == 1024
    assert load_study(write(tmp_path, "\ufeff" + yaml.safe_dump(STUDY))).study == "test"


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a b", "$(touch X)", "-x", ".x", "", "n" * 65, "runs", "a\nb"]
)
def test_a_studys_name_is_the_name_of_a_file(tmp_path, monkeypatch, capsys, name):
    """Whatever file is there, no study is planned from outside of config/, and none writes among another's products."""
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "outside.yaml", tmp_path / "config" / "a b.yaml", tmp_path / "config" / "runs.yaml"):
        place.write_text(yaml.safe_dump(STUDY))
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", f"--study={name}"]) == 2
    assert re.fullmatch(r"upcycle plan: study .*\n", capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "spec.json is damaged: it holds no JSON object"),
        ('{"seeed": 1}', r"spec.json: unknown key `seeed`; did you mean `seed`\?"),
        ('{"seed": 1}', "spec.json: key `model` is missing"),
        ('{"parent": "../../x"}', "spec.json: "),
    ],
)
def test_a_specification_that_is_none_is_refused_in_one_line(tmp_path, monkeypatch, capsys, content, message):
    """`upcycle train spec.json`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "test.yaml").write_text(yaml.safe_dump(STUDY))
    (tmp_path / "spec.json").write_text(content)
    assert main(["train", "spec.json", "--study", "test"]) == 2
    assert re.fullmatch(f"upcycle train: {message}.*\n", capsys.readouterr().err)
