"""The stability diagram: its theorems hold, and measured minima can be laid on it."""

import dataclasses
import json

import numpy as np
import pytest

from jaxstab import plots
from jaxstab.experiments import diagram
from jaxstab.experiments.base import Context, execute
from jaxstab.experiments.diagram import Settings
from jaxstab.stability import box

TINY = Settings(
    n=10,
    learning_rates=(0.5,),
    batch_sizes=(1, 4, "n"),
    points=3,
    dimensions=(2,),
    problems=1,
    runs=100,
    burn_in=60,
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    out = tmp_path_factory.mktemp("diagram")
    return out, execute(diagram.EXPERIMENT, TINY, out=out)


def test_every_theorem_holds(outcome):
    _, found = outcome
    theorems = {claim.name: claim.status for claim in found.claims if claim.kind == "theorem"}
    assert set(theorems.values()) == {"holds"} and len(theorems) == 4
    assert len(found.claims) == 7


def test_rows_cover_the_plane(outcome):
    out, found = outcome
    assert [(row["p"], row["batch_size"]) for row in found.rows[::3]] == [(1, 1), (1, 4), (2, 1)]
    for row in found.rows:
        assert 0 < row["sharpness"] < 4
        assert row["eq9"] == pytest.approx(box(0.5, row["batch_size"], 10).nonuniformity)
    assert {path.name for path in found.figures} == {"diagram.png", "dimensions.png"}
    assert all(path.stat().st_size > 10_000 for path in found.figures)
    assert "simulated" in (out / "summary.txt").read_text()


def test_a_repeated_call_computes_nothing_anew(outcome, monkeypatch):
    out, found = outcome
    monkeypatch.setattr(diagram, "find_boundary", None)
    again = execute(diagram.EXPERIMENT, TINY, out=out)
    assert again.rows == found.rows


def test_claims_can_fail(outcome):
    rows = [dict(row) for row in outcome[1].rows]
    one = [row | {"simulated": 1.5 * row["simulated"]} for row in rows if row["p"] == 1]
    assert {c.name: c.status for c in diagram.claims(one)}["simulation-agrees"] == "does not hold"
    larger = [row | {"eq8": 1.2 * row["eq9"]} for row in rows]
    status = {c.name: c.status for c in diagram.claims(larger)}
    assert status["eq8-inside-eq9"] == status["eq8-is-sufficient"] == "does not hold"
    assert status["eq8-is-exact-in-one-dimension"] == "does not hold"


def write_sweep(folder, records):
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps({"n": 100}))
    for i, record in enumerate(records):
        (folder / "runs" / str(i)).mkdir(parents=True)
        (folder / "runs" / str(i) / "record.json").write_text(json.dumps(record))


def record(batch_size, a, s, status="converged"):
    head = {"batch_size": batch_size, "learning_rate": 0.5, "init_scale": 1.0, "seed": 0}
    return head | {"status": status, "sharpness": a, "nonuniformity": s}


def test_minima_of_a_sweep_are_laid_on_its_own_diagram(tmp_path):
    records = [record(4, 3.0, 2.0), record(100, 3.9, 9.0), record(4, 0.0, 0.0, "diverged")]
    write_sweep(tmp_path / "run" / "sweep", records)
    path, line = diagram.lay_minima(tmp_path / "run", Context(tmp_path))
    assert path.name == "minima.png" and line.startswith("2 minima")
    with pytest.raises(ValueError, match="holds no sweep"):
        diagram.lay_minima(tmp_path / "nothing", Context(tmp_path))
    write_sweep(tmp_path / "empty", [record(4, 0.0, 0.0, "diverged")])
    with pytest.raises(ValueError, match="no measured minima"):
        diagram.lay_minima(tmp_path / "empty", Context(tmp_path))


def test_the_figure_holds_every_region_point_and_minimum():
    simulated = [record(4, 2.0, 0.0) | {"simulated": 3.9, "simulated_error": 0.1}]
    minima = [record(4, 5.0, 6.0), record(100, 3.9, 9.0), record(4, np.nan, 1.0)]
    figure = plots.stability_diagram(
        n=100,
        batch_sizes=(4, 100),
        learning_rates=(0.5, 1.0),
        simulated=simulated,
        minima=minima,
        title="title",
    )
    left, right = figure.axes
    assert left.get_xlim()[1] > 5.0 and left.get_ylim()[1] > 9.0  # nothing is cut off
    offsets = [tuple(point) for one in left.collections[1:] for point in one.get_offsets()]
    assert (5.0, 6.0) in offsets and (3.9, 9.0) in offsets
    assert not any(len(one.get_offsets()) for one in right.collections[1:])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "B = 4" and labels[1].startswith("B = n = 100")
    assert "1/step size" in left.get_xlabel() and "1/step size" in left.get_ylabel()
    bare = plots.stability_diagram(n=100, batch_sizes=(100,), learning_rates=(0.5,))
    assert bare.axes[0].get_xlim()[1] > 4


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch_sizes": (11,)}, "above the number of examples 10"),
        ({"learning_rates": (0.0,)}, "learning_rate"),
        ({"dimensions": (1,)}, "dimension must be at least 2"),
        ({"points": 0}, "points"),
        ({"runs": 1}, "runs"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        diagram.run(dataclasses.replace(TINY, **changes), Context(tmp_path))
