"""A small sweep in a process of its own, for tests that kill it: OUT DEVICES PAUSE JOB.

JOB is empty, `found` for what the environment says, or ADDRESS,COUNT,INDEX.
"""

import contextlib
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxstab import dispatch, processes, sweeps


def loss(params, example):
    x, y = example
    return (jnp.tanh(x @ params["in"]) @ params["out"] - y) ** 2


def init(key, scale):
    first, second = jax.random.split(key)
    return {
        "in": scale * jax.random.normal(first, (3, 4)),
        "out": scale * jax.random.normal(second, (4,)),
    }


class Told(list):
    """A list that prints what is put into it."""

    def append(self, name):
        super().append(name)
        print("computed", name, flush=True)


def same_records(ours, theirs):
    """Equal up to float rounding: 1e-4 over some hundred float32 steps; counts exactly."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float):
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-6, err_msg=name)
            else:
                assert a[name] == b[name], name


def noting(computed, ended_runs):
    """The driver, that notes which runs it has computed."""

    def note(*arguments):
        for ended in ended_runs(*arguments):
            computed.append(ended.point.identifier)
            yield ended

    return note


def run(out, pause):
    x = jax.random.normal(jax.random.key(5), (20, 3))
    data = x, jnp.sin(x).sum(1)
    started = time.time()

    def progress(done, total, record):
        print(done, total, round(time.time() - started, 3), flush=True)
        time.sleep(pause)

    return sweeps.sweep(
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


def main(out, devices, pause, job):
    sweeps.use_host_devices(devices)
    dispatch.ended_runs = noting(Told(), dispatch.ended_runs)
    joining = contextlib.nullcontext()
    if job == "found":
        joining = processes.joined(out)
    elif job:
        address, count, index = job.split(",")
        joining = processes.joined(
            out, coordinator_address=address, num_processes=int(count), process_id=int(index)
        )
    with joining:
        result = run(out, pause)
        print(json.dumps([len(jax.devices()), result.records]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
