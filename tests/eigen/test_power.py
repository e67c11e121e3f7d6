import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.eigen import lanczos, power_iteration

KEY = jax.random.key(0)


def test_agrees_with_lanczos_and_needs_more_products(diagonal):
    d = np.r_[np.linspace(0, 1, 99), 2]
    power = power_iteration(max_matvecs=500)(diagonal(d), jnp.zeros(100), key=KEY)
    better = lanczos()(diagonal(d), jnp.zeros(100), key=KEY)
    assert power.converged and better.converged
    assert power.interval.lower <= 2 <= power.interval.upper
    assert power.interval.upper - power.interval.lower <= 2.01e-3
    np.testing.assert_allclose(power.value, better.value, rtol=1e-3)
    assert better.matvecs < power.matvecs


def test_largest_algebraic_of_an_indefinite_spectrum(diagonal):
    """docs/peers.md, 4: the shift keeps −25 from winning over 20."""
    d = np.r_[-25, np.linspace(-2, 2, 98), 20]
    solve = power_iteration(max_matvecs=2000)
    result = solve(diagonal(d), jnp.zeros(100), key=KEY)
    assert result.converged and abs(float(result.value) - 20) < 0.02
    solve = power_iteration(max_matvecs=2000, which="smallest")
    result = solve(diagonal(d), jnp.zeros(100), key=KEY)
    assert result.converged and abs(float(result.value) + 25) < 0.025
    assert result.interval.lower <= -25 <= result.interval.upper


@pytest.mark.parametrize("ratio", [0.9, 0.99, 0.999])
def test_stops_on_no_change_of_value(diagonal, ratio):
    """docs/peers.md, 5: close eigenvalues give an interval that contains the truth."""
    d = np.r_[2, np.linspace(0, 2 * ratio, 200)]
    for seed in range(3):
        result = power_iteration(max_matvecs=50)(
            diagonal(d), jnp.zeros(201), key=jax.random.key(seed)
        )
        assert result.interval.lower <= 2 <= result.interval.upper, str(result)
        assert not result.converged


@pytest.mark.parametrize("budget", [1, 8])
def test_failure_probability_of_the_upper_bound(x64, diagonal, budget):
    d = np.r_[3.0, np.linspace(0.9, 1, 99)]
    solve = power_iteration(tol=1e-12, max_matvecs=budget, failure_probability=0.3)
    run = jax.vmap(lambda key: solve(diagonal(d, jnp.float64), jnp.zeros(100), key=key))
    result = run(jax.random.split(jax.random.key(3), 400))
    assert np.mean(np.asarray(result.interval.upper) < 3) <= 0.3 + 3 * np.sqrt(0.3 * 0.7 / 400)


def test_zero_identity_and_non_finite(diagonal):
    for value in (0.0, 1.0):
        result = power_iteration()(diagonal(np.full(50, value)), jnp.zeros(50), key=KEY)
        assert result.converged and result.matvecs == 1
        np.testing.assert_allclose(result.value, value, atol=1e-6)
    result = power_iteration()(diagonal(np.r_[np.nan, 1.0]), jnp.zeros(2), key=KEY)
    assert not result.converged and np.isnan(result.value)


def test_warm_start_cannot_be_trapped(diagonal):
    d = np.r_[20, 15, np.linspace(0, 1, 98)]
    v0 = jnp.zeros(100).at[1].set(1.0)
    result = power_iteration(max_matvecs=500)(diagonal(d), jnp.zeros(100), key=KEY, v0=v0)
    assert result.converged and abs(float(result.value) - 20) < 0.02


def test_options_out_of_range():
    for options in ({"tol": 0}, {"max_matvecs": 0}, {"which": "top"}, {"failure_probability": 2}):
        with pytest.raises(ValueError):
            power_iteration(**options)
