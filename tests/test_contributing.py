"""The experiment that CONTRIBUTING.md shows passes the checks and runs as it stands."""

import re
import subprocess
import sys
import types
from pathlib import Path

from jaxstab.experiments.protocol import Experiment, execute

ROOT = Path(__file__).parents[1]


def skeleton():
    """The first Python block under "Adding an experiment"."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.search(r"## Adding an experiment.*?```python\n(.*?)```", text, re.S)[1]


def test_the_skeleton_passes_the_linter_and_is_formatted():
    for command in ("check", "format --check"):
        words = [sys.executable, "-m", "ruff", *command.split(), "--stdin-filename", "edge.py", "-"]
        done = subprocess.run(words, input=skeleton(), text=True, capture_output=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout


def test_the_skeleton_runs(tmp_path, monkeypatch):
    module = types.ModuleType("edge")
    monkeypatch.setitem(sys.modules, "edge", module)  # where dataclasses look annotations up
    exec(compile(skeleton(), "CONTRIBUTING.md", "exec"), module.__dict__)
    assert {"quick", "paper", "tiny"} == set(module.PRESETS)
    experiment = Experiment("edge", "Author 2020, Fig. 1", "edge", module.run, module.PRESETS)
    outcome = execute(experiment, module.PRESETS["tiny"], out=tmp_path)
    assert len(outcome.rows) == 2 and [one.name for one in outcome.claims] == ["at-the-edge"]
    assert (tmp_path / "edge.png").exists() and (tmp_path / "tables" / "edge.csv").exists()
