"""Figures of where SGD settles, against its learning rate."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from jaxstab.plots.common import Line, Series, draw_series, label_axes, new_figure, styled

FORMULAS = {"exact": "#444444", "four factors": "#0072B2", "three factors": "#D55E00"}


@styled
def settling(panels: Mapping[str, Any], *, title: str = "") -> Figure:
    """Excess loss that was seen and that each formula predicts, and their relative errors.

    Args:
      panels: title to table with columns x (learning rate), seen, seen_error (one standard error),
        and one for each of `FORMULAS`; NaN where there is nothing. The attribute `xlabel` of a
        table (`table.attrs`) names its axis.
      title: of the figure.
    """
    figure, grid = new_figure(len(panels), 2, width=5.0, height=3.6)
    for (name, rows), (values, errors) in zip(panels.items(), grid, strict=True):
        known = rows[rows["seen"].notna()]
        lines = [Line(key, rows[key], rows["x"], color) for key, color in FORMULAS.items()]
        seen = Series("SGD, ± 2 standard errors", known["x"], known["seen"],
                      2 * known["seen_error"], joined=False)  # fmt: skip
        xlabel = rows.attrs["xlabel"]
        draw_series(values, [seen], lines, first=2)
        label_axes(values, xlabel, "excess loss E L − L*  [1]", title=name, log_x=True, log_y=True,
                   legend=False)  # fmt: skip
        lines = [Line(key, rows[key] / rows["exact"] - 1, rows["x"], color)
                 for key, color in FORMULAS.items()]  # fmt: skip
        off = Series("SGD", known["x"], known["seen"] / known["exact"] - 1,
                     2 * known["seen_error"] / known["exact"], joined=False)  # fmt: skip
        draw_series(errors, [off], lines, first=2)
        errors.set_yscale("symlog", linthresh=0.1)
        label_axes(errors, xlabel, "relative to the exact one, less 1  [1]", title=name, log_x=True,
                   legend=False)  # fmt: skip
        if rows["x"].max() < 20 * rows["x"].min():  # labels of minor ticks would overlap
            for axes in (values, errors):
                axes.set_xticks(rows["x"], [f"{x:g}" for x in rows["x"]])
                axes.minorticks_off()
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[1]))
    figure.suptitle(title)
    return figure
