"""Eq. 8 matrix-free: λ_max{(I - η H)² + η² π(B) Σ} ≤ 1, and the largest such η.

One step of linearised SGD from x gives E |x'|² = xᵀ M x with the matrix M of eq. 8, so its
largest eigenvalue is the factor by which E |x|² can grow in one step at most. Source: Wu, Ma, E,
NeurIPS 2018, eq. 8.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxstab import trees
from jaxstab.callables import as_pytree, register
from jaxstab.checks import check_at_least, check_positive
from jaxstab.eigen import lanczos
from jaxstab.eigen.result import EigenResult
from jaxstab.stability.criteria import variance_factor

Matvec = Callable[[Any], Any]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class OneStepOperator:
    """v ↦ (I - η H)² v + η² π Σ v. Cost: two products with H and one with Σ."""

    hessian: Matvec
    variance: Matvec | None
    """v ↦ Σ v; None where π = 0."""
    learning_rate: Any
    variance_factor: Any
    """π(B)."""

    def __call__(self, v: Any) -> Any:
        """Returns M v; `v` is shaped like the parameters."""
        eta = self.learning_rate
        once = jax.tree.map(lambda x, hx: x - eta * hx, v, self.hessian(v))
        twice = jax.tree.map(lambda x, hx: x - eta * hx, once, self.hessian(once))
        if self.variance is None:
            return twice
        scale = eta**2 * self.variance_factor
        return jax.tree.map(lambda x, sx: x + scale * sx, twice, self.variance(v))


def one_step_operator(
    hessian: Matvec,
    variance: Matvec,
    *,
    learning_rate: Any,
    batch_size: int,
    n: int,
    replacement: bool = False,
) -> OneStepOperator:
    """Returns the matrix of eq. 8, M = (I - η H)² + η² π(B) Σ, as an operator pytree.

    Args:
      hessian: v ↦ H v, for example `jaxstab.hessian(loss, params, data)`.
      variance: v ↦ Σ v, for example `jaxstab.hessian_variance(loss, params, data)`.
      learning_rate: η; an operand, so a new value compiles nothing.
      batch_size: B.
      n: number of examples.
      replacement: whether batches are drawn with replacement.

    Raises:
      ValueError: if the learning rate is not positive or the batch size is not in 1..n.
    """
    check_positive("learning_rate", learning_rate)
    pi = variance_factor(n, batch_size, replacement)
    operators = as_pytree(hessian), as_pytree(variance) if pi else None
    return OneStepOperator(*operators, learning_rate, pi)


def one_step_growth(
    hessian: Matvec,
    variance: Matvec,
    like: Any,
    *,
    learning_rate: Any,
    batch_size: int,
    n: int,
    key: jax.Array,
    replacement: bool = False,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    v0: Any | None = None,
) -> EigenResult:
    """Returns the largest eigenvalue of eq. 8: at most 1 means stable in mean square.

    E |x|² of linearised SGD grows by at most this factor per step. Where H and Σ have a
    common null space, as at every over-parametrised minimum, the eigenvalue is never below 1, and
    a stable minimum has exactly 1: judge it with a tolerance, or with `sufficient_learning_rate`.

    Args:
      hessian: v ↦ H v.
      variance: v ↦ Σ v.
      like: pytree shaped like the parameters.
      learning_rate: η.
      batch_size: B.
      n: number of examples.
      key: random key of the start vector.
      replacement: whether batches are drawn with replacement.
      tol: relative accuracy of the eigenvalue, as for `eigen.lanczos`.
      max_matvecs: products with M; each costs two with H and one with Σ.
      v0: start vector.

    Returns:
      `EigenResult` of M; the value has no unit.
    """
    operator = one_step_operator(
        hessian,
        variance,
        learning_rate=learning_rate,
        batch_size=batch_size,
        n=n,
        replacement=replacement,
    )
    return lanczos(tol=tol, max_matvecs=max_matvecs)(operator, like, key=key, v0=v0)


class LearningRateLimit(NamedTuple):
    """The largest learning rate that meets eq. 8, and how well that is known."""

    value: float
    """η; an upper bound of the exact limit, at which eq. 8 holds up to `growth`."""
    growth: EigenResult | None
    """Largest eigenvalue of eq. 8 at `value`: its upper end bounds the growth of E |x|²."""
    matvecs: int
    """Products with H plus products with Σ."""
    converged: bool
    """Whether `growth` is certified to be at most 1 + slack + 2 tol."""


def sufficient_learning_rate(
    hessian: Matvec,
    variance: Matvec,
    like: Any,
    *,
    batch_size: int,
    n: int,
    key: jax.Array,
    replacement: bool = False,
    slack: float = 1e-2,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    max_iterations: int = 20,
) -> LearningRateLimit:
    """Returns the largest learning rate at which the eigenvalue of eq. 8 is at most 1 + slack.

    With slack 0 and H positive semi-definite this is 2/μ with μ = max_v (vᵀ K v)/(vᵀ H v) =
    λ_max(H^(+/2) K H^(+/2)), K = H² + π(B) Σ. Neither roots nor inverses of H are
    needed. For each unit v, q_v(η) = vᵀ M v = 1 - 2 η vᵀ H v + η² vᵀ K v is a quadratic
    that bounds the eigenvalue from below, and equals it at the present η if v is the top
    eigenvector there. So the larger root of q_v = 1 + slack is a smaller learning rate, and still
    no smaller than the limit: Newton's method for a convex function (with slack 0, Dinkelbach's
    iteration for the ratio), monotone from above and superlinear. It takes 3 to 8 eigenproblems.

    Why slack: where training stopped just short of a minimum, H has eigenvalues a little below 0.
    Along them |x| grows however small η is, very slowly, and without slack the limit would be 0.

    Args:
      hessian: v ↦ H v.
      variance: v ↦ Σ v.
      like: pytree shaped like the parameters.
      batch_size: B.
      n: number of examples.
      key: random key.
      replacement: whether batches are drawn with replacement.
      slack: growth of E |x|² per step that still counts as staying.
      tol: accuracy of the eigenvalue.
      max_matvecs: products with M in each eigenproblem.
      max_iterations: eigenproblems to spend.

    Returns:
      `LearningRateLimit`. Infinite if H and Σ vanish; 0 with slack 0 if H has a direction of
      negative curvature.

    Raises:
      ValueError: if the batch size is not in 1..n or the slack is negative.
    """
    check_at_least("max_iterations", max_iterations, 1)
    check_positive("slack", slack, allow_zero=True)
    pi = variance_factor(n, batch_size, replacement)
    per_product = 3 if pi else 2
    hessian, variance = as_pytree(hessian), as_pytree(variance)
    solve = lanczos(tol=tol, max_matvecs=max_matvecs)
    top = solve(hessian, like, key=key)
    v, spent = top.vector, int(top.matvecs)
    growth: EigenResult | None = None
    value = math.inf
    for _ in range(max_iterations):
        curvature, second = (float(x) for x in _forms(hessian, variance if pi else None, pi, v))
        spent += per_product - 1
        root = math.sqrt(curvature**2 + slack * second)
        value = min(value, (curvature + root) / second if second > 0 else math.inf)
        if value <= 0 or value == math.inf:
            return LearningRateLimit(max(value, 0.0), growth, spent, bool(top.converged))
        key, _ = jax.random.split(key)
        growth = one_step_growth(
            hessian,
            variance,
            like,
            learning_rate=value,
            batch_size=batch_size,
            n=n,
            key=key,
            replacement=replacement,
            tol=tol,
            max_matvecs=max_matvecs,
        )
        spent += per_product * int(growth.matvecs)
        if float(growth.value) <= 1 + slack + tol:
            break
        v = growth.vector
    assert growth is not None  # at least one iteration
    met = bool(growth.converged) and float(growth.interval.upper) <= 1 + slack + 2 * tol
    return LearningRateLimit(value, growth, spent, met)


@jax.jit
def _forms(hessian: Matvec, variance: Matvec | None, pi: Any, v: Any) -> tuple[Any, Any]:
    """Returns vᵀ H v and vᵀ (H² + π Σ) v for the unit vector along v."""
    length = trees.norm(v)
    v = jax.tree.map(lambda x: x / length, v)
    product = hessian(v)
    second = trees.dot(product, product)
    if variance is not None:
        second = second + pi * trees.dot(v, variance(v))
    return trees.dot(v, product), second
