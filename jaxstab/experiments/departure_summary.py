"""Predictions against outcomes: tables, claims and figures of `departure`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from jaxstab import plots
from jaxstab.experiments.base import Claim, correlation, fraction, judge
from jaxstab.experiments.departure import EDGE, Followed

AGREEMENT = 0.9  # of the predictions, for the claim to hold


@plots.styled
def draw_trajectories(followed: Followed, title: str) -> Figure:
    """Loss, sharpness and accuracies along the runs that were followed."""
    figure, axes = plots.new_figure(2, 2, width=6.0, height=3.6)
    panels = {
        "loss": axes[0, 0],
        "sharpness": axes[0, 1],
        "train_accuracy": axes[1, 0],
        "test_accuracy": axes[1, 1],
    }
    for i, ((kind, eta, size, n), run) in enumerate(followed.items()):
        label = f"{kind}: " + (f"GD, η = {eta:g}" if size == n else f"SGD, η = {eta:g}, B = {size}")
        style = {"color": plots.COLORS[i % 8], "marker": plots.MARKERS[i % 8], "markersize": 3.5}
        epochs = np.asarray(run["step"]) * size / n
        for name, panel in panels.items():
            if name in run:
                panel.plot(epochs, run[name], label=label, **style)
    for name, panel in panels.items():
        word = name.replace("_", " ") + ("  [1/step size]" if name == "sharpness" else "")
        legend = name == "loss" and bool(followed)
        logarithmic = name in ("loss", "sharpness") and bool(followed)
        plots.label_axes(panel, "epochs after the start", word, log_y=logarithmic, legend=legend)
        panel.set_xscale("symlog", linthresh=1)  # the start itself lies at 0
        panel.set_xlim(left=-0.1)
        if name == "sharpness" and followed:
            plain_ticks(panel.yaxis)
    figure.suptitle(title)
    return figure


def plain_ticks(*axes: Any) -> None:
    """Labels logarithmic axes that span about a decade with plain numbers at 1, 2 and 5."""
    for axis in axes:
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def confusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Predictions against outcomes, over all runs and without those at the edge."""
    lines = [f"{'prediction':>12} {'stayed':>8} {'left':>8}   (more than {EDGE:.0%} from a bound)"]
    for status in ("stable", "unstable", "undecided"):
        cells = [
            sum(row["verdict"] == status and row["outcome"] == outcome for row in some)
            for some in (rows, [row for row in rows if not row["at_the_edge"]])
            for outcome in ("stayed", "left")
        ]
        lines.append(f"{status:>12} {cells[0]:>8} {cells[1]:>8}   ({cells[2]} and {cells[3]})")
    return "\n".join(lines)


def agreement_claims(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Predictions against outcomes, and the time and rate of leaving against linear theory."""
    decided = [row for row in rows if row["verdict"] != "undecided" and not row["at_the_edge"]]
    right = [(row["verdict"] == "stable") == (row["outcome"] == "stayed") for row in decided]
    share = fraction(sum(right), len(right))
    left = [row for row in rows if row["outcome"] == "left" and row["verdict"] == "unstable"]
    timed = [row for row in left if math.isfinite(row["predicted_steps"])]
    times = correlation(
        [row["predicted_steps"] for row in timed],
        [row["escape_steps"] for row in timed],
        ranks=True,
    )
    gd = [row for row in left if row["batch_size"] == row["n"] and math.isfinite(row["growth"])]
    ratios = np.array([row["growth"] / row["rate"] for row in gd])
    sooner = [row["escape_steps"] / row["start_steps"] for row in left]
    return [
        Claim(
            "sooner",
            "leaving takes far fewer steps than finding the minimum took",
            "observation",
            f"median of steps to leave over steps to find the start, {len(left)} runs that were "
            "predicted to leave and did (below 0.1 counts)",
            "< 0.1",
            float(np.median(sooner)) if left else math.nan,
            {"largest": float(np.max(sooner))} if left else None,
            judge(np.median(sooner) < 0.1 if left else None),
        ),
        Claim(
            "predictions",
            "a and s of the start tell which runs leave it",
            "observation",
            f"fraction of right predictions over {len(right)} runs (start, eta, B, seed) whose "
            f"start is more than {EDGE:.0%} from a bound; {AGREEMENT:.0%} counts as holding",
            1.0,
            share.value,
            {"95% interval": [share.lower, share.upper]},
            judge(share.value >= AGREEMENT if right else None),
        ),
        Claim(
            "times",
            "runs leave sooner where linear theory gives a higher rate",
            "observation",
            f"Spearman correlation of predicted and measured steps over {len(timed)} runs",
            "> 0",
            times.value,
            {"95% interval": [times.lower, times.upper]},
            judge(_sign(times)),
        ),
        Claim(
            "gd-rate",
            "gradient descent leaves with the excess loss growing by (1 - eta a)^2 per step",
            "observation",
            f"median of measured over predicted factor, {len(gd)} runs (within 20 % counts)",
            1.0,
            float(np.median(ratios)) if len(gd) else math.nan,
            {"range": [float(ratios.min()), float(ratios.max())]} if len(gd) else None,
            judge(abs(np.median(ratios) - 1) <= 0.2 if len(gd) else None),
        ),
    ]


def _sign(estimate: Any) -> bool | None:
    """True or False where the interval excludes 0, else None."""
    if estimate.lower > 0:
        return True
    return False if estimate.upper < 0 else None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per start, learning rate and batch size, over the seeds."""
    head = (
        f"{'start':>14} {'eta':>6} {'B':>5} | {'a/bound':>8} {'s/bound':>8} {'predicted':>9}"
        f" {'rate':>8} {'steps':>6} | {'left':>5} {'steps':>8} {'end a':>7} {'end test':>8}"
    )
    lines = [head, "-" * len(head)]
    for key in dict.fromkeys((r["start"], r["learning_rate"], r["batch_size"]) for r in rows):
        same = [r for r in rows if (r["start"], r["learning_rate"], r["batch_size"]) == key]
        one, gone = same[0], [r["escape_steps"] for r in same if r["outcome"] == "left"]
        ends = [r["end_sharpness"] for r in same if math.isfinite(r["end_sharpness"])]
        test = [r["end_test_accuracy"] for r in same if r.get("end_test_accuracy", -1) >= 0]
        size = "n" if one["batch_size"] == one["n"] else one["batch_size"]
        lines.append(
            f"{one['start']:>14} {one['learning_rate']:>6.3g} {size:>5} |"
            f" {1 - one['sharpness_margin']:>8.2f} {1 - one['nonuniformity_margin']:>8.2f}"
            f" {one['verdict']:>9} {one['rate']:>8.3g} {_short(one['predicted_steps']):>6} |"
            f" {len(gone)}/{len(same):<3} {_short(np.median(gone) if gone else math.nan):>8}"
            f" {_short(np.mean(ends) if ends else math.nan):>7}"
            f" {_short(np.mean(test) if test else math.nan):>8}"
        )
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"
