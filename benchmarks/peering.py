"""The bridge to the peers: the same weights and data in PyTorch, in an environment of their own.

A peer script gets one .npz file and prints one line of JSON. The network travels as a list of
layers (dense, conv, relu, pool, flatten), so that both sides compute the same function.
"""

import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.problems import Problem
from jaxstab import models

HERE = Path(__file__).parent
DEFAULT = HERE.parent / ".venv-peers" / "bin" / "python"


class NoPeersError(RuntimeError):
    """The peers' environment is missing."""


def interpreter(path: str | None = None) -> Path:
    """Returns the python of the peers' environment: `path`, else .venv-peers.

    Raises:
      NoPeersError: if there is none; `make bench-peers` builds it.
    """
    found = Path(path) if path else DEFAULT
    if not found.exists():
        raise NoPeersError(f"no peers' environment at {found}: build it with `make bench-peers`")
    return found


@functools.singledispatch
def layers(model: Any) -> list[str]:
    """The layers of a model in order."""
    raise TypeError(f"no description of {type(model).__name__} for PyTorch")


@layers.register
def _(model: models.FNN) -> list[str]:
    return ["flatten", *["dense", "relu"] * len(model.hidden), "dense"]


@layers.register
def _(model: models.VGG) -> list[str]:
    described = []
    for layer in model.layers:
        described += ["pool"] if layer == "M" else ["conv", "relu"]
    return [*described, "flatten", *["dense", "relu"] * len(model.hidden), "dense"]


def export(problem: Problem, path: Path, **extra: Any) -> None:
    """Writes layers, weights and data of a problem, and any further arrays, to one .npz file."""
    kinds = layers(problem.loss.model)
    arrays: dict[str, Any] = {"layers": np.array(kinds), "x": problem.data[0], "y": problem.data[1]}
    counts = {"dense": 0, "conv": 0}
    for position, kind in enumerate(kinds):
        if kind in counts:
            leaf = problem.params[f"{kind.capitalize()}_{counts[kind]}"]
            counts[kind] += 1
            arrays[f"kernel{position}"], arrays[f"bias{position}"] = leaf["kernel"], leaf["bias"]
    np.savez(path, **{name: np.asarray(value) for name, value in (arrays | extra).items()})


def flat_vector(problem: Problem, v: Any) -> np.ndarray:
    """A vector shaped like the parameters in the order and layout in which PyTorch has them."""
    counts = {"dense": 0, "conv": 0}
    parts = []
    for kind in layers(problem.loss.model):
        if kind in counts:
            leaf = v[f"{kind.capitalize()}_{counts[kind]}"]
            counts[kind] += 1
            axes = (1, 0) if kind == "dense" else (3, 2, 0, 1)
            parts += [np.transpose(leaf["kernel"], axes).ravel(), np.ravel(leaf["bias"])]
    return np.concatenate([np.asarray(part) for part in parts])


def ask(script: str, problem: Problem, *, python: str | None = None, **extra: Any) -> Any:
    """Runs `peers/SCRIPT.py` on a problem and returns what it says."""
    command = interpreter(python)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.npz"
        export(problem, path, **extra)
        done = subprocess.run(
            [str(command), str(HERE / "peers" / f"{script}.py"), str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
    if done.returncode:
        raise RuntimeError(f"peers/{script}.py failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def devices_are_cpu() -> bool:
    """Whether both sides compute on the same kind of device."""
    return jax.default_backend() == "cpu"
