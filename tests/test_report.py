"""The HTML page: everything inside it, nothing lost, safe text."""

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from jaxstab import report, store
from jaxstab.experiments import minima
from jaxstab.experiments.claims import claim
from jaxstab.experiments.protocol import Experiment, Outcome, execute
from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import Estimate
from jaxstab.experiments.tables import Column, Table


@dataclass(frozen=True)
class Settings:
    learning_rates: tuple[float, ...] = setting((0.1, 0.5), "learning rates")


def run(settings, context):
    rows = [
        {"run": 1, "side": "inside", "value": 1 / 3},
        {"run": 2, "side": "outside", "value": float("inf")},
        {"run": 3, "side": "<script>alert(1)</script>", "value": 2.0},
    ]
    rows = pd.DataFrame(rows)
    measured = Estimate(0.5, 0.4, 0.6, "95 %, over 3 seeds")
    return Outcome(
        rows=rows,
        claims=[
            claim("inside", "a < b", "statistic", measured, "<=", 1, kind="theorem"),
            claim("c2", "c", "statistic", 2.0, "=", 1.0),
        ],
        tables=[Table("t", rows, [Column("value", "v", "1/step size")], title="table & title")],
        figures={"diagram": Figure()},
        notes=["a note < that"],
    )


@pytest.fixture
def folder(tmp_path):
    execute(Experiment("toy", "Author 2018", "summary", run, {}), Settings(), out=tmp_path)
    return tmp_path


class Links(html.parser.HTMLParser):
    """Collects what a page loads, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.links, self.open, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(page):
    links = Links()
    links.feed(page)
    assert not links.open
    return links


def images(page):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [base64.b64decode(image, validate=True) for image in found]


def test_the_page_needs_no_other_file(folder):
    page = report.write(folder).read_text()
    links = parse(page)
    assert all(link.startswith("data:") for link in links.links)
    assert "http:" not in page and "https:" not in page
    assert "@import" not in page and "url(" not in page
    (image,) = images(page)
    assert image == (folder / "diagram.png").read_bytes()


def test_the_page_shows_what_was_run_and_found(folder):
    page = report.write(folder).read_text()
    for text in ("toy", "Author 2018", "quick", "finished", "learning_rates", "0.1, 0.5"):
        assert text in page
    assert "table &amp; title" in page and "a note &lt; that" in page and "a &lt; b" in page
    assert "[0.4, 0.6] (95 %, over 3 seeds)" in page
    assert '<td class="good">inside</td>' in page and '<td class="bad">outside</td>' in page
    assert '<td class="good">holds</td>' in page and '<td class="bad">does not hold</td>' in page
    assert '<td class="text">inside</td>' in page  # the claim of that name is no verdict
    assert "0.33333" in page and "jaxlib" in page


def test_text_is_never_markup(folder):
    page = report.write(folder).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert parse(page).tags.count("script") == 1  # that of the page itself


def test_only_the_scripts_of_the_page_are_allowed_to_run(folder):
    page = report.write(folder).read_text()
    (policy,) = re.findall(r'Security-Policy" content="([^"]+)"', page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = policy.split("script-src ")[1]
    assert allowed == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy.startswith("default-src 'none'") and scripts


def test_a_folder_without_rendered_tables_shows_its_summary(folder):
    (folder / "tables.json").unlink()
    (folder / "summary.txt").write_text("the old table")
    assert "<pre>the old table</pre>" in report.write(folder).read_text()


def test_an_unfinished_run_has_a_page(tmp_path):
    def stop(settings, context):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(Experiment("toy", "source", "summary", stop, {}), Settings(), out=tmp_path)
    assert "started" in report.write(tmp_path).read_text()


def record(batch_size, sharpness, status="converged"):
    row = {"batch_size": batch_size, "learning_rate": 0.5, "init_scale": 1.0, "seed": 0}
    row |= {"status": status, "steps": 100, "loss": 1e-5, "gradient_norm": 1e-4}
    for name, value in (("sharpness", sharpness), ("nonuniformity", 2 * sharpness)):
        row |= {name: value, f"{name}_lower": value, f"{name}_upper": 1.0001 * value}
        row |= {f"{name}_residual": 0.0, f"{name}_matvecs": 9, f"{name}_converged": True}
    return row


def test_a_sweep_from_python_is_judged(tmp_path):
    description = {"n": 100, "learning_rates": [0.5], "config": {"loss": "squared"}}
    folder = store.Store(tmp_path, description)
    rows = [record(4, 0.9), record(25, 4.1), record(100, np.nan, "diverged")]
    for i, row in enumerate(rows):
        folder.write(f"run{i}", row, {"w": np.zeros(2)}, {"steps": [0], "loss": [1.0]})
    page = report.write(tmp_path).read_text()
    parse(page)
    assert len(images(page)) == 1 and len(page) < 5_000_000
    assert "embed_item" in page
    assert "inside the region of eq. 9: 1 of 2 (50.0%)" in page
    assert "diverged" in page and '<td class="bad">outside</td>' in page


def test_the_diagram_holds_every_minimum_and_its_bounds(tmp_path):
    rows = pd.DataFrame(minima.place([record(4, 0.9), record(25, 4.1), record(100, 1.2)], 100))
    rows.loc[0, "verdict"] = "</script><b>"
    placed = report.diagram.minima(rows)
    controls, data = report.diagram.build(placed)
    parse(controls)
    text = report.diagram.embed(data, "data")
    assert text.count("<") == 2 and text.count(">") == 2  # the element itself
    held = json.loads(text.split(">", 1)[1].rsplit("<", 1)[0])
    assert held["n"] == 100 and json.loads(json.dumps(data)) == held
    assert "B = 25" in text and "B = n" in text
    # without bounds or measurements there is nothing to judge
    assert not len(report.diagram.minima(rows.drop(columns="n")))
    assert not len(report.diagram.minima(rows.assign(side="")))
    assert not len(report.diagram.minima(pd.DataFrame()))


def test_a_sweep_without_measurements_is_listed(tmp_path):
    folder = store.Store(tmp_path, {"n": 100})
    names = [f.name for f in dataclasses.fields(Settings)]
    row = {"batch_size": 4, "learning_rate": 0.5, "init_scale": 1.0, "seed": 0, "loss": 0.25}
    folder.write("run", row, {"w": np.zeros(2)}, {"steps": [0], "loss": [1.0]})
    assert names and "0.25" in report.write(tmp_path).read_text()


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        report.write(tmp_path / "missing")
    with pytest.raises(ValueError, match="neither an experiment"):
        report.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_run_file_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        report.write(tmp_path)
