"""Where stability ends: closed form, exact map and simulation against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import box, linearized, variance_factor
from jaxstab.stability.boundary import (
    boundary_over_sharpness,
    eq8_boundary,
    find_boundary,
    simulate_mean_square_growth,
)

SMALL = {"runs": 100, "steps": 30}


def random(p, a=1.0, seed=1):
    return linearized.random_quadratic(
        jax.random.key(seed), n=10, p=p, sharpness=a, nonuniformity=1.0
    )


@pytest.mark.parametrize("batch_size, replacement", [(1, False), (3, False), (3, True)])
def test_the_ellipse_of_eq_8_touches_the_box_and_ends_in_its_corners(batch_size, replacement):
    eta = 0.5
    a = np.array([0.0, 0.4, 2.0, 3.0, 4.0, -0.1, 4.1])
    options = {"learning_rate": eta, "batch_size": batch_size, "n": 10, "replacement": replacement}
    s = eq8_boundary(a, **options)
    assert s[0] == s[4] == 0 and np.isnan(s[5:]).all()
    assert s[2] == pytest.approx(box(eta, batch_size, 10, replacement).nonuniformity)
    pi = variance_factor(10, batch_size, replacement)
    np.testing.assert_allclose((1 - eta * a[:5]) ** 2 + eta**2 * pi * s[:5] ** 2, 1)
    assert eq8_boundary(2.0, learning_rate=eta, batch_size=10, n=10) == np.inf


@pytest.mark.parametrize("a", [0.4, 2.0, 3.5])
def test_in_one_dimension_all_boundaries_are_eq_8(x64, a):
    found = find_boundary(
        random(1, a), learning_rate=0.5, batch_size=3, key=jax.random.key(0), **SMALL
    )
    expected = eq8_boundary(a, learning_rate=0.5, batch_size=3, n=10)
    assert found.eq8 == pytest.approx(float(expected), rel=1e-10)
    assert found.exact == pytest.approx(float(expected), rel=1e-10)
    assert abs(found.simulated - expected) < 5 * found.simulated_error < 0.3 * expected


def test_in_several_dimensions_eq_8_lies_below_the_exact_boundary(x64):
    eta, problem = 0.5, random(3, 2.0)
    found = find_boundary(
        problem, learning_rate=eta, batch_size=1, key=jax.random.key(0), burn_in=60, **SMALL
    )
    assert found.eq8 < found.exact
    assert found.eq8 <= found.eq9 == box(eta, 1, 10).nonuniformity
    assert abs(found.simulated - found.exact) < 5 * found.simulated_error < 0.4 * found.exact
    at_edge = linearized.Quadratic(
        problem.hessian + found.exact * (problem.hessians - problem.hessian), problem.gradients
    )
    assert at_edge.nonuniformity == pytest.approx(float(found.exact))
    growth = linearized.mean_square_growth(
        at_edge, learning_rate=eta, batch_size=1, key=jax.random.key(0), tol=1e-8
    )
    assert growth.value == pytest.approx(1, abs=1e-7)


def test_outside_the_box_linearised_sgd_can_be_stable():
    """Why s above its bound is the paper's criterion and no proof of escape, for p > 1.

    H = I/eta sends every mean to 0 in one step, and each H_i couples direction 0 to another one:
    x_0 grows in one step out of x_j, but x_j out of x_0 with probability 1/(p - 1) only.
    """
    p, eta, s = 9, 1.0, 1.5
    hessians = np.stack([np.eye(p)] * 2 * (p - 1))
    for i in range(p - 1):
        for sign, h in zip((1, -1), hessians[2 * i : 2 * i + 2]):
            h[0, i + 1] = h[i + 1, 0] = sign * s
    problem = linearized.quadratic(hessians)
    assert problem.nonuniformity == pytest.approx(s)
    assert s > box(eta, 1, problem.n).nonuniformity == 1.0
    path = linearized.moments(problem, np.eye(p)[0], learning_rate=eta, batch_size=1, steps=60)
    squares = np.trace(path.second, axis1=1, axis2=2)
    assert squares[1] == pytest.approx(s**2)  # eq. 8 fails: one step out of direction 0 grows ...
    assert squares[-1] < 1e-3 * squares[0]  # ... and yet E |x|^2 goes to zero


@pytest.mark.parametrize("p", [1, 3])
def test_simulated_growth_estimates_the_largest_eigenvalue_of_the_moment_map(x64, p):
    problem = random(p, 2.0)
    options = {"learning_rate": 0.6, "batch_size": 2}
    found = simulate_mean_square_growth(
        problem, **options, key=jax.random.key(5), runs=1000, burn_in=40
    )
    exact = linearized.mean_square_growth(problem, **options, key=jax.random.key(0), tol=1e-8)
    assert abs(found.value - exact.value) < 5 * found.standard_error < 0.1 * exact.value


def test_standard_error_covers(x64):
    problem, expected = random(1, 2.0), (1 - 1.2) ** 2 + 0.36 * variance_factor(10, 2)
    options = {"learning_rate": 0.6, "batch_size": 2, "runs": 50, "steps": 20, "burn_in": 0}
    found = [
        simulate_mean_square_growth(problem, **options, key=jax.random.key(i)) for i in range(60)
    ]
    scores = np.array([(one.value - expected) / one.standard_error for one in found])
    # A mean and a standard deviation of 60 standard normal numbers: 4 of their own deviations.
    assert abs(scores.mean()) < 4 / np.sqrt(60) and abs(scores.std() - 1) < 4 / np.sqrt(120)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_size": 10}, "at B = n"),
        ({"batch_size": 11}, "above the number of examples 10"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"runs": 1}, "runs must be at least 2"),
        ({"steps": 1}, "steps must be at least 2"),
    ],
)
def test_wrong_input_is_refused(changes, words):
    options = {"learning_rate": 0.5, "batch_size": 2, "key": jax.random.key(0)} | changes
    with pytest.raises(ValueError, match=words):
        find_boundary(random(1), **options)
    if changes != {"batch_size": 10}:
        with pytest.raises(ValueError, match=words):
            simulate_mean_square_growth(random(1), **options)


def test_gradient_descent_growth_is_the_spectral_radius_squared():
    problem = random(2, 1.0)
    found = simulate_mean_square_growth(
        problem, learning_rate=2.5, batch_size=10, key=jax.random.key(0), runs=4, burn_in=40
    )
    radius = jnp.abs(1 - 2.5 * jnp.linalg.eigvalsh(problem.hessian)).max()
    assert found.value == pytest.approx(float(radius**2), rel=1e-3)


def test_boundary_over_sharpness_is_that_of_each_point():
    options = {"n": 10, "p": 1, "learning_rate": 0.5, "batch_size": 3}
    found = boundary_over_sharpness(jax.random.key(0), **options, points=3, runs=50, steps=20)
    np.testing.assert_allclose(found["sharpness"], [2 - 2**0.5, 2, 2 + 2**0.5])
    expected = eq8_boundary(found["sharpness"], learning_rate=0.5, batch_size=3, n=10)
    np.testing.assert_allclose(found["eq8"], expected, rtol=1e-10)
    assert found["simulated_error"].shape == (3,) and (found["simulated_error"] > 0).all()
