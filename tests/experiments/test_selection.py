"""Selection: verdicts on made-up records, then the whole chain on a tiny grid."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from jaxstab import lanes, testing
from jaxstab.experiments import grid, minima, selection
from jaxstab.experiments.base import Context, execute
from jaxstab.experiments.grid import GridSettings

N = 101
ETA = 0.5  # a <= 4; s <= 2 sqrt(4 * 100 / 97) = 4.0614 at B = 4

TINY = GridSettings(
    n_train=40,
    learning_rates=(1.0,),
    batch_sizes=(10, "n"),
    init_scales=(1.0,),
    seeds=1,
    max_steps=3000,
    loss_tolerance=0.01,
)


def record(a, s, *, batch_size=4, status="converged", width=0.0, converged=True, eta=ETA):
    row = {"batch_size": batch_size, "learning_rate": eta, "init_scale": 1.0, "seed": 0}
    row |= {"status": status, "steps": 100, "loss": 1e-5, "gradient_norm": 1e-4}
    for name, value in (("sharpness", a), ("nonuniformity", s)):
        row |= {name: value, f"{name}_lower": value, f"{name}_upper": value * (1 + width)}
        row |= {f"{name}_residual": 0.0, f"{name}_matvecs": 9, f"{name}_converged": converged}
    return row


@pytest.mark.parametrize(
    ("record", "sides", "side"),
    [
        (record(3.9, 4.0), ("inside", "inside"), "inside"),
        (record(4.1, 4.0), ("outside", "inside"), "outside"),
        (record(3.9, 4.1), ("inside", "outside"), "outside"),
        (record(3.999, 4.0, width=1e-3), ("undecided", "inside"), "undecided"),
        (record(3.9, 4.0, converged=False), ("undecided", "undecided"), "undecided"),
        # a lower bound above the bound is enough, converged or not
        (record(4.1, 4.0, converged=False), ("outside", "undecided"), "outside"),
        # gradient descent has no bound of s
        (record(3.9, 400.0, batch_size=N), ("inside", "inside"), "inside"),
        (record(3.9, 4.0, status="step_limit"), ("inside", "inside"), ""),
        (record(math.nan, math.nan, status="diverged"), ("", ""), ""),
    ],
)
def test_sides(record, sides, side):
    row = minima.judge(record, N)
    assert (row["sharpness_side"], row["nonuniformity_side"]) == sides
    assert row["side"] == side and bool(row["verdict"]) == bool(side)


def test_margins_are_fractions_of_the_bounds():
    row = minima.judge(record(3.0, 4.2), N)
    assert row["sharpness_bound"] == 4.0
    assert row["nonuniformity_bound"] == pytest.approx(2 * math.sqrt(400 / 97))
    assert row["sharpness_margin"] == pytest.approx(0.25)
    assert row["nonuniformity_margin"] == pytest.approx(1 - 4.2 / (2 * math.sqrt(400 / 97)))
    assert minima.worst_margin(row) == row["nonuniformity_margin"] < 0
    assert minima.judge(record(3.0, 1.0, batch_size=N), N)["nonuniformity_margin"] == 1.0


def test_cross_entropy_gets_no_verdict_inside():
    assert minima.judge(record(3.0, 3.0), N)["verdict"] == "stable"
    assert minima.judge(record(3.0, 3.0), N, loss_kind="cross_entropy")["verdict"] == "undecided"


def rows(*records):
    return [minima.judge(one, N) for one in records]


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


def test_claims_as_they_come_out():
    good = rows(record(1.0, 2.0), record(2.0, 3.0, batch_size=25), record(3.9, 9.0, batch_size=N))
    assert set(status_of(selection.claims(good * 4, N)).values()) == {"holds"}
    bad = rows(record(1.0, 2.0), record(4.3, 9.0, batch_size=N))
    found = status_of(selection.claims(bad, N))
    assert found["inside"] == found["no-suspicious-point"] == "does not hold"
    assert found["sharpness-falls"] == "inconclusive"  # two points show no correlation
    close = rows(record(1.0, 2.0), record(4.1, 9.0, batch_size=N))
    assert status_of(selection.claims(close, N))["no-suspicious-point"] == "holds"
    unclear = rows(record(1.0, 2.0), record(3.999, 9.0, batch_size=N, width=1e-3))
    assert status_of(selection.claims(unclear, N))["inside"] == "inconclusive"


def test_no_minimum_at_all_is_inconclusive():
    none = rows(record(math.nan, math.nan, status="diverged"))
    assert set(status_of(selection.claims(none, N)).values()) == {"inconclusive"}
    assert "1 runs: 0 ended at a minimum" in minima.conclusion(none)
    assert "–" in minima.table(none, n=N)
    assert len(minima.diagrams(none, n=N)) == 1


def test_table_and_conclusion_name_every_run_outside():
    found = rows(record(1.0, 2.0), record(4.1, 4.0), record(4.3, 9.0, batch_size=N))
    text = minima.table(found, n=N)
    assert len(text.splitlines()) == 2 + 3
    assert "+75.0%" in text and "-2.5%" in text and "none" in text
    lines = minima.conclusion(found).splitlines()
    assert "inside the region of eq. 9: 1 of 3 (33.3%)" in lines
    assert "margin of a -2.50%, of s +1.51%" in lines[2] and "MORE THAN" not in lines[2]
    assert "margin of a -7.50%" in lines[3] and "MORE THAN 5 % OUTSIDE" in lines[3]
    assert "of s" not in lines[3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("selection")
    return out, execute(selection.EXPERIMENT, TINY, out=out)


def test_a_tiny_grid_end_to_end(finished):
    out, outcome = finished
    assert [row["batch_size"] for row in outcome.rows] == [10, 40]
    for row in outcome.rows:
        assert row["status"] == "converged" and row["loss"] < 0.01
        assert 0 < row["train_accuracy"] <= 1 and 0 < row["test_accuracy"] <= 1
        for name in ("sharpness", "nonuniformity"):
            assert row[f"{name}_converged"]
            width = row[f"{name}_upper"] - row[f"{name}_lower"]
            assert 0 <= width <= 2e-3 * row[name]
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    names = [claim["name"] for claim in json.loads((out / "claims.json").read_text())]
    assert names[0] == "inside" and "gd-at-the-edge" in names
    assert (out / "selection.png").stat().st_size > 10_000


def test_a_repeated_run_trains_nothing(finished, monkeypatch):
    out, outcome = finished

    def ended_runs(work, loops, points):
        assert not points, "trained again"
        return iter(())

    monkeypatch.setattr(lanes, "ended_runs", ended_runs)
    seen = []
    again = execute(selection.EXPERIMENT, TINY, out=out, progress=lambda *state: seen.append(state))
    assert again.text == outcome.text and seen == [(2, 2, "")]


def test_parameters_of_a_run_can_be_loaded(finished):
    out, _ = finished
    found = grid.run_grid(TINY, Context(out), batch_sizes=TINY.batch_sizes)
    params = found.result.load_params(found.result.records[0])
    accuracy = found.problem.evaluate(params)["train_accuracy"]
    assert float(accuracy) == pytest.approx(found.rows[0]["train_accuracy"])
    like = {"params": {"w": np.zeros(3)}}
    with pytest.raises(ValueError, match="does not hold parameters of this model"):
        grid.check_like(like, params, out)


def test_paper_preset_runs_on_prepared_data(tmp_path):
    testing.write_tfds("fashion_mnist", tmp_path / "data", n_train=20, n_test=10)
    paper = selection.EXPERIMENT.settings("paper")
    assert (paper.dataset, paper.model, paper.n_train) == ("fashion_mnist", "fnn", 1000)
    small = dataclasses.replace(
        paper,
        n_train=10,
        learning_rates=(0.1,),
        batch_sizes=(5,),
        init_scales=(1.0,),
        seeds=1,
        max_steps=2,
        loss_tolerance=10.0,  # a "minimum" at once: this is about the path, not the result
        tol=0.1,
        max_matvecs=20,
    )
    outcome = execute(
        selection.EXPERIMENT,
        small,
        out=tmp_path / "out",
        preset="paper",
        data_dir=tmp_path / "data",
    )
    assert outcome.rows[0]["sharpness"] > 0


def test_wrong_names_before_any_work(tmp_path):
    for change, message in (
        ({"model": "fnn-smal"}, "did you mean 'fnn-small'"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"loss": "square"}, "did you mean 'squared'"),
        ({"batch_sizes": (1000,)}, "batch_size 1000 is above"),
        ({"learning_rates": (-1.0,)}, "learning_rate must be finite and positive"),
        ({"tol": 0.0}, "tol"),
        ({"max_matvecs": 0}, "max_matvecs"),
    ):
        wrong = dataclasses.replace(TINY, **change)
        with pytest.raises(ValueError, match=message):
            grid.run_grid(wrong, Context(tmp_path), batch_sizes=wrong.batch_sizes)
