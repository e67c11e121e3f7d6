"""A process of `bench_processes`: sweeps into the folder named on each line that it reads."""

import sys
from typing import Any

import jax
import optax

from benchmarks.bench_sweep import BATCH_SIZE, RATE, digits
from jaxstab import models
from jaxstab.sweeps import sweep, use_host_devices


def main(devices: int, runs: int, steps: int) -> None:
    """Answers each line with `done`; `memory` sweeps without a folder."""
    use_host_devices(devices)
    problem = digits()
    model, example = problem.loss.model, problem.data[0][0]

    def init(key: jax.Array, scale: jax.Array) -> Any:
        return models.initialize(model, key, example, scale)

    for line in sys.stdin:
        folder = line.strip()
        sweep(
            problem.loss,
            init,
            problem.data,
            optimizer=optax.sgd,
            learning_rates=[RATE * (1 + 0.01 * i) for i in range(runs // 2)],
            batch_sizes=[BATCH_SIZE],
            seeds=[0, 1],
            max_steps=steps,
            loss_tolerance=None,
            check_every=min(200, steps),
            measure=False,
            out=None if folder == "memory" else folder,
        )
        print("done", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
