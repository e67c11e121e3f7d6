"""Models as people write them: right to rounding, and no slower form than can be helped."""

import functools
import importlib.util
import pathlib
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import operators
from jaxstab.callables import as_pytree
from jaxstab.operators.factored import form_of_leaf, read_structure
from jaxstab.operators.moments import FactoredMoment

_spec = importlib.util.spec_from_file_location(
    "patterns", pathlib.Path(__file__).with_name("patterns.py")
)
patterns = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(patterns)
ravel = jax.flatten_util.ravel_pytree


@functools.partial(jax.jit, static_argnames="loss")
def definition(loss, params, data, v):
    """(1/n) Σ H_i² v, Σ v, ‖g_i‖ and ‖H_i v‖, example by example."""
    flat, unravel = ravel(params)
    gradient = jax.grad(lambda flat, example: loss(unravel(flat), example))

    def product(example, u):
        return jax.jvp(lambda flat: gradient(flat, example), (flat,), (u,))[1]

    gradients = jax.vmap(gradient, (None, 0))(flat, data)
    once = jax.vmap(product, (0, None))(data, ravel(v)[0])
    square = jnp.mean(jax.vmap(product)(data, once), 0)
    mean = jnp.mean(once, 0)
    of_mean = jnp.mean(jax.vmap(product, (0, None))(data, mean), 0)
    norms = jnp.linalg.norm(gradients, axis=1), jnp.linalg.norm(once, axis=1)
    return square, square - of_mean, *norms


def agree(loss, params, data, tolerance=1e-10):
    """The factored forms against the definition, Σ in uneven chunks."""
    v = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size) + 1.0).reshape(leaf.shape), params)
    square, variance, gradients, products = definition(loss, params, data, v)
    common = (loss, params, data)
    moment = ravel(operators.hessian_second_moment(*common)(v))[0]
    sigma = ravel(operators.hessian_variance(*common, chunk_size=2)(v))[0]
    scale = tolerance * np.linalg.norm(square)
    assert np.linalg.norm(moment - square) <= scale
    assert np.linalg.norm(sigma - variance) <= scale
    np.testing.assert_allclose(operators.per_example_gradient_norms(*common), gradients, rtol=1e-8)
    np.testing.assert_allclose(operators.per_example_hessian_norms(*common, v), products, rtol=1e-8)


def forms_of(loss, params, data):
    structure = read_structure(as_pytree(loss), params, data)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return {path.strip("[]'"): form_of_leaf(structure, i)[0] for i, path in enumerate(paths)}


# The longest to compile.
LONG = (
    "anything_else", "loops_in_loops", "routed", "scalings", "shared_kernel", "spectral",
    "stacked_in_scan", "tied_embedding",
)  # fmt: skip
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
    for name in patterns.PATTERNS
]


@pytest.mark.parametrize("name", NAMES)
def test_pattern_equals_the_definition(name, x64):
    written = patterns.PATTERNS[name]()
    forms = forms_of(written.loss, written.params, written.data)
    assert {path for path, form in forms.items() if form == "explicit"} == written.explicit
    agree(written.loss, written.params, written.data)


def test_patterns_over_several_points_and_in_bfloat16(x64):
    """vmap over parameters; bfloat16 to its own rounding, a few tens of operations deep."""
    written = patterns.normed_and_decayed()
    v = jax.tree.map(jnp.ones_like, written.params)

    def product(params, v, data):
        return operators.hessian_second_moment(written.loss, params, data)(v)

    exact = ravel(product(written.params, v, written.data))[0]
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf]), written.params)
    batched = jax.vmap(product, (0, None, None))(several, v, written.data)
    np.testing.assert_allclose(ravel(jax.tree.map(lambda x: x[0], batched))[0], exact, rtol=1e-9)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (written.params, v, written.data))
    rough = product(*low)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype(jnp.bfloat16)}
    rough = ravel(jax.tree.map(lambda leaf: leaf.astype(float), rough))[0]
    assert np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)


def test_a_covariance_does_not_need_forward_derivatives(x64):
    """A function with a custom_vjp rule cannot be differentiated forward."""
    written = patterns.own_derivatives()
    flat, unravel = ravel(written.params)
    one = lambda flat, example: written.loss(unravel(flat), example)  # noqa: E731
    gradients = np.asarray(jax.vmap(jax.grad(one), (None, 0))(flat, written.data))
    v = jnp.cos(jnp.arange(flat.size) + 1.0)
    got = operators.gradient_covariance(written.loss, written.params, written.data)(unravel(v))
    expected = np.cov(gradients.T, bias=True) @ np.asarray(v)
    np.testing.assert_allclose(ravel(got)[0], expected, rtol=1e-9, atol=1e-12)


def test_slow_leaves_are_announced():
    """One warning, that says which leaf and why; none where the work is small."""
    n, width = 600, 128
    params = {"w": jnp.ones((width, width)), "v": jnp.ones((width, 1))}
    data = jnp.ones((n, 8, width))

    def loss(params, x):
        return jnp.sum(jnp.tanh(x @ jnp.tanh(params["w"])) @ params["v"])

    operator = operators.hessian_second_moment(loss, params, data)
    with pytest.warns(UserWarning, match=r"params\['w'\].*goes through tanh") as caught:
        jax.eval_shape(operator.product, params)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = operators.hessian_second_moment(loss, params, data[:5])
        jax.eval_shape(few.product, params)
    assert "goes through tanh" in operators.explain(loss, params, data)


def stacked_transformer(width, layers, words):
    """Pre-norm blocks of one head, stacked and scanned over; the embedding is the output."""

    def norm(x, scale):
        x = x - jnp.mean(x, -1, keepdims=True)
        return scale * x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)

    def loss(params, tokens):
        x = params["embedding"][tokens[:-1]] + params["positions"][: tokens.size - 1]

        def block(x, p):
            q, k, v = jnp.split(norm(x, p["norm"][0]) @ p["qkv"], 3, axis=-1)
            scores = jnp.where(jnp.tril(jnp.ones((len(x), len(x)), bool)), q @ k.T, -1e9)
            x = x + jax.nn.softmax(scores / width**0.5) @ v @ p["out"]
            up = jax.nn.gelu(norm(x, p["norm"][1]) @ p["up"])
            return x + up @ p["down"], None

        x, _ = jax.lax.scan(block, x, params["blocks"])
        logits = jax.nn.log_softmax(norm(x, params["norm"]) @ params["embedding"].T)
        return -jnp.mean(jnp.take_along_axis(logits, tokens[1:, None], 1))

    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width)}
    shapes |= {"down": (4 * width, width), "norm": (2, width)}
    blocks = {name: (layers, *shape) for name, shape in shapes.items()}
    rest = {"embedding": (words, width), "positions": (1024, width), "norm": (width,)}
    struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return loss, jax.tree.map(struct, rest | {"blocks": blocks}, is_leaf=is_shape)


def shapes_in(jaxpr):
    """The sizes of all values of a program, nested ones included."""
    for eqn in jaxpr.eqns:
        yield from (var.aval.size for var in eqn.outvars if hasattr(var.aval, "shape"))
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from shapes_in(inner)


def test_a_transformer_holds_no_leaf_for_each_example():
    """GPT-2 small, layers stacked, embedding tied: nothing is larger than the embedding itself.

    With 8 examples the smallest stack of matrices, 12 × 768 × 768, would be for each of them.
    """
    width, words, examples, length = 768, 50_257, 8, 12
    loss, params = stacked_transformer(width, 12, words)
    tokens = jax.ShapeDtypeStruct((examples, length + 1), jnp.int32)
    assert "explicit" not in set(forms_of(loss, params, tokens).values())

    def product(params, tokens, v):
        return FactoredMoment(as_pytree(loss), params, tokens, True, None).product(v)

    largest = max(shapes_in(jax.make_jaxpr(product)(params, tokens, params).jaxpr))
    assert largest <= words * width < examples * 12 * width**2


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=2, deadline=None)
def test_chains_of_patterns(data):
    """A weight that goes through several steps, in use twice."""
    steps = {
        "transpose": lambda w, p: w.T,
        "scale": lambda w, p: 0.5 * w * p["s"],
        "mask": lambda w, p: w * (normal_mask > 0),
        "join": lambda w, p: jnp.concatenate([w[2:], p["b"][None], w[:1]]),
        "product": lambda w, p: w @ p["a"],
        "sum": lambda w, p: w + p["a"].T,
        "reverse": lambda w, p: w[::-1],
        "square": lambda w, p: w * w,
        "flat": lambda w, p: jnp.ravel(w.T)[:16].reshape(4, 4),
    }
    with jax.enable_x64(True):
        normal_mask = patterns.normal(5, 4, 4)
        params = {"w": patterns.normal(0, 4, 4), "a": patterns.normal(1, 4, 4)}
        params |= {"b": patterns.normal(2, 4), "s": patterns.normal(3, 4)}
        chosen = data.draw(st.lists(st.sampled_from(sorted(steps)), min_size=2, max_size=4))

        def loss(params, example):
            w = params["w"]
            for name in chosen:
                w = steps[name](w, params)
            h = jnp.tanh(example[0] @ w) @ params["w"]
            return jnp.sum(h[:2] * example[1]) + jnp.mean(h**2)

        agree(loss, params, patterns.vectors())
