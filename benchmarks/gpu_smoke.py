"""What a first H100 user runs: does the CUDA path work here, with which kernels, and how fast? **Not run by us.**

    make gpu-smoke        or        PYTHONPATH=src python benchmarks/gpu_smoke.py --quick [--output FILE]

Writes one file, gpu-smoke-<date>.md: versions, the kernels available and those chosen, every test marked `gpu`,
times of each attention kernel, and tokens/s, TFLOP/s and MFU of a training step at each size of the paper, dense and
8x2, on one GPU and random tokens, as the paper's study executes it. The file is written anew after each part, so that
a crash leaves what was found.

`--quick` takes five minutes: four sizes and no tests; nothing is begun after that time. It needs no installation but
torch 2.11 or later, numpy, pydantic, pyyaml, safetensors and tokenizers. `--device cpu --tiny` runs the same code on a
laptop: it shows that the script works, nothing else.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import importlib.metadata
import logging
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import torch

from upcycle.errors import UserError
from upcycle.model.kernels import choose_kernels
from upcycle.model.transformer import Transformer
from upcycle.study.counting import count_parameters, flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.kernel_fit import KERNELS, why_not
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import OptimSpec, RunSpec
from upcycle.study.study import load_study
from upcycle.train.device import precision, use_device
from upcycle.train.optim import build_optimizer, global_norm, gradient_norms, scale_gradients
from upcycle.train.trainee import use_execution
from upcycle.train.utilisation import gemm_rate

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "flash-attn", "transformer-engine", "nvidia-nccl-cu13")
TINY = ModelSpec(n_layer=2, d_model=32, n_head=2, vocab_size=64, context=32)
QUICK = ("15M dense", "1B dense", "15M 8x2", "0.5B 8x2")
"""Shapes of `--quick`; of the largest mixtures not even the gradients fit one device."""
QUICK_SECONDS = 300
OLDEST_TORCH = (2, 11)
H100 = 989e12
"""Dense bfloat16 FLOP/s of an H100 SXM by its data sheet, to compare with what others publish."""
REFERENCES = {
    False: "1.3B, 8 H100s, context 1,024: 48,910 tokens/s a GPU, 42 % of 989",
    True: "OLMoE, 1.3B active: 23,600 tokens/s a GPU",
}
"""Published rates of H100s, dense models and mixtures, beside ours."""
STATE_BYTES = 16
"""A parameter's: value, gradient and AdamW's two moments, in float32."""


class Report:
    """The file, rewritten whenever a part is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def add(self, *lines: str) -> None:
        """Append lines, print them, write the file."""
        self.lines += lines
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
        print("\n".join(lines), flush=True)

    def table(self, *rows: tuple[object, ...]) -> None:
        """Append a table whose first row is its head."""
        texts = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        self.add(texts[0], "|" + "---|" * len(rows[0]), *texts[1:], "")


class Messages(logging.Handler):
    """What the choice of kernels logs."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.messages.append(record.getMessage())

    def listen(self, action: Callable[[], object]) -> None:
        """Keep the messages of an action."""
        logger = logging.getLogger("upcycle.model.kernels")
        level = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        try:
            action()
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)


def output_of(*command: str) -> str:
    """What a command prints, or why there is nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError as error:
        return f"not available: {error.strerror}"
    return done.stdout.strip() if done.returncode == 0 else f"not available: exit code {done.returncode}"


def versions(report: Report, where: str) -> None:
    """Machine, driver, CUDA, cuDNN, packages, commit."""
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": output_of("git", "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "device": where,
        "CUDA of torch": torch.version.cuda or "none",
        "cuDNN": str(torch.backends.cudnn.version()),
        "GPUs and driver": output_of(
            "nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"
        ).replace("\n", "; "),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    report.add("## Versions", "")
    report.table(("what", "version"), *found.items())


def available_kernels(report: Report, model: ModelSpec, where: str) -> None:
    """Which kernel of which op is available here, in bfloat16, and why the others cannot."""
    chosen = Messages()
    chosen.listen(lambda: choose_kernels(model, {"layers": "composed"}, device=where, dtype="bfloat16"))
    report.add("## Kernels", "", f"Chosen by `auto` for d_model {model.d_model}, {model.n_head} heads, bfloat16:", "")
    report.add(*(f"- {message}" for message in chosen.messages), "", "Each asked for by name:", "")
    rows: list[tuple[object, ...]] = [("op", "kernel", "here")]
    for op, names in KERNELS.items():
        for name in names:
            try:
                choose_kernels(model, {"layers": "composed", op: name}, device=where, dtype="bfloat16")
                rows.append((op, name, "yes"))
            except UserError as error:
                rows.append((op, name, str(error).partition("cannot be used: ")[2]))
    report.table(*rows)


def run_tests(report: Report, selection: str, where: str) -> bool:
    """Every test marked `gpu`; whether none failed, and on CUDA whether any passed."""
    report.add("## Tests marked `gpu`", "")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={path}", selection]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not path.exists():
            report.add(f"pytest ended with exit code {done.returncode}:", "```", done.stdout[-3000:], "```", "")
            return False
        cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    outcome: dict[str, list[tuple[str, str]]] = {"failed": [], "skipped": [], "passed": []}
    for case in cases:
        problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        kind = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
        outcome[kind].append((case.get("name", ""), "" if problem is None else problem.get("message", "")))
    report.add(", ".join(f"{len(found)} {kind}" for kind, found in outcome.items()), "")
    if not outcome["passed"]:
        report.add("**Not one test passed.**", "")
    for name, why in outcome["failed"]:
        report.add(f"- **failed** {name}: {' '.join(why.split())[:600]}")
    reasons = collections.Counter(" ".join(why.split()) for _, why in outcome["skipped"])
    report.add(*(f"- {count} skipped: {why}" for why, count in reasons.most_common()), "")
    if where == "cuda" and not outcome["passed"]:
        return False
    return done.returncode in (0, 5) and not outcome["failed"]


def seconds_each(action: Callable[[], object], where: str, seconds: float) -> float:
    """Median time of an action, warmed up three times, repeated for so long but five times at least."""
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 8 or time.perf_counter() - begun < seconds:
        if where == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if where == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"


def attention_times(report: Report, models: dict[str, ModelSpec], where: str, sequences: int, seconds: float) -> bool:
    """Forward and backward of attention alone, by kernel and size; whether every available kernel ran."""
    report.add("## Attention, forward and backward", "", f"{sequences} sequences, bfloat16, milliseconds.", "")
    names = [name for name in KERNELS["attention"] if name != "plain"]
    rows: list[tuple[object, ...]] = [("size", "heads x dimension", *names)]
    failures: list[str] = []
    for size, model in models.items():
        cells = []
        for name in names:
            try:
                attention = choose_kernels(
                    model, {"layers": "composed", "attention": name}, device=where, dtype="bfloat16"
                ).attention
            except UserError:
                cells.append("-")
                continue
            shape = (sequences, model.context, 3 * model.n_head, model.head_dim)
            qkv = torch.randn(shape, device=where, dtype=torch.bfloat16, requires_grad=True)
            q, k, v = (x.transpose(1, 2) for x in qkv.chunk(3, dim=2))
            outgoing = torch.randn_like(q).contiguous()

            def both(kernel=attention, inputs=(q, k, v), qkv=qkv, outgoing=outgoing) -> None:
                torch.autograd.grad(kernel(*inputs), qkv, outgoing, retain_graph=True)

            try:
                cells.append(f"{1e3 * seconds_each(both, where, seconds / 4):.3g}")
            except RuntimeError as error:
                cells.append("**fails**")
                failures.append(f"- **{name}** at {size}: {_first_line(error)}")
        rows.append((size, f"{model.n_head} x {model.head_dim}", *cells))
    report.table(*rows)
    report.add(*failures, "")
    return not failures


def run_of(model: ModelSpec, moe: MoESpec | None, sequences: int) -> RunSpec:
    """A run of this shape, to measure with."""
    data = {"dataset": "random", "vocab_size": model.vocab_size}
    return RunSpec.model_validate(
        {
            "model": model.model_dump(),
            "moe": moe and moe.model_dump(),
            "data": data,
            "optim": {"lr": 1e-4, "batch": sequences},
            "schedule": {},
            "dtype": "bfloat16",
            "end_step": 1,
        }
    )


def training_rate(run: RunSpec, execution: Execution, seconds: float, *, update: bool) -> tuple[float, str, str]:
    """Seconds a step, peak memory in GB, and the kernels: one micro-batch forward and backward, with `update` clipping
    and AdamW too."""
    where, sequences = execution.device, run.optim.batch
    names = execution.kernels | {"layers": "composed"}
    kernels = choose_kernels(run.model, names, device=where, dtype=run.dtype, compile=execution.compile)
    with torch.device(where):
        model = Transformer(run.model, run.moe, kernels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, run.model.weight_std)
    use_execution(model, execution)
    optimizer = build_optimizer(model, OptimSpec(lr=1e-4, batch=sequences)) if update else None
    ids = torch.randint(0, run.model.vocab_size, (sequences, run.model.context + 1), device=where)

    def step() -> None:
        with precision(run, torch.device(where)):
            output = model(ids[:, :-1], ids[:, 1:])
        (output.loss + 1e-3 * output.balance).backward()
        if optimizer is not None:
            norms = gradient_norms(model.parameters()).tolist()
            scale_gradients(model.parameters(), global_norm(norm * norm for norm in norms), 1.0)
            optimizer.step()
        model.zero_grad()

    if where == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = seconds_each(step, where, seconds)
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if where == "cuda" else "-"
    chosen = " ".join(kernels.names[op] for op in ("attention", "experts", "cross_entropy"))
    return taken, peak, chosen + (" compiled" if execution.compile else "")


def training_times(
    report: Report,
    shapes: dict[str, tuple[ModelSpec, MoESpec | None]],
    executions: Callable[[RunSpec], Execution],
    seconds: float,
    *,
    until: float = math.inf,
) -> bool:
    """Tokens a second, TFLOP/s and MFU of a training step on one device, by size; whether every size ran or was too
    large. `executions`: how a run is executed, its device and micro-batch; no size is begun after the time `until`."""
    ran = True
    report.add(
        "## Training, one device",
        "",
        "One micro-batch a step, random tokens, bfloat16. MFU: model FLOPs of forward and backward "
        "(counting.flops_per_token) over the rate of a bare bfloat16 product of the MLP's shape; `of 989`: over an "
        "H100's rate by its data sheet. `update` no: AdamW's state does not fit one device beside the model, so "
        "forward and backward alone. Published: what others report of H100s, at the size named.",
        "",
    )
    where = executions(run_of(TINY, None, 8)).device
    memory = torch.cuda.get_device_properties(0).total_memory if where == "cuda" else float("inf")
    head = "size, update, kernels, sequences, tokens/s, ms a step, TFLOP/s, product TFLOP/s, MFU, of 989, peak GB"
    rows: list[tuple[object, ...]] = [(*head.split(", "), "published")]
    for size, (model, moe) in shapes.items():
        execution = executions(run_of(model, moe, 8))
        assert execution.micro_batch is not None
        sequences = execution.micro_batch
        torch.compiler.reset()  # else one code's graphs add up over the sizes, to a limit behind which it runs eager
        run = run_of(model, moe, sequences)
        if time.monotonic() > until:
            rows.append((size, "-", "not begun: the time is over", *["-"] * 9))
            continue
        update = STATE_BYTES * count_parameters(model, moe).total < 0.8 * memory
        says = "yes" if update else "no"
        try:
            taken, peak, kernels = training_rate(run, execution, seconds, update=update)
        except torch.OutOfMemoryError:
            rows.append((size, says, "out of memory: fewer --sequences, or several devices (FSDP)", *["-"] * 9))
        except RuntimeError as error:
            ran = False
            rows.append((size, says, f"**fails**: {_first_line(error)}", *["-"] * 9))
        else:
            tokens = sequences * model.context / taken
            rate = tokens * flops_per_token(model, moe)
            product = gemm_rate(run, Execution(device=where, micro_batch=sequences))
            cells = (f"{tokens:,.0f}", f"{1e3 * taken:.1f}", f"{rate / 1e12:.3g}", f"{product / 1e12:.3g}")
            shares = (f"{rate / product:.1%}", f"{rate / H100:.1%}")
            rows.append((size, says, kernels, sequences, *cells, *shares, peak, REFERENCES[moe is not None]))
        if where == "cuda":
            torch.cuda.empty_cache()
    report.table(*rows)
    return ran


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="one tiny shape in place of the paper's sizes")
    parser.add_argument("--quick", action="store_true", help="five minutes: four sizes, no tests")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--sequences", type=int, default=None, help="a forward pass; default: the study's micro_batch")
    parser.add_argument("--seconds", type=float, default=None, help="a measurement; default 5, of --quick 2")
    parser.add_argument("--tests", default="tests", help="what pytest -m gpu runs")
    parser.add_argument("--output", type=Path, default=None)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; 1 if a test or a measurement failed, 2 without the device."""
    options = options_of(arguments)
    where, seconds = options.device, options.seconds or (2.0 if options.quick else 5.0)
    until = time.monotonic() + QUICK_SECONDS if options.quick else math.inf
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        print(f"gpu-smoke needs torch 2.11 or later; this is {torch.__version__}", file=sys.stderr)
        return 2
    try:
        use_device(Execution(device=where))
    except UserError:
        print(
            f"gpu-smoke needs a CUDA device, and torch {torch.__version__} (CUDA {torch.version.cuda or 'none'}) finds "
            "none here. Run it on a GPU node: nvidia-smi must list the device, and torch must be a CUDA build "
            "(docs/cluster.md).",
            file=sys.stderr,
        )
        return 2
    torch.manual_seed(0)
    path = options.output or Path(f"gpu-smoke-{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H%M}.md")
    report = Report(path)
    report.add(f"# gpu-smoke on {where}{', tiny: not a measurement' if options.tiny else ''}", "")
    study = load_study(ROOT / "config" / "paper.yaml")
    models = {"tiny": TINY} if options.tiny else {name: study.model_spec(name) for name in study.models}
    shapes: dict[str, tuple[ModelSpec, MoESpec | None]] = {
        f"{name} dense": (model, None) for name, model in models.items()
    }
    shapes |= {f"{name} 8x2": (model, study.moes["8x2"]) for name, model in models.items()}
    if options.quick and not options.tiny:
        shapes = {name: shapes[name] for name in QUICK}
        models = {name: models[name] for name in dict.fromkeys(shape.split()[0] for shape in QUICK)}

    def execution_of(run: RunSpec) -> Execution:
        """The study's settings of this model, on one device."""
        found = study.execution_of(run)
        changes = {"device": where, "devices": 1, "nodes": 1, "tensor_parallel": 1, "exchange": "micro_batch"}
        changes["micro_batch"] = options.sequences or found.micro_batch or 8
        return found.model_copy(update=changes | ({"compile": False} if options.eager else {}))

    versions(report, where)
    for model in models.values():
        assert not why_not("experts", "grouped_mm", model, device=where, dtype="bfloat16")
    available_kernels(report, next(iter(models.values())), where)
    if options.quick:
        report.add("No test was run: that is what the whole `make gpu-smoke` is for.", "")
    sound = options.quick or run_tests(report, options.tests, options.device)
    sound &= training_times(report, shapes, execution_of, seconds, until=until)
    sound &= attention_times(report, models, where, options.sequences or 8, seconds / 2 if options.quick else seconds)
    report.add("Nothing that ran failed." if sound else "**Something failed: see above.**")
    print(f"\nwritten: {path}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
