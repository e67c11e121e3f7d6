"""What the transforms share: scalars that may be schedules, dtypes that stay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxstab.checks import check_positive

ScalarOrSchedule = float | jax.Array | Callable[[jax.Array], Any]


def check_scalar_or_schedule(name: str, value: Any) -> Any:
    """Returns a schedule, a traced scalar or a finite number >= 0 unchanged."""
    if callable(value):
        return value
    if jnp.ndim(value) != 0:
        raise ValueError(
            f"{name} must be a scalar or a schedule, got shape {jnp.shape(value)}: "
            "use jax.vmap for several values"
        )
    return check_positive(name, value, allow_zero=True)


def value_at(value: ScalarOrSchedule, count: jax.Array) -> Any:
    """Returns the value of a scalar or schedule at step `count`."""
    return value(count) if callable(value) else value


def check_params_given(transform: str, params: Any) -> None:
    """Raises if `params` was left out of an update that needs it."""
    if params is None:
        raise ValueError(
            f"{transform} needs the current parameters: call "
            "update(gradient, state, params) with params as the third argument"
        )


def check_key(key: Any, several: str) -> None:
    """Raises unless `key` is one random key; `several` says what to do with more than one."""
    is_array = hasattr(key, "dtype") and hasattr(key, "shape")
    typed = is_array and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
    raw = is_array and key.dtype == jnp.uint32 and len(key.shape) == 1
    if not (typed or raw):
        shape = f" of shape {key.shape}" if is_array else ""
        raise TypeError(
            f"key must be one random key, got {type(key).__name__}{shape}: "
            f"use jax.random.key(seed); {several}"
        )


def is_zero(value: Any) -> bool:
    """Whether `value` is the Python number 0; arrays and tracers are values of a sweep, not 0."""
    return isinstance(value, int | float) and value == 0


def cast_like(tree: Any, like: Any) -> Any:
    """Returns `tree` with the dtypes of `like`."""
    return jax.tree.map(lambda x, l: jnp.asarray(x, jnp.result_type(l)), tree, like)


def keep_dtypes(
    transform: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns `transform` with the dtypes of its updates and state held constant.

    A float32 learning rate that is an array (a traced value of a sweep) would otherwise turn the
    updates and the momentum of bfloat16 parameters into float32 after the first step, and
    `jax.lax.scan` would refuse the state.
    """
    transform = optax.with_extra_args_support(transform)

    def update(gradient, state, params=None, **extra_args):
        updates, new_state = transform.update(gradient, state, params, **extra_args)
        return cast_like(updates, gradient), cast_like(new_state, state)

    return optax.GradientTransformationExtraArgs(transform.init, update)
