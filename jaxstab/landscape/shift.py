"""The shift gap between training and test loss (He, Huang, Yuan 2019), from slices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_positive
from jaxstab.landscape.slices import Slice

Array = jax.Array


class ShiftGap(NamedTuple):
    """Definition 3 in one dimension.

    Attributes:
      shifts: δ, shape (S,).
      gap: ξ_δ, shape (..., S).
      ratio: ξ_δ/ξ_0, shape (..., S); NaN where ξ_0 = 0.
      best_shift: the δ with the smallest gap, shape (...).
      best_ratio: its ratio, shape (...).
    """

    shifts: Array
    gap: Array
    ratio: Array
    best_shift: Array
    best_ratio: Array


def shift_gap(line: Slice, *, radius: float, shifts: Any = None) -> ShiftGap:
    r"""Returns the shift gap ξ_δ along a slice (He, Huang, Yuan 2019, definition 3).

    .. math:: \xi_\delta = \max_{|l| \le R} |\bar L(l + \delta) - \hat L(l)|,
              \quad \bar L = L - \min L + \min \hat L

    with training loss :math:`\hat L`, test loss L, and both minima taken over the slice: the
    worst difference when the test loss is the training loss shifted by δ, up to a constant. The
    same R for all δ, so that they can be compared.

    Args:
      line: a `Slice` with `test_data`, along one or several directions.
      radius: R > 0; the slice has to reach R + |δ| for every δ.
      shifts: δ, shape (S,); by default all multiples of the spacing that the slice has room for.
        Between positions the losses are interpolated linearly; multiples of an even spacing are
        exact.

    Returns:
      `ShiftGap`.

    Raises:
      ValueError: if the slice has no test loss or is too short.

    Example:
      >>> l = jnp.arange(-3, 3.5, 0.5)
      >>> found = shift_gap(Slice(l, l**2, test_loss=(l - 0.5)**2 + 1), radius=1.0)
      >>> float(found.best_shift), float(found.best_ratio)
      (0.5, 0.0)
    """
    if line.test_loss is None:
        raise ValueError("the shift gap needs a test loss: make the slice with test_data")
    check_positive("radius", radius)
    positions = np.asarray(line.positions, np.float64)
    room = min(-positions[0], positions[-1]) - radius
    inside = np.flatnonzero(np.abs(positions) <= radius * (1 + 1e-6))
    if room < 0 or inside.size == 0:
        raise ValueError(
            f"the slice over [{positions[0]:.4g}, {positions[-1]:.4g}] does not reach the radius "
            f"{radius}, or has no position within it"
        )
    if shifts is None:
        spacing = float(np.diff(positions).min())
        steps = int(room / spacing + 1e-4)
        shifts = spacing * np.arange(-steps, steps + 1)
    shifts = np.atleast_1d(np.asarray(shifts, np.float64))
    if (np.abs(shifts) > room * (1 + 1e-4) + 1e-12).any():
        raise ValueError(
            f"with radius {radius} the slice has room for shifts up to {room:.4g}, got "
            f"{np.abs(shifts).max():.4g}: make it longer or the radius smaller"
        )
    train, test = (np.asarray(x, np.float64) for x in (line.loss, line.test_loss))
    if not (np.isfinite(train).all() and np.isfinite(test).all()):
        raise ValueError("the slice holds losses that are NaN or infinite: make it shorter")
    aligned = test - test.min(-1, keepdims=True) + train.min(-1, keepdims=True)
    moved = positions[inside][None] + shifts[:, None]  # (S, inside)
    flat = aligned.reshape(-1, positions.size)
    at = np.stack([np.interp(moved, positions, curve) for curve in flat])
    gap = np.abs(at - train.reshape(-1, 1, positions.size)[..., inside]).max(-1)
    zero = np.stack([np.interp(positions[inside], positions, curve) for curve in flat])
    own = np.abs(zero - train.reshape(-1, positions.size)[:, inside]).max(-1, keepdims=True)
    ratio = np.divide(gap, own, out=np.full(gap.shape, np.nan), where=own > 0)
    best = gap.argmin(-1)
    shape = train.shape[:-1]
    rows = np.arange(best.size)
    return ShiftGap(
        jnp.asarray(shifts),
        jnp.asarray(gap.reshape(*shape, -1)),
        jnp.asarray(ratio.reshape(*shape, -1)),
        jnp.asarray(shifts[best].reshape(shape)),
        jnp.asarray(ratio[rows, best].reshape(shape)),
    )
