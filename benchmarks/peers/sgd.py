"""SGD on a small network, a plain PyTorch loop: one process of one thread per core.

Two processes of one thread are faster here than one process of two threads: the matrices are too
small to share. Each draws its batches without replacement and looks at the full loss every
`check_every` steps, as the sweep that it is compared with does.
"""

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from common import answer, load, mean_squared


def one_run(model, x, y, rate, batch_size, steps, check_every):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    loss = None
    for step in range(steps):
        chosen = torch.randperm(x.shape[0])[:batch_size]
        optimizer.zero_grad(set_to_none=True)
        mean_squared(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if (step + 1) % check_every == 0:
            with torch.no_grad():
                loss = float(mean_squared(model(x), y))
    return loss


def work(path, runs):
    """Runs one after another after a short warm-up; returns (start, end, last loss)."""
    torch.set_num_threads(1)
    loaded = load(path)
    initial = {name: value.clone() for name, value in loaded[0].state_dict().items()}
    model, x, y, arrays = loaded
    batch_size, steps = int(arrays["batch_size"]), int(arrays["steps"])
    check_every = int(arrays["check_every"])
    one_run(model, x, y, 0.01, batch_size, min(steps, 50), check_every)
    start, loss = time.time(), None
    for run in range(runs):
        torch.manual_seed(run)
        model.load_state_dict(initial)
        loss = one_run(model, x, y, float(arrays["rate"]), batch_size, steps, check_every)
    return start, time.time(), loss


def main():
    path = sys.argv[1]
    runs = int(load(path)[3]["runs"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        done = list(pool.map(work, [path] * cores, [runs] * cores))
    # Each process counts its own runs over its own time: starting the processes is not counted.
    per_second = sum(runs / (end - begin) for begin, end, _ in done)
    answer(runs_per_second=per_second, processes=cores, loss=done[0][2])


if __name__ == "__main__":
    main()
