"""Tables: one declaration, the same cells in the terminal, in CSV and in HTML."""

import math

import pandas as pd
import pytest

from jaxstab.experiments import tables
from jaxstab.experiments.tables import Column, Table

ROWS = pd.DataFrame(
    {
        "learning_rate": [0.5, 2.0],
        "batch_size": [4, 100],
        "a": [1.23456, math.nan],
        "a_std": [0.1, math.nan],
        "r": [0.5, 0.25],
        "r_lower": [0.25, math.inf],
        "r_upper": [1.0, -math.inf],
        "bound": [2.0, math.inf],
        "side": ["inside", "outside"],
        "name": ["inside", "<b>"],
    }
)
TABLE = Table(
    "t",
    ROWS,
    [
        tables.LEARNING_RATE,
        tables.batch_size(100),
        Column("a", "a (mean ± std)", "1/step size", ".3g", spread="std"),
        Column("r", format=".2f", spread="interval"),
        Column("bound", infinite="none"),
        Column("side", status=True),
        Column("name"),
    ],
    title="a title",
    note="a note",
)


def test_cells():
    first, second = TABLE.rendered()["cells"]
    assert first == ["0.5", "4", "1.23 ± 0.1", "0.50 [0.25, 1.00]", "2", "inside", "inside"]
    assert second == ["2", "n", "–", "0.25 [∞, -∞]", "none", "outside", "<b>"]


def test_text():
    lines = TABLE.text().splitlines()
    assert (
        lines[0] == "a title" and "a (mean ± std)" in lines[1] and "learning rate" not in lines[1]
    )
    assert lines[3].split()[:4] == ["0.5", "4", "1.23", "±"]
    assert lines[-2] == "η in step size; a (mean ± std) in 1/step size"
    assert lines[-1] == "a note"
    assert all(len(line) <= 60 for line in TABLE.text(width=60).splitlines())


def test_csv_holds_the_numbers(tmp_path):
    TABLE.csv(tmp_path / "t.csv")
    read = pd.read_csv(tmp_path / "t.csv")
    names = [
        "learning_rate",
        "batch_size",
        "a",
        "a_std",
        "r",
        "r_lower",
        "r_upper",
        "bound",
        "side",
        "name",
    ]
    assert list(read.columns) == names
    assert read["bound"].tolist() == [2.0, math.inf] and read["a"][0] == 1.23456
    assert math.isnan(read["a"][1])


def test_only_status_columns_are_coloured():
    page = tables.to_html(TABLE.rendered())
    assert '<td class="good">inside</td>' in page and '<td class="bad">outside</td>' in page
    assert '<td class="text">inside</td>' in page  # a name that happens to be such a word
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert "a (mean ± std)<br>[1/step size]" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), ("", "–"), (3, "3"), (True, "True"), (-math.inf, "-∞"), (1234.5678, "1235")],
)
def test_values(value, text):
    assert Column("x").show({"x": value}) == text
    assert Column("missing").show({"x": value}) == "–"
