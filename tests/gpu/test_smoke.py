"""`make gpu-smoke`, run on the CPU at a tiny shape: every line of it but the CUDA ones."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from upcycle.study.counting import flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.study import load_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def smoke() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_smoke", ROOT / "benchmarks" / "gpu_smoke.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_smoke"] = module
    spec.loader.exec_module(module)
    return module


def arguments(output: Path, *more: str) -> list[str]:
    return ["--device", "cpu", "--tiny", "--eager", "--seconds", "0.01", "--output", str(output), *more]


def tiny_execution(_: object) -> Execution:
    return Execution(device="cpu", micro_batch=8)


ALONE = """
import importlib.machinery, sys
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        refused = name.partition(".")[0] in sys.argv[1].split(",")
        return None if refused else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
sys.path.insert(0, sys.argv[2])
import gpu_smoke
sys.exit(gpu_smoke.main(sys.argv[3:]))
"""
REFUSED = "pytest,pandas,scipy,matplotlib,pyarrow,zstandard,snakemake,jinja2,transformers"


@pytest.mark.slow
def test_quick_needs_only_the_engines_packages_runs_no_test_and_ends_in_time(tmp_path: Path) -> None:
    """In a process that can import none of the others; compiled, as the study says."""
    command = [sys.executable, "-c", ALONE, REFUSED, str(ROOT / "benchmarks")]
    output = tmp_path / "smoke.md"
    options = ["--device", "cpu", "--tiny", "--quick", "--seconds", "0.01", "--output", str(output)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = output.read_text()
    assert "No test was run" in text
    assert "| tiny dense | yes | sdpa grouped_mm chunked compiled | 8 |" in text
    assert "Nothing that ran failed." in text


def test_no_size_is_begun_after_the_time(smoke: ModuleType, tmp_path: Path) -> None:
    report = smoke.Report(tmp_path / "smoke.md")
    assert smoke.training_times(report, {"late": (smoke.TINY, None)}, tiny_execution, 0.01, until=0.0)
    assert "| late | - | not begun: the time is over |" in report.path.read_text()


def test_quick_names_sizes_of_the_paper(smoke: ModuleType) -> None:
    study = load_study(ROOT / "config" / "paper.yaml")
    sizes = {f"{name} {kind}" for name in study.models for kind in ("dense", "8x2")}
    assert set(smoke.QUICK) <= sizes


def test_an_older_torch_is_refused(smoke: ModuleType, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu130")
    assert smoke.main([]) == 2
    assert "needs torch 2.11 or later; this is 2.10.1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_file_holds_versions_kernels_tests_and_rates(smoke: ModuleType, tmp_path: Path) -> None:
    tests = tmp_path / "test_one.py"
    tests.write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): pytest.skip('no library')\n")
    assert smoke.main(arguments(tmp_path / "smoke.md", "--tests", str(tests))) == 0
    text = (tmp_path / "smoke.md").read_text()
    assert "tiny: not a measurement" in text
    assert f"| torch | {torch.__version__} |" in text
    assert "- attention=sdpa torch" in text
    assert "| attention | flash2 | it needs device cuda, and the device is cpu" in text
    assert "| attention | sdpa | yes |" in text
    assert "0 failed, 1 skipped, 0 passed\n\n**Not one test passed.**\n\n- 1 skipped: no library" in text
    moe = load_study(ROOT / "config" / "paper.yaml").moes["8x2"]
    flops = {"tiny dense": flops_per_token(smoke.TINY), "tiny 8x2": flops_per_token(smoke.TINY, moe)}
    for size in flops:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {size} | yes | sdpa grouped_mm chunked |")]
        sequences, tokens, step, rate, product, mfu, *_, published = (cell.strip() for cell in row.split("|")[4:-1])
        assert sequences == "8"
        assert ("OLMoE" if "8x2" in size else "48,910 tokens/s a GPU, 42 %") in published
        # Whatever the machine's speed, all are of one measurement: 8 sequences a step, each number rounded.
        speed = float(tokens.replace(",", ""))
        assert speed > 0
        assert float(step) == pytest.approx(1e3 * 8 * smoke.TINY.context / speed, rel=0.01, abs=0.06)
        assert 1e12 * float(rate) == pytest.approx(speed * flops[size], rel=0.01)
        assert float(mfu.removesuffix("%")) == pytest.approx(100 * float(rate) / float(product), rel=0.02, abs=0.06)
    assert "Nothing that ran failed." in text


def test_a_failed_test_is_told_and_is_the_exit_code(smoke: ModuleType, tmp_path: Path) -> None:
    tests = tmp_path / "test_one.py"
    tests.write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): assert 1 + 1 == 3\n")
    report = smoke.Report(tmp_path / "smoke.md")
    assert not smoke.run_tests(report, str(tests), "cpu")
    assert "1 failed, 0 skipped, 0 passed" in report.path.read_text()
    assert "**failed** test_a: " in report.path.read_text()


def test_without_cuda_it_stops_and_says_what_it_needs(smoke: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert smoke.main(["--output", str(tmp_path / "smoke.md")]) == 2
    assert "gpu-smoke needs a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "smoke.md").exists()


def test_memory_that_does_not_suffice_is_a_row_and_not_the_end(smoke: ModuleType, tmp_path: Path, monkeypatch) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(smoke, "training_rate", too_large)
    report = smoke.Report(tmp_path / "smoke.md")
    smoke.training_times(report, {"large": (smoke.TINY, None)}, tiny_execution, 0.01)
    assert (
        "| large | yes | out of memory: fewer --sequences, or several devices (FSDP) | - |" in report.path.read_text()
    )


def test_a_kernel_that_fails_is_told_and_is_the_exit_code(smoke: ModuleType, tmp_path: Path, monkeypatch) -> None:
    """The other measurements go on."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(smoke, "seconds_each", broken)
    report = smoke.Report(tmp_path / "smoke.md")
    assert not smoke.attention_times(report, {"tiny": smoke.TINY}, "cpu", 8, 0.01)
    assert not smoke.training_times(report, {"tiny": (smoke.TINY, None)}, tiny_execution, 0.01)
    text = report.path.read_text()
    assert "- **sdpa** at tiny: RuntimeError: no kernel image is available" in text
    assert "| tiny | yes | **fails**: RuntimeError: no kernel image is available |" in text


@pytest.mark.slow
def test_on_cuda_a_run_without_one_passed_test_is_not_sound(smoke: ModuleType, tmp_path: Path) -> None:
    tests = tmp_path / "test_none.py"
    tests.write_text('import pytest\n\n@pytest.mark.gpu\ndef test_a():\n    pytest.skip("nothing here")\n')
    assert smoke.run_tests(smoke.Report(tmp_path / "report.md"), str(tests), "cpu")
    assert not smoke.run_tests(smoke.Report(tmp_path / "report.md"), str(tests), "cuda")
