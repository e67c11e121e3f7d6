"""batch-size: trends and claims on made-up records, then the whole chain on tiny grids."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from jaxstab import testing
from jaxstab.experiments import batch_size, minima
from jaxstab.experiments.base import execute

N = 101
SIZES = (4, 10, 25, N)


def record(size, seed, a, s, *, eta=0.5, status="converged"):
    row = {"batch_size": size, "learning_rate": eta, "init_scale": 1.0, "seed": seed}
    row |= {"status": status, "steps": 100, "loss": 1e-5, "gradient_norm": 1e-4}
    for name, value in (("sharpness", a), ("nonuniformity", s)):
        row |= {name: value, f"{name}_lower": value, f"{name}_upper": value}
        row |= {f"{name}_residual": 0.0, f"{name}_matvecs": 9, f"{name}_converged": True}
    return minima.judge(row, N)


def rising(seeds=3, factor=1.0):
    """a and s grow with B, a little differently for every seed."""
    return [
        record(size, seed, factor * (1 + 0.4 * i), factor * (1.5 + 0.5 * i) + 0.01 * seed)
        for seed in range(seeds)
        for i, size in enumerate(SIZES)
    ]


def status(rows):
    return {claim.name: claim.status for claim in batch_size.claims(rows, N)}


def test_trend_is_within_learning_rates_and_one_number_a_seed():
    assert batch_size.trend(rising(), "sharpness") == [1.0, 1.0, 1.0]
    # two learning rates with different levels but each falling with B: pooled they would mislead
    mixed = [record(size, 0, 3 - 0.1 * i, 1.0, eta=0.1) for i, size in enumerate(SIZES)]
    mixed += [record(size, 0, 0.3 - 0.01 * i, 1.0) for i, size in enumerate(SIZES)]
    assert batch_size.trend(mixed, "sharpness") == [-1.0]
    two_sizes = [row for row in rising() if row["batch_size"] in SIZES[:2]]
    assert batch_size.trend(two_sizes, "sharpness") == []


def test_claims_as_they_come_out():
    assert set(status(rising()).values()) == {"holds"}
    falling = [record(r["batch_size"], r["seed"], 3 - r["sharpness"], 1.0) for r in rising()]
    assert status(falling)["sharpness-falls"] == "does not hold"
    outside = [*rising(), record(4, 9, 1.0, 4.2)]  # bound 4.06
    assert status(outside)["below-the-bound"] == "does not hold"
    one_seed = status(rising(seeds=1))
    assert one_seed["sharpness-falls"] == one_seed["nonuniformity-falls"] == "inconclusive"
    mixed = [record(r["batch_size"], r["seed"], r["sharpness"], 1.0) for r in rising(seeds=2)]
    mixed += [record(r["batch_size"], 5, 3 - r["sharpness"], 1.0) for r in rising(seeds=1)]
    assert status(mixed)["sharpness-falls"] == "inconclusive"  # 1, 1 and -1 over the seeds


def test_no_minimum_is_inconclusive_and_drawn_as_a_cross():
    none = [record(size, 0, math.nan, math.nan, status="diverged") for size in SIZES]
    assert set(status(none).values()) == {"inconclusive"}
    summary = batch_size.summarize(none)
    assert "–" in batch_size.table(summary, {}, n=N)
    figure = batch_size.draw(summary, {}, n=N, title="")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "η = 0.5: no minimum reached" in labels


def test_summary_has_mean_and_spread_over_seeds():
    line = batch_size.summarize(rising())[0]
    assert (line["batch_size"], line["runs"], line["reached"]) == (4, 3, 3)
    assert line["nonuniformity_mean"] == pytest.approx(1.51)
    assert line["nonuniformity_std"] == pytest.approx(np.std([1.5, 1.51, 1.52]))


def test_published_points_only_for_the_papers_data_and_network():
    paper = batch_size.EXPERIMENT.settings("paper")
    theirs = batch_size.published_points(paper)
    assert theirs[0.1, 100]["sharpness_mean"] == 19.4914
    assert {eta for eta, _ in theirs} == {0.05, 0.1, 0.5, 1.0}
    cifar = batch_size.published_points(batch_size.EXPERIMENT.settings("paper-cifar10"))
    assert cifar[0.1, 10]["nonuniformity_mean"] == 12.1515
    for change in (
        {"model": "fnn-small"},
        {"dataset": "mnist"},
        {"loss": "kl"},
        {"classes": ("Dress",)},
    ):
        assert batch_size.published_points(dataclasses.replace(paper, **change)) == {}


def test_published_points_are_drawn_and_listed_beside_ours():
    rows = [record(size, seed, 15.0, 30.0, eta=0.1) for size in (10, 100) for seed in (0, 1)]
    theirs = batch_size.published_points(batch_size.EXPERIMENT.settings("paper"))
    theirs = {key: row for key, row in theirs.items() if key[0] == 0.1}
    summary = batch_size.summarize(rows)
    assert "19.49, 44.42" in batch_size.table(summary, theirs, n=N)
    figure = batch_size.draw(summary, theirs, n=N, title="")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "η = 0.1, published" in labels


def test_paper_preset_runs_on_prepared_data(tmp_path):
    testing.write_tfds("fashion_mnist", tmp_path / "data", n_train=20, n_test=10)
    small = dataclasses.replace(
        batch_size.EXPERIMENT.settings("paper"),
        n_train=10,
        learning_rates=(0.1,),
        batch_sizes=(5,),
        seeds=1,
        max_steps=2,
        loss_tolerance=10.0,  # a "minimum" at once: this is about the path, not the result
        tol=0.1,
    )
    outcome = execute(
        batch_size.EXPERIMENT,
        small,
        out=tmp_path / "out",
        preset="paper",
        data_dir=tmp_path / "data",
    )
    assert outcome.rows[0]["sharpness_converged"] and outcome.rows[0]["nonuniformity_converged"]
    assert "published a, s" in outcome.text
    out = tmp_path / "out"
    with (out / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1
    names = [claim["name"] for claim in json.loads((out / "claims.json").read_text())]
    assert names == ["below-the-bound", "nonuniformity-falls", "sharpness-falls"]
    assert (out / "batch-size.png").stat().st_size > 10_000
