"""Reads a loss: its jaxpr as a `Program`.

Nested functions are written out in place. A `scan` stays a loop, but what its body computes from
parameters alone is moved in front of it, for all iterations at once: inside a loop a *weight* is
then either the same in every iteration or one slice of a stack that the loop runs over. The
branches of a `cond` whose index depends on the example are all computed and one is selected, which
is what `vmap` makes of them. Functions with derivatives of their own (custom_jvp, custom_vjp) stay
closed: what they return would be right, their rule lost.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxstab.operators.structure import Equation, Kind, Literal, Loop, Program, live

# Equations that indices go through; their values are known while a loop is read.
_INDEXING = {"iota", "add", "sub", "mul", "lt", "select_n", "convert_element_type", "reshape"}
_INLINED = {"jit", "pjit", "remat2", "checkpoint", "closed_call", "core_call"}


class _Scope:
    """Where equations are being written: the top level, or the body of a loop."""

    def __init__(self, parent: "_Scope | None" = None) -> None:
        self.parent = parent
        self.equations: list[Equation | Loop] = []
        self.stacks: dict[int, int] = {}


class _Flattener:
    """Writes nested jaxprs as one list, giving every variable occurrence a number of its own."""

    def __init__(self) -> None:
        self.avals: dict[int, Any] = {}
        self.kinds: dict[int, Kind] = {}
        self.constants: list[tuple[int, Any]] = []
        self.known: dict[int, np.ndarray] = {}  # indices whose values are known while reading

    def new(self, aval: Any, kind: Kind) -> int:
        number = len(self.avals)
        self.avals[number], self.kinds[number] = aval, kind
        return number

    def constant(self, value: Any) -> int:
        number = self.new(jax.typeof(value), Kind.CONSTANT)
        self.constants.append((number, value))
        return number

    def value(self, x: int | Literal) -> Any:
        """A value that is known while the program is read, or None."""
        return x.value if isinstance(x, Literal) else self.known.get(x)

    def kind_of(self, inputs: Iterable[int | Literal]) -> Kind:
        kind = Kind.CONSTANT
        for x in inputs:
            kind |= self.kinds[x] if isinstance(x, int) else Kind.CONSTANT
        return kind

    def inline(
        self, scope: _Scope, jaxpr: Any, consts: Iterable[Any], inputs: Iterable[Any]
    ) -> list[Any]:
        env: dict[Any, int | Literal] = {}
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.constant(value)
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> int | Literal:
            return Literal(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            results = self.add(scope, eqn, tuple(map(read, eqn.invars)))
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, scope: _Scope, eqn: Any, inputs: tuple[int | Literal, ...]) -> Sequence[Any]:
        """Writes one equation of a jaxpr; returns its results."""
        name, kind = eqn.primitive.name, self.kind_of(inputs)
        if name in _INLINED:
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            closed = isinstance(inner, core.ClosedJaxpr)
            jaxpr, consts = (inner.jaxpr, inner.consts) if closed else (inner, ())
            return self.inline(scope, jaxpr, consts, inputs)
        if name == "scan" and kind == Kind.MOVING:
            return self.loop(scope, eqn, inputs)
        if name == "cond" and self.kind_of(inputs[:1]) & Kind.DATA:
            branches = [
                self.inline(scope, branch.jaxpr, branch.consts, inputs[1:])
                for branch in eqn.params["branches"]
            ]
            return [
                self.call(scope, lax.select_n, inputs[0], *cases)
                for cases in zip(*branches, strict=True)
            ]
        outputs = [var.aval for var in eqn.outvars]
        return self.write(scope, eqn.primitive, eqn.params, inputs, outputs, kind)

    def call(self, scope: _Scope, function: Callable[..., Any], *inputs: Any) -> Any:
        """Writes `function` of values; returns its one result."""
        avals = [self.avals[x] if isinstance(x, int) else jax.typeof(x.value) for x in inputs]
        closed = jax.make_jaxpr(function)(*avals)
        return self.inline(scope, closed.jaxpr, closed.consts, inputs)[0]

    def write(
        self, scope: _Scope, primitive: Any, params: Any, inputs: Any, avals: Any, kind: Kind
    ) -> Sequence[int]:
        """Writes one equation, in front of the loop if it does not depend on the example."""
        if scope.parent is not None and not kind & Kind.DATA:
            inside = [x for x in inputs if isinstance(x, int) and x in scope.stacks]
            if not inside:
                return self.write(scope.parent, primitive, params, inputs, avals, kind)
            return self.hoist(scope, primitive, params, inputs)
        results = tuple(self.new(aval, kind) for aval in avals)
        equation = Equation(primitive, params, tuple(inputs), results)
        scope.equations.append(equation)
        if primitive.name in _INDEXING and avals[0].size < 2**16:
            values = [self.value(x) for x in inputs]
            if all(value is not None for value in values):
                with jax.ensure_compile_time_eval():
                    self.known[results[0]] = np.asarray(equation(*map(jnp.asarray, values))[0])
        return results

    def hoist(self, scope: _Scope, primitive: Any, params: Any, inputs: Any) -> list[int]:
        """Writes an equation for all iterations at once in front of the loop."""
        equation = Equation(primitive, params, (), ())
        outer = [scope.stacks.get(x, x) if isinstance(x, int) else x for x in inputs]
        axes = [0 if isinstance(x, int) and x in scope.stacks else None for x in inputs]
        if primitive.name == "dynamic_slice" and axes[0] is None:
            in_turn = self.taken_in_turn(scope, params, outer, axes)
            if in_turn is not None:
                return [in_turn]
        avals = [self.avals[x] if isinstance(x, int) else jax.typeof(x.value) for x in outer]
        closed = jax.make_jaxpr(jax.vmap(lambda *x: equation(*x), axes))(*avals)
        assert scope.parent is not None
        stacked = self.inline(scope.parent, closed.jaxpr, closed.consts, outer)
        return [self.slice_of(scope, number) for number in stacked]

    def taken_in_turn(
        self, scope: _Scope, params: Any, outer: list[Any], axes: list[Any]
    ) -> int | None:
        """A slice of an array whose iterations take entry after entry along one axis."""
        along = [j for j, axis in enumerate(axes) if axis == 0]
        if len(along) != 1 or outer[along[0]] not in self.known or not isinstance(outer[0], int):
            return None
        axis, index = along[0] - 1, self.known[outer[along[0]]]
        shape, first = self.avals[outer[0]].shape, int(index[0])
        fixed = [x for j, x in enumerate(outer[1:]) if j != axis]
        at_start = all(self.value(x) == 0 for x in fixed)
        sizes = [1 if a == axis else n for a, n in enumerate(shape)]
        inside = first >= 0 and first + len(index) <= shape[axis]
        in_order = np.array_equal(index, first + np.arange(len(index)))
        if not (at_start and inside and in_order and list(params["slice_sizes"]) == sizes):
            return None

        def stacked(array: jax.Array) -> jax.Array:
            part = lax.slice_in_dim(array, first, first + len(index), axis=axis)
            return jnp.expand_dims(jnp.moveaxis(part, axis, 0), axis + 1)

        assert scope.parent is not None
        return self.slice_of(scope, self.call(scope.parent, stacked, outer[0]))

    def slice_of(self, scope: _Scope, stack: int | Literal) -> int:
        """Returns the value that a loop's body sees of a stack."""
        if isinstance(stack, Literal):
            stack = self.constant(jnp.asarray(stack.value))
        aval = self.avals[stack]
        number = self.new(jax.core.ShapedArray(aval.shape[1:], aval.dtype), self.kinds[stack])
        scope.stacks[number] = stack
        return number

    def loop(self, scope: _Scope, eqn: Any, inputs: tuple[Any, ...]) -> Sequence[Any]:
        """Writes a scan."""
        params = eqn.params
        first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, start, xs = inputs[:first], inputs[first:second], inputs[second:]
        body, kinds = params["jaxpr"], self._carry_kinds(params, inputs)
        kept = [  # carried along unchanged: a constant of the loop
            i
            for i, var in enumerate(body.jaxpr.invars[first:second])
            if var is body.jaxpr.outvars[i]
        ]
        if any(
            kind == Kind.WEIGHT for i, kind in enumerate(kinds) if i not in kept
        ):  # parameters changed by every iteration: left closed
            avals = [var.aval for var in eqn.outvars]
            return self.write(scope, eqn.primitive, params, inputs, avals, Kind.MOVING)
        inside = _Scope(scope)
        values = [
            start[i] if i in kept else self.new(var.aval, kinds[i] | Kind.DATA)
            for i, var in enumerate(body.jaxpr.invars[first:second])
        ]
        counters = [] if params["reverse"] else _counters(body.jaxpr, first, second)
        for i, by in counters:
            if isinstance(start[i], Literal):
                steps = int(start[i].value) + by * np.arange(params["length"])
                stack = self.constant(steps.astype(self.avals[values[i]].dtype))
                self.known[stack] = steps
                values[i], kept = self.slice_of(inside, stack), [*kept, i]
        slices = [self.slice_of(inside, x) for x in xs]
        results = self.inline(inside, body.jaxpr, body.consts, (*consts, *values, *slices))
        moved = [i for i in range(len(results)) if i not in kept]
        carried = tuple(x for i, x in enumerate(values) if i not in kept)
        results = [results[i] for i in moved]
        # What leaves a loop counts as data, so parameters that enter or leave it as they are meet
        # them there.
        results = [self.meet(inside, x) for x in results]
        outer = tuple(self.meet(scope, x) for i, x in enumerate(start) if i not in kept)
        numbers = tuple(self.new(eqn.outvars[i].aval, Kind.MOVING) for i in moved)
        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        count, dtypes = len(carried), tuple(self.avals[x].dtype for x in carried)
        scope.equations.append(
            Loop(
                tuple(inside.equations), inside.stacks, outer, carried, tuple(results[:count]),
                tuple(results[count:]), numbers, dtypes, options,
            )
        )  # fmt: skip
        of = dict(zip(moved, numbers, strict=True))
        after = dict(counters)
        return [
            of[i]
            if i in of
            else Literal(start[i].value + after[i] * params["length"])
            if i in after
            else start[i]
            for i in range(len(eqn.outvars))
        ]

    def meet(self, scope: _Scope, x: int | Literal) -> int | Literal:
        """Returns a copy that counts as data of a value of parameters alone."""
        if self.kind_of([x]) != Kind.WEIGHT:
            return x
        assert isinstance(x, int)
        (number,) = self.write(scope, lax.copy_p, {}, (x,), [self.avals[x]], Kind.MOVING)
        return number

    def _carry_kinds(self, params: dict[str, Any], inputs: tuple[Any, ...]) -> list[Kind]:
        """What the carried values depend on, once all iterations have had their say."""
        first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
        kinds = [self.kind_of([x]) for x in inputs]
        while True:
            after = _kinds_out(params["jaxpr"].jaxpr, kinds)[: second - first]
            joined = [a | b for a, b in zip(kinds[first:second], after, strict=True)]
            if joined == kinds[first:second]:
                return joined
            kinds[first:second] = joined


def _counters(jaxpr: Any, first: int, second: int) -> list[tuple[int, int]]:
    """Which carried values grow by a constant in every iteration, and by how much."""
    found = []
    made = {eqn.outvars[0]: eqn for eqn in jaxpr.eqns if eqn.primitive.name == "add"}
    for i, var in enumerate(jaxpr.invars[first:second]):
        eqn = made.get(jaxpr.outvars[i]) if not isinstance(jaxpr.outvars[i], core.Literal) else None
        if eqn is None or eqn.invars[0] is not var or not isinstance(eqn.invars[1], core.Literal):
            continue
        if jnp.issubdtype(var.aval.dtype, jnp.integer) and var.aval.shape == ():
            found.append((i, int(eqn.invars[1].val)))
    return found


def _kinds_out(jaxpr: Any, kinds: Sequence[Kind]) -> list[Kind]:
    """What the outputs of a jaxpr depend on; every equation is taken as a whole."""
    env = dict(zip(jaxpr.invars, kinds, strict=True))

    def read(atom: Any) -> Kind:
        return Kind.CONSTANT if isinstance(atom, core.Literal) else env.get(atom, Kind.CONSTANT)

    for eqn in jaxpr.eqns:
        kind = Kind.CONSTANT
        for atom in eqn.invars:
            kind |= read(atom)
        env.update(dict.fromkeys(eqn.outvars, kind))
    return [read(atom) for atom in jaxpr.outvars]


def anywhere(tree: Any) -> Any:
    """Arrays as shapes and dtypes, which lie on no devices: what is read runs on any."""
    return jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type)
            if isinstance(x, jax.Array)
            else x
        ),
        tree,
    )


def read_program(loss: Any, params: Any, example: Any) -> Program:
    """Returns `loss(params, example)` as a `Program`; arrays in `loss` become constants of it."""
    leaves = [jax.tree.leaves(tree) for tree in (loss, params, example)]
    closed = jax.make_jaxpr(lambda loss, params, example: loss(params, example))(
        *anywhere((loss, params, example))
    )
    flat = _Flattener()
    kinds = [
        kind
        for kind, part in zip((Kind.CONSTANT, Kind.WEIGHT, Kind.DATA), leaves, strict=True)
        for _ in part
    ]
    numbers = [
        flat.new(var.aval, kind) for var, kind in zip(closed.jaxpr.invars, kinds, strict=True)
    ]
    top = _Scope()
    (output,) = flat.inline(top, closed.jaxpr, closed.consts, numbers)
    first, second = len(leaves[0]), len(leaves[0]) + len(leaves[1])
    return Program(
        equations=live(top.equations, output),
        constants=(*numbers[:first], *(number for number, _ in flat.constants)),
        params=tuple(numbers[first:second]),
        example=tuple(numbers[second:]),
        output=output,
        avals=flat.avals,
        kinds=flat.kinds,
        constant_values=(*leaves[0], *(value for _, value in flat.constants)),
        known=flat.known,
    )
