"""(1/n) Σ H_i² v and Σ v from activations and cotangents, for about one Hessian-vector product.

docs/formulas.md, section 8. Per example, the gradient by a block of parameters is XᵀD, so

    H_i v = Ẋᵀ D + Xᵀ Ḋ

with tangents (Ẋ, Ḋ) = A v along θ + t v: A is one linear map, shared by all examples. The function
½ [(1/n) Σ ‖H_i v‖² − ‖H v‖²] has gradient Σ v, so with u_i = H_i v − H v

    Σ v = (1/n) Σ H_i u_i = (1/n) Aᵀ (D u_iᵀ, X u_i)_i:

one pass forward, one back, and H v between them: over devices two sums of p numbers, the least
there can be (docs/formulas.md, section 8). Blocks without rows enter the same formulas with their
per-example gradient in place of (X, D).

A term R(θ) of the loss that does not depend on the example, such as weight decay, adds C = ∇²R to
every H_i. Σ does not change, and with K_i = H_i − C

    (1/n) Σ H_i² v = (1/n) Σ K_i (K_i v + C v) + C H v.

Cost in matrix products per layer: A 4, Aᵀ 4, H v 2, subtracting it 2: 12 for Σ, 8 for the second
moment, against 9 for one Hessian-vector product by jvp of grad (which makes its primal pass anew).
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.checks import data_size
from jaxstab.examples import example_of
from jaxstab.operators import blocks as block_forms
from jaxstab.operators.blocks import Arrays, Block, RowArrays, make_blocks
from jaxstab.operators.linearised import LinearisedChunks, fitting_chunk
from jaxstab.operators.reading import anywhere, read_program
from jaxstab.operators.structure import (
    Literal,
    Program,
    evaluate,
    initial,
    run,
    split_common,
)
from jaxstab.operators.uses import Use, content_of, find_uses, make_taps, zero_shifts
from jaxstab.operators.weights import pull_back

Params = Any

# Fewer numbers than this over all examples are no work worth a warning.
_MANY_NUMBERS = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A loss taken apart.

    Attributes:
      program: what depends on the example.
      common: what the parameters alone add to it, or None.
      uses: where parameters meet data.
      blocks: the parts into which that divides the parameters.
    """

    program: Program
    common: Program | None
    uses: tuple[Use, ...]
    blocks: tuple[Block, ...] = ()


def read_structure(loss: Any, params: Params, data: Any) -> Structure:
    """Returns how every parameter leaf enters `loss(params, example)`."""
    example = example_of(data)
    return structure_of(read_program(loss, params, example), params, example)


def structure_of(
    program: Program, params: Params, example: Any, *, split: bool = True
) -> Structure:
    """Returns the structure of a program, whose output may be an array.

    What the parameters alone add to a loss is split off; of a model's output it is a part.
    """
    program, common = split_common(program) if split else (program, None)
    structure = Structure(program, common, find_uses(program))
    found: list[Block] = []

    def read(params: list[Any], example: list[Any]) -> Any:
        env = shared_values(program, params)
        parts = example_blocks(structure, env, example)
        found.extend(block for block, _ in parts)
        return [arrays for _, arrays in parts]

    jax.eval_shape(read, jax.tree.leaves(anywhere(params)), jax.tree.leaves(example))
    return dataclasses.replace(structure, blocks=tuple(found))


def shared_values(program: Program, params: Sequence[Any]) -> dict[int, Any]:
    """The values of a program that do not depend on the example."""
    env = initial(program, params)
    run(program.shared, env, {}, {})
    return env


def example_blocks(
    structure: Structure, env: dict[int, Any], example: Sequence[Any], covector: Any = 1.0
) -> list[tuple[Block, Arrays]]:
    """Returns the gradient of one example, block by block.

    It is that of the program's output times `covector`, a constant: 1 for a loss. `env` holds the
    values that all examples share.
    """
    program, uses = structure.program, structure.uses
    taps = make_taps(program, uses)

    where = list(taps)

    def loss(shifts: list[Any]) -> tuple[jax.Array, Any]:
        here = {**env, **dict(zip(program.example, example, strict=True))}
        found = run(program.dependent, here, taps, dict(zip(where, shifts, strict=True)))
        noted = [found[equation] for equation in where]
        output = program.output
        value = output.value if isinstance(output, Literal) else here[output]
        return jnp.sum(value * covector), noted

    zeros = [zero_shifts(program, taps[equation].uses) for equation in where]
    cotangents, noted = jax.grad(loss, has_aux=True)(zeros)
    contents: dict[int, list[Any]] = {}
    for equation, rows, by_use in zip(where, noted, cotangents, strict=True):
        for use, *found in zip(taps[equation].uses, rows, by_use, strict=True):
            contents.setdefault(use.weight, []).append(content_of(program, use, *found))
    leaves = pull_back(program, env, contents)
    return [
        block
        for i, (number, found) in enumerate(zip(program.params, leaves, strict=True))
        for block in make_blocks(i, tuple(program.avals[number].shape), found)
    ]


class Constants(NamedTuple):
    """What is read at θ alone: X and Δ of every block, and factors that all examples share."""

    inputs: tuple[Any, ...]
    duals: tuple[Any, ...]
    factors: tuple[Any, ...]


class Linearised(NamedTuple):
    """One chunk linearised at θ, with leading axis n: what moves, what does not, and the map A.

    Attributes:
      moving: of every block, its rows or its array.
      constants: what else is read.
      linear: v ↦ the tangent of `moving`.
    """

    moving: tuple[Any, ...]
    constants: Constants
    linear: Callable[[Params], tuple[Any, ...]]

    def arrays(self, block: int) -> Arrays:
        """The numbers of one block."""
        return Arrays(self.moving[block], *(part[block] for part in self.constants))


def linearise(
    structure: Structure, params: Params, chunk: Any, covectors: Any = None
) -> Linearised:
    """Linearises one chunk; `covectors`, leading axis n, as in `example_blocks`."""

    def batched(params: Params) -> tuple[Any, Constants]:
        env = shared_values(structure.program, jax.tree.leaves(params))

        def single(example: Any, covector: Any) -> Any:
            parts = example_blocks(structure, env, jax.tree.leaves(example), covector)
            arrays = [arrays for _, arrays in parts]
            moving, inputs, duals, factors = zip(*arrays, strict=True) if arrays else [()] * 4
            return moving, inputs, duals, factors

        with_covector = None if covectors is None else 0
        by_example = tuple(
            (RowArrays(0, 0, None),) * len(block.swapped) if block.form == "rows" else 0
            for block in structure.blocks
        )
        moving, inputs, duals, factors = jax.vmap(
            single, (0, with_covector), out_axes=(by_example, 0, 0, None)
        )(chunk, 1.0 if covectors is None else covectors)
        return moving, Constants(inputs, duals, factors)

    moving, linear, constants = jax.linearize(batched, params, has_aux=True)
    return Linearised(moving, constants, linear)


def common_gradient(structure: Structure, params: Params, v: Params | None = None) -> Params | None:
    """Returns ∇R, or ∇²R v, of the term R that all examples share; None where there is none."""
    common = structure.common
    if common is None:
        return None
    gradient = jax.grad(lambda params: evaluate(common, jax.tree.leaves(params)))
    return gradient(params) if v is None else jax.jvp(gradient, (params,), (v,))[1]


# --- All blocks ------------------------------------------------------------------------------
# g_i and H_i here are those of the examples alone, without the common term.


def example_sum(
    blocks: tuple[Block, ...], params: Params, linearised: Linearised, tangent: Any
) -> Params:
    """Returns Σ_i H_i v (or Σ_i g_i without a tangent) over one chunk, shaped like `params`."""
    flat, tree = jax.tree.flatten(params)
    total = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in flat]
    for i, block in enumerate(blocks):
        mine = None if tangent is None else tangent[i]
        part = block_forms.total(block, linearised.arrays(i), mine)
        total[block.leaf] = block.add_to(total[block.leaf], part)
    return jax.tree.unflatten(tree, total)


def example_inner(
    blocks: tuple[Block, ...],
    linearised: Linearised,
    left: Any,
    right: Any,
    other: Linearised | None = None,
) -> jax.Array:
    """Returns ⟨l_i, r_i⟩, shape (n,), of per-example vectors: H_i v of a tangent, g_i of None.

    The right-hand vector is that of `other`, if one is given.
    """
    other = linearised if other is None else other
    parts = [
        block_forms.inner(
            block,
            linearised.arrays(i),
            None if left is None else left[i],
            other.arrays(i),
            None if right is None else right[i],
        )
        for i, block in enumerate(blocks)
    ]
    return sum(parts)  # type: ignore[return-value]


def example_dot(
    blocks: tuple[Block, ...], linearised: Linearised, tangent: Any, vector: Params
) -> jax.Array:
    """Returns ⟨l_i, w⟩, shape (n,), of per-example vectors with one vector w."""
    flat = jax.tree.leaves(vector)
    parts = []
    for i, block in enumerate(blocks):
        mine = None if tangent is None else tangent[i]
        part = block.part(flat[block.leaf])
        parts.append(block_forms.dot(block, linearised.arrays(i), mine, part))
    return sum(parts)  # type: ignore[return-value]


def apply_to_deviations(
    blocks: tuple[Block, ...],
    params: Params,
    linearised: Linearised,
    tangent: Any,
    mean: Params | None,
) -> Params:
    """Returns Σ_i H_i (H_i v − mean) over one chunk; `mean` None stands for zero."""
    flat = None if mean is None else jax.tree.leaves(mean)
    covector = tuple(
        block_forms.covectors(
            block,
            linearised.arrays(i),
            tangent[i],
            None if flat is None else block.part(flat[block.leaf]),
        )
        for i, block in enumerate(blocks)
    )
    covector = jax.tree.map(lambda c, m: c.astype(m.dtype), covector, linearised.moving)
    (result,) = jax.linear_transpose(linearised.linear, params)(covector)
    return result


# --- All chunks ------------------------------------------------------------------------------


def form_of_leaf(structure: Structure, leaf: int) -> tuple[str, str]:
    """Returns "factored", "elementwise", "explicit" or "common" (see `explain`), and why."""
    mine = [block for block in structure.blocks if block.leaf == leaf]
    slow = next((block for block in mine if block.form == "multiplied"), None)
    if slow is not None:
        return "explicit", slow.why
    common = structure.common
    decayed = common is not None and any(common.params[leaf] in e.inputs for e in common.equations)
    notes = [*sorted({note for block in mine for note in block.notes})]
    notes += ["a term that all examples share"] if decayed else []
    if not mine:
        return ("common" if decayed else "elementwise"), ", ".join(notes) or "not used"
    return ("factored" if any(b.form == "rows" for b in mine) else "elementwise"), ", ".join(notes)


def _warn_of_slow_leaves(structure: Structure, params: Params, n: int) -> None:
    """Warns if leaves that are multiplied out for each example take most of the memory."""
    slow = [block for block in structure.blocks if block.form == "multiplied"]
    entries = sum(block.entries for block in slow)
    rest = sum(block.entries for block in structure.blocks) - entries
    if entries <= rest or n * entries < _MANY_NUMBERS:
        return
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    largest = max(slow, key=lambda block: block.entries)
    name = "params" + jax.tree_util.keystr(paths[largest.leaf])
    warnings.warn(
        f"every product holds {entries:,} numbers for each example for {len(slow)} of the "
        f"{len(paths)} parameter leaves and {rest:,} for all the others. The largest is {name}: "
        f"{largest.why}. Let it meet the data in a matrix product, convolution or look-up, and do "
        "the rest to the result (jaxstab.explain shows all leaves)",
        stacklevel=2,
    )


def linearise_chunks(
    loss: Any, params: Params, data: Any, chunk_size: int | None, *, warn: bool = True
) -> Any:
    """Returns (structure, chunks) of a loss at θ, nothing computed yet."""
    structure = read_structure(loss, params, data)
    if warn:
        _warn_of_slow_leaves(structure, params, data_size(data))

    def make(chunk: Any) -> Linearised:
        return linearise(structure, params, chunk)

    return structure, LinearisedChunks(make, data, fitting_chunk(make, data, chunk_size), None)
