"""The verbs of the command line and their arguments: what `upcycle VERB --help` shows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from upcycle import __version__
from upcycle.errors import nearest

AddVerb = Callable[..., argparse.ArgumentParser]
"""Adds a verb by name and text."""
MAPPING = "NAME=EXPR,..."


class Parser(argparse.ArgumentParser):
    """Bad arguments are one line, as any bad input."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to look; exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Name the nearest verb or choice, not all of them."""
        if action.choices is not None and value not in action.choices:
            what = action.dest if action.option_strings else "verb"
            raise argparse.ArgumentError(None, f"no {what} `{value}`; {nearest(value, action.choices)}")


class VerbParser(Parser):
    """The parser of one verb: it refuses what it does not know itself, so that the message names the verb."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse`'s, but nothing is left over."""
        found, unknown = super().parse_known_args(args, namespace)
        if "others" in found:  # a verb that passes them on
            found.others, unknown = unknown, []
        elif unknown:
            fix = f"; {nearest(unknown[0], self._option_string_actions)}" if unknown[0].startswith("-") else ""
            self.error(f"unknown argument `{unknown[0]}`{fix}")
        return found, unknown


def natural(text: str) -> int:
    """The seed of a random generator."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A count of at least one."""
    if natural(text) == 0:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number of 1 or more")
    return int(text)


def deviation(text: str) -> float:
    """A standard deviation in nats."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"`{text}` is not a standard deviation in nats, such as 0.003")
    return value


def parser() -> argparse.ArgumentParser:
    """All verbs and their arguments."""
    top = Parser(prog="upcycle", description="Scaling laws for upcycling dense models into MoEs.")
    top.add_argument("--version", action="version", version=f"upcycle {__version__}")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=VerbParser)

    def verb(name: str, text: str, of_study: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        if of_study:
            sub.add_argument("--study", metavar="NAME", help="study in config/NAME.yaml (default: config.yaml)")
        return sub

    _runs(verb)
    _losses(verb)
    _advice(verb)
    _decisions(verb)
    return top


OWN_LOSSES = ("law", "csv", "columns", "where", "fix", "by", "shared", "delta", "draws", "json")
"""Arguments that make `upcycle fit` a fit of the user's own losses."""


def _runs(verb: AddVerb) -> None:
    """Verbs of a study, its tokens and its runs."""
    init = verb("init", "Write a new study, complete and commented, to config/NAME.yaml.", of_study=False)
    init.add_argument("name", nargs="?", help="name of the study (default: the template's)")
    templates = ("small", "paper", "own-model")
    init.add_argument("--template", choices=templates, default="small", metavar="NAME", help=", ".join(templates))
    plan = verb("plan", "Show what a study trains: runs, tokens, FLOPs, disk, expected time, what exists.")
    plan.add_argument("--json", action="store_true", help="as data")
    plan.add_argument("--all", action="store_true", help="one line a run, not only the table of sweeps")
    plan.add_argument("--nodes", type=positive, metavar="N", help="nodes that jobs share (default: several are shown)")
    plan.add_argument("--price", type=float, metavar="P", help="cost of one GPU (of a CPU study: core) for an hour")
    plan.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="plan for a cluster, as `snakemake --profile FOLDER` does"
    )
    status = verb("status", "Show how the runs of a study stand: state, speed, time left. Works while jobs run.")
    status.add_argument("--watch", action="store_true", help="renewed in place until all runs are finished, or Ctrl-C")
    status.add_argument("--json", action="store_true", help="as data")
    status.add_argument("--all", action="store_true", help="finished runs and those not started too")
    fetch = verb("fetch", "Download the files of a data set of the Hugging Face hub, once, for all jobs.")
    fetch.add_argument("name", help="a name under `datasets` with the key `hub`")
    tokenize = verb("tokenize", "Turn text into a token set, results/tokens/NAME.")
    tokenize.add_argument("name", help="a token set of the plan, e.g. english-1-bpe1024")
    tokenize.add_argument("--step", metavar="STEP", help="of a large corpus one step only, as Snakemake's jobs do")
    train = verb("train", "Train one run; resume it if it was stopped, verify it if it is finished.")
    train.add_argument("run", help="a run id of the plan, or the path of a spec.json")
    train.add_argument(
        "--fresh",
        action="store_true",
        help="discard a finished or damaged result and train again from the start; an unfinished run continues",
    )
    evaluate = verb("evaluate", "Held-out loss of a finished run on a text of the study.")
    evaluate.add_argument("run", help="a run id of the plan")
    evaluate.add_argument(
        "evaluation",
        nargs="?",
        help="a name under `evaluations`; without one the run's own held-out text, if it was not evaluated when it was "
        "trained (trunk points are not), into its metrics.json",
    )
    benchmark = verb("benchmark", "Scores of a finished run on a benchmark of Table 7.")
    benchmark.add_argument("run", help="a run id of the plan")
    benchmark.add_argument("benchmark", help="a name under `benchmarks`")
    benchmark.add_argument("task", help="one of its tasks")
    adopt = verb(
        "adopt", "Take over finished runs and tokens of another results folder, verified: linked, or else copied."
    )
    adopt.add_argument("folder", type=Path, metavar="FOLDER", help="its results folder, which has `runs`")
    export = verb(
        "export",
        "Write a finished run as a Hugging Face folder; it is loaded again by transformers and compared.",
        of_study=False,
    )
    export.add_argument("run", help="a run id of results/runs, or a run's folder")
    export.add_argument("folder", type=Path, metavar="DIR", help="folder to write, which is not there yet, or is empty")
    prune = verb("prune", "Remove files of finished runs that the study's `keep` lets go and nothing planned reads.")
    prune.add_argument("run", nargs="?", help="a run id of the plan (default: all)")


def _losses(verb: AddVerb) -> None:
    """Verbs that gather losses and make products of them."""
    for name, text in (
        ("losses", "Gather finished runs into losses.csv."),
        ("evaluations", "Gather evaluations on other texts into evaluations.csv."),
        ("benchmarks", "Gather scores on benchmarks into benchmarks.csv."),
        ("fit", "Fit a law: one that the study names, or with --law and --csv any law to any table of losses."),
        ("figure", "Draw a figure as SVG and PDF."),
        ("table", "Write a table as CSV and Markdown."),
        ("report", "Write the self-contained report.html."),
    ):
        sub = verb(name, text)
        if name in ("fit", "figure", "table"):
            sub.add_argument("name", nargs="?" if name == "fit" else None, help=f"a name under `{name}s`")
        sub.add_argument("--out", type=Path, help="file to write (default: in the study's results folder)")
        if name == "fit":
            _own_losses(sub)
    forecast = verb(
        "forecast",
        "Write a forecast of runs that are still to train; of one that is written, check what it was made of.",
    )
    forecast.add_argument("name", help="a name under `forecasts`")
    imports = verb("import-losses", "Bring any table of losses into the form of losses.csv.", of_study=False)
    imports.add_argument("table", type=Path, metavar="TABLE", help="table of losses: .csv, .tsv, .jsonl or .parquet")
    imports.add_argument(
        "--columns", metavar=MAPPING, help="columns of losses.csv, e.g. lineage='up',loss=final,D=C/(6*N)"
    )
    imports.add_argument("--where", default="", metavar="EXPR", help="rows to take, e.g. 'D >= 1e9 and seed == 0'")
    imports.add_argument("--source", required=True, metavar="TEXT", help="where the losses are from, kept in each row")
    imports.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .csv file to write")


def _own_losses(fit: argparse.ArgumentParser) -> None:
    """Arguments of `upcycle fit` for a table of the user's own (docs/your-own-losses.md)."""
    own = fit.add_argument_group("your own losses")
    own.add_argument("--law", help="a law, e.g. chinchilla, multiplicative, joint; `--law list` shows all")
    own.add_argument("--csv", type=Path, help="table of losses: .csv, .tsv, .jsonl or .parquet")
    own.add_argument("--columns", metavar=MAPPING, help="inputs and loss, e.g. loss=final,N=params,D=C/(6*N)")
    own.add_argument("--where", default="", metavar="EXPR", help="rows to take, e.g. 'D >= 1e9 and seed == 0'")
    own.add_argument(
        "--fix", default="", metavar="NAME=VALUE,...", help="parameters held, at a value or a fit's: E=1.69, E=FIT.json"
    )
    own.add_argument("--by", metavar="COLUMN", help="one fit for each value of this column, e.g. lineage")
    own.add_argument("--shared", default="", metavar="NAME,...", help="with --by: parameters common to all, e.g. E")
    own.add_argument("--delta", type=float, help="Huber's delta on residuals of the log loss (default 1e-3)")
    own.add_argument("--draws", type=int, help="bootstrap draws of each kind of interval (default 200)")
    own.add_argument("--json", type=Path, metavar="OUT", help="write the fit as JSON")


def _advice(verb: AddVerb) -> None:
    """Verbs that advise from fits, as text or as a page; neither needs a run."""
    question = "Upcycle a dense model or train a mixture from scratch? With how many tokens?"
    advise = verb("advise", question, of_study=False)
    model = advise.add_mutually_exclusive_group(required=True)
    model.add_argument("--n1", metavar="N", help="non-embedding parameters of the dense model, e.g. 7e9")
    model.add_argument("--study", metavar="NAME", help="a study that upcycled a dense model and trained it on")
    advise.add_argument("--d1", metavar="D", help="tokens that it was trained on, e.g. 2e12")
    budget = advise.add_mutually_exclusive_group()
    budget.add_argument("--tokens", metavar="D", help="tokens to spend on the mixture")
    budget.add_argument("--flops", metavar="C", help="FLOPs to spend")
    budget.add_argument("--gpu-hours", metavar="H", help="GPU-hours to spend")
    advise.add_argument("--flops-per-second", default="400e12", help="of one GPU (default 400e12, as in A.10)")
    advise.add_argument("--n-expert", type=int, metavar="E", help="experts of the mixture (default: the laws')")
    advise.add_argument("--top-k", type=int, metavar="K", help="experts that a token uses (default: the laws')")
    advise.add_argument("--fits", type=Path, help="folder of fits (default: the paper's Table 2)")
    advise.add_argument(
        "--full", action="store_true", help="also losses with bands, all crossings, the run that would tell most, rules"
    )
    advise.add_argument("--json", action="store_true", help="all of it as data")

    page = verb(
        "page",
        "Write the same advice as one HTML file with sliders, which needs no network: the paper's constants, and those "
        "of the studies and fits that are named.",
        of_study=False,
    )
    page.add_argument("--study", action="append", metavar="NAME", help="a study with its fits; may be repeated")
    page.add_argument("--fits", action="append", type=Path, metavar="FOLDER", help="a folder of fits; may be repeated")
    page.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .html file to write")


def _decisions(verb: AddVerb) -> None:
    """Verbs on the laws themselves: sweeps to plan, the paper's numbers, a rehearsal; none trains."""
    design = verb("design", "What a planned sweep would tell: expected intervals of every parameter and of D*.")
    design.add_argument("--d1", metavar="D,...", help="dense budgets in tokens; LOW:HIGH:COUNT for a geometric grid")
    design.add_argument("--d2", metavar="D,...", help="upcycled budgets in tokens, written as --d1")
    design.add_argument("--n1", metavar="N,...", help="dense sizes in non-embedding parameters")
    design.add_argument(
        "--sweep", metavar="NAME", help="the grid of an upcycled sweep of the study, in place of --d1 --d2 --n1"
    )
    design.add_argument("--law", help="law to fit to the upcycled losses (default: the truth's own)")
    design.add_argument(
        "--values",
        default="",
        metavar="NAME=VALUE,...",
        help="parameters of the truth in place of Table 2's or the fits'",
    )
    design.add_argument("--fits", type=Path, help="folder of fits to take for the truth (default: the paper's Table 2)")
    design.add_argument(
        "--noise", metavar="NATS", help="standard deviation of one loss (default: measured, of the seeds in losses.csv)"
    )
    design.add_argument(
        "--fix", default="", metavar="NAME=VALUE,...", help="parameters held fixed; `E` alone: at the truth"
    )
    design.add_argument("--simulations", type=int, default=400, help="sweeps to simulate (default 400)")
    design.add_argument("--seed", type=natural, default=0, help="seed of the simulated noise")
    design.add_argument(
        "--at-n1", metavar="N", help="size at which D* is asked for (default 1e9, or the sweep's if it has one)"
    )
    design.add_argument("--json", action="store_true", help="as data")

    audit = verb("audit", "Recompute every number of the paper that can be; say which hold.", of_study=False)
    audit.add_argument("--json", action="store_true", help="as data")
    audit.add_argument("--all", action="store_true", help="every number, not only those that do not simply hold")
    audit.add_argument(
        "--losses", type=Path, metavar="FILE", help="also from the paper's losses of section 4.2, in losses.csv's form"
    )
    audit.add_argument(
        "--out",
        type=Path,
        help="folder for audit.csv and audit.md, with --losses also audit-losses.md (default: print only)",
    )

    rehearse = verb(
        "rehearse",
        "The whole study through Snakemake with training replaced by losses drawn from a law, in results/simulated/"
        "STUDY, all marked as simulated. Other arguments are Snakemake's.",
    )
    rehearse.add_argument(
        "--law",
        action="append",
        default=[],
        help="what losses are drawn from: a law with printed constants, joint (default) or joint_no_interaction, or a "
        "fit's file in place of the paper's for the losses that it describes; may be repeated",
    )
    rehearse.add_argument(
        "--noise", type=deviation, default=0.003, metavar="NATS", help="standard deviation of one loss (default 0.003)"
    )
    rehearse.add_argument("--seed", type=natural, default=0, help="seed of the noise")
    rehearse.set_defaults(others=[])
