"""Why a bias towards the flat side generalises, and why averaging has it: the two theorems.

He, Huang, Yuan (NeurIPS 2019, arXiv 1902.00744): theorem 1 (a point on the flat side does better
under a random shift) and theorem 2 (the mean of SGD's iterates lies there). Each function says
which conditions hold; where one does not, the theorem says nothing.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.callables import as_pytree, register
from jaxstab.checks import check_at_least, check_positive
from jaxstab.eigen import vectors
from jaxstab.precision import at_given

Array = jax.Array


class BiasBound(NamedTuple):
    """What theorem 1 says of a bias.

    Attributes:
      gain: the lower bound on the fall of the expected loss, Σ (c_i − 1) l_i p_i / 2 − 2kξ.
      conditions: each condition by name, and whether it holds for all directions.
      covered: whether all hold; where not, `gain` is no bound.
    """

    gain: float
    conditions: dict[str, bool]
    covered: bool


def bias_bound(
    *, p: Any, c: Any, r: Any, zeta: Any, shift: Any, bias: Any, gap: float = 0.0
) -> BiasBound:
    r"""Returns the bound of theorem 1 of He, Huang, Yuan (2019) and which conditions hold.

    Along k orthonormal directions :math:`u_i`, each (r_i, p_i, c_i, ζ_i)-asymmetric at ŵ* and
    wherever the others lead, let the test loss be the training loss shifted by
    :math:`\delta = \sum \pm\bar\delta_i u_i`, all signs equally likely, up to a constant and an
    error ξ (the shift gap). For a bias :math:`l_i > 0` towards the flat sides

    .. math:: E_\delta L(\hat w^*) - E_\delta L(\hat w^* + \textstyle\sum l_i u_i)
              \ge \sum_i (c_i - 1) l_i p_i / 2 - 2k\xi .

    Conditions: :math:`4\xi/((c_i-1)p_i) < l_i`, which makes the bound positive, and
    :math:`l_i \le \min\{r_i - \bar\delta_i, \bar\delta_i - \zeta_i\}`. The paper prints max for the
    min. The proof needs the flat side to be flat over [δ̄, δ̄ + l] and the sharp side to be sharp
    over [δ̄ − l, δ̄], so both; with max it is false: slopes 1 and 2, ζ = 0, r = 10, δ̄ = 1, l = 9
    takes the expected loss from 1.5 to 9.

    Args:
      p: slopes p_i, shape (k,) or one number for one direction; likewise the others.
      c: ratios c_i > 1.
      r: radii r_i.
      zeta: ζ_i ≥ 0.
      shift: δ̄_i > 0.
      bias: l_i.
      gap: ξ ≥ 0.

    Returns:
      `BiasBound`.

    Raises:
      ValueError: if the lengths differ or p or c are out of range.

    Example:
      >>> found = bias_bound(p=1.0, c=3.0, r=4.0, zeta=0.0, shift=2.0, bias=1.0)
      >>> found.gain, found.covered
      (1.0, True)
    """
    named = {"p": p, "c": c, "r": r, "zeta": zeta, "shift": shift, "bias": bias}
    arrays = {name: np.atleast_1d(np.asarray(x, np.float64)) for name, x in named.items()}
    sizes = {name: x.shape for name, x in arrays.items()}
    if len(set(sizes.values())) > 1 or arrays["p"].ndim != 1:
        raise ValueError(f"give one number for each of the k directions, got shapes {sizes}")
    p, c, r, zeta, shift, bias = arrays.values()
    if not ((p > 0).all() and (c > 1).all() and (zeta >= 0).all()):
        raise ValueError(f"definition 1 needs p > 0, c > 1, zeta >= 0, got {p}, {c}, {zeta}")
    check_positive("gap", gap, allow_zero=True)
    conditions = {
        "the bias exceeds 4ξ/((c − 1) p)": bool((bias > 4 * gap / ((c - 1) * p)).all()),
        "the flat side reaches shift + bias": bool((bias <= r - shift).all()),
        "the sharp side covers shift − bias": bool((bias <= shift - zeta).all()),
    }
    gain = float(np.sum((c - 1) * bias * p) / 2 - 2 * p.size * gap)
    return BiasBound(gain, conditions, all(conditions.values()))


@at_given
def expected_shifted_loss(
    loss: Callable[[Any], Array],
    params: Any,
    *,
    directions: Any,
    shift: Any,
    bias: Any = 0.0,
    precision: str | None = "highest",
) -> Array:
    r"""Returns :math:`E_\delta \hat L(\theta + \sum l_i u_i - \delta)`, the mean over 2^k signs.

    The left-hand side of theorem 1 where the shift gap is 0: a test loss that is the training loss
    moved by δ, :math:`L(w) = \hat L(w - \delta)`. Exact; no sampling.

    Args:
      loss: a function of the parameters, the mean training loss.
      params: ŵ*.
      directions: u_i, a pytree like `params` with a leading axis k.
      shift: δ̄_i, shape (k,).
      bias: l_i, shape (k,), or one number for all.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      a scalar. Cost: 2^k evaluations of the loss.

    Example:
      >>> loss = lambda w: jnp.where(w > 0, w, -3 * w)
      >>> [float(expected_shifted_loss(loss, jnp.array(0.0), directions=jnp.ones(1), shift=[2.0],
      ...                              bias=l)) for l in (0.0, 1.0)]
      [4.0, 3.0]
    """
    k = jax.tree.leaves(directions)[0].shape[0]
    shift = jnp.broadcast_to(jnp.asarray(shift, float), (k,))
    bias = jnp.broadcast_to(jnp.asarray(bias, float), (k,))
    if k > 16:
        raise ValueError(f"2^{k} evaluations are too many: give at most 16 directions")
    signs = jnp.asarray(list(itertools.product((-1.0, 1.0), repeat=k)))
    return _mean_over_shifts(as_pytree(loss), params, directions, bias - signs * shift)


@jax.jit
def _mean_over_shifts(loss: Any, params: Any, directions: Any, steps: Array) -> Array:
    def at(step: Array) -> Array:
        return loss(vectors.add(params, 1.0, vectors.combine(directions, step)))

    return jnp.mean(jax.lax.map(at, steps))


@register
@dataclasses.dataclass(frozen=True)
class Valley:
    """A one-dimensional valley with its bottom at 0: a function w ↦ L(w), as a callable pytree.

    On each side the slope goes from its value at the bottom to its value far out,
    inner + (outer − inner)(1 − e^{−|w|}); both are numbers > 0, slopes moving away from 0. So it is
    (∞, p, c, 0)-asymmetric with p the largest slope on the right and c p the smallest on the left.

    Attributes:
      left: (inner, outer) slopes left of 0.
      right: (inner, outer) slopes right of 0.
    """

    left: tuple[Any, Any]
    right: tuple[Any, Any]

    def __call__(self, w: Array) -> Array:
        """Returns L(w), with L(0) = 0."""

        def side(l: Array, inner: Any, outer: Any) -> Array:
            return outer * l - (outer - inner) * (1 - jnp.exp(-l))

        return jnp.where(
            w > 0, side(jnp.maximum(w, 0), *self.right), side(jnp.maximum(-w, 0), *self.left)
        )

    def slope(self, w: Array) -> Array:
        """Returns L'(w); at 0 that of the right side, as theorem 2 wants."""

        def side(l: Array, inner: Any, outer: Any) -> Array:
            return outer - (outer - inner) * jnp.exp(-l)

        return jnp.where(w >= 0, side(jnp.abs(w), *self.right), -side(jnp.abs(w), *self.left))


class AveragingBound(NamedTuple):
    """What theorem 2 says of a valley and a noise.

    Attributes:
      c: −a₋/a₊, the smallest slope on the left over the largest on the right.
      c_prime: −(b₋ − ν)/b₊.
      conditions: each condition by name, and whether it holds.
      covered: whether all hold: then E[w̄] > 0.
      lower: our explicit c₀ · η⁻¹: the long-run mean is at least η times this; −∞ for c ≤ 5 or
        ν > a₊.
    """

    c: float
    c_prime: float
    conditions: dict[str, bool]
    covered: bool
    lower: float


def averaging_bound(valley: Valley, *, noise: float) -> AveragingBound:
    r"""Returns which conditions of theorem 2 of He, Huang, Yuan (2019) hold, and a bound of ours.

    SGD :math:`w_{t+1} = w_t - \eta(L'(w_t) + \omega_t)` with independent noise of mean 0 and
    :math:`|\omega_t| < \nu`, on a valley with bottom 0 and slopes in :math:`[b_-, a_-]`, negative,
    left of it and in :math:`[b_+, a_+]`, positive, right of it. If
    :math:`c = -a_-/a_+`, :math:`\nu \le a_+` and
    :math:`c' = -(b_- - \nu)/b_+ < e^{c/3}/6`, then :math:`E[\bar w] \ge c_0 > 0`. (As
    :math:`c' \ge c`, the last condition asks for c > 13.)

    The paper leaves c₀ open. For c > 5 and ν ≤ a₊, whatever c', the long-run mean is at least

    .. math:: c_0 = \eta a_+ \frac{(c-3)^2/4 + (c-3)/2 - 2}{1 + (2 a_+ + \nu - b_-)/b_+} .

    Proof: with :math:`u = \eta a_+` a step to the left is at most 2u, so the iterate left of 0 is
    above −2u, and the next step takes it to :math:`x_0 \ge (c-3)u > 0`: it is left for one step at
    a time. On the right it sinks by at most 2u a step, so those iterates add up to at least
    :math:`x_0^2/4u + x_0/2`. That less 2u is what every round adds up to at least. A round is
    at most :math:`1 + (x_0 + 2u)/(\eta b_+)` steps in expectation (optional stopping, with the
    drift :math:`\eta b_+`), and :math:`x_0 \le \eta(\nu - b_-)`.

    Args:
      valley: with the flat side on the right.
      noise: ν ≥ 0.

    Returns:
      `AveragingBound`.

    Example:
      >>> found = averaging_bound(Valley(left=(14.0, 14.0), right=(1.0, 1.0)), noise=1.0)
      >>> found.covered, round(found.lower, 3)
      (True, 1.875)
    """
    check_positive("noise", noise, allow_zero=True)
    (a_minus, b_minus), (b_plus, a_plus) = (
        (min(side), max(side)) for side in (valley.left, valley.right)
    )
    for name, slope in (("left", a_minus), ("right", b_plus)):
        check_positive(f"the smallest slope on the {name}", slope)
    c = float(a_minus / a_plus)
    c_prime = float((b_minus + noise) / b_plus)
    conditions = {
        "the noise is at most the slopes on the right": bool(noise <= a_plus),
        "c' < exp(c/3)/6": bool(c_prime < math.exp(min(c / 3, 700)) / 6),
    }
    lower = -math.inf
    if c > 5 and noise <= a_plus:
        rounds = 1 + (2 * a_plus + noise + b_minus) / b_plus
        lower = float(a_plus * ((c - 3) ** 2 / 4 + (c - 3) / 2 - 2) / rounds)
    return AveragingBound(c, c_prime, conditions, all(conditions.values()), lower)


def noisy_descent(
    valley: Any,
    start: Any,
    *,
    learning_rate: float,
    noise: float,
    steps: int,
    runs: int,
    key: Array,
) -> Array:
    """Returns iterates of SGD in one dimension, w ← w − η(L'(w) + ω), ω uniform on (−ν, ν).

    Args:
      valley: an object with `slope(w)`, such as `Valley`.
      start: w_0, a number, or one for each run.
      learning_rate: η > 0.
      noise: ν ≥ 0.
      steps: T.
      runs: independent runs, all at once.
      key: random key.

    Returns:
      w_1 … w_T, shape (runs, T).

    Example:
      >>> path = noisy_descent(Valley(left=(1.0, 1.0), right=(1.0, 1.0)), 1.0, learning_rate=0.25,
      ...                      noise=0.0, steps=3, runs=1, key=jax.random.key(0))
      >>> path.tolist()
      [[0.75, 0.5, 0.25]]
    """
    check_positive("learning_rate", learning_rate)
    check_positive("noise", noise, allow_zero=True)
    start = jnp.broadcast_to(jnp.asarray(start, float), (check_at_least("runs", runs, 1),))
    numbers = jnp.asarray(learning_rate, float), jnp.asarray(noise, float)
    return _descend(valley, start, numbers, key, check_at_least("steps", steps, 1))


@functools.partial(jax.jit, static_argnums=4)
def _descend(valley: Any, start: Array, numbers: Any, key: Array, steps: int) -> Array:
    learning_rate, noise = numbers

    def step(w: Array, t: Array) -> tuple[Array, Array]:
        drawn = jax.random.uniform(jax.random.fold_in(key, t), w.shape, w.dtype, -1, 1)
        w = w - learning_rate * (valley.slope(w) + noise * drawn)
        return w, w

    return jax.lax.scan(step, start, jnp.arange(steps))[1].T
