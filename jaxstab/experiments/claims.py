"""Claims of the papers beside what was measured, reported as they came out."""

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

from jaxstab.checks import check_name
from jaxstab.experiments.statistics import Estimate

KINDS = ("theorem", "observation")
STATUSES = ("holds", "does not hold", "inconclusive")
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
RELATIONS = (*_COMPARISONS, "=")

Kind = Literal["theorem", "observation"]
Status = Literal["holds", "does not hold", "inconclusive"]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper beside what was measured; made by `claim`.

    A theorem must hold, and a test asserts it; an observation may fail on small data.

    Attributes:
      name: short identifier, unique within an experiment.
      statement: the claim in one sentence.
      kind: "theorem" or "observation".
      statistic: what was computed, in words, with its unit.
      predicted: predicted value or bound (number, or text such as "<= 1").
      measured: measured value.
      uncertainty: its interval and where that comes from; None for a number that is exact.
      status: "holds", "does not hold" or "inconclusive".
    """

    name: str
    statement: str
    kind: Kind
    statistic: str
    predicted: Any
    measured: Any
    uncertainty: Any
    status: Status

    def __post_init__(self):
        check_name("kind of claim", self.kind, KINDS)
        check_name("status of a claim", self.status, STATUSES)


def claim(
    name: str,
    statement: str,
    statistic: str,
    measured: Estimate | float,
    relation: str,
    target: float | None,
    *,
    within: float = 0.0,
    kind: Kind = "observation",
) -> Claim:
    """Returns a claim with its status, told from the whole interval of what was measured.

    It holds if every value in the interval satisfies `measured relation target`, does not hold if
    none does, and is inconclusive otherwise, on NaN, and without a target.

    Args:
      name: short identifier, unique within an experiment.
      statement: the claim in one sentence.
      statistic: what was computed, in words, with its unit.
      measured: an estimate, or a number that is exact (its interval is a point).
      relation: "<", "<=", ">", ">=" or "=".
      target: predicted value or bound; None if the theory predicts nothing here.
      within: how far from the target still counts, absolute: for "=" to both sides, for the others
        on the forbidden side (rounding, say).
      kind: "theorem" or "observation".

    Raises:
      ValueError: if the relation or the kind is unknown, or `within` is negative.

    Example:
      >>> ratio = Estimate(0.97, 0.95, 0.99, "95 %, over 5 seeds")
      >>> claim("edge", "GD ends at the edge", "a / (2/η)", ratio, "=", 1, within=0.1).status
      'holds'
      >>> claim("edge", "GD ends at the edge", "a / (2/η)", ratio, ">", 0.96).status
      'inconclusive'
    """
    check_name("relation", relation, RELATIONS)
    if not within >= 0:
        raise ValueError(f"within must not be negative, got {within}")
    estimate = measured if isinstance(measured, Estimate) else Estimate.exact(measured)
    return Claim(
        name=name,
        statement=statement,
        kind=kind,
        statistic=statistic,
        predicted=_predicted(relation, target, within),
        measured=estimate.value,
        uncertainty=_uncertainty(estimate) if isinstance(measured, Estimate) else None,
        status=_status(estimate, relation, target, within),
    )


def _status(estimate: Estimate, relation: str, target: float | None, within: float) -> Status:
    low, high = estimate.lower, estimate.upper
    if target is None or any(math.isnan(x) for x in (estimate.value, low, high)):
        return "inconclusive"
    if relation == "=":
        every = target - within <= low and high <= target + within
        none = high < target - within or low > target + within
    else:
        satisfies = _COMPARISONS[relation]
        bound = target + within if relation.startswith("<") else target - within
        every = satisfies(low, bound) and satisfies(high, bound)
        none = not satisfies(low, bound) and not satisfies(high, bound)
    return "holds" if every else "does not hold" if none else "inconclusive"


def _predicted(relation: str, target: float | None, within: float) -> Any:
    if target is None:
        return "nothing"
    if relation == "=":
        return f"{target:.6g} ± {within:.6g}" if within else float(target)
    return f"{relation} {target:.6g}" + (f" (+ {within:.2g})" if within else "")


def _uncertainty(estimate: Estimate) -> dict[str, Any]:
    return {"interval": [estimate.lower, estimate.upper], "how": estimate.how}
