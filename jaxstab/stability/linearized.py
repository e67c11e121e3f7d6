"""Linearised SGD: runs of it, its exact moments, and the covariance that it settles to.

Near a minimum every loss is a quadratic, l_i(x) = xᵀ H_i x / 2 + g_iᵀ x with (1/n) Σ g_i = 0,
where x is the distance from the minimum and g_i the gradient of example i there. With
π = π(B), H = (1/n) Σ H_i, m = E x and S = E x xᵀ, one step of SGD gives exactly

    m' = (I - η H) m
    S' = (I - η H) S (I - η H) + η² π {(1/n) Σ_i E[(H_i x + g_i)(H_i x + g_i)ᵀ] - H S H}

Sources: Wu, Ma, E, NeurIPS 2018, section 3; Mulayoff & Michaeli, arXiv 2306.07850, Thm 12;
Wang & Wu, JMLR 21, 2020, eq. 4.38-4.47. For small problems: the H_i are dense matrices.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import helmert

from jaxstab.callables import register
from jaxstab.checks import check_at_least, check_batch_size, check_finite, check_positive
from jaxstab.eigen import lanczos
from jaxstab.eigen.result import EigenResult
from jaxstab.sampling import batch_indices
from jaxstab.stability.criteria import variance_factor


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic:
    """n quadratic losses with their minimum of the mean at 0; an array pytree."""

    hessians: jax.Array
    """H_i, (n, p, p), symmetric, of any sign."""
    gradients: jax.Array
    """g_i at the minimum, (n, p), of mean 0; all 0 where the model interpolates."""

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.hessians.shape[0]

    @property
    def hessian(self) -> jax.Array:
        """H, (p, p)."""
        return jnp.mean(self.hessians, 0)

    @property
    def noise(self) -> jax.Array:
        """C_g = (1/n) Σ g_i g_iᵀ at the minimum, (p, p)."""
        return self.gradients.T @ self.gradients / self.n

    @property
    def variance(self) -> jax.Array:
        """Σ = (1/n) Σ H_i² - H², (p, p), as the mean of (H_i - H)²: no cancellation."""
        centred = self.hessians - self.hessian
        return jnp.mean(centred @ centred, 0)

    @property
    def sharpness(self) -> jax.Array:
        """a = λ_max(H)."""
        return jnp.linalg.eigvalsh(self.hessian)[-1]

    @property
    def nonuniformity(self) -> jax.Array:
        """s = sqrt(λ_max(Σ))."""
        return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(self.variance)[-1], 0))


def quadratic(hessians: Any, gradients: Any = None) -> Quadratic:
    """Returns the problem of given per-example Hessians and gradients at the minimum.

    Args:
      hessians: H_i, (n, p, p), or (n,) in one dimension.
      gradients: g_i, (n, p), of mean zero; zero by default.

    Raises:
      ValueError: if a shape is wrong, a matrix not symmetric, an entry not finite, or the
        gradients do not average to zero (then 0 is not the minimum).
    """
    check_finite("hessians", hessians)
    hessians = jnp.asarray(hessians)
    if hessians.ndim == 1:
        hessians = hessians[:, None, None]
    if hessians.ndim != 3 or hessians.shape[1] != hessians.shape[2] or 0 in hessians.shape:
        raise ValueError(f"hessians must have shape (n, p, p) or (n,), got {hessians.shape}")
    if not np.allclose(hessians, np.swapaxes(hessians, 1, 2), rtol=1e-5, atol=1e-7):
        raise ValueError("hessians must be symmetric")
    shape = hessians.shape[:2]
    gradients = jnp.zeros(shape, hessians.dtype) if gradients is None else jnp.asarray(gradients)
    if gradients.shape != shape:
        raise ValueError(f"gradients must have shape {shape}, got {gradients.shape}")
    check_finite("gradients", gradients)
    drift, size = np.abs(np.mean(gradients, 0)).max(), np.abs(gradients).max()
    if drift > 1e-5 * size:
        raise ValueError(f"gradients must average to zero at a minimum, their mean is {drift:.3g}")
    return Quadratic(hessians, gradients)


def random_quadratic(
    key: jax.Array, *, n: int, p: int, sharpness: float, nonuniformity: float
) -> Quadratic:
    """Returns a random interpolating problem with exactly this a and s, for tests and diagrams.

    H = a Q diag(1, u_2, ..., u_p) Qᵀ with uniform u in (0, 1) and a random rotation Q; the H_i
    scatter about it by symmetric Gaussian matrices, centred and scaled to s. They need not be
    positive semi-definite.

    Args:
      key: random key.
      n: number of examples, at least 2 unless s = 0.
      p: number of parameters.
      sharpness: a ≥ 0.
      nonuniformity: s ≥ 0.

    Raises:
      ValueError: if n or p is below 1, a or s negative, or s > 0 with n = 1.
    """
    check_at_least("n", n, 1)
    check_at_least("p", p, 1)
    check_positive("sharpness", sharpness, allow_zero=True)
    check_positive("nonuniformity", nonuniformity, allow_zero=True)
    if n == 1 and nonuniformity > 0:
        raise ValueError("one example has no non-uniformity: give nonuniformity 0 or n >= 2")
    return _random_quadratic(key, sharpness, nonuniformity, n=n, p=p)


@functools.partial(jax.jit, static_argnames=("n", "p"))
def _random_quadratic(key: jax.Array, a: Any, s: Any, *, n: int, p: int) -> Quadratic:
    keys = jax.random.split(key, 3)
    rotation = jnp.linalg.qr(jax.random.normal(keys[0], (p, p)))[0]
    spectrum = jax.random.uniform(keys[1], (p,)).at[0].set(1.0)
    mean = a * (rotation * spectrum) @ rotation.T
    noise = jax.random.normal(keys[2], (n, p, p))
    noise = noise + jnp.swapaxes(noise, 1, 2)
    noise = noise - jnp.mean(noise, 0)
    top = jnp.linalg.eigvalsh(jnp.mean(noise @ noise, 0))[-1]
    noise = noise * jnp.where(n > 1, s / jnp.sqrt(top), 0.0)
    return Quadratic((mean + mean.T) / 2 + noise, jnp.zeros((n, p)))


def with_noise(problem: Quadratic, covariance: Any) -> Quadratic:
    """Returns the problem with gradients at the minimum whose covariance C_g is this matrix.

    g_i = √n Σ_j q_ij C^(1/2) e_j, with p orthonormal contrasts q over the n examples (Helmert).

    Args:
      problem: whose H_i are kept, n > p.
      covariance: C, (p, p), positive semi-definite; the Hessian for the three factors.

    Raises:
      ValueError: if the shape is wrong, there are too few examples, or C is not semi-definite.

    Example:
      >>> noisy = with_noise(quadratic([1.0, 3.0]), [[4.0]])
      >>> [round(float(g), 6) for g in abs(noisy.gradients[:, 0])]
      [2.0, 2.0]
    """
    matrix = np.asarray(covariance, np.float64)
    n, p = problem.gradients.shape
    if matrix.shape != (p, p):
        raise ValueError(f"covariance must have shape {(p, p)}, got {matrix.shape}")
    if n <= p:
        raise ValueError(f"{n} gradients of mean zero span at most {n - 1} of {p} dimensions")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] < -1e-6 * np.abs(values).max():
        raise ValueError(f"covariance has the negative eigenvalue {values[0]:.3g}")
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    gradients = math.sqrt(n) * helmert(n)[:p].T @ root
    return quadratic(problem.hessians, jnp.asarray(gradients, problem.hessians.dtype))


def simulate(
    problem: Quadratic,
    x0: Any,
    *,
    learning_rate: Any,
    batch_size: int,
    steps: int,
    key: jax.Array,
    runs: int = 1,
    replacement: bool = False,
) -> jax.Array:
    """Returns independent runs of SGD, x ← x - η (mean over a batch of H_i x + g_i).

    Args:
      problem: the losses.
      x0: common start, (p,).
      learning_rate: η.
      batch_size: B.
      steps: number of steps.
      key: random key.
      runs: number of runs.
      replacement: whether a batch is drawn with replacement.

    Returns:
      Array (runs, steps + 1, p), the start included.

    Raises:
      ValueError: for a batch size, step or run count, learning rate or start that cannot be.
    """
    check_positive("learning_rate", learning_rate)
    check_batch_size(batch_size, problem.n, replacement=replacement)
    check_at_least("steps", steps, 1)
    check_at_least("runs", runs, 1)
    x0 = jnp.asarray(x0, problem.hessians.dtype)
    if x0.shape != problem.hessians.shape[1:2]:
        raise ValueError(f"x0 must have shape {problem.hessians.shape[1:2]}, got {x0.shape}")
    return _simulate(
        problem,
        x0,
        learning_rate,
        jax.random.split(key, runs),
        batch_size=batch_size,
        steps=steps,
        replacement=replacement,
    )


@functools.partial(jax.jit, static_argnames=("batch_size", "steps", "replacement"))
def _simulate(
    problem: Quadratic,
    x0: jax.Array,
    eta: Any,
    keys: jax.Array,
    *,
    batch_size: int,
    steps: int,
    replacement: bool,
) -> jax.Array:
    def step(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = batch_indices(key, problem.n, batch_size, replacement=replacement)
        slopes = problem.hessians[batch] @ x + problem.gradients[batch]
        x = x - eta * jnp.mean(slopes, 0)
        return x, x

    def run(key: jax.Array) -> jax.Array:
        return jax.lax.scan(step, x0, jax.random.split(key, steps))[1]

    path = jax.vmap(run)(keys)
    return jnp.concatenate([jnp.broadcast_to(x0, (len(keys), 1, x0.size)), path], 1)


class Moments(NamedTuple):
    """First and second moment of the distance from the minimum."""

    mean: jax.Array
    """m = E x, (p,)."""
    second: jax.Array
    """S = E x xᵀ, (p, p)."""


def next_moments(
    problem: Quadratic, moments: Moments, *, learning_rate: Any, variance_factor: Any
) -> Moments:
    """Returns the exact moments after one more step; usable in jit, vmap and scan.

    Args:
      problem: the losses.
      moments: m and S before the step.
      learning_rate: η.
      variance_factor: π(B), from `criteria.variance_factor`.
    """
    h, each, g = problem.hessian, problem.hessians, problem.gradients
    m, s = moments
    kept = jnp.eye(h.shape[0], dtype=h.dtype) - learning_rate * h
    pushed = each @ m  # H_i m, (n, p)
    cross = jnp.einsum("np,nq->pq", pushed, g)
    scatter = jnp.einsum("nij,jk,nkl->il", each, s, each, optimize="optimal")
    noise = (scatter + cross + cross.T + g.T @ g) / problem.n - h @ s @ h
    return Moments(kept @ m, kept @ s @ kept + learning_rate**2 * variance_factor * noise)


def moments(
    problem: Quadratic,
    x0: Any,
    *,
    learning_rate: Any,
    batch_size: int,
    steps: int,
    replacement: bool = False,
) -> Moments:
    """Returns the exact moments along `steps` steps from x0, the start included.

    Returns:
      `Moments` with a leading axis steps + 1. Cost: O(n p³) a step.

    Raises:
      ValueError: for a learning rate, batch size or step count that cannot be.
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("steps", steps, 1)
    pi = variance_factor(problem.n, batch_size, replacement)
    x0 = jnp.asarray(x0, problem.hessians.dtype)
    return _moments(problem, Moments(x0, jnp.outer(x0, x0)), learning_rate, pi, steps=steps)


@functools.partial(jax.jit, static_argnames="steps")
def _moments(problem: Quadratic, start: Moments, eta: Any, pi: Any, *, steps: int) -> Moments:
    def step(now: Moments, _: None) -> tuple[Moments, Moments]:
        after = next_moments(problem, now, learning_rate=eta, variance_factor=pi)
        return after, after

    path = jax.lax.scan(step, start, None, length=steps)[1]
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, path)


@register
@dataclasses.dataclass(frozen=True, eq=False)
class MomentMap:
    """The moment map Q: S ↦ E x' x'ᵀ without gradient noise; self-adjoint (Frobenius)."""

    problem: Quadratic
    learning_rate: Any
    variance_factor: Any
    """π(B)."""

    def __call__(self, s: jax.Array) -> jax.Array:
        """Returns Q[S] = S - η (2 C[S] - η D[S]), (p, p)."""
        return s - self.learning_rate * self.restored(s)

    def restored(self, s: jax.Array) -> jax.Array:
        """Returns 2 C[S] - η D[S], (p, p), which (S - Q[S]) / η loses to rounding at small η."""
        h, each, pi = self.problem.hessian, self.problem.hessians, self.variance_factor
        scatter = jnp.mean(each @ s @ each, 0)
        return h @ s + s @ h - self.learning_rate * ((1 - pi) * h @ s @ h + pi * scatter)


def mean_square_growth(
    problem: Quadratic,
    *,
    learning_rate: Any,
    batch_size: int,
    key: jax.Array,
    replacement: bool = False,
    tol: float = 1e-4,
    max_matvecs: int = 500,
) -> EigenResult:
    """Returns the mean-square growth λ_max(Q): E |x|² multiplies by it each step in the end.

    Q keeps the cone of positive semi-definite matrices and is symmetric, so its largest eigenvalue
    is its spectral radius: linearised SGD is stable in mean square if and only if it is at most 1.
    In one dimension it is (1 - η a)² + η² π s², the left side of eq. 8. The H_i may have
    any sign here; `exact.mean_square_growth` is the faster form for factored PSD ones.

    Args:
      problem: the losses.
      learning_rate: η.
      batch_size: B.
      key: random key of the eigensolver.
      replacement: whether batches are drawn with replacement.
      tol: relative accuracy.
      max_matvecs: applications of Q, each O(n p³).
    """
    check_positive("learning_rate", learning_rate)
    pi = variance_factor(problem.n, batch_size, replacement)
    operator = MomentMap(problem, learning_rate, pi)
    return lanczos(tol=tol, max_matvecs=max_matvecs)(operator, problem.hessian, key=key)


def moment_growth(
    problem: Quadratic, *, order: int, learning_rate: float, batch_size: int
) -> float:
    """Returns the factor by which the moments E x⊗…⊗x of this order grow each step in the end.

    The spectral radius of the mean of (I - η H_batch)⊗…⊗(I - η H_batch) over all batches. Order 2
    is `mean_square_growth`. The mean over runs of |x|² has a standard error where order 4 is stable
    too, which is a stronger demand: simulated second moments are to be trusted there alone.

    Args:
      problem: the losses, few and in few dimensions: there are n!/(B!(n-B)!) batches, and matrices
        of p^order rows.
      order: of the moments, at least 1.
      learning_rate: η.
      batch_size: B in 1..n, without replacement.

    Raises:
      ValueError: for a learning rate or batch size that cannot be, or too large a problem.

    Example:
      >>> problem = quadratic([1.0, 3.0])  # in one dimension: the mean of (1 - η h)^order
      >>> round(moment_growth(problem, order=4, learning_rate=0.6, batch_size=1), 4)
      0.2176
    """
    check_positive("learning_rate", learning_rate)
    check_at_least("order", order, 1)
    n, p = problem.hessians.shape[:2]
    check_batch_size(batch_size, n)
    size = p**order
    if size > 1000 or math.comb(n, batch_size) > 10_000:
        raise ValueError(
            f"{math.comb(n, batch_size)} batches and matrices of {size} rows are too many: at most "
            "10000 and 1000, so take fewer examples or dimensions"
        )
    each = np.asarray(problem.hessians, np.float64)
    total = np.zeros((size, size))
    for batch in itertools.combinations(range(n), int(batch_size)):
        step = np.eye(p) - learning_rate * each[list(batch)].mean(0)
        total += functools.reduce(np.kron, [step] * order)
    return float(np.abs(np.linalg.eigvalsh(total / math.comb(n, batch_size))).max())
