"""A named model on a named data set: what experiments, `sweep` and `measure` train and measure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxstab import data, losses, models
from jaxstab.checks import check_name
from jaxstab.experiments.settings import DataSettings
from jaxstab.snapshots import Snapshot, snapshots


@dataclass(frozen=True)
class Problem:
    """A model on a data set: loss of one example, start of a run, data."""

    dataset: data.Dataset
    loss: losses.ModelLoss

    @property
    def train(self) -> Any:
        """The training set: arrays with a leading axis n."""
        return self.dataset.train

    @property
    def n(self) -> int:
        """Number of training examples."""
        return len(self.dataset.train[0])

    @property
    def init(self) -> Any:
        """Function of (key, scale) that returns initial parameters, U[−scale/√n_in, scale/√n_in].

        A pytree of the network, so that equal problems compile it once.
        """
        return jax.tree_util.Partial(_initialize, self.loss, self.dataset.train[0][0])

    @property
    def evaluate(self) -> Any:
        """Function of params that returns training and test accuracy, in [0, 1]."""
        return jax.tree_util.Partial(_accuracies, self.loss, self.dataset.train, self.dataset.test)


def _initialize(loss: losses.ModelLoss, example: Any, key: Any, scale: Any) -> Any:
    return models.initialize(loss.model, key, example, scale)


def _accuracies(loss: Any, train: Any, test: Any, params: Any) -> dict[str, Any]:
    found = {"train_accuracy": losses.accuracy(loss, params, train)}
    return found | ({"test_accuracy": losses.accuracy(loss, params, test)} if len(test[0]) else {})


def load(settings: DataSettings, data_dir: Path | None = None, **changes: Any) -> Problem:
    """The problem that settings name, with some of its fields replaced.

    Settings without a loss need `loss` among the changes.
    """
    names = {"dataset", "model", "loss", "n_train", "classes"} - set(changes)
    fields = {name: getattr(settings, name) for name in names} | changes
    return load_problem(**fields, data_dir=data_dir)


def load_problem(
    dataset: str,
    model: str,
    *,
    loss: str = "squared",
    n_train: int | None = None,
    classes: Sequence[str] = (),
    random_labels: int = 0,
    data_dir: Path | None = None,
) -> Problem:
    """Loads a data set and builds a model by name, after checking all names.

    With `random_labels`, so many further examples with random labels are added to the training set.
    """
    check_name("data set", dataset, data.NAMES)
    check_name("model", model, models.MODELS)
    one_loss = losses.by_name(loss)
    loaded = data.load(
        dataset,
        n_train=n_train,
        classes=classes or None,
        random_labels=random_labels,
        data_dir=data_dir,
    )
    network = models.by_name(model, loaded.classes)
    state = models.initial_state(network, loaded.train[0][0])
    return Problem(loaded, losses.ModelLoss(network, one_loss, state))


def along_run(
    problem: Problem, settings: Any, batch_size: int, seed: int, *, optimizer: Any
) -> Iterator[Snapshot]:
    """Points along the run of a seed, by `learning_rate`, `max_steps`, `points` of the settings.

    `optimizer` is a function of the learning rate, one object for all runs: another one compiles.
    """
    start, key = jax.random.split(jax.random.key(seed))
    return snapshots(
        problem.loss,
        problem.init(start, 1.0),
        problem.train,
        key=key,
        max_steps=settings.max_steps,
        points=settings.points,
        optimizer=optimizer,
        learning_rate=settings.learning_rate,
        batch_size=batch_size,
    )


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
