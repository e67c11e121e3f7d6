"""Points of a run: where they lie, and that they are those of the run itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.snapshots import snapshots, spaced_blocks, train_keeping
from jaxstab.training import train

DATA = jnp.array([1.0, 2.0, 4.0])
OPTIONS = {"optimizer": optax.sgd, "batch_size": 3, "key": jax.random.key(0)}


def loss(w, x):
    return (w - x) ** 2


@pytest.mark.parametrize(("max_steps", "points"), [(20_000, 14), (199, 5), (3, 30), (1, 2)])
def test_blocks_are_spread_from_start_to_end(max_steps, points):
    block, stops = spaced_blocks(max_steps, points)
    assert stops[0] == 0 and stops[1] == 1 and stops == sorted(set(stops))
    assert max_steps - block < stops[-1] * block <= max_steps
    assert len(stops) <= points + 1


@pytest.mark.parametrize(("max_steps", "points", "words"), [(0, 3, "max_steps"), (9, 1, "points")])
def test_too_few_steps_or_points(max_steps, points, words):
    with pytest.raises(ValueError, match=words):
        spaced_blocks(max_steps, points)


def test_snapshots_are_points_of_one_run():
    """With momentum, so that a state of the optimizer that was lost would show."""
    options = OPTIONS | {"optimizer": optax.sgd(0.05, momentum=0.9)}
    found = list(snapshots(loss, jnp.zeros(()), DATA, max_steps=20, points=4, **options))
    assert [point.step for point in found][::4] == [0, 20]
    for step, params in found[1:]:
        run = train(loss, jnp.zeros(()), DATA, max_steps=step, loss_tolerance=None, **options)
        np.testing.assert_allclose(params, run.params, rtol=1e-5)


def test_batches_of_blocks_differ():
    options = OPTIONS | {"batch_size": 1, "learning_rate": 0.5}
    found = snapshots(loss, jnp.zeros(()), DATA, max_steps=30, points=30, **options)
    drawn = {float(params) for _, params in found}  # at this rate each step goes to its example
    assert drawn == {0.0, 1.0, 2.0, 4.0}


def test_a_run_that_diverges_ends_early():
    options = OPTIONS | {"learning_rate": 1e30}
    found = list(snapshots(loss, jnp.zeros(()), DATA, max_steps=20, points=4, **options))
    assert [point.step for point in found] == [0]


def test_kept_parameters_are_those_of_the_run():
    options = OPTIONS | {"learning_rate": 0.1}
    run, kept = train_keeping(loss, jnp.zeros(()), DATA, max_steps=11, points=3, **options)
    assert run.history_steps.tolist() == [0, 3, 6, 9] and run.steps == 9
    expected = (1 - 0.8 ** run.history_steps[1:]) * DATA.mean()
    np.testing.assert_allclose(kept, expected, rtol=1e-5)
