"""The stationary covariance: a fixed point of the moments, reached by runs, with its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import diffusion, linearized, variance_factor


@pytest.fixture(autouse=True)
def float64(x64):
    """Theorems are checked in float64."""


def problem_with_noise(n=6, p=3, seed=0, null=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(n, p, p))
    gradients = rng.normal(size=(n, p))
    if null:
        roots[:, -null:] = 0
        gradients[:, -null:] = 0
    return linearized.quadratic(roots @ roots.swapaxes(1, 2) / p, gradients - gradients.mean(0))


@pytest.mark.parametrize("null", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_the_covariance_is_the_fixed_point_that_the_moments_reach(batch_size, null):
    problem, eta = problem_with_noise(null=null), 0.1
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=batch_size)
    path = linearized.moments(
        problem, np.zeros(3), learning_rate=eta, batch_size=batch_size, steps=3000
    )
    np.testing.assert_allclose(found.covariance, path.second[-1], atol=1e-10)
    if batch_size == 6:
        np.testing.assert_array_equal(found.covariance, 0)
    h = problem.hessian
    assert found.excess_loss == pytest.approx(float(jnp.trace(h @ found.covariance)) / 2)
    assert found.gradient_square == pytest.approx(float(jnp.trace(h @ h @ found.covariance)))


def test_runs_settle_to_it():
    problem, eta = problem_with_noise(), 0.15
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=2)
    ends = linearized.simulate(
        problem,
        np.zeros(3),
        learning_rate=eta,
        batch_size=2,
        steps=60,
        runs=10_000,
        key=jax.random.key(0),
    )[:, -1]
    losses = jnp.einsum("rp,pq,rq->r", ends, problem.hessian, ends) / 2
    error = 5 * jnp.std(losses) / np.sqrt(len(losses))
    assert abs(losses.mean() - found.excess_loss) < error
    assert error < 0.1 * found.excess_loss  # the test can tell


def test_in_one_dimension_it_is_the_closed_form():
    # S = (1 - eta h)^2 S + eta^2 pi (s^2 S + c): S = eta pi c / (2 h - eta (h^2 + pi s^2)).
    h, g, eta = np.array([1.0, 2.0, 4.5]), np.array([1.0, -2.0, 1.0]), 0.2
    problem = linearized.quadratic(h, g[:, None])
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=2)
    pi, mean = variance_factor(3, 2), h.mean()
    # The cross moment of H_i x and g_i enters through E x = 0 only.
    expected = eta * pi * np.mean(g**2) / (2 * mean - eta * (mean**2 + pi * h.var()))
    np.testing.assert_allclose(found.covariance, [[expected]], rtol=1e-12)


def test_beyond_the_threshold_there_is_none():
    problem = problem_with_noise()
    eta = 2.1 / float(problem.sharpness)
    found = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=1)
    assert bool(jnp.all(jnp.isnan(found.covariance)))
    free = linearized.quadratic(np.zeros((2, 1, 1)), np.array([[1.0], [-1.0]]))
    found = diffusion.stationary_covariance(free, learning_rate=0.1, batch_size=1)
    assert bool(jnp.isnan(found.excess_loss))  # noise without a restoring force wanders off


def test_lyapunov_solves_its_equation_and_gives_the_trace_formulas():
    problem, eta, pi = problem_with_noise(), 0.05, 0.3
    h = problem.hessian
    noise = problem.gradients.T @ problem.gradients / problem.n
    gamma = diffusion.lyapunov(h, noise)
    np.testing.assert_allclose(gamma @ h + h @ gamma, noise, atol=1e-12)
    found = diffusion.small_rate_covariance(h, noise, learning_rate=eta, variance_factor=pi)
    assert found.excess_loss == pytest.approx(eta * pi / 4 * float(jnp.trace(noise)))  # eq. 4.46
    assert found.gradient_square == pytest.approx(eta * pi / 2 * float(jnp.trace(noise @ h)))
    three = diffusion.small_rate_covariance(h, h, learning_rate=eta, variance_factor=pi)
    assert three.excess_loss == pytest.approx(eta * pi / 4 * float(jnp.trace(h)))  # three factors
    np.testing.assert_allclose(three.covariance, eta * pi / 2 * np.eye(3), atol=1e-12)


def test_the_exact_law_tends_to_the_first_order_one():
    problem = problem_with_noise()
    noise = problem.gradients.T @ problem.gradients / problem.n
    gaps = []
    for eta in (1e-2, 1e-3):
        exact = diffusion.stationary_covariance(problem, learning_rate=eta, batch_size=2)
        first = diffusion.small_rate_covariance(
            problem.hessian, noise, learning_rate=eta, variance_factor=variance_factor(6, 2)
        )
        gaps.append(float(exact.excess_loss / first.excess_loss - 1))
    assert 0 < gaps[1] < gaps[0] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)  # the relative error is O(eta)
