"""Which side of which bound: the box of eq. 9, margins, and the verdict on a measured minimum.

Everything here is arithmetic on a handful of numbers on the host. Eq. 8 itself, which needs
products with the Hessian, is in `growth`; the exact mean-square threshold is in `exact`.

Source: Wu, Ma, E, "How SGD selects the global minima", NeurIPS 2018 ("the paper" below).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxstab.checks import check_at_least, check_batch_size, check_name, check_positive

if TYPE_CHECKING:
    from jaxstab.eigen.result import EigenResult, Interval
    from jaxstab.measurement import Measurement

LOSS_KINDS = ("squared", "cross_entropy", "kl")


def variance_factor(n: int, batch_size: int, replacement: bool = False) -> float:
    """Returns π(B), the variance of a batch mean in units of the variance of one example.

    Without replacement π(B) = (n - B) / (B (n - 1)), which is 0 at B = n (gradient descent);
    with replacement π(B) = 1 / B. See eq. 8 of the paper.

    Args:
      n: number of examples.
      batch_size: B, in 1..n (any B ≥ 1 with replacement).
      replacement: whether a batch may hold an example more than once.

    Raises:
      ValueError: if B is below 1, or above n without replacement.

    Example:
      >>> variance_factor(1000, 10)
      0.0990990990990991
      >>> variance_factor(1000, 1000)
      0.0
    """
    check_at_least("n", n, 1)
    if replacement:
        return 1 / check_at_least("batch_size", batch_size, 1)
    check_batch_size(batch_size, n)
    return 0.0 if batch_size == n else (n - batch_size) / (batch_size * (n - 1))


def growth_along(curvature: Any, variance: Any, *, learning_rate: Any, variance_factor: Any) -> Any:
    """Returns (1 − ηh)² + η²π Var, the factor of E (vᵀx)² in one step of SGD from x along v.

    For one parameter it is the left side of eq. 8 of the paper, the mean-square growth itself; in
    more it is a lower bound of it, and the Rayleigh quotient of the moment map at vvᵀ.

    Args:
      curvature: h = vᵀHv, of any shape.
      variance: Var_i(vᵀH_i v) over the examples, broadcast against it.
      learning_rate: η.
      variance_factor: π(B), from `variance_factor`.

    Example:
      >>> growth_along(2.0, 1.0, learning_rate=0.5, variance_factor=1.0)
      0.25
    """
    return (1 - learning_rate * curvature) ** 2 + learning_rate**2 * variance_factor * variance


class Box(NamedTuple):
    """Upper bounds of eq. 9, in units of 1/step size."""

    sharpness: float
    """2 / η, the bound on a = λ_max(H)."""
    nonuniformity: float
    """1 / (η sqrt(π(B))), the bound on s = sqrt(λ_max(Σ)); infinite at B = n."""


def box(learning_rate: float, batch_size: int, n: int, replacement: bool = False) -> Box:
    """Returns the box of eq. 9: 0 ≤ a ≤ 2/η and 0 ≤ s ≤ (1/η) sqrt(B (n-1) / (n-B)).

    A minimum outside the box violates eq. 8. A minimum inside may still violate it.

    Args:
      learning_rate: η.
      batch_size: B.
      n: number of examples.
      replacement: whether batches are drawn with replacement (then s ≤ sqrt(B)/η).

    Raises:
      ValueError: if the learning rate is not positive or the batch size is not in 1..n.

    Example:
      >>> box(0.5, 100, 100)
      Box(sharpness=4.0, nonuniformity=inf)
    """
    check_positive("learning_rate", learning_rate)
    pi = variance_factor(n, batch_size, replacement)
    return Box(2 / learning_rate, 1 / (learning_rate * math.sqrt(pi)) if pi else math.inf)


class Margins(NamedTuple):
    """How far inside eq. 9, relative to the bound: positive inside, negative outside."""

    sharpness: np.ndarray
    """1 - a / (2/η)."""
    nonuniformity: np.ndarray
    """1 - s / (its bound); 1 where there is no bound (B = n)."""

    @property
    def inside(self) -> np.ndarray:
        """Whether both margins are non-negative and a itself is not negative."""
        return (self.sharpness >= 0) & (self.sharpness <= 1) & (self.nonuniformity >= 0)


def margins(
    sharpness: Any,
    nonuniformity: Any,
    *,
    learning_rate: Any,
    batch_size: Any,
    n: int,
    replacement: bool = False,
) -> Margins:
    """Returns the relative margins of many minima at once, for tables and figures.

    Args:
      sharpness: a, any shape.
      nonuniformity: s, broadcast against a.
      learning_rate: η, broadcast likewise.
      batch_size: B, broadcast likewise.
      n: number of examples.
      replacement: whether batches are drawn with replacement.

    Raises:
      ValueError: as `box`, for any of the entries.

    Example:
      >>> margins([3.0, 5.0], 1.0, learning_rate=0.5, batch_size=4, n=1000).sharpness
      array([ 0.25, -0.25])
    """
    a, s, eta, batch = np.broadcast_arrays(
        np.asarray(sharpness, float), np.asarray(nonuniformity, float), learning_rate, batch_size
    )
    boxes = [box(float(e), b.item(), n, replacement) for e, b in zip(eta.ravel(), batch.ravel())]
    bounds = np.array(boxes, float).reshape(*a.shape, 2)
    return Margins(1 - a / bounds[..., 0], 1 - s / bounds[..., 1])


@dataclass(frozen=True)
class Verdict:
    """What the linear theory says about SGD at a measured minimum.

    `status` is "stable", "unstable" or "undecided". `basis` says how much that is worth:
    "theorem" for the linearised dynamics, "criterion" when it follows eq. 9 of the paper, which in
    more than one dimension is necessary for the sufficient condition eq. 8, or "none".
    """

    status: str
    basis: str
    reasons: tuple[str, ...]
    sharpness: float
    """a, 1/step size."""
    nonuniformity: float
    """s, 1/step size."""
    sharpness_margin: float
    """1 - a / (2/η): positive inside."""
    nonuniformity_margin: float
    """1 - s / (its bound): positive inside, 1 at B = n."""
    box: Box
    learning_rate: float
    batch_size: int
    n: int

    def __str__(self) -> str:
        how = {
            "theorem": " (a theorem for the linearised dynamics)",
            "criterion": " (by the criterion of eq. 9)",
            "none": "",
        }[self.basis]
        head = (
            f"{self.status}{how} at learning rate {self.learning_rate:g}, "
            f"batch size {self.batch_size} of {self.n}"
        )
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])


class _Finding(NamedTuple):
    """One comparison: where the number lies and in what words.

    The side is "inside", "outside", "unclear", or "doubt": eq. 8 is known to fail or, where it is
    an equivalence, not known to hold, so that lying inside the box is not enough.
    """

    side: str
    basis: str
    text: str


def _compare(name: str, symbol: str, result: "EigenResult", bound: float, formula: str) -> _Finding:
    """Compares a certified eigenvalue with an upper bound of eq. 9."""
    value, converged = float(result.value), bool(result.converged)
    lower, upper = float(result.interval.lower), float(result.interval.upper)
    known = f"{name} {symbol} = {value:.5g} in [{lower:.5g}, {upper:.5g}]"
    if math.isinf(bound):
        return _Finding("inside", "theorem", f"{known}: no bound at B = n (gradient descent)")
    if not (math.isfinite(value) and lower <= upper):
        return _Finding("unclear", "none", f"{known} is not a number to judge by")
    by = f"{abs(value / bound - 1):.2%}"
    limit = f"{formula} = {bound:.5g}"
    # A Rayleigh quotient bounds the eigenvalue from below whether the solver converged or not.
    if lower > bound:
        note = "" if converged else ", though not converged (the value is a lower bound)"
        return _Finding("outside", "criterion", f"{known} is above {limit} by {by}{note}")
    if not converged:
        text = f"{known} has not converged, so it cannot be placed below {limit}"
        return _Finding("unclear", "none", text + ": raise max_matvecs")
    if upper <= bound:
        return _Finding("inside", "criterion", f"{known} is below {limit} by {by}")
    text = f"{known} straddles {limit}: measure with a smaller tol"
    return _Finding("unclear", "none", text)


def _sharpness_finding(result: "EigenResult", bound: float) -> _Finding:
    """Compares a with 0 and with 2/η; outside is a theorem, as E x grows without limit."""
    found = _compare("sharpness", "a", result, bound, "2/eta")
    if found.side == "outside":
        return found._replace(basis="theorem", text=found.text + ": the mean iterate diverges")
    if float(result.interval.upper) < 0 and bool(result.converged):
        return _Finding("outside", "theorem", "sharpness a < 0: a maximum, not a minimum")
    return found


def _nonuniformity_finding(result: "EigenResult", bound: float) -> _Finding:
    """Compares s with its bound; outside means that eq. 8 fails."""
    found = _compare("non-uniformity", "s", result, bound, "sqrt(1/pi(B))/eta")
    if found.side == "outside":
        text = found.text + (
            ": eq. 8 fails, some direction grows in mean square in one step; with more than one "
            "parameter this is the criterion of the paper, not a proof of escape"
        )
        return found._replace(text=text)
    return found


def _one_parameter_finding(
    sharpness: "EigenResult", nonuniformity: "EigenResult", eta: float, pi: float
) -> _Finding:
    """Eq. 8 for p = 1, where it is sufficient and necessary: (1 - η a)² + η² π s² ≤ 1."""
    a = (float(sharpness.interval.lower), float(sharpness.interval.upper))
    s = (float(nonuniformity.interval.lower), float(nonuniformity.interval.upper))
    options: dict[str, float] = {"learning_rate": eta, "variance_factor": pi}
    nearest = min(max(1 / eta, a[0]), a[1])  # where (1 - eta x)^2 is least
    lower = growth_along(nearest, s[0] ** 2, **options)
    upper = max(growth_along(x, s[1] ** 2, **options) for x in a)
    text = f"one parameter: E x^2 multiplies by a factor in [{lower:.5g}, {upper:.5g}] each step"
    if lower > 1:
        return _Finding("outside", "theorem", text)
    if upper <= 1 and bool(sharpness.converged) and bool(nonuniformity.converged):
        return _Finding("inside", "theorem", text)
    return _Finding("doubt", "none", text + ", not settled by this measurement")


def _growth_finding(growth: "EigenResult", slack: float) -> _Finding:
    """Eq. 8 by its eigenvalue, which proves stability and, for p > 1, never instability."""
    lower, upper = float(growth.interval.lower), float(growth.interval.upper)
    text = f"eq. 8: its largest eigenvalue is in [{lower:.6g}, {upper:.6g}]"
    if not bool(growth.converged):
        return _Finding("unclear", "none", text + ", not converged")
    if upper <= 1:
        return _Finding("inside", "theorem", text + ": E |x|^2 never grows")
    if lower > 1 + slack:
        text += ": eq. 8 fails; it is sufficient, so this alone is no proof of escape"
        return _Finding("doubt", "none", text)
    # Along flat directions the eigenvalue is exactly 1, and where training stopped just short of a
    # minimum slightly more: no numerical upper bound is at most 1 there.
    text += f": E |x|^2 grows at most by a factor {upper:.6g} each step"
    return _Finding("unclear", "none", text)


def _threshold_finding(threshold: "Interval", eta: float) -> _Finding:
    """The exact mean-square threshold, known between two bounds: an equivalence for PSD H_i."""
    lower, upper = float(threshold.lower), float(threshold.upper)
    text = f"mean-square threshold on the learning rate in [{lower:.5g}, {upper:.5g}]"
    if eta > upper:
        return _Finding("outside", "theorem", text + ": E |x|^2 diverges")
    if eta <= lower:
        return _Finding("inside", "theorem", text + ": E |x|^2 stays bounded")
    return _Finding("unclear", "none", text + f" straddles eta = {eta:g}")


def _combine(box_findings: list[_Finding], exact: list[_Finding]) -> tuple[str, str]:
    """Returns status and basis: what is exact decides where it can, then the box of eq. 9.

    A theorem outranks a criterion; a proof of stability by eq. 8 or by the exact threshold
    implies a ≤ 2/η, so two theorems cannot contradict each other.
    """
    everything = box_findings + exact
    for side, status in (("outside", "unstable"), ("inside", "stable")):
        pool = everything if side == "outside" else exact
        if any(f.side == side and f.basis == "theorem" for f in pool):
            return status, "theorem"
    if any(f.side == "outside" for f in box_findings):
        return "unstable", "criterion"
    if any(f.side == "unclear" for f in box_findings) or any(f.side == "doubt" for f in exact):
        return "undecided", "none"
    return "stable", "criterion"


def _loss_left(sharpness: float, gradient_norm: float) -> float:
    """Returns |g|² / (2a): what the quadratic model says one step of size 1/a still gains."""
    if gradient_norm == 0:
        return 0.0
    return gradient_norm**2 / (2 * sharpness) if sharpness > 0 else math.inf


def verdict(
    measurement: "Measurement",
    *,
    learning_rate: float,
    batch_size: int,
    replacement: bool = False,
    loss_kind: str = "squared",
    growth: "EigenResult | None" = None,
    threshold: "Interval | None" = None,
    growth_slack: float = 1e-2,
    loss_left_tol: float = 1e-3,
) -> Verdict:
    """Says whether SGD can stay at a measured minimum, why, and by what margin.

    The statements, from strong to weak, about SGD linearised at the minimum:

    - a > 2/η: unstable, a theorem; the mean iterate diverges, whatever the batch size.
    - eq. 8 by its eigenvalue (`growth`) at most 1: stable in mean square, a theorem.
    - learning rate on one side of the exact mean-square `threshold`: a theorem for PSD H_i.
    - one parameter: eq. 8 is sufficient and necessary, so the verdict is exact.
    - s above its bound: eq. 8 fails. More than one parameter: the paper's criterion, no proof.
    - inside the box of eq. 9: "stable" by the paper's criterion, a necessary condition of eq. 8.

    It is undecided where an interval straddles a bound, where a number that would have to lie
    below a bound has not converged, where the point is no minimum, and for a loss of cross-entropy
    kind inside the box: its Hessian vanishes with the loss, so the quadratic analysis does not
    apply there (the paper's Fig. 4).

    Args:
      measurement: from `jaxstab.measure`.
      learning_rate: η.
      batch_size: B.
      replacement: whether batches are drawn with replacement.
      loss_kind: "squared", "cross_entropy" or "kl".
      growth: largest eigenvalue of eq. 8 from `one_step_growth` at this η and B.
      threshold: lower and upper bounds of the exact threshold from `exact`.
      growth_slack: how far above 1 `growth` may be before it casts doubt on a point in the box.
      loss_left_tol: the point counts as a minimum if |g|²/(2a), the loss that one gradient step
        still gains in the quadratic model, is at most this (units of the loss).

    Raises:
      ValueError: for a learning rate, batch size or loss kind that cannot be.
    """
    check_name("loss kind", loss_kind, LOSS_KINDS)
    n = int(measurement.n)
    bounds = box(learning_rate, batch_size, n, replacement)
    pi = variance_factor(n, batch_size, replacement)
    a, s = measurement.sharpness, measurement.nonuniformity
    in_box = [
        _sharpness_finding(a, bounds.sharpness),
        _nonuniformity_finding(s, bounds.nonuniformity),
    ]
    exact = []
    if sum(np.size(leaf) for leaf in jax.tree.leaves(a.vector)) == 1:
        exact.append(_one_parameter_finding(a, s, learning_rate, pi))
    if growth is not None:
        exact.append(_growth_finding(growth, growth_slack))
    if threshold is not None:
        exact.append(_threshold_finding(threshold, learning_rate))
    status, basis = _combine(in_box, exact)
    warnings = []
    left = _loss_left(float(a.value), float(measurement.gradient_norm))
    if not left <= loss_left_tol:
        status, basis = "undecided", "none"
        warnings.append(
            f"not a minimum: gradient norm {float(measurement.gradient_norm):.3g}, one step would "
            f"still lower the loss by about {left:.3g}; stability is a property of minima"
        )
    if loss_kind != "squared":
        if status == "stable":
            status, basis = "undecided", "none"
        warnings.append(
            f"{loss_kind} loss: the Hessian vanishes as the loss goes to zero, so the quadratic "
            "analysis does not apply there and small a and s do not show stability"
        )
    return Verdict(
        status=status,
        basis=basis,
        reasons=tuple(warnings + [f.text for f in in_box + exact]),
        sharpness=float(a.value),
        nonuniformity=float(s.value),
        sharpness_margin=1 - float(a.value) / bounds.sharpness,
        nonuniformity_margin=1 - float(s.value) / bounds.nonuniformity,
        box=bounds,
        learning_rate=float(learning_rate),
        batch_size=int(batch_size),
        n=n,
    )
