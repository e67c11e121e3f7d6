"""Definitions 1 and 3 of He, Huang, Yuan (2019) on functions with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxstab.landscape import (
    Slice,
    asymmetry,
    between,
    bump,
    flat_side,
    is_asymmetric,
    longest_asymmetry,
    probability,
    shift_gap,
    slice,
)

ZETA, RADIUS, SLOPE, RATIO = 0.3, 2.0, 0.5, 3.0


def valley(w, scale):
    """In one dimension: symmetric within ζ, ratio c between ζ and r, symmetric again beyond r."""

    def side(l, slope):
        inner, middle = jnp.minimum(l, ZETA), jnp.clip(l, ZETA, RADIUS) - ZETA
        return inner + slope * middle + 4.0 * jnp.maximum(l - RADIUS, 0)

    return scale * jnp.where(w > 0, side(w, SLOPE), side(-w, RATIO * SLOPE))


def line(sign=1.0):
    positions = jnp.asarray(np.arange(-2.95, 3, 0.1))  # none at a kink
    return slice(
        valley,
        jnp.array(0.0),
        jnp.ones(1),
        direction=jnp.array(sign),
        positions=positions,
        derivatives=1,
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_c_is_the_known_one_up_to_the_known_radius(sign):
    found = asymmetry(line(sign), zeta=ZETA)
    within = np.asarray(found.r) < RADIUS - 1e-3
    np.testing.assert_allclose(found.p[within], SLOPE, rtol=1e-6)
    np.testing.assert_allclose(found.c[within], RATIO, rtol=1e-6)
    assert set(np.asarray(found.flat_side[within]).tolist()) == {sign}
    # beyond r the flat side rises by 4, the sharp one by 1.5 at least: to no side
    beyond = np.asarray(found.r) > RADIUS
    np.testing.assert_array_equal(found.c[beyond], 1.0)
    np.testing.assert_array_equal(found.flat_side[beyond], 0)


def test_with_zeta_within_the_symmetric_part_nothing_is_asymmetric():
    found = asymmetry(line(), zeta=0.0)
    np.testing.assert_array_equal(found.c, 1.0)


def test_thresholds_are_strict():
    found = asymmetry(line(), zeta=ZETA)
    assert bool(is_asymmetric(found, r=1.9, c=RATIO - 1e-3))
    assert not bool(is_asymmetric(found, r=1.9, c=RATIO + 1e-3))
    assert bool(is_asymmetric(found, r=1.9, c=2, p=SLOPE + 0.01))
    assert not bool(is_asymmetric(found, r=1.9, c=2, p=SLOPE - 0.01))  # slope not below p
    assert not bool(is_asymmetric(found, r=1.9, c=2, p=0.8))  # sharp side not above c p
    assert not bool(is_asymmetric(found, r=3.0, c=2))
    with pytest.raises(ValueError, match="c must be above 1"):
        is_asymmetric(found, r=1.0, c=1.0)
    with pytest.raises(ValueError, match="below the smallest radius"):
        is_asymmetric(found, r=0.3, c=2.0)


def by_definition(positions, slope, r, p, c, zeta, sign):
    inside = [l for l in positions if zeta < l <= r + 1e-6]
    at = {round(float(l), 4): float(s) for l, s in zip(positions, slope)}
    return all(
        sign * at[round(sign * l, 4)] < p and -sign * at[round(-sign * l, 4)] > c * p
        for l in map(float, inside)
    )


@pytest.mark.parametrize("seed", range(3))
def test_what_it_returns_is_exactly_the_set_of_the_definition(seed):
    """Every (r, p, c) of a fine grid, on random slopes of both signs, against the definition."""
    rng = np.random.default_rng(seed)
    positions = np.arange(-6, 7) / 4
    slope = np.sign(positions) * (0.6 + rng.standard_normal(13)) * (1 + (positions < 0))
    curve = Slice(jnp.asarray(positions), jnp.zeros(13), slope=jnp.asarray(slope))
    found = asymmetry(curve, zeta=0.25)
    held = 0
    for i, r in enumerate(np.asarray(found.r)):
        for p in (0.05, 0.4, 0.9, 2.0):
            for c in (1.05, 1.5, 3.0):
                wanted = any(
                    by_definition(positions, slope, r, p, c, 0.25, sign) for sign in (1, -1)
                )
                ours = bool(is_asymmetric(found, r=float(r), c=c, p=p))
                assert ours == wanted, (r, p, c)
                held += wanted
        assert found.p[i] >= 0 and found.c[i] >= 1
    assert held > 0


@pytest.mark.slow
def test_the_longest_interval_is_found_by_trying_all():
    """Against all pairs (ζ, r) on random slopes, several directions at once."""
    rng = np.random.default_rng(5)
    positions = np.arange(-6, 7) / 4
    slope = np.sign(positions) * rng.uniform(0.2, 3, (4, 13)) * (1 + (positions < 0))
    line = Slice(jnp.asarray(positions), jnp.zeros((4, 13)), slope=jnp.asarray(slope))
    found = longest_asymmetry(line, c=1.5)
    lengths = np.zeros(4)
    for zeta in (0.0, *positions[7:-1]):
        curve = asymmetry(line, zeta=zeta)
        for i, r in enumerate(np.asarray(curve.r)):
            lengths = np.maximum(lengths, np.where(curve.c[:, i] > 1.5, r - zeta, 0))
    np.testing.assert_allclose(found.r - found.zeta, lengths, atol=1e-6)
    assert (lengths > 0).any() and ((lengths > 0) == (np.asarray(found.flat_side) != 0)).all()
    one = longest_asymmetry(Slice(line.positions, line.loss[1], slope=line.slope[1]), c=1.5)
    assert float(one.r - one.zeta) == pytest.approx(lengths[1], abs=1e-6)
    known = longest_asymmetry(globals()["line"](), c=2.9)
    assert float(known.zeta) == pytest.approx(0.25, abs=1e-5)
    assert float(known.r) == pytest.approx(1.95, abs=1e-5)


def test_bumps_lie_between_and_above_both_ends():
    l = jnp.linspace(-1, 2, 31)
    curves = jnp.stack([l, (l - 0.5) ** 2, 1 - 4 * (l - 0.5) ** 2, 100 * (l > 1.5)])
    np.testing.assert_allclose(bump(Slice(l, curves)), [0, 0, 1, 0], atol=1e-5)
    with pytest.raises(ValueError, match="make it longer"):
        bump(Slice(l, l), between=(0.0, 3.0))


def test_many_directions_at_once():
    lines = [line(1.0), line(-1.0)]
    together = Slice(lines[0].positions, *(jnp.stack(x) for x in zip(*[x[1:3] for x in lines])))
    found = asymmetry(together, zeta=ZETA)
    assert found.c.shape == (2, found.r.size)
    np.testing.assert_array_equal(found.flat_side[:, 5], [1, -1])


def test_probability_is_clopper_pearson():
    for successes, total in ((0, 7), (3, 10), (7, 7)):
        found = probability([True] * successes + [False] * (total - successes))
        theirs = scipy.stats.binomtest(successes, total).proportion_ci(0.95, method="exact")
        np.testing.assert_allclose(found[:3], (successes / total, *theirs), atol=1e-9)
    with pytest.raises(ValueError, match="number of outcomes must be at least 1"):
        probability([])


# ---- shift gap ----------------------------------------------------------------------------------


def test_the_shift_gap_of_a_shifted_valley_vanishes_at_its_shift():
    l = jnp.arange(-40, 41) / 10
    train, test = jnp.abs(l), jnp.abs(l - 0.7) + 5.0  # a constant does not count
    found = shift_gap(Slice(l, train, test_loss=test), radius=2.0)
    assert float(found.best_shift) == pytest.approx(0.7, abs=1e-6)
    # |l + δ − 0.7| − |l| has largest magnitude |δ − 0.7|
    np.testing.assert_allclose(found.gap, np.abs(np.asarray(found.shifts) - 0.7), atol=1e-5)
    np.testing.assert_allclose(found.ratio, found.gap / 0.7, atol=1e-5)
    assert float(found.shifts.min()) == pytest.approx(-2) == -float(found.shifts.max())


def test_the_shift_gap_equals_its_definition():
    rng = np.random.default_rng(0)
    l = np.arange(-8, 9) / 4
    train, test = rng.random((2, 3, 17))
    shifts = np.array([-0.5, 0.0, 0.75])
    found = shift_gap(
        Slice(jnp.asarray(l), jnp.asarray(train), test_loss=jnp.asarray(test)),
        radius=1.0,
        shifts=shifts,
    )
    for row in range(3):
        bar = test[row] - test[row].min() + train[row].min()
        gaps = [
            max(
                abs(bar[np.flatnonzero(l == v + delta)[0]] - train[row][l == v][0])
                for v in l[np.abs(l) <= 1]
            )
            for delta in shifts
        ]
        np.testing.assert_allclose(found.gap[row], gaps, rtol=1e-5)
        np.testing.assert_allclose(found.ratio[row], np.array(gaps) / gaps[1], rtol=1e-5)
        assert float(found.best_shift[row]) == shifts[np.argmin(gaps)]


def test_no_gap_has_no_ratio():
    l = jnp.arange(-4, 5) / 2
    found = shift_gap(Slice(l, l**2, test_loss=l**2), radius=1.0)
    assert np.isnan(found.ratio).all() and float(found.best_shift) == 0


# ---- the flat side ------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_bias_towards_the_flat_side(sign):
    """Slopes 1 and 4, the bottom at ±0.5."""
    l = jnp.linspace(-2, 3, 101) if sign == 1 else jnp.linspace(-3, 2, 101)
    x = sign * l - 0.5
    curve = jnp.where(x > 0, x, -4 * x)
    found = flat_side(Slice(l, curve), at=[0.0, sign * 2.0])
    assert int(found.flat_side) == sign
    assert float(found.bottom) == pytest.approx(sign * 0.5, abs=1e-6)
    assert float(found.ratio) == pytest.approx(4, rel=1e-4)
    assert float(found.distance) == pytest.approx(2.5, abs=1e-5)
    np.testing.assert_allclose(found.bias, [-0.5, 1.5], atol=1e-5)


def test_nearer_at_the_bottom_the_ratio_is_another():
    l = jnp.linspace(-3, 3, 61)
    curve = Slice(l, valley(l, 1.0))
    near, far = (flat_side(curve, distance=d) for d in (1.5, None))
    assert int(near.flat_side) == int(far.flat_side) == 1
    flat, sharp = (ZETA + slope * 1.2 for slope in (SLOPE, RATIO * SLOPE))
    assert float(near.ratio) == pytest.approx(sharp / flat, rel=1e-4)
    flat, sharp = (ZETA + slope * 1.7 + 4.0 for slope in (SLOPE, RATIO * SLOPE))
    assert float(far.ratio) == pytest.approx(sharp / flat, rel=1e-4)


def test_a_bottom_at_the_end_has_no_side():
    l = jnp.linspace(0, 1, 5)
    found = flat_side(Slice(l, l))
    assert int(found.flat_side) == 0 and float(found.distance) == 0
    np.testing.assert_array_equal(found.bias, 0)


def test_between_two_solutions():
    start, end = jnp.array([0.0, 1.0]), jnp.array([2.0, 1.0])

    def loss(w, x):
        return jnp.where(w[0] > 0.5, w[0] - 0.5, 5 * (0.5 - w[0])) + x * 0

    crossing = slice(
        loss,
        start,
        jnp.ones(1),
        direction=between(start, end),
        positions=jnp.linspace(-1, 2, 25),
    )
    found = flat_side(crossing)
    np.testing.assert_allclose(found.bias, [-0.25, 0.75], atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda l: asymmetry(Slice(l, l)), "derivatives=1"),
        (lambda l: asymmetry(Slice(l + 0.3, l, slope=l)), "symmetric positions"),
        (lambda l: asymmetry(Slice(l, l, slope=l), zeta=9.0), "above zeta"),
        (lambda l: asymmetry(Slice(l, l, slope=l), zeta=-1.0), "zeta must be finite"),
        (lambda l: shift_gap(Slice(l, l), radius=1.0), "test_data"),
        (lambda l: shift_gap(Slice(l, l, test_loss=l), radius=9.0), "does not reach"),
        (
            lambda l: shift_gap(Slice(l, l, test_loss=l), radius=1.0, shifts=[1.5]),
            "room for shifts up to 1",
        ),
        (lambda l: shift_gap(Slice(l, l / 0, test_loss=l), radius=1.0), "NaN or infinite"),
        (lambda l: flat_side(Slice(l[:2], l[:2])), "positions must be at least 3"),
        (lambda l: flat_side(Slice(l, l), distance=0.0), "distance must be finite"),
        (lambda l: probability([True], confidence=1.0), "confidence"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.device_put(np.arange(-4, 5, dtype=np.float32) / 2))
