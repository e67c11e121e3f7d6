"""Spectral density of an operator that is known by its products."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, check_positive
from jaxstab.eigen import krylov, vectors


class SpectralDensity(NamedTuple):
    """Density of eigenvalues, smoothed by a Gaussian; it integrates to 1."""

    grid: jax.Array  # (points,), eigenvalues
    density: jax.Array  # (points,), per unit of eigenvalue, mean over probes
    standard_error: jax.Array  # (points,), of that mean, from the spread of the probes
    nodes: jax.Array  # (probes, steps), Ritz values of each probe
    weights: jax.Array  # (probes, steps), their weights, each row adding up to 1
    width: jax.Array  # (), standard deviation of the Gaussian
    matvecs: jax.Array  # (), int32


def spectral_density(
    *, steps: int = 64, probes: int = 10, points: int = 512, width: float = 0.01
) -> Callable[..., SpectralDensity]:
    """Stochastic Lanczos quadrature (Lin, Saad and Yang, SIAM Review 58, 2016, section 3.2).

    For a random unit vector, `steps` products give nodes θ_i and weights τ_i with
    Σ τ_i f(θ_i) ≈ (1/p) tr f(A); the density is the mean over probes of Σ τ_i N(x; θ_i, width²).
    Orthogonality is kept in full, so no eigenvalue appears twice. Low rank, identity and zero
    operators end a probe early without harm.

    Args:
      steps: products for each probe; the basis takes `steps` + 1 vectors of memory.
      probes: at least 2: the spread between them is the error.
      points: of the grid, which covers all nodes and 4 widths more on both sides.
      width: of the Gaussian, relative to the range of the nodes (to |node| if they are all one).

    Returns:
      `estimate(matvec, like, *, key) -> SpectralDensity`; arguments as for `lanczos`.

    Raises:
      ValueError, TypeError: for options out of range, integer vectors, wrong output of matvec.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> estimate = spectral_density(steps=8, probes=4)
      >>> result = estimate(lambda v: jnp.arange(20.0) * v, jnp.zeros(20), key=jax.random.key(0))
      >>> round(float(jnp.trapezoid(result.density, result.grid)), 2)
      1.0
    """
    check_at_least("steps", steps, 1)
    check_at_least("probes", probes, 2)
    check_at_least("points", points, 2)
    check_positive("width", width)

    def estimate(matvec: Callable[[Any], Any], like: Any, *, key: jax.Array) -> SpectralDensity:
        sig = vectors.signature(like, matvec)
        options = (min(int(steps), vectors.size(sig)), int(probes), int(points), float(width))
        return _estimate(as_pytree(matvec), key, sig=sig, options=options)

    return estimate


@functools.partial(jax.jit, static_argnames=("sig", "options"))
def _estimate(
    matvec: Callable[[Any], Any],
    key: jax.Array,
    *,
    sig: vectors.Signature,
    options: tuple[int, int, int, float],
) -> SpectralDensity:
    steps, probes, points, width = options
    apply = vectors.operator(matvec, sig, 1)
    nodes, weights = lax.map(
        functools.partial(_quadrature, apply, sig, steps), jax.random.split(key, probes)
    )
    # Nodes without weight come from rows that were never filled.
    used = weights > 0
    low = jnp.min(jnp.where(used, nodes, jnp.inf))
    high = jnp.max(jnp.where(used, nodes, -jnp.inf))
    spread = jnp.where(high > low, high - low, jnp.maximum(jnp.abs(high), jnp.abs(low)))
    sigma = width * jnp.where(spread > 0, spread, 1)
    grid = jnp.linspace(low - 4 * sigma, high + 4 * sigma, points)

    def smooth(theta, tau):
        bell = jnp.exp(-0.5 * ((grid[:, None] - theta) / sigma) ** 2)
        return bell @ tau / (sigma * jnp.sqrt(2 * jnp.pi))

    each = jax.vmap(smooth)(nodes, weights)
    return SpectralDensity(
        grid=grid,
        density=jnp.mean(each, axis=0),
        standard_error=jnp.std(each, axis=0, ddof=1) / probes**0.5,
        nodes=nodes,
        weights=weights,
        width=sigma,
        matvecs=jnp.array(steps * probes, jnp.int32),
    )


def _quadrature(
    apply: Callable[[Any], Any], sig: vectors.Signature, steps: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights from one random vector."""
    dtype = vectors.working_dtype(sig)
    first, _ = vectors.unit(vectors.normal(key, sig))
    basis = vectors.set_row(vectors.empty_basis(steps + 1, sig), 0, first)

    def body(j, carry):
        basis, t, scale = carry
        # Beyond an invariant subspace the vectors are zero, and so are the rows of t: no weight.
        new = krylov.extend(apply, basis, t, j, scale=scale, eps=vectors.precision(sig))
        return new.basis, new.t, jnp.maximum(scale, new.length)

    t = jnp.zeros((steps, steps), dtype)
    _, t, _ = lax.fori_loop(0, steps, body, (basis, t, jnp.zeros((), dtype)))
    theta, s = jnp.linalg.eigh(t)
    return theta, s[0] ** 2
