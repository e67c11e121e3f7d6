"""Power iteration: the method of the 2018 paper, with an honest end."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, check_name, check_positive
from jaxstab.eigen import certificate, rounding, vectors
from jaxstab.eigen.result import EigenResult, Interval, Rounding
from jaxstab.resolution import default_machine


@dataclass(frozen=True)
class _Options:
    sign: int
    tol: float
    max_matvecs: int
    failure_probability: float
    certify: bool
    machine: str


class _State(NamedTuple):
    x: Any  # unit vector
    y: Any  # the last one that was multiplied
    theta: jax.Array  # () Rayleigh quotient of y
    residual: jax.Array  # ()
    shift: jax.Array  # () σ ≥ 0
    shifts: jax.Array  # (max_matvecs,) those used so far
    log_nu: jax.Array  # () see certificate
    scale: jax.Array  # () largest ‖A y‖ seen
    upper: jax.Array  # ()
    rounding: jax.Array  # ()
    asymmetry: jax.Array  # () largest |xᵀA y − yᵀA x| of vectors that followed each other
    coupling: jax.Array  # () xᵀA y
    matvecs: jax.Array  # ()
    converged: jax.Array  # () bool
    stuck: jax.Array  # () bool: a product vanished or was not finite


def power_iteration(
    *,
    which: str = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    failure_probability: float = 1e-3,
    certify: bool = True,
) -> Callable[..., EigenResult]:
    """Power iteration x ← (A + σI) x / ‖·‖ for the largest algebraic eigenvalue.

    The shift σ = max(0, −smallest Rayleigh quotient so far) is zero for a positive semi-definite A
    and keeps a large negative eigenvalue from winning. Stops on the residual and on the width of
    the interval, as `lanczos` does, which needs far fewer products for the same; this is here to
    compare with published measurements. Its upper bound is that of `certificate` for the
    polynomial (t − θ) Π (t + σ_j). (The a-priori bound of Kuczyński and Woźniakowski, SIAM J.
    Matrix Anal. Appl. 13, 1992, needs log(√p/δ)/tol products whatever the spectrum is.)

    Args:
      which: "largest" or "smallest".
      tol: relative accuracy of value and interval.
      max_matvecs: budget of products with the operator.
      failure_probability: of the uncertain end of the interval, over the random start.
      certify: if False, stop on the residual alone; the interval is still right.

    Returns:
      `solve(matvec, like, *, key, v0=None) -> EigenResult`, as `lanczos`. A start `v0` is mixed
      with a tenth of a random vector, so that it cannot be orthogonal to what is looked for.

    Raises:
      ValueError, TypeError: as `lanczos`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> solve = power_iteration(max_matvecs=500)
      >>> d = jnp.array([2.0, 1.0, -1.0, 0.5])
      >>> result = solve(lambda v: d * v, d, key=jax.random.key(0))
      >>> print(round(float(result.value), 3), bool(result.converged))
      2.0 True
    """
    check_name("which", which, ("largest", "smallest"))
    check_positive("tol", tol)
    check_at_least("max_matvecs", max_matvecs, 1)
    certificate.check_probability(failure_probability)
    options = _Options(
        sign=1 if which == "largest" else -1,
        tol=float(tol),
        max_matvecs=int(max_matvecs),
        failure_probability=float(failure_probability),
        certify=bool(certify),
        machine=default_machine(),
    )
    return _PowerIteration(options)


@dataclass(frozen=True)
class _PowerIteration:
    """A solver; equal to another one of equal options, so that it can be a static argument."""

    options: _Options

    def __call__(
        self, matvec: Callable[[Any], Any], like: Any, *, key: jax.Array, v0: Any = None
    ) -> EigenResult:
        sig = vectors.signature(like, matvec)
        if v0 is not None:
            vectors.check_same("v0", v0, vectors.structs(sig))
        return _solve(as_pytree(matvec), key, v0, sig=sig, options=self.options)


@functools.partial(jax.jit, static_argnames=("sig", "options"))
def _solve(
    matvec: Callable[[Any], Any], key: jax.Array, v0: Any, *, sig: vectors.Signature, options: Any
) -> EigenResult:
    apply, resolution = rounding.trace(
        matvec, sig, options.sign, precision="highest", machine=options.machine
    )
    model = rounding.model(sig, resolution)
    state = lax.while_loop(
        lambda s: ~(s.converged | s.stuck | (s.matvecs >= options.max_matvecs)),
        functools.partial(_step, sig, options, apply, model),
        _start(sig, options, key, v0),
    )
    bad = ~jnp.isfinite(state.scale)
    value = jnp.where(bad, jnp.nan, state.theta)
    lower = jnp.where(bad, -jnp.inf, state.theta - state.rounding)
    upper = jnp.where(bad, jnp.inf, state.upper)
    if options.sign < 0:
        value, lower, upper = -value, -upper, -lower
    return EigenResult(
        value=value,
        vector=vectors.cast_like(state.y, sig),
        residual=jnp.where(bad, jnp.nan, state.residual + state.rounding),
        interval=Interval(lower, upper),
        matvecs=state.matvecs,
        converged=state.converged & ~bad,
        rounding=Rounding(
            unit=jnp.asarray(model.unit, state.rounding.dtype),
            allowed=state.rounding,
            seen=state.asymmetry,
            checks=jnp.zeros((), jnp.int32),
            difference=jnp.zeros_like(state.rounding),
        ),
    )


def _start(sig: vectors.Signature, options: _Options, key: jax.Array, v0: Any) -> _State:
    dtype = vectors.working_dtype(sig)
    x, spread = vectors.start(key, sig, v0, vectors.WARM_NOISE)
    x, length = vectors.unit(x)
    zero = jnp.zeros((), dtype)
    return _State(
        x=x,
        y=x,
        theta=zero,
        residual=zero,
        shift=zero,
        shifts=jnp.zeros(options.max_matvecs, dtype),
        log_nu=jnp.log(length / spread).astype(dtype),
        scale=zero,
        upper=zero,
        rounding=zero,
        asymmetry=zero,
        coupling=zero,
        matvecs=jnp.zeros((), jnp.int32),
        converged=jnp.array(False),
        stuck=jnp.array(False),
    )


def _step(
    sig: vectors.Signature,
    options: _Options,
    apply: Callable[[Any], Any],
    model: rounding.Model,
    state: _State,
) -> _State:
    y = state.x
    w = apply(y)
    theta = vectors.dot(y, w)
    residual = vectors.norm(vectors.add(w, -theta, y))
    scale = jnp.maximum(state.scale, vectors.norm(w))
    eps = vectors.precision(sig)
    # The next vector is w + σ y: its product with y has been made from the other side.
    crossed = state.coupling - vectors.dot(state.y, w)
    asymmetry = jnp.maximum(state.asymmetry, jnp.where(state.matvecs > 0, jnp.abs(crossed), 0))
    allowed = rounding.allowance(model, scale, vectors.size(sig)) + 2 * asymmetry

    # (A − θ) P(A) x = ν r. A start that is an eigenvector to rounding leaves nothing to find.
    exact = (state.matvecs == 0) & (residual <= 8 * eps * scale)
    small = jnp.finfo(theta.dtype).tiny
    log_ratio = (
        state.log_nu
        + jnp.log(jnp.maximum(residual, small))
        - certificate.log_quantile(options.failure_probability)
    )
    roots = jnp.concatenate([theta[None], -state.shifts])
    used = jnp.arange(roots.size) <= state.matvecs
    offset = certificate.bound_offset(roots, used, log_ratio, allowed)
    top = jnp.max(jnp.where(used, roots, -jnp.inf))
    upper = jnp.where(exact, theta, top + offset) + allowed

    magnitude = jnp.abs(theta)
    converged = residual + allowed <= options.tol * magnitude
    if options.certify:
        converged = converged & (upper - theta + allowed <= options.tol * magnitude)
    converged = converged | (exact & (magnitude <= allowed))

    shift = jnp.maximum(state.shift, -theta)
    x, length = vectors.unit(vectors.add(w, shift, y))
    return _State(
        x=x,
        y=y,
        theta=theta,
        residual=residual,
        shift=shift,
        shifts=state.shifts.at[state.matvecs].set(shift),
        log_nu=state.log_nu + jnp.log(jnp.where(length > 0, length, 1)),
        scale=scale,
        upper=upper,
        rounding=allowed,
        asymmetry=asymmetry,
        coupling=vectors.dot(x, w),
        matvecs=state.matvecs + 1,
        converged=converged,
        stuck=~(jnp.isfinite(scale) & (length > 0)),
    )
