"""Networks trained as in He, Huang, Yuan (2019), and slices around what training found."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import landscape, transforms
from jaxstab.checks import check_at_least
from jaxstab.data import crop_and_flip
from jaxstab.experiments import problems
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.settings import ProblemSettings, seed_range, setting
from jaxstab.landscape import Reestimated, Slice
from jaxstab.measurement import measure
from jaxstab.training import train

KINDS = ("uniform_positive", "leaf_sign_flipped", "sign_flipped", "uniform", "gaussian")
STATISTICS_BATCH = 100  # examples in a batch when statistics are estimated anew


@dataclass(frozen=True)
class NetworkSettings(ProblemSettings):
    """A network, the schedule of the paper's appendix, and how its slices are evaluated."""

    model: str = setting("resnet8-small-norm", "model")
    loss: str = setting("cross_entropy", "loss: squared, cross_entropy or kl")
    batch_size: int = setting(50, "batch size")
    epochs: int = setting(40, "epochs of the first phase")
    learning_rate: float = setting(0.1, "learning rate at the start")
    final_learning_rate: float = setting(0.05, "learning rate from epoch swa_start on")
    momentum: float = setting(0.9, "heavy-ball momentum")
    weight_decay: float = setting(3e-4, "coefficient of the L2 term")
    swa_start: int = setting(22, "epoch from which on each epoch's end enters the average")
    second_epochs: int = setting(20, "epochs of the second phase")
    second_learning_rate: float = setting(0.001, "learning rate of the second phase")
    padding: int = setting(1, "pixels of padding for random crops; 0 for none")
    flip: bool = setting(False, "flip half of the images")
    seeds: int = setting(5, "number of seeds")
    evaluated: int = setting(400, "training examples that slices are evaluated on; 0 for all")
    chunk_size: int | None = setting(None, "examples in memory at once; all by default")
    reach: float = setting(3.0, "length of slices along unit directions")
    positions: int = setting(21, "positions of a slice")


PAPER: dict[str, Any] = {
    "dataset": "cifar100",
    "model": "resnet164",
    "n_train": 50_000,
    "batch_size": 128,
    "epochs": 225,
    "swa_start": 126,
    "second_epochs": 50,
    "padding": 4,
    "flip": True,
    "evaluated": 10_000,
    "chunk_size": 1000,
    "reach": 20.0,
    "positions": 201,
}
WHOLE: dict[str, Any] = {"n_train": 400, "epochs": 60, "swa_start": 34, "evaluated": 0}
TINY: dict[str, Any] = {
    "model": "fnn-small",
    "n_train": 40,
    "batch_size": 10,
    "epochs": 2,
    "swa_start": 1,
    "second_epochs": 1,
    "seeds": 2,
    "evaluated": 0,
    "positions": 5,
}


@dataclass(frozen=True)
class Networks:
    """Trains and looks around one problem."""

    settings: Any
    problem: problems.Problem

    @classmethod
    def load(cls, settings: Any, context: Context, **changes: Any) -> "Networks":
        """The networks of these settings, with some fields replaced."""
        return cls(settings, problems.load(settings, context.data_dir, **changes))

    @property
    def normed(self) -> bool:
        """Whether the model has batch norm."""
        return "batch_stats" in self.problem.loss.state

    @property
    def slice_data(self) -> Any:
        """The training examples that slices are evaluated on."""
        count = self.settings.evaluated or self.problem.n
        return jax.tree.map(lambda x: x[:count], self.problem.train)

    def first_phase(self, seed: int, *, batch_size: int | None = None) -> tuple[Any, Any]:
        """Trains from scratch; returns the last parameters and the average of the epochs' ends."""
        s = self.settings
        every = self._steps(batch_size)
        rates = (s.learning_rate, s.final_learning_rate, max(s.swa_start, 1) * every)
        inner = _sgd(rates, s.momentum, s.weight_decay)
        optimizer = _swa(inner, s.swa_start * every, every)
        params = self.problem.init(jax.random.fold_in(jax.random.key(seed), 0), 1.0)
        run = self._train(optimizer, params, seed, 1, s.epochs, batch_size)
        return run.params, transforms.swa_params(run.opt_state, run.params)

    def second_phase(self, params: Any, seed: int) -> Any:
        """Goes on from `params` with SGD at the small learning rate and batch size."""
        s = self.settings
        optimizer = _sgd((s.second_learning_rate,) * 2 + (1,), s.momentum, s.weight_decay)
        return self._train(optimizer, params, seed, 2, s.second_epochs, None).params

    def solution(self, seed: int) -> Any:
        """A solution of SGD: both phases, so that the slope has died down."""
        return self.second_phase(self.first_phase(seed)[0], seed)

    def _steps(self, batch_size: int | None) -> int:
        return -(-self.problem.n // (batch_size or self.settings.batch_size))

    def _train(
        self, optimizer: Any, params: Any, seed: int, phase: int, epochs: int, batch_size: Any
    ) -> Any:
        s = self.settings
        check_at_least("epochs" if phase == 1 else "second_epochs", epochs, 1)
        steps = epochs * self._steps(batch_size)
        return train(
            self.problem.loss,
            params,
            self.problem.train,
            optimizer=optimizer,
            batch_size=batch_size or s.batch_size,
            key=jax.random.fold_in(jax.random.key(seed), phase),
            max_steps=steps,
            check_every=steps,
            loss_tolerance=None,
            chunk_size=s.chunk_size,
            batch_norm="batch" if self.normed else "frozen",
            augment=crop_and_flip(s.padding, flip=s.flip) if s.padding or s.flip else None,
        )

    def slice(self, params: Any, direction: Any, positions: Any = None, **options: Any) -> Slice:
        """A slice of training and test loss, statistics estimated anew at every point."""
        s = self.settings
        data = self.slice_data
        if positions is None:
            positions = jnp.linspace(-s.reach, s.reach, s.positions)
        return landscape.slice(
            self.problem.loss,
            params,
            data,
            direction=direction,
            positions=positions,
            batch_norm=self.statistics,
            chunk_size=s.chunk_size,
            **options,
        )

    @property
    def statistics(self) -> Any:
        """The policy of every slice here."""
        return Reestimated(self.slice_data[0], STATISTICS_BATCH) if self.normed else None

    def measure(self, params: Any, key: jax.Array) -> dict[str, Any]:
        """a and s on the data of the slices, statistics of batch norm frozen at `params`."""
        loss, data = self.problem.loss, self.slice_data
        if self.normed:
            loss = self.statistics(loss, params)
        options = {"tol": 1e-2, "chunk_size": self.settings.chunk_size}
        return measure(loss, params, data, key=key, **options).to_record()

    def interpolate(self, first: Any, second: Any) -> Slice:
        """The slice through two solutions, at 0 and 1, as the paper draws it: t from −2 to 3."""
        positions = jnp.linspace(-2, 3, 5 * max(self.settings.positions // 5, 2) + 1)
        direction = landscape.between(first, second)
        return self.slice(first, direction, positions, test_data=self.problem.dataset.test)

    def evaluate(self, params: Any) -> dict[str, float]:
        """Loss and accuracy on training and test data."""
        here = self.slice(
            params,
            jax.tree.map(jnp.zeros_like, params),
            [0.0],
            test_data=self.problem.dataset.test,
        )
        return at(here, 0.0)


@functools.cache
def _sgd(rates: tuple[float, float, int], momentum: float, weight_decay: float) -> Any:
    schedule = optax.linear_schedule(*rates)
    return transforms.sgd(schedule, momentum=momentum, weight_decay=weight_decay)


@functools.cache
def _swa(inner: Any, start: int, every: int) -> Any:
    return transforms.swa(inner, start=start, every=every)


def over_seeds(
    settings: Any, context: Context, look: Callable[[int], dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Returns every seed with what `look(seed)` found there, now or when it was run before."""
    seeds = seed_range(settings.seeds)
    steps = {f"seed-{seed}": functools.partial(look, seed) for seed in seeds}
    return zip(seeds, context.remember_all(steps), strict=True)


def stored(line: Slice) -> dict[str, Any]:
    """A slice as lists, for `Context.remember`."""
    return {name: np.asarray(x).tolist() for name, x in line._asdict().items() if x is not None}


def restored(found: dict[str, Any]) -> Slice:
    """The slice that was stored."""
    arrays: dict[str, Any] = {name: np.asarray(x, np.float64) for name, x in found.items()}
    return Slice(**arrays)


def at(line: Slice, position: float) -> dict[str, float]:
    """Losses and accuracies at one position of a slice."""
    i = int(np.abs(np.asarray(line.positions) - position).argmin())
    names = {"train_loss": line.loss, "train_accuracy": line.accuracy}
    names |= {"test_loss": line.test_loss, "test_accuracy": line.test_accuracy}
    return {name: float(x[i]) for name, x in names.items() if x is not None}
