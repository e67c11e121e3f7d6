"""A grid of runs over all devices, resumable: learning rates x batch sizes x scales x seeds.

Runs are grouped by batch size, which is all that compilation depends on; `jaxstab.dispatch` spreads
them over the devices, `jaxstab.store` keeps what is finished, and `jaxstab.sharing` lets several
processes, on one host or many, do one sweep together.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxstab import checks, dispatch, sharing, store, training
from jaxstab.callables import as_pytree
from jaxstab.dispatch import Point
from jaxstab.precision import check_precision
from jaxstab.processes import use_host_devices as use_host_devices


@dataclass(frozen=True)
class SweepResult:
    """The finished runs of a sweep.

    Attributes:
      records: one dict per run, ordered by batch size, learning rate, initialisation scale, seed.
        Keys: batch_size, learning_rate, init_scale, seed, status ("converged", "step_limit",
        "diverged"), steps, loss, initial_loss; with measuring what `Measurement.to_record` names,
        without n, so that `Measurement.from_record(record, n=n)` is the measurement again; and
        what `evaluate` returned. What was not measured (diverged runs) is NaN.
      out: the output folder, or None.
    """

    records: list[dict[str, Any]]
    out: Path | None
    _like: Any = field(repr=False, default=None)
    _kept: dict[Point, Any] = field(repr=False, default_factory=dict)

    def load_params(self, record: Mapping[str, Any]) -> Any:
        """Returns the parameters at the end of a run."""
        point = _point(record)
        if self.out is None:
            return self._kept[point][0]
        return store.load_params(_place(self.out, point) / "params", self._like)

    def load_history(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns the arrays `steps` and `loss` along a run."""
        point = _point(record)
        if self.out is None:
            return self._kept[point][1]
        return store.load_history(_place(self.out, point))


def sweep(
    loss: Callable[..., Any],
    init: Callable[..., Any],
    data: Any,
    *,
    optimizer: Callable[[Any], Any],
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    max_steps: int | Mapping[int, int],
    init_scales: Sequence[float] = (1.0,),
    loss_tolerance: float | None = 1e-4,
    check_every: int | None = None,
    divergence: float = 1e6,
    replacement: bool = False,
    chunk_size: int | None = None,
    out: Path | str | None = None,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    measure: bool | Callable[..., Any] = True,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, Mapping[str, Any] | None], None] | None = None,
    devices: Sequence[jax.Device] | None = None,
    runs_per_device: int | None = None,
    precision: str | None = "highest",
) -> SweepResult:
    """Trains every combination of learning rate, batch size, scale and seed, and measures a and s.

    A seed fixes the initial parameters (for all learning rates and batch sizes) and the batches
    (for all learning rates), whatever the number of devices. With `out`, each finished run is
    written at once, a repeated call does only what is missing, and calls in several processes share
    the runs: each returns when all runs are finished, with all of them. A damaged run in the folder
    is set aside, with a warning, and computed again.

    Args:
      loss: `loss(params, example) -> scalar` for one example.
      init: `init(key, scale) -> params`, traceable.
      data: pytree of arrays with a leading axis n.
      optimizer: function of the learning rate, a traced scalar, that returns an optax
        transformation: `optax.sgd`, `lambda lr: js.transforms.sgd(lr, momentum=0.9)`.
      learning_rates: grid, 1 / (unit of sharpness).
      batch_sizes: grid, each in 1..n; n is gradient descent.
      seeds: grid.
      max_steps: step limit, for all batch sizes or by batch size.
      init_scales: grid of scales handed to `init`.
      loss_tolerance: see `train`; so for `check_every`, `divergence`, `replacement`, `chunk_size`.
      check_every: see `train`.
      divergence: see `train`.
      replacement: see `train`.
      chunk_size: see `train`.
      out: output folder; None keeps everything in memory.
      evaluate: `evaluate(params) -> dict of scalars`, traceable; its entries join the records. Hand
        in a `jax.tree_util.Partial` to keep the arrays that it uses out of the compiled code.
      measure: whether to measure sharpness and non-uniformity where a run ends, or the function
        that does, called as `measure(loss, params, data, key=key)`: `jaxstab.measure` by default,
        `functools.partial(jaxstab.measure, tol=1e-2)`, say.
      config: what else identifies the sweep (names of model and data set), for the folder.
      progress: called as `progress(done, total, record)` after each run, and first with None.
      devices: devices to use; by default those of this process.
      runs_per_device: runs vmapped in each device; by default 1 on CPU and 16 elsewhere.
      precision: of the products that measure, as for `jaxstab.measure`. Training is at whatever
        JAX is set to. A measuring function of your own has its own.

    Returns:
      `SweepResult`. A run that diverged is a result like others.

    Raises:
      ValueError: if an argument is out of range, data are empty or not finite, `out` holds a
        different sweep, or there are several JAX processes and no `out`. Before any training.
      OSError: if a run cannot be written, for want of room or of rights. What is in the folder
        stays whole.
      TypeError: if `init` does not give floating-point arrays.
    """
    points = grid(learning_rates, batch_sizes, seeds, init_scales, data, replacement=replacement)
    settings = training.check_settings(1.0, loss_tolerance, divergence)
    n = checks.data_size(data)
    loops = {}
    for size in dict.fromkeys(point.batch_size for point in points):
        limit = max_steps.get(size) if isinstance(max_steps, Mapping) else max_steps
        limit = checks.check_at_least(f"max_steps for batch size {size}", limit, 1)
        every = training.choose_check_every(check_every, n, size, limit)
        loops[size] = training.Loop(optimizer, size, limit, every, replacement, chunk_size)
    training.check_optimizer(optimizer, with_learning_rate=True)
    loss, init = as_pytree(loss), as_pytree(init)
    initial = _initial(init, points[0])
    checks.check_params(initial)
    checks.check_loss(loss, initial, data)
    measuring = None if isinstance(measure, bool) else measure
    if measure is True:
        from jaxstab.measurement import measure as standard

        same = check_precision(precision) == "highest"
        measuring = standard if same else partial(standard, precision=precision)
    mesh = dispatch.make_mesh(devices)
    if runs_per_device is None:
        runs_per_device = 1 if mesh.devices.flat[0].platform == "cpu" else 16
    work = dispatch.Work(
        loss,
        init,
        data,
        settings,
        None if evaluate is None else as_pytree(evaluate),
        measuring,
        mesh,
        checks.check_at_least("runs_per_device", runs_per_device, 1),
    )
    progress = progress or _silent
    if out is None:
        if devices is None and jax.process_count() > 1:
            raise ValueError(
                f"{jax.process_count()} JAX processes share a sweep through its folder: give out, "
                "on a file system that all of them see (or devices, to do all runs here)"
            )
        records, kept = _run_here(work, loops, points, progress)
        return SweepResult(records, None, initial, kept)
    folder = store.Store(out, _describe(work, loops, points, initial, config))
    records = sharing.run(work, loops, points, folder, progress)
    return SweepResult(records, folder.folder, initial)


def _run_here(
    work: dispatch.Work,
    loops: Mapping[int, training.Loop],
    points: Sequence[Point],
    progress: Callable[..., None],
) -> tuple[list[dict[str, Any]], dict[Point, Any]]:
    """Does all runs, and keeps parameters and histories in memory."""
    records, kept = {}, {}
    progress(0, len(points), None)
    for point, record, params, history in dispatch.ended_runs(work, loops, points):
        records[point], kept[point] = record, (params, history)
        progress(len(records), len(points), record)
    return [records[point] for point in points], kept


def _describe(
    work: dispatch.Work,
    loops: Mapping[int, training.Loop],
    points: Sequence[Point],
    initial: Any,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns what identifies a sweep, as JSON values.

    Code has no reliable name, so loss, initialisation and optimizer are told by what they do: the
    loss at the first initial parameters, and the length of its second update.
    """
    first, loop = points[0], next(iter(loops.values()))
    loss, update = _probe(loop, work.loss, initial, work.data, first.learning_rate)
    leaves = jax.tree_util.tree_leaves_with_path(initial)
    fields = zip(*points, strict=True)
    names = [f"{name}s" for name in Point._fields]
    return {name: sorted(set(values)) for name, values in zip(names, fields, strict=True)} | {
        "max_steps": {str(size): loop.max_steps for size, loop in loops.items()},
        "check_every": {str(size): loop.check_every for size, loop in loops.items()},
        "loss_tolerance": float(work.settings.loss_tolerance),
        "divergence": float(work.settings.divergence),
        "replacement": loop.replacement,
        "n": checks.data_size(work.data),
        "data": digest(work.data),
        "parameters": {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves
        },
        "first initial loss": float(loss),
        "second update": float(update),
        "measure": _name(work.measure),
        "evaluate": _evaluated(work.evaluate, initial),
        "config": dict(config or {}),
    }


@partial(jax.jit, static_argnums=0)
def _probe(loop, loss, params, data, rate):
    """The loss at the start, and the length of the second update of a made-up gradient."""
    optimizer = optax.with_extra_args_support(loop.optimizer(rate))
    state = optimizer.init(params)
    gradient = jax.tree.map(lambda x: x + 1, params)  # any will do, and this one costs nothing
    same = {"value": 1.0, "grad": gradient, "value_fn": lambda _, grad_fn=None: 1.0}
    same["grad_fn"] = lambda p, *_: p  # called with parts by m-SAM
    for _ in range(2):  # the second one tells what is remembered of the first
        update, state = optimizer.update(gradient, state, params, **same)
    value = training.mean_loss(loss, params, data, chunk_size=loop.chunk_size)
    return value, optax.tree.norm(update)


@jax.jit
def _initialize(init, key, scale):
    return init(key, scale)


def _initial(init: Any, point: Point) -> Any:
    """Parameters of the first run; an error in `init` says what is wanted of it."""
    try:
        return _initialize(init, jax.random.key(point.seed), point.init_scale)
    except TypeError as error:
        error.add_note(
            "jaxstab: this came from init(key, scale), which must return a pytree of arrays; of an "
            "Equinox model, eqx.filter(model, eqx.is_inexact_array)"
        )
        raise


def digest(data: Any) -> str:
    """Returns a hash of the contents and shapes of all arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _name(measure: Any) -> str | None:
    """Returns a name of the measuring function, with the options bound to it."""
    if isinstance(measure, partial):
        options = ", ".join(f"{key}={value!r}" for key, value in sorted(measure.keywords.items()))
        return f"{_name(measure.func)}({options})"
    return None if measure is None else f"{measure.__module__}.{measure.__qualname__}"


def _evaluated(evaluate: Any, params: Any) -> list[str]:
    return [] if evaluate is None else sorted(jax.eval_shape(evaluate, params))


def _silent(done: int, total: int, record: Any) -> None:
    """The progress of a sweep that nobody watches."""


def _place(out: Path, point: Point) -> Path:
    return out / "runs" / point.identifier


def _point(record: Mapping[str, Any]) -> Point:
    # Python's own types, which name the folder: a row of a data frame holds NumPy's
    types = (int, float, float, int)
    return Point(*(kind(record[name]) for kind, name in zip(types, Point._fields, strict=True)))


def grid(
    learning_rates: Sequence[float],
    batch_sizes: Sequence[int],
    seeds: Sequence[int],
    init_scales: Sequence[float],
    data: Any,
    *,
    replacement: bool = False,
) -> list[Point]:
    """Returns the checked points of a grid, in the order of `Point`'s fields."""
    n = training.check_data("sweep", data)
    named = {
        "learning_rates": learning_rates,
        "batch_sizes": batch_sizes,
        "seeds": seeds,
        "init_scales": init_scales,
    }
    for name, values in named.items():
        if not hasattr(values, "__len__"):
            raise TypeError(f"{name} must be a list of at least one value, got {values!r}")
        if len(values) == 0:
            raise ValueError(f"{name} is empty: give at least one")
        if len(set(values)) < len(values):
            raise ValueError(f"{name} has repeated values: {list(values)}")
    for value in learning_rates:
        checks.check_positive("learning_rate", value)
    for value in init_scales:
        checks.check_positive("init_scale", value)
    for value in seeds:
        if checks.check_at_least("seed", value, 0) >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {value}")
    for value in batch_sizes:
        checks.check_batch_size(value, n, replacement=replacement)
    return [
        Point(int(size), float(rate), float(scale), int(seed))
        for size, rate, scale, seed in itertools.product(
            sorted(batch_sizes), sorted(learning_rates), sorted(init_scales), sorted(seeds)
        )
    ]
