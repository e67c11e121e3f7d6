"""The stationary covariance of SGD around a minimum: exact for a quadratic, and to first order.

Sources: Mulayoff & Michaeli, arXiv 2306.07850, Thm 12 (exact); Wang & Wu, JMLR 21, 2020,
eq. 4.38-4.47 (first order in η); Jastrzebski et al., arXiv 1711.04623, eq. 9 (its special case
of gradient noise equal to the Hessian). Dense matrices, for small problems.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.checks import check_positive
from jaxstab.stability.criteria import variance_factor
from jaxstab.stability.linearized import MomentMap, Quadratic


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
    step = MomentMap(problem, eta, pi)
    units = jnp.eye(p * p, dtype=problem.hessians.dtype).reshape(p * p, p, p)
    # The map S ↦ (S - Q[S]) / η = 2 C[S] - η D[S], symmetric in the Frobenius product.
    matrix = (units - jax.vmap(step)(units)).reshape(p * p, p * p) / eta
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    noise = eta * pi * (problem.gradients.T @ problem.gradients / problem.n).reshape(-1)
    cut = 100 * p * p * jnp.finfo(matrix.dtype).eps * jnp.abs(values).max()
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
