"""Figures of stability: the plane of a and s, and the two-well problem."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxstab.plots.common import (
    COLORS,
    MARKERS,
    NONUNIFORMITY,
    SHARPNESS,
    Line,
    Series,
    draw_series,
    label_axes,
    new_figure,
    styled,
)
from jaxstab.stability import two_wells
from jaxstab.stability.boundary import eq8_boundary
from jaxstab.stability.criteria import box


@styled
def toy_escape(
    *,
    sgd: Any,
    gd: Any,
    growth: Any,
    growth_error: Any,
    growth_theory: Any,
    learning_rate: float,
    measured: Mapping[float, tuple[float, float]],
) -> Figure:
    """Landscape, iterates, loss burst and growth of E x² of the two-well problem (2018, Fig. 2).

    Args:
      sgd: iterates of some runs, shape (runs, steps); the middle one stands out.
      gd: iterates of gradient descent, shape (steps,).
      growth: measured E(x−1)² over its start, shape (t,).
      growth_error: its standard error.
      growth_theory: predicted, shape (t,).
      learning_rate: η, for the title.
      measured: position of each minimum to its (a, s).
    """
    figure, axes = new_figure(2, 2, width=5.2, height=3.5)
    (landscape, iterates), (loss, rate) = axes
    x, sgd = np.linspace(-0.8, 2.2, 601), np.asarray(sgd)
    for i, coefficient in enumerate(two_wells.COEFFICIENTS):
        one = np.asarray(two_wells.loss(x, coefficient))
        landscape.plot(x, one, color=COLORS[i], ls=":", label=f"f{'₁₂'[i]}")
    landscape.plot(x, two_wells.mean_loss(x), color="black", label="f = (f₁ + f₂)/2")
    for position, (a, s) in measured.items():
        landscape.annotate(f"a = {a:.3g}\ns = {s:.3g}", (position, 0.42), ha="center")
        landscape.plot(position, 0, "o", color="black", ms=5)
    landscape.set_ylim(-0.05, 1.6)
    label_axes(landscape, "x", "loss  [1]", title="two minima of equal sharpness")
    time, middle = np.arange(sgd.shape[1]), len(sgd) // 2
    for panel, ours, theirs in (
        (iterates, sgd, gd),
        (loss, *(np.maximum(two_wells.mean_loss(path), 1e-16) for path in (sgd, gd))),
    ):
        for i, path in enumerate(ours):
            if i != middle:
                panel.plot(time, path, color="#bbbbbb", lw=0.8)
        panel.plot([], [], color="#bbbbbb", lw=0.8, label="SGD, B = 1, other runs")
        panel.plot(time, ours[middle], color=COLORS[1], label="SGD, B = 1, one run")
        panel.plot(time, theirs, color=COLORS[0], label="GD")
    label_axes(iterates, "step t", "x", title="iterates from near x = 1", legend=False)
    iterates.legend(loc="upper left")
    label_axes(
        loss,
        "step t",
        "loss f(x), cut at 1e-16  [1]",
        title="burst of the loss",
        log_y=True,
        legend=False,
    )
    steps = np.arange(len(np.asarray(growth)))
    theory = Line("theory: ((1−ηa)² + η²s²)ᵗ", growth_theory, steps)
    ours = Series("measured, ± standard error", steps, growth, growth_error, joined=False)
    draw_series(rate, [ours], [theory])
    label_axes(rate, "step t", "E (x−1)² / (x₀−1)²  [1]", title="growth near x = 1", log_y=True)
    figure.suptitle(f"SGD leaves x = 1, where GD stays: η = {learning_rate:g}")
    return figure


@styled
def stability_diagram(
    *,
    n: int,
    batch_sizes: Sequence[int],
    learning_rates: Sequence[float],
    replacement: bool = False,
    simulated: Sequence[Mapping[str, Any]] = (),
    minima: Sequence[Mapping[str, Any]] = (),
    title: str = "",
) -> Figure:
    """Which minima SGD can stay at, in the plane of a and s (Wu, Ma, E 2018, Fig. 3).

    One panel per learning rate. For each batch size, in its colour: the box of eq. 9 dashed, eq. 8
    for one parameter solid, with the stable region shaded, and on them what was simulated and
    what was measured. At B = n only a ≤ 2/η is left.

    Args:
      n: number of examples.
      batch_sizes: of the regions.
      learning_rates: one panel each.
      replacement: whether batches are drawn with replacement.
      simulated: rows with learning_rate, batch_size, sharpness, and the non-uniformity at which
        simulated SGD turns unstable: simulated, simulated_error.
      minima: rows with learning_rate, batch_size, sharpness, nonuniformity: measured minima, for
        example `SweepResult.records`. Those of other learning rates are left out, and rows without
        a finite a or s.
      title: of the figure.

    Returns:
      The figure. Example: `plots.stability_diagram(n=1000, batch_sizes=(4, 25, 1000),
      learning_rates=(0.1,), minima=result.records).savefig("diagram.png")`.
    """
    figure, axes = new_figure(1, len(learning_rates), height=4.8)
    sizes = sorted(batch_sizes)
    colors = dict(zip(sizes, itertools.cycle(COLORS)))
    for panel, eta in zip(axes[0], learning_rates):
        here = [row for row in minima if row["learning_rate"] == eta and _has_place(row)]
        points = [row for row in simulated if row["learning_rate"] == eta]
        for size in sizes:
            _draw_region(panel, eta, size, n, replacement, colors[size])
            for row in (row for row in points if row["batch_size"] == size):
                place = (row["sharpness"], row["simulated"])
                options = {"color": colors[size], "marker": "o", "ms": 4, "capsize": 2}
                panel.errorbar(*place, yerr=2 * row["simulated_error"], ls="none", **options)
            mine = [row for row in here if row["batch_size"] == size]
            a, s = ([row[name] for row in mine] for name in ("sharpness", "nonuniformity"))
            panel.scatter(a, s, color=colors[size], marker="x", zorder=3)
        edge = 2 / eta
        panel.axvline(edge, ls="--", color="#444444")
        tops = [box(eta, size, n, replacement).nonuniformity for size in sizes]
        heights = [top for top in tops if np.isfinite(top)] + [row["nonuniformity"] for row in here]
        panel.set_xlim(0, 1.08 * max([edge, *(row["sharpness"] for row in here)]))
        panel.set_ylim(0, 1.1 * max(heights, default=edge))
        label_axes(panel, SHARPNESS, NONUNIFORMITY, title=f"η = {eta:g}", legend=False)
    names = {size: f"B = n = {n} (GD)" if size == n else f"B = {size}" for size in sizes}
    drawn = {row["batch_size"] for row in minima} | {size for size in sizes if size < n}
    handles: list[Artist] = [
        Patch(color=colors[size], alpha=0.6, label=names[size]) for size in sizes if size in drawn
    ]
    handles.append(Line2D([], [], ls="--", color="#444444", label="box of eq. 9; a = 2/η"))
    handles.append(Line2D([], [], ls="-", color="#444444", label="eq. 8, one parameter"))
    if simulated:
        label = "simulated edge ± 2 standard errors"
        handles.append(Line2D([], [], ls="none", marker="o", ms=4, color="#444444", label=label))
    if minima:
        handles.append(
            Line2D([], [], ls="none", marker="x", color="#444444", label="measured minimum")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(learning_rates))
    if title:
        figure.suptitle(title)
    return figure


def _has_place(row: Mapping[str, Any]) -> bool:
    values = [row.get(name) for name in ("sharpness", "nonuniformity")]
    return all(value is not None and np.isfinite(value) for value in values)


def _draw_region(
    axes: Axes, eta: float, batch_size: int, n: int, replacement: bool, color: str
) -> None:
    """Box of eq. 9 and the ellipse of eq. 8 inside it."""
    edge, top = box(eta, batch_size, n, replacement)
    if not np.isfinite(top):
        return
    # Dense towards both ends, where the ellipse is steep.
    a = edge * (1 - np.cos(np.linspace(0, np.pi, 201))) / 2
    options: dict[str, Any] = {"batch_size": batch_size, "n": n, "replacement": replacement}
    s = np.nan_to_num(eq8_boundary(a, learning_rate=eta, **options))
    axes.plot([0, edge, edge], [top, top, 0], ls="--", color=color, lw=1.2)
    axes.plot(a, s, color=color)
    axes.fill_between(a, 0, s, color=color, alpha=0.1, lw=0)


@styled
def boundary(
    rows: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float,
    title: str = "",
) -> Figure:
    """Where stability ends in several dimensions: eq. 9, eq. 8, exact and simulated, over a.

    Args:
      rows: each with p (one panel for each), problem, sharpness, and the non-uniformities eq9,
        eq8, exact, simulated and simulated_error.
      learning_rate: η, for the edge a = 2/η.
      title: of the figure.
    """
    dimensions = sorted({row["p"] for row in rows})
    figure, axes = new_figure(1, len(dimensions))
    for panel, p in zip(axes[0], dimensions):
        chosen = [row for row in rows if row["p"] == p]
        panel.axhline(chosen[0]["eq9"], ls="--", color="#444444", label="box of eq. 9")
        panel.axvline(2 / learning_rate, ls="--", color="#444444")
        for i, problem in enumerate(sorted({row["problem"] for row in chosen})):
            mine = [row for row in chosen if row["problem"] == problem]
            a, eq8, exact, simulated, error = (
                [row[name] for row in mine]
                for name in ("sharpness", "eq8", "exact", "simulated", "simulated_error")
            )
            name = f"problem {problem + 1}: "
            panel.plot(a, eq8, ls=":", color=COLORS[i], label=name + "eq. 8")
            panel.plot(a, exact, ls="-", color=COLORS[i], label=name + "exact")
            options: dict[str, Any] = {"color": COLORS[i], "marker": MARKERS[i], "capsize": 3}
            label = name + "simulated ± 2 standard errors"
            panel.errorbar(
                a, simulated, yerr=2 * np.asarray(error), ls="none", label=label, **options
            )
        panel.set_xlim(left=0)
        panel.set_ylim(bottom=0)
        label_axes(panel, SHARPNESS, NONUNIFORMITY, legend=False)
        panel.set_title("one parameter" if p == 1 else f"{p} parameters")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    if title:
        figure.suptitle(title)
    return figure
