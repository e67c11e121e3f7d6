"""Networks trained in several ways from the same starts: what `sam` and `full-batch` share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import pandas as pd
from matplotlib.figure import Figure

from jaxstab import losses, plots
from jaxstab.checks import check_name
from jaxstab.data import crop_and_flip
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.settings import MeasureSettings, ProblemSettings, seed_range, setting
from jaxstab.experiments.statistics import Estimate, mean_over
from jaxstab.measurement import Measurement, measure
from jaxstab.training import Run, train

# As in the tiny presets of other experiments, so that tests compile it once.
MEASURED: dict[str, Any] = {"tol": 1e-3, "max_matvecs": 1000}


@dataclass(frozen=True)
class TrainingSettings(MeasureSettings, ProblemSettings):
    """Data, network, augmentation, and how ends are measured."""

    tol: float = setting(1e-2, "relative accuracy to which a and s are certified")
    max_matvecs: int = setting(300, "products that each of a and s may cost")
    batch_size: int = setting(25, "batch size of SGD")
    learning_rate: float = setting(1.0, "learning rate")
    momentum: float = setting(0.0, "momentum")
    weight_decay: float = setting(0.0, "coefficient of the L2 term")
    epochs: int = setting(60, "epochs of SGD")
    padding: int = setting(0, "pixels of padding for random crops; 0 for none")
    flip: bool = setting(False, "flip half of the images")
    seeds: int = setting(5, "number of seeds")
    ways: tuple[str, ...] = setting((), "rows to train; all by default")
    measured: int = setting(0, "training examples on which a and s are measured; 0 for all")
    chunk_size: int | None = setting(None, "examples in memory at once; all by default")


class Way(NamedTuple):
    """A way to train.

    Attributes:
      optimizer: an optax transform, one object for all seeds.
      steps: number of steps.
      batch_size: of a step.
      gradients: what a step costs, in gradients of a batch.
      shuffle: whether the examples of a batch are put in a new order at every step.
    """

    optimizer: Any
    steps: int
    batch_size: int
    gradients: float = 1.0
    shuffle: bool = False


class Ended(NamedTuple):
    """A finished run and the loss with the statistics that it ended with."""

    run: Run
    loss: losses.ModelLoss
    measurement: Measurement


def compare(
    settings: TrainingSettings,
    context: Context,
    problem: Problem,
    ways: Mapping[str, Way],
    more: Callable[[Way, Ended], dict[str, Any]] | None = None,
) -> pd.DataFrame:
    """Trains every way from every seed; one row a run, with a, s and accuracies at its end."""
    chosen = [check_name("row", name, ways) for name in settings.ways or ways]
    steps = {
        f"{name}-seed{seed}": functools.partial(
            follow, settings, problem, name, ways[name], seed, more
        )
        for name in chosen
        for seed in seed_range(settings.seeds)
    }
    return pd.DataFrame(context.remember_all(steps))


def follow(
    settings: TrainingSettings, problem: Problem, name: str, way: Way, seed: int, more: Any
) -> dict[str, Any]:
    """One run, and what is known of its end."""
    s, normed = settings, "batch_stats" in problem.loss.state
    run = train(
        problem.loss,
        problem.init(jax.random.key(seed), 1.0),
        problem.train,
        optimizer=way.optimizer,
        batch_size=way.batch_size,
        key=jax.random.fold_in(jax.random.key(seed), 1),
        max_steps=way.steps,
        check_every=way.steps,
        loss_tolerance=None,
        batch_norm="batch" if normed else "frozen",
        augment=augmentation(s.padding, s.flip, way.shuffle),
        chunk_size=s.chunk_size,
    )
    loss = problem.loss.with_state(run.state) if normed else problem.loss
    row = {"training": name, "seed": seed, "steps": run.steps, "learning_rate": s.learning_rate}
    row |= {"batch_size": way.batch_size, "status": run.status.name.lower(), "loss": run.loss}
    row["gradients"] = run.steps * way.gradients * way.batch_size / problem.n
    if row["status"] == "diverged":
        return row
    for part, data in (("train", problem.train), ("test", problem.dataset.test)):
        accuracy = losses.accuracy(loss, run.params, data, batch_size=s.chunk_size)
        row[f"{part}_accuracy"] = 100 * float(accuracy)
    count = s.measured or problem.n
    data = jax.tree.map(lambda x: x[:count], problem.train)
    found = measure(
        loss,
        run.params,
        data,
        key=jax.random.key(seed),
        chunk_size=s.chunk_size,
        **s.measuring,
    )
    record = found.to_record()
    row |= {key: value for key, value in record.items() if key not in ("n", "loss")}
    return row | (more(way, Ended(run, loss, found)) if more else {})


@functools.cache
def augmentation(padding: int, flip: bool, shuffle: bool) -> Any:
    """Crops and flips, and a new order of the batch; None for neither."""
    crop = crop_and_flip(padding, flip=flip) if padding or flip else None
    if not shuffle:
        return crop

    def augment(key: jax.Array, batch: Any) -> Any:
        order_key, crop_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(batch[0]))
        batch = jax.tree.map(lambda x: x[order], batch)
        return batch if crop is None else crop(crop_key, batch)

    return augment


def scatter(rows: pd.DataFrame, quantities: Sequence[tuple[str, str, str, str]]) -> Figure:
    """A panel for each (column, label, column, label): every run, in the colour of its way."""
    panels = []
    for across, xlabel, up, ylabel in quantities:
        series = [
            plots.Series(name.replace("_", " "), own[across], own[up])
            for name, own in rows.groupby("training", sort=False)
        ]
        panels.append(plots.Panel("", series, xlabel, ylabel, points=True))
    return plots.panels(panels)


def difference(rows: pd.DataFrame, value: str, one: str, other: str) -> Estimate:
    """Mean over seeds of a quantity of one way to train less that of another, seeds paired."""
    wide = rows.pivot(index="seed", columns="training", values=value).reset_index()
    wide = wide.reindex(columns=["seed", one, other])  # NaN for a row that was not trained
    return mean_over(wide.assign(more=wide[one] - wide[other]), "more")
