"""README.md of an export: a model card that says what was trained, on what, and with which losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upcycle import __version__
from upcycle.files import Record, read_record
from upcycle.manifest import MANIFEST, read_manifest
from upcycle.study.counting import count_parameters
from upcycle.study.spec import RunSpec
from upcycle.train.states.checkpoint import read_spec

UNKNOWN_LICENCE = """\
Unknown. `upcycle` cannot know it: the licences of the dense checkpoint, if there is one, and of the training text
apply. State yours here, and `license:` at the top, before you share this model.
"""


def model_card(run_dir: Path, run: RunSpec, tokens: dict[str, Any], compared: str) -> str:
    """The card of a finished run, in Markdown with the metadata of Hugging Face's hub.

    `tokens`: manifest of its token set. Losses are in nats with their standard error. The parent's is there if
    its folder is beside the run's.
    """
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "license: unknown",
            f"tags: [upcycle, {'mixture-of-experts' if run.moe else 'dense'}]",
            "---",
            f"# {run.id}",
            "",
            f"{_sentence(run)} Exported by `upcycle` {__version__}; float32.",
            "",
            *_table(("", ""), _specification(run, tokens)),
            "",
            "## Losses",
            "",
            *_table(("model", "text", "loss, nats", "held-out tokens"), _losses(run_dir, run)),
            "",
            "## Check",
            "",
            f"This folder was loaded again: {compared}.",
            "",
            "## Licence",
            "",
            UNKNOWN_LICENCE,
        ]
    )


def _sentence(run: RunSpec) -> str:
    """What the model is and where its weights began."""
    moe = run.moe
    what = f"A mixture of {moe.n_expert} experts, of which a token uses {moe.top_k}," if moe else "A dense model"
    if run.origin == "checkpoint":
        return f"{what} that was imported and not trained further."
    if run.dense_parent is None:
        return f"{what} trained from scratch."
    how = f"upcycled by the method `{run.method}` from" if moe else "trained further from"
    return f"{what} {how} the {'mixture' if run.parent_moe else 'dense model'} `{run.dense_parent}`."


def _specification(run: RunSpec, tokens: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the specification."""
    counts = count_parameters(run.model, run.moe)
    inner = f"{counts.non_embedding:,}, of which a token uses {counts.active:,}"
    rows = [("run", f"`{run.id}`"), ("parameters", f"{counts.total:,}"), ("without embedding and head", inner)]
    if run.checkpoint:
        rows.append(("base checkpoint, SHA-256", f"`{run.checkpoint}`"))
    if run.dense_parent or run.checkpoint:
        rows.append(("D1, tokens of the model that it began with", f"{run.dense_tokens:,}"))
    if run.origin != "checkpoint":
        name = "D2, tokens after it" if run.dense_parent else "tokens"
        rows.append((name, f"{run.tokens:,}"))
        rows.append(("context, batch", f"{run.model.context} tokens, {run.optim.batch} sequences"))
        rows.append(("learning rate, schedule", f"{run.optim.lr:g}, {run.schedule.kind}"))
        rows.append(("seed of the weights", str(run.seed)))
    if run.moe:
        rows.append(("gate", f"`{run.moe.gate}`"))
    text = f"`{run.data.dataset}` version {run.data.version}, seed {run.data.seed}"
    return [*rows, ("text", text), ("fingerprint of its tokens", f"`{tokens['fingerprint']}`")]


def _losses(run_dir: Path, run: RunSpec) -> list[tuple[str, str, str, str]]:
    """Rows of losses: of the run on its own held-out text and on others, and of its parent."""
    rows = [_row("this model", run.data.dataset, read_manifest(run_dir)["metrics"])]
    for path in sorted((run_dir / "evaluations").glob("*.json")):
        rows.append(_row("this model", path.stem, read_record(path)))
    parent = run_dir.parent / str(run.dense_parent)
    if run.dense_parent and (parent / MANIFEST).exists():
        rows.append(_row("its parent", read_spec(parent).data.dataset, read_manifest(parent)["metrics"]))
    return rows


def _row(model: str, text: str, found: dict[str, Any] | Record) -> tuple[str, str, str, str]:
    if found["loss"] is None:
        return model, text, "not evaluated", ""
    return model, text, f"{found['loss']:.4f} ± {found['loss_se']:.4f}", f"{found['heldout_tokens']:,}"


def _table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
