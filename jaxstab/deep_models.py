"""Deep networks for small images: pre-activation residual networks and DenseNets.

Like the models of `jaxstab.models`, whose `preresnet` and `densenet` make them, they map a batch of
images to outputs; `train=True` uses and updates batch statistics.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class PreActivationResNet(nn.Module):
    """Pre-activation residual network of bottlenecks, of depth 9·blocks + 2; see `preresnet`."""

    blocks: int = 18
    classes: int = 10
    width: int = 16
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images (n, height, width, channels) to outputs (n, classes)."""
        x = _convolution(x, self.width, 3)
        for stage in range(3):
            inner = self.width * 2**stage
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                y = self._activated(x, train)
                # where the shape changes, the shortcut starts after the activation
                shortcut = x if block else _convolution(y, 4 * inner, 1, stride)
                y = self._activated(_convolution(y, inner, 1), train)
                y = self._activated(_convolution(y, inner, 3, stride), train)
                x = shortcut + _convolution(y, 4 * inner, 1)
        return nn.Dense(self.classes)(self._activated(x, train).mean(axis=(1, 2)))

    def _activated(self, x: Array, train: bool) -> Array:
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))


class DenseNet(nn.Module):
    """DenseNet-BC of three blocks, of depth 6·layers + 4; see `densenet`."""

    layers: int = 16
    growth: int = 12
    classes: int = 10
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Maps images (n, height, width, channels) to outputs (n, classes)."""
        x = _convolution(x, 2 * self.growth, 3)
        for block in range(3):
            for _ in range(self.layers):
                y = _convolution(self._activated(x, train), 4 * self.growth, 1)
                y = _convolution(self._activated(y, train), self.growth, 3)
                x = jnp.concatenate([x, y], axis=-1)
            if block < 2:
                x = _convolution(self._activated(x, train), x.shape[-1] // 2, 1)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return nn.Dense(self.classes)(self._activated(x, train).mean(axis=(1, 2)))

    def _activated(self, x: Array, train: bool) -> Array:
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x))


def _convolution(x: Array, channels: int, side: int, stride: int = 1) -> Array:
    """A convolution without bias; called within a compact method, which owns its kernel."""
    return nn.Conv(channels, (side, side), strides=stride, padding=side // 2, use_bias=False)(x)
