"""The exact mean-square threshold of SGD at an interpolating minimum, and cheap bounds of it.

Source: Mulayoff & Michaeli, COLT 2024, arXiv 2306.07850 ("the paper" below). With positive
semi-definite H_i, π = π(B), and symmetric matrices S,

    C[S] = (H S + S H) / 2,      D[S] = (1 - π) H S H + π (1/n) Σ_i H_i S H_i,

the second moment S = E x xᵀ of linearised SGD follows Q[S] = S - 2 η C[S] + η² D[S], and is
stable if and only if η ≤ 2 / λ_max(C⁺ D) (Thm 5). For H_i = F_iᵀ F_i with F_i of k rows
everything happens in the span of the n k rows, of dimension r ≤ n k: one product with D costs
O(r³ + n r² k). This is a tool for small problems; it runs in float64 whatever the JAX setting.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.callables import as_pytree, register
from jaxstab.checks import check_finite, data_size
from jaxstab.eigen import lanczos
from jaxstab.eigen.result import EigenResult, Interval
from jaxstab.stability.criteria import variance_factor


class Reduced(NamedTuple):
    """Hessians H_i = U F_iᵀ F_i Uᵀ in the r dimensions that they span, where H is diagonal."""

    factors: np.ndarray
    """F_i, (n, k, r), float64."""
    curvatures: np.ndarray
    """Non-zero eigenvalues of H, decreasing, (r,)."""
    basis: np.ndarray
    """U, orthonormal columns, (p, r)."""

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.factors)

    def hessians(self) -> np.ndarray:
        """Returns the H_i in the reduced coordinates, (n, r, r)."""
        return np.einsum("nkr,nks->nrs", self.factors, self.factors)


def reduce(factors: Any, *, rtol: float = 1e-12) -> Reduced:
    """Returns the problem with H_i = F_iᵀ F_i in the span of the rows of all F_i.

    Args:
      factors: F_i, (n, k, p); for the mean squared error of k outputs, sqrt(2/k) J_i.
      rtol: eigenvalues of H below rtol times the largest count as zero.

    Raises:
      ValueError: if the shape is wrong, or an entry is NaN or infinite.
    """
    check_finite("factors", factors)
    factors = np.asarray(factors, np.float64)
    if factors.ndim != 3 or 0 in factors.shape:
        raise ValueError(f"factors must have shape (n, k, p), got {factors.shape}")
    n, k, p = factors.shape
    left, scale, right = np.linalg.svd(factors.reshape(n * k, p), full_matrices=False)
    kept = scale**2 > rtol * scale[0] ** 2 if scale[0] > 0 else scale > 0
    reduced = (left[:, kept] * scale[kept]).reshape(n, k, -1)
    return Reduced(reduced, scale[kept] ** 2 / n, right[kept].T)


def reduce_hessians(hessians: Any, *, rtol: float = 1e-12) -> Reduced:
    """Returns the problem of given positive semi-definite H_i, (n, p, p), in their common span.

    Args:
      hessians: H_i, symmetric.
      rtol: eigenvalues below rtol times the largest of the same matrix count as zero.

    Raises:
      ValueError: if a matrix is not symmetric or has a negative eigenvalue.
    """
    check_finite("hessians", hessians)
    hessians = np.asarray(hessians, np.float64)
    if hessians.ndim != 3 or hessians.shape[1] != hessians.shape[2]:
        raise ValueError(f"hessians must have shape (n, p, p), got {hessians.shape}")
    if not np.allclose(hessians, hessians.transpose(0, 2, 1), rtol=1e-6, atol=1e-12):
        raise ValueError("hessians must be symmetric")
    values, vectors = np.linalg.eigh(hessians)
    largest = np.abs(values).max(axis=1, keepdims=True)
    if np.any(values < -max(rtol, 1e-6) * largest):
        worst = int(np.argmin(values[:, 0]))
        raise ValueError(
            f"hessian {worst} has the eigenvalue {values[worst, 0]:.3g}: the exact threshold is "
            "known for positive semi-definite per-example Hessians only"
        )
    roots = np.sqrt(np.where(values > rtol * largest, values, 0.0))
    return reduce(roots[:, :, None] * vectors.transpose(0, 2, 1), rtol=rtol)


def squared_loss_factors(predict: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Any:
    """Returns F_i = sqrt(2/k) J_i, so that F_iᵀ F_i is the Gauss-Newton Hessian of example i.

    For the loss (1/k) |f(x_i) - y_i|² it equals H_i where the residual vanishes.

    Args:
      predict: `predict(params, x) -> outputs` of shape (k,), for one input.
      params: the point, p parameters.
      inputs: pytree of arrays with a leading axis n.

    Returns:
      Array (n, k, p). Cost: k reverse passes per example and n k p numbers of memory.
    """
    data_size(inputs)
    return _jacobians(as_pytree(predict), params, inputs)


@jax.jit
def _jacobians(predict: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Any:
    def one(x: Any) -> Any:
        leaves = jax.tree.leaves(jax.jacrev(predict)(params, x))
        k = leaves[0].shape[0]
        return jnp.concatenate([leaf.reshape(k, -1) for leaf in leaves], 1) * jnp.sqrt(2 / k)

    return jax.lax.map(one, inputs)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _ReducedMoments:
    """X ↦ C^(-1/2) D C^(-1/2) X on r x r matrices: symmetric, with the eigenvalues of C⁻¹ D."""

    factors: jax.Array
    curvatures: jax.Array
    variance_factor: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        root = jnp.sqrt((self.curvatures[:, None] + self.curvatures) / 2)
        return self.second(x / root) / root

    def second(self, s: jax.Array) -> jax.Array:
        """Returns D[S]."""
        mean = self.curvatures[:, None] * s * self.curvatures
        inner = jnp.einsum("nkr,rs,nls->nkl", self.factors, s, self.factors, optimize="optimal")
        each = jnp.einsum("nkr,nkl,nls->rs", self.factors, inner, self.factors, optimize="optimal")
        return (1 - self.variance_factor) * mean + self.variance_factor * each / len(self.factors)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class _ReducedMomentMap:
    """Q[S] = S - 2 η C[S] + η² D[S]."""

    parts: _ReducedMoments
    learning_rate: Any

    def __call__(self, s: jax.Array) -> jax.Array:
        h, eta = self.parts.curvatures, self.learning_rate
        return s - eta * (h[:, None] + h) * s + eta**2 * self.parts.second(s)


def _top(reduced: Reduced, pi: float, learning_rate: float | None, **options: Any) -> EigenResult:
    """Returns the largest eigenvalue of C⁻¹ D, or of Q at a learning rate, in float64."""
    key, tol, max_matvecs = options["key"], options["tol"], options["max_matvecs"]
    with jax.enable_x64(True):
        parts = _ReducedMoments(
            jnp.asarray(reduced.factors), jnp.asarray(reduced.curvatures), jnp.asarray(pi)
        )
        operator = (
            parts if learning_rate is None else _ReducedMomentMap(parts, jnp.asarray(learning_rate))
        )
        like = jnp.zeros((len(reduced.curvatures),) * 2)
        result = lanczos(tol=tol, max_matvecs=max_matvecs)(operator, like, key=key)
        return jax.device_get(result)


class Threshold(NamedTuple):
    """The exact mean-square threshold on the learning rate."""

    value: float
    """2 / λ_max(C⁺ D), a step size; infinite if every H_i is zero."""
    interval: Interval
    """Contains the threshold; the upper end for certain, the lower with high probability."""
    moments: np.ndarray
    """Matrix S, (r, r), that grows first, of unit Frobenius norm, positive semi-definite."""
    converged: bool


def mean_square_threshold(
    reduced: Reduced,
    *,
    batch_size: int,
    key: jax.Array,
    replacement: bool = False,
    tol: float = 1e-6,
    max_matvecs: int = 500,
) -> Threshold:
    """Returns η*_var = 2 / λ_max(C⁺ D) (Thm 5): stable in mean square iff η ≤ it.

    It does not decrease with B, and is 2/λ_max(H) at B = n (Prop. 6). It lies between the
    largest η of eq. 8 and the bounds `direction_bound`, `trace_bound` and 2/a. Stable means on
    the orthogonal complement of the common null space, in which nothing moves.

    Args:
      reduced: from `reduce` or `reduce_hessians`.
      batch_size: B.
      key: random key of the eigensolver.
      replacement: whether batches are drawn with replacement.
      tol: relative accuracy.
      max_matvecs: products with D, each O(r³ + n r² k).

    Returns:
      `Threshold`.

    Raises:
      ValueError: if the batch size is not in 1..n.
    """
    pi = variance_factor(reduced.n, batch_size, replacement)
    if len(reduced.curvatures) == 0:
        unbounded: Any = np.asarray(np.inf)
        return Threshold(np.inf, Interval(unbounded, unbounded), np.zeros((0, 0)), True)
    top = _top(reduced, pi, None, key=key, tol=tol, max_matvecs=max_matvecs)
    root = np.sqrt((reduced.curvatures[:, None] + reduced.curvatures) / 2)
    # X ↦ C^(-1/2) D C^(-1/2) X and C^(-1/2) keep positive semi-definite matrices such, so that |X|
    # belongs to the largest eigenvalue as X does: where that is multiple, X need not have one sign.
    values, vectors = np.linalg.eigh(top.vector + top.vector.T)
    moments = (vectors * np.abs(values)) @ vectors.T / root
    moments /= np.linalg.norm(moments)
    ends = Interval(2 / top.interval.upper, 2 / top.interval.lower)
    return Threshold(2 / float(top.value), ends, moments, bool(top.converged))


def mean_square_growth(
    reduced: Reduced,
    *,
    learning_rate: float,
    batch_size: int,
    key: jax.Array,
    replacement: bool = False,
    tol: float = 1e-6,
    max_matvecs: int = 500,
) -> EigenResult:
    """Returns the mean-square growth λ_max(Q): the factor of E |x|² per step in the end.

    Above 1 linearised SGD escapes in mean square. Args as for
    `mean_square_threshold`.

    Raises:
      ValueError: if the batch size is not in 1..n, or every H_i is zero: nothing moves then.
    """
    if len(reduced.curvatures) == 0:
        raise ValueError("every H_i is zero: nothing moves, whatever the learning rate")
    pi = variance_factor(reduced.n, batch_size, replacement)
    return _top(reduced, pi, learning_rate, key=key, tol=tol, max_matvecs=max_matvecs)


def sufficient_learning_rate(
    reduced: Reduced, *, batch_size: int, replacement: bool = False
) -> float:
    """Returns the largest learning rate of eq. 8, a lower bound of the exact threshold.

    2 / λ_max(H^(-1/2) (H² + π Σ) H^(-1/2)), dense; `growth.sufficient_learning_rate` is the
    matrix-free way to it. Σ as in Wu, Ma, E 2018. Cost O(r³ + n r² k).
    """
    pi = variance_factor(reduced.n, batch_size, replacement)
    factors, h = reduced.factors, reduced.curvatures
    if len(h) == 0:
        return float("inf")
    grams = np.einsum("nkr,nlr->nkl", factors, factors)
    squares = np.einsum("nkr,nks->rs", factors, np.einsum("nkl,nlr->nkr", grams, factors))
    second = (1 - pi) * np.diag(h**2) + pi * squares / reduced.n
    return 2 / float(np.linalg.eigvalsh(second / np.sqrt(h[:, None] * h))[-1])


def direction_bound(curvatures: Any, *, batch_size: int, replacement: bool = False) -> float:
    """Returns an upper bound of the exact threshold from the curvatures vᵀ H_i v along one v.

    2 m / (m² + π (1/n) Σ_i (vᵀ H_i v - m)²) with m the mean: eq. 27 of the paper, which holds
    for every unit v; with the top eigenvector of H it is eq. 17.

    Args:
      curvatures: vᵀ H_i v of all examples, (n,), from
        `operators.directional_curvatures`.
      batch_size: B.
      replacement: whether batches are drawn with replacement.

    Raises:
      ValueError: if the batch size is not in 1..n.
    """
    curvatures = np.asarray(curvatures, np.float64)
    pi = variance_factor(len(curvatures), batch_size, replacement)
    mean = curvatures.mean()
    if mean <= 0:
        return float("inf") if not curvatures.any() else 0.0
    return float(2 * mean / (mean**2 + pi * curvatures.var()))


def trace_bound(reduced: Reduced, *, batch_size: int, replacement: bool = False) -> float:
    """Returns the upper bound 2 tr H / ((1-π) |H|_F² + (π/n) Σ |H_i|_F²) (eq. 18)."""
    pi = variance_factor(reduced.n, batch_size, replacement)
    h = reduced.curvatures
    if len(h) == 0:
        return float("inf")
    grams = np.einsum("nkr,nlr->nkl", reduced.factors, reduced.factors)
    return float(2 * h.sum() / ((1 - pi) * (h**2).sum() + pi * (grams**2).sum() / reduced.n))
