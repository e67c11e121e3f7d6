"""A sweep of SGD on the digits, runs per second, against a PyTorch loop on the same cores."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import harness, peering, problems
from benchmarks.harness import Row
from jaxstab import data as datasets
from jaxstab import losses, models
from jaxstab.sweeps import sweep, use_host_devices

BATCH_SIZE, CHECK_EVERY, RATE = 20, 200, 0.1


def digits() -> problems.Problem:
    """64-100-100-10 on 1,400 digits."""
    model = models.fnn((100, 100), classes=10)
    train = datasets.load("digits").train
    params = models.initialize(model, jax.random.key(0), train[0][0])
    return problems.Problem("digits", losses.ModelLoss(model), params, train)


def run(settings: argparse.Namespace) -> list[Row]:
    """Runs of equal length on both sides, no measuring, the full loss every 200 steps."""
    tiny = settings.size == "tiny"
    cores = use_host_devices()
    runs, steps = (2 * cores, 20) if tiny else (8 * cores, 2000)
    check_every = 10 if tiny else CHECK_EVERY
    problem = digits()
    model, example = problem.loss.model, problem.data[0][0]
    rates = [RATE * (1 + 0.01 * i) for i in range(runs // 2)]

    # One function for all calls: a new one each time would be compiled each time.
    def init(key: jax.Array, scale: jax.Array) -> Any:
        return models.initialize(model, key, example, scale)

    def ours() -> Any:
        result = sweep(
            problem.loss,
            init,
            problem.data,
            optimizer=optax.sgd,
            learning_rates=rates,
            batch_sizes=[BATCH_SIZE],
            seeds=[0, 1],
            max_steps=steps,
            loss_tolerance=None,
            check_every=check_every,
            measure=False,
        )
        return jnp.asarray([record["loss"] for record in result.records])

    rounds = 2 if tiny else harness.ROUNDS
    timing = harness.time_in_turn({"sweep": ours}, rounds=rounds)["sweep"]
    peer = peering.ask(
        "sgd",
        problem,
        python=settings.peers,
        batch_size=BATCH_SIZE,
        steps=steps,
        check_every=check_every,
        rate=RATE,
        runs=1 if tiny else 3,
    )
    per_second = runs / timing.median
    return [
        Row(
            f"sweep / PyTorch loop, runs per second: digits {problem.size:,}, B = {BATCH_SIZE}, "
            f"{steps} steps",
            per_second / peer["runs_per_second"],
            at_least=None if tiny else 5.0,
            note=f"{per_second:.2f} / {peer['runs_per_second']:.2f} runs a second; "
            f"{cores} host devices / {peer['processes']} processes of one thread",
            details={"our final losses": ours().tolist(), **peer},
        )
    ]


if __name__ == "__main__":
    harness.main("bench_sweep", run)
