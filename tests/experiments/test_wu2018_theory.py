"""Claims of toy-escape, diagram and cross-entropy as they come out, on made-up or tiny data."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest

from jaxstab import checksums
from jaxstab.experiments import REGISTRY
from jaxstab.experiments.protocol import Context
from jaxstab.experiments.wu2018 import cross_entropy, diagram, toy_escape


def status_of(claims):
    return {claim.name: claim.status for claim in claims}


TOY = REGISTRY["toy-escape"].settings("tiny")


@pytest.fixture(scope="module")
def toy():
    return toy_escape.compute(TOY)


def test_toy_escape_holds_and_can_fail(toy):
    claims = toy_escape.claims(toy, TOY)
    assert {(claim.kind, claim.status) for claim in claims} == {("theorem", "holds")}
    assert len(claims) == 9
    grown = toy._replace(growth=toy.growth.assign(mean=toy.growth["mean"] * 1.2))
    assert status_of(toy_escape.claims(grown, TOY))["escape-rate"] == "does not hold"
    swapped = toy._replace(paths=toy.paths | {(1, "SGD"): toy.paths[1, "GD"]})
    found = status_of(toy_escape.claims(swapped, TOY))
    assert found["sgd-leaves-1"] == "does not hold" and found["gd-stays-at-1"] == "holds"


def test_toy_escape_predicts_from_the_measurement(toy):
    rows = toy_escape.summarize(toy, TOY).set_index(["start_near", "method"])
    assert rows["verdict"].to_dict() == {
        (1, "SGD"): "unstable", (1, "GD"): "stable", (0, "SGD"): "stable", (0, "GD"): "stable"
    }  # fmt: skip
    assert rows["basis"][1, "SGD"] == "theorem"  # one parameter
    assert rows["nonuniformity_bound"][1, "SGD"] == pytest.approx(1 / 0.7)
    assert rows["largest_loss"][1, "SGD"] > 0.05 > 1e-9 > rows["largest_loss"][1, "GD"]


def test_toy_escape_at_another_learning_rate():
    settings = dataclasses.replace(TOY, learning_rate=0.3)
    found = toy_escape.compute(settings)
    claims = {claim.name: claim for claim in toy_escape.claims(found, settings)}
    assert claims["sgd-leaves-1"].status == "inconclusive"
    assert claims["sgd-leaves-1"].measured == 0
    assert claims["gd-stays-at-1"].status == "holds"


def boundaries():
    """Boundary points as theory has them, one in one dimension and two in several."""
    line = {"problem": 0, "learning_rate": 0.5, "batch_size": 1, "sharpness": 2.0, "eq9": 2.0}
    return pd.DataFrame([
        line | {"p": 1, "eq8": 1.9, "exact": 1.9, "simulated": 1.91, "simulated_error": 0.02},
        line | {"p": 2, "eq8": 1.5, "exact": 1.6, "simulated": 1.61, "simulated_error": 0.02},
        line | {"p": 2, "eq8": 2.0, "exact": 2.1, "simulated": 2.08, "simulated_error": 0.02},
    ])  # fmt: skip


def test_diagram_as_it_comes_out():
    rows = boundaries()
    assert set(status_of(diagram.claims(rows)).values()) == {"holds"}
    found = status_of(diagram.claims(rows.assign(simulated=rows["simulated"] * 1.2)))
    assert found["simulation-agrees"] == "does not hold"
    assert found["simulation-agrees-in-several-dimensions"] == "does not hold"
    found = status_of(diagram.claims(rows.assign(eq8=rows["eq8"] * 1.2)))
    assert found["eq8-inside-eq9"] == found["eq8-is-sufficient"] == "does not hold"
    assert found["eq8-is-exact-in-one-dimension"] == "does not hold"
    assert len(diagram.claims(rows[:1])) == 3
    assert "± 0.02" in diagram.table(rows, 100).text()


def write_sweep(folder, records):
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"n": 100}))
    for i, record in enumerate(records):
        (folder / "runs" / str(i)).mkdir(parents=True)
        (folder / "runs" / str(i) / "record.json").write_text(json.dumps(record))
        checksums.seal(folder / "runs" / str(i))


def test_minima_of_a_sweep_are_laid_on_its_own_diagram(tmp_path, record):
    records = [record(3.0, 2.0), record(3.9, 9.0, batch_size=100), record(0, 0, status="diverged")]
    write_sweep(tmp_path / "run" / "sweep", records)
    figure, line = diagram.lay_minima(tmp_path / "run")
    assert len(figure.axes) == 1 and line.startswith("2 minima")
    with pytest.raises(ValueError, match="holds no sweep"):
        diagram.lay_minima(tmp_path / "nothing")
    write_sweep(tmp_path / "empty", records[2:])
    with pytest.raises(ValueError, match="no measured minima"):
        diagram.lay_minima(tmp_path / "empty")


FALLING = [2.3, 1e-1, 1e-2, 1e-3, 1e-4]


def made_up(kind, seed, losses, values, verdict="undecided"):
    ratio = 0.9 if kind == "cross_entropy" else math.nan
    return [
        {"loss_kind": kind, "batch_size": 50, "seed": seed, "step": 100 * i, "loss": loss,
         "sharpness": a, "nonuniformity": 2 * a, "edge_fraction": a / 2, "output_ratio": ratio,
         "verdict": verdict}
        for i, (loss, a) in enumerate(zip(losses, values, strict=True))
    ]  # fmt: skip


def runs(values=(0.5, 3.0, 0.3, 0.03, 0.003), end=1.9, verdict="undecided"):
    rows = []
    for seed in range(2):
        rows += made_up("cross_entropy", seed, FALLING, values, verdict)
        rows += made_up("squared", seed, FALLING, [0.5, 2, 2, 2, end], "stable")
    return pd.DataFrame(rows)


def test_cross_entropy_as_it_comes_out():
    def status(rows):
        return status_of(cross_entropy.claims(rows))

    assert set(status(runs()).values()) == {"holds"}
    assert status(runs(values=(0.5, 2, 2, 2, 2.1)))["sharpness-vanishes"] == "does not hold"
    assert status(runs(end=0.1))["squared-does-not-vanish"] == "does not hold"
    assert status(runs(verdict="stable"))["no-verdict"] == "does not hold"
    rising = status(runs(values=(0.5, 3.0, 3.0, 0.03, 0.03)))
    assert rising["sharpness-falls-with-the-loss"] == "holds"
    one_seed = status(runs()[lambda rows: rows["seed"] == 0])
    assert one_seed["sharpness-vanishes"] == "inconclusive"  # one seed has no interval
    dead = made_up("cross_entropy", 0, [2.3, 2.3, 2.3, 2.3], [0.5, 0.2, 0.1, 0.1])
    found = status(pd.DataFrame(dead))
    assert found.pop("output-curvature") == "holds"
    assert set(found.values()) == {"inconclusive"}  # a run that did not fit says nothing


def test_slope_is_that_of_the_power_law_after_the_peak():
    rows = runs()[lambda rows: rows["loss_kind"] == "cross_entropy"]
    np.testing.assert_allclose(cross_entropy.slopes(rows)["slope"], [1.0, 1.0])
    lines = cross_entropy.summarize(runs())
    assert len(lines) == 10 and set(lines["runs"]) == {2}
    assert "undecided" in cross_entropy.table(lines, 50).text()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("toy-escape", {"learning_rate": 0.0}, "learning_rate"),
        ("toy-escape", {"seeds": 1}, "seeds"),
        ("toy-escape", {"offset": -1.0}, "offset"),
        ("diagram", {"batch_sizes": (11,)}, "above the number of examples 10"),
        ("diagram", {"learning_rates": (0.0,)}, "learning_rate"),
        ("diagram", {"dimensions": (1,)}, "dimension must be at least 2"),
        ("diagram", {"points": 0}, "points"),
        ("diagram", {"runs": 1}, "runs"),
        ("cross-entropy", {"learning_rate": 0.0}, "learning_rate must be finite and positive"),
        ("cross-entropy", {"batch_sizes": (31,)}, "batch_size 31 is above"),
        ("cross-entropy", {"max_steps": 0}, "max_steps must be at least 1"),
        ("cross-entropy", {"points": 1}, "points must be at least 2"),
        ("cross-entropy", {"seeds": 0}, "seeds must be at least 1"),
        ("escape", {"starts": 0}, "starts must be at least 1"),
        ("cross-entropy", {"model": "fnn-smal"}, "did you mean 'fnn-small'"),
    ],
)
def test_wrong_settings_before_any_work(tmp_path, name, changes, words):
    settings = REGISTRY[name].settings("tiny", overrides=changes)
    with pytest.raises(ValueError, match=words):
        REGISTRY[name].run(settings, Context(tmp_path))
