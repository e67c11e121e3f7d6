"""Convolutions in the layout that runs fast inside loops compute the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab.convolutions import fast_in_loops


@pytest.mark.parametrize("numbers", [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC")])
@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives_are_unchanged(x64, numbers, groups):
    rng = np.random.default_rng(0)
    shapes = {"NHWC": (2, 6, 7, 4), "NCHW": (2, 4, 6, 7)}
    kernels = {"HWIO": (3, 2, 4 // groups, 6), "OIHW": (6, 4 // groups, 3, 2)}
    x = jnp.asarray(rng.normal(size=shapes[numbers[0]]))
    w = jnp.asarray(rng.normal(size=kernels[numbers[1]]))

    @jax.jit
    def loss(w, x):
        y = jax.lax.conv_general_dilated(
            x, w, (2, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        return jnp.sum(jnp.tanh(y) ** 2)

    def second(w, x):
        return jax.jvp(jax.grad(loss, (0, 1)), (w, x), (jnp.cos(w), jnp.sin(x)))

    for a, b in zip(
        jax.tree.leaves(second(w, x)),
        jax.tree.leaves(jax.jit(fast_in_loops(second))(w, x)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_every_convolution_is_canonical_on_the_cpu():
    """The layout that XLA's CPU backend would otherwise only make outside of loops."""
    if jax.default_backend() != "cpu":
        pytest.skip("other backends choose layouts themselves")
    conv = lambda w, x: jnp.sum(  # noqa: E731
        jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) ** 2
    )  # fmt: skip
    text = str(
        jax.make_jaxpr(fast_in_loops(jax.grad(conv)))(
            jnp.ones((3, 3, 2, 4)), jnp.ones((1, 5, 5, 2))
        )
    )
    plain = str(jax.make_jaxpr(jax.grad(conv))(jnp.ones((3, 3, 2, 4)), jnp.ones((1, 5, 5, 2))))
    canonical = "lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2)"
    assert plain.count("lhs_spec") > plain.count(canonical)
    assert text.count("lhs_spec") == text.count(canonical) > 0
