"""Curves side by side: slices, ratios, histograms, each panel with its own axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxstab.plots.common import COLORS, MARKERS, Line, Series, label_axes, new_figure, styled


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
      title: above it.
      curves: drawn as lines without markers; a standard deviation as a band, a certified interval
        as error bars. Without labels they are of one kind and share a colour.
      xlabel: quantity and unit; that of `panels` by default.
      ylabel: the same.
      lines: dashed predictions.
      vertical: label to position of dotted vertical lines.
      log_y: logarithmic values.
      points: draws the curves as markers without lines, and standard deviations as error bars.
    """

    title: str
    curves: Sequence[Series]
    xlabel: str = ""
    ylabel: str = ""
    lines: Sequence[Line] = ()
    vertical: Mapping[str, float] = field(default_factory=dict)
    log_y: bool = False
    points: bool = False


@styled
def panels(shown: Sequence[Panel], *, xlabel: str = "", ylabel: str = "") -> Figure:
    """Draws panels in rows of at most three, legends below; one for panels with the same entries.

    Args:
      shown: the panels.
      xlabel: of panels without one of their own.
      ylabel: the same.
    """
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, grid = new_figure(rows, columns, width=4.2, height=3.4)
    for axes, panel in zip(grid.flat, shown):
        axes.locator_params(axis="x", nbins=6)  # long labels of more would overlap
        for i, curve in enumerate(panel.curves):
            color = COLORS[i % len(COLORS)] if curve.label else COLORS[0]
            mean = np.asarray(curve.mean)
            style = {"ls": "none", "marker": MARKERS[i % len(MARKERS)]} if panel.points else {}
            axes.plot(curve.x, mean, color=color, label=curve.label or None, **style)
            if curve.std is not None and panel.points:
                axes.errorbar(curve.x, mean, yerr=curve.std, fmt="none", color=color, capsize=3)
            elif curve.std is not None:
                low, high = mean - np.asarray(curve.std), mean + np.asarray(curve.std)
                if panel.log_y:
                    low = np.maximum(low, mean / 10)  # a band that reaches 0 has no logarithm
                axes.fill_between(curve.x, low, high, color=color, alpha=0.2, lw=0)
            if curve.error is not None:
                axes.errorbar(curve.x, mean, yerr=curve.error, fmt="none", color=color, capsize=3)
        for line in panel.lines:
            if line.x is None:
                axes.axhline(line.y, ls="--", color=line.color, label=line.label)
            else:
                axes.plot(line.x, line.y, ls="--", color=line.color, label=line.label)
        for i, (label, position) in enumerate(panel.vertical.items()):
            axes.axvline(position, ls=":", color=("#000000", "#888888")[i % 2], label=label)
        label_axes(
            axes,
            panel.xlabel or xlabel,
            panel.ylabel or ylabel,
            title=panel.title,
            log_y=panel.log_y,
            legend=False,
        )
    _draw_legends(figure, grid.flat[: len(shown)], rows)
    for axes in grid.flat[len(shown) :]:
        axes.set_axis_off()
    return figure


def _draw_legends(figure: Figure, drawn: Sequence[Axes], rows: int) -> None:
    """One legend below if all panels have the same entries; else one below each panel."""
    entries = [axes.get_legend_handles_labels() for axes in drawn]
    if len(drawn) > 1 and entries[0][1] and all(one[1] == entries[0][1] for one in entries):
        figure.legend(*entries[0], loc="outside lower center", ncols=min(len(entries[0][1]), 4))
        return
    lines = 0
    for axes, (_, labels) in zip(drawn, entries):
        columns = 3 if max(map(len, labels), default=0) < 12 else 2
        lines = max(lines, -(-len(labels) // columns))
        if labels:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.25 * lines * rows)
