"""cross-entropy: the bound that explains it, claims on made-up runs, then a tiny run end to end."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import losses, testing
from jaxstab.experiments import cross_entropy
from jaxstab.experiments.base import Context, execute

TINY = cross_entropy.CrossEntropySettings(
    n_train=30, batch_sizes=("n",), seeds=1, max_steps=600, points=4, tol=1e-2
)


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0, 100.0, 3000.0])
def test_output_curvature_is_at_most_twice_the_loss(spread):
    """The theorem, for random logits from nearly equal to far beyond float's range of exp."""
    rng = np.random.default_rng(0)
    logits = spread * rng.standard_normal((500, 7))
    targets = np.eye(7)[rng.integers(7, size=500)]
    assert 0 < cross_entropy.output_curvature_ratio(logits, targets) <= 1 + 1e-12


def test_output_curvature_equals_its_definition(x64):
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((6, 4))
    targets = np.eye(4)[rng.integers(4, size=6)]
    expected = max(
        float(jnp.linalg.eigvalsh(jax.hessian(losses.cross_entropy)(f, y))[-1])
        / (2 * float(losses.cross_entropy(f, y)))
        for f, y in zip(jnp.asarray(logits), jnp.asarray(targets))
    )
    ratio = cross_entropy.output_curvature_ratio(logits, targets)
    assert ratio == pytest.approx(expected, rel=1e-10)


def test_the_bound_is_sharp_for_two_classes_at_small_loss():
    """Two classes: p(1−p)·2 over 2ℓ tends to 1, so a smaller constant than 2 would be wrong."""
    ratio = cross_entropy.output_curvature_ratio([[25.0, 0.0]], [[1.0, 0.0]])
    assert ratio == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(("max_steps", "points"), [(20_000, 14), (199, 5), (3, 30), (1, 2)])
def test_measured_blocks_are_spread_from_start_to_end(max_steps, points):
    block, stops = cross_entropy.measured_blocks(max_steps, points)
    assert stops[0] == 0 and stops[1] == 1 and stops == sorted(set(stops))
    assert max_steps - block < stops[-1] * block <= max_steps
    assert len(stops) <= points + 1


def made_up(kind, size, seed, losses, values, verdict="undecided", edge=2.0):
    return [
        {
            "loss_kind": kind,
            "batch_size": size,
            "seed": seed,
            "step": 100 * i,
            "loss": loss,
            "sharpness": a,
            "nonuniformity": 2 * a,
            "edge_fraction": a / edge,
            "output_curvature_ratio": 0.9 if kind == "cross_entropy" else math.nan,
            "verdict": verdict,
        }
        for i, (loss, a) in enumerate(zip(losses, values))
    ]


FALLING = [2.3, 1e-1, 1e-2, 1e-3, 1e-4]


def runs(values=(0.5, 3.0, 0.3, 0.03, 0.003), end=1.9, verdict="undecided"):
    rows = []
    for seed in range(2):
        rows += made_up("cross_entropy", 50, seed, FALLING, values, verdict)
        rows += made_up("squared", 50, seed, FALLING, [0.5, 2, 2, 2, end], "stable")
    return rows


def status(rows):
    return {claim.name: claim.status for claim in cross_entropy.claims(rows)}


def test_claims_as_they_come_out():
    assert set(status(runs()).values()) == {"holds"}
    staying = status(runs(values=(0.5, 2, 2, 2, 2.1)))
    assert staying["sharpness-vanishes"] == "does not hold"
    assert status(runs(end=0.1))["squared-does-not-vanish"] == "does not hold"
    rising = status(runs(values=(0.5, 3.0, 3.0, 0.03, 0.03)))
    assert rising["sharpness-falls-with-the-loss"] == "holds"
    first = made_up("cross_entropy", 50, 0, FALLING, (0.5, 3.0, 0.3, 0.03, 0.003))
    assert status(first)["sharpness-vanishes"] == "inconclusive"  # one seed has no interval
    assert status(runs(verdict="stable"))["no-verdict"] == "does not hold"


def test_slope_is_that_of_the_power_law_after_the_peak():
    assert [slope for _, slope in cross_entropy.slopes(runs())] == pytest.approx([1.0, 1.0])


def test_runs_that_did_not_fit_say_nothing():
    dead = made_up("cross_entropy", 50, 0, [2.3, 2.3, 2.3, 2.3], [0.5, 0.2, 0.1, 0.1])
    found = status(dead)
    assert found.pop("output-curvature") == "holds"
    assert set(found.values()) == {"inconclusive"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The paper preset on a small prepared data set, with a network that compiles faster."""
    folder = tmp_path_factory.mktemp("cross-entropy")
    testing.write_tfds("fashion_mnist", folder / "data", n_train=30, n_test=10)
    paper = cross_entropy.EXPERIMENT.settings("paper")
    assert (paper.dataset, paper.model, paper.n_train) == ("fashion_mnist", "fnn", 1000)
    small = dataclasses.replace(
        paper,
        model="fnn-small",
        n_train=30,
        batch_sizes=("n",),
        seeds=1,
        max_steps=600,
        points=4,
        tol=1e-2,
    )

    def again():
        return execute(
            cross_entropy.EXPERIMENT, small, out=folder / "out", data_dir=folder / "data"
        )

    return folder / "out", again(), again


def test_a_tiny_run_end_to_end(finished):
    out, outcome, _ = finished
    kinds = [row["loss_kind"] for row in outcome.rows]
    assert kinds.count("cross_entropy") == kinds.count("squared") == 5
    first = [row for row in outcome.rows if row["step"] == 0]
    assert first[0]["loss"] == pytest.approx(math.log(10), rel=0.1)
    for row in outcome.rows:
        assert row["sharpness_converged"] and row["nonuniformity_converged"]
        assert row["sharpness_lower"] <= row["sharpness"] <= row["sharpness_upper"]
        assert row["edge_fraction"] == pytest.approx(row["sharpness"] * 0.1 / 2)
    claims = {claim["name"]: claim for claim in json.loads((out / "claims.json").read_text())}
    assert claims["output-curvature"]["status"] == "holds"  # the theorem
    ends = [row for row in outcome.rows if row["step"] == 600]
    assert all(row["loss"] < 0.1 for row in ends)
    assert claims["no-verdict"]["status"] == "holds"
    assert "quadratic analysis does not apply" in ends[0]["reasons"]
    assert (out / "cross-entropy.png").stat().st_size > 10_000


def test_a_repeated_run_trains_nothing(finished, monkeypatch):
    _, outcome, again = finished
    monkeypatch.setattr(cross_entropy, "train", lambda *a, **k: pytest.fail("trained"))
    assert again().text == outcome.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be finite and positive"),
        ({"batch_sizes": (31,)}, "batch_size 31 is above"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"points": 1}, "points must be at least 2"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"model": "fnn-smal"}, "did you mean 'fnn-small'"),
    ],
)
def test_wrong_settings_before_any_work(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy.run(dataclasses.replace(TINY, **change), Context(tmp_path))
