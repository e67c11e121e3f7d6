"""Certificates on emulated machines: how often intervals hold the float64 truth, by precision.

Every case is a random problem solved as the machine would (`jaxstab.emulation`), its truth a dense
eigenvalue problem in float64. A setting is a machine, the precision that the solver is given, and
what the solver believes the machine to be: "silent" ones are coarser than it believes.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxstab as js
from benchmarks import harness
from benchmarks.harness import Row
from jaxstab import emulation
from jaxstab.eigen import lanczos
from jaxstab.measurement import reference_of

CASES = {"tiny": 8, "small": 100, "full": 1000}
TOL = 1e-2
FAILURE = 1e-3  # of `lanczos`, over the start
EXAMPLES = 12


@dataclasses.dataclass(frozen=True)
class Setting:
    """A machine, the precision asked for, and the machine that the solver believes in."""

    name: str
    machine: Any
    precision: str
    believed: str


SETTINGS = (
    Setting("GPU default: TF32", emulation.GPU, "default", "gpu"),
    Setting("GPU default: TF32, cut off", emulation.GPU_CUT, "default", "gpu"),
    Setting("TPU default: bfloat16", emulation.TPU, "default", "tpu"),
    Setting("TPU high: bfloat16, 3 passes", emulation.TPU, "high", "tpu"),
    Setting("highest: float32", emulation.GPU, "highest", "gpu"),
    Setting("silent TF32", emulation.always(emulation.TF32), "highest", "gpu"),
    Setting("silent bfloat16", emulation.always(emulation.BFLOAT16), "highest", "gpu"),
)


class Case(NamedTuple):
    """A batch of problems: arrays with a leading axis of cases, and their float64 truth."""

    operands: Any
    operator: Callable[..., Any]  # of one case's operands and a precision
    truth: np.ndarray


def _times(matrix: jax.Array, v: jax.Array) -> jax.Array:
    return matrix @ v


@jax.tree_util.Partial
def _network_loss(params: Any, example: Any) -> jax.Array:
    """A small network, tanh first and ReLU second, with one product too many to be linear."""
    x, y = example
    hidden = jnp.tanh(x @ params["a"] + params["b"])
    hidden = jax.nn.relu(hidden @ params["c"] + params["d"])
    return jnp.mean((hidden @ params["e"] - y) ** 2)


def dense(cases: int, size: int = 48) -> Case:
    """Symmetric matrices: flat, decaying, clustered and indefinite spectra of any scale."""
    rng = np.random.default_rng(0)
    matrices = np.empty((cases, size, size), np.float32)
    for i in range(cases):
        t = np.linspace(0, 1, size)
        spectrum = [
            rng.uniform(-1, 1, size),
            np.exp(-8 * t),
            np.r_[1, 1 - 10.0 ** rng.uniform(-5, -2), 0.5 * rng.uniform(-1, 1, size - 2)],
            np.r_[0.5, -rng.uniform(0.5, 1, size - 1)],
            np.r_[1, np.zeros(size - 1)],
        ][i % 5]
        q, _ = np.linalg.qr(rng.standard_normal((size, size)))
        matrix = 10.0 ** rng.uniform(-6, 6) * (q * spectrum) @ q.T
        matrices[i] = (matrix + matrix.T) / 2
    truth = np.array([np.linalg.eigvalsh(m.astype(np.float64))[-1] for m in matrices])

    def operator(matrix: jax.Array, precision: str) -> Any:
        return jax.tree_util.Partial(_times, matrix)

    return Case(jnp.asarray(matrices), operator, truth)


def network(cases: int, *, centred: bool, steps: int = 60) -> Case:
    """H, or Σ if `centred`, of small networks of 74 parameters after a few steps of descent."""

    def make(key: jax.Array) -> Any:
        keys = jax.random.split(key, 8)
        shapes = {"a": (5, 6), "b": (6,), "c": (6, 4), "d": (4,), "e": (4, 2)}
        scale = 10 ** jax.random.uniform(keys[6], (), minval=-0.5, maxval=0.3)
        params = {
            name: scale * jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys[:5], shapes.items())
        }
        data = jax.random.normal(keys[5], (EXAMPLES, 5)), jax.random.normal(keys[7], (EXAMPLES, 2))
        mean = lambda p: jnp.mean(jax.vmap(_network_loss, (None, 0))(p, data))  # noqa: E731
        descend = lambda p, _: (  # noqa: E731
            jax.tree.map(lambda x, g: x - 0.02 * g, p, jax.grad(mean)(p)),
            None,
        )
        return jax.lax.scan(descend, params, length=steps)[0], data

    operands = jax.jit(jax.vmap(make))(jax.random.split(jax.random.key(1), cases))
    make_operator = js.hessian_variance if centred else js.hessian

    def operator(operands: Any, precision: str) -> Any:
        return make_operator(_network_loss, *operands, precision=precision)

    return Case(operands, operator, _network_truth(operands, centred))


def _network_truth(operands: Any, centred: bool) -> np.ndarray:
    def one(operands: Any) -> jax.Array:
        params, data = operands
        flat, unravel = ravel_pytree(params)
        each = jax.vmap(
            lambda example: jax.hessian(lambda p: _network_loss(unravel(p), example))(flat)
        )(data)
        mean = jnp.mean(each, axis=0)
        if centred:
            mean = jnp.mean(each @ each, axis=0) - mean @ mean
        return jnp.linalg.eigvalsh((mean + mean.T) / 2)[-1]

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), operands)
        return np.asarray(jax.jit(lambda xs: jax.lax.map(one, xs, batch_size=20))(wide))


def solve(case: Case, setting: Setting, *, tol: float = TOL, max_matvecs: int = 60) -> Any:
    """Solves all cases on the emulated machine."""

    def one(operands: Any, key: jax.Array) -> Any:
        operator = case.operator(operands, setting.precision)
        like = getattr(operator, "params", None)
        if like is None:  # a plain matvec: the solver itself sets the precision
            reference = None if setting.precision == "highest" else operator
            like = jnp.zeros(operands.shape[-1])
        else:
            reference, operator = reference_of(operator), operator.prepare()
        run = lanczos(
            tol=tol,
            max_matvecs=max_matvecs,
            failure_probability=FAILURE,
            precision=setting.precision,
        )
        return run(operator, like, key=key, reference=reference)._replace(vector=None)

    keys = jax.random.split(jax.random.key(2), len(case.truth))
    with mock.patch("jaxstab.eigen.lanczos.default_machine", lambda: setting.believed):
        run = jax.jit(emulation.emulate(one, setting.machine))
        found = [
            jax.device_get(run(jax.tree.map(lambda x, i=i: x[i], case.operands), key))
            for i, key in enumerate(keys)
        ]
    return jax.tree.map(lambda *x: np.stack(x), *found)


class Tally(NamedTuple):
    """What came of all cases of one problem and setting."""

    cases: int
    missed_below: int  # truth below the lower end
    missed_above: int
    converged: int
    converged_wrongly: int  # with a value further from the truth than the tolerance
    width: float  # median width / truth
    error: float  # median |value − truth| / truth

    @property
    def held(self) -> float:
        return 1 - (self.missed_below + self.missed_above) / self.cases


def tally(case: Case, result: Any, tol: float = TOL) -> Tally:
    """Counts the intervals that hold the truth."""
    truth, value = case.truth, result.value.astype(np.float64)
    lower, upper = (np.asarray(end, np.float64) for end in result.interval)
    off = np.abs(value - truth) > tol * np.abs(value)
    return Tally(
        len(truth),
        int(np.sum(truth < lower)),
        int(np.sum(truth > upper)),
        int(np.sum(result.converged)),
        int(np.sum(result.converged & off)),
        float(np.median((upper - lower) / np.abs(truth))),
        float(np.median(np.abs(value - truth) / np.abs(truth))),
    )


PROBLEMS = {
    "dense": dense,
    "H of networks": functools.partial(network, centred=False),
    "variance of networks": functools.partial(network, centred=True),
}


def run(settings: argparse.Namespace) -> list[Row]:
    """Share of intervals that hold the truth, for every problem and setting."""
    rows = []
    tiny = settings.size == "tiny"
    for name, make in list(PROBLEMS.items())[: 1 if tiny else None]:
        case = make(CASES[settings.size])
        for setting in SETTINGS[: 2 if tiny else None]:
            found = tally(case, solve(case, setting))
            rows.append(
                Row(
                    f"{name}; {setting.name}",
                    found.held,
                    unit="",
                    at_least=1 - 2 * FAILURE,
                    note=f"{found.converged} of {found.cases} converged, "
                    f"{found.converged_wrongly} wrongly; median width {found.width:.1e}, "
                    f"error {found.error:.1e}; missed {found.missed_below} below, "
                    f"{found.missed_above} above",
                    details=found._asdict(),
                )
            )
            print(rows[-1].what, rows[-1].note, flush=True)
    return rows


if __name__ == "__main__":
    harness.main("bench_precision", run)
