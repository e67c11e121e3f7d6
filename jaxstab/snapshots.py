"""A run looked at from outside: its parameters at steps spaced evenly or in their logarithm.

For what a compiled observer cannot do: measurements that decide on the host when they are done.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxstab.checks import check_at_least
from jaxstab.training import Observer, Run, train


class Snapshot(NamedTuple):
    """A point of a run."""

    step: int
    params: Any


def spaced_blocks(max_steps: int, points: int) -> tuple[int, list[int]]:
    """Length of a block of steps, and after how many blocks to look: 0, then geometrically.

    Blocks of one length keep the compiled training loop one program.

    Args:
      max_steps: length of the run; what is left over by whole blocks is not run.
      points: about how many times to look after the start; fewer where they would coincide.

    Raises:
      ValueError: if `max_steps` is below 1 or `points` below 2.

    Example:
      >>> spaced_blocks(2000, 4)
      (10, [0, 1, 6, 34, 200])
    """
    block = max(1, check_at_least("max_steps", max_steps, 1) // 200)
    last, points = max_steps // block, check_at_least("points", points, 2)
    return block, [0, *np.unique(np.geomspace(1, last, points).round().astype(int)).tolist()]


def snapshots(
    loss: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    key: jax.Array,
    max_steps: int,
    points: int,
    **options: Any,
) -> Iterator[Snapshot]:
    """Trains and yields the parameters at `spaced_blocks`; it ends early where the loss diverges.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: where the run starts; the first snapshot.
      data: pytree of arrays with a leading axis n.
      key: random key; block b draws its batches from `jax.random.fold_in(key, b)`.
      max_steps: step limit.
      points: about how many snapshots.
      **options: further options of `jaxstab.train`: `optimizer`, `learning_rate`, `batch_size`.

    Example:
      >>> import optax
      >>> run = snapshots(lambda w, x: (w - x) ** 2, np.zeros(()), np.ones(4), max_steps=2,
      ...                 points=2, key=jax.random.key(0), optimizer=optax.sgd,
      ...                 learning_rate=0.25, batch_size=4)
      >>> [(step, float(params)) for step, params in run]
      [(0, 0.0), (1, 0.5), (2, 0.75)]
    """
    block, stops = spaced_blocks(max_steps, points)
    opt_state = None
    for index in range(stops[-1] + 1):
        if index in stops:
            yield Snapshot(index * block, params)
        if index == stops[-1]:
            return
        ended = train(
            loss,
            params,
            data,
            key=jax.random.fold_in(key, index),
            max_steps=block,
            check_every=block,
            loss_tolerance=None,
            opt_state=opt_state,
            **options,
        )
        if not math.isfinite(ended.loss):
            return
        params, opt_state = ended.params, ended.opt_state


def train_keeping(
    loss: Callable[..., Any], params: Any, data: Any, *, max_steps: int, points: int, **options: Any
) -> tuple[Run, list[Any]]:
    """Trains in one compiled loop and keeps the parameters at every check of the loss.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      params: where the run starts.
      data: pytree of arrays with a leading axis n.
      max_steps: length of the run; what is left over by whole stretches is not run.
      points: the run is checked after each of about so many stretches of one length. All those
        parameters are in memory at once.
      **options: further options of `jaxstab.train`: `key`, `optimizer`, `learning_rate`.

    Returns:
      The run, and the parameters at `run.history_steps[1:]`.

    Example:
      >>> import optax
      >>> run, kept = train_keeping(lambda w, x: (w - x) ** 2, np.zeros(()), np.ones(4),
      ...                           max_steps=5, points=2, key=jax.random.key(0),
      ...                           optimizer=optax.sgd, learning_rate=0.25, batch_size=4)
      >>> run.history_steps.tolist(), [float(params) for params in kept]
      ([0, 2, 4], [0.75, 0.9375])
    """
    every = max(1, max_steps // points)
    run = train(
        loss,
        params,
        data,
        max_steps=max_steps - max_steps % every,
        check_every=every,
        loss_tolerance=None,
        observer=Observer(_nothing, _keep),
        **options,
    )
    after = range(len(run.history) - 1)
    return run, [jax.tree.map(lambda x, i=i: x[i], run.observations) for i in after]


def _nothing(params: Any) -> Any:
    """The state of an observer that needs none."""
    return ()


def _keep(state: Any, params: Any, data: Any, *, opt_state: Any) -> tuple[Any, Any]:
    """An observer's update that keeps the parameters."""
    return state, params
