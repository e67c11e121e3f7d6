"""The emulated formats are the formats, and what asks for full precision gets it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from jaxstab import emulation

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((40, 30)) * 10.0 ** RNG.uniform(-3, 3, (40, 30))).astype(np.float32)
Y = RNG.standard_normal((30, 20)).astype(np.float32)


def nearest_even(x, bits):
    """Rounds float32 to `bits` stored bits of mantissa by integer arithmetic."""
    drop = 23 - bits
    i = x.view(np.uint32).astype(np.uint64)
    i = i + (1 << (drop - 1)) - 1 + ((i >> drop) & 1)
    return ((i >> drop) << drop).astype(np.uint32).view(np.float32)


def test_rounding_is_that_of_the_formats():
    rounded = {form: np.asarray(form.round(jnp.asarray(X))) for form in FORMS}
    bfloat16 = X.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounded[emulation.BFLOAT16], bfloat16)
    np.testing.assert_array_equal(rounded[emulation.BFLOAT16], nearest_even(X, 7))
    np.testing.assert_array_equal(rounded[emulation.TF32], nearest_even(X, 10))
    np.testing.assert_array_equal(rounded[emulation.FLOAT32], X)
    cut = rounded[emulation.TF32_CUT]
    assert np.all(np.abs(cut) <= np.abs(X)) and np.all(np.abs(cut - X) < 2**-10 * np.abs(X))
    assert np.all(cut.view(np.uint32) % 2**13 == 0)


FORMS = {
    emulation.FLOAT32: 2**-24,
    emulation.TF32: 2**-11,
    emulation.TF32_CUT: 2**-10,
    emulation.BFLOAT16: 2**-8,
    emulation.BFLOAT16_3X: 2**-16,
}


@pytest.mark.parametrize("form", FORMS)
def test_products_err_as_much_as_the_format_and_no_less(form):
    """Within 2 u |x|ᵀ|y| and the sums' own error; and, but for float32, not far below."""
    machine = emulation.always(form)
    exact, size = X.astype(float) @ Y.astype(float), np.abs(X).astype(float) @ np.abs(Y)
    found = emulation.emulate(jnp.matmul, machine)(jnp.asarray(X), jnp.asarray(Y))
    error = np.max(np.abs(np.asarray(found, float) - exact) / size)
    assert error <= 2.1 * FORMS[form] + 30 * 2**-24
    assert error >= 0.05 * FORMS[form]
    images, kernels = X.reshape(1, 1, 40, 30), Y[:9, :1].reshape(1, 1, 3, 3)
    convolve = lambda x, k: lax.conv(x, k, (1, 1), "SAME")  # noqa: E731
    rounded = emulation.emulate(convolve, machine)(jnp.asarray(images), jnp.asarray(kernels))
    if form.passes == 1:
        by_hand = convolve(form.round(jnp.asarray(images)), form.round(jnp.asarray(kernels)))
        np.testing.assert_allclose(rounded, by_hand, rtol=1e-6)


def test_inside_loops_branches_and_derivatives():
    a = jnp.asarray(Y[:20] / 8)

    def f(x):
        x = lax.scan(lambda x, _: (jnp.tanh(a @ x), None), x, length=2)[0]
        x = lax.fori_loop(0, 2, lambda _, x: a @ x, x)
        return jnp.sum(lax.cond(x[0] > 0, lambda x: a @ x, lambda x: a.T @ x, x) ** 2)

    x = jnp.ones(20)
    for function in (f, jax.grad(f)):
        full = emulation.emulate(function, emulation.always(emulation.FLOAT32))(x)
        np.testing.assert_allclose(full, function(x), rtol=1e-4, atol=1e-6)
        coarse = emulation.emulate(function, emulation.always(emulation.BFLOAT16))(x)
        difference = np.max(np.abs(coarse - full)) / np.max(np.abs(full))
        assert 1e-4 < difference < 0.5


def test_a_machine_gives_the_precision_that_is_asked_for():
    a, v = jnp.asarray(X[:30]), jnp.asarray(Y[:, 0])
    for precision, form in emulation.TPU.items():
        found = emulation.emulate(lambda v: jnp.dot(a, v, precision=precision), emulation.TPU)(v)  # noqa: B023
        np.testing.assert_array_equal(found, form.multiply(jnp.dot, a, v))
    default = emulation.emulate(lambda v: a @ v, emulation.GPU)(v)
    np.testing.assert_array_equal(default, emulation.TF32.multiply(jnp.dot, a, v))
