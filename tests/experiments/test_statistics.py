"""Intervals over independent units: against SciPy, and how often they cover the truth."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxstab.experiments import statistics
from jaxstab.experiments.statistics import Estimate


def pairs(x, y):
    return pd.DataFrame({"x": x, "y": y})


def clustered(rng, units, size, *, between=1.0, mean=0.0):
    """Rows whose values share most of their noise within a unit."""
    shared = rng.normal(scale=between, size=units)
    seed = np.repeat(np.arange(units), size)
    return pd.DataFrame({"seed": seed, "x": mean + shared[seed] + 0.1 * rng.normal(size=len(seed))})


def test_mean_over_units_is_students_interval_of_their_means():
    rows = clustered(np.random.default_rng(0), 6, 4)
    found = statistics.mean_over(rows, "x")
    means = rows.groupby("seed")["x"].mean()
    expected = stats.t.interval(0.95, 5, means.mean(), stats.sem(means))
    assert found[:3] == pytest.approx((means.mean(), *expected))
    assert found.how == "95 %, Student's t over 6 seeds"


def test_the_interval_of_a_mean_covers_when_rows_are_not_independent():
    # 200 trials at 95 %: fewer than 180 has probability 2e-3; rows taken as independent cover 60 %
    rng = np.random.default_rng(0)
    covered = pooled = 0
    for _ in range(200):
        rows = clustered(rng, 5, 6)
        found = statistics.mean_over(rows, "x")
        covered += found.lower <= 0 <= found.upper
        wrong = statistics.mean_over(rows, "x", by=None)
        pooled += wrong.lower <= 0 <= wrong.upper
    assert covered >= 180 and pooled < 160


def test_too_few_units_have_no_interval():
    one = pd.DataFrame({"seed": [0, 0], "x": [1.0, 3.0]})
    found = statistics.mean_over(one, "x")
    assert found.value == 2.0 and math.isnan(found.lower)
    assert math.isnan(statistics.mean_over(one.iloc[:0], "x").value)
    assert math.isnan(statistics.bootstrap(one, lambda rows: rows["x"].mean()).lower)
    assert statistics.mean_over(one.assign(x=[math.nan, 3.0]), "x").value == 3.0


def test_several_columns_tell_units_apart():
    rows = pd.DataFrame({"problem": list("aabb"), "seed": [0, 1, 0, 1], "x": [1.0, 2.0, 3.0, 4.0]})
    assert statistics.mean_over(rows, "x", by=("problem", "seed")).how.endswith("4 problem × seeds")
    assert statistics.mean_over(rows, "x", by="seed").how.endswith("2 seeds")


def test_the_bootstrap_draws_units_not_rows():
    rows = clustered(np.random.default_rng(0), 8, 20)
    over_seeds = statistics.bootstrap(rows, lambda some: some["x"].mean())
    over_rows = statistics.bootstrap(rows, lambda some: some["x"].mean(), by=None, resamples=300)
    assert over_seeds.upper - over_seeds.lower > 2 * (over_rows.upper - over_rows.lower)
    # a mean of units of one size: close to Student's interval, which is exact here
    exact = statistics.mean_over(rows, "x")
    assert over_seeds[1:3] == pytest.approx(exact[1:3], abs=0.3 * (exact.upper - exact.lower))
    assert over_seeds == statistics.bootstrap(rows, lambda some: some["x"].mean())


def test_correlation_against_scipy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    y[3] = y[4]  # a tie
    found = statistics.correlation(pairs(x, y), "x", "y", by=None)
    assert found.value == pytest.approx(stats.pearsonr(x, y).statistic)
    ranks = statistics.correlation(pairs(x, y), "x", "y", ranks=True, by=None)
    assert ranks.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 <= ranks.lower < ranks.value < ranks.upper <= 1
    flat = statistics.correlation(pairs([1, 2, 3], [1, 1, 1]), "x", "y", by=None)
    two = statistics.correlation(pairs([1, 2], [1, 2]), "x", "y", by=None)
    assert math.isnan(flat.value) and math.isnan(two.value)


def test_trend_holds_groups_and_seeds_apart():
    # y falls with x between the groups and rises with x within each
    rows = pd.DataFrame(
        [
            {"seed": seed, "eta": eta, "x": x, "y": x - 100 * eta + 0.1 * seed}
            for seed in range(3)
            for eta in (1, 2)
            for x in (10 * eta, 10 * eta + 1, 10 * eta + 2)
        ]
    )
    found = statistics.trend(rows, "x", "y", within=["eta"])
    assert found[:3] == (1.0, 1.0, 1.0) and found.how.endswith("3 seeds")
    assert statistics.correlation(rows, "x", "y", ranks=True).value < 0
    assert math.isnan(statistics.trend(rows[rows["x"] % 10 < 2], "x", "y", within=["eta"]).value)


def test_fraction():
    rows = pd.DataFrame({"seed": range(10), "x": [False] * 10})
    assert statistics.fraction(rows, "x").lower == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(statistics.fraction(rows.iloc[:0], "x").value)
    # one row a unit: Wilson's interval itself, up to m/(m − 1) in the variance
    half = rows.assign(x=[True, False] * 5)
    wilson = stats.binomtest(5, 10).proportion_ci(method="wilson")
    exact = statistics.fraction(half, "x")
    assert exact[1:3] == pytest.approx((wilson.low, wilson.high), abs=0.02)
    # rows that agree within a unit are worth as many trials as there are units
    copies = pd.concat([half] * 7)
    found = statistics.fraction(copies, "x")
    assert found[1:3] == pytest.approx(exact[1:3], abs=1e-9)


def test_share_is_an_interval_only_where_something_is_undecided():
    assert statistics.share(["a", "a", "b", "?"], "a", undecided="?")[:3] == (0.5, 0.5, 0.75)
    assert statistics.share(["a", "b"], "a")[:3] == (0.5, 0.5, 0.5)
    assert math.isnan(statistics.share([], "a").value)


def test_estimates():
    found = Estimate(1.0, 0.0, 2.0, "how")
    assert found.map(math.exp) == (math.e, 1.0, math.exp(2), "how")
    assert found.columns("r") == {"r": 1.0, "r_lower": 0.0, "r_upper": 2.0}
    assert Estimate.exact(3)[:3] == (3.0, 3.0, 3.0)
