"""One training run as one compiled loop: batches, optimizer, stopping rule and loss history.

The loop is a `while` over checks of the full loss around an inner loop of steps. Nothing goes to
the host before the run ends, and data, parameters, learning rate, tolerance and key are operands:
another learning rate or seed never compiles again.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import checks
from jaxstab.callables import as_pytree
from jaxstab.convolutions import fast_in_loops
from jaxstab.run_settings import (
    Settings,
    check_batch_norm,
    check_data,
    check_optimizer,
    check_settings,
    choose_check_every,
)
from jaxstab.sampling import batch_indices, take
from jaxstab.transforms.sam import gradient_of_parts


class Status(enum.IntEnum):
    """How a run ended."""

    RUNNING = 0
    CONVERGED = 1
    STEP_LIMIT = 2
    DIVERGED = 3


class Run(NamedTuple):
    """A finished run, on the host except for `params`, `opt_state` and `observations`.

    Attributes:
      params: parameters after the last step.
      opt_state: state of the optimizer; pass it to `train` to go on.
      steps: number of steps done.
      loss: mean loss over all data at `params`.
      status: CONVERGED (loss below the tolerance), STEP_LIMIT or DIVERGED.
      history_steps: int array (c,), the steps at which the full loss was computed, from 0.
      history: array (c,) of those losses.
      observations: what the observer returned at each check, leading axis c - 1; None without one.
      state: collections of the model after the last step (batch statistics), for
        `loss.with_state(run.state)`; None if they were frozen.
    """

    params: Any
    opt_state: Any
    steps: int
    loss: float
    status: Status
    history_steps: np.ndarray
    history: np.ndarray
    observations: Any
    state: Any = None


@dataclass(frozen=True)
class Loop:
    """What is static about a run: it decides what is compiled."""

    optimizer: Callable[[Any], optax.GradientTransformation]
    batch_size: int
    max_steps: int
    check_every: int
    replacement: bool = False
    chunk_size: int | None = None
    batch_norm: str = "frozen"
    augment: Callable[[jax.Array, Any], Any] | None = None

    @property
    def checks(self) -> int:
        """Largest number of checks of the full loss after the first one."""
        return -(-self.max_steps // self.check_every)


class Observer(NamedTuple):
    """`init(params) -> state`, `update(state, params, data, opt_state=...) -> (state, info)`."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


class State(NamedTuple):
    """A run in progress; shapes and types never change."""

    params: Any
    opt_state: Any
    key: jax.Array
    step: jax.Array  # int32 ()
    loss: jax.Array  # ()
    initial_loss: jax.Array  # ()
    status: jax.Array  # int32 ()
    history: jax.Array  # (checks + 1,)
    observer_state: Any
    observations: Any  # leading axis checks
    model_state: Any = None  # collections of the model, if training moves them


@dataclass(frozen=True)
class _Fixed:
    """An optimizer that was built with its learning rate, in the place of a factory."""

    transformation: optax.GradientTransformation

    def __call__(self, learning_rate: Any) -> optax.GradientTransformation:
        return self.transformation


def train(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    optimizer: Any,
    batch_size: int,
    key: jax.Array,
    max_steps: int,
    learning_rate: float | None = None,
    loss_tolerance: float | None = 1e-4,
    check_every: int | None = None,
    divergence: float = 1e6,
    replacement: bool = False,
    chunk_size: int | None = None,
    opt_state: Any = None,
    observer: Any = None,
    batch_norm: str = "frozen",
    augment: Callable[[jax.Array, Any], Any] | None = None,
) -> Run:
    """Trains until the full loss is below a tolerance, a step limit, or divergence.

    Every step draws a fresh batch uniformly without replacement (docs/formulas.md, section 0); with
    `batch_size` equal to n each step is gradient descent on the data as they are.

    The update is called with optax's extra arguments `value` and `grad` (batch loss and gradient),
    `value_fn` and `grad_fn` (the same as functions of the parameters, on the same batch), so that
    line searches and SAM work. What an optimizer does not use is not computed.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: pytree of floating-point arrays.
      data: pytree of arrays with a leading axis n.
      optimizer: an optax transformation; or, with `learning_rate`, a function of the learning rate
        that returns one (`optax.sgd`, say). The second way compiles once for all learning rates;
        a transformation that is built anew is compiled anew.
      batch_size: B in 1..n.
      key: random key; step t draws its batch from `jax.random.fold_in(key, t)`.
      max_steps: step limit.
      learning_rate: see `optimizer`.
      loss_tolerance: stop when the mean loss over all data is below it; None never stops.
      check_every: steps between two checks of the full loss. By default about four passes over
        the data (between 10 and 1000 steps), so that checking costs a few per cent.
      divergence: stop when the loss is not finite, or above this factor times the initial loss
        (or the tolerance, if that is larger). `math.inf` leaves only the first.
      replacement: draw batches with replacement.
      chunk_size: examples per chunk in the checks of the full loss, to bound memory.
      opt_state: continue from the `opt_state` of an earlier run; use a new key.
      observer: object with `init(params)` and `update(state, params, data, *, opt_state) -> (state,
        info)`, such as `js.tracker(...)`; called at every check, inside the compiled loop.
      batch_norm: "frozen" leaves the statistics of the loss as they are, so that examples do not
        interact; "batch" trains as networks with batch norm are trained: every step uses the
        statistics of its batch (`ModelLoss.train_mode`) and moves the running averages, with which
        the full loss is computed. The loss then starts from `models.initial_state`, say, and
        `loss.with_state(run.state)` is the trained one.
      augment: `augment(key, batch) -> batch`, applied to the batch of every step, for example
        `js.data.crop_and_flip()`; a function defined once, since a new one is compiled anew.

    Returns:
      A `Run`. Divergence and the step limit are results: look at `status`.

    Raises:
      ValueError: if an argument is out of range, or data or parameters are empty or not finite.
      TypeError: if parameters are not floating-point arrays.

    Example:
      >>> run = train(lambda w, x: (w - x) ** 2, jnp.zeros(()), jnp.ones(4), optimizer=optax.sgd,
      ...             learning_rate=0.25, batch_size=4, key=jax.random.key(0), max_steps=100)
      >>> run.status.name, run.steps, round(float(run.params), 3)
      ('CONVERGED', 10, 0.999)
    """
    checks.check_params(params)
    n = check_data("train", data)
    checks.check_loss(as_pytree(loss), params, data)
    batch_size = checks.check_batch_size(batch_size, n, replacement=replacement)
    check_optimizer(optimizer, learning_rate is not None)
    if chunk_size is not None:
        checks.check_at_least("chunk_size", chunk_size, 1)
    check_batch_norm(batch_norm, loss)
    settings = check_settings(learning_rate, loss_tolerance, divergence)
    loop = Loop(
        optimizer=optimizer if learning_rate is not None else _Fixed(optimizer),
        batch_size=batch_size,
        max_steps=checks.check_at_least("max_steps", max_steps, 1),
        check_every=choose_check_every(check_every, n, batch_size, max_steps),
        replacement=replacement,
        chunk_size=chunk_size,
        batch_norm=batch_norm,
        augment=augment,
    )
    state = _run(
        loop,
        as_pytree(loss),
        params,
        data,
        settings,
        key,
        opt_state,
        None
        if observer is None
        else Observer(as_pytree(observer.init), as_pytree(observer.update)),
    )
    return finish(loop, state)


def mean_loss(
    loss: Callable[..., Any], params: Any, data: Any, *, chunk_size: int | None = None
) -> jax.Array:
    """Returns (1/n) sum_i loss(params, example_i), computed `chunk_size` examples at a time."""
    if chunk_size is None:
        return jnp.mean(jax.vmap(loss, (None, 0))(params, data))
    return jnp.mean(jax.lax.map(lambda e: loss(params, e), data, batch_size=chunk_size))


def start(
    loop: Loop,
    loss: Any,
    params: Any,
    data: Any,
    settings: Settings,
    key: jax.Array,
    opt_state: Any = None,
    observer: Observer | None = None,
) -> State:
    """Returns the state before the first step; traceable."""
    params = jax.tree.map(jnp.asarray, params)
    if opt_state is None:
        opt_state = loop.optimizer(settings.learning_rate).init(params)
    value = mean_loss(loss, params, data, chunk_size=loop.chunk_size)
    history = jnp.full(loop.checks + 1, jnp.nan, value.dtype).at[0].set(value)
    observer_state, observations = None, None
    if observer is not None:
        observer_state = observer.init(params)
        shapes = jax.eval_shape(observer.update, observer_state, params, data, opt_state=opt_state)
        info = shapes[1]
        observations = jax.tree.map(lambda x: jnp.zeros((loop.checks, *x.shape), x.dtype), info)
    model_state = jax.tree.map(jnp.asarray, dict(loss.state)) if _moves(loop) else None
    step = jnp.zeros((), jnp.int32)
    status = _status(loop, settings, step, value, value)
    return State(
        params,
        opt_state,
        key,
        step,
        value,
        value,
        status,
        history,
        observer_state,
        observations,
        model_state,
    )


def advance(
    loop: Loop,
    loss: Any,
    data: Any,
    settings: Settings,
    state: State,
    budget: Any,
    observer: Observer | None = None,
) -> State:
    """Goes on until the run ends or `budget` checks are done; traceable, shardable, vmappable."""
    first = state.step

    def unfinished(state: State) -> jax.Array:
        within = (state.step - first) < budget * loop.check_every
        return (state.status == Status.RUNNING) & within

    def block(state: State) -> State:
        length: Any = loop.check_every
        if loop.max_steps % loop.check_every:
            # a trip count that is data costs a masked update per step under vmap
            length = jnp.minimum(length, loop.max_steps - state.step)
        step_once = partial(_step, loop, loss, data, settings, state.key, state.step)
        carry = (state.params, state.opt_state, state.model_state)
        carry = jax.lax.fori_loop(0, length, fast_in_loops(step_once), carry)
        params, opt_state, model_state = carry
        step = state.step + length
        now = loss.with_state(model_state) if _moves(loop) else loss
        value = mean_loss(now, params, data, chunk_size=loop.chunk_size)
        check = (step + loop.check_every - 1) // loop.check_every
        observer_state, observations = state.observer_state, state.observations
        if observer is not None:
            observer_state, info = observer.update(
                observer_state, params, data, opt_state=opt_state
            )
            observations = jax.tree.map(lambda all, x: all.at[check - 1].set(x), observations, info)
        return State(
            params=params,
            opt_state=opt_state,
            key=state.key,
            step=step,
            loss=value,
            initial_loss=state.initial_loss,
            status=_status(loop, settings, step, value, state.initial_loss),
            history=state.history.at[check].set(value),
            observer_state=observer_state,
            observations=observations,
            model_state=model_state,
        )

    return jax.lax.while_loop(unfinished, block, state)


def finish(loop: Loop, state: State) -> Run:
    """Returns the host's view of an ended run."""
    steps = int(state.step)
    done = -(-steps // loop.check_every)
    return Run(
        params=state.params,
        opt_state=state.opt_state,
        steps=steps,
        loss=float(state.loss),
        status=Status(int(state.status)),
        history_steps=np.minimum(np.arange(done + 1) * loop.check_every, steps),
        history=np.asarray(state.history)[: done + 1],
        observations=jax.tree.map(lambda x: x[:done], state.observations),
        state=state.model_state,
    )


@partial(jax.jit, static_argnums=0)
def _run(loop, loss, params, data, settings, key, opt_state, observer):
    state = start(loop, loss, params, data, settings, key, opt_state, observer)
    return advance(loop, loss, data, settings, state, loop.checks, observer)


def _step(loop, loss, data, settings, key, first, i, carry):
    """One update; the body of the inner loop."""
    params, opt_state, model_state = carry
    batch = data
    n = checks.data_size(data)
    step_key = jax.random.fold_in(key, first + i)
    if loop.batch_size < n or loop.replacement:
        indices = batch_indices(step_key, n, loop.batch_size, replacement=loop.replacement)
        batch = take(data, indices)
    if loop.augment is not None:
        batch = loop.augment(jax.random.fold_in(step_key, 1), batch)
    own = loss.with_state(model_state) if _moves(loop) else loss

    def value_and_state(params, batch):
        if _moves(loop):
            return own.train_mode(params, batch)
        return mean_loss(own, params, batch), None

    def batch_loss(params, grad_fn=None):
        del grad_fn  # optax's line searches insist that value_fn takes every extra argument
        return value_and_state(params, batch)[0]

    optimizer = optax.with_extra_args_support(loop.optimizer(settings.learning_rate))
    (value, model_state), grad = jax.value_and_grad(value_and_state, has_aux=True)(params, batch)
    updates, opt_state = optimizer.update(
        grad,
        opt_state,
        params,
        value=value,
        grad=grad,
        value_fn=batch_loss,
        grad_fn=gradient_of_parts(lambda params, part: value_and_state(params, part)[0], batch),
    )
    return optax.apply_updates(params, updates), opt_state, model_state


def _moves(loop: Loop) -> bool:
    """Whether training moves the batch statistics of the model."""
    return loop.batch_norm == "batch"


def _status(loop, settings, step, value, initial):
    limit = settings.divergence * jnp.maximum(initial, settings.loss_tolerance)
    diverged = ~jnp.isfinite(value) | (value > limit)
    status = jnp.where(step >= loop.max_steps, Status.STEP_LIMIT, Status.RUNNING)
    status = jnp.where(value < settings.loss_tolerance, Status.CONVERGED, status)
    return jnp.where(diverged, Status.DIVERGED, status).astype(jnp.int32)
