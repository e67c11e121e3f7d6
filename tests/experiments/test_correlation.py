"""correlation: claims on made-up minima, problems by name, then the whole chain on tiny grids."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from jaxstab import testing
from jaxstab.experiments import correlation
from jaxstab.experiments.base import Context, execute

PROBLEMS = ("digits/fnn-small", "cifar10/vgg/airplane,automobile")


def minima_of(problem, a, s):
    return [
        {"problem": problem, "sharpness": x, "nonuniformity": y, "side": "inside"}
        for x, y in zip(a, s)
    ]


def power_law(noise, seed=0, m=20):
    rng = np.random.default_rng(seed)
    a = rng.uniform(0.5, 50, m)
    return a, 2 * a * np.exp(noise * rng.standard_normal(m))


def status(rows):
    return {claim.name: claim.status for claim in correlation.claims(rows, PROBLEMS)}


def test_claims_as_they_come_out():
    strong = minima_of(PROBLEMS[0], *power_law(0.05)) + minima_of(PROBLEMS[1], *power_law(0.05, 1))
    assert set(status(strong).values()) == {"holds"}
    reversed_ = [row | {"nonuniformity": 1 / row["sharpness"]} for row in strong]
    assert set(status(reversed_).values()) == {"does not hold"}
    weak = minima_of(PROBLEMS[0], *power_law(2.0, 2, m=8)) + minima_of(PROBLEMS[1], [1.0], [2.0])
    found = status(weak)
    assert found[f"correlated {PROBLEMS[1]}"] == "inconclusive"  # one point
    assert found[f"correlated {PROBLEMS[0]}"] == "inconclusive"  # eight noisy ones


def test_runs_that_reached_no_minimum_do_not_count():
    rows = minima_of(PROBLEMS[0], *power_law(0.0))
    rows += [{"problem": PROBLEMS[0], "sharpness": np.nan, "nonuniformity": np.nan, "side": ""}]
    claim = correlation.claims(rows, PROBLEMS)[0]
    assert claim.measured == pytest.approx(1.0) and "20 minima" in claim.statistic
    assert " 20/21 " in correlation.table(rows, PROBLEMS)


def test_nothing_at_all_is_inconclusive():
    assert set(status([]).values()) == {"inconclusive"}
    assert "–" in correlation.table([], PROBLEMS)
    correlation.draw([], {})


def test_problems_by_name():
    settings = correlation.EXPERIMENT.settings("paper")
    grid = correlation.grid_settings(settings, PROBLEMS[1])
    assert (grid.dataset, grid.model) == ("cifar10", "vgg")
    assert grid.classes == ("airplane", "automobile") and grid.loss == "squared"
    assert grid.learning_rates == settings.learning_rates and grid.n_train == 1000


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("digits", "a problem is DATASET/MODEL"),
        ("digit/fnn", "did you mean 'digits'"),
        ("digits/fnn-smal", "did you mean 'fnn-small'"),
    ],
)
def test_wrong_problems_before_any_work(tmp_path, problem, message):
    settings = dataclasses.replace(
        correlation.EXPERIMENT.settings(), problems=(PROBLEMS[0], problem)
    )
    with pytest.raises(ValueError, match=message):
        correlation.run(settings, Context(tmp_path))
    assert not list(tmp_path.iterdir())


def test_published_means_only_beside_the_same_data_and_network():
    theirs = correlation.published_points(correlation.EXPERIMENT.settings("paper"))
    assert set(theirs) == {"fashion_mnist/fnn", "cifar10/vgg/airplane,automobile"}
    assert all(row["nonuniformity_mean"] > 0 for rows in theirs.values() for row in rows)
    assert correlation.published_points(correlation.EXPERIMENT.settings()) == {}
    figure = correlation.draw(minima_of("cifar10/vgg/airplane,automobile", [1.0], [2.0]), theirs)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "fashion_mnist/fnn: published means" in labels


def test_every_problem_has_its_folder_and_its_share_of_the_progress(tmp_path, monkeypatch):
    seen, folders = [], []

    def fake_grid(settings, context, *, batch_sizes):
        folders.append(context.out.name)
        for done in range(3):
            context.progress(done, 2, "run")
        return SimpleNamespace(rows=minima_of("", [1.0, 2.0], [3.0, 6.0]))

    monkeypatch.setattr(correlation, "run_grid", fake_grid)
    settings = dataclasses.replace(correlation.EXPERIMENT.settings(), problems=PROBLEMS)
    context = Context(tmp_path, lambda *state: seen.append(state))
    outcome = correlation.run(settings, context)
    assert folders == ["digits_fnn-small", "cifar10_vgg_airplane+automobile"]
    assert [(done, total) for done, total, _ in seen] == [(i, 4) for i in (0, 1, 2, 2, 3, 4)]
    assert seen[0][2] == "digits/fnn-small run"
    assert len(outcome.rows) == 4 and outcome.figures[0].stat().st_size > 10_000


def test_paper_problem_runs_on_prepared_data(tmp_path):
    testing.write_tfds("cifar10", tmp_path / "data", n_train=40, n_test=20)
    small = dataclasses.replace(
        correlation.EXPERIMENT.settings("paper"),
        problems=("cifar10/vgg/airplane,automobile",),
        n_train=6,
        learning_rates=(0.01,),
        batch_sizes=(3,),
        init_scales=(1.0,),
        seeds=1,
        max_steps=2,
        loss_tolerance=10.0,  # a "minimum" at once: this is about the path, not the result
        tol=0.1,
    )
    outcome = execute(
        correlation.EXPERIMENT,
        small,
        out=tmp_path / "out",
        preset="paper",
        data_dir=tmp_path / "data",
    )
    assert outcome.rows[0]["sharpness_converged"] and outcome.rows[0]["nonuniformity_converged"]
    claims = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert [claim["status"] for claim in claims] == ["inconclusive"] * 2  # one point
    assert "problem" in (tmp_path / "out" / "results.csv").read_text().splitlines()[0]
