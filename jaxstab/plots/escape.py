"""Figures of escape from minima: runs along the way, which left, and minima by optimizer."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from jaxstab.plots.common import (
    COLORS,
    MARKERS,
    NONUNIFORMITY,
    SHARPNESS,
    label_axes,
    new_figure,
    styled,
)


@styled
def trajectories(runs: Mapping[str, Mapping[str, Any]], *, title: str = "") -> Figure:
    """Loss, sharpness and accuracies along runs that left a minimum (2018, Figs. 1 and 8).

    Args:
      runs: legend entry to arrays (points,): epochs, loss, sharpness, train_accuracy and, where
        there is a test set, test_accuracy.
      title: of the figure.
    """
    figure, axes = new_figure(2, 2, width=6.0, height=3.6)
    names = ("loss", "sharpness", "train_accuracy", "test_accuracy")
    for name, panel in zip(names, axes.ravel(), strict=True):
        for i, (label, run) in enumerate(runs.items()):
            style = {"color": COLORS[i % 8], "marker": MARKERS[i % 8], "markersize": 3.5}
            if name in run:
                panel.plot(run["epochs"], run[name], label=label, **style)
        word = {"loss": "training loss  [1]", "sharpness": SHARPNESS}
        logarithmic = name in word and bool(runs)
        label = word.get(name, name.replace("_", " ") + "  [1]")
        legend = name == "loss" and bool(runs)
        label_axes(panel, "epochs after the start", label, log_y=logarithmic, legend=legend)
        panel.set_xscale("symlog", linthresh=1)  # the start itself lies at 0
        panel.set_xlim(left=-0.1)
        if name == "sharpness" and runs:
            plain_ticks(panel.yaxis)
    figure.suptitle(title)
    return figure


@styled
def outcomes(rows: Any, *, ended: Any) -> Figure:
    """Every run in units of the bounds at its start, and test accuracy against final sharpness.

    Args:
      rows: one row per run: sharpness_margin and nonuniformity_margin of the start, outcome.
      ended: those of the rows that ended at a solution, with kind, start_sharpness,
        start_test_accuracy, end_sharpness, end_test_accuracy (none without a test set).
    """
    figure, axes = new_figure(1, 2, width=5.6, height=4.4)
    plane, scatter = axes[0]
    for i, outcome in enumerate(("stayed", "left", "too short")):
        some = rows[rows["outcome"] == outcome]
        if not len(some):
            continue
        x, y = (
            (1 - some[f"{name}_margin"]).clip(lower=1e-2) for name in ("sharpness", "nonuniformity")
        )
        label = f"{outcome} ({len(some)} runs)"
        plane.scatter(x, y, color=COLORS[i], marker=("o", "x", "^")[i], label=label)
    plane.axvline(1, ls="--", color="#444444")
    plane.axhline(1, ls="--", color="#444444")
    label_axes(
        plane,
        "a of the start / (2/η)",
        "s of the start / its bound  (B = n: 0.01)",
        title="prediction: the lower left stays",
        log_x=True,
        log_y=True,
    )
    for i, (kind, here) in enumerate(ended.groupby("kind")):
        color, marker = COLORS[2 + i], MARKERS[i]
        label = f"{kind}: where the runs ended"
        accuracy = 100 * here["end_test_accuracy"]
        scatter.scatter(
            here["end_sharpness"], accuracy, alpha=0.7, color=color, marker=marker, label=label
        )
        begin = here.drop_duplicates("start")
        ring: Any = {"s": 110, "facecolors": "none", "edgecolors": color, "marker": marker}
        accuracy = 100 * begin["start_test_accuracy"]
        scatter.scatter(begin["start_sharpness"], accuracy, label=f"{kind}: starts", **ring)
    label_axes(
        scatter,
        SHARPNESS,
        "test accuracy  [%]",
        title="where they ended",
        log_x=True,
        legend=False,
    )
    handles = scatter.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower right", ncols=2)
    plain_ticks(plane.xaxis, scatter.xaxis)
    return figure


@styled
def optimizers(rows: Any) -> Figure:
    """Sharpness and non-uniformity by optimizer, and each stability condition against its edge.

    Args:
      rows: one row per minimum: optimizer, sharpness, nonuniformity, condition (the eigenvalue that
        the optimizer's edge bounds, by name) and ratio (that over the edge; NaN for no edge).
    """
    figure, axes = new_figure(1, 2, width=5.6, height=4.2)
    plane, ratios = axes[0]
    bounded = rows.dropna(subset=["ratio"])
    names = list(dict.fromkeys(bounded["optimizer"]))
    for i, (name, here) in enumerate(rows.groupby("optimizer", sort=False)):
        options = {"color": COLORS[i % 8], "marker": MARKERS[i % 8]}
        plane.scatter(here["sharpness"], here["nonuniformity"], label=name, **options)
        if name in names:
            ratios.scatter([names.index(name)] * len(here), here["ratio"], **options)
    ratios.axhline(1, ls="--", color="#444444", label="edge of stability")
    conditions = bounded.drop_duplicates("optimizer")["condition"]
    ratios.set_xticks(range(len(names)), [f"{n}\n{c}" for n, c in zip(names, conditions)])
    label_axes(plane, SHARPNESS, NONUNIFORMITY, title="minima", log_x=True, log_y=True)
    label_axes(
        ratios, "optimizer", "eigenvalue / edge  [1]", title="stability condition", log_y=True
    )
    plain_ticks(plane.xaxis, plane.yaxis, ratios.yaxis)
    return figure


def plain_ticks(*axes: Any) -> None:
    """Labels logarithmic axes that span about a decade with plain numbers at 1, 2 and 5."""
    for axis in axes:
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axis.set_minor_formatter(StrMethodFormatter("{x:g}"))
