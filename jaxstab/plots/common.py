"""Figures: one function per kind, arrays in, a matplotlib `Figure` out.

No function touches pyplot or draws on a shared figure. Colours are the Okabe-Ito palette, which
colour-blind readers can tell apart, and every series has its own marker as well. Theory is always
dashed and labelled; error bars are one standard deviation over seeds unless the label says else.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SHARPNESS = "sharpness a  [1/step size]"
NONUNIFORMITY = "non-uniformity s  [1/step size]"
LEARNING_RATE = "learning rate η  [step size]"

STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.framealpha": 0.9,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
    "figure.constrained_layout.use": True,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Runs a plotting function under the shared style and restores the user's own afterwards."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 5.6, height: float = 4.2) -> Any:
    """Returns (figure, axes array of shape (rows, columns)); width and height are of one panel."""
    figure = Figure(figsize=(width * columns, height * rows))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


@dataclass(frozen=True)
class Series:
    """One curve with error bars.

    Attributes:
      label: legend entry.
      x: positions, shape (m,).
      mean: shape (m,).
      std: shape (m,), one standard deviation, or None.
      hollow: draws large open markers: published numbers beside ours.
      joined: draws a line through the means.
    """

    label: str
    x: Any
    mean: Any
    std: Any = None
    hollow: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Line:
    """A prediction or bound: a dashed curve y(x), or a constant where x is None.

    Attributes:
      label: legend entry.
      y: shape (m,), or one number.
      x: shape (m,), or None for a horizontal line at y.
      color: any matplotlib colour.
    """

    label: str
    y: Any
    x: Any = None
    color: str = "#444444"


@styled
def mean_std(
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    lines: Sequence[Line] = (),
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Figure:
    """Mean ± standard deviation of any quantity over x, with dashed predictions or bounds."""
    figure, axes = new_figure()
    draw_series(axes[0, 0], series, lines)
    label_axes(axes[0, 0], xlabel, ylabel, title=title, log_x=log_x, log_y=log_y)
    return figure


def draw_series(axes: Axes, series: Sequence[Series], lines: Sequence[Line] = ()) -> None:
    """Draws curves and dashed lines on existing axes; colours follow the order of `series`."""
    for line in lines:
        if line.x is None:
            axes.axhline(line.y, ls="--", color=line.color, label=line.label)
        else:
            axes.plot(line.x, line.y, ls="--", color=line.color, label=line.label)
    for i, one in enumerate(series):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        options: dict[str, Any] = {"color": color, "marker": marker, "capsize": 3}
        if one.hollow:
            options |= {"markerfacecolor": "none", "markersize": 9}
        if not one.joined:
            options["ls"] = "none"
        axes.errorbar(one.x, one.mean, yerr=one.std, label=one.label, **options)


def label_axes(
    axes: Axes,
    xlabel: str,
    ylabel: str,
    *,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    legend: bool = True,
) -> None:
    """Names the axes with their units, sets the scales and the legend."""
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title)
    if legend:
        axes.legend()


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
    title: str = "",
) -> Figure:
    """Where the minima of each batch size lie in the (a, s) plane (Wu, Ma, E 2018, Fig. 6).

    Left: every minimum, a marker per initialisation scale, with the box of eq. 9 dashed: a ≤ 2/η
    in grey, s ≤ (1/η)√(B(n−1)/(n−B)) in the colour of its batch size. Right: both measured numbers
    as fractions of their bounds, one point a run, so that margins can be read off.

    Args:
      sharpness: shape (runs,).
      nonuniformity: shape (runs,).
      batch_size: shape (runs,).
      init_scale: shape (runs,).
      learning_rate: the one learning rate of all runs.
      boxes: batch size to (bound of a, bound of s); the latter is infinite for the full batch.
      n: number of examples.
      title: of the figure.
    """
    a, s, batches, scales = map(np.asarray, (sharpness, nonuniformity, batch_size, init_scale))
    figure, axes = new_figure(1, 2)
    plane, margins = axes[0]
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
    label_axes(plane, SHARPNESS, NONUNIFORMITY, legend=False)
    plane.set_xlim(left=0)
    plane.set_ylim(bottom=0)
    _draw_margins(margins, a, s, batches, scales, boxes, colors, markers, n)
    figure.legend(*plane.get_legend_handles_labels(), loc="outside lower center", ncols=3)
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
    axes.set_ylabel("measured / bound  [1]")
    axes.set_title("fraction of the bound: a / (2/η) and s / bound of eq. 9")


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
