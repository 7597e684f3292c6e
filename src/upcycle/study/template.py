"""`upcycle init`: a new study file, made from one of the studies of the checkout.

The templates are config.yaml and studies of config/ themselves, so what is written is what is tested. The first lines,
which are about that study, and its name are replaced; everything below stays.
"""

from __future__ import annotations

import os
from pathlib import Path

from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.study.check import CHECKOUT, study_file
from upcycle.study.schema import SCHEMA

TEMPLATES = {
    "small": Path("config.yaml"),
    "paper": Path("config") / "paper.yaml",
    "own-model": Path("config") / "own-model.yaml",
}
"""Files of the checkout by the name that `--template` gives."""


def write_study(name: str | None, template: str, root: Path) -> str:
    """Write the study file of this name (None: the template's) under `root`; returns what to do next.

    Raises `UserError` for a name that no study can have, a file that is there, a checkout without the template, and a
    folder inside the checkout, where Snakemake would not look for it.
    """
    name = (name or template).removeprefix("config/").removesuffix(".yaml")
    path, source = root / study_file(name), CHECKOUT / TEMPLATES[template]
    if root != CHECKOUT and root.is_relative_to(CHECKOUT) and not (root / "Snakefile").exists():
        raise UserError(f"{root} is inside the checkout; run this in {CHECKOUT}, where Snakemake runs")
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; give another name: `upcycle init NAME --template {template}`")
    if not source.is_file():
        raise UserError(f"{source}: no such file, it is the template `{template}`; restore it with `git checkout`")
    write_atomic(path, _renamed(source.read_text(encoding="utf-8"), name, template, path))
    snakemake = "snakemake" if (root / "Snakefile").exists() else f"snakemake --snakefile {CHECKOUT / 'Snakefile'}"
    return (
        f"{path.relative_to(root)}: a study from template `{template}`. Edit it, then:\n"
        f"  upcycle plan --study {name}               what it trains and what that costs\n"
        f"  {snakemake} --config study={name}     train, fit, draw"
    )


def _renamed(text: str, name: str, template: str, path: Path) -> str:
    """A study's text under another name: its head, up to the key `study`, is replaced."""
    _, key, settings = text.partition("\nstudy: ")
    assert key, "a study begins with comments and its name"
    schema = CHECKOUT / SCHEMA
    if path.is_relative_to(CHECKOUT):
        schema = Path(os.path.relpath(schema, path.parent))
    return (
        f"# yaml-language-server: $schema={schema}\n"
        f"# Study `{name}`, written by `upcycle init` from template `{template}`. Runs are named by their settings: a\n"
        "# changed setting makes new runs; equal runs are shared with the other studies of this folder.\n"
        f"study: {name}\n{settings.partition(chr(10))[2]}"
    )
