"""escape and lbfgs: predictions by hand, outcomes by hand, then tiny runs of the whole chain."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from jaxstab import dispatch, testing
from jaxstab.experiments import departure, departure_summary, escape, lbfgs
from jaxstab.experiments.base import Context, execute
from jaxstab.experiments.departure import Trial

PAPER = escape.EXPERIMENT.settings("paper")
# the paper's data set by its schema, and a small network: the same code, in seconds
TINY = dataclasses.replace(
    PAPER,
    model="fnn-small",
    n_train=30,
    random_labels=0,
    starts=1,
    start_max_steps=3000,
    loss_tolerance=0.003,
    learning_rates=(0.1, 0.5),
    batch_sizes=(4, "n"),
    seeds=1,
    sgd_steps=300,
    gd_steps=90,
    burst_steps=30,
)


def trial(**changed):
    settings = {
        "learning_rates": (0.5, 1.5), "batch_sizes": (2, 4), "seeds": (0, 1), "burst_steps": 20,
        "steps": {2: 40, 4: 40}, "escape_factor": 10.0,
    } | changed  # fmt: skip
    return Trial(**settings)


def history(losses, every=1):
    return {"steps": np.arange(len(losses)) * every, "loss": np.array(losses)}


@pytest.mark.parametrize(
    ("burst", "long", "outcome", "steps", "growth"),
    [
        ([1, 2, 5, 17, 65], [1, 99], "left", 3, 4.0),
        ([1, 2, 3, 4], [1, 5, 11], "left", 20, math.nan),
        ([1, 2, 3, 4], [1, 5, 10], "stayed", math.inf, math.nan),
        ([1, math.nan], [1, math.nan], "left", 1, math.nan),
    ],
)
def test_outcomes(burst, long, outcome, steps, growth):
    histories = history(burst), history(long, every=10)
    found = departure._happened({"status": "step_limit", "loss": 1.0}, histories, trial())
    assert (found["outcome"], found["escape_steps"]) == (outcome, steps)
    assert found["growth"] == pytest.approx(growth, nan_ok=True)


def row(verdict, outcome, *, edge=False, predicted=3.0, steps=3, batch_size=4):
    left = outcome == "left"
    return {
        "start": "clean 0", "learning_rate": 1.0, "batch_size": batch_size, "n": 10,
        "verdict": verdict, "outcome": outcome, "at_the_edge": edge, "start_steps": 1000,
        "predicted_steps": predicted, "escape_steps": steps if left else math.inf,
        "rate": 4.0, "growth": 4.1 if left else math.nan, "sharpness_margin": -0.5,
        "nonuniformity_margin": 0.5, "end_sharpness": 1.0, "end_test_accuracy": 0.9,
        "end_train_accuracy": 1.0, "start_sharpness": 2.0, "end_status": "step_limit",
    }  # fmt: skip


def test_claims_as_they_come_out():
    right = [row("unstable", "left", predicted=k, steps=k, batch_size=10) for k in range(1, 9)]
    right += [row("stable", "stayed"), row("unstable", "stayed", edge=True)]
    found = {claim.name: claim for claim in departure_summary.agreement_claims(right)}
    assert {claim.status for claim in found.values()} == {"holds"}
    assert found["predictions"].measured == 1.0 and "9 runs" in found["predictions"].statistic
    wrong = [row("unstable", "stayed"), row("stable", "left")]
    found = {claim.name: claim.status for claim in departure_summary.agreement_claims(wrong)}
    assert found["predictions"] == "does not hold" and found["times"] == "inconclusive"
    assert {c.status for c in departure_summary.agreement_claims([])} == {"inconclusive"}
    lines = departure_summary.confusion(right).splitlines()
    assert lines[1].split()[:3] == ["stable", "1", "0"]
    assert lines[2].split() == ["unstable", "1", "8", "(0", "and", "8)"]
    starts = [SimpleNamespace(name="clean 0", found={"test_accuracy": 0.8})]
    status = {claim.name: claim.status for claim in escape.claims(right, starts)}
    assert status["flatter"] == "holds" and status["better-clean"] == "holds"
    assert status["better-corrupted"] == "inconclusive"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return testing.write_tfds("fashion_mnist", tmp_path_factory.mktemp("data")).parents[1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared):
    out = tmp_path_factory.mktemp("escape")
    seen = []

    def progress(done, total, message=""):
        seen.append((message, (out / "predictions.json").exists()))

    given = {"out": out, "preset": "paper", "data_dir": prepared}
    return given, execute(escape.EXPERIMENT, TINY, progress=progress, **given), seen


def test_predictions_are_written_before_the_runs(finished):
    given, outcome, seen = finished
    out = given["out"]
    assert all(written == message.startswith("runs from") for message, written in seen)
    assert sum(written for _, written in seen) == 1  # one start
    predictions = json.loads((out / "predictions.json").read_text())
    assert len(predictions) == 2 * 2
    for one in outcome.rows:
        assert any(
            p["start"] == one["start"]
            and p["verdict"] == one["verdict"]
            and (p["learning_rate"], p["batch_size"]) == (one["learning_rate"], one["batch_size"])
            for p in predictions
        )


def test_a_tiny_escape_end_to_end(finished):
    given, outcome, _ = finished
    out = given["out"]
    assert (PAPER.model, PAPER.n_train, PAPER.random_labels) == ("fnn", 1000, 200)
    assert "published c" in outcome.text and "80.04%" in outcome.text
    assert {row["n"] for row in outcome.rows} == {30} and len(outcome.rows) == 4
    far = [row for row in outcome.rows if row["rate"] > 4 and row["batch_size"] == row["n"]]
    assert all(row["outcome"] == "left" for row in far)
    for name in ("trajectories", "outcomes"):
        assert (out / f"{name}.png").stat().st_size > 10_000
    names = [claim["name"] for claim in json.loads((out / "claims.json").read_text())]
    assert names[:2] == ["sooner", "predictions"]
    assert "clean 0" in outcome.text
    followed = list(out.glob("steps/follow-*"))
    assert len(followed) == 2
    for path in followed:
        series = json.loads(path.read_text())
        assert len(series["sharpness"]) == len(series["loss"]) == len(series["step"]) > 10
        assert np.isfinite(series["sharpness"]).all()


def test_the_corrupted_set_has_further_examples_with_random_labels(prepared, tmp_path):
    settings = dataclasses.replace(TINY, random_labels=6)
    problems = escape.load_problems(settings, Context(tmp_path, data_dir=prepared))
    (clean_x, clean_y), (x, y) = (problems[k].dataset.train for k in ("clean", "corrupted"))
    assert len(x) == 36 and problems["clean"].loss == problems["corrupted"].loss
    np.testing.assert_array_equal(x[:30], clean_x)
    np.testing.assert_array_equal(y[:30], clean_y)


def test_a_repeated_run_trains_nothing(finished, monkeypatch):
    given, outcome, _ = finished

    def ended_runs(work, loops, points):
        assert not points, "trained again"
        return iter(())

    monkeypatch.setattr(dispatch, "ended_runs", ended_runs)
    assert execute(escape.EXPERIMENT, TINY, **given).text == outcome.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "fnn-smal"}, "did you mean 'fnn-small'"),
        ({"batch_sizes": (4, 44)}, "batch_size 44 is above the number of examples 30"),
        ({"learning_rates": (0.0,)}, "learning_rate must be finite and positive"),
        ({"learning_rates": ()}, "need at least one"),
        ({"escape_factor": 1.0}, "escape_factor"),
        ({"burst_steps": 0}, "burst_steps"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_wrong_settings_before_any_training(tmp_path, prepared, monkeypatch, change, message):
    monkeypatch.setattr(dispatch, "ended_runs", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        settings = dataclasses.replace(TINY, **change)
        execute(escape.EXPERIMENT, settings, out=tmp_path, data_dir=prepared)


def test_starts_that_all_diverge_are_an_error(tmp_path, prepared):
    wild = dataclasses.replace(TINY, start_learning_rate=1e6, start_max_steps=30)
    with pytest.raises(ValueError, match="smaller start_learning_rate"):
        execute(escape.EXPERIMENT, wild, out=tmp_path, data_dir=prepared)


def test_a_tiny_lbfgs_end_to_end(tmp_path, prepared):
    tiny = dataclasses.replace(
        lbfgs.EXPERIMENT.settings("paper"), model="fnn-small", n_train=30, starts=1,
        loss_tolerance=0.003, max_steps=500, learning_rates=(0.5,), batch_sizes=("n",), seeds=1,
        gd_steps=90, burst_steps=30, adam_learning_rate=3e-3,
    )  # fmt: skip
    given = {"out": tmp_path, "preset": "paper", "data_dir": prepared}
    outcome = execute(lbfgs.EXPERIMENT, tiny, **given)
    minima = {row["optimizer"]: row for row in outcome.rows if "optimizer" in row}
    assert list(minima) == ["L-BFGS", "GD", "SGD", "Adam", "RMSProp"]
    assert minima["Adam"]["edge"] == pytest.approx(38 / 3e-3)
    assert minima["RMSProp"]["edge"] == pytest.approx(2 / 1e-3)
    for name in ("Adam", "RMSProp"):
        assert 0 < minima[name]["preconditioned_sharpness"] < math.inf
    assert minima["L-BFGS"]["status"] == "converged"
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert {"lbfgs-sharper", "adaptive-condition", "predictions"} <= {c["name"] for c in claims}
    for name in ("minima", "trajectories"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert execute(lbfgs.EXPERIMENT, tiny, **given).text == outcome.text
