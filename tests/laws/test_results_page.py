"""results/README.md documents the columns as the code defines them."""

from pathlib import Path

from upcycle.study.columns import columns_markdown


def test_the_columns_of_losses_csv_are_documented():
    """The table stands in results/README.md as `columns_markdown` writes it."""
    page = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    assert columns_markdown().strip() in page
