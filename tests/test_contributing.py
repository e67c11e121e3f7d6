"""The experiment that CONTRIBUTING.md shows passes the checks of `make check`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_skeleton_passes_the_linter_and_is_formatted():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    skeleton = re.search(r"## Adding an experiment.*?```python\n(.*?)```", text, re.DOTALL)[1]
    for command in ("check", "format --check"):
        words = [sys.executable, "-m", "ruff", *command.split(), "--stdin-filename", "edge.py", "-"]
        done = subprocess.run(words, input=skeleton, text=True, capture_output=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout
