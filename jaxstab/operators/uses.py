"""Every place where a value of parameters alone meets data, and its gradient there.

A *use* is one operand of one equation. The gradient of one example by that operand comes from
shifts, zeros added to what the equation returns (products, look-ups) or to the operand itself (all
else), and from the rows that the equation's data side gives. Within loops every iteration has rows
of its own: more rows of a weight that all iterations share, one more batch axis for a stack of
weights.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.operators import sites
from jaxstab.operators.contents import Content, Dense, OneHot, Rows, real_part
from jaxstab.operators.placements import Placement, whole
from jaxstab.operators.structure import Equation, Kind, Loop, Program


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One operand of one equation.

    Attributes:
      equation, operand: where.
      weight: the value, as it stands outside all loops.
      loops: for each loop around the equation, outermost first, its length and whether it runs
        over a stack of weights.
      form: "product", "lookup" or "entries".
      axis: of a look-up, along which.
      moving: whether the data side depends on the parameters.
    """

    equation: Equation
    operand: int
    weight: int
    loops: tuple[tuple[int, bool], ...]
    form: str
    axis: int
    moving: bool

    @property
    def site(self) -> sites.Site:
        """The same as a product."""
        return sites.Site(self.equation, self.operand)


def find_uses(program: Program) -> tuple[Use, ...]:
    """Returns all uses, those within loops included."""
    found: list[Use] = []

    def walk(equations: Sequence[Equation | Loop], loops: tuple[Loop, ...]) -> None:
        for equation in equations:
            if isinstance(equation, Loop):
                walk(equation.body, (*loops, equation))
                continue
            for j, x in enumerate(equation.inputs):
                if program.is_weight(x):
                    found.append(_use(program, equation, j, loops))

    walk(program.dependent, ())
    return tuple(found)


def _use(program: Program, equation: Equation, j: int, loops: tuple[Loop, ...]) -> Use:
    weight: Any = equation.inputs[j]
    levels: list[tuple[int, bool]] = []
    for loop in reversed(loops):
        levels.insert(0, (loop.options["length"], weight in loop.stacks))
        weight = loop.stacks.get(weight, weight)
    others = [x for i, x in enumerate(equation.inputs) if i != j]
    axis = sites.looks_up(program, equation, j)
    product = sites.recognised(equation, j)
    form = "product" if product else "entries" if axis is None else "lookup"
    # What is looked up does not change with the parameters, even where they choose it.
    moving = form != "lookup" and any(bool(program.kind(x) & Kind.WEIGHT) for x in others)
    return Use(equation, j, weight, tuple(levels), form, axis or 0, moving)  # type: ignore[arg-type]


def zero_shifts(program: Program, uses: Sequence[Use]) -> list[jax.Array]:
    """Returns zeros for every use."""
    shifts = []
    for use in uses:
        equation = use.equation
        number = equation.inputs[use.operand] if use.form == "entries" else equation.outputs[0]
        aval = program.avals[number]  # type: ignore[index]
        shape = (*(length for length, _ in use.loops), *aval.shape)
        shifts.append(jnp.zeros(shape, aval.dtype))
    return shifts


@dataclasses.dataclass(frozen=True)
class UseTap:
    """Adds the shifts of all uses of one equation and notes their rows."""

    program: Program
    uses: tuple[Use, ...]

    def __call__(self, inputs: list[Any], shifts: list[jax.Array]) -> tuple[list[Any], list[Any]]:
        """Returns the outputs of the equation and the rows of every use."""
        inputs, noted, outputs = list(inputs), [], None
        pairs = list(zip(self.uses, shifts, strict=True))
        for use, shift in pairs:
            if use.form == "entries":
                inputs[use.operand] = inputs[use.operand] + shift
        for use in self.uses:
            rows: Any = None
            if use.form == "product":
                x, plain = sites.input_rows(use.site, inputs), None
                if use.equation.name == "conv_general_dilated":
                    plain = sites.plain_rows(use.site, inputs)
                if sites.by_rows(use.equation, x):
                    weight = inputs[use.operand]
                    outputs = [sites.product(use.site, self.program.avals, x, weight)]
                rows = x, plain
            elif use.form == "lookup":
                rows = sites.lookup_rows(use.equation, use.axis, inputs)
            noted.append(rows)
        outputs = self.uses[0].equation(*inputs) if outputs is None else outputs
        for use, shift in pairs:
            if use.form != "entries":
                outputs = [outputs[0] + shift, *outputs[1:]]
        return outputs, noted


def make_taps(program: Program, uses: Sequence[Use]) -> dict[Equation, UseTap]:
    """Returns the taps of all equations with uses."""
    by_equation: dict[Equation, list[Use]] = {}
    for use in uses:
        by_equation.setdefault(use.equation, []).append(use)
    return {equation: UseTap(program, tuple(mine)) for equation, mine in by_equation.items()}


def content_of(program: Program, use: Use, noted: Any, cotangent: jax.Array) -> Content:
    """Returns the gradient of one example by the weight of a use."""
    aval = program.avals[use.equation.inputs[use.operand]]  # type: ignore[index]
    name = use.equation.name
    if use.form == "entries":
        return _entries(program, use, cotangent, aval)
    depth = len(use.loops)
    if use.form == "lookup":
        x, counts = noted
        rows: Any = lambda c: sites.lookup_cotangents(use.equation, use.axis, c)  # noqa: E731
        placement = sites.lookup_placement(use.equation, use.axis, aval.shape)
        plain = None
    else:
        x, plain = noted
        rows = lambda c: sites.cotangent_rows(use.site, c, aval.ndim)  # noqa: E731
        placement = sites.placement(use.site, program.avals)
    for _ in range(depth):
        rows = jax.vmap(rows)
    d = rows(cotangent)
    if use.form == "lookup":
        d = d * counts[..., None].astype(d.dtype)
    dual = None
    if depth:
        x, d, placement = _unrolled(use, x, d, placement, aval.size)
    elif plain is not None and use.moving:
        dual = sites.dual_rows(use.site, program.avals, cotangent)
    plain = None if dual is None else plain
    content = Rows(placement, x, d, use.moving, name, plain=plain, dual=dual)
    real = jnp.issubdtype(aval.dtype, jnp.floating)
    return real_part(content) if real and content.is_complex else content  # the data may be


def _entries(program: Program, use: Use, cotangent: jax.Array, aval: Any) -> Dense:
    shared = tuple(i for i, (_, stacked) in enumerate(use.loops) if not stacked)
    value = jnp.sum(cotangent, axis=shared)
    returned = sum(program.avals[x].size for x in use.equation.outputs)
    name = use.equation.name
    why = f"its use in {name} is not recognised" if aval.size > returned else ""
    return Dense(whole(value.shape), value.ravel(), name, why)


def _unrolled(
    use: Use, x: Any, d: jax.Array, placement: Placement, size: int
) -> tuple[Any, jax.Array, Placement]:
    """Merges the axes of loops, innermost first, into T (shared weights) or b (stacks)."""
    groups = list(placement.groups)

    def merge(y: jax.Array, axis: int, stacked: bool) -> jax.Array:
        # Behind `axis` come b and T: loops further inside are merged already.
        if not stacked:
            y, axis = jnp.moveaxis(y, axis, axis + 1), axis + 1
        return y.reshape(*y.shape[:axis], y.shape[axis] * y.shape[axis + 1], *y.shape[axis + 2 :])

    for axis in reversed(range(len(use.loops))):
        length, stacked = use.loops[axis]
        if isinstance(x, OneHot):
            x = OneHot(merge(x.ids, axis, stacked), x.columns)
        else:
            x = merge(x, axis, stacked)
        d = merge(d, axis, stacked)
        if stacked and length > 1:
            groups[0] = ((length, size), *groups[0])
        if stacked:
            size *= length
    return x, d, Placement(placement.offset, tuple(groups))
