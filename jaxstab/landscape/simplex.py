"""Loss and accuracy over the simplex that three or more points of parameter space span."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_at_least
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
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])


class Simplex(NamedTuple):
    """Loss and accuracy at Σ_k λ_k w_k; see `simplex`.

    Attributes:
      weights: λ, shape (m, K), each row with sum 1.
      resolution: number of parts of each edge.
      loss: mean over `data`, shape (m,).
      accuracy: on `data`, shape (m,); None if the loss is not that of a classifier.
      test_loss: mean over `test_data`, shape (m,); None without.
      test_accuracy: on `test_data`, shape (m,); None without.
    """

    weights: Array
    resolution: int
    loss: Array
    accuracy: Array | None = None
    test_loss: Array | None = None
    test_accuracy: Array | None = None

    def fraction_above(self, level: float, *, of: str = "accuracy") -> float:
        """Returns the fraction of the triangle's area where `of` is above a level.

        Every small triangle gives a third of its area to each of its corners.

        Raises:
          ValueError: if there are more than three corners, or no such values.
        """
        if self.weights.shape[1] != 3:
            raise ValueError(f"areas are those of triangles, not of {self.weights.shape[1]} points")
        values = getattr(self, of)
        if values is None:
            raise ValueError(f"there is no {of} on this simplex")
        steps = np.rint(np.asarray(self.weights) * self.resolution)
        share = np.array([1, 3, 6])[(steps > 0).sum(axis=1) - 1]
        return float(share[np.asarray(values) > level].sum() / share.sum())

    def coordinates(self) -> np.ndarray:
        """Returns the points of a triangle in the plane, shape (m, 2): corners of edge length 1."""
        if self.weights.shape[1] != 3:
            raise ValueError(f"{self.weights.shape[1]} corners do not lie in a plane")
        return np.asarray(self.weights) @ _CORNERS


@at_given
def simplex(
    loss: Any,
    vertices: Sequence[Any],
    data: Any,
    *,
    resolution: int = 20,
    test_data: Any = None,
    accuracy: bool | None = None,
    batch_norm: BatchNorm = None,
    chunk_size: int | None = None,
    points: int | None = None,
    precision: str | None = "highest",
) -> Simplex:
    """Returns loss and accuracy at w_λ = Σ_k λ_k w_k over the simplex of K points.

    Zhang et al. (2018), CBMM Memo 072, eq. 10 (K = 3): λ_k ≥ 0 with Σ λ_k = 1, on the grid of
    multiples of 1/resolution, which holds every corner and every edge.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      vertices: three or more pytrees of parameters with equal structure and shapes.
      data: pytree of arrays with a leading axis n.
      resolution: number of parts of each edge; (resolution + 1)(resolution + 2)/2 points for K = 3.
      test_data: the same as `data`, evaluated at the same points.
      accuracy: whether to count correct predictions; see `slice`.
      batch_norm: for a loss with batch statistics this must be chosen: "frozen" or
        `Reestimated(x)`, at every point; see `slice`.
      chunk_size: examples evaluated at once; all by default.
      points: points evaluated at once; see `slice`.
      precision: see `slice`.

    Returns:
      A `Simplex`. Cost: one forward pass over the data for every point. Compiled once for equal
      shapes.

    Raises:
      ValueError: if there are fewer than three vertices, or they do not fit each other; else as
        `slice`.

    Example:
      >>> corners = [jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])]
      >>> found = simplex(lambda w, x: x * jnp.sum(w), corners, jnp.ones(4), resolution=2)
      >>> found.weights.shape, found.loss.tolist(), found.fraction_above(0.6, of="loss")
      ((6, 3), [1.0, 1.0, 1.0, 0.5, 0.5, 0.0], 0.4166666666666667)
    """
    if len(vertices) < 3:
        raise ValueError(f"a simplex needs at least 3 points, got {len(vertices)}: else use slice")
    check_at_least("resolution", resolution, 1)
    checked = []
    for i, vertex in enumerate(vertices):
        vectors.check_same(f"vertex {i}", vertex, vertices[0])
        problem = check_slice(loss, vertex, data, test_data, accuracy, batch_norm)
        checked.append(problem[1])
    loss, _, data, test_data, accuracy, policy = problem
    steps = barycentric(len(vertices), resolution)
    weights = jnp.asarray(steps / resolution)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *checked)
    found = _evaluate(
        (loss, policy, stacked, data, test_data),
        weights,
        accuracy=accuracy,
        chunk_size=checked_chunk(chunk_size),
        points=checked_points(points, len(weights)),
    )
    return Simplex(weights, resolution, **found)


def barycentric(corners: int, resolution: int) -> np.ndarray:
    """Returns all integer rows of length `corners`, not negative, with sum `resolution`."""
    rows = itertools.product(range(resolution + 1), repeat=corners - 1)
    return np.array([(*row, resolution - sum(row)) for row in rows if sum(row) <= resolution])


@functools.partial(jax.jit, static_argnames=("accuracy", "chunk_size", "points"))
def _evaluate(
    operands: Any, weights: Array, *, accuracy: bool, chunk_size: int | None, points: int
) -> dict[str, Array]:
    loss, policy, stacked, data, test_data = operands

    def at(weights: Array) -> dict[str, Array]:
        theta = jax.tree.map(
            lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1), stacked
        )
        return evaluate_at(
            loss, policy, theta, data, test_data, accuracy=accuracy, chunk_size=chunk_size
        )

    return jax.lax.map(at, weights, batch_size=points if points > 1 else None)
