import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.eigen import vectors


def test_both_forms_of_orthogonalisation_agree():
    """The form for accelerators, which CPU runs do not reach, against the one for CPU."""
    keys = jax.random.split(jax.random.key(0), 2)
    like = {"a": jnp.zeros((3, 4)), "b": jnp.zeros(5)}
    sig = vectors.signature(like)
    w = vectors.normal(keys[0], sig)
    basis = vectors.empty_basis(6, sig)
    for i, key in enumerate(jax.random.split(keys[1], 6)):
        basis = vectors.set_row(basis, i, vectors.unit(vectors.normal(key, sig))[0])
    for stop in (0, 1, 4):
        slow, h_slow = vectors._orthogonalize_rows(w, basis, stop)
        fast, h_fast = vectors._orthogonalize_matrix(w, basis, stop)
        np.testing.assert_allclose(h_slow, h_fast, atol=1e-6)
        assert np.all(h_fast[stop:] == 0) and (stop == 0 or np.all(h_fast[:stop] != 0))
        for x, y in zip(jax.tree.leaves(slow), jax.tree.leaves(fast), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_norm_of_a_million_float32_entries():
    """The square of a norm must not lose five digits, as one matrix product on CPU does."""
    x = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    true = np.sum(x.astype(np.float64) ** 2)
    assert abs(float(jax.jit(vectors.dot)(x, x)) / true - 1) < 1e-6
