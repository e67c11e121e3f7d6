"""Certificates on emulated machines: how often intervals hold the float64 truth, by precision.

Every case is a random problem solved as the machine would (`jaxstab.emulation`), its truth a dense
eigenvalue problem in float64. A setting is a machine, the precision that the solver is given,
whether it ends with products in full precision, and what it believes the machine to be: "silent"
ones are coarser than it believes.

What is counted is kept in OUT/bench_precision_counts.json, setting by setting: a study that was
interrupted goes on from there, and starts over if the code of the certificate has changed.
"""

import argparse
import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxstab as js
from benchmarks import harness
from benchmarks.harness import Row
from jaxstab import emulation, files
from jaxstab.eigen import lanczos
from jaxstab.operators.hessian import Operator

CASES = {"tiny": 8, "small": 100, "full": 1000}
TOL = 1e-2
FAILURE = 1e-3  # of `lanczos`, over the start
COARSE = 0.99  # of networks computed coarsely from end to end: see `stated`
BASIS = 12  # the default of 32 takes five times as long and restarts less
EXAMPLES = 12


@dataclasses.dataclass(frozen=True)
class Setting:
    """A machine, the precision asked for, and the machine that the solver believes in.

    `ended` in full precision are the solves whose final vectors a reference multiplies.
    """

    name: str
    machine: Any
    precision: str
    believed: str
    ended: bool = False


SETTINGS = (
    Setting("float32", emulation.GPU, "highest", "gpu"),
    Setting("TF32", emulation.GPU_CUT, "default", "gpu"),
    Setting("bfloat16, 3 passes", emulation.TPU, "high", "tpu"),
    Setting("bfloat16", emulation.TPU, "default", "tpu"),
    Setting("TF32, ended in float32", emulation.GPU_CUT, "default", "gpu", ended=True),
    Setting("bfloat16, 3 passes, ended in float32", emulation.TPU, "high", "tpu", ended=True),
    Setting("bfloat16, ended in float32", emulation.TPU, "default", "tpu", ended=True),
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


def _network_loss(activation: Any, params: Any, example: Any) -> jax.Array:
    """A small network, tanh first, with one product too many to be linear."""
    x, y = example
    hidden = jnp.tanh(x @ params["a"] + params["b"])
    hidden = activation(hidden @ params["c"] + params["d"])
    return jnp.mean((hidden @ params["e"] - y) ** 2)


@jax.tree_util.Partial
def _smooth_loss(params: Any, example: Any) -> jax.Array:
    return _network_loss(jax.nn.silu, params, example)


@jax.tree_util.Partial
def _relu_loss(params: Any, example: Any) -> jax.Array:
    return _network_loss(jax.nn.relu, params, example)


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

    return Case(matrices, operator, truth)


def network(cases: int, *, loss: Any = _smooth_loss, centred: bool = False) -> Case:
    """H, or Σ if `centred`, of small networks of 74 parameters after a few steps of descent."""
    operands, truth = _networks(cases, loss)
    make_operator = js.hessian_variance if centred else js.hessian

    def operator(operands: Any, precision: str) -> Any:
        return make_operator(loss, *operands, precision=precision)

    return Case(operands, operator, truth[int(centred)])


@functools.cache
def _networks(cases: int, loss: Any, steps: int = 60) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    """Parameters and data of networks, and the largest eigenvalues of H and of Σ."""

    def make(key: jax.Array) -> Any:
        keys = jax.random.split(key, 8)
        shapes = {"a": (5, 6), "b": (6,), "c": (6, 4), "d": (4,), "e": (4, 2)}
        scale = 10 ** jax.random.uniform(keys[6], (), minval=-0.5, maxval=0.3)
        params = {
            name: scale * jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys[:5], shapes.items())
        }
        data = jax.random.normal(keys[5], (EXAMPLES, 5)), jax.random.normal(keys[7], (EXAMPLES, 2))
        mean = lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, data))  # noqa: E731
        descend = lambda p, _: (  # noqa: E731
            jax.tree.map(lambda x, g: x - 0.02 * g, p, jax.grad(mean)(p)),
            None,
        )
        return jax.lax.scan(descend, params, length=steps)[0], data

    def moments(operands: Any) -> tuple[jax.Array, jax.Array]:
        params, data = operands
        flat, unravel = ravel_pytree(params)
        each = jax.vmap(lambda example: jax.hessian(lambda p: loss(unravel(p), example))(flat))(
            data
        )
        mean = jnp.mean(each, axis=0)
        return mean, jnp.mean(each @ each, axis=0) - mean @ mean

    operands = _compiled(jax.vmap(make), jax.random.split(jax.random.key(1), cases))
    operands = jax.tree.map(np.asarray, operands)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), operands)
        found = _compiled(lambda xs: jax.lax.map(moments, xs, batch_size=20), wide)
        matrices = [np.asarray(x) for x in found]
    tops = [np.linalg.eigvalsh((x + np.swapaxes(x, 1, 2)) / 2)[:, -1] for x in matrices]
    return operands, (tops[0], tops[1])


def _compile(function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """Compiles without the passes that pay for large problems only: a study is many small ones."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*args).compile(compiler_options=options)


def _compiled(function: Callable[..., Any], *args: Any) -> Any:
    return _compile(function, *args)(*args)


def solve(case: Case, setting: Setting, *, tol: float = TOL, max_matvecs: int = 60) -> Any:
    """Solves all cases on the emulated machine."""

    def one(operands: Any, key: jax.Array) -> Any:
        operator = case.operator(operands, setting.precision)
        if isinstance(operator, Operator):
            like, prepared = operator.params, operator.prepare()
            reference = dataclasses.replace(operator, precision="highest")
        else:  # a plain matvec: the solver itself sets the precision
            like, prepared, reference = jnp.zeros(operands.shape[-1:]), operator, operator
        run = lanczos(
            tol=tol,
            max_matvecs=max_matvecs,
            failure_probability=FAILURE,
            basis_size=BASIS,
            precision=setting.precision,
        )
        found = run(prepared, like, key=key, reference=reference if setting.ended else None)
        return found._replace(vector=None)

    keys = jax.random.split(jax.random.key(2), len(case.truth))
    cases = [jax.tree.map(lambda x, i=i: x[i], case.operands) for i in range(len(case.truth))]
    with mock.patch("jaxstab.eigen.lanczos.default_machine", lambda: setting.believed):
        run = _compile(emulation.emulate(one, setting.machine), cases[0], keys[0])
    found = [jax.device_get(run(operands, key)) for operands, key in zip(cases, keys)]
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
    "H, smooth networks": functools.partial(network, centred=False),
    "variance, smooth networks": functools.partial(network, centred=True),
    "H, ReLU networks": functools.partial(network, loss=_relu_loss, centred=False),
    "variance, ReLU networks": functools.partial(network, loss=_relu_loss, centred=True),
}


def run(settings: argparse.Namespace) -> list[Row]:
    """Share of intervals that hold the truth, for every problem and setting."""
    tiny, cases = settings.size == "tiny", CASES[settings.size]
    counts = Counts(settings.out / "bench_precision_counts.json", cases)
    rows = []
    for name, make in list(PROBLEMS.items())[: 1 if tiny else None]:
        for setting in SETTINGS[: 2 if tiny else None]:
            what = f"{name}; {setting.name}"
            found = counts.get(what, lambda: (make(cases), setting))  # noqa: B023
            rows.append(_row(what, found, stated(name, setting)))
            print(what, rows[-1].note, flush=True)
    return rows


def stated(problem: str, setting: Setting) -> float:
    """The share of intervals that has to hold the truth.

    The failures allowed over the start, twice, for luck. Of products that are coarse from end to
    end the certificate is about the network that they compute, which is not always near the one of
    float64: a ReLU may be on its other side.
    """
    coarse = setting.precision != "highest" or setting.name.startswith("silent")
    return COARSE if "networks" in problem and coarse and not setting.ended else 1 - 2 * FAILURE


def _row(what: str, found: Tally, least: float) -> Row:
    return Row(
        what,
        found.held,
        unit="",
        at_least=least,
        note=f"{found.missed_below} missed below, {found.missed_above} above; {found.converged} of "
        f"{found.cases} converged, {found.converged_wrongly} wrongly; median width "
        f"{found.width:.1e}, error {found.error:.1e}",
        details=found._asdict(),
    )


class Counts:
    """What has been counted, in a file that outlives an interruption."""

    def __init__(self, path: Path, cases: int) -> None:
        self.path, self.header = path, {"cases": cases, "code": _fingerprint()}
        self.found: dict[str, Any] = {}
        if path.exists():
            kept = files.read_json(path)
            if kept["header"] == self.header:
                self.found = kept["found"]

    def get(self, what: str, problem: Callable[[], tuple[Case, Setting]]) -> Tally:
        """Returns the tally of that name, counted now if it has not been."""
        if what not in self.found:
            case, setting = problem()
            self.found[what] = tally(case, solve(case, setting))._asdict()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, {"header": self.header, "found": self.found})
        return Tally(**self.found[what])


def _fingerprint() -> str:
    """A digest of the code that what is counted rests on."""
    package = Path(js.__file__).parent
    names = ("precision", "resolution", "emulation", "eigen/*")
    paths = [path for name in names for path in sorted(package.glob(f"{name}.py"))]
    digest = hashlib.sha256()
    for path in [*paths, Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    harness.main("bench_precision", run)
