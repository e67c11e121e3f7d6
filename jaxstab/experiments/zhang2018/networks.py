"""Networks trained on natural and on random labels: what three experiments share."""

import functools
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

import jaxstab
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.settings import ProblemSettings, setting
from jaxstab.training import Run, Status
from jaxstab.transforms import sgd

LABELS = ("natural", "random")
OPTIMIZER = functools.partial(sgd, momentum=0.9)


@dataclass(frozen=True)
class NetworkSettings(ProblemSettings):
    """Networks trained to one loss."""

    loss: str = setting("cross_entropy", "loss: squared, cross_entropy or kl")
    n_train: int = setting(500, "number of training examples n")
    learning_rate: float = setting(0.05, "learning rate, with momentum 0.9")
    batch_size: int = setting(50, "batch size")
    loss_tolerance: float = setting(0.01, "all networks are trained to this training loss")
    max_steps: int = setting(20_000, "step limit of a run")
    seeds: int = setting(5, "number of seeds")


def labelled(problem: Problem, labels: str, seed: int) -> Any:
    """The training set with its own labels, or with labels drawn anew, uniform over the classes."""
    x, y = problem.train
    if labels == "natural":
        return x, y
    key = jax.random.fold_in(jax.random.key(seed), 7)
    drawn = jax.random.randint(key, (len(y),), 0, y.shape[1])
    return x, jax.nn.one_hot(drawn, y.shape[1], dtype=y.dtype)


def trained(
    settings: NetworkSettings, problem: Problem, data: Any, *, start: int, batches: int
) -> Run:
    """Trains from the initial parameters number `start` with the batches number `batches`."""
    return jaxstab.train(
        problem.loss,
        problem.init(jax.random.key(start), 1.0),
        data,
        optimizer=OPTIMIZER,
        learning_rate=settings.learning_rate,
        batch_size=min(settings.batch_size, problem.n),
        key=jax.random.fold_in(jax.random.key(batches), 1),
        max_steps=settings.max_steps,
        loss_tolerance=settings.loss_tolerance,
    )


def ending(problem: Problem, run: Run, data: Any) -> dict[str, Any]:
    """How a run ended, in numbers that JSON knows."""
    found = {
        "reached": run.status == Status.CONVERGED,
        "steps": run.steps,
        "train_loss": run.loss,
        "train_accuracy": float(jaxstab.losses.accuracy(problem.loss, run.params, data)),
    }
    test = problem.dataset.test
    if len(test[0]):
        found["test_accuracy"] = float(jaxstab.losses.accuracy(problem.loss, run.params, test))
    return found


def top_layer(params: Any) -> str:
    """A pattern of the parameters of the last dense layer of our networks.

    Raises:
      ValueError: if the model has no layers called Dense_0, Dense_1, ...
    """
    numbers = [int(match[1]) for name in params if (match := re.fullmatch(r"Dense_(\d+)", name))]
    if not numbers:
        raise ValueError(f"the model has no dense layer by name: there are {', '.join(params)}")
    return rf"\['Dense_{max(numbers)}'\]"


def stacked(runs: list[Run]) -> Any:
    """The parameters of several runs with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *[run.params for run in runs])
