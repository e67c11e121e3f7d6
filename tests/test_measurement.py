"""A measurement as one flat record, and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import measurement
from jaxstab.measurement import RECORD_NAMES, Measurement, measure, nonuniformity, sharpness

CURVATURES = jnp.array([1.0, 3.0, 5.0])


def loss(x, curvature):
    return curvature * x**2 / 2


def test_a_record_has_plain_scalars_and_gives_the_measurement_back():
    found = measure(loss, jnp.array(0.5), CURVATURES, key=jax.random.key(0))
    record = found.to_record()
    assert tuple(record) == RECORD_NAMES
    assert {type(value) for value in record.values()} == {int, float, bool}
    assert (record["n"], record["sharpness_converged"]) == (3, True)
    assert record["sharpness"] == pytest.approx(3.0, rel=1e-5)
    assert record["nonuniformity"] == pytest.approx(math.sqrt(8 / 3), rel=1e-5)
    again = Measurement.from_record(record | {"seed": 7})
    assert again.sharpness.vector is None and again.to_record() == record
    assert again.nonuniformity.interval.upper == float(found.nonuniformity.interval.upper)
    assert again.sharpness.summary == found.sharpness.summary


def test_records_are_traced_where_the_measurement_is():
    def sharpest(x):
        return measure(loss, x, CURVATURES, key=jax.random.key(0)).to_record()

    records = jax.vmap(sharpest)(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(records["loss"], [0.375, 1.5], rtol=1e-6)
    assert records["sharpness_matvecs"].shape == (2,)


def test_what_a_record_lacks_is_named():
    record = measure(loss, jnp.array(0.5), CURVATURES, key=jax.random.key(0)).to_record()
    del record["n"]
    with pytest.raises(ValueError, match="it lacks n; give a row of a sweep that measures"):
        Measurement.from_record(record)
    assert Measurement.from_record(record, n=3).n == 3
    with pytest.raises(ValueError, match="it lacks loss, gradient_norm, sharpness"):
        Measurement.from_record({"n": 3})


def test_arguments_are_judged_before_the_loss():
    """A loss of NaN is not what the first error is about."""
    unlucky = lambda x, curvature: loss(x, curvature) * jnp.nan  # noqa: E731
    problem, key = (unlucky, jnp.array(0.5), CURVATURES), jax.random.key(0)
    with pytest.raises(ValueError, match="method"):
        measure(*problem, key=key, method="factor")
    with pytest.raises(ValueError, match="tol"):
        measure(*problem, key=key, tol=0.0)
    with pytest.raises(ValueError, match="data holds 1 values that are NaN"):
        measure(*problem[:2], CURVATURES.at[1].set(jnp.nan), key=key)
    with pytest.raises(ValueError, match="the loss at params is nan"):
        measure(*problem, key=key)


def decayed(params, example):
    """A small network with weight decay, whose Hessian is that of all examples alike."""
    x, y = example
    decay = 0.1 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return (jnp.tanh(x @ params["w"]) @ params["v"] - y) ** 2 + decay


@pytest.mark.slow
def test_one_program_for_both_gives_what_each_of_two_does(x64):
    draw = np.random.default_rng(0).standard_normal
    params = {"w": jnp.asarray(draw((3, 4))), "v": jnp.asarray(draw(4))}
    data = draw((11, 3)), draw(11)
    keys = jax.random.split(jax.random.key(1))
    common = {"tol": 1e-8, "chunk_size": 4}
    a = sharpness(decayed, params, data, key=keys[0], **common)
    s = nonuniformity(decayed, params, data, key=keys[1], **common)
    compiled = measurement._largest_of_both._cache_size()
    for tol, options in ((1e-8, {}), (1e-3, {}), (1e-8, {"nonuniformity_v0": s.vector})):
        common["tol"] = tol
        found = measure(decayed, params, data, key=jax.random.key(1), **common, **options)
        for got, expected in ((found.sharpness, a), (found.nonuniformity, s)):
            np.testing.assert_allclose(got.value, expected.value, rtol=tol)
            assert got.converged and got.interval.lower <= expected.value <= got.interval.upper
            if not options:  # as many products, and not more for a tolerance that is looser
                assert int(got.matvecs) <= int(expected.matvecs)
    # one for both cold solves, whatever the tolerance, and one for the warm one
    assert measurement._largest_of_both._cache_size() == compiled + 2


def test_a_start_that_is_no_vector_of_parameters_is_refused():
    with pytest.raises(ValueError, match="nonuniformity_v0 has shape"):
        start = jnp.zeros(2)
        measure(loss, jnp.array(0.5), CURVATURES, key=jax.random.key(0), nonuniformity_v0=start)
