"""Gradient penalty: descent on L + (λ/2) mean over parts of ‖∇L_part‖², for optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxstab.checks import check_at_least, check_positive
from jaxstab.transforms.common import (
    ScalarOrSchedule,
    cast_like,
    check_params_given,
    check_scalar_or_schedule,
    value_at,
)
from jaxstab.transforms.sam import mean_over_parts
from jaxstab.trees import accumulator_dtype, norm


class PenaltyState(NamedTuple):
    """State of `gradient_penalty`.

    Attributes:
      inner: state of the optimizer that takes the step.
      steps: int32 (), steps done, for a schedule.
    """

    inner: Any
    steps: jax.Array


def gradient_penalty(
    inner: optax.GradientTransformation,
    *,
    strength: ScalarOrSchedule,
    parts: int = 1,
    epsilon: float | None = 0.01,
) -> optax.GradientTransformationExtraArgs:
    r"""Feeds `inner` with the gradient of the loss plus a penalty on the gradients of its parts.

    With g_b the gradient and H_b the Hessian of the b-th of `parts` equal parts of the batch,

    .. math:: \nabla\Big(L + \frac{\lambda}{2}\,\overline{\|g_b\|^2}\Big)
              = \overline{g_b + \lambda H_b g_b} .

    (Geiping et al. 2022, arXiv 2109.14119, section 3.3; Barrett and Dherin 2021, arXiv 2009.11162,
    and Smith et al. 2021, arXiv 2101.12176, for λ = η/2: what descent with steps of size η on the
    parts in turn does implicitly.) `epsilon=None` takes H_b g_b exactly, by a forward derivative of
    the gradient; otherwise it is the finite difference of that paper,

    .. math:: H_b g_b \approx \frac{\|g_b\|}{\epsilon}
              \Big(g_b\big(w + \epsilon\, g_b/\|g_b\|\big) - g_b(w)\Big) ,

    exact on a quadratic, and next to SAM: its ascent step with ρ = ε, extrapolated. Where g_b is
    zero, so is H_b g_b. The gradient function comes as an extra argument, as for `sam`.

    Args:
      inner: the optimizer that takes the step from w; extra arguments are passed on to it.
      strength: λ ≥ 0, in step size: a float, a scalar array or a schedule.
      parts: number of parts of the batch.
      epsilon: length of the finite difference; None for the exact product.

    Returns:
      An optax transform. Cost: as many passes over the batch as `sam` with parts, two gradients;
      the exact product costs about three.

    Raises:
      ValueError: if a number is out of its range; from `update`, if `params` or `grad_fn` is
        missing.

    Example:
      >>> grad_fn = lambda w: 2 * w  # L = w², H = 2
      >>> optimizer = gradient_penalty(optax.sgd(0.1), strength=0.5)
      >>> w = jnp.array(1.0)
      >>> updates, _ = optimizer.update(grad_fn(w), optimizer.init(w), w, grad_fn=grad_fn)
      >>> print(f"{updates:.3f}")  # -0.1 (g + 0.5 H g)
      -0.400
    """
    inner = optax.with_extra_args_support(inner)
    check_scalar_or_schedule("strength", strength)
    check_at_least("parts", parts, 1)
    if epsilon is not None:
        check_positive("epsilon", epsilon)

    def init(params: Any) -> PenaltyState:
        return PenaltyState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(gradient, state, params=None, *, grad_fn=None, **extra_args):
        check_params_given("gradient_penalty", params)
        if grad_fn is None:
            raise ValueError(
                "gradient_penalty needs the gradient function of the batch: call update(gradient, "
                "state, params, grad_fn=grad_fn), where grad_fn(params, part, parts) is the "
                "gradient on a part of it; jaxstab.transforms.batch_gradient(loss, batch) makes one"
            )
        scale = value_at(strength, state.steps)

        def penalized(own: Any, of_part: Callable[[Any], Any]) -> Any:
            pushed = _product(of_part, params, own, epsilon)
            return jax.tree.map(lambda g, h: g + scale * h, own, pushed)

        def penalized_part(part: Any) -> Any:
            of_part = lambda w: grad_fn(w, part, parts)  # noqa: E731
            return penalized(of_part(params), of_part)

        if parts == 1:
            total = penalized(gradient, grad_fn)
        else:
            total = mean_over_parts(penalized_part, gradient, parts)
        total = cast_like(total, gradient)
        updates, inner_state = inner.update(
            total, state.inner, params, grad_fn=grad_fn, **extra_args
        )
        return updates, PenaltyState(inner_state, state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def _product(grad_fn: Callable[[Any], Any], params: Any, g: Any, epsilon: float | None) -> Any:
    """H g at `params`, exactly or by a forward difference of length epsilon."""
    if epsilon is None:
        return jax.jvp(grad_fn, (params,), (cast_like(g, params),))[1]
    wide = jax.tree.map(lambda x: x.astype(accumulator_dtype(x)), g)
    size = norm(wide)
    # Zero over zero is zero here; the inner where keeps NaN out of derivatives as well.
    step = jnp.where(size > 0, epsilon / jnp.where(size > 0, size, 1.0), 0.0)
    back = jnp.where(size > 0, size / epsilon, 0.0)
    ahead = grad_fn(jax.tree.map(lambda w, x: (w + step * x).astype(w.dtype), params, wide))
    return jax.tree.map(lambda a, x: (a.astype(x.dtype) - x) * back, ahead, wide)
