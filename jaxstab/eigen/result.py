"""What a solver hands back: never a bare number."""

from typing import Any, NamedTuple

import jax
import numpy as np


class Interval(NamedTuple):
    """Where the exact eigenvalue lies; what the two ends rest on is said in `EigenResult`."""

    lower: jax.Array  # () or (k,)
    upper: jax.Array  # () or (k,)


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
    - `rounding` treats the floating-point error of solver and operator as a perturbation of A: a
      multiple of machine epsilon times ‖A‖ (of the coarsest dtype of the vectors), and what the
      computed products showed of asymmetry. It is the floor below which `tol` cannot be met.

    Unconverged results are good for what the interval says, and no more.
    """

    value: jax.Array  # () or (k,), units of A
    vector: Any  # pytree like the operator's argument, unit norm; leading axis k if k > 1
    residual: jax.Array  # () or (k,), upper estimate of ‖A y − θ y‖, rounding included
    interval: Interval  # two of () or (k,)
    matvecs: jax.Array  # (), int32, products with A that were spent
    converged: jax.Array  # (), bool: residual and width of the interval are within tol · |value|

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
        advice = (
            ": only the interval is certified; raise max_matvecs, or tol if rounding is the limit"
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
