"""Which side of which bound: the box of eq. 9, margins, and the verdict on a measured minimum.

Everything here is arithmetic on a handful of numbers on the host. Eq. 8 itself, which needs
products with the Hessian, is in `growth`; the exact mean-square threshold is in `exact`.

Source: Wu, Ma, E, "How SGD selects the global minima", NeurIPS 2018 ("the paper" below).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np

from jaxstab.checks import check_at_least, check_batch_size, check_name, check_positive
from jaxstab.stability.findings import (
    Finding,
    chain_finding,
    exponent_finding,
    growth_finding,
    nonuniformity_finding,
    sharpness_finding,
    threshold_finding,
)

if TYPE_CHECKING:
    from jaxstab.eigen.result import EigenResult, Interval
    from jaxstab.measurement import Measurement
    from jaxstab.stability.lyapunov import LyapunovExponent
    from jaxstab.stability.threshold import MeanSquareThreshold

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
    check_batch_size(batch_size, n, replacement=replacement)
    if replacement:
        return 1 / batch_size
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
    "theorem" for the linearised dynamics, "estimate" when it follows a computed threshold or
    exponent short of its certified end, "criterion" when it follows eq. 9 of the paper, which in
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
    statement: str = ""
    """Where the exact threshold or the exponent was given: "stable in mean square", "unstable in
    mean square, stable almost surely (bursts)", "unstable in mean square" or "unstable almost
    surely"; else empty."""

    def __str__(self) -> str:
        how = {
            "theorem": " (a theorem for the linearised dynamics)",
            "estimate": " (by a computed value, short of its certified end)",
            "criterion": " (by the criterion of eq. 9)",
            "none": "",
        }[self.basis]
        head = (
            f"{self.status}{how} at learning rate {self.learning_rate:g}, "
            f"batch size {self.batch_size} of {self.n}"
        )
        head += f": {self.statement}" if self.statement else ""
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])


def _one_parameter_finding(
    sharpness: "EigenResult", nonuniformity: "EigenResult", eta: float, pi: float
) -> Finding:
    """Eq. 8 for p = 1, where it is sufficient and necessary: (1 - η a)² + η² π s² ≤ 1."""
    a = (float(sharpness.interval.lower), float(sharpness.interval.upper))
    s = (float(nonuniformity.interval.lower), float(nonuniformity.interval.upper))
    options: dict[str, float] = {"learning_rate": eta, "variance_factor": pi}
    nearest = min(max(1 / eta, a[0]), a[1])  # where (1 - eta x)^2 is least
    lower = growth_along(nearest, s[0] ** 2, **options)
    upper = max(growth_along(x, s[1] ** 2, **options) for x in a)
    text = f"one parameter: E x^2 multiplies by a factor in [{lower:.5g}, {upper:.5g}] each step"
    if lower > 1:
        return Finding("outside", "theorem", text)
    if upper <= 1 and bool(sharpness.converged) and bool(nonuniformity.converged):
        return Finding("inside", "theorem", text)
    return Finding("doubt", "none", text + ", not settled by this measurement")


def _statement(mean_square: list[Finding], exponent: list[Finding]) -> str:
    """Which of the three kinds of stability it is, as far as it is known."""
    typical = exponent[0].side if exponent else ""
    if typical == "outside":
        return "unstable almost surely"
    side = mean_square[0].side if mean_square else ""
    if side == "outside":
        return "unstable in mean square" + (
            ", stable almost surely (bursts)" if typical == "decays" else ""
        )
    return "stable in mean square" if side == "inside" else ""


def _combine(box_findings: list[Finding], exact: list[Finding]) -> tuple[str, str]:
    """Returns status and basis: what is exact decides where it can, then the box of eq. 9.

    A theorem outranks an estimate, and that a criterion; a proof of stability by eq. 8 or by the
    exact threshold implies a ≤ 2/η, so two theorems cannot contradict each other.
    """
    everything = box_findings + exact
    for basis in ("theorem", "estimate"):
        for side, status in (("outside", "unstable"), ("inside", "stable")):
            pool = everything if side == "outside" else exact
            if any(f.side == side and f.basis == basis for f in pool):
                return status, basis
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
    threshold: "MeanSquareThreshold | Interval | None" = None,
    exponent: "LyapunovExponent | None" = None,
    growth_slack: float = 1e-2,
    loss_left_tol: float = 1e-3,
) -> Verdict:
    """Says whether SGD can stay at a measured minimum, why, and by what margin.

    The statements, from strong to weak, about SGD linearised at the minimum:

    - a > 2/η: unstable, a theorem; the mean iterate diverges, whatever the batch size.
    - eq. 8 by its eigenvalue (`growth`) at most 1: stable in mean square, a theorem.
    - learning rate on one side of the exact mean-square `threshold`: a theorem for PSD H_i. With
      the result of `mean_square_threshold` the whole chain of bounds is printed in order.
    - almost-sure `exponent` above 0: unstable in almost every run; below 0 where the mean square
      diverges: rare bursts carry it, and a typical run stays.
    - one parameter: eq. 8 is sufficient and necessary, so the verdict is exact.
    - s above its bound: eq. 8 fails. More than one parameter: the paper's criterion, no proof.
    - inside the box of eq. 9: "stable" by the paper's criterion, a necessary condition of eq. 8.

    It is undecided where an interval straddles a bound, where a number that would have to lie
    below a bound has not converged, where the point is no minimum, and for a loss of cross-entropy
    kind inside the box: its Hessian vanishes with the loss, so the quadratic analysis does not
    apply there (the paper's Fig. 4). That the Hessian has no negative eigenvalue is taken for
    granted: neither a nor s would show one, and a saddle with no gradient passes for a minimum.

    Args:
      measurement: from `jaxstab.measure`.
      learning_rate: η.
      batch_size: B.
      replacement: whether batches are drawn with replacement.
      loss_kind: "squared", "cross_entropy" or "kl".
      growth: largest eigenvalue of eq. 8 from `one_step_growth` at this η and B.
      threshold: from `mean_square_threshold`, computed for this B among others; or lower and upper
        bounds of the exact threshold from `exact`.
      exponent: from `lyapunov_exponent` at this η and B.
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
        sharpness_finding(a, bounds.sharpness),
        nonuniformity_finding(s, bounds.nonuniformity),
    ]
    exact = []
    if sum(np.size(leaf) for leaf in jax.tree.leaves(a.vector)) == 1:
        exact.append(_one_parameter_finding(a, s, learning_rate, pi))
    if growth is not None:
        exact.append(growth_finding(growth, growth_slack))
    mean_square, typical = [], []
    if threshold is not None:
        if hasattr(threshold, "bounds"):
            chain = cast("MeanSquareThreshold", threshold)
            if (chain.n, chain.replacement) != (n, replacement):
                raise ValueError(
                    f"the threshold is for n = {chain.n}, replacement {chain.replacement}; "
                    f"the verdict for n = {n}, {replacement}"
                )
            mean_square.append(chain_finding(chain, learning_rate, batch_size))
        else:
            mean_square.append(threshold_finding(cast("Interval", threshold), learning_rate))
    if exponent is not None:
        typical.append(exponent_finding(exponent))
    exact += mean_square + typical
    status, basis = _combine(in_box, exact)
    # a > 2/η is unstable in mean square, threshold or not; a typical run may decay all the same
    beyond = in_box[:1] if mean_square + typical and in_box[0].side == "outside" else []
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
        statement=_statement(beyond or mean_square, typical) if status != "undecided" else "",
    )
