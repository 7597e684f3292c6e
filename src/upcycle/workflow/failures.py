"""What a user sees last when jobs fail: for each its log, and the last words in it, which name the cause and the fix.

Snakemake itself ends with the command that returned non-zero, and `quiet: rules` (one line a job) hides more than that.
Its log events, which its logger plugins are made of, tell which jobs failed; a handler of them in the same process
needs no plugin to be installed and works for every executor. Standard library only.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

SHOWN = 10
"""Failed jobs whose words are repeated at the end."""
TAIL_BYTES = 1 << 16
STATUS = re.compile(r"died with <Signals\.(?P<name>SIG\w+)|non-zero exit status (?P<code>\d+)")
"""How `subprocess.CalledProcessError` tells the end of a command."""

OWN = re.compile(r"upcycle( \w+)?: ")
"""How the last words of a verb begin (`upcycle.cli.last_words`)."""


@dataclass(frozen=True)
class Failure:
    """A job that failed: where to read more, and why, the most telling line last."""

    rule: str
    log: str
    words: list[str]

    def __str__(self) -> str:
        return "\n    ".join([f"{self.rule} failed, see {self.log}:", *self.words])


class Failures(logging.Handler):
    """Notes the jobs that fail from Snakemake's log events: each is shown when it fails, and all at the very end."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[int, Failure] = {}
        """By Snakemake's number of the job; a job that is restarted and then finishes is none."""
        self._before: dict[str, tuple[int, int] | None] = {}
        self._said: dict[int | None, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take up one event; as of any handler, a fault of it is printed and ends no job."""
        try:
            self._take_up(record, getattr(record, "event", None))
        except Exception:  # noqa: BLE001 - logging's own way
            self.handleError(record)

    def _take_up(self, record: logging.LogRecord, event: str | None) -> None:
        if event == "job_info":
            self._before |= {log: _stamp(log) for log in record.__dict__["log"]}
        elif event == "error":  # in one thread: the exception of a job, then the job's error
            self._said[record.thread] = record.getMessage()
        elif event == "job_error":
            failure = self._failure(record)
            self.failed[record.__dict__["jobid"]] = failure
            logging.getLogger(record.name).error(str(failure))
        elif event == "job_finished":
            self.failed.pop(record.__dict__["job_id"], None)

    def close(self) -> None:
        """Say what failed. Snakemake closes its handlers after its own last line."""
        failures, self.failed = list(self.failed.values()), {}
        super().close()
        if not failures:
            return
        left_out = len(failures) - SHOWN
        lines = ["\n1 job failed:" if len(failures) == 1 else f"\n{len(failures)} jobs failed:"]
        if left_out > 0:
            lines.append(f"the first {left_out} as shown above, the last {SHOWN}:")
        print("\n".join([*lines, *map(str, failures[-SHOWN:])]), file=sys.stderr, flush=True)

    def _failure(self, record: logging.LogRecord) -> Failure:
        """Why a job failed: from its logs, its exit status and the executor's message."""
        # Logs beyond the job's own are an executor's: what the job's node wrote.
        logs = [log for log in record.__dict__["log"] if _stamp(log) != self._before.get(log)]
        by_signal = _signal(self._said.pop(record.thread, ""))
        if by_signal and logs:
            why = " (out of memory, or another process)" if by_signal == "SIGKILL" else ""
            _add_to_log(
                logs[0], f"upcycle: killed by {by_signal}{why}. What it saved is kept: the same command continues"
            )
        words = [line for log in logs for line in words_of_log(log)]
        own = [line for line in words if OWN.match(line)]
        executor = [line for line in str(record.__dict__["rule_msg"] or "").splitlines() if line.strip()]
        shown = [*executor, *own] if own else [*words, *executor]
        where = logs[0] if logs else ", ".join(record.__dict__["log"])
        return Failure(record.__dict__["rule_name"], where, shown or ["it wrote no log; see the lines above"])


def exit_code_in(logs: list[str]) -> int | None:
    """How the command of a job ended, by the log of the Snakemake that ran it; -n for signal n, None if not told."""
    for log in logs:
        found = list(STATUS.finditer(_tail(log)))
        if found:
            last = found[-1]
            return -signal.Signals[last["name"]] if last["name"] else int(last["code"])
    return None


def _stamp(path: str) -> tuple[int, int] | None:
    """Time and size of a file's last change, by which one of an earlier attempt is known; None without one."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a name as Snakemake has it
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _signal(said: str) -> str | None:
    """The signal that ended a command, by the words of its exception; a shell or the fork server returns 128 + n."""
    match = STATUS.search(said)
    if match is None or (match["code"] and int(match["code"]) <= 128):
        return None
    return match["name"] or signal.Signals(int(match["code"]) - 128).name


def _add_to_log(path: str, line: str) -> None:
    """Leave the last words of a job that could not: whoever reads its log later finds them too."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def words_of_log(path: str) -> list[str]:
    """The line in a log that a verb ends with if it fails; else the message of an exception, or the last line."""
    lines = [line for line in _tail(path).splitlines() if line.strip()]
    own = [line for line in lines if OWN.match(line)]
    if own:
        return own[-1:]
    traces = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    for number in range(traces[-1] + 1, len(lines)) if traces else ():
        if not lines[number].startswith(" "):
            return lines[number:]
    return lines[-1:]


def _tail(path: str) -> str:
    with Path(path).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().decode(errors="replace")
