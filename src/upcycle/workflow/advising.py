"""`upcycle page`: the constants that the advisor page offers, of the paper, of studies and of folders of fits."""

from __future__ import annotations

import argparse
from pathlib import Path

from upcycle.advisor.page import write_advisor_page
from upcycle.advisor.sources import Constants, fitted_source, paper_source
from upcycle.decisions.curves import read_fits
from upcycle.errors import UserError
from upcycle.workflow.invocation import read_workflow
from upcycle.workflow.make import paper_inputs


def page_job(args: argparse.Namespace) -> None:
    """The verb: write the page; prints a line.

    Raises `UserError` for a file that is a folder, and for a study or folder without the fits that advice takes.
    """
    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder: name a file, e.g. {args.out / 'advisor.html'}")
    studies = [study_source(name) for name in args.study or []]
    folders = [fitted_source(f"fits in {folder}", read_fits(folder)) for folder in args.fits or []]
    sources = [paper_source(), *studies, *folders]
    size = write_advisor_page(sources, args.out)
    print(f"{args.out}: {size / 1e6:.2f} MB, constants of {', '.join(source.name for source in sources)}")


def study_source(name: str) -> Constants:
    """The fits and losses of a study.

    Raises `UserError` naming what is missing and the command that makes it.
    """
    workflow = read_workflow(name, Path.cwd())
    if not (workflow.out / "losses.csv").is_file():
        raise UserError(f"{workflow.out}/losses.csv: no such file; `snakemake --config study={name}` makes it")
    inputs = paper_inputs(workflow)
    return fitted_source(f"study {name}", inputs.fits, losses=inputs.losses, mark=inputs.mark)
