"""Losses of one example, and the loss of a model: `ModelLoss(model)(params, example)`.

Everything in this package that takes a `loss` takes a function of `(params, example)` that returns
one number. `ModelLoss` makes it from a Flax model or an apply function, as a callable pytree: its
model and its loss are static, its frozen state (batch statistics) is an operand. Two losses with
equal models share every compilation.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jaxstab.callables import register, static
from jaxstab.checks import check_at_least, check_name, data_size
from jaxstab.examples import check_in_memory

Array = jax.Array


def squared(outputs: Array, targets: Array) -> Array:
    """Squared loss of one example: (1/k) Σ_j (f_j − y_j)², as in Wu, Ma, E (2018).

    A mean over the k outputs, without the factor ½; the Gauss–Newton part of its Hessian is
    (2/k) JᵀJ.

    Args:
      outputs: shape (k,).
      targets: shape (k,), one-hot for classification.

    Example:
      >>> float(squared(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0])))
      0.5
    """
    _check_shapes(outputs, targets)
    return jnp.mean(jnp.square(outputs - targets))


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy of one example: −Σ_j y_j log softmax(f)_j, in nats.

    At zero loss its Hessian vanishes, so the quadratic stability theory does not apply there
    (Wu, Ma, E 2018, Fig. 4); `jaxstab.verdict` says so.

    Args:
      logits: shape (k,).
      targets: shape (k,), a distribution, one-hot as a rule.

    Example:
      >>> round(float(cross_entropy(jnp.zeros(2), jnp.array([0.0, 1.0]))), 4)
      0.6931
    """
    _check_shapes(logits, targets)
    return -jnp.sum(targets * jax.nn.log_softmax(logits))


def kl(logits: Array, targets: Array) -> Array:
    """Divergence of one example: KL(y ‖ softmax(f)) = Σ_j y_j (log y_j − log softmax(f)_j).

    The cross-entropy less the entropy of the target, so the same for one-hot targets; unlike the
    cross-entropy it reaches 0 for soft targets. 0 log 0 = 0.

    Args:
      logits: shape (k,).
      targets: shape (k,), a distribution.

    Example:
      >>> abs(round(float(kl(jnp.zeros(2), jnp.array([0.5, 0.5]))), 4))
      0.0
    """
    entropy = -jnp.sum(jax.scipy.special.xlogy(targets, targets))
    return cross_entropy(logits, targets) - entropy


def _check_shapes(outputs: Any, targets: Any) -> None:
    """Raises where outputs and target would be broadcast: an integer label counts as no target."""
    if jnp.shape(outputs) != jnp.shape(targets):
        raise ValueError(
            f"the model gives outputs of shape {jnp.shape(outputs)} and the target has shape "
            f"{jnp.shape(targets)}: both must be (k,); labels are one-hot here, "
            "jax.nn.one_hot(labels, k), as jaxstab.data gives them"
        )


LOSSES: dict[str, Callable[[Array, Array], Array]] = {
    "squared": squared,
    "cross_entropy": cross_entropy,
    "kl": kl,
}


def output_curvature_ratio(logits: Any, targets: Any) -> float:
    """Largest λ_max(A_i) / (2 ℓ_i) over the examples, A_i = ∂²ℓ_i/∂f² = diag(p) − ppᵀ.

    At most 1 for one-hot targets, whatever the logits: λ_max(A_i) ≤ tr A_i = 1 − Σ_j p_j² ≤ 2(1 −
    p_y) = 2(1 − exp(−ℓ_i)) ≤ 2 ℓ_i. So the Gauss–Newton part of H is at most (2/n) Σ ℓ_i ‖J_i‖²,
    which vanishes with the loss unless the Jacobians grow as fast. In float64, with 1 − p_y summed
    from the other classes, so that it keeps its digits when p_y is 1 to float accuracy.

    Args:
      logits: shape (n, k).
      targets: shape (n, k), one-hot.
    """
    f, y = np.asarray(logits, np.float64), np.asarray(targets, np.float64)
    p = special.softmax(f, axis=1)
    matrices = -p[:, :, None] * p[:, None, :]
    diagonal = np.arange(p.shape[1])
    matrices[:, diagonal, diagonal] = p * (p @ (1 - np.eye(p.shape[1])))  # p_j (1 − p_j)
    top = np.linalg.eigvalsh(matrices)[:, -1]
    right = np.sum(f * y, axis=1, keepdims=True)
    loss = np.logaddexp(0, special.logsumexp(np.where(y > 0, -np.inf, f - right), axis=1))
    # below 1e-300 both sides are zero to float64's accuracy
    ratio = np.divide(top, 2 * loss, out=np.zeros_like(top), where=loss > 1e-300)
    return float(np.max(ratio))


def by_name(name: str) -> Callable[[Array, Array], Array]:
    """Returns the loss called `name`: "squared", "cross_entropy" or "kl"."""
    return LOSSES[check_name("loss", name, LOSSES)]


@register
@dataclasses.dataclass(frozen=True, eq=False)
class ModelLoss:
    """The loss of one example under a model: ℓ(θ, (x, y)) = loss(f_θ(x), y).

    The model runs in evaluation mode: a Flax module is called without arguments besides x, so that
    its defaults decide, and its further collections (batch statistics) are frozen at `state`. That
    makes the loss of an example a function of that example alone, which per-example Hessians need.

    Attributes:
      model: a Flax (linen) module that maps a batch (n, ...) to outputs (n, k), or a function
        `(params, x) -> outputs` on such a batch. Static: it has to be hashable.
      loss: a function of one output and one target, both of shape (k,). Static.
      state: collections besides "params", such as {"batch_stats": ...}; see
        `models.initial_state` and `models.recompute_batch_stats`. Arrays, so an operand.

    Raises:
      TypeError: if the model cannot be hashed.
      ValueError: at the first call, if the model has batch statistics and `state` has none.

    Example:
      >>> loss = ModelLoss(lambda params, x: x @ params)
      >>> float(loss(jnp.ones((3, 2)), (jnp.ones(3), jnp.array([3.0, 1.0]))))
      2.0
    """

    model: Any = static()
    loss: Callable[[Array, Array], Array] = static(default=squared)
    state: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        try:
            hash(self.model)
        except TypeError as error:
            raise TypeError(
                f"the model must be hashable to be static under jit ({error}): give its fields as "
                "tuples instead of lists, and arrays in params or state"
            ) from error

    def __call__(self, params: Any, example: tuple[Array, Array]) -> Array:
        """Returns the loss of one example (x, y): x without a batch axis, y of shape (k,)."""
        x, y = example
        outputs = self.predict(params, x[None])[0]
        _check_shapes(outputs, y)
        return self.loss(outputs, y)

    def predict(self, params: Any, x: Array) -> Array:
        """Returns the outputs (n, k) for a batch x (n, ...), in evaluation mode."""
        if not hasattr(self.model, "apply"):
            if self.state:
                raise ValueError(
                    "state is for Flax modules; make a function with state a pytree of its own"
                )
            return self.model(params, x)
        try:
            return self.model.apply({"params": params, **self.state}, x)
        except (
            flax.errors.ScopeCollectionNotFound,
            flax.errors.ScopeVariableNotFoundError,
        ) as error:
            if self.state and "batch_stats" in self.state:
                raise
            raise ValueError(
                f"{type(self.model).__name__} has collections besides 'params' (batch norm: "
                "'batch_stats') and the loss has no state: choose frozen statistics on purpose, "
                "ModelLoss(model, loss, models.initial_state(model, x[0])) or the result of "
                "models.recompute_batch_stats"
            ) from error

    def train_mode(self, params: Any, batch: tuple[Array, Array]) -> tuple[Array, dict[str, Any]]:
        """Returns the mean loss of a batch with batch statistics, and the state updated by it.

        For training a network with batch norm only (`train(..., batch_norm="batch")` uses it): here
        examples interact, so there is no per-example loss and no per-example Hessian of this
        function. The module takes `train=True`.

        Args:
          params: parameters.
          batch: (x, y) with a leading axis.

        Returns:
          the mean loss, and the collections with their running averages moved on.
        """
        x, y = batch
        if not hasattr(self.model, "apply") or not self.state:
            raise ValueError(
                "train_mode needs a Flax module and its state: "
                "ModelLoss(model, loss, models.initial_state(model, x[0]))"
            )
        outputs, state = self.model.apply(
            {"params": params, **self.state}, x, train=True, mutable=list(self.state)
        )
        return jnp.mean(jax.vmap(self.loss)(outputs, y)), dict(state)

    def with_state(self, state: Mapping[str, Any]) -> "ModelLoss":
        """Returns the loss of the same model with other collections, such as a run's `state`."""
        return dataclasses.replace(self, state=state)


@functools.partial(jax.jit, static_argnames="batch_size")
def _accuracy(loss: ModelLoss, params: Any, data: tuple[Array, Array], batch_size: int) -> Array:
    def correct(example):
        x, y = example
        return jnp.argmax(loss.predict(params, x[None])[0]) == jnp.argmax(y)

    return jnp.mean(jax.lax.map(correct, data, batch_size=batch_size), dtype=jnp.float32)


def accuracy(
    loss: ModelLoss, params: Any, data: tuple[Array, Array], *, batch_size: int | None = None
) -> Array:
    """Returns the fraction of examples whose largest output is at the largest target.

    Args:
      loss: gives the model and its frozen state.
      params: parameters.
      data: (x, y), y one-hot (n, k).
      batch_size: examples in memory at once; all by default.

    Returns:
      a scalar in [0, 1].

    Raises:
      ValueError: if data is empty or its leading axes differ.
    """
    check_in_memory("accuracy", data, "it is read no other way yet")
    n = data_size(data)
    batch_size = n if batch_size is None else check_at_least("batch_size", batch_size, 1)
    return _accuracy(loss, params, data, min(batch_size, n))


def check_examples_independent(
    batched_loss: Callable[[Any, Any], Array],
    loss: Callable[[Any, Any], Array],
    params: Any,
    data: Any,
    *,
    rtol: float = 1e-4,
) -> None:
    """Raises unless `batched_loss` is the mean of `loss` over the examples.

    If the loss of one example depends on the others in the batch, H is not a mean of per-example
    Hessians and the non-uniformity is not defined. Batch norm in training mode is the usual cause.
    The whole batch and its first half are tried, so that an agreement by chance does not pass.

    Args:
      batched_loss: (params, data) -> mean loss of a batch.
      loss: (params, example) -> loss of one example.
      params: parameters.
      data: pytree with a leading axis n.
      rtol: allowed difference relative to the mean of |loss|; the two sides only differ in the
        order of sums, some 1e-6 in float32.

    Raises:
      ValueError: if they differ, naming both values.
    """
    check_in_memory("check_examples_independent", data, "it takes all examples at once")
    n = data_size(data)
    for size in sorted({n, (n + 1) // 2}):
        part = jax.tree.map(lambda leaf, size=size: leaf[:size], data)
        together = float(jax.jit(batched_loss)(params, part))
        each = np.asarray(jax.jit(jax.vmap(loss, (None, 0)))(params, part), dtype=np.float64)
        scale = np.mean(np.abs(each)) + np.finfo(np.float32).tiny
        if not abs(together - each.mean()) <= rtol * scale:
            raise ValueError(
                f"the examples interact: the loss of a batch of {size} is {together:.6g}, the mean "
                f"of its per-example losses is {each.mean():.6g}. Batch norm in training mode does "
                "this; evaluate with frozen statistics (ModelLoss with state), which makes "
                "examples independent"
            )
