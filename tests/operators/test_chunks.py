"""Sums over uneven chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators
from jaxstab.operators import linearised


def test_uneven_chunks_carry_their_weight(x64):
    """A 90/10 split averaged without weights is 68 % wrong (docs/peers.md, 6)."""
    x = jnp.concatenate([jnp.ones(9), 10 * jnp.ones(1)])
    operator = operators.hessian(lambda w, x: 0.5 * x * w**2, jnp.ones(()), x, chunk_size=9)
    assert float(operator(jnp.ones(()))) == pytest.approx(1.9)


def tanh_loss(params, x):
    return jnp.sum(jnp.tanh(jnp.outer(x, params))) ** 2


def test_a_chunk_that_cannot_fit_is_halved_with_a_warning(monkeypatch, x64):
    """64 examples of 20 × 5 residuals or more do not go into 60 kB; some part of them does."""
    data = jnp.asarray(np.random.default_rng(0).normal(size=(64, 20)))
    params = jnp.arange(5.0) / 10
    for make in (operators.hessian, operators.hessian_variance):
        expected = make(tanh_loss, params, data)(params)
        with monkeypatch.context() as patch:
            patch.setattr(linearised, "device_memory", lambda: 60_000)
            jax.clear_caches()
            message = r"a chunk of 64 examples takes about .* GB.*the device has 6e-05 GB"
            with pytest.warns(UserWarning, match=message):
                found = make(tanh_loss, params, data, chunk_size=64)(params)
            np.testing.assert_allclose(found, expected, rtol=1e-10)
            patch.setattr(linearised, "device_memory", lambda: 100)
            jax.clear_caches()
            with pytest.raises(ValueError, match=r"one example takes about .* use a smaller model"):
                make(tanh_loss, params, data, chunk_size=64)(params)
        jax.clear_caches()
