"""Figures of quantities along training."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from jaxstab.plots.common import (
    SHARPNESS,
    Line,
    Series,
    draw_series,
    label_axes,
    new_figure,
    styled,
)


@styled
def along_training(groups: Mapping[str, Any], *, edge: float, title: str = "") -> Figure:
    """Loss and a along training, and a against the loss (Wu, Ma, E 2018, Fig. 4); 2/η dashed.

    Args:
      groups: legend entry to table with columns step, loss, loss_std, sharpness, sharpness_std.
      edge: 2/η.
      title: of the figure.
    """
    figure, axes = new_figure(1, 3, width=4.6)
    loss = "training loss L  [1]"
    panels = (("step", "loss"), ("step", "sharpness"), ("loss", "sharpness"))
    for panel, (x, y) in zip(axes[0], panels, strict=True):
        series = [Series(k, rows[x], rows[y], rows[f"{y}_std"]) for k, rows in groups.items()]
        draw_series(panel, series, [Line(f"2/η = {edge:g}", edge)] if y == "sharpness" else ())
        words = "step  [1]" if x == "step" else loss, loss if y == "loss" else SHARPNESS
        label_axes(panel, *words, log_x=True, log_y=True, legend=False)
    axes[0, 2].invert_xaxis()  # training goes to the right, as in the other two
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(title)
    return figure
