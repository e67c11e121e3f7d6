#!/usr/bin/env bash
# dist_check.sh DIST: the wheel in DIST in a fresh environment, with the README's commands and examples.
# Run it outside the checkout, beside copies of README.md and constraints.txt; `make dist-test` does.
set -euo pipefail
dist=$(cd "$1" && pwd)
ls "$dist"/*.whl "$dist"/*.tar.gz >/dev/null
unset PYTHONPATH
rm -rf fresh && "${PYTHON:-python3}" -m venv fresh
fresh/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$dist"/*.whl
fresh/bin/python - <<'PY'
import pathlib, jaxstab
from importlib import metadata, resources
assert "site-packages" in jaxstab.__file__, jaxstab.__file__
assert metadata.version("jaxstab") == jaxstab.__version__
for name in ("py.typed", "report/page.js", "report/page.css", "experiments/published/wu2018_grid.csv"):
    assert (resources.files("jaxstab") / name).is_file(), name
PY
fresh/bin/jaxstab doctor
fresh/bin/jaxstab list
fresh/bin/jaxstab run toy-escape --preset tiny --out runs/toy-escape
fresh/bin/jaxstab show runs/toy-escape >/dev/null
test -s runs/toy-escape/report.html
fresh/bin/python - <<'PY'
import pathlib, re
text = pathlib.Path("README.md").read_text()
blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
for number, block in enumerate(blocks):
    exec(compile(block, f"README block {number}", "exec"), {})
print(f"{len(blocks)} examples of the README run")
PY
