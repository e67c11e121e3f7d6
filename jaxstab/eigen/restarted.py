"""Restarted Lanczos for the top of the spectrum, with a certificate.

The process (K. Wu and H. Simon, SIAM J. Matrix Anal. Appl. 22, 2000, thick restart; G. W. Stewart,
SIAM J. Matrix Anal. Appl. 23, 2002, Krylov-Schur) keeps an orthonormal basis V of the Krylov space
with A V = V T + β v eᵀ, T symmetric and small, and reads eigenpairs off T. What is added here:

- It works in *phases*. A phase starts from one vector. If that vector is random, the phase bounds
  the largest eigenvalue of what it works in (`certificate`). When the wanted pairs have converged
  but cannot be certified by this phase (it started from a warm vector, or more than one pair came
  out of it, and a Krylov space shows one copy only of a multiple eigenvalue), they are locked, and
  a new phase starts from a random vector in their orthogonal complement. It ends when the bound on
  the complement shows that nothing larger is left there; if something is, it is found and taken.
- An invariant subspace (β at rounding level) ends the phase: no product is spent beyond it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.eigen import certificate, krylov, vectors

_BASIS_LIMIT = 1 << 30  # bytes; a restart needs up to twice that for a moment
_BASIS_SIZE = 32


@dataclass(frozen=True)
class Options:
    """The static choices of `lanczos`: hashable, so that equal ones share compiled code."""

    k: int
    sign: int
    tol: float
    max_matvecs: int
    basis_size: int | None
    failure_probability: float
    certify: bool


class Plan(NamedTuple):
    """Static sizes."""

    sig: vectors.Signature
    options: Options
    dimension: int
    rows: int  # M: capacity of the basis; one more row holds the next vector
    keep: int  # vectors kept at a restart, locked ones included
    phases: bool  # whether there can be a second one; if not, it is not compiled
    eps: float

    @property
    def restarts(self) -> bool:
        """Whether the basis can ever be left; if not, no restart is compiled."""
        return self.phases or self.rows < self.dimension


class State(NamedTuple):
    """What the loops carry. Rows of the basis: locked | active | next vector."""

    basis: Any  # (M+1, ...) pytree
    t: jax.Array  # (M, M) projected operator of the active rows
    filled: jax.Array  # () rows in use without the next vector
    beta: jax.Array  # () norm of the next vector before it was normalised
    arrow: jax.Array  # () row whose column of t is full, after a restart
    n_locked: jax.Array  # ()
    locked: jax.Array  # (k,) descending, -inf beyond n_locked
    locked_residual: jax.Array  # (k,)
    log_nu: jax.Array  # () log of what P(A) x has as norm; see certificate
    random: jax.Array  # () bool: this phase started from a random vector
    phase: jax.Array  # () number of random phases before this one
    dropped: jax.Array  # (max_matvecs + M,) Ritz values dropped at restarts of this phase
    n_dropped: jax.Array  # ()
    scale: jax.Array  # () largest ‖A v‖ seen, a lower bound of ‖A‖
    asymmetry: jax.Array  # ()
    matvecs: jax.Array  # ()
    invariant: jax.Array  # () bool: the rows in use span an invariant subspace
    bad: jax.Array  # () bool: a product was not finite
    key: jax.Array


class Ritz(NamedTuple):
    """What the projected operator says."""

    theta: jax.Array  # (M,) descending; the first `active` are Ritz values of the active rows
    s: jax.Array  # (M, M) their coefficients, as columns
    value: jax.Array  # (k,) best locked and active values, descending; -inf where missing
    residual: jax.Array  # (k,)
    q: jax.Array  # (M, k) coefficients of their vectors
    lower: jax.Array  # (k,)
    upper: jax.Array  # (k,)
    rounding: jax.Array  # ()
    converged: jax.Array  # () bool
    done: jax.Array  # () bool: converged, or no further product can help
    lock: jax.Array  # () bool: lock the best pairs, start a new phase


def plan(sig: vectors.Signature, options: Options, *, warm: bool) -> Plan:
    """The sizes for these vectors and options."""
    dimension = vectors.size(sig)
    size = options.basis_size
    if size is None:
        size = min(_BASIS_SIZE, _BASIS_LIMIT // vectors.basis_bytes(sig))
        size = max(size, 8, 2 * options.k + 4)
    rows = min(size, dimension)
    keep = min(rows, max(options.k + 2, rows // 2))
    phases = options.k > 1 or (warm and options.certify)
    return Plan(sig, options, dimension, rows, keep, phases, vectors.precision(sig))


def finished(plan: Plan, state: State, ritz: Ritz) -> jax.Array:
    """Whether no further product is to be spent."""
    return ritz.done | state.bad | (state.matvecs >= plan.options.max_matvecs)


def pause(plan: Plan, state: State, ritz: Ritz) -> jax.Array:
    """Whether the basis can or should not be extended: finished, to be locked, or full."""
    return finished(plan, state, ritz) | ritz.lock | (state.filled >= plan.rows)


def start(plan: Plan, key: jax.Array, v0: Any) -> State:
    """The first phase, before its first product."""
    sig, options = plan.sig, plan.options
    dtype = vectors.working_dtype(sig)
    key, sub = jax.random.split(key)
    # Certified, a warm start gets a random phase after it; else it must bring some noise itself.
    x, spread = vectors.start(sub, sig, v0, 0.0 if options.certify else vectors.WARM_NOISE)
    random = spread > 0
    first, length = vectors.unit(x)
    zero, index = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    basis = vectors.set_row(vectors.empty_basis(plan.rows + 1, sig), 0, first)
    return State(
        basis=basis,
        t=jnp.zeros((plan.rows, plan.rows), dtype),
        filled=index,
        beta=zero,
        arrow=index,
        n_locked=index,
        locked=jnp.full(options.k, -jnp.inf, dtype),
        locked_residual=jnp.zeros(options.k, dtype),
        log_nu=jnp.where(random, jnp.log(length / jnp.where(random, spread, 1)), jnp.inf).astype(
            dtype
        ),
        random=random,
        phase=index,
        dropped=jnp.zeros(options.max_matvecs + plan.rows, dtype),
        n_dropped=index,
        scale=zero,
        asymmetry=zero,
        matvecs=index,
        invariant=jnp.array(False),
        bad=jnp.array(False),
        key=key,
    )


def step(plan: Plan, apply: Callable[[Any], Any], carry: tuple[State, Ritz]) -> tuple[State, Ritz]:
    """Extends the basis by one product, and looks at the Ritz values."""
    state, _ = carry
    j = state.filled
    new = krylov.extend(
        apply,
        state.basis,
        state.t,
        j,
        first=state.n_locked,
        begin=jnp.where(j == state.arrow, state.n_locked, jnp.maximum(j - 1, state.n_locked)),
        scale=state.scale,
        eps=plan.eps,
    )
    invariant = new.invariant | (j + 1 >= plan.dimension)
    beta = jnp.where(invariant, 0, new.beta)
    scale = jnp.maximum(state.scale, new.length)
    state = state._replace(
        basis=new.basis,
        t=new.t,
        filled=j + 1,
        beta=beta,
        log_nu=state.log_nu + jnp.where(invariant, 0, jnp.log(jnp.where(invariant, 1, beta))),
        scale=scale,
        asymmetry=jnp.maximum(state.asymmetry, new.stray),
        matvecs=state.matvecs + 1,
        invariant=invariant,
        bad=~(jnp.isfinite(new.t[j, j]) & jnp.isfinite(beta) & jnp.isfinite(scale)),
    )
    return state, ritz(plan, state)


def _active_spectrum(plan: Plan, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenpairs of the active block of t, descending; unused rows come last."""
    rows = jnp.arange(plan.rows)
    used = (rows >= state.n_locked) & (rows < state.filled)
    t = jnp.where(used[:, None] & used & jnp.isfinite(state.t), state.t, 0)
    size = jnp.max(jnp.sum(jnp.abs(t), axis=0))
    padding = -jnp.where(size > 0, 1.5 * size, 1)
    theta, s = jnp.linalg.eigh(t + jnp.diag(jnp.where(used, 0, padding)))
    return theta[::-1], s[:, ::-1], jnp.sum(used)


def ritz(plan: Plan, state: State) -> Ritz:
    """The best pairs so far, their intervals, and what to do next."""
    options, k, tol = plan.options, plan.options.k, plan.options.tol
    theta, s, active = _active_spectrum(plan, state)
    floor = certificate.rounding_allowance(plan.eps, state.scale, plan.dimension)
    rounding = floor + 2 * state.asymmetry
    coupling = jnp.sqrt(2 * jnp.sum(state.locked_residual**2))

    # The best k among locked and active pairs. An active one must be clearly larger to displace.
    last = jnp.clip(state.filled - 1, 0, plan.rows - 1)
    present = jnp.arange(k) < active
    found = jnp.where(present, theta[:k], -jnp.inf)
    found_residual = jnp.hypot(state.beta * jnp.abs(s[last, :k]), coupling)
    rank = jnp.concatenate([state.locked, found - 0.25 * tol * jnp.abs(found)])
    order = lax.top_k(jnp.where(jnp.isnan(rank), -jnp.inf, rank), k)[1]
    value = jnp.concatenate([state.locked, found])[order]
    residual = jnp.concatenate([state.locked_residual, found_residual])[order]
    q = jnp.concatenate([jnp.eye(plan.rows, k, dtype=s.dtype), s[:, :k]], axis=1)[:, order]
    fresh = order >= k
    complete = state.n_locked + active >= k

    exhausted = state.filled >= plan.dimension
    rest = _complement_bound(plan, state, theta, active, rounding)
    upper = jnp.where(exhausted, value, jnp.maximum(state.locked, rest)) + coupling + rounding
    lower = value - rounding - (coupling if k > 1 else 0)
    magnitude = jnp.abs(value)
    good = residual + rounding <= tol * magnitude
    # Zero on the scale of ‖A‖; asymmetry that was seen is no excuse.
    null = (magnitude <= floor) & (residual <= floor)
    if options.certify:
        good = good & (upper - lower <= tol * magnitude)
        null = null & (upper - lower <= 4 * floor)
    converged = complete & jnp.all(good | null)

    # In this phase the bound can come down on the best k values if at most the last one is new.
    certifiable = state.random & ~jnp.any(fresh[: k - 1])
    target = tol * jnp.min(magnitude) / (4 * k**0.5)
    ready = complete & jnp.all(residual <= jnp.maximum(target, floor))
    settled = state.invariant & certifiable & complete
    done = converged | settled | exhausted | (state.invariant & (not plan.phases))
    return Ritz(
        theta=theta,
        s=s,
        value=value,
        residual=residual,
        q=q,
        lower=lower,
        upper=upper,
        rounding=rounding,
        converged=converged,
        done=done,
        lock=~done & plan.phases & (state.invariant | (ready & ~certifiable)),
    )


def _complement_bound(
    plan: Plan, state: State, theta: jax.Array, active: jax.Array, rounding: jax.Array
) -> jax.Array:
    """Upper bound on the operator's largest eigenvalue on the complement of the locked vectors."""
    options = plan.options
    roots = jnp.concatenate([theta, state.dropped])
    used = jnp.concatenate(
        [
            jnp.arange(plan.rows) < active,
            jnp.arange(state.dropped.size) < state.n_dropped,
        ]
    )
    # One random phase certifies k = 1. With more, phase q may fail with probability δ/2^(q+1).
    share = 0.0 if options.k == 1 else (state.phase + 1) * jnp.log(2.0)
    log_ratio = state.log_nu - certificate.log_quantile(options.failure_probability) + share
    offset = certificate.bound_offset(roots, used, log_ratio.astype(theta.dtype), rounding)
    return theta[0] + jnp.where(state.invariant & state.random, 0, offset)


def restart(plan: Plan, state: State, ritz: Ritz) -> tuple[State, Ritz]:
    """Makes room: locks the best pairs and starts a phase, or keeps the best Ritz vectors."""
    k, keep = plan.options.k, plan.keep
    lock = ritz.lock if plan.phases else jnp.array(False)
    rows, columns = jnp.arange(plan.rows), jnp.arange(keep)
    best = jnp.minimum(jnp.sum(jnp.isfinite(ritz.value)), k).astype(jnp.int32)
    n_locked = jnp.where(lock, best, state.n_locked)
    count = jnp.where(lock, n_locked, keep).astype(jnp.int32)

    kept = keep - state.n_locked  # active ones
    source = jnp.clip(columns - state.n_locked, 0, plan.rows - 1)
    is_locked = columns < state.n_locked
    thick = jnp.where(is_locked, rows[:, None] == columns, ritz.s[:, source])
    locking = jnp.zeros((plan.rows, keep), ritz.q.dtype).at[:, :k].set(ritz.q)
    q = jnp.where(lock, jnp.where(columns < best, locking, 0), thick)

    values = jnp.where(is_locked, 0, ritz.theta[source])
    arrow = jnp.where(is_locked, 0, state.beta * ritz.s[plan.rows - 1, source])
    t = jnp.zeros_like(state.t).at[columns, columns].set(values)
    if keep < plan.rows:
        t = t.at[columns, keep].set(arrow).at[keep, columns].set(arrow)
    t = jnp.where(lock, 0, t)

    following, length = vectors.row(state.basis, plan.rows), jnp.ones((), state.t.dtype)
    basis = vectors.rotate(state.basis, jnp.pad(q, ((0, 1), (0, 0))))
    key = state.key
    if plan.phases:
        key, sub = jax.random.split(key)
        following, length = lax.cond(
            lock,
            lambda: _random_complement(plan, sub, basis, count),
            lambda: (following, length),
        )
    dropped = lax.dynamic_update_slice(
        state.dropped, jnp.roll(ritz.theta, -kept), (state.n_dropped,)
    )
    state = state._replace(
        basis=vectors.set_row(basis, count, following),
        t=t,
        filled=count,
        arrow=count,
        n_locked=n_locked,
        locked=jnp.where(lock, ritz.value, state.locked),
        locked_residual=jnp.where(
            lock, jnp.where(jnp.isfinite(ritz.value), ritz.residual, 0), state.locked_residual
        ),
        log_nu=jnp.where(lock, jnp.log(length), state.log_nu),
        random=state.random | lock,
        phase=state.phase + (lock & state.random),
        dropped=dropped,
        n_dropped=jnp.where(
            lock, 0, state.n_dropped + (state.filled - state.n_locked) - kept
        ).astype(jnp.int32),
        key=key,
    )
    return state, ritz._replace(lock=jnp.array(False))


def _random_complement(
    plan: Plan, key: jax.Array, basis: Any, count: jax.Array
) -> tuple[Any, jax.Array]:
    """A normal vector projected on the complement of the first rows: direction and length."""
    x = vectors.normal(key, plan.sig)
    for _ in range(2):
        x, _ = vectors.orthogonalize(x, basis, count)
    direction, length = vectors.unit(x)
    # Once more at unit length: in a complement of few dimensions little of x may be left.
    direction, _ = vectors.orthogonalize(direction, basis, count)
    return vectors.unit(direction)[0], length
