"""The loss as a flat program: what depends on the parameters, on the example, or on both.

A program is a list of equations and loops (`reading` makes it from a jaxpr). It can be evaluated
with taps that look at single equations, and taken apart into what depends on the example and what
does not.
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
        """Whether a value is computed from parameters alone, and can be differentiated by them.

        An empty one has nothing to be differentiated by.
        """
        if self.kind(x) != Kind.WEIGHT:
            return False
        aval = self.avals[x]  # type: ignore[index]
        return jnp.issubdtype(aval.dtype, jnp.inexact) and aval.size > 0

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
