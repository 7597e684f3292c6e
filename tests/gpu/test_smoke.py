"""`make gpu-smoke`, run on the CPU at a tiny shape: every line of it but the CUDA ones."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from upcycle.study.counting import flops_per_token
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
    return ["--device", "cpu", "--tiny", "--seconds", "0.01", "--output", str(output), *more]


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
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {size} | yes | sdpa grouped_mm |")]
        tokens, step, rate, product, mfu, _ = (cell.strip() for cell in row.split("|")[4:-1])
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
    smoke.training_times(report, {"large": (smoke.TINY, None)}, "cpu", 8, 0.01)
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
    assert not smoke.training_times(report, {"tiny": (smoke.TINY, None)}, "cpu", 8, 0.01)
    text = report.path.read_text()
    assert "- **sdpa** at tiny: RuntimeError: no kernel image is available" in text
    assert "| tiny | yes | **fails**: RuntimeError: no kernel image is available |" in text


@pytest.mark.slow
def test_on_cuda_a_run_without_one_passed_test_is_not_sound(smoke: ModuleType, tmp_path: Path) -> None:
    tests = tmp_path / "test_none.py"
    tests.write_text('import pytest\n\n@pytest.mark.gpu\ndef test_a():\n    pytest.skip("nothing here")\n')
    assert smoke.run_tests(smoke.Report(tmp_path / "report.md"), str(tests), "cpu")
    assert not smoke.run_tests(smoke.Report(tmp_path / "report.md"), str(tests), "cuda")
