"""A grid of runs on a named data set and model, measured and placed; shared by experiments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import optax
import pandas as pd

from jaxstab import sweeps
from jaxstab.experiments import minima, problems
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.settings import FULL_BATCH, GdGridSettings, batch_sizes_for, seed_range
from jaxstab.measurement import Measurement, measure


@dataclass(frozen=True)
class Grid:
    """A finished grid.

    Attributes:
      rows: one row per run, as `minima.place` returns it.
      minima: the rows of the runs that ended at a minimum.
      n: number of training examples.
      result: the sweep, with `load_params(record)`.
      problem: data and loss.
    """

    rows: pd.DataFrame
    n: int
    result: sweeps.SweepResult
    problem: Problem

    @property
    def minima(self) -> pd.DataFrame:
        """The rows of the runs that ended at a minimum which was measured."""
        return minima.reached(self.rows)


def run_grid(settings: GdGridSettings, context: Context) -> Grid:
    """Trains and measures every combination; continues what `context.out` holds.

    Args:
      settings: the grid; without `batch_sizes` it is one of gradient descent.
      context: where the runs are stored and who is told how far it is.
    """
    measuring = measure_with(**settings.measuring)
    problem = problems.load(settings, context.data_dir)
    batch_sizes: Sequence[int | str] = getattr(settings, "batch_sizes", (FULL_BATCH,))
    result = sweeps.sweep(
        problem.loss,
        problem.init,
        problem.train,
        optimizer=optax.sgd,
        learning_rates=settings.learning_rates,
        batch_sizes=batch_sizes_for(batch_sizes, problem.n),
        seeds=seed_range(settings.seeds),
        init_scales=settings.init_scales,
        max_steps=settings.max_steps,
        loss_tolerance=settings.loss_tolerance,
        evaluate=problem.evaluate,
        measure=measuring,
        config={"dataset": settings.dataset, "model": settings.model, "loss": settings.loss},
        out=context.out / "sweep",
        progress=lambda done, total, record: context.progress(done, total, _message(record)),
    )
    rows = minima.place(result.records, problem.n, loss_kind=settings.loss)
    return Grid(rows, problem.n, result, problem)


@cache
def measure_with(*, tol: float, max_matvecs: int) -> partial[Measurement]:
    """`jaxstab.measure` at an accuracy; one object for each, so that a sweep compiles it once."""
    return partial(measure, tol=tol, max_matvecs=max_matvecs)


def _message(record: Any) -> str:
    """What the progress bar says after a run."""
    if record is None:
        return ""
    return f"B {record['batch_size']}, eta {record['learning_rate']:g}: {record['status']}"
