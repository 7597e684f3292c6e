"""SIGKILL at random moments: the same command again, as often as needed, ends in the bits of an undisturbed run.

`python tests/support/soak.py [--kills 200] [--out docs/soak.md]` (`make soak`) does it at length, test_soak.py briefly.
Four in five kills hit runs of one process, the others runs of two (FSDP2 over gloo, states by DCP), of which both are
killed at once or one alone, and whose undisturbed run is one of two processes too.

`python tests/support/soak.py --ends 300 [--slow-workers]` (`make soak-ends`) kills nothing: it trains an upcycled decay
300 times by two tensor-parallel processes, and each must end by itself, with the same bits. With `--slow-workers`
gloo's threads are held up where they once corrupted the heap (slow_workers.c, which gcc compiles).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from small_runs import EXECUTION, MOE, rows_of, small_run, tensors_sha256, upcycled_run, write_tokens
from spawner import Spawner

from upcycle.study.execution import Execution
from upcycle.study.spec import RunSpec

N_STEPS = 24
ATTEMPTS = 6
"""Of a run: all but the last are killed, unless they finish first."""
ALONE = EXECUTION.model_copy(update={"save_seconds": 1e-6})
"""A state after every step: a good part of a run's time is then spent with a save under way."""
TOGETHER = ALONE.model_copy(update={"devices": 2})
TENSOR = TOGETHER.model_copy(update={"tensor_parallel": 2})
N_DECAY_STEPS = 3


def runs() -> dict[str, RunSpec]:
    """A dense run, a mixture from scratch, one upcycled from the dense run, and its decay."""
    dense = small_run(end_step=N_STEPS)
    upcycled = upcycled_run(dense, end_step=N_STEPS)
    last = {"start_step": N_STEPS, "end_step": N_STEPS + N_DECAY_STEPS, "parent": upcycled.id}
    return {
        "dense": dense,
        "moe": small_run(end_step=N_STEPS, moe=MOE),
        "upcycled": upcycled,
        "decay": upcycled_run(dense, role="decay", **last),
    }


@dataclass
class Soak:
    """Victims, their undisturbed references, and what they died of."""

    spawner: Spawner
    tokens_dir: Path
    folder: Path
    draw: random.Random

    def reference(self, kind: str, execution: Execution) -> Path:
        """Folder of the undisturbed run by as many processes; made once."""
        run = runs()[kind]
        folder = self.folder / f"reference{execution.devices}-{execution.tensor_parallel}" / run.id
        if not folder.exists():
            undisturbed = execution.model_copy(update={"save_seconds": 60.0})
            self._start(kind, folder, undisturbed)
            assert self.spawner.exit_codes() == [0] * execution.devices
        return folder

    def soak(self, kind: str, execution: Execution, number: int) -> Counter[str]:
        """Train one run while killing it, compare it with its reference; kills by phase."""
        reference = self.reference(kind, execution)
        folder = self.folder / f"victim{number}" / reference.name
        phases = self._kill_until_finished(kind, folder, execution)
        assert tensors_sha256(folder) == tensors_sha256(reference), f"{kind}: other bits in {folder}"
        assert rows_of(folder) == rows_of(reference), f"{kind}: other rows in {folder}"
        assert not (folder / "resume").exists()
        return phases

    def end(self, number: int) -> None:
        """Train the decay by two tensor-parallel processes: both exit 0, with the bits of the first such run."""
        reference = self.reference("decay", TENSOR)
        folder = self.folder / f"end{number}" / reference.name
        self._start("decay", folder, TENSOR)
        codes = self.spawner.exit_codes()
        assert codes == [0, 0], f"ended with {codes} unasked in {folder}"
        assert tensors_sha256(folder) == tensors_sha256(reference), f"other bits in {folder}"
        shutil.rmtree(folder.parent)

    def _start(self, kind: str, folder: Path, execution: Execution) -> list[int]:
        """Start one of the runs in a folder; pids by rank. Its parent is an undisturbed run of one process."""
        run = runs()[kind]
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {each.id: kind for kind, each in runs().items()}
        parent = self.reference(kinds[run.parent], ALONE) if run.parent else None
        return self.spawner.start_all(run, folder, self.tokens_dir, execution, parent)

    def _kill_until_finished(self, kind: str, folder: Path, execution: Execution) -> Counter[str]:
        """Start the run again and again and kill it at drawn moments, five times; then let it finish.

        Two of the kills wait for a save to be under way, one strikes at any moment after the start, and the last at the
        end: in the last evaluation, or while the finished run is written.
        """
        phases: Counter[str] = Counter()
        for attempt in range(ATTEMPTS):
            pids = self._start(kind, folder, execution)
            hit = self.draw.choice([pids, pids[:1], pids[-1:]])
            if attempt == ATTEMPTS - 1:
                pass
            elif attempt == 2:
                time.sleep(self.draw.uniform(0, 0.4 * execution.devices**2))
                self._kill(hit)
            elif attempt == ATTEMPTS - 2:
                self._wait_for_the_end(folder, runs()[kind])
                self._kill(hit)
            elif self._wait_for_a_step(folder):
                time.sleep(self.draw.uniform(0, 0.1))
                while attempt % 2 and not self.spawner.ended() and not unfinished(folder):
                    time.sleep(0.0005)
                self._kill(hit)
            codes = self.spawner.exit_codes()
            if codes == [0] * execution.devices:
                break
            assert -signal.SIGKILL in codes, f"ended with {codes} unasked"
            phases[phase_of_death(folder, runs()[kind])] += 1
        return phases

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # it has finished
                os.kill(pid, signal.SIGKILL)

    def _wait_for_the_end(self, folder: Path, run: RunSpec) -> None:
        """Wait until the state of the last step is there, or a little later, by lot until the weights are written."""
        aims = ["weights.safetensors*"]
        if not list(folder.glob(last_state := f"resume/step-{run.end_step:09d}-*")):  # else it is an older one
            aims.append(last_state)
        aim = self.draw.choice(aims)
        while not self.spawner.ended() and not list(folder.glob(aim)):
            time.sleep(0.0002)
        time.sleep(self.draw.uniform(0, 0.005))

    def _wait_for_a_step(self, folder: Path) -> bool:
        """Wait until this attempt has written something after its start; False if it ended first."""
        metrics = folder / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        while not self.spawner.ended():
            if metrics.exists() and metrics.stat().st_mtime_ns > before and metrics.read_text().count('"loss"'):
                return True
            time.sleep(0.001)
        return False


def unfinished(folder: Path) -> list[Path]:
    """Files and folders of saves under way."""
    return list((folder / "resume").glob("*.tmp"))


def phase_of_death(folder: Path, run: RunSpec) -> str:
    """What the process was doing, by what it left behind."""
    if unfinished(folder):
        return "inside a save"
    if list(folder.glob("weights.safetensors*")):
        return "writing the finished run"
    curve = folder / "metrics.jsonl"
    rows = curve.read_text().splitlines() if curve.exists() else []
    if not any('"loss"' in row for row in rows):
        return "before the first step"
    saved = max((path.name for path in (folder / "resume").glob("step-*")), default="step-000000000")
    if int(saved[5:14]) == run.end_step:
        return "in the last evaluation"
    last = json.loads(rows[-1]) if rows[-1].endswith("}") else {}
    return "between two steps' rows" if last.get("step") == int(saved[5:14]) else "between a row and its save"


def commit() -> str:
    """The commit that is being tried; `-dirty` if the checkout differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout.strip()


# At length


def main() -> None:
    """Kill and kill again, print as it goes, and write the result."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="Markdown file to write")
    arguments.add_argument("--ends", type=int, help="kill nothing: so many runs must end by themselves")
    arguments.add_argument("--slow-workers", action="store_true", help="hold gloo's threads up (with --ends)")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.ends is not None:
        run_to_their_end(options.ends, slow_workers=options.slow_workers)
        return
    begun = time.monotonic()
    kills: dict[tuple[str, int], Counter[str]] = {}
    finished: Counter[tuple[str, int]] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    (folder / "tokens").mkdir()
    print(f"victims, and what they said, in {folder}: removed in the end if all is well", file=sys.stderr)
    with (folder / "log").open("w") as log, contextlib.closing(Spawner(stderr=log)) as spawner:
        soak = Soak(spawner, write_tokens(folder / "tokens"), folder, random.Random(options.seed))
        for number in itertools.count():
            if sum(map(Counter.total, kills.values())) >= options.kills:
                break
            execution = TOGETHER if number % 5 == 4 else ALONE
            kind = list(runs())[number % 3]
            key = (kind, execution.devices)
            phases = soak.soak(kind, execution, number)
            kills[key] = kills.get(key, Counter()) + phases
            finished[key] += 1
            print(f"{kind}, {execution.devices} process(es): {dict(phases)}, same bits", file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    text = report(kills, finished, time.monotonic() - begun, sys.argv[1:])
    print(text)
    if options.out:
        options.out.write_text(text)


def run_to_their_end(count: int, *, slow_workers: bool) -> None:
    """Train the decay `count` times, undisturbed but for threads that are held up, and print how it went."""
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    (folder / "tokens").mkdir()
    print(f"runs, and what they said, in {folder}: removed in the end if all is well", file=sys.stderr)
    if slow_workers:
        library = folder / "slow_workers.so"
        source = Path(__file__).with_name("slow_workers.c")
        subprocess.run(["gcc", "-O1", "-fno-builtin", "-shared", "-fPIC", "-o", library, source], check=True)
        os.environ |= {"LD_PRELOAD": str(library), "SLOW_US": "5000"}  # inherited by the processes that train
    with (folder / "log").open("w") as log, contextlib.closing(Spawner(stderr=log)) as spawner:
        soak = Soak(spawner, write_tokens(folder / "tokens"), folder, random.Random(0))
        for number in range(1, count + 1):
            soak.end(number)
            if number % 10 == 0:
                print(f"{number} clean ends, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    print(
        f"{count} clean ends of an upcycled decay by two tensor-parallel processes, the same bits each time"
        f"{', workers held up' if slow_workers else ''}: commit {commit()}, torch {torch.__version__}, "
        f"{time.monotonic() - begun:.0f} s"
    )


def report(
    kills: dict[tuple[str, int], Counter[str]], finished: Counter[tuple[str, int]], seconds: float, options: list[str]
) -> str:
    """The result as Markdown."""
    phases = sum(kills.values(), Counter())
    columns = [phase for phase, _ in phases.most_common()]
    command = " ".join(["python tests/support/soak.py", *options])
    lines = [
        "# SIGKILL soak",
        "",
        "**All runs had the same bits as undisturbed ones.** Result of `make soak`, written by it.",
        "",
        "| what | value |",
        "|---|---|",
        f"| command | `{command}` |",
        f"| commit, date | {commit()}, {datetime.now(UTC):%Y-%m-%d} |",
        f"| torch, Python | {torch.__version__}, {platform.python_version()} |",
        f"| cores, time | {os.cpu_count()}, {seconds:.0f} s |",
        f"| kills, runs | {phases.total()} kills of {finished.total()} runs of {N_STEPS} steps, "
        "a rolling state after every step |",
        "",
        "- Each run was started again with the same command until it finished.",
        "- It was then compared with an undisturbed run of as many processes: the bytes of",
        "  `weights.safetensors` and `state.safetensors`, and every row of the curve except measured times.",
        "  The command ends with an error at the first difference.",
        "- Two processes (FSDP2 over gloo) were killed both at once, or one alone, at random. A survivor that",
        "  does not end by itself is an error too.",
        "",
        "| run | processes | finished | kills | " + " | ".join(columns) + " |",
        "|---|---|---|---|" + "---|" * len(columns),
    ]
    for (kind, devices), found in sorted(kills.items(), key=lambda item: (item[0][1], item[0][0])):
        counts = " | ".join(str(found[column]) for column in columns)
        lines.append(f"| {kind} | {devices} | {finished[kind, devices]} | {found.total()} | {counts} |")
    counts = " | ".join(str(phases[column]) for column in columns)
    lines.append(f"| all | | {finished.total()} | {phases.total()} | {counts} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
