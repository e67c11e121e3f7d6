"""What all products of one measurement share, computed per chunk: kept in memory or recomputed.

A *context* is whatever `make(chunk)` returns, typically a linearisation at θ with its residuals.
`Contexts.reduce` runs over chunks and sums; where the contexts come from is decided once, from a
memory limit.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.convolutions import fast_in_loops
from jaxstab.operators.chunks import chunk_shape, take_chunk

# Without a chunk size, chunks are as large as this many bytes of context allow.
CHUNK_MEMORY = 2**30


def tree_bytes(tree: Any) -> int:
    """Bytes of the arrays (or shapes) of a pytree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def memory_limit() -> int:
    """Bytes that kept contexts may take: a quarter of the default device's memory."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] // 4
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def automatic_chunk(make: Callable[[Any], Any], data: Any) -> int:
    """Returns the largest chunk, all n if possible, whose context fits `CHUNK_MEMORY`."""
    n, _, _ = chunk_shape(data, None)
    one = jax.eval_shape(lambda data: make(take_chunk(data, 0, 1)), data)
    two = jax.eval_shape(lambda data: make(take_chunk(data, 0, min(2, n))), data)
    # What grows with the chunk; the rest (weights among the residuals) is there once in any case.
    per_example = max(1, tree_bytes(two) - tree_bytes(one)) if n > 1 else 1
    chunks = -(-n * per_example // CHUNK_MEMORY)
    return -(-n // chunks)


class Contexts(NamedTuple):
    """Contexts of all chunks of `data`: `full` stacked ones and a `tail` for the remainder.

    Where `kept` is None they are made anew from `data` at every pass.
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
        self, function: Callable[[Any, Any], tuple[Any, Any]], extra: Any = None
    ) -> tuple[Any, Any]:
        """Returns (Σ total, kept) over chunks of `total, keep = function(context, extra_chunk)`.

        `extra` is None or what an earlier `reduce` returned as kept.
        """
        function, make = fast_in_loops(function), fast_in_loops(self.make)
        size, full, remainder = chunk_shape(self.data, self.chunk_size)
        extra_full, extra_tail = (None, None) if extra is None else extra

        def at(index: Any, stacked: Any) -> Any:
            if self.kept is not None:
                return stacked
            return make(take_chunk(self.data, index * size, size))

        stacked = None if self.kept is None else self.kept[0]
        if full == 1:
            total, keep = function(at(0, stacked), extra_full)
        else:

            def body(total: Any, xs: Any) -> tuple[Any, Any]:
                part, keep = function(at(xs[0], xs[1]), xs[2])
                return jax.tree.map(jnp.add, total, part), keep

            xs = (jnp.arange(full), stacked, extra_full)
            first = jax.tree.map(lambda leaf: leaf[0], xs)
            shapes = jax.eval_shape(lambda xs: function(at(xs[0], xs[1]), xs[2])[0], first)
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            total, keep = lax.scan(body, zero, xs)
        keep_tail = None
        if remainder:
            context = self.kept[1] if self.kept is not None else make(self._tail())
            part, keep_tail = function(context, extra_tail)
            total = jax.tree.map(jnp.add, total, part)
        return total, (keep, keep_tail)

    def _tail(self) -> Any:
        size, full, _ = chunk_shape(self.data, self.chunk_size)
        return jax.tree.map(lambda leaf: leaf[full * size :], self.data)

    def map(self, function: Callable[[Any], Any]) -> Any:
        """Returns the per-example results of `function(context)`, leading axis n."""
        _, (full, tail) = self.reduce(lambda context, _: ((), function(context)))
        if not self.stacked:
            parts = [full]
        else:
            parts = [jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), full)]
        if tail is not None:
            parts.append(tail)
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    @property
    def stacked(self) -> bool:
        """Whether there is more than one full chunk."""
        return chunk_shape(self.data, self.chunk_size)[1] > 1

    def bytes(self) -> int:
        """Bytes that keeping all contexts takes."""
        size, full, remainder = chunk_shape(self.data, self.chunk_size)
        chunk = jax.eval_shape(lambda data: self.make(take_chunk(data, 0, size)), self.data)
        return tree_bytes(chunk) * (full + (remainder > 0))

    def keep(self) -> "Contexts":
        """Returns the same contexts, computed now and kept, if they fit `memory_limit()`."""
        size, full, remainder = chunk_shape(self.data, self.chunk_size)
        if self.kept is not None or self.bytes() > memory_limit():
            return self
        make = fast_in_loops(self.make)
        if full == 1:
            stacked = make(take_chunk(self.data, 0, size) if remainder else self.data)
        else:
            stacked = lax.map(
                lambda index: make(take_chunk(self.data, index * size, size)), jnp.arange(full)
            )
        return self._replace(kept=(stacked, make(self._tail()) if remainder else None))
