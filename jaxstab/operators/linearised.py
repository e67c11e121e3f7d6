"""What all products of one measurement share, chunk by chunk: kept in memory or made anew.

A *linearised chunk* is whatever `make(chunk)` returns: a linearisation at θ with its residuals.
`LinearisedChunks.reduce` runs over them and sums; whether they are kept is decided once, from a
memory limit.
"""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
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


def device_memory() -> int:
    """Bytes of the default device's memory; devices of the host share its memory."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # what a container may use, if it is one
        whole = min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return whole // jax.local_device_count("cpu")


def memory_limit() -> int:
    """Bytes that kept linearisations may take: a quarter of the default device's memory."""
    return device_memory() // 4


def chunk_bytes(make: Callable[[Any], Any], data: Any, size: int) -> int:
    """Bytes of one linearised chunk, by its shapes: nothing is computed.

    What XLA allocates for a product is of this size (`python -m benchmarks.bench_memory`).
    """
    return tree_bytes(jax.eval_shape(make, shapes_of(data, size)))


def fitting_chunk(make: Callable[[Any], Any], data: Any, chunk_size: int | None) -> int:
    """Returns a chunk size that fits the device: `chunk_size`, halved with a warning if need be.

    Without one, see `automatic_chunk`. For use while a product is traced: nothing is allocated yet.

    Raises:
      ValueError: if a single example does not fit.
    """
    if chunk_size is None:
        size = asked = automatic_chunk(make, data)
    else:
        size, _, _ = chunk_shape(data, chunk_size)
        asked = size
    room, needed = device_memory(), chunk_bytes(make, data, size)
    wanted = needed
    while needed > room and size > 1:
        size = -(-size // 2)
        needed = chunk_bytes(make, data, size)
    if needed > room:
        raise ValueError(
            f"one example takes about {needed / 1e9:.3g} GB, and the device has "
            f"{room / 1e9:.3g} GB: use a smaller model, shorter sequences or a larger device"
        )
    if size < asked:
        warnings.warn(
            f"a chunk of {asked:,} examples takes about {wanted / 1e9:.3g} GB, and the device has "
            f"{room / 1e9:.3g} GB: {size:,} are taken at a time (chunk_size={size} says so)",
            stacklevel=2,
        )
    return size


def automatic_chunk(make: Callable[[Any], Any], data: Any) -> int:
    """Returns the largest chunk, all n if possible, whose linearisation fits `CHUNK_MEMORY`."""
    n, _, _ = chunk_shape(data, None)
    if chunk_bytes(make, data, n) <= CHUNK_MEMORY:
        return n  # the one size that is traced where everything fits
    one, two = (chunk_bytes(make, data, size) for size in (1, min(2, n)))
    # What grows with the chunk; the rest (weights among the residuals) is there once in any case.
    per_example = max(1, two - one) if n > 1 else 1
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
        return chunk_bytes(self.make, self.data, size) * (full + (remainder > 0))

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
