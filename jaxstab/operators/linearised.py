"""What all products of one measurement share, chunk by chunk: kept in memory or made anew.

A *linearised chunk* is whatever `make(chunk)` returns: a linearisation at θ with its residuals.
`LinearisedChunks.reduce` runs over them and sums; whether they are kept is decided once, from a
memory limit.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.convolutions import fast_in_loops
from jaxstab.examples import fetched, layout_of, local, shapes_of
from jaxstab.operators.chunks import (
    chunk_shape,
    join_chunks,
    on_devices,
    reduce_chunks,
    tail_chunk,
    take_chunk,
)

# Without a chunk size, chunks are as large as this many bytes of linearisation allow.
CHUNK_MEMORY = 2**30


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays (or shapes) of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_limit() -> int:
    """Bytes that kept linearisations may take: a quarter of the default device's memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] // 4
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // (4 * jax.local_device_count("cpu"))  # which share it


def automatic_chunk(make: Callable[[Any], Any], data: Any) -> int:
    """Returns the largest chunk, all n if possible, whose linearisation fits `CHUNK_MEMORY`."""
    n, _, _ = chunk_shape(data, None)
    if tree_bytes(jax.eval_shape(make, shapes_of(data, n))) <= CHUNK_MEMORY:
        return n  # the one size that is traced where everything fits
    one, two = (jax.eval_shape(make, shapes_of(data, size)) for size in (1, min(2, n)))
    # What grows with the chunk; the rest (weights among the residuals) is there once in any case.
    per_example = max(1, tree_bytes(two) - tree_bytes(one)) if n > 1 else 1
    chunks = -(-n * per_example // CHUNK_MEMORY)
    return -(-n // chunks)


class LinearisedChunks(NamedTuple):
    """The linearisations `make(chunk)` of all chunks of `data`.

    `kept` holds them, as a pair of full chunks and remainder (see `reduce_chunks`); where it is
    None they are made anew at every pass.
    """

    make: Any
    data: Any
    chunk_size: int
    kept: tuple[Any, Any] | None

    @property
    def single(self) -> bool:
        """Whether one chunk holds all examples."""
        _, full, remainder = chunk_shape(self.data, self.chunk_size)
        return full == 1 and not remainder

    def reduce(
        self, function: Callable[[Any, Any], tuple[Any, Any]], extra: Any = (None, None)
    ) -> tuple[Any, Any]:
        """Returns (Σ total, kept) of `total, keep = function(linearised_chunk, extra_chunk)`.

        `extra` is what an earlier `reduce` returned as kept, or nothing.
        """
        if self.kept is None:
            make = lambda chunk, extra: function(self.make(chunk), extra)  # noqa: E731
            return reduce_chunks(make, self.data, self.chunk_size, extra)
        pairs = tuple(zip(self.kept, extra, strict=True))
        take = lambda _, pair: function(*pair)  # noqa: E731
        return reduce_chunks(take, self.data, self.chunk_size, pairs)  # type: ignore[arg-type]

    def map(self, function: Callable[[Any], Any]) -> Any:
        """Returns the per-example results of `function(linearised_chunk)`, leading axis n."""
        _, kept = self.reduce(lambda chunk, _: ((), function(chunk)))
        return join_chunks(kept, self.data, self.chunk_size)

    def bytes(self) -> int:
        """Bytes that keeping all linearisations takes, on one device."""
        size, full, remainder = chunk_shape(self.data, self.chunk_size)
        chunk = jax.eval_shape(self.make, shapes_of(self.data, size))
        return tree_bytes(chunk) * (full + (remainder > 0))

    def keep(self) -> "LinearisedChunks":
        """Returns the same chunks, linearised now and kept, if they fit `memory_limit()`."""
        if self.kept is not None or self.bytes() > memory_limit():
            return self
        layout = layout_of(self.data)
        if layout is None:
            return self._replace(kept=self._linearise(self.data))
        own = lambda data: ((), self._linearise(local(data)))  # noqa: E731
        return self._replace(kept=on_devices(own, layout, self.data)[1])

    def _linearise(self, data: Any) -> tuple[Any, Any]:
        """All chunks of what one device has."""
        size, full, remainder = chunk_shape(data, self.chunk_size)
        make = fast_in_loops(self.make)
        if full == 1:
            stacked = make(take_chunk(data, 0, size) if remainder else fetched(data))
        else:
            stacked = lax.map(
                lambda index: make(take_chunk(data, index * size, size)), jnp.arange(full)
            )
        return stacked, make(tail_chunk(data, self.chunk_size)) if remainder else None
