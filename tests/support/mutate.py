"""Do the tests notice? Changes one place of the core at a time and runs the tests that must fail by it.

    python tests/support/mutate.py               # all, about 15 minutes on one core; exit code 1 if any change survives
    python tests/support/mutate.py sweep moe     # those whose name contains one of the words

Not part of CI. A line of MUTATIONS: a file, a text that it holds exactly once, what takes its place, and the test files
that must notice. A survivor means that a test is missing: add it to the file that mirrors the source.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE, TESTS = ROOT / "src" / "upcycle", ROOT / "tests"


class Mutation(NamedTuple):
    """One change, and who must notice."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.file}: {self.old!r} -> {self.new!r}"


def of(file: str, tests: str, *changes: tuple[str, str]) -> list[Mutation]:
    return [Mutation(file, old, new, tuple(tests.split())) for old, new in changes]


SPEC, SWEEP, PLAN = "study/test_spec.py", "study/test_sweep.py", "study/test_plan.py study/test_segments.py"
MUTATIONS = [
    *of(
        "study/spec.py",
        SPEC,
        ('spec.pop("parent", None)', 'spec.pop("parent", None); spec.pop("seed", None)'),
        ('spec.pop("parent", None)', 'spec.pop("parent", None); spec.pop("dtype", None)'),
        ('if self.role != "decay":', 'if self.role == "decay":'),
        ('if self.role == "trunk":', 'if self.role == "decay":'),
        ("hexdigest()[:10]", "hexdigest()[:9]"),
        ("else self.end_step * self.tokens_per_step", "else (self.end_step - 1) * self.tokens_per_step"),
        ("(self.end_step - self.start_step) * self.tokens_per_step", "self.end_step * self.tokens_per_step"),
        ("return self.optim.batch * self.model.context", "return self.optim.batch * (self.model.context + 1)"),
    ),
    *of("study/shape.py", SPEC, ("return math.sqrt(2 / (5 * d_model))", "return math.sqrt(2 / (4 * d_model))")),
    *of(
        "study/shape.py",
        "model/test_transformer.py",
        ("scale = 1 / math.sqrt(2 * self.n_layer)", "scale = 1 / math.sqrt(self.n_layer)"),
    ),
    *of(
        "study/sweep.py",
        SWEEP,
        ("max(round(decay_fraction * steps), 1)", "max(int(decay_fraction * steps), 1)"),
        ("max(round(decay_fraction * steps), 1)", "round(decay_fraction * steps)"),
        ("round(self.amount / recipe.tokens_per_step)", "int(self.amount / recipe.tokens_per_step)"),
        ('"seed": data["seed"] + seed}', '"seed": data["seed"]}'),
        ('"lr": entry.lr_moe if moe else entry.lr', '"lr": entry.lr'),
        ("dense.run.all_tokens}", "dense.run.end_step}"),
        ("points.setdefault(run.id,", "points.setdefault(object(),"),
        ("count * entry.batch * study.context", "count * entry.batch"),
    ),
    *of(
        "study/plan.py",
        PLAN,
        ('run.schedule.model_copy(update={"floor": 0.0})', "run.schedule"),
        ("range(start + longest, point.end_step, longest)", "range(start + longest + 1, point.end_step, longest)"),
        ("sorted({*points, *begun}, reverse=True)", "sorted(points, reverse=True)"),
        ("sorted(branches)", "sorted(branches)[:-1]"),
    ),
    *of(
        "study/counting.py",
        "study/test_counting.py",
        ("return counts.attention + counts.mlp_active", "return counts.attention + counts.mlp"),
        ("norm=(2 * layers + 1) * width", "norm=2 * layers * width"),
        ("mlp_active=expert * (top_k + shared)", "mlp_active=expert * top_k"),
        ("mlp=expert * (n_expert + shared)", "mlp=expert * n_expert"),
        ("(model.context / 2)", "model.context"),
        ("run.moe).active * run.segment_tokens", "run.moe).active * run.tokens"),
    ),
    *of(
        "study/columns.py",
        "study/test_columns.py laws/test_losses.py",
        ('"D2": run.tokens if run.dense_parent else 0', '"D2": run.tokens'),
        ("(run.end_step - run.start_step) / run.end_step", "(run.end_step - run.start_step) / run.start_step"),
        ('_FIRST = ("lineage", "N1"', '_FIRST = ("N1", "lineage"'),
    ),
    *of(
        "train/schedule.py",
        "train/test_schedule.py",
        ("(step + 1) / warmup_steps", "step / warmup_steps"),
        ("(step + 1 - start) / (end - start)\n\n\ndef cosine", "(step - start) / (end - start)\n\n\ndef cosine"),
        ("return 1 - (1 - floor)", "return 1 - 1"),
        ("0.5 * (1 + math.cos(math.pi * progress))", "0.5 * (1 - math.cos(math.pi * progress))"),
        ("if step < start", "if step <= start"),
    ),
    *of("model/stacks.py", "train/test_optim.py", ("weight.ndim >= 2", "weight.ndim >= 1")),
    *of(
        "decisions/advice/measured.py",
        "decisions/test_measured.py",
        ("SAME_FLOPS: tokens * rivals.n2 / rivals.n1", "SAME_FLOPS: tokens * rivals.n1 / rivals.n2"),
        ("math.sqrt(up[1] + on[1])", "math.sqrt(up[1])"),
        ("(1 - share) ** 2 * variance + share**2 * variance_high", "variance"),
        ("min(found.upcycled, found.continued) >= parent_loss", "max(found.upcycled, found.continued) >= parent_loss"),
        ("student_t.cdf(-difference / spread", "student_t.cdf(difference / spread"),
    ),
    *of(
        "train/optim.py",
        "train/test_optim.py",
        ("parameter.grad.mul_(limit / total)", "parameter.grad.mul_(limit / total**2)"),
        ("betas=(optim.beta1, optim.beta2)", "betas=(optim.beta2, optim.beta1)"),
    ),
    *of(
        "train/step.py",
        "train/test_step.py train/test_golden.py",
        ("output.loss + aux_coef * output.balance", "output.loss"),
        ("output.loss + aux_coef * output.balance", "output.loss + output.balance"),
        (" + z_coef * output.z", ""),
        ("loss += output.loss.detach() * share", "loss += output.loss.detach()"),
        ("learning_rate(run, trainee.step)", "learning_rate(run, trainee.step + 1)"),
        ("math.isfinite(loss) and math.isfinite(grad_norm)", "math.isfinite(grad_norm)"),
        ("math.isfinite(loss) and math.isfinite(grad_norm)", "math.isfinite(loss)"),
    ),
    *of(
        "model/moe.py",
        "model/test_moe.py",
        ("n_expert / (top_k * tokens**2)", "n_expert / (tokens**2)"),
        ("return torch.stack(losses).mean()", "return torch.stack(losses).sum()"),
        ("probs_TK / probs_TK.sum(-1, keepdim=True)", "probs_TK"),
        ("order_N // top_k", "order_N % len(x_TD)"),
        ("-(probs_TE * log_probs_TE).sum(-1).mean()", "(probs_TE * log_probs_TE).sum(-1).mean()"),
        ("logits_TE.logsumexp(-1).square().mean()", "logits_TE.logsumexp(-1).mean()"),
        ("slots_E.sum() - len(slots_E) * slots_E", "len(slots_E) * slots_E - slots_E.sum()"),
        ("probs_TE).detach() + self.router.bias", "probs_TE).detach() - self.router.bias"),
        ("F.logsigmoid(logits_TE).gather(-1, ids_TK)", "logits_TE.gather(-1, ids_TK)"),
    ),
    *of(
        "model/upcycling.py",
        "model/test_upcycling.py",
        ('f"{block}.moe.router", seed)', 'f"{block}.moe.router", 0)'),
        ("return moe.top_k == 1 and preserves_function(moe)", "return moe.top_k == 1"),
        ('moe.gate != "softmax_topk" or moe.top_k == moe.n_expert', 'moe.gate != "softmax_topk"'),
    ),
    *of(
        "model/upcycling_methods.py",
        "model/test_upcycling.py",
        ("lambda gate, up, down, _: (gate, up, down)", "lambda gate, up, down, _: (gate, up, down / 2)"),
        ("std * matrix.std().item()", "std"),
        ("(down, mlp.model.output_std)", "(down, mlp.model.weight_std)"),
        ("[units[0]] * 3 if shared_indices else units", "units"),
        ("mean, std = old.mean().item()", "mean, std = 0.0"),
        ("gate[order], up[order], down[:, order]", "gate[order], up[order], down"),
    ),
    *of(
        "model/rope.py",
        "model/test_transformer.py model/test_interop.py",
        ("torch.cat([-sin, sin], dim=-1)", "torch.cat([sin, -sin], dim=-1)"),
        ("x.roll(x.shape[-1] // 2, dims=-1)", "x.roll(1, dims=-1)"),
    ),
    *of(
        "model/hub.py",
        "model/test_hub.py",
        ("if (found := sha256_file(path)) != sha256:", "if (found := sha256) != sha256:"),
        ("if _state(path) != state:", "if False:"),
        ("if tensor.dtype not in FLOATS:", "if False:"),
    ),
    *of(
        "manifest.py",
        "core/test_security.py",
        ("if Path(name).name != name or", "if"),
    ),
    *of(
        "data/batches.py",
        "data/test_batches.py",
        ("(end - first - 1) // context", "(end - first) // context"),
        ("mix64(np.full(len(places), seed, np.uint64))", "mix64(np.full(len(places), 0, np.uint64))"),
        ("^ epochs)", ")"),
        ("(step + 1) * batch * context", "step * batch * context"),
        ("math.floor(stop * n_tokens)", "n_tokens"),
    ),
    *of(
        "data/windows.py",
        "data/test_windows.py",
        ("for k in range(self.size):", "for k in range(self.size - 1):"),
        ("text.lower()", "text"),
    ),
    *of(
        "laws/tables/losses.py",
        "laws/test_losses.py",
        ('rows["D1"].where(rows["lineage"] == "up"', 'rows["D1"].where(rows["lineage"] != "up"'),
        ('rows["D"].where(rows["lineage"].isin(("moe", "up")), 0)', 'rows["D"]'),
    ),
    *of(
        "laws/solver/solve.py",
        "laws/test_solve.py",
        ("inner * (size - 0.5 * inner)", "inner * (size - inner)"),
    ),
    *of(
        "laws/compare.py",
        "laws/test_compare.py",
        ("(0.025, 0.975)", "(0.25, 0.75)"),
        ("len(residual_N) - parameters", "len(residual_N)"),
    ),
    *of(
        "workflow/records.py",
        "workflow/test_records.py",
        ('kept["execution"] = kept["execution"]["kernels"]', 'del kept["execution"]'),
        ('or key.endswith("_seconds")', ""),
    ),
    *of(
        "manifest.py",
        "train/test_checkpoint.py train/test_corruption.py",
        ('len(data) != expected["bytes"] or', 'len(data) != expected["bytes"] and'),
    ),
]  # fmt: skip


def survives(mutation: Mutation, tree: Path) -> str:
    """Empty if its tests fail; else why not."""
    path = tree / "src" / "upcycle" / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) < 1:
        return "the text is no longer there"
    path.write_text(text.replace(mutation.old, mutation.new, 1), encoding="utf-8")
    try:
        environment = os.environ | {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        tests = [str(tree / "tests" / name) for name in mutation.tests]
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not workflow and not slow", *tests]
        done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text, encoding="utf-8")
    return "" if done.returncode == 1 else f"pytest exited with {done.returncode}"


def main(words: list[str]) -> int:
    """Try every mutation whose name contains one of the words (none: all)."""
    chosen = [each for each in MUTATIONS if not words or any(word in each.name for word in words)]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", ".snakemake", "runs", "tokens"))
        for number, mutation in enumerate(chosen, start=1):
            why = survives(mutation, tree)
            print(f"{number}/{len(chosen)}  {'SURVIVES' if why else 'killed'}  {mutation.name}  {why}", flush=True)
            survivors += [mutation] if why else []
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
