"""One registry of problems, (loss, params, data) with few parameters, for every operator test."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxstab import losses, models

N = 7


@dataclasses.dataclass(frozen=True)
class Problem:
    """A loss, a point and data; `forms`: how many leaves the structure gives each form.

    Large programs take a `chunk_size` without remainder: a remainder compiles everything twice.
    """

    loss: Any
    params: Any
    data: Any
    forms: dict[str, int]
    chunk_size: int = 3


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def one_hot(seed: int, classes: int, n: int = N) -> jax.Array:
    return jnp.eye(classes)[np.random.default_rng(seed).integers(0, classes, n)]


def linen(model: nn.Module, x: jax.Array, classes: int, loss=losses.squared, state=None) -> Any:
    params = models.initialize(model, jax.random.key(0), x[0], scale=2.0)
    params = jax.tree.map(lambda leaf: leaf.astype(float), params)
    return losses.ModelLoss(model, loss, state or {}), params, (x, one_hot(3, classes, len(x)))


def fnn() -> Problem:
    problem = linen(models.fnn((5, 4), classes=3), normal(0, N, 6), 3)
    return Problem(*problem, {"factored": 3, "elementwise": 3})


def fnn_cross_entropy() -> Problem:
    problem = linen(models.fnn((5,), classes=3), normal(0, N, 6), 3, losses.cross_entropy)
    return Problem(*problem, {"factored": 2, "elementwise": 2})


def one_output() -> Problem:
    problem = linen(models.fnn((4,), classes=1), normal(0, N, 3), 1)
    return Problem(*problem, {"factored": 2, "elementwise": 2})


def one_example() -> Problem:
    problem = linen(models.fnn((4,), classes=2), normal(0, 1, 3), 2)
    return Problem(*problem, {"factored": 2, "elementwise": 2})


def vgg() -> Problem:
    model = models.vgg((2, "M", 3, "M"), hidden=(4,), classes=2)
    return Problem(*linen(model, normal(0, 5, 4, 4, 2), 2), {"factored": 4, "elementwise": 4})


def resnet_frozen_batch_norm() -> Problem:
    model, x = models.resnet(8, classes=2, width=1), normal(0, 4, 4, 4, 1)
    state = models.initial_state(model, x[0])
    state = jax.tree.map(lambda leaf: jnp.abs(normal(1, *leaf.shape)) + 0.5, state)
    forms = {"factored": 8, "elementwise": 15}
    return Problem(*linen(model, x, 2, state=state), forms, chunk_size=2)


class Attention(nn.Module):
    """One pre-norm transformer block, embedding tied to the output."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(6, 4, param_dtype=float)
        h = embed(tokens) + self.param("position", nn.initializers.normal(1.0), (3, 4), float)
        attention = nn.MultiHeadDotProductAttention(2, param_dtype=float)
        h = h + attention(nn.LayerNorm(param_dtype=float)(h), mask=nn.make_causal_mask(tokens))
        h = h + nn.Dense(4, param_dtype=float)(nn.gelu(nn.Dense(5, param_dtype=float)(h)))
        return embed.attend(nn.LayerNorm(param_dtype=float)(h))


def transformer() -> Problem:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 6, (4, 4)))
    model = Attention()
    params = model.init(jax.random.key(0), tokens[0, :-1])

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits = jax.nn.log_softmax(model.apply(params, tokens[:-1]))
        return -jnp.mean(jnp.take_along_axis(logits, tokens[1:, None], -1))

    forms = {"factored": 7, "elementwise": 11}
    return Problem(loss, params, tokens, forms, chunk_size=2)


def nnx_mlp() -> Problem:
    class MLP(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.hidden = nnx.Linear(4, 5, param_dtype=float, rngs=rngs)
            self.out = nnx.Linear(5, 2, param_dtype=float, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.out(nnx.tanh(self.hidden(x)))

    graph, params = nnx.split(MLP(nnx.Rngs(0)), nnx.Param)

    def loss(params: Any, example: Any) -> jax.Array:
        return losses.squared(nnx.merge(graph, params)(example[0]), example[1])

    return Problem(
        loss, params, (normal(0, N, 4), one_hot(1, 2)), {"factored": 2, "elementwise": 2}
    )


def equinox_mlp() -> Problem:
    model = eqx.nn.MLP(4, 2, 5, 2, activation=jnp.tanh, key=jax.random.key(0), dtype=float)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params: Any, example: Any) -> jax.Array:
        return losses.squared(eqx.combine(params, static)(example[0]), example[1])

    return Problem(
        loss, params, (normal(0, N, 4), one_hot(1, 2)), {"factored": 3, "elementwise": 3}
    )


def haiku_mlp() -> Problem:
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([5, 2])(x)))
    x = normal(0, N, 4)
    params = network.init(jax.random.key(0), x[0])

    def loss(params: Any, example: Any) -> jax.Array:
        return losses.squared(network.apply(params, example[0]), example[1])

    return Problem(loss, params, (x, one_hot(1, 2)), {"factored": 2, "elementwise": 2})


def stacked_layers() -> Problem:
    """Plain JAX: layers are slices of one leaf; einsum with a batch dimension (heads); remat."""
    params = {"w": normal(0, 2, 4, 4), "heads": normal(1, 2, 4, 3), "out": normal(2, 3, 6)}

    def loss(params: Any, example: Any) -> jax.Array:
        x, y = example
        for layer in range(2):
            x = jax.checkpoint(lambda w, x: jnp.tanh(x @ w.T))(params["w"][layer], x)
        x = jnp.einsum("td,hde->hte", x, params["heads"]).reshape(2, 5, 3)
        return losses.squared(
            (params["out"].reshape(2, 3, 3) @ x.sum(1)[..., None]).sum(0)[:, 0], y
        )

    data = (normal(3, N, 5, 4), one_hot(1, 3))
    return Problem(loss, params, data, {"factored": 3})


def convolutions() -> Problem:
    """Grouped, strided, dilated, transposed and cropped convolutions, in two layouts."""
    params = {"grouped": normal(0, 3, 3, 2, 6), "dilated": normal(1, 2, 2, 3, 2), "b": normal(2, 2)}

    def loss(params: Any, example: Any) -> jax.Array:
        x, y = example
        numbers = ("NHWC", "HWIO", "NHWC")
        h = jax.lax.conv_general_dilated(
            x[None], params["grouped"], (2, 1), "SAME", dimension_numbers=numbers,
            feature_group_count=2,
        )  # fmt: skip
        h = jax.lax.conv_general_dilated(
            jnp.tanh(h).transpose(0, 3, 1, 2), params["dilated"].transpose(3, 2, 0, 1), (1, 2),
            [(1, -1), (0, 2)], lhs_dilation=(2, 1), rhs_dilation=(1, 2), feature_group_count=2,
        )  # fmt: skip
        return losses.squared(h.mean((0, 2, 3)) + params["b"], y)

    return Problem(
        loss, params, (normal(3, N, 5, 6, 4), one_hot(1, 2)), {"factored": 2, "elementwise": 1}
    )


def scanned_lstm() -> Problem:
    """A recurrent cell inside scan."""
    params = {"cell": normal(0, 5, 8), "bias": normal(1, 8), "out": normal(2, 2, 3)}

    def loss(params: Any, example: Any) -> jax.Array:
        xs, y = example

        def step(carry: Any, x: jax.Array) -> Any:
            h, c = carry
            gates = jnp.concatenate([x, h]) @ params["cell"] + params["bias"]
            i, f, g, o = jnp.split(gates, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        (h, _), _ = jax.lax.scan(step, (jnp.zeros(2), jnp.zeros(2)), xs)
        return losses.squared(h @ params["out"], y)

    return Problem(
        loss, params, (normal(3, N, 4, 3), one_hot(1, 3)), {"factored": 2, "elementwise": 1}
    )


def weight_norm() -> Problem:
    """A parameter used non-linearly, one used twice, one that only regularises, one not used."""
    params = {
        "direction": normal(0, 4, 5),
        "length": normal(1, 5),
        "tied": normal(2, 5, 5),
        "out": normal(3, 5, 2),
        "unused": normal(4, 2),
    }

    def loss(params: Any, example: Any) -> jax.Array:
        x, y = example
        v = params["direction"]
        h = jnp.tanh(x @ (v * params["length"] / jnp.linalg.norm(v, axis=0)))
        h = jnp.tanh(jnp.tanh(h @ params["tied"]) @ params["tied"].T)
        return losses.squared(h @ params["out"], y) + 0.1 * jnp.sum(params["out"] ** 4)

    data = (normal(5, N, 4), one_hot(1, 2))
    return Problem(loss, params, data, {"factored": 3, "elementwise": 2})


def once(make: Callable[[], Problem]) -> Callable[[], Problem]:
    """Builds a problem in float64, once: equal losses share what was compiled for them."""

    @functools.cache
    def built() -> Problem:
        with jax.enable_x64(True):
            return make()

    return built


PROBLEMS: dict[str, Callable[[], Problem]] = {
    make.__name__: once(make)
    for make in (
        fnn, fnn_cross_entropy, one_output, one_example, vgg, resnet_frozen_batch_norm, transformer,
        nnx_mlp, equinox_mlp, haiku_mlp, stacked_layers, convolutions, scanned_lstm, weight_norm,
    )
}  # fmt: skip


@pytest.fixture(scope="session")
def problems() -> dict[str, Callable[[], Problem]]:
    """The problems by name; for use in float64."""
    return PROBLEMS


LONG = (
    "resnet_frozen_batch_norm",
    "scanned_lstm",
    "transformer",
    "vgg",
    "weight_norm",
)  # to compile


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in LONG else [])
        for name in sorted(PROBLEMS)
    ]
)
def problem(request, x64) -> Problem:
    """Every problem in turn, in float64."""
    return PROBLEMS[request.param]()


@pytest.fixture(scope="session")
def two_layers() -> Callable[[Any, Any], jax.Array]:
    """A small loss in plain JAX: params w (3, 4) and v (4,), an example x (3,) and y ()."""

    def loss(params: Any, example: Any) -> jax.Array:
        x, y = example
        return (jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2

    return loss


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """Equality relative to the norm: the agreement asked for in float64 is 1e-10."""

    def check(got: Any, expected: Any, tolerance: float = 1e-10) -> None:
        got, expected = np.asarray(got), np.asarray(expected)
        assert np.linalg.norm(got - expected) <= tolerance * (1e-30 + np.linalg.norm(expected))

    return check


@pytest.fixture
def random_like() -> Callable[..., Any]:
    """Standard normal pytrees shaped like another."""

    def make(tree: Any, seed: int = 0) -> Any:
        leaves, treedef = jax.tree.flatten(tree)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return treedef.unflatten(
            [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
        )

    return make


@pytest.fixture(scope="session")
def dense() -> Callable[[Problem], tuple[np.ndarray, np.ndarray]]:
    """Dense float64 oracle: per-example gradients (n, p) and Hessians (n, p, p), found once."""
    held: dict[int, Any] = {}  # with the problem itself, so that its id stays its own

    def oracle(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        if id(problem) not in held:
            held[id(problem)] = problem, make(problem)
        return held[id(problem)][1]

    def make(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        flat, unravel = jax.flatten_util.ravel_pytree(problem.params)

        def loss(flat: jax.Array, example: Any) -> jax.Array:
            return problem.loss(unravel(flat), example)

        def column(flat: jax.Array, e: jax.Array, example: Any) -> jax.Array:
            return jax.jvp(lambda flat: jax.grad(loss)(flat, example), (flat,), (e,))[1]

        @jax.jit
        def both(flat: jax.Array, data: Any) -> tuple[jax.Array, jax.Array]:
            gradients = jax.vmap(jax.grad(loss), (None, 0))(flat, data)
            # one column of all H_i at a time: small to compile
            columns = jax.lax.map(
                lambda e: jax.vmap(column, (None, None, 0))(flat, e, data), jnp.eye(flat.size)
            )
            return gradients, jnp.moveaxis(columns, 0, 2)

        gradients, hessians = both(flat, problem.data)
        return np.asarray(gradients), np.asarray(hessians)

    return oracle
