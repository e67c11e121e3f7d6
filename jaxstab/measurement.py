"""Sharpness and non-uniformity of any model at any point, certified: operators meet solvers."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxstab.checks import check_finite, data_size
from jaxstab.eigen import EigenResult, Interval, lanczos
from jaxstab.eigen.vectors import check_same
from jaxstab.operators import hessian, hessian_variance
from jaxstab.operators.chunks import sum_over_chunks
from jaxstab.operators.hessian import Loss, Operator, Params, total_loss
from jaxstab.operators.linearised import automatic_chunk
from jaxstab.operators.moments import FactoredMoment
from jaxstab.precision import at

QUANTITIES = ("sharpness", "nonuniformity")
# The names of a record, in the order in which they are written.
_PARTS = ("", "_lower", "_upper", "_residual", "_matvecs", "_converged")
RECORD_NAMES = ("n", "loss", "gradient_norm", *(q + part for q in QUANTITIES for part in _PARTS))


class Measurement(NamedTuple):
    """What is known of one point θ: everything a stability verdict needs.

    Attributes:
      sharpness: a = λ_max(H), 1 / step size.
      nonuniformity: s = √λ_max(Σ), 1 / step size.
      n: number of examples.
      loss: L(θ), the mean over examples.
      gradient_norm: ‖∇L(θ)‖; a minimum has it near zero.
    """

    sharpness: EigenResult
    nonuniformity: EigenResult
    n: int
    loss: jax.Array
    gradient_norm: jax.Array

    def to_record(self) -> dict[str, Any]:
        """The same as one flat dict of scalars, by the names in `RECORD_NAMES`, for a table's row.

        Numbers are Python's, and traced where they are traced here. Eigenvectors are left out.

        Example:
          >>> curvature = lambda x, h: h * x**2 / 2
          >>> data = jnp.array([1.0, 3.0])
          >>> found = measure(curvature, jnp.zeros(()), data, key=jax.random.key(0))
          >>> record = found.to_record()
          >>> record["n"], round(record["sharpness"], 3), round(record["nonuniformity"], 3)
          (2, 2.0, 1.0)
          >>> Measurement.from_record(record).to_record() == record
          True
        """
        record = {"n": self.n, "loss": self.loss, "gradient_norm": self.gradient_norm}
        for name in QUANTITIES:
            result = getattr(self, name)
            values = (result.value, *result.interval, result.residual)
            values += (result.matvecs, result.converged)
            record |= {name + part: value for part, value in zip(_PARTS, values, strict=True)}
        return {name: _scalar(value) for name, value in record.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], *, n: int | None = None) -> "Measurement":
        """The measurement that `to_record` flattened; its eigenvectors are None.

        Args:
          record: with the names in `RECORD_NAMES`, among any others: a row of a sweep.
          n: number of examples, where the record does not hold it.

        Raises:
          ValueError: if the record lacks one of the names.
        """
        record = dict(record) if n is None else dict(record) | {"n": n}
        missing = [name for name in RECORD_NAMES if name not in record]
        if missing:
            raise ValueError(
                f"no measurement in this record: it lacks {', '.join(missing)}; give a row of a "
                "sweep that measures (and n, which the sweep itself knows)"
            )

        def result(name: str) -> EigenResult:
            value, lower, upper, *rest = (record[name + part] for part in _PARTS)
            return EigenResult(value, None, rest[0], Interval(lower, upper), *rest[1:])

        others = (record[name] for name in ("n", "loss", "gradient_norm"))
        return cls(result("sharpness"), result("nonuniformity"), *others)


def _scalar(value: Any) -> Any:
    return value if isinstance(value, jax.core.Tracer) else np.asarray(value).item()


def sharpness(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    v0: Params | None = None,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> EigenResult:
    """Returns a = λ_max(H), the largest *algebraic* eigenvalue of the loss's Hessian.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ, a pytree of real floating-point arrays.
      data: pytree of arrays with a common leading axis n.
      key: random key of the start vector; the upper end of the interval holds over its draw.
      tol: relative accuracy asked of the residual and of the interval.
      max_matvecs: Hessian-vector products that may be spent.
      v0: warm start, for example the vector of an earlier result.
      chunk_size: examples differentiated at once.
      precision: of the Hessian-vector products that find the eigenvector, as for `jaxstab.hessian`.
        Where it is not "highest", value, residual and lower end come from one more product at
        "highest", and the upper end allows for the difference of the two, bounded by up to 8
        products of each kind: on a GPU or TPU a faster solve where many products are needed, with
        as good a value, and an interval as wide as the noise of the fast products.

    Returns:
      `EigenResult`; `.value` in units of 1 / step size, `.vector` shaped like `params`. Cost:
      `.matvecs` Hessian-vector products at `precision`, `.rounding.checks` at "highest".

    Raises:
      ValueError, TypeError: see `jaxstab.hessian` and `jaxstab.eigen.lanczos`.
    """
    check_finite("data", data)
    operator = hessian(loss, params, data, chunk_size=chunk_size, precision=precision)
    lanczos(tol=tol, max_matvecs=max_matvecs)  # its checks, before anything is traced
    return _largest(operator, key, v0, tol, max_matvecs)


@functools.partial(jax.jit, static_argnames=("tol", "max_matvecs"))
def _largest(
    operator: Operator, key: jax.Array, v0: Params | None, tol: float, max_matvecs: int
) -> EigenResult:
    """The largest eigenvalue; what all products share is computed once, before the loop."""
    solve = lanczos(tol=tol, max_matvecs=max_matvecs, precision=operator.precision)
    return solve(
        operator.prepare(), operator.params, key=key, v0=v0, reference=reference_of(operator)
    )


def reference_of(operator: Operator) -> Operator | None:
    """The operator at full precision, if its own products may be coarser."""
    if operator.precision == "highest":
        return None
    return dataclasses.replace(operator, precision="highest")


def nonuniformity(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    method: str = "auto",
    tol: float = 1e-3,
    max_matvecs: int = 200,
    v0: Params | None = None,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> EigenResult:
    """Returns s = √λ_max(Σ), Σ = (1/n) Σ_i H_i² − H² (Wu, Ma, E 2018, section 3).

    Arguments and errors as for `sharpness`; `method` as for `jaxstab.hessian_variance`. `.value`,
    `.interval` and `.residual` are those of s (the square root is taken here, with
    |√λ − √θ| ≈ |λ − θ| / 2√θ); `.matvecs` counts products with Σ.
    """
    check_finite("data", data)
    operator = hessian_variance(
        loss, params, data, method=method, chunk_size=chunk_size, precision=precision
    )
    lanczos(tol=tol, max_matvecs=max_matvecs)  # its checks, before anything is traced
    # A relative error 2 t of λ is a relative error t of s.
    return square_root(_largest(operator, key, v0, 2 * tol, max_matvecs))


@functools.partial(jax.jit, static_argnames="max_matvecs")
def _largest_of_both(
    variance: FactoredMoment,
    keys: jax.Array,
    v0s: tuple[Params | None, Params | None],
    tol: Any,
    max_matvecs: int,
) -> tuple[EigenResult, EigenResult]:
    """a and s, one after the other by one program: H v is what a product with Σ begins with.

    Tracing and compiling a network's derivatives takes longer than most solves; here they are
    linearised, traced and compiled once.
    """
    solve = lanczos(max_matvecs=max_matvecs, precision=variance.precision)
    prepared: Any = variance.prepare()
    reference: Any = reference_of(variance)
    params = variance.params
    starts = None
    if any(v0 is not None for v0 in v0s):  # a start of zeros is ignored
        zeros = jax.tree.map(jnp.zeros_like, params)
        starts = jax.tree.map(
            lambda *pair: jnp.stack(pair), *(zeros if v0 is None else v0 for v0 in v0s)
        )

    def one(given: Any) -> EigenResult:
        mean_instead, key, v0, tol = given
        product, exact = (
            None if matvec is None else dataclasses.replace(matvec, mean_instead=mean_instead)
            for matvec in (prepared, reference)
        )
        return solve(product, params, key=key, v0=v0, reference=exact, tol=tol)

    # A relative error 2 t of λ is a relative error t of s.
    both = jnp.array([True, False]), keys, starts, jnp.stack([tol, 2 * tol])
    found = lax.map(one, both)
    a, s = jax.tree.map(lambda x: x[0], found), jax.tree.map(lambda x: x[1], found)
    return a, square_root(s)


@jax.jit
def square_root(result: EigenResult) -> EigenResult:
    """The result for √λ from the result for λ ≥ 0."""
    value, lower, upper = (jnp.sqrt(jnp.maximum(x, 0.0)) for x in (result.value, *result.interval))
    # A residual r of λ moves √λ by at most r / √λ, and by √r where λ vanishes.
    residual = jnp.where(
        value > 0, result.residual / jnp.where(value > 0, 2 * value, 1), jnp.sqrt(result.residual)
    )
    residual = jnp.minimum(residual, jnp.sqrt(result.residual))
    rounding = result.rounding
    if rounding is not None:
        slope = 1 / jnp.where(value > 0, 2 * value, 1)
        rounding = rounding._replace(
            allowed=jnp.minimum(slope * rounding.allowed, jnp.sqrt(rounding.allowed)),
            seen=jnp.minimum(slope * rounding.seen, jnp.sqrt(rounding.seen)),
            difference=jnp.minimum(slope * rounding.difference, jnp.sqrt(rounding.difference)),
        )
    return result._replace(
        value=value, residual=residual, interval=Interval(lower, upper), rounding=rounding
    )


@functools.partial(jax.jit, static_argnames="chunk_size")
def loss_and_gradient_norm(
    loss: Any, params: Params, data: Any, *, chunk_size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns L(θ) and ‖∇L(θ)‖, in full precision; `loss` is a callable pytree."""
    n = data_size(data)

    def chunk_total(chunk: Any) -> Any:
        return jax.value_and_grad(lambda params: total_loss(loss, params, chunk))(params)

    def residuals(chunk: Any) -> Any:
        return jax.vjp(lambda params: total_loss(loss, params, chunk), params)

    with at("highest"):
        size = automatic_chunk(residuals, data) if chunk_size is None else chunk_size
        total, gradient = sum_over_chunks(chunk_total, data, size)
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(gradient)]
    return total / n, jnp.sqrt(sum(squares)) / n


def measure(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    tol: float = 1e-3,
    max_matvecs: int = 200,
    method: str = "auto",
    chunk_size: int | None = None,
    precision: str | None = "highest",
    sharpness_v0: Params | None = None,
    nonuniformity_v0: Params | None = None,
) -> Measurement:
    """Returns a, s, the loss and the gradient norm at θ, each eigenvalue with its certificate.

    Arguments and errors as for `sharpness` and `nonuniformity`; both come out of one compiled
    program, unless `method` is another than "factored" or parameters are spread over devices.
    """
    check_finite("data", data)
    common: dict[str, Any] = {"chunk_size": chunk_size, "precision": precision}
    variance = hessian_variance(loss, params, data, method=method, **common)
    lanczos(tol=tol, max_matvecs=max_matvecs)  # its checks, before anything is computed
    problem = variance.loss, variance.params, variance.data
    v0s = sharpness_v0, nonuniformity_v0
    for name, v0 in zip(("sharpness_v0", "nonuniformity_v0"), v0s, strict=True):
        if v0 is not None:
            check_same(name, v0, variance.params)
    value, gradient_norm = loss_and_gradient_norm(*problem, chunk_size=chunk_size)
    if not isinstance(value, jax.core.Tracer) and not np.isfinite(value):
        raise ValueError(
            f"the loss at params is {value}: the run diverged or the data hold extreme values"
        )
    keys = jax.random.split(key)
    if isinstance(variance, FactoredMoment) and variance.sharding is None:
        a, s = _largest_of_both(variance, keys, v0s, tol, max_matvecs)
    else:
        a = _largest(hessian(*problem, **common), keys[0], v0s[0], tol, max_matvecs)
        s = square_root(_largest(variance, keys[1], v0s[1], 2 * tol, max_matvecs))
    return Measurement(a, s, data_size(data), value, gradient_norm)
