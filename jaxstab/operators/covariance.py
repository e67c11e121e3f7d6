"""Gradient covariance C_g = (1/n) Σ g_i g_iᵀ − g gᵀ: products, spectrum, and how it lies to H."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from jaxstab.callables import static
from jaxstab.checks import check_at_least, data_size
from jaxstab.examples import example_of
from jaxstab.operators.chunks import (
    chunk_shape,
    map_over_chunks,
    scale_like,
    sum_over_chunks,
)
from jaxstab.operators.hessian import (
    Loss,
    Operator,
    Params,
    check_problem,
    hessian,
    operator,
    total_loss,
)
from jaxstab.operators.statistics import ProbeMean, gradient_covariance_trace
from jaxstab.precision import at_given, check_precision
from jaxstab.trees import dot, random_signs

_COLUMNS = 8  # products that share one pass over the data


def _has_reverse_rule(jaxpr: Any) -> bool:
    """Whether a program has a custom_vjp function, which cannot be differentiated forward."""
    return any(
        eqn.primitive.name.startswith("custom_vjp")
        or any(_has_reverse_rule(inner) for inner in jaxprs_in_params(eqn.params))
        for eqn in jaxpr.eqns
    )


@operator
class GradientCovariance(Operator):
    """v ↦ C_g v = (1/n) Σ g_i (g_iᵀv − gᵀv).

    g_iᵀv for all i is one JVP of the vector of losses, the sum one VJP: no per-example gradient.
    """

    loss: Any
    params: Any
    data: Any
    chunk_size: int | None = static(default=None)

    def slopes(self, v: Params) -> jax.Array:
        """Returns g_iᵀv − gᵀv for all examples, (n,), uncompiled: one JVP of the losses."""

        def slopes(chunk: Any) -> jax.Array:
            mine = lambda params: self._losses(params, chunk)  # noqa: E731
            if not reverse_only:
                return jax.jvp(mine, (self.params,), (v,))[1]
            values, back = jax.vjp(mine, self.params)
            along = lambda weights: dot(back(weights)[0], v)  # noqa: E731
            return jax.grad(along)(jnp.zeros_like(values))  # c ↦ ⟨Σ c_i g_i, v⟩ is linear

        program = jax.make_jaxpr(self.loss)(self.params, example_of(self.data))
        reverse_only = _has_reverse_rule(program.jaxpr)
        t = map_over_chunks(slopes, self.data, self.chunk_size)
        return t - jnp.mean(t)

    def combine(self, weights: jax.Array) -> Params:
        """Returns (1/n) Σ c_i (g_i − g) for weights c, (n,), uncompiled: one VJP of the losses."""

        def weighted(chunk_and_weights: Any) -> Params:
            chunk, weights = chunk_and_weights
            values, back = jax.vjp(lambda params: self._losses(params, chunk), self.params)
            return back(weights.astype(values.dtype))[0]

        centred = weights - jnp.mean(weights)  # Σ c_i (g_i − g) = Σ (c_i − c̄) g_i
        total = sum_over_chunks(weighted, (self.data, centred), self.chunk_size)
        return scale_like(total, data_size(self.data), self.params)

    def product(self, v: Params) -> Params:
        """Returns C_g v, uncompiled."""
        return self.combine(self.slopes(v))

    def _losses(self, params: Params, chunk: Any) -> jax.Array:
        return jax.vmap(self.loss, (None, 0))(params, chunk)


def gradient_covariance(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> GradientCovariance:
    """Returns the operator v ↦ C_g v, C_g = (1/n) Σ g_i g_iᵀ − g gᵀ (docs/formulas.md, section 4).

    The gradient of a batch of B drawn without replacement has covariance π(B) C_g. Cost: one JVP
    and one VJP of the losses. Arguments and errors as for `jaxstab.hessian`. Its λ_max with a
    certificate is `jaxstab.eigen.lanczos()(gradient_covariance(...), params, key=key)`, its density
    `jaxstab.eigen.spectral_density`; all eigenvalues `gradient_covariance_spectrum`.
    """
    loss, params, data = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    return GradientCovariance(loss, params, data, chunk_size, precision=check_precision(precision))


@at_given
def gradient_covariance_spectrum(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> np.ndarray:
    """Returns all eigenvalues of C_g that can be non-zero, decreasing, (n,).

    They are those of the n × n matrix (g_i − g)ᵀ(g_j − g) / n, made by columns: one VJP and one JVP
    of the losses each, 8 columns at once, and n² numbers; nothing of size n p or p².

    Arguments and errors as for `jaxstab.hessian`.

    Example:
      >>> loss = lambda w, x: 0.5 * jnp.sum((w - x) ** 2)  # g_i = w - x_i
      >>> x = jnp.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> [f"{value:.2f}" for value in gradient_covariance_spectrum(loss, jnp.zeros(2), x)]
      ['2.00', '0.50', '0.00', '0.00']
    """
    covariance = gradient_covariance(loss, params, data, chunk_size=chunk_size, precision=precision)
    gram = _gram(covariance)
    gram = np.asarray(gram, np.float64)
    values = np.linalg.eigvalsh((gram + gram.T) / 2)[::-1]
    return np.maximum(values, 0.0)


@jax.jit
def _gram(covariance: GradientCovariance) -> jax.Array:
    n = data_size(covariance.data)
    column = lambda i: covariance.slopes(covariance.combine(jax.nn.one_hot(i, n)))  # noqa: E731
    return jax.lax.map(column, jnp.arange(n), batch_size=_COLUMNS)


class NoiseAlignment(NamedTuple):
    """How the gradient noise lies to the curvature at one point; see `noise_alignment`.

    Attributes:
      loss: L(θ).
      covariance_trace: tr C_g, exact.
      hessian_trace: tr H, 1/step size.
      product_trace: tr(C_g H).
      covariance_norm: ‖C_g‖_F.
      hessian_norm: ‖H‖_F, 1/step size.
      cosine: tr(C_g H) / (‖C_g‖_F ‖H‖_F), at most 1; 1 where C_g is a multiple of H.
      mu: tr(C_g H) / (2 L ‖H‖_F²), the alignment μ of Wu, Wang and Su (2022): 1 for the squared
        loss of one output whose residuals do not depend on the features, since C_g = 2 L H then;
        1/k for the mean over k such outputs. NaN at L = 0.
    """

    loss: jax.Array
    covariance_trace: jax.Array
    hessian_trace: ProbeMean
    product_trace: ProbeMean
    covariance_norm: ProbeMean
    hessian_norm: ProbeMean
    cosine: ProbeMean
    mu: ProbeMean

    def to_record(self) -> dict[str, float]:
        """The same as one flat dict; `name_error` is the standard error of an estimated one."""
        record: dict[str, float] = {}
        for name, value in self._asdict().items():
            estimated = isinstance(value, ProbeMean)
            record[name] = float(value.value if estimated else value)
            if estimated:
                record[f"{name}_error"] = float(value.standard_error)
        return record


@at_given
def noise_alignment(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    probes: int = 30,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> NoiseAlignment:
    """Returns tr C_g, tr H, tr(C_g H), their norms and the alignment of C_g with H.

    (docs/formulas.md, section 4.) With signs ε over the n examples, u = n^(-½) Σ ε_i (g_i − g) has
    E uuᵀ = C_g, so that E uᵀHu = tr(C_g H) and E uᵀC_g u = ‖C_g‖_F²; with signs z over the
    parameters E zᵀHz = tr H and E |Hz|² = ‖H‖_F² (Hutchinson 1990). Standard errors are over
    the probes, by the jackknife where a number is a function of several means. H is the full
    Hessian of the loss, of any sign.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: the point θ.
      data: pytree of arrays with a leading axis n, at least 2.
      key: random key of the probes.
      probes: at least 3. Each costs two Hessian-vector products and one JVP and VJP of the losses.
      chunk_size: examples differentiated at once.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      `NoiseAlignment`. Memory: a few vectors of parameters; nothing of size n p or p².

    Raises:
      TypeError, ValueError: see `jaxstab.hessian`; for fewer than three probes.

    Example:
      >>> loss = lambda w, x: 0.5 * jnp.sum(x * w**2) + x @ w
      >>> found = noise_alignment(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [3.0, 4.0]]),
      ...                         key=jax.random.key(0))
      >>> f"{found.covariance_trace:.1f} {found.hessian_trace.value:.1f}"  # C_g = [[1, 2], [2, 4]]
      '5.0 4.0'
    """
    check_at_least("probes", probes, 3)
    common: dict[str, Any] = {"chunk_size": chunk_size, "precision": precision}
    covariance = gradient_covariance(loss, params, data, **common)
    curvature = hessian(loss, params, data, **common)
    trace = gradient_covariance_trace(loss, params, data, **common)
    value, samples = _sample(covariance, curvature, key, probes)
    samples, scale = np.asarray(samples, np.float64), 2 * float(value)

    def mean(function: Callable[[np.ndarray], float]) -> ProbeMean:
        return _jackknife(samples, function)

    return NoiseAlignment(
        loss=value,
        covariance_trace=trace,
        hessian_trace=mean(lambda m: m[2]),
        product_trace=mean(lambda m: m[0]),
        covariance_norm=mean(lambda m: np.sqrt(m[1])),
        hessian_norm=mean(lambda m: np.sqrt(m[3])),
        cosine=mean(lambda m: m[0] / np.sqrt(m[1] * m[3]) if m[1] * m[3] else np.nan),
        mu=mean(lambda m: m[0] / (scale * m[3]) if scale * m[3] else np.nan),
    )


@functools.partial(jax.jit, static_argnames="probes")
def _sample(
    covariance: GradientCovariance, curvature: Operator, key: jax.Array, probes: int
) -> tuple[jax.Array, jax.Array]:
    """L, and (uᵀHu, uᵀC_g u, zᵀHz, |Hz|²) of every probe, (probes, 4)."""
    n = data_size(covariance.data)

    def probe(key: jax.Array) -> jax.Array:
        example_key, parameter_key = jax.random.split(key)
        signs = jax.random.rademacher(example_key, (n,), jnp.result_type(float))
        u = jax.tree.map(lambda leaf: leaf * n**0.5, covariance.combine(signs))
        z = random_signs(parameter_key, covariance.params)
        pushed = curvature(z)
        noise = jnp.mean(jnp.square(covariance.slopes(u)))
        return jnp.stack([dot(u, curvature(u)), noise, dot(z, pushed), dot(pushed, pushed)])

    total = sum_over_chunks(
        lambda chunk: total_loss(covariance.loss, covariance.params, chunk),
        covariance.data,
        covariance.chunk_size,
    )
    return total / n, jax.lax.map(probe, jax.random.split(key, probes))


def _jackknife(samples: np.ndarray, function: Callable[[np.ndarray], float]) -> ProbeMean:
    """A function of the means over probes, and its standard error by leaving each probe out."""
    count = len(samples)
    left = (samples.sum(0) - samples) / (count - 1)
    values = np.array([function(row) for row in left])
    error = np.sqrt((count - 1) * np.mean(np.square(values - values.mean())))
    return ProbeMean(jnp.asarray(function(samples.mean(0))), jnp.asarray(error), count)
