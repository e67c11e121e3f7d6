"""The loss as a flat program: what depends on the parameters, on the example, or on both.

Nested functions are written out in place. A `scan` stays a loop, but what its body computes from
parameters alone is moved in front of it, for all iterations at once: inside a loop a *weight* is
then either the same in every iteration or one slice of a stack that the loop runs over. The
branches of a `cond` whose index depends on the example are all computed and one is selected, which
is what `vmap` makes of them. Functions with derivatives of their own (custom_jvp, custom_vjp) stay
closed: what they return would be right, their rule lost.
"""

import collections
import dataclasses
import enum
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

# Equations that indices go through; their values are known while a loop is read.
_INDEXING = {"iota", "add", "sub", "mul", "lt", "select_n", "convert_element_type", "reshape"}
_INLINED = {"jit", "pjit", "remat2", "checkpoint", "closed_call", "core_call"}


class Kind(enum.IntFlag):
    """What a value depends on."""

    CONSTANT = 0
    WEIGHT = 1
    DATA = 2
    MOVING = 3  # on both: data that move with the parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Literal:
    """A constant written in the program."""

    value: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Equation:
    """outputs = primitive(inputs); values are numbered, each number written once."""

    primitive: Any
    params: dict[str, Any]
    inputs: tuple[int | Literal, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    def __call__(self, *inputs: Any) -> list[Any]:
        """Returns the outputs for the given inputs."""
        results = self.primitive.bind(*inputs, **self.primitive.get_bind_params(self.params))
        return list(results) if self.primitive.multiple_results else [results]


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """A scan: `body` for each slice of the stacks, with values that it carries along.

    Attributes:
      body: equations; they also read values from outside the loop, the same in every iteration.
      stacks: outer value of each inner value that is one slice of it.
      start, carried, carry_out: outer value at the start, inner value, inner result.
      collected: inner results that are stacked.
      outputs: outer values: what is carried out, then the stacks collected.
      dtypes: of what is carried.
      options: length, direction and unrolling.
    """

    body: tuple["Equation | Loop", ...]
    stacks: dict[int, int]
    start: tuple[int | Literal, ...]
    carried: tuple[int, ...]
    carry_out: tuple[int | Literal, ...]
    collected: tuple[int | Literal, ...]
    outputs: tuple[int, ...]
    dtypes: tuple[Any, ...]
    options: dict[str, Any]
    name: str = "scan"

    @property
    def inputs(self) -> tuple[int | Literal, ...]:
        """Every outer value that the loop reads."""
        inner = set(self.stacks) | set(self.carried)
        inner |= {number for equation in self.body for number in equation.outputs}
        read = [x for equation in self.body for x in equation.inputs]
        read += [*self.carry_out, *self.collected]
        free = dict.fromkeys(x for x in read if isinstance(x, int) and x not in inner)
        return (*self.start, *self.stacks.values(), *free)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A loss as one list of equations and loops."""

    equations: tuple[Equation | Loop, ...]
    constants: tuple[int, ...]
    params: tuple[int, ...]
    example: tuple[int, ...]
    output: int | Literal
    avals: dict[int, Any]
    kinds: dict[int, Kind]
    constant_values: tuple[Any, ...]
    known: dict[int, np.ndarray]  # indices that are constants

    def kind(self, x: int | Literal) -> Kind:
        """What a value depends on."""
        return self.kinds[x] if isinstance(x, int) else Kind.CONSTANT

    def is_weight(self, x: int | Literal) -> bool:
        """Whether a value is computed from parameters alone, and can be differentiated by them."""
        return self.kind(x) == Kind.WEIGHT and jnp.issubdtype(self.avals[x].dtype, jnp.inexact)  # type: ignore[index]

    @functools.cached_property
    def shared(self) -> list[Equation]:
        """Equations whose results do not depend on the example, in order."""
        return [
            equation
            for equation in self.equations
            if isinstance(equation, Equation)
            and not any(self.kinds[x] & Kind.DATA for x in equation.outputs)
        ]

    @functools.cached_property
    def dependent(self) -> list[Equation | Loop]:
        """The other equations, in order."""
        shared = set(self.shared)
        return [equation for equation in self.equations if equation not in shared]

    @functools.cached_property
    def makers(self) -> dict[int, Equation]:
        """The equation of every value that does not depend on the example."""
        return {number: equation for equation in self.shared for number in equation.outputs}


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


def read_program(loss: Any, params: Any, example: Any) -> Program:
    """Returns `loss(params, example)` as a `Program`; arrays in `loss` become constants of it."""
    leaves = [jax.tree.leaves(tree) for tree in (loss, params, example)]
    closed = jax.make_jaxpr(lambda loss, params, example: loss(params, example))(
        loss, params, example
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


def live(
    equations: Sequence[Equation | Loop], *outputs: int | Literal
) -> tuple[Equation | Loop, ...]:
    """Equations that the outputs need, in order."""
    needed, kept = set(outputs), []
    for equation in reversed(equations):
        if needed.intersection(equation.outputs):
            if isinstance(equation, Loop):
                body = live(equation.body, *equation.carry_out, *equation.collected)
                used = {x for inner in body for x in inner.inputs}
                used |= {*equation.carry_out, *equation.collected}
                stacks = {x: outer for x, outer in equation.stacks.items() if x in used}
                equation = dataclasses.replace(equation, body=body, stacks=stacks)
            kept.append(equation)
            needed.update(equation.inputs)
    return tuple(reversed(kept))


# A tap looks at one equation: `tap(inputs, fed) -> (outputs, noted)`.
Tap = Callable[[list[Any], Any], tuple[list[Any], Any]]


def run(
    equations: Sequence[Equation | Loop],
    env: dict[int, Any],
    taps: Mapping[Equation, Tap],
    fed: Mapping[Equation, Any],
) -> dict[Equation, Any]:
    """Evaluates equations, adding their results to `env`; returns what the taps noted.

    Within a loop `fed` is cut into slices and what is noted is stacked, one entry an iteration.
    """
    read = lambda x: x.value if isinstance(x, Literal) else env[x]  # noqa: E731
    noted: dict[Equation, Any] = {}
    for equation in equations:
        if isinstance(equation, Loop):
            inside, results = _run_loop(equation, env, taps, fed)
            noted.update(inside)
        elif equation in taps:
            inputs = [read(x) for x in equation.inputs]
            results, noted[equation] = taps[equation](inputs, fed[equation])
        else:
            results = equation(*(read(x) for x in equation.inputs))
        env.update(zip(equation.outputs, results, strict=True))
    return noted


def _run_loop(
    loop: Loop, env: dict[int, Any], taps: Mapping[Equation, Tap], fed: Mapping[Equation, Any]
) -> tuple[dict[Equation, Any], list[Any]]:
    inside = [equation for equation in members(loop.body) if equation in taps]

    def read(x: int | Literal, env: dict[int, Any]) -> jax.Array:
        return jnp.asarray(x.value) if isinstance(x, Literal) else env[x]

    def cast(values: Sequence[Any], env: dict[int, Any]) -> tuple[jax.Array, ...]:
        return tuple(read(x, env).astype(t) for x, t in zip(values, loop.dtypes, strict=True))

    def body(carry: tuple[Any, ...], xs: Any) -> Any:
        slices, parts = xs
        here = {**env, **dict(zip(loop.stacks, slices)), **dict(zip(loop.carried, carry))}
        noted = run(loop.body, here, taps, dict(zip(inside, parts)))
        collected = [read(x, here) for x in loop.collected]
        return cast(loop.carry_out, here), (collected, [noted[equation] for equation in inside])

    start = cast(loop.start, env)
    stacks = [env[outer] for outer in loop.stacks.values()]
    carry, (collected, noted) = lax.scan(
        body, start, (stacks, [fed[equation] for equation in inside]), **loop.options
    )
    return dict(zip(inside, noted, strict=True)), [*carry, *collected]


def members(equations: Sequence[Equation | Loop]) -> Iterable[Equation]:
    """Every equation, those within loops included."""
    for equation in equations:
        if isinstance(equation, Loop):
            yield from members(equation.body)
        else:
            yield equation


def initial(
    program: Program, params: Sequence[Any], example: Sequence[Any] | None = None
) -> dict[int, Any]:
    """The values that a program starts from."""
    env: dict[int, Any] = dict(zip(program.constants, program.constant_values, strict=True))
    env.update(zip(program.params, params, strict=True))
    if example is not None:
        env.update(zip(program.example, example, strict=True))
    return env


def evaluate(
    program: Program, params: Sequence[Any], example: Sequence[Any] | None = None
) -> jax.Array:
    """Returns the loss; `example` may be left out where it does not matter."""
    env = initial(program, params, example)
    run(program.equations, env, {}, {})
    return program.output.value if isinstance(program.output, Literal) else env[program.output]


_SUMS = {"add", "add_any", "sub"}
_MULTIPLES = {"neg", "convert_element_type", "copy", "mul", "div"}


def split_common(program: Program) -> tuple[Program, Program | None]:
    """Takes apart ℓ_i(θ) = F_i(θ) + R(θ): returns F, and R or None where there is no such term.

    R is what the parameters alone add to the loss of every example, such as weight decay. It is
    looked for where the loss is put together: sums and constant multiples of numbers.
    """
    if program.kind(program.output) == Kind.WEIGHT:
        nothing = Literal(jnp.zeros((), program.avals[program.output].dtype))  # type: ignore[index]
        return dataclasses.replace(program, equations=(), output=nothing), program
    shared = set(program.shared)
    makers = {x: e for e in program.equations for x in e.outputs}
    readers = collections.Counter(x for e in program.equations for x in e.inputs)
    tail: dict[Equation, list[bool]] = {}  # which inputs depend on parameters alone
    pending = [program.output]
    while pending:
        equation = makers.get(pending.pop())  # type: ignore[arg-type]
        if not isinstance(equation, Equation) or any(readers[x] > 1 for x in equation.outputs):
            continue
        kinds = [program.kind(x) for x in equation.inputs]
        if program.avals[equation.outputs[0]].shape or not any(kind & Kind.DATA for kind in kinds):
            continue
        multiple = equation.name in _MULTIPLES and kinds.count(Kind.CONSTANT) == len(kinds) - 1
        if equation.name == "div":
            multiple = multiple and kinds[1] == Kind.CONSTANT
        if equation.name in _SUMS or multiple:
            tail[equation] = [kind == Kind.WEIGHT for kind in kinds]
            pending.extend(equation.inputs)
    if not any(weight for weights in tail.values() for weight in weights):
        return program, None
    of_tail = {x for equation in tail for x in equation.outputs}

    def without(equation: Equation, drop: Sequence[bool]) -> Equation:
        zero = Literal(jnp.zeros((), program.avals[equation.outputs[0]].dtype))
        inputs = (zero if d else x for x, d in zip(equation.inputs, drop, strict=True))
        return dataclasses.replace(equation, inputs=tuple(inputs))

    def data(equation: Equation) -> list[bool]:
        return [bool(program.kind(x) & Kind.DATA) and x not in of_tail for x in equation.inputs]

    rest = [without(e, tail[e]) if e in tail else e for e in program.equations]  # type: ignore[index]
    common = [
        without(e, data(e)) if e in tail else e  # type: ignore[arg-type, index]
        for e in program.equations
        if e in tail or e in shared
    ]
    return (
        dataclasses.replace(program, equations=live(rest, program.output)),
        dataclasses.replace(program, equations=live(common, program.output)),
    )
