"""Trace of an operator that is known by its products."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, check_positive
from jaxstab.eigen import vectors


class TraceResult(NamedTuple):
    """An estimate of the trace and how far it may be off."""

    value: jax.Array  # (), mean over probes
    standard_error: jax.Array  # (), of that mean, from the spread of the probes
    probes: jax.Array  # (), int32, products spent
    converged: jax.Array  # (), bool: standard_error ≤ tol · |value| within the budget

    def __repr__(self) -> str:
        if any(isinstance(x, jax.core.Tracer) for x in self) or jnp.ndim(self.value):
            return f"TraceResult(value={self.value}, standard_error={self.standard_error})"
        status = "converged" if self.converged else "NOT CONVERGED"
        return (
            f"TraceResult({float(self.value):.6g} ± {float(self.standard_error):.2g} "
            f"(one standard error), {int(self.probes)} probes, {status})"
        )


def trace(
    *, tol: float = 0.05, min_probes: int = 30, max_probes: int = 1000
) -> Callable[..., TraceResult]:
    """Hutchinson's estimate tr A = E zᵀAz, z with independent signs ±1.

    (M. Hutchinson, Commun. Stat. Simul. Comput. 19, 1990.) The variance of one probe is
    2 Σ_{i≠j} A_ij²: none for a diagonal operator. Stops when the standard error of the mean is at
    most `tol` · |value|, after `min_probes` at the earliest: the spread of fewer is too uncertain
    to stop on, and stopping on the change of the mean ends early and low.

    Args:
      tol: relative standard error wanted.
      min_probes: at least 2.
      max_probes: budget of products.

    Returns:
      `estimate(matvec, like, *, key) -> TraceResult`; arguments as for `lanczos`. Compiled once
      for equal options and shapes; usable inside jit and vmap. A non-finite product ends it,
      unconverged, with a value that is not finite.

    Raises:
      ValueError, TypeError: for options out of range, integer vectors, wrong output of matvec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimate = trace()
      >>> result = estimate(lambda v: 2 * v, jnp.zeros(50), key=jax.random.key(0))
      >>> print(float(result.value), int(result.probes))
      100.0 30
    """
    check_positive("tol", tol)
    check_at_least("min_probes", min_probes, 2)
    check_at_least("max_probes", max_probes, min_probes)
    options = (float(tol), int(min_probes), int(max_probes))

    def estimate(matvec: Callable[[Any], Any], like: Any, *, key: jax.Array) -> TraceResult:
        return _estimate(
            as_pytree(matvec), key, sig=vectors.signature(like, matvec), options=options
        )

    return estimate


@functools.partial(jax.jit, static_argnames=("sig", "options"))
def _estimate(
    matvec: Callable[[Any], Any],
    key: jax.Array,
    *,
    sig: vectors.Signature,
    options: tuple[float, int, int],
) -> TraceResult:
    tol, min_probes, max_probes = options
    apply = vectors.operator(matvec, sig, 1)
    zero = jnp.zeros((), vectors.working_dtype(sig))

    def error(count, squares):
        return jnp.sqrt(squares / (jnp.maximum(count - 1, 1) * jnp.maximum(count, 1)))

    def good(count, mean, squares):
        return (count >= min_probes) & (error(count, squares) <= tol * jnp.abs(mean))

    def body(carry):
        count, mean, squares = carry
        z = vectors.signs(jax.random.fold_in(key, count), sig)
        sample = vectors.dot(z, apply(z)).astype(zero.dtype)
        count = count + 1
        # Welford's update: no cancellation between a large mean and a small spread.
        delta = sample - mean
        mean = mean + delta / count
        return count, mean, squares + delta * (sample - mean)

    count, mean, squares = lax.while_loop(
        lambda c: ~(good(*c) | (c[0] >= max_probes) | ~jnp.isfinite(c[1])),
        body,
        (jnp.zeros((), jnp.int32), zero, zero),
    )
    return TraceResult(mean, error(count, squares), count, good(count, mean, squares))
