"""The command line: paths and names in, files out. `upcycle VERB --help` is enough to use a verb.

Values live in specs and studies, never in flags. Every verb works alone on files; Snakemake calls the same
verbs. Imports are inside the verbs: `train` of a fork server's client must start in a tenth of a second, and
verbs that only read tables never import torch.

Exit codes: 0 done; 1 failed; 2 bad input, nothing started; 3 failed, and would again (disk full, loss not finite);
75 stopped with its state saved, or the run is taken: call again.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from upcycle.arguments import OWN_LOSSES, parser
from upcycle.errors import UserError
from upcycle.leave import leave

SERVED = ("torch._dynamo", "upcycle.train.loop", "upcycle.cli")
"""What a fork server imports before it forks: torch with what an optimizer's first use imports, training, and this."""
NO_SUCH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
"""Errors of a path that was given; others, such as a full disk, are failures."""
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITTEN = (*FULL, errno.EFBIG, errno.EIO)
"""Errors of writing to a file that is open, which name none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code, which is 1 too where what it printed cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters still shows the rest
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # of argparse: --help, --version, bad arguments
        code = int(end.code or 0)
    try:
        if sys.stdout is not None:  # as with `>&-`
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again at its end
        if not isinstance(error, BrokenPipeError):  # `upcycle advise ... | head`: the reader has seen enough
            print(f"upcycle: the output cannot be written: {error.strerror}", file=sys.stderr)
            from upcycle.train.processes.preemption import HOPELESS

            return HOPELESS if error.errno in FULL else 1
    return code


def _main(arguments: list[str]) -> int:
    args = parser().parse_args(arguments)
    from upcycle.train.processes.preemption import HOPELESS, EndedByPeer, Preempted, StopRequest, TrainingError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("upcycle").setLevel(logging.INFO)
    try:
        if args.verb == "rehearse":
            return rehearse(args)
        if args.verb in ("tokenize", "train"):
            from upcycle.workflow.rehearsed import rehearsal_now, rehearse_job

            if rehearsal := rehearsal_now():
                rehearse_job(rehearsal, args.verb, args.name if args.verb == "tokenize" else args.run)
                return 0
        if args.verb in ("train", "evaluate"):
            from upcycle.train.processes.forkserver import FORK_VARIABLE, run_via_server

            if os.environ.get(FORK_VARIABLE) == "1":
                return run_via_server(arguments, *SERVED)
        run_verb(args)
    except UserError as error:
        return last_words(args.verb, error.exit_code, str(error))
    except TrainingError as error:
        return last_words(args.verb, error.exit_code, str(error))
    except Preempted as stop:
        for number in StopRequest.SIGNALS:  # schedulers send another; a process that has saved does not die of it
            signal.signal(number, signal.SIG_IGN)
        return last_words(args.verb, stop.exit_code, str(stop))
    except EndedByPeer as end:  # its words for the launcher alone, should the peer be ended before it has left its own
        from upcycle.train.processes.words import End, leave_word

        code = int(str(end.code))
        leave_word(End(code, end.message))
        return code
    except BrokenPipeError:  # main's flush meets it again
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in UNWRITTEN:  # of a socket, or a library's
            raise
        where = error.filename or "the output cannot be written"
        code = 2 if isinstance(error, NO_SUCH) else HOPELESS if error.errno in FULL else 1
        return last_words(args.verb, code, f"{where}: {error.strerror}")
    except KeyboardInterrupt:
        return last_words(args.verb, 130, "interrupted")
    return 0


def last_words(verb: str, code: int, message: str) -> int:
    """Report why a verb ended early: to the reader, or to the launcher, which joins its workers' messages into one."""
    from upcycle.train.processes.words import End, exit_code, leave_word

    if not leave_word(End(code, message)):
        print(f"upcycle {verb}: {message}", file=sys.stderr)
    return exit_code(code)


def rehearse(args: argparse.Namespace) -> int:
    """`upcycle rehearse`; its status is Snakemake's."""
    from upcycle.study.check import DEFAULT, find_study
    from upcycle.study.study import ImportedStudy
    from upcycle.workflow.rehearsal import run_rehearsal
    from upcycle.workflow.rehearsed import Rehearsal

    study = find_study(args.study or DEFAULT, Path.cwd())  # whose name is a folder's
    if isinstance(study, ImportedStudy):
        raise UserError(f"study `{study.study}` takes its losses from files: it trains nothing that could be rehearsed")
    return run_rehearsal(Rehearsal(study.study, args.noise, args.seed, tuple(args.law)), args.others)


def run_verb(args: argparse.Namespace) -> None:
    """Dispatch; each verb imports what it needs."""
    own = args.verb == "fit" and any(getattr(args, name) not in (None, "") for name in OWN_LOSSES)
    if own or args.verb in ("init", "import-losses", "advise", "page", "audit", "design"):
        run_without_runs(args)
        return
    if args.verb == "export":
        from upcycle.workflow.jobs import export_job

        export_job(args.run, args.folder)
        return
    from upcycle.workflow.invocation import PLAN_VARIABLE, read_workflow
    from upcycle.workflow.needs import check_needs
    from upcycle.workflow.nodes import read_profile, split_config
    from upcycle.workflow.texts import check_texts

    profile = getattr(args, "profile", None)
    name, node, settings = split_config(read_profile(profile) if profile else {})
    workflow = read_workflow(name if args.study is None else args.study, Path.cwd(), node, **settings)
    if args.verb in ("plan", "tokenize", "train", "evaluate", "benchmark") and PLAN_VARIABLE not in os.environ:
        check_texts(workflow)  # jobs of a running invocation: done when it started
    if args.verb == "plan":
        from upcycle.views.plan_view import show_plan

        shown = show_plan(workflow, as_json=args.json, every_run=args.all, nodes=args.nodes, price=args.price)
        print(shown, flush=True)
        if workflow.node is not None and not args.json:
            from upcycle.views.requests import show_requests

            print(f"\n{show_requests(workflow)}", flush=True)
        check_needs(workflow)  # last: what a study costs is of interest before its text is there
    elif args.verb == "status":
        if args.watch:
            from upcycle.views.watch import watch

            watch(workflow, Path.cwd())
            return
        from upcycle.views.status import show_status

        print(show_status(workflow, as_json=args.json, every_run=args.all))
    elif args.verb == "fetch":
        from upcycle.workflow.hub_notes import fetch_job

        fetch_job(workflow.study, args.name)
    elif args.verb == "adopt":
        from upcycle.workflow.adopt import adopt

        adopt(workflow, args.folder)
    elif args.verb == "forecast":
        from upcycle.workflow.forecasting import write_forecast

        print(write_forecast(workflow, args.name))
    elif args.verb in ("tokenize", "train", "evaluate", "benchmark", "prune"):
        from upcycle.workflow import jobs

        if args.verb == "tokenize":
            jobs.tokenize_job(workflow, args.name, args.step)
        elif args.verb == "train":
            jobs.train_job(workflow, args.run, fresh=args.fresh)
        elif args.verb == "benchmark":
            jobs.benchmark_job(workflow, args.run, args.benchmark, args.task)
        elif args.verb == "prune":
            jobs.prune_job(workflow, args.run, None if PLAN_VARIABLE in os.environ else Path.cwd())
        else:
            jobs.evaluate_job(workflow, args.run, args.evaluation)
    else:
        from upcycle.workflow import make

        make.make(workflow, args)


def run_without_runs(args: argparse.Namespace) -> None:
    """Verbs that need no trained run."""
    if args.verb == "init":
        from upcycle.study.template import write_study

        print(write_study(args.name, args.template, Path.cwd()))
    elif args.verb == "import-losses":
        from upcycle.laws.tables.importing import run_import

        run_import(args)
    elif args.verb == "fit":
        from upcycle.laws.own_losses import run_own_fit

        run_own_fit(args)
    elif args.verb == "advise" and args.study is not None:
        from upcycle.decisions.advice.measured_words import run_measured_advice
        from upcycle.workflow.invocation import read_workflow
        from upcycle.workflow.make import paper_inputs

        run_measured_advice(args, lambda: paper_inputs(read_workflow(args.study, Path.cwd())))
    elif args.verb == "advise":
        from upcycle.decisions.advice.advice import run_advise

        run_advise(args)
    elif args.verb == "page":
        from upcycle.workflow.advising import page_job

        page_job(args)
    elif args.verb == "design":
        from upcycle.decisions.design.design import run_design
        from upcycle.workflow.invocation import read_workflow

        run_design(args, lambda: read_workflow(args.study, Path.cwd()))
    else:
        from upcycle.audit.audit import run_audit

        run_audit(args)


def start() -> None:
    """The process `upcycle`. One of several that train a run leaves at once (upcycle.leave)."""
    if "RANK" in os.environ:
        leave(main)
    sys.exit(main())


if __name__ == "__main__":
    start()
