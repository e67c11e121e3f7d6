"""Gradient descent at the edge: the table, its dashes, its published numbers, a tiny run."""

import dataclasses
import math

import pytest

from jaxstab.experiments import gd_sharpness, minima
from jaxstab.experiments.base import execute
from jaxstab.experiments.grid import GdSettings

N = 50


def record(eta, a, *, status="converged", seed=0):
    row = {"batch_size": N, "learning_rate": eta, "init_scale": 1.0, "seed": seed}
    row |= {"status": status, "steps": 100, "loss": 1e-5, "gradient_norm": 1e-4}
    for name, value in (("sharpness", a), ("nonuniformity", 2 * a)):
        row |= {name: value, f"{name}_lower": value, f"{name}_upper": value}
        row |= {f"{name}_residual": 0.0, f"{name}_matvecs": 9, f"{name}_converged": True}
    return minima.judge(row, N)


ROWS = [
    record(0.5, 3.8),
    record(0.5, 4.1, seed=1),
    record(1.0, 1.9),
    record(5.0, math.nan, status="diverged"),
]


def summaries():
    return [gd_sharpness._summarize(ROWS, eta) for eta in (0.5, 1.0, 5.0)]


def test_summary_of_one_learning_rate():
    line = summaries()[0]
    assert line["mean"] == pytest.approx(3.95) and line["std"] == pytest.approx(0.15)
    assert line["edge"] == 4.0 and line["above"] == 1
    assert line["most_above"] == pytest.approx(0.025)
    assert (line["runs"], line["reached"], line["blew_up"]) == (2, 2, 0)


def test_table_has_dashes_where_it_blew_up():
    lines = gd_sharpness.table(summaries(), {}).splitlines()
    assert "3.95 ± 0.15" in lines[2] and "1/2" in lines[2] and "+2.50%" in lines[2]
    assert lines[4].split() == ["5", "0.4", "–", "–", "–", "–", "0/1", "1"]
    assert "published" not in lines[0]


def test_published_numbers_only_beside_the_same_data_and_network():
    paper = gd_sharpness.EXPERIMENT.settings("paper")
    theirs = gd_sharpness.table2(paper)
    assert theirs[0.1] == (19.6202, 0.1494) and set(theirs) == set(paper.learning_rates)
    assert gd_sharpness.table2(gd_sharpness.EXPERIMENT.settings("quick")) == {}
    assert gd_sharpness.table2(dataclasses.replace(paper, model="fnn-small")) == {}
    cifar = dataclasses.replace(paper, dataset="cifar10", model="vgg")
    assert gd_sharpness.table2(cifar) == {}  # ten classes are another problem
    two = dataclasses.replace(cifar, classes=("airplane", "automobile"))
    assert gd_sharpness.table2(two)[0.01] == (198.93, 0.6154)
    lines = gd_sharpness.table(summaries(), theirs).splitlines()
    assert "3.857 ± 0.025" in lines[2] and lines[0].endswith("published")


def test_claims_as_they_come_out():
    found = minima.reached(ROWS)
    claims = {claim.name: claim for claim in gd_sharpness.claims(found, summaries())}
    assert claims["below-the-edge"].status == "holds"
    assert claims["below-the-edge"].measured == pytest.approx(1.025)
    assert claims["at-the-edge"].measured == pytest.approx((3.95 / 4 + 1.9 / 2) / 2)
    outside = gd_sharpness.claims([record(0.5, 4.3)], summaries())
    assert outside[0].status == "does not hold"
    assert {c.status for c in gd_sharpness.claims([], [])} == {"inconclusive"}


def test_a_tiny_run(tmp_path):
    settings = GdSettings(
        n_train=20, learning_rates=(1.0, 1e4), seeds=1, max_steps=3000, loss_tolerance=0.01
    )
    outcome = execute(gd_sharpness.EXPERIMENT, settings, out=tmp_path)
    assert [row["status"] for row in outcome.rows] == ["converged", "diverged"]
    lines = outcome.text.splitlines()
    assert lines[5].split()[0] == "1e+04" and "–" in lines[5]
    assert (tmp_path / "gd-sharpness.png").stat().st_size > 10_000
    assert {claim.status for claim in outcome.claims} <= {
        "holds",
        "does not hold",
        "inconclusive",
    }
