"""How far one can go from a point before the loss has changed: the flatness radius."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab import checks
from jaxstab.eigen import vectors
from jaxstab.examples import check_in_memory
from jaxstab.landscape.directions import directions as draw_directions
from jaxstab.landscape.directions import resolve_mask
from jaxstab.operators.hessian import check_problem
from jaxstab.precision import at_given
from jaxstab.training import mean_loss

NORMALISATIONS = (None, "filter")


class FlatnessRadius(NamedTuple):
    """Radii along directions; see `flatness_radius`.

    Attributes:
      radius: the first crossing along each direction, shape (m,); inf where there is none.
      inside: the largest radius seen to be inside, shape (m,): a lower bound of the crossing.
      outside: a radius seen to be outside, shape (m,); inf where there is none up to `largest`.
      largest: where the search ended.
      norm: 2-norm of the parameters that move: the raw radius depends on it.
      loss: L(w).
      evaluations: passes over the data for each direction.
    """

    radius: np.ndarray
    inside: np.ndarray
    outside: np.ndarray
    largest: float
    norm: float
    loss: float
    evaluations: int

    @property
    def infinite(self) -> int:
        """Number of directions along which the loss stays within eps up to `largest`."""
        return int(np.isinf(self.outside).sum())

    @property
    def mean(self) -> float:
        """Mean over directions; inf if it is infinite along one."""
        return float(np.mean(self.radius))

    @property
    def std(self) -> float:
        """Standard deviation over directions; NaN if the radius is infinite along one."""
        finite = np.isfinite(self.radius).all()
        return float(np.std(self.radius, ddof=1)) if finite and len(self.radius) > 1 else math.nan


@at_given
def flatness_radius(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    eps: float,
    key: jax.Array | None = None,
    directions: Any = 10,
    mask: Any = None,
    normalisation: str | None = None,
    smallest: float | None = None,
    largest: float | None = None,
    resolution: float = 0.05,
    tol: float = 1e-3,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> FlatnessRadius:
    """Returns the radius r(w, δ, ε) at which |L(w) − L(w + rδ)| first exceeds ε, along directions.

    Zhang et al. (2018), CBMM Memo 072, eq. 11: r = sup{r : |L(w) − L(w + rδ)| ≤ ε} for random unit
    directions δ, averaged over them. Taken as the end of the interval around w on which the
    condition holds, so the first crossing; the memo's supremum says the same where the loss does
    not come back.

    The radius is that of the parametrisation: scaling a ReLU layer up and the next one down
    changes it and not the function (Dinh et al. 2017). So compare it with `norm`, or take
    normalisation="filter", where a direction is as long as the parameters, filter by filter, and
    the radius has no unit (Li et al. 2018, arXiv 1712.09913).

    All directions advance together through the radii smallest · (1 + resolution)^k, until each has
    crossed or `largest` is reached; then bisection within the last step. What may be missed is an
    excursion above ε narrower than `resolution` times its own radius, or nearer than `smallest`.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: w, a pytree of real floating-point arrays.
      data: pytree of arrays with a leading axis n; L is the mean over it.
      eps: ε > 0, in units of the loss.
      key: random key of the directions.
      directions: how many Gaussian directions to draw; or directions, a pytree like `params` with
        a leading axis, used as they are.
      mask: parameters that move (a layer, say): as for `directions`.
      normalisation: None for unit directions, "filter" for directions as long as each filter;
        biases and other vectors stay in place then.
      smallest: first radius tried; by default 1e-4 times the norm of what moves (1e-4 with
        normalisation).
      largest: last radius tried; by default 100 times that norm.
      resolution: relative step between radii.
      tol: relative accuracy of the crossing.
      chunk_size: examples evaluated at once.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      `FlatnessRadius`. Cost: about log(largest/smallest)/resolution forward passes over the data
      for each direction at most (280 with the defaults); memory: parameters and activations for
      all directions at once. A loss that is not finite counts as outside.

    Raises:
      ValueError: if a number is out of range, L(w) is not finite, there is no key to draw with, or
        the parameters are zero and the radii are left to choose.

    Example:
      >>> found = flatness_radius(lambda w, x: x * jnp.sum(w**2) / 2, jnp.zeros(3), jnp.ones(4),
      ...     eps=0.02, key=jax.random.key(0), smallest=1e-3, largest=10.0)
      >>> round(found.mean, 3), found.infinite
      (0.2, 0)
    """
    checks.check_positive("eps", eps)
    checks.check_positive("resolution", resolution)
    checks.check_positive("tol", tol)
    if normalisation not in NORMALISATIONS:
        raise ValueError(f'normalisation must be None or "filter", got {normalisation!r}')
    if chunk_size is not None:
        checks.check_at_least("chunk_size", chunk_size, 1)
    check_in_memory("flatness_radius", data, "it is read no other way yet")
    loss, params, data = check_problem(loss, params, data)
    checks.check_finite("data", data)
    basis = _basis(params, directions, mask, normalisation, key)
    norm = _moving_norm(params, resolve_mask(params, mask))
    smallest, largest = _range(smallest, largest, 1.0 if normalisation else norm)
    steps = math.ceil(math.log(largest / smallest) / math.log1p(resolution))
    halvings = max(0, math.ceil(math.log2(resolution / tol)))
    numbers = [jnp.asarray(x, float) for x in (eps, smallest, 1 + resolution)]
    found = _search(
        loss, params, data, basis, *numbers, jnp.asarray(steps), halvings, chunk_size=chunk_size
    )
    inside, outside, base, spent = jax.device_get(found)
    if not math.isfinite(base):
        raise ValueError(f"the loss at params is {float(base)}: nothing to compare with")
    radius = np.where(np.isfinite(outside), (inside + outside) / 2, np.inf)
    largest = smallest * (1 + resolution) ** steps
    return FlatnessRadius(radius, inside, outside, largest, norm, float(base), int(spent))


def _basis(params: Any, directions: Any, mask: Any, normalisation: Any, key: Any) -> Any:
    """The directions: drawn, or those given."""
    if not isinstance(directions, int):
        if mask is not None or normalisation is not None:
            raise ValueError("directions that are given are used as they are: leave out mask and "
                             "normalisation, or give a number of directions to draw")  # fmt: skip
        like = jax.tree.map(lambda x: x[0], directions)
        vectors.check_same("directions", like, params)
        return directions
    if key is None:
        raise ValueError("give a random key to draw directions with, or the directions themselves")
    kind = "gaussian" if normalisation is None else "filter_normalized"
    return draw_directions(
        params, kind=kind, key=key, count=directions, mask=mask, normalize=normalisation is None
    )


def _moving_norm(params: Any, selected: Any) -> float:
    if selected is not None:
        params = jax.tree.map(lambda x, m: jnp.where(m, x, 0), params, selected)
    return float(vectors.norm(params))


def _range(smallest: Any, largest: Any, unit: float) -> tuple[float, float]:
    if unit == 0 and (smallest is None or largest is None):
        raise ValueError("the parameters are all zero: give smallest and largest radii")
    smallest = 1e-4 * unit if smallest is None else checks.check_positive("smallest", smallest)
    largest = 100 * unit if largest is None else checks.check_positive("largest", largest)
    if not smallest < largest:
        raise ValueError(f"smallest must be below largest, got {smallest!r} and {largest!r}")
    return float(smallest), float(largest)


@functools.partial(jax.jit, static_argnames="chunk_size")
def _search(loss, params, data, basis, eps, smallest, ratio, steps, halvings, *, chunk_size):
    """Returns (inside, outside, L(w), evaluations); one loop over radii, then one of bisection."""
    base = mean_loss(loss, params, data, chunk_size=chunk_size)

    def leaves_at(radius: jax.Array) -> jax.Array:
        """Whether the loss at these radii, one for each direction, is outside."""

        def one(radius: jax.Array, direction: Any) -> jax.Array:
            moved = jax.tree.map(lambda w, u: (w + radius * u).astype(w.dtype), params, direction)
            return mean_loss(loss, moved, data, chunk_size=chunk_size)

        return ~(jnp.abs(jax.vmap(one)(radius, basis) - base) <= eps)

    def searching(carry):
        k, _, outside = carry
        return (k <= steps) & jnp.any(jnp.isinf(outside))

    def advance(carry):
        k, inside, outside = carry
        radius = jnp.full_like(inside, smallest * ratio**k)
        left, open_ = leaves_at(radius), jnp.isinf(outside)
        inside = jnp.where(open_ & ~left, radius, inside)
        return k + 1, inside, jnp.where(open_ & left, radius, outside)

    def halve(_, carry):
        inside, outside = carry
        middle = jnp.where(jnp.isinf(outside), inside, (inside + outside) / 2)
        left = leaves_at(middle) & jnp.isfinite(outside)
        return jnp.where(left, inside, middle), jnp.where(left, middle, outside)

    zeros = jnp.zeros(jax.tree.leaves(basis)[0].shape[0])
    k, inside, outside = jax.lax.while_loop(
        searching, advance, (jnp.zeros((), int), zeros, zeros + jnp.inf)
    )
    inside, outside = jax.lax.fori_loop(0, halvings, halve, (inside, outside))
    return inside, outside, base, 1 + k + halvings
