"""The table of fitted floors beside the entropy of a made-up language."""

import dataclasses
import math

import pytest

from upcycle.data.synthetic import zipf_markov_entropy
from upcycle.errors import UserError
from upcycle.paper.tables_floors import floors

LETTERS = {"dataset": "zipf-markov", "tokenizer": "bpe", "tokenizer_vocab": 257, "loss_se": 0.01}


def with_fits(inputs, *, text=LETTERS, **intervals):
    """The simulated sweep as if it were of this text, with fits of the multiplicative law of these intervals of E."""
    law = inputs.fits["multiplicative"]
    fits = {name: dataclasses.replace(law, intervals={**law.intervals, "E": ends}) for name, ends in intervals.items()}
    return dataclasses.replace(inputs, losses=inputs.losses.assign(**text), fits=fits)


def test_an_entropy_is_held_within_the_interval_and_the_error_of_the_held_out_text(inputs):
    true = zipf_markov_entropy()
    table = floors(
        with_fits(inputs, around=[2.0, 2.3], above=[true + 0.03, 3.0], near=[true + 0.019, 3.0], open=[2.0, None])
    )
    assert table["held"].to_dict() == {"around": "yes", "above": "no", "near": "yes", "open": "yes"}
    assert set(table["entropy"]) == {true}
    unknown = with_fits(inputs, text=LETTERS | {"loss_se": math.nan}, around=[2.0, 2.3], near=[true + 0.019, 3.0])
    assert floors(unknown)["held"].to_dict() == {"around": "yes", "near": "no"}
    law = inputs.fits["multiplicative"]
    row = table.loc["around"]
    column = "E minus entropy"
    ends = [2.0 - true, 2.3 - true]
    assert row[["E", column, f"{column} low", f"{column} high"]].tolist() == [law.values["E"], row["E"] - true, *ends]
    assert row["sampling error"] == pytest.approx(0.01)
    assert row["lowest loss"] == inputs.losses.loc[inputs.losses["id"].isin(law.ids), "loss"].min()
    assert row["determined"] == ("yes" if law.identifiable else "no")


@pytest.mark.parametrize("text", [{"tokenizer_vocab": 512}, {"dataset": "english"}, {"tokenizer": "mine"}])
def test_other_tokens_or_text_have_no_known_entropy(inputs, text):
    with pytest.raises(UserError, match="no fit has an `E` of losses on generated text; train on `zipf-markov`"):
        floors(with_fits(inputs, text=LETTERS | text, around=[2.0, 2.3]))
