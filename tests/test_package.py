"""The public names, the direction in which data flow, and the documentation that runs."""

import ast
import doctest
import importlib
import pathlib
import pkgutil
import re
import tomllib

import pytest

import jaxstab

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxstab"
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# data → loss → operator → eigen → verdict; transforms → training → sweeps → experiments.
# A module imports from its own layer and from lower ones; eigen and the operators do not meet.
LAYERS = {
    "callables": 0, "checks": 0, "convolutions": 0, "emulation": 0, "files": 0, "leases": 0,
    "names": 0, "precision": 0, "progress": 0, "resolution": 0, "trees": 0,
    "checksums": 1, "processes": 1,
    "data": 1, "examples": 1, "tfds": 1, "losses": 1, "sampling": 1, "models": 2,
    "deep_models": 1, "testing": 2,
    "operators": 3, "eigen": 3,
    "measurement": 4, "population": 4,
    "stability": 5,
    "transforms": 6, "tracking": 6,
    "dispatch": 7, "training": 7, "run_settings": 6, "landscape": 7,
    "snapshots": 8, "store": 8, "sharing": 8, "sweeps": 8,
    "plots": 9, "experiments": 10, "report": 11, "cli": 12, "__main__": 13,
}  # fmt: skip


def imported(path):
    """Modules of the package that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxstab"):
            names = [node.module]
            if node.module == "jaxstab":
                names = [f"jaxstab.{alias.name}" for alias in node.names]
            yield from names
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("jaxstab"))


@pytest.mark.parametrize("module", [name for name in MODULES if name != "jaxstab"])
def test_imports_flow_one_way(module):
    own = module.split(".")[1]
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for name in imported(path):
        other = name.split(".")[1] if "." in name else own
        if other == own or other not in LAYERS:
            continue
        assert LAYERS[other] <= LAYERS[own], f"{module} imports {name}"
        assert {own, other} != {"eigen", "operators"}, f"{module} imports {name}"


def test_public_names_exist():
    """The contract that README, notebooks and outside users rely on."""
    for name in jaxstab.__all__:
        assert hasattr(jaxstab, name), name
    for name in ("lanczos", "power_iteration", "spectral_density", "trace"):
        assert callable(getattr(jaxstab.eigen, name))
    for name in ("sgd", "swa", "sam", "langevin"):
        assert callable(getattr(jaxstab.transforms, name))
    assert callable(jaxstab.data.load)


def test_what_type_checkers_see_is_what_is_imported():
    """The imports under TYPE_CHECKING and the names that are resolved on first use agree."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.name) for node in block.body
            if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
    homes = {(home, name) for home, names in jaxstab._HOMES.items() for name in names}
    assert seen == homes and {name for _, name in homes} == set(jaxstab.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sharpnes'"):
        jaxstab.sharpnes  # noqa: B018


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_print_what_they_say(module):
    loaded = importlib.import_module(module)
    import jax
    import jax.numpy as jnp

    failures, _ = doctest.testmod(loaded, extraglobs={"jax": jax, "jnp": jnp})
    assert failures == 0


def readme_blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(readme_blocks())))
def test_readme_examples_run_as_they_stand(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(readme_blocks()[number], f"README block {number}", "exec"), {})


def test_the_oldest_versions_are_those_of_the_metadata():
    """constraints-oldest.txt, with which `make test-oldest` runs, says what pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["test"]
    lowest = dict(line.split(">=") for line in asked)
    pins = (ROOT / "constraints-oldest.txt").read_text().split()
    pinned = dict(pin.split("==") for pin in pins)
    assert {*lowest} == {*pinned}
    for name, version in lowest.items():
        assert f"{pinned[name]}.".startswith(f"{version}."), name


CITING = [
    path for folder in ("jaxstab", "tests", "benchmarks", "notebooks", "docs")
    for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".md", ".ipynb")
]  # fmt: skip


def test_what_is_cited_is_in_the_repository():
    """Files of docs/ by name, their sections by number, tests of docs/peers.md by name."""
    sections = set(re.findall(r"^## (\d+)\.", (ROOT / "docs/formulas.md").read_text(), re.M))
    defects = set(re.findall(r"^\| (\d+) \|", (ROOT / "docs/peers.md").read_text(), re.M))
    for path in CITING:
        text = path.read_text()
        for name in re.findall(r"\bdocs/[\w/]+\.md\b", text):
            assert (ROOT / name).exists(), f"{path} cites {name}"
        for number in re.findall(r"docs/formulas\.md,\s+sections?\s+(\d+)", text):
            assert number in sections, f"{path} cites section {number} of docs/formulas.md"
        for number in re.findall(r"docs/peers\.md, (\d+)", text):
            assert number in defects, f"{path} cites defect {number} of docs/peers.md"
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text):
            assert f"def {test}(" in (ROOT / file).read_text(), f"{path} cites {file}::{test}"


def test_names_in_the_formulas_exist():
    for name in re.findall(r"`(jaxstab\.[\w.]+)`", (ROOT / "docs/formulas.md").read_text()):
        assert pkgutil.resolve_name(name) is not None


def test_files_stay_short():
    """A file under about 400 lines is still one idea."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 450
    }
    assert not long
