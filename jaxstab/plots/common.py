"""Figures: one function per kind, arrays in, a matplotlib `Figure` out.

No function touches pyplot or draws on a shared figure. Colours are the Okabe-Ito palette, which
colour-blind readers can tell apart, and every series has its own marker as well. Theory is always
dashed and labelled; error bars are one standard deviation over seeds unless the label says else.
"""

import functools
import io
from collections.abc import Callable, Sequence
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
      interval: (lower, upper), each (m,), where the mean certainly lies: drawn as error bars.
      hollow: draws large open markers: published numbers beside ours.
      joined: draws a line through the means.
    """

    label: str
    x: Any
    mean: Any
    std: Any = None
    hollow: bool = False
    joined: bool = True
    interval: Any = None

    @property
    def error(self) -> Any:
        """Lengths of the error bars of `interval` below and above the mean, (2, m), or None."""
        if self.interval is None:
            return None
        mean, (lower, upper) = np.asarray(self.mean), map(np.asarray, self.interval)
        return np.maximum([mean - lower, upper - mean], 0)


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


def draw_series(
    axes: Axes, series: Sequence[Series], lines: Sequence[Line] = (), *, first: int = 0
) -> None:
    """Draws curves and dashed lines on existing axes; colours in order, from the first-th one."""
    for line in lines:
        if line.x is None:
            axes.axhline(line.y, ls="--", color=line.color, label=line.label)
        else:
            axes.plot(line.x, line.y, ls="--", color=line.color, label=line.label)
    for i, one in enumerate(series, start=first):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        options: dict[str, Any] = {"color": color, "marker": marker, "capsize": 3}
        if one.hollow:
            options |= {"markerfacecolor": "none", "markersize": 9}
        if not one.joined:
            options["ls"] = "none"
        error = one.std if one.interval is None else one.error
        axes.errorbar(one.x, one.mean, yerr=error, label=one.label, **options)


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


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def published_series(label: str, rows: Any, *, x: str, y: str) -> Series | None:
    """Published means and standard deviations, columns `y_mean` and `y_std`; None for no rows."""
    if not len(rows):
        return None
    return Series(label, rows[x], rows[f"{y}_mean"], rows[f"{y}_std"], hollow=True, joined=False)
