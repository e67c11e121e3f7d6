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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, check_name, check_positive
from jaxstab.eigen import certificate, vectors
from jaxstab.eigen.result import EigenResult, Interval

_BASIS_LIMIT = 1 << 30  # bytes; a restart needs up to twice that for a moment
_BASIS_SIZE = 32
_WARM_NOISE = 0.1

Solver = Callable[..., EigenResult]


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


def lanczos(
    *,
    k: int = 1,
    which: str = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    basis_size: int | None = None,
    failure_probability: float = 1e-3,
    certify: bool = True,
) -> Solver:
    """Lanczos for the k largest (or smallest) algebraic eigenvalues of a symmetric operator.

    Algebraic: the spectrum [−25, 20] has largest eigenvalue 20. Stops when the residual of every
    wanted Ritz pair *and* the width of its interval are at most `tol` · |θ| (or when θ and the
    width are zero to rounding on the scale of ‖A‖), never on a change of value.

    Cost: one product per step, and reading the basis once. The certificate needs about
    log(√p / (tol · failure_probability)) / log-growth products in place of log(√p / tol); k > 1
    and a warm start pay for one more phase, without the factor tol.

    Args:
      k: how many eigenvalues, counted with multiplicity.
      which: "largest" or "smallest".
      tol: relative accuracy of value and interval. The floor is about 20 machine epsilons times
        ‖A‖/|θ|, 2e-6 in float32; below it the result is not converged, which it says.
      max_matvecs: budget of products with the operator.
      basis_size: vectors kept between restarts, at least k + 4 (or p). None: 32, or as many fewer
        (at least 8) as 1 GiB holds; a restart takes up to twice that for a moment.
      failure_probability: of the uncertain end of the interval, over the random start.
      certify: if False, stop on the residuals alone. The interval is still right but may be wide,
        and a warm start may then be caught by a lower eigenvalue; to look often and cheaply.

    Returns:
      `solve(matvec, like, *, key, v0=None) -> EigenResult`. `matvec` is a symmetric operator on
      pytrees like `like` (e.g. the parameters), of which only structure, shapes and dtypes are
      used; float32, float64, lower precision or mixed. `key` is a `jax.random` key. `v0` is a
      vector to start from, of any length, such as the last eigenvector; a zero or non-finite one
      is ignored. Usable inside jit, vmap and scan; compiled once for equal options, shapes and
      tree structures, with the arrays inside `matvec` as operands if it is a registered pytree.

    Raises:
      ValueError, TypeError: at once for options out of range; when called, for integer vectors,
        k above p and a matvec whose output is not like its input.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> solve = lanczos(tol=1e-4)
      >>> result = solve(lambda v: jnp.arange(10.0) * v, jnp.zeros(10), key=jax.random.key(0))
      >>> print(round(float(result.value), 3), bool(result.converged))
      9.0 True
    """
    check_at_least("k", k, 1)
    check_name("which", which, ("largest", "smallest"))
    check_positive("tol", tol)
    check_at_least("max_matvecs", max_matvecs, 1)
    if max_matvecs < k:
        raise ValueError(f"max_matvecs {max_matvecs} is below k = {k}: give more, such as {20 * k}")
    if basis_size is not None and check_at_least("basis_size", basis_size, 1) < k + 4:
        raise ValueError(f"basis_size must be at least k + 4 = {k + 4}, got {basis_size}")
    check_positive("failure_probability", failure_probability)
    if failure_probability >= 1:
        raise ValueError(f"failure_probability must be below 1, got {failure_probability}")
    options = Options(
        k=int(k),
        sign=1 if which == "largest" else -1,
        tol=float(tol),
        max_matvecs=int(max_matvecs),
        basis_size=basis_size,
        failure_probability=float(failure_probability),
        certify=bool(certify),
    )

    def solve(
        matvec: Callable[[Any], Any], like: Any, *, key: jax.Array, v0: Any = None
    ) -> EigenResult:
        sig = vectors.signature(like)
        if k > vectors.size(sig):
            raise ValueError(f"k = {k} eigenvalues of an operator of dimension {vectors.size(sig)}")
        if v0 is not None:
            vectors.check_same("v0", v0, vectors.structs(sig))
        return _solve(as_pytree(matvec), key, v0, sig=sig, options=options)

    return solve


class _Plan(NamedTuple):
    """Static sizes."""

    sig: vectors.Signature
    options: Options
    dimension: int
    rows: int  # M: capacity of the basis; one more row holds the next vector
    keep: int  # vectors kept at a restart, locked ones included
    eps: float


class _State(NamedTuple):
    """What the loops carry. Rows of the basis: locked | active | next vector."""

    basis: Any  # (M+1, ...) pytree
    t: jax.Array  # (M, M) projected operator of the active rows
    count: jax.Array  # () rows in use without the next vector
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


class _Ritz(NamedTuple):
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


def _plan(sig: vectors.Signature, options: Options) -> _Plan:
    dimension = vectors.size(sig)
    size = options.basis_size
    if size is None:
        size = min(_BASIS_SIZE, _BASIS_LIMIT // vectors.basis_bytes(sig))
        size = max(size, 8, 2 * options.k + 4)
    rows = min(size, dimension)
    keep = min(rows, max(options.k + 2, rows // 2))
    return _Plan(sig, options, dimension, rows, keep, vectors.precision(sig))


@functools.partial(jax.jit, static_argnames=("sig", "options"))
def _solve(
    matvec: Callable[[Any], Any],
    key: jax.Array,
    v0: Any,
    *,
    sig: vectors.Signature,
    options: Options,
) -> EigenResult:
    plan = _plan(sig, options)
    apply = vectors.operator(matvec, sig, options.sign)

    def body(carry):
        state, ritz = carry
        # The first time round there is nothing to restart from.
        state = lax.cond(
            state.count == 0, lambda s, r: s, functools.partial(_restart, plan), *carry
        )
        ritz = ritz._replace(lock=jnp.array(False))
        return lax.while_loop(
            lambda c: ~_pause(plan, *c), functools.partial(_step, plan, apply), (state, ritz)
        )

    state = _start(plan, key, v0)
    blank = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda s: _ritz(plan, s), state)
    )
    state, ritz = lax.while_loop(lambda c: ~_finished(plan, *c), body, (state, blank))
    return _result(plan, state, ritz)


def _finished(plan: _Plan, state: _State, ritz: _Ritz) -> jax.Array:
    return ritz.done | state.bad | (state.matvecs >= plan.options.max_matvecs)


def _pause(plan: _Plan, state: _State, ritz: _Ritz) -> jax.Array:
    """Whether the basis can or should not be extended: finished, to be locked, or full."""
    return _finished(plan, state, ritz) | ritz.lock | (state.count >= plan.rows)


def _start(plan: _Plan, key: jax.Array, v0: Any) -> _State:
    """Cold: x = g, standard normal. Warm: v0, mixed with a little of g if nothing follows it."""
    sig, options = plan.sig, plan.options
    dtype = vectors.working_dtype(sig)
    key, sub = jax.random.split(key)
    x = vectors.normal(sub, sig)
    spread = jnp.ones((), dtype)  # standard deviation of the random part
    random = jnp.array(True)
    if v0 is not None:
        warm, length = vectors.unit(vectors.widen(v0))
        usable = jnp.isfinite(length) & (length > 0)
        noise = 0.0 if options.certify else _WARM_NOISE / plan.dimension**0.5
        mixed = vectors.add(warm, noise, x)
        x = jax.tree.map(lambda a, b: jnp.where(usable, a, b), mixed, x)
        spread = jnp.where(usable, noise, spread).astype(dtype)
        random = spread > 0
    first, length = vectors.unit(x)
    zero, index = jnp.zeros((), dtype), jnp.zeros((), jnp.int32)
    basis = vectors.set_row(vectors.empty_basis(plan.rows + 1, sig), 0, first)
    return _State(
        basis=basis,
        t=jnp.zeros((plan.rows, plan.rows), dtype),
        count=index,
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


def _step(
    plan: _Plan, apply: Callable[[Any], Any], carry: tuple[_State, _Ritz]
) -> tuple[_State, _Ritz]:
    """Extends the basis by one product, and looks at the Ritz values.

    w = A v_j − Σ t_ij v_i with the known t_ij first (two vectors, all of them after a restart),
    then a full Gram–Schmidt pass. That makes two passes where they count: after the first, w is
    orthogonal up to ε ‖A‖, and the second leaves ε of that.
    """
    state, _ = carry
    j = state.count
    rows = jnp.arange(plan.rows)
    v = vectors.row(state.basis, j)
    w = apply(v)
    alpha = vectors.dot(v, w)
    scale = jnp.maximum(state.scale, vectors.norm(w))
    column = jnp.where(rows == j, alpha, state.t[:, j])
    begin = jnp.where(j == state.arrow, state.n_locked, jnp.maximum(j - 1, state.n_locked))
    w = vectors.subtract(w, state.basis, column, begin, j + 1)
    w, h = vectors.orthogonalize(w, state.basis, j + 1)
    h = h[: plan.rows]
    alpha = alpha + h[j]
    stray = jnp.where((rows >= state.n_locked) & (rows < j), h, 0)
    beta = vectors.norm(w)
    invariant = (beta <= 8 * plan.eps * scale) | (j + 1 >= plan.dimension)
    beta = jnp.where(invariant, 0, beta)
    t = state.t.at[j, j].set(alpha)
    t = t.at[j, j + 1].set(beta, mode="drop").at[j + 1, j].set(beta, mode="drop")
    state = state._replace(
        basis=vectors.set_row(state.basis, j + 1, vectors.unit(w)[0]),
        t=t,
        count=j + 1,
        beta=beta,
        log_nu=state.log_nu + jnp.where(invariant, 0, jnp.log(jnp.where(invariant, 1, beta))),
        scale=scale,
        asymmetry=jnp.maximum(state.asymmetry, jnp.sqrt(jnp.sum(stray**2))),
        matvecs=state.matvecs + 1,
        invariant=invariant,
        bad=~(jnp.isfinite(alpha) & jnp.isfinite(beta) & jnp.isfinite(scale)),
    )
    return state, _ritz(plan, state)


def _active_spectrum(plan: _Plan, state: _State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenpairs of the active block of t, descending; unused rows come last."""
    rows = jnp.arange(plan.rows)
    used = (rows >= state.n_locked) & (rows < state.count)
    t = jnp.where(used[:, None] & used & jnp.isfinite(state.t), state.t, 0)
    size = jnp.max(jnp.sum(jnp.abs(t), axis=0))
    padding = -jnp.where(size > 0, 1.5 * size, 1)
    theta, s = jnp.linalg.eigh(t + jnp.diag(jnp.where(used, 0, padding)))
    return theta[::-1], s[:, ::-1], jnp.sum(used)


def _ritz(plan: _Plan, state: _State) -> _Ritz:
    options, k, tol = plan.options, plan.options.k, plan.options.tol
    theta, s, active = _active_spectrum(plan, state)
    rounding = certificate.rounding_allowance(
        plan.eps, state.scale, state.asymmetry, plan.dimension
    )
    coupling = jnp.sqrt(2 * jnp.sum(state.locked_residual**2))

    # The best k among locked and active pairs. An active one must be clearly larger to displace.
    last = jnp.clip(state.count - 1, 0, plan.rows - 1)
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

    exhausted = state.count >= plan.dimension
    rest = _complement_bound(plan, state, theta, active, rounding)
    upper = jnp.where(exhausted, value, jnp.maximum(state.locked, rest)) + coupling + rounding
    lower = value - rounding - (coupling if k > 1 else 0)
    magnitude = jnp.abs(value)
    good = residual + rounding <= tol * magnitude
    null = (magnitude <= 4 * rounding) & (residual <= 4 * rounding)
    if options.certify:
        good = good & (upper - lower <= tol * magnitude)
        null = null & (upper - lower <= 8 * rounding)
    converged = complete & jnp.all(good | null)

    # In this phase the bound can come down on the best k values if at most the last one is new.
    certifiable = state.random & ~jnp.any(fresh[: k - 1])
    target = tol * jnp.min(magnitude) / (4 * k**0.5)
    ready = complete & jnp.all(residual <= jnp.maximum(target, rounding))
    settled = state.invariant & certifiable & complete
    done = converged | settled | exhausted
    return _Ritz(
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
        lock=~done & (state.invariant | (ready & ~certifiable)),
    )


def _complement_bound(
    plan: _Plan, state: _State, theta: jax.Array, active: jax.Array, rounding: jax.Array
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


def _restart(plan: _Plan, state: _State, ritz: _Ritz) -> _State:
    """Makes room: either locks the best pairs and starts a phase, or keeps the best Ritz vectors."""
    k, keep, lock = plan.options.k, plan.keep, ritz.lock
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

    following = vectors.row(state.basis, plan.rows)
    basis = vectors.rotate(state.basis, jnp.pad(q, ((0, 1), (0, 0))))
    key, sub = jax.random.split(state.key)
    following, length = lax.cond(
        lock,
        lambda: _random_complement(plan, sub, basis, count),
        lambda: (following, jnp.ones((), state.t.dtype)),
    )
    dropped = lax.dynamic_update_slice(
        state.dropped, jnp.roll(ritz.theta, -kept), (state.n_dropped,)
    )
    return state._replace(
        basis=vectors.set_row(basis, count, following),
        t=t,
        count=count,
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
            lock, 0, state.n_dropped + (state.count - state.n_locked) - kept
        ).astype(jnp.int32),
        key=key,
    )


def _random_complement(
    plan: _Plan, key: jax.Array, basis: Any, count: jax.Array
) -> tuple[Any, jax.Array]:
    """A normal vector projected on the complement of the first rows: direction and length."""
    x = vectors.normal(key, plan.sig)
    for _ in range(2):
        x, _ = vectors.orthogonalize(x, basis, count)
    direction, length = vectors.unit(x)
    # Once more at unit length: in a complement of few dimensions little of x may be left.
    direction, _ = vectors.orthogonalize(direction, basis, count)
    return vectors.unit(direction)[0], length


def _result(plan: _Plan, state: _State, ritz: _Ritz) -> EigenResult:
    options = plan.options
    found = vectors.combine(state.basis, jnp.pad(ritz.q, ((0, 1), (0, 0))))
    vector = jax.vmap(lambda v: vectors.cast_like(vectors.unit(v)[0], plan.sig))(found)
    missing = state.bad | ~jnp.isfinite(ritz.value)
    value = jnp.where(missing, jnp.nan, options.sign * ritz.value)
    lower = jnp.where(missing, -jnp.inf, ritz.lower)
    upper = jnp.where(state.bad, jnp.inf, ritz.upper)
    if options.sign < 0:
        lower, upper = -upper, -lower
    residual = jnp.where(missing, jnp.nan, ritz.residual + ritz.rounding)
    numbers = value, residual, lower, upper
    if options.k == 1:
        vector = jax.tree.map(lambda x: x[0], vector)
        numbers = tuple(x[0] for x in numbers)
    value, residual, lower, upper = numbers
    return EigenResult(
        value=value,
        vector=vector,
        residual=residual,
        interval=Interval(lower, upper),
        matvecs=state.matvecs,
        converged=ritz.converged & ~state.bad,
    )
