"""A grid of runs on a named data set and model, measured and judged; shared by experiments."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax

from jaxstab import data, losses, models, sweeps
from jaxstab.checks import check_at_least, check_name, check_positive
from jaxstab.experiments import minima
from jaxstab.experiments.base import (
    Context,
    batch_sizes_for,
    parse_batch_size,
    seed_range,
    setting,
)
from jaxstab.measurement import measure


@dataclass(frozen=True)
class GdSettings:
    """A grid of gradient descent: every field is an option on the command line."""

    dataset: str = setting("digits", "data set")
    model: str = setting("fnn-small", "model")
    loss: str = setting("squared", "loss: squared, cross_entropy or kl")
    classes: tuple[str, ...] = setting((), "classes of the data set to keep; all by default")
    n_train: int = setting(1000, "number of training examples n")
    learning_rates: tuple[float, ...] = setting((0.5,), "learning rates")
    init_scales: tuple[float, ...] = setting((1.0,), "initialisation scales v")
    seeds: int = setting(5, "number of seeds")
    max_steps: int = setting(50_000, "step limit of a run")
    loss_tolerance: float = setting(1e-4, "a minimum is reached below this training loss")
    tol: float = setting(1e-3, "relative accuracy to which a and s are certified")
    max_matvecs: int = setting(1000, "products that each of a and s may cost")


@dataclass(frozen=True)
class GridSettings(GdSettings):
    """A grid of SGD: batch sizes too."""

    batch_sizes: tuple[int | str, ...] = setting(
        (4, 10, 25, "n"), "batch sizes; n is the whole data set", parse_batch_size
    )


@dataclass(frozen=True)
class Problem:
    """A model on a data set: loss of one example, start of a run, data."""

    dataset: data.Dataset
    loss: losses.ModelLoss

    def init(self, key: Any, scale: Any) -> Any:
        """Initial parameters, U[−scale/√n_in, scale/√n_in]."""
        return models.initialize(self.loss.model, key, self.dataset.train[0][0], scale)

    @property
    def evaluate(self) -> Any:
        """Function of params that returns training and test accuracy, in [0, 1]."""
        return jax.tree_util.Partial(_accuracies, self.loss, self.dataset.train, self.dataset.test)


def _accuracies(loss: Any, train: Any, test: Any, params: Any) -> dict[str, Any]:
    found = {"train_accuracy": losses.accuracy(loss, params, train)}
    return found | ({"test_accuracy": losses.accuracy(loss, params, test)} if len(test[0]) else {})


@dataclass(frozen=True)
class Grid:
    """A finished grid.

    Attributes:
      rows: one dict per run, as `minima.judge` returns it.
      n: number of training examples.
      result: the sweep, with `load_params(record)`.
      problem: data and loss.
    """

    rows: list[dict[str, Any]]
    n: int
    result: Any
    problem: Problem


def load_problem(
    dataset: str,
    model: str,
    *,
    loss: str = "squared",
    n_train: int | None = None,
    classes: Sequence[str] = (),
    data_dir: Path | None = None,
) -> Problem:
    """Loads a data set and builds a model by name, after checking all names."""
    check_name("data set", dataset, data.NAMES)
    check_name("model", model, models.MODELS)
    one_loss = losses.by_name(loss)
    loaded = data.load(dataset, n_train=n_train, classes=classes or None, data_dir=data_dir)
    network = models.by_name(model, loaded.classes)
    state = models.initial_state(network, loaded.train[0][0])
    return Problem(loaded, losses.ModelLoss(network, one_loss, state))


def check_like(params: Any, like: Any, folder: Path) -> Any:
    """Returns stored parameters if they have the shapes of the model's."""
    wanted = {
        jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(like)
    }
    held = {
        jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(params)
    }
    for name in wanted:
        if held.get(name) != wanted[name]:
            raise ValueError(
                f"{folder} does not hold parameters of this model: {name} has shape "
                f"{held.get(name)}, the model has {wanted[name]}"
            )
    return params


def run_grid(
    settings: GdSettings, context: Context, *, batch_sizes: Sequence[int | str] = ("n",)
) -> Grid:
    """Trains and measures every combination; continues what `context.out` holds.

    Args:
      settings: the grid.
      context: where the runs are stored and who is told how far it is.
      batch_sizes: numbers, or "n" for gradient descent.
    """
    check_positive("tol", settings.tol)
    check_at_least("max_matvecs", settings.max_matvecs, 1)
    given = load_problem(
        settings.dataset,
        settings.model,
        loss=settings.loss,
        n_train=settings.n_train,
        classes=settings.classes,
        data_dir=context.data_dir,
    )
    n = len(given.dataset.train[0])
    result = sweeps.sweep(
        given.loss,
        given.init,
        given.dataset.train,
        optimizer=optax.sgd,
        learning_rates=settings.learning_rates,
        batch_sizes=batch_sizes_for(batch_sizes, n),
        seeds=seed_range(settings.seeds),
        init_scales=settings.init_scales,
        max_steps=settings.max_steps,
        loss_tolerance=settings.loss_tolerance,
        evaluate=given.evaluate,
        measure=partial(measure, tol=settings.tol, max_matvecs=settings.max_matvecs),
        config={"dataset": settings.dataset, "model": settings.model, "loss": settings.loss},
        out=context.out / "sweep",
        progress=lambda done, total, record: context.progress(done, total, _message(record)),
    )
    rows = [minima.judge(record, n, loss_kind=settings.loss) for record in result.records]
    return Grid(rows, n, result, given)


def _message(record: Any) -> str:
    """What the progress bar says after a run."""
    if record is None:
        return ""
    return f"B {record['batch_size']}, eta {record['learning_rate']:g}: {record['status']}"


def describe(settings: Any) -> str:
    """The settings in one line, for the head of a table."""
    pairs = dataclasses.asdict(settings).items()
    shown = {key: " ".join(map(str, v)) if isinstance(v, tuple) else v for key, v in pairs}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if value != "")
