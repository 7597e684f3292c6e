"""`upcycle plan --all` shows what an ablation varies, and nothing that the ids show already."""

import subprocess
import sys
from pathlib import Path

import yaml

from upcycle.study.plan import Plan, build_plan
from upcycle.study.study import StudyConfig
from upcycle.study.varying import run_labels, varying, varying_by_run

STUDY = {
    "study": "default",
    "data": {"dataset": "english", "vocab_size": 1024},
    "context": 32,
    "execution": {"device": "cpu"},
    "models": {
        "tiny": {"n_layer": 1, "d_model": 16, "n_head": 2, "batch": 8, "warmup_steps": 2, "lr": 1e-2, "lr_moe": 5e-3},
        "wide": {"n_layer": 1, "d_model": 32, "n_head": 2, "batch": 8, "warmup_steps": 2, "lr": 8e-3, "lr_moe": 5e-3},
    },
    "moes": {"4x2": {"n_expert": 4, "top_k": 2}},
    "sweeps": {
        "plain": {"kind": "dense", "model": "tiny", "steps": [20, 40]},
        "sizes": {"kind": "dense", "model": ["tiny", "wide"], "steps": 20},
        "lr": {"kind": "dense", "model": "tiny", "steps": [20, 40], "set": {"optim.lr": [1e-3, 2e-3, 4e-3]}},
        "parents": {
            "kind": "upcycled",
            "model": "tiny",
            "moe": "4x2",
            "dense_steps": 20,
            "steps": 20,
            "set": {"moe.aux_coef": [0, 1e-2]},
            "dense_set": {"optim.lr": [1e-3, 2e-3]},
        },
        "seeds": {"kind": "upcycled", "model": "tiny", "moe": "4x2", "dense_steps": 20, "steps": 20, "seed": [0, 1]},
    },
}


def plan(tmp_path: Path) -> Plan:
    return build_plan(StudyConfig.model_validate(STUDY), tmp_path)


def test_a_sweep_names_what_its_models_differ_in(tmp_path):
    built = plan(tmp_path)
    assert {name: varying(built, name) for name in built.sweeps} == {
        "plain": {},
        "sizes": {"optim.lr": [1e-2, 8e-3]},
        "lr": {"optim.lr": [1e-3, 2e-3, 4e-3]},
        "parents": {"moe.aux_coef": [0, 1e-2], "dense_set.optim.lr": [1e-3, 2e-3]},
        "seeds": {"data.seed": [0, 1]},
    }


def test_each_run_has_its_own_values_and_trunks_those_of_their_lineage(tmp_path):
    built = plan(tmp_path)
    shown = varying_by_run(built)
    assert set(shown) == set(built.runs)
    for run_id in built.sweeps["parents"]:
        run = built.runs[run_id]
        assert shown[run_id] == {
            "moe.aux_coef": run.moe.aux_coef,
            "dense_set.optim.lr": built.runs[run.dense_parent].optim.lr,
        }
        assert shown[run.parent].keys() == shown[run_id].keys()
        assert shown[run.dense_parent] == {"optim.lr": built.runs[run.dense_parent].optim.lr}
    rates = [shown[run_id]["optim.lr"] for run_id in built.sweeps["lr"]]
    assert sorted(set(rates)) == [1e-3, 2e-3, 4e-3]


def test_plan_shows_them(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(STUDY))
    done = subprocess.run(
        [sys.executable, "-m", "upcycle.cli", "plan", "--all"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "  lr: optim.lr 0.001, 0.002, 0.004\n" in done.stdout
    assert "  parents: moe.aux_coef 0, 0.01; dense_set.optim.lr 0.001, 0.002\n" in done.stdout
    assert "  plain:" not in done.stdout
    for run_id in plan(tmp_path).sweeps["parents"]:
        line = next(line for line in done.stdout.splitlines() if line.startswith(run_id))
        assert "moe.aux_coef=0" in line
        assert "dense_set.optim.lr=0.00" in line


def test_labels_tell_runs_apart_by_what_differs(tmp_path):
    """Budget, seed, and only then settings; trunks too; of a study with one mixture its name is left out."""
    built = plan(tmp_path)
    labels = run_labels(built)
    assert list(labels) == list(built.runs)
    assert len(set(labels.values())) == len(labels)
    assert {labels[run_id] for run_id in built.sweeps["lr"]} == {
        f"dense tiny D={tokens} lr={rate}" for tokens in ("5.12k", "10.2k") for rate in ("0.001", "0.002", "0.004")
    }
    assert {labels[run_id] for run_id in built.sweeps["seeds"]} == {
        "upcycled tiny D1=5.12k D2=5.12k aux_coef=0.001 dense_lr=0.01",
        "upcycled tiny D1=5.12k D2=5.12k seed=1",
    }
    assert labels[built.runs[built.sweeps["sizes"][1]].parent] == "dense wide trunk to 4.61k"


def test_labels_name_the_method_and_the_parameters_that_it_has(tmp_path):
    base = STUDY["sweeps"]["seeds"] | {"seed": 0}
    sweeps = {
        "plain": base | {"method": ["copy", "noise"]},
        "ratio": base | {"method": "drop", "set": {"upcycling.share": [0.25, 0.5]}},
    }
    built = build_plan(StudyConfig.model_validate(STUDY | {"sweeps": sweeps}), tmp_path)
    labels = {run_labels(built)[run_id] for ids in built.sweeps.values() for run_id in ids}
    name = "upcycled D1=5.12k D2=5.12k method="
    assert labels == {f"{name}{each}" for each in ("copy", "noise", "drop share=0.25", "drop share=0.5")}
