"""One network in the ways people write it: the same numbers, other programs.

Each pattern is a loss at a point on data, with the name of its plain form: the same work written
with one array a layer, one product a use.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

Params = Any


class Sizes(NamedTuple):
    """Examples, inputs, hidden units, outputs; words, width, length and layers of sequences."""

    n: int = 200
    inputs: int = 64
    hidden: int = 100
    outputs: int = 10
    words: int = 300
    width: int = 64
    length: int = 12
    layers: int = 4


TINY = Sizes(6, 4, 5, 2, 7, 4, 3, 2)


class Pattern(NamedTuple):
    """A loss written in one way, at a point, on data."""

    loss: Callable[[Params, Any], jax.Array]
    params: Params
    data: Any


def _normal(seed: int, *shape: int) -> jax.Array:
    scale = 1 / max(1, shape[0]) ** 0.5
    return scale * jax.random.normal(jax.random.key(seed), shape)


def _layers(params: Params, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def _two_layers(
    sizes: Sizes, function: Callable[..., Any], extra: Params, common: Any = None
) -> Pattern:
    """A perceptron whose weights come out of `function(params)`."""
    params = {
        "w": _normal(0, sizes.inputs, sizes.hidden),
        "b": _normal(1, sizes.hidden),
        "v": _normal(2, sizes.hidden, sizes.outputs),
        **extra,
    }

    def loss(params: Params, example: Any) -> jax.Array:
        x, y = example
        value = jnp.mean((_layers(function(params), x) - y) ** 2)
        return value if common is None else value + common(params)

    x = jax.random.normal(jax.random.key(3), (sizes.n, sizes.inputs))
    return Pattern(
        loss, params, (x, jax.random.normal(jax.random.key(4), (sizes.n, sizes.outputs)))
    )


def plain(sizes: Sizes) -> Pattern:
    """x @ w + b."""
    return _two_layers(sizes, lambda params: params, {})


def flat_vector(sizes: Sizes) -> Pattern:
    """All parameters in one vector, by `ravel_pytree`."""
    pattern = plain(sizes)
    flat, unravel = ravel_pytree(pattern.params)
    return pattern._replace(
        loss=lambda flat, example: pattern.loss(unravel(flat), example), params=flat
    )


def constants(sizes: Sizes) -> Pattern:
    """Every parameter times a number (NTK and μP parameterisations)."""
    return _two_layers(sizes, lambda params: jax.tree.map(lambda leaf: 0.7 * leaf, params), {})


def bias_in_weight(sizes: Sizes) -> Pattern:
    """The bias as one more row of the weight."""
    pattern = plain(sizes)

    def loss(params: Params, example: Any) -> jax.Array:
        x, y = example
        weight = jnp.concatenate([params["w"], params["b"][None]])
        return jnp.mean((jnp.tanh(jnp.append(x, 1.0) @ weight) @ params["v"] - y) ** 2)

    return pattern._replace(loss=loss)


def mask(sizes: Sizes) -> Pattern:
    """A pruned weight."""
    kept = jax.random.bernoulli(jax.random.key(5), 0.5, (sizes.inputs, sizes.hidden)).astype(float)
    return _two_layers(sizes, lambda params: params | {"w": params["w"] * kept}, {})


def low_rank(sizes: Sizes) -> Pattern:
    """w + A B with A and B trained (LoRA, merged)."""
    extra = {"A": _normal(5, sizes.inputs, 4), "B": _normal(6, 4, sizes.hidden)}
    merge = lambda params: params | {"w": params["w"] + params["A"] @ params["B"]}  # noqa: E731
    return _two_layers(sizes, merge, extra)


def weight_norm(sizes: Sizes) -> Pattern:
    """g w / ‖w‖, column by column."""

    def normed(params: Params) -> Params:
        return params | {"w": params["w"] * params["g"] / jnp.linalg.norm(params["w"], axis=0)}

    return _two_layers(sizes, normed, {"g": jnp.ones(sizes.hidden)})


def weight_decay(sizes: Sizes) -> Pattern:
    """A penalty on the parameters in the loss."""
    squares = lambda params: 1e-3 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))  # noqa: E731
    return _two_layers(sizes, lambda params: params, {}, squares)


def _tokens(sizes: Sizes) -> jax.Array:
    shape = (sizes.n, sizes.length + 1)
    return jax.random.randint(jax.random.key(7), shape, 0, sizes.words)


def _words(
    sizes: Sizes, output: Callable[[Params, jax.Array], jax.Array], extra: Params
) -> Pattern:
    """Next-word model: embedding, one hidden layer, logits by `output`."""
    params = {"E": _normal(0, sizes.words, sizes.width), "w": _normal(1, sizes.width, sizes.width)}

    def loss(params: Params, tokens: jax.Array) -> jax.Array:
        h = jnp.tanh(params["E"][tokens[:-1]] @ params["w"])
        logits = jax.nn.log_softmax(output(params, h))
        return -jnp.mean(jnp.take_along_axis(logits, tokens[1:, None], 1))

    return Pattern(loss, params | extra, _tokens(sizes))


def untied_dense(sizes: Sizes) -> Pattern:
    """Inputs that are no look-up, and an output matrix of its own: the plain form of the next."""
    params = {"w": _normal(1, sizes.width, sizes.width), "U": _normal(2, sizes.width, sizes.words)}
    table = _normal(0, sizes.words, sizes.width)

    def loss(params: Params, tokens: jax.Array) -> jax.Array:
        h = jnp.tanh(jnp.asarray(table)[tokens[:-1]] @ params["w"])
        logits = jax.nn.log_softmax(h @ params["U"])
        return -jnp.mean(jnp.take_along_axis(logits, tokens[1:, None], 1))

    return Pattern(loss, params, _tokens(sizes))


def lookup(sizes: Sizes) -> Pattern:
    """A trained embedding, and an output matrix of its own."""
    return _words(sizes, lambda p, h: h @ p["U"], {"U": _normal(2, sizes.width, sizes.words)})


def tied(sizes: Sizes) -> Pattern:
    """The embedding is the output matrix, transposed."""
    return _words(sizes, lambda p, h: h @ p["E"].T, {})


def _recurrent(sizes: Sizes, looped: bool) -> Pattern:
    params = {
        "w": _normal(0, sizes.width, sizes.width),
        "u": _normal(1, sizes.width, sizes.width),
        "v": _normal(2, sizes.width, sizes.outputs),
    }

    def loss(params: Params, example: Any) -> jax.Array:
        xs, y = example
        step = lambda h, x: jnp.tanh(x @ params["u"] + h @ params["w"])  # noqa: E731
        h = jnp.zeros(sizes.width)
        if looped:
            h, _ = jax.lax.scan(lambda h, x: (step(h, x), None), h, xs)
        else:
            for t in range(sizes.length):
                h = step(h, xs[t])
        return jnp.mean((h @ params["v"] - y) ** 2)

    x = jax.random.normal(jax.random.key(3), (sizes.n, sizes.length, sizes.width))
    return Pattern(
        loss, params, (x, jax.random.normal(jax.random.key(4), (sizes.n, sizes.outputs)))
    )


def unrolled(sizes: Sizes) -> Pattern:
    """A recurrent network written as a Python loop."""
    return _recurrent(sizes, False)


def scan(sizes: Sizes) -> Pattern:
    """The same recurrent network in `scan`."""
    return _recurrent(sizes, True)


def _deep(sizes: Sizes, looped: bool) -> Pattern:
    params = {
        "W": jnp.stack([_normal(i, sizes.hidden, sizes.hidden) for i in range(sizes.layers)]),
        "v": _normal(9, sizes.hidden, sizes.outputs),
    }
    if not looped:
        params["W"] = list(params["W"])

    def loss(params: Params, example: Any) -> jax.Array:
        h, y = example
        if looped:
            h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["W"])
        else:
            for w in params["W"]:
                h = jnp.tanh(h @ w)
        return jnp.mean((h @ params["v"] - y) ** 2)

    x = jax.random.normal(jax.random.key(3), (sizes.n, sizes.hidden))
    return Pattern(
        loss, params, (x, jax.random.normal(jax.random.key(4), (sizes.n, sizes.outputs)))
    )


def listed_layers(sizes: Sizes) -> Pattern:
    """Layers in a list, run by a Python loop."""
    return _deep(sizes, False)


def stacked_layers(sizes: Sizes) -> Pattern:
    """The same layers stacked, run by `scan`."""
    return _deep(sizes, True)


# Pattern: its plain form, and by how many times it may cost more.
PATTERNS: dict[Callable[[Sizes], Pattern], tuple[Callable[[Sizes], Pattern], float]] = {
    flat_vector: (plain, 1.5),
    constants: (plain, 1.5),
    bias_in_weight: (plain, 1.5),
    low_rank: (plain, 1.5),
    weight_decay: (plain, 1.5),
    mask: (plain, 10),
    weight_norm: (plain, 10),
    lookup: (untied_dense, 1.5),
    tied: (lookup, 1.5),
    scan: (unrolled, 1.5),
    stacked_layers: (listed_layers, 1.5),
}
