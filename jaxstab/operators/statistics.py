"""Per-example numbers from the factors: ‖g_i‖, ‖H_i v‖, tr C_g and (1/n) Σ ‖H_i‖_F²."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab.callables import as_pytree
from jaxstab.checks import check_at_least, data_size
from jaxstab.examples import with_layout
from jaxstab.operators.chunks import chunk_shape, map_over_chunks, scale_like
from jaxstab.operators.factored import (
    common_gradient,
    example_dot,
    example_inner,
    example_sum,
    linearise_chunks,
)
from jaxstab.operators.hessian import Loss, Params, beside, check_problem
from jaxstab.precision import at_given
from jaxstab.trees import random_signs


class ProbeMean(NamedTuple):
    """A mean over random probes.

    Attributes:
      value: the estimate.
      standard_error: its standard error over the probes.
      probes: how many.
    """

    value: jax.Array
    standard_error: jax.Array
    probes: int


def _checked(loss: Loss, params: Params, data: Any, chunk_size: int | None) -> Any:
    problem = check_problem(loss, params, data)
    chunk_shape(data, chunk_size)
    return problem


@functools.partial(jax.jit, static_argnames="chunk_size")
def _gradient_squares(loss: Any, params: Params, data: Any, chunk_size: int | None) -> jax.Array:
    structure, chunks = linearise_chunks(loss, params, data, chunk_size)
    common = common_gradient(structure, params)
    if not structure.blocks:
        return _only_common(common, data)
    return chunks.map(lambda linearised: _squares(structure, linearised, None, common))


@functools.partial(jax.jit, static_argnames="chunk_size")
def _product_squares(
    loss: Any, params: Params, data: Any, v: Params, chunk_size: int | None
) -> jax.Array:
    structure, chunks = linearise_chunks(loss, params, data, chunk_size)
    common = common_gradient(structure, params, v)
    if not structure.blocks:
        return _only_common(common, data)
    return chunks.map(
        lambda linearised: _squares(structure, linearised, linearised.linear(v), common)
    )


@functools.partial(jax.jit, static_argnames="chunk_size")
def _gradient_variance(loss: Any, params: Params, data: Any, chunk_size: int | None) -> jax.Array:
    structure, chunks = linearise_chunks(loss, params, data, chunk_size)
    if not structure.blocks:
        return jnp.zeros(())
    squares = chunks.map(lambda linearised: _squares(structure, linearised, None, None))
    total, _ = chunks.reduce(
        lambda linearised, _: (example_sum(structure.blocks, params, linearised, None), None)
    )
    return jnp.maximum(jnp.mean(squares) - _square(total) / data_size(data) ** 2, 0)


def _only_common(common: Params | None, data: Any) -> jax.Array:
    """‖c‖² for every example."""
    square = jnp.zeros(()) if common is None else _square(common)
    return jnp.full(data_size(data), square)


def _square(vector: Params) -> jax.Array:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(vector))  # type: ignore[return-value]


def _squares(structure: Any, linearised: Any, tangent: Any, common: Params | None) -> jax.Array:
    """‖l_i + c‖², shape (n,), with the term c that all examples share."""
    blocks = structure.blocks
    squares = example_inner(blocks, linearised, tangent, tangent)
    if common is not None:
        squares += 2 * example_dot(blocks, linearised, tangent, common) + _square(common)
    return jnp.maximum(squares, 0)  # terms of either sign may cancel


@at_given
def per_example_gradient_norms(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    """Returns ‖∇ℓ_i(θ)‖ for all examples, shape (n,).

    From activations and cotangents (docs/formulas.md, section 8): for a dense layer
    ‖g_i‖² = |x_i|² |δ_i|². Cost: about one gradient. Arguments and errors as for `jaxstab.hessian`.
    """
    squares = _gradient_squares(*_checked(loss, params, data, chunk_size), chunk_size)
    return jnp.sqrt(squares)


@at_given
def gradient_covariance_trace(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    """Returns tr C_g = (1/n) Σ ‖g_i‖² − ‖g‖², exact, a scalar (docs/formulas.md, section 4).

    Arguments and errors as for `jaxstab.hessian`.
    """
    return _gradient_variance(*_checked(loss, params, data, chunk_size), chunk_size)


@at_given
def per_example_hessian_norms(
    loss: Loss,
    params: Params,
    data: Any,
    v: Params,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    """Returns ‖H_i v‖ for all examples, shape (n,), without forming any H_i v.

    Cost: about half a Hessian-vector product. Arguments and errors as for `jaxstab.hessian`; `v` is
    shaped like `params`.
    """
    return jnp.sqrt(_product_squares(*_checked(loss, params, data, chunk_size), v, chunk_size))


@functools.partial(jax.jit, static_argnames="chunk_size")
def _deviation_squares(
    loss: Any, params: Params, data: Any, v: Params, chunk_size: int | None
) -> jax.Array:
    structure, chunks = linearise_chunks(loss, params, data, chunk_size)
    if not structure.blocks:
        return jnp.zeros(data_size(data))

    def add(linearised: Any, _: Any) -> Any:
        return example_sum(structure.blocks, params, linearised, linearised.linear(v)), None

    mean = scale_like(chunks.reduce(add)[0], data_size(data), params)
    shift = jax.tree.map(jnp.negative, mean)
    return chunks.map(
        lambda linearised: _squares(structure, linearised, linearised.linear(v), shift)
    )


@at_given
def per_example_deviations(
    loss: Loss,
    params: Params,
    data: Any,
    v: Params,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    """Returns ‖H_i v − H v‖² for all examples, shape (n,); their mean is vᵀΣ v.

    Cost: about one Hessian-vector product. Arguments and errors as for `per_example_hessian_norms`.
    """
    return _deviation_squares(*_checked(loss, params, data, chunk_size), v, chunk_size)


@functools.partial(jax.jit, static_argnames=("probes", "chunk_size"))
def _frobenius(
    loss: Any, params: Params, data: Any, key: jax.Array, probes: int, chunk_size: int | None
) -> jax.Array:

    def probe(key: jax.Array) -> jax.Array:
        v = random_signs(key, params)
        return jnp.mean(_product_squares(loss, params, data, v, chunk_size))

    return jax.lax.map(probe, jax.random.split(key, probes))


@at_given
def hessian_frobenius(
    loss: Loss,
    params: Params,
    data: Any,
    *,
    key: jax.Array,
    probes: int = 30,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> ProbeMean:
    """Estimates (1/n) Σ ‖H_i‖_F² = tr (1/n) Σ H_i² by (1/n) Σ ‖H_i z‖² over random signs z.

    Unbiased (Hutchinson): E ‖H_i z‖² = ‖H_i‖_F². Cost: `probes` times half a Hessian-vector
    product. Arguments and errors as for `jaxstab.hessian`; `probes` is at least 2, for the error.
    """
    check_at_least("probes", probes, 2)
    problem = _checked(loss, params, data, chunk_size)
    values = _frobenius(*problem, key, probes, chunk_size)
    return ProbeMean(jnp.mean(values), jnp.std(values, ddof=1) / jnp.sqrt(probes), probes)


@at_given
def directional_curvatures(
    loss: Callable[[Any, Any], Any],
    params: Any,
    data: Any,
    direction: Any,
    *,
    chunk_size: int | None = None,
    precision: str | None = "highest",
) -> jax.Array:
    """Returns vᵀH_i v for every example, by two nested JVPs of its loss.

    Args:
      loss: `loss(params, example) -> scalar`.
      params: the point.
      data: pytree of arrays with a leading axis n.
      direction: v, shaped like `params`; not normalised here.
      chunk_size: examples at once; all by default.
      precision: of matrix products and convolutions, as for `jaxstab.hessian`.

    Returns:
      Array (n,), in 1/step size for a unit v. Cost: about one Hessian-vector product.
    """
    data = with_layout(data)
    chunk_shape(data, chunk_size)
    return _directional_curvatures(
        as_pytree(loss), beside(data, params), data, direction, chunk_size=chunk_size
    )


def _second_derivative(loss: Any, params: Any, example: Any, v: Any) -> jax.Array:
    def slope(params: Any) -> jax.Array:
        return jax.jvp(lambda params: loss(params, example), (params,), (v,))[1]

    return jax.jvp(slope, (params,), (v,))[1]


@jax.jit(static_argnames="chunk_size")
def _directional_curvatures(
    loss: Any, params: Any, data: Any, v: Any, *, chunk_size: int | None
) -> jax.Array:
    each = jax.vmap(lambda example: _second_derivative(loss, params, example, v))
    return map_over_chunks(each, data, chunk_size)
