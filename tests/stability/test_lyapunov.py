"""The almost-sure exponent against closed forms and against the growth of the mean square."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxstab as js
from jaxstab.stability import exact

KEY = jax.random.key(0)


def curve(w, h):
    """One parameter: the loss of an example is (√h w)² / 2, so that H_i = h."""
    return (jnp.sqrt(h) * w[0]) ** 2 / 2


def rows(w, x):
    """H_i = x xᵀ."""
    return jnp.sum(x * w) ** 2 / 2


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.1])
def test_one_parameter_is_the_mean_of_the_logarithm(eta):
    h = jnp.array([0.2, 3.8, 1.0, 0.5])
    found = js.lyapunov_exponent(
        curve, jnp.zeros(1), h, learning_rate=eta, batch_size=1, key=KEY, chains=32, steps=2000
    )
    truth = np.mean(np.log(np.abs(1 - eta * np.asarray(h))))
    assert abs(found.value - truth) < 4 * found.standard_error
    assert found.standard_error < 0.02
    assert found.sign == np.sign(truth)


def test_bursts_grow_in_mean_square_and_decay_almost_surely():
    """Above the exact threshold, and yet γ < 0; and γ is at most half of log of the growth."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 4))
    x[0] *= 3
    data = jnp.asarray(x, jnp.float32)
    reduced = exact.reduce(x[:, None, :])
    edge = exact.mean_square_threshold(reduced, batch_size=1, key=KEY).value
    signs = []
    for eta in (0.5 * edge, 1.1 * edge, 6 * edge):
        found = js.lyapunov_exponent(
            rows, jnp.zeros(4), data, learning_rate=eta, batch_size=1, key=KEY, steps=1500
        )
        growth = exact.mean_square_growth(reduced, learning_rate=eta, batch_size=1, key=KEY)
        assert found.value - 4 * found.standard_error <= 0.5 * np.log(growth.value) + 1e-6
        assert (growth.value > 1) == (eta > edge)
        signs.append(found.sign)
    assert signs == [-1, -1, 1]


def test_gradient_descent_is_the_logarithm_of_its_slowest_factor():
    """B = n: log max |1 - η λ| over the directions that move; the null space does not count."""
    data = jnp.diag(jnp.array([2.0, 1.0, 0.0]))[:2]  # H = diag(2, 1/2, 0)
    found = js.lyapunov_exponent(
        rows, jnp.zeros(3), data, learning_rate=1.2, batch_size=2, key=KEY, chains=2, steps=200
    )
    assert found.value == pytest.approx(np.log(1.4), rel=1e-3)
    assert found.standard_error < 1e-3 and np.all(found.burst > 10)


def test_residuals_short_of_a_minimum_do_not_count():
    """The residual gives the full Hessian a negative curvature, which Gauss–Newton leaves out."""
    loss = lambda w, x: (w[0] * w[1] * x - 1) ** 2  # noqa: E731
    at, data = jnp.array([1.0, 0.0]), jnp.array([1.0, 1.5])
    found = js.lyapunov_exponent(
        loss, at, data, learning_rate=0.1, batch_size=1, key=KEY, chains=4, steps=200
    )
    assert jnp.linalg.eigvalsh(jax.hessian(loss)(at, 1.0))[0] < -1  # SGD would leave along it
    assert found.sign == -1


def test_wrong_options_are_named():
    data = jnp.ones(4)
    options = {"learning_rate": 0.1, "batch_size": 1, "key": KEY}
    for change, words in [
        ({"chains": 1}, "chains must be at least 2"),
        ({"steps": 10}, "steps must be at least 4"),
        ({"batch_size": 5}, "above the number of examples"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            js.lyapunov_exponent(curve, jnp.zeros(1), data, **{**options, **change})
