"""The diagram of a page: measured minima in the plane of a and s, judged again by the reader.

The plot is Bokeh's; `page.js` moves its bounds and colours with the controls, by the formulas of
`jaxstab.stability.margins`. Nothing of it is needed to read the page.
"""

import html
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from jaxstab.plots.common import COLORS, NONUNIFORMITY, SHARPNESS
from jaxstab.stability.criteria import box

QUANTITIES = ("sharpness", "nonuniformity")
# What a row needs to have a place in the plane and a certified side of every bound.
COLUMNS = (
    "learning_rate", "batch_size", "n", "side",
    *(q + part for q in QUANTITIES for part in ("", "_lower", "_upper", "_converged")),
)  # fmt: skip
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "star", "hex")
FILLS = {"inside": "#009E73", "undecided": "#999999", "outside": "#D55E00"}
# Groups by colours that no side has.
GROUPS = tuple(color for color in COLORS if color not in FILLS.values())
_SHOWN = ("problem", "learning_rate", "batch_size", "init_scale", "seed", "verdict")


def minima(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a place in the diagram; none if these are no minima of a sweep."""
    if not {*COLUMNS} <= {*rows.columns}:
        return rows.iloc[:0]
    placed = rows[rows["side"].isin([*FILLS])]
    return placed[np.isfinite(placed[[*QUANTITIES]].astype(float)).all(axis=1)]


def build(rows: pd.DataFrame) -> tuple[str, dict[str, Any]]:
    """Returns the controls as HTML, and the plot with its data for `page.js`.

    Args:
      rows: from `minima`, at least one.
    """
    n = int(rows["n"].max())
    rates = rows["learning_rate"].astype(float)
    controls = _CONTROLS.format(
        n=n,
        low=f"{np.log10(rates.min() / 10):.4f}",
        high=f"{np.log10(rates.max() * 10):.4f}",
        rate=html.escape(repr(float(rates.iloc[0]))),
        batch=int(rows["batch_size"].iloc[0]),
        top=f"{np.log10(n):.4f}",
    )
    return controls, {"plot": _plot(rows, n), "n": n, "fills": FILLS}


def bokeh_script() -> str:
    """The part of BokehJS that the plot needs, to be put into the page."""
    import bokeh

    path = resources.files(bokeh) / "server" / "static" / "js" / "bokeh.min.js"
    return path.read_text(encoding="utf-8")


def embed(value: Mapping[str, Any], name: str) -> str:
    """A value as JSON inside a page, where no text of it can end the element."""
    text = json.dumps(value, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f'<script type="application/json" id="{html.escape(name)}">{text}</script>'


def _plot(rows: pd.DataFrame, n: int) -> Any:
    from bokeh.embed import json_item
    from bokeh.models import ColumnDataSource, HoverTool, Range1d
    from bokeh.models.annotations import Legend, LegendItem
    from bokeh.plotting import figure

    place = rows[[*QUANTITIES]].astype(float).max()
    bounds = _boxes(rows)
    tops = [float(bounds.loc[np.isfinite(bounds[q]), q].max()) for q in QUANTITIES]
    ends = [1.1 * np.nanmax([x, min(y, 2 * x)]) for x, y in zip(place, tops)]
    plot = figure(
        sizing_mode="stretch_width",
        height=480,
        x_axis_label=SHARPNESS,
        y_axis_label=NONUNIFORMITY,
        x_range=Range1d(start=0, end=float(ends[0])),
        y_range=Range1d(start=0, end=float(ends[1])),
        tools="pan,wheel_zoom,box_zoom,reset,save",
        output_backend="canvas",
    )
    assert plot.toolbar is not None
    plot.toolbar.logo = None
    items: list[Any] = []
    points: list[Any] = []
    for i, (size, group) in enumerate(rows.groupby("batch_size")):
        color = GROUPS[i % len(GROUPS)]
        mine = bounds[bounds["batch_size"] == size]
        far = [10 * max(e, *place) for e in ends]
        corners = [np.where(np.isfinite(mine[q]), mine[q], f) for q, f in zip(QUANTITIES, far)]
        box_renderer = plot.multi_line(
            [[0, a, a] for a in corners[0].tolist()],
            [[s, s, 0] for s in corners[1].tolist()],
            line_color=color,
            line_dash="dashed",
            name=f"bounds {i}",
        )
        source = ColumnDataSource(_columns(group))
        scatter = plot.scatter(
            "sharpness",
            "nonuniformity",
            source=source,
            size=10,
            marker=MARKERS[i % len(MARKERS)],
            line_color=color,
            line_width=2,
            fill_color="fill",
            fill_alpha=0.85,
            name=f"group {i}",
        )
        label = "B = n" if size == n else f"B = {size}"
        shown: list[Any] = [scatter, box_renderer]
        items.append(LegendItem(label=label, renderers=shown))
        points.append(scatter)
    chosen: dict[str, Any] = {"x": [], "y": []}
    plot.multi_line("x", "y", source=ColumnDataSource(chosen), color="black", line_width=2,
                    name="chosen")  # fmt: skip
    plot.add_tools(HoverTool(renderers=points, tooltips=_tooltips(rows)))
    legend = Legend(items=items, click_policy="hide", title="click hides a group")
    plot.add_layout(legend, "right")
    return json_item(plot)


def _boxes(rows: pd.DataFrame) -> pd.DataFrame:
    """The bounds of eq. 9 under which the minima were found, each once."""
    names = ["learning_rate", "batch_size", "n"]
    found = rows[names].drop_duplicates()
    bounds = [box(float(eta), int(size), int(n)) for eta, size, n in found.to_numpy()]
    return found.assign(**{q: [bound[i] for bound in bounds] for i, q in enumerate(QUANTITIES)})


def _columns(rows: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns of a group in types that JSON has: what the theory needs, and what is shown."""
    columns: dict[str, list[Any]] = {
        name: rows[name].astype(float).tolist()
        for name in ("learning_rate", "batch_size", "n", *QUANTITIES)
    }
    for q in QUANTITIES:
        for end in ("_lower", "_upper"):
            columns[q + end] = rows[q + end].astype(float).tolist()
        columns[q + "_converged"] = rows[q + "_converged"].astype(bool).tolist()
        margin = f"{q}_margin"
        shown = rows[margin].astype(float) if margin in rows else [np.nan] * len(rows)
        columns[margin + "_shown"] = [f"{x:+.1%}" if np.isfinite(x) else "–" for x in shown]
    columns["side"] = rows["side"].tolist()
    columns["as_run"] = rows["side"].tolist()
    columns["fill"] = [FILLS[side] for side in rows["side"]]
    columns["run"] = [str(name) for name in rows.index]
    for name in _SHOWN:
        if name in rows:
            columns[f"shown_{name}"] = [_plain(value) for value in rows[name]]
    return columns


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def _tooltips(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Bokeh escapes the values that it puts in."""
    names = {"learning_rate": "η", "batch_size": "B", "init_scale": "scale", "verdict": "as run"}
    shown = [(names.get(name, name), f"@shown_{name}") for name in _SHOWN if name in rows.columns]
    a, s = (
        f"@{q}{{0.00000}} [@{q}_lower{{0.00000}}, @{q}_upper{{0.00000}}], margin @{q}_margin_shown"
        for q in QUANTITIES
    )
    return [("row", "@run"), *shown, ("a", a), ("s", s), ("eq. 9", "@side")]


_CONTROLS = """<div class="controls" id="controls">
<p><label>learning rate η <input type="range" id="eta-slider" min="{low}" max="{high}" step="any">
</label> <input type="number" id="eta" min="0" step="any" value="{rate}" aria-label="learning rate">
<label>batch size B <input type="range" id="batch-slider" min="0" max="{top}" step="any"></label>
<input type="number" id="batch" min="1" max="{n}" step="1" value="{batch}" aria-label="batch size">
<button type="button" id="as-run">as it was run</button></p>
<p><output id="counts"></output> <span id="bounds"></span><br>
filled by the side of eq. 9: <span class="side inside">inside</span>,
<span class="side undecided">undecided</span> (the certified interval straddles a bound),
<span class="side outside">outside</span></p>
</div>
<div id="diagram"></div>
"""
