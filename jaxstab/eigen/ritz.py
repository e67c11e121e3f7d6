"""What the projected operator of a Lanczos process says: the pairs, their bounds, what to do next.

Three readings, each of the ones before: `wanted_pairs` takes the best eigenpairs of the small
matrix t and of those locked already, `bounds` encloses the operator's eigenvalues, and `decide`
ends the process, starts a new phase or lets it go on. `read` puts them together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.eigen import certificate, rounding
from jaxstab.eigen.difference import DIFFERENCE
from jaxstab.eigen.state import Plan, State


class Spectrum(NamedTuple):
    """Eigenpairs of t on the active rows."""

    theta: jax.Array  # (M,) descending; the first `active` are Ritz values, the rest padding
    s: jax.Array  # (M, M) their coefficients, as columns
    active: jax.Array  # () number of active rows


class Pairs(NamedTuple):
    """The best k of locked and active pairs, in descending order."""

    value: jax.Array  # (k,) -inf where missing
    residual: jax.Array  # (k,)
    q: jax.Array  # (M, k) coefficients of their vectors
    fresh: jax.Array  # (k,) bool: active, not locked
    complete: jax.Array  # () bool: all k are there


class Bounds(NamedTuple):
    """Where the operator's k largest eigenvalues lie."""

    lower: jax.Array  # (k,)
    upper: jax.Array  # (k,)
    floor: jax.Array  # () rounding of a symmetric operator of this norm
    rounding: jax.Array  # () the same, with what was seen of asymmetry and non-linearity
    noise: jax.Array  # () what a final product with a reference may add to it


class Decision(NamedTuple):
    """What to do next."""

    converged: jax.Array  # () bool
    done: jax.Array  # () bool: converged, or no further product can help
    lock: jax.Array  # () bool: lock the best pairs, start a new phase


class Ritz(NamedTuple):
    """All of it: what the loops carry beside the state."""

    spectrum: Spectrum
    pairs: Pairs
    bounds: Bounds
    decision: Decision


def read(plan: Plan, state: State) -> Ritz:
    """Returns the best pairs so far, their intervals, and what to do next."""
    spectrum = active_spectrum(plan, state)
    pairs = wanted_pairs(plan, state, spectrum)
    enclosed = bounds(plan, state, spectrum, pairs)
    # A hair more than asked for, so that measuring the result at the end does not undo it.
    tol = 0.98 * plan.options.tol
    return Ritz(spectrum, pairs, enclosed, decide(plan, state, pairs, enclosed, tol))


def active_spectrum(plan: Plan, state: State) -> Spectrum:
    """Diagonalises the active block of t; unused rows are padded with values below all others."""
    rows = jnp.arange(plan.rows)
    used = (rows >= state.n_locked) & (rows < state.filled)
    t = jnp.where(used[:, None] & used & jnp.isfinite(state.t), state.t, 0)
    size = jnp.max(jnp.sum(jnp.abs(t), axis=0))
    padding = -jnp.where(size > 0, 1.5 * size, 1)
    theta, s = jnp.linalg.eigh(t + jnp.diag(jnp.where(used, 0, padding)))
    return Spectrum(theta[::-1], s[:, ::-1], jnp.sum(used))


def wanted_pairs(plan: Plan, state: State, spectrum: Spectrum) -> Pairs:
    """Ranks locked and active pairs; an active one must be clearly larger to displace a locked."""
    k, tol = plan.options.k, plan.options.tol
    theta, s, active = spectrum
    last = jnp.clip(state.filled - 1, 0, plan.rows - 1)
    found = jnp.where(jnp.arange(k) < active, theta[:k], -jnp.inf)
    found_residual = jnp.hypot(state.beta * jnp.abs(s[last, :k]), _coupling(state))
    rank = jnp.concatenate([state.locked, found - 0.25 * tol * jnp.abs(found)])
    order = lax.top_k(jnp.where(jnp.isnan(rank), -jnp.inf, rank), k)[1]
    q = jnp.concatenate([jnp.eye(plan.rows, k, dtype=s.dtype), s[:, :k]], axis=1)
    return Pairs(
        value=jnp.concatenate([state.locked, found])[order],
        residual=jnp.concatenate([state.locked_residual, found_residual])[order],
        q=q[:, order],
        fresh=order >= k,
        complete=state.n_locked + active >= k,
    )


def bounds(plan: Plan, state: State, spectrum: Spectrum, pairs: Pairs) -> Bounds:
    """Encloses the eigenvalues: below by Rayleigh quotients, above by the certificate.

    The i-th eigenvalue is at most the larger of the i-th locked value and the bound on the
    complement of the locked vectors. Their residuals couple the two blocks, which moves an
    eigenvalue by no more than the norm of that coupling (Weyl).
    """
    scale = _scale(state, spectrum)
    floor = rounding.allowance(plan.model, scale, plan.dimension)
    allowed = floor + 2 * state.asymmetry
    allowed += rounding.beyond(state.defect, floor, eps=plan.eps, scale=scale, steps=state.matvecs)
    coupling = _coupling(state)
    apart = coupling + state.noise if plan.options.k > 1 else 0
    rest = _complement_bound(plan, state, spectrum, allowed)
    exhausted = state.filled >= plan.dimension
    upper = jnp.where(exhausted, pairs.value, jnp.maximum(state.locked, rest))
    return Bounds(
        lower=pairs.value - allowed - state.noise / DIFFERENCE - apart,
        upper=upper + coupling + allowed + state.noise,
        floor=floor,
        rounding=allowed,
        noise=state.noise / DIFFERENCE,
    )


def decide(plan: Plan, state: State, pairs: Pairs, enclosed: Bounds, tol: float) -> Decision:
    """Ends the process, locks the best pairs and starts a new phase, or lets it go on."""
    options, k = plan.options, plan.options.k
    lower, upper, floor, allowed, noise = enclosed
    magnitude = jnp.abs(pairs.value)
    good = pairs.residual + allowed + noise <= tol * magnitude
    # No more is spent than rounding is worth: no interval is narrower than three allowances.
    least = allowed + (1 + DIFFERENCE) / 2 * noise
    hopeless = 2 * least > tol * magnitude
    stalled = (pairs.residual <= least) & hopeless
    # Zero on the scale of ‖A‖; asymmetry that was seen is no excuse.
    null = (magnitude <= floor) & (pairs.residual <= floor)
    if options.certify:
        good = good & (upper - lower <= tol * magnitude)
        null = null & (upper - lower <= 4 * floor)
        enough = jnp.where(hopeless, 8, 3.3) * least
        stalled = (pairs.residual <= least) & (upper - lower <= enough)
    converged = pairs.complete & jnp.all(good | null)

    # In this phase the bound can come down on the best k values if at most the last one is new.
    certifiable = state.random & ~jnp.any(pairs.fresh[: k - 1])
    target = tol * jnp.min(magnitude) / (4 * k**0.5)
    ready = pairs.complete & jnp.all(pairs.residual <= jnp.maximum(target, floor))
    settled = state.invariant & certifiable & pairs.complete
    exhausted = state.filled >= plan.dimension
    done = converged | settled | exhausted | (state.invariant & (not plan.phases))
    done = done | (pairs.complete & jnp.all(stalled))
    lock = ~done & plan.phases & (state.invariant | (ready & ~certifiable))
    return Decision(converged, done, lock)


def settle(plan: Plan, state: State, ritz: Ritz, measured: Any, model: Any) -> Ritz:
    """Returns the pairs and bounds with Rayleigh quotients and residuals as they were measured.

    Args:
      plan, state, ritz: as the process ended, `state.noise` with the final vectors in it.
      measured: `Closing` of each vector, by products of the process or of a reference.
      model: rounding model of those products.
    """
    enclosed = bounds(plan, state, ritz.spectrum, ritz.pairs)
    own = rounding.allowance(model, _scale(state, ritz.spectrum), plan.dimension)
    pairs = ritz.pairs._replace(value=measured.quotient, residual=measured.rest)
    allowed, upper = enclosed.rounding, enclosed.upper
    apart = _coupling(state) if plan.options.k > 1 else 0
    if plan.closings == 0:
        # Products of a reference: none of what the process did is in the certain end for k = 1.
        allowed, upper = own, upper + own
        apart += (1 + 1 / DIFFERENCE) * state.noise if plan.options.k > 1 else 0
    enclosed = Bounds(
        lower=measured.quotient - allowed - apart,
        upper=jnp.maximum(upper, measured.quotient + allowed),
        floor=own,
        rounding=allowed,
        noise=jnp.zeros_like(own),
    )
    decision = decide(plan, state, pairs, enclosed, plan.options.tol)
    return ritz._replace(pairs=pairs, bounds=enclosed, decision=decision)


def _scale(state: State, spectrum: Spectrum) -> jax.Array:
    """Lower bound of ‖A‖: products and Ritz values so far."""
    active = jnp.arange(spectrum.theta.size) < spectrum.active
    return jnp.maximum(state.scale, jnp.max(jnp.where(active, jnp.abs(spectrum.theta), 0)))


def _coupling(state: State) -> jax.Array:
    """How much the locked vectors may interact with the rest: norm of their residuals."""
    return jnp.sqrt(2 * jnp.sum(state.locked_residual**2))


def _complement_bound(plan: Plan, state: State, spectrum: Spectrum, least: jax.Array) -> jax.Array:
    """Upper bound on the operator's largest eigenvalue on the complement of the locked vectors."""
    options, theta = plan.options, spectrum.theta
    roots = jnp.concatenate([theta, state.dropped])
    used = jnp.concatenate(
        [
            jnp.arange(plan.rows) < spectrum.active,
            jnp.arange(state.dropped.size) < state.n_dropped,
        ]
    )
    # One random phase certifies k = 1. With more, phase q may fail with probability δ/2^(q+1).
    share = 0.0 if options.k == 1 else (state.phase + 1) * jnp.log(2.0)
    log_ratio = state.log_nu - certificate.log_quantile(options.failure_probability) + share
    offset = certificate.bound_offset(roots, used, log_ratio.astype(theta.dtype), least)
    return theta[0] + jnp.where(state.invariant & state.random, 0, offset)
