"""Certificates when products are coarser than float32, and when nobody says that they are."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bench_precision as study
from jaxstab import emulation
from jaxstab.eigen import lanczos, power_iteration, rounding
from jaxstab.resolution import Resolution

KEY = jax.random.key(0)
VALUES = np.r_[3, np.linspace(-1, 2.5, 47)]


@pytest.fixture
def matrix(spectrum):
    return jnp.asarray(spectrum(VALUES), jnp.float32)


def emulated(a, machine, solver, *, believed="cpu", reference=False, **options):
    """The solver's answer for v ↦ a v on an emulated machine."""

    def solve(a):
        like, matvec = jnp.zeros(len(a)), lambda v: a @ v
        extra = {"reference": matvec} if reference else {}
        return solver(**options)(matvec, like, key=KEY, **extra)

    with mock.patch(f"jaxstab.eigen.{solver.__module__.split('.')[-1]}.default_machine") as name:
        name.return_value = believed
        return emulation.emulate(solve, machine)(a)


def truth(a):
    return np.linalg.eigvalsh(np.asarray(a, np.float64))[-1]


def test_the_model_grows_with_roundoff_depth_and_terms():
    from jaxstab.eigen import vectors

    sig = vectors.signature(jnp.zeros(3))
    plain = rounding.model(sig, Resolution(2**-24, 0, 0))
    assert plain.factor == 16 * 2**-24
    assert rounding.model(sig, Resolution(2**-8, 4, 0)).factor == 16 * 2**-24 + 64 * 2**-8
    assert rounding.model(sig, Resolution(2**-24, 0, 100)).factor == 26 * 2**-24
    coarse = vectors.signature(jnp.zeros(3, jnp.bfloat16))
    assert rounding.model(coarse, Resolution(2**-24, 0, 0)).unit == 2**-8


def test_solvers_ask_for_full_float32_of_any_matvec(matrix):
    """On a machine whose default is bfloat16, with nothing said about precision."""
    for solver in (lanczos, power_iteration):
        result = emulated(matrix, emulation.TPU, solver, believed="tpu", max_matvecs=400)
        assert result.converged and result.rounding.unit == np.float32(2**-22)
        assert abs(float(result.value) - truth(matrix)) < 1e-3 * 3


def test_coarse_products_are_read_and_said(matrix):
    """Left at JAX's setting and without a reference, the interval is as wide as the model."""
    result = emulated(matrix, emulation.TPU, lanczos, believed="tpu", precision=None)
    assert result.rounding.unit == np.float32(2**-8) and not result.converged
    assert result.rounding.allowed > 32 * 2**-8 * 2.5
    assert result.interval.lower <= truth(matrix) <= result.interval.upper
    assert result.matvecs < 40  # the budget of 200 buys nothing below the noise


def test_reference_gives_value_and_lower_end(matrix):
    """Krylov in bfloat16, its end in float32: errors of the value are quadratic."""
    options = {"precision": "default", "reference": True}
    result = emulated(matrix, emulation.TPU, lanczos, believed="tpu", **options)
    true = truth(matrix)
    assert 1 < result.rounding.checks <= 9 and result.rounding.unit == np.float32(2**-22)
    assert result.interval.lower <= true <= result.interval.upper
    assert true - float(result.interval.lower) < 1e-4 < float(result.interval.upper) - true
    # a vector off by the unit of bfloat16 gives a value off by its square
    assert abs(float(result.value) - true) < 2.0**-16 * true
    assert result.rounding.seen > 1e-4  # the difference of the two kinds of products
    rounded = np.asarray(emulation.BFLOAT16.round(matrix), np.float64)
    assert np.linalg.norm(rounded - np.asarray(matrix, np.float64), 2) < result.rounding.difference
    assert not result.converged


def test_products_coarser_than_they_say_widen_the_interval(matrix):
    """The jaxpr says float32; the machine does TF32 whatever it is asked for."""
    machine = emulation.always(emulation.TF32)
    honest = emulated(matrix, emulation.always(emulation.FLOAT32), lanczos)
    silent = emulated(matrix, machine, lanczos)
    assert honest.converged and honest.rounding.allowed < 2e-5
    assert silent.rounding.seen > 20 * honest.rounding.seen
    assert not silent.converged and silent.rounding.allowed > 1e-3
    assert silent.interval.lower <= truth(matrix) <= silent.interval.upper


def test_several_eigenvalues_are_each_measured(matrix):
    result = lanczos(k=3, max_matvecs=300)(
        jax.tree_util.Partial(jnp.dot, matrix), matrix[0], key=KEY
    )
    assert result.converged.all() and result.rounding.checks == 3
    np.testing.assert_allclose(result.value, np.sort(VALUES)[::-1][:3], rtol=1e-4)


def named(name):
    return next(setting for setting in study.SETTINGS if setting.name == name)


SAMPLE = {
    "dense": "bfloat16, 3 passes, ended in float32",
    "H, smooth networks": "TF32",
    "H, ReLU networks": "bfloat16, ended in float32",
}


@pytest.mark.parametrize("problem", SAMPLE)
def test_sample_of_the_study(problem):
    check(problem, named(SAMPLE[problem]), 10)


@pytest.mark.study
@pytest.mark.parametrize("setting", study.SETTINGS, ids=lambda s: s.name)
@pytest.mark.parametrize("problem", study.PROBLEMS)
def test_a_thousand_cases(problem, setting):
    check(problem, setting, 1000)


def check(problem, setting, cases):
    case = study.PROBLEMS[problem](cases)
    found = study.tally(case, study.solve(case, setting))
    assert found.held >= study.stated(problem, setting), found
    assert found.converged_wrongly == 0, found
