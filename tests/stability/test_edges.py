"""Every edge against the recursion it speaks of: the spectral radius crosses 1 exactly there."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.stability import edges

ETA = 0.3


def gradient_descent_map(a):
    return np.array([[1 - ETA * a]])


def heavy_ball_map(a, b):  # state (x, v)
    return np.array([[1 - ETA * a, -ETA * b], [a, b]])


def nesterov_map(a, b):  # state (x, x_previous), y = x + b (x - x_previous)
    return np.array([[(1 + b) * (1 - ETA * a), -b * (1 - ETA * a)], [1, 0]])


def ema_map(a, b):
    return np.array([[1 - ETA * (1 - b) * a, -ETA * b], [(1 - b) * a, b]])


def sam_map(a, rho, norm):  # one eigendirection, |g| held fixed
    return np.array([[1 - ETA * a * (1 + rho * a / norm)]])


CASES = [
    (edges.gradient_descent(ETA), gradient_descent_map, ()),
    (edges.rmsprop(ETA), gradient_descent_map, ()),
    *[(edges.momentum(ETA, b), heavy_ball_map, (b,)) for b in (0.0, 0.5, 0.9)],
    *[(edges.momentum(ETA, b, "nesterov"), nesterov_map, (b,)) for b in (0.0, 0.5, 0.9)],
    *[(edges.momentum(ETA, b, "ema"), ema_map, (b,)) for b in (0.0, 0.5, 0.9)],
    (edges.adam(ETA), ema_map, (0.9,)),
    *[(edges.sam(ETA, r, g), sam_map, (r, g)) for r, g in [(0.1, 1.0), (0.5, 0.01), (1e-9, 1.0)]],
    (edges.unnormalized_sam(ETA, 0.2), sam_map, (0.2, 1.0)),
]


@pytest.mark.parametrize("edge, recursion, args", CASES)
def test_the_spectral_radius_crosses_one_at_the_edge(edge, recursion, args):
    radius = [max(abs(np.linalg.eigvals(recursion(edge * f, *args)))) for f in (0.999, 1, 1.001)]
    assert radius[0] < 1 < radius[2]
    assert radius[1] == pytest.approx(1, abs=1e-12)


def test_adam_is_38_over_eta():
    assert edges.adam(1.0) == pytest.approx(38.0)


def test_sam_against_a_run_of_sam():
    """SAM itself on a PSD quadratic where a is the edge: the step only flips the sign."""
    a, rho = np.array([4.0, 1.0, 0.0]), 0.3
    x = np.array([0.7, 0.0, 0.2])
    norm = np.linalg.norm(a * x)
    # eta such that the edge is 4: eta a (1 + rho a/|g|) = 2
    eta = 2 / (4.0 * (1 + rho * 4.0 / norm))
    assert edges.sam(eta, rho, norm) == pytest.approx(4.0, rel=1e-12)
    step = x - eta * a * (x + rho * a * x / norm)
    np.testing.assert_allclose(step, [-0.7, 0.0, 0.2], rtol=1e-12)


def test_sam_limits_and_tracing():
    assert edges.sam(ETA, 0.0, 0.0) == edges.gradient_descent(ETA)
    assert edges.sam(ETA, 0.1, 0.0) == 0.0
    assert edges.sam(ETA, 1e-12, 1.0) == pytest.approx(2 / ETA, rel=1e-9)
    traced = jax.jit(edges.sam)(ETA, 0.1, 2.0)
    np.testing.assert_allclose(traced, edges.sam(ETA, 0.1, 2.0), rtol=1e-6)
    assert jax.jit(edges.momentum, static_argnums=2)(ETA, 0.9, "ema") > 0


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: edges.gradient_descent(0.0), "learning_rate"),
        (lambda: edges.momentum(0.1, 1.0), "momentum must be below 1"),
        (lambda: edges.momentum(0.1, -0.1), "not negative"),
        (lambda: edges.momentum(0.1, 0.9, "polyak"), "unknown kind of momentum 'polyak'"),
        (lambda: edges.sam(0.1, -1.0, 1.0), "rho"),
        (lambda: edges.sam(0.1, 1.0, math.nan), "gradient_norm"),
        (lambda: edges.preconditioned(lambda v: v, {"w": jnp.zeros(2)}), r"diagonal\['w'\]"),
    ],
)
def test_wrong_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_preconditioned_has_the_eigenvalues_of_the_unsymmetric_product(x64):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    h, d = root @ root.T, rng.uniform(0.1, 3, size=5)
    operator = edges.preconditioned(lambda v: jnp.asarray(h) @ v, jnp.asarray(d))
    dense = jax.vmap(jax.jit(operator))(jnp.eye(5))
    np.testing.assert_allclose(dense, dense.T, atol=1e-12)
    expected = np.sort(np.linalg.eigvals(h / d[:, None]).real)
    np.testing.assert_allclose(np.linalg.eigvalsh(dense), expected, rtol=1e-10)


def test_preconditioned_sharpness_of_a_loss(x64):
    """(1/n) Σ (x_i·w)²/2 has the Hessian XᵀX/n."""
    rng = np.random.default_rng(1)
    x, d = rng.normal(size=(8, 3)), rng.uniform(0.1, 3, size=3)
    found = edges.preconditioned_sharpness(
        lambda w, row: (row @ w) ** 2 / 2, jnp.zeros(3), jnp.asarray(x), jnp.asarray(d),
        key=jax.random.key(0), tol=1e-8,
    )  # fmt: skip
    expected = np.linalg.eigvals(x.T @ x / 8 / d[:, None]).real.max()
    np.testing.assert_allclose(found.value, expected, rtol=1e-7)


def test_stochastic_gap_against_closed_forms(x64):
    """Along u = e₀ the sharpness is 2 + 3 w₁, so that ∇a = (0, 3)."""

    def loss(w, z):
        return (1 + 1.5 * w[1]) * w[0] ** 2 + z * w[0] - 0.5 * w[1]

    w, z = jnp.array([0.1, 0.2]), jnp.array([-1.0, 0.5, 0.5])
    found = edges.stochastic_gap(loss, w, z, jnp.array([3.0, 0.0]), learning_rate=0.5, batch_size=1)
    slope = 1.5 * 0.1**2 - 0.5  # ∂L/∂w₁
    assert found.rise == pytest.approx(-3 * slope)
    assert found.curvature == pytest.approx(9)
    assert found.noise == pytest.approx(0.5)  # Var z, π(1) = 1
    assert found.value == pytest.approx(0.5 * 9 * 0.5 / (4 * -3 * slope))
    along = jnp.array([1.0, 0.0])
    full = edges.stochastic_gap(loss, w, z, along, learning_rate=0.5, batch_size=3)
    assert full.noise == full.value == 0
    falling = edges.stochastic_gap(
        lambda w, z: loss(w, z) + w[1], w, z, along, learning_rate=0.5, batch_size=1
    )
    assert math.isnan(falling.value) and falling.rise < 0


def test_the_stochastic_gap_is_where_its_dynamics_settle():
    """x' = −(1 + ηy) x − ηξ, y' = y + η(α − βx²/2) settles at y = −ηβσ²/(4α) on average."""
    eta, alpha, beta, noise = 0.1, 0.02, 1.0, 0.05
    rng = np.random.default_rng(0)
    x, y, path = np.zeros(50), np.zeros(50), []
    for step in range(20_000):
        xi = np.sqrt(noise) * rng.normal(size=50)
        x, y = -(1 + eta * y) * x - eta * xi, y + eta * (alpha - beta * x**2 / 2)
        if step > 5000:
            path.append(y.mean())
    gap = eta * beta * noise / (4 * alpha)
    assert np.mean(path) == pytest.approx(-gap, rel=0.1)
