"""Constants for the advisor page that cost no fit: every law that decisions may use, several mixtures, some losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from upcycle.advisor.sources import Constants
from upcycle.decisions.curves import Curve, ThreeLaws
from upcycle.laws.forms import LAWS, get_law

VALUES = {
    "A": 9.0, "B": 8.5, "F": 4.0, "E": 0.9, "D0": 3e5, "c": 2.2, "alpha": 0.13, "beta": 0.11, "alpha1": 0.06,
    "alpha2": 0.11, "alpha3": 2e-3,
}  # fmt: skip
UPCYCLED = sorted(name for name, law in LAWS.items() if law.decides == "upcycled")
D = (1.2e5, 2e6)


def curve(law: str, draws: int, seed: int, ids: tuple[str, ...] = ()) -> Curve:
    """A law with made-up parameters, each of whose draws is within 2 % of the value."""
    form, generator = get_law(law), np.random.default_rng(seed)
    drawn = {name: VALUES[name] * generator.normal(1, 0.02, draws) for name in form.names}
    tokens = ("D1", "D2") if form.decides == "upcycled" else ("D",)
    sized = bool({"N", "N1"} & set(form.inputs))
    box = {**dict.fromkeys(tokens, D), "N1": (8192.0, 131072.0) if sized else (32768.0, 32768.0)}
    return Curve(form, {name: VALUES[name] for name in form.names}, drawn if draws else None, box, ids)


def three_laws(upcycled: str, draws: int = 40, dense: bool = True, **changes: Any) -> ThreeLaws:
    """An upcycled law with laws from scratch of as many inputs."""
    scratch = "chinchilla" if "N1" in get_law(upcycled).inputs else "power_in_tokens"
    return ThreeLaws(
        curve(scratch, draws, 1, ("dense-a",)) if dense else None,
        replace(curve(scratch, draws, 2), values={**curve(scratch, 0, 2).values, "A": 11.0}),
        curve(upcycled, draws, 3, ("up-a", "up-b")),
        n_expert=8,
        top_k=2,
        source="made up",
        rounded=False,
        paired=True,
        **changes,
    )


def source(name: str, *mixtures: ThreeLaws, error: float | None = 0.02, **more: Any) -> Constants:
    """Constants of these laws under a name."""
    return Constants(name, f"{name}, made up.", mixtures, (error,) * len(mixtures), **more)


def losses() -> pd.DataFrame:
    """Rows of losses.csv, as far as the page reads them: of two sizes and mixtures, some not fitted."""
    rows = [
        ("dense-a", "dense", 0, 4e5, 32768, 1, 1, 3.9),
        ("dense-b", "dense", 0, 1.6e6, 73728, 1, 1, 3.5),
        ("moe-a", "moe", 0, 5e5, 32768, 8, 2, 3.95),
        ("up-a", "up", 2.5e5, 5e5, 32768, 8, 2, 3.8),
        ("up-b", "up", 1e6, 1e6, 32768, 8, 2, 3.5),
        ("up-</script><b>", "up", 1e6, 1e6, 32768, 8, 2, 3.51),
        ("up-other", "up", 1e6, 1e6, 32768, 16, 2, 3.52),
        ("up-grown", "up", 1e6, 1e6, 32768, 8, 2, 3.53),
        ("cont-a", "cont", 4e5, 8e5, 32768, 1, 1, 3.7),
    ]
    table = pd.DataFrame(rows, columns=["id", "lineage", "D1", "D", "N1", "n_expert", "top_k", "loss"])
    return table.assign(method=["expand" if name == "up-grown" else "copy" for name in table["id"]])
