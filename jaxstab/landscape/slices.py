"""The loss along lines and over planes: all points in one compiled call, batch norm by choice."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.checks import check_finite
from jaxstab.eigen import vectors
from jaxstab.landscape.evaluation import (
    BatchNorm,
    check_slice,
    checked_chunk,
    checked_points,
    evaluate_at,
)
from jaxstab.precision import at_given

Array = jax.Array


class Slice(NamedTuple):
    """The loss along lines θ + l u, at positions l.

    The curves have the leading axes (directions, offsets), each only if there were several, and T.

    Attributes:
      positions: l, shape (T,), increasing.
      loss: L̂(θ + l u), mean over `data`, shape (..., T).
      slope: dL̂/dl by automatic differentiation, shape (..., T); None if not asked for.
      curvature: d²L̂/dl², the same.
      third: d³L̂/dl³, the same.
      accuracy: on `data`, shape (..., T); None if the loss is not that of a classifier.
      test_loss: L(θ + l u), mean over `test_data`, shape (..., T); None without.
      test_accuracy: on `test_data`, shape (..., T); None without.
    """

    positions: Array
    loss: Array
    slope: Array | None = None
    curvature: Array | None = None
    third: Array | None = None
    accuracy: Array | None = None
    test_loss: Array | None = None
    test_accuracy: Array | None = None


class Plane(NamedTuple):
    """The loss over a plane θ + x u + y v.

    Attributes:
      x: shape (X,).
      y: shape (Y,).
      loss: mean over `data`, shape (X, Y).
      accuracy: on `data`, shape (X, Y); None if the loss is not that of a classifier.
      test_loss: mean over `test_data`, shape (X, Y); None without.
      test_accuracy: on `test_data`, shape (X, Y); None without.
    """

    x: Array
    y: Array
    loss: Array
    accuracy: Array | None = None
    test_loss: Array | None = None
    test_accuracy: Array | None = None


class Derivatives(NamedTuple):
    """Loss, slope, curvature and third derivative along directions, shape () or (count,)."""

    loss: Array
    slope: Array
    curvature: Array
    third: Array


@at_given
def slice(
    loss: Any,
    params: Any,
    data: Any,
    *,
    direction: Any,
    positions: Any,
    offsets: Any = None,
    test_data: Any = None,
    derivatives: int = 0,
    accuracy: bool | None = None,
    batch_norm: BatchNorm = None,
    chunk_size: int | None = None,
    points: int | None = None,
    precision: str | None = "highest",
) -> Slice:
    """Returns loss and accuracy, on training and test data, along θ + l u.

    Between two checkpoints take `direction=between(first, second)` (`js.landscape.between`), which
    is not normalised: position 0 is the first and 1 the second.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ.
      data: pytree of arrays with a leading axis n.
      direction: u, a pytree like `params`; or several with a leading axis, as `directions` gives.
        Used as it is: with ‖u‖ = 1 the positions are distances.
      positions: l, shape (T,), increasing.
      offsets: start at θ + offset instead, for every offset: a pytree like `params` with a leading
        axis.
      test_data: the same as `data`, evaluated at the same points.
      derivatives: how many derivatives of the loss on `data` along the line, 0 to 3, by nested
        forward differentiation. Where a network has kinks, those of its smooth pieces.
      accuracy: whether to count correct predictions: examples (x, y) with y one-hot, and a loss
        with `predict`, such as `ModelLoss`. None: where the loss can.
      batch_norm: for a loss with batch statistics this must be chosen: "frozen" leaves those of
        the loss; `Reestimated(x)` takes new ones at every point, through which the derivatives
        go too; or a function `(loss, params) -> loss`.
      chunk_size: examples evaluated at once; all by default.
      points: points evaluated at once, each with parameters and activations of its own. None: 1 on
        CPU, where more gain nothing, else 16.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      A `Slice`. Cost: one forward pass over the data for every point, about twice that for each
      further derivative; one more over `x` if statistics are re-estimated. Compiled once for equal
      shapes, whatever the direction, the positions and the values of the data.

    Raises:
      ValueError: if shapes do not fit, positions do not increase, a loss has batch statistics and
        no policy, or accuracy is asked of a loss without `predict`.

    Example:
      >>> def loss(w, x):
      ...     return jnp.sum((w - x) ** 2)
      >>> line = slice(loss, jnp.zeros(2), jnp.zeros((3, 2)), direction=jnp.array([1.0, 0.0]),
      ...              positions=[-1.0, 0.0, 2.0], derivatives=1)
      >>> line.loss.tolist(), line.slope.tolist()
      ([1.0, 0.0, 4.0], [-2.0, 0.0, 4.0])
    """
    problem = check_slice(loss, params, data, test_data, accuracy, batch_norm)
    loss, params, data, test_data, accuracy, batch_norm = problem
    positions = _positions("positions", positions)
    if isinstance(derivatives, bool) or derivatives not in (0, 1, 2, 3):
        raise ValueError(f"derivatives must be 0, 1, 2 or 3, got {derivatives!r}")
    moving, several = _basis("direction", direction, params)
    starts, many = (None, False) if offsets is None else _basis("offsets", offsets, params)
    if offsets is not None and not many:
        raise ValueError("offsets need a leading axis: one row for every starting point")
    counts = [
        jax.tree.leaves(moving)[0].shape[0],
        1 if starts is None else jax.tree.leaves(starts)[0].shape[0],
    ]
    j, i, b = jnp.meshgrid(*map(jnp.arange, counts), positions, indexing="ij")
    found = _evaluate(
        (loss, batch_norm, params, starts, moving, data, test_data),
        tuple(x.ravel() for x in (i, jnp.ones_like(b), j, b)),
        order=int(derivatives),
        accuracy=accuracy,
        chunk_size=checked_chunk(chunk_size),
        points=checked_points(points, i.size),
    )
    axes = [count for count, kept in zip(counts, (several, offsets is not None)) if kept]
    found = {name: x.reshape(*axes, positions.size) for name, x in found.items()}
    return Slice(positions, **found)


@at_given
def plane(
    loss: Any,
    params: Any,
    data: Any,
    *,
    directions: Any,
    x: Any,
    y: Any,
    test_data: Any = None,
    accuracy: bool | None = None,
    batch_norm: BatchNorm = None,
    chunk_size: int | None = None,
    points: int | None = None,
    precision: str | None = "highest",
) -> Plane:
    """Returns loss and accuracy over the plane θ + x u + y v.

    Args:
      loss: as for `slice`, like the arguments not named here.
      params: the point θ.
      data: pytree of arrays with a leading axis n.
      directions: u and v, a pytree like `params` with a leading axis of length 2.
      x: positions along u, shape (X,), increasing.
      y: positions along v, shape (Y,), increasing.
      test_data: see `slice`.
      accuracy: see `slice`.
      batch_norm: see `slice`.
      chunk_size: see `slice`.
      points: see `slice`.
      precision: see `slice`.

    Returns:
      A `Plane`. Cost: X · Y forward passes over the data.

    Raises:
      ValueError: as `slice`; or if there are not two directions.
    """
    problem = check_slice(loss, params, data, test_data, accuracy, batch_norm)
    loss, params, data, test_data, accuracy, batch_norm = problem
    basis, several = _basis("directions", directions, params)
    if not several or jax.tree.leaves(basis)[0].shape[0] != 2:
        raise ValueError("a plane has two directions: give a leading axis of length 2")
    x, y = _positions("x", x), _positions("y", y)
    a, b = (grid.ravel() for grid in jnp.meshgrid(x, y, indexing="ij"))
    first, second = jnp.zeros(a.shape, int), jnp.ones(a.shape, int)
    found = _evaluate(
        (loss, batch_norm, params, basis, basis, data, test_data),
        (first, a, second, b),
        order=0,
        accuracy=accuracy,
        chunk_size=checked_chunk(chunk_size),
        points=checked_points(points, a.size),
    )
    return Plane(x, y, **{name: z.reshape(x.size, y.size) for name, z in found.items()})


@at_given
def derivatives(
    loss: Any,
    params: Any,
    data: Any,
    *,
    direction: Any,
    batch_norm: BatchNorm = None,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> Derivatives:
    """Returns the first three derivatives of t ↦ L̂(θ + t u) at t = 0.

    The Hessian's view of asymmetry, which He, Huang, Yuan (2019) do not take: L̂ rises like
    uᵀHu t²/2 on both sides, and the third derivative says on which side it bends up faster next.
    A positive one makes +u the sharp side, near the bottom.

    Args:
      loss: as for `slice`, like the arguments not named here.
      params: the point θ.
      data: pytree of arrays with a leading axis n.
      direction: u, or several with a leading axis.
      batch_norm: see `slice`.
      chunk_size: see `slice`.
      precision: see `slice`.

    Returns:
      `Derivatives`, each of shape () or (count,). Cost: about 8 forward passes a direction.

    Example:
      >>> found = derivatives(lambda w, x: x * w**3, jnp.array(1.0), jnp.ones(2),
      ...                     direction=jnp.array(1.0))
      >>> [float(x) for x in found]
      [1.0, 3.0, 6.0, 6.0]
    """
    here = slice(
        loss,
        params,
        data,
        direction=direction,
        positions=[0.0],
        derivatives=3,
        accuracy=False,
        batch_norm=batch_norm,
        chunk_size=chunk_size,
        precision=precision,
    )
    named = zip(Derivatives._fields, (here.loss, here.slope, here.curvature, here.third))
    return Derivatives(**{name: values[..., 0] for name, values in named if values is not None})


@functools.partial(jax.jit, static_argnames=("order", "accuracy", "chunk_size", "points"))
def _evaluate(
    operands: Any, items: Any, *, order: int, accuracy: bool, chunk_size: Any, points: int
) -> dict[str, Array]:
    """Evaluates items (i, a, j, b): the points θ + a·first[i] + b·second[j], along second[j]."""
    loss, batch_norm, params, first, second, data, test_data = operands

    def at(item: Any) -> dict[str, Array]:
        i, a, j, b = item

        def along(t: Array) -> tuple[Array, dict[str, Array]]:
            theta = params if first is None else vectors.add(params, a, vectors.row(first, i))
            theta = vectors.add(theta, t, vectors.row(second, j))
            found = evaluate_at(
                loss, batch_norm, theta, data, test_data, accuracy=accuracy, chunk_size=chunk_size
            )
            return found["loss"], found

        derived, found = _taylor(along, b, order)
        return found | dict(zip(("slope", "curvature", "third"), derived[1:]))

    return jax.lax.map(at, items, batch_size=points if points > 1 else None)


def _taylor(function: Any, t: Array, order: int) -> tuple[tuple[Array, ...], Any]:
    """Returns (f, f', ..., f^(order)) at t, and what f returns besides, by nested JVPs."""

    def nested(t: Array, order: int) -> tuple[tuple[Array, ...], Any]:
        if order == 0:
            value, found = function(t)
            return (value,), found
        values, tangents, found = jax.jvp(
            lambda t: nested(t, order - 1), (t,), (jnp.ones_like(t),), has_aux=True
        )
        return (*values, tangents[-1]), found

    return nested(t, order)


def _positions(name: str, positions: Any) -> Array:
    positions = jnp.asarray(positions, float)
    if positions.ndim != 1 or positions.size == 0:
        raise ValueError(f"{name} must have shape (T,) with T > 0, got {positions.shape}")
    check_finite(name, positions)
    if not isinstance(positions, jax.core.Tracer) and not bool(jnp.all(jnp.diff(positions) > 0)):
        raise ValueError(f"{name} must increase")
    return positions


def _basis(name: str, direction: Any, params: Any) -> tuple[Any, bool]:
    """Returns directions with a leading axis, and whether they came with one."""
    expected: Any = jax.tree.structure(params)
    got: Any = jax.tree.structure(direction)
    if got != expected:
        raise ValueError(f"{name} has structure {got}, expected that of params: {expected}")
    direction = jax.tree.map(jnp.asarray, direction)
    check_finite(name, direction)
    leaves = list(zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True))
    if all(u.shape == w.shape for u, w in leaves):
        return jax.tree.map(lambda u: u[None], direction), False
    counts = {u.shape[0] for u, w in leaves if u.ndim == w.ndim + 1 and u.shape[1:] == w.shape}
    fit = all(u.ndim == w.ndim + 1 and u.shape[1:] == w.shape for u, w in leaves)
    if not fit or len(counts) != 1:
        raise ValueError(
            f"the arrays of {name} must be shaped like those of params, with or without one more "
            f"leading axis: got {[u.shape for u, _ in leaves]} for {[w.shape for _, w in leaves]}"
        )
    return direction, True
