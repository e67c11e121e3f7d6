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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.eigen import krylov, vectors
from jaxstab.eigen.ritz import Ritz, read
from jaxstab.eigen.state import Plan, State


class Kept(NamedTuple):
    """What a restart leaves, all but the vectors themselves: fields of `State`, and q."""

    q: jax.Array  # (M, keep) the new rows of the basis in terms of the old ones
    t: jax.Array
    filled: jax.Array
    n_locked: jax.Array
    locked: jax.Array
    locked_residual: jax.Array
    random: jax.Array
    phase: jax.Array
    n_dropped: jax.Array


def finished(plan: Plan, state: State, ritz: Ritz) -> jax.Array:
    """Whether no further product is to be spent."""
    del ritz
    return state.bad | (state.stopping & (state.closed >= plan.closings))


def pause(plan: Plan, state: State, ritz: Ritz) -> jax.Array:
    """Whether the basis can or should not be extended: finished, to be locked, or full."""
    full = ritz.decision.lock | (state.filled >= plan.rows)
    return finished(plan, state, ritz) | (full & ~state.stopping)


def start(plan: Plan, key: jax.Array, v0: Any, noise: jax.Array) -> State:
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
        stopping=jnp.array(False),
        closed=index,
        quotient=jnp.zeros(options.k, dtype),
        rest=jnp.zeros(options.k, dtype),
        defect=zero,
        noise=noise,
    )


def step(plan: Plan, apply: Callable[[Any], Any], carry: tuple[State, Ritz]) -> tuple[State, Ritz]:
    """Multiplies the next vector and looks at the Ritz values, or multiplies a final vector.

    Both in one place, so that the product is compiled once.
    """
    state, ritz = carry
    following = vectors.row(state.basis, state.filled)
    if not plan.closings:
        return _extend(plan, state, apply(following), True)
    closing, number = state.stopping, jnp.minimum(state.closed, plan.closings - 1)
    y = final_vector(plan, state, ritz, number, closing)
    w = apply(jax.tree.map(lambda y, v: jnp.where(closing, y, v), y, following))
    extended, looked_at = _extend(plan, state, w, ~closing)
    measured = close(state, ritz, number, y, w)
    closed = state._replace(
        basis=extended.basis,
        closed=state.closed + 1,
        quotient=state.quotient.at[number].set(measured.quotient),
        rest=state.rest.at[number].set(measured.rest),
        defect=jnp.maximum(state.defect, measured.defect),
        bad=~jnp.isfinite(measured.quotient + measured.rest),
    )
    choose = lambda a, b: jnp.where(closing, a, b)  # noqa: E731
    rest: Any = {"basis": None, "key": None}  # of each there is one
    small = jax.tree.map(choose, closed._replace(**rest), extended._replace(**rest))
    state = small._replace(basis=extended.basis, key=state.key)
    return state, jax.tree.map(choose, ritz, looked_at)


class Closing(NamedTuple):
    """What a product with a final vector y says."""

    quotient: jax.Array  # yᵀA y
    rest: jax.Array  # ‖A y − (yᵀA y) y‖
    defect: jax.Array  # ‖A y − what the process takes for it‖


def final_vector(plan: Plan, state: State, ritz: Ritz, number: Any, wanted: Any = True) -> Any:
    """Ritz vector of the wanted pair; zero, without reading the basis, where it is not wanted."""
    q = jnp.take(ritz.pairs.q, number, axis=1)
    zero = jax.tree.map(lambda b: jnp.zeros_like(b[0]), state.basis)
    stop = jnp.where(wanted, jnp.minimum(state.filled, plan.rows), 0)
    return vectors.unit(vectors.subtract(zero, state.basis, -q, 0, stop))[0]


def close(state: State, ritz: Ritz, number: Any, y: Any, w: Any) -> Closing:
    """Compares w = A y with what A V = V T + β v eᵀ makes of the vectors multiplied before.

    For an eigenvector q of T that is θ y + β q_last v. A locked vector has its residual to spare.
    """
    quotient = vectors.dot(y, w)
    value, residual, fresh = (
        jnp.take(x, number) for x in (ritz.pairs.value, ritz.pairs.residual, ritz.pairs.fresh)
    )
    last = jnp.take(ritz.pairs.q, number, axis=1)[jnp.maximum(state.filled - 1, 0)]
    last = jnp.where(fresh, state.beta * last, 0)
    following = vectors.row(state.basis, state.filled)
    unexplained = vectors.add(vectors.add(w, -value, y), -last, following)
    spare = jnp.where(fresh, 0, residual) + jnp.sqrt(2 * jnp.sum(state.locked_residual**2))
    return Closing(
        quotient,
        vectors.norm(vectors.add(w, -quotient, y)),
        jnp.maximum(0, vectors.norm(unexplained) - spare),
    )


def _extend(plan: Plan, state: State, w: Any, write: Any) -> tuple[State, Ritz]:
    """The basis with the product w of its next vector."""
    j = state.filled
    new = krylov.absorb(
        w,
        state.basis,
        state.t,
        j,
        first=state.n_locked,
        begin=jnp.where(j == state.arrow, state.n_locked, jnp.maximum(j - 1, state.n_locked)),
        scale=state.scale,
        eps=plan.eps,
        write=write,
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
    ritz = read(plan, state)
    stopping = ritz.decision.done | (state.matvecs >= plan.options.max_matvecs)
    return state._replace(stopping=stopping), ritz


def restart(plan: Plan, state: State, ritz: Ritz) -> tuple[State, Ritz]:
    """Makes room: keeps the best Ritz vectors, or locks the best pairs and starts a phase.

    Both are small arrays; the basis, which is not, is rotated once for whichever is chosen.
    """
    kept = _keep_best(plan, state, ritz)
    following, log_nu, key = vectors.row(state.basis, plan.rows), state.log_nu, state.key
    if plan.phases:
        lock = ritz.decision.lock
        locked = _lock_best(plan, state, ritz)
        kept = jax.tree.map(lambda new, old: jnp.where(lock, new, old), locked, kept)
    basis = vectors.rotate(state.basis, jnp.pad(kept.q, ((0, 1), (0, 0))))
    if plan.phases:
        key, sub = jax.random.split(key)
        following, log_nu = lax.cond(
            lock,
            lambda: _random_complement(plan, sub, basis, kept.filled),
            lambda: (following, log_nu),
        )
    # Written beyond n_dropped, so without effect where a new phase starts from none.
    leaving = jnp.roll(ritz.spectrum.theta, state.n_locked - plan.keep)
    state = state._replace(
        **{name: value for name, value in kept._asdict().items() if name != "q"},
        basis=vectors.set_row(basis, kept.filled, following),
        arrow=kept.filled,
        log_nu=log_nu,
        dropped=lax.dynamic_update_slice(state.dropped, leaving, (state.n_dropped,)),
        key=key,
    )
    return state, ritz._replace(decision=ritz.decision._replace(lock=jnp.array(False)))


def _keep_best(plan: Plan, state: State, ritz: Ritz) -> Kept:
    """Thick restart: locked rows stay, and the best Ritz vectors fill up to `keep` rows.

    On these, t is diagonal; the next vector couples to each by β times the last coefficient of it,
    which makes an arrow of t once its row is filled.
    """
    keep = plan.keep
    rows, columns = jnp.arange(plan.rows), jnp.arange(keep)
    source = jnp.clip(columns - state.n_locked, 0, plan.rows - 1)
    is_locked = columns < state.n_locked
    s = ritz.spectrum.s
    values = jnp.where(is_locked, 0, ritz.spectrum.theta[source])
    arrow = jnp.where(is_locked, 0, state.beta * s[plan.rows - 1, source])
    t = jnp.zeros_like(state.t).at[columns, columns].set(values)
    if keep < plan.rows:
        t = t.at[columns, keep].set(arrow).at[keep, columns].set(arrow)
    return Kept(
        q=jnp.where(is_locked, rows[:, None] == columns, s[:, source]),
        t=t,
        filled=jnp.array(keep, jnp.int32),
        n_locked=state.n_locked,
        locked=state.locked,
        locked_residual=state.locked_residual,
        random=state.random,
        phase=state.phase,
        n_dropped=state.n_dropped + state.filled - keep,
    )


def _lock_best(plan: Plan, state: State, ritz: Ritz) -> Kept:
    """Locks the best pairs, at most k; nothing else stays, and the next phase starts at random."""
    k = plan.options.k
    value, residual, q = ritz.pairs.value, ritz.pairs.residual, ritz.pairs.q
    present = jnp.isfinite(value)
    best = jnp.sum(present).astype(jnp.int32)
    return Kept(
        q=jnp.zeros((plan.rows, plan.keep), q.dtype)
        .at[:, :k]
        .set(jnp.where(jnp.arange(k) < best, q, 0)),
        t=jnp.zeros_like(state.t),
        filled=best,
        n_locked=best,
        locked=value,
        locked_residual=jnp.where(present, residual, 0),
        random=jnp.array(True),
        phase=state.phase + state.random,
        n_dropped=jnp.zeros((), jnp.int32),
    )


def _random_complement(
    plan: Plan, key: jax.Array, basis: Any, count: jax.Array
) -> tuple[Any, jax.Array]:
    """A normal vector projected on the complement of the first rows: direction, log of length."""
    x = vectors.normal(key, plan.sig)
    for _ in range(2):
        x, _ = vectors.orthogonalize(x, basis, count)
    direction, length = vectors.unit(x)
    # Once more at unit length: in a complement of few dimensions little of x may be left.
    direction, _ = vectors.orthogonalize(direction, basis, count)
    return vectors.unit(direction)[0], jnp.log(length)
