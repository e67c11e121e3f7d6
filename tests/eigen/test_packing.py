"""Vectors of many leaves are few arrays inside the solvers, and come back as they were."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.eigen import lanczos, vectors
from jaxstab.eigen.packing import Packing, packing_of


def test_what_is_packed_comes_back_in_its_dtypes(x64):
    drawn = np.random.default_rng(0).standard_normal
    dtypes = {"a": jnp.float32, "b": jnp.float64, "c": jnp.bfloat16, "d": jnp.float32}
    shapes = {"a": (2, 3), "b": (), "c": (4,), "d": (0, 5)}
    v = {name: jnp.asarray(drawn(shapes[name]), dtype) for name, dtype in dtypes.items()}
    packing = packing_of(v, lambda v: v)
    packed = packing.pack(v)
    assert [(x.shape, x.dtype) for x in packed] == [
        ((6,), jnp.float32), ((1,), jnp.float64), ((4,), jnp.float32)
    ]  # fmt: skip
    assert vectors.size(packing.packed) == vectors.size(packing.sig) == 11
    assert vectors.precision(packing.packed) == vectors.precision(packing.sig)  # of bfloat16
    back = packing.unpack(packed)
    for name, leaf in v.items():
        assert back[name].dtype == leaf.dtype and back[name].shape == leaf.shape
        np.testing.assert_array_equal(np.asarray(back[name], float), np.asarray(leaf, float))


def test_a_solver_grows_by_what_the_product_does_with_a_leaf():
    """Not by one copy of every operation on vectors, of which there are dozens."""

    def equations(leaves):
        like = [jnp.zeros(3)] * leaves
        solve = lambda v: lanczos()(lambda v: [2 * x for x in v], v, key=jax.random.key(0)).value  # noqa: E731
        return jax.jit(solve).lower(like).as_text().count("stablehlo.")

    few, many = equations(2), equations(42)
    assert many - few <= 40 * 20
    assert many < 2 * few


def test_vectors_of_an_operator_that_is_spread_stay_leaf_by_leaf():
    class Spread:
        sharding = ("of each leaf",)

        def __call__(self, v):
            return v

    v = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    assert packing_of(v, Spread()) == Packing(vectors.signature(v, Spread()), apart=True)
    assert packing_of(v, Spread()).pack(v) is v
    assert not packing_of(v, lambda v: v).apart
