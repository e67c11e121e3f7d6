"""How a content goes from what an equation returns to what it takes.

One rule a primitive. A rule gets a `Step` and returns contents of one operand; where it cannot keep
the form of the content it raises `Unplaced`, and the content goes on multiplied out (`weights`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.operators.contents import Content, Dense, OneHot, Rows, real_part
from jaxstab.operators.placements import (
    Located,
    Piece,
    Placement,
    Unplaced,
    extract,
    placed,
    strides_of,
)
from jaxstab.operators.structure import Equation, Kind, Literal, Program


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One content on its way through one equation."""

    program: Program
    env: dict[int, Any]
    equation: Equation
    index: int
    j: int
    content: Any
    located: Located

    def shape(self, j: int | None = None) -> tuple[int, ...]:
        """The shape of an operand, by default of the one that the content goes to."""
        return tuple(self.program.avals[self.equation.inputs[self.j if j is None else j]].shape)  # type: ignore[index]

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the output that the content comes from."""
        return tuple(self.program.avals[self.equation.outputs[self.index]].shape)

    def input(self, j: int) -> Any:
        """The value of an operand."""
        x = self.equation.inputs[j]
        return x.value if isinstance(x, Literal) else self.env[x]

    def to(self, strides: Sequence[int | None], base: int = 0) -> list[Content]:
        """The content at addresses base + Σ index · stride of the operand; None: summed over."""
        return _landed(self.content, self.located, strides, base)

    def fit(self, content: Content, located: Located | None = None) -> list[Content]:
        """A content of the value as one of the operand, whose axes of size 1 are repeated."""
        shape = self.shape() or (1,) * len(self.out_shape)
        if len(shape) != len(self.out_shape):
            raise Unplaced
        located = self.located if located is None else located
        strides = [
            None if mine < size else stride
            for mine, size, stride in zip(shape, self.out_shape, strides_of(shape), strict=True)
        ]
        return _landed(content, located, strides, 0)


def _landed(
    content: Content, located: Located, strides: Sequence[int | None], base: int
) -> list[Content]:
    lost = {axis for axis, stride in enumerate(strides) if stride is None}
    content = _summed(content, located, lost)
    return [dataclasses.replace(content, placement=placed(located, strides, base))]


def _summed(content: Content, located: Located, lost: set[int]) -> Content:
    """Sums a content over axes of the value; the placement is left to the caller."""
    for group, pieces in enumerate(located.groups):
        drop = [i for i, piece in enumerate(pieces) if piece.axis in lost]
        if not drop:
            continue
        sizes = [piece.size for piece in pieces]
        if isinstance(content, Dense):
            split = content.value.reshape(sizes)
            content = dataclasses.replace(content, value=jnp.sum(split, drop).ravel())
            continue
        name = ("", "x", "d")[group]
        if not name or isinstance(getattr(content, name), OneHot):
            raise Unplaced
        y = getattr(content, name)
        split = y.reshape(*y.shape[:2], *sizes)
        y = jnp.sum(split, [i + 2 for i in drop]).reshape(*y.shape[:2], -1)
        content = content.changed(**{name: y})
    return content


# --- Views -----------------------------------------------------------------------------------


def _transpose(step: Step) -> list[Content]:
    strides = strides_of(step.shape())
    return step.to([strides[axis] for axis in step.equation.params["permutation"]])


def _slice(step: Step) -> list[Content]:
    params, strides = step.equation.params, strides_of(step.shape())
    by = params["strides"] or [1] * len(strides)
    base = sum(o * s for o, s in zip(params["start_indices"], strides, strict=True))
    return step.to([a * b for a, b in zip(strides, by, strict=True)], base)


def _dynamic_slice(step: Step) -> list[Content]:
    starts: list[Any] = list(step.equation.inputs[1:])
    strides = strides_of(step.shape())
    known = step.program.known
    starts = [x.value if isinstance(x, Literal) else known.get(x) for x in starts]
    if step.j or any(x is None for x in starts):
        raise Unplaced
    sizes = step.equation.params["slice_sizes"]
    limits = [n - size for n, size in zip(step.shape(), sizes, strict=True)]
    at = [min(max(int(x), 0), n) for x, n in zip(starts, limits, strict=True)]
    return step.to(strides, sum(o * s for o, s in zip(at, strides, strict=True)))


def _split(step: Step) -> list[Content]:
    axis, sizes = step.equation.params["axis"], step.equation.params["sizes"]
    strides = strides_of(step.shape())
    return step.to(strides, int(sum(sizes[: step.index])) * strides[axis])


def _broadcast(step: Step) -> list[Content]:
    strides: list[int | None] = [None] * len(step.out_shape)
    of = zip(
        step.equation.params["broadcast_dimensions"],
        step.shape(),
        strides_of(step.shape()),
        strict=True,
    )
    for axis, size, stride in of:
        if size == step.out_shape[axis]:
            strides[axis] = stride
    return step.to(strides)


# --- Joins -----------------------------------------------------------------------------------


def _concatenate(step: Step) -> list[Content]:
    axis = step.equation.params["dimension"]
    before = sum(step.shape(i)[axis] for i in range(step.j))
    return _window(step, {axis: (before, step.shape()[axis])}, strides_of(step.shape()))


def _stack(step: Step) -> list[Content]:
    axis = step.equation.params["axis"]
    strides: list[int | None] = list(strides_of(step.shape()))
    return _window(step, {axis: (step.j, 1)}, [*strides[:axis], 0, *strides[axis:]])


def _pad(step: Step) -> list[Content]:
    config = step.equation.params["padding_config"]
    if step.j or any(inside or low < 0 or high < 0 for low, high, inside in config):
        raise Unplaced
    windows = {axis: (low, n) for axis, ((low, _, _), n) in enumerate(zip(config, step.shape()))}
    return _window(step, windows, strides_of(step.shape()))


def _window(
    step: Step, windows: dict[int, tuple[int, int]], strides: Sequence[int | None]
) -> list[Content]:
    """The part of a content that lies in a window (start, size) along some of the axes."""
    content, located = step.content, step.located
    offsets = list(located.offsets)
    groups = [list(group) for group in located.groups]
    for axis, (start, size) in windows.items():
        at = [
            (g, i) for g, group in enumerate(groups) for i, p in enumerate(group) if p.axis == axis
        ]
        if not at:
            if not start <= offsets[axis] < start + size:
                return []
            offsets[axis] -= start
            continue
        if len(at) > 1:
            raise Unplaced
        ((g, i),) = at
        piece = groups[g][i]
        first = max(0, -((offsets[axis] - start) // piece.step))
        last = min(piece.size, -(-(start + size - offsets[axis]) // piece.step))
        if first >= last:
            return []
        if (first, last) != (0, piece.size):
            content = _cut(content, g, [p.size for p in groups[g]], i, first, last)
        offsets[axis] += first * piece.step - start
        groups[g][i] = piece._replace(size=last - first)
    located = Located(tuple(offsets), tuple(map(tuple, groups)))
    return [dataclasses.replace(content, placement=placed(located, strides, 0))]


def _cut(content: Content, group: int, sizes: list[int], i: int, first: int, last: int) -> Content:
    """Entries first .. last − 1 along part i of a group."""

    def cut(y: jax.Array, axis: int) -> jax.Array:
        split = y.reshape(*y.shape[:axis], *sizes, *y.shape[axis + 1 :])
        split = jax.lax.slice_in_dim(split, first, last, axis=axis + i)
        return split.reshape(*y.shape[:axis], -1, *y.shape[axis + 1 :])

    if isinstance(content, Dense):
        return dataclasses.replace(content, value=cut(content.value, 0))
    names = (("x", 0), ("d", 0)) if group == 0 else ((("x", "d")[group - 1], 2),)
    if any(isinstance(getattr(content, name), OneHot) for name, _ in names):
        raise Unplaced
    return content.changed(**{name: cut(getattr(content, name), axis) for name, axis in names})


# --- Sums, scalings, products ----------------------------------------------------------------


def _same(step: Step) -> list[Content]:
    return step.fit(step.content)


def _scaled(content: Content, c: Any) -> Content:
    """c times a content, c a number or a scalar array."""
    if isinstance(content, Dense):
        return dataclasses.replace(content, value=content.value * c)
    name = "x" if isinstance(content.d, OneHot) else "d"
    if content.factor is not None:
        return dataclasses.replace(content, **{name: getattr(content, name) * c})
    moves = content.moves or name == "x"
    dual = None if content.dual is None or name == "x" else content.dual * c
    plain = None if dual is None else content.plain
    changes = {name: getattr(content, name) * c, "moves": moves, "dual": dual, "plain": plain}
    return dataclasses.replace(content, **changes)


def _negative(step: Step) -> list[Content]:
    return [_scaled(step.content, -1)]


def _complex(step: Step) -> list[Content]:
    return step.fit(real_part(_scaled(step.content, 1j) if step.j else step.content))


def _difference(step: Step) -> list[Content]:
    return step.fit(_scaled(step.content, -1) if step.j else step.content)


def _product(step: Step) -> list[Content]:
    return _times(step, step.equation.inputs[1 - step.j], step.input(1 - step.j))


def _quotient(step: Step) -> list[Content]:
    divisor = step.equation.inputs[1]
    if step.j:  # d(a / b) = − a / b² db
        return _times(step, None, -step.input(0) / step.input(1) ** 2)
    return _times(step, divisor, 1 / step.input(1))


def _times(step: Step, other: int | Literal | None, c: Any) -> list[Content]:
    """The content of V where W = c ∘ V; `other` is the value that says along what c changes."""
    content, located, everything = step.content, step.located, set(range(len(step.out_shape)))
    changing = everything if other is None else _changing(step.program, other)
    mine = _changing(step.program, step.equation.inputs[step.j])
    if jnp.ndim(c) == 0:
        return step.fit(_scaled(content, c))
    here = extract(jnp.broadcast_to(c, step.out_shape), located)
    if isinstance(content, Dense):
        value = (content.value * here).astype(content.value.dtype)
        return step.fit(dataclasses.replace(content, value=value))
    if isinstance(content.x, OneHot):
        by_row = jnp.take_along_axis(here, content.x.ids[..., None], axis=1)
        return step.fit(content.changed(d=content.d * by_row))
    along = [bool(changing & located.axes_of(g)) for g in range(3)]
    kept = [bool(mine & located.axes_of(g)) for g in range(3)]
    if located.groups[1] and located.groups[2] and not (kept[1] and kept[2]):
        return _reduced(step, here, mine)
    moves = other is None or step.program.kind(other) == Kind.WEIGHT
    if not along[1]:
        return step.fit(content.changed(d=content.d * here[:, :1, :]))
    if not along[2]:
        x = content.x * jnp.swapaxes(here[:, :, :1], 1, 2)
        return step.fit(content.changed(x=x, moves=content.moves or moves))
    if moves and content.d.shape[1] > 1:
        raise Unplaced  # cheaper multiplied out
    if content.factor is not None:
        here, moves = here * content.factor, moves or content.factor_moves
    changes = {"factor": here, "factor_moves": moves, "plain": None, "dual": None}
    return step.fit(dataclasses.replace(content, **changes))


def _sum(step: Step) -> list[Content]:
    """W = Σ V over some axes: rows 1 and the content, the same along those axes."""
    content, axes, shape = step.content, step.equation.params["axes"], step.shape()
    if not isinstance(content, Dense):
        raise Unplaced
    strides = strides_of(shape)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    of_content = placed(step.located, [strides[axis] for axis in kept], 0)
    repeated = tuple((shape[axis], strides[axis]) for axis in axes if shape[axis] > 1)
    placement = Placement(of_content.offset, ((), repeated, of_content.groups[0]))
    d = content.value[None, None]
    x = jnp.ones((1, 1, math.prod(shape[axis] for axis in axes)), d.dtype)
    return [Rows(placement, x, d, False, content.note)]


def _entrywise(step: Step) -> list[Content]:
    """W = f(V) entry by entry."""
    v = step.input(0)
    _, slope = jax.jvp(lambda v: step.equation(v)[0], (v,), (jnp.ones_like(v),))
    return _times(step, None, slope)


def _reduced(step: Step, c: jax.Array, mine: set[int]) -> list[Content]:
    """The content of a small V repeated to W: Σ of c ∘ XᵀD over the groups it does not have."""
    content, located = step.content, step.located
    lost = [g for g in (1, 2) if not mine & located.axes_of(g)]
    kept = [g for g in (0, 1, 2) if g not in lost]
    if content.factor is not None or OneHot in map(type, (content.x, content.d)):
        raise Unplaced
    if lost == [1]:
        value = jnp.sum(jnp.einsum("btk,bkm->btm", content.x, c) * content.d, axis=1)
    elif lost == [2]:
        value = jnp.sum(jnp.einsum("btm,bkm->btk", content.d, c) * content.x, axis=1)
    else:
        value = jnp.einsum("btk,bkm,btm->b", content.x, c, content.d)
    # The sum stands at the first index of the axes that are gone: V is the same along them.
    pieces = tuple(piece for g in kept for piece in located.groups[g])
    gone = {piece.axis for g in lost for piece in located.groups[g]}
    offsets = tuple(0 if axis in gone else o for axis, o in enumerate(located.offsets))
    dense = Dense(content.placement, value.ravel(), content.note)
    return step.fit(dense, Located(offsets, (pieces,)))


def _changing(program: Program, number: int | Literal) -> set[int]:
    """The axes along which a value may change."""
    if isinstance(number, Literal):
        return set(range(jnp.ndim(number.value)))
    shape = program.avals[number].shape
    maker = program.makers.get(number)
    axes = {axis for axis, size in enumerate(shape) if size > 1}
    if maker is None:
        return axes
    if maker.name == "broadcast_in_dim":
        inner = _changing(program, maker.inputs[0])
        return {maker.params["broadcast_dimensions"][axis] for axis in inner} & axes
    if maker.name in _ENTRYWISE:
        return set().union(*(_changing(program, x) for x in maker.inputs)) & axes
    return axes


_ENTRYWISE = {
    "add", "sub", "mul", "div", "neg", "exp", "log", "sqrt", "rsqrt", "tanh", "logistic", "square",
    "integer_pow", "convert_element_type", "copy", "abs", "max", "min", "log1p", "expm1",
}  # fmt: skip


def _matrix_product(step: Step) -> list[Content]:
    """W = A B: for A the free axes of B are contracted with B, for B those of A with A."""
    content, located = step.content, step.located
    if isinstance(content, Dense):
        raise Unplaced
    contract, batch = step.equation.params["dimension_numbers"]
    me, other = step.j, 1 - step.j
    free = [
        [a for a in range(len(step.shape(i))) if a not in contract[i] and a not in batch[i]]
        for i in (0, 1)
    ]
    count = len(batch[0])
    out = {0: list(range(count, count + len(free[0])))}
    out[1] = list(range(count + len(free[0]), len(step.out_shape)))
    fitting = [
        g
        for g in (2, 1)
        if located.axes_of(g) <= set(out[other]) and located.axes_of(3 - g) <= set(out[me])
    ]
    if not fitting or located.groups[0] or count:
        raise Unplaced
    group = fitting[0]
    name = ("", "x", "d")[group]
    if isinstance(getattr(content, name), OneHot):
        raise Unplaced
    # The other factor at the entries of this group: (group, contracted axes).
    offsets = [0] * len(step.shape(other))
    for axis, position in zip(free[other], out[other], strict=True):
        offsets[axis] = located.offsets[position]
    pieces = [p._replace(axis=free[other][out[other].index(p.axis)]) for p in located.groups[group]]
    sizes = step.shape(other)
    full = [Piece(sizes[a], 1, a) for a in contract[other] if sizes[a] > 1]
    matrix = extract(step.input(other), Located(tuple(offsets), (tuple(pieces), tuple(full))))
    rows = (getattr(content, name) @ matrix).astype(getattr(content, name).dtype)
    weight = step.program.kind(step.equation.inputs[other]) == Kind.WEIGHT
    moves = content.moves or (name == "x" and weight)
    # Where they belong in the operand.
    strides = strides_of(step.shape())
    to_mine: list[int | None] = [None] * len(step.out_shape)
    for axis, position in zip(free[me], out[me], strict=True):
        to_mine[position] = strides[axis]
    placement = placed(located, to_mine, 0)
    groups = list(placement.groups)
    groups[group] = tuple(
        (step.shape()[a], strides[a]) for a in contract[me] if step.shape()[a] > 1
    )
    placement = placement._replace(groups=tuple(groups))
    return [content.changed(**{name: rows, "moves": moves, "placement": placement})]


RULES: dict[str, Callable[[Step], list[Content]]] = {
    "transpose": _transpose,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "split": _split,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "stack": _stack,
    "pad": _pad,
    "add": _same,
    "add_any": _same,
    "sub": _difference,
    "neg": _negative,
    "mul": _product,
    "div": _quotient,
    "complex": _complex,
    "dot_general": _matrix_product,
    "reduce_sum": _sum,
    "square": _entrywise,
    "integer_pow": _entrywise,
    "abs": _entrywise,
    "exp": _entrywise,
    "tanh": _entrywise,
    "logistic": _entrywise,
    "sqrt": _entrywise,
    "rsqrt": _entrywise,
    "log": _entrywise,
}
