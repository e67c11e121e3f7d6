"""What all experiments share: folder, claims, settings, published tables, statistics."""

import csv
import doctest
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxstab.experiments import REGISTRY, base, published, statistics
from jaxstab.experiments.base import Claim, Experiment, Outcome, execute, setting


@dataclass(frozen=True)
class Settings:
    learning_rates: tuple[float, ...] = setting((0.1, 0.5), "learning rates")
    seeds: int = setting(2, "seeds")


def claim(status="holds", kind="theorem", measured=1.0):
    return Claim("c", "a statement", kind, "a statistic", 1.0, measured, None, status)


def counted(calls):
    """An experiment with one remembered step per learning rate."""

    def run(settings, context):
        rows = []
        for i, eta in enumerate(settings.learning_rates):

            def step(eta=eta):
                calls.append(eta)
                return {"eta": np.float32(eta), "value": np.array([math.nan, math.inf, 1.0])}

            rows.append(context.remember(f"step-{eta}", step))
            context.progress(i + 1, len(settings.learning_rates))
        return Outcome(rows, [claim(measured=math.inf)], [context.save(Figure(), "f")], "text")

    return Experiment("counted", "source", "summary", run, {"quick": Settings()})


def test_a_run_writes_its_folder(tmp_path):
    seen = []
    outcome = execute(
        counted([]),
        Settings(),
        out=tmp_path / "deep" / "out",
        progress=lambda *state: seen.append(state),
    )
    out = tmp_path / "deep" / "out"
    assert seen == [(1, 2), (2, 2)]
    assert list(outcome.figures) == [out / "f.png"] and (out / "f.png").stat().st_size > 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eta"]) for row in rows] == pytest.approx([0.1, 0.5])
    # strict JSON has no infinity, so that any reader can read the file
    (written,) = json.loads((out / "claims.json").read_text(), parse_constant=pytest.fail)
    assert written["status"] == "holds" and written["measured"] == "inf"
    run = json.loads((out / "run.json").read_text(), parse_constant=pytest.fail)
    assert run["settings"] == {"learning_rates": [0.1, 0.5], "seeds": 2}
    assert run["status"] == "finished" and run["environment"]["versions"]["jax"]
    assert (out / "summary.txt").read_text() == "text\n"


def test_a_repeated_run_continues(tmp_path):
    calls = []
    experiment = counted(calls)

    def interrupt(done, total, message=""):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(experiment, Settings(), out=tmp_path, progress=interrupt)
    assert calls == [0.1] and json.loads((tmp_path / "run.json").read_text())["status"] == "started"
    outcome = execute(experiment, Settings(), out=tmp_path)
    assert calls == [0.1, 0.5]
    assert math.isnan(outcome.rows[0]["value"][0]) and outcome.rows[0]["value"][1] == math.inf


def test_a_folder_of_another_run_is_refused(tmp_path):
    experiment = counted([])
    execute(experiment, Settings(), out=tmp_path)
    with pytest.raises(
        ValueError, match=r"different run \(seeds was 2, now 3\): give another --out"
    ):
        execute(experiment, Settings(seeds=3), out=tmp_path)


def test_claims_are_checked():
    assert base.judge(True) == "holds" and base.judge(False) == "does not hold"
    assert base.judge(None) == "inconclusive"
    with pytest.raises(ValueError, match="did you mean 'holds'"):
        claim(status="hold")
    with pytest.raises(ValueError, match="did you mean 'theorem'"):
        claim(kind="theory")


def test_settings_by_name():
    experiment = counted([])
    assert experiment.settings(overrides={"seeds": 7}).seeds == 7
    with pytest.raises(ValueError, match="unknown preset 'quik': did you mean 'quick'"):
        experiment.settings("quik")
    with pytest.raises(ValueError, match="did you mean 'seeds'"):
        experiment.settings(overrides={"seed": 7})


def test_batch_sizes_and_seeds():
    assert base.batch_sizes_for((4, "n"), 100) == (4, 100)
    assert base.parse_batch_size("n") == "n" and base.parse_batch_size("25") == 25
    assert base.seed_range(3) == (0, 1, 2)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        base.seed_range(0)


def test_registry_is_complete():
    for name, experiment in REGISTRY.items():
        assert experiment.name == name and "\n" not in experiment.summary
        assert set(experiment.presets) >= {"quick", "paper"}
        assert experiment.source and experiment.summary


@pytest.mark.parametrize("name", published.names())
def test_published_tables_have_a_source_and_rows(name):
    from importlib import resources

    text = resources.files(published).joinpath(f"{name}.csv").read_text()
    assert text.startswith("# ")
    rows = published.load(name)
    assert rows and all(None not in row for row in rows)  # no cell beyond the header


def test_published_values():
    where = {"dataset": "cifar10_2class", "source": "table2_gd", "learning_rate": 0.01}
    (row,) = published.load("wu2018_grid", where=where)
    assert (row["sharpness_mean"], row["sharpness_std"]) == (198.93, 0.6154)
    with pytest.raises(ValueError, match="did you mean 'wu2018_grid'"):
        published.load("wu2018_gird")
    with pytest.raises(ValueError, match="did you mean 'dataset'"):
        published.load("wu2018_grid", where={"data_set": "cifar10"})


def test_docstring_examples():
    assert doctest.testmod(published).failed == 0
    assert doctest.testmod(statistics).failed == 0


def test_correlation_against_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = x + rng.normal(size=40)
    y[3] = y[4]  # a tie
    assert statistics.correlation(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic)
    ranks = statistics.correlation(x, y, ranks=True)
    assert ranks.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert -1 <= ranks.lower < ranks.value < ranks.upper <= 1
    assert math.isnan(statistics.correlation([1, 2, 3], [1, 1, 1]).value)
    assert math.isnan(statistics.correlation([1, 2], [1, 2]).value)


def test_correlation_interval_covers():
    # 95 % intervals, 60 trials at true correlation 0.5: P(fewer than 48 cover) < 1e-6 at 95 %, and
    # the bootstrap's own under-coverage at m = 40 (about 92 %) keeps it below 1e-3
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        x = rng.normal(size=40)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=40)
        found = statistics.correlation(x, y, resamples=300)
        covered += found.lower <= 0.5 <= found.upper
    assert covered >= 48


def test_fraction():
    found = statistics.fraction(0, 0)
    assert math.isnan(found.value)
    assert statistics.fraction(0, 10).lower == pytest.approx(0.0, abs=1e-12)
