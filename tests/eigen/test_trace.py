import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.eigen import trace

KEY = jax.random.key(0)


def test_standard_error_covers_and_stopping_is_not_early(dense, spectrum):
    """docs/peers.md, 12: at least min_probes; two standard errors cover in 9 of 10 runs."""
    values = np.r_[np.linspace(0, 1, 38), 10, 20]
    a = spectrum(values).astype(np.float32)
    estimate = trace(tol=0.05)
    result = jax.vmap(lambda key: estimate(dense(a), jnp.zeros(40), key=key))(
        jax.random.split(KEY, 100)
    )
    assert np.all(result.converged) and np.all(result.probes >= 30)
    error = np.abs(np.asarray(result.value) - values.sum())
    assert np.mean(error <= 2 * np.asarray(result.standard_error)) >= 0.88
    # No bias: the mean of 100 runs is within four of its own standard errors.
    assert abs(np.mean(result.value) - values.sum()) < 4 * np.mean(result.standard_error) / 10


def test_diagonal_is_exact(diagonal):
    result = trace()(diagonal(np.arange(10.0)), jnp.zeros(10), key=KEY)
    assert result.converged and result.probes == 30 and abs(float(result.value) - 45) < 1e-4
    assert "converged" in repr(result)


def test_budget_and_non_finite(dense, diagonal):
    a = np.ones((20, 20), np.float32) - np.eye(20, dtype=np.float32)  # trace 0
    result = trace(max_probes=40)(dense(a), jnp.zeros(20), key=KEY)
    assert not result.converged and result.probes == 40 and "NOT CONVERGED" in repr(result)
    result = trace()(diagonal(np.r_[np.nan, 1]), jnp.zeros(2), key=KEY)
    assert not result.converged and result.probes == 1


def test_options_out_of_range():
    for options in ({"tol": 0}, {"min_probes": 1}, {"max_probes": 5}):
        with pytest.raises(ValueError):
            trace(**options)
    with pytest.raises(TypeError, match="int32"):
        trace()(lambda v: v, jnp.arange(3), key=KEY)
