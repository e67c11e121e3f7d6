"""The gradient penalty against the derivative of the penalised loss, and its edge."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab import transforms as jt
from jaxstab.transforms import penalty

STRENGTH = 0.3


def loss(w, example):
    x, y = example
    return (jnp.tanh(x @ w["a"]) @ w["b"] - y) ** 2


@pytest.fixture
def problem(x64):
    rng = np.random.default_rng(0)
    w = {"a": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}
    return w, (jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=6)))


def penalised(w, data, parts):
    """L + (λ/2) mean ‖∇L_part‖², written down as it is defined."""
    pieces = [jax.tree.map(lambda x, i=i: jnp.split(x, parts)[i], data) for i in range(parts)]
    mean = lambda w, piece: jnp.mean(jax.vmap(loss, (None, 0))(w, piece))  # noqa: E731
    squares = [optax.tree.norm(jax.grad(mean)(w, piece)) ** 2 for piece in pieces]
    return mean(w, data) + STRENGTH / 2 * sum(squares) / parts


def step(w, data, **options):
    optimizer = jt.gradient_penalty(optax.sgd(1.0), strength=STRENGTH, **options)
    grad_fn = jt.batch_gradient(loss, data)
    return optimizer.update(grad_fn(w), optimizer.init(w), w, grad_fn=grad_fn)[0]


def test_docstring_example():
    assert doctest.testmod(penalty).failed == 0


@pytest.mark.parametrize("parts", [1, 3])
def test_the_exact_step_is_the_gradient_of_the_penalised_loss(problem, parts):
    w, data = problem
    expected = jax.grad(penalised)(w, data, parts)
    found = step(w, data, parts=parts, epsilon=None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(-a, b, rtol=1e-10), found, expected)


def test_the_finite_difference_is_of_first_order(problem):
    """Its error halves with ε: 0.5 ± O(ε) for a smooth loss."""
    w, data = problem
    exact = step(w, data, parts=2, epsilon=None)
    errors = []
    for epsilon in (1e-3, 5e-4):
        found = step(w, data, parts=2, epsilon=epsilon)
        errors.append(float(optax.tree.norm(optax.tree.sub(found, exact))))
    assert 0 < errors[0] < 1e-2 and errors[1] / errors[0] == pytest.approx(0.5, abs=0.01)


def test_a_zero_gradient_stays_zero():
    optimizer = jt.gradient_penalty(optax.sgd(1.0), strength=1.0)
    w = jnp.zeros(2)
    updates, state = optimizer.update(w, optimizer.init(w), w, grad_fn=lambda w: 2 * w)
    assert np.array_equal(updates, w) and int(state.steps) == 1


@pytest.mark.parametrize("curvature, grows", [(1.9, False), (2.1, True)])
def test_its_edge_on_a_quadratic(curvature, grows):
    """w ← (1 − η a (1 + λ a)) w, so that the edge is at η a (1 + λ a) = 2: here at a = 2."""
    optimizer = jt.gradient_penalty(optax.sgd(0.5), strength=0.5)
    w = jnp.array(1.0)
    state = optimizer.init(w)
    for _ in range(30):
        updates, state = optimizer.update(curvature * w, state, w, grad_fn=lambda w: curvature * w)
        w = optax.apply_updates(w, updates)
    assert (abs(float(w)) > 1) == grows


def test_wrong_arguments():
    for options, message in (
        ({"strength": -1.0}, "strength must be finite and not negative"),
        ({"strength": 1.0, "parts": 0}, "parts must be at least 1"),
        ({"strength": 1.0, "epsilon": 0.0}, "epsilon must be finite and positive"),
    ):
        with pytest.raises(ValueError, match=message):
            jt.gradient_penalty(optax.sgd(0.1), **options)
    optimizer = jt.gradient_penalty(optax.sgd(0.1), strength=1.0)
    with pytest.raises(ValueError, match="gradient_penalty needs the gradient function"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
    with pytest.raises(ValueError, match="gradient_penalty needs the current parameters"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), grad_fn=lambda w: w)
