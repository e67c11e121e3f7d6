import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.eigen import spectral_density

KEY = jax.random.key(0)


def test_density_of_a_known_spectrum(dense, spectrum):
    """Moments and the smoothed histogram, within the standard error that is reported."""
    values = np.r_[np.random.default_rng(0).uniform(-1, 1, 115), np.full(5, 4.0)]
    a = spectrum(values).astype(np.float32)
    result = spectral_density(steps=40, probes=20)(dense(a), jnp.zeros(120), key=KEY)
    grid, density = np.asarray(result.grid, float), np.asarray(result.density, float)
    assert abs(np.trapezoid(density, grid) - 1) < 1e-3
    np.testing.assert_allclose(np.sum(result.weights, axis=1), 1, rtol=1e-4)
    means = np.sum(np.asarray(result.weights) * np.asarray(result.nodes), axis=1)
    assert abs(means.mean() - values.mean()) < 4 * means.std(ddof=1) / 20**0.5
    peak = grid > 3
    mass = np.trapezoid(density[peak], grid[peak])
    error = np.trapezoid(np.asarray(result.standard_error)[peak], grid[peak])
    assert abs(mass - 5 / 120) < 4 * error
    assert result.matvecs == 800


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_eigenvalue(diagonal, value):
    result = spectral_density(steps=8, probes=2)(
        diagonal(np.full(30, value)), jnp.zeros(30), key=KEY
    )
    grid, density = np.asarray(result.grid), np.asarray(result.density)
    assert np.all(np.isfinite(density))
    assert abs(np.trapezoid(density, grid) - 1) < 1e-3
    assert abs(grid[np.argmax(density)] - value) < 2e-3


def test_no_spurious_copies(diagonal):
    """docs/peers.md, 3: more steps than distinct eigenvalues, and no weight invented."""
    d = np.r_[8, np.ones(20), np.zeros(20)]
    result = spectral_density(steps=20, probes=4)(diagonal(d), jnp.zeros(41), key=KEY)
    near = np.abs(np.asarray(result.nodes)[..., None] - [0, 1, 8]).min(-1) < 1e-4
    assert np.asarray(result.weights)[~near].sum() < 1e-4
    assert np.all(np.sum(np.abs(np.asarray(result.nodes) - 8) < 1e-3, axis=1) == 1)


def test_options_out_of_range():
    for options in ({"steps": 0}, {"probes": 1}, {"points": 1}, {"width": 0}):
        with pytest.raises(ValueError):
            spectral_density(**options)
