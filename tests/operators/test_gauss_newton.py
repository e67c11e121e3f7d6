"""The Gauss-Newton form against dense J_iᵀ A_i J_i, and the bound of its distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators
from jaxstab.callables import as_pytree
from jaxstab.operators.gauss_newton import split_at_outputs

ravel = jax.flatten_util.ravel_pytree


@pytest.mark.parametrize(
    "name", ["fnn", "fnn_cross_entropy", "one_output", pytest.param("vgg", marks=pytest.mark.slow)]
)
def test_gauss_newton_is_its_dense_form(problems, random_like, x64, name, close):
    problem = problems[name]()
    flat, unravel = ravel(problem.params)
    v = random_like(problem.params)
    x, y = problem.data

    def outputs(flat, x):
        return problem.loss.predict(unravel(flat), x[None])[0]

    jacobians = jax.vmap(jax.jacobian(outputs), (None, 0))(flat, x)
    f = jax.vmap(outputs, (None, 0))(flat, x)
    curvature = jax.vmap(jax.hessian(problem.loss.loss))(f, y)
    g = np.einsum("nkp,nkl,nlq->npq", jacobians, curvature, jacobians)
    square = np.einsum("nij,njk->ik", g, g) / len(g)
    expected = (square - g.mean(0) @ g.mean(0)) @ ravel(v)[0]
    common = (problem.loss, problem.params, problem.data)
    moment = operators.hessian_second_moment(*common, method="gauss_newton", chunk_size=3)
    close(ravel(moment(v))[0], square @ ravel(v)[0])
    variance = operators.hessian_variance(*common, method="gauss_newton")
    prepared = jax.jit(lambda operator, v: operator.prepare()(v))(variance, v)
    close(ravel(prepared)[0], expected, 1e-9)


def test_gauss_newton_refuses_a_loss_without_outputs(problems, x64):
    """A regulariser reaches the loss past the outputs; what follows their sum is linear."""
    problem = problems["weight_norm"]()

    def halved(params, example):
        return 0.5 * problem.loss(params, example)

    for loss in (problem.loss, halved):
        with pytest.raises(ValueError, match="more than one way"):
            operators.hessian_variance(loss, problem.params, problem.data, method="gauss_newton")


def test_outputs_are_no_weights():
    """One scaled matrix: its 1,200 entries alone reach the loss too, but are no outputs."""

    def loss(w, example):
        return -jax.nn.log_softmax(example @ (0.5 * w))[0]

    assert split_at_outputs(as_pytree(loss), jnp.ones((400, 3)), jnp.ones((2, 400))).outputs == 3


def test_a_parameter_alone_is_no_output():
    """h w²/2 is linear in what depends on the example: it has no outputs, and H_i is not 0."""
    with pytest.raises(ValueError, match="or by no value of an example in which it curves"):
        operators.output_factors(lambda w, h: h * w[0] ** 2 / 2, jnp.zeros(1), jnp.ones(2))


def test_gauss_newton_bound_holds_and_vanishes_at_interpolation(problems, dense, x64):
    problem = problems["fnn"]()
    x, y = problem.data
    exact = (x, problem.loss.predict(problem.params, x))
    key = jax.random.key(0)
    arguments = (problem.loss, problem.params)
    assert operators.gauss_newton_difference(*arguments, exact, key=key).value < 1e-12
    # the Frobenius bound itself against dense E_i: 200 probes, 5 standard errors
    estimate = operators.gauss_newton_difference(*arguments, (x, y), key=key, probes=200)
    _, hessians = dense(problem)
    flat, unravel = ravel(problem.params)

    def outputs(flat, x):
        return problem.loss.predict(unravel(flat), x[None])[0]

    jacobians = jax.vmap(jax.jacobian(outputs), (None, 0))(flat, x)
    g = 2 / y.shape[1] * np.einsum("nkp,nkq->npq", jacobians, jacobians)
    bound = np.sqrt(np.mean(np.sum((hessians - g) ** 2, axis=(1, 2))))
    assert abs(estimate.value - bound) < 5 * estimate.standard_error

    def s(h):
        return np.sqrt(np.linalg.eigvalsh(np.einsum("nij,njk->ik", h, h) / len(h) - h.mean(0) @ h.mean(0))[-1])  # noqa: E501  # fmt: skip

    assert abs(s(hessians) - s(g)) <= bound
