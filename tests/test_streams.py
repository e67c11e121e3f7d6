"""Which functions take data that stay on the host, and that the others say so at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxstab as js
from jaxstab import landscape, losses, operators, stability
from jaxstab.stability import batch_sharpness, edges, escape

KEY = jax.random.key(0)
V = {"w": jnp.array([0.3, -0.2])}
X = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
DATA = X, (X @ np.array([1.0, -1.0]) + 0.1).astype(np.float32)
HALVES = {"chunk_size": 3}


def loss(params, example):
    x, y = example
    return 0.5 * (jnp.tanh(x @ params["w"]) - y) ** 2


def tracked(data, **options):
    tracker = js.tracker(loss, key=KEY, every=1, **options)
    return tracker.update(tracker.init(V), V, data)[1].sharpness.value


TAKEN = {
    "hessian": lambda d: js.hessian(loss, V, d, **HALVES)(V),
    "per_example_hessian": lambda d: js.per_example_hessian(loss, V, d, **HALVES)(V),
    "hessian_second_moment": lambda d: js.hessian_second_moment(loss, V, d, **HALVES)(V),
    "hessian_variance": lambda d: js.hessian_variance(loss, V, d, **HALVES)(V),
    "hessian_variance, gauss_newton": lambda d: js.hessian_variance(
        loss, V, d, method="gauss_newton", **HALVES
    )(V),
    "hessian_variance, vmap": lambda d: js.hessian_variance(loss, V, d, method="vmap", **HALVES)(V),
    "gradient_covariance": lambda d: js.gradient_covariance(loss, V, d, **HALVES)(V),
    "gradient_covariance_spectrum": lambda d: operators.gradient_covariance_spectrum(
        loss, V, d, **HALVES
    ),
    "explain": lambda d: len(js.explain(loss, V, d)),
    "measure": lambda d: js.measure(loss, V, d, key=KEY, **HALVES).sharpness.value,
    "sharpness": lambda d: js.sharpness(loss, V, d, key=KEY, **HALVES).value,
    "nonuniformity": lambda d: js.nonuniformity(loss, V, d, key=KEY, **HALVES).value,
    "noise_alignment": lambda d: operators.noise_alignment(loss, V, d, key=KEY, **HALVES)[0],
    "per_example_sharpness": lambda d: operators.per_example_sharpness(loss, V, d, key=KEY),
    "gauss_newton_difference": lambda d: operators.gauss_newton_difference(
        loss, V, d, key=KEY, **HALVES
    )[0],
    "per_example_gradient_norms": lambda d: operators.per_example_gradient_norms(
        loss, V, d, **HALVES
    ),
    "gradient_covariance_trace": lambda d: operators.gradient_covariance_trace(
        loss, V, d, **HALVES
    ),
    "per_example_hessian_norms": lambda d: operators.per_example_hessian_norms(
        loss, V, d, V, **HALVES
    ),
    "per_example_deviations": lambda d: operators.per_example_deviations(loss, V, d, V, **HALVES),
    "hessian_frobenius": lambda d: operators.hessian_frobenius(loss, V, d, key=KEY, **HALVES)[0],
    "directional_curvatures": lambda d: operators.directional_curvatures(loss, V, d, V, **HALVES),
    "mean_square_threshold": lambda d: (
        js.mean_square_threshold(loss, V, d, batch_sizes=[1, 4], key=KEY).value
    ),
    "tracker": lambda d: tracked(d, **HALVES),
    "preconditioned_sharpness": lambda d: (
        edges.preconditioned_sharpness(loss, V, d, {"w": jnp.ones(2)}, key=KEY).value
    ),
    "directions": lambda d: landscape.directions(V, kind="hessian", key=KEY, loss=loss, data=d),
    "noisy_minimum": lambda d: stability.diffusion.noisy_minimum(loss, V, d, rank=1, key=KEY)[0],
    "slice": lambda d: (
        landscape.slice(loss, V, d, direction=V, positions=[-1.0, 1.0], **HALVES).loss
    ),
    "plane": lambda d: (
        landscape.plane(loss, V, d, directions={"w": jnp.eye(2)}, x=[0.0], y=[1.0]).loss
    ),
    "derivatives": lambda d: landscape.derivatives(loss, V, d, direction=V, **HALVES)[0],
    "simplex": lambda d: (
        landscape.simplex(loss, [V, {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}], d, resolution=2).loss
    ),
    "output_factors": lambda d: operators.output_factors(loss, V, d, **HALVES).roots,
}

REFUSED = {
    "train": lambda d: js.train(
        loss, V, d, optimizer=optax.sgd(0.1), batch_size=2, key=KEY, max_steps=3
    ),
    "sweep": lambda d: js.sweep(
        loss, lambda key, scale: V, d, optimizer=optax.sgd, learning_rates=[0.1], batch_sizes=[2],
        seeds=[0], max_steps=3,
    ),
    "tracker with batch_size": lambda d: tracked(d, batch_size=2),
    "batch_sharpness": lambda d: batch_sharpness.batch_sharpness(loss, V, d, batch_size=2, key=KEY),
    "lyapunov_exponent": lambda d: js.lyapunov_exponent(
        loss, V, d, learning_rate=0.1, batch_size=2, key=KEY
    ),
    "langevin_chains": lambda d: landscape.langevin_chains(
        loss, V, d, learning_rate=0.1, temperature=0.1, draws=2, key=KEY, batch_size=2
    ),
    "gradient_noise": lambda d: landscape.gradient_noise(
        loss, V, d, batch_sizes=[2], batches=3, key=KEY
    ),
    "flatness_radius": lambda d: landscape.flatness_radius(loss, V, d, eps=0.1, key=KEY),
    "stochastic_gap": lambda d: edges.stochastic_gap(
        loss, V, d, V, learning_rate=0.1, batch_size=2
    ),
    "slices": lambda d: escape.slices(loss, V, d, [V]),
    "accuracy": lambda d: losses.accuracy(loss, V, d),
    "check_examples_independent": lambda d: losses.check_examples_independent(
        lambda params, data: jnp.mean(jax.vmap(loss, (None, 0))(params, data)), loss, V, d
    ),
}  # fmt: skip


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)


# Each compiles two programs: one for each way of reading is tested often, all by hand.
OFTEN = {
    "hessian", "hessian_variance", "gradient_covariance", "explain", "per_example_gradient_norms",
    "directional_curvatures", "slice", "output_factors",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in OFTEN else pytest.mark.study) for n in TAKEN],
)
def test_streamed_data_are_taken_as_arrays_are(name):
    call = TAKEN[name]
    assert difference(call(js.data.stream(DATA)), call(DATA)) < 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_arrays_says_so(name):
    with pytest.raises(ValueError, match=rf"^{name} takes data as arrays, not js.data.stream: "):
        REFUSED[name](js.data.stream(DATA))
