"""Per-example vectors of disjoint parts of the parameters, and what is done with them.

A *block* is a set of entries of one leaf, with all contents (`weights`) that belong there. For one
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

from jaxstab.operators import sites
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
from jaxstab.operators.weights import Content, Dense, OneHot, Rows


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
      weighted: whether a constant factor multiplies the rows entry by entry.
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
    weighted: bool = False
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
    """The rows of one content: what moves with θ and what is read at θ alone."""

    x: Any  # None where it does not move
    d: Any


class Arrays(NamedTuple):
    """The numbers of one block of one example.

    Attributes:
      moving: `RowArrays` of every content, or the array alone.
      inputs: X of every content where it does not move or where it has a dual, else None.
      duals: Δ of every content, or None.
      factor: shared by all examples, or None.
    """

    moving: Any
    inputs: tuple[Any, ...]
    duals: tuple[Any, ...]
    factor: Any


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
        if fitting and all(r.factor is None for r in rows):  # type: ignore[union-attr]
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
    return block, Arrays(value, (), (), None)


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
    return dataclasses.replace(content, placement=placement, x=x, d=d, plain=None, dual=None)


def _rows_block(
    leaf: int, shape: tuple[int, ...], rows: list[Rows], swapped: list[bool], notes: tuple[str, ...]
) -> tuple[Block, Arrays]:
    positions = sum(r.d.shape[1] for r in rows)
    _, inputs, outputs = rows[0].placement.sizes
    weighted = rows[0].factor is not None
    lookups = any(isinstance(r.x, OneHot) for r in rows)
    pairs = 3 * positions * (inputs + outputs) < 4 * inputs * outputs
    if weighted:
        pairs = positions == 1
    products = sum(
        2 * math.prod(r.d.shape) * (1 if isinstance(r.x, OneHot) else inputs) for r in rows
    )
    grams = 6 * positions**2 * (inputs + outputs) * rows[0].placement.sizes[0]
    operations = 4 * products + (grams if pairs or lookups else 4 * products)
    only = rows[0]
    dual = only.dual is not None and len(rows) == 1 and not pairs and not weighted
    shifts = only.x.shape[-1] // only.plain.shape[-1] if dual else 1
    dual = shifts > 1
    block = Block(
        leaf, shape, rows[0].placement, "rows", tuple(swapped), tuple(r.moves for r in rows),
        pairs or lookups, shifts, weighted,
        sum(math.prod(y.shape) for r in rows for y in (r.x, r.d) if not isinstance(y, OneHot)),
        operations, notes,
    )  # fmt: skip
    if dual:
        moving: Any = (RowArrays(only.plain, only.d),)
        return block, Arrays(moving, (only.x,), (only.dual,), None)
    moving = tuple(RowArrays(r.x if r.moves else None, r.d) for r in rows)
    still = tuple(None if r.moves else r.x for r in rows)
    return block, Arrays(moving, still, (None,) * len(rows), only.factor)


# --- Pairs -----------------------------------------------------------------------------------


class Pair(NamedTuple):
    """xᵀd, d unfolded over so many kernel positions (1: plain rows)."""

    x: Any
    d: Any
    shifts: int = 1


def rows_of(arrays: Arrays, c: int) -> tuple[Any, Any]:
    """X and D of content c, all with leading axis n."""
    still = arrays.inputs[c]
    return (arrays.moving[c].x if still is None else still), arrays.moving[c].d


def pairs_of(block: Block, arrays: Arrays, tangent: Any) -> list[Pair]:
    """The pairs of g_i (no tangent) or of H_i v."""
    pairs = []
    for c, swapped in enumerate(block.swapped):
        x, d = rows_of(arrays, c)
        if tangent is None:
            mine = [Pair(x, d)]
        else:
            mine = [Pair(x, tangent[c].d)]
            dual = arrays.duals[c]
            if tangent[c].x is not None:
                mine.insert(0, Pair(tangent[c].x, d if dual is None else dual, block.shifts))
        pairs += [Pair(p.d, p.x) if swapped else p for p in mine]
    return pairs


def _gram(x: Any, y: Any) -> jax.Array:
    """x yᵀ over the last axis, (n, b, T, S)."""
    if isinstance(x, OneHot) and isinstance(y, OneHot):
        return x.ids[..., :, None] == y.ids[..., None, :]
    if isinstance(x, OneHot):
        return jnp.swapaxes(_gram(y, x), -1, -2)
    if isinstance(y, OneHot):
        return jnp.take_along_axis(x, y.ids[..., None, :], axis=-1)
    if x.shape[-2] == y.shape[-2] == 1:  # a batch of 1 × 1 products is a sum, and faster as one
        return jnp.sum(x * y, axis=-1, keepdims=True)
    return jnp.einsum("nbtk,nbsk->nbts", x, y)


def _mix(gram: jax.Array, y: Any) -> jax.Array:
    """gram · y, (n, b, T, K)."""
    if isinstance(y, OneHot):
        zeros = jnp.zeros((*gram.shape[:-1], y.columns), gram.dtype)
        ids = jnp.broadcast_to(y.ids[..., None, :], gram.shape)
        add = lambda zero, at, values: zero.at[at].add(values)  # noqa: E731
        return jax.vmap(jax.vmap(jax.vmap(add)))(zeros, ids, gram)
    gram = gram.astype(y.dtype)
    return gram * y if gram.shape[-1] == 1 else jnp.einsum("nbts,nbsk->nbtk", gram, y)


def _times(x: Any, matrix: jax.Array) -> jax.Array:
    """Rows times one matrix for all examples: (n, b, T, K) and (b, K, M) give (n, b, T, M)."""
    if isinstance(x, OneHot):
        return jax.vmap(lambda ids: jnp.take_along_axis(matrix, ids[..., None], axis=1))(x.ids)
    if x.shape[1] == 1:
        rows = x.reshape(-1, x.shape[-1]) @ matrix[0]
        return rows.reshape(*x.shape[:-1], matrix.shape[-1])
    return jnp.einsum("nbtk,bkm->nbtm", x, matrix)


def _contract(x: Any, d: Any) -> jax.Array:
    """Σ over examples and positions of x dᵀ, (b, K, M)."""
    if isinstance(d, OneHot):
        return jnp.swapaxes(_contract(d, x), 1, 2)
    if isinstance(x, OneHot):
        b = jnp.arange(x.shape[1])[None, :, None]
        return jnp.zeros((x.shape[1], x.columns, d.shape[-1]), d.dtype).at[b, x.ids].add(d)
    if x.shape[1] == 1:  # one plain matrix product: XLA gives it no transposes
        return (x.reshape(-1, x.shape[-1]).T @ d.reshape(-1, d.shape[-1]))[None]
    return jnp.einsum("nbtk,nbtm->bkm", x, d)


def _multiply(pairs: list[Pair], factor: Any = None) -> jax.Array:
    """The products summed, (n, b, K, M)."""
    products = (sites.from_dual(jnp.einsum("nbtk,nbtm->nbkm", p.x, p.d), p.shifts) for p in pairs)
    total: Any = sum(products)
    return total if factor is None else total * factor


# --- Blocks ----------------------------------------------------------------------------------


def total(block: Block, arrays: Arrays, tangent: Any) -> jax.Array:
    """Σ over examples of g_i (no tangent) or H_i v: (b, K, M) or (entries,)."""
    if block.form != "rows":
        return jnp.sum(arrays.moving if tangent is None else tangent, axis=0)
    pairs = pairs_of(block, arrays, tangent)
    result: Any = sum(sites.from_dual(_contract(p.x, p.d), p.shifts) for p in pairs)
    return result if arrays.factor is None else result * arrays.factor


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
        product = _multiply(left, arrays.factor) * _multiply(right, arrays.factor)
        return jnp.sum(product, axis=(1, 2, 3))
    if block.weighted:
        square = jnp.square(arrays.factor)
        parts: Any = (
            jnp.sum(_times(p.x * q.x, square) * p.d * q.d, axis=(1, 2, 3))
            for p in left
            for q in right
        )
        return sum(parts)  # type: ignore[return-value]
    parts = (_gram(p.x, q.x) * _gram(p.d, q.d) for p in left for q in right)
    return sum(jnp.sum(part, axis=(1, 2, 3)) for part in parts)  # type: ignore[return-value]


def dot(block: Block, arrays: Arrays, tangent: Any, part: jax.Array) -> jax.Array:
    """⟨l_i, w⟩, shape (n,), with one vector w for all examples, given as `total` gives it."""
    if block.form != "rows":
        return (arrays.moving if tangent is None else tangent) @ part
    if arrays.factor is not None:
        part = part * arrays.factor
    result: Any = 0
    for p in pairs_of(block, arrays, tangent):
        matrix = sites.to_dual(part, p.shifts)
        if isinstance(p.d, OneHot):
            p, matrix = Pair(p.d, p.x), jnp.swapaxes(matrix, 1, 2)
        result += jnp.sum(_times(p.x, matrix) * p.d, axis=(1, 2, 3))
    return result


def covectors(block: Block, arrays: Arrays, tangent: Any, mean: jax.Array | None) -> Any:
    """(D u_iᵀ, X u_i) of every content, with u_i = H_i v − mean; for an array u_i itself."""
    if block.form != "rows":
        return tangent if mean is None else tangent - mean
    pairs = pairs_of(block, arrays, tangent)
    parts = []
    u = None
    if not block.pairs:
        u = _multiply(pairs, arrays.factor)
        u = u if mean is None else u - mean
        u = u if arrays.factor is None else u * arrays.factor
    for c, swapped in enumerate(block.swapped):
        x, d = rows_of(arrays, c)
        if swapped:
            x, d = d, x
        # The left rows get D u_iᵀ, the right ones X u_i.
        wanted = arrays.moving[c].x is not None, True
        left, right = reversed(wanted) if swapped else wanted
        dual = arrays.duals[c]
        if u is not None:
            to_left: Any = _back(d, dual, u, block.shifts) if left else None
            to_right: Any = jnp.einsum("nbtk,nbkm->nbtm", x, u) if right else None
        else:
            to_left = _left(pairs, d, mean, arrays.factor) if left else None
            to_right = _right(pairs, x, mean, arrays.factor) if right else None
        parts.append(RowArrays(to_right, to_left) if swapped else RowArrays(to_left, to_right))
    return tuple(parts)


def _back(d: jax.Array, dual: Any, u: jax.Array, shifts: int) -> jax.Array:
    if dual is None:
        return jnp.einsum("nbtm,nbkm->nbtk", d, u)
    return jnp.einsum("nbtm,nbkm->nbtk", dual, sites.to_dual(u, shifts))


def _left(pairs: list[Pair], d: Any, mean: Any, factor: Any) -> jax.Array:
    turned = [Pair(p.d, p.x) for p in pairs]
    turn = lambda m: None if m is None else jnp.swapaxes(m, 1, 2)  # noqa: E731
    return _right(turned, d, turn(mean), turn(factor))


def _right(pairs: list[Pair], x: Any, mean: Any, factor: Any) -> jax.Array:
    """X u_i."""
    if factor is not None:
        square = jnp.square(factor)
        result: Any = sum(_times(x * p.x, square) * p.d for p in pairs)
        return result if mean is None else result - _times(x, factor * mean)
    result = sum(_mix(_gram(x, p.x), p.d) for p in pairs)
    return result if mean is None else result - _times(x, mean)
