"""One self-contained HTML page from an output folder: what was run, verdicts, figures, environment.

It works on the folder of any experiment, and on one that `jaxstab.sweep` wrote. Figures, styles and
scripts are inside the page: it can be sent as it is and needs no network; a policy in its head
keeps a browser from asking for one, and from running any script but those that are put here. It
is complete without scripts; with them, its tables sort and filter, and minima can be judged at
another learning rate and batch size.
"""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from jaxstab import files, plots
from jaxstab.experiments import tables
from jaxstab.experiments.tables import Column, Table
from jaxstab.report import diagram
from jaxstab.report.contents import Contents, read

__all__ = ["REPORT", "Contents", "build", "read", "show", "show_claim", "write"]

REPORT = "report.html"
# Columns of results whose words are verdicts, shown in colour.
STATUS = ("side", "sharpness_side", "nonuniformity_side", "verdict", "predicted")


def write(folder: Path | str) -> Path:
    """Writes `folder/report.html` and returns its path.

    Raises:
      ValueError: if the folder is not there, or holds neither an experiment nor a sweep.
    """
    folder = Path(folder)
    path = folder / REPORT
    page = build(folder)
    files.write_atomically(path, page)
    return path


def build(folder: Path | str) -> str:
    """Returns the page for a folder; see `write`."""
    found = read(folder)
    run = found.run
    took = f", took {run['seconds']} s" if "seconds" in run else ""
    about = (
        f"<p>{_text(run['summary'])}<br>Source: {_text(run.get('source', ''))}. "
        f"Preset {_text(run.get('preset', ''))}, {_text(run.get('status', ''))}{took}.</p>"
        if "summary" in run
        else ""
    )
    figures = [_figure(path) for path in found.figures] or _drawn(found)
    scripts, interactive = [], ""
    placed = diagram.minima(found.rows)
    if len(placed):
        controls, data = diagram.build(placed)
        title = "Diagram: what would eq. 9 say at another learning rate and batch size?"
        body = _section(title, controls + diagram.embed(data, "diagram-data"))
        interactive = f'<section id="interactive" hidden>{body}</section>'
        scripts.append(diagram.bokeh_script())
    parts = [
        about,
        _section("Claims", _claims(found.claims)) if found.claims else "",
        interactive,
        _section("Figures", "".join(figures)),
        _section("Tables", _found(found.tables, found.notes)),
        _section(f"Results: {len(found.rows)} rows", _table(found.rows)) if len(found.rows) else "",
        _section("What was run", _definitions(run.get("settings", {}))),
        _section("Environment", _definitions(run.get("environment", {}))),
    ]
    return _page(found.title, parts, [*scripts, _asset("page.js")])


def _drawn(found: Contents) -> list[str]:
    """The diagrams of a sweep, which has no pictures in its folder."""
    from jaxstab.experiments import minima

    if found.n is None:
        return []
    figures = minima.diagrams(found.rows, n=found.n)
    return [_image(plots.png(figure), name) for name, figure in figures.items()]


def _found(rendered: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """Tables and the lines below them."""
    lines = f"<pre>{_text(chr(10).join(notes))}</pre>" if notes else ""
    return "".join(map(tables.to_html, rendered)) + lines


def _claims(claims: Sequence[Mapping[str, Any]]) -> str:
    rows = pd.DataFrame([{key: show(value) for key, value in claim.items()} for claim in claims])
    rows["uncertainty"] = [_uncertainty(claim["uncertainty"]) for claim in claims]
    names = ("status", "statement", "statistic", "measured", "predicted", "uncertainty", "kind")
    columns = [Column(name, status=name == "status") for name in names]
    return tables.to_html(Table("claims", rows, [*columns, Column("name")]).rendered())


def _uncertainty(given: Any) -> str:
    """The interval and how it was found; folders of before have other entries."""
    if isinstance(given, Mapping) and {*given} == {"interval", "how"}:
        return f"[{show(given['interval'])}] ({given['how']})"
    return show(given)


def _table(rows: pd.DataFrame) -> str:
    """Rows as they are."""
    columns = [Column(name, name, format=".5g", status=name in STATUS) for name in rows.columns]
    return tables.to_html(Table("results", rows, columns).rendered())


def show_claim(claim: Mapping[str, Any]) -> str:
    """Statistic, measured value with its interval, prediction and kind, in one line."""
    low, high = (claim["uncertainty"] or {}).get("interval", (0, 0))
    around = "" if low == high else f" [{show(low)}, {show(high)}]"
    return (
        f"{claim['statistic']}: {show(claim['measured'])}{around}, predicted "
        f"{show(claim['predicted'])} ({claim['kind']})"
    )


def _page(title: str, parts: Sequence[str], scripts: Sequence[str]) -> str:
    """The whole page; only these scripts run in it, by their hashes in its policy."""
    body = "\n".join(part for part in parts if part)
    title, style = _text(title), _asset("page.css")
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = (
        "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline' blob:; "
        f"script-src {allowed}"
    )
    head = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n"
    )
    end = "".join(f"<script>{script}</script>\n" for script in scripts)
    return f"{head}<h1>{title}</h1>\n{body}\n{end}</html>\n"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(title: str, body: str) -> str:
    return f"<h2>{_text(title)}</h2>\n{body}" if body else ""


def _definitions(values: Mapping[str, Any]) -> str:
    """Names and values, two columns."""
    if not values:
        return ""
    lines = [
        f"<tr><td class=text>{_text(name)}</td><td class=text>{_text(show(value))}</td></tr>"
        for name, value in values.items()
    ]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def show(value: Any) -> str:
    """A value as text, numbers to five digits."""
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(show, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {show(item)}" for name, item in value.items())
    return "" if value is None else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _figure(path: Path) -> str:
    return _image(path.read_bytes(), path.stem)


def _image(content: bytes, name: str) -> str:
    encoded = base64.b64encode(content).decode()
    return f'<img alt="{_text(name)}" src="data:image/png;base64,{encoded}">\n'
