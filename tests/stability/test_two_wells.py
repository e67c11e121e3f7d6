"""The two-well problem: its curvatures, its predictions, and where runs end."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxstab.stability import two_wells


def test_the_losses_have_the_second_derivatives_of_the_note(x64):
    near = np.array([1 - 1e-3, 1, 1 + 1e-3])
    for coefficient, second in zip(two_wells.COEFFICIENTS, two_wells.CURVATURES[1], strict=True):
        values = np.asarray(two_wells.loss(near, coefficient))
        assert values @ [1, -2, 1] / 1e-6 == pytest.approx(second, rel=1e-6)
    for x in 1 + two_wells.RADIUS * np.array([-1, 1]):
        for c in two_wells.COEFFICIENTS:
            assert two_wells.loss(x, c) == pytest.approx(c * (x - 1) ** 2)
    x = np.linspace(-1, 2, 7)
    both = [np.asarray(two_wells.loss(x, c)) for c in two_wells.COEFFICIENTS]
    np.testing.assert_allclose(two_wells.mean_loss(x), np.mean(both, 0), atol=1e-15)


def test_predictions_depend_on_the_learning_rate():
    fast, slow = (two_wells.predict(1, learning_rate=eta) for eta in (0.7, 0.3))
    assert fast.growth == pytest.approx((1 - 1.4) ** 2 + 0.49 * 1.8**2)  # a = 2, s = 1.8
    assert fast.growth > 1 and fast.exponent > 0
    assert slow.growth < 1 and slow.exponent < 0
    assert two_wells.predict(0, learning_rate=0.7).growth == pytest.approx(0.16)  # s = 0


def test_sgd_leaves_one_and_stays_at_zero():
    options = {"offset": 1e-5, "learning_rate": 0.7, "steps": 300, "key": jax.random.key(0)}
    leaving = two_wells.simulate(1, runs=50, batch_size=1, **options)
    assert leaving.shape == (50, 301) and leaving.dtype == np.float64
    assert np.abs(leaving[:, -1]).max() < 1e-3 and np.isfinite(two_wells.first_exit(leaving)).all()
    staying = two_wells.simulate(0, runs=50, batch_size=1, **options)
    assert np.abs(staying[:, -1]).max() < 1e-3
    descent = two_wells.simulate(1, runs=2, batch_size=2, **options)
    assert np.abs(descent[:, -1] - 1).max() < 1e-3 and np.isnan(two_wells.first_exit(descent)).all()
    np.testing.assert_allclose(descent[:, 0], [1 - 1e-5, 1 + 1e-5])


def test_squares_grow_as_predicted():
    options = {"offset": 1e-5, "learning_rate": 0.7, "steps": 5, "key": jax.random.key(1)}
    mean, error = two_wells.mean_growth(
        two_wells.simulate(1, runs=5000, batch_size=1, **options), 1
    )
    theory = two_wells.predict(1, learning_rate=0.7).growth ** np.arange(6)
    assert mean[0] == 1 and error[0] == 0
    # five standard errors: a false alarm in 1e-6 of seeds
    assert np.all(np.abs(mean - theory)[1:] < 5 * error[1:]) and error[-1] < 0.1 * mean[-1]


def test_import_starts_no_backend():
    code = (
        "import jaxstab.stability.two_wells, jaxstab.experiments, jax._src.xla_bridge as bridge;"
        "assert not bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "changes", [{"learning_rate": 0.0}, {"batch_size": 3}, {"steps": 0}, {"offset": -1.0}]
)
def test_wrong_input_is_refused(changes):
    options = {"offset": 0.1, "runs": 2, "learning_rate": 0.7, "batch_size": 1, "steps": 2}
    with pytest.raises(ValueError, match=next(iter(changes))):
        two_wells.simulate(1, **options | changes, key=jax.random.key(0))
