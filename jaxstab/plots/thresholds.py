"""Which learning rates can hold one minimum, by batch size, and which criterion tells it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxstab.plots.common import COLORS, LEARNING_RATE, MARKERS, label_axes, new_figure, styled


@styled
def stability_map(
    *,
    batch_sizes: Any,
    value: Any,
    lower: Any,
    upper: Any,
    bounds: Mapping[str, Any],
    n: int,
    title: str = "",
) -> Figure:
    """The plane of batch size and learning rate of one minimum, with every bound of stability.

    SGD is stable in mean square below the solid line. The shaded band is its interval; bounds that
    are sufficient lie below it, necessary ones above.

    Args:
      batch_sizes: B, (m,), increasing.
      value: exact threshold, (m,).
      lower: lower end of its interval, (m,).
      upper: upper end of its interval, (m,).
      bounds: name of a bound to its learning rates, (m,); infinite ones are left out.
      n: number of examples.
      title: of the figure.

    Returns:
      The figure. Example: with `found = jaxstab.mean_square_threshold(...)`,
      `plots.stability_map(batch_sizes=found.batch_sizes, value=found.value,
      lower=found.interval.lower, upper=found.interval.upper, bounds=found.bounds, n=found.n)`.
    """
    figure, axes = new_figure(width=6.4, height=4.6)
    panel, sizes = axes[0, 0], np.asarray(batch_sizes)
    panel.fill_between(sizes, lower, upper, color="black", alpha=0.12, lw=0, label="its interval")
    panel.plot(sizes, value, color="black", marker="o", label="mean-square threshold")
    for i, (name, bound) in enumerate(bounds.items()):
        bound = np.asarray(bound, float)
        shown = np.isfinite(bound)
        style = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)], "ms": 4}
        panel.plot(sizes[shown], bound[shown], ls="--", label=name, **style)
    panel.set_xscale("log")
    panel.set_yscale("log")
    label_axes(panel, f"batch size B of n = {n}  [1]", LEARNING_RATE, title=title)
    return figure


@styled
def criteria(
    *,
    labels: Sequence[str],
    accuracies: Mapping[str, Any],
    shares: Mapping[str, Mapping[str, Mapping[float, float]]],
) -> Figure:
    """How often each criterion of stability is right, and what happened around the threshold.

    Args:
      labels: of the criteria, (m,).
      accuracies: question to value and both ends of its interval for each criterion, (m, 3).
      shares: panel (a batch size) to question to {η/η*_var: share of runs that grew or left}.
    """
    figure, axes = new_figure(1, 1 + len(shares), width=4.2, height=4.2)
    panel, places = axes[0, 0], np.arange(len(labels))[::-1]
    for i, (name, found) in enumerate(accuracies.items()):
        value, lower, upper = np.asarray(found, float).T
        ends = np.maximum(np.stack([value - lower, upper - value]), 0)
        y = places + 0.2 * ((len(accuracies) - 1) / 2 - i)
        style = {"color": COLORS[i], "marker": MARKERS[i], "capsize": 2, "ls": "none"}
        panel.errorbar(value, y, xerr=ends, label=name, **style)
    panel.set_yticks(places, labels)
    panel.set_xlim(right=1.02)
    label_axes(panel, "share of right predictions  [1]", "criterion", legend=False)
    for axis, (title, lines) in zip(axes[0, 1:], shares.items()):
        axis.axvline(1.0, ls="--", color="#444444", label="exact threshold")
        for i, (name, found) in enumerate(lines.items()):
            style = {"color": COLORS[i], "marker": MARKERS[i]}
            axis.plot(list(found), list(found.values()), label=name, **style)
        label_axes(axis, "η / η*_var  [1]", "share that grew or left  [1]", title=title, log_x=True)
        axis.xaxis.set_minor_locator(NullLocator())
        ticks = sorted({multiple for found in lines.values() for multiple in found})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=60)
    return figure
