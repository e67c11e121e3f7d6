"""The Gauss–Newton form: (1/n) Σ H_i² v from J_i and the k × k Gram matrices J_i J_iᵀ.

With outputs f_i(θ) of size k and ℓ_i = c_i(f_i), H_i = J_iᵀ A_i J_i + E_i, A_i = ∂²c_i/∂f²,
E_i = Σ_o (∂c_i/∂f_o) ∇²f_o. Where the residuals vanish (interpolation) E_i = 0 and

    (1/n) Σ H_i² v = (1/n) Σ J_iᵀ A_i (J_i J_iᵀ) A_i J_i v,

one JVP and one VJP once the Grams are known (docs/formulas.md, section 8). The outputs are found in
the loss's jaxpr: the first value of an example through which alone the parameters reach the loss.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.callables import static
from jaxstab.checks import check_at_least, data_size
from jaxstab.examples import example_of
from jaxstab.operators.chunks import chunk_shape, scale_like
from jaxstab.operators.factored import (
    Linearised,
    Structure,
    example_inner,
    linearise,
    structure_of,
)
from jaxstab.operators.hessian import Loss, Operator, Params, check_problem, operator
from jaxstab.operators.linearised import LinearisedChunks, automatic_chunk
from jaxstab.operators.reading import read_program
from jaxstab.operators.statistics import ProbeMean
from jaxstab.operators.structure import Kind, Program, evaluate, live
from jaxstab.precision import at_given
from jaxstab.trees import random_signs

# Gram matrices hold n k² numbers: beyond this the factored form is the cheaper one.
MAX_OUTPUTS = 512

_NO_OUTPUTS = (
    "the parameters reach the loss by more than one way (a regulariser?), or by no value of an "
    "example in which it curves, so it cannot be cut at the outputs of a model: "
    'use method="factored", which is exact for any loss'
)


class Split(NamedTuple):
    """A loss cut at its outputs: ℓ = head(f), f = body(θ)."""

    body: Structure
    head: Program
    outputs: int


def split_at_outputs(loss: Any, params: Params, data: Any) -> Split:
    """Returns the loss cut at the first value of an example through which alone θ reaches it.

    Raises:
      ValueError: if there is no such value or it has more than `MAX_OUTPUTS` entries.
    """
    example = example_of(data)
    program = read_program(loss, params, example)
    moving = set(program.params)
    for equation in program.equations:
        if moving.intersection(equation.inputs):
            moving.update(equation.outputs)
    needed: set[Any] = {program.output}
    cut = None
    # From the loss backwards: while one moving value alone is needed, the cut can be there.
    for position in range(len(program.equations), 0, -1):
        alive = needed & moving
        if len(alive) == 1 and _may_be_outputs(program, value := next(iter(alive))):
            cut = (position, value)
        equation = program.equations[position - 1]
        needed = (needed - set(equation.outputs)) | set(equation.inputs)
        if needed & set(program.params):
            break
    if cut is None:
        raise ValueError(_NO_OUTPUTS)
    position, output = cut
    size = program.avals[output].size
    if size > MAX_OUTPUTS:
        raise ValueError(
            f'method="gauss_newton" needs n Gram matrices of {size} × {size}: more than '
            f'{MAX_OUTPUTS} outputs cost more than method="factored", which is exact'
        )
    body = dataclasses.replace(
        program, equations=live(program.equations[:position], output), output=output
    )
    fixed = [eqn for eqn in program.equations[:position] if not moving & set(eqn.outputs)]
    rest = live([*fixed, *program.equations[position:]], program.output)
    head = dataclasses.replace(program, equations=rest, params=(output,))
    if _is_linear(head, program.avals[output], example):
        raise ValueError(_NO_OUTPUTS)
    return Split(structure_of(body, params, example, split=False), head, size)


def _may_be_outputs(program: Program, value: Any) -> bool:
    """Whether a value is real and depends on the example: no weight, no Fourier coefficient."""
    real = jnp.issubdtype(program.avals[value].dtype, jnp.floating)
    return real and program.kind(value) == Kind.MOVING


def _is_linear(head: Program, output: Any, example: Any) -> bool:
    """Whether the slope of `head` does not depend on where it is taken: then its A_i is zero."""

    def slope(f: jax.Array, example: Any) -> jax.Array:
        return jax.grad(lambda f: evaluate(head, [f], jax.tree.leaves(example)))(f)

    program = read_program(jax.tree_util.Partial(slope), output, example)
    return not any(set(program.params).intersection(eqn.inputs) for eqn in program.equations)


class GaussNewtonChunk(NamedTuple):
    """One chunk: the map v ↦ (J_i v)_i, and A_i and A_i J_i J_iᵀ A_i, (n, k, k)."""

    linear: Any
    curvature: jax.Array
    sandwich: jax.Array


def flat_outputs(split: Split, params: Params, chunk: Any) -> jax.Array:
    """Returns the outputs f_i(θ) of one chunk, (b, k)."""

    def single(example: Any) -> jax.Array:
        leaves = jax.tree.leaves(params), jax.tree.leaves(example)
        return evaluate(split.body.program, *leaves).reshape(-1)

    return jax.vmap(single)(chunk)


def example_curvatures(split: Split, f: jax.Array, chunk: Any) -> jax.Array:
    """Returns A_i = ∂²c_i/∂f² at the outputs f, (b, k), of one chunk: (b, k, k)."""
    return jax.vmap(jax.hessian(_head(split)))(f, chunk)


def example_slopes(split: Split, f: jax.Array, chunk: Any) -> jax.Array:
    """Returns ∂c_i/∂f at the outputs f, (b, k), of one chunk: (b, k)."""
    return jax.vmap(jax.grad(_head(split)))(f, chunk)


def _head(split: Split) -> Callable[[jax.Array, Any], jax.Array]:
    """The loss of one example as a function of its outputs."""
    shape, _ = _output_aval(split)

    def head(f: jax.Array, example: Any) -> jax.Array:
        return evaluate(split.head, [f.reshape(shape)], jax.tree.leaves(example))

    return head


def example_grams(split: Split, params: Params, chunk: Any) -> jax.Array:
    """Returns J_i J_iᵀ of one chunk, (b, k, k), from the factors of the k outputs."""
    n, k, (shape, dtype) = data_size(chunk), split.outputs, _output_aval(split)
    basis = jnp.broadcast_to(jnp.eye(k, dtype=dtype).reshape(k, 1, *shape), (k, n, *shape))
    outputs_at = [linearise(split.body, params, chunk, basis[o]) for o in range(k)]
    return _output_gram(split.body, outputs_at)


def _output_aval(split: Split) -> tuple[tuple[int, ...], Any]:
    program = split.body.program
    aval = program.avals[program.output]  # type: ignore[index]  # a value, as it moves with θ
    return aval.shape, aval.dtype


def _make(split: Split, params: Params, chunk: Any) -> GaussNewtonChunk:
    """Linearises one chunk."""
    f, linear = jax.linearize(lambda params: flat_outputs(split, params, chunk), params)
    curvature = example_curvatures(split, f, chunk)
    gram = example_grams(split, params, chunk)
    return GaussNewtonChunk(linear, curvature, curvature @ gram @ curvature)


def _take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _output_gram(body: Structure, outputs_at: list[Linearised]) -> jax.Array:
    """J_i J_iᵀ, (n, k, k): inner products of the gradients of every pair of outputs."""
    k = len(outputs_at)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[at.moving for at in outputs_at])

    def entry(o: Any, other: Any) -> jax.Array:
        left, right = (outputs_at[0]._replace(moving=_take(stacked, j)) for j in (o, other))
        return example_inner(body.blocks, left, None, None, right)

    rows = jax.vmap(lambda o: jax.vmap(lambda p: entry(o, p))(jnp.arange(k)))(jnp.arange(k))
    return jnp.moveaxis(rows, -1, 0)


@operator
class GaussNewtonMoment(Operator):
    """v ↦ (1/n) Σ G_i (G_i v − m), G_i = J_iᵀ A_i J_i, with m = G v if `centred`, else 0."""

    loss: Any
    params: Any
    data: Any
    centred: bool = static()
    chunk_size: int | None = static(default=None)

    def _chunks(self) -> LinearisedChunks:
        split = split_at_outputs(self.loss, self.params, self.data)

        def make(chunk: Any) -> GaussNewtonChunk:
            return _make(split, self.params, chunk)

        size = automatic_chunk(make, self.data) if self.chunk_size is None else self.chunk_size
        return LinearisedChunks(make, self.data, size, None)

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        return _product(self._chunks(), self.params, v, self.centred)

    def prepare(self) -> Operator:
        """Returns the operator with the linearisation and the Grams kept, if they fit."""
        chunks = self._chunks().keep()
        if chunks.kept is None:
            return self
        return PreparedGaussNewton(
            self.params, self.data, chunks.kept, chunks.chunk_size, self.centred
        )


@operator
class PreparedGaussNewton(Operator):
    """`GaussNewtonMoment` with everything that does not depend on v kept."""

    params: Any
    data: Any
    kept: Any
    chunk_size: int = static()
    centred: bool = static()

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        chunks = LinearisedChunks(None, self.data, self.chunk_size, self.kept)
        return _product(chunks, self.params, v, self.centred)


def _product(chunks: LinearisedChunks, params: Params, v: Params, centred: bool) -> Params:
    n = data_size(chunks.data)

    def back(linearised: GaussNewtonChunk, covector: jax.Array, like: jax.Array) -> Params:
        covector = covector.reshape(like.shape).astype(like.dtype)
        return jax.linear_transpose(linearised.linear, params)(covector)[0]

    def apply(matrices: jax.Array, f: jax.Array) -> jax.Array:
        return jnp.einsum("nkl,nl->nk", matrices, f.reshape(f.shape[0], -1))

    def mean(linearised: GaussNewtonChunk, _: Any) -> Any:
        f = linearised.linear(v)
        return back(linearised, apply(linearised.curvature, f), f), None

    m = scale_like(chunks.reduce(mean)[0], n, params) if centred else None

    def moment(linearised: GaussNewtonChunk, _: Any) -> Any:
        f = linearised.linear(v)
        covector = apply(linearised.sandwich, f)
        if m is not None:
            covector = covector - apply(linearised.curvature, linearised.linear(m))
        return back(linearised, covector, f), None

    return scale_like(chunks.reduce(moment)[0], n, params)


@functools.partial(jax.jit, static_argnames=("probes", "chunk_size"))
def _residual_squares(
    loss: Any, params: Params, data: Any, key: jax.Array, probes: int, chunk_size: int | None
) -> jax.Array:
    split = split_at_outputs(loss, params, data)

    def make(chunk: Any) -> Linearised:
        def slope(example: Any) -> jax.Array:
            leaves = jax.tree.leaves(example)
            f = evaluate(split.body.program, jax.tree.leaves(params), leaves)
            return jax.grad(lambda f: evaluate(split.head, [f], leaves))(f)

        return linearise(split.body, params, chunk, jax.vmap(slope)(chunk))

    size = automatic_chunk(make, data) if chunk_size is None else chunk_size
    chunks = LinearisedChunks(make, data, size, None)

    def probe(key: jax.Array) -> jax.Array:
        v = random_signs(key, params)

        def squares(linearised: Linearised) -> jax.Array:
            tangent = linearised.linear(v)
            return example_inner(split.body.blocks, linearised, tangent, tangent)

        return jnp.mean(chunks.map(squares))

    return jax.lax.map(probe, jax.random.split(key, probes))


@at_given
def gauss_newton_difference(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    probes: int = 10,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> ProbeMean:
    """Estimates a bound on |s − s_GN|: √((1/n) Σ ‖E_i‖_F²), from the residuals alone.

    s is the spectral norm of the stacked (H_i − H)/√n, so by the triangle inequality
    |s − s_GN| ≤ ‖(E_i − Ē)_i / √n‖ ≤ √((1/n) Σ ‖E_i‖_F²). The Frobenius norms are estimated over
    random signs, with standard error; E_i is the Hessian of ⟨∂c_i/∂f, f_i(θ)⟩ with the first held
    constant, so it comes from the same factors. It vanishes at interpolation.

    Arguments and errors as for `jaxstab.operators.hessian_frobenius`. Units: 1 / step size.
    """
    check_at_least("probes", probes, 2)
    problem = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    squares = _residual_squares(*problem, key, probes, chunk_size)
    value = jnp.sqrt(jnp.mean(squares))
    error = jnp.std(squares, ddof=1) / jnp.sqrt(probes)
    return ProbeMean(value, error / jnp.where(value > 0, 2 * value, 1), probes)
