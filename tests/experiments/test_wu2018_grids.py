"""Claims and tables of selection, gd-sharpness, batch-size and correlation on made-up minima."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from jaxstab.experiments import REGISTRY, minima, published
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.wu2018 import batch_size, correlation, gd_sharpness, selection
from jaxstab.stability import threshold as threshold_module

N = 101
SIZES = (4, 10, 25, N)
PROBLEMS = ("digits/fnn-small", "cifar10/vgg/airplane,automobile")


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


@pytest.fixture
def rising(record):
    """a and s grow with B, a little differently for every seed."""

    def rows(seeds=3, sign=1):
        return [
            record(2 + sign * 0.4 * i, 1.5 + sign * 0.4 * i + 0.01 * seed, batch_size=b, seed=seed)
            for seed in range(seeds)
            for i, b in enumerate(SIZES)
        ]

    return rows


def test_selection(record, rising):
    def status(runs):
        return status_of(selection.claims(minima.reached(minima.place(runs, N)), N))

    good = [r | {"sharpness": 3.9} if r["batch_size"] == N else r for r in rising()]
    assert set(status(good).values()) == {"holds"}
    bad = status([record(1.0, 2.0), record(4.3, 9.0, batch_size=N)])
    assert bad["inside"] == bad["no-suspicious-point"] == "does not hold"
    assert bad["sharpness-falls"] == "inconclusive"  # two points show no correlation
    close = status([record(1.0, 2.0), record(4.1, 9.0, batch_size=N)])
    assert close["no-suspicious-point"] == "holds"
    unclear = status([record(1.0, 2.0), record(3.999, 9.0, batch_size=N, width=1e-3)])
    assert unclear["inside"] == "inconclusive"
    none = status([record(math.nan, math.nan, status="diverged")])
    assert set(none.values()) == {"inconclusive"}


# η*_var and its interval by batch size, to be held against η = 0.5: unstable for certain, stable
# short of the certified end, stable for certain.
VALUES = {4: 0.25, 10: 0.8, 25: 0.8}
ENDS = {4: (0.2, 0.4), 10: (0.4, 1.0), 25: (0.6, 1.0)}


def test_first_seeds_get_a_threshold_and_a_third_panel(record, rising, tmp_path, monkeypatch):
    asked = []

    def threshold(loss, params, data, *, batch_sizes, key, tol, max_rank):
        asked.append((*batch_sizes, params))
        (size,) = batch_sizes
        ends = threshold_module.Ends(*(np.array([end]) for end in ENDS[size]))
        value, chain = np.array([VALUES[size]]), {name: np.ones(1) for name in "abcde"}
        found = SimpleNamespace(value=value, interval=ends, bounds=chain, n=N, replacement=False)
        found.converged, found.index = np.array([True]), lambda _: 0
        return found

    monkeypatch.setattr(selection.js, "mean_square_threshold", threshold)
    lost = record(math.nan, math.nan, batch_size=10, seed=0, status="diverged")
    runs = [lost, *(run for run in rising() if (run["batch_size"], run["seed"]) != (10, 0))]
    rows = minima.place(runs, N)
    grid = SimpleNamespace(
        rows=rows,
        minima=minima.reached(rows),
        n=N,
        result=SimpleNamespace(load_params=lambda row: row["seed"]),
        problem=SimpleNamespace(loss=None, train=None),
    )
    settings = selection.Settings(thresholds=2)
    found = selection.with_thresholds(settings, grid, Context(tmp_path))
    assert sorted(asked) == [(4, 0), (4, 1), (10, 1), (10, 2), (25, 0), (25, 1)]
    same = [name for name in rows if name not in minima.TOLD]
    pd.testing.assert_frame_equal(found[same], rows[same])
    known = found[found["threshold_ratio"].notna()].sort_values(["batch_size", "seed"])
    assert len(known) == 6 and (known["batch_size"] < N).all()
    ratios = known[["threshold_ratio", "threshold_ratio_lower", "threshold_ratio_upper"]]
    expected = [[0.5 / x for x in (VALUES[size], *reversed(ENDS[size]))] for size in (4, 10, 25)]
    np.testing.assert_allclose(ratios, np.repeat(expected, 2, axis=0))  # η = 0.5
    text = " ".join(minima.table(found, n=N).text().split())
    assert text.count("2 [1.25, 2.5] unstable exact threshold") == 2
    assert text.count("] stable exact threshold, not certified") == 2
    assert text.count("] stable exact threshold") == 4 and text.count("– stable eq. 9") == 5
    assert selection.exact_conclusion(found) == [
        "verdicts where the exact threshold is known: B = 4: 2 unstable (exact threshold); "
        "B = 10: 2 stable (exact threshold, not certified); B = 25: 2 stable (exact threshold)"
    ]
    panels = minima.diagrams(found, n=N)["selection"].axes
    bars = [bar.get_segments()[0][:, 1] for bar in panels[2].collections]
    np.testing.assert_allclose(bars, np.repeat(np.array(expected)[:, 1:], 2, axis=0))
    assert len(minima.diagrams(rows, n=N)["selection"].axes) == 2
    selection.with_thresholds(settings, grid, Context(tmp_path))
    assert len(asked) == 6, "computed again"


def test_trends_are_over_seeds(record, rising):
    def status(runs):
        found = status_of(batch_size.claims(minima.reached(minima.place(runs, N)), N))
        return found["sharpness-falls"]

    assert status(rising()) == "holds"
    assert status(rising(sign=-1)) == "does not hold"
    assert status(rising(seeds=1)) == "inconclusive"
    other = [r | {"seed": 5} for r in rising(seeds=1, sign=-1)]
    assert status(rising(seeds=2) + other) == "inconclusive"  # 1, 1 and -1
    outside = minima.place([*rising(), record(1.0, 4.2, seed=9)], N)  # bound 4.06
    claims = status_of(batch_size.claims(minima.reached(outside), N))
    assert claims["below-the-bound"] == "does not hold"


def test_batch_size_without_a_minimum_and_beside_published_numbers(record):
    none = [record(math.nan, math.nan, batch_size=b, status="diverged") for b in SIZES]
    theirs = published.beside(REGISTRY["batch-size"].settings("paper"), "wu2018_grid",
                              source="fig5_batch_size")  # fmt: skip
    summary = batch_size.summarize(minima.place(none, N), theirs.iloc[:0], N)
    assert "–" in batch_size.table(summary, N).text()
    ours = [record(15.0, 30.0, batch_size=b, eta=0.1) for b in (10, 100)]
    summary = batch_size.summarize(minima.place(ours, N), theirs, N)
    assert "published a" in batch_size.table(summary, N).text()
    assert summary["sharpness_mean"].tolist() == [7.8525, 19.4914]


def test_gd_sharpness(record):
    runs = [(0.5, 3.8, 0), (0.5, 4.1, 1), (1.0, 1.9, 0)]
    runs = [record(a, 2 * a, eta=eta, seed=seed, batch_size=N) for eta, a, seed in runs]
    runs.append(record(math.nan, math.nan, eta=5.0, batch_size=N, status="diverged"))
    rows = minima.place(runs, N)
    theirs = published.beside(REGISTRY["gd-sharpness"].settings("paper"), "wu2018_grid",
                              source="table2_gd")  # fmt: skip
    summary = gd_sharpness.summarize(rows, theirs)
    first = summary.iloc[0]
    assert first["sharpness"] == pytest.approx(3.95) and first["edge"] == 4.0
    assert first["sharpness_std"] == pytest.approx(0.15) and first["above"] == 1
    assert first["most_above"] == pytest.approx(0.025) and first["published"] == 3.8567
    lines = gd_sharpness.table(summary).text().splitlines()
    assert "3.95 ± 0.15" in lines[3] and "+2.50%" in lines[3] and "3.857 ± 0.025" in lines[3]
    assert lines[5].split()[:4] == ["5", "0.4", "–", "–"]
    alone = gd_sharpness.summarize(rows, theirs.iloc[:0])
    assert "published" not in gd_sharpness.table(alone).text()
    claims = {claim.name: claim for claim in gd_sharpness.claims(minima.reached(rows))}
    assert claims["below-the-edge"].status == "holds"
    assert claims["below-the-edge"].measured == pytest.approx(1.025)
    # over seeds: the mean of 0.95 (two learning rates of seed 0) and 1.025
    assert claims["at-the-edge"].measured == pytest.approx((0.95 + 1.025) / 2)
    far = minima.place([record(4.3, 9.0, batch_size=N)], N)
    assert gd_sharpness.claims(far)[0].status == "does not hold"
    assert set(status_of(gd_sharpness.claims(rows.iloc[:0])).values()) == {"inconclusive"}


def minima_of(problem, noise, *, seeds=20, draw=0, power=1.0):
    rng = np.random.default_rng(draw)
    a = rng.uniform(0.5, 50, seeds)
    s = 2 * a**power * np.exp(noise * rng.standard_normal(seeds))
    columns = {"sharpness": a, "nonuniformity": s, "seed": range(seeds)}
    return pd.DataFrame(columns | {"problem": problem, "side": "inside"})


def test_correlation(tmp_path):
    def status(*parts):
        by_problem = dict(zip(PROBLEMS, parts, strict=False)) | {correlation.ALL: pd.concat(parts)}
        return status_of([correlation.claim_of(*part) for part in by_problem.items()])

    strong = [minima_of(problem, 0.05, draw=i) for i, problem in enumerate(PROBLEMS)]
    assert set(status(*strong).values()) == {"holds"}
    falling = [minima_of(problem, 0.0, power=-1.0) for problem in PROBLEMS]
    assert set(status(*falling).values()) == {"does not hold"}
    weak = status(minima_of(PROBLEMS[0], 2.0, seeds=8, draw=2), minima_of(PROBLEMS[1], 0, seeds=1))
    assert weak[f"correlated {PROBLEMS[1]}"] == "inconclusive"  # one point
    assert weak[f"correlated {PROBLEMS[0]}"] == "inconclusive"  # eight noisy ones
    # many runs of one seed are one unit, however well they are correlated
    one_seed = strong[0].assign(seed=0)
    assert set(status(one_seed).values()) == {"inconclusive"}


def test_runs_that_reached_no_minimum_do_not_count():
    rows = minima_of(PROBLEMS[0], 0.0)
    failed = rows.iloc[:1].assign(sharpness=np.nan, nonuniformity=np.nan, side="")
    lines = correlation.summarize({PROBLEMS[0]: pd.concat([rows, failed]), PROBLEMS[1]: failed})
    assert lines["minima"].tolist() == [20, 0] and lines["runs"].tolist() == [21, 1]
    assert "–" in correlation.table(lines).text()


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("digits", "a problem is DATASET/MODEL"),
        ("digit/fnn", "did you mean 'digits'"),
        ("digits/fnn-smal", "did you mean 'fnn-small'"),
    ],
)
def test_wrong_problems_before_any_work(tmp_path, problem, message):
    settings = dataclasses.replace(correlation.Settings(), problems=(PROBLEMS[0], problem))
    with pytest.raises(ValueError, match=message):
        correlation.run(settings, Context(tmp_path))
    assert not list(tmp_path.iterdir())


def test_published_means_are_drawn_beside_the_same_problem(tmp_path, monkeypatch):
    grids = []

    def fake_grid(settings, context):
        grids.append(settings)
        return SimpleNamespace(rows=minima_of("", 0.1).drop(columns="problem"))

    monkeypatch.setattr(correlation, "run_grid", fake_grid)
    paper = REGISTRY["correlation"].settings("paper")
    outcome = correlation.run(paper, Context(tmp_path))
    legend = outcome.figures["correlation"].axes[0].get_legend()
    labels = [text.get_text() for text in legend.get_texts()]
    hollow = [label.split(":")[0] for label in labels if "published means" in label]
    assert hollow == ["fashion_mnist/fnn", "cifar10/vgg/airplane,automobile"]
    assert [grid.n_train for grid in grids] == [1000] * 3
    assert grids[1].classes == ("airplane", "automobile") and grids[1].loss == "squared"
