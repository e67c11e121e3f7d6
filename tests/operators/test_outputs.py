"""Gauss–Newton factors seen from the outputs, against dense Jacobians in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree as ravel

from jaxstab import losses, operators
from jaxstab.operators import outputs
from jaxstab.operators.outputs import ResidualMoment


@pytest.fixture(params=["fnn_cross_entropy", pytest.param("vgg", marks=pytest.mark.slow)])
def model(request, problems, x64):
    return problems[request.param]()


def dense_factors(problem):
    """F, (n, k, p), by autodiff of the model's outputs and of the loss of outputs."""
    flat, unravel = ravel(problem.params)

    def outputs(flat, example):
        return problem.loss.predict(unravel(flat), example[0][None])[0]

    def one(example):
        f, y = outputs(flat, example), example[1]
        values, vectors = jnp.linalg.eigh(jax.hessian(problem.loss.loss)(f, y))
        root = (vectors * jnp.sqrt(jnp.maximum(values, 0))) @ vectors.T
        return root @ jax.jacrev(outputs)(flat, example)

    return np.asarray(jax.vmap(one)(problem.data))


def test_maps_and_blocks_equal_the_dense_factors(model, monkeypatch):
    f = dense_factors(model)
    n, k, p = f.shape
    rows = f.reshape(n * k, p)
    factors = operators.output_factors(
        model.loss, model.params, model.data, chunk_size=model.chunk_size
    )
    assert (factors.n, factors.outputs) == (n, k)
    u = np.random.default_rng(0).normal(size=(3, n, k))
    pulled = jax.vmap(lambda v: ravel(v)[0])(factors.pull(u))
    np.testing.assert_allclose(pulled, u.reshape(3, -1) @ rows, atol=1e-10)
    expected = (u.reshape(3, -1) @ rows @ rows.T).reshape(u.shape)
    np.testing.assert_allclose(factors.kernel(u), expected, atol=1e-9)
    np.testing.assert_allclose(factors.push(factors.pull(u)), expected, atol=1e-9)
    np.testing.assert_allclose(factors.blocks(), f @ np.swapaxes(f, 1, 2), atol=1e-10)
    held = factors.form()
    np.testing.assert_allclose(held.kernel(u), expected, atol=1e-9)
    np.testing.assert_allclose(held.matrix().reshape(n * k, -1), rows @ rows.T, atol=1e-10)
    monkeypatch.setattr(outputs, "CHUNK_MEMORY", 2 * 4 * k * p * 8)  # 4 of the 7 examples
    np.testing.assert_allclose(factors.form().formed, rows @ rows.T, atol=1e-10)


def test_residuals_are_what_is_left_of_the_full_hessians(problems, dense, random_like, x64):
    model = problems["fnn_cross_entropy"]()
    f = dense_factors(model)
    _, hessians = dense(model)
    rest = hessians - np.einsum("nkp,nkq->npq", f, f)
    v = random_like(model.params)
    found = ResidualMoment(model.loss, model.params, model.data, model.chunk_size)(v)
    expected = np.einsum("npq,nqr,r->p", rest, rest, ravel(v)[0]) / len(f)
    np.testing.assert_allclose(ravel(found)[0], expected, atol=1e-9 * np.abs(expected).max())


def test_sharpness_of_every_example(problems, x64):
    model = problems["fnn"]()
    f = dense_factors(model)
    found = operators.per_example_sharpness(model.loss, model.params, model.data, chunk_size=2)
    expected = np.linalg.eigvalsh(np.einsum("nkp,nkq->npq", f, f))[:, -1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_new_point_compiles_nothing(problems, x64):
    problem = problems["fnn"]()
    n, k = problem.data[1].shape

    def run(scale):
        params = jax.tree.map(lambda x: scale * x, problem.params)
        factors = operators.output_factors(problem.loss, params, problem.data)
        return factors.kernel(jnp.ones((2, n, k))), factors.blocks()

    compiled = (outputs._pull, outputs._push, outputs._blocks, outputs._curvatures)
    run(1.0)
    before = [function._cache_size() for function in compiled]
    run(2.0)
    assert [function._cache_size() for function in compiled] == before


def test_losses_that_cannot_be_cut_or_are_not_convex_are_refused():
    x = jnp.ones((3, 2))
    regularised = lambda w, x: jnp.sum((x @ w) ** 2) + jnp.sum(w**2)  # noqa: E731
    with pytest.raises(ValueError, match="more than one way"):
        operators.output_factors(regularised, jnp.ones((2, 2)), x)
    concave = lambda w, x: -jnp.sum((x @ w) ** 2)  # noqa: E731
    with pytest.raises(ValueError, match="not convex in the outputs"):
        operators.output_factors(concave, jnp.ones((2, 2)), x)


def test_squared_loss_of_a_linear_model_by_hand():
    loss = losses.ModelLoss(lambda params, x: x @ params)
    x = jnp.array([[3.0, 4.0], [1.0, 0.0]])
    found = operators.per_example_sharpness(loss, jnp.ones((2, 3)), (x, jnp.ones((2, 3))))
    np.testing.assert_allclose(found, 2 / 3 * np.array([25.0, 1.0]), rtol=1e-6)


def test_a_bias_of_a_scalar_output_belongs_to_the_output():
    """f = x·w + b: a term of the parameters alone in f is no common term of the loss."""
    loss = lambda p, e: (e[0] @ p["w"] + p["b"] - e[1]) ** 2  # noqa: E731
    x = jnp.array([[3.0, 4.0], [1.0, 0.0]])
    found = operators.per_example_sharpness(loss, {"w": jnp.ones(2), "b": 1.0}, (x, jnp.ones(2)))
    np.testing.assert_allclose(found, 2 * np.array([26.0, 2.0]), rtol=1e-6)
