"""The stationary covariance of SGD around a minimum: exact for a quadratic, and to first order.

Sources: Mulayoff & Michaeli, arXiv 2306.07850, Thm 12 (exact); Wang & Wu, JMLR 21, 2020,
eq. 4.38-4.47 (first order in η); Jastrzebski et al., arXiv 1711.04623, eq. 9 (its special case
of gradient noise equal to the Hessian). Dense matrices for small problems; for a real network
`noisy_minimum` reduces the problem to the span of the sharpest directions, in which the same
equations are solved.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, eigsh

from jaxstab.checks import check_at_least, check_finite, check_positive
from jaxstab.operators.hessian import Loss, Params
from jaxstab.operators.outputs import output_factors
from jaxstab.stability import subspace
from jaxstab.stability.criteria import variance_factor
from jaxstab.stability.linearized import MomentMap, Quadratic
from jaxstab.stability.subspace import Subspace


class Stationary(NamedTuple):
    """Where SGD settles, around the minimum of a quadratic."""

    covariance: jax.Array
    """S = E x xᵀ, (p, p)."""
    excess_loss: jax.Array
    """E L - L* = tr(H S) / 2."""
    gradient_square: jax.Array
    """E |grad L|² = tr(H² S)."""


def _stationary(hessian: jax.Array, covariance: jax.Array) -> Stationary:
    product = hessian @ covariance
    return Stationary(covariance, jnp.trace(product) / 2, jnp.trace(hessian @ product))


def stationary_covariance(
    problem: Quadratic, *, learning_rate: Any, batch_size: int, replacement: bool = False
) -> Stationary:
    """Returns the exact stationary covariance below the mean-square threshold (Thm 12).

    S = Q[S] + η² π C_g, that is vec S = η π (2C - η D)⁺ vec C_g, with
    C_g = (1/n) Σ g_i g_iᵀ. The p² equations are solved densely: O(p⁶), for p up to about 60.
    Directions in which nothing moves and no noise acts keep covariance 0.

    Args:
      problem: the losses.
      learning_rate: η, in the stable range: `linearized.mean_square_growth` below 1
        off the null space.
      batch_size: B.
      replacement: whether batches are drawn with replacement.

    Returns:
      `Stationary`; all NaN if no stationary covariance exists at this learning rate.

    Raises:
      ValueError: if the learning rate is not positive or the batch size is not in 1..n.
    """
    check_positive("learning_rate", learning_rate)
    pi = variance_factor(problem.n, batch_size, replacement)
    return _solve_stationary(problem, learning_rate, pi)


@jax.jit
def _solve_stationary(problem: Quadratic, eta: Any, pi: Any) -> Stationary:
    p = problem.hessians.shape[1]
    units = jnp.eye(p * p, dtype=problem.hessians.dtype).reshape(p * p, p, p)
    restored = MomentMap(problem, eta, pi).restored  # symmetric in the Frobenius product
    matrix = jax.vmap(restored)(units).reshape(p * p, p * p)
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    noise = eta * pi * (problem.gradients.T @ problem.gradients / problem.n).reshape(-1)
    cut = p * p * jnp.finfo(matrix.dtype).eps * jnp.abs(values).max()  # of a symmetric matrix
    zero = jnp.abs(values) <= cut
    parts = vectors.T @ noise
    solution = vectors @ jnp.where(zero, 0.0, parts / jnp.where(zero, 1.0, values))
    # Noise along a direction without restoring force, or a direction that grows: no stationary law.
    leak = jnp.linalg.norm(jnp.where(zero, parts, 0.0)) > 1e-3 * jnp.linalg.norm(noise)
    exists = jnp.all(values > -cut) & ~leak
    covariance = jnp.where(exists, solution, jnp.nan).reshape(p, p)
    return _stationary(problem.hessian, (covariance + covariance.T) / 2)


def lyapunov(hessian: Any, noise: Any) -> jax.Array:
    """Returns Γ with Γ H + H Γ = C (Wang & Wu, eq. 4.38), in the range of H.

    Args:
      hessian: H, (p, p), positive semi-definite.
      noise: C, (p, p), symmetric.

    Returns:
      (p, p); entries between two null directions of H are 0.
    """
    return _lyapunov(jnp.asarray(hessian), jnp.asarray(noise))


@jax.jit
def _lyapunov(hessian: jax.Array, noise: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(hessian)
    sums = values[:, None] + values
    cut = 10 * len(values) * jnp.finfo(hessian.dtype).eps * jnp.abs(values).max()
    rotated = vectors.T @ noise @ vectors
    gamma = jnp.where(sums > cut, rotated / jnp.where(sums > cut, sums, 1.0), 0.0)
    return vectors @ gamma @ vectors.T


def small_rate_covariance(
    hessian: Any, noise: Any, *, learning_rate: Any, variance_factor: Any
) -> Stationary:
    """Returns the stationary law to first order in η: covariance η π(B) Γ.

    Its excess loss is (η π / 4) tr C_g (eq. 4.46, with π(B) for 1/B), its mean square gradient
    (η π / 2) tr(C_g H) (eq. 4.47). With C_g = H it is the three-factor result (η/4B) tr H.

    Args:
      hessian: H, (p, p).
      noise: C_g, (p, p), the covariance of the gradient of one example.
      learning_rate: η.
      variance_factor: π(B), from `criteria.variance_factor`; 1/B with replacement.
    """
    check_positive("learning_rate", learning_rate)
    return _stationary(
        jnp.asarray(hessian), learning_rate * variance_factor * lyapunov(hessian, noise)
    )


class OneStep(NamedTuple):
    """What one step does to the loss of a quadratic, in the mean; losses over their minimum."""

    ratio: jax.Array
    """r(x): what is left of f(x) without noise."""
    noise: jax.Array
    """(η²/2) tr(H N): what noise adds."""
    next_loss: jax.Array
    """E f(x') = r f + (η²/2) tr(H N)."""


def one_step(hessian: Any, noise: Any, x: Any, *, learning_rate: Any) -> OneStep:
    """Returns E f(x') after x' = x - η (Hx + noise) on f = xᵀHx/2 (docs/formulas.md, section 4).

    r(x) = 1 - 2η xᵀH²x/xᵀHx + η² xᵀH³x/xᵀHx, at most 1 for every x if and only if η ≤ 2/λ_max(H).

    Args:
      hessian: H, (p, p), symmetric.
      noise: N, (p, p), the covariance of the noise at x, of mean 0; π(B) times that of the slopes
        of single examples.
      x: distance from the minimum, (p,), with xᵀHx not 0.
      learning_rate: η.

    Example:
      >>> step = one_step(jnp.eye(2), jnp.eye(2), jnp.array([2.0, 0.0]), learning_rate=0.5)
      >>> float(step.ratio), float(step.noise), float(step.next_loss)
      (0.25, 0.25, 0.75)
    """
    check_positive("learning_rate", learning_rate)
    h, x = jnp.asarray(hessian), jnp.asarray(x)
    pushed = h @ x
    twice = x @ pushed
    ratio = 1 - 2 * learning_rate * (pushed @ pushed) / twice
    ratio += learning_rate**2 * (pushed @ h @ pushed) / twice
    added = learning_rate**2 / 2 * jnp.trace(h @ jnp.asarray(noise))
    return OneStep(ratio, added, ratio * twice / 2 + added)


class NoisyMinimum(NamedTuple):
    """A minimum of a network, reduced to its r sharpest directions; made by `noisy_minimum`.

    In the coordinates of V, orthonormal eigenvectors of the Gauss-Newton H, where H is diagonal.
    """

    space: Subspace
    """V, held by its images F V."""
    curvatures: np.ndarray
    """Eigenvalues h of H, decreasing, (r,), 1/step size."""
    gradients: np.ndarray
    """Vᵀ(g_i - g), (n, r)."""
    drift: np.ndarray
    """Vᵀg, (r,): 0 at an exact minimum."""
    directions: Params
    """V, shaped like the parameters with a leading axis r."""

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.gradients)

    @property
    def hessian(self) -> np.ndarray:
        """Vᵀ H V, (r, r)."""
        return np.diag(self.curvatures)

    @property
    def noise(self) -> np.ndarray:
        """Vᵀ C_g V, (r, r)."""
        return self.gradients.T @ self.gradients / self.n


def noisy_minimum(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    rank: int,
    key: jax.Array,
    tol: float = 1e-4,
    chunk_size: int | None = None,
) -> NoisyMinimum:
    """Reduces a minimum to the span of its r sharpest directions.

    The r leading eigenpairs of 𝒦/n, 𝒦 = F Fᵀ the kernel of the Gauss-Newton factors in the space of
    outputs (`operators.outputs`), give the eigenvectors V = Fᵀu/√(nh) of H and F V = √(nh) u. With
    g_i = F_iᵀq_i the projected gradients are (F_iV)ᵀq_i. Everything that linearised SGD does inside
    V follows from F V and q; what the H_i couple to the rest is left out. Gauss-Newton's H_i are
    those of the model linearised in its parameters; where residuals are left, the full ones differ.

    Args:
      loss: `loss(params, example) -> scalar`, convex in the model's outputs; see
        `operators.output_factors`.
      params: the minimum.
      data: pytree of arrays with a leading axis n.
      rank: r ≥ 1, below n k; fewer are kept where H has fewer non-zero eigenvalues.
      key: random key of the start vector.
      tol: relative accuracy of the eigenvalues.
      chunk_size: examples differentiated at once.

    Returns:
      `NoisyMinimum`. Cost: some 3 r products with 𝒦, each about half a Hessian-vector product.
      Memory: r (n k + p) numbers.

    Raises:
      TypeError, ValueError: for options out of range, and see `operators.output_factors`.
    """
    check_at_least("rank", rank, 1)
    check_positive("tol", tol)
    check_finite("data", data)
    factors = output_factors(loss, params, data, chunk_size=chunk_size)
    n, k = factors.n, factors.outputs
    if rank >= n * k:
        raise ValueError(f"rank {rank} must be below the number of outputs, n k = {n * k}")

    def product(u: np.ndarray) -> np.ndarray:
        return np.asarray(factors.kernel(u.reshape(1, n, k)), np.float64).reshape(-1) / n

    start = np.asarray(jax.random.normal(key, (n * k,)), np.float64)
    operator = LinearOperator((n * k, n * k), matvec=product, dtype=np.float64)
    values, vectors = eigsh(operator, rank, which="LA", tol=tol, v0=start)
    kept = values > max(tol**2, 1e-10) * max(values[-1], np.finfo(float).tiny)
    if not kept.any():
        raise ValueError("every Gauss-Newton Hessian is zero here: nothing is restored")
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    scale = np.sqrt(n * values)
    space = Subspace(vectors / scale, vectors * scale, k)
    slopes = factors.slopes()
    gradients = np.einsum("nkr,nk->nr", space.images.reshape(n, k, -1), slopes)
    directions = factors.pull(space.coefficients.T.reshape(-1, n, k))
    drift = gradients.mean(0)
    return NoisyMinimum(space, values, gradients - drift, drift, directions)


def reduced_stationary_covariance(
    minimum: NoisyMinimum,
    *,
    learning_rate: float,
    batch_size: int,
    replacement: bool = False,
    tol: float = 1e-8,
    max_products: int = 2000,
) -> Stationary:
    """Returns where linearised SGD settles around a minimum of a network, in its sharp directions.

    Solves (2C - ηD)[S] = ηπ VᵀC_gV (Thm 12, as `stationary_covariance`) by conjugate gradients,
    preconditioned by 2C, which is diagonal here. With the whole parameter space in V it is exact
    for the linearised model. Directions outside V are not counted: to first order their share of
    the excess loss is ηπ/4 of their share of tr C_g, and takes 1/(2ηh) steps to arise.

    Args:
      minimum: from `noisy_minimum`.
      learning_rate: η, in the stable range.
      batch_size: B.
      replacement: whether batches are drawn with replacement.
      tol: relative residual at which the solve ends.
      max_products: products with D that it may cost, O(n k r²) each.

    Returns:
      `Stationary` in the coordinates of V, NumPy float64; NaN if no stationary law exists at this
      learning rate, or the solve did not converge.

    Raises:
      ValueError: if the learning rate is not positive or the batch size is not in 1..n.
    """
    check_positive("learning_rate", learning_rate)
    pi = variance_factor(minimum.n, batch_size, replacement)
    h = minimum.curvatures
    twice = h[:, None] + h

    def product(s: np.ndarray) -> np.ndarray:
        return twice * s - learning_rate * subspace.second(minimum.space, pi, s)

    noise = learning_rate * pi * minimum.noise
    solution, found = _conjugate_gradients(product, noise, twice, tol, max_products)
    if found:
        values = np.linalg.eigvalsh(solution)
        found = values[0] >= -1e-6 * max(values[-1], 0.0)
    if not found:
        solution = np.full_like(noise, np.nan)
    square = float(np.sum(h**2 * np.diag(solution)))
    return Stationary(solution, float(np.sum(h * np.diag(solution)) / 2), square)  # type: ignore[arg-type]


def _conjugate_gradients(
    product: Any, right: np.ndarray, diagonal: np.ndarray, tol: float, limit: int
) -> tuple[np.ndarray, bool]:
    """Solves product(S) = right, S symmetric; not found where the operator is not positive."""
    solution, residual = np.zeros_like(right), right
    scaled = residual / diagonal
    direction, energy, size = scaled, float(np.sum(residual * scaled)), np.linalg.norm(right)
    if size == 0:
        return solution, True
    for _ in range(limit):
        pushed = product(direction)
        curvature = float(np.sum(direction * pushed))
        if not curvature > 0:
            return solution, False
        solution = solution + energy / curvature * direction
        residual = residual - energy / curvature * pushed
        if np.linalg.norm(residual) <= tol * size:
            return solution, True
        scaled = residual / diagonal
        energy, before = float(np.sum(residual * scaled)), energy
        direction = scaled + energy / before * direction
    return solution, False
