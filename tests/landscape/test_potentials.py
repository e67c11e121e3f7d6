"""Exact laws of the two potentials against brute-force integrals, and their stated properties."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxstab.landscape import flat_valley, two_wells

BOTH = [two_wells(3, width=1.7), flat_valley(3, period=1.5)]


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_the_integrals_give_w_to_the_d_at_every_temperature(dimension, temperature):
    potential = two_wells(dimension)
    marginal = potential.marginal(temperature=temperature)
    left, right = (marginal.probability(*minimum.region) for minimum in potential.minima)
    # trapezoids of width 2e-4 on a C² function: below 1e-6
    assert right / left == pytest.approx(2**dimension, rel=1e-6)
    assert potential.occupancy_ratio(temperature) == pytest.approx(2**dimension, rel=1e-12)


@pytest.mark.parametrize("dimension", [2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_integrals_give_the_closed_form_of_the_flat_valley(dimension, temperature):
    potential = flat_valley(dimension)
    marginal = potential.marginal(temperature=temperature)
    left, right = (marginal.probability(*minimum.region) for minimum in potential.minima)
    assert right / left == pytest.approx(potential.occupancy_ratio(temperature), rel=1e-6)


def test_the_flat_valley_takes_everything_as_the_temperature_falls_and_faster_with_d():
    ratios = [[flat_valley(d).occupancy_ratio(t) for t in (1.0, 0.3, 0.1, 0.01)] for d in (2, 3, 5)]
    assert np.all(np.diff(ratios, axis=1) > 0) and np.all(np.diff(ratios, axis=0) > 0)
    # T^(-(d-1)/2) in the limit: a tenth of the temperature, sqrt(10) for each flat direction
    cold = flat_valley(3).occupancy_ratio(1e-4) / flat_valley(3).occupancy_ratio(1e-3)
    assert cold == pytest.approx(10, rel=0.01)


@pytest.mark.parametrize("potential", BOTH)
@pytest.mark.parametrize("coordinate", [0, 1])
def test_marginals_equal_integrals_of_the_potential_itself(potential, coordinate, x64):
    """scipy's cubature over the full potential, in two of the three coordinates."""
    temperature = 0.4
    marginal = potential.marginal(temperature=temperature, coordinate=coordinate)
    half = 4.0 if potential.period is None else potential.period / 2
    value = jax.jit(jax.vmap(potential))

    def density(at):
        first = np.linspace(-2.5, 6.0, 1401) if coordinate else np.linspace(-half, half, 401)
        second = np.linspace(-half, half, 401)
        a, b = np.meshgrid(first, second, indexing="ij")
        columns = [a.ravel(), b.ravel()]
        columns.insert(coordinate, np.full(a.size, at))
        weights = np.exp(-np.asarray(value(np.stack(columns, 1))) / temperature).reshape(a.shape)
        return integrate.simpson(integrate.simpson(weights, x=second), x=first)

    places = np.array([-1.2, 0.2, 1.0, 2.0]) if coordinate == 0 else np.array([0.0, 0.2, 0.5])
    ours = np.interp(places, marginal.x, marginal.density)
    theirs = np.array([density(place) for place in places])
    np.testing.assert_allclose(ours / ours[0], theirs / theirs[0], rtol=2e-4)


@pytest.mark.parametrize("potential", [*BOTH, two_wells(1)])
def test_minima_are_where_and_as_deep_and_as_curved_as_stated(potential):
    everything = jax.jit(
        lambda x: (potential(x), jax.grad(potential)(x), jax.hessian(potential)(x))
    )
    for minimum in potential.minima:
        value, gradient, hessian = everything(jnp.asarray(minimum.position, jnp.float32))
        assert float(value) == pytest.approx(minimum.value, abs=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-5)
        np.testing.assert_allclose(hessian, np.diag(minimum.curvature), atol=1e-4)
        assert minimum.region[0] < minimum.position[0] < minimum.region[1]


@pytest.mark.parametrize("potential", BOTH)
def test_the_profile_is_twice_differentiable_and_its_derivatives_are_right(potential):
    x = np.linspace(-1.8, 4.5, 20_001)
    for values in (potential.axis(x), potential.stiffness(x)):
        for value, slope in itertools.pairwise(values):
            # central differences: the step, 3e-4, times the jump of the third derivative
            np.testing.assert_allclose(np.gradient(value, x)[2:-2], slope[2:-2], atol=0.5)
    # there is a wall on both sides
    assert potential.axis(np.array([-3.0]))[0] > 50 and potential.axis(np.array([9.0]))[0] > 50


def test_the_correction_for_the_learning_rate_is_right_to_first_order():
    """Against the stationary law of the chain's own kernel, in one dimension."""
    potential, temperature = two_wells(1), 0.5
    grid = np.linspace(-2.0, 6.0, 801)
    errors = []
    for eta in (0.02, 0.01):
        mean = grid - eta * potential.axis(grid)[1]
        kernel = np.exp(-((grid[None] - mean[:, None]) ** 2) / (4 * eta * temperature))
        kernel /= kernel.sum(axis=1, keepdims=True)
        law = np.linalg.matrix_power(kernel, 2**16)[0]
        chain = law[grid > 0.5].sum() / law[grid < 0].sum()
        corrected = potential.marginal(temperature=temperature, learning_rate=eta)
        left, right = (corrected.probability(*minimum.region) for minimum in potential.minima)
        errors.append(abs(right / left / chain - 1))
        assert errors[-1] < 0.25 * abs(2 / chain - 1)
    # halving η quarters what is left, up to the third order
    assert errors[1] < 0.4 * errors[0]


@pytest.mark.parametrize("potential", BOTH)
def test_tilts_leave_the_mean_and_set_the_covariance(potential):
    tilts = potential.tilts(20, scale=0.3, key=jax.random.key(0))
    np.testing.assert_allclose(tilts.sum(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(tilts.T @ tilts / 20, 0.09 * np.eye(3), atol=1e-6)
    place = jnp.array([0.3, 0.2, -0.1])
    losses = jax.vmap(potential, (None, 0))(place, tilts)
    assert float(losses.mean()) == pytest.approx(float(potential(place)), rel=1e-5)


def test_the_torus_is_periodic_and_wraps():
    potential = flat_valley(2, period=1.5)
    place = jnp.array([[-0.8, 2.0]])
    assert float(potential(place[0])) == pytest.approx(float(potential(jnp.array([-0.8, 0.5]))))
    np.testing.assert_allclose(potential.wrap(place), [[-0.8, 0.5]], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: two_wells(0), "dimension must be at least 1"),
        (lambda: two_wells(2, width=-1.0), "width must be finite and positive"),
        (lambda: flat_valley(1), "dimension must be at least 2"),
        (lambda: two_wells(2)(jnp.zeros(3)), "has 2 coordinates, got x of shape"),
        (lambda: two_wells(2).marginal(temperature=0.0), "temperature must be"),
        (lambda: two_wells(2).marginal(temperature=1.0, coordinate=2), "coordinate must be in"),
        (lambda: two_wells(2).tilts(2, scale=1.0, key=jax.random.key(0)), "n must be at least 3"),
    ],
)
def test_wrong_arguments_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_infinite_ends_are_the_ends_of_the_grid():
    marginal = two_wells(2).marginal(temperature=0.5)
    assert marginal.probability(-math.inf, math.inf) == 1.0
