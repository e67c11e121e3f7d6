"""Published numbers of the source papers, as data; each file names its source in its first lines.

The columns that tell which problem a number belongs to have the names and values of the settings
of an experiment (dataset, model, classes, n_train, loss), so that `beside` finds what may stand
beside a run of ours: only numbers of the same problem.
"""

from importlib import resources
from typing import Any

import pandas as pd

from jaxstab.checks import check_name

PROBLEM = ("dataset", "model", "classes", "n_train", "loss")


def names() -> tuple[str, ...]:
    """The tables there are."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name[:-4] for file in files if file.name.endswith(".csv")))


def load(name: str, **where: Any) -> pd.DataFrame:
    """Reads a published table.

    Args:
      name: one of `names()`.
      **where: keeps only the rows whose columns have these values.

    Returns:
      One row per published number; NaN where the paper gives none, "" for no classes.

    Raises:
      ValueError: if the table or a column is unknown; the message names the nearest one.

    Example:
      >>> table2 = load("wu2018_grid", dataset="fashion_mnist", source="table2_gd")
      >>> row = table2[table2["learning_rate"] == 0.1].iloc[0]
      >>> float(row["sharpness_mean"]), float(row["sharpness_std"])
      (19.6202, 0.1494)
    """
    check_name("published table", name, names())
    with resources.files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, comment="#")
    if "classes" in rows:
        rows["classes"] = rows["classes"].fillna("")
    for column, value in where.items():
        check_name("column", column, rows.columns)
        rows = rows[rows[column] == value]
    return rows.reset_index(drop=True)


def beside(settings: Any, name: str, **where: Any) -> pd.DataFrame:
    """The rows of a published table that belong to the problem of these settings, perhaps none.

    Args:
      settings: with the fields of `ProblemSettings`, as far as the table tells them apart.
      name: of the table.
      **where: as for `load`.

    Example:
      >>> from jaxstab.experiments.settings import ProblemSettings
      >>> paper = ProblemSettings(dataset="fashion_mnist", model="fnn", n_train=1000)
      >>> len(beside(paper, "wu2018_grid", source="table2_gd"))
      6
      >>> len(beside(ProblemSettings(), "wu2018_grid"))
      0
    """
    rows = load(name, **where)
    for column in PROBLEM:
        if column in rows:
            value = getattr(settings, column)
            rows = rows[rows[column] == (" ".join(value) if column == "classes" else value)]
    return rows.reset_index(drop=True)
