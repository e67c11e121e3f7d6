"""Settings that experiments share, to inherit from: problem, stopping, accuracy, grid.

Every field of a settings dataclass is an option on the command line; see `jaxstab.cli`.

    @dataclass(frozen=True)
    class Settings(ProblemSettings, StopSettings):
        learning_rates: tuple[float, ...] = setting((0.1, 0.5), "learning rates")
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxstab.checks import check_at_least, check_batch_size, check_positive

FULL_BATCH = "n"


def setting(default: Any, text: str, parse: Callable[[str], Any] | None = None) -> Any:
    """A field of a settings dataclass: default, help text, and how the command line reads it.

    Without `parse` the reader follows from the annotation: int, float, str, bool, `X | None`, or
    `tuple[X, ...]` of these, which takes any number of values.
    """
    return field(default=default, metadata={"help": text, "parse": parse})


def parse_batch_size(text: str) -> int | str:
    """Reads a batch size: a number, or `n` for the whole data set (gradient descent)."""
    if text == FULL_BATCH:
        return FULL_BATCH
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"batch size {text!r} is neither a number nor {FULL_BATCH}, which is the whole data set"
        ) from None


def batch_sizes_for(batch_sizes: Sequence[int | str], n: int) -> tuple[int, ...]:
    """Replaces "n" by the number of examples."""
    return tuple(n if size == FULL_BATCH else int(size) for size in batch_sizes)


def numbers_for(batch_sizes: Sequence[int | str], n: int) -> tuple[int, ...]:
    """The batch sizes as numbers, each checked to be one that n examples allow."""
    return tuple(check_batch_size(size, n) for size in batch_sizes_for(batch_sizes, n))


def seed_range(seeds: int, name: str = "seeds") -> tuple[int, ...]:
    """The seeds 0 … seeds − 1, as many as the setting of that name says."""
    return tuple(range(check_at_least(name, seeds, 1)))


def describe(settings: Any) -> str:
    """The settings in one line, for the head of a summary."""
    pairs = dataclasses.asdict(settings).items()
    shown = {key: " ".join(map(str, v)) if isinstance(v, tuple) else v for key, v in pairs}
    return ", ".join(f"{key} {value}" for key, value in shown.items() if value != "")


# What `tiny` presets share as far as they can, so that tests compile it once for all of them.
TINY: dict[str, Any] = {"n_train": 40, "max_steps": 3000, "loss_tolerance": 0.01}


# What `paper` presets of ResNet-56 on all of CIFAR-10 share.
RESNET56_ON_CIFAR10: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "resnet56",
    "n_train": 50_000,
    "padding": 4,
    "flip": True,
    "chunk_size": 500,
}


@dataclass(frozen=True)
class DataSettings:
    """A model on a data set, for experiments that choose the loss themselves."""

    dataset: str = setting("digits", "data set")
    model: str = setting("fnn-small", "model")
    classes: tuple[str, ...] = setting((), "classes of the data set to keep; all by default")
    n_train: int = setting(1000, "number of training examples n")


@dataclass(frozen=True)
class ProblemSettings(DataSettings):
    """A model on a data set with a loss; `jaxstab.experiments.problems.load` builds it."""

    loss: str = setting("squared", "loss: squared, cross_entropy or kl")


@dataclass(frozen=True)
class StopSettings:
    """When a run ends."""

    max_steps: int = setting(50_000, "step limit of a run")
    loss_tolerance: float = setting(1e-4, "a minimum is reached below this training loss")


@dataclass(frozen=True)
class MeasureSettings:
    """How accurately a and s are measured."""

    tol: float = setting(1e-3, "relative accuracy to which a and s are certified")
    max_matvecs: int = setting(1000, "products that each of a and s may cost")

    @property
    def measuring(self) -> dict[str, Any]:
        """The keywords of `jaxstab.measure`, checked."""
        check_positive("tol", self.tol)
        return {"tol": self.tol, "max_matvecs": check_at_least("max_matvecs", self.max_matvecs, 1)}


@dataclass(frozen=True)
class GdGridSettings(MeasureSettings, StopSettings, ProblemSettings):
    """A grid of gradient descent."""

    learning_rates: tuple[float, ...] = setting((0.5,), "learning rates")
    init_scales: tuple[float, ...] = setting((1.0,), "initialisation scales v")
    seeds: int = setting(5, "number of seeds")


@dataclass(frozen=True)
class GridSettings(GdGridSettings):
    """A grid of SGD: batch sizes too."""

    batch_sizes: tuple[int | str, ...] = setting(
        (4, 10, 25, "n"), "batch sizes; n is the whole data set", parse_batch_size
    )
