"""λ_max(H_i) of every example: by Gauss–Newton in closed form, of the full H_i certified."""

import functools
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from jaxstab.checks import check_name, data_size
from jaxstab.eigen.lanczos import lanczos
from jaxstab.eigen.result import EigenResult
from jaxstab.eigen.vectors import basis_bytes, signature
from jaxstab.operators.chunks import chunk_shape, map_over_chunks
from jaxstab.operators.hessian import Hessian, Loss, Params, check_problem
from jaxstab.operators.linearised import CHUNK_MEMORY
from jaxstab.operators.outputs import output_factors

_BASIS = 32  # vectors that a process may hold
_FAILURE = 1e-3  # probability that any of the n uncertain ends fails


@overload
def per_example_sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    method: Literal["gauss_newton"] = "gauss_newton",
    key: jax.Array | None = None,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
) -> jax.Array: ...


@overload
def per_example_sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    method: Literal["hessian"],
    key: jax.Array,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
) -> EigenResult: ...


def per_example_sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    method: str = "gauss_newton",
    key: jax.Array | None = None,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    chunk_size: int | None = None,
) -> jax.Array | EigenResult:
    """Returns λ_max(H_i) of every example, 1 / step size.

    - "gauss_newton": λ_max(F_iᵀ F_i) = λ_max(F_i F_iᵀ), one k × k eigenproblem an example, from
      inner products of the activations and cotangents of its layers (`output_factors`, whose
      demands on the loss it shares). Cost: about k gradients of the data.
    - "hessian": the largest eigenvalue of the full H_i, for any loss, by one certified Lanczos
      process an example, a chunk of examples side by side. Cost: as many products H_i v_i of all
      examples as the slowest example of a chunk takes, some 10 to 40. Since every example has a
      vector of its own, one costs several Hessian-vector products of the data and moves p numbers
      an example. Memory: up to 66 p numbers an example of the chunk.

    The two are equal where the residual vanishes, and differ elsewhere by at most the norm of the
    residual's share of H_i. An H_i that is negative definite has a negative λ_max.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ.
      data: pytree of arrays with a common leading axis n.
      method: "gauss_newton" or "hessian".
      key: random key of the starts; "hessian" needs it.
      tol: of "hessian": relative accuracy of value and interval, see `eigen.lanczos`.
      max_matvecs: of "hessian": products that each example may cost.
      chunk_size: examples at once; as many as about 1 GiB holds by default. It does not change what
        an example's process starts from.

    Returns:
      "gauss_newton": the values, (n,). "hessian": an `EigenResult` of arrays (n,), one entry an
      example: value, residual, interval, matvecs spent, converged; without vectors, which would be
      n p numbers. All its uncertain ends hold together with probability 0.999.

    Raises:
      ValueError: for another method, no key where one is needed, and see `eigen.lanczos`;
        "gauss_newton": if the loss cannot be cut at its outputs, see `output_factors`.
      TypeError, ValueError: for a bad problem, see `jaxstab.hessian`.

    Example:
      >>> loss = lambda w, example: jnp.mean((example[0] @ w - example[1]) ** 2)
      >>> x, w = jnp.array([[1.0, 0.0], [3.0, 4.0]]), jnp.ones((2, 1))
      >>> [f"{value:.3f}" for value in per_example_sharpness(loss, w, (x, x @ w))]  # 2 |x|²
      ['2.000', '50.000']
      >>> full = per_example_sharpness(loss, w, (x, x @ w), method="hessian", key=jax.random.key(0))
      >>> [f"{value:.3f}" for value in full.value], full.converged.tolist()
      (['2.000', '50.000'], [True, True])
    """
    if check_name("method", method, ("gauss_newton", "hessian")) == "gauss_newton":
        factors = output_factors(loss, params, data, chunk_size=chunk_size)
        return jnp.linalg.eigvalsh(factors.blocks())[:, -1]
    if key is None:
        raise ValueError('method "hessian" starts from random vectors: give key=jax.random.key(0)')
    loss, params, data = check_problem(loss, params, data)
    n = data_size(data)
    size = _automatic_chunk(params, n) if chunk_size is None else chunk_size
    chunk_shape(data, size)
    lanczos(tol=tol, max_matvecs=max_matvecs)  # its checks, before any computation
    return _certified(loss, params, data, key, tol=tol, max_matvecs=max_matvecs, chunk_size=size)


def _automatic_chunk(params: Params, n: int) -> int:
    """Examples whose bases, doubled at a restart, fit `CHUNK_MEMORY`; in even chunks."""
    one = 2 * (_BASIS + 1) * basis_bytes(signature(params))
    return -(-n // -(-n * one // CHUNK_MEMORY))


@functools.partial(jax.jit, static_argnames=("tol", "max_matvecs", "chunk_size"))
def _certified(
    loss: Any,
    params: Params,
    data: Any,
    key: jax.Array,
    *,
    tol: float,
    max_matvecs: int,
    chunk_size: int,
) -> EigenResult:
    n = data_size(data)
    solve = lanczos(tol=tol, max_matvecs=max_matvecs, failure_probability=_FAILURE / n)

    def one(example: Any, index: jax.Array) -> EigenResult:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        matvec = Hessian(loss, params, alone, 1, precision="highest")
        found = solve(matvec, params, key=jax.random.fold_in(key, index))
        return found._replace(vector=None)

    each = lambda chunk: jax.vmap(one)(*chunk)  # noqa: E731
    return map_over_chunks(each, (data, jnp.arange(n)), chunk_size)
