"""Langevin gradient descent: gradient steps with Gaussian noise of a given temperature."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxstab.transforms.common import (
    ScalarOrSchedule,
    check_key,
    check_scalar_or_schedule,
    value_at,
)
from jaxstab.trees import accumulator_dtype


class LangevinState(NamedTuple):
    """State of `langevin`."""

    steps: jax.Array  # (), int32: steps taken
    key: jax.Array  # random key of the noise still to come


def langevin(
    learning_rate: ScalarOrSchedule,
    *,
    key: jax.Array,
    temperature: ScalarOrSchedule | None = None,
    noise: ScalarOrSchedule | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with Gaussian noise.

    .. math:: \theta_{t+1} = \theta_t - \eta_t g_t + \sqrt{2\eta_t T_t}\,\xi_t,
              \qquad \xi_t \sim N(0, I)

    with `temperature` T: for small η the stationary density is proportional to exp(−L/T). On a
    quadratic of curvature λ the stationary variance is exactly T / (λ(1 − ηλ/2)), for ηλ < 2. Or,
    with `noise` γ' in place of the temperature, stochastic gradient descent Langevin (SGDL:
    Zhang et al. 2017, CBMM Memo 067/072, eq. 5), :math:`\theta ← \theta - \gamma_t g_t +
    \gamma'_t W_t`, which has T = γ'²/(2γ).

    The transform holds the whole step, learning rate included: noise that a chain scales
    afterwards has the wrong temperature (as with `optax.noisy_sgd`, whose noise is added before the
    learning rate). What the gradient itself brings (batch noise) comes on top of T.

    Noise is independent over steps and over leaves. The key is in the state, so a run that is
    restored from a checkpoint goes on with fresh noise, exactly as it would have without the stop.
    Equal keys give equal noise: that is right for replicas of one model in data-parallel training,
    and wrong for several chains. For chains under `vmap` or `shard_map` give each its own key
    (build the transform inside the mapped function), or name the mapped axis in `axis_name`.

    Args:
      learning_rate: η (or γ) ≥ 0: a float, a scalar array, or a schedule of the step count.
      key: random key, from `jax.random.key`.
      temperature: T ≥ 0 in units of the loss, or a schedule.
      noise: γ' ≥ 0, standard deviation of the noise of a step, or a schedule. Give exactly one of
        `temperature` and `noise`.
      axis_name: name(s) of mapped axes over whose indices the noise is to differ.

    Returns:
      An optax transform with state `LangevinState`.

    Raises:
      ValueError: if a number is negative, or both or neither of `temperature` and `noise` is given.
      TypeError: if `key` is no random key.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> optimizer = langevin(0.1, temperature=0.01, key=jax.random.key(0))
      >>> params = jnp.zeros(3)
      >>> state = optimizer.init(params)
      >>> updates, state = optimizer.update(jnp.ones(3), state, params)
      >>> updates.shape
      (3,)
    """
    check_scalar_or_schedule("learning_rate", learning_rate)
    if (temperature is None) == (noise is None):
        raise ValueError(
            "give exactly one of temperature (noise std sqrt(2 * learning_rate * temperature)) "
            "and noise (its std itself)"
        )
    if temperature is not None:
        check_scalar_or_schedule("temperature", temperature)
    if noise is not None:
        check_scalar_or_schedule("noise", noise)
    check_key(key, "for several chains build the transform inside jax.vmap over keys")

    def init(params):
        del params
        # A copy: a state that is donated to a compiled step must not take the caller's key along.
        return LangevinState(jnp.zeros((), jnp.int32), jnp.copy(key))

    def update(gradient, state, params=None, **extra_args):
        del params, extra_args
        eta = value_at(learning_rate, state.steps)
        if noise is None:
            std = jnp.sqrt(2.0 * eta * value_at(temperature, state.steps))
        else:
            std = value_at(noise, state.steps)
        next_key, step_key = jax.random.split(state.key)
        if axis_name is not None:
            step_key = jax.random.fold_in(step_key, jax.lax.axis_index(axis_name))
        leaves, treedef = jax.tree.flatten(gradient)
        keys = jax.random.split(step_key, max(len(leaves), 1))
        updates = [_step(leaf, eta, std, leaf_key) for leaf, leaf_key in zip(leaves, keys)]
        state = LangevinState(optax.safe_increment(state.steps), next_key)
        return jax.tree.unflatten(treedef, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _step(gradient: jax.Array, eta: Any, std: Any, key: jax.Array) -> jax.Array:
    """Returns −η g + std·ξ for one leaf; computed in float32 at least, returned in its dtype."""
    dtype = accumulator_dtype(gradient)
    xi = jax.random.normal(key, jnp.shape(gradient), dtype)
    return (-eta * gradient.astype(dtype) + std * xi).astype(gradient.dtype)
