"""Where the entries of a gradient lie in an array: axes with strides, as in a strided view.

A *placement* says, for something with groups of axes (the b, K and M of XᵀD, or one group for a
plain array), at which address of an array, counted along its rows, each entry belongs. Transposes,
slices and reshapes of the array only change strides and offset; no data move.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Axis = tuple[int, int]  # size, stride


class Unplaced(Exception):
    """Entries that no strides describe."""


class Placement(NamedTuple):
    """offset + Σ index · stride over the axes of all groups; axes of size 1 are left out."""

    offset: int
    groups: tuple[tuple[Axis, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries along each group."""
        return tuple(math.prod(size for size, _ in group) for group in self.groups)

    @property
    def entries(self) -> tuple[int, tuple[Axis, ...]]:
        """Offset and sorted axes: equal where two placements hold the same entries."""
        return self.offset, merged(sorted((a for g in self.groups for a in g), key=_by_stride))

    def end(self) -> int:
        """The largest address."""
        return self.offset + sum((n - 1) * stride for g in self.groups for n, stride in g)


class Piece(NamedTuple):
    """An axis of a placement within one axis of an array."""

    size: int
    step: int
    axis: int


class Located(NamedTuple):
    """A placement in terms of the axes of an array."""

    offsets: tuple[int, ...]
    groups: tuple[tuple[Piece, ...], ...]

    def within(self, axes: Any) -> "Located":
        """The same with the pieces on `axes` alone, still in their groups."""
        kept = tuple(tuple(p for p in group if p.axis in axes) for group in self.groups)
        return self._replace(groups=kept)

    @property
    def pieces(self) -> list[Piece]:
        """All pieces."""
        return [piece for group in self.groups for piece in group]

    def axes_of(self, group: int) -> set[int]:
        """The array's axes that a group moves along."""
        return {piece.axis for piece in self.groups[group]}


def _by_stride(axis: Axis) -> int:
    return -axis[1]


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array laid out along its rows."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def merged(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes, outermost first, with neighbours that are one axis made one."""
    result: list[Axis] = []
    for size, stride in axes:
        if result and result[-1][1] == size * stride:
            result[-1] = (result[-1][0] * size, stride)
        else:
            result.append((size, stride))
    return tuple(result)


def whole(shape: Sequence[int]) -> Placement:
    """All entries of an array as one group."""
    return place(shape, [range(len(shape))])


def place(shape: Sequence[int], groups: Sequence[Sequence[int]]) -> Placement:
    """The axes of a whole array in groups."""
    strides = strides_of(shape)
    return Placement(
        0, tuple(tuple((shape[a], strides[a]) for a in g if shape[a] > 1) for g in groups)
    )


def canonical(placement: Placement) -> tuple[Placement, list[list[int]]]:
    """The same with each group's axes sorted by stride and merged; and the order of the axes."""
    orders = [sorted(range(len(g)), key=lambda i: -g[i][1]) for g in placement.groups]
    groups = (merged([g[i] for i in o]) for g, o in zip(placement.groups, orders, strict=True))
    return placement._replace(groups=tuple(groups)), orders


def reordered(x: jax.Array, axis: int, sizes: Sequence[int], order: Sequence[int]) -> jax.Array:
    """Permutes the entries along one merged axis: its parts, of the given sizes, in a new order."""
    if list(order) == sorted(order):
        return x
    split = x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])
    axes = [*range(axis), *(axis + i for i in order), *range(axis + len(sizes), split.ndim)]
    return jnp.transpose(split, axes).reshape(x.shape)


def locate(placement: Placement, shape: Sequence[int]) -> Located:
    """Splits the axes of a placement at the axes of an array of the given shape.

    Raises:
      Unplaced: if an axis runs across axes of the array in uneven steps.
    """
    strides = strides_of(shape)
    offsets = tuple(int(i) for i in np.unravel_index(placement.offset, shape)) if shape else ()
    groups = []
    for group in placement.groups:
        pieces: list[Piece] = []
        for size, stride in group:
            split: list[Piece] = []
            while size > 1:
                fitting = [a for a in range(len(shape)) if shape[a] > 1 and strides[a] <= stride]
                axis = fitting[0]
                step, rest = divmod(stride, strides[axis])
                room = shape[axis] // step
                if rest or step >= shape[axis]:
                    raise Unplaced
                if size > room and (size % room or shape[axis] % step):
                    raise Unplaced
                split.insert(0, Piece(min(size, room), step, axis))
                size, stride = size // split[0].size, strides[axis] * shape[axis]
            pieces.extend(split)
        groups.append(tuple(pieces))
    located = Located(offsets, tuple(groups))
    for axis, length in enumerate(shape):
        reach = sum((p.size - 1) * p.step for p in located.pieces if p.axis == axis)
        if offsets[axis] + reach >= length:
            raise Unplaced
    return located


def placed(located: Located, strides: Sequence[int | None], base: int) -> Placement:
    """A placement in another array, whose addresses are base + Σ index · stride; None: no axis."""
    offset = base + sum(
        o * s for o, s in zip(located.offsets, strides, strict=True) if s is not None
    )
    groups = (
        tuple((p.size, p.step * strides[p.axis]) for p in g if strides[p.axis] is not None)  # type: ignore[operator]
        for g in located.groups
    )
    return Placement(offset, tuple(groups))


def extract(array: jax.Array, located: Located) -> jax.Array:
    """The entries of an array at a placement, one axis a group."""
    order: list[int] = []  # for each axis of the result, its piece
    number = {id(piece): i for i, piece in enumerate(located.pieces)}
    for axis in reversed(range(array.ndim)):
        mine = sorted((p for p in located.pieces if p.axis == axis), key=lambda p: -p.step)
        array = _along(array, axis, located.offsets[axis], [(p.size, p.step) for p in mine])
        order = [number[id(p)] for p in mine] + order
    array = jnp.transpose(array, [order.index(i) for i in range(len(order))])
    sizes = (math.prod(p.size for p in group) for group in located.groups)
    return array.reshape(tuple(sizes))


def _along(array: jax.Array, axis: int, offset: int, pieces: list[Axis]) -> jax.Array:
    """Replaces one axis by one axis for each piece (none: the entry at `offset`)."""
    if not pieces:
        return jax.lax.index_in_dim(array, offset, axis, keepdims=False)
    (size, step), rest = pieces[0], pieces[1:]
    if not rest and step == 1:
        return jax.lax.slice_in_dim(array, offset, offset + size, axis=axis)
    missing = max(0, offset + size * step - array.shape[axis])
    if missing:
        pad = [(0, missing if a == axis else 0) for a in range(array.ndim)]
        array = jnp.pad(array, pad)
    array = jax.lax.slice_in_dim(array, offset, offset + size * step, axis=axis)
    array = array.reshape(*array.shape[:axis], size, step, *array.shape[axis + 1 :])
    return _along(array, axis + 1, 0, rest)


def insert(values: jax.Array, located: Located, shape: Sequence[int]) -> jax.Array:
    """An array that is zero but for the given entries: the transpose of `extract`."""
    struct = jax.ShapeDtypeStruct(tuple(shape), values.dtype)
    return jax.linear_transpose(lambda array: extract(array, located), struct)(values)[0]


def disjoint(left: Placement, right: Placement) -> bool:
    """Whether two placements have no entry in common."""
    if left.end() < right.offset or right.end() < left.offset:
        return True
    if left.entries == right.entries:
        return False
    size = max(left.end(), right.end()) + 1
    memory = np.empty(size, np.int8)  # addresses alone: never written, so never real memory
    views = [
        np.lib.stride_tricks.as_strided(
            memory[p.offset :],
            [n for g in p.groups for n, _ in g],
            [stride for g in p.groups for _, stride in g],
        )
        for p in (left, right)
    ]
    try:
        return not np.shares_memory(*views, max_work=10**5)  # type: ignore[arg-type, misc]
    except np.exceptions.TooHardError:
        return False
