"""Runs from minima: claims and tables on made-up runs, and a tiny run of the whole chain."""

import dataclasses
import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from jaxstab import dispatch, testing
from jaxstab.experiments import REGISTRY, starts, statistics
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.wu2018 import escape, lbfgs

TINY = REGISTRY["escape"].settings("tiny")


def made_up(verdict, outcome, *, start=0, edge=False, predicted=3.0, steps=3, batch_size=4):
    left = outcome == "left"
    return {
        "start": f"clean {start}", "kind": "clean", "learning_rate": 1.0, "batch_size": batch_size,
        "n": 10, "verdict": verdict, "outcome": outcome, "at_the_edge": edge, "start_steps": 1000,
        "predicted_steps": predicted, "escape_steps": steps if left else math.inf, "seed": 0,
        "predicted_growth": 4.0, "growth": 4.1 if left else math.nan, "sharpness_margin": -0.5,
        "nonuniformity_margin": 0.5, "end_sharpness": 1.0 + 0.01 * start, "end_test_accuracy": 0.9,
        "end_train_accuracy": 1.0, "start_sharpness": 2.0, "start_test_accuracy": 0.8,
        "end_status": "step_limit",
    }  # fmt: skip


def right(count=40):
    """Runs from 40 starts: those predicted to leave do, the later the later."""
    rows = [
        made_up("unstable", "left", start=k, predicted=k + 1, steps=k + 1, batch_size=10)
        for k in range(count)
    ]
    rows += [made_up("stable", "stayed", start=k) for k in range(count)]
    return pd.DataFrame([*rows, made_up("unstable", "stayed", edge=True)])


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    """The statuses below are as clear with 100 as with 2000."""
    quick = partial(statistics.bootstrap, resamples=100)
    monkeypatch.setattr(starts, "bootstrap", quick)
    monkeypatch.setattr(statistics, "bootstrap", quick)


def status(rows):
    return {claim.name: claim.status for claim in starts.agreement(rows)}


def test_predictions_that_come_true():
    rows = right()
    assert set(status(rows).values()) == {"holds"}
    found = {claim.name: claim for claim in starts.agreement(rows)}
    assert "of 80 runs" in found["predictions"].statistic  # without the one at the edge
    assert found["times"].measured == pytest.approx(1.0)
    assert "40 starts" in found["gd-rate"].uncertainty["how"]


def test_predictions_that_fail():
    rows = right()
    rows["outcome"] = rows["outcome"].map({"left": "stayed", "stayed": "left"})
    found = status(rows)
    assert found["predictions"] == "does not hold" and found["times"] == "inconclusive"
    assert set(status(rows[:0]).values()) == {"inconclusive"}


def test_a_run_that_is_too_short_is_not_a_miss():
    short = [made_up("unstable", "too short", start=k) for k in range(40)]
    both = pd.concat([right(), pd.DataFrame(short)])
    assert status(both)["predictions"] == "holds"
    stayed = both.assign(outcome=both["outcome"].replace("too short", "stayed"))
    assert status(stayed)["predictions"] == "does not hold"
    assert starts.confusion(both).rows.set_index("verdict")["too short"]["unstable"] == 40


def test_runs_of_one_start_count_once():
    rows = right()[:30].assign(start="clean 0")
    found = {claim.name: claim for claim in starts.agreement(rows)}
    assert found["times"].status == found["sooner"].status == "inconclusive"
    assert found["predictions"].status == "inconclusive"  # one start: the interval is wide


def test_tables():
    rows = right()
    lines = starts.confusion(rows).rows.set_index("verdict")
    assert lines.loc["unstable", ["left", "stayed", "stayed, far"]].tolist() == [40, 1, 0]
    assert lines.loc["stable", ["left", "stayed", "stayed, far"]].tolist() == [0, 40, 40]
    table = starts.table(rows)
    assert len(table.rows) == 80  # 40 starts, with GD and SGD each
    line = table.rows[(table.rows["start"] == "clean 0") & (table.rows["batch_size"] == "n")]
    assert line[["left", "seed", "escape_steps"]].values.tolist() == [[1, 1, 1.0]]
    assert "too short, far" in starts.confusion(rows).text()


def test_claims_of_escape():
    rows = right()
    found = {claim.name: claim.status for claim in escape.claims(rows)}
    assert found["flatter"] == found["better-clean"] == "holds"
    assert found["better-corrupted"] == "inconclusive"
    # flatter is worse on either set, though the set with the flatter ends does better
    rng = np.random.default_rng(0)
    ends = pd.DataFrame({"start": np.repeat(["clean 0", "clean 1", "corrupted 2"], 5)})
    ends["end_sharpness"] = rng.uniform(1, 2, 15) + 5 * (ends["start"] == "corrupted 2")
    ends["end_test_accuracy"] = 0.9 + 0.01 * (ends["end_sharpness"] % 5)
    ends.loc[ends["start"] == "corrupted 2", "end_test_accuracy"] -= 0.5
    ends = pd.DataFrame([made_up("stable", "left") | row for row in ends.to_dict("records")])
    found = {claim.name: claim for claim in escape.claims(ends)}
    assert found["flat-generalises"].status == "does not hold"
    assert found["flat-generalises"].measured == pytest.approx(1)
    sharper = rows.assign(end_sharpness=2.5, end_test_accuracy=0.7)
    found = {claim.name: claim.status for claim in escape.claims(sharper)}
    assert found["flatter"] == found["better-clean"] == "does not hold"


def test_claims_of_lbfgs():
    lines = [
        {"optimizer": name, "seed": seed, "sharpness": a * (1 + 0.1 * seed), "ratio": ratio,
         "condition": "λmax(D⁻¹H)" if name == "Adam" else "a"}
        for seed in range(3)
        for name, a, ratio in (("L-BFGS", 3, None), ("GD", 1, 1), ("Adam", 2, 0.9))
    ]  # fmt: skip
    minima = pd.DataFrame(lines)
    rows = right()
    rows["learning_rate"] = rows["verdict"].map({"unstable": 2.0, "stable": 0.1})
    found = {claim.name: claim for claim in lbfgs.claims(minima, rows)}
    assert {claim.status for claim in found.values()} == {"holds"}
    assert found["lbfgs-sharper"].measured == pytest.approx(3)
    assert found["leave-lbfgs"].measured == pytest.approx(40 / 41)
    outside = minima.assign(ratio=1.1)
    found = {claim.name: claim.status for claim in lbfgs.claims(outside, right())}
    assert found["adaptive-condition"] == "does not hold"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return testing.write_tfds("fashion_mnist", tmp_path_factory.mktemp("data")).parents[1]


def test_predictions_are_written_before_the_runs(tmp_path, monkeypatch):
    rows = right().to_dict("records")
    begin = [SimpleNamespace(name=f"clean {k}", kind="clean") for k in range(40)]

    def observe(start, predictions, settings, context):
        held = json.loads((tmp_path / "predictions.json").read_text())
        assert len(held) == len(rows) and {row["start"] for row in predictions} == {start.name}
        return predictions

    monkeypatch.setattr(starts, "predict", lambda start, _: [
        row for row in rows if row["start"] == start.name
    ])  # fmt: skip
    monkeypatch.setattr(starts, "observe", observe)
    monkeypatch.setattr(starts, "follow_some", lambda *args, **options: {})
    context, title = Context(tmp_path), "title"
    outcome = starts.run_from(
        begin, TINY, context, near=1.0, title=title, claims=lambda rows: escape.claims(rows)[:1]
    )
    assert len(outcome.rows) == len(rows)
    assert [claim.name for claim in outcome.claims][-2:] == ["gd-rate", "flatter"]


def test_the_corrupted_set_has_further_examples_with_random_labels(prepared, tmp_path):
    paper = REGISTRY["escape"].settings("paper")
    settings = dataclasses.replace(paper, model="fnn-small", n_train=30, random_labels=6)
    settings = dataclasses.replace(settings, batch_sizes=(4, "n"))
    problems = escape.load_problems(settings, Context(tmp_path, data_dir=prepared))
    (clean_x, clean_y), (x, y) = (problems[kind].train for kind in escape.KINDS)
    assert len(x) == 36 and problems["clean"].loss == problems["corrupted"].loss
    np.testing.assert_array_equal(x[:30], clean_x)
    np.testing.assert_array_equal(y[:30], clean_y)


def test_published_starts_stand_beside_the_same_problem():
    theirs = escape.published.beside(REGISTRY["escape"].settings("paper"), "wu2018_table3")
    text = escape.table([], theirs).text()
    assert "published clean" in text and "80.04%" in text and "51.7" in text


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
@pytest.mark.parametrize("name", ["escape", "lbfgs"])
def test_wrong_settings_before_any_training(tmp_path, monkeypatch, name, change, message):
    monkeypatch.setattr(dispatch, "ended_runs", lambda *_: pytest.fail("trained"))
    settings = REGISTRY[name].settings("tiny", overrides=change)
    with pytest.raises(ValueError, match=message):
        REGISTRY[name].run(settings, Context(tmp_path))


def test_starts_that_all_diverge_are_an_error(tmp_path, monkeypatch):
    ended = SimpleNamespace(records=[{"status": "diverged", "seed": 0}])
    monkeypatch.setattr(escape.sweeps, "sweep", lambda *args, **options: ended)
    with pytest.raises(ValueError, match="smaller start_learning_rate"):
        escape.run(TINY, Context(tmp_path))
