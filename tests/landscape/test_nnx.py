"""Every function here takes the parameters of a Flax nnx model and a loss of one example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxstab import landscape

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.top = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.top(jnp.tanh(self.first(x)))

    graph, params = nnx.split(Network(nnx.Rngs(0)), nnx.Param)

    def loss(params, example):
        x, y = example
        return jnp.sum((nnx.merge(graph, params)(x) - y) ** 2)

    x = jax.random.normal(KEY, (12, 3))
    return loss, params, (x, jnp.sum(x, axis=1))


def test_chains(problem):
    loss, params, data = problem
    start = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), params)
    draws = landscape.langevin_chains(
        loss,
        start,
        data,
        learning_rate=0.01,
        temperature=1e-3,
        batch_size=4,
        draws=5,
        key=KEY,
        observe=lambda params: jnp.sum(params["top"]["kernel"][...]),
    )
    assert draws.values.shape == (4, 5) and len(np.unique(draws.values)) == 20


def test_flatness_radius(problem):
    loss, params, data = problem
    every = landscape.flatness_radius(loss, params, data, eps=0.1, key=KEY, directions=3)
    top = landscape.flatness_radius(loss, params, data, eps=0.1, key=KEY, directions=3, mask="top")
    assert np.all(np.isfinite(every.radius)) and top.norm < every.norm


def test_simplex(problem):
    loss, params, data = problem
    vertices = [jax.tree.map(lambda leaf, c=c: c * leaf, params) for c in (0.5, 1.0, 2.0)]
    found = landscape.simplex(loss, vertices, data, resolution=2)
    middle = jnp.mean(jax.vmap(loss, (None, 0))(params, data))
    at = np.asarray(found.weights)[:, 1] == 1
    assert float(found.loss[at][0]) == pytest.approx(float(middle), rel=1e-5)


def test_gradient_noise(problem):
    loss, params, data = problem
    noise = landscape.gradient_noise(loss, params, data, batch_sizes=(2,), batches=20, key=KEY)
    assert len(noise.leaf_names) == 4 and noise.batch_gradients[0].shape == (20, 21)
    assert len(landscape.noise_statistics(noise)) == 4
