"""SGD, SAM, ASAM and m-SAM: test error, where they end, and what they cost (Foret et al. 2021)."""

import math
from dataclasses import dataclass
from typing import Any

import optax
import pandas as pd
from matplotlib.figure import Figure

from jaxstab import plots, transforms
from jaxstab.experiments import problems, published
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import RESNET56_ON_CIFAR10, setting
from jaxstab.experiments.statistics import mean_over, spread_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.yuan.runs import (
    MEASURED,
    Ended,
    TrainingSettings,
    Way,
    compare,
    difference,
    scatter,
)
from jaxstab.operators import directional_curvatures
from jaxstab.stability import box, edges, exact

TWICE = "sgd, twice the steps"
ASCENDING = ("sam", "asam", "m-sam")


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """SGD's settings, and the radii."""

    rho: float = setting(0.1, "radius ρ of SAM and m-SAM")
    adaptive_rho: float = setting(1.0, "radius ρ of ASAM")
    parts: int = setting(5, "parts of a batch in m-SAM, m = B / parts")


def ways(s: Settings, n: int) -> dict[str, Way]:
    """SGD, the three kinds of SAM at as many steps, and SGD at as many gradients as those."""
    steps, size = s.epochs * -(-n // s.batch_size), s.batch_size

    def sgd(length: int) -> Any:
        rate = s.learning_rate if not s.momentum else optax.cosine_decay_schedule(
            s.learning_rate, length
        )  # fmt: skip
        return transforms.sgd(rate, momentum=s.momentum, weight_decay=s.weight_decay)

    inner = sgd(steps)
    ascent = {
        "sam": transforms.sam(inner, rho=s.rho),
        "asam": transforms.sam(inner, rho=s.adaptive_rho, adaptive=True),
        "m-sam": transforms.sam(inner, rho=s.rho, parts=s.parts),
    }
    ascending = {
        # parts are cut by position, and the order within a batch is not quite uniform
        name: Way(optimizer, steps, size, 2, shuffle=name == "m-sam")
        for name, optimizer in ascent.items()
    }
    twice = Way(sgd(2 * steps), 2 * steps, size)
    return {"sgd": Way(inner, steps, size), TWICE: twice, **ascending}


def run(settings: Settings, context: Context) -> Outcome:
    """Trains all over seeds, measures where they end, and places that among the edges."""
    problem = problems.load(settings, context.data_dir)
    count = settings.measured or problem.n
    data = tuple(x[:count] for x in problem.train)

    def more(way: Way, ended: Ended) -> dict[str, Any]:
        a = ended.measurement.sharpness
        along = directional_curvatures(
            ended.loss, ended.run.params, data, a.vector, chunk_size=settings.chunk_size
        )
        return {"eta_17": exact.direction_bound(along, batch_size=min(way.batch_size, count))}

    rows = place(
        compare(settings, context, problem, ways(settings, problem.n), more), settings, count
    )
    theirs = published.beside(settings, "foret2021_table1")
    tables = [table(rows)] + ([published_table(theirs)] if len(theirs) else [])
    return Outcome(rows=rows, tables=tables, claims=claims(rows), figures={"sam": draw(rows)})


def place(rows: pd.DataFrame, s: Settings, n: int) -> pd.DataFrame:
    """The rows with test errors, and a, s and η over their bounds."""
    bounds = box(s.learning_rate, s.batch_size, n)
    is_sam = rows["training"].isin(["sam", "m-sam"])
    norms = rows["gradient_norm"].where(is_sam)
    edge = [math.nan if math.isnan(x) else edges.sam(s.learning_rate, s.rho, x) for x in norms]
    return rows.assign(
        test_error=100 - rows["test_accuracy"],
        a_over=rows["sharpness"] / bounds.sharpness,
        s_over=rows["nonuniformity"] / bounds.nonuniformity,
        eta_over=s.learning_rate / rows["eta_17"],
        sam_edge=edge,
        a_over_sam=rows["sharpness"] / edge,
    )


def table(rows: pd.DataFrame) -> Table:
    """Mean ± std over seeds."""
    names = ["test_error", "loss", "sharpness", "nonuniformity", "gradients"]
    names += ["a_over", "s_over", "eta_over", "sam_edge", "a_over_sam"]
    lines = spread_over(rows, ["training"], names)
    lines = lines.set_index("training").loc[rows["training"].unique()].reset_index()
    columns = [
        Column("training"),
        Column("gradients", "cost", "gradients of all data", ".0f"),
        Column("test_error", "test error", "%", ".2f", "std"),
        Column("loss", "training loss", format=".1e"),
        Column("sharpness", "a", "1/step size", ".3g", "std"),
        Column("nonuniformity", "s", "1/step size", ".3g", "std"),
        Column("a_over", "a/(2/η)", format=".3f"),
        Column("s_over", "s/bound", format=".3f"),
        Column("eta_over", "η/η(eq. 17)", format=".3f"),
        Column("sam_edge", "edge of SAM at |g|", "1/step size", ".3g"),
        Column("a_over_sam", "a/edge of SAM", format=".3g"),
    ]
    return Table(
        "sam", lines, columns, note="eq. 17 of Mulayoff and Michaeli bounds η*_var from above"
    )


def published_table(theirs: pd.DataFrame) -> Table:
    """Test errors of the paper on the same data, with its own networks."""
    columns = [Column("network"), Column("augmentation")]
    columns += [Column(name, name.upper(), "%", ".1f") for name in ("sam", "sgd")]
    return Table("published", theirs, columns, title="Test error in Foret et al. 2021, Table 1")


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What the lecture and the paper say, as it came out here."""
    found = []
    for name in ASCENDING:
        shown = name.upper().replace("M-", "m-")
        for other, words in (("sgd", "as many steps"), (TWICE, "as many gradients")):
            found.append(
                claim(f"{name}-beats-{words.replace(' ', '-')}-of-sgd",
                      f"{shown} has a lower test error than SGD with {words}",
                      "difference of test errors, %, mean over seeds",
                      difference(rows, "test_error", name, other), "<", 0)
            )  # fmt: skip
        for quantity, words in (("sharpness", "sharpness"), ("nonuniformity", "non-uniformity")):
            found.append(
                claim(f"{name}-lowers-{quantity}", f"{shown} ends at lower {words}",
                      f"{words} of {name} less that of sgd, 1/step size, mean over seeds",
                      difference(rows, quantity, name, "sgd"), "<", 0)
            )  # fmt: skip
    found.append(
        claim("m-sam-beats-sam", "m-SAM has a lower test error than SAM",
              "difference of test errors, %, mean over seeds",
              difference(rows, "test_error", "m-sam", "sam"), "<", 0)
    )  # fmt: skip
    sam = rows[rows["training"] == "sam"]
    found.append(
        claim("below-the-edge-of-sam", "SAM ends below its edge at the full gradient's norm",
              "a over the edge of full-batch SAM, mean over seeds",
              mean_over(sam, "a_over_sam"), "<=", 1)
    )  # fmt: skip
    return found


def draw(rows: pd.DataFrame) -> Figure:
    """Test error and non-uniformity against sharpness."""
    sharpness = "sharpness", plots.SHARPNESS
    return scatter(
        rows,
        [
            (*sharpness, "test_error", "test error  [%]"),
            (*sharpness, "nonuniformity", plots.NONUNIFORMITY),
        ],
    )


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        **RESNET56_ON_CIFAR10,
        loss="cross_entropy",
        batch_size=256,
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        epochs=200,
        rho=0.05,
        adaptive_rho=0.5,
        parts=8,
        measured=10_000,
    ),
    "tiny": Settings(n_train=40, batch_size=10, epochs=2, seeds=2, ways=("sgd", "sam"), **MEASURED),
}
