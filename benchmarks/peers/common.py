"""What all peer scripts share: the problem as PyTorch has it, timing, the answer as JSON."""

import json
import os
import statistics
import sys
import time

import numpy as np
import torch
from torch import nn

ROUNDS = 5


class Flatten(nn.Module):
    """Flattens (n, channels, height, width) in the order in which channels-last data are flat."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x.flatten(1)


def load(path):
    """Returns (model, x, y, all arrays); the loss is `mean_squared`."""
    arrays = dict(np.load(path))
    made = []
    for position, kind in enumerate(arrays["layers"]):
        if kind == "relu":
            made.append(nn.ReLU())
        elif kind == "pool":
            made.append(nn.MaxPool2d(2))
        elif kind == "flatten":
            made.append(Flatten())
        else:
            kernel = torch.from_numpy(arrays[f"kernel{position}"])
            bias = torch.from_numpy(arrays[f"bias{position}"])
            if kind == "dense":
                layer = nn.Linear(*kernel.shape)
                layer.weight = nn.Parameter(kernel.T.contiguous())
            else:
                layer = nn.Conv2d(*kernel.shape[2:], kernel.shape[:2], padding="same")
                layer.weight = nn.Parameter(kernel.permute(3, 2, 0, 1).contiguous())
            layer.bias = nn.Parameter(bias)
            made.append(layer)
    x = torch.from_numpy(arrays["x"])
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous()
    y = torch.from_numpy(arrays["y"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return nn.Sequential(*made).to(device), x.to(device), y.to(device), arrays


def mean_squared(outputs, targets):
    """The loss of the problems: mean over outputs and over examples."""
    return ((outputs - targets) ** 2).mean()


def synchronise():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function, rounds=ROUNDS, warm=True):
    """Returns (median seconds, last result) of `rounds` calls after one that is not counted."""
    result = function() if warm else None
    seconds = []
    for _ in range(rounds):
        synchronise()
        start = time.perf_counter()
        result = function()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def answer(**content):
    """Prints the answer; nothing else may follow it."""
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**content, "versions": versions}))


def start(path=None):
    """Uses the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores)
    torch.manual_seed(0)
    return load(path or sys.argv[1])
