"""What a solver hands back: never a bare number."""

from typing import Any, NamedTuple

import jax
import numpy as np


class Interval(NamedTuple):
    """Where the exact eigenvalue lies; what the two ends rest on is said in `EigenResult`."""

    lower: jax.Array  # () or (k,)
    upper: jax.Array  # () or (k,)


class Rounding(NamedTuple):
    """What floating point may have done to a result, and what it was seen to do.

    `unit` is the unit roundoff of the products that value, residual and the certain end of the
    interval rest on, read from their precision and dtypes: 2⁻²⁴ = 6e-8 for full float32, 2⁻¹⁰ for
    TF32, 2⁻⁸ for bfloat16. `allowed` follows from it by a model (docs/formulas.md, 9), widened by
    what the products showed of asymmetry and of non-linearity beyond that model. With Krylov
    products coarser than those of a reference, `difference` is allowed for in the uncertain end.
    """

    unit: jax.Array  # ()
    allowed: jax.Array  # (), units of A: widens both ends of the interval and the residual
    seen: jax.Array  # (), units of A: how far a product with a unit vector was from expected
    checks: jax.Array  # (), int32: products beside `matvecs`: with final vectors, of a reference
    difference: jax.Array  # (), units of A: bound on ‖A − reference‖; 0 without a reference


class EigenResult(NamedTuple):
    """An extreme eigenvalue of a symmetric operator A, or the k most extreme ones in order.

    For the largest eigenvalue, λ:

    - `value` is the Rayleigh quotient θ = yᵀAy of the unit vector y in `vector`.
    - `interval.lower` = θ − rounding. A Rayleigh quotient never exceeds λ, so this end is certain
      (up to rounding, see below).
    - `interval.upper` is not exceeded by λ with probability at least 1 − failure_probability over
      the random start, whatever the operator is, and whenever the solver stopped.
    - For `which="smallest"` the two ends change places: the upper one is the certain one.
    - With k > 1 the ends i bound the i-th eigenvalue, counted with multiplicity, and all the
      uncertain ends hold together with that probability.
    - `rounding` treats the floating-point error of solver and operator as a perturbation of A. It
      is the floor below which `tol` cannot be met.

    On which precision the certificate rests: `rounding.unit`. By default matrix products are made
    in full float32 on every machine. Krylov products at a lower `precision` serve to find the
    vector: value, residual and the certain end (of k = 1) still come from products at full
    precision, and the uncertain end allows for `rounding.difference`, a bound on the norm of the
    difference that takes half of the failure_probability. A model that computes in bfloat16, or
    asks for coarse products itself, is measured as it is: another function than the one on paper,
    and the certificate is about that one. So it is at a kink (a ReLU at zero): each example is on
    the side where float32 puts it. How often the interval holds what float64 finds is counted in
    docs/formulas.md, section 9.

    Unconverged results are good for what the interval says, and no more.
    """

    value: jax.Array  # () or (k,), units of A
    vector: Any  # pytree like the operator's argument, unit norm; leading axis k if k > 1
    residual: jax.Array  # () or (k,), upper estimate of ‖A y − θ y‖, rounding included
    interval: Interval  # two of () or (k,)
    matvecs: jax.Array  # (), int32, products with A, but those in `rounding.checks`
    converged: jax.Array  # (), bool: residual and width of the interval are within tol · |value|
    rounding: Rounding | None = None

    @property
    def summary(self) -> str:
        """What was found and what of it is certified, in a sentence."""
        if not _is_concrete(self):
            return "EigenResult(traced)"
        if np.ndim(self.converged):
            done = np.asarray(self.converged)
            return f"{done.sum()} of {done.size} solves converged; look at them one by one"
        status = "converged" if self.converged else "NOT CONVERGED"
        value, lower, upper = (np.asarray(x, float) for x in (self.value, *self.interval))
        if not np.all(np.isfinite(value)):
            return (
                f"{status}: the operator gave NaN or infinity "
                f"within {int(self.matvecs)} products; nothing is certified"
            )
        advice = ": only the interval is certified; raise max_matvecs"
        if self.rounding is not None and np.ndim(value) == 0:
            kinds = self.rounding.allowed, self.rounding.seen, self.rounding.difference
            noise = max(map(float, kinds))
            if 8 * noise >= upper - lower:
                advice = (
                    ": only the interval is certified; rounding of the products is the limit, "
                    "raise tol or their precision"
                )
        return (
            f"{_show(value)} in [{_show(lower)}, {_show(upper)}], "
            f"residual {_show(self.residual, 2)}, {int(self.matvecs)} products, "
            f"{status}{'' if self.converged else advice}"
        )

    def __str__(self) -> str:
        return self.summary

    def __repr__(self) -> str:
        if not _is_concrete(self):
            return "EigenResult(traced)"
        return f"EigenResult({self.summary})"


def _is_concrete(result: EigenResult) -> bool:
    numbers = (result.value, result.residual, *result.interval, result.matvecs, result.converged)
    return all(
        isinstance(x, jax.Array | np.ndarray | np.generic | float | int) for x in numbers
    ) and (not any(isinstance(x, jax.core.Tracer) for x in numbers))


def _show(x: Any, digits: int = 7) -> str:
    if np.ndim(x) == 0:
        return f"{float(x):.{digits}g}"
    return "(" + ", ".join(f"{float(e):.{digits}g}" for e in np.ravel(x)) + ")"
