"""A grid from settings: wrong names refused, parameters found again, paper data from disk."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxstab import testing
from jaxstab.experiments import REGISTRY, grid, problems
from jaxstab.experiments.protocol import Context, execute

TINY = REGISTRY["selection"].presets["tiny"]


def test_parameters_of_a_run_can_be_loaded(tmp_path):
    found = grid.run_grid(dataclasses.replace(TINY, batch_sizes=("n",)), Context(tmp_path))
    row = found.rows.iloc[0]
    assert row["status"] == "converged" and row["loss"] < 0.01
    for name in ("sharpness", "nonuniformity"):
        assert row[f"{name}_converged"]
        assert 0 <= row[f"{name}_upper"] - row[f"{name}_lower"] <= 2e-3 * row[name]
    params = found.result.load_params(row)
    accuracy = found.problem.evaluate(params)["train_accuracy"]
    assert float(accuracy) == pytest.approx(row["train_accuracy"])
    like = {"params": {"w": np.zeros(3)}}
    with pytest.raises(ValueError, match="does not hold parameters of this model"):
        problems.check_like(like, params, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "fnn-smal"}, "did you mean 'fnn-small'"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"loss": "square"}, "did you mean 'squared'"),
        ({"batch_sizes": (1000,)}, "batch_size 1000 is above"),
        ({"learning_rates": (-1.0,)}, "learning_rate must be finite and positive"),
        ({"tol": 0.0}, "tol"),
        ({"max_matvecs": 0}, "max_matvecs"),
    ],
)
def test_wrong_settings_before_any_work(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        grid.run_grid(dataclasses.replace(TINY, **change), Context(tmp_path))


@pytest.mark.parametrize("name", ["batch-size", pytest.param("selection", marks=pytest.mark.slow)])
def test_paper_preset_runs_on_prepared_data(tmp_path, name):
    testing.write_tfds("fashion_mnist", tmp_path / "data", n_train=20, n_test=10)
    paper = REGISTRY[name].settings("paper")
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
    data_dir = tmp_path / "data"
    outcome = execute(REGISTRY[name], small, out=tmp_path / "out", data_dir=data_dir)
    assert outcome.rows["sharpness"][0] > 0


def test_equal_problems_compile_once():
    first, second = (problems.load(TINY) for _ in range(2))
    assert jax.tree.structure(first.init) == jax.tree.structure(second.init)
    assert jax.tree.structure(first.loss) == jax.tree.structure(second.loss)
    assert jax.tree.structure(first.evaluate) == jax.tree.structure(second.evaluate)
    assert grid.measure_with(**TINY.measuring) is grid.measure_with(**TINY.measuring)
