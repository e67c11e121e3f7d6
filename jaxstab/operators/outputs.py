"""Gauss–Newton Hessians seen from the outputs: H_i = F_iᵀ F_i, and the kernel of their factors.

With outputs f_i(θ) of size k and A_i = ∂²c_i/∂f² positive semi-definite, F_i = A_i^½ J_i (k × p)
gives the Gauss–Newton Hessian of example i, exact where the residual vanishes. Stacked, F is n k
by p, H = FᵀF / n, and with the kernel 𝒦 = F Fᵀ (n k × n k)

    𝒦/n and H have the same eigenvalues but for zeros,      λ_max(H_i) = λ_max(𝒦_ii).

What lives in the span of the rows of F can thus be held by n k numbers a vector, whatever p is:
v = Fᵀ w, F v = 𝒦 w. One product with 𝒦 is one reverse and one forward pass over the data; neither
F nor 𝒦 is formed unless asked for (`OutputFactors.form`).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.callables import static
from jaxstab.checks import data_size
from jaxstab.convolutions import fast_in_loops
from jaxstab.examples import is_held
from jaxstab.operators.chunks import chunk_shape
from jaxstab.operators.factored import Linearised, apply_to_deviations, linearise
from jaxstab.operators.gauss_newton import (
    example_curvatures,
    example_grams,
    example_slopes,
    flat_outputs,
    split_at_outputs,
)
from jaxstab.operators.hessian import Loss, Operator, Params, check_problem, operator
from jaxstab.operators.linearised import CHUNK_MEMORY, LinearisedChunks, automatic_chunk
from jaxstab.operators.structure import evaluate
from jaxstab.precision import at

_NULL = 1e-3  # of the largest: eigenvalues of A_i^½ below it are rounding (of A_i, its square)
_NEGATIVE = 1e-4  # of the largest: eigenvalues of A_i below it are more than rounding
ROWS = 8192  # of a kernel that is formed: 256 MiB
_GROUP = 50  # columns of it at a time


class Linear(NamedTuple):
    """One chunk: the map v ↦ (J_i v)_i, (b, k); roots A_i^½, (b, k, k); vectors, (b, m, k)."""

    linear: Any
    roots: jax.Array
    vectors: Any


@operator
class OutputFactors:
    """The stacked factors F of the Gauss–Newton Hessians H_i = F_iᵀ F_i, as linear maps.

    A vector in the space of outputs has shape (n, k). Every method is compiled once per shape, with
    parameters and data as operands; m vectors share one linearisation of the model at θ.
    """

    loss: Any
    params: Any
    data: Any
    roots: Any
    """A_i^½, symmetric, (n, k, k)."""
    formed: Any = None
    """𝒦 as a matrix, (n k, n k), where it is held; see `form`."""
    chunk_size: int | None = static(default=None)

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.roots.shape[0]

    @property
    def outputs(self) -> int:
        """Number of outputs k."""
        return self.roots.shape[1]

    def pull(self, vectors: Any) -> Params:
        """Returns Fᵀ u for u of shape (m, n, k): parameters with a leading axis m."""
        return _pull(self, jnp.asarray(vectors, self.roots.dtype))

    def push(self, vectors: Params) -> jax.Array:
        """Returns F v for parameters with a leading axis m, shape (m, n, k)."""
        return _push(self, vectors)

    def kernel(self, vectors: Any) -> jax.Array:
        """Returns 𝒦 u = F Fᵀ u for u of shape (m, n, k). Holds m vectors of parameters, or 𝒦."""
        return _kernel(self, jnp.asarray(vectors, self.roots.dtype))

    def slopes(self) -> np.ndarray:
        """Returns q with ∇ℓ_i = F_iᵀ q_i, q_i = A_i^(-½) ∂c_i/∂f, (n, k), float64.

        Where A_i is singular, as for cross-entropy along (1, …, 1), so is the slope there: 0.
        """
        return _inverse_roots(self.roots, _slopes(self))

    def blocks(self) -> jax.Array:
        """Returns 𝒦_ii = F_i F_iᵀ, (n, k, k), from inner products of the layers' factors."""
        return _blocks(self)

    def form(self) -> "OutputFactors":
        """Returns the same with 𝒦 held, so that a product with it is one with a matrix.

        Forming it takes (n k)² p / 2 multiplications, a product without it 4 n p or, where weights
        are shared as in convolutions, many times that: it pays from n k² / 8 products on.
        """
        rows = self.n * self.outputs
        return dataclasses.replace(self, formed=self.matrix().reshape(rows, rows))

    def matrix(self) -> jax.Array:
        """Returns all of 𝒦, (n, k, n, k), for problems with n k up to 8192.

        From blocks of rows of F that fit 1 GiB in pairs; from products where data are spread over
        devices or streamed.

        Raises:
          ValueError: if there are more rows than that.
        """
        rows = self.n * self.outputs
        if rows > ROWS:
            raise ValueError(
                f"the kernel of n k = {rows} rows is too large to be held: {ROWS} at most; "
                "`kernel` applies it without forming it"
            )
        shape = self.n, self.outputs, self.n, self.outputs
        if self.formed is not None:
            return self.formed.reshape(shape)
        if not is_held(self.data):
            return jnp.asarray(_from_rows(self)).reshape(shape)
        parts = [
            self.kernel(np.eye(min(_GROUP, rows - i), rows, i).reshape(-1, self.n, self.outputs))
            for i in range(0, rows, _GROUP)
        ]
        return jnp.concatenate(parts).reshape(shape)


def _from_rows(factors: OutputFactors) -> np.ndarray:
    """𝒦, (n k, n k), from inner products of the rows of F, a pair of blocks of them at a time."""
    n, k = factors.n, factors.outputs
    one = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(factors.params)) * k
    size = -(-n // -(-2 * n * one // CHUNK_MEMORY))
    out = np.zeros((n * k, n * k), factors.roots.dtype)

    def part(i: int) -> jax.Array:
        take = lambda leaf: leaf[i : i + size]  # noqa: E731
        data, roots = jax.tree.map(take, factors.data), take(factors.roots)
        return _rows(factors.loss, factors.params, data, roots)

    for i in range(0, n, size):
        left = part(i)
        for j in range(0, i + 1, size):
            block = np.asarray(_inner(left, left if j == i else part(j)))
            own, other = (slice(k * x, k * (x + size)) for x in (i, j))
            out[own, other], out[other, own] = block, block.T
    return out


def _chunks(factors: OutputFactors, vectors: Any = None) -> LinearisedChunks:
    split = split_at_outputs(factors.loss, factors.params, factors.data)

    def make(chunk: Any) -> Linear:
        data, roots, vectors = chunk
        linear = jax.linearize(lambda p: flat_outputs(split, p, data), factors.params)[1]
        return Linear(linear, roots, vectors)

    data = (factors.data, factors.roots, vectors)
    size = factors.chunk_size
    return LinearisedChunks(make, data, automatic_chunk(make, data) if size is None else size, None)


def _transform(roots: jax.Array, f: jax.Array) -> jax.Array:
    return jnp.einsum("nkl,nl->nk", roots, f)


def _full_precision(function: Any, static: Any = ()) -> Any:
    """The function compiled, its matrix products in full float32 on every device."""

    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with at("highest"):
            return function(*args, **options)

    return jax.jit(traced, static_argnames=static)


def _pulled(factors: OutputFactors, vectors: jax.Array) -> Params:
    def back(chunk: Linear, _: Any) -> Any:
        transposed = jax.linear_transpose(chunk.linear, factors.params)

        def one(u: jax.Array) -> Params:
            return transposed(_transform(chunk.roots, u))[0]

        return jax.lax.map(fast_in_loops(one), jnp.swapaxes(chunk.vectors, 0, 1)), None

    return _chunks(factors, jnp.swapaxes(vectors, 0, 1)).reduce(back)[0]


def _pushed(factors: OutputFactors, vectors: Params) -> jax.Array:
    def forward(chunk: Linear) -> jax.Array:
        def one(v: Params) -> jax.Array:
            return _transform(chunk.roots, chunk.linear(v))

        return jnp.swapaxes(jax.lax.map(fast_in_loops(one), vectors), 0, 1)

    return jnp.swapaxes(_chunks(factors).map(forward), 0, 1)


_pull, _push = _full_precision(_pulled), _full_precision(_pushed)
_inner = _full_precision(lambda left, right: left @ right.T)


@_full_precision
def _kernel(factors: OutputFactors, vectors: jax.Array) -> jax.Array:
    if factors.formed is not None:
        return (vectors.reshape(len(vectors), -1) @ factors.formed).reshape(vectors.shape)
    return _pushed(factors, _pulled(factors, vectors))


@_full_precision
def _rows(loss: Any, params: Params, data: Any, roots: jax.Array) -> jax.Array:
    """Rows of F of some examples, (b k, p); one example at a time, as their number is small."""
    split = split_at_outputs(loss, params, data)

    def example(args: Any) -> jax.Array:
        alone, root = args

        def output(params: Params) -> jax.Array:
            return flat_outputs(split, params, jax.tree.map(lambda leaf: leaf[None], alone))[0]

        back = jax.vjp(output, params)[1]

        def row(direction: jax.Array) -> jax.Array:
            return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(back(direction)[0])])

        return jax.lax.map(fast_in_loops(row), root)

    rows = jax.lax.map(fast_in_loops(example), (data, roots))
    return rows.reshape(-1, rows.shape[-1])


@_full_precision
def _blocks(factors: OutputFactors) -> jax.Array:
    split = split_at_outputs(factors.loss, factors.params, factors.data)

    def make(chunk: Any) -> jax.Array:
        data, roots = chunk
        return roots @ example_grams(split, factors.params, data) @ roots

    return _map(make, (factors.data, factors.roots), factors.chunk_size)


@_full_precision
def _slopes(factors: OutputFactors) -> jax.Array:
    split = split_at_outputs(factors.loss, factors.params, factors.data)

    def make(chunk: Any) -> jax.Array:
        return example_slopes(split, flat_outputs(split, factors.params, chunk), chunk)

    return _map(make, factors.data, factors.chunk_size)


def _inverse_roots(roots: Any, slopes: Any) -> np.ndarray:
    """A_i^(-½) s_i, without the directions in which A_i^½ vanishes up to rounding."""
    values, vectors = np.linalg.eigh(np.asarray(roots, np.float64))
    kept = values > _NULL * np.abs(values).max(1, keepdims=True)
    inverse = np.where(kept, 1 / np.where(kept, values, 1.0), 0.0)
    parts = np.einsum("nkl,nk->nl", vectors, np.asarray(slopes, np.float64))
    return np.einsum("nkl,nl->nk", vectors, inverse * parts)


@functools.partial(_full_precision, static="chunk_size")
def _curvatures(loss: Any, params: Params, data: Any, *, chunk_size: int | None) -> jax.Array:
    split = split_at_outputs(loss, params, data)

    def make(chunk: Any) -> jax.Array:
        return example_curvatures(split, flat_outputs(split, params, chunk), chunk)

    return _map(make, data, chunk_size)


def _map(make: Any, data: Any, chunk_size: int | None) -> jax.Array:
    size = automatic_chunk(make, data) if chunk_size is None else chunk_size
    return LinearisedChunks(make, data, size, None).map(lambda value: value)


def output_factors(
    loss: Loss, params: Params, data: Any, *, chunk_size: int | None = None
) -> OutputFactors:
    """Returns the factors F of the Gauss–Newton Hessians as linear maps to and from the outputs.

    Args:
      loss: `loss(params, example) -> scalar` for one example; the parameters have to reach it
        through one array of at most 512 entries (the outputs) alone, in which it is convex.
      params: the point θ.
      data: pytree of arrays with a common leading axis n.
      chunk_size: examples differentiated at once; as many as about 1 GiB holds by default.

    Raises:
      TypeError, ValueError: see `jaxstab.hessian`; and if the loss cannot be cut at its outputs or
        is not convex in them, so that no F_i exists.
    """
    loss, params, data = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    split_at_outputs(loss, params, data)  # its checks, before any computation
    curvatures = _curvatures(loss, params, data, chunk_size=chunk_size)
    values, vectors = np.linalg.eigh(np.asarray(curvatures, np.float64))
    if values.min() < -_NEGATIVE * np.abs(values).max():
        raise ValueError(
            f"the loss is not convex in the outputs (curvature {values.min():.3g} there): "
            "Gauss–Newton Hessians F_iᵀF_i need a loss such as the squared one or cross-entropy"
        )
    roots = (vectors * np.sqrt(np.maximum(values, 0))[:, None]) @ np.swapaxes(vectors, 1, 2)
    roots = jnp.asarray(roots, curvatures.dtype)
    return OutputFactors(loss, params, data, roots, chunk_size=chunk_size)


@operator
class ResidualMoment(Operator):
    """v ↦ (1/n) Σ E_i² v with E_i = H_i − F_iᵀ F_i = Σ_o (∂c_i/∂f_o) ∇²f_o: what residuals add."""

    loss: Any
    params: Any
    data: Any
    chunk_size: int | None = static(default=None)

    def product(self, v: Params) -> Params:
        """Returns the product, uncompiled."""
        split = split_at_outputs(self.loss, self.params, self.data)

        def make(chunk: Any) -> Linearised:
            def slope(example: Any) -> jax.Array:
                leaves = jax.tree.leaves(example)
                f = evaluate(split.body.program, jax.tree.leaves(self.params), leaves)
                return jax.grad(lambda f: evaluate(split.head, [f], leaves))(f)

            return linearise(split.body, self.params, chunk, jax.vmap(slope)(chunk))

        def square(linearised: Linearised, _: Any) -> Any:
            blocks, tangent = split.body.blocks, linearised.linear(v)
            return apply_to_deviations(blocks, self.params, linearised, tangent, None), None

        size = automatic_chunk(make, self.data) if self.chunk_size is None else self.chunk_size
        total = LinearisedChunks(make, self.data, size, None).reduce(square)[0]
        return jax.tree.map(lambda leaf: leaf / data_size(self.data), total)
