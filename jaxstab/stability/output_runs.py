"""Linearised SGD simulated in the span that it moves in: growth rates, and runs beside SGD.

With Gauss–Newton H_i = F_iᵀF_i and F reduced to the r ≤ n k dimensions of its rows, in which H is
diagonal with the eigenvalues λ, SGD linearised at a point is

    x ← x − (η/B) Σ_{i∈B} F_iᵀ F_i x,      xᵀHx = Σ_j λ_j x_j²,

so a run holds r numbers, whatever p is, and a step is a few rows of F: for small problems. With the
squared loss and F_i x = √(2/k) (f_i − y_i) this is SGD on the network linearised at θ, and xᵀHx is
twice its loss.

In the mean square E |u|² rare runs count most, and a plain average over runs misses them. Here a
population of runs is resampled in proportion to the growth of |u|² (a Feynman–Kac particle system;
Del Moral, *Feynman–Kac Formulae*, 2004): the product of its mean growth factors is an unbiased
estimate of E |u_t|²/|u_0|² for any number of runs, and its logarithm per step tends to the growth
of the mean square as the population grows. A population of one run is a typical run.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.checks import check_at_least, check_batch_size, check_finite, check_positive
from jaxstab.examples import check_in_memory
from jaxstab.operators.hessian import Loss, Params, check_problem
from jaxstab.operators.outputs import OutputFactors
from jaxstab.precision import at
from jaxstab.sampling import batch_indices, resample, take

_GATHER = 0.1  # share of the examples in a batch from which a product with all of F is faster
_DROP = 1e-6


class GrowthRate(NamedTuple):
    """Growth of log xᵀHx per step at several learning rates."""

    value: jax.Array
    """Mean over populations, (m,)."""
    standard_error: jax.Array
    """From the scatter of the independent populations, (m,)."""
    resolution: float
    """One over the number of steps that count: rates nearer to 0 are not told from 0."""

    @property
    def sign(self) -> jax.Array:
        """1 grows, -1 decays, 0 not told apart at 3 errors and the resolution, (m,)."""
        margin = 3 * self.standard_error + self.resolution
        return jnp.where(self.value > margin, 1, jnp.where(self.value < -margin, -1, 0))


def growth_rates(
    factors: Any,
    *,
    learning_rates: Any,
    batch_size: int,
    key: jax.Array,
    chains: int = 256,
    populations: int = 4,
    steps: int = 300,
    replacement: bool = False,
) -> GrowthRate:
    """Returns the simulated growth of log xᵀHx per step, in mean square or of a typical run.

    With many `chains` in a population: log λ_max(Q) of the moments, seen by the growth of E xᵀHx
    (Mulayoff & Michaeli, arXiv 2306.07850, section 3), from below by about 1/chains. With
    `chains=1`: 2γ, γ the almost-sure exponent. The runs start from H z, z standard normal, and the
    first quarter of the steps does not count.

    Args:
      factors: F_i in coordinates where H is diagonal, (n, k, r), from `reduced_factors` or
        `exact.reduce`.
      learning_rates: η, (m,); an operand.
      batch_size: B.
      key: random key; the same batches serve all learning rates.
      chains: runs in a population.
      populations: independent ones, at least 2; the error is taken over them.
      steps: of each run.
      replacement: whether a batch may hold an example more than once.

    Returns:
      `GrowthRate`. Cost: m · populations · chains · steps products with B k rows of F.

    Raises:
      ValueError: for numbers out of range, or factors that are not (n, k, r).

    Example:
      >>> one = jnp.sqrt(jnp.full((1, 1, 1), 2.0))  # x ← (1 − 2η) x
      >>> found = growth_rates(one, learning_rates=[1.5], batch_size=1, key=jax.random.key(0))
      >>> round(float(found.value[0]), 4)  # log (1 − 3)²
      1.3863
    """
    factors, n = _check_factors(factors)
    etas = jnp.atleast_1d(jnp.asarray(learning_rates, factors.dtype))
    for eta in etas:
        check_positive("learning_rate", float(eta))
    check_at_least("chains", chains, 1)
    check_at_least("populations", populations, 2)
    check_at_least("steps", steps, 4)
    check_batch_size(batch_size, n, replacement=replacement)
    logs = _population(
        factors,
        etas,
        jax.random.split(key, populations),
        batch_size=batch_size,
        chains=chains,
        steps=steps,
        replacement=replacement,
    )
    first = steps // 4
    each = jnp.mean(logs[..., first:], -1)  # (m, populations)
    error = jnp.std(each, 1, ddof=1) / populations**0.5
    return GrowthRate(jnp.mean(each, 1), error, 1 / (steps - first))


def reduced_factors(factors: OutputFactors) -> jax.Array:
    """Returns F in the span of its rows, in coordinates where H is diagonal, (n, k, r).

    From the eigenvectors of 𝒦 = F Fᵀ = U Λ Uᵀ: F = U √Λ, the same as `exact.reduce` without the
    n k p numbers of F itself. Eigenvalues below 1e-6 of the largest, the rounding of float32, are
    left out. Cost: n k products with 𝒦, and O((n k)³) on the host.

    Raises:
      ValueError: if n k is above 8192.
    """
    matrix = np.asarray(factors.matrix(), float).reshape((factors.n * factors.outputs,) * 2)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > _DROP * values[-1]
    reduced = (vectors[:, kept] * np.sqrt(values[kept])).reshape(factors.n, factors.outputs, -1)
    return jnp.asarray(reduced, factors.roots.dtype)


def _check_factors(factors: Any) -> tuple[jax.Array, int]:
    factors = jnp.asarray(factors)
    if factors.ndim != 3 or 0 in factors.shape:
        raise ValueError(f"factors must have shape (n, k, r), got {factors.shape}")
    return factors, len(factors)


def _step(factors: jax.Array, x: jax.Array, eta: jax.Array, batch: jax.Array) -> jax.Array:
    """x − (η/B) F_BᵀF_B x; of all of F where the batch is a good part of the examples."""
    n, k, r = factors.shape
    if len(batch) >= _GATHER * n:
        hits = jnp.zeros(n, x.dtype).at[batch].add(1)
        rows = factors.reshape(n * k, r)
        moved = (jnp.repeat(hits, k) * (rows @ x)) @ rows
    else:
        rows = factors[batch].reshape(-1, r)
        moved = (rows @ x) @ rows
    return x - eta / len(batch) * moved


def _curvatures(factors: jax.Array) -> jax.Array:
    """λ, (r,)."""
    return jnp.sum(factors**2, (0, 1)) / len(factors)


@functools.partial(jax.jit, static_argnames=("batch_size", "chains", "steps", "replacement"))
def _population(
    factors: jax.Array,
    etas: jax.Array,
    keys: jax.Array,
    *,
    batch_size: int,
    chains: int,
    steps: int,
    replacement: bool,
) -> jax.Array:
    """Logarithm of the mean growth of xᵀHx of each population in each step, (m, G, steps)."""
    n, h = len(factors), _curvatures(factors)

    def advance(eta: jax.Array, xs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        draw, choose = jax.random.split(key)

        def one(x: jax.Array, key: jax.Array) -> jax.Array:
            batch = batch_indices(key, n, batch_size, replacement=replacement)
            return _step(factors, x, eta, batch)

        xs = jax.vmap(one)(xs, jax.random.split(draw, chains))
        growth = xs**2 @ h
        mean = jnp.mean(growth)
        if chains > 1:
            chosen = resample(jax.random.uniform(choose), growth)
            xs, growth = xs[chosen], growth[chosen]
        tiny = jnp.finfo(xs.dtype).tiny
        return xs / jnp.sqrt(jnp.maximum(growth, tiny))[:, None], jnp.log(jnp.maximum(mean, tiny))

    def population(eta: jax.Array, key: jax.Array) -> jax.Array:
        begin, walk = jax.random.split(key)
        xs = jax.random.normal(begin, (chains, len(h)), factors.dtype) * h
        xs = xs / jnp.sqrt(xs**2 @ h)[:, None]
        forward = functools.partial(advance, eta)
        return jax.lax.scan(forward, xs, jax.random.split(walk, steps))[1]

    with at("highest"):
        return jax.lax.map(lambda eta: jax.vmap(population, (None, 0))(eta, keys), etas)


class Beside(NamedTuple):
    """Runs of SGD and of its linearisation on the same batches; the start comes first in time."""

    steps: jax.Array
    """(looks + 1,)."""
    loss: jax.Array
    """Mean loss over all examples of the network, (m, s, looks + 1)."""
    linear: jax.Array
    """|u|²/(2n), u = F x, likewise: the loss of the linearised network if u is its residual."""
    params: Params
    """Where the runs of the network ended, leading axes (m, s)."""


def run_beside(
    loss: Loss,
    params: Params,
    data: Any,
    factors: Any,
    start: Any,
    *,
    learning_rates: Any,
    batch_size: int,
    keys: jax.Array,
    steps: int,
    every: int = 10,
) -> Beside:
    """Runs SGD from a point, and SGD linearised there on the very same batches.

    Args:
      loss: `loss(params, example) -> scalar`.
      params: the point, a minimum.
      data: pytree of arrays with a leading axis n.
      factors: F at the point, (n, k, r), from `reduced_factors`.
      start: u at the point, (n, k); √(2/k) (f − y) for the squared loss.
      learning_rates: η, (m,); an operand.
      batch_size: B, without replacement.
      keys: one random key a run, (s,); the same batches serve all learning rates.
      steps: of each run; what is left over by whole `every` is not run.
      every: steps between looks at the loss.

    Returns:
      `Beside`. Cost: m s runs of SGD, and as many products with B k rows of F a step. Memory: m s
      vectors of parameters.

    Raises:
      ValueError: for numbers out of range or shapes that do not fit.
    """
    factors, n = _check_factors(factors)
    check_batch_size(batch_size, n)
    check_in_memory("run_beside", data)
    loss, params, data = check_problem(loss, params, data)
    check_finite("start", start)
    start = jnp.asarray(start, factors.dtype)
    if start.shape != factors.shape[:2]:
        raise ValueError(f"start must have shape {factors.shape[:2]}, got {start.shape}")
    check_at_least("every", every, 1)
    if check_at_least("steps", steps, 1) < every:
        raise ValueError(f"steps must be at least every = {every}, got {steps}")
    looks = steps // every
    etas = jnp.atleast_1d(jnp.asarray(learning_rates, factors.dtype))
    losses, linear, ends = _beside(
        loss, params, data, factors, start, etas, keys, size=batch_size, looks=looks, every=every
    )
    return Beside(jnp.arange(looks + 1) * every, losses, linear, ends)


@functools.partial(jax.jit, static_argnames=("size", "looks", "every"))
def _beside(
    loss: Any,
    params: Params,
    data: Any,
    factors: jax.Array,
    start: jax.Array,
    etas: jax.Array,
    keys: jax.Array,
    *,
    size: int,
    looks: int,
    every: int,
) -> Any:
    n, h = len(factors), _curvatures(factors)
    begin = jnp.einsum("nk,nkr->r", start, factors) / (n * h)
    still = start - factors @ begin  # what no step moves

    def linear(x: jax.Array) -> jax.Array:
        return (x**2 @ h + jnp.sum(still**2) / n) / 2

    def mean(params: Params, examples: Any) -> jax.Array:
        return jnp.mean(jax.vmap(loss, (None, 0))(params, examples))

    def step(eta: jax.Array, carry: Any, key: jax.Array) -> Any:
        params, x = carry
        batch = batch_indices(key, n, size)
        slope = jax.grad(mean)(params, take(data, batch))
        params = jax.tree.map(lambda leaf, g: leaf - eta * g, params, slope)
        return (params, _step(factors, x, eta, batch)), None

    def look(eta: jax.Array, carry: Any, key: jax.Array) -> Any:
        one = functools.partial(step, eta)
        carry, _ = jax.lax.scan(one, carry, jax.random.split(key, every))
        return carry, (mean(carry[0], data), linear(carry[1]))

    def run(eta: jax.Array, key: jax.Array) -> Any:
        first = mean(params, data), linear(begin)
        one = functools.partial(look, eta)
        ended, seen = jax.lax.scan(one, (params, begin), jax.random.split(key, looks))
        losses = (jnp.concatenate([one[None], rest]) for one, rest in zip(first, seen))
        return (*losses, ended[0])

    with at("highest"):
        return jax.vmap(jax.vmap(run, (None, 0)), (0, None))(etas, keys)
