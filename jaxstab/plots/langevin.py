"""Figures of Langevin dynamics and flatness: histograms beside densities, triangles, groups."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from jaxstab.plots.common import (
    COLORS,
    MARKERS,
    Line,
    Series,
    label_axes,
    new_figure,
    styled,
)


@dataclass(frozen=True)
class Histogram:
    """Measured probabilities of bins beside a density.

    Attributes:
      title: of the panel.
      edges: of the bins, shape (k + 1,).
      measured: label to probabilities of the bins, each of shape (k,).
      x: a grid, shape (m,).
      density: on it, shape (m,).
      errors: label to standard errors of the probabilities, as far as known.
    """

    title: str
    edges: Any
    measured: Mapping[str, Any]
    x: Any
    density: Any
    errors: Mapping[str, Any] | None = None


@styled
def marginals(
    panels: Sequence[Histogram],
    *,
    xlabel: str = "first coordinate x₁  [1]",
    exact: str = "exact density",
    columns: int = 3,
    title: str = "",
) -> Figure:
    """Histograms of several dynamics over the exact density, one panel for each potential.

    Args:
      panels: what to draw.
      xlabel: of all panels.
      exact: legend entry of the density.
      columns: panels beside each other.
      title: of the figure.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = new_figure(rows, columns, width=4.2, height=3.2)
    for place, panel in zip(axes.ravel(), panels):
        edges = np.asarray(panel.edges)
        middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        inside = (panel.x >= edges[0]) & (panel.x <= edges[-1])
        for i, (label, values) in enumerate(panel.measured.items()):
            place.stairs(np.asarray(values) / width, edges, color=COLORS[i], label=label)
            error = (panel.errors or {}).get(label)
            if error is not None:
                bars = 2 * np.asarray(error) / width
                place.errorbar(middle, values / width, bars, color=COLORS[i], ls="none", capsize=0)
        place.plot(panel.x[inside], panel.density[inside], ls="--", color="#444444", label=exact)
        label_axes(place, xlabel, "density  [1/x]", title=panel.title, legend=False)
    for place in axes.ravel()[len(panels) :]:
        place.remove()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    if title:
        figure.suptitle(title)
    return figure


@styled
def triangles(
    coordinates: Any,
    values: Mapping[str, Any],
    *,
    quantity: str,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    """A quantity over triangles of networks: filled contours above, surfaces below.

    Args:
      coordinates: of the points in the plane, shape (m, 2): `Simplex.coordinates()`.
      values: title of a panel to the quantity, shape (m,).
      quantity: its name and unit.
      limits: of the colours, shared by all panels.
      title: of the figure.
    """
    x, y = np.asarray(coordinates).T
    low, high = limits or (
        min(np.min(z) for z in values.values()),
        max(np.max(z) for z in values.values()),
    )
    levels = np.linspace(low, high + 1e-9 * (high == low), 21)
    figure, axes = new_figure(2, len(values), width=4.6, height=3.9)
    mesh = Triangulation(x, y)
    for i, (name, z) in enumerate(values.items()):
        flat = axes[0, i]
        drawn = flat.tricontourf(mesh, z, levels=levels, cmap="viridis", extend="both")
        flat.triplot([0, 1, 0.5], [0, 0, math.sqrt(0.75)], [[0, 1, 2]], color="black", lw=0.8)
        for name_of, at in zip("₁₂₃", [(-0.04, -0.05), (1.04, -0.05), (0.5, 0.9)]):
            flat.text(*at, f"w{name_of}", ha="center")
        flat.set_aspect("equal")
        flat.set_axis_off()
        flat.set_title(name, pad=20)
        axes[1, i].remove()
        surface = figure.add_subplot(2, len(values), len(values) + i + 1, projection="3d")
        surface.plot_trisurf(mesh, np.asarray(z), cmap="viridis", vmin=low, vmax=high, lw=0)
        surface.set(xlabel="x  [side]", ylabel="y  [side]", zlabel=quantity)
        surface.set_zlim(low, high if high > low else low + 1)
    figure.colorbar(drawn, ax=list(axes[0]), label=quantity, shrink=0.8)
    if title:
        figure.suptitle(title)
    return figure


@styled
def noise(
    values: Mapping[str, Mapping[str, Any]],
    *,
    names: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Components of gradient noise, each over its standard deviation, beside the normal density.

    Args:
      values: panel (a layer, say) to label (a batch size) to numbers of any shape.
      names: title of a panel, where it is not its key.
      title: of the figure.
    """
    figure, axes = new_figure(1, len(values), width=4.2, height=3.6)
    edges = np.linspace(-6, 6, 41)
    x = (edges[1:] + edges[:-1]) / 2
    for panel, (name, sets) in zip(axes[0], values.items()):
        for i, (label, numbers) in enumerate(sets.items()):
            flat = np.asarray(numbers).ravel()
            counts = np.histogram(flat, edges)[0] / max(len(flat), 1) / np.diff(edges)
            panel.plot(x, np.where(counts > 0, counts, np.nan), color=COLORS[i], label=label)
        normal = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        panel.plot(x, normal, ls="--", color="#444444", label="normal density")
        panel.set_ylim(1e-4, 5)
        label_axes(
            panel,
            "component / its standard deviation  [1]",
            "density  [1]",
            title=(names or {}).get(name, name),
            log_y=True,
            legend=False,
        )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    if title:
        figure.suptitle(title)
    return figure


@styled
def curves(
    panels: Mapping[str, Sequence[Series]],
    *,
    xlabel: str,
    log_y: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Curves with bands of one standard deviation, in panels beside each other.

    Args:
      panels: label of the vertical axis, with its unit, to series.
      xlabel: of all panels.
      log_y: those panels with a logarithmic axis.
      title: of the figure.
    """
    figure, axes = new_figure(1, len(panels), width=5.0)
    for panel, (ylabel, series) in zip(axes[0], panels.items()):
        for i, (one, color) in enumerate(zip(series, COLORS)):
            mean = np.asarray(one.mean)
            every = (i, len(series))  # markers in turn tell curves apart that lie on each other
            style = {"marker": MARKERS[i], "markevery": every, "markersize": 5}
            panel.plot(one.x, mean, color=color, label=one.label, **style)
            if one.std is not None:
                panel.fill_between(
                    one.x, mean - one.std, mean + one.std, color=color, alpha=0.2, lw=0
                )
        label_axes(panel, xlabel, ylabel, log_y=ylabel in log_y)
    if title:
        figure.suptitle(title)
    return figure


@styled
def groups(
    values: Mapping[str, Mapping[str, tuple[float, float]]],
    *,
    ylabel: str,
    hollow: Sequence[str] = (),
    lines: Sequence[Line] = (),
    log_y: bool = False,
    title: str = "",
) -> Figure:
    """Means ± standard deviations of named groups, in series.

    Args:
      values: series to group to (mean, standard deviation); a group may be missing.
      ylabel: quantity with its unit.
      hollow: series drawn with open markers: published numbers.
      lines: dashed constants.
      log_y: logarithmic axis.
      title: of the figure.
    """
    figure, axes = new_figure(width=6.4)
    panel = axes[0, 0]
    names = dict.fromkeys(name for found in values.values() for name in found)
    places = {name: i for i, name in enumerate(names)}
    for line in lines:
        panel.axhline(line.y, ls="--", color=line.color, label=line.label)
    for i, (label, found) in enumerate(values.items()):
        x = [places[name] + 0.12 * (i - (len(values) - 1) / 2) for name in found]
        mean, std = np.array(list(found.values()), float).reshape(-1, 2).T
        options: dict[str, Any] = {"marker": MARKERS[i % 8], "color": COLORS[i % 8], "capsize": 3}
        if label in hollow:
            options["markerfacecolor"] = "none"
        panel.errorbar(x, mean, std, ls="none", label=label, **options)
    panel.set_xticks(list(places.values()), list(places))
    label_axes(panel, "group", ylabel, title=title, log_y=log_y)
    return figure
