"""Loss and accuracy at points of parameter space: what slices, planes and simplices evaluate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxstab.callables import as_pytree, register, static
from jaxstab.checks import check_at_least, check_finite, data_size
from jaxstab.models import recompute_batch_stats
from jaxstab.operators.chunks import sum_over_chunks
from jaxstab.operators.hessian import check_problem

Array = jax.Array


@register
@dataclasses.dataclass(frozen=True)
class Reestimated:
    """Batch statistics re-estimated at every point: one pass over x with a cumulative average.

    What He, Huang, Yuan (2019) do at every interpolated point, after Izmailov et al. (2018),
    section 3.2; see `jaxstab.models.recompute_batch_stats`. A function `(loss, params) -> loss`:
    any other such function, a registered pytree if it holds arrays, is as good a `batch_norm`.

    Attributes:
      x: inputs (n, ...), the training inputs as a rule. Arrays, so an operand.
      batch_size: examples per batch; the variance is that within a batch.
    """

    x: Any
    batch_size: int = static(default=100)

    def __call__(self, loss: Any, params: Any) -> Any:
        """Returns the `ModelLoss` with statistics estimated at `params`."""
        state = recompute_batch_stats(loss.model, params, self.x, batch_size=self.batch_size)
        return loss.with_state({**loss.state, **state})


BatchNorm = str | Callable[[Any, Any], Any] | None


def evaluate_at(
    loss: Any,
    batch_norm: Any,
    params: Any,
    data: Any,
    test_data: Any,
    *,
    accuracy: bool,
    chunk_size: int | None,
) -> dict[str, Array]:
    """Returns loss and, if asked for, accuracy at one point, on `data` and on `test_data`."""
    own = loss if isinstance(batch_norm, str | None) else batch_norm(loss, params)

    def mean(part: Any) -> tuple[Array, Array]:
        def total(chunk: Any) -> tuple[Array, Array]:
            losses = jax.vmap(own, (None, 0))(params, chunk)
            if not accuracy:
                return jnp.sum(losses), jnp.zeros(())
            x, y = chunk
            right = jnp.argmax(own.predict(params, x), -1) == jnp.argmax(y, -1)
            return jnp.sum(losses), jnp.sum(right, dtype=jnp.float32)

        both = sum_over_chunks(total, part, chunk_size)
        return both[0] / data_size(part), both[1] / data_size(part)

    found = dict(zip(("loss", "accuracy"), mean(data)))
    if test_data is not None:
        found |= dict(zip(("test_loss", "test_accuracy"), mean(test_data)))
    if accuracy:
        return found
    return {name: x for name, x in found.items() if not name.endswith("accuracy")}


def check_slice(
    loss: Any, params: Any, data: Any, test_data: Any, accuracy: bool | None, batch_norm: Any
) -> tuple[Any, ...]:
    """Returns the six, checked: `accuracy` a bool, `batch_norm` a function or None."""
    loss, params, data = check_problem(loss, params, data)
    check_finite("data", data)
    if test_data is not None:
        loss, params, test_data = check_problem(loss, params, test_data)
        check_finite("test_data", test_data)
    if accuracy is None:
        accuracy = hasattr(loss, "predict") and isinstance(data, tuple) and len(data) == 2
    elif accuracy and not hasattr(loss, "predict"):
        raise ValueError(
            "accuracy needs a loss with predict(params, x), such as ModelLoss: "
            f"{type(loss).__name__} has none; leave it out"
        )
    state = getattr(loss, "state", None)
    if batch_norm is None and state and "batch_stats" in state:
        raise ValueError(
            "the loss has batch statistics: choose batch_norm='frozen' (those of the loss at every "
            "point) or batch_norm=Reestimated(x) (new ones at every point)"
        )
    if isinstance(batch_norm, str) and batch_norm != "frozen":
        raise ValueError(
            f"batch_norm is 'frozen', Reestimated(x) or a function, got {batch_norm!r}"
        )
    if isinstance(batch_norm, Reestimated) and not hasattr(loss, "model"):
        raise ValueError(
            "Reestimated needs a ModelLoss, whose model it runs: for another loss give a function "
            "(loss, params) -> loss"
        )
    # "frozen" and nothing are the same to the compiled code
    policy = as_pytree(batch_norm) if callable(batch_norm) else None
    return loss, params, data, test_data, bool(accuracy), policy


def checked_chunk(chunk_size: int | None) -> int | None:
    """Returns a chunk size, or None for all examples at once."""
    return None if chunk_size is None else check_at_least("chunk_size", chunk_size, 1)


def checked_points(points: int | None, count: int) -> int:
    """Returns how many of `count` points to evaluate at once, as asked or as the backend likes."""
    if points is not None:
        return min(check_at_least("points", points, 1), count)
    return 1 if jax.default_backend() == "cpu" else min(16, count)
