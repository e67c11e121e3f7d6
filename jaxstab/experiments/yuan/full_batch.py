"""Full-batch training against SGD: longer, clipped, with a gradient penalty (Geiping et al. 2022).

The seven rows of the table in the lecture, with the hyper-parameters of that paper's code scaled to
the problem: as many full-batch steps as SGD has epochs; several times as many at four times the
learning rate; the same clipped; with the penalty (η/4) s mean |∇L_b|² over blocks b of the size of
SGD's batches, at eight times the learning rate; over blocks a fifth as large (a quarter in the
paper); the same with the blocks drawn anew at every step. All have warm-up and cosine. An eighth
row takes the penalty's Hessian products exactly.
"""

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
from jaxstab.experiments.statistics import spread_over
from jaxstab.experiments.tables import Column, Table
from jaxstab.experiments.yuan.runs import (
    MEASURED,
    TrainingSettings,
    Way,
    compare,
    difference,
    scatter,
)

EXACT = "full_batch_regularised_exact"
PENALISED = "full_batch_regularised"
REGULARISED = (PENALISED, "full_batch_strongly_regularised", "full_batch_in_practice")


@dataclass(frozen=True)
class Settings(TrainingSettings):
    """SGD's settings, and how those of the full batch follow from them."""

    loss: str = setting("cross_entropy", "loss: squared, cross_entropy or kl")
    learning_rate: float = setting(0.1, "learning rate")
    momentum: float = setting(0.9, "momentum (Nesterov)")
    weight_decay: float = setting(5e-4, "coefficient of the L2 term")
    epochs: int = setting(30, "epochs of SGD, and steps of the full batch")
    longer: int = setting(10, "how many times as many steps the longer runs take")
    clip: float = setting(0.25, "norm to which gradients are clipped")
    strength: float = setting(0.5, "s of the penalty (η/4) s mean |∇L_b|²")
    epsilon: float = setting(0.01, "length of the penalty's finite difference")
    pieces: int = setting(1, "parts in which unpenalised full gradients are summed, to save memory")


def ways(s: Settings, n: int) -> dict[str, Way]:
    """The rows of the table."""
    every, steps, size = -(-n // s.batch_size), s.epochs, s.batch_size
    blocks, small = n // size, n // max(size // 5, 1)

    def optimizer(
        scale: float, length: int, *, clip: bool = False, parts: int = 0, exact: bool = False
    ) -> Any:
        peak, warm = scale * s.learning_rate, max(1, length * 2 // 15)  # 400 of 3,000 steps
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(length * 4 // 3, warm + 1))
        inner = transforms.sgd(
            rate, momentum=s.momentum, kind="nesterov", weight_decay=s.weight_decay
        )
        if clip:
            inner = optax.chain(optax.clip_by_global_norm(s.clip), inner)
        if not parts and s.pieces == 1:
            return inner
        # the gradient of (η/4) s |g_b|² is (η/2) s H_b g_b; without a penalty, the plain sum
        strength = (lambda count: s.strength / 2 * rate(count)) if parts else 0.0
        return transforms.gradient_penalty(
            inner, strength=strength, parts=parts or s.pieces, epsilon=None if exact else s.epsilon
        )

    long = steps * s.longer
    clipped = optimizer(4, long, clip=True)
    penalised = optimizer(8, long, clip=True, parts=blocks)
    strongly = optimizer(8, long, clip=True, parts=small)
    exactly = optimizer(8, long, clip=True, parts=blocks, exact=True)
    sgd = transforms.sgd(
        optax.warmup_cosine_decay_schedule(0.0, s.learning_rate, every, max(steps, 2) * every),
        momentum=s.momentum,
        kind="nesterov",
        weight_decay=s.weight_decay,
    )
    return {
        "sgd": Way(sgd, steps * every, size),
        "full_batch": Way(optimizer(1, steps), steps, n),
        "full_batch_longer": Way(optimizer(4, long), long, n),
        "full_batch_clipped": Way(clipped, long, n),
        "full_batch_regularised": Way(penalised, long, n, 2),
        "full_batch_strongly_regularised": Way(strongly, long, n, 2),
        "full_batch_in_practice": Way(strongly, long, n, 2, shuffle=True),
        EXACT: Way(exactly, long, n, 3),
    }


def run(settings: Settings, context: Context) -> Outcome:
    """Trains all rows over seeds, and measures where they end."""
    problem = problems.load(settings, context.data_dir)
    rows = compare(settings, context, problem, ways(settings, problem.n))
    return Outcome(
        rows=rows,
        tables=[table(rows, published.beside(settings, "geiping2022_table"))],
        claims=claims(rows),
        figures={"full-batch": draw(rows)},
    )


def table(rows: pd.DataFrame, theirs: pd.DataFrame) -> Table:
    """Mean ± std over seeds, in the order of the published table, beside it for its own data."""
    names = ["train_accuracy", "test_accuracy", "loss", "sharpness", "nonuniformity", "gradients"]
    order = {name: i for i, name in enumerate(rows["training"].unique())}
    lines = spread_over(rows, ["training"], names)
    lines = lines.sort_values("training", key=lambda column: column.map(order))
    columns = [
        Column("training", format=lambda name: name.replace("_", " ")),
        Column("train_accuracy", "train", "%", ".2f", "std"),
        Column("test_accuracy", "test", "%", ".2f", "std"),
        Column("loss", "training loss", format=".2e"),
        Column("sharpness", "a", "1/step size", ".3g", "std"),
        Column("nonuniformity", "s", "1/step size", ".3g", "std"),
        Column("gradients", "cost", "gradients of all data", ".0f"),
    ]
    if len(theirs):
        theirs = theirs.rename(columns={"test_accuracy": "published"})
        lines = lines.merge(theirs[["training", "published"]], on="training", how="left")
        columns.append(Column("published", "published test", "%", ".2f"))
    return Table("full-batch", lines.reset_index(drop=True), columns)


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What the paper says of its rows, as it came out here."""
    accuracy = "test_accuracy"
    pairs = {
        "plain-full-batch-is-worse": (
            "sgd",
            "full_batch",
            "the full batch alone is worse than SGD",
        ),
        "longer-helps": ("full_batch_longer", "full_batch", "training longer helps the full batch"),
        "clipping-helps": ("full_batch_clipped", "full_batch_longer", "clipping helps it further"),
        "penalty-helps": (
            PENALISED,
            "full_batch_clipped",
            "the gradient penalty helps further",
        ),
    }
    found = [
        claim(name, statement,
              _words(f"test accuracy of {one} less that of {other}, %, over seeds"),
              difference(rows, accuracy, one, other), ">", 0)
        for name, (one, other, statement) in pairs.items()
    ]  # fmt: skip
    return [
        *found,
        *(
            claim(f"{name.replace('_', '-')}-reaches-sgd",
                  "with a gradient penalty the full batch does as well as SGD",
                  _words(f"test accuracy of {name} less that of sgd, %, over seeds"),
                  difference(rows, accuracy, name, "sgd"), ">=", 0, within=0.5)
            for name in REGULARISED
        ),
        claim("finite-difference", "the finite difference does as the exact penalty does",
              _words(f"test accuracy of {PENALISED} less that of the exact form, %, over seeds"),
              difference(rows, accuracy, PENALISED, EXACT), "=", 0, within=0.5),
        claim("penalty-flattens", "the penalty lowers the sharpness",
              _words(f"a of {PENALISED} less that of full_batch_clipped, 1/step size, over seeds"),
              difference(rows, "sharpness", PENALISED, "full_batch_clipped"), "<", 0),
    ]  # fmt: skip


def _words(text: str) -> str:
    """Names of ways to train as words."""
    return text.replace("_", " ")


def draw(rows: pd.DataFrame) -> Figure:
    """Test accuracy against sharpness and non-uniformity of every run."""
    accuracy = "test_accuracy", "test accuracy  [%]"
    return scatter(
        rows,
        [
            ("sharpness", plots.SHARPNESS, *accuracy),
            ("nonuniformity", plots.NONUNIFORMITY, *accuracy),
        ],
    )


PRESETS = {
    "quick": Settings(batch_size=50, longer=5),
    "paper": Settings(
        **RESNET56_ON_CIFAR10,
        batch_size=125,
        epochs=300,
        pieces=400,
        measured=10_000,
    ),
    "tiny": Settings(
        loss="squared",
        n_train=40,
        batch_size=10,
        epochs=2,
        longer=2,
        seeds=2,
        ways=("sgd", "full_batch_in_practice"),
        **MEASURED,
    ),
}
