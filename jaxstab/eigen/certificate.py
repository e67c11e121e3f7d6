"""Upper bound on the largest eigenvalue from a Krylov process with a random start.

Let the process start from the vector x and let every product with A (symmetric) multiply a monic
polynomial: after m products P(A) x = ν w with ‖w‖ = 1, where P(t) = Π (t − ρ_j) and ν are known.

- Lanczos: ρ_j are the Ritz values, ν = ‖x‖ Π β_j (van Dorsselaer, Hochstenbach and van der Vorst,
  SIAM J. Matrix Anal. Appl. 22, 2000, "Lanczos polynomials"). A thick restart is an implicit
  restart with exact shifts: the Ritz values that it drops stay roots of P, every product still
  contributes one factor β, and so the statement holds for restarted Lanczos with all of them.
- Power iteration x ← (A + σI) x/‖·‖, ended by r = A y − θ y: roots −σ_j and θ.

For an eigenpair A u = λ u this gives |P(λ)| |uᵀx| = ν |uᵀw| ≤ ν. If x = g is standard normal then
uᵀg is standard normal, and P(|uᵀg| ≤ t) ≤ t √(2/π) = δ for t = δ √(π/2), for every p. So with
probability at least 1 − δ, for λ the largest eigenvalue,

    log |P(λ)| ≤ log ν − log t .

Above the largest root ρ_1, P increases: λ ≤ ρ_1 + d with Σ_j log(d + ρ_1 − ρ_j) = log ν − log t.
The event is about the start alone, not about the number of products: the bound may be watched, and
the process stopped when it is good enough, without losing probability.
"""

import math

import jax
import jax.numpy as jnp

from jaxstab.checks import check_positive

_POINTS = 192


def check_probability(failure_probability: float) -> float:
    """Returns a probability strictly between 0 and 1."""
    check_positive("failure_probability", failure_probability)
    if failure_probability >= 1:
        raise ValueError(f"failure_probability must be below 1, got {failure_probability}")
    return float(failure_probability)


def log_quantile(failure_probability: float) -> float:
    """log t with P(|N(0, 1)| ≤ t) ≤ failure_probability."""
    return math.log(failure_probability * math.sqrt(math.pi / 2))


def bound_offset(
    roots: jax.Array, used: jax.Array, log_ratio: jax.Array, floor: jax.Array
) -> jax.Array:
    """Returns d ≥ floor such that Σ_j log(d + max ρ − ρ_j) ≥ log_ratio, close to the smallest.

    Args:
      roots: (m,) the roots ρ_j of P; at least one used.
      used: (m,) which of them count.
      log_ratio: (), log ν − log t; +inf where there is no random part: then d is +inf.
      floor: (), smallest offset of interest, > 0.

    All candidates are tried at once on a geometric grid that ends at the root of d^m = ratio, which
    is always far enough; the answer is rounded up to the grid, so it errs on the safe side.
    """
    dtype = roots.dtype
    degree = jnp.maximum(jnp.sum(used), 1)
    gaps = jnp.maximum(jnp.max(jnp.where(used, roots, -jnp.inf)) - roots, 0)
    known = jnp.isfinite(log_ratio)
    log_ratio = jnp.where(known, log_ratio, 0)
    low = jnp.log(floor)
    high = jnp.maximum(log_ratio / degree, low)
    # A hair beyond, so that rounding of the logarithms cannot spoil the last candidate.
    high = high + 1e-5
    grid = low + (high - low) * jnp.linspace(0, 1, _POINTS, dtype=dtype)
    candidates = jnp.exp(grid)
    terms = jnp.where(used, jnp.log(candidates[:, None] + jnp.where(used, gaps, 1)), 0)
    enough = jnp.sum(terms, axis=1) >= log_ratio
    first = jnp.where(jnp.any(enough), jnp.argmax(enough), _POINTS - 1)
    return jnp.where(known, candidates[first], jnp.inf)
