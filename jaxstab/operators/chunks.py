"""Sums over examples, one chunk at a time: the only place that knows how data are cut.

Data that are spread over devices (`jaxstab.examples.Sharded`) are cut within each device: the scan
over chunks runs inside `shard_map`, and one sum over devices follows it. Data that are `Streamed`
are read where a chunk is taken.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxstab.checks import check_at_least, data_size
from jaxstab.convolutions import fast_in_loops
from jaxstab.examples import Layout, fetched, layout_of, local


def chunk_shape(data: Any, chunk_size: int | None) -> tuple[int, int, int]:
    """Returns (chunk size, full chunks, remainder) of the examples that one device has."""
    layout = layout_of(data)
    n = data_size(data) // (layout.parts if layout else 1)
    size = n if chunk_size is None else min(check_at_least("chunk_size", chunk_size, 1), n)
    return size, n // size, n % size


def take_chunk(data: Any, start: Any, size: int) -> Any:
    """Returns examples start .. start + size - 1 of `data`, as arrays."""
    return fetched(jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, start, size), data))


def tail_chunk(data: Any, chunk_size: int | None) -> Any:
    """Returns the examples after the last full chunk."""
    size, full, _ = chunk_shape(data, chunk_size)
    return fetched(jax.tree.map(lambda leaf: leaf[full * size :], data))


def on_devices(function: Callable[..., Any], layout: Layout, *args: Any) -> tuple[Any, Any]:
    """Returns (Σ over devices, results by device) of `total, own = function(*args)` on each.

    Args are spread along their leading axes; what `function` closes over is there on every device.
    The results by device have a new leading axis, which lies on the devices.
    """
    axes = layout.axes

    def one(*args: Any) -> Any:
        total, own = function(*args)
        if layout.ordered:
            each = lax.all_gather(total, axes)
            total = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), each)
        else:
            total = lax.psum(total, axes)
        return total, jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), own)

    return jax.shard_map(
        one,
        mesh=layout.mesh,
        in_specs=P(axes),
        out_specs=(P(), P(axes)),
        axis_names=set(axes),
        check_vma=False,  # the loss's own loops would have to mark what they carry
    )(*args)


def own_part(tree: Any) -> Any:
    """What a device has of results by device, inside `on_devices`."""
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, 0), tree)


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
    at once. Of data that are spread over devices, `kept` has one more leading axis, the devices'.
    """
    layout = layout_of(data)
    if layout is None:
        return _reduce(function, data, chunk_size, extra)

    def own(data: Any, extra: Any) -> Any:
        return _reduce(function, local(data), chunk_size, own_part(extra))

    return on_devices(own, layout, data, extra)


def _reduce(
    function: Callable[[Any, Any], tuple[Any, Any]],
    data: Any,
    chunk_size: int | None,
    extra: tuple[Any, Any],
) -> tuple[Any, tuple[Any, Any]]:
    """`reduce_chunks` on one device."""
    function = fast_in_loops(function)
    size, full, remainder = chunk_shape(data, chunk_size)
    stacked, last = extra
    if full == 1:
        chunk = take_chunk(data, 0, size) if remainder else fetched(data)
        total, keep = function(chunk, stacked)
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
    first = 0 if layout_of(data) is None else 1  # after the axis of the devices, if there is one
    if chunk_shape(data, chunk_size)[1] > 1:
        full = jax.tree.map(lambda leaf: _merged(leaf, first), full)
    if last is not None:
        full = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, first), full, last)
    return jax.tree.map(lambda leaf: _merged(leaf, 0), full) if first else full


def _merged(leaf: jax.Array, axis: int) -> jax.Array:
    """An array with two neighbouring axes made one."""
    return leaf.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 2 :])


def map_over_chunks(function: Callable[[Any], Any], data: Any, chunk_size: int | None) -> Any:
    """Returns the per-example results of `function(chunk)`, leading axis n, one chunk at a time."""
    _, kept = reduce_chunks(lambda chunk, _: ((), function(chunk)), data, chunk_size)
    return join_chunks(kept, data, chunk_size)


def scale_like(total: Any, divisor: Any, like: Any) -> Any:
    """Returns total / divisor, each leaf in the dtype of `like`."""
    return jax.tree.map(lambda a, b: (a / divisor).astype(b.dtype), total, like)
