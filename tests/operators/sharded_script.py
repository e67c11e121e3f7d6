"""Checks on eight devices of the host, run by `test_sharded` in a process of its own: float64.

Prints one JSON object: for every name the largest relative difference to what one device gives, and
the collectives of the compiled product, as [kind, numbers].
"""

import json
import math
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxstab as js
from jaxstab import eigen, operators
from jaxstab.eigen import vectors
from jaxstab.operators.hessian import apply

jax.config.update("jax_enable_x64", True)

MAKES = {
    "H": operators.hessian,
    "second moment": operators.hessian_second_moment,
    "variance": operators.hessian_variance,
    "C_g": operators.gradient_covariance,
}


def problem(n=48):
    """Two layers, the first inside scan; p = 6·8 + 2·8·8 + 8·3 = 200."""

    def loss(params, example):
        x, y = example
        h, _ = jax.lax.scan(
            lambda h, w: (jnp.tanh(h @ w), None), jax.nn.gelu(x @ params["w"]), params["s"]
        )
        scaled = jax.jit(lambda h, v: jnp.tanh(h) @ v)(h, params["v"])  # meets parameters inside
        return jnp.sum((scaled - y) ** 2)

    keys = jax.random.split(jax.random.key(0), 5)
    draw = jax.random.normal
    params = {"w": draw(keys[0], (6, 8)), "s": draw(keys[1], (2, 8, 8)), "v": draw(keys[2], (8, 3))}
    return loss, params, (draw(keys[3], (n, 6)), draw(keys[4], (n, 3)))


def difference(got, expected):
    """Largest difference of two pytrees relative to the largest entry of each leaf."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def collectives(compiled):
    """Everything that crosses devices in a compiled program: [kind, numbers sent]."""
    text = compiled.as_text()
    kinds = r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    found = re.findall(rf"= (.*?) {kinds}(?:-start)?\(", text)
    count = lambda dims: math.prod(int(d) for d in dims.split(",") if d)  # noqa: E731
    return [[kind, sum(map(count, re.findall(r"\[([\d,]*)\]", s)))] for s, kind in found]


def products():
    """Products over spread data, whole and in uneven chunks, and what they send."""
    loss, params, data = problem()
    v = jax.tree.map(lambda leaf: 0.1 + leaf, params)
    spread = jax.device_put(data, NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d")))
    report = {"p": sum(leaf.size for leaf in jax.tree.leaves(params))}
    for name, make in MAKES.items():
        expected = make(loss, params, data)(v)
        for chunk_size in (None, 4) if name == "H" else (4,):  # of six examples a device
            operator = make(loss, params, spread, chunk_size=chunk_size)
            key = f"{name}, chunk {chunk_size}"
            sent = collectives(apply.lower(operator, v).compile())
            report[key] = [difference(operator(v), expected), sent]
    ordered = operators.hessian(loss, params, js.data.shard(data, ordered=True), chunk_size=4)
    expected = operators.hessian(loss, params, data)(v)
    sent = collectives(apply.lower(ordered, v).compile())
    report["ordered"] = [difference(ordered(v), expected), sent]
    each = operators.directional_curvatures(loss, params, data, v)
    found = operators.directional_curvatures(loss, params, spread, v, chunk_size=4)
    report["per example"] = [difference(found, each), []]
    for axis in ("d", "m"):
        report[f"start over {axis}"] = start(params, axis)
    return report


def placed_over(params, axis):
    """Parameters spread over an axis of the mesh of 4 × 2 devices."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("d", "m"))
    specs = {"w": P(None, axis), "s": P(None, None, axis), "v": P(axis)}
    return {
        name: jax.device_put(leaf, NamedSharding(mesh, specs[name]))
        for name, leaf in params.items()
    }


def start(params, axis):
    """A random vector that is spread."""
    placed, key = placed_over(params, axis), jax.random.key(3)
    sharding = tuple(leaf.sharding for leaf in jax.tree.leaves(placed))
    sig = vectors.signature(placed, type("Operator", (), {"sharding": sharding}))
    draw = jax.jit(vectors.normal, static_argnums=1)
    found, compiled = draw(key, sig), draw.lower(key, sig).compile()
    assert all(a.sharding == b for a, b in zip(jax.tree.leaves(found), sharding, strict=True))
    assert f"f64[{vectors.size(sig)}]" not in compiled.as_text()
    return difference(found, draw(key, vectors.signature(params))), collectives(compiled)


def solvers():
    """Solvers, and parameters that are spread too, over another axis or the same."""
    loss, params, data = problem()
    key = jax.random.key(1)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("d", "m"))
    spread = jax.device_put(data, NamedSharding(mesh, P("d")))
    expected = js.measure(loss, params, data, key=key)
    report = {}
    for axis in ("m", "d"):
        placed = placed_over(params, axis)
        found = js.measure(loss, placed, spread, key=key, chunk_size=5)
        for name in ("sharpness", "nonuniformity"):
            a, b = getattr(found, name), getattr(expected, name)
            report[f"{name}, parameters over {axis}"] = difference(a.value, b.value)
            assert not any(x.sharding.is_fully_replicated for x in jax.tree.leaves(a.vector))
        assert found.sharpness.converged and found.nonuniformity.converged
        if axis == "m":
            variance = operators.hessian_variance(loss, placed, spread, chunk_size=5)
            from jaxstab.measurement import _largest

            text = _largest.lower(variance, key, None, 1e-3, 200).compile().as_text()
            # the basis: 33 rows of half of each leaf, and of no whole one
            assert "f64[33,6,4]" in text and "f64[33,6,8]" not in text
            assert "f64[200]" not in text  # no vector as a whole
    one = js.mean_square_threshold(loss, params, data, batch_sizes=[1, 8], key=key, tol=1e-4)
    all_ = js.mean_square_threshold(loss, params, spread, batch_sizes=[1, 8], key=key, tol=1e-4)
    report["threshold"] = difference(all_.value, one.value)
    for name, make in (("trace", eigen.trace()), ("density", eigen.spectral_density(steps=8))):
        found, expected = (
            make(operators.hessian(loss, params, held), params, key=key) for held in (spread, data)
        )
        report[name] = difference(found[0], expected[0])
    return report


def annotations():
    """Models with sharding annotations of their own: their boxes and shardings come back."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("d", "m"))
    _, _, (x, _) = problem()
    y = x[:, :3]
    spread = jax.device_put((x, y), NamedSharding(mesh, P("d")))
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "m"))
    model = nn.Dense(4, kernel_init=init, use_bias=False, param_dtype=float)
    boxed = model.init(jax.random.key(0), x[0])
    specs = nn.get_partition_spec(boxed)
    boxed = jax.tree.map(lambda s, b: jax.device_put(b, NamedSharding(mesh, s)), specs, boxed)

    def linen_loss(params, example):
        return jnp.sum((jnp.tanh(model.apply(params, example[0]))[:3] - example[1]) ** 2)

    kernel = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "m"))
    with jax.set_mesh(mesh):
        graph, state = nnx.split(
            nnx.Linear(
                6, 4, kernel_init=kernel, use_bias=False, param_dtype=float, rngs=nnx.Rngs(0)
            ),
            nnx.Param,
        )

    def nnx_loss(state, example):
        return jnp.sum((jnp.tanh(nnx.merge(graph, state)(example[0]))[:3] - example[1]) ** 2)

    report = {}
    for name, loss, params in (("linen", linen_loss, boxed), ("nnx", nnx_loss, state)):
        operator = operators.hessian_variance(loss, params, spread, chunk_size=5)
        product = operator(params)
        assert jax.tree.structure(product) == jax.tree.structure(params)
        same = [
            got.sharding.is_equivalent_to(was.sharding, got.ndim)
            for got, was in zip(jax.tree.leaves(product), jax.tree.leaves(params), strict=True)
        ]
        assert all(same), name
        alone = jax.tree.map(np.asarray, params)
        expected = operators.hessian_variance(loss, alone, (x, y))(alone)
        report[name] = difference(product, expected)
    return report


if __name__ == "__main__":
    print(
        json.dumps(
            {"products": products, "solvers": solvers, "annotations": annotations}[sys.argv[1]]()
        )
    )
