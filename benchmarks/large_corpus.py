"""A corpus of gigabytes through Snakemake: killed again and again, within a limit of memory, and every count exact.

Writes `--megabytes` of text (`made_corpus`) to a scratch folder. Then `snakemake` makes the token set on `--cores`,
under an enforced limit of memory in each process (RLIMIT_DATA), in a session that is killed whole with SIGKILL at
random moments of the steps that `--kill-in` names, one after the other. The same command is given after each.

Checked are: no finished step starts again, all shards verify, and all counts of documents, bytes, tokens, rows and
removals are those of what was written. `--whole` also makes the set without any kill, in one part, and compares tokens
and counts.

    python benchmarks/large_corpus.py [--megabytes 5000] [--taken 0.95] [--memory 1000] [--cores 2] [--whole]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from made_corpus import FILES, MAX_BAD, VOCABULARY, WHERE, Corpus, Written
from tokenizers import Tokenizer

from upcycle.data.corpus import SHARED
from upcycle.data.making import Making
from upcycle.data.tokenizer import train_bpe
from upcycle.data.tokens import TokenSet
from upcycle.study.spec import DataSpec

ROOT = Path(__file__).parents[1]
KILLS = ["read", "prepare", "encode", "encode", "merge"]


def lay_out(folder: Path, files: dict[str, list[Path]], parts: int) -> None:
    """A folder that Snakemake runs in, with a study that reads the corpus."""
    for name in ("Snakefile", "workflow", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    part = sum(path.stat().st_size for path in files["files"]) // parts
    crawl = {kind: list(map(str, paths)) for kind, paths in files.items()}
    crawl |= {"where": WHERE, "max_bad": MAX_BAD, "part_bytes": part}  # type: ignore[dict-item]
    model = {"n_layer": 1, "d_model": 16, "n_head": 2, "batch": 4, "warmup_steps": 2, "lr": 1e-2, "lr_moe": 1e-2}
    study = {
        "study": "default",
        "data": {"dataset": "crawl", "vocab_size": VOCABULARY, "tokenizer": "tokenizer.json"},
        "datasets": {"crawl": crawl},
        "context": 32,
        "execution": {"device": "cpu"},
        "models": {"tiny": model},
        "sweeps": {"dense": {"kind": "dense", "model": "tiny", "steps": [20]}},
    }
    (folder / "config.yaml").write_text(json.dumps(study))


class Watch:
    """Processes of a session that make tokens: which steps they do, and the most memory that each held."""

    def __init__(self) -> None:
        self.peak: dict[str, int] = {}
        """Most resident bytes (VmHWM), by step; `merge` for the last job, `snakemake` for Snakemake."""
        self.together = 0
        """Most resident bytes of all processes at once."""
        self.seen: set[str] = set()
        """Steps that were at work."""
        self.running: list[str] = []

    def look(self, session: int) -> None:
        """Note what runs now."""
        self.running, total = [], 0
        for pid in members_of(session):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                status = dict(re.findall(r"(VmHWM|VmRSS):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
            except OSError:
                continue  # it has just ended
            step = step_of(command)
            if not step or len(status) < 2:
                continue
            self.seen.add(step)
            self.running.append(step)
            self.peak[step] = max(self.peak.get(step, 0), 1024 * int(status["VmHWM"]))
            total += 1024 * int(status["VmRSS"])
        self.together = max(self.together, total)


def members_of(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def step_of(command: list[str]) -> str:
    """What a process does, from its command line; empty for a shell."""
    if not command[1:] or "python" not in Path(command[0]).name:
        return ""
    if "--step" in command:
        return command[command.index("--step") + 1]
    return "merge" if "tokenize" in command else "snakemake"


class Run:
    """`snakemake` on the corpus, as often as it is killed."""

    def __init__(self, folder: Path, tokens: str, cores: int, memory: int, parts: int) -> None:
        self.folder, self.work = folder, folder / "results" / "tokens" / tokens / "work"
        self.parts = parts
        snakemake = Path(sys.executable).with_name("snakemake")
        self.command = [str(snakemake), f"-c{cores}", f"results/tokens/{tokens}/manifest.json"]
        self.memory = memory
        self.watch = Watch()
        self.draw = random.Random()
        self.began = time.monotonic()

    def records(self) -> dict[str, int]:
        """Finished steps, and when each ended."""
        return {path.stem: path.stat().st_mtime_ns for path in self.work.glob("*.json")}

    def until(self, kind: str | None) -> None:
        """Snakemake until it ends, or until a random moment of a step of that kind, when its session is killed.

        Exits with a message if Snakemake fails, or does a step again.
        """
        if (self.work.parent / "manifest.json").exists():
            return  # the last kill came after the end
        before = self.records()
        self.watch.seen.clear()
        environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
        with (self.folder / "snakemake.log").open("a") as log:
            child = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._limit,
            )
        moment: float | None = None
        wanted = len([step for step in before if kind and step.startswith(kind)])
        wanted += self.draw.randint(0, self.parts // 3) if kind in ("read", "encode") else 0
        while child.poll() is None:
            self.watch.look(child.pid)
            if kind and moment is None and any(step.startswith(kind) for step in self.watch.running):
                enough = len([step for step in self.records() if step.startswith(kind)]) >= wanted
                moment = time.monotonic() + self.draw.uniform(0, self._seconds(kind)) if enough else None
            if moment is not None and time.monotonic() > moment:
                self._kill(child)
            time.sleep(0.05)
        again = self.watch.seen & before.keys()
        later = self.records()
        if again or any(later.get(step, ended) != ended for step, ended in before.items()):
            sys.exit(f"done again: {', '.join(sorted(again)) or 'a record was replaced'}")
        if child.returncode not in (0, -signal.SIGKILL):
            sys.exit((self.folder / "snakemake.log").read_text()[-3000:])

    def _limit(self) -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (self.memory, self.memory))

    def _seconds(self, kind: str) -> float:
        """The span from which the moment of a kill is drawn, about as long as a step of that kind takes."""
        size = sum(path.stat().st_size for path in self.folder.glob("*.jsonl*"))
        return 0.5 + size / {"read": 2e8, "prepare": 1e9, "encode": 4e7, "merge": 1e9}[kind]

    def _kill(self, child: subprocess.Popen) -> None:
        self.watch.look(child.pid)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        left = members_of(child.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        elsewhere = f"; {len(left)} processes were in other groups, and killed too" if left else ""
        steps = Counter(step.partition("-")[0] for step in self.records())
        done = ", ".join(f"{count} {kind}" for kind, count in steps.items()) or "none"
        running = ", ".join(sorted(set(self.watch.running) - {"snakemake"})) or "none"
        seconds = time.monotonic() - self.began
        print(f"  {seconds:.0f} s: killed while running {running}; steps done: {done}{elsewhere}", flush=True)


def differences(manifest: dict[str, Any], corpus: Corpus, made: Written, tokenizer: Tokenizer) -> list[str]:
    """Counts of a manifest that are not those of what was written."""
    rows, removed = manifest["rows"], manifest["removed"]
    found: Counter[str] = Counter({"rows": rows["read"], "left out": rows["left_out"]})
    expected = made.count + Counter({f"row: {reason}": count for reason, count in made.bad.items()})
    found.update({f"row: {reason}": count for reason, count in rows["bad"].items()})
    for part, record in manifest["parts"].items():
        found.update({f"{part} {key}": record[key] for key in ("documents", "bytes", "tokens")})
        expected[f"{part} tokens"] = made.tokens(part, corpus.lines[part], tokenizer)
    for reason, amounts in removed.items():
        word = "shared" if reason == SHARED else reason.split()[0]
        found.update({f"{word} {key}": amount for key, amount in amounts.items()})
    found, expected = +found, +expected  # without zeros
    print("  " + "; ".join(f"{key} {count:,}" for key, count in sorted(found.items())))
    names = sorted(found.keys() | expected.keys())
    return [f"{key}: {found[key]}, expected {expected[key]}" for key in names if found[key] != expected[key]]


def main(words_given: list[str] | None = None) -> None:
    """Parse options, run and print all results; exits with a message for any difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=5000, help="text in all rows")
    parser.add_argument("--taken", type=float, default=0.95, help="share of the rows that `where` takes")
    parser.add_argument("--memory", type=float, default=1000, help="MB of data in each process, enforced")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--kill-in", nargs="*", default=KILLS, help="kinds of steps")
    parser.add_argument("--dataset", default="english", help="whose lines are drawn")
    parser.add_argument("--whole", action="store_true", help="compare with an undisturbed run in one part")
    parser.add_argument("--scratch", type=Path, default=None)
    args = parser.parse_args(words_given)
    folder = Path(tempfile.mkdtemp(dir=args.scratch))
    check(folder, args)
    shutil.rmtree(folder)  # after a failure it stays, to look at


def check(folder: Path, args: argparse.Namespace) -> None:
    """All of it, in a folder."""
    began = time.monotonic()
    corpus = Corpus(args.dataset, args.taken)
    tokenizer = train_bpe(corpus.lines["train"], VOCABULARY)
    tokenizer.save(str(folder / "tokenizer.json"))
    files, made = corpus.write(folder, int(args.megabytes * 1e6), args.cores)
    stored = sum(path.stat().st_size for path in files["files"])
    print(
        f"{args.megabytes:,g} MB of text in {made.count['rows']:,} rows, {made.bad.total():,} of them unusable; ",
        end="",
    )
    print(f"{stored / 1e6:,.0f} MB in {FILES} files, written in {time.monotonic() - began:.0f} s", flush=True)
    parts = max(4, min(20, int(args.megabytes // 50)))
    lay_out(folder, files, parts)
    data = DataSpec(dataset="crawl", vocab_size=VOCABULARY, tokenizer="tokenizer.json")
    run = Run(folder, data.tokens_id, args.cores, int(args.memory * 1e6), parts)
    for kind in (*args.kill_in, None):
        run.until(kind)
    seconds = time.monotonic() - run.began
    print(f"{seconds:.0f} s with {len(args.kill_in)} kills; limit: {args.memory:.0f} MB of data in a process")
    kinds: dict[str, int] = {}
    for step, peak in run.watch.peak.items():
        kind = step.partition("-")[0]
        kinds[kind] = max(kinds.get(kind, 0), peak)
    print("  most resident: " + ", ".join(f"{kind} {peak / 1e6:.0f} MB" for kind, peak in kinds.items()), end="")
    print(f"; all at once {run.watch.together / 1e6:.0f} MB", flush=True)
    tokens = TokenSet(run.work.parent)
    tokens.verify()
    wrong = differences(tokens.manifest, corpus, made, tokens.tokenizer())
    if args.whole:
        wrong += whole_differs(folder, files, tokens.manifest)
    if wrong:
        sys.exit("\n".join(wrong))
    print("all shards verify; all counts are those of what was written" + ("; as undisturbed" if args.whole else ""))


def whole_differs(folder: Path, files: dict[str, list[Path]], manifest: dict[str, Any]) -> list[str]:
    """What is not as it is in a token set that one process makes, undisturbed and in one part."""
    options: dict[str, Any] = {kind: list(map(str, paths)) for kind, paths in files.items()}
    options |= {"vocab_size": VOCABULARY, "tokenizer": str(folder / "tokenizer.json"), "part_bytes": 10**15}
    making = Making("crawl", folder / "whole", where=WHERE, max_bad=MAX_BAD, **options)
    for step in (step for stage in making.stages for step in stage):
        making.run(step)
    whole = making.merge()
    keys = ("fingerprint", "removed", "rows", "sources")
    return [f"{key} of the undisturbed run differs" for key in keys if whole[key] != manifest[key]]


if __name__ == "__main__":
    main()
