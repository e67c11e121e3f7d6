"""Each momentum form diverges exactly past its edge (docs/formulas.md, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxstab.stability import edges
from jaxstab.transforms import sgd

ETA = 0.3
FORMS = [
    ("heavy_ball", 0.0),
    ("heavy_ball", 0.9),
    ("nesterov", 0.9),
    ("ema", 0.5),
    ("ema", 0.9),
]
forms = pytest.mark.parametrize(("kind", "momentum"), FORMS)


def spectral_radius(optimizer, curvature):
    """Of the linear map (x, state) -> (x, state) of one step on curvature x²/2."""
    x = jnp.zeros(())
    flat, unravel = jax.flatten_util.ravel_pytree((x, optimizer.init(x)))

    def step(flat):
        x, state = unravel(flat)
        updates, state = optimizer.update(curvature * x, state, x)
        return jax.flatten_util.ravel_pytree((optax.apply_updates(x, updates), state))[0]

    matrix = np.asarray(jax.jacobian(step)(flat))
    # The step counter of ema is part of the state and of no interest: its row and column are 0/1.
    keep = [i for i in range(len(matrix)) if np.any(matrix[i] != np.eye(len(matrix))[i])]
    return np.abs(np.linalg.eigvals(matrix[np.ix_(keep, keep)])).max()


@forms
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_the_step_turns_expanding_exactly_at_the_edge(kind, momentum, weight_decay, x64):
    optimizer = sgd(ETA, momentum=momentum, kind=kind, weight_decay=weight_decay)
    edge = edges.momentum(ETA, momentum, kind) - weight_decay
    assert spectral_radius(optimizer, edge) == pytest.approx(1, abs=1e-12)
    assert spectral_radius(optimizer, 0.999 * edge) < 1 - 1e-5
    assert spectral_radius(optimizer, 1.001 * edge) > 1 + 1e-5


@forms
def test_a_random_quadratic_diverges_just_past_the_edge_and_not_before(kind, momentum, x64):
    edge = edges.momentum(ETA, momentum, kind)
    keys = jax.random.split(jax.random.key(3))
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (8, 8)))[0]
    x0 = jax.random.normal(keys[1], (8,))

    @jax.jit
    @jax.vmap
    def distance(top):
        hessian = (basis * jnp.linspace(0.05, 1, 8) * top) @ basis.T
        optimizer = sgd(ETA, momentum=momentum, kind=kind)

        def body(_, carry):
            x, state = carry
            updates, state = optimizer.update(hessian @ x, state, x)
            return optax.apply_updates(x, updates), state

        x, _ = jax.lax.fori_loop(0, 3000, body, (x0, optimizer.init(x0)))
        return jnp.linalg.norm(x)

    before, after = distance(edge * jnp.array([0.99, 1.01]))
    assert before < 1e-3 * jnp.linalg.norm(x0)
    assert after > 1e3 * jnp.linalg.norm(x0)


def test_it_is_optax_sgd_where_optax_has_the_form():
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    for nesterov in (False, True):
        ours = sgd(0.1, momentum=0.9, kind="nesterov" if nesterov else "heavy_ball")
        theirs = optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
        states = ours.init(params), theirs.init(params)
        for _ in range(3):
            u, s = ours.update(gradient, states[0], params)
            v, t = theirs.update(gradient, states[1], params)
            np.testing.assert_array_equal(u, v)
            states = s, t


def test_updates_keep_the_precision_of_the_parameters():
    gradient = jnp.ones(2, jnp.bfloat16)
    optimizer = sgd(jnp.float32(0.1), momentum=jnp.float32(0.9), weight_decay=jnp.float32(0.1))
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    assert updates.dtype == jnp.bfloat16


def test_inject_hyperparams_makes_every_number_changeable():
    optimizer = optax.inject_hyperparams(sgd, static_args="kind")(0.1, momentum=0.0)
    params = jnp.ones(2)
    state = optimizer.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.5)
    updates, _ = optimizer.update(params, state, params)
    np.testing.assert_allclose(updates, -0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be finite and not negative, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite"),
        ({"learning_rate": jnp.ones(2)}, "use jax.vmap"),
        ({"learning_rate": 0.1, "momentum": 1.0}, "momentum must be below 1"),
        ({"learning_rate": 0.1, "momentum": -0.5}, "momentum must be finite and not negative"),
        ({"learning_rate": 0.1, "weight_decay": -1.0}, "weight_decay must be"),
        ({"learning_rate": 0.1, "kind": "nestrov"}, "did you mean 'nesterov'"),
    ],
)
def test_wrong_inputs_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        sgd(**arguments)


def test_weight_decay_without_params_is_refused():
    optimizer = sgd(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
