"""Escape: growth and time by hand and against the exact map, outcomes by hand and by running."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import measure
from jaxstab.stability import escape, exact, linearized
from jaxstab.stability.escape import Escape, observe_escape, predict_escape


def well(w, curvature):
    """Two directions of curvatures 2 and 1/2 on average; the first differs over the examples."""
    return 0.5 * (curvature * w[0] ** 2 + 0.5 * w[1] ** 2)


CURVATURES = np.array([1.0, 3.0, 1.0, 3.0])  # H = diag(2, 1/2), Sigma = diag(1, 0)


@pytest.fixture
def along(x64):
    directions = [jnp.array([3.0, 0.0]), jnp.array([0.0, 1.0])]  # of any length
    return escape.slices(well, jnp.array([0.1, 0.1]), jnp.asarray(CURVATURES), directions)


def test_slices_by_hand(along):
    np.testing.assert_allclose(along.curvature, [2.0, 0.5])
    np.testing.assert_allclose(along.curvature_variance, [1.0, 0.0], atol=1e-14)
    np.testing.assert_allclose(along.slope, [0.2, 0.05])
    np.testing.assert_allclose(along.slope_variance, [0.01, 0.0], atol=1e-14)
    assert along.loss == pytest.approx((2 * 0.01 + 0.5 * 0.01) / 2) and along.n == 4


def test_growth_and_time_by_hand(along):
    def predicted(eta, batch_size):
        return predict_escape(along, learning_rate=eta, batch_size=batch_size)

    pi = (4 - 2) / (2 * 3)
    assert predicted(0.5, 4).growth == pytest.approx(0.75**2)  # along the second direction
    assert predicted(1.5, 2).growth == pytest.approx(4 + 2.25 * pi)
    assert predicted(0.5, 2).steps == math.inf
    # all the energy along the first axis is 2 * 0.1^2 / 2, and GD has no noise
    assert predicted(1.5, 4).steps == pytest.approx(math.log(9 * along.loss / 0.01) / math.log(4))
    energy = 0.01 + 2.25 * pi * np.var([0.1, 0.3, 0.1, 0.3])  # slopes along the first axis
    steps = math.log(9 * along.loss / energy) / math.log(4 + 2.25 * pi)
    assert predicted(1.5, 2).steps == pytest.approx(steps)
    assert predicted(9.0, 2).steps == 1.0  # one step is the least


def test_growth_is_a_lower_bound_of_the_moment_map_and_exact_for_gradient_descent(x64):
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(6, 2, 3))
    reduced = exact.reduce(factors)
    hessians = jnp.asarray(np.einsum("nkp,nkq->npq", factors, factors))
    values, vectors = np.linalg.eigh(hessians.mean(0))
    along = escape.slices(
        lambda w, h: w @ h @ w / 2, jnp.ones(3), hessians, list(jnp.asarray(vectors.T))
    )
    for eta in (0.5 / values[-1], 2.2 / values[-1]):
        for batch_size in (1, 2, 6):
            options = {"learning_rate": eta, "batch_size": batch_size}
            found = predict_escape(along, **options).growth
            truth = exact.mean_square_growth(reduced, **options, key=jax.random.key(0)).value
            assert 0.3 * truth < found <= truth * (1 + 1e-6)
            if batch_size == 6:
                assert found == pytest.approx(float(truth), rel=1e-5)


def test_gradient_descent_leaves_when_predicted(x64):
    """On a quadratic the time of gradient descent is exact up to the round to whole steps."""
    data, start = jnp.asarray(CURVATURES), jnp.array([1e-4, 3e-4])
    found = measure(well, start, data, key=jax.random.key(0))
    along = escape.slices(well, start, data, [found.sharpness.vector])
    predicted = predict_escape(along, learning_rate=1.2, batch_size=4, loss_factor=50.0)
    problem = linearized.quadratic(np.einsum("n,pq->npq", CURVATURES / 2, np.diag([2.0, 0.5])))
    assert predicted.growth == pytest.approx((1 - 1.2 * 2) ** 2)
    path = start * np.array([1 - 1.2 * 2, 1 - 1.2 / 2]) ** np.arange(41)[:, None]
    losses = [float(jnp.mean(jax.vmap(well, (None, 0))(x, data))) for x in path]
    seen = observe_escape(range(41), losses, predicted=predicted, loss_factor=50.0)
    assert seen.outcome == "left" and 0 <= seen.steps - predicted.steps <= 1.5
    assert problem.n == 4


@pytest.mark.parametrize(
    ("losses", "flattening", "predicted", "expected"),
    [
        ([1, 2, 5, 17, 65], math.nan, (4.0, 2.0), ("left", 3, 4.0)),
        ([1, math.nan, 3, 4], math.nan, (4.0, 2.0), ("left", 1, math.nan)),
        ([1, 2, 3, 4], math.nan, (4.0, 2.0), ("stayed", math.inf, math.nan)),
        ([1, 2, 10, 4], math.nan, (0.9, math.inf), ("stayed", math.inf, math.nan)),
        ([1, 3, 2, 1], 0.3, (0.9, math.inf), ("left", 1, math.nan)),  # flatter, without a burst
        ([1, 3, 2, 1], 0.05, (0.9, math.inf), ("stayed", math.inf, math.nan)),
        ([1, 1, 1, 2], 0.0, (1.01, 300.0), ("too short", math.inf, math.nan)),
        ([1, 1, 1, 2], 0.2, (1.01, 300.0), ("left", 3, math.nan)),
        ([1, 1, 1, 99], 0.0, (1.01, 300.0), ("left", 3, math.nan)),  # sooner than predicted
    ],
)
def test_outcomes(losses, flattening, predicted, expected):
    found = observe_escape(
        range(len(losses)), losses, predicted=Escape(*predicted), flattening=flattening
    )
    assert found.outcome in escape.OUTCOMES
    np.testing.assert_equal(tuple(found), expected)


def test_growth_is_of_one_step_only():
    found = observe_escape([0, 1, 10, 20], [1.0, 2.0, 3.0, 30.0], predicted=Escape(4.0, 2.0))
    assert found.outcome == "left" and found.steps == 20 and math.isnan(found.growth)


def test_escape_steps():
    assert escape.escape_steps(1.0, factor=100.0) == np.inf
    assert 1.1 ** escape.escape_steps(1.1, factor=100.0) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: predict_escape(a, learning_rate=0.0, batch_size=1), "learning_rate"),
        (lambda a: predict_escape(a, learning_rate=1.0, batch_size=5), "number of examples 4"),
        (lambda a: predict_escape(a, learning_rate=1, batch_size=1, loss_factor=1), "above 1"),
        (lambda a: escape.slices(well, jnp.ones(2), jnp.ones(4), []), "at least one"),
        (lambda a: escape.slices(well, jnp.ones(2), jnp.ones(4), [jnp.zeros(2)]), "length"),
        (lambda a: observe_escape([0], [1.0], predicted=Escape(2.0, 1.0)), "one shape"),
        (lambda a: escape.escape_steps(2.0, factor=0.0), "factor must be positive"),
    ],
)
def test_wrong_input_is_refused(along, call, words):
    with pytest.raises(ValueError, match=words):
        call(along)
