"""Any law to anyone's table: tables of the shapes that people publish, made up here from known laws."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from law_data import TRUTH

from upcycle.arguments import parser
from upcycle.cli import main
from upcycle.errors import UserError
from upcycle.laws import own_losses
from upcycle.laws.fit import fit, run_fit
from upcycle.laws.forms import LAWS, get_law
from upcycle.laws.result import read_fit
from upcycle.laws.solver.solve import huber

REPOSITORY = Path(__file__).parents[2]
REFERENCE = next((REPOSITORY / "results" / "reference").glob("default-*")) / "losses.csv"
TOKENS, SIZES = 1e9 * 2.0 ** np.arange(5), 5e7 * 3.0 ** np.arange(4)
RNG = np.random.default_rng(11)


def scratch(noise=1e-3):
    """A grid of (N, D) under Equation 3, with noise."""
    N, D = (axis.ravel() for axis in np.meshgrid(SIZES, TOKENS))
    loss = LAWS["chinchilla"].predict(TRUTH["chinchilla"], {"N": N, "D": D})
    return pd.DataFrame({"N": N, "D": D, "loss": loss * np.exp(noise * RNG.standard_normal(len(N)))})


DATA = scratch()


def run(*argv):
    """`upcycle fit` with these arguments; the fit that it wrote, if it did."""
    args = parser().parse_args(["fit", *map(str, argv)])
    own_losses.run_own_fit(args)
    return read_fit(args.json) if args.json else None


def own(tmp_path, table, columns=None, *, law="chinchilla", draws=0, name="t.csv", **options):
    """The fit to a table written to a file."""
    path = tmp_path / name
    table.to_csv(path, index=False)
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    given = ["--columns", columns] if columns else []
    base = ["--law", law, "--csv", path, "--draws", draws, "--json", tmp_path / "fit.json"]
    return run(*base, *given, *words)


def expected(data, law="chinchilla", **options):
    return fit(LAWS[law], {name: data[name].to_numpy(float) for name in data}, draws=0, **options)


def chinchilla_points():
    """The columns of the reconstructed points of Hoffmann et al."""
    pixels = {"x": RNG.uniform(0, 400, len(DATA)), "y": RNG.uniform(0, 400, len(DATA)), "color": "#faebdd"}
    flops = 6 * DATA["N"] * DATA["D"]
    return pd.DataFrame(
        {**pixels, "Model Size": DATA["N"], "Training FLOP": flops, "hex_color": "#faebdd", "loss": DATA["loss"]}
    )


def test_reconstructed_chinchilla_points(tmp_path, capsys):
    """Names with spaces, tokens from FLOPs; the JSON's top level holds what is promised, at full precision."""
    path, out = tmp_path / "points.csv", tmp_path / "fits" / "mine.json"
    chinchilla_points().to_csv(path, index=False)
    columns = "N=Model Size,D=Training FLOP/(6*N),loss=loss"
    code = main(
        ["fit", "--law", "chinchilla", "--csv", str(path), "--columns", columns, "--draws", "40", "--json", str(out)]
    )
    assert code == 0
    content = json.loads(out.read_text())
    assert {"law", "parameters", "objective", "delta", "n", "rms_log", "loo_rms", "intervals", "certificate"} < set(
        content
    )
    assert re.fullmatch("[0-9a-f]{64}", content["data_sha256"])
    assert content["version"]
    assert (content["law"], content["n"], content["delta"]) == ("chinchilla", 20, 1e-3)
    assert {"value", "unit"} <= set(content["parameters"]["A"])
    values = {name: entry["value"] for name, entry in content["parameters"].items()}
    N = chinchilla_points()["Model Size"].to_numpy()
    data = {"N": N, "D": (6 * DATA["N"] * DATA["D"]).to_numpy() / (6 * N)}
    residual = np.log(LAWS["chinchilla"].predict(values, data)) - np.log(DATA["loss"].to_numpy())
    assert content["objective"] == pytest.approx(huber(residual, 1e-3).sum(), rel=1e-12)
    assert content["rms_log"] == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-12)
    shown = capsys.readouterr().out
    assert content["statement"] in shown
    assert f"{values['alpha']:.6g}" in shown
    assert "D = Training FLOP/(6*N)" in shown


def test_c_over_6n_as_it_is_written_on_paper(tmp_path):
    table = DATA.assign(C=6 * DATA["N"] * DATA["D"]).rename(columns={"N": "params", "D": "tokens"})
    result = own(tmp_path, table, "N=params,D=C/(6N)")
    assert result.values == pytest.approx(expected(DATA).values, rel=1e-9)


def test_every_kind_of_file_gives_one_fit(tmp_path):
    """And one hash of the data."""
    DATA.to_csv(tmp_path / "t.csv", index=False)
    DATA.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    DATA.to_csv(tmp_path / "t.csv.gz", index=False)
    DATA.to_csv(tmp_path / "t.txt", index=False, sep=" ")
    DATA.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DATA.to_dict("records")))
    want = expected(DATA, ids=[str(k + 1) for k in range(len(DATA))])
    for name in ("t.csv", "t.tsv", "t.csv.gz", "t.txt", "t.parquet", "t.jsonl"):
        out = tmp_path / "fit.json"
        got = run("--law", "chinchilla", "--csv", tmp_path / name, "--draws", 0, "--json", out)
        assert (got.values, got.objective, got.data_sha256) == (want.values, want.objective, want.data_sha256)


def test_a_sweep_logged_as_json_lines(tmp_path):
    """As the Gemstones: sizes without embeddings by arithmetic, rows by a word in the run's name."""
    width = np.resize([256, 512], len(DATA))
    rows = [
        {"run_name": f"Model-{w}x8_pretrain", "width": int(w), "params": n + 50304 * w, "tokens": d, "final_loss": x}
        for w, n, d, x in zip(width, DATA["N"], DATA["D"], DATA["loss"], strict=True)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = "loss=final_loss,N=params-50304*width,D=tokens"
    base = ("--law", "chinchilla", "--csv", tmp_path / "t.jsonl", "--columns", columns, "--draws", 0)
    result = run(*base, "--where", "'512x' in run_name", "--delta", "1e-4", "--json", tmp_path / "fit.json")
    half = DATA[width == 512]
    law = replace(LAWS["chinchilla"], delta=1e-4)
    want = fit(law, {name: half[name].to_numpy() for name in half}, draws=0)
    assert (result.n, result.delta) == (10, 1e-4)
    assert result.objective == pytest.approx(want.objective, rel=1e-6)
    assert result.ids == [str(k + 1) for k in half.sort_values(["D", "N"]).index]


@pytest.mark.parametrize(("header", "columns"), [("D1 D2 loss\n", "D1=D1*1e9,D2=D2*1e9"), ("", None)])
def test_upcycled_losses_in_a_text_file_parted_by_spaces(tmp_path, header, columns):
    """In billions of tokens; with a header or with numbered columns."""
    D1, D2 = (axis.ravel() for axis in np.meshgrid(TOKENS, TOKENS))
    loss = LAWS["multiplicative"].predict(TRUTH["multiplicative"], {"D1": D1, "D2": D2})
    rows = "".join(f"{a / 1e9!r} {b / 1e9!r} {float(x)!r}\n" for a, b, x in zip(D1, D2, loss, strict=True))
    (tmp_path / "result.txt").write_text(header.replace("1e9", "") + re.sub(r"np\.float64\(([^)]*)\)", r"\1", rows))
    columns = columns or "D1=column1*1e9,D2=column2*1e9,loss=column3"
    base = ("--law", "multiplicative", "--csv", tmp_path / "result.txt", "--columns", columns)
    result = run(*base, "--draws", 0, "--json", tmp_path / "fit.json")
    assert result.values == pytest.approx(TRUTH["multiplicative"], rel=1e-6)


def test_routed_models_in_a_packed_file(tmp_path):
    """As Clark et al.: a csv.gz of curves, with the sparsity from counts, and the last step of each."""
    P, N2 = (axis.ravel() for axis in np.meshgrid([1.5, 2.3, 3.7, 6.0], SIZES))
    loss = LAWS["configuration"].predict(TRUTH["configuration"], {"P": P, "N2": N2})
    table = pd.DataFrame({"total params": P * N2, "active": N2, "step": 250_000, "loss_validation": loss})
    table = pd.concat([table.assign(step=1000, loss_validation=9.0), table])
    (tmp_path / "curves.csv.gz").write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    columns = "N2=active,P=total params/active,loss=loss_validation"
    base = ("--law", "configuration", "--csv", tmp_path / "curves.csv.gz", "--columns", columns)
    result = run(*base, "--where", "step == 250_000", "--draws", 0, "--json", tmp_path / "fit.json")
    assert result.n == 16
    assert result.values == pytest.approx(TRUTH["configuration"], rel=1e-6)


def test_a_law_of_another_laws_parameters(tmp_path):
    table = pd.DataFrame({"D1": TOKENS, "alpha": 0.5 - 0.03 * np.log(TOKENS)})
    result = own(tmp_path, table, "minus_alpha=-alpha", law="exponent_vs_d1")
    assert result.values == pytest.approx({"gamma": 0.03, "E_prime": -0.5}, rel=1e-9)
    assert result.delta is None


@pytest.mark.parametrize("law", LAWS)
def test_every_laws_columns_are_found(tmp_path, law):
    """Inputs and response by their names, or by arithmetic; nothing else of the table."""
    names = (*LAWS[law].inputs, LAWS[law].response)
    table = pd.DataFrame(RNG.uniform(1, 2, (4, len(names))), columns=names).assign(other=1.0)
    table.to_csv(tmp_path / "t.csv", index=False)
    data, *_ = own_losses.select_inputs(tmp_path / "t.csv", LAWS[law], f"{names[0]}=other*{names[0]}", "")
    assert list(data) == list(names)
    for name in names:
        np.testing.assert_array_equal(data[name], table[name])


def test_names_are_evaluated_in_order_and_may_shadow_columns(tmp_path):
    """The right side is the file's until the name is given anew; conditions see what was given."""
    table = DATA.assign(N=DATA["N"] / 1e6, D=DATA["D"] / 1e9)
    result = own(tmp_path, table, "N=N*1e6,D=D*1e9,tokens=D,D=tokens", where="D >= 2e9 and N > 1e6")
    assert result.box["D"] == [2e9, 16e9]
    assert result.n == 16


@pytest.mark.parametrize(
    ("cells", "columns", "where", "words"),
    [
        ({3: None}, None, "", r'row 4: column `loss` has no value.*--where "notna\(loss\)"'),
        ({3: None, 7: None}, None, "", r"row 4 \(and 1 more\)"),
        ({3: None}, "loss=2*loss", "D > 0", r"row 4: column `loss` has no value"),
        ({5: "diverged"}, None, "", r"row 6: column `loss` holds 'diverged'.*--where \"loss != 'diverged'\""),
        ({5: "diverged"}, "x=loss,loss=x/2", "", r"row 6: column `loss` holds 'diverged'"),
        (dict.fromkeys(range(20), "1,000"), None, "", r"`loss` holds words in every row, such as '1,000'"),
        ({5: "inf"}, None, "", r"row 6: column `loss`"),
        ({}, "loss=log(loss-loss)", "", r"row 1 \(and 19 more\): loss = log\(loss-loss\) is no finite number"),
        ({}, "n=N,N=1/(n-n)", "", r"N = 1/\(n-n\) is no finite number \(n = 5"),
    ],
)
def test_a_row_without_a_number_is_named_with_the_mend(tmp_path, cells, columns, where, words):
    table = DATA.astype({"loss": object})
    for row, cell in cells.items():
        table.loc[row, "loss"] = cell
    with pytest.raises(UserError, match=words):
        own(tmp_path, table, columns, where=where)


def test_the_mends_mend(tmp_path):
    table = DATA.astype({"loss": object})
    table.loc[3, "loss"], table.loc[5, "loss"] = None, "diverged"
    result = own(tmp_path, table, where="notna(loss) and loss != 'diverged'")
    assert result.n == 18
    assert "where notna(loss) and loss != 'diverged'" in result.selection


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"columns": "N=params"}, r"--columns N=params: .*no column `params`.*columns: N, D, loss"),
        ({"columns": "N=Ns"}, r"did you mean `N`\? columns"),
        ({"columns": "N"}, r"write NAME=EXPR"),
        ({"columns": "N==2"}, r"write NAME=EXPR"),
        ({"columns": "lineage='upcycled'"}, r"'upcycled' is not one of dense, moe, up"),
        ({"law": "power"}, r"law `power` .* needs `D2`: give it as --columns D2=EXPR; did you mean `D`"),
        ({"law": "chincilla"}, r"chinchilla"),
        ({"where": "D > 1e99"}, r"no row of 20 is left where D > 1e99"),
        ({"where": "D >> 2"}, r"--where"),
        ({"fix": "E"}, r"write NAME=VALUE"),
        ({"fix": "E=low"}, r"`low` is neither a number nor a fit"),
        ({"fix": "E=none.json"}, r"none.json"),
        ({"fix": "alpha=fit.json"}, r"only E can be held"),
        ({"fix": "E=nan"}, r"finite"),
        ({"fix": "F=1"}, r"no parameter `F`"),
        ({"delta": "0"}, r"above 0"),
        ({"shared": "E"}, r"without --by"),
        ({"by": "size"}, r"needs `size`"),
        ({"draws": "-1"}, r"at least 0"),
        ({"columns": "loss=-loss"}, r"t.csv: .*logarithm of `loss`"),
        ({"columns": "D=0*D"}, r"t.csv: .*logarithms of its inputs"),
    ],
)
def test_bad_input_is_named(tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        own(tmp_path, DATA, **options)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["mine", "--law", "chinchilla"], "give one kind"),
        (["--law", "chinchilla"], "needs both"),
        (["--csv", "t.csv"], "needs both"),
        (["--law", "chinchilla", "--csv", "no-such.csv"], "no-such.csv: No such file"),
    ],
)
def test_missing_arguments_are_named(capsys, argv, words):
    assert main(["fit", *argv]) == 2
    assert words in capsys.readouterr().err


def test_parameters_can_be_held(tmp_path):
    result = own(tmp_path, DATA, fix="E=1.2,alpha=0.3")
    assert result.fixed == {"E": 1.2, "alpha": 0.3}
    assert result.values == expected(DATA, fixed={"E": 1.2, "alpha": 0.3}).values | {"E": 1.2, "alpha": 0.3}


def test_e_of_another_fit_is_held_with_its_uncertainty(tmp_path):
    first = own(tmp_path, DATA, draws=30, name="first.csv")
    (tmp_path / "fit.json").rename(tmp_path / "first.json")
    D1, D2 = (axis.ravel() for axis in np.meshgrid(TOKENS, TOKENS))
    loss = LAWS["multiplicative"].predict(TRUTH["multiplicative"] | {"E": 1.2}, {"D1": D1, "D2": D2})
    table = pd.DataFrame({"D1": D1, "D2": D2, "loss": loss * np.exp(1e-3 * RNG.standard_normal(25))})
    result = own(tmp_path, table, law="multiplicative", draws=30, fix=f"E={tmp_path / 'first.json'}")
    assert result.values["E"] == first.values["E"]
    assert result.draws["E"] == first.draws["E"]
    assert result.floor["data_sha256"] == first.data_sha256
    (tmp_path / "fit.json").rename(tmp_path / "no_e.json")
    other = own(tmp_path, pd.DataFrame({"D1": TOKENS, "A": 1 / TOKENS}), law="scale_vs_d1")
    assert "E" not in other.parameters
    with pytest.raises(UserError, match="shares no E"):
        own(tmp_path, DATA, fix=f"E={tmp_path / 'fit.json'}")


def mixed():
    """Dense models and MoEs with one E, a moved A."""
    rows = []
    for lineage, factor, experts in (("dense", 1.0, 1), ("moe", 0.8, 8)):
        values = TRUTH["chinchilla"] | {"A": factor * TRUTH["chinchilla"]["A"]}
        loss = LAWS["chinchilla"].predict(values, {"N": DATA["N"].to_numpy(), "D": DATA["D"].to_numpy()})
        rows.append(DATA.assign(loss=loss, lineage=lineage, n_expert=experts, top_k=min(experts, 2)))
    return pd.concat(rows, ignore_index=True)


def test_groups_share_what_they_are_told_to(tmp_path):
    """Dense models and MoEs from scratch with one E, told apart for the advice."""
    result = own(tmp_path, mixed(), by="lineage", shared="E")
    assert result.shared == ["E"]
    assert result.values["E"] == pytest.approx(1.2, rel=1e-6)
    dense, moe = result.groups
    assert (dense["lineage"], dense["n_expert"], dense["top_k"]) == ("dense", 1, 1)
    assert (moe["lineage"], moe["n_expert"], moe["top_k"]) == ("moe", 8, 2)
    assert moe["parameters"]["A"]["value"] == pytest.approx(0.8 * 900, rel=1e-5)
    assert dense["box"]["N1"] == [SIZES[0], SIZES[-1]]
    assert result.lineage is None
    with pytest.raises(UserError, match="without --by"):
        own(tmp_path, mixed(), by="lineage", fix=f"E={tmp_path / 'fit.json'}")


def test_what_the_rows_are_comes_from_the_table_or_from_columns(tmp_path, capsys):
    table = own(tmp_path, mixed(), where="lineage == 'moe'")
    assert (table.lineage, table.n_expert, table.top_k) == ("moe", 8, 2)
    told = own(tmp_path, DATA, "lineage='dense',n_expert=1,top_k=1,N1=N")
    assert (told.lineage, told.n_expert, told.top_k) == ("dense", 1, 1)
    assert told.box["N1"] == [SIZES[0], SIZES[-1]]
    assert "lineage not known" not in capsys.readouterr().out
    narrow = own(tmp_path, DATA, "lineage='moe',n_expert=32,top_k=8,granularity=4,N1=N")
    assert (narrow.lineage, narrow.n_expert, narrow.top_k) == ("moe", None, None)
    untold = own(tmp_path, DATA)
    assert (untold.lineage, untold.n_expert, untold.top_k) == (None, None, None)
    assert "lineage not known" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "where"),
    [("chinchilla", "lineage == 'dense'"), ("multiplicative", "lineage == 'up'"), ("unified", "role == 'decay'")],
)
def test_this_projects_own_losses(tmp_path, law, where):
    """losses.csv needs no --columns, derived inputs included; the fit is the study's."""
    base = ("--law", law, "--csv", REFERENCE, "--where", where, "--draws", 0)
    got = run(*base, "--json", tmp_path / "fit.json")
    rows = pd.read_csv(REFERENCE).query(where)
    assert got.n == len(rows)
    want = run_fit(REFERENCE, law=law, select={"where": where}, out=tmp_path / "study.json")
    assert (got.objective, got.values) == (
        want["objective"],
        {name: entry["value"] for name, entry in want["parameters"].items()},
    )


def test_simulated_losses_stay_marked(tmp_path):
    table = pd.read_csv(REFERENCE).assign(simulated=1).query("lineage == 'dense'")
    assert own(tmp_path, table).simulated


def test_methods_are_not_mixed_in_one_fit(tmp_path):
    """Of a losses.csv, as in a study: refused with the condition that chooses; by method there is a fit of each."""
    table = pd.read_csv(REFERENCE).query("lineage == 'up'")
    table.loc[table.index[::2], "method"] = "drop"
    with pytest.raises(UserError, match=r"t\.csv: upcycled models of several methods, .*method == 'copy'"):
        own(tmp_path, table, law="power", by="D1")
    assert own(tmp_path, table, law="power", by="method").n == len(table)


def test_draws_are_as_many_as_asked_for(tmp_path):
    result = own(tmp_path, DATA, draws=17)
    assert {len(column) for column in result.draws.values()} == {17}
    assert set(result.draws) == set(get_law("chinchilla").names)
