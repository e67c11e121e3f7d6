"""Escape from a minimum: predicted growth and time from a measurement, then what a run did.

Along a unit direction v linearised SGD multiplies E (vᵀx)² by at least (1 − ηh)² + η²π(B) Var_i
per step, with h = vᵀHv and Var_i the variance of vᵀH_i v over the examples. That is the Rayleigh
quotient of the moment map Q at S = vvᵀ, and Q is self-adjoint: its largest eigenvalue, the
mean-square growth, is no smaller (Mulayoff & Michaeli, arXiv 2306.07850, as in their eq. 27).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstab import trees
from jaxstab.callables import as_pytree
from jaxstab.checks import check_positive, data_size
from jaxstab.examples import check_in_memory
from jaxstab.operators import directional_curvatures
from jaxstab.stability.criteria import growth_along, variance_factor

OUTCOMES = ("left", "stayed", "too short")


class Slices(NamedTuple):
    """The losses of all examples along some unit directions v through a point, to second order."""

    curvature: np.ndarray
    """h = vᵀHv, (directions,), 1/step size."""
    curvature_variance: np.ndarray
    """Var_i(vᵀH_i v), (directions,)."""
    slope: np.ndarray
    """vᵀg, (directions,)."""
    slope_variance: np.ndarray
    """Var_i(vᵀg_i), (directions,)."""
    loss: float
    """Mean loss at the point."""
    n: int


def slices(
    loss: Callable[[Any, Any], Any],
    params: Any,
    data: Any,
    directions: Sequence[Any],
    *,
    chunk_size: int | None = None,
) -> Slices:
    """Returns how the losses bend and slope along directions: all that `predict_escape` needs.

    Args:
      loss: `loss(params, example) -> scalar`.
      params: the point.
      data: pytree of arrays with a leading axis n.
      directions: v, each shaped like `params`, of any length but 0. The top eigenvectors of H and
        of Σ, `measurement.sharpness.vector` and `measurement.nonuniformity.vector`, are those
        along which GD and SGD leave.
      chunk_size: examples at once; all by default.

    Returns:
      `Slices`. Cost: about one Hessian-vector product and a JVP for each direction.

    Raises:
      ValueError: if there is no direction, or one has no finite, positive length.
    """
    check_in_memory("slices", data, "it is read no other way yet")
    loss, n = as_pytree(loss), data_size(data)
    if not directions:
        raise ValueError("directions is empty: give at least one, such as the vector of sharpness")
    columns, value = [], math.nan
    for direction in directions:
        norm = float(trees.norm(direction))
        check_positive("length of a direction", norm)
        v = jax.tree.map(lambda x, norm=norm: x / norm, direction)
        curvatures = directional_curvatures(loss, params, data, v, chunk_size=chunk_size)
        losses, slopes = (np.asarray(x, float) for x in _values_and_slopes(loss, params, data, v))
        bent = np.asarray(curvatures, float)
        columns.append((bent.mean(), bent.var(), slopes.mean(), slopes.var()))
        value = float(losses.mean())
    h, spread, slope, noise = np.array(columns).T
    return Slices(h, spread, slope, noise, value, n)


@jax.jit
def _values_and_slopes(loss: Any, params: Any, data: Any, v: Any) -> tuple[jax.Array, jax.Array]:
    def all_losses(params: Any) -> jax.Array:
        return jax.vmap(loss, (None, 0))(params, data)

    return jax.jvp(all_losses, (params,), (v,))


class Escape(NamedTuple):
    """What linear theory says of the way out of a minimum, before any run."""

    growth: float
    """Factor of E |x|² per step, a lower bound of λ_max(Q); above 1 SGD leaves in mean square."""
    steps: float
    """Steps until the loss has grown by `loss_factor`; infinite where `growth` is at most 1."""


def predict_escape(
    along: Slices,
    *,
    learning_rate: float,
    batch_size: int,
    loss_factor: float = 10.0,
    replacement: bool = False,
) -> Escape:
    """Predicts growth per step and time to leave of GD or SGD started at a point.

    The growth is the largest over the directions of (1 − ηh)² + η²π Var_i(vᵀH_i v); for GD along
    the top eigenvector of H it is exact. The time is that in which the energy h x²/2 along this v,
    set off by the distance to the minimum along it and by the noise of one step,
    E x² = (vᵀg/h)² + η²π Var_i(vᵀg_i), makes up (`loss_factor` − 1) times the loss of the start. It
    is a time in mean square: single runs of SGD scatter about it, and most take longer.

    Args:
      along: from `slices`.
      learning_rate: η.
      batch_size: B.
      loss_factor: a run has left when its loss is above this factor times that of the start.
      replacement: whether batches are drawn with replacement.

    Raises:
      ValueError: for a learning rate or a batch size that cannot be, or a factor not above 1.

    Example:
      >>> one = Slices(*np.array([[2.0], [0.0], [1e-3], [0.0]]), loss=1e-3, n=100)
      >>> found = predict_escape(one, learning_rate=1.5, batch_size=100)
      >>> found.growth, round(found.steps, 1)
      (4.0, 7.6)
    """
    check_positive("learning_rate", learning_rate)
    _check_factor(loss_factor)
    pi = variance_factor(along.n, batch_size, replacement)
    growths = growth_along(
        along.curvature,
        along.curvature_variance,
        learning_rate=learning_rate,
        variance_factor=pi,
    )
    best = int(np.argmax(growths))
    growth, h = float(growths[best]), float(along.curvature[best])
    if not growth > 1:
        return Escape(growth, math.inf)
    if h <= 0:
        return Escape(growth, math.nan)  # no minimum along v: no energy to start from
    noise = learning_rate**2 * pi * float(along.slope_variance[best])
    energy = h / 2 * ((float(along.slope[best]) / h) ** 2 + noise)
    gain = (loss_factor - 1) * along.loss
    return Escape(
        growth, max(1.0, escape_steps(growth, factor=gain / energy if energy else np.inf))
    )


def escape_steps(growth: float, *, factor: float) -> float:
    """Returns the steps until E |x|² has grown by `factor`: log(factor) / log(growth).

    Infinite if the growth is at most 1. Single runs differ: E |x|² is carried by the largest of
    many, and a typical run of SGD takes longer.

    Args:
      growth: factor of E |x|² per step.
      factor: of E |x|² in all, so the square of a ratio of distances.

    Raises:
      ValueError: if the factor is not positive.

    Example:
      >>> round(escape_steps(1.69, factor=(0.1 / 1e-5) ** 2), 1)
      35.1
    """
    if not factor > 0:
        raise ValueError(f"factor must be positive, got {factor!r}")
    return math.log(factor) / math.log(growth) if growth > 1 else math.inf


class Observed(NamedTuple):
    """What a run that was started at a minimum did."""

    outcome: str
    """"left", "stayed", or "too short": it was to leave, but not within the steps it was given."""
    steps: float
    """Step at which it left; infinite if it did not."""
    growth: float
    """Factor of the excess loss in the last step before it left; NaN where that was not seen."""


def observe_escape(
    steps: Any,
    losses: Any,
    *,
    predicted: Escape,
    flattening: float = math.nan,
    loss_factor: float = 10.0,
    flatter: float = 0.1,
) -> Observed:
    """Tells from its losses and its end whether a run left the minimum at which it was started.

    It left if its loss rose above `loss_factor` times that of the start (or was not finite), or if
    it ended at a flatter point, its sharpness lower by more than the share `flatter`: SGD may cross
    to a flatter point in a burst too small to count, and gradient descent just above its edge does
    as a rule. The time to leave is the first step above the factor, or that of the largest loss.

    A run that did neither "stayed", unless theory had it leave later than its last step: linear
    growth of 1.01 per step takes hundreds of steps to show, so the run was "too short" to tell.

    Args:
      steps: steps at which the loss was recorded, increasing, the start first, (m,).
      losses: mean losses there, (m,).
      predicted: from `predict_escape`, with the same `loss_factor`.
      flattening: 1 − (sharpness at the end / at the start); NaN if it was not measured.
      loss_factor: see above.
      flatter: see above; runs far inside their bounds drift by a few per cent as their loss falls.

    Raises:
      ValueError: for shapes that differ, fewer than two records, or a factor not above 1.

    Example:
      >>> theory = Escape(growth=4.0, steps=1.6)
      >>> observe_escape([0, 1, 2, 3], [1.0, 2.0, 5.0, 17.0], predicted=theory)
      Observed(outcome='left', steps=3.0, growth=4.0)
      >>> observe_escape([0, 50], [1.0, 1.1], predicted=Escape(growth=1.01, steps=800.0))
      Observed(outcome='too short', steps=inf, growth=nan)
    """
    steps, losses = np.asarray(steps), np.asarray(losses, float)
    if steps.ndim != 1 or steps.shape != losses.shape or len(steps) < 2:
        raise ValueError(
            f"steps and losses must have one shape (m,) with m >= 2, got {steps.shape} and "
            f"{losses.shape}"
        )
    _check_factor(loss_factor)
    above = ~(losses <= loss_factor * losses[0])  # NaN counts
    if above.any():
        first = int(np.argmax(above))
        return Observed("left", float(steps[first]), _last_growth(steps, losses, first))
    if flattening > flatter:
        return Observed("left", float(steps[int(np.argmax(losses))]), math.nan)
    short = predicted.growth > 1 and predicted.steps > steps[-1]
    return Observed("too short" if short else "stayed", math.inf, math.nan)


def _last_growth(steps: np.ndarray, losses: np.ndarray, first: int) -> float:
    """Growth of the excess loss in the step that took it above; NaN unless both were recorded."""
    excess = losses - losses[0]
    seen = first >= 2 and steps[first] - steps[first - 1] == 1 and excess[first - 1] > 0
    return float(excess[first] / excess[first - 1]) if seen else math.nan


def _check_factor(loss_factor: float) -> None:
    if not loss_factor > 1:
        raise ValueError(f"loss_factor must be above 1, got {loss_factor!r}")
