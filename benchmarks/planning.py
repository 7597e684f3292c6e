"""Speed of planning: `snakemake -n` of a study against a stub Snakefile with as many jobs of the same shape.

The stub has the same outputs and the same inputs, read from a table, and nothing else: no study, no keys, no checks.
What ours costs above it is the cost of this workflow's own code. Both are measured in one run, alternately, in CPU
seconds of the whole process (user and system; wall times of a busy machine tell nothing):

- all to do: nothing exists but the text;
- one job: the parse that each job of a cluster repeats on its node;
- no-op: every file is there and every product is fresh.

The goal is at most 1 s + 1 ms for each job above the stub. Studies are the paper's, and the paper's with more seeds.

    python benchmarks/planning.py [--seeds 1 5 20] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml

from upcycle.data.provenance import manifest_bytes
from upcycle.manifest import json_bytes
from upcycle.study.frozen import FrozenPlan, freeze
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study
from upcycle.workflow.dag import Workflow
from upcycle.workflow.invocation import PLAN_VARIABLE
from upcycle.workflow.paths import RESULTS, metrics_path, output_folder, tokens_path
from upcycle.workflow.pruning import Retention
from upcycle.workflow.records import Made, record_made

ROOT = Path(__file__).parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")
AS_A_JOB = ("--mode", "remote", "--force", "--nolock", "--ignore-incomplete", "--target-jobs")
STUB = """
import json
with open("shape.json") as file:
    SHAPE = json.load(file)

rule all:
    input:
        list(SHAPE["runs"]),
        list(SHAPE["removals"]),
        [output for product in SHAPE["products"] for output in product["outputs"]],
    localrule: True

rule tokenize:
    output: "results/tokens/{tokens}/manifest.json"
    shell: "touch {output}"

rule train:
    input: lambda wildcards: SHAPE["runs"][f"results/runs/{wildcards.run}/metrics.json"]
    output: "results/runs/{run}/metrics.json"
    shell: "touch {output}"

rule prune:
    input: lambda wildcards: SHAPE["removals"][f"results/.pruned/{wildcards.run}/{wildcards.files}"]
    output: "results/.pruned/{run}/{files}"
    shell: "touch {output}"

for number, product in enumerate(SHAPE["products"]):
    rule:
        name: f"product{number}"
        input: product["inputs"]
        output: product["outputs"]
        shell: "touch {output}"
"""


def write_study(folder: Path, seeds: int) -> str:
    """The paper's study with every sweep at so many seeds, and the files that it looks for; its name."""
    settings = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text(encoding="utf-8"))
    name = settings["study"] = f"seeds{seeds}"
    for sweep in settings["sweeps"].values():
        sweep["seed"] = list(range(seeds))
    (folder / "config").mkdir(parents=True)
    (folder / "config" / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for key, data in settings["datasets"].items():
        for pattern in (*data["files"], *data["heldout_files"]):
            path = folder / pattern.replace("*", key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    for kind, size in (("llama", 32_000), ("japanese", 102_400)):
        path = folder / "data" / f"{kind}-tokenizer" / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        pieces = {"</s>": 0} | {f"piece{number}": number for number in range(1, size)}
        path.write_text(json.dumps({"model": {"vocab": pieces}}), encoding="utf-8")
    return name


def write_stub(folder: Path, workflow: Workflow) -> int:
    """A Snakefile with the jobs of a workflow; how many there are, `all` not counted."""
    retention = Retention(workflow, Path.cwd())
    shape = {
        "runs": {
            metrics_path(run_id): [workflow.tokens_of(run_id), *workflow.parent_of(run_id)]
            for run_id in workflow.plan.runs
        },
        "removals": {
            marker: [metrics_path(run_id), *retention.readers.get(run_id, ())]
            for run_id, marker in retention.due.items()
        },
        "products": [{"inputs": each.inputs, "outputs": each.outputs} for each in workflow.products.values()],
    }
    folder.mkdir()
    (folder / "shape.json").write_text(json.dumps(shape), encoding="utf-8")
    (folder / "Snakefile").write_text(STUB, encoding="utf-8")
    return len(workflow.token_sets) + sum(map(len, shape.values()))


def finish(folder: Path, workflow: Workflow) -> None:
    """Every output of a finished study, as small as its readers allow, each newer than what it is made from."""
    order = [tokens_path(name) for name in workflow.token_sets]
    order += [metrics_path(run_id) for run_id in workflow.plan.runs]
    order += Retention(workflow, Path.cwd()).due.values() if (folder / "shape.json").exists() else []
    order += [output for product in workflow.products.values() for output in product.outputs]
    for number, path in enumerate(order):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}\n", encoding="utf-8")
        os.utime(folder / path, (1e9 + number, 1e9 + number))


def record(workflow: Workflow) -> None:
    """What a finished study has beside outputs: recorded runs, sealed token sets, records of products; no text."""
    for name, recipe in workflow.token_sets.items():
        key = workflow.study.datasets[recipe.data.dataset].text
        manifest = manifest_bytes({"text_key": key, "sources": [], "tokenizer": {"files": []}})
        Path(tokens_path(name)).write_bytes(manifest)
    shutil.rmtree("data")
    for run_id, run in workflow.plan.runs.items():
        spec = {"id": run_id, **run.model_dump(mode="json")}
        Path(metrics_path(run_id)).with_name("spec.json").write_bytes(json_bytes(spec))
        times = {"train_seconds": 3600.0, "wall_seconds": 3660.0}
        curve = [[step, 3.0 + 1 / step] for step in range(1, 50)]
        metrics = {"id": run_id, "loss": 3.0, "segment_tokens": run.segment_tokens, **times, "curve_heldout": curve}
        Path(metrics_path(run_id)).write_bytes(json_bytes(metrics))
    read: dict[tuple[str, ...], str] = {}
    wrote: dict[str, str] = {}
    for product in workflow.products.values():
        if product.files not in read:
            read[product.files] = workflow.digests.of_all(product.files)
        content = {source: wrote[source] for source in product.sources}
        content |= {"runs": read[product.files]} if product.files else {}
        wrote[product.name] = workflow.digests.of_all(product.outputs)
        record_made(workflow.out, product.name, Made(key=product.key, read=content, wrote=wrote[product.name]))
    workflow.digests.save()


def cpu_seconds(folder: Path, *words: str, expected: int, plan: Path | None) -> float:
    """CPU seconds of `snakemake -n`, which must find so many jobs to do; `plan`: as a job of that frozen plan."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("UPCYCLE_")}
    environment |= {PLAN_VARIABLE: str(plan)} if plan else {}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [SNAKEMAKE, *words, "-n", "--directory", folder, "--cores", "1", "--quiet", "rules"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = done.stdout + done.stderr
    if done.returncode:
        sys.exit(text)
    total = re.search(r"^total +(\d+)", text, re.MULTILINE)
    found = int(total[1]) - (1 if re.search(r"^all +1$", text, re.MULTILINE) else 0) if total else 0
    if found != expected:
        sys.exit(f"{found} jobs to do instead of {expected}:\n{text[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(seeds: int, repeats: int) -> None:
    """Measure one study and print its rows."""
    with tempfile.TemporaryDirectory() as scratch:
        ours, stub = Path(scratch, "ours"), Path(scratch, "stub")
        name = write_study(ours, seeds)
        os.chdir(ours)
        study = load_study(ours / "config" / f"{name}.yaml")
        workflow = Workflow(study, build_plan(study, RESULTS), output_folder(name))
        jobs = write_stub(stub, workflow)
        keys = {name: product.key for name, product in workflow.products.items()}
        commands = {
            "ours": (ours, "--snakefile", str(ROOT / "Snakefile"), "--config", f"study={name}"),
            "stub": (stub,),
        }
        plan = freeze(FrozenPlan(study, workflow.plan, keys), Path(scratch))
        first = next(run_id for run_id, run in workflow.plan.runs.items() if run.kind == "dense")
        for state in ("all to do", "one job", "no-op"):
            if state == "no-op":
                finish(stub, workflow)
                finish(ours, workflow)
                record(replace(workflow))
            expected = {"all to do": jobs, "one job": 1, "no-op": 0}[state]
            seconds: dict[str, list[float]] = {each: [] for each in commands}
            for _ in range(repeats):
                for each, (folder, *words) in commands.items():
                    rule = {"ours": "pretrain_dense", "stub": "train"}[each]
                    job = [*AS_A_JOB, f"{rule}:run={first}", "--allowed-rules", rule] if state == "one job" else []
                    seconds[each].append(
                        cpu_seconds(folder, *words, *job, expected=expected, plan=plan if job else None)
                    )
            mine, plain = (statistics.median(seconds[each]) for each in commands)
            figures = (plain, mine, mine - plain, 1 + (1 if state == "one job" else jobs) / 1000)
            print(f"{jobs:7,} {state:10}" + "".join(f" {figure:8.2f}" for figure in figures), flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 5, 20], help="studies: the paper's at so many seeds"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement, alternately (default 3)")
    options = parser.parse_args()
    print(f"{'jobs':>7} {'state':10} {'stub':>8} {'ours':>8} {'above':>8} {'goal':>8}   CPU seconds, medians")
    for seeds in options.seeds:
        compare(seeds, options.repeats)


if __name__ == "__main__":
    main()
