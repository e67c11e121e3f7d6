"""Which side of its bounds a minimum lies on, from the certified interval; tables of minima."""

import math

import numpy as np
import pytest

from jaxstab.experiments import minima

N = 101  # a <= 4; s <= 2 sqrt(4 * 100 / 97) = 4.0614 at η = 0.5, B = 4
INF = math.inf


@pytest.mark.parametrize(
    ("run", "sides", "side"),
    [
        ({"a": 3.9, "s": 4.0}, ("inside", "inside"), "inside"),
        ({"a": 4.1, "s": 4.0}, ("outside", "inside"), "outside"),
        ({"a": 3.9, "s": 4.1}, ("inside", "outside"), "outside"),
        ({"a": 3.999, "s": 4.0, "width": 1e-3}, ("undecided", "inside"), "undecided"),
        ({"a": 3.9, "s": 4.0, "certain": False}, ("undecided", "undecided"), "undecided"),
        # a lower bound above the bound is enough, converged or not
        ({"a": 4.1, "s": 4.0, "certain": False}, ("outside", "undecided"), "outside"),
        # gradient descent has no bound of s
        ({"a": 3.9, "s": 400.0, "batch_size": N}, ("inside", "inside"), "inside"),
        ({"a": 3.9, "s": 4.0, "status": "step_limit"}, ("inside", "inside"), ""),
        ({"a": math.nan, "s": math.nan, "status": "diverged"}, ("", ""), ""),
    ],
)
def test_sides(record, run, sides, side):
    (row,) = minima.place([record(**run)], N).to_dict("records")
    assert (row["sharpness_side"], row["nonuniformity_side"]) == sides
    assert row["side"] == side and bool(row["verdict"]) == bool(side)


def test_margins_are_fractions_of_the_bounds(record):
    rows = minima.place([record(3.0, 4.2), record(3.0, 1.0, batch_size=N)], N)
    row = rows.iloc[0]
    assert row["sharpness_bound"] == 4.0
    assert row["nonuniformity_bound"] == pytest.approx(2 * math.sqrt(400 / 97))
    assert row["sharpness_margin"] == pytest.approx(0.25)
    assert row["nonuniformity_margin"] == pytest.approx(1 - 4.2 / (2 * math.sqrt(400 / 97)))
    assert minima.worst_margin(rows)[0] == row["nonuniformity_margin"] < 0
    assert rows["nonuniformity_margin"][1] == 1.0 and rows["nonuniformity_bound"][1] == INF


def test_cross_entropy_gets_no_verdict_inside(record):
    runs = [record(3.0, 3.0)]
    assert minima.place(runs, N)["verdict"][0] == "stable"
    assert minima.place(runs, N, loss_kind="cross_entropy")["verdict"][0] == "undecided"


def test_table_and_conclusion_name_every_run_outside(record):
    runs = [record(1.0, 2.0), record(4.1, 4.0), record(4.3, 9.0, batch_size=N)]
    rows = minima.place(runs, N)
    text = minima.table(rows, n=N).text()
    assert len(text.splitlines()) == 2 + 3 + 1
    assert "+75.0%" in text and "-2.5%" in text and "none" in text
    lines = minima.conclusion(rows)
    assert "inside the region of eq. 9: 1 of 3 (33.3%)" in lines
    assert "margin of a -2.50%, of s +1.51%" in lines[2] and "MORE THAN" not in lines[2]
    assert "margin of a -7.50%" in lines[3] and "MORE THAN 5 % OUTSIDE" in lines[3]
    assert "of s" not in lines[3]


def test_no_minimum_at_all(record):
    rows = minima.place([record(math.nan, math.nan, status="diverged")], N)
    assert minima.conclusion(rows)[0].startswith("1 runs: 0 ended at a minimum")
    assert "–" in minima.table(rows, n=N).text()
    assert list(minima.diagrams(rows, n=N)) == ["selection"]


def test_summary_has_mean_and_spread_over_minima(record):
    runs = [record(a, 2 * a, seed=seed) for seed, a in enumerate((1.0, 1.5, 3.5))]
    runs += [record(math.nan, math.nan, seed=9, status="diverged")]
    runs += [record(math.nan, math.nan, eta=5.0, status="diverged")]
    lines = minima.summarize(minima.place(runs, N), by=["learning_rate", "batch_size"])
    first, second = lines.to_dict("records")
    assert (first["runs"], first["reached"], first["blew_up"]) == (4, 3, 1)
    assert first["sharpness"] == pytest.approx(2.0)
    assert first["nonuniformity_std"] == pytest.approx(np.std([2.0, 3.0, 7.0]))
    assert second["reached"] == 0 and math.isnan(second["sharpness"])


def test_one_diagram_for_each_learning_rate(record):
    runs = [record(1.0, 2.0, eta=eta) for eta in (0.5, 0.25)]
    assert list(minima.diagrams(minima.place(runs, N), n=N, name="x")) == ["x-0.25", "x-0.5"]
