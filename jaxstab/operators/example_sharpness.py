"""λ_max(H_i) of every example: by Gauss–Newton in closed form, of the full H_i by any solver."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp

from jaxstab.checks import data_size
from jaxstab.operators.chunks import chunk_shape, map_over_chunks
from jaxstab.operators.hessian import Hessian, Loss, Params, check_problem
from jaxstab.operators.linearised import CHUNK_MEMORY
from jaxstab.operators.outputs import output_factors

_VECTORS = 2 * 33  # of p numbers that a process of 32 basis vectors holds while it restarts

Result = TypeVar("Result")


@overload
def per_example_sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    solver: None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array: ...


@overload
def per_example_sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    solver: Callable[..., Result],
    key: jax.Array,
    chunk_size: int | None = None,
) -> Result: ...


def per_example_sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    solver: Callable[..., Any] | None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
) -> Any:
    """Returns λ_max(H_i) of every example, 1 / step size.

    - Without a solver, of the Gauss–Newton H_i = F_iᵀ F_i in closed form: λ_max(F_iᵀ F_i) =
      λ_max(F_i F_iᵀ), one k × k eigenproblem an example, from inner products of the activations
      and cotangents of its layers (`output_factors`, whose demands on the loss it shares). Cost:
      about k gradients of the data.
    - With a solver of `jaxstab.eigen`, of the full H_i, for any loss: one process an example, a
      chunk of examples side by side. Cost: as many products H_i v_i of all examples as the slowest
      example of a chunk takes: 11 to 19, 14 in the median, on 1,000 digits, to 1e-3. Each reads all
      bases, with 32 basis vectors 33 p numbers an example, which takes longer than the products
      themselves: as long as some 170 Hessian-vector products of the data there (docs/speed.md).
      Memory: up to 66 p numbers an example of the chunk.

    The two are equal where the residual vanishes, and differ elsewhere by at most the norm of the
    residual's share of H_i. An H_i that is negative definite has a negative λ_max.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ.
      data: pytree of arrays with a common leading axis n.
      solver: None, or `solve(matvec, like, *, key) -> EigenResult` such as `eigen.lanczos()`, with
        its own options. Compiled once for equal solvers, as those of equal options are.
      key: random key of the starts; a solver needs it.
      chunk_size: examples at once; as many as about 1 GiB holds by default, with a solver as many
        as 66 vectors each take that. It does not change what an example's process starts from.

    Returns:
      Without a solver the values, (n,). With one its `EigenResult`, every entry with a leading axis
      n: value, residual, interval, matvecs spent, converged; without vectors, which would be n p
      numbers. Each uncertain end fails with the solver's own failure_probability, any of them with
      at most n times that: ask for 1e-3 / n to have all together with probability 0.999.

    Raises:
      ValueError: for no key where one is needed; without a solver, if the loss cannot be cut at
        its outputs, see `output_factors`.
      TypeError: for a solver that is no function.
      TypeError, ValueError: for a bad problem, see `jaxstab.hessian`.

    Example:
      >>> from jaxstab import eigen
      >>> loss = lambda w, example: jnp.mean((example[0] @ w - example[1]) ** 2)
      >>> x, w = jnp.array([[1.0, 0.0], [3.0, 4.0]]), jnp.ones((2, 1))
      >>> [f"{value:.3f}" for value in per_example_sharpness(loss, w, (x, x @ w))]  # 2 |x|²
      ['2.000', '50.000']
      >>> solver = eigen.lanczos(failure_probability=1e-3 / len(x))
      >>> full = per_example_sharpness(loss, w, (x, x @ w), solver=solver, key=jax.random.key(0))
      >>> [f"{value:.3f}" for value in full.value], full.converged.tolist()
      (['2.000', '50.000'], [True, True])
    """
    if solver is None:
        factors = output_factors(loss, params, data, chunk_size=chunk_size)
        return jnp.linalg.eigvalsh(factors.blocks())[:, -1]
    if not callable(solver):
        raise TypeError(f"solver must be one such as jaxstab.eigen.lanczos(), got {solver!r}")
    if key is None:
        raise ValueError("a solver starts from random vectors: give key=jax.random.key(0)")
    loss, params, data = check_problem(loss, params, data)
    size = _automatic_chunk(params, data_size(data)) if chunk_size is None else chunk_size
    chunk_shape(data, size)
    return _solved(loss, params, data, key, solver=solver, chunk_size=size)


def _automatic_chunk(params: Params, n: int) -> int:
    """Examples whose bases, doubled at a restart, fit `CHUNK_MEMORY`; in even chunks."""
    leaves = jax.tree.leaves(params)
    one = sum(leaf.size * jnp.promote_types(leaf.dtype, jnp.float32).itemsize for leaf in leaves)
    return -(-n // -(-n * _VECTORS * one // CHUNK_MEMORY))


@functools.partial(jax.jit, static_argnames=("solver", "chunk_size"))
def _solved(
    loss: Any,
    params: Params,
    data: Any,
    key: jax.Array,
    *,
    solver: Callable[..., Any],
    chunk_size: int,
) -> Any:
    def one(example: Any, index: jax.Array) -> Any:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        matvec = Hessian(loss, params, alone, 1, precision="highest")
        found = solver(matvec, params, key=jax.random.fold_in(key, index))
        return found._replace(vector=None)

    each = lambda chunk: jax.vmap(one)(*chunk)  # noqa: E731
    return map_over_chunks(each, (data, jnp.arange(data_size(data))), chunk_size)
