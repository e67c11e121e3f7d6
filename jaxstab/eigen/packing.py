"""Vectors as the solvers keep them: leaves of one dtype lie one after the other in one array.

A transformer of 12 layers has 150 leaves, and every operation on vectors would be compiled, and on
an accelerator launched, 150 times over. Only the product with the operator sees the leaves.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.eigen import vectors


class Packing(NamedTuple):
    """How a vector is packed: hashable, so that it can be a static argument."""

    sig: vectors.Signature  # of the vector
    apart: bool  # its leaves are spread over devices, and stay as they are

    @property
    def packed(self) -> vectors.Signature:
        """What a packed vector is."""
        if self.apart:
            return self.sig
        sizes: dict[Any, int] = {}
        for shape, dtype in self.sig[1]:
            sizes[dtype] = sizes.get(dtype, 0) + math.prod(shape)
        return vectors.signature([jax.ShapeDtypeStruct((n,), dtype) for dtype, n in sizes.items()])

    def pack(self, v: Any) -> Any:
        """A vector packed, in working precision."""
        if self.apart:
            return v
        parts: dict[Any, list[jax.Array]] = {}
        for leaf, (_, dtype) in zip(jax.tree.leaves(v), self.sig[1], strict=True):
            leaf = jnp.asarray(leaf, jnp.result_type(dtype, jnp.float32))
            parts.setdefault(dtype, []).append(leaf.ravel())
        return [jnp.concatenate(part) for part in parts.values()]

    def unpack(self, x: Any) -> Any:
        """What was packed, in the dtypes of the vector."""
        if self.apart:
            return x
        parts = dict(zip(dict.fromkeys(dtype for _, dtype in self.sig[1]), x, strict=True))
        used, leaves = dict.fromkeys(parts, 0), []
        for shape, dtype in self.sig[1]:
            start, used[dtype] = used[dtype], used[dtype] + math.prod(shape)
            leaf = lax.slice_in_dim(parts[dtype], start, used[dtype])
            leaves.append(leaf.reshape(shape).astype(dtype))
        return self.sig[0].unflatten(leaves)

    def operator(self, matvec: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same operator on packed vectors, checked when it is traced."""

        def apply(x: Any) -> Any:
            out = matvec(self.unpack(x))
            vectors.check_same("matvec(v)", out, vectors.structs(self.sig))
            return self.pack(out)

        return apply


def packing_of(like: Any, matvec: Callable[[Any], Any]) -> Packing:
    """How vectors like `like` are packed.

    They are spread over devices where `like` lies so or where the operator says so (`sharding`).
    """
    spread = any(map(_is_spread, jax.tree.leaves(like)))
    apart = spread or getattr(matvec, "sharding", None) is not None
    return Packing(vectors.signature(like, matvec), apart)


def _is_spread(leaf: Any) -> bool:
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return False
    return not leaf.sharding.is_fully_replicated
