"""The box of eq. 9, margins and verdicts, on hand-made measurements."""

import dataclasses
import itertools
import math
import re
from typing import NamedTuple

import numpy as np
import pytest

from jaxstab.stability import (
    LyapunovExponent,
    MeanSquareThreshold,
    box,
    margins,
    variance_factor,
    verdict,
)


class Span(NamedTuple):
    lower: float
    upper: float


class Eigen(NamedTuple):
    """The fields of an EigenResult that a verdict reads."""

    value: float
    interval: Span
    converged: bool = True
    vector: np.ndarray = np.zeros(5)


class Measured(NamedTuple):
    sharpness: Eigen
    nonuniformity: Eigen
    n: int = 100
    loss: float = 1e-5
    gradient_norm: float = 1e-4


def certified(value, width=0.0, converged=True, p=5):
    return Eigen(value, Span(value, value + width), converged, np.zeros(p))


def judge(a, s, *, eta=0.5, batch_size=4, p=5, **kwargs):
    found = Measured(certified(a, p=p), certified(s, p=p))
    return verdict(found, learning_rate=eta, batch_size=batch_size, **kwargs)


@pytest.mark.parametrize("n, batch_size", [(2, 1), (5, 1), (5, 2), (5, 4), (5, 5), (1, 1)])
def test_variance_factor_is_the_variance_over_all_batches(n, batch_size):
    values = np.random.default_rng(0).normal(size=n)
    means = [np.mean(batch) for batch in itertools.combinations(values, batch_size)]
    pi = variance_factor(n, batch_size)
    np.testing.assert_allclose(np.var(means), pi * np.var(values), atol=1e-15)
    means = [np.mean(batch) for batch in itertools.product(values, repeat=batch_size)]
    np.testing.assert_allclose(np.var(means), np.var(values) * variance_factor(n, batch_size, True))


def test_box_is_eq_9():
    found = box(0.1, 4, 100)
    assert found.sharpness == 20.0
    assert found.nonuniformity == pytest.approx(10 * math.sqrt(4 * 99 / 96))
    assert box(0.1, 100, 100).nonuniformity == math.inf
    assert box(0.1, 4, 100, replacement=True).nonuniformity == pytest.approx(20.0)
    assert box(0.1, 400, 100, replacement=True).nonuniformity == pytest.approx(200.0)


@pytest.mark.parametrize(
    "kwargs, error, words",
    [
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be finite and positive"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"batch_size": 101}, ValueError, "above the number of examples 100"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an integer"),
        ({"n": 0}, ValueError, "n must be at least 1"),
    ],
)
def test_box_refuses_what_cannot_be(kwargs, error, words):
    with pytest.raises(error, match=words):
        box(**{"learning_rate": 0.1, "batch_size": 4, "n": 100} | kwargs)


def test_margins_of_a_table():
    found = margins(
        [10.0, 30.0, -1.0, 10.0],
        [5.0, 5.0, 5.0, 50.0],
        learning_rate=0.1,
        batch_size=[4, 4, 4, 100],
        n=100,
    )
    np.testing.assert_allclose(found.sharpness, [0.5, -0.5, 1.05, 0.5])
    np.testing.assert_allclose(found.nonuniformity[:1], 1 - 5 / box(0.1, 4, 100).nonuniformity)
    assert found.nonuniformity[3] == 1.0  # B = n: no bound
    assert found.inside.tolist() == [True, False, False, True]


def test_inside_the_box_is_stable_by_criterion_with_margins():
    found = judge(3.0, 2.0)
    assert (found.status, found.basis) == ("stable", "criterion")
    assert found.sharpness_margin == pytest.approx(0.25)
    assert found.nonuniformity_margin == pytest.approx(1 - 2 / found.box.nonuniformity)
    assert "a = 3 in [3, 3] is below 2/eta = 4 by 25.00%" in str(found)
    assert str(found).startswith("stable (by the criterion of eq. 9) at learning rate 0.5")


def test_sharpness_above_its_bound_is_a_theorem_even_unconverged():
    assert (judge(4.4, 0.0).status, judge(4.4, 0.0).basis) == ("unstable", "theorem")
    found = verdict(
        Measured(certified(4.4, 9.0, converged=False), certified(0.0)),
        learning_rate=0.5,
        batch_size=100,
    )
    assert found.status == "unstable"
    assert "not converged (the value is a lower bound)" in found.reasons[0]


def test_nonuniformity_above_its_bound_is_a_criterion_not_a_proof():
    found = judge(3.0, 5.0)
    assert (found.status, found.basis) == ("unstable", "criterion")
    assert "not a proof of escape" in str(found)
    assert judge(3.0, 5.0, batch_size=100).status == "stable"  # GD does not see s


@pytest.mark.parametrize(
    "a, s",
    [
        (certified(3.0, converged=False), certified(1.0)),
        (certified(3.0), certified(1.0, converged=False)),
        (certified(3.9, 0.2), certified(1.0)),
        (certified(3.0), certified(4.0, 0.3)),
        (certified(math.nan), certified(1.0)),
        (certified(3.0), certified(math.nan)),
    ],
)
def test_a_measurement_that_cannot_tell_is_undecided(a, s):
    found = verdict(Measured(a, s), learning_rate=0.5, batch_size=4)
    assert (found.status, found.basis) == ("undecided", "none")
    text = str(found)
    assert "has not converged" in text or "straddles" in text or "not a number" in text


def test_one_parameter_is_decided_exactly_by_eq_8():
    # eta = 0.5, a = 3.9, B = 1: (1 - 1.95)^2 + 0.25 s^2 = 1 at s = 0.6245, well inside the box.
    assert judge(3.9, 0.7, batch_size=1).status == "stable"
    for s, status in [(0.62, "stable"), (0.63, "unstable")]:
        found = judge(3.9, s, batch_size=1, p=1)
        assert (found.status, found.basis) == (status, "theorem")
    wide = Measured(certified(3.9, p=1), Eigen(0.62, Span(0.62, 0.63), True, np.zeros(1)))
    assert verdict(wide, learning_rate=0.5, batch_size=1).status == "undecided"


@pytest.mark.parametrize(
    "growth, status, basis",
    [
        (certified(0.98, 0.01), "stable", "theorem"),
        (certified(0.98, 0.01, converged=False), "stable", "criterion"),
        (certified(1.0, 1e-3), "stable", "criterion"),
        (certified(1.2, 1e-3), "undecided", "none"),
    ],
)
def test_eq_8_by_its_eigenvalue(growth, status, basis):
    found = judge(3.0, 2.0, growth=growth)
    assert (found.status, found.basis) == (status, basis)
    assert "eq. 8" in found.reasons[-1]


@pytest.mark.parametrize(
    "threshold, status, basis",
    [
        (Span(0.6, 0.7), "stable", "theorem"),
        (Span(0.3, 0.4), "unstable", "theorem"),
        (Span(0.4, 0.7), "stable", "criterion"),
    ],
)
def test_the_exact_threshold_decides_where_it_is_known(threshold, status, basis):
    found = judge(3.0, 2.0, threshold=threshold)
    assert (found.status, found.basis) == (status, basis)


def test_a_point_with_a_gradient_is_no_minimum():
    found = verdict(
        Measured(certified(3.0), certified(1.0), gradient_norm=1.0),
        learning_rate=0.5,
        batch_size=4,
    )
    assert found.status == "undecided"
    assert "not a minimum" in found.reasons[0]
    unknown = Measured(certified(3.0), certified(1.0), gradient_norm=math.nan)
    assert verdict(unknown, learning_rate=0.5, batch_size=4).status == "undecided"


def test_a_maximum_is_unstable():
    found = judge(-1.0, 0.0)
    assert found.status == "undecided"  # its gradient cannot be judged against a negative a
    flat = Measured(certified(-1.0), certified(0.0), gradient_norm=0.0)
    assert verdict(flat, learning_rate=0.5, batch_size=4).status == "unstable"


@pytest.mark.parametrize("kind", ["cross_entropy", "kl"])
def test_cross_entropy_never_counts_as_stable(kind):
    found = judge(1e-3, 1e-3, loss_kind=kind)
    assert found.status == "undecided"
    assert "quadratic analysis does not apply" in found.reasons[0]
    assert judge(9.0, 1e-3, loss_kind=kind).status == "unstable"


def test_unknown_loss_kind_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cross_entropy'"):
        judge(1.0, 1.0, loss_kind="crossentropy")


def test_one_parameter_with_a_interval_across_one_over_eta():
    """(1 - eta a)^2 is smallest inside the interval, not at its ends: growth in [0.999, 1.0015]."""
    across = Eigen(1.9, Span(1.9, 2.1), True, np.zeros(1))
    found = Measured(across, certified(math.sqrt(4 * 0.999), p=1))
    assert verdict(found, learning_rate=0.5, batch_size=1).status == "undecided"


def known_threshold(**changes):
    """A chain as `mean_square_threshold` gives it, at B = 4 and B = n = 1,000."""
    chain = {"sharpest example": 0.8, "eq. 8": 0.9, "eq. 27": 2.0, "eq. 17": 6.0, "2/a": 6.5}
    fields = {
        "batch_sizes": np.array([4, 1000]),
        "value": np.array([1.8, 6.5]),
        "interval": Span(np.array([0.9, 6.5]), np.array([1.85, 6.5])),
        "converged": np.array([True, True]),
        "bounds": {name: np.array([bound, 6.5]) for name, bound in chain.items()},
        "n": 1000,
        "replacement": False,
    }
    unused = dict.fromkeys(
        f.name for f in dataclasses.fields(MeanSquareThreshold) if f.name not in fields
    )
    return MeanSquareThreshold(**{**unused, **fields, **changes})


def known_exponent(value):
    return LyapunovExponent(value, 0.001, 0.001, np.zeros(2), np.zeros(2))


@pytest.mark.parametrize(
    "eta, gamma, status, basis, statement, words",
    [
        (0.5, None, "stable", "theorem", "stable in mean square", "below sharpest example"),
        (0.85, None, "stable", "theorem", "stable in mean square", "below eq. 8"),
        (1.5, None, "stable", "estimate", "stable in mean square", "above its certified end 0.9"),
        (1.82, None, "stable", "criterion", "", r"within \[0.9, 1.85\]"),
        (1.9, None, "unstable", "theorem", "unstable in mean square", "above exact"),
        (
            2.1, -0.1, "unstable", "theorem",
            "unstable in mean square, stable almost surely (bursts)", "above eq. 27",
        ),
        (2.1, 0.1, "unstable", "theorem", "unstable almost surely", "almost every run grows"),
        (2.1, 0.0, "unstable", "theorem", "unstable in mean square", "not told apart from 0"),
    ],
)  # fmt: skip
def test_verdict_by_the_chain_of_bounds(eta, gamma, status, basis, statement, words):
    exponent = None if gamma is None else known_exponent(gamma)
    found = verdict(
        Measured(certified(0.3), certified(0.5), 1000),
        learning_rate=eta,
        batch_size=4,
        threshold=known_threshold(),
        exponent=exponent,
    )
    assert (found.status, found.basis, found.statement) == (status, basis, statement)
    assert re.search(words, str(found))
    order = ["sharpest example", "eq. 8", "exact", "eq. 27", "eq. 17", "2/a"]
    places = [str(found).index(f"{name} ") for name in order]
    assert places == sorted(places)


def test_above_the_edge_a_typical_run_may_still_decay():
    """As for h_i = 1 and 5 at η = 1, B = 1: the mean is 3 > 2/η, and E log|1 − ηh| = −∞."""
    found = verdict(
        Measured(certified(3.0), certified(1.0), 1000),
        learning_rate=1.0,
        batch_size=1,
        exponent=known_exponent(-0.1),
    )
    assert (found.status, found.basis) == ("unstable", "theorem")
    assert found.statement == "unstable in mean square, stable almost surely (bursts)"


def test_an_unconverged_threshold_decides_nothing_between_its_ends():
    loose = known_threshold(converged=np.array([False, True]))
    found = verdict(
        Measured(certified(0.3), certified(0.5), 1000),
        learning_rate=1.5,
        batch_size=4,
        threshold=loose,
    )
    assert (found.basis, found.statement) == ("criterion", "")


def test_a_threshold_of_another_problem_is_refused():
    with pytest.raises(ValueError, match="the threshold is for n = 1000"):
        verdict(
            Measured(certified(0.3), certified(0.5), 500),
            learning_rate=1.0, batch_size=4, threshold=known_threshold(),
        )  # fmt: skip
    with pytest.raises(ValueError, match="no threshold for batch size 7"):
        verdict(
            Measured(certified(0.3), certified(0.5), 1000),
            learning_rate=1.0,
            batch_size=7,
            threshold=known_threshold(),
        )
