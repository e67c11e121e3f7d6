"""Claims and tables of the experiments on asymmetric valleys, on made-up slices and rows."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from jaxstab import landscape
from jaxstab.experiments.he2019 import (  # fmt: skip
    asymmetry,
    averaging_1d,
    batch_norm,
    large_batch,
    locality,
    solutions,
    swa,
)
from jaxstab.experiments.protocol import Context
from jaxstab.landscape import Slice

T = np.linspace(-2, 3, 26)


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


def crossing(bottom, flat=1.0, sharp=4.0):
    """A line through two solutions at 0 and 1: a valley with its flat side to the left."""
    loss = np.where(bottom > T, flat * (bottom - T), sharp * (T - bottom))
    accuracy = 1 - 0.1 * np.abs(T)
    return Slice(T, loss, accuracy=accuracy, test_loss=loss + 1, test_accuracy=accuracy - 0.1)


def test_swa_compares_both_ends_of_the_line():
    found = swa.compare(crossing(bottom=0.8), ("swa", "sgd"))
    assert found["swa_bias"] == pytest.approx(0.8) and found["sgd_bias"] == pytest.approx(-0.2)
    assert found["more_bias"] == pytest.approx(1.0) and found["bump"] == 0
    assert found["swa_train_loss"] == pytest.approx(0.8)
    assert found["swa_test_accuracy"] == pytest.approx(0.9)
    rows = pd.DataFrame(
        [swa.compare(crossing(0.8 + 0.01 * seed), ("swa", "sgd")) | {"seed": seed}
         for seed in range(3)]
    )  # fmt: skip
    assert status_of(swa.claims(rows)) == {
        "no-bump": "holds",
        "swa-on-the-flat-side": "holds",
        "swa-higher-training-loss": "inconclusive",
        "swa-generalises-better": "holds",
    }


def test_published_accuracies_stand_beside_ours_only_for_the_same_data():
    rows = pd.DataFrame(
        [swa.compare(crossing(0.8), ("swa", "sgd")) | {"seed": s} for s in range(2)]
    )
    paper = swa.summary(rows, swa.PRESETS["paper"])
    assert paper.rows["published_test_accuracy"].tolist() == [80.69, 76.56]
    names = [column.name for column in paper.columns]
    assert "published_test_accuracy" in names
    quick = swa.summary(rows, swa.PRESETS["quick"])
    assert "published_test_accuracy" not in [column.name for column in quick.columns]


def directions(kind, flags, agrees=True):
    return [
        {"seed": seed, "kind": kind, "asymmetric": flag, "bottom_agrees": agrees}
        for seed in range(6)
        for flag in flags
    ]


def test_asymmetry_counts_directions_over_seeds():
    settings = asymmetry.PRESETS["quick"]
    rows = directions("uniform_positive", [True] * 4) + directions("gaussian", [True, False])
    found = status_of(asymmetry.claims(pd.DataFrame(rows), settings))
    assert found == {
        "most-are-asymmetric": "holds",
        "controls-are-not": "holds",
        "the-bottom-tells": "holds",
    }
    rows = directions("uniform_positive", [False], False) + directions("gaussian", [True], False)
    assert set(status_of(asymmetry.claims(pd.DataFrame(rows), settings)).values()) == {
        "does not hold"
    }


def test_a_row_of_asymmetry_says_what_the_slice_says():
    settings = asymmetry.Settings(reach=3.0, positions=7, directions=1)
    l = np.linspace(-3, 3, 7)
    slope = np.where(l > 0, 0.5, -2.0)
    line = Slice(l, np.where(l > 0, 0.5 * l, -2 * l)[None], slope=slope[None])
    step = {"curvature": [1.0], "third": [-3.0]}
    (row,) = asymmetry.rows(settings, "uniform", line, step)
    assert (row["asymmetric"], row["flat_side"], row["bottom_agrees"]) == (True, 1, True)
    assert (row["zeta"], row["r"]) == (0, 3) and row["rise_ratio"] == pytest.approx(4)
    (row,) = asymmetry.rows(settings, "uniform", line, step | {"third": [3.0]})
    assert not row["bottom_agrees"]


def test_neighbours_are_compared_with_the_solution():
    l = np.linspace(-1, 1, 5)
    own = Slice(l, np.where(l > 0, l, -3 * l))
    line = Slice(l, np.stack([own.loss + 7, np.where(l > 0, 3 * l, -l)]))
    rows = locality.compare(own, line, 0.5)
    assert [row["same_side"] for row in rows] == [True, False]
    assert rows[0]["deviation"] == 0 and rows[1]["deviation"] == pytest.approx(2 / 3)


def test_rays_compare_rises():
    rays = [Slice(T, np.outer([1.0, 3.0], T - T[0])) for _ in range(2)]
    rays[1] = rays[1]._replace(loss=2 * rays[1].loss)
    found = large_batch.widths(rays)
    assert found["sb_rise"] == pytest.approx(10) and found["lb_rise"] == pytest.approx(20)
    assert found["log_rise_ratio"] == pytest.approx(np.log(2))


def test_groups_of_parameters_are_compared_within_seeds():
    def row(seed, network, group, accuracy, ratio):
        named = {"seed": seed, "network": network, "group": group}
        return named | {"test_accuracy": accuracy, "log_ratio": ratio}

    rows = []
    for seed in range(4):
        for group, accuracy, ratio in (
            ("none", 0.8, np.nan), ("batch norm", 0.85, 1.0), ("as many others", 0.82, 0.3),
            ("all", 0.9, 1.2),
        ):  # fmt: skip
            rows.append(row(seed, "with batch norm", group, accuracy + 0.1 * seed, ratio))
        rows.append(row(seed, "without batch norm", "all", 0.7, 0.1))
    found = status_of(batch_norm.claims(pd.DataFrame(rows)))
    assert set(found.values()) == {"holds"} and len(found) == 4


def test_intervals_of_the_theorem_have_their_level():
    """Student's t, 3 degrees of freedom: P(t > x) = 1/2 − (atan(y) + y/(1 + y²))/π, y = x/√3."""
    found = averaging_1d.estimate([1.0, 2.0, 3.0, 4.0])
    y = (found.upper - found.value) / (np.sqrt(5 / 3) / 2) / np.sqrt(3)
    tail = 0.5 - (np.arctan(y) + y / (1 + y**2)) / np.pi
    assert tail == pytest.approx(averaging_1d.ERROR / 2, rel=1e-3)
    assert found.value == 2.5 == (found.lower + found.upper) / 2


# ---- training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    settings = batch_norm.PRESETS["tiny"]
    return solutions.Networks.load(settings, Context(tmp_path_factory.mktemp("out")))


def test_the_average_is_that_of_the_epochs_ends(networks):
    """Two epochs, averaged from the end of the first one on: the mean of two iterates."""
    last, average = networks.first_phase(0)
    short = SimpleNamespace(**vars(networks.settings) | {"epochs": 1})
    first, _ = solutions.Networks(short, networks.problem).first_phase(0)
    jax.tree.map(
        lambda a, x, y: np.testing.assert_allclose(a, (x + y) / 2, rtol=1e-4, atol=1e-5),
        average,
        first,
        last,
    )


def test_the_ends_of_an_interpolation_are_the_two_solutions(networks):
    last, average = networks.first_phase(1)
    line = networks.interpolate(last, average)
    for position, params in ((0.0, last), (1.0, average)):
        here, there = solutions.at(line, position), networks.evaluate(params)
        assert here == pytest.approx(there, rel=1e-4)
    again = solutions.restored(solutions.stored(line))
    np.testing.assert_allclose(again.test_loss, line.test_loss, rtol=1e-6)


def test_groups_have_the_same_number_of_parameters(networks, monkeypatch):
    seen = {}

    def directions(params, *, mask, **_):
        count = None if mask is None else int(sum(jnp.sum(m) for m in jax.tree.leaves(mask)))
        seen[len(seen)] = count
        return jax.tree.map(lambda x: jnp.ones((1, *x.shape)), params)

    monkeypatch.setattr(landscape, "directions", directions)
    found = batch_norm.look(networks, 0)
    assert list(found) == list(batch_norm.GROUPS) and "line" not in found["none"]
    assert seen[0] == seen[1] == 4 * 100 and seen[2] is None
