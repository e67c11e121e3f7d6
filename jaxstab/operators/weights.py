"""From the values in which parameters meet the data back to the parameters themselves.

What happens to a parameter before it meets the data is W = φ(θ), a function of parameters alone.
The gradient of one example by W comes as a *content*: `Rows`, XᵀD with X and D of activation size,
or `Dense`, an array. Here contents go back through φ, equation by equation, as cotangents do in
reverse differentiation, and stay rows wherever φ is one of

    views        transpose, reshape, slice, split, expand_dims: other strides, the same rows
    joins        concatenate, stack, pad: some of the columns of X or D
    scalings     W = c ∘ V with c the same along K or along M: X or D scaled
    products     W = A B: rows (X, D Bᵀ) for A and (X A, D) for B
    sums, casts  the same rows

A factor that goes along both K and M (a mask) is kept beside the rows, if it is constant and only
views follow. Through anything else contents go multiplied out, by the derivative of that equation.
All this is part of the differentiated program, so that second derivatives of φ are in A v.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.callables import register, static
from jaxstab.operators.placements import (
    Located,
    Piece,
    Placement,
    Unplaced,
    extract,
    insert,
    locate,
    placed,
    strides_of,
    whole,
)
from jaxstab.operators.structure import Equation, Kind, Literal, Program

_SAME_ADDRESS = {"reshape", "squeeze", "expand_dims", "copy", "copy_p", "convert_element_type"}


@register
@dataclasses.dataclass(frozen=True, eq=False)
class OneHot:
    """Rows of an identity matrix: row t is 1 at column ids[t] and 0 elsewhere; never formed."""

    ids: Any  # (..., b, T)
    columns: int = static()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that this stands for."""
        return (*self.ids.shape, self.columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """XᵀD for one example: x (b, T, K), d (b, T, M), placed with groups (b, K, M).

    Attributes:
      moves: whether x depends on the parameters (d always may).
      note: the primitive in which data were met.
      factor: None, or a constant (b, K, M) that multiplies XᵀD entry by entry.
      plain, dual: of a convolution, its other rows (see `sites`); gone once rows were changed.
    """

    placement: Placement
    x: Any
    d: Any
    moves: bool
    note: str
    factor: Any = None
    plain: Any = None
    dual: Any = None

    def changed(self, **changes: Any) -> "Rows":
        """The same with other rows."""
        if self.factor is not None:
            raise Unplaced
        return dataclasses.replace(self, plain=None, dual=None, **changes)

    def dense(self, why: str) -> "Dense":
        """The same multiplied out."""
        x = expand(self.x, self.d.dtype)
        value = jnp.einsum("btk,btm->bkm", x, expand(self.d, x.dtype))
        if self.factor is not None:
            value = value * self.factor
        axes = tuple(axis for group in self.placement.groups for axis in group)
        return Dense(Placement(self.placement.offset, (axes,)), value.ravel(), self.note, why)


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """The gradient of one example as an array (entries,), placed with one group.

    Attributes:
      note: the primitive in which data were met.
      why: empty, or why it is larger than the activations that it comes from.
    """

    placement: Placement
    value: Any
    note: str
    why: str = ""

    def dense(self, why: str) -> "Dense":
        """Itself."""
        return self


Content = Rows | Dense


def expand(x: Any, dtype: Any) -> jax.Array:
    """Rows as an array."""
    return jax.nn.one_hot(x.ids, x.columns, dtype=dtype) if isinstance(x, OneHot) else x


def pull_back(
    program: Program, env: dict[int, Any], contents: dict[int, list[Content]]
) -> list[list[Content]]:
    """Returns the contents of every parameter leaf.

    Args:
      program: the loss.
      env: the values that do not depend on the example.
      contents: the gradients of one example by values that depend on parameters alone.
    """
    for equation in reversed(program.shared):
        found = [contents.pop(number, []) for number in equation.outputs]
        operands = [j for j, x in enumerate(equation.inputs) if program.is_weight(x)]
        for index, mine in enumerate(found):
            for content in mine:
                for j in operands:
                    for part in _through(program, env, equation, index, j, content):
                        contents.setdefault(equation.inputs[j], []).append(part)  # type: ignore[arg-type]
    return [contents.get(number, []) for number in program.params]


def _through(
    program: Program,
    env: dict[int, Any],
    equation: Equation,
    index: int,
    j: int,
    content: Content,
) -> list[Content]:
    """What `content` of output number `index` gives to operand number `j`."""
    avals = program.avals
    shape, operand = avals[equation.outputs[index]].shape, avals[equation.inputs[j]]  # type: ignore[index]
    if equation.name == "stop_gradient":
        return []
    if equation.name in _SAME_ADDRESS and _reads_in_order(equation):
        return [_cast(content, operand.dtype)]
    try:
        located = locate(content.placement, shape)
        step = _Step(program, env, equation, index, j, content, located)
        rule = _RULES.get(equation.name)
        if rule is None:
            raise Unplaced
        return rule(step)
    except Unplaced:
        return _differentiated(program, env, equation, index, j, content)


def _reads_in_order(equation: Equation) -> bool:
    return equation.params.get("dimensions") is None or equation.name != "reshape"


def _cast(content: Content, dtype: Any) -> Content:
    if isinstance(content, Dense):
        return dataclasses.replace(content, value=content.value.astype(dtype))
    x, d = (y if isinstance(y, OneHot) or y.dtype == dtype else y.astype(dtype)
            for y in (content.x, content.d))  # fmt: skip
    return dataclasses.replace(content, x=x, d=d)


def _differentiated(
    program: Program,
    env: dict[int, Any],
    equation: Equation,
    index: int,
    j: int,
    content: Content,
) -> list[Content]:
    """Multiplies out and applies the derivative of the equation."""
    value = content.dense(f"it goes through {equation.name} before it meets the data")
    out = program.avals[equation.outputs[index]]
    located = locate(value.placement, out.shape)
    cotangent = insert(value.value, located, out.shape).astype(out.dtype)
    inputs = [x.value if isinstance(x, Literal) else env[x] for x in equation.inputs]

    def function(operand: jax.Array) -> jax.Array:
        return equation(*inputs[:j], operand, *inputs[j + 1 :])[index]

    (back,) = jax.vjp(function, inputs[j])[1](cotangent)
    aval = program.avals[equation.inputs[j]]  # type: ignore[index]
    why = value.why
    if aval.size > max(out.size, value.value.size):
        why = why or f"{equation.name} makes little of it before it meets the data"
    return [Dense(whole(aval.shape), back.ravel(), value.note, why)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Step:
    """One content on its way through one equation."""

    program: Program
    env: dict[int, Any]
    equation: Equation
    index: int
    j: int
    content: Any
    located: Located

    def shape(self, j: int | None = None) -> tuple[int, ...]:
        return tuple(self.program.avals[self.equation.inputs[self.j if j is None else j]].shape)  # type: ignore[index]

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(self.program.avals[self.equation.outputs[self.index]].shape)

    def input(self, j: int) -> Any:
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


def _transpose(step: _Step) -> list[Content]:
    strides = strides_of(step.shape())
    return step.to([strides[axis] for axis in step.equation.params["permutation"]])


def _slice(step: _Step) -> list[Content]:
    params, strides = step.equation.params, strides_of(step.shape())
    by = params["strides"] or [1] * len(strides)
    base = sum(o * s for o, s in zip(params["start_indices"], strides, strict=True))
    return step.to([a * b for a, b in zip(strides, by, strict=True)], base)


def _dynamic_slice(step: _Step) -> list[Content]:
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


def _split(step: _Step) -> list[Content]:
    axis, sizes = step.equation.params["axis"], step.equation.params["sizes"]
    strides = strides_of(step.shape())
    return step.to(strides, int(sum(sizes[: step.index])) * strides[axis])


def _broadcast(step: _Step) -> list[Content]:
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


def _concatenate(step: _Step) -> list[Content]:
    axis = step.equation.params["dimension"]
    before = sum(step.shape(i)[axis] for i in range(step.j))
    return _window(step, {axis: (before, step.shape()[axis])}, strides_of(step.shape()))


def _stack(step: _Step) -> list[Content]:
    axis = step.equation.params["axis"]
    strides: list[int | None] = list(strides_of(step.shape()))
    return _window(step, {axis: (step.j, 1)}, [*strides[:axis], 0, *strides[axis:]])


def _pad(step: _Step) -> list[Content]:
    config = step.equation.params["padding_config"]
    if step.j or any(inside or low < 0 or high < 0 for low, high, inside in config):
        raise Unplaced
    windows = {axis: (low, n) for axis, ((low, _, _), n) in enumerate(zip(config, step.shape()))}
    return _window(step, windows, strides_of(step.shape()))


def _window(
    step: _Step, windows: dict[int, tuple[int, int]], strides: Sequence[int | None]
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


def _same(step: _Step) -> list[Content]:
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


def _negative(step: _Step) -> list[Content]:
    return [_scaled(step.content, -1)]


def _difference(step: _Step) -> list[Content]:
    return step.fit(_scaled(step.content, -1) if step.j else step.content)


def _product(step: _Step) -> list[Content]:
    return _times(step, step.equation.inputs[1 - step.j], step.input(1 - step.j))


def _quotient(step: _Step) -> list[Content]:
    divisor = step.equation.inputs[1]
    if step.j:  # d(a / b) = − a / b² db
        return _times(step, None, -step.input(0) / step.input(1) ** 2)
    return _times(step, divisor, 1 / step.input(1))


def _times(step: _Step, other: int | Literal | None, c: Any) -> list[Content]:
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
    if moves or content.factor is not None:
        raise Unplaced
    return step.fit(dataclasses.replace(content, factor=here, plain=None, dual=None))


def _reduced(step: _Step, c: jax.Array, mine: set[int]) -> list[Content]:
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


def _matrix_product(step: _Step) -> list[Content]:
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


_RULES: dict[str, Any] = {
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
    "dot_general": _matrix_product,
}
