"""The site: its examples run, its saved output is that of the registry, its pictures are small."""

import importlib.util
import json
import pathlib
import re
import shutil
import sys

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
GENERATED = ("changelog", "command-line", "contributing")
PAGES = [p for p in (*DOCS.glob("*.md"), *DOCS.glob("how-to/*.md")) if p.stem not in GENERATED]
EXAMPLES = sorted(path for path in PAGES if "```python" in path.read_text())


def load(name):
    sys.path.insert(0, str(DOCS))  # one imports the other
    try:
        spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(DOCS))
    return module


@pytest.fixture(scope="module")
def generate():
    return load("generate")


@pytest.mark.slow  # they compile much
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda path: path.stem)
def test_examples_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


def test_saved_output_is_that_of_the_registry(generate):
    assert generate.saved(), "nothing is saved: make gallery"
    assert generate.disagreements() == []


def test_a_disagreement_is_named(generate, tmp_path):
    name = "bias"
    shutil.copytree(generate.saved()[name], tmp_path / name)
    assert generate.disagreements(tmp_path) == []
    run = json.loads((tmp_path / name / "run.json").read_text())
    run["settings"]["seeds"] = -1
    (tmp_path / name / "run.json").write_text(json.dumps(run))
    (tmp_path / name / run["figures"][0]).unlink()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "run.json").write_text("{}")
    found = generate.disagreements(tmp_path)
    assert len(found) == 3 and "gone: saved, but no experiment" in found[2]
    assert f"{name}: without {run['figures'][0]}" in found[0]
    assert f"{name}: seeds of the preset quick changed" in found[1]


def test_pictures_are_small():
    gallery = load("gallery")
    for path in (DOCS / "experiments").glob("*/*.png"):
        assert path.stat().st_size <= gallery.LARGEST, path


def test_every_experiment_has_a_page_with_its_claims(generate):
    from jaxstab.experiments import REGISTRY

    pages = dict(generate._experiments())
    assert {*pages} == {*REGISTRY.listings, "index"}
    for name, folder in generate.saved().items():
        for claim in json.loads((folder / "claims.json").read_text()):
            assert claim["status"] in pages[name]
        assert f"jaxstab run {name}" in pages[name]


def test_every_page_is_in_the_contents():
    text = "".join(path.read_text() for path in PAGES) + (DOCS / "experiments.txt").read_text()
    for path in DOCS.glob("how-to/*.md"):
        assert f"how-to/{path.stem}" in text


ROOT = DOCS.parent
REPOSITORY = [*PAGES, *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG"))]


@pytest.mark.parametrize("page", REPOSITORY, ids=lambda path: path.stem)
def test_links_lead_to_files_of_the_repository(page):
    """And not only of the site, which has further pages: `generate.site_links` leads to these."""
    for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)[^)]*\)", page.read_text()):
        path = (page.parent / target).resolve()
        assert path.exists() and path.is_relative_to(ROOT), target
        made = path.relative_to(ROOT).as_posix()
        assert not re.match(r"docs/(api/|notebooks/|experiments/[^/]*\.md)", made), target
        assert made not in {f"docs/{name}.md" for name in GENERATED}, target


def test_links_of_the_repository_lead_to_pages_of_the_site(generate):
    given = "[a](../notebooks/x.ipynb) [b](experiments/sam/) [c](api.txt) [d](../CONTRIBUTING.md)"
    there = "[a](notebooks/x.ipynb) [b](experiments/sam.md) [c](api/index.md) [d](contributing.md)"
    assert generate.site_links(given) == there
    deeper = generate.site_links("[a](../../notebooks/x.ipynb) [b](../experiments.txt)")
    assert deeper == "[a](../notebooks/x.ipynb) [b](../experiments/index.md)"
