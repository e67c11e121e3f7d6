"""Asymmetric valleys: what He, Huang, Yuan (NeurIPS 2019, arXiv 1902.00744) define, from slices.

Everything here is arithmetic on curves that `jaxstab.landscape.slice` has computed: no loss is
evaluated again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxstab.checks import check_at_least, check_positive
from jaxstab.landscape.slices import Slice

Array = jax.Array


class Asymmetry(NamedTuple):
    """The (r, p, c, ζ) of definition 1 that a direction satisfies, for one ζ and every r.

    With flat side σ = +1 or −1, the direction σu is (r, p', c', ζ)-asymmetric exactly for those
    p' > p(r) and c' > 1 with c' p' < c(r) p(r).

    Attributes:
      r: radii, shape (R,), increasing, above ζ.
      zeta: ζ.
      p: supremum of the slope on the flat side over (ζ, r), at least 0, shape (..., R).
      c: infimum of the slope on the sharp side over p, shape (..., R): the supremum of the c that
        the definition admits. Infinite where the flat side does not rise; 1 where the direction is
        asymmetric to neither side.
      flat_side: the sign σ, shape (..., R), int: 0 where c = 1.
      sharp_slope: infimum of the slope on the sharp side over (ζ, r), shape (..., R).
    """

    r: Array
    zeta: float
    p: Array
    c: Array
    flat_side: Array
    sharp_slope: Array


class FlatSide(NamedTuple):
    """The valley that a slice crosses, and how far towards its flat side points lie.

    Attributes:
      bottom: position of the smallest loss of the slice, shape (...).
      flat_side: sign of the direction in which the loss rises more slowly, int, shape (...).
      ratio: rise at the same distance on the sharp side over that on the flat side, ≥ 1.
      distance: the distance d at which the two are compared: the largest that the slice has on both
        sides of the bottom; 0 if the bottom is an end of the slice, and then flat_side is 0.
      bias: flat_side · (position − bottom) for the positions asked for, shape (..., K): positive on
        the flat side.
    """

    bottom: Array
    flat_side: Array
    ratio: Array
    distance: Array
    bias: Array


class Probability(NamedTuple):
    """A fraction with its interval: value, lower, upper; so many successes of total."""

    value: float
    lower: float
    upper: float
    successes: int
    total: int


def asymmetry(line: Slice, *, zeta: float = 0.0) -> Asymmetry:
    """Returns the (r, p, c, ζ) that a direction satisfies (He, Huang, Yuan 2019, definition 1).

    u is (r, p, c, ζ)-asymmetric at w, with p > 0, r > ζ > 0 and c > 1, if for all l in (ζ, r) the
    slope of the loss moving away from w along +u is below p and along −u above c·p. So the sharp
    side rises more than c times as fast, everywhere between ζ and r. Both orientations are tried.

    The slopes are those of the slice, by automatic differentiation, at its positions: "for all l"
    is for all of those, ζ < l ≤ r. The finer the slice, the less can hide between them.

    Args:
      line: a `Slice` with slopes (`derivatives=1`) whose positions include −l for every l; along
        one or several directions.
      zeta: ζ ≥ 0; positions within it do not count.

    Returns:
      `Asymmetry`, a curve over all radii r of the slice above ζ.

    Raises:
      ValueError: if the slice has no slopes, its positions are not symmetric, or none is above ζ.

    Example:
      >>> import jaxstab as js
      >>> def loss(w, x):
      ...     return x * jnp.where(w > 0, 0.5 * w, -2.0 * w)
      >>> line = js.landscape.slice(loss, jnp.array(0.0), jnp.ones(1), direction=jnp.array(1.0),
      ...                           positions=jnp.linspace(-3, 3, 7), derivatives=1)
      >>> found = asymmetry(line)
      >>> float(found.p[-1]), float(found.c[-1]), int(found.flat_side[-1])
      (0.5, 4.0, 1)
    """
    if line.slope is None:
        raise ValueError("the slice has no slopes: make it with derivatives=1")
    check_positive("zeta", zeta, allow_zero=True)
    positions = np.asarray(line.positions, np.float64)
    tolerance = 1e-5 * np.abs(positions).max()
    forward = np.flatnonzero(positions > max(zeta, tolerance))
    if forward.size == 0:
        raise ValueError(f"no position of the slice is above zeta = {zeta}")
    distances = np.abs(positions[:, None] + positions[None, forward])
    if (distances.min(axis=0) > tolerance).any():
        raise ValueError(
            "definition 1 compares l with −l: give a slice at symmetric positions, such as "
            "jnp.linspace(-r, r, 201)"
        )
    plus = line.slope[..., forward]
    minus = -line.slope[..., distances.argmin(axis=0)]
    # over (ζ, r) for every r at once
    highest = [jax.lax.cummax(x, axis=x.ndim - 1) for x in (plus, minus)]
    lowest = [jax.lax.cummin(x, axis=x.ndim - 1) for x in (minus, plus)]
    ratios = [_ratio(low, high) for low, high in zip(lowest, highest, strict=True)]
    side = jnp.where(ratios[0] > 1, 1, jnp.where(ratios[1] > 1, -1, 0))

    def chosen(to_plus: Array, to_minus: Array) -> Array:
        return jnp.where(side < 0, to_minus, to_plus)

    return Asymmetry(
        r=line.positions[forward],
        zeta=float(zeta),
        p=jnp.maximum(chosen(*highest), 0),
        c=jnp.where(side == 0, 1.0, chosen(*ratios)),
        flat_side=side,
        sharp_slope=chosen(*lowest),
    )


def _ratio(low: Array, high: Array) -> Array:
    """low/high where both sides rise, infinite where only the sharp one does, else 0."""
    safe = jnp.where(high > 0, high, 1)
    return jnp.where(low <= 0, 0.0, jnp.where(high > 0, low / safe, jnp.inf))


class Extent(NamedTuple):
    """The longest (ζ, r) over which a direction is asymmetric with a given c.

    Attributes:
      zeta: ζ, shape (...).
      r: its r, shape (...); equal to ζ where there is none.
      p: supremum of the slope on the flat side over (ζ, r).
      flat_side: its sign, 0 where there is none.
    """

    zeta: Array
    r: Array
    p: Array
    flat_side: Array


def longest_asymmetry(line: Slice, *, c: float) -> Extent:
    """Returns the longest interval (ζ, r) for which a direction is (r, p, c, ζ)-asymmetric.

    Definition 1 admits many (ζ, r): in a curved valley the slopes grow with the distance, so that
    the smallest of the sharp side at ζ against the largest of the flat side at r falls as r grows.
    All ζ and r of the slice are tried, with r − ζ as the length.

    Args:
      line: as for `asymmetry`.
      c: the ratio, above 1.

    Returns:
      `Extent`.

    Raises:
      ValueError: as `asymmetry`; or if c ≤ 1.

    Example:
      >>> l = jnp.arange(-3.0, 4.0)
      >>> found = longest_asymmetry(Slice(l, l, slope=jnp.where(l > 0, 1.0, -jnp.abs(l))), c=1.9)
      >>> float(found.zeta), float(found.r), int(found.flat_side)
      (1.0, 3.0, 1)
    """
    if not c > 1:
        raise ValueError(f"c must be above 1, got {c!r}: at 1 every symmetric valley would count")
    positions = np.asarray(line.positions)
    starts = [0.0, *positions[positions > 0][:-1]]
    best: dict[str, Any] = {}
    for zeta in starts:
        found = asymmetry(line, zeta=float(zeta) * (1 + 1e-6))
        holds = np.asarray(found.c > c)
        # c(r) only falls as r grows on one side, so those that hold come first
        last = holds.cumprod(-1).sum(-1)
        index = np.maximum(last - 1, 0)[..., None]
        r = np.where(last > 0, np.asarray(found.r)[index[..., 0]], zeta)
        p, side = (np.take_along_axis(np.asarray(x), index, -1)[..., 0]
                   for x in (found.p, found.flat_side))  # fmt: skip
        own = {"zeta": np.full(r.shape, zeta), "r": r, "p": p, "flat_side": side * (last > 0)}
        longer = (r - zeta > best["r"] - best["zeta"]) if best else np.ones(r.shape, bool)
        best = {name: np.where(longer, x, best.get(name, x)) for name, x in own.items()}
    return Extent(**{name: jnp.asarray(x) for name, x in best.items()})


def is_asymmetric(found: Asymmetry, *, r: float, c: float, p: float | None = None) -> Array:
    """Returns whether a direction is (r, p, c, ζ)-asymmetric, to one side or the other.

    Definition 2: a minimum is an asymmetric valley if it has at least one such direction. Some
    c > 1 on some short (ζ, r) is nearly always found; what is informative is a large c that holds
    to a large r.

    Args:
      found: from `asymmetry`; gives ζ.
      r: the radius; the last one of the slice that does not exceed it counts.
      c: the ratio, above 1.
      p: the slope; any by default.

    Returns:
      bools, shape (...) without the axis of radii.

    Raises:
      ValueError: if c ≤ 1 or no radius of the slice is at most r.
    """
    if not c > 1:
        raise ValueError(f"c must be above 1, got {c!r}: at 1 every symmetric valley would count")
    i = int(np.searchsorted(np.asarray(found.r), r * (1 + 1e-5), side="right")) - 1
    if i < 0:
        raise ValueError(f"r = {r} is below the smallest radius, {float(found.r[0])}")
    holds = found.c[..., i] > c
    if p is None:
        return holds
    check_positive("p", p)
    return holds & (found.p[..., i] < p) & (found.sharp_slope[..., i] > c * p)


def probability(outcomes: Any, *, confidence: float = 0.95) -> Probability:
    """Returns the fraction of True with its Clopper–Pearson interval.

    Exact for independent outcomes, such as directions drawn independently at one minimum; over
    several minima the units are the minima.

    Args:
      outcomes: bools of any shape.
      confidence: of the two-sided interval, in (0, 1).

    Example:
      >>> found = probability([True] * 8 + [False] * 2)
      >>> found.value, round(found.lower, 3), round(found.upper, 3)
      (0.8, 0.444, 0.975)
    """
    flags = np.asarray(outcomes, bool).ravel()
    total = check_at_least("the number of outcomes", int(flags.size), 1)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")
    count = int(flags.sum())
    tail = (1 - confidence) / 2
    lower = scipy.stats.beta.ppf(tail, count, total - count + 1) if count else 0.0
    upper = scipy.stats.beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return Probability(count / total, float(lower), float(upper), count, total)


def flat_side(line: Slice, *, at: Any = (0.0, 1.0), distance: float | None = None) -> FlatSide:
    """Returns which side of its valley is flat along a slice, and which points lie on it.

    For an interpolation between two solutions at positions 0 and 1 (`between`): the bias of each
    towards the flat side, and so of one relative to the other, in units of their distance. The
    sides are compared at the largest common distance d from the bottom: (L(b ± d) − L(b)), whose
    ratio is the c of definition 1 for mean slopes.

    Args:
      line: a `Slice`; of training loss, and at least three positions.
      at: positions of the solutions, shape (K,).
      distance: d; the largest that fits by default. A smaller one looks nearer at the bottom.

    Returns:
      `FlatSide`.

    Raises:
      ValueError: if there are fewer than three positions, or d is not positive.

    Example:
      >>> l = jnp.linspace(-2, 3, 51)
      >>> found = flat_side(Slice(l, jnp.where(l > 0.5, l - 0.5, 3 * (0.5 - l))))
      >>> int(found.flat_side), round(float(found.ratio), 3), found.bias.round(3).tolist()
      (1, 3.0, [-0.5, 0.5])
    """
    if distance is not None:
        check_positive("distance", distance)
    positions = np.asarray(line.positions, np.float64)
    check_at_least("the number of positions", positions.size, 3)
    losses = np.asarray(line.loss, np.float64)
    at = np.atleast_1d(np.asarray(at, np.float64))
    curves = losses.reshape(-1, positions.size)
    rows = [_sides(positions, curve, distance) for curve in curves]
    bottom, side, ratio, used = (np.array(column) for column in zip(*rows))
    bias = side[:, None] * (at[None] - bottom[:, None])
    shape = losses.shape[:-1]
    return FlatSide(
        jnp.asarray(bottom.reshape(shape)),
        jnp.asarray(side.reshape(shape)),
        jnp.asarray(ratio.reshape(shape)),
        jnp.asarray(used.reshape(shape)),
        jnp.asarray(bias.reshape(*shape, -1)),
    )


def bump(line: Slice, *, between: tuple[float, float] = (0.0, 1.0)) -> Array:
    """Returns by how much the loss between two positions exceeds that at both of them, at least 0.

    "No bump" between two solutions says that they lie in one valley. A loss that only rises from
    one to the other has none.

    Args:
      line: a `Slice` through both.
      between: their positions.

    Returns:
      shape (...), without the axis of positions.

    Raises:
      ValueError: if the slice does not reach both positions.

    Example:
      >>> l = jnp.linspace(-1, 2, 31)
      >>> [round(float(bump(Slice(l, curve))), 3) for curve in (-l, 16 * l**2 * (l - 1)**2)]
      [0.0, 1.0]
    """
    positions = np.asarray(line.positions, np.float64)
    low, high = between
    if not positions[0] - 1e-6 <= low < high <= positions[-1] + 1e-6:
        raise ValueError(
            f"the slice covers [{positions[0]:.4g}, {positions[-1]:.4g}], not {between}: make it "
            "longer"
        )
    losses = np.asarray(line.loss, np.float64)
    curves = losses.reshape(-1, positions.size)
    inside = (positions > low) & (positions < high)
    ends = np.array([np.interp([low, high], positions, curve).max() for curve in curves])
    highest = np.max(curves[:, inside], axis=1, initial=-np.inf)
    return jnp.asarray(np.maximum(highest - ends, 0).reshape(losses.shape[:-1]))


def _sides(
    positions: np.ndarray, curve: np.ndarray, distance: float | None
) -> tuple[float, int, float, float]:
    finite = np.where(np.isfinite(curve), curve, np.inf)
    bottom = positions[finite.argmin()]
    room = min(bottom - positions[0], positions[-1] - bottom)
    used = room if distance is None else min(distance, room)
    if used <= 0:
        return bottom, 0, 1.0, 0.0
    down, up = np.interp([bottom - used, bottom + used], positions, curve) - finite.min()
    low, high = min(up, down), max(up, down)
    ratio = high / low if low > 0 else np.inf if high > 0 else 1.0
    return bottom, int(np.sign(down - up)), ratio, used
