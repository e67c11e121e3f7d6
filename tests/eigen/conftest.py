"""Operators with known spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def _times(d, v):
    return d * v


def _matmul(a, v):
    return a @ v


@pytest.fixture
def diagonal():
    """d ↦ the operator v ↦ d·v as a pytree: equal code, so one compilation per shape."""
    return lambda d, dtype=jnp.float32: jax.tree_util.Partial(_times, jnp.asarray(d, dtype))


@pytest.fixture
def dense():
    """Symmetric matrix ↦ operator."""
    return lambda a: jax.tree_util.Partial(_matmul, jnp.asarray(a))


@pytest.fixture
def spectrum():
    """Eigenvalues ↦ a dense symmetric float64 matrix that has them."""

    def build(values, seed=0):
        rng = np.random.default_rng(seed)
        q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
        return (q * np.asarray(values)) @ q.T

    return build
