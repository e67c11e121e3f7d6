"""The precision of what an operator computes: one choice, and what asks for its own keeps it."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxstab as js
from jaxstab.resolution import _PRODUCTS, _equations

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 1)), jnp.float32)
Y = jnp.eye(2)[jnp.array([0, 1, 1, 0])]
MAKES = {
    "hessian": js.hessian,
    "per_example_hessian": js.per_example_hessian,
    "second_moment": js.hessian_second_moment,
    "variance": js.hessian_variance,
    "gauss_newton": lambda *a, **k: js.hessian_variance(*a, method="gauss_newton", **k),
    "vmap": lambda *a, **k: js.hessian_variance(*a, method="vmap", **k),
    "covariance": js.gradient_covariance,
}


def precisions(operator, method, of=_PRODUCTS):
    """What the products asked for that `operator.method` traces."""

    def call(operator, v):
        return operator.prepare().product(v) if method == "prepare" else operator(v)

    closed = jax.make_jaxpr(call)(operator, operator.params)
    return {eqn.params["precision"] for eqn in _equations(closed.jaxpr) if eqn.primitive.name in of}


def plain():
    def loss(params, example):
        return jnp.sum((jnp.tanh(example[0].ravel() @ params["w"]) @ params["v"] - example[1]) ** 2)

    return loss, {"w": jnp.ones((36, 3)) / 9, "v": jnp.ones((3, 2))}


def linen(**options):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Conv(2, (3, 3), **options)(x))
            return nn.Dense(2, **options)(x.ravel())

    model = Net()
    params = model.init(jax.random.key(0), X[0])
    return (lambda p, e: js.losses.squared(model.apply(p, e[0]), e[1])), params


def flax_nnx():
    graph, params = nnx.split(nnx.Linear(36, 2, rngs=nnx.Rngs(0)), nnx.Param)
    return (lambda p, e: js.losses.squared(nnx.merge(graph, p)(e[0].ravel()), e[1]) ** 2), params


def equinox():
    model = eqx.nn.Sequential(
        [eqx.nn.Conv2d(1, 2, 3, key=jax.random.key(0)), eqx.nn.Lambda(jnp.ravel)]
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return (lambda p, e: jnp.sum(jnp.tanh(eqx.combine(p, static)(e[0].transpose(2, 0, 1))))), params


def haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(2)(jnp.tanh(hk.Linear(3)(x)))))
    params = net.init(jax.random.key(0), X[0].ravel())
    return (lambda p, e: js.losses.squared(net.apply(p, e[0].ravel()), e[1])), params


@pytest.mark.parametrize("method", ["product", "prepare"])
@pytest.mark.parametrize("make", list(MAKES))
def test_every_operator_at_the_precision_that_it_was_given(make, method):
    for name, wanted in (("high", lax.Precision.HIGH), ("highest", lax.Precision.HIGHEST)):
        operator = MAKES[make](*plain(), (X, Y), precision=name)
        assert precisions(operator, method) == {(wanted, wanted)}
    assert precisions(MAKES[make](*plain(), (X, Y)), method) == {(lax.Precision.HIGHEST,) * 2}
    with jax.default_matmul_precision("high"):
        assert precisions(MAKES[make](*plain(), (X, Y), precision=None), method) == {
            (lax.Precision.HIGH,) * 2
        }


@pytest.mark.parametrize("framework", [linen, flax_nnx, equinox, haiku])
def test_whatever_framework_made_the_model(framework):
    for make in (js.hessian, js.hessian_variance):
        with jax.default_matmul_precision("default"):  # the operator's choice is the inner one
            found = precisions(make(*framework(), (X, Y)), "prepare")
        assert found == {(lax.Precision.HIGHEST,) * 2}


def test_what_the_model_asks_for_wins_and_is_said():
    low = lax.Precision.DEFAULT
    loss, params = linen(precision="default")
    for make in (js.hessian, js.hessian_variance):
        assert (low, low) in precisions(make(loss, params, (X, Y)), "product")
    said = js.operators.explain(loss, params, (X, Y))
    assert "dot_general: precision DEFAULT; it is left as it is" in said
    assert "conv_general_dilated: precision DEFAULT" in said
    said = js.operators.explain(*linen(dtype=jnp.bfloat16), (X, Y))
    assert "dot_general: operands in bfloat16" in said
    with jax.default_matmul_precision("highest"):  # what JAX is set to is not the author's wish
        assert "left as it is" not in js.operators.explain(*linen(), (X, Y))


def test_precision_is_part_of_the_compiled_code():
    """Two precisions share nothing; one precision shares its code over calls."""
    traced = []

    def loss(params, example):
        traced.append(1)
        return plain()[0](params, example)

    params = plain()[1]
    js.hessian(loss, params, (X, Y))(params)
    counts = [len(traced)]
    for precision in ("highest", "high"):
        js.hessian(loss, params, (X, Y), precision=precision)(params)
        counts.append(len(traced))
    assert counts[2] - counts[1] > counts[1] - counts[0]  # only `check_problem` the second time


def test_unknown_names():
    for make in MAKES.values():
        with pytest.raises(ValueError, match="highest"):
            make(*plain(), (X, Y), precision="full")
