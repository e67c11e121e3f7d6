"""Every public function that evaluates a user's loss asks for a precision, and is given it."""

import importlib
import inspect
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxstab as js
import jaxstab.measurement
import jaxstab.tracking

KEY = jax.random.key(0)
W, X = jnp.ones((2, 2)), jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)
SEEN = set()

HOMES = ("jaxstab", *(f"jaxstab.{name}" for name in ["operators", "landscape", "stability"]))
WITHOUT = {
    "train": "the user's own training, at whatever JAX is set to",
    "langevin_chains": "as training",
    "explain": "evaluates nothing, and says what the model asks for itself",
    "directions": "its loss evaluates nothing",
    "mean_square_threshold": "both its ends are certain in full float32 only",
    "output_factors": "what that threshold rests on",
    "per_example_sharpness": "as output_factors, and certified of the full Hessians",
    "measure_population": "its interval is one of full float32",
}
LOW = {"precision": "default"}
ops, land = js.operators, js.landscape
CALLS = {
    "hessian": lambda loss: js.hessian(loss, W, X, **LOW)(W),
    "per_example_hessian": lambda loss: js.per_example_hessian(loss, W, X, **LOW)(W),
    "hessian_second_moment": lambda loss: js.hessian_second_moment(loss, W, X, **LOW)(W),
    "hessian_variance": lambda loss: js.hessian_variance(loss, W, X, **LOW)(W),
    "gradient_covariance": lambda loss: js.gradient_covariance(loss, W, X, **LOW)(W),
    "sharpness": lambda loss: js.sharpness(loss, W, X, key=KEY, **LOW),
    "nonuniformity": lambda loss: js.nonuniformity(loss, W, X, key=KEY, **LOW),
    "measure": lambda loss: js.measure(loss, W, X, key=KEY, **LOW),
    "tracker": lambda loss: track(js.tracker(loss, key=KEY, every=1, **LOW)),
    "sweep": lambda loss: js.sweep(loss, lambda key, scale: W, X, optimizer=optax.sgd, **SWEEP),
    "lyapunov_exponent": lambda loss: js.lyapunov_exponent(
        loss, W, X, learning_rate=0.1, batch_size=2, key=KEY, chains=2, steps=4, every=1, **LOW
    ),
    "gradient_covariance_spectrum": lambda loss: ops.gradient_covariance_spectrum(
        loss, W, X, **LOW
    ),
    "gradient_covariance_trace": lambda loss: ops.gradient_covariance_trace(loss, W, X, **LOW),
    "noise_alignment": lambda loss: ops.noise_alignment(loss, W, X, key=KEY, probes=3, **LOW),
    "gauss_newton_difference": lambda loss: ops.gauss_newton_difference(
        loss, W, X, key=KEY, probes=2, **LOW
    ),
    "hessian_frobenius": lambda loss: ops.hessian_frobenius(loss, W, X, key=KEY, probes=2, **LOW),
    "per_example_gradient_norms": lambda loss: ops.per_example_gradient_norms(loss, W, X, **LOW),
    "per_example_hessian_norms": lambda loss: ops.per_example_hessian_norms(loss, W, X, W, **LOW),
    "per_example_deviations": lambda loss: ops.per_example_deviations(loss, W, X, W, **LOW),
    "directional_curvatures": lambda loss: ops.directional_curvatures(loss, W, X, W, **LOW),
    "slice": lambda loss: land.slice(loss, W, X, direction=W, positions=[0.0, 1.0], **LOW),
    "derivatives": lambda loss: land.derivatives(loss, W, X, direction=W, **LOW),
    "plane": lambda loss: land.plane(
        loss, W, X, directions=jnp.stack([W, -W]), x=[0.0], y=[0.0, 1.0], **LOW
    ),
    "simplex": lambda loss: land.simplex(loss, [W, -W, 2 * W], X, resolution=1, **LOW),
    "flatness_radius": lambda loss: land.flatness_radius(loss, W, X, eps=0.1, key=KEY, **LOW),
    "gradient_noise": lambda loss: land.gradient_noise(
        loss, W, X, batch_sizes=(2,), batches=2, key=KEY, **LOW
    ),
    "expected_shifted_loss": lambda loss: land.expected_shifted_loss(
        lambda w: loss(w, X[0]), W, directions=W[None], shift=1.0, **LOW
    ),
}
SWEEP = {"learning_rates": [0.1], "batch_sizes": [2], "seeds": [0], "max_steps": 2, **LOW}
SOLVERS = ("sharpness", "nonuniformity", "measure", "tracker", "sweep")


def track(tracker):
    return tracker.update(tracker.init(W), W, X)


def spy(w, x):
    """A loss of two layers that notes the precision at which it is traced."""
    SEEN.add(jax.config.jax_default_matmul_precision)
    return jnp.sum((w @ jnp.tanh(w @ x) - x) ** 2)


def functions_of_a_loss():
    found = {}
    for home in HOMES:
        module = importlib.import_module(home)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and "loss" in inspect.signature(value).parameters:
                found[name] = value
    return found


def test_none_is_forgotten():
    found = functions_of_a_loss()
    assert set(CALLS) | set(WITHOUT) == set(found)
    assert not set(CALLS) & set(WITHOUT)
    for name, function in found.items():
        parameter = inspect.signature(function).parameters.get("precision")
        assert (parameter is None) == (name in WITHOUT), name
        if parameter is not None:
            assert parameter.default == "highest", name
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name


@pytest.fixture
def traced_only(monkeypatch):
    """In place of a solve, whose compilation takes seconds: its products are only traced."""

    def lanczos(*, precision="highest", **options):
        def solve(matvec, like, *, key, v0=None, reference=None, tol=None):
            SEEN.add(precision)
            for operator in (matvec, reference):
                if operator is not None:
                    jax.eval_shape(operator, like)
            zero = jnp.zeros(())
            ends = js.eigen.Interval(zero, zero)
            return js.EigenResult(zero, like, zero, ends, jnp.int32(0), jnp.array(True))

        return solve

    for module in (jaxstab.measurement, jaxstab.tracking):
        monkeypatch.setattr(module, "lanczos", lanczos)


SLOW = ("tracker", "sweep", "lyapunov_exponent")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CALLS]
)
def test_the_loss_is_traced_at_the_precision_given(name, request):
    if name in SOLVERS:
        request.getfixturevalue("traced_only")
    SEEN.clear()
    CALLS[name](lambda w, x: spy(w, x))  # a new function: nothing of it is compiled yet
    assert "default" in SEEN
    assert ("highest" in SEEN) == (name in SOLVERS)


@pytest.mark.parametrize("name", CALLS)
def test_other_names_are_refused(name):
    double = {"precision": "double"}
    refused = pytest.raises(ValueError, match="unknown precision 'double': known are")
    with mock.patch.dict(LOW, double), mock.patch.dict(SWEEP, double), refused:
        CALLS[name](spy)
