"""Learning curves by B/η, and tr C_g against tr H where they end (Luo, Wang 2020, Table 1)."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxstab import losses, plots, transforms
from jaxstab.checks import check_at_least
from jaxstab.data import crop_and_flip
from jaxstab.experiments import problems, published, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import RESNET56_ON_CIFAR10, ProblemSettings, seed_range, setting
from jaxstab.experiments.statistics import mean_over, spread_over, trend
from jaxstab.experiments.tables import Column, Table
from jaxstab.operators import noise_alignment
from jaxstab.plots import Line, Panel, Series
from jaxstab.stability import variance_factor
from jaxstab.training import mean_loss, train

TRACES = ("covariance_trace", "hessian_trace")


@dataclass(frozen=True)
class Settings(ProblemSettings):
    """A grid of batch sizes and learning rates, and the schedule of the paper."""

    model: str = setting("fnn-small-norm", "model")
    loss: str = setting("cross_entropy", "loss: squared, cross_entropy or kl")
    batch_sizes: tuple[int, ...] = setting((10, 20, 50), "batch sizes B")
    learning_rates: tuple[float, ...] = setting((0.08, 0.2, 0.5), "learning rates η at the start")
    epochs: int = setting(25, "epochs of a run")
    drops: tuple[int, ...] = setting((12, 20), "epochs at which the learning rate is divided by 10")
    seeds: int = setting(5, "number of seeds")
    probes: int = setting(30, "random probes of each estimated trace")
    padding: int = setting(0, "pixels of padding for random crops; 0 for none")
    flip: bool = setting(False, "flip half of the images")
    chunk_size: int | None = setting(None, "examples in memory at once; all by default")


def run(settings: Settings, context: Context) -> Outcome:
    """Trains the grid, compares curves by B/η, and the traces with what the formulas predict."""
    for drop in settings.drops:
        check_at_least("drop", drop, 1)
    problem = problems.load(settings, context.data_dir)
    grid = list(itertools.product(settings.batch_sizes, settings.learning_rates))
    steps = {
        f"B{size}-lr{eta:g}-seed{seed}": partial(follow, settings, problem, size, eta, seed)
        for size, eta in grid
        for seed in seed_range(settings.seeds)
    }
    found = context.remember_all(steps)
    curves = pd.DataFrame([row for one in found for row in one["curve"]])
    ends = pd.DataFrame([one["end"] for one in found])
    pairs = distances(curves)
    theirs = published.beside(settings, "luo2020_table1")
    return Outcome(
        rows=ends,
        tables=[table(ends, theirs, problem.n), pair_table(pairs)],
        claims=claims(ends, pairs),
        figures={"factors": draw(curves, pairs, ends)},
        notes=["distances of validation accuracy are means over epochs, seeds paired"],
    )


def follow(settings: Settings, problem: Problem, size: int, eta: float, seed: int) -> dict:
    """One run, epoch by epoch: its curve, and traces, losses and predictions at its end."""
    loss, s = problem.loss, settings
    normed = "batch_stats" in loss.state
    params = problem.init(jax.random.key(seed), 1.0)
    every = -(-problem.n // size)
    augment = crop_and_flip(s.padding, flip=s.flip) if s.padding or s.flip else None
    opt_state, curve = transforms.sgd(eta).init(params), []
    for epoch in range(1, s.epochs + 1):
        ended = train(
            loss,
            params,
            problem.train,
            optimizer=transforms.sgd,
            learning_rate=eta / 10 ** sum(epoch > drop for drop in s.drops),
            batch_size=size,
            key=jax.random.fold_in(jax.random.key(seed), epoch),
            max_steps=every,
            check_every=every,
            loss_tolerance=None,
            opt_state=opt_state,
            batch_norm="batch" if normed else "frozen",
            augment=augment,
            chunk_size=s.chunk_size,
        )
        params, opt_state = ended.params, ended.opt_state
        loss = loss.with_state(ended.state) if normed else loss
        row = {"batch_size": size, "learning_rate": eta, "seed": seed, "epoch": epoch}
        for part, data in (("train", problem.train), ("validation", problem.dataset.test)):
            row[part] = float(losses.accuracy(loss, params, data, batch_size=s.chunk_size))
        curve.append(row | {"loss": ended.loss})
    noise = noise_alignment(
        loss,
        params,
        problem.train,
        key=jax.random.key(seed),
        probes=s.probes,
        chunk_size=s.chunk_size,
    ).to_record()
    end = {"batch_size": size, "learning_rate": eta, "seed": seed, "ratio_b_eta": size / eta}
    end |= {name: curve[-1][name] for name in ("train", "validation")} | noise
    before = curve[min(s.drops[0], s.epochs) - 1]["loss"] if s.drops else math.nan
    scale = eta * variance_factor(problem.n, size) / 4
    end |= {"drop": before - noise["loss"], "trace_ratio": noise[TRACES[0]] / noise[TRACES[1]]}
    end |= {"log_ratio": math.log(end["trace_ratio"]) if end["trace_ratio"] > 0 else math.nan}
    end |= {"four": scale * noise[TRACES[0]], "three": scale * noise[TRACES[1]]}
    return {"curve": curve, "end": end | {"kl_gap": kl_gap(loss, params, problem, s.chunk_size)}}


def kl_gap(loss: Any, params: Any, problem: Problem, chunk_size: int | None) -> float:
    """|KL − log loss|: the entropy of the targets, 0 where they are one-hot."""
    kinds = [dataclasses.replace(loss, loss=kind) for kind in (losses.kl, losses.cross_entropy)]
    values = [float(mean_loss(one, params, problem.train, chunk_size=chunk_size)) for one in kinds]
    return abs(values[0] - values[1])


def distances(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean |difference| of validation accuracy over epochs, for all pairs of settings and seeds."""
    wide = curves.pivot_table(
        index=["seed", "epoch"], columns=["batch_size", "learning_rate"], values="validation"
    )
    found = []
    for one, other in itertools.combinations(wide.columns, 2):
        gap = abs(math.log(one[0] / one[1] * other[1] / other[0]))
        apart = (wide[one] - wide[other]).abs().groupby("seed").mean()
        name = f"({one[0]}, {one[1]:g}) and ({other[0]}, {other[1]:g})"
        line = {"pair": name, "gap": round(gap, 6), "equal": gap < 1e-6}
        found += [line | {"seed": seed, "distance": value} for seed, value in apart.items()]
    return pd.DataFrame(found, columns=["pair", "gap", "equal", "seed", "distance"])


def table(ends: pd.DataFrame, theirs: pd.DataFrame, n: int) -> Table:
    """Table 1: both traces, their ratio, and the loss that each predicts."""
    names = [*TRACES, "trace_ratio", "mu", "four", "three", "drop", "loss", "validation"]
    lines = spread_over(ends, ["batch_size", "learning_rate", "ratio_b_eta"], names)
    columns = [
        tables.batch_size(n),
        tables.LEARNING_RATE,
        Column("ratio_b_eta", "B/η", "1/step size"),
        Column("covariance_trace", "tr C_g", spread="std"),
        Column("hessian_trace", "tr H", "1/step size", spread="std"),
        Column("trace_ratio", "tr C_g / tr H", format=".3g", spread="std"),
        Column("mu", "μ", format=".3g", spread="std"),
        Column("four", "(ηπ/4) tr C_g", format=".2e"),
        Column("three", "(ηπ/4) tr H", format=".2e"),
        Column("drop", "fall of the loss from the first drop of η", format=".2e"),
        Column("loss", "loss reached", format=".2e"),
        Column("validation", "validation accuracy", format=".4f", spread="std"),
    ]
    if len(theirs):
        key = ["batch_size", "learning_rate"]
        renamed = theirs.rename(columns={"ratio": "published_ratio"})
        lines = lines.merge(renamed[[*key, "published_ratio"]], on=key, how="left")
        columns.append(Column("published_ratio", "published general / special"))
    return Table("factors", lines, columns, title="Traces at the end, mean ± std over seeds")


def pair_table(pairs: pd.DataFrame) -> Table:
    """How far apart the curves of each pair are, the closest ratios first."""
    lines = [
        {"pair": pair, "gap": gap} | mean_over(own, "distance").columns("distance")
        for (gap, pair), own in pairs.groupby(["gap", "pair"])
    ]
    columns = [
        Column("pair", "(B, η)"),
        Column("gap", "|difference of log B/η|", format=".3f"),
        Column("distance", "of validation accuracy", format=".4f", spread="interval"),
    ]
    return Table("pairs", pd.DataFrame(lines), columns)


def claims(ends: pd.DataFrame, pairs: pd.DataFrame) -> list[Claim]:
    """What the paper says of ratios and traces, as it came out here."""
    by = pairs.groupby(["seed", "equal"])["distance"].mean().unstack().reset_index()
    by = by.reindex(columns=["seed", False, True])
    closer = by.assign(more=by[False] - by[True])
    return [
        claim(
            "equal-ratios-agree-more",
            "learning curves of equal B/η agree more than others",
            "mean distance of validation curves at different B/η less that at equal, over seeds",
            mean_over(closer, "more"),
            ">",
            0,
        ),
        claim(
            "distance-grows-with-the-ratio",
            "curves are the further apart the more B/η differs",
            "Spearman correlation of distance with |difference of log B/η|, mean over seeds",
            trend(pairs, "gap", "distance"),
            ">",
            0,
        ),
        claim(
            "general-exceeds-special",
            "tr C_g of the general form exceeds tr H of the special one",
            "mean log(tr C_g / tr H) over seeds",
            mean_over(ends, "log_ratio"),
            ">",
            0,
        ),
        claim(
            "traces-differ",
            "the two traces differ, so three factors are not enough",
            "mean |log(tr C_g / tr H)| over seeds",
            mean_over(ends.assign(off=ends["log_ratio"].abs()), "off"),
            ">",
            math.log(1.1),
        ),
        claim(
            "kl-is-the-log-loss",
            "with one-hot targets KL and log loss are the same",
            "largest difference at the ends of the runs, in nats",
            ends["kl_gap"].max(),
            "<=",
            0,
            within=1e-6,
            kind="theorem",
        ),
    ]


def draw(curves: pd.DataFrame, pairs: pd.DataFrame, ends: pd.DataFrame) -> Any:
    """Curves at equal and at different B/η, their distances, and the ratio of the traces."""
    curves = curves.assign(ratio=(curves["batch_size"] / curves["learning_rate"]).round(6))
    settings = curves[["batch_size", "learning_rate", "ratio"]].drop_duplicates()
    twice = settings[settings["ratio"].duplicated(keep=False)].sort_values("ratio")
    one = settings[settings["batch_size"] == settings["batch_size"].median()]
    panels = []
    for title, chosen in (("equal B/η, in pairs", twice), ("different B/η", one)):
        series = []
        for size, eta, ratio in chosen.itertuples(index=False):
            own = curves[(curves["batch_size"] == size) & (curves["learning_rate"] == eta)]
            mean = own.groupby("epoch")["validation"].agg(["mean", "std"]).fillna(0)
            label = f"B {size}, η {eta:g}: {ratio:g}"
            series.append(Series(label, mean.index, mean["mean"], mean["std"]))
        panels.append(Panel(title, series, "epoch  [1]", "validation accuracy  [1]"))
    away = pairs.groupby("gap")["distance"].agg(["mean", "std"]).fillna(0)
    shown = Series("mean ± std", away.index, away["mean"], away["std"])
    panels.append(Panel("distance of curves", [shown], "|difference of log B/η|  [1]",
                        "mean |difference of accuracy|  [1]", points=True))  # fmt: skip
    ratio = [Series(f"B = {size}", np.log10(own["ratio_b_eta"]), own["trace_ratio"])
             for size, own in ends.groupby("batch_size")]  # fmt: skip
    panels.append(Panel("at the end, every run", ratio, "log₁₀ B/η  [1/step size]",
                        "tr C_g / tr H  [1]", [Line("three factors: 1", 1.0)], log_y=True,
                        points=True))  # fmt: skip
    return plots.panels(panels)


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        **RESNET56_ON_CIFAR10,
        batch_sizes=(100, 200, 500),
        epochs=125,
        drops=(60, 100),
    ),
    "tiny": Settings(
        n_train=40, batch_sizes=(10,), learning_rates=(0.08, 0.2), epochs=2, drops=(1,), seeds=2,
        probes=3,
    ),
}  # fmt: skip
