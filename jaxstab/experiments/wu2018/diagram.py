"""The stability diagram: where SGD can stay in the plane of a and s (Wu, Ma, E 2018, Fig. 3).

For batch sizes and learning rates, the region of eq. 9 (a box), of eq. 8 (in one dimension an
ellipse in it) and of simulated linearised SGD on random quadratics with given a and s. In several
dimensions the exact mean-square boundary stands beside them: eq. 8 is sufficient there, the box
is neither. `--minima` lays the minima of a sweep on the diagram of its own batch sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pandas as pd
from matplotlib.figure import Figure

from jaxstab import plots, store
from jaxstab.checks import check_at_least, check_positive
from jaxstab.experiments import tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import numbers_for, parse_batch_size, setting
from jaxstab.experiments.tables import Column, Table
from jaxstab.stability.boundary import boundary_over_sharpness

# The largest of some 50 correlated, nearly normal deviations exceeds this once in 1e4 seeds.
DEVIATIONS = 5
ROUNDING = 1e-9
TASK = ("p", "problem", "learning_rate", "batch_size")


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
    if settings.minima:
        store.read_minima(settings.minima)  # a wrong folder is found before anything is computed
    rows = boundaries(settings, sizes, context)
    one, several = rows[rows["p"] == 1], rows[rows["p"] > 1]
    figures = {
        "diagram": plots.stability_diagram(
            n=settings.n,
            batch_sizes=sizes,
            learning_rates=settings.learning_rates,
            simulated=one.to_dict("records"),
            title=f"Where SGD can stay: n = {settings.n}",
        )
    }
    if len(several):
        eta, size = settings.learning_rates[0], several["batch_size"].iloc[0]
        title = f"More than one parameter: random quadratics, η = {eta:g}, B = {size}"
        figures["dimensions"] = plots.boundary(
            several.to_dict("records"), learning_rate=eta, title=f"{title}, n = {settings.n}"
        )
    notes = []
    if settings.minima:
        figures["minima"], line = lay_minima(Path(settings.minima))
        notes.append(line)
    return Outcome(rows, claims(rows), [table(rows, settings.n)], figures, notes)


def check(settings: Settings) -> tuple[int, ...]:
    """Checks the settings before any computation and returns the batch sizes as numbers."""
    least = {"n": 2, "points": 1, "problems": 1, "runs": 2, "steps": 2, "burn_in": 2}
    for name, minimum in least.items():
        check_at_least(name, getattr(settings, name), minimum)
    for eta in settings.learning_rates:
        check_positive("learning_rate", eta)
    for p in settings.dimensions:
        check_at_least("dimension", p, 2)
    return numbers_for(settings.batch_sizes, settings.n)


def boundaries(settings: Settings, sizes: Sequence[int], context: Context) -> pd.DataFrame:
    """Rows (p, problem, η, B, a) with the non-uniformity at which each condition ends."""
    etas, noisy = settings.learning_rates, [size for size in sizes if size < settings.n]
    tasks = [(1, 0, eta, size) for eta in etas for size in noisy]
    # In several dimensions the batch size only scales s, and the learning rate both axes.
    problems = [(p, i) for p in settings.dimensions for i in range(settings.problems)]
    tasks += [(p, i, etas[0], size) for p, i in problems for size in noisy[:1]]
    names, key = ("n", "points", "runs", "steps", "burn_in"), jax.random.key(settings.seed)
    options = {name: getattr(settings, name) for name in names}

    def find(p: int, problem: int, eta: float, size: int) -> Any:
        own = jax.random.fold_in(key, problem)
        return boundary_over_sharpness(own, p=p, learning_rate=eta, batch_size=size, **options)

    steps = {"-".join(map(str, task)): partial(find, *task) for task in tasks}
    found = zip(tasks, context.remember_all(steps), strict=True)
    parts = [pd.DataFrame(dict(zip(TASK, task)) | columns) for task, columns in found]
    return pd.concat(parts, ignore_index=True)


def table(rows: pd.DataFrame, n: int) -> Table:
    """The boundaries, one line per point."""
    columns = [Column("p"), Column("problem"), tables.LEARNING_RATE, tables.batch_size(n)]
    for name, header in (("sharpness", "a"), ("eq9", "s: eq. 9"), ("eq8", "eq. 8"), ("exact", "")):
        columns.append(Column(name, header, "1/step size", ".4f"))
    columns.append(Column("simulated", "", "1/step size", ".4f", spread="std"))
    rows = rows.assign(simulated_std=rows["simulated_error"])
    return Table("diagram", rows, columns, note="simulated: ± one standard error")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What is a theorem here, and what the box of eq. 9 is worth in several dimensions."""
    theorem = partial(claim, kind="theorem")
    rows = rows.assign(ratio=rows["eq8"] / rows["eq9"], share=rows["exact"] / rows["eq9"])
    one, several = rows[rows["p"] == 1], rows[rows["p"] > 1]
    found = [
        theorem("eq8-inside-eq9", "the region of eq. 8 lies inside the box of eq. 9",
                f"largest s(eq. 8) / s(eq. 9) over {len(rows)} boundary points",
                rows["ratio"].max(), "<=", 1, within=ROUNDING)
    ]  # fmt: skip
    if len(one):
        low, high = ((one["simulated"] / one["eq8"]).quantile(q) for q in (0, 1))
        found += [
            theorem("simulation-agrees",
                    "in one dimension simulated SGD turns unstable where eq. 8 says",
                    f"largest |s(simulated) − s(eq. 8)| in standard errors, over {len(one)} points "
                    f"(their ratio is {low:.4f} to {high:.4f})",
                    _deviation(one, "eq8"), "<=", DEVIATIONS),
            theorem("eq8-is-exact-in-one-dimension",
                    "in one dimension eq. 8 is the mean-square stability of linearised SGD",
                    "largest relative difference of s(eq. 8) and s(largest eigenvalue of Q = 1)",
                    (one["exact"] / one["eq8"] - 1).abs().max(), "=", 0, within=1e-6),
        ]  # fmt: skip
    if len(several):
        over = f"over {len(several)} points"
        ratios = several["eq8"] / several["exact"]
        found += [
            theorem("eq8-is-sufficient",
                    "in several dimensions eq. 8 is sufficient for stability in mean square",
                    f"largest s(eq. 8) / s(exact) {over}; the smallest is {ratios.min():.3f}",
                    ratios.max(), "<=", 1, within=ROUNDING),
            claim("simulation-agrees-in-several-dimensions",
                  "simulated SGD turns unstable where the largest eigenvalue of Q is 1",
                  f"largest |s(simulated) − s(exact)| in standard errors, {over}; the simulation "
                  "has a bias of one over the number of runs",
                  _deviation(several, "exact"), "<=", DEVIATIONS),
            claim("box-is-not-enough", "inside the box of eq. 9 SGD can still be unstable",
                  f"smallest s(exact) / s(eq. 9) {over}", several["share"].min(), "<", 1),
            claim("box-is-not-necessary",
                  "in several dimensions SGD can be stable in mean square outside the box of eq. 9",
                  f"largest s(exact) / s(eq. 9) {over}", several["share"].max(), ">", 1),
        ]  # fmt: skip
    return found


def _deviation(rows: pd.DataFrame, name: str) -> float:
    """Largest distance of the simulated boundary from another one, in standard errors."""
    return ((rows["simulated"] - rows[name]).abs() / rows["simulated_error"]).max()


def lay_minima(folder: Path) -> tuple[Figure, str]:
    """The minima of a sweep on the diagram of its own n, batch sizes and learning rates.

    Raises:
      ValueError: if there is no sweep in the folder, or it measured no minima.
    """
    n, found = store.read_minima(folder)
    figure = plots.stability_diagram(
        n=n,
        batch_sizes=sorted({row["batch_size"] for row in found}),
        learning_rates=sorted({row["learning_rate"] for row in found}),
        minima=found,
        title=f"Measured minima: n = {n}",
    )
    return figure, f"{len(found)} minima of {folder} laid on the diagram"


PRESETS = {
    "quick": Settings(),
    "paper": Settings(n=1000, points=25, dimensions=(2, 5, 10), problems=3, runs=4000),
    "tiny": Settings(
        n=10,
        learning_rates=(0.5,),
        batch_sizes=(1, 4, "n"),
        points=3,
        dimensions=(2,),
        problems=1,
        runs=100,
        burn_in=60,
    ),
}
