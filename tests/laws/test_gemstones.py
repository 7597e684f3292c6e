"""The Gemstones' published fits of Equation 3: each on its own rows, and none of theirs below ours.

McLeish et al., "Gemstones: A Model Suite for Multi-Faceted Scaling Laws" (2025). Their tables of losses and their fits
(MIT) are no part of this project: the environment variable UPCYCLE_GEMSTONES names a folder that holds them.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from upcycle.cli import main
from upcycle.laws.forms import LAWS
from upcycle.laws.own_losses import select_inputs
from upcycle.laws.solver.prepare import prepare
from upcycle.laws.solver.search import search
from upcycle.laws.solver.solve import huber

FOLDER = Path(os.environ.get("UPCYCLE_GEMSTONES", ""))
pytestmark = pytest.mark.skipif(
    "UPCYCLE_GEMSTONES" not in os.environ, reason="UPCYCLE_GEMSTONES names no folder of the Gemstones' data"
)

COLUMNS = "loss=final_loss,N=params_active_precise,D=tokens"
NO_EMBEDDINGS = "loss=final_loss,N=params_active_precise-50304*width,D=tokens"
TABLES = {
    "cool_begin": ("cool_begin", "", 199),
    "cool_end": ("cool_end", "", 199),
    "hot": ("hot", "", 220),
    "hot_100b+": ("hot_100b+", "", 770),
    "hot_100b+_512x": ("hot_100b+", "'512x' in run_name", 175),
    "hot_120b+_only": ("hot_100b+", "tokens >= 120e9", 528),
    "hot_sampled_like_chinchilla": ("hot_sampled_like_chinchilla", "", 24),
    "lr_ablation_hot": ("lr_ablation_hot", "", 200),
    "lr_ablation_hot_sampled_like_chinchilla": ("lr_ablation_hot_sampled_like_chinchilla", "", 23),
    "slim_chinchilla": ("slim_chinchilla", "", 28),
}
"""Of each published fit: the table of losses, the rows of it, how many they are.

Their code reads a table of its own for the 512-wide models and for 120 billion tokens and more: these are these rows of
the whole. The halved learning rate sampled like Chinchilla's points comes from a denser table of which no other row is
published with the fits: without its file it cannot be checked.
"""
WITHOUT_EMBEDDINGS = ("cool_begin", "cool_end", "hot", "hot_100b+", "hot_120b+_only", "lr_ablation_hot")
VARIANTS = [*TABLES, *(f"{name}_no_embeds" for name in WITHOUT_EMBEDDINGS)]
FITS = [(delta, variant) for delta in (3, 4) for variant in VARIANTS]


def table_of(variant: str) -> tuple[Path, str, str, int]:
    """The file of losses, --columns, --where and the number of rows."""
    name, where, rows = TABLES[variant.removesuffix("_no_embeds")]
    columns = NO_EMBEDDINGS if variant.endswith("_no_embeds") else COLUMNS
    path = FOLDER / f"wandb_df_for_fitting_{name}.jsonl"
    if not path.exists() and name == "lr_ablation_hot_sampled_like_chinchilla":
        pytest.skip(f"{path.name} is not at hand, and its rows are in no other table")
    return path, columns, where, rows


def published(delta: int, variant: str) -> tuple[float, dict[str, float]]:
    """The published objective and parameters; scales and floor are published as logarithms."""
    path = FOLDER / f"parameters_delta-{delta}" / f"approach_3_parameters_grid_search_0_{variant}.json"
    one = {key: value["0"] for key, value in json.loads(path.read_text()).items()}
    (b, a), (beta, alpha) = one["coefficients"], one["exponents"]
    return one["loss"], {
        "A": np.exp(a),
        "alpha": alpha,
        "B": np.exp(b),
        "beta": beta,
        "E": np.exp(one["irreducible_error"]),
    }


def test_every_published_fit_is_covered():
    files = {
        (int(path.parent.name[-1]), path.stem) for path in FOLDER.glob("parameters_delta-*/approach_3_parameters_*")
    }
    assert files == {(delta, f"approach_3_parameters_grid_search_0_{variant}") for delta, variant in FITS}


@pytest.mark.parametrize(("delta", "variant"), FITS)
def test_no_published_objective_is_below_ours(delta, variant):
    """The published parameters on our rows give the published objective, so rows and columns are theirs."""
    path, columns, where, n = table_of(variant)
    law = replace(LAWS["chinchilla"], delta=10.0**-delta)
    data, *_ = select_inputs(path, law, columns, where)
    objective, values = published(delta, variant)
    theirs = float(huber(np.log(law.predict(values, data)) - np.log(data["loss"]), law.delta).sum())
    assert len(data["loss"]) == n
    assert theirs == pytest.approx(objective, abs=6e-11)  # printed to 10 decimals
    optimum = search(prepare(law, data, {}))
    assert optimum.converged
    assert optimum.objective <= min(objective, theirs)


def test_the_command_gives_the_same(tmp_path, capsys):
    """`upcycle fit` from the file to the JSON, where a published fit is 3 % above the optimum, and one just at it."""
    variant = "slim_chinchilla"
    for delta, most in ((4, 0.98), (3, 1.0)):
        path, columns, where, n = table_of(variant)
        out = tmp_path / f"{variant}.json"
        options = [
            "--columns",
            columns,
            "--where",
            where,
            "--delta",
            f"1e-{delta}",
            "--draws",
            "20",
            "--json",
            str(out),
        ]
        assert main(["fit", "--law", "chinchilla", "--csv", str(path), *options]) == 0
        content = json.loads(out.read_text())
        assert (content["n"], content["delta"]) == (n, 10.0**-delta)
        assert content["objective"] <= most * published(delta, variant)[0]
        assert content["statement"] in capsys.readouterr().out
