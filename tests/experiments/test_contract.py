"""What every experiment of the registry keeps to, run as its `tiny` preset."""

import contextlib
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxstab import data, dispatch, files, models, report
from jaxstab.checks import check_name
from jaxstab.experiments import REGISTRY, protocol
from jaxstab.experiments.protocol import execute


@dataclass
class Finished:
    """A tiny run that was interrupted once, and what was on disk then."""

    experiment: protocol.Experiment
    settings: Any
    out: Path
    outcome: protocol.Outcome
    kept: dict[Path, int]


LONG = (
    "asymmetry", "batch-norm", "criteria", "cross-entropy", "diffusion", "edge", "escape", "lbfgs",
)  # fmt: skip
EXPERIMENTS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in REGISTRY
]


@pytest.fixture(scope="module", params=EXPERIMENTS)
def finished(request, tmp_path_factory):
    experiment = REGISTRY[request.param]
    settings = experiment.presets["tiny"]
    out = tmp_path_factory.mktemp(request.param) / "out"

    def interrupt(done, total, message=""):
        if done >= 1:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        execute(experiment, settings, out=out, preset="tiny", progress=interrupt)
    kept = {path: path.stat().st_mtime_ns for path in steps(out)}
    seen = []
    outcome = execute(
        experiment, settings, out=out, preset="tiny", progress=lambda *state: seen.append(state[:2])
    )
    assert all(0 <= done <= total for done, total in seen)
    return Finished(experiment, settings, out, outcome, kept)


def steps(out):
    """The files of finished steps and runs."""
    return [*out.rglob("steps/*.json"), *out.rglob("runs/*/record.json")]


def test_an_interrupted_run_continues(finished):
    assert all(path.stat().st_mtime_ns == time for path, time in finished.kept.items())


def test_a_repeated_run_computes_no_step_again(finished, monkeypatch):
    def ended_runs(work, loops, points):
        assert not points, "trained again"
        return iter(())

    def remember(context, name, compute):
        path = context.out / "steps" / f"{name}.json"
        assert path.exists(), "computed again"
        return files.read_json(path)

    monkeypatch.setattr(dispatch, "ended_runs", ended_runs)
    monkeypatch.setattr(protocol.Context, "remember", remember)
    again = execute(finished.experiment, finished.settings, out=finished.out)
    pd.testing.assert_frame_equal(again.rows, finished.outcome.rows)
    assert again.claims == finished.outcome.claims or "nan" in repr(again.claims)
    assert again.text == finished.outcome.text


def test_it_writes_its_folder(finished):
    out, outcome = finished.out, finished.outcome
    assert len(pd.read_csv(out / "results.csv")) == len(outcome.rows) > 0
    # strict JSON has no infinity, so that any reader can read the file
    claims = json.loads((out / "claims.json").read_text(), parse_constant=pytest.fail)
    assert [claim["name"] for claim in claims] == [claim.name for claim in outcome.claims]
    for table in outcome.tables:
        assert len(pd.read_csv(out / "tables" / f"{table.name}.csv")) == len(table.rows)
    assert outcome.text.strip() in (out / "summary.txt").read_text()
    run = json.loads((out / "run.json").read_text(), parse_constant=pytest.fail)
    assert run["status"] == "finished"
    assert run["figures"] == [f"{name}.png" for name in outcome.figures]
    page = report.write(out).read_text()
    assert all(f'alt="{name}"' in page for name in outcome.figures)


def test_claims_have_names_and_theorems_hold(finished):
    claims = finished.outcome.claims
    names = [claim.name for claim in claims]
    assert claims and len(set(names)) == len(names)
    assert not [c.name for c in claims if c.kind == "theorem" and c.status == "does not hold"]


def test_figures_have_labelled_axes(finished):
    assert finished.outcome.figures
    for name, figure in finished.outcome.figures.items():
        assert figure.axes, name
        for axes in figure.axes:
            if axes.get_label() != "<colorbar>" and axes.axison:
                assert axes.get_xlabel() and axes.get_ylabel(), f"{name}: {axes.get_title()}"


@pytest.mark.parametrize("name", REGISTRY)
def test_listing_and_presets(name):
    experiment = REGISTRY[name]
    listing = REGISTRY.listings[name]
    assert (experiment.name, experiment.source) == (name, listing.source)
    assert experiment.summary == listing.summary and "\n" not in listing.summary
    assert set(experiment.presets) >= {"quick", "paper", "tiny"}
    assert len({type(settings) for settings in experiment.presets.values()}) == 1
    for preset in experiment.presets:
        settings = experiment.settings(preset)
        json.dumps(dataclasses.asdict(settings))
        if hasattr(settings, "dataset"):
            check_name("data set", settings.dataset, data.NAMES)
        if hasattr(settings, "model"):
            check_name("model", settings.model, models.MODELS)
