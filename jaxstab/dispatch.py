"""Runs on devices: the driver beneath `jaxstab.sweep`.

Every device carries one run (or several, vmapped) in its *lanes*. One compiled call, a
`jax.shard_map` over a mesh of the devices, advances all lanes by a slice of steps without any
exchange between them; then the host collects the runs that have ended and gives their lanes the
next ones. So runs whose lengths differ by a factor of a hundred keep every device busy, and the
host is asked once per slice of about a quarter of a second, not once per step. Ended runs are
measured one per device, in one such call too.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxstab import training
from jaxstab.measurement import RECORD_NAMES
from jaxstab.training import Status

AXIS = "runs"
SLICE_SECONDS = 0.25


class Point(NamedTuple):
    """One run of a grid."""

    batch_size: int
    learning_rate: float
    init_scale: float
    seed: int

    @property
    def identifier(self) -> str:
        """Name of the run's folder; exact, so that no two points share one."""
        return (
            f"B{self.batch_size}-lr{self.learning_rate!r}-scale{self.init_scale!r}-seed{self.seed}"
        )


@dataclass(frozen=True)
class Work:
    """What all runs of a sweep share.

    Attributes:
      loss: callable pytree, as are init and evaluate.
      init: `init(key, scale) -> params`.
      data: pytree of arrays with a leading axis n.
      settings: loss tolerance and divergence factor.
      evaluate: `evaluate(params) -> dict of scalars`, or None.
      measure: `measure(loss, params, data, key=key) -> Measurement`, or None.
      mesh: one axis over the devices.
      runs_per_device: lanes of each device.
    """

    loss: Any
    init: Any
    data: Any
    settings: training.Settings
    evaluate: Any
    measure: Callable[..., Any] | None
    mesh: Mesh
    runs_per_device: int

    def place(self) -> "Work":
        """Returns the same with its arrays copied to every device."""
        shared = self.loss, self.init, self.data, self.settings, self.evaluate
        everywhere = NamedSharding(self.mesh, P())
        loss, init, data, settings, evaluate = jax.device_put(shared, everywhere)
        return replace(self, loss=loss, init=init, data=data, settings=settings, evaluate=evaluate)


class Ended(NamedTuple):
    """A run that has ended, on the host."""

    point: Point
    record: dict[str, Any]
    params: Any
    history: dict[str, np.ndarray]


def run_keys(seed: Any) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a run: of its initial parameters and of its batches."""
    init_key, batch_key = jax.random.split(jax.random.key(seed))
    return init_key, batch_key


def make_mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    """Returns a mesh with one axis over the given devices, or over those of this process."""
    chosen = list(jax.local_devices() if devices is None else devices)
    if not chosen:
        raise ValueError("devices is empty: give at least one")
    return Mesh(np.array(chosen), (AXIS,))


def ended_runs(
    work: Work,
    loops: Mapping[int, training.Loop],
    points: Sequence[Point],
    take: Callable[[Point], bool] = lambda _: True,
) -> Iterator[Ended]:
    """Trains and measures the points, batch size by batch size, and yields each when done.

    Args:
      work: what all of them share.
      loops: the compiled loop of each batch size.
      points: the runs.
      take: asked when a lane is free for a run; False leaves it to somebody else.
    """
    work = work.place()
    waiting: list[Ended] = []
    for batch_size, loop in loops.items():
        # the longest runs first: they would leave the other devices idle at the end
        queue = deque(point for point in points if point.batch_size == batch_size)
        for ended in _train(work, loop, queue, take):
            waiting.append(ended)
            if len(waiting) == work.mesh.size:
                yield from _assess(work, waiting)
                waiting = []
    if waiting:
        yield from _assess(work, waiting)


def _train(
    work: Work, loop: training.Loop, queue: deque[Point], take: Callable[[Point], bool]
) -> Iterator[Ended]:
    """Trains all runs of the queue, which share a batch size, that can be taken."""
    lanes = work.mesh.size * min(work.runs_per_device, -(-len(queue) // work.mesh.size))
    running: list[Point | None] = [None] * lanes
    states: Any = None
    budget = 1
    first_call = True
    ended: list[Ended] = []
    while True:
        begin = np.zeros(lanes, bool)
        for lane in range(lanes):
            while running[lane] is None and queue:
                point = queue.popleft()
                if take(point):
                    running[lane], begin[lane] = point, True
        if not any(running):
            yield from ended
            return
        if states is None:
            states = _idle_lanes(work, loop, lanes)
        # an idle lane needs some numbers too; its state says that there is nothing to do
        points = [point or Point(0, 1.0, 1.0, 0) for point in running]
        started_at = time.perf_counter()
        states = _advance_lanes(
            loop,
            work.mesh,
            (work.loss, work.init, work.data, work.settings),
            np.int32(budget),
            states,
            begin,
            np.array([point.seed for point in points], np.uint32),
            jnp.array([point.init_scale for point in points]),
            jnp.array([point.learning_rate for point in points]),
        )
        # the devices go on while the caller stores what the last slice ended
        handed_at = time.perf_counter()
        yield from ended
        held_up = time.perf_counter() - handed_at
        status = np.asarray(states.status)
        seconds = time.perf_counter() - started_at
        if not first_call and held_up < seconds / 2:  # not the call that compiles
            budget = max(1, int(budget * min(max(SLICE_SECONDS / seconds, 0.25), 4.0)))
        first_call = False
        over = [i for i in range(lanes) if running[i] and status[i] != Status.RUNNING]
        host = jax.device_get(states) if over else None
        ended = []
        for lane in over:
            state = jax.tree.map(lambda x, lane=lane: np.array(x[lane]), host)
            ended.append(_ended(loop, running[lane], state))
            running[lane] = None


def _ended(loop: training.Loop, point: Point | None, state: training.State) -> Ended:
    assert point is not None
    run = training.finish(loop, state)
    record = point._asdict() | {
        "status": run.status.name.lower(),
        "steps": run.steps,
        "loss": run.loss,
        "initial_loss": float(state.initial_loss),
    }
    return Ended(point, record, run.params, {"steps": run.history_steps, "loss": run.history})


def _assess(work: Work, ended: list[Ended]) -> list[Ended]:
    """Adds measurement and evaluation to the records, one run per device."""
    if work.measure is None and work.evaluate is None:
        return ended
    filled = [*ended, *[ended[-1]] * (work.mesh.size - len(ended))]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *[run.params for run in filled])
    seeds = np.array([run.point.seed for run in filled], np.uint32)
    diverged = np.array([run.record["status"] == "diverged" for run in filled])
    shared = work.loss, work.data, work.evaluate
    found = jax.device_get(_assess_lanes(work.measure, work.mesh, shared, params, seeds, diverged))
    names = [name for name in RECORD_NAMES if name in found]  # jax sorts dicts by name
    names += [name for name in found if name not in names]
    for lane, run in enumerate(ended):
        run.record.update({name: found[name][lane].item() for name in names})
    return ended


def _idle_lanes(work: Work, loop: training.Loop, lanes: int) -> training.State:
    """Returns lanes in which nothing runs, with the shapes of those in which something does."""
    number = jax.ShapeDtypeStruct((), jnp.result_type(float))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    shared = work.loss, work.init, work.data, work.settings
    shapes = _begin_lane.eval_shape(loop, shared, seed, number, number)
    states = jax.tree.map(lambda x: np.zeros((lanes, *x.shape), x.dtype), shapes)
    states = states._replace(status=np.full(lanes, Status.STEP_LIMIT, np.int32))
    return jax.device_put(states, NamedSharding(work.mesh, P(AXIS)))


def _begin(loop: training.Loop, shared: Any, seed: Any, scale: Any, rate: Any) -> training.State:
    """The state before the first step of a run; the key as plain numbers, which zeros can fill."""
    loss, init, data, settings = shared
    init_key, batch_key = run_keys(seed)
    settings = settings._replace(learning_rate=rate)
    state = training.start(loop, loss, init(init_key, scale), data, settings, batch_key)
    return state._replace(key=jax.random.key_data(batch_key))


# never run by itself: it remembers the shapes, which an evaluation anew would trace again
_begin_lane = jax.jit(_begin, static_argnums=0)


@partial(jax.jit, static_argnums=(0, 1))
def _advance_lanes(loop, mesh, shared, budget, states, begin, seeds, scales, rates):
    """Starts the lanes marked in `begin`, then advances all by at most `budget` checks."""

    def advance(shared, budget, state, begin, seed, scale, rate):
        loss, _, data, settings = shared
        state = jax.lax.cond(begin, lambda: _begin(loop, shared, seed, scale, rate), lambda: state)
        key = jax.random.wrap_key_data(state.key)
        settings = settings._replace(learning_rate=rate)
        state = training.advance(loop, loss, data, settings, state._replace(key=key), budget)
        return state._replace(key=jax.random.key_data(key))

    per_lane = states, begin, seeds, scales, rates
    return _on_all_devices(advance, mesh, jax.vmap, (shared, budget), per_lane)


@partial(jax.jit, static_argnums=(0, 1))
def _assess_lanes(measure, mesh, shared, params, seeds, diverged):
    """Measures and evaluates each lane's parameters; NaN for a run that diverged."""

    def assess(shared, params, seed, diverged):
        loss, data, evaluate = shared
        key = jax.random.fold_in(jax.random.key(seed), 1)

        def known():
            found = {}
            if measure is not None:
                record = measure(loss, params, data, key=key).to_record()
                known_before = ("n", "loss")  # the same for all runs; computed along the run
                found |= {k: jnp.asarray(v) for k, v in record.items() if k not in known_before}
            if evaluate is not None:
                found |= {name: jnp.asarray(value) for name, value in evaluate(params).items()}
            return found

        def unknown():
            shapes = jax.eval_shape(known)
            return {name: _missing(shape) for name, shape in shapes.items()}

        return jax.lax.cond(diverged, unknown, known)

    return _on_all_devices(assess, mesh, _in_turn, (shared,), (params, seeds, diverged))


def _missing(shape: Any) -> jax.Array:
    inexact = jnp.issubdtype(shape.dtype, jnp.inexact)
    return jnp.full(shape.shape, jnp.nan if inexact else 0, shape.dtype)


def _on_all_devices(function, mesh, several, shared, per_lane):
    """Applies a function to all lanes, each device to its own; `several` maps within a device."""

    def on_one_device(shared, per_lane):
        lanes = jax.tree.leaves(per_lane)[0].shape[0]
        if lanes > 1:
            return several(lambda each: function(*shared, *each))(per_lane)
        # one lane: no batching at all, so that conditionals stay conditionals
        result = function(*shared, *jax.tree.map(lambda x: x[0], per_lane))
        return jax.tree.map(lambda x: x[None], result)

    return jax.shard_map(
        on_one_device, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS), check_vma=False
    )(shared, per_lane)


def _in_turn(function):
    return partial(jax.lax.map, function)
