"""The protocol of experiments: folder, steps, settings, and the registry."""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from jaxstab.experiments import REGISTRY, minima, protocol
from jaxstab.experiments import settings as shared
from jaxstab.experiments.claims import claim
from jaxstab.experiments.protocol import Context, Experiment, Outcome, execute
from jaxstab.experiments.settings import setting
from jaxstab.experiments.tables import Column, Table


@dataclass(frozen=True)
class Settings:
    learning_rates: tuple[float, ...] = setting((0.1, 0.5), "learning rates")
    seeds: int = setting(2, "seeds")


def counted(calls):
    """An experiment with one remembered step per learning rate."""

    def run(settings, context):
        rows = []
        for i, eta in enumerate(settings.learning_rates):

            def step(eta=eta):
                calls.append(eta)
                return {"eta": np.float32(eta), "value": np.array([math.nan, math.inf, 1.0])}

            rows.append(context.remember(f"step-{eta}", step))
            context.progress(i + 1, len(settings.learning_rates))
        rows = pd.DataFrame(rows)
        return Outcome(
            rows=rows,
            tables=[Table("steps", rows, [Column("eta", "η")], title="all steps")],
            claims=[claim("c", "a statement", "a statistic", math.inf, ">", 1, kind="theorem")],
            figures={"f": Figure()},
            notes=["a note"],
        )

    return Experiment("counted", "source", "summary", run, {"quick": Settings()})


def test_a_run_writes_its_folder(tmp_path):
    seen = []
    outcome = execute(
        counted([]),
        Settings(),
        out=tmp_path / "deep" / "out",
        progress=lambda *state: seen.append(state),
    )
    out = tmp_path / "deep" / "out"
    assert seen == [(1, 2), (2, 2)]
    assert list(outcome.figures) == ["f"] and (out / "f.png").stat().st_size > 0
    for path in ("results.csv", "tables/steps.csv"):
        assert pd.read_csv(out / path)["eta"].tolist() == pytest.approx([0.1, 0.5])
    # strict JSON has no infinity, so that any reader can read the file
    (written,) = json.loads((out / "claims.json").read_text(), parse_constant=pytest.fail)
    assert written["status"] == "holds" and written["measured"] == "inf"
    run = json.loads((out / "run.json").read_text(), parse_constant=pytest.fail)
    assert run["settings"] == {"learning_rates": [0.1, 0.5], "seeds": 2}
    assert run["status"] == "finished" and run["environment"]["versions"]["jax"]
    summary = (out / "summary.txt").read_text()
    assert summary.startswith("learning_rates 0.1 0.5, seeds 2\n\nall steps\n")
    assert summary.endswith("0.5\n\na note\n")


def test_a_repeated_run_continues(tmp_path):
    calls = []
    experiment = counted(calls)

    def interrupt(done, total, message=""):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(experiment, Settings(), out=tmp_path, progress=interrupt)
    assert calls == [0.1] and json.loads((tmp_path / "run.json").read_text())["status"] == "started"
    outcome = execute(experiment, Settings(), out=tmp_path)
    assert calls == [0.1, 0.5]
    assert math.isnan(outcome.rows["value"][0][0]) and outcome.rows["value"][0][1] == math.inf


def test_a_folder_of_another_run_is_refused(tmp_path):
    experiment = counted([])
    execute(experiment, Settings(), out=tmp_path)
    with pytest.raises(
        ValueError, match=r"different run \(seeds was 2, now 3\): give another --out"
    ):
        execute(experiment, Settings(seeds=3), out=tmp_path)


def test_a_setting_that_is_new_had_its_default(tmp_path):
    execute(counted([]), Settings(), out=tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    del run["settings"]["seeds"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    execute(counted([]), Settings(), out=tmp_path)
    run["settings"].pop("seeds", None)
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(ValueError, match=r"seeds was 2, now 3"):
        execute(counted([]), Settings(seeds=3), out=tmp_path)


def test_parts_have_folders_and_a_share_of_the_progress(tmp_path):
    seen = []
    context = Context(tmp_path, lambda *state: seen.append(state))
    part = context.part("digits/vgg/a,b", 1, 2)
    part.progress(3, 10, "half")
    assert part.out == tmp_path / "digits_vgg_a+b" and seen == [(13, 20, "digits/vgg/a,b half")]


def test_steps_that_are_remembered_come_in_order_with_the_progress(tmp_path):
    seen, computed = [], []
    context = Context(tmp_path, lambda *state: seen.append(state))
    steps = {name: lambda name=name: computed.append(name) or {"name": name} for name in "ba"}
    assert context.remember_all(steps) == [{"name": "b"}, {"name": "a"}]
    assert seen == [(0, 2, "b"), (1, 2, "a"), (2, 2, "done")]
    assert context.remember_all(steps) == [{"name": "b"}, {"name": "a"}] and computed == ["b", "a"]


def test_settings_by_name():
    experiment = counted([])
    assert experiment.settings(overrides={"seeds": 7}).seeds == 7
    with pytest.raises(ValueError, match="unknown preset 'quik': did you mean 'quick'"):
        experiment.settings("quik")
    with pytest.raises(ValueError, match="did you mean 'seeds'"):
        experiment.settings(overrides={"seed": 7})


def test_batch_sizes_and_seeds():
    assert shared.batch_sizes_for((4, "n"), 100) == (4, 100)
    assert shared.parse_batch_size("n") == "n" and shared.parse_batch_size("25") == 25
    assert shared.seed_range(3) == (0, 1, 2)
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        shared.seed_range(0)


def test_the_registry_imports_an_experiment_when_it_is_asked_for():
    code = (
        "import sys; from jaxstab.experiments import REGISTRY; names = list(REGISTRY);"
        "assert 'selection' in names and REGISTRY.listings['selection'].summary;"
        "assert not any('wu2018.' in name for name in sys.modules);"
        "REGISTRY['selection']; assert 'jaxstab.experiments.wu2018.selection' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_experiment_of_ones_own_can_be_added(monkeypatch):
    monkeypatch.setitem(REGISTRY, "counted", counted([]))
    assert REGISTRY["counted"].name == "counted" and "counted" in REGISTRY
    assert REGISTRY.listings["counted"].summary == "summary"


def test_outcomes_are_checked_by_name():
    with pytest.raises(KeyError):
        REGISTRY["nothing"]
    assert protocol.environment()["versions"]["jax"]


def test_the_skeleton_of_contributing_runs(tmp_path, record):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    module, listing = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[:2]
    names = {"__name__": "skeleton"}
    exec(compile(module, "CONTRIBUTING.md", "exec"), names)
    rows = minima.place([record(3.9, 4.0, batch_size=50, seed=seed) for seed in (0, 1)], 50)
    names["run_grid"] = lambda settings, context: SimpleNamespace(
        rows=rows, minima=minima.reached(rows)
    )
    exec(compile(listing, "CONTRIBUTING.md", "exec"), names)
    ((name, (_, place, summary)),) = names["EXPERIMENTS"].items()
    experiment = Experiment(name, place, summary, names["run"], names["PRESETS"])
    outcome = execute(experiment, experiment.presets["tiny"], out=tmp_path)
    assert outcome.claims[0].measured == pytest.approx(0.975)
    assert outcome.claims[0].status == "holds" and (tmp_path / "edge.png").exists()
