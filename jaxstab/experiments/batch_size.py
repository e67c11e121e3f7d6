"""Sharpness and non-uniformity against batch size (Wu, Ma, E 2018, Fig. 5)."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxstab import plots
from jaxstab.experiments import minima, published
from jaxstab.experiments.base import Claim, Context, Experiment, Outcome, judge
from jaxstab.experiments.grid import GridSettings, describe, run_grid
from jaxstab.experiments.statistics import correlation, fraction, mean_interval
from jaxstab.stability.criteria import box

QUANTITIES = {"sharpness": plots.SHARPNESS, "nonuniformity": plots.NONUNIFORMITY}
_WORDS = {"sharpness": "sharpness", "nonuniformity": "non-uniformity"}
# data set, model and classes of the published points, and what the table calls that data set
_PUBLISHED = {
    ("fashion_mnist", "fnn", ()): "fashion_mnist",
    ("cifar10", "vgg", ("airplane", "automobile")): "cifar10_2class",
}


def run(settings: GridSettings, context: Context) -> Outcome:
    """Trains the grid and follows a and s over batch sizes at every learning rate."""
    grid = run_grid(settings, context, batch_sizes=settings.batch_sizes)
    summary = summarize(grid.rows)
    theirs = published_points(settings)
    title = f"Minima by batch size: {settings.model} on {settings.dataset}, n = {grid.n}"
    figure = draw(summary, theirs, n=grid.n, title=title)
    text = (
        f"{describe(settings)}\n\n{table(summary, theirs, n=grid.n)}\n\n"
        f"{minima.conclusion(grid.rows)}"
    )
    return Outcome(grid.rows, claims(grid.rows, grid.n), [context.save(figure, "batch-size")], text)


def summarize(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds at every (η, B); NaN if no run reached a minimum."""
    summary = []
    for eta, size in sorted({(row["learning_rate"], row["batch_size"]) for row in rows}):
        here = [r for r in rows if (r["learning_rate"], r["batch_size"]) == (eta, size)]
        found = minima.reached(here)
        line = {"learning_rate": eta, "batch_size": size, "runs": len(here), "reached": len(found)}
        for name in QUANTITIES:
            values = [row[name] for row in found]
            line[f"{name}_mean"] = float(np.mean(values)) if values else math.nan
            line[f"{name}_std"] = float(np.std(values)) if values else math.nan
        summary.append(line)
    return summary


def published_points(settings: GridSettings) -> dict[tuple[float, float], dict[str, Any]]:
    """Published means by (η, B) at our learning rates, where data set and network are theirs."""
    key = (settings.dataset, settings.model, tuple(settings.classes))
    if key not in _PUBLISHED or settings.loss != "squared":
        return {}
    where = {"source": "fig5_batch_size", "dataset": _PUBLISHED[key]}
    return {
        (row["learning_rate"], row["batch_size"]): row
        for row in published.load("wu2018_grid", where=where)
        if row["learning_rate"] in settings.learning_rates
    }


@plots.styled
def draw(
    summary: Sequence[dict[str, Any]],
    theirs: dict[tuple[float, float], dict[str, Any]],
    *,
    n: int,
    title: str,
) -> Figure:
    """a and s against B, mean ± std over seeds, one colour per η, bounds of eq. 9 dashed."""
    figure, axes = plots.new_figure(1, 2)
    rates = sorted({line["learning_rate"] for line in summary})
    sizes = sorted({line["batch_size"] for line in summary})
    grid = np.unique(np.geomspace(sizes[0], n, 100).round().astype(int))
    for index, (name, label) in enumerate(QUANTITIES.items()):
        panel, ours, shown, bounds = axes[0, index], [], [], []
        for i, eta in enumerate(rates):
            lines = [line for line in summary if line["learning_rate"] == eta]
            ours.append(_series(f"η = {eta:g}", lines, name))
            points = [row for (rate, _), row in theirs.items() if rate == eta]
            legend = f"η = {eta:g}, published" if points else "_none"  # "_": not in the legend
            shown.append(_series(legend, points, name, hollow=True))
            curve = np.array([box(eta, int(size), n)[index] for size in grid])
            inside = np.isfinite(curve)
            color = plots.COLORS[i % len(plots.COLORS)]
            bounds.append(
                plots.Line(f"bound, η = {eta:g}", curve[inside], grid[inside], color=color)
            )
        plots.draw_series(panel, ours, bounds)
        if theirs:
            plots.draw_series(panel, shown)
        plots.label_axes(panel, "batch size B  [examples]", label, log_x=True, log_y=True)
        panel.get_legend().remove()
        panel.set_xticks(sizes, ["n" if size == n else str(size) for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
        _mark_failures(panel, summary, rates)
    axes[0, 0].set_title("sharpness; bound a ≤ 2/η")
    axes[0, 1].set_title("non-uniformity; bound s ≤ (1/η) √(B(n−1)/(n−B))")
    _limit(axes[0, 1], summary)
    handles = axes[0, 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(handles[0]), 6))
    figure.suptitle(title)
    return figure


def _series(label: str, lines: Sequence[Any], name: str, *, hollow: bool = False) -> plots.Series:
    columns = ("batch_size", f"{name}_mean", f"{name}_std")
    x, mean, std = ([line[column] for line in lines] for column in columns)
    return plots.Series(label, x, mean, std, hollow=hollow, joined=not hollow)


def _mark_failures(panel: Any, summary: Sequence[dict[str, Any]], rates: Sequence[float]) -> None:
    """A cross on the axis where no run reached a minimum: the dashes of the paper's tables."""
    for i, eta in enumerate(rates):
        lines = [line for line in summary if line["learning_rate"] == eta and not line["reached"]]
        if lines:
            panel.plot(
                [line["batch_size"] for line in lines],
                [0.02] * len(lines),
                transform=panel.get_xaxis_transform(),
                color=plots.COLORS[i % len(plots.COLORS)],
                marker="x",
                ls="none",
                label=f"η = {eta:g}: no minimum reached",
            )


def _limit(panel: Any, summary: Sequence[dict[str, Any]]) -> None:
    """Keeps the bound, which has no upper limit as B tends to n, from squeezing the data."""
    known = [line["nonuniformity_mean"] for line in summary if line["reached"]]
    if known:
        panel.set_ylim(min(known) / 2, max(known) * 4)


def table(
    summary: Sequence[dict[str, Any]],
    theirs: dict[tuple[float, float], dict[str, Any]],
    *,
    n: int,
) -> str:
    """One line per (η, B): mean ± std of a and s beside their bounds."""
    head = (
        f"{'eta':>7} {'B':>5} {'reached':>8} | {'a (mean ± std)':>18} {'2/eta':>7} | "
        f"{'s (mean ± std)':>18} {'bound':>7} {'s/bound':>7}"
    ) + (" |   published a, s" if theirs else "")
    lines = [head, "-" * len(head)]
    for line in summary:
        eta, size = line["learning_rate"], line["batch_size"]
        bounds = box(eta, size, n)
        a, s = (
            f"{line[f'{name}_mean']:.4g} ± {line[f'{name}_std']:.2g}" if line["reached"] else "–"
            for name in QUANTITIES
        )
        finite = math.isfinite(bounds.nonuniformity)
        limit = f"{bounds.nonuniformity:.4g}" if finite else "none"
        ratio = line["nonuniformity_mean"] / bounds.nonuniformity
        share = f"{ratio:.3f}" if finite and line["reached"] else "–"
        text = (
            f"{eta:>7.4g} {'n' if size == n else size:>5} {line['reached']:>5}/{line['runs']:<2} | "
            f"{a:>18} {bounds.sharpness:>7.4g} | {s:>18} {limit:>7} {share:>7}"
        )
        row = theirs.get((eta, float(size)))
        if row:
            text += f" |   {row['sharpness_mean']:.4g}, {row['nonuniformity_mean']:.4g}"
        lines.append(text)
    return "\n".join(lines)


def trend(found: Sequence[Any], name: str) -> list[float]:
    """Per seed, the Spearman correlation of a quantity with batch size, averaged over η and scale.

    Within one learning rate and scale, so that neither is mistaken for an effect of batch size;
    averaged within a seed, because runs of one seed share their start and are not independent.
    Groups with fewer than three batch sizes show no trend and are left out.
    """
    by_seed: dict[int, list[float]] = {}
    for key in sorted({(r["seed"], r["learning_rate"], r["init_scale"]) for r in found}):
        group = [r for r in found if (r["seed"], r["learning_rate"], r["init_scale"]) == key]
        if len(group) >= 3:
            sizes, values = [r["batch_size"] for r in group], [r[name] for r in group]
            value = correlation(sizes, values, ranks=True, resamples=1).value
            by_seed.setdefault(key[0], []).append(value)
    return [float(np.mean(values)) for values in by_seed.values()]


def claims(rows: Sequence[Any], n: int) -> list[Claim]:
    """What Fig. 5 shows, as it came out here."""
    found = minima.reached(rows)
    bounded = [row for row in found if row["batch_size"] < n]
    inside = sum(row["nonuniformity_side"] == "inside" for row in bounded)
    outside = sum(row["nonuniformity_side"] == "outside" for row in bounded)
    share = fraction(inside, len(bounded))
    result = [
        Claim(
            "below-the-bound",
            "non-uniformity lies below the bound of eq. 9 at every batch size",
            "observation",
            f"fraction of {len(bounded)} minima with B < n inside, by certified intervals",
            1.0,
            share.value,
            {"95% interval": [share.lower, share.upper]},
            judge(
                None if not bounded else True if share.value == 1 else False if outside else None
            ),
        )
    ]
    for name in reversed(QUANTITIES):
        estimate = mean_interval(trend(found, name))
        known = math.isfinite(estimate.lower)
        holds = True if estimate.lower > 0 else False if estimate.upper < 0 else None
        result.append(
            Claim(
                f"{name}-falls",
                f"{_WORDS[name]} falls as the batch size falls",
                "observation",
                f"Spearman correlation of {_WORDS[name]} with batch size at fixed learning rate, "
                "mean over seeds",
                "> 0",
                estimate.value,
                {"95% interval": [estimate.lower, estimate.upper]},
                judge(holds if known else None),
            )
        )
    return result


EXPERIMENT = Experiment(
    name="batch-size",
    source="Wu, Ma, E 2018, Fig. 5",
    summary="sharpness and non-uniformity of minima against batch size, at several learning rates",
    run=run,
    presets={
        "quick": GridSettings(
            n_train=300,
            learning_rates=(1.0, 2.0, 4.0),
            batch_sizes=(4, 10, 40, 100, "n"),
            seeds=3,
            max_steps=30_000,
        ),
        "paper": GridSettings(
            dataset="fashion_mnist",
            model="fnn",
            learning_rates=(0.05, 0.1, 0.5, 1.0),
            batch_sizes=(10, 100, 300, 600, "n"),
            max_steps=400_000,
        ),
        "paper-cifar10": GridSettings(
            dataset="cifar10",
            model="vgg",
            classes=("airplane", "automobile"),
            learning_rates=(0.01, 0.03, 0.05, 0.1),
            batch_sizes=(4, 10, 100, 400, "n"),
            max_steps=400_000,
        ),
    },
)
