"""The problems that are measured: the networks of Wu, Ma, E (2018) and a ResNet-14."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxstab import data as datasets
from jaxstab import losses, models


class Problem(NamedTuple):
    """A loss at a point on data; `size` is the number of parameters."""

    name: str
    loss: Any
    params: Any
    data: Any

    @property
    def size(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def n(self) -> int:
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def label(self) -> str:
        return f"{self.name} {self.size:,}, n = {self.n:,}"


def _problem(name: str, model: Any, shape: tuple[int, ...], classes: int, n: int) -> Problem:
    drawn = datasets.synthetic_images(n, shape=shape, classes=classes, noise=1.0)
    example = drawn.train[0][0]
    params = models.initialize(model, jax.random.key(1), example)
    loss = losses.ModelLoss(model, losses.squared, models.initial_state(model, example))
    return Problem(name, loss, params, drawn.train)


def fnn(n: int, *, tiny: bool = False) -> Problem:
    """784-500-500-500-10, 898,510 parameters (tiny: 64-12-10)."""
    if tiny:
        return _problem("FNN", models.fnn((12,), classes=10), (8, 8, 1), 10, n)
    return _problem("FNN", models.fnn(), (28, 28, 1), 10, n)


def vgg(n: int, *, tiny: bool = False) -> Problem:
    """The VGG-type network of 71,410 parameters on 32 × 32 × 3 images of two classes."""
    if tiny:
        return _problem("VGG", models.vgg((4, "M", 4, "M"), hidden=(8,)), (8, 8, 3), 2, n)
    return _problem("VGG", models.vgg(), (32, 32, 3), 2, n)


def resnet14(n: int, *, tiny: bool = False) -> Problem:
    """ResNet-14 with batch norm frozen (evaluation mode) on 32 × 32 × 3 images of ten classes."""
    if tiny:
        return _problem("ResNet-8", models.resnet(8, width=4), (8, 8, 3), 10, n)
    return _problem("ResNet-14", models.resnet(14), (32, 32, 3), 10, n)


@functools.partial(jax.jit, static_argnames="batch_size")
def _descend(problem: Any, params: Any, key: jax.Array, rate: Any, *, batch_size: int) -> Any:
    loss, data = problem
    chosen = jax.random.choice(key, data[0].shape[0], (batch_size,), replace=False)
    batch = jax.tree.map(lambda leaf: leaf[chosen], data)
    mean = lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, batch))  # noqa: E731
    return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(mean)(params))


def trained(problem: Problem, *, steps: int = 300, rate: float = 0.05) -> Problem:
    """The same problem after a few hundred steps of SGD: a point as solvers meet it."""
    params, batch_size = problem.params, min(50, problem.n)
    for step in range(steps):
        key = jax.random.fold_in(jax.random.key(2), step)
        params = _descend((problem.loss, problem.data), params, key, rate, batch_size=batch_size)
    return problem._replace(params=params)
