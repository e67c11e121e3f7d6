"""Sums over examples, one chunk at a time: the only place that knows how data are cut."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.checks import check_at_least, data_size
from jaxstab.convolutions import fast_in_loops


def chunk_shape(data: Any, chunk_size: int | None) -> tuple[int, int, int]:
    """Returns (chunk size, full chunks, remainder) for `data` of leading axis n."""
    n = data_size(data)
    size = n if chunk_size is None else min(check_at_least("chunk_size", chunk_size, 1), n)
    return size, n // size, n % size


def take_chunk(data: Any, start: Any, size: int) -> Any:
    """Returns examples start .. start + size - 1 of `data`."""
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), data)


def sum_over_chunks(function: Callable[[Any], Any], data: Any, chunk_size: int | None) -> Any:
    """Returns Σ function(chunk) over chunks of `data`; `function` sums over its chunk's examples.

    Sums, not means, are added, so that a remainder of any size carries its own weight
    (docs/peers.md, 6). Memory is that of one chunk. `chunk_size` None takes all examples at once.
    """
    function = fast_in_loops(function)
    size, full, remainder = chunk_shape(data, chunk_size)
    if full == 1:
        total = function(take_chunk(data, 0, size) if remainder else data)
    else:
        shapes = jax.eval_shape(lambda: function(take_chunk(data, 0, size)))
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, index: Any) -> tuple[Any, None]:
            part = function(take_chunk(data, index * size, size))
            return jax.tree.map(jnp.add, total, part), None

        total, _ = lax.scan(add, zero, jnp.arange(full))
    if remainder:
        tail = jax.tree.map(lambda leaf: leaf[full * size :], data)
        total = jax.tree.map(jnp.add, total, function(tail))
    return total


def map_over_chunks(function: Callable[[Any], Any], data: Any, chunk_size: int | None) -> Any:
    """Returns the per-example results of `function(chunk)`, leading axis n, one chunk at a time."""
    size, full, remainder = chunk_shape(data, chunk_size)
    if full == 1 and not remainder:
        return function(data)
    parts = lax.map(lambda index: function(take_chunk(data, index * size, size)), jnp.arange(full))
    joined = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parts)
    if remainder:
        tail = function(jax.tree.map(lambda leaf: leaf[full * size :], data))
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), joined, tail)
    return joined


def scale_like(total: Any, divisor: Any, like: Any) -> Any:
    """Returns total / divisor, each leaf in the dtype of `like`."""
    return jax.tree.map(lambda a, b: (a / divisor).astype(b.dtype), total, like)
