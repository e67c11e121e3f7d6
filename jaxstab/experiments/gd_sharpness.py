"""Sharpness of the minima of gradient descent beside 2/η (Wu, Ma, E 2018, Table 2)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxstab import plots
from jaxstab.experiments import minima, published
from jaxstab.experiments.base import Claim, Context, Experiment, Outcome, judge
from jaxstab.experiments.grid import GdSettings, describe, run_grid

# Data set, classes and model of each column of Table 2, and its name in the published table.
_PUBLISHED = {
    ("fashion_mnist", (), "fnn"): "fashion_mnist",
    ("cifar10", ("airplane", "automobile"), "vgg"): "cifar10_2class",
}


def run(settings: GdSettings, context: Context) -> Outcome:
    """Runs gradient descent at every learning rate and compares a with 2/η."""
    grid = run_grid(settings, context)
    summary = [_summarize(grid.rows, eta) for eta in sorted(settings.learning_rates)]
    theirs = table2(settings)
    found = minima.reached(grid.rows)
    figure = plots.edge(
        learning_rate=[row["learning_rate"] for row in found],
        sharpness=[row["sharpness"] for row in found],
        blew_up=[line["learning_rate"] for line in summary if not line["reached"]],
        published=_published_series(theirs),
        title=f"Gradient descent ends at the edge: {settings.model} on {settings.dataset}, "
        f"n = {grid.n}",
    )
    text = f"{describe(settings)}\n\n{table(summary, theirs)}\n\n{minima.conclusion(grid.rows)}"
    return Outcome(grid.rows, claims(found, summary), [context.save(figure, "gd-sharpness")], text)


def table2(settings: GdSettings) -> dict[float, tuple[float, float]]:
    """Published mean and std by learning rate, where data set and network are the paper's."""
    name = _PUBLISHED.get((settings.dataset, settings.classes, settings.model))
    if name is None or settings.n_train != 1000:
        return {}
    where = {"source": "table2_gd", "dataset": name}
    rows = published.load("wu2018_grid", where=where)
    return {row["learning_rate"]: (row["sharpness_mean"], row["sharpness_std"]) for row in rows}


def _published_series(theirs: dict[float, tuple[float, float]]) -> plots.Series | None:
    if not theirs:
        return None
    means, stds = zip(*theirs.values())
    label = "Wu, Ma, E 2018, Table 2"
    return plots.Series(label, list(theirs), means, stds, hollow=True, joined=False)


def _summarize(rows: Sequence[Any], eta: float) -> dict[str, Any]:
    """One line of Table 2: what the runs at one learning rate came to."""
    here = [row for row in rows if row["learning_rate"] == eta]
    found = minima.reached(here)
    values = [row["sharpness"] for row in found]
    outside = [row for row in found if row["sharpness_side"] == "outside"]
    return {
        "learning_rate": eta,
        "runs": len(here),
        "reached": len(found),
        "blew_up": sum(row["status"] == "diverged" for row in here),
        "mean": float(np.mean(values)) if values else math.nan,
        "std": float(np.std(values)) if values else math.nan,
        "edge": 2 / eta,
        "above": len(outside),
        "most_above": max((-row["sharpness_margin"] for row in outside), default=0.0),
    }


def table(summary: Sequence[dict[str, Any]], theirs: dict[float, tuple[float, float]]) -> str:
    """Table 2: a mean ± std beside 2/η; a dash where no run reached a minimum."""
    head = (
        f"{'eta':>7} {'2/eta':>8} {'a (mean ± std)':>18} {'a/(2/eta)':>9} {'above':>7} "
        f"{'most above':>10} {'reached':>8} {'blew up':>8}" + ("   published" if theirs else "")
    )
    lines = [head, "-" * len(head)]
    for line in summary:
        done = line["reached"] > 0
        a = f"{line['mean']:.4g} ± {line['std']:.2g}" if done else "–"
        share = f"{line['mean'] / line['edge']:.3f}" if done else "–"
        above = f"{line['above']}/{line['reached']}" if done else "–"
        most = f"{line['most_above']:+.2%}" if line["above"] else "–"
        text = (
            f"{line['learning_rate']:>7.4g} {line['edge']:>8.4g} {a:>18} {share:>9} {above:>7} "
            f"{most:>10} {line['reached']:>6}/{line['runs']} {line['blew_up']:>8}"
        )
        if theirs:
            mean, std = theirs.get(line["learning_rate"], (math.nan, math.nan))
            text += f"   {mean:.4g} ± {std:.2g}" if math.isfinite(mean) else "   –"
        lines.append(text)
    return "\n".join(lines)


def claims(found: Sequence[Any], summary: Sequence[dict[str, Any]]) -> list[Claim]:
    """What Table 2 shows, as it came out here."""
    ratios = [1 - row["sharpness_margin"] for row in found]
    worst = max(ratios, default=math.nan)
    above = sum(row["sharpness_side"] == "outside" for row in found)
    shares = [line["mean"] / line["edge"] for line in summary if line["reached"]]
    spread = float(np.std(shares)) if shares else math.nan
    closest = float(np.mean(shares)) if shares else math.nan
    return [
        Claim(
            "below-the-edge",
            "no minimum of gradient descent is sharper than 2/η by more than 5 %, which runs "
            "stopped while they still oscillate at the edge explain",
            "observation",
            f"largest a / (2/η) over {len(found)} minima, {above} of them above 1",
            f"<= {1 + minima.SUSPICIOUS}",
            worst,
            None,
            judge(worst <= 1 + minima.SUSPICIOUS if found else None),
        ),
        Claim(
            "at-the-edge",
            "the minima lie close to the edge, so sharpness falls as 1/η",
            "observation",
            f"mean over {len(shares)} learning rates of mean a / (2/η) (within 10 % of 1 counts)",
            1.0,
            closest,
            {"std over learning rates": spread},
            judge(abs(closest - 1) <= 0.1 if shares else None),
        ),
    ]


EXPERIMENT = Experiment(
    name="gd-sharpness",
    source="Wu, Ma, E 2018, Table 2",
    summary="sharpness of gradient-descent minima beside 2/eta, at six learning rates",
    run=run,
    presets={
        "quick": GdSettings(learning_rates=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0), n_train=300),
        "paper": GdSettings(
            dataset="fashion_mnist",
            model="fnn",
            learning_rates=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0),
            max_steps=400_000,
        ),
    },
)
