"""Checks of what a run is asked for, and its numbers as operands; for `train` and `sweep`."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxstab import checks
from jaxstab.examples import check_in_memory


class Settings(NamedTuple):
    """What may differ between runs of one compiled loop; scalars."""

    learning_rate: Any
    loss_tolerance: Any
    divergence: Any


def check_data(name: str, data: Any) -> int:
    """Returns n, the number of examples of `name`, after checking that all are finite."""
    check_in_memory(name, data)
    n = checks.data_size(data)
    checks.check_finite("data", data)
    return n


def check_optimizer(optimizer: Any, with_learning_rate: bool) -> None:
    """Raises unless this is an optax transformation or, with a learning rate, a factory of them."""
    if with_learning_rate and not callable(optimizer):
        raise TypeError(
            "with a learning_rate, optimizer must be a function of it that returns an optax "
            f"transformation (optax.sgd, not optax.sgd(0.1)), got {type(optimizer).__name__}"
        )
    if not with_learning_rate and not hasattr(optimizer, "update"):
        raise TypeError(
            "without a learning_rate, optimizer must be an optax transformation (optax.sgd(0.1), "
            f"not optax.sgd), got {type(optimizer).__name__}"
        )


def check_batch_norm(batch_norm: str, loss: Any) -> None:
    """Raises unless this is a way to train, and the loss has the statistics that it moves."""
    checks.check_name("batch_norm", batch_norm, ("frozen", "batch"))
    if batch_norm == "batch" and not (
        hasattr(loss, "train_mode") and "batch_stats" in getattr(loss, "state", {})
    ):
        raise ValueError(
            "batch_norm='batch' moves the batch statistics of a loss, and this one has none: give "
            "ModelLoss(model, loss, models.initial_state(model, x[0])), or leave batch_norm out"
        )


def check_settings(learning_rate: Any, loss_tolerance: Any, divergence: Any) -> Settings:
    """Returns the checked numbers of a run as arrays, so that they are operands."""
    if learning_rate is not None:
        checks.check_positive("learning_rate", learning_rate)
    if loss_tolerance is not None:
        checks.check_positive("loss_tolerance", loss_tolerance)
    if not divergence > 1:
        raise ValueError(f"divergence is a factor of the initial loss above 1, got {divergence!r}")
    return Settings(
        learning_rate=jnp.asarray(math.nan if learning_rate is None else learning_rate, float),
        loss_tolerance=jnp.asarray(-math.inf if loss_tolerance is None else loss_tolerance, float),
        divergence=jnp.asarray(divergence, float),
    )


def choose_check_every(check_every: Any, n: int, batch_size: int, max_steps: int) -> int:
    """Returns the number of steps between checks: as asked, or about four passes over the data."""
    if check_every is not None:
        return min(checks.check_at_least("check_every", check_every, 1), max_steps)
    about = min(max(10, 4 * n // batch_size), 1000, max_steps)
    # one that divides the step limit keeps the inner loop's length static
    even = (every for every in range(about, about // 2, -1) if max_steps % every == 0)
    return next(even, about)
