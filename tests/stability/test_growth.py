"""Eq. 8 as an operator and by eigenvalue, and the largest learning rate that it allows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import stability
from jaxstab.callables import register
from jaxstab.stability import exact, linearized, variance_factor


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """v -> A v on {"x": first two entries, "y": the rest}."""

    matrix: jax.Array

    def __call__(self, v):
        product = self.matrix @ jnp.concatenate([v["x"], v["y"]])
        return {"x": product[:2], "y": product[2:]}


def like(p):
    return {"x": jnp.zeros(2), "y": jnp.zeros(p - 2)}


def operators(problem):
    return Dense(problem.hessian), Dense(problem.variance)


def eq_8(problem, eta, pi):
    h = np.asarray(problem.hessian)
    once = np.eye(len(h)) - eta * h
    return once @ once + eta**2 * pi * np.asarray(problem.variance)


def psd_problem(n=5, p=6, rank=1, seed=0):
    roots = np.random.default_rng(seed).normal(size=(n, rank, p))
    return linearized.quadratic(np.einsum("nkp,nkq->npq", roots, roots))


@pytest.mark.parametrize("batch_size, replacement", [(1, False), (3, False), (5, False), (2, True)])
def test_operator_and_eigenvalue_are_eq_8(x64, batch_size, replacement):
    problem, eta = psd_problem(rank=3), 0.21
    options = {"learning_rate": eta, "batch_size": batch_size, "n": 5, "replacement": replacement}
    operator = stability.one_step_operator(*operators(problem), **options)
    units = {"x": jnp.eye(6)[:, :2], "y": jnp.eye(6)[:, 2:]}
    product = jax.vmap(jax.jit(lambda operator, v: operator(v)), (None, 0))(operator, units)
    expected = eq_8(problem, eta, variance_factor(5, batch_size, replacement))
    np.testing.assert_allclose(np.hstack([product["x"], product["y"]]), expected, atol=1e-12)
    growth = stability.one_step_growth(
        *operators(problem), like(6), **options, key=jax.random.key(0), tol=1e-8
    )
    assert growth.value == pytest.approx(np.linalg.eigvalsh(expected)[-1], rel=1e-8)


def test_it_is_the_growth_of_the_mean_square_in_one_step(x64):
    problem, eta = psd_problem(rank=3), 0.21
    x = np.random.default_rng(1).normal(size=6)
    after = linearized.moments(problem, x, learning_rate=eta, batch_size=2, steps=1).second[-1]
    assert np.trace(after) == pytest.approx(x @ eq_8(problem, eta, variance_factor(5, 2)) @ x)


@pytest.mark.parametrize("rank", [1, 3])  # rank 1 with n = 5 < p = 6: H is singular
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("seed", range(2))
def test_the_largest_learning_rate(x64, rank, batch_size, seed):
    problem = psd_problem(rank=rank, seed=seed)
    expected = exact.sufficient_learning_rate(
        exact.reduce_hessians(problem.hessians), batch_size=batch_size
    )
    tol = 1e-8
    found = stability.sufficient_learning_rate(
        *operators(problem),
        like(6),
        batch_size=batch_size,
        n=5,
        key=jax.random.key(seed),
        slack=0,
        tol=tol,
    )
    assert found.converged
    if batch_size == 5:  # gradient descent
        assert expected == pytest.approx(2 / float(problem.sharpness))
    # From above, as a ratio of quadratic forms at one vector; the excess tol of the eigenvalue is
    # 2 d(eta) v^T H v for the unit vector v at which eq. 8 becomes tight.
    assert expected * (1 - 1e-12) <= found.value <= expected * (1 + 1e-5)
    excess = np.linalg.eigvalsh(eq_8(problem, found.value, variance_factor(5, batch_size)))[-1] - 1
    assert excess <= 2 * tol
    assert found.growth.interval.upper <= 1 + 2 * tol
    assert found.matvecs > 0


def test_no_learning_rate_is_stable_on_a_saddle_and_every_one_where_it_is_flat(x64):
    options = {"batch_size": 1, "n": 2, "key": jax.random.key(0), "slack": 0, "tol": 1e-8}
    saddle = linearized.quadratic(np.stack([np.diag([1.0, -0.5, 0.3, 0.2, 0.1, 0.0])] * 2))
    assert stability.sufficient_learning_rate(*operators(saddle), like(6), **options).value == 0
    flat = linearized.quadratic(np.zeros((2, 6, 6)))
    assert stability.sufficient_learning_rate(*operators(flat), like(6), **options).value == np.inf


def test_slack_forgives_a_little_negative_curvature(x64):
    hessian = np.diag([1.0, 0.5, 0.3, 0.2, 0.1, -1e-3])
    problem = linearized.quadratic(np.stack([hessian + np.eye(6) / 3, hessian - np.eye(6) / 3]))
    options = {"batch_size": 1, "n": 2, "key": jax.random.key(0), "tol": 1e-8}
    strict = stability.sufficient_learning_rate(*operators(problem), like(6), slack=0, **options)
    assert strict.value == 0
    found = stability.sufficient_learning_rate(*operators(problem), like(6), slack=0.02, **options)
    assert found.converged and 0 < found.value < 2
    top = np.linalg.eigvalsh(eq_8(problem, found.value, 1.0))[-1]
    assert top == pytest.approx(1.02, abs=3e-8)


def test_an_exhausted_search_says_so(x64):
    problem = psd_problem(rank=1)
    found = stability.sufficient_learning_rate(
        *operators(problem),
        like(6),
        batch_size=1,
        n=5,
        key=jax.random.key(0),
        slack=0,
        tol=1e-8,
        max_iterations=1,
    )
    assert not found.converged
    assert found.growth.value > 1


def test_a_new_learning_rate_compiles_nothing():
    problem = psd_problem()
    traces = []

    @jax.jit
    def product(operator, v):
        traces.append(None)
        return operator(v)

    for eta in (0.1, 0.2, 0.3):
        operator = stability.one_step_operator(
            *operators(problem), learning_rate=eta, batch_size=2, n=5
        )
        product(operator, like(6))
    assert len(traces) == 1


def test_wrong_input_is_refused():
    problem = psd_problem()
    options = {"learning_rate": 0.1, "batch_size": 2, "n": 5}
    for changes, words in [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"batch_size": 6}, "above the number of examples 5"),
        ({"n": 0}, "n must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            stability.one_step_operator(*operators(problem), **(options | changes))
    limit = {"batch_size": 2, "n": 5, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match="slack"):
        stability.sufficient_learning_rate(*operators(problem), like(6), slack=-1.0, **limit)
    with pytest.raises(TypeError, match="expected a function"):
        stability.one_step_operator(problem.hessian, problem.variance, **options)
