"""Lanczos for the ends of the spectrum: the public factory. The process is in `restarted`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, check_name, check_positive
from jaxstab.eigen import certificate, difference, restarted, rounding, vectors
from jaxstab.eigen.difference import Difference
from jaxstab.eigen.packing import Packing, packing_of
from jaxstab.eigen.result import EigenResult, Interval, Rounding
from jaxstab.eigen.ritz import Ritz, read, settle
from jaxstab.eigen.state import Options, Plan, State, make_plan
from jaxstab.precision import check_precision
from jaxstab.resolution import default_machine

Solver = Callable[..., EigenResult]


def lanczos(
    *,
    k: int = 1,
    which: str = "largest",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    basis_size: int | None = None,
    failure_probability: float = 1e-3,
    certify: bool = True,
    precision: str | None = "highest",
) -> Solver:
    """Lanczos for the k largest (or smallest) algebraic eigenvalues of a symmetric operator.

    Algebraic: the spectrum [−25, 20] has largest eigenvalue 20. Stops when the residual of every
    wanted Ritz pair *and* the width of its interval are at most `tol` · |θ| (or when θ and the
    width are zero to rounding on the scale of ‖A‖), never on a change of value.

    Cost: one product per step and one more with each final vector, which measures value, residual
    and the error of the products (`EigenResult.rounding`); reading the basis once. The certificate
    needs about log(√p / (tol · failure_probability)) / log-growth products in place of
    log(√p / tol); k > 1 and a warm start pay for one more phase, without the factor tol.

    Args:
      k: how many eigenvalues, counted with multiplicity.
      which: "largest" or "smallest".
      tol: relative accuracy of value and interval. Its floor is what rounding may do, twice
        `result.rounding.allowed` over |θ|: 2e-6 and more in float32; below it the result is not
        converged, which it says, and no products are spent beyond what rounding is worth.
      max_matvecs: budget of products with the operator, without those that measure.
      basis_size: vectors kept between restarts, at least k + 4. None: 32, or as many fewer
        (at least 8) as 1 GiB holds; a restart takes up to twice that for a moment.
      failure_probability: of the uncertain end of the interval, over the random start.
      certify: if False, stop on the residuals alone. The interval is still right but may be wide,
        and a warm start may then be caught by a lower eigenvalue; to look often and cheaply.
      precision: of matrix products inside matvec that ask for none, as for `jaxstab.hessian`.

    Returns:
      `solve(matvec, like, *, key, v0=None, reference=None, tol=None) -> EigenResult`. `matvec` is a
      symmetric operator on pytrees like `like` (e.g. the parameters), of which only structure,
      shapes and dtypes are used; float32, float64, lower precision or mixed. `key` is a
      `jax.random` key. `v0` is a vector to start from, of any length, such as the last eigenvector;
      a zero or non-finite one is ignored. `reference` is the same operator with more accurate
      products, where those of matvec are cheap and coarse: value, residual and the certain end of
      the interval then come from k products with it, and the other end (for k > 1, both) allows for
      the norm of the difference, which up to 8 products of each kind bound. `tol`, which may be
      traced, takes the place of the factory's. Usable inside jit, vmap and scan; compiled once for
      equal options, shapes and tree structures, with the arrays inside `matvec` as operands if it
      is a registered pytree. Solvers of equal options are equal and hashable.

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
    certificate.check_probability(failure_probability)
    options = Options(
        k=int(k),
        sign=1 if which == "largest" else -1,
        tol=float(tol),
        max_matvecs=int(max_matvecs),
        basis_size=basis_size,
        failure_probability=float(failure_probability),
        certify=bool(certify),
        precision=check_precision(precision),
        machine=default_machine(),
    )
    return _Lanczos(options)


@dataclasses.dataclass(frozen=True)
class _Lanczos:
    """A solver; equal to another one of equal options, so that it can be a static argument."""

    options: Options

    def __call__(
        self,
        matvec: Callable[[Any], Any],
        like: Any,
        *,
        key: jax.Array,
        v0: Any = None,
        reference: Callable[[Any], Any] | None = None,
        tol: jax.Array | None = None,
    ) -> EigenResult:
        packing, k = packing_of(like, matvec), self.options.k
        size = vectors.size(packing.sig)
        if k > size:
            raise ValueError(f"k = {k} eigenvalues of an operator of dimension {size}")
        if v0 is not None:
            vectors.check_same("v0", v0, vectors.structs(packing.sig))
        if reference is not None:
            reference = as_pytree(reference)
        return _solve(
            as_pytree(matvec), key, v0, reference, tol, packing=packing, options=self.options
        )


@functools.partial(jax.jit, static_argnames=("packing", "options"))
def _solve(
    matvec: Callable[[Any], Any],
    key: jax.Array,
    v0: Any,
    reference: Callable[[Any], Any] | None,
    tol: jax.Array | None,
    *,
    packing: Packing,
    options: Options,
) -> EigenResult:
    sig = packing.packed
    v0 = None if v0 is None else packing.pack(v0)
    if tol is not None:
        tol = jnp.asarray(tol, vectors.working_dtype(sig))
        options = dataclasses.replace(options, tol=tol)  # type: ignore[arg-type]
    traced = functools.partial(rounding.trace, sig=sig, sign=options.sign, machine=options.machine)
    apply, resolution = traced(packing.operator(matvec), precision=options.precision)
    apart = difference.none(sig)
    if reference is not None:
        exact, resolution = traced(packing.operator(reference), precision="highest")
        # Half of the probability of failure is for the difference of the two operators.
        options = dataclasses.replace(options, failure_probability=options.failure_probability / 2)
        key, sub = jax.random.split(key)
        apart = difference.measure(apply, exact, sig, sub, options.failure_probability)
    model = rounding.model(sig, resolution)
    plan = make_plan(
        sig, options, warm=v0 is not None, model=model, reference=reference is not None
    )

    def body(carry):
        if plan.restarts:
            # A loop of one turn, and of none where there is nothing yet to restart from. A
            # conditional would copy the basis.
            carry = lax.while_loop(
                lambda c: restarted.pause(plan, *c), lambda c: restarted.restart(plan, *c), carry
            )
        return lax.while_loop(
            lambda c: ~restarted.pause(plan, *c),
            functools.partial(restarted.step, plan, apply),
            carry,
        )

    state = restarted.start(plan, key, v0, difference.allowed(apart, jnp.zeros(())))
    blank = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(lambda s: read(plan, s), state),
    )
    state, ritz = lax.while_loop(lambda c: ~restarted.finished(plan, *c), body, (state, blank))
    final = functools.partial(restarted.final_vector, plan, state, ritz)
    if reference is None:
        measured = restarted.Closing(state.quotient, state.rest, state.defect)
    else:
        measured = lax.map(
            lambda i: restarted.close(state, ritz, i, final(i), exact(final(i))),
            jnp.arange(options.k),
        )
        measured = measured._replace(defect=jnp.max(measured.defect))
        state = state._replace(noise=difference.allowed(apart, measured.defect))
    ritz = settle(plan, state, ritz, measured, model)
    vector = lax.map(
        lambda i: packing.unpack(vectors.cast_like(final(i), sig)), jnp.arange(options.k)
    )
    return _result(plan, state, ritz, vector, measured.defect, apart)


def _result(
    plan: Plan, state: State, ritz: Ritz, vector: Any, defect: jax.Array, apart: Difference
) -> EigenResult:
    options, allowed = plan.options, ritz.bounds.rounding
    closings = jnp.where(state.bad & (plan.closings > 0), state.closed, options.k)
    missing = state.bad | ~jnp.isfinite(ritz.pairs.value)
    value = jnp.where(missing, jnp.nan, options.sign * ritz.pairs.value)
    lower = jnp.where(missing, -jnp.inf, ritz.bounds.lower)
    upper = jnp.where(state.bad, jnp.inf, ritz.bounds.upper)
    if options.sign < 0:
        lower, upper = -upper, -lower
    residual = jnp.where(missing, jnp.nan, ritz.pairs.residual + allowed)
    pairs = value, vector, residual, Interval(lower, upper)
    if options.k == 1:
        pairs = jax.tree.map(lambda x: x[0], pairs)
    return EigenResult(
        *pairs,
        matvecs=state.matvecs + apart.products,
        converged=ritz.decision.converged & ~state.bad,
        rounding=Rounding(
            unit=jnp.asarray(plan.model.unit, allowed.dtype),
            allowed=allowed,
            seen=jnp.maximum(defect, apart.seen),
            checks=(closings + apart.products).astype(jnp.int32),
            difference=state.noise,
        ),
    )
