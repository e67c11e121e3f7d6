"""Potentials of d coordinates with two minima of equal depth whose Boltzmann law is known exactly.

CBMM Memo 072 (Zhang et al. 2018, Figs. 3 to 6) runs Langevin dynamics on potentials that it does
not print. Those here are defined by us, and made so that nothing about them has to be sampled: a
*channel*

    V(x) = U(x₁) + k(x₁) Σ_{j≥2} g(x_j)

has, given x₁, independent further coordinates, so every marginal and every occupancy is an
integral over one variable, in any dimension. U and k are C². With the quartic q(t) = 1 − 4t³ + 3t⁴
(q(0) = 1, q'(0) = q''(0) = 0, minimum q(1) = 0 with q''(1) = 12, a wall for t > 1):

- x₁ < 0: the well A with its minimum at (−1, 0, …, 0), U = h q(−x₁), k = 12h: curvature 12h in
  every direction;
- 0 ≤ x₁ ≤ c: a corridor at the height h of the barrier, along which k passes from 12h to 12h f;
- x₁ > c: the well B around x₁ = c + w, U = h q((x₁ − c)/w), k = 12h f.

`two_wells` has g(y) = y²/2 and f = 1/w²: B is A, w times as wide in each of the d coordinates.
`flat_valley` has w = 1, f = 0 and a torus, g(y) = (1 − cos ωy)/ω² with ω = 2π/P: B is flat along
d − 1 coordinates. Because A and B are whole pieces, their occupancies have a ratio in closed form
at every temperature, not only for T → 0.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, special

from jaxstab.callables import register, static
from jaxstab.checks import check_at_least, check_positive

_CURVATURE = 12.0  # q''(1)
_TAIL = 60.0  # the grid of the integrals ends where exp(−U/T) < exp(−60)
_POINTS = 20_001


class Minimum(NamedTuple):
    """A minimum (or, where a curvature is 0, one point of a valley of them).

    Attributes:
      position: shape (d,).
      value: V there.
      curvature: second derivatives along the coordinates, shape (d,).
      region: (lower, upper) of x₁: what counts as this well.
    """

    position: np.ndarray
    value: float
    curvature: np.ndarray
    region: tuple[float, float]


class Marginal(NamedTuple):
    """The density of one coordinate.

    Attributes:
      x: a grid, shape (m,).
      density: shape (m,).
      cumulative: probability up to each point of the grid, shape (m,), from 0 to 1.
    """

    x: np.ndarray
    density: np.ndarray
    cumulative: np.ndarray

    def probability(self, lower: Any, upper: Any) -> Any:
        """Returns the probability of [lower, upper]; arrays of bounds give an array."""
        ends = [np.interp(end, self.x, self.cumulative) for end in (lower, upper)]
        return ends[1] - ends[0]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class Channel:
    """V(x) = U(x₁) + k(x₁) Σ_{j≥2} g(x_j), made by `two_wells` and `flat_valley`.

    A callable pytree: `potential(x)` is V(x) for x of shape (d,), and `potential(x, tilt)` is the
    loss V(x) + tilt·x of one example, so that it is also a `loss(params, example)` whose data are
    `tilts`. Its numbers are operands: another barrier compiles nothing.
    """

    barrier: Any
    width: Any
    corridor: Any
    stiffness_ratio: Any
    period: Any = None
    dimension: int = static(default=1)

    def __call__(self, x: Any, tilt: Any = None) -> jax.Array:
        """Returns V(x), or V(x) + tilt·x; x of shape (d,). On a torus x is not wrapped."""
        x = jnp.asarray(x)
        if x.shape != (self.dimension,):
            raise ValueError(
                f"this potential has {self.dimension} coordinates, got x of shape {x.shape}: "
                "use jax.vmap for several points"
            )
        value = self.axis(x[0])[0] + self.stiffness(x[0])[0] * jnp.sum(self._bowl(x[1:]))
        return value if tilt is None else value + jnp.dot(tilt, x)

    def _bowl(self, y: Any) -> Any:
        """g(y); numpy in, numpy out, and likewise for JAX."""
        if self.period is None:
            return y**2 / 2
        omega = 2 * math.pi / self.period
        sine = np.sin if isinstance(y, np.ndarray) else jnp.sin
        return 2 * (sine(omega * y / 2) / omega) ** 2  # not 1 − cos: exact near 0 in float32

    def axis(self, x: Any) -> tuple[Any, Any, Any]:
        """Returns U(x₁), U'(x₁), U''(x₁); numpy in, numpy out, and likewise for JAX."""
        left, right = (-x).clip(0), ((x - self.corridor) / self.width).clip(0)
        t, slope = left + right, (right > 0) / self.width - (left > 0) * 1.0
        first, second = 12 * t**2 * (t - 1), 12 * t * (3 * t - 2)
        h = self.barrier
        return h * (1 - 4 * t**3 + 3 * t**4), h * slope * first, h * slope**2 * second

    def stiffness(self, x: Any) -> tuple[Any, Any, Any]:
        """Returns k(x₁), k'(x₁), k''(x₁)."""
        t = (x / self.corridor).clip(0, 1)
        top = _CURVATURE * self.barrier
        drop = top * (self.stiffness_ratio - 1)
        step = t**3 * (10 - 15 * t + 6 * t**2)
        first, second = 30 * t**2 * (1 - t) ** 2, 60 * t * (1 - t) * (1 - 2 * t)
        return top + drop * step, drop * first / self.corridor, drop * second / self.corridor**2

    @property
    def minima(self) -> tuple[Minimum, Minimum]:
        """The wells A and B."""
        positions = np.zeros((2, self.dimension))
        positions[:, 0] = -1.0, self.corridor + self.width
        curvature = np.full((2, self.dimension), _CURVATURE * self.barrier)
        curvature[1, 0] /= self.width**2
        curvature[1, 1:] *= self.stiffness_ratio
        left, right = (-math.inf, 0.0), (float(self.corridor), math.inf)
        return (
            Minimum(positions[0], 0.0, curvature[0], left),
            Minimum(positions[1], 0.0, curvature[1], right),
        )

    def wrap(self, x: Any) -> Any:
        """Returns positions (..., d) with the coordinates of the torus in [−P/2, P/2)."""
        if self.period is None:
            return x
        half = self.period / 2
        return x.at[..., 1:].set((x[..., 1:] + half) % self.period - half)

    def tilts(self, n: int, *, scale: float, key: jax.Array) -> jax.Array:
        """Draws n tilts c_i with Σ c_i = 0 and (1/n) Σ c_i c_iᵀ = scale² I exactly, shape (n, d).

        The losses V(x) + c_i·x have the mean V and, everywhere, the gradient covariance
        C_g = scale² I. So SGD with batches of B feels noise of temperature η π(B) scale² / 2,
        on top of what a Langevin step adds.

        Raises:
          ValueError: if n is not above the dimension.
        """
        check_at_least("n", n, self.dimension + 1)
        check_positive("scale", scale)
        draws = jax.random.normal(key, (n, self.dimension))
        centered = draws - jnp.mean(draws, axis=0)
        factor = jnp.linalg.qr(centered)[0]  # orthonormal columns in the span, so still centred
        return scale * math.sqrt(n) * factor

    def occupancy_ratio(self, temperature: float) -> float:
        """Returns P(B)/P(A) of exp(−V/T), in closed form.

        `two_wells`: w^d at every temperature. `flat_valley`: (e^κ / I₀(κ))^(d−1) with
        κ = 12h/(ω²T), which for T → 0 grows like T^(−(d−1)/2).
        """
        check_positive("temperature", temperature)
        low, high = (
            self._log_mass(np.asarray(minimum.curvature[-1]), temperature)
            if self.dimension > 1
            else 0.0
            for minimum in self.minima
        )
        return float(self.width * np.exp((self.dimension - 1) * (high - low)))

    def marginal(
        self, *, temperature: float, coordinate: int = 0, learning_rate: float = 0.0
    ) -> Marginal:
        """Returns the density of one coordinate under exp(−V/T), by numerical integration.

        With a learning rate η, the density of the Langevin *chain* to first order in η: its
        stationary law is exp(−V/T) (1 + η f)/Z with f = |∇V|²/(4T) − ΔV/2 (the Euler–Maruyama case
        of Leimkuhler and Matthews 2013, section 2; on a quadratic, the expansion of
        T/(λ(1 − ηλ/2))). What is left is of order η².

        Args:
          temperature: T.
          coordinate: 0 for x₁; the others have one law in common.
          learning_rate: η ≥ 0; only for coordinate 0.

        Raises:
          ValueError: if a number is out of range.
        """
        check_positive("temperature", temperature)
        check_positive("learning_rate", learning_rate, allow_zero=True)
        if not 0 <= coordinate < self.dimension:
            raise ValueError(f"coordinate must be in 0..{self.dimension - 1}, got {coordinate}")
        if coordinate and learning_rate:
            raise ValueError("the correction for the learning rate is there for coordinate 0 only")
        x = self._grid(temperature)
        stiffness = self.stiffness(x)[0]
        further = (self.dimension - 1) * self._log_mass(stiffness, temperature)
        density = np.exp(further - self.axis(x)[0] / temperature)
        if learning_rate:
            density = density * (1 + learning_rate * self._bias(x, temperature))
        if not coordinate:
            return _normalized(x, density)
        density /= integrate.trapezoid(density, x)
        y = self._transverse_grid(temperature)
        # chunks of x₁: the whole table would be m × m
        total = np.zeros_like(y)
        weight = density * np.gradient(x) / np.exp(self._log_mass(stiffness, temperature))
        bowl = self._bowl(y)
        for part in np.array_split(np.arange(len(x)), 100):
            total += weight[part] @ np.exp(-np.outer(stiffness[part], bowl) / temperature)
        return _normalized(y, total)

    def _grid(self, temperature: float) -> np.ndarray:
        """Points of x₁ up to where U = 60 T: q(1 + s) ≥ 3s⁴ + 6s², so s is bounded."""
        above = _TAIL * temperature / self.barrier
        s = min((above / 3) ** 0.25, (above / 6) ** 0.5)
        return np.linspace(-1 - s, self.corridor + self.width * (1 + s), _POINTS)

    def _transverse_grid(self, temperature: float) -> np.ndarray:
        if self.period is not None:
            return np.linspace(-self.period / 2, self.period / 2, 2001)
        softest = _CURVATURE * self.barrier * min(1, self.stiffness_ratio)
        end = math.sqrt(2 * _TAIL * temperature / softest)
        return np.linspace(-end, end, 4001)

    def _log_mass(self, k: np.ndarray, temperature: float) -> np.ndarray:
        """Log of ∫ exp(−k g(y)/T) dy."""
        if self.period is None:
            return 0.5 * np.log(2 * np.pi * temperature / k)
        omega = 2 * np.pi / self.period
        return np.log(self.period * special.i0e(k / (omega**2 * temperature)))

    def _bias(self, x: np.ndarray, temperature: float) -> np.ndarray:
        """E[f | x₁], f = |∇V|²/(4T) − ΔV/2, with k E g'² = T E g'' for each further coordinate."""
        _, slope, curvature = self.axis(x)
        k, k_slope, k_curvature = self.stiffness(x)
        others, mean, variance, bend = self.dimension - 1, *self._moments(k, temperature)
        pull = (slope + k_slope * others * mean) ** 2 + k_slope**2 * others * variance
        squared = pull + k * temperature * others * bend
        laplacian = curvature + k_curvature * others * mean + k * others * bend
        return squared / (4 * temperature) - laplacian / 2

    def _moments(self, k: np.ndarray, temperature: float) -> tuple[Any, Any, Any]:
        """E g, Var g and E g'' of one further coordinate, given the stiffness."""
        if self.period is None:
            return temperature / (2 * k), temperature**2 / (2 * k**2), np.ones_like(k)
        omega = 2 * np.pi / self.period
        kappa = np.maximum(k / (omega**2 * temperature), 1e-12)
        cosine = special.i1e(kappa) / special.i0e(kappa)
        square = np.where(kappa > 1e-6, 1 - cosine / kappa, 0.5)
        return (1 - cosine) / omega**2, (square - cosine**2) / omega**4, cosine


def _normalized(x: np.ndarray, density: np.ndarray) -> Marginal:
    cumulative = integrate.cumulative_simpson(density, x=x, initial=0.0)
    return Marginal(x, density / cumulative[-1], cumulative / cumulative[-1])


def two_wells(
    dimension: int, *, width: float = 2.0, barrier: float = 1.0, corridor: float = 0.5
) -> Channel:
    """Returns two wells of equal depth, B `width` times as wide as A in each of d coordinates.

    Minima at (−1, 0, …) with curvature 12h in every direction, and at (c + w, 0, …) with 12h/w²;
    depth 0, barrier h, walls of fourth order along x₁ and of second order across. At every
    temperature P(x₁ > c)/P(x₁ < 0) = w^d exactly, since one side is the other, scaled.

    Args:
      dimension: d ≥ 1.
      width: w > 0.
      barrier: h > 0, in units of the loss, as temperatures are.
      corridor: c > 0, distance between the two wells.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> round(two_wells(5).occupancy_ratio(0.3), 6)
      32.0
    """
    check_at_least("dimension", dimension, 1)
    for name, value in (("width", width), ("barrier", barrier), ("corridor", corridor)):
        check_positive(name, value)
    return Channel(barrier, width, corridor, 1 / width**2, dimension=dimension)


def flat_valley(
    dimension: int, *, period: float = 2.0, barrier: float = 1.0, corridor: float = 0.5
) -> Channel:
    """Returns a minimum at a point beside a flat valley of minima of the same depth.

    A at (−1, 0, …) has curvature 12h in every direction. B is the whole torus x₁ = c + 1: curvature
    12h along x₁ and 0 along the d − 1 others, which have period P. The loss is 0 at both.

    Args:
      dimension: d ≥ 2.
      period: P > 0, the length of the torus in each of the d − 1 coordinates.
      barrier: h > 0.
      corridor: c > 0.

    Raises:
      ValueError: if a number is out of range.

    Example:
      >>> [round(flat_valley(d).occupancy_ratio(0.3), 1) for d in (2, 3)]
      [4.9, 23.7]
    """
    check_at_least("dimension", dimension, 2)
    for name, value in (("period", period), ("barrier", barrier), ("corridor", corridor)):
        check_positive(name, value)
    return Channel(barrier, 1.0, corridor, 0.0, period, dimension)
