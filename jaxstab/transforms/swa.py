"""Stochastic weight averaging over any inner optimizer, with EMA and LAWA on the same state."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxstab.checks import check_at_least, check_positive
from jaxstab.transforms.common import check_params_given
from jaxstab.trees import accumulator_dtype


class SwaState(NamedTuple):
    """State of `swa`."""

    steps: jax.Array  # (), int32: steps taken
    averaged: jax.Array  # (), int32: iterates that have entered the average
    average: Any  # as params, at least float32; MaskedNode where masked; (window, ...) for LAWA
    inner: Any  # state of the inner optimizer


def swa(
    inner: optax.GradientTransformation,
    *,
    start: int = 0,
    every: int = 1,
    decay: Any = None,
    window: int | None = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the iterates of `inner` without changing them.

    Let :math:`\theta_t` be the parameters after t steps. The iterates
    :math:`\theta_s, \theta_{s+c}, \theta_{s+2c}, \dots` (s = `start`, c = `every`) enter the
    average as they come, the m-th (from 0) by

    .. math:: \bar\theta \leftarrow (m\bar\theta + \theta) / (m + 1)

    (SWA: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1; with s = 0 the initial parameters
    count as the first model, as there). Two other averages fit the same state: with `decay`,
    :math:`\bar\theta \leftarrow d\bar\theta + (1-d)\theta` (EMA, started at the first iterate, so
    nothing is to be debiased); with `window`, the mean of the last k iterates (LAWA, Kaddour 2022,
    arXiv 2209.14981).

    `swa_params` reads the average out. Batch-norm statistics belong to the parameters they were
    collected at: recompute them for the average with `jaxstab.models.recompute_batch_stats`, one
    pass over the data. Put `swa` outermost: what a chain does to the updates after it would not
    reach the average.

    Args:
      inner: the optimizer to follow; extra arguments of `update` are passed on to it.
      start: s ≥ 0, in steps.
      every: c ≥ 1, in steps.
      decay: d in [0, 1] for an exponential average, else None.
      window: k ≥ 1 for the mean of the last k iterates, else None. Memory: k × parameters.
      mask: pytree of bools like `params` (or a prefix of it), or a function of `params` that
        returns one: only leaves marked True are averaged, the others follow the inner optimizer
        and take no memory here. `leaves_named` makes one from names ("batch norm only", He et al.
        2019, arXiv 1902.00744, section 5).

    Returns:
      An optax transform with state `SwaState`. Memory: one copy of the averaged parameters (in
      float32 at least: a bfloat16 mean stops moving after some 256 terms).

    Raises:
      ValueError: if a number is out of its range or both `decay` and `window` are given; from
        `update` if `params` is not passed.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = swa(optax.sgd(1.0), start=1, every=2)
      >>> params = jnp.array(0.0)
      >>> state = optimizer.init(params)
      >>> for gradient in (-1.0, -2.0, -3.0):  # iterates 1, 3, 6
      ...     updates, state = optimizer.update(jnp.array(gradient), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(swa_params(state, params))  # (1 + 6) / 2
      3.5
    """
    inner = optax.with_extra_args_support(inner)
    check_at_least("start", start, 0)
    check_at_least("every", every, 1)
    if decay is not None and window is not None:
        raise ValueError("give decay (EMA) or window (LAWA), not both")
    if decay is not None:
        check_positive("decay", decay, allow_zero=True)
        if isinstance(decay, int | float) and decay > 1:
            raise ValueError(f"decay must be at most 1, got {decay!r}")
    if window is not None:
        check_at_least("window", window, 1)

    def include(average, averaged, params):
        """Lets one iterate into the average."""

        def leaf(a, p):
            p = p.astype(a.dtype)
            if window is not None:
                return a.at[averaged % window].set(p)
            if decay is None:
                return a + (p - a) / (averaged + 1).astype(a.dtype)
            return jnp.where(averaged == 0, p, a + (1 - decay) * (p - a)).astype(a.dtype)

        return jax.tree.map(leaf, average, _select(mask, params))

    def init(params):
        def zeros(p):
            shape = jnp.shape(p) if window is None else (window, *jnp.shape(p))
            return jnp.zeros(shape, accumulator_dtype(p))

        average = jax.tree.map(zeros, _select(mask, params))
        averaged = jnp.zeros((), jnp.int32)
        if start == 0:
            average, averaged = include(average, averaged, params), averaged + 1
        return SwaState(jnp.zeros((), jnp.int32), averaged, average, inner.init(params))

    def update(gradient, state, params=None, **extra_args):
        check_params_given("swa", params)
        updates, inner_state = inner.update(gradient, state.inner, params, **extra_args)
        count = optax.safe_increment(state.steps)
        due = (count >= start) & ((count - start) % every == 0)
        # cond, not where: between two averaged iterates the average is not read at all
        average = jax.lax.cond(
            due,
            lambda: include(state.average, state.averaged, optax.apply_updates(params, updates)),
            lambda: state.average,
        )
        averaged = jnp.where(due, optax.safe_increment(state.averaged), state.averaged)
        return updates, SwaState(count, averaged, average, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def swa_params(opt_state: Any, params: Any) -> Any:
    """Returns the average that `swa` holds, as parameters.

    Args:
      opt_state: the state of an optimizer with one `swa` in it, at any depth.
      params: the current parameters: they give the dtypes, the leaves that are not averaged, and
        the answer as long as nothing has been averaged.

    Returns:
      A pytree like `params`. Batch-norm statistics are not parameters and are still those of
      `params`: see `jaxstab.models.recompute_batch_stats`.

    Raises:
      ValueError: if there is no `SwaState` in `opt_state`, or more than one.
    """
    found = [
        leaf
        for leaf in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, SwaState))
        if isinstance(leaf, SwaState)
    ]
    if len(found) != 1:
        raise ValueError(
            f"found {len(found)} SwaState in the optimizer state, need exactly one: "
            "pass the state of an optimizer made with jaxstab.transforms.swa"
        )
    state = found[0]

    def read(average, p):
        if _is_masked(average):
            return p  # may be a whole subtree: the mask may be a prefix
        if average.ndim > jnp.ndim(p):  # LAWA: slots not yet filled are zero
            filled = jnp.clip(state.averaged, 1, average.shape[0]).astype(average.dtype)
            average = jnp.sum(average, axis=0) / filled
        return jnp.where(state.averaged > 0, average.astype(p.dtype), p)

    return jax.tree.map(read, state.average, params, is_leaf=_is_masked)


def cyclic_schedule(high: Any, low: Any, period: int) -> Callable[[jax.Array], jax.Array]:
    """The cyclic learning rate of SWA: falls linearly from `high` to `low`, then jumps back.

    α(i) = (1−t)·high + t·low with t = (mod(i−1, c)+1)/c at step i = 1, 2, … (Izmailov et al. 2018,
    arXiv 1803.05407, section 3.1). The lowest rate, α = low, is that of step i = c, 2c, …: average
    there, with `swa(..., every=period)`.

    Args:
      high: α₁, the learning rate that a cycle starts near.
      low: α₂, the learning rate that a cycle ends at.
      period: c ≥ 1, in steps.

    Returns:
      An optax schedule: a function of the number of steps taken before, i−1.

    Example:
      >>> schedule = cyclic_schedule(0.4, 0.1, 3)
      >>> [round(float(schedule(count)), 3) for count in range(4)]
      [0.3, 0.2, 0.1, 0.3]
    """
    check_positive("high", high)
    check_positive("low", low, allow_zero=True)
    check_at_least("period", period, 1)

    def schedule(count):
        t = (count % period + 1) / period
        return (1 - t) * high + t * low

    return schedule


def leaves_named(pattern: str) -> Callable[[Any], Any]:
    """A mask of the leaves whose path contains `pattern`, a regular expression.

    Args:
      pattern: searched in the path as `jax.tree_util.keystr` writes it, for example
        "['BatchNorm_0']['scale']". `leaves_named("BatchNorm")` marks batch norm in Flax linen; in
        nnx use the names of your attributes.

    Returns:
      A function from parameters to a pytree of bools. It raises a ValueError if nothing matches.
    """

    def mask(params):
        marked = jax.tree_util.tree_map_with_path(
            lambda path, _: re.search(pattern, jax.tree_util.keystr(path)) is not None, params
        )
        if not any(jax.tree.leaves(marked)):
            paths = jax.tree_util.tree_leaves_with_path(params)
            known = ", ".join(jax.tree_util.keystr(path) for path, _ in paths)
            raise ValueError(f"no parameter matches {pattern!r}: there are {known}")
        return marked

    return mask


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _select(mask: Any, params: Any) -> Any:
    """Returns `params` with `MaskedNode` (no leaves) in place of what the mask leaves out."""
    if mask is None:
        return params
    marked = mask(params) if callable(mask) else mask
    return jax.tree.map(lambda keep, p: p if keep else optax.MaskedNode(), marked, params)
