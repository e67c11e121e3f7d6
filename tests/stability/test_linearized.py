"""Runs of linearised SGD against its exact moments, and both against eq. 8."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import linearized, variance_factor


@pytest.fixture(autouse=True)
def float64(x64):
    """Theorems are checked in float64."""


def problem_with_noise(n=5, p=3, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(n, p, p))
    gradients = rng.normal(size=(n, p))
    return linearized.quadratic(roots @ roots.swapaxes(1, 2) / p, gradients - gradients.mean(0))


@pytest.mark.parametrize("batch_size, replacement", [(1, False), (2, False), (5, False), (2, True)])
def test_one_step_of_the_moments_is_the_mean_over_all_batches(batch_size, replacement):
    problem, eta = problem_with_noise(), 0.2
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4, 3))  # a distribution of four equally likely points
    each = itertools.product if replacement else itertools.permutations
    repeat = {"repeat": batch_size} if replacement else {"r": batch_size}
    after = np.array(
        [
            x - eta * np.mean([problem.hessians[i] @ x + problem.gradients[i] for i in batch], 0)
            for x in points
            for batch in each(range(5), **repeat)
        ]
    )
    before = linearized.Moments(jnp.mean(points, 0), points.T @ points / len(points))
    pi = variance_factor(5, batch_size, replacement)
    got = linearized.next_moments(problem, before, learning_rate=eta, variance_factor=pi)
    np.testing.assert_allclose(got.mean, after.mean(0), atol=1e-13)
    np.testing.assert_allclose(got.second, after.T @ after / len(after), atol=1e-12)


@pytest.mark.parametrize("batch_size, replacement", [(1, False), (3, False), (5, False), (3, True)])
def test_runs_have_these_moments(batch_size, replacement):
    problem, x0, runs, steps = problem_with_noise(), [1.0, -0.5, 0.3], 8_000, 6
    options = {
        "learning_rate": 0.15,
        "batch_size": batch_size,
        "replacement": replacement,
        "steps": steps,
    }
    path = linearized.simulate(problem, x0, **options, key=jax.random.key(0), runs=runs)
    exact = linearized.moments(problem, x0, **options)
    assert path.shape == (runs, steps + 1, 3)
    np.testing.assert_array_equal(path[:, 0], np.broadcast_to(x0, (runs, 3)))
    squares = jnp.sum(path**2, -1)
    # 5 standard errors of a mean of independent runs; 7 steps, so a false alarm in 1e-5 of seeds.
    error = 5 * jnp.std(squares, 0) / np.sqrt(runs) + 1e-12
    assert bool(
        jnp.all(jnp.abs(squares.mean(0) - jnp.trace(exact.second, axis1=1, axis2=2)) < error)
    )
    error = 5 * jnp.std(path, 0) / np.sqrt(runs) + 1e-12
    assert bool(jnp.all(jnp.abs(path.mean(0) - exact.mean) < error))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_in_one_dimension_the_growth_is_eq_8(batch_size):
    problem = linearized.random_quadratic(
        jax.random.key(1), n=10, p=1, sharpness=2.0, nonuniformity=1.8
    )
    pi = variance_factor(10, batch_size)
    for eta in (0.3, 0.7, 1.2):
        growth = linearized.mean_square_growth(
            problem, learning_rate=eta, batch_size=batch_size, key=jax.random.key(0)
        )
        expected = (1 - 2 * eta) ** 2 + eta**2 * pi * 1.8**2
        np.testing.assert_allclose(growth.value, expected, rtol=1e-10)


def test_growth_is_the_spectral_radius_and_the_factor_of_the_moments():
    problem = problem_with_noise()
    options = {"learning_rate": 2.0, "batch_size": 2}
    growth = linearized.mean_square_growth(problem, **options, key=jax.random.key(0), tol=1e-10)
    operator = linearized.MomentMap(problem, 2.0, variance_factor(5, 2))
    dense = jax.vmap(operator)(jnp.eye(9).reshape(9, 3, 3)).reshape(9, 9)
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    assert growth.value == pytest.approx(np.abs(np.linalg.eigvals(dense)).max(), rel=1e-9)
    quiet = linearized.quadratic(problem.hessians)
    trace = jnp.trace(
        linearized.moments(quiet, np.ones(3), **options, steps=60).second, axis1=1, axis2=2
    )
    assert trace[-1] / trace[-2] == pytest.approx(float(growth.value), rel=1e-6)
    assert growth.value > 1


@pytest.mark.parametrize(
    "n, p, a, s",
    [(7, 1, 2.0, 1.8), (7, 4, 3.0, 0.5), (2, 3, 1.0, 4.0), (3, 2, 0.0, 1.0), (1, 2, 1.0, 0.0)],
)
def test_random_quadratic_has_the_asked_a_and_s(n, p, a, s):
    problem = linearized.random_quadratic(jax.random.key(3), n=n, p=p, sharpness=a, nonuniformity=s)
    assert problem.hessians.shape == (n, p, p)
    np.testing.assert_allclose(problem.sharpness, a, atol=1e-12)
    np.testing.assert_allclose(problem.nonuniformity, s, atol=1e-12)
    second = jnp.mean(problem.hessians @ problem.hessians, 0) - problem.hessian @ problem.hessian
    np.testing.assert_allclose(problem.variance, second, atol=1e-12)


def test_simulation_compiles_once_for_all_rates_and_starts():
    problem, count = problem_with_noise(), linearized._simulate._cache_size
    options = {"batch_size": 2, "steps": 3, "runs": 2}
    linearized.simulate(problem, np.ones(3), learning_rate=0.1, key=jax.random.key(0), **options)
    before = count()
    for seed in range(3):
        linearized.simulate(
            problem, np.zeros(3), learning_rate=0.2 + seed, key=jax.random.key(seed), **options
        )
    assert count() == before


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: linearized.quadratic(np.ones((2, 3, 4))), r"shape \(n, p, p\)"),
        (lambda: linearized.quadratic(np.arange(8.0).reshape(2, 2, 2)), "symmetric"),
        (lambda: linearized.quadratic([1.0, np.nan]), "NaN"),
        (lambda: linearized.quadratic([1.0, 2.0], np.ones((2, 1))), "average to zero"),
        (lambda: linearized.quadratic([1.0, 2.0], np.ones(2)), r"shape \(2, 1\)"),
        (
            lambda: linearized.random_quadratic(
                jax.random.key(0), n=1, p=1, sharpness=1.0, nonuniformity=1.0
            ),
            "n >= 2",
        ),
        (lambda: run(batch_size=3), "above the number of examples 2"),
        (lambda: run(batch_size=0, replacement=True), "at least 1"),
        (lambda: run(steps=0), "steps"),
        (lambda: run(runs=0), "runs"),
        (lambda: run(x0=[1.0, 2.0]), "x0 must have shape"),
        (lambda: run(learning_rate=-1.0), "learning_rate"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def run(x0=(1.0,), **changes):
    options = {
        "learning_rate": 0.1,
        "batch_size": 1,
        "steps": 1,
        "key": jax.random.key(0),
    } | changes
    return linearized.simulate(linearized.quadratic([1.0, 2.0]), x0, **options)
