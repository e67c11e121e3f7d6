"""The two-well problem: its theorems hold, and each claim can fail."""

import dataclasses
import json

import pytest

from jaxstab.experiments import toy_escape
from jaxstab.experiments.base import Context, execute
from jaxstab.experiments.toy_escape import Settings

TINY = Settings(seeds=50, steps=400, rate_runs=20_000, rate_steps=8)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy")
    return out, execute(toy_escape.EXPERIMENT, TINY, out=out)


def test_every_claim_is_a_theorem_and_holds(outcome):
    out, found = outcome
    assert {claim.kind for claim in found.claims} == {"theorem"}
    assert {claim.name: claim.status for claim in found.claims if claim.status != "holds"} == {}
    assert len(json.loads((out / "claims.json").read_text())) == 9
    assert (out / "toy-escape.png").stat().st_size > 10_000


def test_predictions_are_made_from_the_measurement(outcome):
    rows = {(row["start_near"], row["method"]): row for row in outcome[1].rows}
    assert rows[1, "SGD"]["verdict"] == "unstable"
    assert rows[1, "SGD"]["basis"] == "theorem"  # one parameter
    assert rows[1, "SGD"]["nonuniformity_bound"] == pytest.approx(1 / 0.7)
    for place in ((1, "GD"), (0, "SGD"), (0, "GD")):
        assert rows[place]["verdict"] == "stable"
    assert rows[1, "SGD"]["largest_loss"] > 0.05 > 1e-9 > rows[1, "GD"]["largest_loss"]
    assert "measured first exit: median" in outcome[1].text


def test_a_wrong_growth_or_place_does_not_hold():
    found = toy_escape.compute(TINY)
    moved = found._replace(growth=found.growth * 1.1)
    status = {claim.name: claim.status for claim in toy_escape.claims(moved, TINY)}
    assert status["escape-rate"] == "does not hold"
    swapped = found._replace(sgd={0: found.sgd[1], 1: found.gd[1]})
    status = {claim.name: claim.status for claim in toy_escape.claims(swapped, TINY)}
    assert status["sgd-leaves-1"] == "does not hold"
    assert status["gd-stays-at-1"] == "holds"


def test_another_learning_rate_has_other_predictions():
    settings = dataclasses.replace(TINY, learning_rate=0.3)
    found = toy_escape.compute(settings)
    assert found.verdicts[1, 1].status == "stable"
    status = {claim.name: claim for claim in toy_escape.claims(found, settings)}
    assert status["sgd-leaves-1"].status == "inconclusive"
    assert status["sgd-leaves-1"].measured == 0
    assert status["gd-stays-at-1"].status == "holds"


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"seeds": 1}, {"offset": -1.0}])
def test_wrong_settings_are_refused(tmp_path, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        toy_escape.run(dataclasses.replace(TINY, **changes), Context(tmp_path))
