"""A small sweep in a process of its own, for tests that kill it: OUT DEVICES PAUSE DISTRIBUTED."""

import json
import sys
import time

import jax
import jax.numpy as jnp
import optax

from jaxstab import sweeps


def loss(params, example):
    x, y = example
    return (jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2


def init(key, scale):
    first, second = jax.random.split(key)
    return {
        "in": scale * jax.random.normal(first, (3, 4)),
        "out": scale * jax.random.normal(second, (4,)),
    }


def main(out, devices, pause, distributed):
    sweeps.use_host_devices(devices)
    if distributed:
        address, count, index = distributed.split(",")
        jax.distributed.initialize(address, int(count), int(index))
    x = jax.random.normal(jax.random.key(5), (20, 3))
    data = x, jnp.sin(x).sum(1)

    def progress(done, total, record):
        print(done, total, flush=True)
        time.sleep(pause)

    result = sweeps.sweep(
        loss,
        init,
        data,
        optimizer=optax.sgd,
        learning_rates=[0.05, 0.1, 1e3],
        batch_sizes=[4, 20],
        seeds=[0, 1],
        max_steps=300,
        loss_tolerance=1e-2,
        out=out,
        measure=False,
        evaluate=lambda params: {"norm": optax.tree.norm(params)},
        progress=progress,
    )
    print(json.dumps([len(jax.devices()), result.records]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
