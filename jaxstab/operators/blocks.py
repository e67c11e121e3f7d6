"""Per-example vectors of disjoint parts of the parameters, and what is done with them.

A *block* is a set of entries of one leaf, with all contents (`contents`) that belong there. For one
example its vector is a sum of products of rows, Σ XᵀD over *pairs*, or an array. The pairs of g_i
are (X, D); those of H_i v are (Ẋ, D) and (X, Ḋ), of every content. Pairs are kept as they are where
T is small (products of T × T Gram matrices), multiplied out to (b, K, M) where that takes fewer
operations. Contents of one block share inner products: those of a leaf used twice have cross terms.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.operators import pairs as pair_forms
from jaxstab.operators import sites
from jaxstab.operators.contents import Content, Dense, OneHot, Rows
from jaxstab.operators.pairs import Pair
from jaxstab.operators.placements import (
    Located,
    Placement,
    Unplaced,
    canonical,
    disjoint,
    extract,
    insert,
    locate,
    reordered,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A part of a leaf, without numbers.

    Attributes:
      leaf: which.
      shape: of the leaf.
      placement: where in the leaf; groups (b, K, M) of rows, one of an array.
      form: "rows", "array", or "multiplied": an array larger than the activations it comes from.
      swapped: for each content, whether its X and D change places.
      moves: for each content, whether X depends on the parameters.
      pairs: whether pairs are kept.
      shifts: kernel positions over which the dual rows of a convolution are unfolded; 1: no dual.
      factors: for each content, 0 where no factor multiplies its rows entry by entry, 1 for a
        constant one, 2 for one that depends on the parameters.
      entries: numbers held for each example, X and D or the array.
      operations: estimated operations of one product for each example.
      notes: the primitives in which data were met.
      why: of a multiplied block, why.
    """

    leaf: int
    shape: tuple[int, ...]
    placement: Placement
    form: str
    swapped: tuple[bool, ...] = ()
    moves: tuple[bool, ...] = ()
    pairs: bool = True
    shifts: int = 1
    factors: tuple[int, ...] = ()
    entries: int = 0
    operations: int = 0
    notes: tuple[str, ...] = ()
    why: str = ""

    @property
    def located(self) -> tuple[Located, tuple[int, ...]]:
        """The placement along the axes of the leaf, or of the leaf in one row."""
        try:
            return locate(self.placement, self.shape), self.shape
        except Unplaced:
            flat = (math.prod(self.shape),)
            return locate(self.placement, flat), flat

    def part(self, leaf: jax.Array) -> jax.Array:
        """The block's entries of an array shaped like the leaf: (b, K, M) or (entries,)."""
        located, shape = self.located
        return extract(leaf.reshape(shape), located)

    def add_to(self, leaf: jax.Array, part: jax.Array) -> jax.Array:
        """A leaf with the block's entries added."""
        offset, axes = self.placement.entries
        part = part.astype(leaf.dtype)
        if len(axes) == 1 and axes[0][1] == 1 and axes[0][0] < leaf.size:
            size = axes[0][0]
            run = insert(part, locate(self.placement._replace(offset=0), (size,)), (size,))
            return leaf.ravel().at[offset : offset + size].add(run).reshape(leaf.shape)
        located, shape = self.located
        return leaf + insert(part, located, shape).reshape(leaf.shape)


class RowArrays(NamedTuple):
    """What moves with θ of one content; None where it does not move or is not there."""

    x: Any
    d: Any
    factor: Any  # shared by all examples


class Arrays(NamedTuple):
    """The numbers of one block of one example.

    Attributes:
      moving: `RowArrays` of every content, or the array alone.
      inputs: X of every content where it does not move or where it has a dual, else None.
      duals: Δ of every content, or None.
      factors: of every content where it does not move, shared by all examples, or None.
    """

    moving: Any
    inputs: tuple[Any, ...]
    duals: tuple[Any, ...]
    factors: tuple[Any, ...]


_OVERLAP = "parts of it that overlap are used in different ways"


def make_blocks(
    leaf: int, shape: tuple[int, ...], contents: Sequence[Content]
) -> list[tuple[Block, Arrays]]:
    """Sorts the contents of one leaf into blocks."""
    groups: list[list[Content]] = []
    for content in contents:
        meeting = [
            g for g in groups if not all(disjoint(c.placement, content.placement) for c in g)
        ]
        groups = [g for g in groups if g not in meeting]
        groups.append([*(c for g in meeting for c in g), content])
    return [_make_block(leaf, shape, group) for group in groups]


def _make_block(leaf: int, shape: tuple[int, ...], contents: list[Content]) -> tuple[Block, Arrays]:
    notes = tuple(sorted({content.note for content in contents}))
    if all(isinstance(content, Rows) for content in contents):
        if len(contents) == 1:
            return _rows_block(leaf, shape, contents, [False], notes)  # type: ignore[arg-type]
        rows = [_in_order(content) for content in contents]
        first = rows[0].placement
        turned = first._replace(groups=(first.groups[0], first.groups[2], first.groups[1]))
        fitting = all(r.placement in (first, turned) for r in rows)
        if fitting:
            swapped = [r.placement != first for r in rows]
            return _rows_block(leaf, shape, rows, swapped, notes)  # type: ignore[arg-type]
    arrays = [_in_order(content.dense(_OVERLAP)) for content in contents]
    placement, values = arrays[0].placement, [a.value for a in arrays]  # type: ignore[union-attr]
    if any(a.placement != placement for a in arrays):
        size = math.prod(shape)
        values = [insert(a.value, locate(a.placement, (size,)), (size,)) for a in arrays]  # type: ignore[union-attr]
        placement = Placement(0, (((size, 1),),))
    value = sum(values[1:], values[0])
    why = next((a.why for a in arrays if a.why), "")  # type: ignore[union-attr]
    if len(arrays) > 1 and value.size > sum(a.value.size for a in arrays):  # type: ignore[union-attr]
        why = why or _OVERLAP
    block = Block(
        leaf, shape, placement, "multiplied" if why else "array", entries=value.size,
        operations=(24 if why else 8) * value.size, notes=notes, why=why,
    )  # fmt: skip
    return block, Arrays(value, (), (), ())


def _in_order(content: Content) -> Content:
    """The same with the entries of each group in the order of their addresses."""
    placement, orders = canonical(content.placement)
    sizes = [[size for size, _ in group] for group in content.placement.groups]
    if isinstance(content, Dense):
        value = reordered(content.value, 0, sizes[0], orders[0])
        return dataclasses.replace(content, placement=placement, value=value)
    x, d = content.x, content.d
    if isinstance(x, OneHot):
        x = dataclasses.replace(x, ids=reordered(x.ids, 0, sizes[0], orders[0]))
    else:
        x = reordered(reordered(x, 2, sizes[1], orders[1]), 0, sizes[0], orders[0])
    d = reordered(reordered(d, 2, sizes[2], orders[2]), 0, sizes[0], orders[0])
    factor = content.factor
    for axis, (size, order) in enumerate(zip(sizes, orders, strict=True)):
        factor = None if factor is None else reordered(factor, axis, size, order)
    changes = {"placement": placement, "x": x, "d": d, "factor": factor}
    return dataclasses.replace(content, **changes, plain=None, dual=None)


def _rows_block(
    leaf: int, shape: tuple[int, ...], rows: list[Rows], swapped: list[bool], notes: tuple[str, ...]
) -> tuple[Block, Arrays]:
    positions = [r.d.shape[1] for r in rows]
    batches, inputs, outputs = rows[0].placement.sizes
    size = inputs * outputs
    factors = tuple(0 if r.factor is None else 2 if r.factor_moves else 1 for r in rows)
    lookups = any(isinstance(r.x, OneHot) for r in rows)
    # Each pair of rows takes 3 (K + M) operations twice by its Gram, 2 K M with a factor.
    grams = sum(
        s * t * (2 * size if f or g else 6 * (inputs + outputs))
        for s, f in zip(positions, factors, strict=True)
        for t, g in zip(positions, factors, strict=True)
    )
    pairs = lookups or grams < 8 * sum(positions) * size
    if lookups and any(factors):
        raise Unplaced
    only = rows[0]
    dual = only.dual is not None and len(rows) == 1 and not pairs
    shifts = only.x.shape[-1] // only.plain.shape[-1] if dual else 1
    dual = shifts > 1
    products = sum(
        2 * math.prod(r.d.shape) * (1 if isinstance(r.x, OneHot) else inputs) for r in rows
    )
    block = Block(
        leaf, shape, rows[0].placement, "rows", tuple(swapped), tuple(r.moves for r in rows),
        pairs, shifts, factors,
        sum(math.prod(y.shape) for r in rows for y in (r.x, r.d) if not isinstance(y, OneHot)),
        4 * products + (grams * batches if pairs else 4 * products), notes,
    )  # fmt: skip
    moving = tuple(
        RowArrays(r.x if r.moves else None, r.d, r.factor if r.factor_moves else None) for r in rows
    )
    still = tuple(None if r.moves else r.x for r in rows)
    constant = tuple(None if r.factor_moves else r.factor for r in rows)
    if dual:
        moving = (RowArrays(only.plain, only.d, None),)
        return block, Arrays(moving, (only.x,), (only.dual,), constant)
    return block, Arrays(moving, still, (None,) * len(rows), constant)


# --- What is done with them ------------------------------------------------------------------


def rows_of(block: Block, arrays: Arrays, c: int) -> Pair:
    """X, D and factor of content c, in the orientation of the block."""
    mine, still, factor = arrays.moving[c], arrays.inputs[c], arrays.factors[c]
    pair = Pair(
        mine.x if still is None else still, mine.d, 1, mine.factor if factor is None else factor
    )
    return pair.turned if block.swapped[c] else pair


def pairs_of(block: Block, arrays: Arrays, tangent: Any) -> list[Pair]:
    """The pairs of g_i (no tangent) or of H_i v."""
    pairs = []
    for c, swapped in enumerate(block.swapped):
        at = rows_of(block, arrays, c)
        if tangent is None:
            pairs.append(at)
            continue
        mine, (x, d, _, factor) = tangent[c], at.turned if swapped else at
        found = [Pair(x, mine.d, 1, factor)]
        if mine.x is not None:
            dual = arrays.duals[c]
            moved = Pair(mine.x, d if dual is None else dual, block.shifts, factor)
            found.insert(0, moved)
        if mine.factor is not None:
            found.append(Pair(x, d, 1, mine.factor))
        pairs += [pair.turned if swapped else pair for pair in found]
    return pairs


def total(block: Block, arrays: Arrays, tangent: Any) -> jax.Array:
    """Σ over examples of g_i (no tangent) or H_i v: (b, K, M) or (entries,)."""
    if block.form != "rows":
        return jnp.sum(arrays.moving if tangent is None else tangent, axis=0)
    parts = (
        pair_forms.weigh(sites.from_dual(pair_forms.contract(p.x, p.d), p.shifts), p.factor)
        for p in pairs_of(block, arrays, tangent)
    )
    return sum(parts)  # type: ignore[return-value]


def inner(
    block: Block, arrays: Arrays, tangent: Any, other: Arrays, other_tangent: Any
) -> jax.Array:
    """⟨l_i, r_i⟩, shape (n,)."""
    if block.form != "rows":
        left = arrays.moving if tangent is None else tangent
        right = other.moving if other_tangent is None else other_tangent
        return jnp.sum(left * right, axis=1)
    left, right = pairs_of(block, arrays, tangent), pairs_of(block, other, other_tangent)
    if not block.pairs:
        return jnp.sum(pair_forms.multiply(left) * pair_forms.multiply(right), axis=(1, 2, 3))
    parts = (pair_forms.inner_product(p, q) for p in left for q in right)
    return sum(parts)  # type: ignore[return-value]


def dot(block: Block, arrays: Arrays, tangent: Any, part: jax.Array) -> jax.Array:
    """⟨l_i, w⟩, shape (n,), with one vector w for all examples, given as `total` gives it."""
    if block.form != "rows":
        return (arrays.moving if tangent is None else tangent) @ part
    result: Any = 0
    for p in pairs_of(block, arrays, tangent):
        matrix = sites.to_dual(pair_forms.weigh(part, p.factor), p.shifts)
        x, d = p.x, p.d
        if isinstance(d, OneHot):
            x, d, matrix = d, x, jnp.swapaxes(matrix, 1, 2)
        result += jnp.sum(pair_forms.times(x, matrix) * d, axis=(1, 2, 3))
    return result


def covectors(block: Block, arrays: Arrays, tangent: Any, mean: jax.Array | None) -> Any:
    """What the transpose of A is applied to, with u_i = H_i v − mean.

    Of every content (D (F ∘ u_i)ᵀ, X (F ∘ u_i), Σ_i XᵀD ∘ u_i), F its factor; of an array u_i.
    """
    if block.form != "rows":
        return tangent if mean is None else tangent - mean
    pairs = pairs_of(block, arrays, tangent)
    u = None
    if not block.pairs:
        u = pair_forms.multiply(pairs)
        u = u if mean is None else u - mean
    parts = []
    for c, swapped in enumerate(block.swapped):
        at, moving = rows_of(block, arrays, c), arrays.moving[c]
        wanted = (True, moving.x is not None) if swapped else (moving.x is not None, True)
        dual = arrays.duals[c]
        left = right = factor = None
        if u is None:
            turned = [p.turned for p in pairs]
            turned_mean = None if mean is None else jnp.swapaxes(mean, 1, 2)
            left = pair_forms.times_deviation(at.turned, turned, turned_mean) if wanted[0] else None
            right = pair_forms.times_deviation(at, pairs, mean) if wanted[1] else None
            if moving.factor is not None:
                factor = pair_forms.factor_covector(at, pairs, mean)
        else:
            weighed = pair_forms.weigh(u, at.factor)
            left = pair_forms.back(at.d, dual, weighed, block.shifts) if wanted[0] else None
            right = jnp.einsum("nbtk,nbkm->nbtm", at.x, weighed) if wanted[1] else None
            if moving.factor is not None:
                factor = jnp.einsum("nbtk,nbtm,nbkm->bkm", at.x, at.d, u)
        if swapped:
            factor = None if factor is None else jnp.swapaxes(factor, 1, 2)
            left, right = right, left
        parts.append(RowArrays(left, right, factor))
    return tuple(parts)
