"""Sums over uneven chunks."""

import jax.numpy as jnp
import pytest

from jaxstab import operators


def test_uneven_chunks_carry_their_weight(x64):
    """A 90/10 split averaged without weights is 68 % wrong (docs/peers.md, 6)."""
    x = jnp.concatenate([jnp.ones(9), 10 * jnp.ones(1)])
    operator = operators.hessian(lambda w, x: 0.5 * x * w**2, jnp.ones(()), x, chunk_size=9)
    assert float(operator(jnp.ones(()))) == pytest.approx(1.9)
