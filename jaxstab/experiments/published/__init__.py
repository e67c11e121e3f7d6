"""Published numbers of the source papers, as data; each file names its source in its first lines.

They are drawn beside ours only where the same data set was used.
"""

import csv
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jaxstab.checks import check_name


def names() -> tuple[str, ...]:
    """The tables there are."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name[:-4] for file in files if file.name.endswith(".csv")))


def load(name: str, *, where: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Reads a published table, numbers as float, empty cells as None.

    Args:
      name: one of `names()`.
      where: keeps only the rows whose columns have these values.

    Returns:
      One dict per row.

    Raises:
      ValueError: if the table or a column is unknown; the message names the nearest one.

    Example:
      >>> table2 = {"dataset": "fashion_mnist", "source": "table2_gd", "learning_rate": 0.1}
      >>> row = load("wu2018_grid", where=table2)[0]
      >>> row["sharpness_mean"], row["sharpness_std"]
      (19.6202, 0.1494)
    """
    check_name("published table", name, names())
    text = resources.files(__name__).joinpath(f"{name}.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [{key: _value(cell) for key, cell in row.items()} for row in csv.DictReader(lines)]
    where = where or {}
    for column in where:
        check_name("column", column, rows[0])
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def _value(cell: str) -> Any:
    if cell == "":
        return None
    try:
        return float(cell)
    except ValueError:
        return cell
