"""What a jaxpr says of the accuracy of its products: unit roundoff, chains, terms."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxstab.resolution import describe_products, read_resolution

A, V = jnp.ones((7, 7)), jnp.ones(7)


def read(function, *args, machine="gpu"):
    return read_resolution(jax.make_jaxpr(function)(*args), machine)


@pytest.mark.parametrize(
    ("precision", "machine", "unit"),
    [
        (None, "cpu", 2**-24),
        (None, "gpu", 2**-10),
        ("high", "gpu", 2**-10),
        ("highest", "gpu", 2**-24),
        (None, "tpu", 2**-8),
        ("high", "tpu", 2**-15),
        ("highest", "tpu", 2**-22),
        (None, "a machine to come", 2**-8),
        (("highest", "default"), "tpu", 2**-8),
        (lax.DotAlgorithmPreset.BF16_BF16_F32, "cpu", 2**-8),
        (lax.DotAlgorithmPreset.BF16_BF16_F32_X3, "cpu", 2**-15),
        (lax.DotAlgorithmPreset.TF32_TF32_F32, "cpu", 2**-10),
        (lax.DotAlgorithmPreset.F16_F16_F32, "cpu", 2**-11),
        (lax.DotAlgorithmPreset.F32_F32_F32, "gpu", 2**-24),
        (lax.DotAlgorithmPreset.DEFAULT, "gpu", 2**-10),
    ],
)
def test_unit_roundoff_of_a_product(precision, machine, unit):
    found = read(lambda v: lax.dot(A, v, precision=precision), V, machine=machine)
    assert found.unit == unit
    assert (found.depth, found.terms) == (1, 7)


def test_convolutions_count_as_products():
    image, kernel = jnp.ones((1, 2, 8, 8)), jnp.ones((3, 2, 3, 3))
    found = read(lambda x: lax.conv(x, kernel, (1, 1), "SAME"), image, machine="tpu")
    assert (found.unit, found.depth, found.terms) == (2**-8, 1, 18)


def test_coarse_dtypes_anywhere_count():
    """Also where no product is: a bfloat16 activation is rounded like an operand."""
    assert read(lambda v: v.astype(jnp.bfloat16).astype(jnp.float32), V).unit == 2**-8
    assert read(lambda v: jnp.tanh(v), V).unit == 2**-24


def test_float64_is_float64_on_a_gpu(x64):
    a = jnp.ones((3, 3))
    assert read(lambda v: a @ v, a[0]).unit == 2**-53


def test_chains_through_loops_and_branches():
    """A loop that multiplies its carry makes a chain; one that adds products up does not."""
    stack = jnp.ones((5, 7, 7))
    chain = read(lambda v: lax.scan(lambda v, a: (a @ v, None), v, stack)[0], V)
    assert (chain.depth, chain.terms) == (5, 35 + 5)
    added = read(lambda v: lax.scan(lambda s, a: (s + a @ v, None), V, stack)[0], V)
    assert (added.depth, added.terms) == (1, 7 + 5)
    assert read(lambda v: lax.fori_loop(0, 3, lambda _, v: A @ v, v), V).depth >= 2
    branch = read(lambda v: lax.cond(v[0] > 0, lambda v: A @ (A @ v), lambda v: v, v), V)
    assert branch.depth == 2
    assert read(jax.jit(lambda v: A @ jax.checkpoint(lambda v: A @ v)(v)), V).depth == 2
    assert read(jax.grad(lambda v: jnp.sum(jnp.tanh(A @ v))), V).depth == 2


def test_what_the_author_asked_for_is_said():
    def f(v):
        first = jnp.dot(A, v, precision="high") + A @ v
        second = lax.dot(A, first, precision=lax.DotAlgorithmPreset.BF16_BF16_F32)
        return A.astype(jnp.bfloat16) @ second.astype(jnp.bfloat16)

    said = describe_products(jax.make_jaxpr(jax.jit(f))(V))
    assert [line.split(";")[0] for line in said] == [
        "dot_general: precision HIGH",
        "dot_general: algorithm BF16_BF16_F32",
        "dot_general: operands in bfloat16",
    ]
    assert describe_products(jax.make_jaxpr(lambda v: jnp.einsum("ij,j", A, v))(V)) == []
