"""Per-example norms and traces from the factors, against the dense float64 oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators

ravel = jax.flatten_util.ravel_pytree


def test_norms_and_traces_equal_the_dense_oracle(problem, dense, random_like):
    gradients, hessians = dense(problem)
    v = random_like(problem.params)
    flat = np.asarray(ravel(v)[0])
    common = (problem.loss, problem.params, problem.data)
    options = {"chunk_size": problem.chunk_size}
    norms = operators.per_example_gradient_norms(*common, **options)
    np.testing.assert_allclose(norms, np.linalg.norm(gradients, axis=1), rtol=1e-9)
    trace = operators.gradient_covariance_trace(*common, **options)
    expected = np.sum(np.var(gradients, axis=0))
    np.testing.assert_allclose(trace, expected, rtol=1e-8, atol=1e-12 * np.sum(gradients**2))
    products = operators.per_example_hessian_norms(*common, v, **options)
    np.testing.assert_allclose(products, np.linalg.norm(hessians @ flat, axis=1), rtol=1e-9)
    curvatures = operators.directional_curvatures(*common, v, **options)
    expected = np.einsum("p,npq,q->n", flat, hessians, flat)
    np.testing.assert_allclose(curvatures, expected, rtol=1e-9, atol=1e-9 * abs(expected).max())


def test_frobenius_estimate_covers_the_truth(problems, dense, x64):
    """Within 4 standard errors over 100 probes: missed by chance about once in 10,000."""
    problem = problems["fnn"]()
    _, hessians = dense(problem)
    truth = np.mean(np.sum(hessians**2, axis=(1, 2)))
    estimate = operators.hessian_frobenius(
        problem.loss, problem.params, problem.data, key=jax.random.key(0), probes=100
    )
    assert abs(estimate.value - truth) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.2 * truth


def test_one_probe_has_no_error_and_is_refused(problems):
    problem = problems["fnn"]()
    with pytest.raises(ValueError, match="probes must be at least 2"):
        operators.hessian_frobenius(
            problem.loss, problem.params, problem.data, key=jax.random.key(0), probes=1
        )


def test_nothing_depends_on_the_parameters(x64):
    """All statistics of a loss without curvature are zero, not NaN."""
    loss = lambda w, x: jnp.sum(w) * x  # noqa: E731
    params, data = jnp.ones(3), jnp.arange(1.0, 4.0)
    zero = operators.per_example_hessian_norms(loss, params, data, jnp.ones(3))
    np.testing.assert_array_equal(zero, 0)
    assert np.all(np.asarray(operators.hessian_variance(loss, params, data)(jnp.ones(3))) == 0)


def test_what_cancels_is_zero_not_nan():
    """log|c x W|: the slope by W does not depend on c, ẋδ and xδ̇ cancel up to rounding."""
    loss = lambda p, x: jnp.sum(jnp.log(p["c"] * x @ p["w"]))  # noqa: E731
    x = jax.random.uniform(jax.random.key(0), (108, 8), minval=0.5)
    params = {"c": jnp.array(1e6), "w": x[:8]}
    v = {"c": jnp.array(1.0), "w": jnp.zeros((8, 8))}
    assert np.all(np.isfinite(operators.per_example_hessian_norms(loss, params, x[8:], v)))
