"""The stability diagram: where SGD can stay in the plane of a and s (Wu, Ma, E 2018, Fig. 3).

For batch sizes and learning rates, the region of eq. 9 (a box), of eq. 8 (in one dimension an
ellipse in it) and of simulated linearised SGD on random quadratics with given a and s. In several
dimensions the exact mean-square boundary stands beside them: eq. 8 is sufficient there, the box
is neither. `--minima` lays the minima of a sweep on the diagram of its own batch sizes.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxstab import plots, store
from jaxstab.checks import check_at_least, check_batch_size, check_positive
from jaxstab.experiments.base import (
    Claim,
    Context,
    Experiment,
    Outcome,
    batch_sizes_for,
    judge,
    parse_batch_size,
    setting,
)
from jaxstab.stability.boundary import find_boundary
from jaxstab.stability.linearized import random_quadratic

# The largest of some 50 correlated, nearly normal deviations exceeds this once in 1e4 seeds.
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class Settings:
    """Settings of `diagram`."""

    n: int = setting(100, "number of examples")
    learning_rates: tuple[float, ...] = setting((0.5, 1.0), "learning rates, one panel each")
    batch_sizes: tuple[int | str, ...] = setting(
        (1, 4, 25, "n"), "batch sizes; n is gradient descent", parse_batch_size
    )
    points: int = setting(9, "values of a at which the edge is simulated")
    dimensions: tuple[int, ...] = setting((2, 5), "numbers of parameters beside one")
    problems: int = setting(2, "random problems of each dimension")
    runs: int = setting(400, "runs side by side in a simulation")
    steps: int = setting(40, "steps that a simulation averages")
    burn_in: int = setting(200, "steps before that, in several dimensions")
    seed: int = setting(0, "seed of the problems and of the simulation")
    minima: str = setting("", "output folder of a sweep or experiment whose minima to lay on it")


def run(settings: Settings, context: Context) -> Outcome:
    """Finds the boundaries and draws them."""
    sizes = check(settings)
    rows = boundaries(settings, sizes, context)
    one = [row for row in rows if row["p"] == 1]
    figure = plots.stability_diagram(
        n=settings.n,
        batch_sizes=sizes,
        learning_rates=settings.learning_rates,
        simulated=one,
        title=f"Where SGD can stay: n = {settings.n}",
    )
    figures = [context.save(figure, "diagram")]
    several = [row for row in rows if row["p"] > 1]
    if several:
        eta, size = several[0]["learning_rate"], several[0]["batch_size"]
        title = f"More than one parameter: random quadratics, η = {eta:g}, B = {size}"
        figure = plots.boundary(several, learning_rate=eta, title=f"{title}, n = {settings.n}")
        figures.append(context.save(figure, "dimensions"))
    text = describe(rows)
    if settings.minima:
        path, line = lay_minima(Path(settings.minima), context)
        figures.append(path)
        text += "\n" + line
    return Outcome(rows, claims(rows), figures, text)


def check(settings: Settings) -> tuple[int, ...]:
    """Checks the settings before any computation and returns the batch sizes as numbers."""
    for name in ("n", "points", "problems"):
        check_at_least(name, getattr(settings, name), 2 if name == "n" else 1)
    for name in ("runs", "steps", "burn_in"):
        check_at_least(name, getattr(settings, name), 2)
    for eta in settings.learning_rates:
        check_positive("learning_rate", eta)
    for p in settings.dimensions:
        check_at_least("dimension", p, 2)
    sizes = batch_sizes_for(settings.batch_sizes, settings.n)
    return tuple(check_batch_size(size, settings.n) for size in sizes)


def boundaries(settings: Settings, sizes: Sequence[int], context: Context) -> list[dict[str, Any]]:
    """Rows (p, problem, eta, B, a) with the non-uniformity at which each condition ends."""
    etas = settings.learning_rates
    noisy = [size for size in sizes if size < settings.n]
    tasks = [(1, 0, eta, size) for eta in etas for size in noisy]
    # In several dimensions the batch size only scales s, and the learning rate both axes.
    tasks += [
        (p, i, etas[0], size)
        for p in settings.dimensions
        for i in range(settings.problems)
        for size in noisy[:1]
    ]
    rows = []
    for done, task in enumerate(tasks):
        context.progress(done, len(tasks), f"p {task[0]}, eta {task[2]:g}, B {task[3]}")
        name = "-".join(str(part) for part in task)
        rows += context.remember(name, functools.partial(edge_over_sharpness, settings, *task))
    context.progress(len(tasks), len(tasks), "done")
    return rows


def edge_over_sharpness(
    settings: Settings, p: int, problem: int, eta: float, batch_size: int
) -> list[dict[str, Any]]:
    """The boundary of one random family at `points` values of a between 0 and 2/eta."""
    fractions = (1 - np.cos(np.pi * (np.arange(settings.points) + 1) / (settings.points + 1))) / 2
    key = jax.random.fold_in(jax.random.key(settings.seed), problem)
    drawing, walking = jax.random.split(key)
    walking = jax.random.fold_in(walking, batch_size)
    rows = []
    with jax.enable_x64(True):  # for the bisections, in this computation only
        for a in 2 / eta * fractions:
            quadratic = random_quadratic(
                drawing, n=settings.n, p=p, sharpness=float(a), nonuniformity=1.0
            )
            found = find_boundary(
                quadratic,
                learning_rate=eta,
                batch_size=batch_size,
                key=walking,
                runs=settings.runs,
                steps=settings.steps,
                burn_in=2 if p == 1 else settings.burn_in,
            )
            numbers = {name: float(value) for name, value in found._asdict().items()}
            head = {"p": p, "problem": problem, "learning_rate": eta, "batch_size": batch_size}
            rows.append(head | {"sharpness": float(a)} | numbers)
    return rows


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """What is a theorem here, and what the box of eq. 9 is worth in several dimensions."""
    one = [row for row in rows if row["p"] == 1]
    several = [row for row in rows if row["p"] > 1]
    result = [
        Claim(
            "eq8-inside-eq9",
            "the region of eq. 8 lies inside the box of eq. 9",
            "theorem",
            f"largest s(eq. 8) / s(eq. 9) over {len(rows)} boundary points",
            "<= 1",
            max((row["eq8"] / row["eq9"] for row in rows), default=float("nan")),
            None,
            judge(all(row["eq8"] <= row["eq9"] * (1 + 1e-9) for row in rows) if rows else None),
        )
    ]
    if one:
        result += _one_dimension(one)
    if several:
        result += _several_dimensions(several)
    return result


def _one_dimension(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """In one dimension eq. 8 is sufficient and necessary."""
    deviations = [abs(row["simulated"] - row["eq8"]) / row["simulated_error"] for row in rows]
    ratios = [row["simulated"] / row["eq8"] for row in rows]
    gap = max(abs(row["exact"] / row["eq8"] - 1) for row in rows)
    return [
        Claim(
            "simulation-agrees",
            "in one dimension simulated SGD turns unstable where eq. 8 says",
            "theorem",
            f"largest |s(simulated) - s(eq. 8)| in standard errors, over {len(rows)} points",
            f"<= {_DEVIATIONS:g}",
            max(deviations),
            {"simulated / eq. 8": [min(ratios), max(ratios)]},
            judge(max(deviations) <= _DEVIATIONS),
        ),
        Claim(
            "eq8-is-exact-in-one-dimension",
            "in one dimension eq. 8 is the mean-square stability of linearised SGD",
            "theorem",
            "largest relative difference of s(eq. 8) and s(largest eigenvalue of Q = 1)",
            0.0,
            gap,
            None,
            judge(gap < 1e-6),
        ),
    ]


def _several_dimensions(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """In more, eq. 8 is sufficient; the box is what the paper reads verdicts from."""
    ratios = [row["eq8"] / row["exact"] for row in rows]
    shares = [row["exact"] / row["eq9"] for row in rows]
    deviations = [abs(row["simulated"] - row["exact"]) / row["simulated_error"] for row in rows]
    return [
        Claim(
            "eq8-is-sufficient",
            "in several dimensions eq. 8 is sufficient for stability in mean square",
            "theorem",
            f"largest s(eq. 8) / s(exact) over {len(rows)} points; the smallest is "
            f"{min(ratios):.3f}",
            "<= 1",
            max(ratios),
            None,
            judge(max(ratios) <= 1 + 1e-9),
        ),
        Claim(
            "simulation-agrees-in-several-dimensions",
            "simulated SGD turns unstable where the largest eigenvalue of Q is 1",
            "observation",
            f"largest |s(simulated) - s(exact)| in standard errors, over {len(rows)} points; the "
            "simulation has a bias of one over the number of runs",
            f"<= {_DEVIATIONS:g}",
            max(deviations),
            None,
            judge(max(deviations) <= _DEVIATIONS),
        ),
        Claim(
            "box-is-not-enough",
            "inside the box of eq. 9 SGD can still be unstable",
            "observation",
            f"smallest s(exact) / s(eq. 9) over {len(rows)} points",
            "< 1",
            min(shares),
            None,
            judge(min(shares) < 1),
        ),
        Claim(
            "box-is-not-necessary",
            "in several dimensions SGD can be stable in mean square outside the box of eq. 9",
            "observation",
            f"largest s(exact) / s(eq. 9) over {len(rows)} points",
            "> 1",
            max(shares),
            None,
            judge(max(shares) > 1),
        ),
    ]


def describe(rows: Sequence[dict[str, Any]]) -> str:
    """The boundaries as a table."""
    head = (
        f"{'p':>2} {'problem':>7} {'eta':>6} {'B':>4} {'a':>8} | {'s: eq. 9':>9} {'eq. 8':>8} "
        f"{'exact':>8} {'simulated':>17}"
    )
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row['p']:>2} {row['problem']:>7} {row['learning_rate']:>6.3g} "
            f"{row['batch_size']:>4} {row['sharpness']:>8.4f} | {row['eq9']:>9.4f} "
            f"{row['eq8']:>8.4f} {row['exact']:>8.4f} {row['simulated']:>8.4f} "
            f"± {row['simulated_error']:.4f}"
        )
    return "\n".join(lines)


def lay_minima(folder: Path, context: Context) -> tuple[Path, str]:
    """Draws the minima of a sweep on the diagram of its own n, batch sizes and learning rates.

    Args:
      folder: of a sweep, or of an experiment that ran one.
      context: where the figure goes.

    Raises:
      ValueError: if there is no sweep, or it measured no minima.
    """
    if not (folder / store.SWEEP_FILE).exists() and (folder / "sweep").is_dir():
        folder = folder / "sweep"
    records = store.read_records(folder)
    description = store.read_description(folder) or {}
    found = [row for row in records if row["status"] == "converged" and "sharpness" in row]
    if not found:
        raise ValueError(f"{folder} holds no measured minima: run its sweep with measurement")
    figure = plots.stability_diagram(
        n=description["n"],
        batch_sizes=sorted({row["batch_size"] for row in found}),
        learning_rates=sorted({row["learning_rate"] for row in found}),
        minima=found,
        title=f"Measured minima: n = {description['n']}",
    )
    return context.save(figure, "minima"), f"{len(found)} minima of {folder} laid on the diagram"


EXPERIMENT = Experiment(
    name="diagram",
    source="Wu, Ma, E 2018, Fig. 3",
    summary="stability regions in the plane of a and s: eq. 9, eq. 8, exact and simulated",
    run=run,
    presets={
        "quick": Settings(),
        "paper": Settings(n=1000, points=25, dimensions=(2, 5, 10), problems=3, runs=4000),
    },
)
