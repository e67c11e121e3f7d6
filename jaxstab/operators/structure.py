"""Where each parameter enters the computation, read from the jaxpr of `loss(params, example)`.

A parameter leaf is *factored* when its per-example gradient is a product of two activations
(docs/formulas.md, section 8): it reaches, whole or in disjoint slices and only through views,
operands of matrix products or convolutions with data on the other side. Every other leaf is
*explicit*: its per-example gradient is formed by differentiation. That is always right; it is cheap
for leaves that act element-wise (biases, scales), and the fall-back, leaf by leaf, for all that is
not recognised.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# Equations whose inside is read as if it stood in their place. Functions with derivatives of their
# own (custom_jvp, custom_vjp) are not opened: what they return would be right, their rule lost.
_INLINED = {"jit", "pjit", "remat2", "checkpoint", "closed_call", "core_call"}

# Re-arrangements of a leaf: every entry of the result is one entry of the leaf.
_VIEWS = {
    "transpose",
    "reshape",
    "squeeze",
    "expand_dims",
    "slice",
    "dynamic_slice",
    "rev",
    "copy",
    "copy_p",
    "convert_element_type",
    "broadcast_in_dim",
}

# Uses whose per-example gradient is no larger than the activation they act on.
_ELEMENTWISE = {"add", "add_any", "sub", "mul", "div"}


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


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A loss as one flat list of equations."""

    equations: tuple[Equation, ...]
    constants: tuple[int, ...]
    params: tuple[int, ...]
    example: tuple[int, ...]
    output: int | Literal
    avals: dict[int, Any]
    constant_values: tuple[Any, ...]


class _Flattener:
    """Writes nested jaxprs as one list, giving every variable occurrence a number of its own."""

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.avals: dict[int, Any] = {}
        self.constants: list[tuple[int, Any]] = []

    def new(self, aval: Any) -> int:
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def constant(self, value: Any) -> int:
        number = self.new(jax.typeof(value))
        self.constants.append((number, value))
        return number

    def inline(self, jaxpr: Any, consts: Iterable[Any], inputs: Iterable[Any]) -> list[Any]:
        env: dict[Any, int | Literal] = {}
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.constant(value)
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> int | Literal:
            return Literal(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            arguments = tuple(map(read, eqn.invars))
            if eqn.primitive.name in _INLINED:
                inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                closed = isinstance(inner, core.ClosedJaxpr)
                results: Sequence[Any] = self.inline(
                    inner.jaxpr if closed else inner, inner.consts if closed else (), arguments
                )
            else:
                results = [self.new(var.aval) for var in eqn.outvars]
                self.equations.append(
                    Equation(eqn.primitive, eqn.params, arguments, tuple(results))
                )
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]


def read_program(loss: Any, params: Any, example: Any) -> Program:
    """Returns `loss(params, example)` as a `Program`; arrays in `loss` become constants of it."""
    loss_leaves, params_leaves, example_leaves = map(jax.tree.leaves, (loss, params, example))
    closed = jax.make_jaxpr(lambda loss, params, example: loss(params, example))(
        loss, params, example
    )
    flat = _Flattener()
    numbers = [flat.new(var.aval) for var in closed.jaxpr.invars]
    (output,) = flat.inline(closed.jaxpr, closed.consts, numbers)
    first, second = len(loss_leaves), len(loss_leaves) + len(params_leaves)
    assert second + len(example_leaves) == len(numbers)
    return Program(
        equations=live(flat.equations, output),
        constants=(*numbers[:first], *(number for number, _ in flat.constants)),
        params=tuple(numbers[first:second]),
        example=tuple(numbers[second:]),
        output=output,
        avals=flat.avals,
        constant_values=(*loss_leaves, *(value for _, value in flat.constants)),
    )


def live(equations: Sequence[Equation], output: int | Literal) -> tuple[Equation, ...]:
    """Equations that the output needs, in order."""
    needed, kept = {output}, []
    for equation in reversed(equations):
        if needed.intersection(equation.outputs):
            kept.append(equation)
            needed.update(equation.inputs)
    return tuple(reversed(kept))


def evaluate(
    program: Program,
    params: Sequence[Any],
    example: Sequence[Any],
    visit: Callable[[Equation, list[Any], list[Any]], list[Any]] = lambda eqn, inputs, out: out,
) -> jax.Array:
    """Returns the loss; `visit(equation, inputs, outputs)` may replace the outputs of any step."""
    env: dict[int, Any] = {}
    env.update(zip(program.constants, program.constant_values, strict=True))
    env.update(zip(program.params, params, strict=True))
    env.update(zip(program.example, example, strict=True))
    for equation in program.equations:
        inputs = [x.value if isinstance(x, Literal) else env[x] for x in equation.inputs]
        bind_params = equation.primitive.get_bind_params(equation.params)
        results = equation.primitive.bind(*inputs, **bind_params)
        results = list(results) if equation.primitive.multiple_results else [results]
        env.update(zip(equation.outputs, visit(equation, inputs, results), strict=True))
    if isinstance(program.output, Literal):
        return program.output.value
    return env[program.output]


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A value that is a re-arrangement of (part of) one parameter leaf."""

    leaf: int
    chain: tuple[Equation, ...] = ()
    sliced: bool = False

    def apply(self, leaf: Any) -> Any:
        """Returns the view of the array `leaf`."""
        value = leaf
        for equation in self.chain:
            others = [x.value for x in equation.inputs[1:] if isinstance(x, Literal)]
            params = dict(equation.params)
            if equation.name == "convert_element_type" and not _is_float(value):
                continue
            value = equation.primitive.bind(value, *others, **params)
        return value


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One use of a leaf: `equation`, with the leaf's view as operand number `operand`."""

    equation: Equation
    operand: int
    view: View
    moving: bool  # whether the data side depends on the parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """How one parameter leaf is treated, and why."""

    form: str  # "factored", "elementwise" or "explicit"
    sites: tuple[Site, ...]
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A program and the treatment of each of its parameter leaves."""

    program: Program
    leaves: tuple[Leaf, ...]


def analyse(
    program: Program, recognised: Callable[[Program, Equation, int], bool]
) -> tuple[Leaf, ...]:
    """Classifies every parameter leaf of `program`.

    Args:
      program: from `read_program`.
      recognised: whether an equation, linear in the given operand, can be a site.
    """
    values: dict[int, Any] = {number: View(i) for i, number in enumerate(program.params)}
    values.update(dict.fromkeys(program.example, _Data(moving=False)))
    uses: list[list[Site | str]] = [[] for _ in program.params]
    for equation in program.equations:
        known = [values.get(x) if isinstance(x, int) else None for x in equation.inputs]
        result = _step(program, equation, known, uses, recognised)
        if result is not None:
            values.update(dict.fromkeys(equation.outputs, result))
    last = values.get(program.output) if isinstance(program.output, int) else None
    for leaf in _leaves_of(last):
        uses[leaf].append("it reaches the loss without meeting the data")
    sizes = [program.avals[number].shape for number in program.params]
    return tuple(_decide(shape, found) for shape, found in zip(sizes, uses, strict=True))


@dataclasses.dataclass(frozen=True)
class _Data:
    """A value that depends on the example; `moving` if it depends on the parameters too."""

    moving: bool


@dataclasses.dataclass(frozen=True)
class _Mixed:
    """A value computed from parameters alone, by more than a re-arrangement."""

    leaves: frozenset[int]


def _leaves_of(value: Any) -> frozenset[int]:
    if isinstance(value, View):
        return frozenset({value.leaf})
    return value.leaves if isinstance(value, _Mixed) else frozenset()


def _step(
    program: Program,
    equation: Equation,
    known: list[Any],
    uses: list[list[Site | str]],
    recognised: Callable[[Program, Equation, int], bool],
) -> Any:
    """What an equation returns, given what it takes; uses of parameters are noted in `uses`."""
    data = [value for value in known if isinstance(value, _Data)]
    operands = [i for i, value in enumerate(known) if isinstance(value, View | _Mixed)]
    if not operands:
        return _Data(any(value.moving for value in data)) if data else None
    if not data:
        if len(operands) == 1 and isinstance(known[0], View) and _is_view(program, equation):
            view = known[0]
            sliced = view.sliced or "slice" in equation.name
            return View(view.leaf, (*view.chain, equation), sliced)
        return _Mixed(frozenset().union(*(_leaves_of(known[i]) for i in operands)))
    if len(operands) == 1 and recognised(program, equation, operands[0]):
        view = known[operands[0]]
        if isinstance(view, View):
            site = Site(equation, operands[0], view, any(value.moving for value in data))
            uses[view.leaf].append(site)
            return _Data(moving=True)
    if equation.name in _ELEMENTWISE:
        note = "elementwise"
    elif isinstance(known[operands[0]], _Mixed) or len(operands) > 1:
        note = f"it enters {equation.name} non-linearly or together with other parameters"
    else:
        note = f"its use in {equation.name} is not recognised"
    for leaf in frozenset().union(*(_leaves_of(known[i]) for i in operands)):
        uses[leaf].append(note)
    return _Data(moving=True)


def _is_float(value: Any) -> bool:
    return jax.numpy.issubdtype(jax.numpy.result_type(value), jax.numpy.inexact)


def _is_view(program: Program, equation: Equation) -> bool:
    if equation.name not in _VIEWS:
        return False
    if not all(isinstance(x, Literal) for x in equation.inputs[1:]):
        return False
    before, after = program.avals[equation.inputs[0]], program.avals[equation.outputs[0]]  # type: ignore[index]
    if equation.name == "broadcast_in_dim":
        return before.size == after.size
    return jax.numpy.issubdtype(after.dtype, jax.numpy.inexact)


def _disjoint(shape: tuple[int, ...], sites: list[Site]) -> bool:
    """Whether no entry of a leaf is used twice: then the squared norms of its sites add up."""
    if len(sites) == 1 and not sites[0].view.sliced:
        return True
    if not all(site.view.sliced for site in sites):
        return False
    index = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    with jax.ensure_compile_time_eval():
        used = np.concatenate([np.ravel(site.view.apply(index)) for site in sites])
    return len(np.unique(used)) == len(used)


def _decide(shape: tuple[int, ...], uses: list[Site | str]) -> Leaf:
    """The treatment of a leaf of the given shape with the given uses."""
    sites = [use for use in uses if isinstance(use, Site)]
    notes = sorted({use for use in uses if isinstance(use, str)})
    if not uses:
        return Leaf("elementwise", (), "not used")
    if notes == ["elementwise"] and not sites:
        return Leaf("elementwise", (), "acts element-wise: its gradient is of activation size")
    if notes:
        return Leaf("explicit", (), "; ".join(n for n in notes if n != "elementwise") or "two uses")
    if not _disjoint(shape, sites):
        return Leaf("explicit", (), f"used in {len(sites)} places whose contributions are summed")
    names = sorted({site.equation.name for site in sites})
    return Leaf("factored", tuple(sites), ", ".join(names))
