"""SWA against SGD continued from it (He, Huang, Yuan 2019, Fig. 8, Table 1, appendices D to G)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from jaxstab import landscape, plots
from jaxstab.experiments import published
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.he2019.solutions import (
    PAPER,
    TINY,
    Networks,
    NetworkSettings,
    at,
    over_seeds,
    restored,
    stored,
)
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import setting
from jaxstab.experiments.statistics import mean_over
from jaxstab.experiments.tables import Column, Table

BUMP = 0.01  # nats; a smaller one is not called a bump


@dataclass(frozen=True)
class Settings(NetworkSettings):
    """Slices over all training examples, so that accuracies are those of the solutions."""

    evaluated: int = setting(0, "training examples that slices are evaluated on; 0 for all")


def run(settings: Settings, context: Context) -> Outcome:
    """Averages, goes on with SGD from the average, and looks at the line through both."""
    networks = Networks.load(settings, context)
    rows, lines = [], []
    for seed, step in over_seeds(settings, context, partial(look, networks)):
        lines.append(restored(step))
        rows.append({"seed": seed} | compare(lines[-1], ("swa", "sgd")))
    found = pd.DataFrame(rows)
    return Outcome(
        rows=found,
        tables=[summary(found, settings)],
        claims=claims(found),
        figures={"swa": draw(lines, ("SWA", "SGD"))},
    )


def look(networks: Networks, seed: int) -> dict[str, Any]:
    """The slice through the average (0) and SGD continued from it (1), as plain numbers."""
    _, average = networks.first_phase(seed)
    return stored(networks.interpolate(average, networks.second_phase(average, seed)))


def compare(line: Any, names: tuple[str, str]) -> dict[str, Any]:
    """Losses and accuracies of both solutions, the bump between, and the side each lies on."""
    side = landscape.flat_side(line)
    found = {"bump": float(landscape.bump(line)), "ratio": float(side.ratio)}
    for i, name in enumerate(names):
        found |= {f"{name}_{what}": value for what, value in at(line, float(i)).items()}
        found[f"{name}_bias"] = float(side.bias[i])
    return found | {
        "more_bias": found[f"{names[0]}_bias"] - found[f"{names[1]}_bias"],
        "more_train_loss": found[f"{names[0]}_train_loss"] - found[f"{names[1]}_train_loss"],
        "more_test_accuracy": found[f"{names[0]}_test_accuracy"]
        - found[f"{names[1]}_test_accuracy"],
    }


def summary(found: pd.DataFrame, settings: Settings) -> Table:
    """Accuracies in per cent, mean ± std over seeds, beside the published ones of this problem."""
    theirs = published.beside(settings, "he2019_table1")
    lines = []
    for name in ("swa", "sgd"):
        line: dict[str, Any] = {"solution": name.upper()}
        for what in ("train_accuracy", "test_accuracy"):
            values = 100 * found[f"{name}_{what}"]
            line |= {what: values.mean(), f"{what}_std": values.std(ddof=0)}
            own = theirs[theirs["solution"] == name][what]
            line[f"published_{what}"] = float(own.iloc[0]) if len(own) else np.nan
        lines.append(line | mean_over(found, f"{name}_bias").columns("bias"))
    columns = [
        Column("solution"),
        Column("train_accuracy", "train", "%", format=".2f", spread="std"),
        Column("test_accuracy", "test", "%", format=".2f", spread="std"),
    ]
    if len(theirs):
        columns += [
            Column("published_train_accuracy", "published train", "%"),
            Column("published_test_accuracy", "and test", "%"),
        ]
    columns.append(Column("bias", "bias to the flat side", "|SGD − SWA|", ".3f", "interval"))
    return Table("swa", pd.DataFrame(lines), columns)


def claims(found: pd.DataFrame) -> list[Claim]:
    """What the paper says of the line through the two."""
    return [
        claim(
            "no-bump",
            "there is no bump between SWA and SGD",
            "training loss above both ends on the way, in nats, mean over seeds",
            mean_over(found, "bump"),
            "<=",
            0,
            within=BUMP,
        ),
        claim(
            "swa-on-the-flat-side",
            "SWA lies further to the flat side than SGD",
            "difference of their biases, in units of their distance",
            mean_over(found, "more_bias"),
            ">",
            0,
        ),
        claim(
            "swa-higher-training-loss",
            "SWA has the higher training loss",
            "difference of their training losses, in nats",
            mean_over(found, "more_train_loss"),
            ">",
            0,
        ),
        claim(
            "swa-generalises-better",
            "SWA has the higher test accuracy",
            "difference of their test accuracies",
            mean_over(found, "more_test_accuracy"),
            ">",
            0,
        ),
    ]


def draw(lines: list[Any], names: tuple[str, str]) -> Any:
    """Losses and test accuracy along the line, mean and standard deviation over seeds."""
    t = lines[0].positions

    def series(label: str, name: str) -> Any:
        curves = np.array([getattr(line, name) for line in lines])
        return plots.Series(label, t, curves.mean(0), curves.std(0))

    marks = {names[0]: 0.0, names[1]: 1.0}
    losses = [series("train", "loss"), series("test", "test_loss")]
    accuracies = [series("train", "accuracy"), series("test", "test_accuracy")]
    return plots.panels(
        [
            plots.Panel("loss", losses, ylabel="loss  [1]", log_y=True, vertical=marks),
            plots.Panel("accuracy", accuracies, ylabel="accuracy  [1]", vertical=marks),
        ],
        xlabel=f"t: {names[0]} + t ({names[1]} − {names[0]})  [1]",
    )


LINE: dict[str, Any] = {"evaluated": 0, "positions": 51, "seeds": 3}
PRESETS = {
    "quick": Settings(second_learning_rate=0.01),
    "paper": Settings(**PAPER | LINE),
    "paper-resnet110": Settings(**PAPER | LINE | {"model": "resnet110"}),
    "paper-densenet": Settings(**PAPER | LINE | {"model": "densenet100"}),
    "tiny": Settings(**TINY | {"model": "fnn-small-norm"}),
}
