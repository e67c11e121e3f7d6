"""Losses as people write them: what happens to a parameter before and where it meets the data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@dataclasses.dataclass(frozen=True)
class Written:
    """A loss, a point, data; `explicit`: the leaves that are multiplied out, by name."""

    loss: Callable[[Any, Any], jax.Array]
    params: Any
    data: Any
    explicit: frozenset[str] = frozenset()


def vectors() -> Any:
    return normal(0, 3, 4), normal(1, 3, 2)


def layers() -> dict[str, jax.Array]:
    return {"w": normal(2, 4, 5), "b": normal(3, 5), "v": normal(4, 5, 2)}


def two_layers(w, b, v, example) -> jax.Array:
    x, y = example
    return jnp.mean((jnp.tanh(x @ w + b) @ v - y) ** 2)


def flat_vector() -> Written:
    """ravel_pytree, then the bias as one more row, a constant a layer, a transpose."""
    flat, unravel = jax.flatten_util.ravel_pytree(layers() | {"v": layers()["v"].T})

    def loss(flat, example):
        p = unravel(flat)
        weight = jnp.concatenate([0.3 * p["w"], p["b"][None]])
        h = jnp.tanh(jnp.append(example[0], 1.0) @ weight)
        return jnp.mean((p["v"] / jnp.sqrt(5.0) @ h - example[1]) ** 2)

    return Written(loss, flat, vectors())


def scalings() -> Written:
    """Learned and constant factors by number, row and column; a mask; float32 on the way."""
    mask = (normal(9, 4, 5) > 0).astype(float)

    def loss(p, example):
        w = (p["w"] * p["column"]) * normal(8, 4, 1)
        v = p["v"] * p["row"][:, None] * p["number"] / p["below"]
        return two_layers(w + p["u"] * mask, -p["b"], v, example)

    more = {"column": normal(5, 5), "row": normal(6, 5), "number": normal(7), "u": normal(8, 4, 5)}
    return Written(loss, layers() | more | {"below": 2 + normal(9, 2) ** 2}, vectors(), frozenset())


def low_rank() -> Written:
    """w + s A B with a frozen base, and a factor of rank one, transposed."""

    def loss(p, example):
        w = normal(9, 4, 5) + p["w"] - 0.5 * p["A"] @ p["B"]
        return two_layers(w, p["b"], p["v"] + (p["a"] @ p["c"].T).T.reshape(5, 2), example)

    more = {"A": normal(5, 4, 2), "B": normal(6, 2, 5), "a": normal(7, 2, 1), "c": normal(8, 5, 1)}
    return Written(loss, layers() | more, vectors())


def normed_and_decayed() -> Written:
    """Weight normalisation; a penalty inside a scaled sum; a parameter that is only penalised."""

    def loss(p, example):
        w = p["w"] * p["g"] / jnp.linalg.norm(p["w"], axis=0)
        penalty = sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(p))
        return 0.5 * (two_layers(w, p["b"], p["v"], example) + 0.1 * penalty) - jnp.sum(p["w"] ** 2)

    return Written(loss, layers() | {"g": normal(5, 5), "z": normal(6)}, vectors())


def tied_embedding() -> Written:
    """Look-ups, some out of bounds, and the same matrix as the output; positions; a dense twin."""
    tokens = jnp.asarray([[0, 2, 2], [5, 1, 0], [3, 3, 9]])

    def loss(p, tokens):
        h = jnp.take(p["E"], tokens, axis=0, mode="clip") + p["positions"][:3]
        h = jnp.tanh(h @ p["w"]) @ p["w"].T
        logits = jax.nn.log_softmax(h @ p["E"].T)
        drop = jnp.take(2.0 * p["E"], tokens, axis=0, mode="fill", fill_value=1.0)
        return jnp.sum(drop**2) - jnp.mean(jnp.take_along_axis(logits, tokens[:1, None] % 6, 1))

    params = {"E": normal(0, 6, 4), "w": normal(1, 4, 4), "positions": normal(2, 5, 4)}
    return Written(loss, params, tokens)


def stacked_in_scan() -> Written:
    """Layers scanned over, weights shared by all of them, a learned start, a checkpoint."""

    def loss(p, example):
        @jax.checkpoint
        def layer(h, w):
            return jnp.tanh(h @ (0.5 * w[0].T) * p["s"] + w[1]) + h @ p["u"], h.sum()

        h, sums = jax.lax.scan(layer, example[0] + p["h"], (p["W"], p["b"]), reverse=True)
        return jnp.mean((h @ p["v"] - example[1]) ** 2) + jnp.sum(sums**2)

    params = {
        "W": 0.5 * normal(0, 3, 4, 4), "b": normal(1, 3, 4), "u": 0.3 * normal(2, 4, 4),
        "s": normal(3, 4), "h": normal(4, 4), "v": normal(5, 4, 2),
    }  # fmt: skip
    return Written(loss, params, vectors())


def loops_in_loops() -> Written:
    """A recurrence inside each layer; parameters carried by fori_loop, layers by their number."""

    def loss(p, example):
        def layer(i, state):
            p, h = state
            inner = lambda g, x: (jnp.tanh(g @ p["W"][i] + x * p["s"]), g)  # noqa: E731
            g, gs = jax.lax.scan(inner, h, jnp.stack([example[0], h]))
            return p, g + gs.sum(0) @ p["u"]

        _, h = jax.lax.fori_loop(0, 2, layer, (p, example[0]))
        h = jax.lax.map(lambda row: row @ p["v"], jnp.stack([h, 2 * h])).sum(0)
        return jnp.mean((h - example[1]) ** 2)

    params = {
        "W": normal(0, 3, 4, 4), "u": normal(2, 4, 4), "s": normal(3, 4), "v": normal(5, 4, 2),
    }  # fmt: skip
    return Written(loss, params, vectors())


def routed() -> Written:
    """Experts chosen by the data: by index, and by switch."""

    def loss(p, example):
        x, y = example
        gates = jax.nn.softmax(x @ p["gate"])
        best = jnp.argmax(gates)
        h = jnp.tanh(x @ p["W"][best] * gates[best])
        branches = [lambda h: h @ p["w"], lambda h: jnp.tanh(h @ p["u"]) + p["b"]]
        h = jax.lax.switch(jnp.int32(x[0] > 0), branches, h)
        return jnp.mean((h @ p["v"] - y) ** 2)

    more = {"gate": normal(7, 4, 3), "W": normal(8, 3, 4, 4), "u": normal(9, 4, 5)}
    return Written(loss, layers() | more, vectors())


def spectral() -> Written:
    """Complex weights of real parameters: between two Fourier transforms, and of a cast."""

    def loss(p, example):
        z = jnp.fft.rfft(example[0]) * (p["a"] + 1j * p["b"])
        z = jnp.stack([z, jnp.conj(z) ** 2]) @ jax.lax.complex(p["w"], p["v"])
        return jnp.mean((jnp.fft.irfft(z @ p["u"])[0] - example[1]) ** 2) + jnp.sum(jnp.abs(z) ** 2)

    params = {
        "a": normal(2, 3), "b": normal(3, 3), "w": normal(4, 3, 3), "v": normal(5, 3, 3),
        "u": normal(6, 3, 2),
    }  # fmt: skip
    return Written(loss, params, vectors())


@jax.custom_vjp
def scaled_sine(x, a):
    return jnp.sin(x) * a


scaled_sine.defvjp(
    lambda x, a: (jnp.sin(x) * a, (x, a)),
    lambda saved, g: (g * jnp.cos(saved[0]) * saved[1], jnp.sum(g * jnp.sin(saved[0]))),
)


@jax.custom_jvp
def product(x, w):
    return x @ w


@product.defjvp
def _(primals, tangents):
    return product(*primals), tangents[0] @ primals[1] + primals[0] @ tangents[1]


def own_derivatives() -> Written:
    """Functions with derivatives of their own that take parameters."""

    def loss(p, example):
        h = scaled_sine(product(example[0], p["w"]) + p["b"], p["a"])
        return jnp.mean((h @ p["v"] - example[1]) ** 2)

    return Written(loss, layers() | {"a": normal(7)}, vectors(), frozenset("w"))


def shared_kernel() -> Written:
    """One kernel, its channels scaled, in two convolutions and in another layout."""

    def loss(p, example):
        kernel = jnp.transpose(0.5 * p["k"] * p["s"], (3, 2, 0, 1))
        x = example[0].reshape(1, 1, 2, 2) * jnp.ones((1, 2, 1, 1))
        h = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")
        h = jax.lax.conv_general_dilated(jnp.tanh(h), kernel, (1, 1), "SAME")
        return jnp.mean((h.sum((2, 3))[0] - example[1]) ** 2)

    return Written(loss, {"k": normal(0, 2, 2, 2, 2), "s": normal(1, 2)}, vectors())


def anything_else() -> Written:
    """Overlapping slices, stacked heads, a matrix polynomial: some of it multiplied out."""

    def loss(p, example):
        w = 1.5 * p["o"] - 0.5 * p["o"] @ p["o"].T @ p["o"]
        heads = jnp.einsum("i,kij->kj", example[0], jnp.stack([p["w"], p["u"]]))
        h = heads.prod(0) + example[0] @ p["z"][:4] + example[0] @ p["z"][1:] + example[0] @ w
        return two_layers(w, p["b"], p["v"], example) + jnp.mean((h @ p["v"]) ** 2)

    more = {"u": normal(7, 4, 5), "z": normal(8, 5, 5), "o": normal(9, 4, 5)}
    return Written(loss, layers() | more, vectors(), frozenset("z"))


PATTERNS: dict[str, Callable[[], Written]] = {
    make.__name__: make
    for make in (
        flat_vector, scalings, low_rank, normed_and_decayed, tied_embedding, stacked_in_scan,
        loops_in_loops, routed, spectral, own_derivatives, shared_kernel, anything_else,
    )
}  # fmt: skip
