"""C_g against the covariance of dense per-example gradients, and how it lies to H."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import eigen, operators
from jaxstab.operators import covariance

ravel = jax.flatten_util.ravel_pytree


def test_covariance_equals_the_dense_oracle(problem, dense, random_like, close):
    """In chunks of the problem's choice, most of them uneven."""
    gradients, _ = dense(problem)
    v = random_like(problem.params)
    operator = operators.gradient_covariance(
        problem.loss, problem.params, problem.data, chunk_size=problem.chunk_size
    )
    close(ravel(operator(v))[0], np.cov(gradients.T, bias=True) @ ravel(v)[0], 1e-9)


def test_docstring_examples():
    assert doctest.testmod(covariance).failed == 0


def loss(w, example):
    x, y = example
    return (jnp.tanh(x @ w["a"]) @ w["b"] - y) ** 2


@pytest.fixture
def small(x64):
    """A loss of 8 parameters and 7 examples, with g_i and H as dense matrices."""
    rng = np.random.default_rng(0)
    w = {"a": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}
    data = jnp.asarray(rng.normal(size=(7, 3))), jnp.asarray(rng.normal(size=7))
    flat, unravel = ravel(w)
    each = jax.vmap(lambda v, e: loss(unravel(v), e), (None, 0))
    gradients = jax.jacobian(each)(flat, data)
    curvature = jax.hessian(lambda v: jnp.mean(each(v, data)))(flat)
    value = float(each(flat, data).mean())
    return w, data, np.cov(gradients.T, bias=True), np.asarray(curvature), value


def test_the_spectrum_is_that_of_the_dense_matrix(small):
    w, data, noise, *_ = small
    found = operators.gradient_covariance_spectrum(loss, w, data, chunk_size=4)
    dense = np.linalg.eigvalsh(noise)[::-1]
    np.testing.assert_allclose(found[:6], dense[:6], rtol=1e-9)
    assert found.shape == (7,) and found[6] < 1e-12  # n − 1 centred gradients
    top = eigen.lanczos()(operators.gradient_covariance(loss, w, data), w, key=jax.random.key(0))
    assert top.interval.lower <= dense[0] * (1 + 1e-9) and dense[0] <= top.interval.upper


def truth(noise, curvature, value):
    product, norms = np.sum(noise * curvature), np.linalg.norm(noise) * np.linalg.norm(curvature)
    return {
        "hessian_trace": np.trace(curvature),
        "product_trace": product,
        "covariance_norm": np.linalg.norm(noise),
        "hessian_norm": np.linalg.norm(curvature),
        "cosine": product / norms,
        "mu": product / (2 * value * np.linalg.norm(curvature) ** 2),
    }


def test_estimates_are_within_their_errors(small):
    """3,000 probes: each of six numbers within five standard errors, which are small."""
    w, data, noise, curvature, value = small
    found = operators.noise_alignment(
        loss, w, data, key=jax.random.key(1), probes=3000, chunk_size=3
    )
    assert float(found.loss) == pytest.approx(value, rel=1e-12)
    assert float(found.covariance_trace) == pytest.approx(np.trace(noise), rel=1e-9)
    for name, expected in truth(noise, curvature, value).items():
        estimate = getattr(found, name)
        assert abs(estimate.value - expected) < 5 * estimate.standard_error, name
        assert 0 < estimate.standard_error < 0.05 * abs(expected), name


def test_standard_errors_are_the_spread_of_repeated_estimates(small):
    """Of 200 repetitions the spread is known to 5 %; that of a jackknife over 40 probes is biased
    by some 1/40 more."""
    w, data, *_ = small
    names = list(truth(np.eye(2), np.eye(2), 1.0))
    records = [
        operators.noise_alignment(loss, w, data, key=jax.random.key(i), probes=40).to_record()
        for i in range(200)
    ]
    for name in names:
        spread = np.std([record[name] for record in records], ddof=1)
        error = np.sqrt(np.mean([record[f"{name}_error"] ** 2 for record in records]))
        assert error == pytest.approx(spread, rel=0.25), name


def test_aligned_noise_has_cosine_one_and_mu_one(x64):
    """Residuals of one size, whatever the features: C_g = 2 L H, for one output."""
    x = jnp.asarray(np.random.default_rng(2).normal(size=(6, 3)))
    both = jnp.concatenate([x, x]), jnp.concatenate([jnp.full(6, 0.3), jnp.full(6, -0.3)])
    linear = lambda w, example: (example[0] @ w - example[1]) ** 2  # noqa: E731
    found = operators.noise_alignment(
        linear, jnp.zeros(3), both, key=jax.random.key(0), probes=2000
    )
    assert abs(found.cosine.value - 1) < 5 * found.cosine.standard_error < 0.1
    assert abs(found.mu.value - 1) < 5 * found.mu.standard_error < 0.2


def test_a_loss_that_only_goes_backward(small):
    """A custom_vjp function cannot be differentiated forward; slopes come from its transpose."""
    w, data, noise, *_ = small

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    other = lambda w, e: square(jnp.tanh(e[0] @ w["a"]) @ w["b"] - e[1])  # noqa: E731
    found = operators.gradient_covariance_spectrum(other, w, data)
    np.testing.assert_allclose(found[:6], np.linalg.eigvalsh(noise)[::-1][:6], rtol=1e-9)


def test_too_few_probes(small):
    w, data, *_ = small
    with pytest.raises(ValueError, match="probes must be at least 3, got 2"):
        operators.noise_alignment(loss, w, data, key=jax.random.key(0), probes=2)


def test_other_dtypes_than_the_default(small):
    """Float32 under x64: the n weights of a combination come in the dtype of the losses."""
    w, data, noise, *_ = small
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (w, data))
    found = operators.gradient_covariance_spectrum(loss, *low)
    np.testing.assert_allclose(found[:3], np.linalg.eigvalsh(noise)[:-4:-1], rtol=1e-4)
