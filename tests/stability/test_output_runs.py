"""Simulated linearised SGD in the outputs, against the exact moments and the exponent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import jaxstab as js
from jaxstab.operators import output_factors
from jaxstab.stability import output_runs, variance_factor

KEY = jax.random.key(0)


def linear_loss(w, example):
    """H_i = F_iᵀ F_i, and the loss is |u_i|²/2 with u_i the residual."""
    rows, y = example
    return jnp.sum((rows @ w - y) ** 2) / 2


@pytest.fixture(scope="module")
def problem():
    """Six examples of two outputs and eight parameters; F, 𝒦 and the minimum."""
    rng = np.random.default_rng(1)
    f = rng.normal(size=(6, 2, 8)) * np.exp(rng.normal(size=(6, 1, 1)) / 2)
    w = jnp.asarray(rng.normal(size=8), jnp.float32)
    data = (jnp.asarray(f, jnp.float32), jnp.asarray(f, jnp.float32) @ w)
    return f, w, data, output_factors(linear_loss, w, data)


def largest_of_moment_map(f, eta, size):
    """λ_max(Q), dense, in float64."""
    n, _, p = f.shape
    each = np.einsum("nkp,nkq->npq", f, f)
    h, one, pi = each.mean(0), np.eye(p), variance_factor(n, size)
    second = (1 - pi) * np.kron(h, h) + pi * np.mean([np.kron(x, x) for x in each], 0)
    q = np.eye(p * p) - eta * (np.kron(h, one) + np.kron(one, h)) + eta**2 * second
    return np.linalg.eigvalsh(q)[-1]


def threshold(f, size):
    """The η at which λ_max(Q) = 1, by bisection."""
    return optimize.brentq(lambda eta: largest_of_moment_map(f, eta, size) - 1, 1e-2, 10)


def test_reduced_factors_keep_the_kernel_and_make_h_diagonal(problem):
    f, _, _, factors = problem
    rows = f.reshape(12, 8)
    np.testing.assert_allclose(
        factors.matrix().reshape(12, 12), rows @ rows.T, rtol=1e-5, atol=1e-5
    )
    reduced = np.asarray(output_runs.reduced_factors(factors), float).reshape(12, -1)
    assert reduced.shape[1] == 8
    np.testing.assert_allclose(reduced @ reduced.T, rows @ rows.T, rtol=1e-4, atol=1e-4)
    gram = reduced.T @ reduced
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-4 * gram.max())


def test_mean_square_growth_crosses_one_at_the_threshold(problem):
    """Within the error over populations, and the bias of a finite one, a few over its size."""
    f, _, _, factors = problem
    reduced = output_runs.reduced_factors(factors)
    edge = threshold(f, 2)
    etas = edge * np.array([0.8, 1.0, 1.2, 1.5])
    found = output_runs.growth_rates(
        reduced, learning_rates=etas, batch_size=2, key=KEY, chains=1000, steps=200
    )
    truth = np.log([largest_of_moment_map(f, eta, 2) for eta in etas])
    bias = 5 / 1000
    # Below the threshold Q's largest eigenvalue is that of the flattest direction, which a run of
    # this length does not reach: there the sign alone.
    away = np.abs(np.asarray(found.value) - truth)[1:]
    assert np.all(away < 4 * found.standard_error[1:] + bias)
    assert abs(truth[1]) < 1e-6 and np.max(found.standard_error) < 0.01
    assert found.sign[0] == -1 and found.sign[2:].tolist() == [1, 1]


def test_a_population_of_one_is_a_typical_run():
    """One parameter, B = 1: E log (1 − η h)² against log E (1 − η h)²."""
    h = np.array([0.2, 3.8, 1.0, 0.5])
    root = np.sqrt(h)
    factors = jnp.asarray(root[:, None, None], jnp.float32)
    given = {"learning_rates": [0.7], "batch_size": 1, "key": KEY, "steps": 200}
    typical = output_runs.growth_rates(factors, **given, chains=1, populations=64)
    square = output_runs.growth_rates(factors, **given, chains=400)
    truth = np.mean(np.log((1 - 0.7 * h) ** 2)), np.log(np.mean((1 - 0.7 * h) ** 2))
    assert typical.standard_error[0] < 0.05 and square.standard_error[0] < 0.02
    assert abs(typical.value[0] - truth[0]) < 4 * typical.standard_error[0]
    assert abs(square.value[0] - truth[1]) < 4 * square.standard_error[0] + 2 / 400


def test_rows_of_a_batch_and_all_of_them_make_the_same_step(monkeypatch):
    factors, x = jax.random.normal(KEY, (6, 2, 5)), jnp.arange(5.0)
    batch = jnp.array([4, 1, 4])  # with replacement
    whole = output_runs._step(factors, x, 0.3, batch)
    monkeypatch.setattr(output_runs, "_GATHER", 2.0)
    rows = output_runs._step(factors, x, 0.3, batch)
    np.testing.assert_allclose(whole, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 6])
def test_a_linear_model_is_its_own_linearisation(problem, size):
    f, w, data, factors = problem
    reduced = output_runs.reduced_factors(factors)
    away = w + 0.1
    start = data[0] @ away - data[1]
    both = output_runs.run_beside(
        linear_loss, away, data, reduced, start, learning_rates=[0.02, 0.1], batch_size=size,
        keys=jax.random.split(KEY, 3), steps=20, every=5,
    )  # fmt: skip
    assert both.loss.shape == (2, 3, 5) and both.steps.tolist() == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(both.loss, both.linear, rtol=2e-3)
    moved = np.asarray(both.params[1, 2], float)
    end = np.einsum("nkp,p->nk", f, moved) - np.asarray(data[1], float)
    assert both.loss[1, 2, -1] == pytest.approx(np.sum(end**2) / 12, rel=1e-3)
    assert (np.ptp(both.loss[0, :, -1]) > 1e-6) == (size < 6)  # other keys, other batches


def test_growth_along_the_best_moment_matrix(problem):
    f, w, data, _ = problem
    found = js.mean_square_threshold(linear_loss, w, data, batch_sizes=[2, 6], key=KEY)
    for size in (2, 6):
        edge = found.value[found.index(size)]
        assert found.growth(edge, size) == pytest.approx(1)
        for eta in (0.7 * edge, 1.4 * edge):
            growth = largest_of_moment_map(f, eta, size)
            assert found.growth(eta, size) <= growth * (1 + 1e-5)
            assert (found.growth(eta, size) > 1) == (eta > edge)
    # Gradient descent: S = v vᵀ, so that the growth along it is the largest one.
    assert found.growth(1.4 * edge, 6) == pytest.approx(growth, rel=1e-3)


def test_wrong_options_are_named(problem):
    _, w, data, _ = problem
    rows = jnp.ones((6, 2, 3))
    options = {"learning_rates": [0.1], "batch_size": 2, "key": KEY}
    for changes, words in (
        ({"batch_size": 7}, "batch"),
        ({"learning_rates": [0.0]}, "learning_rate"),
        ({"populations": 1}, "populations"),
        ({"steps": 3}, "steps"),
    ):
        with pytest.raises(ValueError, match=words):
            output_runs.growth_rates(rows, **(options | changes))
    with pytest.raises(ValueError, match=r"\(n, k, r\), got \(2, 3\)"):
        output_runs.growth_rates(rows[0], **options)
    beside = {"learning_rates": [0.1], "batch_size": 2, "keys": jax.random.split(KEY), "steps": 10}
    with pytest.raises(ValueError, match=r"start must have shape \(6, 2\), got \(2, 6\)"):
        output_runs.run_beside(linear_loss, w, data, rows, np.ones((2, 6)), **beside)
    with pytest.raises(ValueError, match="at least every = 20, got 10"):
        output_runs.run_beside(linear_loss, w, data, rows, np.ones((6, 2)), **beside, every=20)
