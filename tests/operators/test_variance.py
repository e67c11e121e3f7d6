"""(1/n) Σ H_i² and Σ: every method against the dense float64 oracle, and their identities."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators

ravel = jax.flatten_util.ravel_pytree


def dense_variance(hessians):
    """(1/n) Σ H_i² and Σ."""
    square = np.einsum("nij,njk->ik", hessians, hessians) / len(hessians)
    return square, square - hessians.mean(0) @ hessians.mean(0)


def test_every_method_equals_the_dense_oracle(problem, dense, random_like, close):
    """In chunks of the problem's choice, most of them uneven, and prepared with all at once."""
    _, hessians = dense(problem)
    square, variance = dense_variance(hessians)
    v = random_like(problem.params)
    flat = np.asarray(ravel(v)[0])
    common = (problem.loss, problem.params, problem.data)

    def close_to_variance(got):
        """Where n = 1 it is zero, up to rounding of the two terms."""
        scale = 0 if len(hessians) > 1 else np.linalg.norm(square @ flat)
        expected = variance @ flat
        assert np.linalg.norm(got - expected) <= 1e-10 * (scale + np.linalg.norm(expected))

    for method in ("vmap", "factored"):
        operator = operators.hessian_variance(*common, method=method, chunk_size=problem.chunk_size)
        close_to_variance(ravel(operator(v))[0])
    prepared = jax.jit(lambda operator, v: operator.prepare().product(v))
    close(ravel(prepared(operators.hessian_second_moment(*common), v))[0], square @ flat)
    close_to_variance(ravel(prepared(operators.hessian_variance(*common), v))[0])


@pytest.mark.parametrize("name", ["fnn", "convolutions"])
@pytest.mark.parametrize("method", ["vmap", "factored"])
def test_second_moment_equals_the_dense_oracle(
    problems, dense, random_like, close, name, method, x64
):
    """Not prepared, in uneven chunks."""
    problem = problems[name]()
    square, _ = dense_variance(dense(problem)[1])
    v = random_like(problem.params)
    moment = operators.hessian_second_moment(
        problem.loss, problem.params, problem.data, method=method, chunk_size=3
    )
    close(ravel(moment(v))[0], square @ ravel(v)[0])


@hypothesis.given(seed=st.integers(0, 2**16), chunk_size=st.integers(1, 9))
@hypothesis.settings(max_examples=6, deadline=None)
def test_identities(seed, chunk_size, close, two_layers):
    """Symmetry, positivity, second moment = H² + Σ, invariance to chunks and to order."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "v": jnp.asarray(rng.normal(size=4))}
        data = (jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.normal(size=9)))
        u, v = ({k: jnp.asarray(rng.normal(size=x.shape)) for k, x in params.items()} for _ in "uv")
        sigma = operators.hessian_variance(two_layers, params, data)
        h = operators.hessian(two_layers, params, data)
        moment = operators.hessian_second_moment(two_layers, params, data)
        dot = lambda a, b: float(ravel(a)[0] @ ravel(b)[0])  # noqa: E731
        scale = abs(dot(v, moment(v))) + abs(dot(u, moment(u)))
        assert abs(dot(u, sigma(v)) - dot(v, sigma(u))) <= 1e-12 * scale
        assert dot(v, sigma(v)) >= -1e-12 * scale
        close(ravel(moment(v))[0], ravel(h(h(v)))[0] + ravel(sigma(v))[0], 1e-12)
        chunked = operators.hessian_variance(two_layers, params, data, chunk_size=chunk_size)
        close(ravel(chunked(v))[0], ravel(sigma(v))[0], 1e-11)
        order = rng.permutation(9)
        permuted = operators.hessian_variance(
            two_layers, params, jax.tree.map(lambda x: x[order], data)
        )
        close(ravel(permuted(v))[0], ravel(sigma(v))[0], 1e-11)
