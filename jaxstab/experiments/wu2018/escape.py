"""GD and SGD leave minima that are too sharp or non-uniform (Wu, Ma, E 2018, Figs. 1, 8, Table 3).

Gradient descent finds minima of the clean training set, and of the same set with a fifth of
examples with random labels added. From there GD and SGD go on at other learning rates and batch
sizes. Whether each run stays is predicted from a and s before it starts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optax
import pandas as pd

from jaxstab import plots, sweeps
from jaxstab.experiments import problems, published, starts, tables
from jaxstab.experiments.claims import Claim, claim
from jaxstab.experiments.problems import Problem
from jaxstab.experiments.protocol import Context, Outcome
from jaxstab.experiments.settings import seed_range, setting
from jaxstab.experiments.starts import BY, Start, TrialSettings
from jaxstab.experiments.statistics import mean_over, trend
from jaxstab.experiments.tables import Column, Table

KINDS = ("clean", "corrupted")


@dataclass(frozen=True)
class Settings(TrialSettings):
    """Settings of `escape`."""

    random_labels: int = setting(
        100, "further examples with random labels in the corrupted set; 0 for the clean set alone"
    )
    start_learning_rate: float = setting(2.0, "learning rate of the GD that finds the starts")
    starts: int = setting(3, "starts on each of the two sets")


def run(settings: Settings, context: Context) -> Outcome:
    """Finds the starts, predicts, runs, and compares."""
    found = find_starts(settings, load_problems(settings, context), context)
    outcome = starts.run_from(
        found,
        settings,
        context,
        near=settings.start_learning_rate,
        title="Leaving a minimum of gradient descent",
        claims=claims,
    )
    outcomes = plots.outcomes(outcome.rows, ended=solutions(outcome.rows))
    first = table(found, published.beside(settings, "wu2018_table3"))
    return dataclasses.replace(
        outcome,
        tables=[first, *outcome.tables],
        figures=dict(outcome.figures) | {"outcomes": outcomes},
    )


def load_problems(settings: Settings, context: Context) -> dict[str, Problem]:
    """The clean training set, and the same with further examples that have random labels."""
    clean = problems.load(settings, context.data_dir)
    settings.sizes(clean.n)
    if not settings.random_labels:
        return {"clean": clean}
    further = problems.load(settings, context.data_dir, random_labels=settings.random_labels)
    return {"clean": clean, "corrupted": Problem(further.dataset, clean.loss)}


def find_starts(
    settings: Settings, by_kind: Mapping[str, Problem], context: Context
) -> list[Start]:
    """Minima of gradient descent on each set, from initialisations of its own."""
    found = []
    total = 2 * len(by_kind) * settings.starts
    for index, (kind, problem) in enumerate(by_kind.items()):
        context.progress(index * settings.starts, total, f"GD on {kind} data")
        result = sweeps.sweep(
            problem.loss,
            problem.init,
            problem.train,
            optimizer=optax.sgd,
            learning_rates=[settings.start_learning_rate],
            batch_sizes=[problem.n],
            # no initialisation is shared, so that starts are independent
            seeds=[
                index * settings.starts + seed for seed in seed_range(settings.starts, "starts")
            ],
            max_steps=settings.max_steps,
            loss_tolerance=settings.loss_tolerance,
            measure=False,
            out=context.out / "starts" / kind,
        )
        for record in result.records:
            if record["status"] != "diverged":
                point = result.load_params(record), record["steps"]
                found.append(starts.make_start(kind, record["seed"], problem, *point, settings))
    if not found:
        raise ValueError(
            f"gradient descent with learning rate {settings.start_learning_rate:g} diverged from "
            "every initialisation, so there is no minimum to start from: give a smaller "
            "start_learning_rate"
        )
    return found


def table(found: Sequence[Start], theirs: pd.DataFrame) -> Table:
    """Sharpness, non-uniformity and test accuracy of the starts, as in Table 3."""
    lines = [
        {"start": start.name, "steps": start.steps} | start.measurement.to_record()
        | dict(start.accuracies) for start in found
    ]  # fmt: skip
    for row in theirs.to_dict("records"):
        row["test_accuracy"] /= 100
        lines.append(row | {"start": f"published {row['start']}", "steps": None})
    columns = [
        Column("start"),
        Column("steps", format="g"),
        tables.SHARPNESS,
        tables.NONUNIFORMITY,
        Column("test_accuracy", format=".2%"),
    ]
    return Table("starts", pd.DataFrame(lines), columns, title="minima of gradient descent")


def solutions(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs whose end was measured and whose training accuracy is that of a solution."""
    names = [name for name in ("end_sharpness", "end_test_accuracy") if name in rows]
    return rows[rows[names].notna().all(axis=1) & (rows["end_train_accuracy"] > 0.95)]


def claims(rows: pd.DataFrame) -> list[Claim]:
    """What the paper says of these runs, as it came out."""
    ended = solutions(rows)
    gone = ended[ended["outcome"] == "left"]
    gone = gone.assign(
        ratio=gone["end_sharpness"] / gone["start_sharpness"],
        change=100 * (gone["end_test_accuracy"] - gone["start_test_accuracy"]),
    )
    found = [
        claim("flatter", "what leaves a minimum ends at a flatter one",
              f"mean over starts of final over initial sharpness of {len(gone)} runs that left and "
              "trained again", mean_over(gone, "ratio", by=BY), "<", 1),
        claim("flat-generalises", "flatter ends have higher test accuracy",
              "Spearman correlation of sharpness and test accuracy of the ends of each start, on "
              f"one training set; mean over starts, {len(ended)} ends",
              trend(ended, "end_sharpness", "end_test_accuracy", by=BY), "<", 0),
    ]  # fmt: skip
    for kind in KINDS:
        here = gone[gone["kind"] == kind]
        found.append(
            claim(f"better-{kind}",
                  f"leaving the minimum of the {kind} set raises the test accuracy",
                  f"mean over starts of the change of test accuracy of {len(here)} runs, "
                  "percentage points", mean_over(here, "change", by=BY), ">", 0)
        )  # fmt: skip
    return found


PRESETS = {
    "quick": Settings(),
    "paper": Settings(
        dataset="fashion_mnist", model="fnn", n_train=1000, random_labels=200, loss_tolerance=1e-4,
        start_learning_rate=0.1, max_steps=400_000, learning_rates=(0.1, 0.3, 0.5),
        batch_sizes=(1, 4, 100, "n"), sgd_steps=50_000, gd_steps=20_000,
    ),
    "tiny": Settings(
        n_train=30, random_labels=0, starts=1, max_steps=3000, loss_tolerance=0.003,
        learning_rates=(1.0, 6.0), batch_sizes=(4, "n"), seeds=1, sgd_steps=90, gd_steps=60,
        burst_steps=30, tol=1e-2,
    ),
}  # fmt: skip
