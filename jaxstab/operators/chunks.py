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


def tail_chunk(data: Any, chunk_size: int | None) -> Any:
    """Returns the examples after the last full chunk."""
    size, full, _ = chunk_shape(data, chunk_size)
    return jax.tree.map(lambda leaf: leaf[full * size :], data)


def reduce_chunks(
    function: Callable[[Any, Any], tuple[Any, Any]],
    data: Any,
    chunk_size: int | None,
    extra: tuple[Any, Any] = (None, None),
) -> tuple[Any, tuple[Any, Any]]:
    """Returns (Σ total, kept) over chunks of `total, keep = function(chunk, extra_chunk)`.

    Sums, not means, are added, so that a remainder of any size carries its own weight
    (docs/peers.md, 6). `kept` and `extra` are pairs: of all full chunks, stacked where there are
    several, and of the remainder, None where there is none. `chunk_size` None takes all examples
    at once.
    """
    function = fast_in_loops(function)
    size, full, remainder = chunk_shape(data, chunk_size)
    stacked, last = extra
    if full == 1:
        total, keep = function(take_chunk(data, 0, size) if remainder else data, stacked)
    else:

        def at(index: Any, extra: Any) -> tuple[Any, Any]:
            return function(take_chunk(data, index * size, size), extra)

        def add(total: Any, xs: Any) -> tuple[Any, Any]:
            part, keep = at(*xs)
            return jax.tree.map(jnp.add, total, part), keep

        xs = (jnp.arange(full), stacked)
        first = jax.tree.map(lambda leaf: leaf[0], xs)
        shapes = jax.eval_shape(lambda xs: at(*xs)[0], first)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total, keep = lax.scan(add, zero, xs)
    keep_last = None
    if remainder:
        part, keep_last = function(tail_chunk(data, chunk_size), last)
        total = jax.tree.map(jnp.add, total, part)
    return total, (keep, keep_last)


def sum_over_chunks(function: Callable[[Any], Any], data: Any, chunk_size: int | None) -> Any:
    """Returns Σ function(chunk) over chunks of `data`; `function` sums over its chunk's examples.

    Memory is that of one chunk.
    """
    return reduce_chunks(lambda chunk, _: (function(chunk), None), data, chunk_size)[0]


def join_chunks(kept: tuple[Any, Any], data: Any, chunk_size: int | None) -> Any:
    """Returns per-example results that `reduce_chunks` kept with one leading axis n."""
    full, last = kept
    if chunk_shape(data, chunk_size)[1] > 1:
        full = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), full)
    if last is None:
        return full
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), full, last)


def map_over_chunks(function: Callable[[Any], Any], data: Any, chunk_size: int | None) -> Any:
    """Returns the per-example results of `function(chunk)`, leading axis n, one chunk at a time."""
    _, kept = reduce_chunks(lambda chunk, _: ((), function(chunk)), data, chunk_size)
    return join_chunks(kept, data, chunk_size)


def scale_like(total: Any, divisor: Any, like: Any) -> Any:
    """Returns total / divisor, each leaf in the dtype of `like`."""
    return jax.tree.map(lambda a, b: (a / divisor).astype(b.dtype), total, like)
