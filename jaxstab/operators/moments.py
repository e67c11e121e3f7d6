"""v ↦ (1/n) Σ H_i² v and v ↦ Σ v from the factors of every leaf (`factored`), as operators."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.callables import static
from jaxstab.checks import data_size
from jaxstab.examples import layout_of
from jaxstab.operators.chunks import scale_like
from jaxstab.operators.factored import (
    Linearised,
    Structure,
    apply_to_deviations,
    common_gradient,
    example_sum,
    linearise_chunks,
)
from jaxstab.operators.hessian import Operator, Params, operator
from jaxstab.operators.linearised import LinearisedChunks, memory_limit, tree_bytes


def _moment_product(
    structure: Structure,
    chunks: LinearisedChunks,
    params: Params,
    v: Params,
    centred: bool,
    mean_instead: Any = None,
) -> Params:
    """(1/n) Σ H_i (H_i v − m) with m = H v if `centred`, else 0; H v where `mean_instead`."""
    n, blocks = data_size(chunks.data), structure.blocks
    common = None if centred else common_gradient(structure, params, v)
    if not centred and common is None:

        def square(linearised: Linearised, _: Any) -> Any:
            tangent = linearised.linear(v)
            return apply_to_deviations(blocks, params, linearised, tangent, None), None

        return scale_like(chunks.reduce(square)[0], n, params)

    keep = centred and (chunks.single or _tangents_fit(chunks))

    def first(linearised: Linearised, _: Any) -> Any:
        tangent = linearised.linear(v)
        total = example_sum(blocks, params, linearised, tangent)
        if centred:
            return total, tangent if keep else None
        shift = jax.tree.map(jnp.negative, common)
        return (total, apply_to_deviations(blocks, params, linearised, tangent, shift)), None

    total, tangents = chunks.reduce(first)
    if not centred:
        mean, moment = (scale_like(part, n, params) for part in total)
        rest = common_gradient(structure, params, jax.tree.map(jnp.add, mean, common))
        return jax.tree.map(jnp.add, moment, rest)
    mean = scale_like(total, n, params)

    def second(linearised: Linearised, tangent: Any) -> Any:
        tangent = linearised.linear(v) if tangent is None else tangent
        return apply_to_deviations(blocks, params, linearised, tangent, mean), None

    def variance() -> Params:
        return scale_like(chunks.reduce(second, tangents)[0], n, params)

    def with_common() -> Params:
        shared = common_gradient(structure, params, v)
        return mean if shared is None else jax.tree.map(jnp.add, mean, shared)

    return variance() if mean_instead is None else lax.cond(mean_instead, with_common, variance)


def _tangents_fit(chunks: LinearisedChunks) -> bool:
    """Whether the tangents of all chunks, besides what is kept, fit the memory limit."""
    if chunks.kept is None:
        return False
    moving = [linearised.moving for linearised in chunks.kept if linearised is not None]
    layout = layout_of(chunks.data)
    held = (tree_bytes(chunks.kept) + tree_bytes(moving)) // (layout.parts if layout else 1)
    return held <= memory_limit()


@operator
class FactoredMoment(Operator):
    """v ↦ Σ v (`centred`) or (1/n) Σ H_i² v, from the factors of every leaf.

    A product with Σ begins with H v; where `mean_instead`, a boolean that may be traced, it ends
    there: one program for both.
    """

    loss: Any
    params: Any
    data: Any
    centred: bool = static()
    chunk_size: int | None = static(default=None)
    mean_instead: Any = None

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        structure, chunks = linearise_chunks(self.loss, self.params, self.data, self.chunk_size)
        if chunks.single:
            chunks = chunks.keep()
        else:
            # For each example it holds rows and their covectors beside the residuals of the
            # gradient, 2 to 4 times what a Hessian-vector product does: half a chunk at a time.
            chunks = chunks._replace(chunk_size=-(-chunks.chunk_size // 2))
        return _moment_product(structure, chunks, self.params, v, self.centred, self.mean_instead)

    def prepare(self) -> Operator:
        """Returns the same operator with its linearisation kept, if it fits the memory.

        For use inside jit, before a loop of products.
        """
        structure, chunks = linearise_chunks(self.loss, self.params, self.data, self.chunk_size)
        chunks = chunks.keep()
        if chunks.kept is None:
            return self
        return PreparedMoment(
            self.params,
            self.data,
            chunks.kept,
            structure,
            chunks.chunk_size,
            self.centred,
            self.mean_instead,
        )


@operator
class PreparedMoment(Operator):
    """`FactoredMoment` with the linearisation at θ kept: every product is A v and Aᵀ q alone."""

    params: Any
    data: Any
    kept: Any
    structure: Any = static()
    chunk_size: int = static()
    centred: bool = static()
    mean_instead: Any = None

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        chunks = LinearisedChunks(None, self.data, self.chunk_size, self.kept)
        return _moment_product(
            self.structure, chunks, self.params, v, self.centred, self.mean_instead
        )
