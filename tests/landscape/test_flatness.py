"""Flatness radii on losses whose radius is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import ModelLoss, data, models
from jaxstab.landscape import directions, flatness_radius
from jaxstab.landscape.flatness import _search

KEY = jax.random.key(5)
CURVATURE = jnp.array([0.5, 2.0, 8.0])
ONES = jnp.ones(7)
RADII = {"smallest": 1e-3, "largest": 100.0}


def quadratic(params, x):
    return x * jnp.sum(CURVATURE * params**2) / 2


def test_the_radius_on_a_quadratic_is_known(x64):
    """½ r² uᵀHu = ε, to the stated tolerance of 1e-3 (the middle of an interval: half of it)."""
    u = directions(jnp.zeros(3), kind="gaussian", key=KEY, count=20)
    found = flatness_radius(quadratic, jnp.zeros(3), ONES, eps=0.1, directions=u, **RADII)
    exact = np.sqrt(2 * 0.1 / np.sum(CURVATURE * u**2, axis=1))
    np.testing.assert_allclose(found.radius, exact, rtol=6e-4)
    assert np.all(found.inside <= exact * (1 + 1e-9)) and np.all(found.outside >= exact)
    assert found.infinite == 0 and found.loss == 0.0
    # drawn by the key, the same directions
    drawn = flatness_radius(quadratic, jnp.zeros(3), ONES, eps=0.1, key=KEY, directions=20, **RADII)
    np.testing.assert_allclose(drawn.radius, found.radius)


def test_a_loss_that_falls_counts_too():
    """|L(w) − L(w + rδ)|, as defined: on a slope s the radius is ε/s both ways."""
    both = jnp.array([[1.0], [-1.0]])
    found = flatness_radius(
        lambda w, x: 3 * w[0] * x, jnp.ones(1), ONES, eps=0.3, directions=both, **RADII
    )
    np.testing.assert_allclose(found.radius, 0.1, rtol=1e-3)


def test_an_infinite_radius_is_said_to_be_infinite():
    valley = directions(jnp.zeros(2), kind="gaussian", key=KEY, count=2)
    valley = valley.at[0].set(jnp.array([0.0, 1.0]))
    found = flatness_radius(
        lambda w, x: x * w[0] ** 2, jnp.zeros(2), ONES, eps=0.1, directions=valley, **RADII
    )
    assert np.isinf(found.radius[0]) and np.isfinite(found.radius[1])
    assert found.infinite == 1 and np.isinf(found.mean) and np.isnan(found.std)
    assert found.largest >= 100 and found.inside[0] == pytest.approx(found.largest, rel=1e-4)


@pytest.mark.parametrize("at", [0.02, 1.0, 30.0])
def test_a_narrow_crossing_is_not_stepped_over(at):
    """A bump as wide as twice the resolution, before the loss is flat again and then rises."""
    width = 0.1 * at

    def loss(w, x):
        bump = jnp.where(jnp.abs(w[0] - at) < width / 2, 1.0, 0.0)
        return x * (bump + jnp.where(w[0] > 60, 1.0, 0.0))

    u = jnp.ones((1, 1))
    arguments = {"eps": 0.5, "directions": u, "resolution": 0.05} | RADII
    found = flatness_radius(loss, jnp.zeros(1), ONES, **arguments)
    np.testing.assert_allclose(found.radius, at - width / 2, rtol=1e-3)
    # which is a matter of the resolution: one that is coarser finds the end of the plain
    coarse = flatness_radius(loss, jnp.zeros(1), ONES, **(arguments | {"resolution": 9.0}))
    assert coarse.radius[0] > 50 or coarse.radius[0] == pytest.approx(at - width / 2, rel=1e-2)


def test_a_loss_that_is_not_finite_is_outside():
    found = flatness_radius(
        lambda w, x: x * jnp.log(1 - w[0]), jnp.zeros(1), ONES, eps=50.0,
        directions=jnp.ones((1, 1)), **RADII,
    )  # fmt: skip
    assert found.radius[0] == pytest.approx(1.0, rel=1e-3)


def small_network():
    digits = data.load("digits", n_train=60, n_test=1)
    model = models.fnn((8,))
    params = models.initialize(model, jax.random.key(0), digits.train[0][0])
    return ModelLoss(model), params, digits.train


def test_the_radius_without_norm_depends_on_the_scale_and_that_with_norm_does_not():
    """A ReLU layer times 5 and the next one by 5 is the same function; biases scale along."""
    loss, params, digits = small_network()
    scaled = {
        "Dense_0": jax.tree.map(lambda x: 5 * x, params["Dense_0"]),
        "Dense_1": {
            "kernel": params["Dense_1"]["kernel"] / 5,
            "bias": params["Dense_1"]["bias"],
        },
    }

    def radius(params, **options):
        options = {"eps": 0.02, "key": KEY, "directions": 6, "chunk_size": 25} | options
        return flatness_radius(loss, params, digits, **options)

    first, second = (radius(p, normalisation="filter") for p in (params, scaled))
    np.testing.assert_allclose(first.radius, second.radius, rtol=5e-3)
    raw, raw_scaled = (radius(p, smallest=1e-3, largest=1e3) for p in (params, scaled))
    assert abs(raw.mean / raw_scaled.mean - 1) > 0.2
    squares = [float(jnp.sum(x**2)) for x in jax.tree.leaves(params)]
    assert raw.norm == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)


def test_one_group_of_parameters():
    loss, params, digits = small_network()
    top = flatness_radius(loss, params, digits, eps=0.02, key=KEY, directions=3, mask="Dense_1")
    u = directions(params, kind="gaussian", key=KEY, count=3, mask="Dense_1")
    assert float(jnp.abs(u["Dense_0"]["kernel"]).max()) == 0
    given = flatness_radius(
        loss, params, digits, eps=0.02, directions=u, smallest=1e-4 * top.norm,
        largest=100 * top.norm,
    )  # fmt: skip
    np.testing.assert_allclose(top.radius, given.radius, rtol=1e-5)
    assert top.norm < given.norm


def test_another_eps_compiles_nothing():
    def run(**numbers):
        arguments = {"eps": 0.1, "key": KEY, "directions": 4} | RADII | numbers
        flatness_radius(quadratic, jnp.zeros(3), ONES, **arguments)

    run()
    before = _search._cache_size()
    run(eps=0.2, key=jax.random.key(0), smallest=1e-2, resolution=0.1)
    assert _search._cache_size() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, "eps must be finite and positive"),
        ({"key": None}, "give a random key"),
        ({"normalisation": "layer"}, "normalisation must be None or"),
        ({"smallest": 2.0, "largest": 1.0}, "smallest must be below largest"),
        ({}, "parameters are all zero"),
        ({"directions": jnp.ones((2, 3)), "mask": True}, "used as they are"),
        ({"directions": jnp.ones((2, 4))}, "directions"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        flatness_radius(quadratic, jnp.zeros(3), ONES, **({"eps": 0.1, "key": KEY} | arguments))


def test_a_loss_that_is_not_finite_at_the_start_is_named():
    with pytest.raises(ValueError, match="the loss at params is nan"):
        flatness_radius(
            lambda w, x: jnp.log(-w[0]) * x, jnp.ones(1), ONES, eps=0.1, key=KEY, directions=1
        )
