"""Figures of minima that a sweep found: against the bounds of eq. 9, 2/η and batch size."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxstab.plots.common import (
    COLORS,
    LEARNING_RATE,
    MARKERS,
    NONUNIFORMITY,
    SHARPNESS,
    Line,
    Series,
    draw_series,
    label_axes,
    new_figure,
    published_series,
    styled,
)


@styled
def selection(
    *,
    sharpness: Any,
    nonuniformity: Any,
    batch_size: Any,
    init_scale: Any,
    learning_rate: float,
    boxes: Mapping[int, Sequence[float]],
    n: int,
    threshold_ratio: Sequence[Any] | None = None,
    title: str = "",
) -> Figure:
    """Where the minima of each batch size lie in the (a, s) plane (Wu, Ma, E 2018, Fig. 6).

    Left: every minimum, a marker per initialisation scale, with the box of eq. 9 dashed: a ≤ 2/η
    in grey, s ≤ (1/η)√(B(n−1)/(n−B)) in the colour of its batch size. Right: both measured numbers
    as fractions of their bounds, one point a run, so that margins can be read off. A third panel,
    where some thresholds are known: η over the exact threshold of the mean square.

    Args:
      sharpness: shape (runs,).
      nonuniformity: shape (runs,).
      batch_size: shape (runs,).
      init_scale: shape (runs,).
      learning_rate: the one learning rate of all runs.
      boxes: batch size to (bound of a, bound of s); the latter is infinite for the full batch.
      n: number of examples.
      threshold_ratio: η/η*_var and the ends of its interval, each (runs,); NaN where not known.
      title: of the figure.
    """
    a, s, batches, scales = map(np.asarray, (sharpness, nonuniformity, batch_size, init_scale))
    exact = None if threshold_ratio is None else np.array(threshold_ratio, float)
    if exact is not None and np.isnan(exact[0]).all():
        exact = None
    panels = 2 if exact is None else 3
    figure, axes = new_figure(1, panels, height=4.8)
    plane, margins = axes[0, :2]
    sizes, markers = sorted(boxes), dict(zip(sorted(set(scales.tolist())), MARKERS))
    colors = dict(zip(sizes, COLORS))
    names = {size: f"B = n = {n} (GD)" if size == n else f"B = {size}" for size in sizes}
    for size in sizes:
        plane.scatter([], [], color=colors[size], label=names[size])
        for scale, marker in markers.items():
            chosen = (batches == size) & (scales == scale)
            plane.scatter(a[chosen], s[chosen], color=colors[size], marker=marker, alpha=0.75)
    plane.axvline(
        2 / learning_rate, ls="--", color="#444444", label=f"a = 2/η = {2 / learning_rate:.4g}"
    )
    for size in sizes:
        if np.isfinite(boxes[size][1]):
            label = f"bound of s, {names[size]}: {boxes[size][1]:.4g}"
            plane.axhline(boxes[size][1], ls="--", color=colors[size], label=label)
    for scale, marker in markers.items():
        plane.scatter([], [], color="#777777", marker=marker, label=f"init scale {scale:g}")
    label_axes(plane, SHARPNESS, NONUNIFORMITY, title="minima, with the box of eq. 9", legend=False)
    plane.set_xlim(left=0)
    plane.set_ylim(bottom=0)
    _draw_margins(margins, a, s, batches, scales, boxes, colors, markers, n)
    if exact is not None:
        _draw_thresholds(axes[0, 2], exact, batches, scales, colors, markers)
    handles = plane.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2 * panels)
    if title:
        figure.suptitle(title)
    return figure


def _draw_margins(
    axes: Axes,
    a: np.ndarray,
    s: np.ndarray,
    batches: np.ndarray,
    scales: np.ndarray,
    boxes: Mapping[int, Sequence[float]],
    colors: Mapping[int, str],
    markers: Mapping[float, str],
    n: int,
) -> None:
    """Each run as a fraction of its bounds, grouped by batch size: a in full, s in open markers."""
    axes.axhline(1.0, ls="--", color="#444444")
    axes.annotate("bound", (0.01, 1.0), xycoords=("axes fraction", "data"), va="bottom")
    ticks, names = [], []
    for group, size in enumerate(sorted(boxes)):
        for quantity, values, bound in zip("as", (a, s), boxes[size]):
            if not np.isfinite(bound):
                continue
            center = group + (-0.2 if quantity == "a" else 0.2)
            ticks.append(center)
            names.append(f"{quantity}\nB={'n' if size == n else size}")
            for scale, marker in markers.items():
                chosen = (batches == size) & (scales == scale)
                spread = np.linspace(-0.1, 0.1, max(int(chosen.sum()), 1))[: int(chosen.sum())]
                face = colors[size] if quantity == "a" else "none"
                axes.scatter(
                    center + spread,
                    values[chosen] / bound,
                    edgecolors=colors[size],
                    facecolors=face,
                    marker=marker,
                    alpha=0.75,
                )
    axes.set_xticks(ticks, names)
    axes.set_ylim(0, max(1.1, 1.05 * axes.get_ylim()[1]))
    label_axes(axes, "batch size B", "measured / bound  [1]", legend=False)
    axes.set_title("fraction of the bound: a / (2/η) and s / bound of eq. 9")


def _draw_thresholds(
    axes: Axes,
    exact: np.ndarray,
    batches: np.ndarray,
    scales: np.ndarray,
    colors: Mapping[int, str],
    markers: Mapping[float, str],
) -> None:
    """η/η*_var of every run that has one, with its certified interval, grouped by batch size."""
    axes.axhline(1.0, ls="--", color="#444444")
    above: Any = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate("mean square grows above", (0.99, 1.0), **above)
    known = np.isfinite(exact[0])
    sizes = sorted(set(batches[known].tolist()))
    for group, size in enumerate(sizes):
        chosen = np.flatnonzero(known & (batches == size))
        spread = np.linspace(-0.25, 0.25, len(chosen)) if len(chosen) > 1 else np.zeros(1)
        for place, i in zip(group + spread, chosen):
            value, lower, upper = exact[:, i]
            axes.errorbar(
                place,
                value,
                yerr=[[max(value - lower, 0)], [max(upper - value, 0)]],
                color=colors[size],
                marker=markers[scales[i]],
                capsize=3,
            )
    axes.set_xticks(range(len(sizes)), [f"B={size}" for size in sizes])
    axes.set_xlim(-0.6, len(sizes) - 0.4)
    axes.set_ylim(bottom=0)
    label_axes(axes, "batch size B", "η / η*_var  [1]", legend=False)
    axes.set_title("exact threshold of the mean square, certified")


@styled
def edge(
    *,
    learning_rate: Any,
    sharpness: Any,
    blew_up: Sequence[float] = (),
    published: Series | None = None,
    title: str = "",
) -> Figure:
    """Sharpness of gradient-descent minima beside 2/η (Wu, Ma, E 2018, Table 2).

    Left: mean ± std over seeds on logarithmic axes. Right: every run as a fraction of 2/η.

    Args:
      learning_rate: shape (runs,).
      sharpness: shape (runs,).
      blew_up: learning rates at which no run converged; marked with a dash.
      published: means to draw beside ours, of the same data set only.
      title: of the figure.
    """
    eta, a = np.asarray(learning_rate, float), np.asarray(sharpness, float)
    rates = np.array(sorted(set(eta.tolist())))
    groups = [a[eta == rate] for rate in rates]
    figure, axes = new_figure(1, 2)
    left, right = axes[0]
    known = np.concatenate([rates, np.asarray(blew_up, float)])
    low, high = (known.min() / 1.4, known.max() * 1.4) if len(known) else (0.1, 1.0)
    grid = np.geomspace(low, high, 50)
    means, stds = [g.mean() for g in groups], [g.std() for g in groups]
    ours = Series("GD, mean ± std over seeds", rates, means, stds, joined=False)
    draw_series(left, [ours] + ([published] if published else []), [Line("2/η", 2 / grid, grid)])
    label_axes(left, LEARNING_RATE, SHARPNESS, log_x=True, log_y=True)
    right.axhline(1.0, ls="--", color="#444444", label="a = 2/η")
    right.scatter(eta, a * eta / 2, color=COLORS[0], label="one run", alpha=0.75)
    label_axes(right, LEARNING_RATE, "a / (2/η)  [1]", log_x=True)
    right.legend(loc="lower right")
    for rate in blew_up:
        left.annotate("– blew up", (rate, 2 / rate), ha="right", va="top")
        right.annotate("–\nblew up", (rate, 1.0), ha="center", va="top")
    for panel in (left, right):
        panel.set_xlim(low, high)
    if title:
        figure.suptitle(title)
    return figure


@styled
def batch_size(
    lines: Any,
    *,
    n: int,
    bound: Callable[[float, int], Sequence[float]],
    published: Any = (),
    title: str = "",
) -> Figure:
    """a and s of minima against batch size, bounds of eq. 9 dashed (Wu, Ma, E 2018, Fig. 5).

    One colour per learning rate; mean ± std over seeds. A cross on the axis where no run reached a
    minimum: the dashes of the paper's tables.

    Args:
      lines: table with columns learning_rate, batch_size, reached (number of minima), sharpness,
        sharpness_std, nonuniformity, nonuniformity_std.
      n: number of examples.
      bound: `bound(learning_rate, batch_size)` gives the bounds of a and of s; infinite for none.
      published: table with learning_rate, batch_size, sharpness_mean and so on, drawn hollow.
      title: of the figure.
    """
    figure, axes = new_figure(1, 2)
    rates, sizes = sorted(set(lines["learning_rate"])), sorted(set(lines["batch_size"]))
    grid = np.unique(np.geomspace(sizes[0], n, 100).round().astype(int))
    quantities = (("sharpness", SHARPNESS), ("nonuniformity", NONUNIFORMITY))
    for index, (panel, (name, label)) in enumerate(zip(axes[0], quantities, strict=True)):
        for i, eta in enumerate(rates):
            color = COLORS[i % len(COLORS)]
            here = lines[lines["learning_rate"] == eta]
            curve = np.array([bound(eta, int(size))[index] for size in grid])
            known = np.isfinite(curve)
            limit = Line(f"bound, η = {eta:g}", curve[known], grid[known], color=color)
            ours = Series(f"η = {eta:g}", here["batch_size"], here[name], here[f"{name}_std"])
            draw_series(panel, [ours], [limit], first=i)
            if len(published) and len(rows := published[published["learning_rate"] == eta]):
                theirs = published_series(f"η = {eta:g}, published", rows, x="batch_size", y=name)
                draw_series(panel, [theirs] if theirs else [], first=i)
            failed = here["batch_size"][here["reached"] == 0]
            if len(failed):
                options: Any = {"transform": panel.get_xaxis_transform(), "color": color}
                label_of_failed = f"η = {eta:g}: no minimum reached"
                panel.plot(
                    failed, [0.02] * len(failed), "x", ls="none", label=label_of_failed, **options
                )
        label_axes(panel, "batch size B  [examples]", label, log_x=True, log_y=True, legend=False)
        panel.set_xticks(sizes, ["n" if size == n else str(size) for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
    axes[0, 0].set_title("sharpness; bound a ≤ 2/η")
    axes[0, 1].set_title("non-uniformity; bound s ≤ (1/η) √(B(n−1)/(n−B))")
    reached = lines["nonuniformity"][lines["reached"] > 0]
    if len(reached):  # the bound, which has no limit as B tends to n, shall not squeeze the data
        axes[0, 1].set_ylim(reached.min() / 2, reached.max() * 4)
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(handles[0]), 6))
    figure.suptitle(title)
    return figure


@styled
def plane(
    groups: Mapping[str, Any], *, published: Mapping[str, Any] | None = None, title: str = ""
) -> Figure:
    """Minima of several groups in the (a, s) plane, logarithmic (Wu, Ma, E 2018, Fig. 7).

    Args:
      groups: legend entry to table with columns sharpness and nonuniformity.
      published: the same legend entries to tables with sharpness_mean and nonuniformity_mean,
        drawn hollow.
      title: of the figure.
    """
    figure, axes = new_figure(width=6.4, height=4.8)
    panel, published = axes[0, 0], published or {}
    for i, (label, rows) in enumerate(groups.items()):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        options: dict[str, Any] = {"color": color, "marker": marker, "alpha": 0.8}
        panel.scatter(rows["sharpness"], rows["nonuniformity"], label=label, **options)
        theirs = published.get(label, ())
        if len(theirs):
            means = theirs["sharpness_mean"], theirs["nonuniformity_mean"]
            options = {"edgecolors": color, "facecolors": "none", "marker": marker, "s": 80}
            panel.scatter(*means, label=f"{label}: published means", **options)
    label_axes(panel, SHARPNESS, NONUNIFORMITY, title=title, log_x=True, log_y=True)
    return figure
