"""A decoder-only transformer of the shape of GPT-2 (Radford et al. 2019), in plain Flax.

Pre-norm blocks, learned positions, GELU, and the embedding tied to the output. The weights are
random: what is measured is cost, not language.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.problems import Problem


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the network."""

    vocabulary: int = 50_257
    positions: int = 1024
    width: int = 768
    layers: int = 12
    heads: int = 12
    scanned: bool = False  # the layers written as one, inside `scan`


SMALL = Shape()  # GPT-2 small: 124,439,808 parameters
# As deep as GPT-2 small, and narrow: what is compiled depends on the depth.
NARROW = Shape(vocabulary=256, positions=64, width=64, layers=12, heads=4)
TINY = Shape(vocabulary=31, positions=8, width=8, layers=1, heads=2)


class Block(nn.Module):
    """Causal self-attention and a perceptron, each after a layer norm and added to its input."""

    shape: Shape

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (T, width) to (T, width)."""
        width, heads = self.shape.width, self.shape.heads
        length = x.shape[0]
        y = nn.Dense(3 * width, name="qkv")(nn.LayerNorm(name="norm1")(x))
        q, k, v = jnp.moveaxis(y.reshape(length, 3, heads, width // heads), 1, 0)
        scores = jnp.einsum("thd,shd->hts", q, k) / (width // heads) ** 0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        weights = nn.softmax(jnp.where(causal, scores, jnp.finfo(scores.dtype).min))
        attended = jnp.einsum("hts,shd->thd", weights, v).reshape(length, width)
        x = x + nn.Dense(width, name="out")(attended)
        y = nn.Dense(4 * width, name="up")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(width, name="down")(nn.gelu(y))


class Transformer(nn.Module):
    """Next-token logits of one sequence; the output matrix is the embedding, transposed."""

    shape: Shape = SMALL

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens (T,) to logits (T, vocabulary)."""
        shape, normal = self.shape, nn.initializers.normal(0.02)
        embedding = self.param("embedding", normal, (shape.vocabulary, shape.width))
        positions = self.param("positions", normal, (shape.positions, shape.width))
        x = embedding[tokens] + positions[: tokens.shape[0]]
        if shape.scanned:
            over_layers = nn.scan(
                lambda block, x, _: (block(x), None),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=shape.layers,
            )
            x, _ = over_layers(Block(shape, name="blocks"), x, None)
        else:
            for layer in range(shape.layers):
                x = Block(shape, name=f"block{layer}")(x)
        return nn.LayerNorm(name="norm")(x) @ embedding.T


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NextToken:
    """Mean cross-entropy of the next token over one sequence of T + 1 tokens, in nats."""

    model: Transformer

    def __call__(self, params: Any, tokens: jax.Array) -> jax.Array:
        """The loss of one example."""
        logits = self.model.apply({"params": params}, tokens[:-1])
        log_probabilities = jax.nn.log_softmax(logits)
        return -jnp.mean(jnp.take_along_axis(log_probabilities, tokens[1:, None], axis=1))


def problem(shape: Shape, sequences: int, length: int) -> Problem:
    """Random weights and random tokens, drawn with a Zipf-like law as words are."""
    model = Transformer(shape)
    tokens = jnp.zeros(length, jnp.int32)
    params = jax.jit(model.init)(jax.random.key(1), tokens)["params"]
    law = -jnp.log(jnp.arange(1, shape.vocabulary + 1))
    drawn = jax.random.categorical(jax.random.key(2), law, shape=(sequences, length + 1))
    return Problem("transformer", NextToken(model), params, drawn.astype(jnp.int32))
