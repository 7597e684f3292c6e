"""`upcycle adopt FOLDER`: tokens and finished runs of another results folder become this one's, verified on the way.

A file is linked where both folders are on one file system, else copied. As in training, metrics.json comes last, and
as in tokenising, the manifest: what a kill left half adopted is unfinished, and the same command takes it again.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from upcycle.bars import count_work, showing
from upcycle.data.provenance import MANIFEST as TOKEN_MANIFEST
from upcycle.data.provenance import read_token_manifest, text_fingerprint
from upcycle.data.sources import sha256_file
from upcycle.data.tokens import TOKENIZER, TokenSet
from upcycle.errors import UserError
from upcycle.files import TEMPORARY, read_record, sync_folder, write_atomic
from upcycle.manifest import (
    MANIFEST,
    METRICS,
    WEIGHTS,
    DamagedError,
    check_metrics,
    json_bytes,
    read_manifest,
    removed_files,
    sealed,
)
from upcycle.study.plan import build_plan
from upcycle.study.recorded import is_finished, is_trained, recorded_spec
from upcycle.study.spec import RunSpec, short_count
from upcycle.train.states.lease import lease
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS, tokens_path

SHOWN = 5
"""Runs that a line of the report names."""


@dataclass
class Adopted:
    """What one call took, refused and did not find."""

    here: list[str] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    """Bytes of each run."""
    token_sets: dict[str, int] = field(default_factory=dict)
    """Bytes of each token set that was taken."""
    copied: int = 0
    """Runs and token sets of which a file had to be copied."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why, by run or token set."""


def adopt_results(workflow: Workflow, source: Path) -> Adopted:
    """Take the token sets and the finished runs of a results folder that this study needs and has not.

    Runs are those of its plan, and trunk points there from which the study's own would continue. Raises UserError for a
    folder that is no other results folder.
    """
    if not (source / "runs").is_dir():
        raise UserError(f"{source} has no folder `runs`: name a results folder, e.g. ../other/results")
    if RESULTS.exists() and source.samefile(RESULTS):
        raise UserError(f"{source} is the results folder of this study itself: name another one")
    adopted = Adopted()
    try:
        there = build_plan(workflow.study, source).runs
    except UserError as error:  # a needed run's spec.json: the loop names it if the study plans that run
        adopted.refused[str(source)] = str(error)
        there = {}
    wanted = dict.fromkeys([*workflow.plan.runs, *there])
    count_work(expected=len(workflow.token_sets) + len(wanted))
    for name in workflow.token_sets:
        count_work(done=1)
        theirs = source / "tokens" / name
        if (theirs / TOKEN_MANIFEST).exists() and not Path(tokens_path(name)).exists():
            try:
                adopted.token_sets[name], copied = _take_tokens(workflow, theirs)
                adopted.copied += copied
            except UserError as error:
                adopted.refused[f"token set {name}"] = str(error)
    for run_id in wanted:
        count_work(done=1)
        if is_trained(RESULTS / "runs" / run_id):
            adopted.here.append(run_id)
        elif is_finished(source / "runs" / run_id):
            try:
                adopted.taken[run_id], copied = _take(source / "runs" / run_id, RESULTS / "runs" / run_id)
                adopted.copied += copied
            except UserError as error:
                adopted.refused[run_id] = str(error)
    return adopted


def _take(theirs: Path, ours: Path) -> tuple[int, bool]:
    """Adopt one run: its bytes, and whether a file was copied. UserError or DamagedError if it does not verify."""
    manifest = read_manifest(theirs)
    run = recorded_spec(theirs)
    if run is None or manifest["id"] != run.id:
        raise DamagedError(f"{theirs}: spec.json is missing, or {MANIFEST} is of another run ({manifest['id']})")
    metrics = read_record(theirs / METRICS)
    check_metrics(theirs, metrics)
    _check_tokens(run, manifest)
    files = {name: entry for name, entry in manifest["files"].items() if name not in removed_files(manifest)}
    ours.mkdir(parents=True, exist_ok=True)
    with lease(ours):
        copied = [not _place(theirs / name, ours / name, entry) for name, entry in files.items()]
        _adopt_evaluations(theirs, ours, manifest["files"][WEIGHTS]["sha256"])
        sync_folder(ours)
        write_atomic(ours / MANIFEST, json_bytes(sealed(manifest)))
        write_atomic(ours / METRICS, json_bytes(metrics))
        shutil.rmtree(ours / "resume", ignore_errors=True)
    return sum(entry["bytes"] for entry in files.values()), any(copied)


def _take_tokens(workflow: Workflow, theirs: Path) -> tuple[int, bool]:
    """Adopt one token set: its bytes, and whether a file was copied. UserError if it does not verify.

    Every token is hashed; the manifest's fingerprint must follow from the hashes, and be that of the runs here.
    """
    manifest, ours = read_token_manifest(theirs), RESULTS / "tokens" / theirs.name
    fingerprint = manifest["fingerprint"]
    if text_fingerprint(manifest["tokenizer"]["sha256"], manifest["parts"]) != fingerprint:
        raise UserError(f"{theirs / TOKEN_MANIFEST}: its fingerprint is not that of its tokens")
    for run_id, run in workflow.plan.runs.items():
        if run.data.tokens_id == theirs.name and is_finished(RESULTS / "runs" / run_id):
            trained_on = read_manifest(RESULTS / "runs" / run_id)["tokens_fingerprint"]
            if trained_on != fingerprint:
                raise UserError(
                    f"{theirs} has tokens {fingerprint}, and {run_id}, which is here, was trained on {trained_on}"
                )
    names = [TOKENIZER, *(shard["file"] for part in manifest["parts"].values() for shard in part["shards"])]
    ours.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{theirs.name}-", dir=ours.parent) as name:
        folder = Path(name)
        copied = [not _link(theirs / each, folder / each) for each in names]
        shutil.copyfile(theirs / TOKEN_MANIFEST, folder / TOKEN_MANIFEST)
        TokenSet(folder).verify()
        size = sum((folder / each).stat().st_size for each in names)
        ours.mkdir(exist_ok=True)
        for each in (*names, TOKEN_MANIFEST):
            (folder / each).replace(ours / each)
    sync_folder(ours)
    return size, any(copied)


def _check_tokens(run: RunSpec, manifest: dict[str, Any]) -> None:
    """UserError for a run that was trained on other tokens than those that are here under the same name."""
    path = Path(tokens_path(run.data.tokens_id))
    if path.exists() and (found := read_record(path)["fingerprint"]) != manifest["tokens_fingerprint"]:
        raise UserError(
            f"{run.id} was trained on tokens {manifest['tokens_fingerprint']}, and {path.parent} has {found}: give the "
            "other text another data.version, or remove the token set that is wrong"
        )


def _place(theirs: Path, ours: Path, expected: dict[str, Any]) -> bool:
    """Link a file, or copy it, if what arrives is what the manifest describes; returns whether it is a link."""
    temporary = ours.with_name(f".{ours.name}.{os.getpid()}{TEMPORARY}")
    temporary.unlink(missing_ok=True)
    try:
        linked = _link(theirs, temporary)
        if temporary.stat().st_size != expected["bytes"] or sha256_file(temporary) != expected["sha256"]:
            raise DamagedError(f"{theirs}: damaged, it is not what {MANIFEST} describes")
        temporary.replace(ours)
    finally:
        temporary.unlink(missing_ok=True)
    return linked


def _link(theirs: Path, ours: Path) -> bool:
    """Link a file, or copy it; returns whether it is a link."""
    try:
        os.link(theirs, ours)
    except FileNotFoundError:
        raise DamagedError(f"{theirs}: missing, though {MANIFEST} lists it") from None
    except OSError:  # another file system, or one without hard links, or a file of another user
        shutil.copyfile(theirs, ours)
        return False
    return True


def _adopt_evaluations(theirs: Path, ours: Path, weights: str) -> None:
    """Results on other texts and on benchmarks, of these weights; Snakemake makes any other again."""
    for folder in ("evaluations", "benchmarks"):
        for path in sorted((theirs / folder).glob("*.json")):
            if read_record(path)["weights_sha256"] == weights:
                write_atomic(ours / folder / path.name, path.read_text(encoding="utf-8"))


def show_adopted(workflow: Workflow, source: Path, adopted: Adopted) -> str:
    """What was taken and refused, and what the study still lacks."""
    size = sum(adopted.taken.values()) + sum(adopted.token_sets.values())
    how = f"{adopted.copied} copied, the others linked" if adopted.copied else "linked"
    parts = {"run": adopted.taken, "token set": adopted.token_sets}
    took = " and ".join(f"{len(each)} {what}{'s' * (len(each) != 1)}" for what, each in parts.items() if each)
    lines = [f"took {took} from {source} ({size / 1e6:,.0f} MB, {how})" if took else ""]
    lines += [f"here before: {len(adopted.here)} runs"] if adopted.here else []
    lines += [f"refused {name}: {why}" for name, why in adopted.refused.items()]
    lacking = [run for run in workflow.plan.runs.values() if not is_trained(RESULTS / "runs" / run.id)]
    if lacking:
        tokens = short_count(sum(run.segment_tokens for run in lacking))
        names = ", ".join(run.id for run in lacking[:SHOWN])
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        lines.append(f"still to train: {len(lacking)} runs, {tokens} tokens: {names}{more}")
    else:
        lines.append("nothing is left to train")
    sets = dict.fromkeys(run.data.tokens_id for run in lacking)
    lines += [f"token set {name} is still to be made" for name in sets if not Path(tokens_path(name)).exists()]
    return "\n".join(filter(None, lines))


def adopt(workflow: Workflow, source: Path) -> None:
    """The verb; prints a report. Raises UserError at its end if anything was refused."""
    with showing("token sets and runs"):
        adopted = adopt_results(workflow, source)
    print(show_adopted(workflow, source, adopted), flush=True)
    if adopted.refused:
        raise UserError(f"{len(adopted.refused)} refused, as named above; the others are taken")
