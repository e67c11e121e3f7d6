"""Single statements about a minimum, each a comparison of one number with one bound, in words.

`criteria.verdict` makes them and sums them up. Sources: Wu, Ma, E, NeurIPS 2018; Mulayoff &
Michaeli, arXiv 2306.07850, for the exact threshold; Ziyin et al., arXiv 2303.13093, for the
almost-sure exponent.
"""

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jaxstab.eigen.result import EigenResult, Interval
    from jaxstab.stability.lyapunov import LyapunovExponent
    from jaxstab.stability.threshold import MeanSquareThreshold


class Finding(NamedTuple):
    """One comparison: where the number lies and in what words.

    The side is "inside", "outside", "unclear", or "doubt": eq. 8 is known to fail or, where it is
    an equivalence, not known to hold, so that lying inside the box is not enough.
    """

    side: str
    basis: str
    text: str


def _compare(name: str, symbol: str, result: "EigenResult", bound: float, formula: str) -> Finding:
    """Compares a certified eigenvalue with an upper bound of eq. 9."""
    value, converged = float(result.value), bool(result.converged)
    lower, upper = float(result.interval.lower), float(result.interval.upper)
    known = f"{name} {symbol} = {value:.5g} in [{lower:.5g}, {upper:.5g}]"
    if math.isinf(bound):
        return Finding("inside", "theorem", f"{known}: no bound at B = n (gradient descent)")
    if not (math.isfinite(value) and lower <= upper):
        return Finding("unclear", "none", f"{known} is not a number to judge by")
    by = f"{abs(value / bound - 1):.2%}"
    limit = f"{formula} = {bound:.5g}"
    # A Rayleigh quotient bounds the eigenvalue from below whether the solver converged or not.
    if lower > bound:
        note = "" if converged else ", though not converged (the value is a lower bound)"
        return Finding("outside", "criterion", f"{known} is above {limit} by {by}{note}")
    if not converged:
        text = f"{known} has not converged, so it cannot be placed below {limit}"
        return Finding("unclear", "none", text + ": raise max_matvecs")
    if upper <= bound:
        return Finding("inside", "criterion", f"{known} is below {limit} by {by}")
    text = f"{known} straddles {limit}: measure with a smaller tol"
    return Finding("unclear", "none", text)


def sharpness_finding(result: "EigenResult", bound: float) -> Finding:
    """Compares a with 0 and with 2/η; outside is a theorem, as E x grows without limit."""
    found = _compare("sharpness", "a", result, bound, "2/eta")
    if found.side == "outside":
        return found._replace(basis="theorem", text=found.text + ": the mean iterate diverges")
    if float(result.interval.upper) < 0 and bool(result.converged):
        return Finding("outside", "theorem", "sharpness a < 0: a maximum, not a minimum")
    return found


def nonuniformity_finding(result: "EigenResult", bound: float) -> Finding:
    """Compares s with its bound; outside means that eq. 8 fails."""
    found = _compare("non-uniformity", "s", result, bound, "sqrt(1/pi(B))/eta")
    if found.side == "outside":
        text = found.text + (
            ": eq. 8 fails, some direction grows in mean square in one step; with more than one "
            "parameter this is the criterion of the paper, not a proof of escape"
        )
        return found._replace(text=text)
    return found


def growth_finding(growth: "EigenResult", slack: float) -> Finding:
    """Eq. 8 by its eigenvalue, which proves stability and, for p > 1, never instability."""
    lower, upper = float(growth.interval.lower), float(growth.interval.upper)
    text = f"eq. 8: its largest eigenvalue is in [{lower:.6g}, {upper:.6g}]"
    if not bool(growth.converged):
        return Finding("unclear", "none", text + ", not converged")
    if upper <= 1:
        return Finding("inside", "theorem", text + ": E |x|^2 never grows")
    if lower > 1 + slack:
        text += ": eq. 8 fails; it is sufficient, so this alone is no proof of escape"
        return Finding("doubt", "none", text)
    # Along flat directions the eigenvalue is exactly 1, and where training stopped just short of a
    # minimum slightly more: no numerical upper bound is at most 1 there.
    text += f": E |x|^2 grows at most by a factor {upper:.6g} each step"
    return Finding("unclear", "none", text)


def threshold_finding(threshold: "Interval", eta: float) -> Finding:
    """The exact mean-square threshold, known between two bounds: an equivalence for PSD H_i."""
    lower, upper = float(threshold.lower), float(threshold.upper)
    text = f"mean-square threshold on the learning rate in [{lower:.5g}, {upper:.5g}]"
    if eta > upper:
        return Finding("outside", "theorem", text + ": E |x|^2 diverges")
    if eta <= lower:
        return Finding("inside", "theorem", text + ": E |x|^2 stays bounded")
    return Finding("unclear", "none", text + f" straddles eta = {eta:g}")


def chain_finding(threshold: "MeanSquareThreshold", eta: float, batch_size: int) -> Finding:
    """The chain of bounds in order, and between which two of them the learning rate lies."""
    i = threshold.index(batch_size)
    lower, upper = float(threshold.interval.lower[i]), float(threshold.interval.upper[i])
    value = float(threshold.value[i])
    chain = [(name, float(bound[i])) for name, bound in threshold.bounds.items()]
    chain.insert(2, ("exact", value))
    shown = " ≤ ".join(f"{name} {bound:.4g}" for name, bound in chain)
    text = f"thresholds on the learning rate at B = {batch_size}: {shown}"
    if eta > upper:
        passed = [name for name, bound in chain if bound < eta][-1]
        return Finding("outside", "theorem", f"{text}; eta is above {passed}: E |x|^2 diverges")
    if eta <= lower:
        held = next(name for name, bound in chain if bound >= eta)
        text += f"; eta is below {held}: E |x|^2 stays bounded"
        return Finding("inside", "theorem", text)
    if threshold.converged[i] and eta <= value:
        text += f"; eta is below the computed threshold, above its certified end {lower:.4g}"
        return Finding("inside", "estimate", text)
    return Finding("unclear", "none", f"{text}; eta is within [{lower:.5g}, {upper:.5g}]")


def exponent_finding(exponent: "LyapunovExponent") -> Finding:
    """The almost-sure exponent: growth in almost every run, or in almost none."""
    text = (
        f"almost-sure exponent {float(exponent.value):.3g} ± {float(exponent.standard_error):.2g} "
        f"a step, resolution {float(exponent.resolution):.2g}: "
    )
    if exponent.sign > 0:
        return Finding("outside", "estimate", text + "almost every run grows")
    if exponent.sign < 0:
        return Finding("decays", "estimate", text + "almost every run decays")
    return Finding("flat", "none", text + "not told apart from 0")
