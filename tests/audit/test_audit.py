"""The audit of the paper's numbers: golden values, every known slip, verdicts by arithmetic, nothing typed in."""

import argparse
import json
import math
import re
import shutil
from pathlib import Path

import pytest

from upcycle.audit import printed
from upcycle.audit import verdict as audit_verdict
from upcycle.audit.audit import all_items, as_json, collect_items, counts, items_table, page, run_audit, verdict_counts
from upcycle.audit.verdict import VERDICTS, Evidence, Texts, box, reading
from upcycle.cli import main
from upcycle.decisions.published import TABLE_2
from upcycle.errors import UserError
from upcycle.paper.tables_audit import audit
from upcycle.workflow.dag import list_products
from upcycle.workflow.invocation import read_workflow

ROOT = Path(__file__).parents[2]
LOST = "cannot be recomputed without the losses"
FOLLOWS = "not printed, follows"


@pytest.fixture(scope="module")
def topics():
    return collect_items()


@pytest.fixture(scope="module")
def items(topics):
    found = all_items(topics)
    return {item.label: item for item in found}


def agrees(value: float, golden: str) -> bool:
    """Whether a value rounds to all printed digits of a golden one."""
    digits = len(golden.lstrip("-0.").split("e")[0].replace(".", "").lstrip("0"))
    return float(f"{value:.{digits - 1}e}") == pytest.approx(float(golden), rel=1e-9)


# Verdicts.


def texts(**words: str) -> Texts:
    """A topic with one item of these words."""
    return Texts({"item": words})


@pytest.mark.parametrize(
    ("text", "value", "allowed", "verdict"),
    [
        ("0.035", 0.0353553, None, "reproduced"),
        ("0.035", 0.0355001, None, "slip"),
        ("0.035", 0.0355, None, "within rounding"),  # a tie: rounds to the even 0.036, half a unit away
        ("4", 3.02, (0.5, 30.0), "within rounding"),
        ("4", 3.02, (2.9, 3.4), "slip"),
        ("4", 3.02, (2.9, 3.6), "within rounding"),  # the box of 4 begins at 3.5
        ("1.08e18", 1.0752e18, None, "reproduced"),
        ("1.08e18", 1.101e21, None, "slip"),
        ("14,751,680", 14_751_680, None, "reproduced"),
        ("14,751,680", 14_751_681, None, "slip"),
        ("4.9e3", 4912.3, None, "reproduced"),
        ("4.9e3", 5024.5, None, "slip"),
        ("-0.7", -0.6945, None, "reproduced"),
        ("10.5", math.nan, (1.0, 2.0), "slip"),
    ],
)
def test_a_number_is_judged_by_its_digits(text, value, allowed, verdict):
    assert texts().number("item", value, text, allowed=allowed).verdict == verdict


def test_a_slip_always_says_what_is_right():
    assert texts(unit="B").number("item", 7.0, "4").remark == "printed 4B, right is 7B"
    assert texts(remark="because").number("item", 7.0, "4").remark == "because"
    assert texts().claim("item", False).remark


def test_a_statement_is_judged_by_whether_it_holds():
    assert texts().claim("item", True, under_rounding=True).verdict == "reproduced"
    assert texts().claim("item", False, under_rounding=True).verdict == "within rounding"
    assert texts().claim("item", False).verdict == "slip"


def test_settings_compare_numbers_as_numbers_and_text_as_text():
    same = texts().settings("item", {"a": "1,024", "b": "8e-3", "c": "(4,1)"}, {"a": 1024, "b": 0.008, "c": "(4,1)"})
    assert (same.verdict, same.count) == ("reproduced", 3)
    other = texts().settings("item", {"a": "1,024", "b": "8e-3"}, {"a": 1024, "b": 0.007})
    assert (other.verdict, other.recomputed) == ("slip", "b 0.007")
    assert texts().settings("item", {"a": "1"}, {}).verdict == "slip"


def test_another_reading_is_no_verdict_on_the_paper():
    item = reading(texts().number("item", 6.1441e17, "6.14e17"))
    assert (item.verdict, item.printed, item.remark) == (FOLLOWS, "", "as printed: 6.14e17")
    assert reading(texts(printed="so").claim("item", False)).remark.startswith("not as printed: so")


def test_the_box_of_rounding_is_that_of_the_corners():
    assert box(lambda a, b: a - b, "0.20", "1") == pytest.approx((0.195 - 1.5, 0.205 - 0.5))


# Golden values: those that the specification and the audit of the text state.

GOLDEN = [
    ("Section 5.2, exponent 1.8 by convention of units", "natural, tokens", "1.795"),
    ("Section 5.2, exponent 1.8 by convention of units", "log10", "1.490"),
    ("Section 5.2, exponent 1.8 by convention of units", "log2", "2.138"),
    ("Section 5.2, exponent 1.8 by convention of units", "D in M", "1.525"),
    ("Section 5.2, exponent 1.8 by convention of units", "D in B", "1.419"),
    ("Section 5.2, power of N1 in D2 at D1 = 2T", "value", "1.7949"),
    ("Section 5.1, D* at N1 = 1e9 by convention of units (B tokens)", "log2", "0.024"),
    ("Equation 2, coefficient of the logarithm", "value", "0.0385"),
    ("Equation 2 over Equation 13", "at N1 = 1e9", "1.32"),
    ("Figure 1 right, D* at N1 = 5.219e8 (B tokens)", "D*", "5.35"),
    ("Figure 1 right, D* at N1 = 1e9 (B tokens)", "D*", "3.0225"),
    ("Figure 1 right, D* at N1 = 7e9 (B tokens)", "D*", "0.880"),
    ("Figure 1 right, D* at N1 = 7e10 (B tokens)", "D*", "0.308"),
    ("Figure 1 right, D* at N1 = 1e9 (B tokens)", "second root", "536"),
    ("Figure 1 right, D* at N1 = 7e9 (B tokens)", "second root", "4.64e3"),
    ("Figure 1 right, smallest N1 with any D*", "N1", "2.149e8"),
    ("Equation 2 at N1 = 1e8, a solution of Equation 13", "Equation 2 (B tokens)", "25"),
    ("Table 2, upcycled alpha1: D* at N1 = 1e9 (B tokens)", "from", "1.39"),
    ("Table 2, upcycled alpha1: D* at N1 = 1e9 (B tokens)", "to", "10.5"),
    ("Table 2, upcycled alpha2: D* at N1 = 1e9 (B tokens)", "from", "1.39"),
    ("Table 2, upcycled alpha2: D* at N1 = 1e9 (B tokens)", "to", "10.5"),
    ("Table 2, moe beta: D* at N1 = 1e9 (B tokens)", "from", "1.56"),
    ("Table 2, moe beta: D* at N1 = 1e9 (B tokens)", "to", "9.29"),
    ("Table 2, moe alpha: D* at N1 = 1e9 (B tokens)", "from", "1.75"),
    ("Table 2, moe alpha: D* at N1 = 1e9 (B tokens)", "to", "5.92"),
    ("Table 2, upcycled beta: D* at N1 = 1e9 (B tokens)", "from", "1.94"),
    ("Table 2, upcycled beta: D* at N1 = 1e9 (B tokens)", "to", "5.42"),
    ("Figure 6, what its RMS of 0.015 does to D* at N1 = 1e9 (B tokens)", "slope (nats per ln D)", "-0.0175"),
    ("Figure 6, what its RMS of 0.015 does to D* at N1 = 1e9 (B tokens)", "factor", "2.36"),
    ("Figure 6, what its RMS of 0.015 does to D* at N1 = 1e9 (B tokens)", "gap plus 0.015", "10.7"),
    ("Section 5.1, smallest gap L_moe - L_upcycled at N1 = 1e9", "nats", "-0.0185"),
    ("Section 5.1, smallest gap L_moe - L_upcycled at N1 = 1e9", "at D (B tokens)", "31"),
    ("Section 5.1, smallest gap L_moe - L_upcycled at N1 = 0.1B", "nats", "0.007"),
    ("Section A.10, FLOPs, dense", "value", "6.292e20"),
    ("Section A.10, FLOPs, MoE", "value", "1.101e21"),
    ("Section A.10, FLOPs, upcycled MoE", "value", "5.505e21"),
    ("Section A.10, FLOPs with N2 counted exactly", "upcycled", "5.506e21"),
    ("Section A.10, FLOPs, dense, D in sequences", "value", "6.144e17"),
    ("Section A.10, FLOPs, MoE, D in sequences", "value", "1.075e18"),
    ("Section A.10, FLOPs, upcycled MoE, D in sequences", "value", "5.376e18"),
    ("Section A.10, the same times 1,000", "value", "4912"),
    ("Section A.10, cosine against one trunk", "value", "1.94"),
    ("Section A.10, cosine against trunk and decays", "value", "1.77"),
    ("Tables 4 and 5, largest budgets (B tokens)", "15M", "2.307"),
    ("Tables 4 and 5, largest budgets (B tokens)", "44M", "4.614"),
    ("Tables 4 and 5, largest budgets (B tokens)", "0.1B", "9.227"),
    ("Tables 4 and 5, largest budgets (B tokens)", "0.2B", "18.455"),
    ("Tables 4 and 5, largest budgets (B tokens)", "0.5B", "36.910"),
    ("Tables 4 and 5, largest budgets (B tokens)", "1B", "73.820"),
    ("Section 4.1, budgets of 0.1B (B tokens)", "1", "0.577"),
    ("Section 4.1, budgets of 0.1B (B tokens)", "2", "1.153"),
    ("Figure 8, tokens of the dense model", "value", "2.10"),
    ("Tables 3 and 5, largest tokens per parameter", "1B", "68"),
    ("Table 2, loss with endless tokens at N1 = 1e9", "upcycled", "1.002"),
    ("Table 2, loss with endless tokens at N1 = 1e9", "dense", "1.276"),
    ("Table 2, loss with endless tokens at N1 = 1e9", "MoE", "1.508"),
    ("Requirement 4, the numbers", "upcycled", "7.06"),
    ("Requirement 4, the numbers", "dense", "2.44"),
    ("Requirement 4, the numbers", "D2 where they meet", "2.35e9"),
    ("Requirement 4, the numbers", "of D1", "0.24"),
    ("Table 8, (8,2), exponent of D2 at D1 = 2.3B", "exponent", "0.0275"),
    ("Table 8, (8,2), exponent of D2 at D1 = 2.3B", "half-width by rounding", "0.016"),
    ("Table 8, (4,2), exponent of D2 at D1 = 2.3B", "exponent", "0.0275"),
    ("Table 8, (4,1), exponent of D2 at D1 = 2.3B", "exponent", "0.074"),
    ("Table 8, (4,1), exponent of D2 at D1 = 2.3B", "half-width by rounding", "0.113"),
    ("Table 8, (8,1), exponent of D2 at D1 = 2.3B", "exponent", "0.084"),
    ("Table 8, (8,1), exponent of D2 at D1 = 2.3B", "half-width by rounding", "0.113"),
    ("Tables 2 and 8, α3", "ratio", "10"),
    ("Section F.3, constants at D1 = 2T", "α_eff", "0.0623973"),
    ("Section F.3, constants at D1 = 2T", "G", "1.3271005e-3"),
    ("Section F.3, constants at D1 = 2T", "a", "0.6422117"),
    ("Section 5.2, compute-optimal upcycling of Llama2-7B", "D2", "4.267e9"),
    ("Section 5.2, compute-optimal upcycling of Llama2-7B", "C2", "3e20"),
    ("Section 5.2, compute-optimal upcycling of Llama2-13B", "D2", "1.296e10"),
    ("Section 5.2, compute-optimal upcycling of Llama2-70B", "D2", "2.661e11"),
    ("Figure 16, compute-optimal models at 1e21 FLOPs", "dense N", "1.04e10"),
    ("Figure 16, compute-optimal models at 1e21 FLOPs", "dense D", "1.6e10"),
    ("Figure 16, compute-optimal models at 1e21 FLOPs", "tokens per parameter", "1.5"),
    ("Figure 16, compute-optimal models at 1e21 FLOPs", "MoE N1", "2.3e9"),
    ("Figure 16, compute-optimal models at 1e21 FLOPs", "MoE D", "4.15e10"),
    ("Section 5.1, tokens from scratch that match D1 = 1B, D2 = 10B at N1 = 1e9", "B tokens", "5.1"),
    ("Section 5.1, tokens from scratch that match D1 = 1B, D2 = 10B at N1 = 1e9", "of D2", "0.51"),
    *(("Section 5.1, D2 above which from scratch on D2 tokens is ahead, N1 = 1e9 (B tokens)", f"D1 = {d1}B", golden)
      for d1, golden in (("1", "1.5"), ("10", "7.1"), ("100", "51"))),
    *(("Section 5.1, D2 above which from scratch on D2 tokens is ahead, N1 = 7e9 (B tokens)", f"D1 = {d1}B", golden)
      for d1, golden in (("1", "0.95"), ("10", "3.9"), ("74", "15"), ("100", "19"), ("1,000", "1.6e2"),
                         ("2,000", "3.8e2"))),
    ("Section 5.1, Komatsuzaki et al., share of the sunk cost", "value", "120"),
    ("Section 4.2, models", "runs", "48"),
    *(("Section A.2, the same as d_model / n_layer", name, golden) for name, golden in
      (("15M", "35.6"), ("44M", "40"), ("0.1B", "42.7"), ("0.2B", "39.6"), ("0.5B", "43.1"), ("1B", "50.1"))),
    *(("Table 3, head dimensions", name, golden) for name, golden in
      (("15M", "80"), ("44M", "60"), ("0.1B", "80"), ("0.2B", "104"), ("0.5B", "70"), ("1B", "94"))),
    *((f"Table 5, {name}, init. size", "value", golden) for name, golden in
      (("15M", "0.0354"), ("44M", "0.0289"), ("0.1B", "0.025"), ("0.2B", "0.0219"), ("0.5B", "0.0189"),
       ("1B", "0.0163"))),
    *(("Table 5, warm-up (M tokens)", name, golden) for name, golden in
      (("15M", "26"), ("44M", "52"), ("0.1B", "105"), ("0.2B", "210"), ("0.5B", "419"), ("1B", "839"))),
    *(("Section A.5, the same in tokens", name, golden) for name, golden in
      (("15M", "1.78"), ("0.1B", "1.07"), ("0.2B", "0.90"), ("0.5B", "0.80"), ("1B", "0.77"))),
    *(("Section A.3, factor of the balance loss, any mixture", name, golden) for name, golden in
      (("4x2", "2"), ("4x1", "4"), ("8x1", "8"), ("8x2", "4"), ("32x1", "32"))),
]  # fmt: skip


@pytest.mark.parametrize(("label", "name", "golden"), GOLDEN, ids=lambda value: str(value)[:40])
def test_golden_values(items, label, name, golden):
    assert agrees(items[label].values[name], golden), items[label].values


def test_golden_values_that_the_audit_states_loosely(items):
    """Cut, not rounded, or of other random draws."""
    rms = items["Figure 6, what its RMS of 0.015 does to D* at N1 = 1e9 (B tokens)"]
    assert rms.values["gap less 0.015"] == pytest.approx(1.48, abs=0.01)
    assert math.floor(items["Section A.10, GPU-hours"].values["value"]) == 5024
    at_1e9 = items["Section 5.1, D2 above which from scratch on D2 tokens is ahead, N1 = 1e9 (B tokens)"]
    assert math.floor(at_1e9.values["D1 = 74B"]) == 37
    assert math.isnan(at_1e9.values["D1 = 1,000B"])
    assert items["Section A.5, the same in tokens"].values["44M"] == pytest.approx(1.18, abs=0.006)
    assert items["Equation 2, exponent"].values["value"] == pytest.approx(-0.694, abs=0.001)
    assert 2.9 < items["Equation 2, prefactor"].values["value"] < 3.1
    ratios = items["Equation 2 over Equation 13"].values
    assert all(1.32 <= ratio <= 1.39 for name, ratio in ratios.items() if name != "at N1 = 5.219e8")
    drawn = items["Section 5.1, D* at N1 = 1e9 within rounding (B tokens)"].values
    assert drawn["median"] == pytest.approx(2.57, rel=0.05)
    assert drawn["2.5 %"] == pytest.approx(0.74, rel=0.1)
    assert drawn["97.5 %"] == pytest.approx(16.2, rel=0.15)
    assert drawn["share of them at 4B or more"] == pytest.approx(0.31, abs=0.03)
    assert drawn["share without any"] == pytest.approx(0.13, abs=0.02)
    for name in ("A", "B", "alpha3"):
        moved = items[f"Table 2, upcycled {name}: D* at N1 = 1e9 (B tokens)"].values
        assert 2.3 < moved["from"] < 3.0225 < moved["to"] < 4
    unmoved = [items[f"Table 2, {name}: D* at N1 = 1e9 (B tokens)"] for name in ("all E", "dense A", "dense beta")]
    assert all(item.values["from"] == pytest.approx(item.values["to"], rel=1e-9) for item in unmoved)
    five_decimals = items["Table 2, change of one exponent that moves D* at N1 = 1e9 by 5 %"].values
    assert all(1e-5 < change < 1e-4 for change in five_decimals.values())
    shares = items["Section 5.1, D* at N1 = 1e9 by convention of units (B tokens)"].values
    assert math.isnan(shares["log10"])


# What is known of the text.

SLIPS = [
    "Section A.2, ratio n_layer / d_model",
    "Section A.5, warm-up steps against model size",
    "Equation 15, text",
    "Section A.3, factor of the balance loss, any mixture",
    "Figure 8, LR at the end of dense training",
    "Section A.10, FLOPs, dense",
    "Section A.10, FLOPs, MoE",
    "Section A.10, FLOPs, upcycled MoE",
    "Section A.10, GPU-hours",
    "Section F.3, last exponent of D2_opt",
    "Section D.1, exponents β1 of N2 and β2 of P",
    "Section E.2, Equation 19 as fitted predicts a loss that increases with dataset and model sizes",
    "Section C.3, logarithm of the first term of Equation 8",
    "Equation 10 put into Equation 7",
    "Requirement 2, the numbers",
    "Requirement 4, the numbers",
    "Sections 1 and 5.1, Figure 1: from scratch is more efficient for all budgets above D*",
]
WITHIN = [
    "Equation 2, prefactor",
    "Equation 13, D* of an 8x1B model (section 5.1)",
    "Equation 2 at N1 = 1e8, a solution of Equation 13",
    "Section 4.1.1, at fixed D2 a larger D1 gives a lower loss, by Table 8",
]


def test_the_slips_are_those_that_are_known(items):
    assert sorted(label for label, item in items.items() if item.verdict == "slip") == sorted(SLIPS)
    assert all(items[label].remark for label in SLIPS)


def test_only_numbers_make_a_slip(items):
    """A comparison of words that are both typed in here cannot fail: such slips are in docs/paper.md, not here."""
    assert [label for label, item in items.items() if item.verdict == "slip" and not item.values] == []


def test_what_rounding_explains(items):
    assert sorted(label for label, item in items.items() if item.verdict == "within rounding") == sorted(WITHIN)


def test_every_table_and_equation_is_accounted_for(topics):
    text = " ".join(f"{item.label} {item.source}" for item in all_items(topics) if item.verdict != FOLLOWS)
    named = set(re.findall(r"(?:Equation|Table|Requirement) \d+", text))
    plural = {f"{kind} {n}" for kind, *both in re.findall(r"(Equation|Table)s (\d+) and (\d+)", text) for n in both}
    expected = {f"Equation {n}" for n in range(1, 20)} | {f"Table {n}" for n in range(1, 9)}
    expected |= {f"Requirement {n}" for n in range(1, 5)}
    assert expected - named - plural == set()


def test_every_cell_of_the_tables_is_counted(topics):
    cells: dict[str, int] = {}
    for item in all_items(topics):
        match = re.match(r"(Table \d)", item.label)
        if match and item.verdict != FOLLOWS and "lowest in each" not in item.label:
            cells[match[1]] = cells.get(match[1], 0) + item.count
    blanks = sum(cell == "-" for row in printed.TABLE_7.values() for cell in row)
    assert cells == {
        "Table 1": 16,
        "Table 2": 14 + 1,  # and E
        "Table 3": 6 * 5,
        "Table 4": 7,  # the optimizer is a word: comparing it with another typed word cannot fail
        "Table 5": 6 * 6,
        "Table 6": 4,
        "Table 7": 4 * 8 - blanks + 2,  # and two token counts
        "Table 8": 12,
    }


def test_every_entry_of_the_words_is_used():
    for path in sorted((ROOT / "src" / "upcycle" / "audit" / "items").glob("*.yaml")):
        code = path.with_suffix(".py").read_text()
        unused = [key for key in Texts.of(path.stem).entries if f'"{key}"' not in code]
        assert unused == [], path.name


def test_labels_are_unique(topics):
    labels = [item.label for item in all_items(topics)]
    assert len(labels) == len(set(labels))


# Nothing is typed in: what is printed decides.


@pytest.mark.slow
def test_another_printed_exponent_changes_verdicts(monkeypatch, items):
    monkeypatch.setitem(TABLE_2["upcycled"], "alpha2", "0.095")
    changed = {item.label: item for item in all_items(collect_items(Evidence.read(draws=50)))}
    assert changed["Section 5.2, power of N1 in D2 at D1 = 2T"].verdict == "slip"
    moved = [label for label, item in items.items() if changed[label].values != item.values]
    assert "Figure 1 right, smallest N1 with any D*" in moved
    assert "Section F.3, constants at D1 = 2T" in moved
    assert len(moved) > 25


@pytest.mark.parametrize(
    ("table", "row", "cell", "text", "label"),
    [
        (printed.TABLE_3, "44M", "N_dense", "44,248,801", "Table 3, 44M, N_dense"),
        (printed.TABLE_3, "44M", "n_head", "6", "Table 3, 44M, shape"),
        (printed.TABLE_5, "1B", "init", "0.017", "Table 5, 1B, init. size"),
        (printed.TABLE_5, "15M", "max", "17,601", "Table 5, 15M"),
    ],
)
def test_another_printed_cell_is_a_slip(monkeypatch, table, row, cell, text, label):
    monkeypatch.setitem(table[row], cell, text)
    evidence = Evidence.read(draws=50)
    from upcycle.audit.items.models import models_items as models
    from upcycle.audit.items.training import training_items as training

    found = {item.label: item.verdict for item in [*models(evidence), *training(evidence)]}
    assert found[label] == "slip"


def test_other_tables_of_results_change_what_is_said_of_them(monkeypatch):
    from upcycle.audit.items.tables import tables_items as tables

    monkeypatch.setitem(printed.TABLE_1, "Add.", ("0.0165", "0.0080", "0.0167", "0.0093"))
    monkeypatch.setitem(printed.TABLE_7, "1B", (*printed.TABLE_7["1B"][:-1], "49.97"))
    monkeypatch.setitem(printed.EQUATION_19, "alpha3", "0.008")
    found = {item.label: item.verdict for item in tables(Evidence.read(draws=0))}
    assert found["Table 1, multiplicative with interaction is lowest in each column"] == "slip"
    assert found["Table 7, 1B, mean"] == "slip"
    label = "Section E.2, Equation 19 as fitted predicts a loss that increases with dataset and model sizes"
    assert found[label] == "reproduced"


def test_without_its_repository_the_audit_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(audit_verdict, "STUDY", tmp_path / "paper.yaml")
    with pytest.raises(UserError, match=r"config/paper\.yaml"):
        collect_items()


# The command.


def test_the_summary_counts_items(topics):
    found = all_items(topics)
    by_verdict = counts(found)
    assert tuple(by_verdict) == VERDICTS
    assert sum(by_verdict.values()) == len(found)
    line = verdict_counts(found)
    assert f"{by_verdict['slip']} slips" in line
    assert line.startswith(f"{len(found) - by_verdict[FOLLOWS]} items, ")


def test_json_is_strict_and_holds_every_item(topics):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    data = json.loads(as_json(topics), parse_constant=refuse)
    assert len(data["items"]) == len(all_items(topics))
    assert data["counts"] == counts(all_items(topics))
    of_losses = {"recomputed from a part of the losses"}  # with `--losses` alone
    assert {item["verdict"] for item in data["items"]} == set(VERDICTS) - of_losses
    star = next(item for item in data["items"] if item["label"].startswith("Equation 13"))
    assert star["values"]["value"] == pytest.approx(3.0225, abs=5e-5)
    assert star["allowed"][0] < 4 < star["allowed"][1]


def arguments(**given):
    return argparse.Namespace(**{"json": False, "all": False, "out": None, "losses": None, **given})


def test_the_command_prints_what_does_not_simply_hold(topics, monkeypatch, capsys):
    monkeypatch.setattr("upcycle.audit.audit.collect_items", lambda losses: topics)
    run_audit(arguments())
    text = capsys.readouterr().out
    assert all(label in text for label in SLIPS + WITHIN)
    assert "REPRODUCED" not in text
    assert text.rstrip().endswith(verdict_counts(all_items(topics)))
    run_audit(arguments(all=True))
    everything = capsys.readouterr().out
    assert all(item.label in everything for item in all_items(topics))


def test_the_committed_page_is_what_the_command_writes(topics, monkeypatch, tmp_path, capsys):
    """`upcycle audit --all --out docs` writes docs/audit.md and docs/audit.csv."""
    monkeypatch.setattr("upcycle.audit.audit.collect_items", lambda losses: topics)
    run_audit(arguments(all=True, out=tmp_path))
    for name in ("audit.md", "audit.csv"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), f"docs/{name} is old"
    capsys.readouterr()
    run_audit(arguments(out=tmp_path))
    assert len((tmp_path / "audit.md").read_text()) < len(page(topics))


@pytest.mark.slow
def test_the_command_prints_its_counts_as_json(capsys):
    assert main(["audit", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["slip"] == len(SLIPS)


def test_the_table_of_the_report(topics, monkeypatch):
    monkeypatch.setattr("upcycle.paper.tables_audit.collect_items", lambda: topics)
    table = audit()
    assert list(table.index) == [
        item.label for item in all_items(topics) if item.verdict in ("slip", "within rounding")
    ]
    assert table.map(lambda cell: isinstance(cell, str)).all().all()
    assert len(audit(everything=True)) == len(items_table(all_items(topics)))


AUDIT_SOURCES = ("config/paper.yaml", "src/upcycle/audit/items/laws.yaml", "src/upcycle/audit/printed.yaml")


@pytest.mark.parametrize("changed", AUDIT_SOURCES)
def test_the_tables_key_covers_the_papers_settings_and_the_words_of_items(changed, monkeypatch, tmp_path):
    for name in ("config", "src/upcycle/audit", "src/upcycle/report"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setattr("upcycle.workflow.dag.PACKAGE_ROOT", tmp_path / "src" / "upcycle")
    monkeypatch.chdir(tmp_path)
    workflow = read_workflow("default", ROOT)
    before = {name: product.key for name, product in list_products(workflow).items()}
    with (tmp_path / changed).open("a") as file:
        file.write("# another line\n")
    after = {name: product.key for name, product in list_products(workflow).items()}
    assert {name for name in before if before[name] != after[name]} == {"tables/audit", "report"}
