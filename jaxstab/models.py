"""The networks of the papers in Flax, their initialisation, and batch statistics on purpose.

Every model maps a batch of inputs (n, ...) to outputs (n, classes). The default call is evaluation
mode; `train=True` exists where batch norm makes a difference.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxstab import deep_models
from jaxstab.checks import check_at_least, check_name, check_positive, data_size

Array = jax.Array


def max_pool(x: Array) -> Array:
    """2 × 2 max-pooling with stride 2 of (n, height, width, channels), as a reshape and a max.

    The same values as reduce-window and, away from ties, the same derivatives; 1.5 times faster
    through two derivatives on CPU. Ties share the gradient equally, where reduce-window gives it to
    one of them.
    """
    n, height, width, channels = x.shape
    if height % 2 or width % 2:
        raise ValueError(
            f"2 x 2 pooling needs even sides, got {height} x {width}: use fewer layers 'M'"
        )
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


class FNN(nn.Module):
    """Fully connected ReLU network on flattened inputs; see `fnn`."""

    hidden: tuple[int, ...] = (500, 500, 500)
    classes: int = 10
    norm: str = "none"
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps inputs (n, ...) to outputs (n, classes); `train=True` as for `ResNet`."""
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dense(width, use_bias=self.norm == "none")(x)
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
            x = nn.relu(x)
        return nn.Dense(self.classes)(x)


class VGG(nn.Module):
    """3 × 3 convolutions with ReLU and pooling, then dense layers; see `vgg`."""

    layers: tuple[int | str, ...] = (16, "M", 16, "M", 32, "M", 64, "M", 64, "M")
    hidden: tuple[int, ...] = (128,)
    classes: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images (n, height, width, channels) to outputs (n, classes)."""
        for layer in self.layers:
            x = max_pool(x) if isinstance(layer, str) else nn.relu(nn.Conv(layer, (3, 3))(x))
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.classes)(x)


class ResNet(nn.Module):
    """Residual network for small images, of depth 6·blocks + 2; see `resnet`."""

    blocks: int = 1
    classes: int = 10
    norm: str = "batch"
    width: int = 16
    branch_scale: float = 1.0
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images to outputs; `train=True` uses and updates batch statistics."""
        x = nn.relu(self._conv(x, self.width, 1, train))
        for stage in range(3):
            channels = self.width * 2**stage
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(self._conv(x, channels, stride, train))
                y = self._conv(y, channels, 1, train)
                if stride == 2:  # He et al.'s shortcut A: no parameters
                    missing = channels - x.shape[-1]
                    padding = ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2))
                    x = jnp.pad(x[:, ::2, ::2], padding)
                x = nn.relu(x + self.branch_scale * y)
        return nn.Dense(self.classes)(x.mean(axis=(1, 2)))

    def _conv(self, x: Array, channels: int, stride: int, train: bool) -> Array:
        bias = self.norm == "none"
        x = nn.Conv(channels, (3, 3), strides=stride, padding=1, use_bias=bias)(x)
        if self.norm == "none":
            return x
        return nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)


def fnn(hidden: tuple[int, ...] = (500, 500, 500), *, classes: int = 10, norm: str = "none") -> FNN:
    """The fully connected ReLU network of Wu, Ma, E (2018): 784-500-500-500-10, 898,510 parameters.

    Args:
      hidden: widths of the hidden layers.
      classes: number of outputs.
      norm: "none", or "batch" for batch norm in every hidden layer; our addition.
    """
    for width in hidden:
        check_at_least("a width in hidden", width, 1)
    check_name("norm", norm, ("batch", "none"))
    return FNN(tuple(hidden), check_at_least("classes", classes, 1), norm)


def vgg(
    layers: tuple[int | str, ...] = (16, "M", 16, "M", 32, "M", 64, "M", 64, "M"),
    *,
    hidden: tuple[int, ...] = (128,),
    classes: int = 2,
) -> VGG:
    """The VGG-type network of Wu, Ma, E (2018): 71,410 parameters for 32 × 32 × 3 and 2 classes.

    Args:
      layers: channels of each 3 × 3 convolution, "M" for 2 × 2 max-pooling. The sides of the image
        must be divisible by 2 at each "M".
      hidden: widths of the dense hidden layers.
      classes: number of outputs.

    Raises:
      ValueError: for a layer that is neither a positive number nor "M".
    """
    for layer in layers:
        if layer != "M":
            if isinstance(layer, str):
                raise ValueError(f"a layer is a number of channels or 'M', got {layer!r}")
            check_at_least("a number of channels in layers", layer, 1)
    return VGG(tuple(layers), tuple(hidden), check_at_least("classes", classes, 1))


def resnet(
    depth: int = 14,
    *,
    classes: int = 10,
    norm: str = "batch",
    width: int = 16,
    branch_scale: float = 1.0,
) -> ResNet:
    """The CIFAR residual network of He et al. (2016), arXiv 1512.03385, section 4.2.

    Depth 6b + 2 (8, 14, 20, 56, 110, ...): one 3 × 3 convolution, three stages of b blocks with
    width, 2·width and 4·width channels, mean over positions, one dense layer. Shortcuts carry no
    parameters (their option A). Depth 56 has 853,018 parameters with batch norm, depth 110
    1,727,962.

    Without norm the convolutions have biases, and the plain initialisation of `initialize` trains
    at depths 8 and 14: U[−1/√n_in, 1/√n_in] has variance 1/(3 n_in), so the residual branches start
    small. For deeper ones scale the branches down with `branch_scale`, e.g. 1/√b; our addition, not
    in the paper.

    Args:
      depth: 6b + 2.
      classes: number of outputs.
      norm: "batch" or "none".
      width: channels of the first stage.
      branch_scale: factor on every residual branch.

    Raises:
      ValueError: for another depth or an unknown norm.
    """
    check_at_least("depth", depth, 8)
    if (depth - 2) % 6:
        near = 6 * round((depth - 2) / 6) + 2
        raise ValueError(
            f"the depth of this ResNet is 6b + 2 (8, 14, 20, 56, 110, ...), got {depth}: "
            f"did you mean {near}?"
        )
    check_name("norm", norm, ("batch", "none"))
    check_at_least("width", width, 1)
    check_positive("branch_scale", branch_scale)
    return ResNet(
        (depth - 2) // 6, check_at_least("classes", classes, 1), norm, width, branch_scale
    )


def preresnet(
    depth: int = 164, *, classes: int = 10, width: int = 16
) -> deep_models.PreActivationResNet:
    """The pre-activation residual network of He et al. (2016b), arXiv 1603.05027, of bottlenecks.

    Depth 9b + 2 (11, 20, 29, ..., 164): one 3 × 3 convolution, three stages of b blocks, each batch
    norm, ReLU and a convolution three times over (1 × 1, 3 × 3, 1 × 1) with width, 2·width and
    4·width channels inside and four times as many outside. Depth 164 has 1,703,258 parameters for
    32 × 32 × 3 and 10 classes.

    Args:
      depth: 9b + 2.
      classes: number of outputs.
      width: inner channels of the first stage.

    Raises:
      ValueError: for another depth.
    """
    if (check_at_least("depth", depth, 11) - 2) % 9:
        near = max(9 * round((depth - 2) / 9), 9) + 2
        raise ValueError(
            f"the depth of this ResNet is 9b + 2 (11, 20, ..., 164), got {depth}: did you mean "
            f"{near}?"
        )
    check_at_least("classes", classes, 1)
    check_at_least("width", width, 1)
    return deep_models.PreActivationResNet((depth - 2) // 9, classes, width)


def densenet(depth: int = 100, *, classes: int = 10, growth: int = 12) -> deep_models.DenseNet:
    """The DenseNet-BC of Huang et al. (2017), arXiv 1608.06993, for small images.

    Depth 6l + 4 (10, 16, ..., 40, 100): three blocks of l layers, each a 1 × 1 convolution to
    4·growth channels and a 3 × 3 one to growth, whose output is appended to its input; between the
    blocks half the channels and half the sides. Depth 100 with growth 12 has 769,162 parameters for
    32 × 32 × 3 and 10 classes.

    Args:
      depth: 6l + 4.
      classes: number of outputs.
      growth: channels that a layer adds.

    Raises:
      ValueError: for another depth.
    """
    if (check_at_least("depth", depth, 10) - 4) % 6:
        near = max(6 * round((depth - 4) / 6), 6) + 4
        raise ValueError(
            f"the depth of this DenseNet is 6l + 4 (10, 16, ..., 100), got {depth}: did you mean "
            f"{near}?"
        )
    check_at_least("classes", classes, 1)
    check_at_least("growth", growth, 1)
    return deep_models.DenseNet((depth - 4) // 6, growth, classes)


def _named() -> dict[str, Callable[[int], nn.Module]]:
    models: dict[str, Callable[[int], nn.Module]] = {
        "fnn": lambda classes: fnn(classes=classes),
        "fnn-small": lambda classes: fnn((100, 100), classes=classes),
        "fnn-tiny": lambda classes: fnn((10,), classes=classes),
        "fnn-small-norm": lambda classes: fnn((100, 100), classes=classes, norm="batch"),
        "vgg": lambda classes: vgg(classes=classes),
        "vgg-small": lambda classes: vgg((8, "M", 16, "M"), hidden=(32,), classes=classes),
        "resnet8-small": lambda classes: resnet(8, classes=classes, norm="none", width=4),
        "resnet8-small-norm": lambda classes: resnet(8, classes=classes, width=4),
        "resnet164": lambda classes: preresnet(164, classes=classes),
        "densenet100": lambda classes: densenet(100, classes=classes),
    }
    for depth in (8, 14, 56, 110):
        for suffix, norm in (("", "batch"), ("-no-norm", "none")):
            models[f"resnet{depth}{suffix}"] = functools.partial(_resnet, depth, norm)
    return models


def _resnet(depth: int, norm: str, classes: int) -> nn.Module:
    return resnet(depth, classes=classes, norm=norm)


MODELS = _named()


def by_name(name: str, classes: int = 10) -> nn.Module:
    """Returns the model called `name`, for the command line.

    Args:
      name: "fnn" (hidden 500-500-500), "fnn-small" (100-100, for the digits; with batch norm
        "fnn-small-norm"), "fnn-tiny" (one layer of 10 units), "vgg" (32 × 32 images), "vgg-small"
        (8 × 8 images), "resnet8", "resnet14", "resnet56", "resnet110" with batch norm, and the same
        with "-no-norm";
        "resnet8-small" and "resnet8-small-norm" (width 4); "resnet164" (pre-activation) and
        "densenet100".
      classes: number of outputs.

    Raises:
      ValueError: for an unknown name, with the nearest known one.
    """
    return MODELS[check_name("model", name, MODELS)](classes)


def initialize(model: nn.Module, key: Array, x_example: Array, scale: float | Array = 1.0) -> Any:
    """Draws parameters: weights and biases of every layer from U[−v/√n_in, v/√n_in].

    The initialisation of Wu, Ma, E (2018), which for v = 1 is PyTorch's default of dense and
    convolutional layers. n_in is the fan-in of the layer, also for its bias. Parameters of other
    layers (scales and offsets of norms) keep the model's own initial values. Usable under jit and
    vmap, over keys and scales.

    Args:
      model: a Flax (linen) module on batches.
      key: a PRNG key.
      x_example: one input, without a batch axis.
      scale: v.

    Returns:
      the "params" collection, float32 as a rule. For batch statistics see `initial_state`.

    Raises:
      ValueError: if scale is negative or not finite.

    Example:
      >>> params = initialize(fnn((3,), classes=2), jax.random.key(0), jnp.zeros(4))
      >>> bool(jnp.abs(params["Dense_0"]["bias"]).max() <= 0.5)
      True
    """
    check_positive("scale", scale, allow_zero=True)
    return _initialize(model, key, jnp.asarray(x_example), jnp.asarray(scale, float))


@functools.partial(jax.jit, static_argnums=0)
def _initialize(model: nn.Module, key: Array, x_example: Array, scale: Array) -> Any:
    own_key, key = jax.random.split(key)
    params = model.init(own_key, x_example[None])["params"]
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    kernels = {path[:-1]: leaf for path, leaf in flat if path[-1].key == "kernel"}
    drawn = [path[:-1] in kernels and path[-1].key in ("kernel", "bias") for path, _ in flat]
    # one draw for all layers: a draw per layer takes seconds to compile in a deep network
    numbers = jax.random.uniform(
        key, (sum(leaf.size for (_, leaf), ours in zip(flat, drawn) if ours),), scale.dtype, -1, 1
    )
    leaves, start = [], 0
    for (path, leaf), ours in zip(flat, drawn, strict=True):
        if ours:
            kernel = kernels[path[:-1]]
            bound = scale / math.sqrt(kernel.size // kernel.shape[-1])
            values = bound * numbers[start : start + leaf.size].reshape(leaf.shape)
            leaf, start = values.astype(leaf.dtype), start + leaf.size
        leaves.append(leaf)
    return jax.tree.unflatten(treedef, leaves)


def initial_state(model: nn.Module, x_example: Array) -> dict[str, Any]:
    """Returns the collections besides "params" at their start: {} or {"batch_stats": ...}.

    Batch statistics start at mean 0 and variance 1, with which batch norm is the identity.

    Args:
      model: a Flax (linen) module on batches.
      x_example: one input, without a batch axis.
    """

    def others(x: Array) -> dict[str, Any]:
        variables = model.init(jax.random.key(0), x[None])
        return {name: value for name, value in variables.items() if name != "params"}

    x = jnp.asarray(x_example)
    return jax.jit(others)(x) if jax.tree.leaves(jax.eval_shape(others, x)) else {}


def recompute_batch_stats(
    model: nn.Module, params: Any, x: Array, *, batch_size: int = 100
) -> dict[str, Any]:
    """Re-estimates batch statistics by one pass over x with a cumulative average.

    What Izmailov et al. (2018), section 3.2, do at every averaged point: the mean and the variance
    of each layer's inputs, averaged over the batches with weights proportional to their sizes. The
    variance is that within a batch, with divisor b as in Flax (PyTorch takes b − 1). Cost: one
    forward pass. Usable under jit.

    Args:
      model: a Flax (linen) module that takes `train=True`.
      params: parameters at which to estimate.
      x: inputs (n, ...).
      batch_size: examples per batch; the last batch may be smaller.

    Returns:
      the state for `ModelLoss`: {"batch_stats": ...}, or {} if the model has none.
    """
    n = data_size(x)
    return _recompute(
        model, params, jnp.asarray(x), min(check_at_least("batch_size", batch_size, 1), n)
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _recompute(model: nn.Module, params: Any, x: Array, batch_size: int) -> dict[str, Any]:
    start = jax.eval_shape(model.init, jax.random.key(0), x[:1])
    if "batch_stats" not in start:
        return {}

    def moved(batch: Array, value: float) -> Any:
        stats = jax.tree.map(lambda s: jnp.full(s.shape, value, s.dtype), start["batch_stats"])
        _, new = model.apply(
            {"params": params, "batch_stats": stats}, batch, train=True, mutable=["batch_stats"]
        )
        return new["batch_stats"]

    # running' = m·running + (1 − m)·batch: the momenta m of the layers follow from two starts, and
    # one step from 0 then gives the statistics of the batch, whatever m.
    zero, one = moved(x[:batch_size], 0.0), moved(x[:batch_size], 1.0)
    momentum = jax.tree.map(jnp.subtract, one, zero)

    def statistics(batch: Array) -> Any:
        return jax.tree.map(lambda s, m: s / (1 - m), moved(batch, 0.0), momentum)

    full = x.shape[0] // batch_size
    batches = x[: full * batch_size].reshape(full, batch_size, *x.shape[1:])

    def add(total: Any, batch: Array) -> tuple[Any, None]:
        return jax.tree.map(lambda t, s: t + batch_size * s, total, statistics(batch)), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, zero), batches)
    rest = x[full * batch_size :]
    if rest.shape[0]:
        total = jax.tree.map(lambda t, s: t + rest.shape[0] * s, total, statistics(rest))
    return {"batch_stats": jax.tree.map(lambda t: t / x.shape[0], total)}
