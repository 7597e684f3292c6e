"""The command line: paths and names in, files out. `upcycle VERB --help` is enough to use a verb.

Values live in specs and studies, never in flags. Every verb works alone on files; Snakemake calls the same
verbs. Imports are inside the verbs: `train` of a fork server's client must start in a tenth of a second, and
verbs that only read tables never import torch.

Exit codes: 0 done; 1 failed; 2 bad input, nothing started; 75 preempted, state saved, call again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path("results")
FORK_VARIABLE = "UPCYCLE_FORK_SERVER"


def parser() -> argparse.ArgumentParser:
    """All verbs and their arguments."""
    top = argparse.ArgumentParser(prog="upcycle", description="Scaling laws for upcycling dense models into MoEs.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        sub.add_argument("--study", default="default", help="config.yaml (default) or config/NAME.yaml")
        return sub

    plan = verb("plan", "Show what a study trains: runs, tokens, FLOPs, disk, expected time, what exists.")
    plan.add_argument("--json", action="store_true", help="as data")
    plan.add_argument("--all", action="store_true", help="one line a run, not only the table of sweeps")
    tokenize = verb("tokenize", "Make a token set, results/tokens/NAME.")
    tokenize.add_argument("name", help="a token set of the plan, e.g. english-1-bpe1024")
    train = verb("train", "Train one run, or resume it, or verify it if it is finished.")
    train.add_argument("run", help="a run id of the plan, or the path of a spec.json")
    train.add_argument("--fresh", action="store_true", help="train again from the start even if finished")
    evaluate = verb("evaluate", "Held-out loss of a finished run on another text of the study.")
    evaluate.add_argument("run", help="a run id of the plan")
    evaluate.add_argument("evaluation", help="a name under `evaluations`")
    for name, text in (
        ("losses", "Gather finished runs into losses.csv."),
        ("evaluations", "Gather evaluations on other texts into evaluations.csv."),
        ("fit", "Fit a law that the study names."),
        ("figure", "Draw a figure as SVG and PDF."),
        ("table", "Set a table as CSV and Markdown."),
        ("report", "Write the self-contained report.html."),
    ):
        sub = verb(name, text)
        if name in ("fit", "figure", "table"):
            sub.add_argument("name", help=f"a name under `{name}s`")
        sub.add_argument("--out", type=Path, help="file to write (default: in the study's results folder)")
        sub.add_argument("--key", help="key to record as made (Snakemake gives it)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(arguments)
    from upcycle.errors import UserError
    from upcycle.train.preemption import PREEMPTED, Preempted, TrainingError

    logging.basicConfig(format="%(message)s")
    logging.getLogger("upcycle").setLevel(logging.INFO)
    try:
        if args.verb in ("train", "evaluate") and os.environ.get(FORK_VARIABLE) == "1":
            from upcycle.train.forkserver import run_via_server

            return run_via_server(arguments)
        run_verb(args)
    except UserError as error:
        print(f"upcycle {args.verb}: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"upcycle {args.verb}: {error}", file=sys.stderr)
        return 1
    except Preempted as signal:
        print(f"upcycle {args.verb}: {signal}", file=sys.stderr)
        return PREEMPTED
    return 0


def run_verb(args: argparse.Namespace) -> None:
    """Dispatch; each verb imports what it needs."""
    from upcycle.workflow import read_workflow

    workflow = read_workflow({"study": args.study}, Path.cwd())
    if args.verb == "plan":
        from upcycle.plan_view import show_plan

        print(show_plan(workflow, as_json=args.json, every_run=args.all))
    elif args.verb in ("tokenize", "train", "evaluate"):
        from upcycle import jobs

        if args.verb == "tokenize":
            jobs.tokenize(workflow, args.name)
        elif args.verb == "train" and args.run.endswith(".json"):
            jobs.train_spec(Path(args.run), workflow, fresh=args.fresh)
        elif args.verb == "train":
            jobs.train(workflow, args.run, fresh=args.fresh)
        else:
            jobs.evaluate(workflow, args.run, args.evaluation)
    else:
        from upcycle import products

        products.make(workflow, args)


if __name__ == "__main__":
    sys.exit(main())
