"""Which learning rates can hold one minimum, by batch size."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

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
