"""The simplex holds its corners, its edges are slices, and batch norm is a choice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxstab import ModelLoss, data, losses, models
from jaxstab.landscape import Reestimated, between, simplex, slice
from jaxstab.landscape.simplex import _evaluate, barycentric


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(6)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(10)(nn.relu(x))


@pytest.fixture(scope="module")
def network():
    digits = data.load("digits", n_train=30, n_test=20)
    model = models.fnn((6,))
    corners = [models.initialize(model, jax.random.key(i), digits.train[0][0]) for i in range(3)]
    return ModelLoss(model), corners, digits


def test_corners_and_edges_are_what_a_slice_finds(network):
    loss, corners, digits = network
    found = simplex(loss, corners, digits.train, test_data=digits.test, resolution=4, chunk_size=7)
    assert found.weights.shape == (15, 3) and np.allclose(found.weights.sum(axis=1), 1)
    edge = np.asarray(found.weights)[:, 2] == 0
    line = slice(
        loss,
        corners[1],
        digits.train,
        direction=between(corners[1], corners[0]),
        positions=np.linspace(0, 1, 5),
        test_data=digits.test,
    )
    for name in ("loss", "test_loss", "accuracy", "test_accuracy"):
        np.testing.assert_allclose(getattr(found, name)[edge], getattr(line, name), rtol=1e-5)
    for k, corner in enumerate(corners):
        at = np.asarray(found.weights)[:, k] == 1
        own = losses.accuracy(loss, corner, digits.train)
        assert float(found.accuracy[at][0]) == pytest.approx(float(own))


def test_an_affine_loss_is_interpolated_exactly():
    corners = [jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]), jnp.array([4.0, 4.0]), jnp.zeros(2)]
    found = simplex(lambda w, x: x * jnp.sum(w), corners, jnp.ones(3), resolution=3)
    assert found.weights.shape == (20, 4)
    np.testing.assert_allclose(
        found.loss, found.weights @ np.array([1.0, 2.0, 8.0, 0.0]), rtol=1e-6
    )


@pytest.mark.parametrize(("corners", "resolution"), [(3, 1), (3, 20), (4, 5)])
def test_the_grid_is_complete_and_has_no_point_twice(corners, resolution):
    grid = barycentric(corners, resolution)
    from math import comb

    assert len(grid) == len(np.unique(grid, axis=0)) == comb(resolution + corners - 1, corners - 1)
    assert np.all(grid >= 0) and np.all(grid.sum(axis=1) == resolution)


def test_the_area_above_a_level_is_that_of_the_triangle():
    """λ₁ > ½ is a quarter of the area; each of the steps of the grid counts half of its strip."""
    corners = [jnp.ones(1), jnp.zeros(1), jnp.zeros(1)]
    found = simplex(lambda w, x: x * w[0], corners, jnp.ones(2), resolution=61)
    assert found.fraction_above(0.5, of="loss") == pytest.approx(0.25, abs=1 / 61)
    assert found.fraction_above(-1.0, of="loss") == 1.0
    places = found.coordinates()
    assert np.allclose(places[np.asarray(found.weights)[:, 2] == 1], [[0.5, np.sqrt(3) / 2]])
    with pytest.raises(ValueError, match="there is no accuracy"):
        found.fraction_above(0.5)


def test_batch_statistics_are_frozen_or_new_at_every_point_as_chosen():
    digits = data.load("digits", n_train=16, n_test=2)
    model, x = Normed(), digits.train[0]
    corners = [models.initialize(model, jax.random.key(i), x[0]) for i in range(3)]
    loss = ModelLoss(model, state=models.recompute_batch_stats(model, corners[0], x))
    with pytest.raises(ValueError, match="choose batch_norm"):
        simplex(loss, corners, digits.train, resolution=1)
    frozen, own = (
        simplex(loss, corners, digits.train, resolution=1, batch_norm=policy)
        for policy in ("frozen", Reestimated(x))
    )
    order = np.argmax(np.asarray(own.weights), axis=1)
    for row, k in enumerate(order):
        state = models.recompute_batch_stats(model, corners[k], x)
        mine = ModelLoss(model, state=state)
        mean = jnp.mean(jax.vmap(mine, (None, 0))(corners[k], digits.train))
        assert float(own.loss[row]) == pytest.approx(float(mean), rel=1e-4)
    same = np.isclose(frozen.loss, own.loss, rtol=1e-4)
    assert same[order == 0].all() and not same[order != 0].any()


def test_other_corners_compile_nothing(network):
    loss, corners, digits = network
    simplex(loss, corners, digits.train, resolution=2)
    before = _evaluate._cache_size()
    simplex(loss, corners[::-1], digits.train, resolution=2)
    assert _evaluate._cache_size() == before


@pytest.mark.parametrize(
    ("vertices", "message"),
    [
        ([jnp.zeros(2), jnp.ones(2)], "at least 3 points"),
        ([jnp.zeros(2), jnp.ones(2), jnp.ones(3)], "vertex 2"),
    ],
)
def test_wrong_vertices_say_what_to_do(vertices, message):
    with pytest.raises(ValueError, match=message):
        simplex(lambda w, x: jnp.sum(w) * x, vertices, jnp.ones(2))
