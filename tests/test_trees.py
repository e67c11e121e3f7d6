"""Inner products, norms and random signs of pytrees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import trees


def test_a_dot_product_is_summed_in_float32_at_least():
    a = {"w": jnp.full(4096, 0.1, jnp.bfloat16), "b": jnp.ones((2, 3))}
    exact = sum(np.sum(np.asarray(x, float) ** 2) for x in jax.tree.leaves(a))
    assert trees.dot(a, a).dtype == jnp.float32
    assert float(trees.dot(a, a)) == pytest.approx(exact, rel=1e-5)  # 4e-3 if added in bfloat16
    assert float(trees.norm(a)) == pytest.approx(np.sqrt(exact), rel=1e-5)
    assert trees.dot({}, {}) == 0
    with pytest.raises(ValueError):
        trees.dot(a, {"w": a["w"]})


def test_random_signs_are_signs_in_every_leaf_and_independent():
    like = {"a": jnp.zeros((40, 50)), "b": jax.ShapeDtypeStruct((2000,), jnp.bfloat16)}
    z = trees.random_signs(jax.random.key(0), like)
    chex.assert_trees_all_equal_shapes_and_dtypes(z, like)
    a, b = np.ravel(z["a"]).astype(float), np.asarray(z["b"], float)
    assert set(a) == set(b) == {-1.0, 1.0}
    # mean of 2000 independent signs: 4.5 standard deviations
    assert max(abs(a.mean()), abs(b.mean()), abs((a * b).mean())) < 0.1
